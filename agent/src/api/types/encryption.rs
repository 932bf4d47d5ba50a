use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use weft_types::NodeId;

/// How a host encrypts what goes to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionStatus {
    /// What encrypts: `userspace`, the process `weft tunnels`, or `kernel`, the kernel's WireGuard.
    pub datapath: String,
    /// Why that one.
    pub reason: String,
    /// Whether it does; nothing leaves this host on encrypted networks while it does not.
    pub running: bool,
    /// The UDP port of WireGuard.
    pub port: u16,
    /// This host's address inside the tunnels.
    pub address: Ipv4Addr,
    /// The fingerprint of this host's key.
    pub fingerprint: String,
    /// Which of this host's keys it is: 1 for the first.
    pub epoch: u32,
    /// How it changes; null while it does not.
    pub change: Option<KeyChange>,
    /// Packets that came in and were not delivered: forged, replayed, from somebody who may not send them. Counted since the
    /// datapath was started.
    pub refused: u64,
    /// The tunnels, by the names of the nodes.
    pub tunnels: Vec<TunnelStatus>,
}

/// A change of a host's key, from when there is a new one until the old one is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// The fingerprint of the new key.
    pub fingerprint: String,
    /// Which of the host's keys it is.
    pub epoch: u32,
    /// Nodes that there are tunnels to, that answer, and that have not gone over to the new key.
    pub waiting_for: Vec<String>,
    /// When the old key is forgotten even if some have not gone over, in milliseconds.
    pub at_most_ms: u64,
}

/// The tunnel to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// The node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// Its address inside the tunnels.
    pub address: Ipv4Addr,
    /// Where packets to it go on the underlay.
    pub underlay_address: SocketAddr,
    /// The fingerprint of its key, the one that packets go by.
    pub fingerprint: String,
    /// Which of its keys that is: 1 for the first.
    pub epoch: u32,
    /// Which of this host's keys packets go by.
    pub own_epoch: u32,
    /// How long ago the last handshake was, in milliseconds; null if there was none.
    pub handshake_ms_ago: Option<u64>,
    /// Bytes of WireGuard that came from it.
    pub received_bytes: u64,
    /// Bytes of WireGuard that went to it.
    pub sent_bytes: u64,
    /// Frames to it that were dropped here.
    pub lost: u64,
    /// Whether many packets go in one system call; not so for a while after the path refused that.
    pub segmentation: bool,
    /// The largest packet that the path takes, in bytes, where that is less than full packets need.
    pub path_mtu: Option<u32>,
    /// Whether longer packets are dropped on the way without telling anybody, and that was found by trying.
    pub path_silent: bool,
}
