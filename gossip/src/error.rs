use weft_types::NodeId;

use crate::{MAX_MESSAGE, MAX_NAME, MAX_VALUE};

/// Why a record was not written. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// The key's name is too long.
    #[error("the name of a record may have {MAX_NAME} bytes, not {0}")]
    NameTooLong(usize),
    /// The value is too long.
    #[error("the value of a record may have {MAX_VALUE} bytes, not {0}")]
    ValueTooLong(usize),
    /// The kind belongs to this crate.
    #[error("records of kind {0} are written by the gossip layer alone")]
    ReservedKind(u8),
    /// This node says as much as peers will keep of it.
    #[error("this node says as much as peers keep of one node: {records} things, or {bytes} bytes")]
    NoRoom {
        /// The most records.
        records: usize,
        /// The most bytes of them all, encoded.
        bytes: usize,
    },
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Nobody has told this node where that node is.
    #[error("node {} is not known here, so there is no address to send to", .0.short())]
    Unknown(NodeId),
    /// The node was evicted, or left, or is this one.
    #[error("node {} is not a peer of this node any more", .0.short())]
    NotAPeer(NodeId),
    /// The payload does not fit one packet.
    #[error("a message may have {MAX_MESSAGE} bytes, not {0}")]
    TooLong(usize),
}
