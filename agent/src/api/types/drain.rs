use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_types::{EndpointId, NetworkId, NodeId};

use crate::api::Timestamp;

/// What connections may take to end, unless it is said.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// The same for an endpoint that is detached.
pub const DETACH_GRACE: Duration = Duration::from_secs(2);

/// A node that has not said that a change is in force there, or how many of its connections are open. The change is
/// durable, and comes into force when it reaches the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// The node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// What is known of why.
    pub reason: String,
}

/// Whether the endpoints of a node get new connections, as far as that is the node's matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// They do.
    Active,
    /// They do not, on any host; open ones stay open.
    Draining,
    /// They do not, and nothing is open any more.
    Drained,
}

impl Availability {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Active, Self::Draining, Self::Drained];
}

/// `POST /v1/endpoints/{ref}/drain`: no new connections to a backend from anywhere, and an end to the open ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointDrainRequest {
    /// The network; needed where two networks have a backend of the same name.
    #[serde(default)]
    pub network: Option<String>,
    /// What open connections may take to end, in milliseconds.
    #[serde(default = "default_grace")]
    pub grace_ms: u64,
    /// Whether those that are open then are reset. If not, it stays draining.
    #[serde(default = "resets")]
    pub reset: bool,
}

/// `POST /v1/endpoints/{ref}/activate`: new connections again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointActivateRequest {
    /// The network; needed where two networks have a backend of the same name.
    pub network: Option<String>,
}

/// `POST /v1/nodes/{ref}/drain`: no new connections to any backend on a node, and an end to the open ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeDrainRequest {
    /// What open connections may take to end, in milliseconds; what is open then is reset.
    #[serde(default = "default_grace")]
    pub grace_ms: u64,
}

/// `POST /v1/nodes/{ref}/activate`: new connections to a node's backends again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeActivateRequest {}

/// Which backend, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendName {
    /// The endpoint.
    pub endpoint_id: EndpointId,
    /// The endpoint's name.
    pub endpoint_name: String,
    /// The network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// The node it is on.
    pub node_id: NodeId,
    /// That node's name.
    pub node_name: String,
}

/// A backend that was drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointDrainResponse {
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendName,
    /// Connections that were open when time was up, and were reset unless it was asked not to.
    pub left: u64,
    /// Nodes that have not said that they send no new connections there.
    pub unconfirmed: Vec<Unconfirmed>,
    /// Nodes that have not said how many connections they have open.
    pub uncounted: Vec<Unconfirmed>,
}

/// A backend that gets new connections again, unless something else is against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointActivateResponse {
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendName,
    /// Nodes that have not said that they know.
    pub unconfirmed: Vec<Unconfirmed>,
}

/// A node whose backends were drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDrainResponse {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// How many backends it has.
    pub backends: u32,
    /// Connections that were open when time was up, and were reset.
    pub left: u64,
    /// Nodes that have not said that they send no new connections there.
    pub unconfirmed: Vec<Unconfirmed>,
    /// Nodes that have not said how many connections they have open.
    pub uncounted: Vec<Unconfirmed>,
}

/// A node whose backends get new connections again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeActivateResponse {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Nodes that have not said that they know.
    pub unconfirmed: Vec<Unconfirmed>,
}

/// Connections of the clients on one host to a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientConnections {
    /// The host.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// How many are open.
    pub open: u64,
    /// How many were tried.
    pub total: u64,
    /// How many of these failed.
    pub failed: u64,
    /// Whether they get no new ones, because too many failed one after the other; null if they do.
    pub ejected: Option<Ejected>,
}

/// That the clients on a host get no new connections to a backend for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejected {
    /// How many connections in a row had failed.
    pub failures: u32,
    /// Until when, by that host's clock.
    pub until: Timestamp,
}

fn default_grace() -> u64 {
    DEFAULT_GRACE.as_millis() as u64
}

fn resets() -> bool {
    true
}

pub(super) fn detach_grace() -> u64 {
    DETACH_GRACE.as_millis() as u64
}
