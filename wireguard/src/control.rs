//! What is said on the control socket: requests and answers in postcard, each after its length (u32, little-endian).

mod client;

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use weft_types::{Mac, Vni};
use zeroize::Zeroizing;

use crate::Secret32;

pub use client::{Client, ClientError};

/// A million addresses of 10,000 peers fit; what claims to be longer is not a message of ours.
const LONGEST: u32 = 32 * 1024 * 1024;

/// What the agent asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To make it so, from whatever is now.
    Apply(Box<Desired>),
    /// How things are.
    Status,
}

/// What the process answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is so, but for what failed. Sent when packets already follow the new state.
    Applied {
        /// The one of the request.
        generation: u64,
        /// A sentence for each thing that could not be done; the next `Apply` tries it again.
        failed: Vec<String>,
    },
    /// How things are.
    Status(Status),
    /// Nothing was changed, because of this.
    Refused(String),
}

/// All that the process has to know. It needs no order: what is not in it any more is taken away, what stays keeps
/// its sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Comes back in answers; the process does not compare it.
    pub generation: u64,
    /// This node's X25519 keys, the newest first: two while it changes from one to the other.
    pub private_keys: Vec<Secret32>,
    /// The UDP port of WireGuard.
    pub port: u16,
    /// This node's address inside the tunnels.
    pub vtep: Ipv4Addr,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// The encrypted networks that this node has a part in.
    pub networks: Vec<Network>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its address inside the tunnels, which it is known by, and the only one it may speak from.
    pub vtep: Ipv4Addr,
    /// Where it says it is. A change moves it there; in between it is where its last authentic packet came from.
    pub endpoint: SocketAddr,
    /// What sessions with it may be made of: packets go by the first that has one, and are taken from all.
    pub pairs: Vec<KeyPair>,
}

/// A key of this node and one of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// The place of this node's key in [`Desired::private_keys`].
    pub own: u8,
    /// The other node's X25519 key.
    pub public_key: [u8; 32],
    /// What the nodes share beside the two keys.
    pub preshared_key: Secret32,
}

/// An encrypted network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its number in VXLAN headers.
    pub vni: Vni,
    /// The network namespace of its bridge.
    pub netns: PathBuf,
    /// The persistent TAP device there that is a port of the bridge.
    pub tap: String,
    /// The addresses inside the tunnels of the peers that may send frames of this network.
    pub members: Vec<Ipv4Addr>,
    /// Where frames to an Ethernet address go, and the only place where frames from it may come from.
    pub fdb: Vec<(Mac, Ipv4Addr)>,
}

/// How things are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Of the last state applied, 0 before the first.
    pub generation: u64,
    /// The UDP port, 0 before the first state.
    pub port: u16,
    /// In the order they were given.
    pub networks: Vec<NetworkStatus>,
    /// In the order they were given.
    pub peers: Vec<PeerStatus>,
    /// Since the process began.
    pub dropped: Dropped,
}

/// An encrypted network, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Which one.
    pub vni: Vni,
    /// Whether its TAP is open: frames flow. `Err` of `Apply` said why not.
    pub attached: bool,
    /// Frames taken from its TAP and sent to a peer, a segment of a larger one counting as one.
    pub sent_frames: u64,
    /// Frames that came from members and went into its TAP.
    pub received_frames: u64,
    /// Frames from its TAP that went nowhere: unknown, broadcast or multicast destination, or malformed.
    pub dropped_sending: u64,
    /// Frames of this network from tunnels that failed a check, or that the TAP did not take.
    pub dropped_receiving: u64,
}

/// Another node, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Which one.
    pub vtep: Ipv4Addr,
    /// Where packets to it go now.
    pub endpoint: SocketAddr,
    /// In the order they were given.
    pub pairs: Vec<PairStatus>,
    /// Of WireGuard, headers and tags included.
    pub received_bytes: u64,
    /// Of WireGuard, headers and tags included.
    pub sent_bytes: u64,
    /// Frames to it that were dropped: no session and the queue full or given up, or the socket refused them.
    pub lost: u64,
    /// Whether one system call carries many packets to it. Not so for ten minutes after the path refused that.
    pub segmentation: bool,
    /// The largest packet that the path takes, where that turned out to be less than full packets need.
    pub path_mtu: Option<u32>,
    /// Whether nobody said so: longer packets are dropped without a word.
    pub is_path_silent: bool,
}

