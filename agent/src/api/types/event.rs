use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::Timestamp;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// A node came, or came back.
    #[serde(rename = "node.alive")]
    NodeAlive,
    /// A node did not answer.
    #[serde(rename = "node.suspect")]
    NodeSuspect,
    /// A node is believed dead.
    #[serde(rename = "node.down")]
    NodeDown,
    /// A node said goodbye or was removed.
    #[serde(rename = "node.left")]
    NodeLeft,
    /// A network was made, or learnt of.
    #[serde(rename = "network.created")]
    NetworkCreated,
    /// Subnets were added to a network.
    #[serde(rename = "network.updated")]
    NetworkUpdated,
    /// A network was removed.
    #[serde(rename = "network.removed")]
    NetworkRemoved,
    /// An endpoint was attached, or learnt of.
    #[serde(rename = "endpoint.connected")]
    EndpointConnected,
    /// An endpoint was detached.
    #[serde(rename = "endpoint.disconnected")]
    EndpointDisconnected,
    /// An endpoint's health check passes again, or there is none any more.
    #[serde(rename = "endpoint.healthy")]
    EndpointHealthy,
    /// An endpoint's health check fails: it gets no new connections.
    #[serde(rename = "endpoint.unhealthy")]
    EndpointUnhealthy,
    /// This host's clients could not connect to a backend: it gets no connections from here for a time.
    #[serde(rename = "endpoint.ejected")]
    EndpointEjected,
    /// It gets connections from here again.
    #[serde(rename = "endpoint.readmitted")]
    EndpointReadmitted,
    /// A service was made, or learnt of.
    #[serde(rename = "service.created")]
    ServiceCreated,
    /// A service was changed.
    #[serde(rename = "service.updated")]
    ServiceUpdated,
    /// A service was removed.
    #[serde(rename = "service.removed")]
    ServiceRemoved,
    /// This node has a newer key of gossip.
    #[serde(rename = "key.rotated")]
    KeyRotated,
    /// All have it, and this node has forgotten those before.
    #[serde(rename = "key.settled")]
    KeySettled,
    /// Something is wrong; `status` lists it until it is put right.
    #[serde(rename = "problem.found")]
    ProblemFound,
    /// Something that was wrong is right again.
    #[serde(rename = "problem.solved")]
    ProblemSolved,
}

impl EventKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 20] = [
        Self::NodeAlive,
        Self::NodeSuspect,
        Self::NodeDown,
        Self::NodeLeft,
        Self::NetworkCreated,
        Self::NetworkUpdated,
        Self::NetworkRemoved,
        Self::EndpointConnected,
        Self::EndpointDisconnected,
        Self::EndpointHealthy,
        Self::EndpointUnhealthy,
        Self::EndpointEjected,
        Self::EndpointReadmitted,
        Self::ServiceCreated,
        Self::ServiceUpdated,
        Self::ServiceRemoved,
        Self::KeyRotated,
        Self::KeySettled,
        Self::ProblemFound,
        Self::ProblemSolved,
    ];
}

/// A line of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When this node learnt of it.
    pub time: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// What it happened to.
    pub object: EventObject,
    /// More about it, such as the node or the addresses.
    pub attributes: BTreeMap<String, String>,
}

/// What an event happened to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventObject {
    /// Its whole id; empty for a problem.
    pub id: String,
    /// Its name; for a problem, the sentence.
    pub name: String,
}

/// The query of `GET /v1/events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsQuery {
    /// Begin with what the agent still remembers from this moment on; only new events when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Go on with events as they happen, until the client goes away.
    pub follow: bool,
}
