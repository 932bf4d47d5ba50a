//! Docker's networks, pools, addresses and endpoints, as Weft's.
//!
//! What Docker calls a network is bound to one of the cluster's: each host has an id of its own for it. An
//! endpoint has one id, the first half of Docker's. A pool is a subnet of a network, or a subnet set aside
//! for the network that Docker is about to make. An address is leased between the moment it is given and
//! the moment an endpoint has it; nothing of that needs the disk, because an endpoint claims its addresses
//! once more if the agent was started again in between.
//!
//! Everything can be asked twice.

mod endpoints;
mod networks;
#[cfg(test)]
mod plugged;
mod pools;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use weft_types::{EndpointId, NetworkId};

use super::{
    Control, Now, Responder,
    interest::{About, Asked},
    names,
    operations::{Operation, Stop},
};
use crate::api::{
    ApiError, ErrorKind,
    types::{NetworkCreateRequest, NetworkSummary, ServiceChanged, ServiceCreateRequest},
};

pub use endpoints::{CreateEndpoint, Description, EndpointGrant, Join, JoinGrant};
pub use networks::{ClusterNetwork, CreateDockerNetwork, NetworkPool};
#[cfg(test)]
pub(crate) use plugged::Plugged;
pub use pools::{PoolGrant, RequestAddress, RequestPool};

use endpoints::EndpointTask;
use pools::{AddressTask, PoolTask, SetAside};

/// Docker needs milliseconds between asking for a pool or an address and using it.
const LEASE: Duration = Duration::from_secs(120);

/// What Docker asks, and what the agent tells about Docker.
pub enum DockerCommand {
    RequestPool(RequestPool, Responder<PoolGrant>),
    ReleasePool(String, Responder<()>),
    RequestAddress(RequestAddress, Responder<IpNet>),
    ReleaseAddress(String, IpAddr, Responder<()>),
    CreateNetwork(CreateDockerNetwork, Responder<()>),
    DeleteNetwork(String, Responder<()>),
    CreateEndpoint(CreateEndpoint, Responder<EndpointGrant>),
    Join(Join, Responder<JoinGrant>),
    Leave(EndpointId, Responder<()>),
    DeleteEndpoint(EndpointId, Responder<()>),
    /// Whether Docker's API can be used.
    Watched(bool, Responder<()>),
    Networks(Responder<Vec<ClusterNetwork>>),
    NameNetwork(NetworkId, String, Responder<()>),
    MakeNetwork(NetworkCreateRequest, Responder<NetworkSummary>),
    /// Of the containers on this host, those whose endpoints are known.
    Endpoints(Responder<Vec<EndpointId>>),
    /// No container has this endpoint.
    Collect(EndpointId, Responder<()>),
    Describe(Description, Responder<()>),
    MakeService(ServiceCreateRequest, Responder<ServiceChanged>),
    /// What is wrong between Docker and the cluster, a sentence each.
    Problems(Vec<String>, Responder<()>),
}

/// What is known of Docker on this host.
#[derive(Default)]
pub(super) struct Docker {
    /// The cluster's network behind each network of Docker's.
    networks: BTreeMap<String, NetworkId>,
    /// Subnets set aside for networks that Docker is about to make.
    set_aside: BTreeMap<IpNet, SetAside>,
    /// Addresses between their request and their endpoint, or between endpoint and release.
    leases: BTreeMap<(NetworkId, IpAddr), Lease>,
    /// Whether dockerd's firewall lets out what networks send.
    lets_out: bool,
    /// Who waits for an endpoint's interface.
    joining: BTreeMap<EndpointId, (JoinGrant, Responder<JoinGrant>)>,
    /// Whether the agent can use Docker's API.
    watched: bool,
    problems: Vec<String>,
}

struct Lease {
    since: Instant,
    /// Its endpoint is deleted and its release is still to come: nobody else may have it meanwhile.
    leaving: bool,
    /// The name of the container it is for, which newer Dockers tell.
    name: Option<String>,
}

/// What may have to wait for a number from another node.
pub(super) enum DockerTask {
    Pool(PoolTask, Responder<PoolGrant>),
    Address(AddressTask, Responder<IpNet>),
    Endpoint(EndpointTask, Responder<EndpointGrant>),
}

pub(super) enum DockerAnswer {
    Pool(PoolGrant),
    Address(IpNet),
    Endpoint(EndpointGrant),
}

/// Docker's ids of networks and endpoints have 256 bits, in hexadecimal. Half of one is as good.
pub fn first_half(docker: &str) -> Option<&str> {
    let is_id = docker.len() == 64 && docker.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| &docker[..32])
}

impl Docker {
    pub(super) fn new(networks: Vec<(String, NetworkId)>) -> Self {
        Self {
            networks: networks.into_iter().collect(),
            ..Self::default()
        }
    }
}

impl Control {
    pub fn handle_docker(&mut self, command: DockerCommand, now: Now) {
        self.carry_out_or_wait(Asked::Docker(command), now);
        self.settle(now);
    }

    /// What endpoints have to be known for it.
    pub(super) fn subject_of_docker(&self, command: &DockerCommand) -> About {
        let of = |docker: &str| self.docker.networks.get(docker).copied();
        match command {
            DockerCommand::CreateEndpoint(request, _) => of(&request.network),
            DockerCommand::DeleteNetwork(docker, _) => of(docker),
            DockerCommand::MakeService(request, _) => names::network(&self.catalogue, &request.network).ok(),
            _ => None,
        }
        .map_or(About::Nothing, About::One)
    }

