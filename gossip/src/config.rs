use std::{net::SocketAddr, time::Duration};

use weft_types::ClusterId;

use crate::KeyRing;

/// How a node takes part. [`Config::new`] gives defaults that suit a data centre of 2 to 10,000 hosts.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster. Packets and records of another are not even opened.
    pub cluster: ClusterId,
    /// The keys packets are sealed and opened with at first, see [`Gossip::set_keys`](crate::Gossip::set_keys).
    pub keys: KeyRing,
    /// Where peers reach this node, over UDP and TCP.
    pub advertise: SocketAddr,
    /// The kinds of records that are about one network, and told to those only who [want](crate::Gossip::set_interest) to know of it;
    /// the same on all nodes. Records of other kinds are told to all, whatever their scope.
    pub network_kinds: Vec<u8>,
    /// How often state is compared with a random peer when nothing has changed.
    pub anti_entropy: Duration,
    /// How often it is compared while records are arriving.
    pub anti_entropy_busy: Duration,
    /// How often members believed down are tried again, two at a time.
    pub revive: Duration,
    /// How long a tombstone is kept, if there is room for it.
    pub tombstone_ttl: Duration,
    /// The most records kept of one author; tombstones make room for more, and further keys are refused and counted.
    pub max_records_per_author: usize,
    /// The most bytes that these may take, encoded: all of them fit one frame.
    pub max_bytes_per_author: usize,
    /// The most authors kept, and with them the most members.
    pub max_authors: usize,
    /// The most packets per second that are taken of one sender; twice as many at once.
    pub max_packets_per_second: u32,
    /// The most requests for state over a stream per second that are answered to one sender; eight times as many at once.
    pub max_pulls_per_second: u32,
}

impl Config {
    /// The defaults.
    pub fn new(cluster: ClusterId, keys: KeyRing, advertise: SocketAddr) -> Self {
        Self {
            cluster,
            keys,
            advertise,
            network_kinds: Vec::new(),
            anti_entropy: Duration::from_secs(5),
            anti_entropy_busy: Duration::from_secs(1),
            revive: Duration::from_secs(2),
            tombstone_ttl: Duration::from_secs(3600),
            // Whoever lets nodes in says so of each.
            max_records_per_author: 20_480,
            max_bytes_per_author: 6 << 20,
            max_authors: 16_384,
            max_packets_per_second: 4_000,
            max_pulls_per_second: 32,
        }
    }
}
