use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;
use weft_types::{NetworkId, NodeId};

use crate::{Key, Record};

/// What the owner of a [`Gossip`](crate::Gossip) is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "outputs live for a moment; a box each would cost more"
)]
pub enum Output {
    /// Send this datagram.
    Packet {
        /// Where to.
        to: SocketAddr,
        /// Less than 1,400 bytes.
        bytes: Bytes,
    },
    /// Open a stream, send this frame, and give the answer to
    /// [`handle_stream_response`](crate::Gossip::handle_stream_response). A failure need not be reported.
    Stream {
        /// Where to.
        to: SocketAddr,
        /// The request.
        request: Bytes,
    },
    /// Something happened.
    Event(Event),
}

/// Something the application wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A record is new, or replaces an older one. To be written to disk if the application wants it back
    /// by [`load`](crate::Gossip::load). One whose author is this node itself must be on disk before the outputs that
    /// follow are carried out.
    Record {
        /// What is true now.
        record: Record,
        /// What was true before.
        previous: Option<Record>,
    },
    /// A record is gone for good and to be deleted from disk: a tombstone that has served its time, or a record
    /// whose removal was missed. If it had a value, it is no longer true.
    Dropped {
        /// Its author.
        author: NodeId,
        /// Its key.
        key: Key,
    },
    /// A member is new or its state changed.
    Member(Member),
    /// An application datagram. Only `from` can have sent it, to this very start of this node, at most once.
    Message {
        /// The sender.
        from: NodeId,
        /// What it sent.
        payload: Bytes,
    },
    /// The first full exchange with a peer since the start is done: what that peer knew, this node knows,
    /// its own records included.
    CaughtUp,
    /// After this network was added to what this node [wants](crate::Gossip::set_interest) to know of: what one that wanted that
    /// before knew of it, this node knows. Or nobody else wants to know of it.
    Known(NetworkId),
    /// A peer knew a newer version of one of our own records: this disk was rolled back. The record was
    /// adopted, and the next one we write takes a version above all of them.
    OwnRecordNewer(Record),
    /// Another start of this very node id is alive at the same time: a cloned disk.
    Cloned,
}

/// A node of the cluster, other than this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Where it said it can be reached.
    pub address: SocketAddr,
    /// What is believed about it.
    pub state: MemberState,
    /// Grows when it starts again and when it comes back after having been believed down.
    pub incarnation: u64,
    /// Since when it is in this state.
    pub since: Instant,
}

/// What is believed about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It missed a probe and has a moment to say that it lives.
    Suspect,
    /// It does not answer, or has not been heard of since this node started.
    Down,
    /// It said good-bye.
    Left,
}
