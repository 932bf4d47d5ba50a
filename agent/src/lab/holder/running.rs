//! A lab that is up, as its holder knows it.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use netns_harness::{EnterSpec, Host, Lab, Process, Sandbox};

use super::super::{
    live::{EndpointLive, HostState, Live, NetworkLive, ReplicaLive, ReplicaState, ServiceLive},
    resolve::Topology,
    wire::{Killed, Status},
};
use crate::api::ApiError;

/// A lab with everything in it. Dropping it ends it.
pub(super) struct Running {
    pub(super) topology: Topology,
    pub(super) hosts: BTreeMap<String, RunningHost>,
    pub(super) replicas: BTreeMap<String, RunningReplica>,
    pub(super) networks: BTreeMap<String, NetworkLive>,
    pub(super) services: Vec<ServiceLive>,
    pub(super) lab: Lab,
}

pub(super) struct RunningHost {
    pub(super) host: Host,
    pub(super) agent: Process,
    pub(super) killed: bool,
}

pub(super) struct RunningReplica {
    pub(super) sandbox: Sandbox,
    /// None for one that only idles.
    pub(super) process: Option<Process>,
    pub(super) endpoints: Vec<EndpointLive>,
}

impl Running {
    pub(super) fn status(&self) -> Status {
        let hosts = self.hosts.iter().map(|(name, host)| {
            let state = if host.killed {
                HostState::Killed
            } else if host.agent.try_wait().is_some() {
                HostState::AgentDown
            } else {
                HostState::Up
            };
            (name.clone(), state)
        });
        let replicas = self.replicas.iter().map(|(name, replica)| {
            let killed = self
                .hosts
                .get(replica.sandbox.host().name())
                .is_some_and(|host| host.killed);
            let ended = replica.process.as_ref().and_then(Process::try_wait);
            let state = match ended {
                _ if killed => ReplicaState::Killed,
                None => ReplicaState::Running,
                // A death by signal n is reported as shells do.
                Some(status) => ReplicaState::Exited(status.code().unwrap_or_else(|| {
                    128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0)
                })),
            };
            (
                name.clone(),
                ReplicaLive {
                    state,
                    endpoints: replica.endpoints.clone(),
                },
            )
        });
        let live = Live {
            hosts: hosts.collect(),
            networks: self.networks.clone(),
            services: self.services.clone(),
            replicas: replicas.collect(),
        };
        Status {
            topology: self.topology.clone(),
            live,
        }
    }

    /// The way into a host or a replica's sandbox.
    pub(super) fn enter(&self, target: &str) -> Result<EnterSpec> {
        if let Some(replica) = self.replicas.get(target) {
            return replica
                .sandbox
                .enter_spec()
                .map_err(|error| ApiError::unavailable(error.to_string()).into());
        }
        self.host(target, "host or replica")?
            .host
            .enter_spec()
            .map_err(|error| ApiError::unavailable(error.to_string()).into())
    }

    /// Takes a host off the network and kills everything on it.
    pub(super) fn kill_host(&mut self, name: &str) -> Result<Killed> {
        let found = self.host(name, "host")?;
        if found.killed {
            return Err(ApiError::conflict(format!(
                "host `{name}` of lab `{}` is down already",
                self.topology.name
            ))
            .into());
        }
        found.host.crash()?;
        if let Some(host) = self.hosts.get_mut(name) {
            host.killed = true;
        }
        let with_it = self
            .topology
            .replicas
            .iter()
            .filter(|replica| replica.host == name);
        Ok(Killed {
            replicas: with_it.map(|replica| replica.name.clone()).collect(),
        })
    }

    /// The addresses of a service on a network.
    pub(super) fn vips(&self, service: &str, network: &str) -> &[IpAddr] {
        self.services
            .iter()
            .find(|live| live.name == service && live.network == network)
            .map_or(&[], |live| &live.vips)
    }

    fn host(&self, name: &str, what: &str) -> Result<&RunningHost, ApiError> {
        self.hosts.get(name).ok_or_else(|| {
            ApiError::not_found(format!("lab `{}` has no {what} `{name}`", self.topology.name))
                .with_help(format!("`weft lab inspect {}` lists them", self.topology.name))
        })
    }
}
