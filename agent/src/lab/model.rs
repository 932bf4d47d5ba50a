//! What a lab file says, after it has been read and checked.
//!
//! Every value is valid by construction of [`super::file::parse`]: names exist, addresses lie in their
//! subnets, each service has a host to run on. Placement is not decided yet; see [`super::resolve`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use weft_types::Mac;

use crate::api::types::{EndpointMode, HealthCheck, PublishedPort, Scheduler, Tuning};

/// A whole lab file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabFile {
    /// The top-level `name`; the file's own name is used without one.
    pub name: Option<String>,
    /// Host names in order; the first makes the cluster and the rest join it.
    pub hosts: Vec<String>,
    /// The network between the hosts.
    pub underlay: Underlay,
    /// The overlay networks, in the order of the file.
    pub networks: Vec<NetworkSpec>,
    /// The services, in the order of the file.
    pub services: Vec<ServiceSpec>,
}

/// The network between the hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Underlay {
    /// IPv4 subnet, unless switched off.
    pub ipv4: Option<Ipv4Net>,
    /// IPv6 subnet, unless switched off.
    pub ipv6: Option<Ipv6Net>,
    /// MTU of every host's interface.
    pub mtu: u16,
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Name on every host.
    pub name: String,
    /// Without a way out.
    pub internal: bool,
    /// Dual stack.
    pub ipv6: bool,
    /// Chosen subnets; the cluster picks when there is none.
    pub subnets: Vec<SubnetSpec>,
    /// MTU of the endpoints, when the file sets it.
    pub mtu: Option<u16>,
    /// Whether it is encrypted, when the file says so.
    pub encrypted: Option<bool>,
    /// Labels, as Docker's.
    pub labels: BTreeMap<String, String>,
    /// Whether a subnet is also one of another network of the file.
    pub overlaps: bool,
}

/// One entry of `ipam.config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubnetSpec {
    /// The subnet.
    pub subnet: IpNet,
    /// The part of it that addresses are given from.
    pub ip_range: Option<IpNet>,
    /// The gateway's address.
    pub gateway: Option<IpAddr>,
    /// Addresses that are never given out, by name.
    pub aux_addresses: BTreeMap<String, IpAddr>,
}

/// A service: what runs, how often, where, and on which networks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceSpec {
    /// Its name, which becomes the DNS name.
    pub name: String,
    /// What each replica runs.
    pub workload: Workload,
    /// Environment of the process.
    pub environment: BTreeMap<String, String>,
    /// Host name inside the sandbox, when it is not the replica's name.
    pub hostname: Option<String>,
    /// Networks, in the order of the file; interfaces are made in this order.
    pub attachments: Vec<AttachmentSpec>,
    /// How many replicas.
    pub replicas: u32,
    /// How the name is answered.
    pub endpoint_mode: EndpointMode,
    /// How its backends are chosen.
    pub lb: Scheduler,
    /// How connections to it are treated.
    pub tuning: Tuning,
    /// Port that the service answers on, when the file sets it.
    pub port: Option<u16>,
    /// How its replicas are checked.
    pub health: Option<HealthCheck>,
    /// Ports of the hosts that lead to it.
    pub publish: Vec<PublishedPort>,
    /// Weight of each replica, in order; the last one repeats.
    pub weights: Vec<u16>,
    /// Milliseconds each replica waits before it answers, in order; the last one repeats.
    pub delays_ms: Vec<u64>,
    /// Hosts that replicas may be placed on; never empty.
    pub allowed_hosts: Vec<String>,
}

/// What a replica runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// The built-in HTTP responder that says who it is.
    Whoami,
    /// Nothing: a place to call from.
    Idle,
    /// A program of this machine with its arguments.
    Command(Vec<String>),
}

/// A service's place on one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttachmentSpec {
    /// Which network.
    pub network: String,
    /// Further names on this network.
    pub aliases: Vec<String>,
    /// Fixed IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Fixed IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Fixed MAC address.
    pub mac: Option<Mac>,
}
