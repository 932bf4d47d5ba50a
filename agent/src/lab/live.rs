//! What is known of a running lab beyond its topology: the addresses that were given, and who lives.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// A running lab, as its holder tells it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Hosts by name.
    pub hosts: BTreeMap<String, HostState>,
    /// Networks by name.
    pub networks: BTreeMap<String, NetworkLive>,
    /// Services, one entry for each network a service is on.
    pub services: Vec<ServiceLive>,
    /// Replicas by name.
    pub replicas: BTreeMap<String, ReplicaLive>,
}

/// Whether a host is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It is up and its agent runs.
    Up,
    /// It is up, and its agent ended by itself.
    AgentDown,
    /// `weft lab kill` killed it.
    Killed,
}

/// A network of a running lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkLive {
    /// Its VXLAN network identifier.
    pub vni: u32,
    /// The MTU of its endpoints.
    pub mtu: u16,
    /// Its subnets, chosen by the file or by the cluster.
    pub subnets: Vec<ipnet::IpNet>,
}

/// A service of a running lab on one of its networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceLive {
    /// Its name.
    pub name: String,
    /// The network.
    pub network: String,
    /// Its virtual addresses; none in `dnsrr` mode.
    pub vips: Vec<IpAddr>,
}

/// A replica of a running lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaLive {
    /// Whether it runs.
    pub state: ReplicaState,
    /// Its interfaces, in order.
    pub endpoints: Vec<EndpointLive>,
}

/// Whether a replica runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// It does.
    Running,
    /// Its process ended with this code.
    Exited(i32),
    /// It went with its host.
    Killed,
}

/// A replica's place on one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointLive {
    /// The network.
    pub network: String,
    /// The interface in the sandbox.
    pub ifname: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
}

impl Live {
    /// The addresses of a replica on a network.
    pub fn addresses(&self, replica: &str, network: &str) -> &[IpAddr] {
        self.replicas
            .get(replica)
            .and_then(|live| live.endpoints.iter().find(|endpoint| endpoint.network == network))
            .map_or(&[], |endpoint| &endpoint.addresses)
    }

    /// The virtual addresses of a service on a network.
    pub fn vips(&self, service: &str, network: &str) -> &[IpAddr] {
        self.services
            .iter()
            .find(|live| live.name == service && live.network == network)
            .map_or(&[], |live| &live.vips)
    }

    /// Whether a replica can be reached as far as the lab knows.
    pub fn runs(&self, replica: &str) -> bool {
        self.replicas
            .get(replica)
            .is_none_or(|live| live.state == ReplicaState::Running)
    }

    /// Whether a host is up with its agent.
    pub fn is_up(&self, host: &str) -> bool {
        self.hosts.get(host).is_none_or(|state| *state == HostState::Up)
    }
}
