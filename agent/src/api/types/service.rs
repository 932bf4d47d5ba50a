use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use weft_types::{EndpointId, NetworkId, NodeId, ServiceId};

use crate::api::Timestamp;

use super::{ClientConnections, HealthCheck, HealthUpdate, PublishedPort, ServicePort, Tuning, Unconfirmed};

/// How a service chooses the backend of a new connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// One after the other.
    #[default]
    Rr,
    /// One after the other, each as often as its weight says.
    Wrr,
    /// The one with the fewest open connections for its weight.
    Lc,
    /// Consistent hashing: always the same one for a client.
    Maglev,
}

impl Scheduler {
    /// Every scheduler, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Rr, Self::Wrr, Self::Lc, Self::Maglev];
}

/// What the name of a service resolves to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum EndpointMode {
    /// One virtual address, behind which connections are balanced.
    #[default]
    Vip,
    /// The addresses of all healthy backends, shuffled.
    Dnsrr,
}

impl EndpointMode {
    /// Every mode, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Vip, Self::Dnsrr];
}

/// `POST /v1/services`: make a service on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceCreateRequest {
    /// The network: name, id or beginning of an id.
    pub network: String,
    /// Its name: one label of a DNS name.
    pub name: String,
    /// How backends are chosen.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// What its name resolves to.
    #[serde(default)]
    pub endpoint_mode: EndpointMode,
    /// Its ports. When empty, every TCP and UDP port of its address leads to the same port of a backend.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// How its backends are checked; without a check every backend counts as healthy.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// Ports of the hosts that lead to it. A port of a host leads to one service of the cluster.
    #[serde(default)]
    pub publish: Vec<PublishedPort>,
    /// How it treats connections.
    #[serde(default)]
    pub tuning: Tuning,
}

/// `PATCH /v1/services/{ref}`: change a service while it is in use. What is not given stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceUpdateRequest {
    /// How backends are chosen from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// What its name resolves to from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_mode: Option<EndpointMode>,
    /// All its ports from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<ServicePort>>,
    /// How its backends are checked from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthUpdate>,
    /// All ports of the hosts that lead to it from now on; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish: Option<Vec<PublishedPort>>,
    /// How it treats connections from now on.
    pub tuning: Tuning,
}

/// The query of every request about one service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceQuery {
    /// Only services of this network; needed where two networks have a service of the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// The query of `GET /v1/services`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceListQuery {
    /// Only services of this network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Whether the nodes are asked how many connections there are, which takes half a second where one does not answer.
    pub counts: bool,
}

/// The connections of all nodes' clients to a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// Open now.
    pub open: u64,
    /// Tried so far.
    pub total: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Nodes whose clients are not among them, the same for all services of a listing.
    pub uncounted: Vec<Unconfirmed>,
}

/// A service in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Its id.
    pub id: ServiceId,
    /// Its name.
    pub name: String,
    /// The network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// What its name resolves to.
    pub endpoint_mode: EndpointMode,
    /// Its virtual addresses, IPv4 first; empty in `dnsrr` mode.
    pub vips: Vec<IpAddr>,
    /// Its ports; when empty, all.
    pub ports: Vec<ServicePort>,
    /// Ports of the hosts that lead to it.
    pub published: Vec<PublishedPort>,
    /// How many backends it has.
    pub backend_count: u32,
    /// How many of them get new connections.
    pub ready_count: u32,
    /// How its backends are checked; null when they are not.
    pub health: Option<HealthCheck>,
    /// How many of its backends are in each state; states that none is in are left out.
    pub backend_states: BTreeMap<BackendState, u32>,
    /// How it treats connections.
    pub tuning: Tuning,
    /// How many connections there are; null where that was not asked for.
    pub counts: Option<ServiceCounts>,
}

/// A service that was made or changed: what `POST` and `PATCH` answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChanged {
    /// What the listing says.
    #[serde(flatten)]
    pub summary: ServiceSummary,
    /// Nodes that have not said that the change is in force there; empty if it is in force everywhere.
    pub unconfirmed: Vec<Unconfirmed>,
}

/// A service with its backends: `GET /v1/services/{ref}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// What the listing says.
    #[serde(flatten)]
    pub summary: ServiceSummary,
    /// The node it was made on.
    pub created_by: NodeId,
    /// Its backends, on all nodes.
    pub backends: Vec<Backend>,
    /// Nodes that have not said how many connections they have open.
    pub uncounted: Vec<Unconfirmed>,
}

/// Whether a backend gets new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It does.
    Ready,
    /// Not yet: its health check has not passed so far.
    Starting,
    /// It does not: its health check fails. What is open to it stays open.
    Unhealthy,
    /// It gets none from the hosts that eject it, because connections of their clients failed one after the other.
    Ejected,
    /// It does not: it is drained. What is open to it stays open.
    Draining,
    /// It does not: it is drained, and nothing is open to it any more.
    Drained,
    /// It does not: its node is down.
    Down,
}

impl BackendState {
    /// Every state, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Starting,
        Self::Unhealthy,
        Self::Ejected,
        Self::Draining,
        Self::Drained,
        Self::Down,
    ];
}

/// An endpoint that serves a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The endpoint.
    pub endpoint_id: EndpointId,
    /// The endpoint's name.
    pub endpoint_name: String,
    /// The node it is on.
    pub node_id: NodeId,
    /// That node's name.
    pub node_name: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its share of new connections, relative to the others.
    pub weight: u16,
    /// Whether it gets new connections.
    pub state: BackendState,
    /// Connections that are open to it, from all hosts that have said how many.
    pub open_connections: u64,
    /// Connections that were tried, from all hosts that have said how many; over UDP, conversations.
    pub total_connections: u64,
    /// Of these, those over TCP that were never made: refused, reset before, or without an answer for too long.
    pub failed_connections: u64,
    /// Why it is in that state; null where there is nothing to say.
    pub reason: Option<String>,
    /// Since when its health is what it is, by its own host's clock; null where it is not checked.
    pub since: Option<Timestamp>,
    /// From which hosts.
    pub clients: Vec<ClientConnections>,
}

/// A service that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRemoveResponse {
    /// The service.
    pub id: ServiceId,
    /// Its name.
    pub name: String,
    /// The network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// Virtual addresses that are free again.
    pub vips: Vec<IpAddr>,
    /// Nodes that have not said that it is gone there; empty if it is gone everywhere.
    pub unconfirmed: Vec<Unconfirmed>,
}