/// The sessions of a pair of keys, as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairStatus {
    /// The public half of this node's key.
    pub own: [u8; 32],
    /// The other node's.
    pub public_key: [u8; 32],
    /// Whether packets go by it now.
    pub is_used: bool,
    /// How long ago the last handshake was completed.
    pub last_handshake: Option<Duration>,
    /// How long ago something came by it that only the other node can have sent.
    pub last_heard: Option<Duration>,
}

impl PeerStatus {
    /// One that nothing has come from or gone to.
    pub fn new(vtep: Ipv4Addr, endpoint: SocketAddr) -> Self {
        Self {
            vtep,
            endpoint,
            pairs: Vec::new(),
            received_bytes: 0,
            sent_bytes: 0,
            lost: 0,
            segmentation: true,
            path_mtu: None,
            is_path_silent: false,
        }
    }

    /// The pair that packets go by.
    pub fn used(&self) -> Option<&PairStatus> {
        self.pairs.iter().find(|pair| pair.is_used)
    }

    /// How long ago the last handshake was completed with which there can be packets.
    pub fn last_handshake(&self) -> Option<Duration> {
        self.used()?.last_handshake
    }
}

/// Packets that came in and were not delivered, by the first check they failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dropped {
    /// Not a message of WireGuard.
    pub malformed: u64,
    /// Data for no session: the receiver index belongs to nobody.
    pub unknown_index: u64,
    /// Handshakes of strangers: a key that is no peer's.
    pub unknown_peer: u64,
    /// Handshakes over the budget, answered by a cookie or not at all.
    pub over_budget: u64,
    /// What did not decrypt: forged, changed on the way, or of a session long gone.
    pub undecryptable: u64,
    /// Seen before.
    pub replayed: u64,
    /// Decrypted, but not IPv4 from the peer's own address inside the tunnels.
    pub wrong_source: u64,
    /// Decrypted, but not to this node's address inside the tunnels.
    pub wrong_destination: u64,
    /// Decrypted, but not VXLAN, or damaged.
    pub not_vxlan: u64,
    /// Of a network that this node has no part in, or that has no TAP here.
    pub unknown_vni: u64,
    /// Of a network that the sender is no member of.
    pub not_a_member: u64,
    /// From an Ethernet address that does not belong to the sender.
    pub wrong_mac: u64,
}

impl Dropped {
    /// Each by its name, in the order in which the checks are made.
    pub fn by_reason(&self) -> [(&'static str, u64); 12] {
        let Self {
            malformed,
            unknown_index,
            unknown_peer,
            over_budget,
            undecryptable,
            replayed,
            wrong_source,
            wrong_destination,
            not_vxlan,
            unknown_vni,
            not_a_member,
            wrong_mac,
        } = *self;
        [
            ("malformed", malformed),
            ("unknown_index", unknown_index),
            ("unknown_peer", unknown_peer),
            ("over_budget", over_budget),
            ("undecryptable", undecryptable),
            ("replayed", replayed),
            ("wrong_source", wrong_source),
            ("wrong_destination", wrong_destination),
            ("not_vxlan", not_vxlan),
            ("unknown_vni", unknown_vni),
            ("not_a_member", not_a_member),
            ("wrong_mac", wrong_mac),
        ]
    }
}

/// Writes a message with its length before it. The bytes are wiped: there may be keys in them.
pub(crate) fn write_message<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let size = postcard::experimental::serialized_size(message).map_err(invalid)?;
    let mut bytes = Zeroizing::new(vec![0; size]);
    postcard::to_slice(message, &mut bytes).map_err(invalid)?;
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|length| *length <= LONGEST);
    let length = length.ok_or_else(|| invalid(format!("a message of {} bytes is too long", bytes.len())))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&bytes)?;
    to.flush()
}

/// Reads a message that has its length before it. Memory is taken as bytes arrive, not as the length promises.
pub(crate) fn read_message<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(invalid(format!("a message of {length} bytes is too long")));
    }
    let length = length as usize;
    let mut bytes = Zeroizing::new(Vec::new());
    while bytes.len() < length {
        // By hand, because a vector that grows leaves what it had where it was.
        let mut longer = Zeroizing::new(Vec::with_capacity(length.min(2 * bytes.len().max(32 * 1024))));
        longer.extend_from_slice(&bytes);
        let room = longer.capacity().min(length);
        longer.resize(room, 0);
        from.read_exact(&mut longer[bytes.len()..])?;
        bytes = longer;
    }
    match postcard::take_from_bytes(&bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(invalid(format!("{} bytes too many in a message", rest.len()))),
        Err(error) => Err(invalid(error)),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
