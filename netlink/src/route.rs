//! Route netlink: links, addresses, routes, neighbours and forwarding entries, in batches.
//!
//! [`RouteSocket`] is for writing and for dumps, and blocks; it belongs to one namespace, the one it was
//! opened in, wherever it is used. [`Monitor`] tells what changes, and is asynchronous.
//!
//! A link that is made with an interface index of the caller's choice can be used by later messages of
//! the same [`Batch`]: a whole attachment is one system call.

mod address;
mod batch;
mod dump;
mod fdb;
mod link;
mod monitor;
mod neighbour;
mod set_link;
mod socket;

pub use address::{Address, LocalRoute, Route};
pub use batch::{Batch, BatchError, Refusal, Request};
pub use dump::{FdbEntry, Link, LinkDetail, Losses, NeighbourEntry};
pub use link::{BridgeOptions, NewLink, VethPeer, VxlanOptions};
pub use monitor::{Event, Monitor};
pub use neighbour::{BridgeFdb, Neighbour, VxlanFdb};
pub use set_link::{PortFlags, SetLink, delete_link};
pub use socket::{DumpError, OpenError, RouteSocket};

#[cfg(test)]
mod tests;
