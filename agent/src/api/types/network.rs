use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_types::{EndpointId, Mac, NetworkId, NodeId, Vni};

use super::{EncryptionStatus, NodeState, ServiceSummary, check_name, drain::detach_grace};
use crate::api::{ApiError, Timestamp};

/// The one network driver there is.
pub const DRIVER_OVERLAY: &str = "overlay";
/// IPv6 needs 1,280 bytes on every link (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;

/// `PATCH /v1/networks/{ref}`: give a network more subnets, on the node that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdateRequest {
    /// The subnets, beside those that it has; the gateway is the first address of each.
    pub subnets_add: Vec<IpNet>,
    /// Whether a subnet may overlap that of another network.
    #[serde(default)]
    pub allow_overlap: bool,
}

/// `POST /v1/networks`: make a network on every node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkCreateRequest {
    /// Its name: one label of a DNS name.
    pub name: String,
    /// `overlay`.
    #[serde(default = "driver_overlay")]
    pub driver: String,
    /// Its subnets; a free one from the default pool when empty.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    /// Where addresses are taken from, at most one part of each subnet.
    #[serde(default)]
    pub ip_ranges: Vec<IpNet>,
    /// Gateways, at most one in each subnet; the first address when not given.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Addresses that are never handed out, by a name for what has them.
    #[serde(default)]
    pub aux_addresses: BTreeMap<String, IpAddr>,
    /// Whether endpoints get an IPv6 address as well.
    #[serde(default)]
    pub ipv6: bool,
    /// Whether the network is closed: no way out through the host.
    #[serde(default)]
    pub internal: bool,
    /// `mtu`: the largest packet of an endpoint, in bytes; computed from the underlay when not given. `encrypted`: whether
    /// what goes from host to host is encrypted; as the agent was told to have it when not given.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Free text for tools.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether the subnets may overlap with those of other networks, which these endpoints then never reach.
    #[serde(default)]
    pub allow_overlap: bool,
}

fn driver_overlay() -> String {
    DRIVER_OVERLAY.to_owned()
}

impl NetworkCreateRequest {
    /// A network with everything left to the agent.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            driver: driver_overlay(),
            subnets: Vec::new(),
            ip_ranges: Vec::new(),
            gateways: Vec::new(),
            aux_addresses: BTreeMap::new(),
            ipv6: false,
            internal: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            allow_overlap: false,
        }
    }

    /// Refuses what can be refused without knowing the cluster, and reads the options.
    pub fn check(&self) -> Result<NetworkOptions, ApiError> {
        check_name("a network", &self.name)?;
        if self.driver != DRIVER_OVERLAY {
            return Err(ApiError::invalid(format!(
                "network `{}` asks for driver `{}`, which Weft does not have",
                self.name, self.driver
            ))
            .with_help("the driver is `overlay`"));
        }
        NetworkOptions::parse(&self.name, &self.options)
    }
}

/// The options of a network, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkOptions {
    /// The largest packet of an endpoint, in bytes.
    pub mtu: Option<u16>,
    /// Whether it was said that it is encrypted, or that it is not.
    pub encrypted: Option<bool>,
}

impl NetworkOptions {
    /// Refuses options that there are not, rather than make a network without what was asked for.
    pub fn parse(network: &str, options: &BTreeMap<String, String>) -> Result<Self, ApiError> {
        let mut read = Self::default();
        for (key, value) in options {
            match key.as_str() {
                "mtu" => {
                    let mtu = value.parse().ok().filter(|mtu| *mtu >= MIN_MTU).ok_or_else(|| {
                        ApiError::invalid(format!(
                            "network `{network}` cannot have an MTU of `{value}` bytes"
                        ))
                        .with_help(format!("give a number from {MIN_MTU} to {}", u16::MAX))
                    })?;
                    read.mtu = Some(mtu);
                }
                "encrypted" => {
                    // Docker's way to say yes is to say nothing.
                    let encrypted = match value.as_str() {
                        "" | "1" | "true" => true,
                        "0" | "false" => false,
                        _ => {
                            return Err(ApiError::invalid(format!(
                                "network `{network}` is to be `encrypted={value}`, which is neither yes nor no, so it \
                                 was not created"
                            ))
                            .with_help("say `encrypted` or `encrypted=false`"));
                        }
                    };
                    read.encrypted = Some(encrypted);
                }
                _ => {
                    return Err(ApiError::invalid(format!(
                        "network `{network}` asks for the unknown option `{key}`"
                    ))
                    .with_help("the options there are: `encrypted` and `mtu=BYTES`"));
                }
            }
        }
        Ok(read)
    }
}

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet.
    pub subnet: IpNet,
    /// The address of the bridge in it, the same on every host.
    pub gateway: IpAddr,
    /// Where addresses are taken from, when that is not the whole subnet.
    pub ip_range: Option<IpNet>,
    /// Addresses that are never handed out, by name.
    pub aux_addresses: BTreeMap<String, IpAddr>,
}

