//! `weft doctor`: compares what should be, what peers believe, what the kernel holds and what packets say.
//!
//! What should be comes from the owner of the state, what the kernel holds from the host thread; packets are sent from a
//! thread of their own. Each part is judged by a function without I/O.

mod addresses;
#[cfg(test)]
mod fixtures;
mod kernel;
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
        doctor::{Expected, NetworkView, Peer},
    },
};

/// How long an answer to a packet is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Nodes that are in the middle of telling each other something are asked again, so often and after so long.
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
        let probed = tokio::task::spawn_blocking(move || probe(&expected)).await;
        checks.extend(
            probed.map_err(|error| ApiError::internal(format!("what was tried ended early: {error}")))?,
        );
    }
    checks.sort_by_key(|check| check.topic);
    Ok(Json(DoctorResponse { node_name, checks }))
}

async fn expected(context: &Context) -> Result<Expected, ApiError> {
    let mut tries = 1;
    loop {
        let expected = context.ask(|to| Request::Command(Command::Examine(to))).await?;
        let differs = |peer: &Peer| peer.said.as_ref().is_some_and(|said| !said.agrees);
        if tries == TRIES || !expected.peers.iter().any(differs) {
            return Ok(*expected);
        }
        tries += 1;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Tries everything that takes packets.
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
    let here = network
        .locals
        .iter()
        .find(|local| target::still_there(&local.sandbox));
    let Some(here) = here else { return Vec::new() };
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
    let found = services::probe(network, here, &netns);
    checks.extend(services::judge(network, here, &found));
    checks
}

fn untried(topic: DoctorTopic, subject: &str, error: &str) -> DoctorCheck {
    DoctorCheck::ok(topic, subject, format!("it could not be tried: {error}")).judged(DoctorVerdict::Unknown)
}
