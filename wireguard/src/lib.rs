//! Encrypted networks: VXLAN inside WireGuard in a process of its own, between TAP devices and UDP sockets
//!
//! The agent says what is wanted through a [`Client`]; the process that carries the packets goes on without it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod budget;
mod control;
mod echo;
mod envelope;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod headers;
mod icmp;
mod join;
mod kernel;
mod link;
mod peer;
mod probing;
mod process;
mod secret;
mod spin;
mod split;
mod table;
#[cfg(test)]
mod testing;
mod turns;

pub use control::{
    Answer, Client, ClientError, Desired, Dropped, KeyPair, Network, NetworkStatus, PairStatus, Peer,
    PeerStatus, Request, Status,
};
pub use kernel::{Kernel, KernelError, probe as probe_kernel, remove as remove_kernel};
pub use process::{RunError, run};
pub use secret::Secret32;
