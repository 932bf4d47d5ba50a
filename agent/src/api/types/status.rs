use serde::{Deserialize, Serialize};
use weft_types::ClusterId;

use super::{EncryptionStatus, GossipKeyStatus, NamesStatus, NetworkSummary, NodeInfo};
use crate::api::Timestamp;

/// One screen about a node: `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusResponse {
    /// This node.
    pub node: NodeInfo,
    /// When its agent was started.
    pub started: Timestamp,
    /// Its cluster; null before `init` or `join`.
    pub cluster: Option<ClusterStatus>,
    /// The other nodes.
    pub peers: Vec<NodeInfo>,
    /// The networks of the cluster.
    pub networks: Vec<NetworkSummary>,
    /// How this host balances the connections of services.
    pub datapath: DatapathStatus,
    /// What this host answers and asks beside the names of its networks.
    pub names: NamesStatus,
    /// How this host encrypts; null where it has no part in an encrypted network.
    pub encryption: Option<EncryptionStatus>,
    /// What is wrong, a sentence each; empty when all is well.
    pub problems: Vec<String>,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its id.
    pub id: ClusterId,
    /// How many nodes are known, this one among them, without those that left.
    pub node_count: u32,
    /// How many of them are alive.
    pub alive_count: u32,
    /// The key that agents seal with what they say to each other.
    pub gossip_key: GossipKeyStatus,
}

/// Which datapath balances connections, and why that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// Its name, such as `nft`.
    pub name: String,
    /// Why it was chosen.
    pub reason: String,
}

/// `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionResponse {
    /// The version of the program.
    pub version: String,
    /// The version of the API: the first part of every path.
    pub api: String,
}

impl VersionResponse {
    /// What this program is.
    pub fn this() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: "v1".to_owned(),
        }
    }
}
