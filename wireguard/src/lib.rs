//! Encrypted networks: VXLAN inside WireGuard in a process of its own, between TAP devices and UDP sockets
//!
//! The agent says what is wanted through a [`Client`]; the process that carries the packets goes on without it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod control;
mod secret;

pub use control::{
    Answer, Client, ClientError, Desired, Dropped, Network, NetworkStatus, Peer, PeerStatus, Request, Status,
};
pub use secret::Secret32;
