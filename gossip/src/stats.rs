/// What a [`Gossip`](crate::Gossip) has counted since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets given out to be sent.
    pub packets_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Packets not given out, because too many were waiting.
    pub packets_lost: u64,
    /// Packets taken.
    pub packets_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Packets and frames that are not of this cluster, or sealed with a key this node does not have.
    pub foreign: u64,
    /// Packets, frames and records that are not what they should be, although a member sealed them.
    pub malformed: u64,
    /// Packets and frames by an old key from nodes that are not heard by it any more.
    pub outdated: u64,
    /// Packets sealed in another's name and records not signed by their author.
    pub forged: u64,
    /// Packets taken before.
    pub replayed: u64,
    /// Packets and requests of a sender beyond what is taken of each.
    pub flooded: u64,
    /// Packets from nodes that were evicted.
    pub evicted: u64,
    /// Records for which there was no room.
    pub records_refused: u64,
    /// Copies of records sent because they were new, or because a peer wanted what it was offered.
    pub records_told: u64,
    /// Records that were not told at once, because too many were being told; anti-entropy brings them.
    pub rumours_dropped: u64,
    /// Exchanges in which a peer's state turned out to differ.
    pub exchanges: u64,
}