/// A network in a listing; also what `POST /v1/networks` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSummary {
    /// Its id.
    pub id: NetworkId,
    /// Its name, or `name~id` when another network of that name is older.
    pub name: String,
    /// `overlay`.
    pub driver: String,
    /// Its VXLAN network identifier.
    pub vni: Vni,
    /// The largest packet of an endpoint, in bytes.
    pub mtu: u16,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Whether endpoints get an IPv6 address as well.
    pub ipv6: bool,
    /// Whether it is closed.
    pub internal: bool,
    /// Whether what goes from host to host is encrypted.
    pub encrypted: bool,
    /// How many endpoints it has, on all nodes.
    pub endpoint_count: u32,
}

/// A network with everything on it: `GET /v1/networks/{ref}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDetail {
    /// What the listing says.
    #[serde(flatten)]
    pub summary: NetworkSummary,
    /// The options it was made with.
    pub options: BTreeMap<String, String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The node it was made on.
    pub created_by: NodeId,
    /// When, by that node's clock.
    pub created: Timestamp,
    /// Its endpoints, on all nodes.
    pub endpoints: Vec<Endpoint>,
    /// Its services.
    pub services: Vec<ServiceSummary>,
    /// Who may hand out how many of its addresses.
    pub shares: Vec<AddressShare>,
    /// How it is encrypted on this host, with the tunnels to its other hosts; null if it is not, or this host has no part
    /// in it.
    pub encryption: Option<EncryptionStatus>,
}

/// What one node owns of one subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressShare {
    /// The node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// The subnet.
    pub subnet: IpNet,
    /// Addresses the node may hand out, used ones among them; the largest 64-bit number stands for it and more.
    pub owned: u64,
    /// Addresses in use there.
    pub used: u64,
}

/// A network that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRemoveResponse {
    /// The network.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
}

/// The attachment of a sandbox to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Its name.
    pub name: String,
    /// Other names for it on this network.
    pub aliases: Vec<String>,
    /// The network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// The node it is on.
    pub node_id: NodeId,
    /// That node's name.
    pub node_name: String,
    /// That node's state, which decides whether the endpoint can be reached.
    pub node_state: NodeState,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The service it serves.
    pub service: Option<String>,
    /// Its share of that service's new connections, relative to the others.
    pub weight: u16,
    /// The namespace it is in, as given when it was connected; known only on its own node.
    pub target: Option<String>,
    /// Its interface in that namespace; known only on its own node.
    pub ifname: Option<String>,
}

/// `POST /v1/networks/{ref}/connect`: attach a namespace of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    /// The namespace: a name as `ip netns` knows it, an absolute path, or `pid:N`; or `host`, the host itself.
    pub target: String,
    /// The endpoint's name; made from the target when not given, and the node's for the host itself.
    #[serde(default)]
    pub name: Option<String>,
    /// Other names for it on this network; several endpoints may share one.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The IPv4 address it is to have.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// The IPv6 address it is to have.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// The Ethernet address it is to have; a random one when not given.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// The service it is to serve.
    #[serde(default)]
    pub service: Option<String>,
    /// Its share of that service's new connections, relative to the others; 1 when not given.
    #[serde(default)]
    pub weight: Option<u16>,
}

impl ConnectRequest {
    /// An endpoint with everything left to the agent.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            name: None,
            aliases: Vec::new(),
            ip: None,
            ip6: None,
            mac: None,
            service: None,
            weight: None,
        }
    }
}

/// The endpoint that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectResponse {
    /// Its id.
    pub id: EndpointId,
    /// Its name.
    pub name: String,
    /// The network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// Its addresses with the length of their subnet's prefix, IPv4 first.
    pub addresses: Vec<IpNet>,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its interface in the namespace.
    pub ifname: String,
    /// The largest packet it sends, in bytes.
    pub mtu: u16,
    /// Where its default routes go; empty when another network of the namespace, or none, has them.
    pub gateways: Vec<IpAddr>,
    /// How names are resolved in the namespace.
    pub dns: EndpointDns,
}

/// How names are resolved in a namespace that was connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointDns {
    /// The addresses at which the agent answers inside the network.
    pub servers: Vec<IpAddr>,
    /// The domains that are tried for a short name.
    pub search: Vec<String>,
    /// The file that says so to programs in the namespace; null when none was written, as for a process
    /// whose files belong to something else.
    pub resolv_conf: Option<PathBuf>,
}

/// `POST /v1/networks/{ref}/disconnect`: detach a namespace of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisconnectRequest {
    /// The namespace as it was given to connect, or the endpoint's name or id where the namespace is gone.
    pub target: String,
    /// What connections that are open to it may take to end, in milliseconds; it is detached when none is left.
    #[serde(default = "detach_grace")]
    pub grace_ms: u64,
}

/// The endpoint that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisconnectResponse {
    /// The endpoint.
    pub id: EndpointId,
    /// Its name.
    pub name: String,
    /// The network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// The addresses that are free again.
    pub addresses: Vec<IpAddr>,
    /// Connections that were still open to it, and were reset.
    pub left: u64,
}
