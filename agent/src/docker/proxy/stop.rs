//! A container that is told to stop is drained before it hears of it.

use std::{path::Path, time::Duration};

use hyper::{Method, StatusCode};
use tokio::{task::JoinSet, time::timeout};
use weft_types::EndpointId;

use super::rewrite::unversioned;
use crate::{
    api::{
        client::Client,
        types::{EndpointActivateRequest, EndpointDrainRequest},
    },
    docker::{containers::endpoint_of, engine::Engine},
};

/// dockerd shows a container that it starts or stops already only when it has done so: nobody waits here for that.
const LOOK: Duration = Duration::from_secs(1);
/// What all nodes may take to say that they send it no new connections, besides the grace period.
const SAYING: Duration = Duration::from_secs(5);

/// The container that a request stops in order: `docker stop`, `docker restart`, and Compose's.
pub(super) fn stopped<'a>(method: &Method, path: &'a str) -> Option<&'a str> {
    let named = unversioned(path)?.strip_prefix("containers/")?;
    let (container, verb) = named.split_once('/')?;
    (method == Method::POST && ["stop", "restart"].contains(&verb)).then_some(container)
}

/// What a container serves with, drained, while Docker stops it.
pub(super) struct Stopping {
    agent: Client,
    drained: Vec<EndpointId>,
}

impl Stopping {
    /// Returns when nobody sends it new connections any more, and the open ones have ended or `grace` is over.
    /// Whatever goes wrong is no reason not to stop it.
    pub(super) async fn begin(docker: &Path, container: &str, agent: &Client, grace: Duration) -> Self {
        let mut stopping = Self {
            agent: agent.clone().with_deadline(grace.saturating_add(SAYING)),
            drained: endpoints(docker, container).await,
        };
        let request = EndpointDrainRequest {
            network: None,
            grace_ms: grace.as_millis().try_into().unwrap_or(u64::MAX),
            // Its program may still end them, in the time that Docker gives it.
            reset: false,
        };
        let mut drains = JoinSet::new();
        for endpoint in stopping.drained.clone() {
            let (agent, request) = (stopping.agent.clone(), request.clone());
            drains.spawn(async move {
                (
                    endpoint,
                    agent.endpoint_drain(&endpoint.to_string(), &request).await,
                )
            });
        }
        while let Some(done) = drains.join_next().await {
            match done {
                Ok((_, Ok(_))) | Err(_) => {}
                // It serves nothing, or is on a network of Docker's own.
                Ok((endpoint, Err(error))) if error.is_not_found() => {
                    stopping.drained.retain(|drained| *drained != endpoint);
                }
                Ok((endpoint, Err(error))) => {
                    tracing::warn!(endpoint = %endpoint.short(), %error, "it is stopped without having been drained");
                }
            }
        }
        stopping
    }

    /// What Docker says of it: one that it has not stopped serves on.
    pub(super) fn end(mut self, status: StatusCode) {
        if !(status.is_client_error() || status.is_server_error()) {
            self.drained.clear();
        }
    }
}

/// Also if whoever asked is gone before Docker was.
impl Drop for Stopping {
    fn drop(&mut self) {
        for endpoint in std::mem::take(&mut self.drained) {
            let agent = self.agent.clone();
            tokio::spawn(async move {
                let request = EndpointActivateRequest::default();
                if let Err(error) = agent.endpoint_activate(&endpoint.to_string(), &request).await {
                    tracing::warn!(endpoint = %endpoint.short(), %error, "it is not stopped, and gets no new connections");
                }
            });
        }
    }
}

/// Of a container that runs.
async fn endpoints(docker: &Path, container: &str) -> Vec<EndpointId> {
    let looked = timeout(LOOK, async {
        Engine::connect(docker).await?.container(container).await
    });
    match looked.await {
        Ok(Ok(container)) if container.state.running => {
            let networks = container.network_settings.networks.values();
            networks
                .filter_map(|attached| endpoint_of(&attached.endpoint))
                .collect()
        }
        Ok(Ok(_)) => Vec::new(),
        Ok(Err(error)) => {
            tracing::debug!(container, %error, "it is not known what it serves");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}
