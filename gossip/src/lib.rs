//! Who is there and what they said: membership and replicated records.
//!
//! [`Gossip`] is one node. It has no socket, clock, task or disk, and its owner drives it:
//!
//! 1. [`Gossip::load`] what was on disk, once, then [`Gossip::join`].
//! 2. Give it what happens, each time with the time: packets and frames that arrive
//!    ([`handle_packet`](Gossip::handle_packet), [`handle_stream_request`](Gossip::handle_stream_request),
//!    [`handle_stream_response`](Gossip::handle_stream_response)), what the application wants ([`put`](Gossip::put),
//!    [`remove`](Gossip::remove), [`send`](Gossip::send)), and [`handle_timeout`](Gossip::handle_timeout) at
//!    [`poll_timeout`](Gossip::poll_timeout).
//! 3. After each of these carry out [`poll_output`](Gossip::poll_output) until there is none, in order: what is for the
//!    disk is there before what is for the network is sent.
//!
//! How it works, and what was measured, is in `docs/algorithms/gossip.md`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(test)]
mod golden;
mod gossip;
mod hearsay;
mod identity;
mod interest;
mod keys;
mod membership;
mod pace;
mod record;
mod replay;
mod rumours;
mod seal;
mod stats;
mod store;
pub mod transport;
mod wire;

pub use config::Config;
pub use error::{PutError, SendError};
pub use event::{Event, Member, MemberState, Output};
pub use gossip::Gossip;
pub use identity::{Identity, verify};
pub use interest::{INTEREST_KIND, Interest};
pub use keys::{GossipKey, KeyId, KeyRing};
pub use record::{CARD_KIND, Key, MAX_NAME, MAX_VALUE, Record, StateSum};
pub use stats::Stats;

/// The most bytes an application datagram may carry.
pub const MAX_MESSAGE: usize = 1_100;
/// The most bytes of a packet on the wire.
pub const MAX_PACKET: usize = 1_399;
