//! Who is there and what they said: membership and replicated records.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
mod error;
mod event;
mod gossip;
mod identity;
mod membership;
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
pub use identity::Identity;
pub use record::{CARD_KIND, Key, MAX_NAME, MAX_VALUE, Record, StateSum};
pub use seal::{GossipKey, KeyRing};
pub use stats::Stats;

/// The most bytes an application datagram may carry.
pub const MAX_MESSAGE: usize = 1_100;
/// The most bytes of a packet on the wire.
pub const MAX_PACKET: usize = 1_399;
