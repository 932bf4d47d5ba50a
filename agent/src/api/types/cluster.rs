use serde::{Deserialize, Serialize};
use weft_types::{ClusterId, NodeId};

use crate::api::Timestamp;

/// What a new token is valid for when nothing is said: a quarter of an hour.
pub const DEFAULT_TOKEN_TTL_SECS: u64 = 15 * 60;

/// `POST /v1/cluster/init`: make a cluster of which this node is the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterInitRequest {}

/// The cluster that was made, and how the next host joins it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInitResponse {
    /// The new cluster.
    pub cluster_id: ClusterId,
    /// This node.
    pub node_id: NodeId,
    /// This node's name.
    pub node_name: String,
    /// A first token, valid once.
    pub join: TokenCreateResponse,
}

/// `POST /v1/cluster/join`: become a node of an existing cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterJoinRequest {
    /// A token that a node of the cluster made.
    pub token: String,
    /// `HOST:PORT` of any node of the cluster; the agent resolves the host.
    pub address: String,
}

/// The cluster that was joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterJoinResponse {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// This node.
    pub node_id: NodeId,
    /// This node's name.
    pub node_name: String,
    /// How many nodes are known now, this one among them.
    pub node_count: u32,
}

/// `POST /v1/cluster/leave`: remove this node's endpoints, hand over what it owns, and go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterLeaveRequest {}

/// What leaving did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterLeaveResponse {
    /// The cluster that was left.
    pub cluster_id: ClusterId,
    /// This node, as it was known there.
    pub node_id: NodeId,
    /// This node's name.
    pub node_name: String,
    /// Endpoints that were removed from this host.
    pub endpoints_removed: u32,
    /// Blocks of numbers that other nodes own now.
    pub blocks_handed_over: u32,
}

/// `POST /v1/tokens`: make a token that lets a host join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenCreateRequest {
    /// How long it is valid.
    pub ttl_secs: u64,
    /// Whether more than one host may join with it.
    pub reusable: bool,
}

impl Default for TokenCreateRequest {
    fn default() -> Self {
        Self {
            ttl_secs: DEFAULT_TOKEN_TTL_SECS,
            reusable: false,
        }
    }
}

/// A new token. This is the only time its secret is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreateResponse {
    /// Names the token in listings; not secret.
    pub id: String,
    /// The token itself: whoever has it can join until it expires.
    pub token: String,
    /// The whole command for the joining host.
    pub join_command: String,
    /// When it stops being valid.
    pub expires: Timestamp,
    /// Whether more than one host may join with it.
    pub reusable: bool,
}

/// `POST /v1/tokens/rotate-key`: another key for what agents say to each other. Tokens stay valid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRotateKeyRequest {}

/// The key that agents seal with what they say to each other, and how far a change of it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipKeyStatus {
    /// Which of the cluster's keys it is: 1 for the first.
    pub epoch: u32,
    /// What it is called; not secret.
    pub id: String,
    /// When it was made, by the clock of the node that made it.
    pub made: Timestamp,
    /// How many keys this node has: one, or the older ones too that somebody may still need.
    pub kept: u32,
    /// Nodes that are not known to have it, by name. What is older is kept until there are none.
    pub waiting_for: Vec<String>,
}

/// A token in a listing, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Names the token; not secret.
    pub id: String,
    /// The node that made it.
    pub created_by: NodeId,
    /// That node's name.
    pub created_by_name: String,
    /// When it stops being valid.
    pub expires: Timestamp,
    /// Whether more than one host may join with it.
    pub reusable: bool,
    /// How many hosts joined with it, as far as this node knows.
    pub uses: u32,
}
