use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_types::{NetworkId, NodeId};

use super::{Availability, Endpoint, KeyChange, TunnelStatus};

/// What this node believes about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It answers.
    Alive,
    /// It did not answer, and has a moment left to refute that.
    Suspect,
    /// Its agent does not answer, its host does: what runs there is served for half a minute at most.
    Away,
    /// It is believed dead: its endpoints are out of DNS and services, its blocks are still its own.
    Down,
    /// It said goodbye or was removed.
    Left,
}

impl NodeState {
    /// Every state, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Alive, Self::Suspect, Self::Away, Self::Down, Self::Left];
}

/// A node in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id: the public key it made at its first start.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What this node believes about it.
    pub state: NodeState,
    /// The underlay address and gossip port that others reach it at.
    pub underlay_address: SocketAddr,
    /// Where VXLAN packets for its endpoints go.
    pub vtep: IpAddr,
    /// The version of its agent.
    pub version: String,
    /// How many endpoints it has.
    pub endpoint_count: u32,
    /// Whether its endpoints get new connections.
    pub availability: Availability,
    /// Whether it is the node that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
}

/// A node with what it holds: `GET /v1/nodes/{ref}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// What the listing says.
    #[serde(flatten)]
    pub info: NodeInfo,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The addresses it owns, per network and subnet.
    pub shares: Vec<NodeShare>,
    /// The fingerprint of its key for encrypted networks; null until it has told.
    pub key_fingerprint: Option<String>,
    /// Which of its keys this is: 1 for the first; null until it has told.
    pub key_epoch: Option<u32>,
    /// The tunnel from the node that answers to it; null where no encrypted network needs one.
    pub tunnel: Option<TunnelStatus>,
}

/// What a node owns of one network's subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeShare {
    /// The network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// The subnet.
    pub subnet: IpNet,
    /// Addresses the node may hand out, used ones among them; the largest 64-bit number stands for it and more.
    pub owned: u64,
    /// Addresses in use there.
    pub used: u64,
}

/// `POST /v1/nodes/{ref}/rotate-key`: another key for encrypted networks. Only a node itself changes its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRotateKeyRequest {}

/// A node that changes its key: both are in use until all others have gone over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRotateKeyResponse {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The fingerprint of the key that goes.
    pub fingerprint: String,
    /// How it changes.
    pub change: KeyChange,
}

/// The query of `DELETE /v1/nodes/{ref}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeRemoveQuery {
    /// The operator's word that the node is dead and will not come back, where no majority can say so.
    pub force: bool,
}

/// A node that was removed from the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRemoveResponse {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Whether this rests on the operator's word alone.
    pub forced: bool,
    /// Endpoints that went with it.
    pub endpoints_removed: u32,
    /// Blocks of numbers that this node owns instead now.
    pub blocks_reclaimed: u32,
    /// Why numbers that it owned are not taken over yet, if that is so.
    pub still_owned: Option<String>,
}
