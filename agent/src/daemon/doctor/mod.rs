//! `weft doctor`: compares what should be, what peers believe, what the kernel holds and what packets say.
//!
//! What should be comes from the owner of the state, what the kernel holds from the host thread; packets are sent from a
//! thread of their own. Each part is judged by a function without I/O.

mod addresses;
#[cfg(test)]
mod fixtures;
mod kernel;
mod looks;
pub(super) mod names;
mod records;
pub(super) mod services;
mod tunnel;
mod underlay;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use axum::{Json, extract::State};
use weft_netlink::netns::Netns;

use super::{
    host::sentence,
    server::{Answer, Body, Context, Request},
    target,
};
use crate::{
    api::{
        ApiError,
        types::{DoctorCheck, DoctorRequest, DoctorResponse, DoctorTopic, DoctorVerdict},
    },
    control::{
        Command,
        doctor::{Expected, Local, NetworkView, Peer},
    },
};

/// How long an answer to a packet is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// What may be in the middle of a change is asked or tried again, so often and after so long.
const TRIES: usize = 4;
const AGAIN: Duration = Duration::from_millis(300);

pub(super) async fn doctor(
    State(context): State<Context>,
    Body(request): Body<DoctorRequest>,
) -> Answer<DoctorResponse> {
    let view = context
        .ask(|responder| Request::Examine(request.fix, responder))
        .await?;
    let expected = expected(&context).await?;
    let mut checks = records::judge(&expected);
    checks.extend(kernel::judge(&view, &expected));
    let node_name = expected.node.clone();
    if !request.passive {
        let (probed, networks) = blocking(move || (probe(&expected), expected.networks)).await?;
        checks.extend(probed);
        let try_all = |networks: Vec<NetworkView>| {
            blocking(move || {
                let found = try_services(&networks);
                (networks, found)
            })
        };
        let views = || later(context.clone());
        checks.extend(looks::settle(networks, try_all, views).await?);
    }
    checks.sort_by_key(|check| check.topic);
    Ok(Json(DoctorResponse { node_name, checks }))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(format!("what was tried ended early: {error}")))
}

async fn examine(context: &Context) -> Result<Box<Expected>, ApiError> {
    context.ask(|to| Request::Command(Command::Examine(to))).await
}

/// What is on which network a moment later.
async fn later(context: Context) -> Result<Vec<NetworkView>, ApiError> {
    tokio::time::sleep(AGAIN).await;
    Ok(examine(&context).await?.networks)
}

async fn expected(context: &Context) -> Result<Expected, ApiError> {
    let mut tries = 1;
    loop {
        let expected = examine(context).await?;
        let differs = |peer: &Peer| peer.said.as_ref().is_some_and(|said| !said.agrees);
        if tries == TRIES || !expected.peers.iter().any(differs) {
            return Ok(*expected);
        }
        tries += 1;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Tries everything that takes packets, but for services.
fn probe(expected: &Expected) -> Vec<DoctorCheck> {
    let mut checks = Vec::new();
    let reached = match underlay::probe(expected) {
        Ok(found) => {
            checks.extend(underlay::judge(expected, &found));
            underlay::reached(&found)
        }
        Err(error) => {
            checks.push(untried(DoctorTopic::Underlay, &expected.node, &error));
            BTreeSet::new()
        }
    };
    std::thread::scope(|scope| {
        let networks = expected.networks.iter();
        let networks: Vec<_> = networks
            .map(|network| scope.spawn(|| probe_network(network, expected, &reached)))
            .collect();
        for network in networks {
            // A panic is in the log; the other networks are told of nevertheless.
            checks.extend(network.join().unwrap_or_default());
        }
    });
    checks
}

fn probe_network(network: &NetworkView, expected: &Expected, reached: &BTreeSet<IpAddr>) -> Vec<DoctorCheck> {
    let Some(here) = here(network) else {
        return Vec::new();
    };
    let netns = match Netns::open(&here.sandbox.path) {
        Ok(netns) => netns,
        Err(error) => return vec![untried(DoctorTopic::Tunnel, &network.name, &sentence(&error))],
    };
    let mut checks = match tunnel::probe(network, here, &netns) {
        Ok(found) => tunnel::judge(network, here, expected, &found, reached),
        Err(error) => vec![untried(DoctorTopic::Tunnel, &network.name, &error)],
    };
    checks.extend(match addresses::probe(network) {
        Ok(found) => addresses::judge(network, &found),
        Err(error) => vec![untried(DoctorTopic::Addresses, &network.name, &error)],
    });
    checks.extend(match names::probe(network, &netns) {
        Ok(found) => names::judge(network, &found),
        Err(error) => vec![untried(DoctorTopic::Names, &network.name, &error)],
    });
    checks
}

/// Where things are tried from.
fn here(network: &NetworkView) -> Option<&Local> {
    let mut locals = network.locals.iter();
    locals.find(|local| target::still_there(&local.sandbox))
}

/// What is found of the services of each network.
fn try_services(networks: &[NetworkView]) -> Vec<looks::Found> {
    let try_network = |network| {
        let (Some(here), true) = (here(network), !network.services.is_empty()) else {
            return Vec::new();
        };
        // What is in the way of that was said when the tunnels were tried.
        let Ok(netns) = Netns::open(&here.sandbox.path) else {
            return Vec::new();
        };
        let found = services::probe(network, here, &netns);
        services::judge(network, here, &found)
    };
    std::thread::scope(|scope| {
        let networks: Vec<_> = networks
            .iter()
            .map(|network| scope.spawn(move || try_network(network)))
            .collect();
        // A panic is in the log; the other networks are told of nevertheless.
        networks
            .into_iter()
            .map(|network| network.join().unwrap_or_default())
            .collect()
    })
}

fn untried(topic: DoctorTopic, subject: &str, error: &str) -> DoctorCheck {
    DoctorCheck::ok(topic, subject, format!("it could not be tried: {error}")).judged(DoctorVerdict::Unknown)
}
