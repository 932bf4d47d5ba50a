//! Docker's networks and the cluster's: which is which.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use weft_types::NetworkId;

use super::{
    super::{
        Control, Now, Responder, names,
        networks::CreateNetwork,
        operations::Operation,
        records::{NetworkSpec, Register, encode, network_key},
    },
    first_half,
};
use crate::api::{
    ApiError, ErrorKind,
    types::{NetworkCreateRequest, NetworkOptions, ServiceQuery, check_name},
};

/// `NetworkDriver.CreateNetwork`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateDockerNetwork {
    /// Docker's id on this host.
    pub id: String,
    /// `-o weft.network=`: the network of the cluster that it is, by name or id.
    pub network: Option<String>,
    pub pools: Vec<NetworkPool>,
    /// Whether its addresses are another address management's.
    pub foreign: bool,
    pub internal: bool,
    /// Options that are Weft's.
    pub options: BTreeMap<String, String>,
}

/// A subnet that Docker gives a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPool {
    pub net: IpNet,
    pub gateway: Option<IpAddr>,
    pub aux: BTreeMap<String, IpAddr>,
}

/// A network of the cluster, as the agent compares it with Docker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetwork {
    pub id: NetworkId,
    pub name: String,
    /// Whether `name` was made up, because nobody has told the name it is to have.
    pub unnamed: bool,
    pub subnets: Vec<IpNet>,
    pub internal: bool,
    pub in_use: bool,
    /// Docker's ids of it on this host.
    pub docker: Vec<String>,
}

impl Control {
    pub(super) fn cluster_networks(&self) -> Vec<ClusterNetwork> {
        let bound = |id: NetworkId| {
            let bound = self.docker.networks.iter().filter(move |(_, to)| **to == id);
            bound.map(|(docker, _)| docker.clone()).collect()
        };
        self.catalogue
            .networks()
            .map(|(id, spec)| ClusterNetwork {
                id,
                name: self.catalogue.display_name(id).unwrap_or_default(),
                unnamed: spec.name == provisional_name(id),
                subnets: spec.subnets.iter().map(|subnet| subnet.net).collect(),
                internal: spec.internal,
                in_use: self.catalogue.users(id).next().is_some(),
                docker: bound(id),
            })
            .collect()
    }

    /// Docker's name for a network becomes the cluster's.
    pub(super) fn name_network(&mut self, id: NetworkId, name: &str, now: Now) -> Result<(), ApiError> {
        let Some(spec) = self.catalogue.network(id) else {
            return Err(ApiError::not_found("the network was removed meanwhile"));
        };
        if spec.name != provisional_name(id) {
            return Ok(());
        }
        check_name("a network", name)?;
        if self.catalogue.networks().any(|(_, other)| other.name == name) {
            return Err(ApiError::conflict(format!(
                "the cluster has another network `{name}` already"
            )));
        }
        let value = NetworkSpec {
            name: name.to_owned(),
            ..spec.clone()
        };
        let register = Register {
            lamport: self.catalogue.lamport_for(&network_key(id)),
            removed: false,
            value,
        };
        self.publish(network_key(id), encode(&register), now)
    }

    pub(super) fn create_docker_network(
        &mut self,
        request: CreateDockerNetwork,
        to: Responder<()>,
        now: Now,
    ) {
        if request.foreign {
            // The agent puts a network of the cluster in its place, which takes Docker's API.
            let result = self.docker.watched.then_some(()).ok_or_else(|| {
                ApiError::invalid(
                    "the addresses of this network are Docker's own, which gives the same ones on every host",
                )
                .with_help(
                    "have the cluster give them: `docker network create -d weft --ipam-driver weft NAME`",
                )
            });
            self.reply(to, result);
            return;
        }
        match self.find_docker_network(&request) {
            Ok(Some(network)) => {
                self.bind(&request.id, network);
                self.reply(to, Ok(()));
            }
            Ok(None) => match self.new_network(&request) {
                Ok(create) => self.start(Operation::CreateDockerNetwork(create, to), now),
                Err(error) => self.reply(to, Err(error)),
            },
            Err(error) => self.reply(to, Err(error)),
        }
    }