    pub(super) fn carry_out_docker(&mut self, command: DockerCommand, now: Now) {
        match command {
            DockerCommand::RequestPool(request, to) => match self.pool_task(request) {
                Ok(task) => self.start(Operation::Docker(DockerTask::Pool(task, to)), now),
                Err(error) => self.reply(to, Err(error)),
            },
            DockerCommand::ReleasePool(pool, to) => {
                self.release_pool(&pool, now);
                self.reply(to, Ok(()));
            }
            DockerCommand::RequestAddress(request, to) => match request.pool.parse() {
                Ok(pool) => {
                    let task = AddressTask { pool, request };
                    self.start(Operation::Docker(DockerTask::Address(task, to)), now);
                }
                Err(error) => self.reply(to, Err(error)),
            },
            DockerCommand::ReleaseAddress(pool, address, to) => {
                self.release_address(&pool, address, now);
                self.reply(to, Ok(()));
            }
            DockerCommand::CreateNetwork(request, to) => self.create_docker_network(request, to, now),
            DockerCommand::DeleteNetwork(id, to) => {
                self.delete_docker_network(&id, now);
                self.reply(to, Ok(()));
            }
            DockerCommand::CreateEndpoint(request, to) => match self.endpoint_task(request) {
                Ok(task) => self.start(Operation::Docker(DockerTask::Endpoint(task, to)), now),
                Err(error) => self.reply(to, Err(error)),
            },
            DockerCommand::Join(request, to) => self.join_container(request, to, now),
            DockerCommand::Leave(id, to) => {
                self.drain_container(id, to, now);
            }
            DockerCommand::DeleteEndpoint(id, to) => {
                self.delete_docker_endpoint(id, now);
                self.reply(to, Ok(()));
            }
            DockerCommand::Watched(watched, to) => {
                self.docker.watched = watched;
                self.reply(to, Ok(()));
            }
            DockerCommand::Networks(to) => {
                let networks = self.cluster_networks();
                self.reply(to, Ok(networks));
            }
            DockerCommand::NameNetwork(id, name, to) => {
                let result = self.name_network(id, &name, now);
                self.reply(to, result);
            }
            DockerCommand::MakeNetwork(request, to) => self.start_create_network(request, to, now),
            DockerCommand::Endpoints(to) => {
                let known = self.docker_endpoints();
                self.reply(to, Ok(known));
            }
            DockerCommand::Collect(id, to) => {
                self.collect_endpoint(id, now);
                self.reply(to, Ok(()));
            }
            DockerCommand::Describe(description, to) => {
                let result = self.describe_endpoint(description, now);
                self.reply(to, result);
            }
            DockerCommand::MakeService(request, to) => self.start_create_service(request, to, now),
            DockerCommand::Problems(problems, to) => {
                self.set_docker_problems(problems);
                self.reply(to, Ok(()));
            }
        }
    }

    pub(super) fn attempt_docker(&mut self, task: &mut DockerTask, now: Now) -> Result<DockerAnswer, Stop> {
        match task {
            DockerTask::Pool(task, _) => self.request_pool(task, now).map(DockerAnswer::Pool),
            DockerTask::Address(task, _) => self.request_address(task, now).map(DockerAnswer::Address),
            DockerTask::Endpoint(task, _) => self.create_endpoint(task, now).map(DockerAnswer::Endpoint),
        }
    }

    pub(super) fn finish_docker(&mut self, task: DockerTask, answer: DockerAnswer) {
        match (task, answer) {
            (DockerTask::Pool(_, to), DockerAnswer::Pool(grant)) => self.reply(to, Ok(grant)),
            (DockerTask::Address(_, to), DockerAnswer::Address(address)) => self.reply(to, Ok(address)),
            (DockerTask::Endpoint(_, to), DockerAnswer::Endpoint(grant)) => self.reply(to, Ok(grant)),
            _ => unreachable!("each task has an answer of its own kind"),
        }
    }

    pub(super) fn fail_docker(&mut self, task: DockerTask, error: ApiError) {
        match task {
            DockerTask::Pool(_, to) => self.reply(to, Err(error)),
            // Docker's own knowledge of its subnets does not grow.
            DockerTask::Address(_, to) if error.kind == ErrorKind::Exhausted => {
                let help =
                    "disconnect endpoints that are not needed, or make a network with a larger --subnet";
                self.reply(to, Err(error.with_help(help)));
            }
            DockerTask::Address(_, to) => self.reply(to, Err(error)),
            DockerTask::Endpoint(_, to) => self.reply(to, Err(error)),
        }
    }

    fn set_docker_problems(&mut self, problems: Vec<String>) {
        let before = std::mem::replace(&mut self.docker.problems, problems.clone());
        for solved in before.into_iter().filter(|problem| !problems.contains(problem)) {
            self.solved(solved);
        }
        for problem in problems {
            self.problem(problem);
        }
    }

    /// Takes back what Docker asked for and never used: it died in between.
    pub(super) fn expire_leases(&mut self, now: Now) {
        let stale = |since: Instant| now.instant.duration_since(since) > LEASE;
        let leases: Vec<_> = self
            .docker
            .leases
            .iter()
            .filter(|(_, lease)| stale(lease.since))
            .map(|(key, _)| *key)
            .collect();
        for (network, address) in leases {
            tracing::info!(%network, %address, "an address that Docker asked for was never used");
            self.end_lease(network, address, now);
        }
        let pools: Vec<_> = self
            .docker
            .set_aside
            .iter()
            .filter(|(_, pool)| stale(pool.since))
            .map(|(net, _)| *net)
            .collect();
        for net in pools {
            tracing::info!(subnet = %net, "a subnet that Docker asked for was never used");
            self.give_back_pool(net, now);
        }
    }
}
