use serde::{Deserialize, Serialize};
use weft_types::NodeId;

/// A node that has not said that a change is in force there. The change is durable, and comes into force when it
/// reaches the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// The node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// What is known of why.
    pub reason: String,
}