    /// The network of the cluster that this one of Docker's is: as it is bound already, as it was asked for,
    /// or the one with the same subnets.
    fn find_docker_network(&self, request: &CreateDockerNetwork) -> Result<Option<NetworkId>, ApiError> {
        let bound = self.docker.networks.get(&request.id).copied();
        if let Some(network) = bound.filter(|id| self.catalogue.network(*id).is_some()) {
            return Ok(Some(network));
        }
        if request.pools.is_empty() {
            return Err(ApiError::invalid("a network of Weft's has at least one subnet")
                .with_help("leave out `--ipv4=false`, or add `--ipv6`"));
        }
        let shares = |spec: &NetworkSpec| {
            let has = |pool: &NetworkPool| spec.subnets.iter().any(|subnet| subnet.net == pool.net);
            request.pools.iter().filter(|pool| has(pool)).count()
        };
        let found = match &request.network {
            Some(reference) => match names::network(&self.catalogue, reference) {
                Ok(id) => Some(id),
                Err(error) if error.kind == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
            None => {
                let mut similar = self.catalogue.networks().filter(|(_, spec)| shares(spec) > 0);
                let found = similar.next().map(|(id, _)| id);
                if similar.next().is_some() {
                    return Err(ApiError::conflict(
                        "its subnets are those of several networks of the cluster",
                    )
                    .with_help("say which one it is: `-o weft.network=NAME`"));
                }
                found
            }
        };
        let Some(id) = found else { return Ok(None) };
        let spec = self.catalogue.network(id).expect("found among the networks");
        let name = self.catalogue.display_name(id).unwrap_or_default();
        if shares(spec) < request.pools.len() {
            let subnets: Vec<_> = spec.subnets.iter().map(|subnet| subnet.net.to_string()).collect();
            return Err(ApiError::conflict(format!(
                "network `{name}` of the cluster has the subnets {}, not those that Docker gives it here",
                subnets.join(", ")
            ))
            .with_help(
                "every host has the agent's word for what the cluster's networks are: make none by hand",
            ));
        }
        if spec.internal != request.internal {
            let (is, flag) = match spec.internal {
                true => ("internal", "add"),
                false => ("not internal", "leave out"),
            };
            return Err(ApiError::conflict(format!(
                "network `{name}` of the cluster is {is}, on every host"
            ))
            .with_help(format!("{flag} `--internal`")));
        }
        // Who asks by name is the agent, which knows what the network is.
        let asked = NetworkOptions::parse(&name, &request.options)?.encrypted;
        if asked.is_some_and(|asked| asked != spec.encrypted) {
            let (is, flag) = match spec.encrypted {
                true => ("encrypted", "leave out `-o encrypted=false`"),
                false => (
                    "not encrypted",
                    "leave out `-o encrypted`, or make another network",
                ),
            };
            return Err(ApiError::conflict(format!(
                "network `{name}` of the cluster is {is}, on every host"
            ))
            .with_help(flag));
        }
        Ok(Some(id))
    }

    fn new_network(&mut self, request: &CreateDockerNetwork) -> Result<CreateNetwork, ApiError> {
        let id = network_id(&request.id)?;
        let nets: Vec<_> = request.pools.iter().map(|pool| pool.net).collect();
        let aux = request.pools.iter().flat_map(|pool| &pool.aux);
        let mut create = NetworkCreateRequest {
            subnets: nets.clone(),
            gateways: request.pools.iter().filter_map(|pool| pool.gateway).collect(),
            aux_addresses: aux.map(|(name, address)| (name.clone(), *address)).collect(),
            ipv6: nets.iter().any(|net| matches!(net, IpNet::V6(_))),
            internal: request.internal,
            options: request.options.clone(),
            ..NetworkCreateRequest::new(request.network.clone().unwrap_or_else(|| provisional_name(id)))
        };
        let ranges = nets
            .iter()
            .filter_map(|net| self.docker.set_aside.get(net)?.range);
        create.ip_ranges = ranges.collect();
        let options = create.check()?;
        self.check_new_network(&create)?;
        let set_aside = self.take_set_aside(&nets);
        // Those that were set aside come first, as settled as they are.
        create.subnets.sort_by_key(|net| !set_aside.contains_key(net));
        let settled = create.subnets.iter();
        let settled = settled.filter_map(|net| Some((*net, set_aside.get(net)?.units)));
        Ok(CreateNetwork::for_docker(
            id,
            request.id.clone(),
            options,
            settled.collect(),
            create,
        ))
    }

    /// Says, durably, that this network of Docker's is that one of the cluster's.
    pub(in super::super) fn bind(&mut self, docker: &str, network: NetworkId) {
        if self.docker.networks.insert(docker.to_owned(), network) != Some(network) {
            self.turn.bindings.push((docker.to_owned(), Some(network)));
        }
    }

    /// Docker has removed it, whatever is said here. The cluster's network goes with it, and its services, which Docker
    /// knows nothing of, if nothing uses it anywhere; otherwise it stays, and this host gets it back.
    pub(super) fn delete_docker_network(&mut self, docker: &str, now: Now) {
        let Some(network) = self.docker.networks.remove(docker) else {
            return;
        };
        self.turn.bindings.push((docker.to_owned(), None));
        let others = self.docker.networks.values().any(|other| *other == network);
        if others || self.catalogue.network(network).is_none() {
            return;
        }
        if self.catalogue.users(network).next().is_none() {
            let services: Vec<_> = self.catalogue.services(network).map(|(id, _)| id).collect();
            for service in services {
                // One that is gone already is as good.
                let _ = self.withdraw_service(&service.to_string(), &ServiceQuery::default(), now);
            }
        }
        if let Err(error) = self.remove_network(&network.to_string(), now) {
            tracing::warn!(reason = %error, "Docker has removed a network that the cluster keeps");
        }
    }
}

/// Half of Docker's id: enough to be one of a kind, and the same when asked again.
fn network_id(docker: &str) -> Result<NetworkId, ApiError> {
    let half = first_half(docker).and_then(|half| half.parse().ok());
    half.ok_or_else(|| ApiError::invalid(format!("`{docker}` is not an id of a network of Docker's")))
}

/// What a network is called until its name is known, which Docker does not tell its driver.
pub(in super::super) fn provisional_name(id: NetworkId) -> String {
    format!("docker-{}", id.short())
}
