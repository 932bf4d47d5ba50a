//! Docker's way in: a network and IPAM driver ("plugin", version 1 of the protocol) on a Unix socket.
//!
//! [`protocol`] has the requests as dockerd 20.10 to 29 sends them, [`driver`] turns each into a command for
//! the owner of the state and its result into an answer, [`server`] has the socket. What is asked at
//! dockerd's start is answered without the owner, so that a busy agent never delays it, and everything else
//! is answered within a bounded time.
//!
//! Beside it, [`watcher`] uses Docker's own API, the [`engine`]: [`networks`] makes each network of the cluster
//! one of Docker's and the other way round, [`containers`] tells the cluster what containers are called and what
//! they serve, as their [`labels`] say.
//!
//! [`proxy`] and [`setup`] are commands of their own: Docker's API with its driver `overlay` as ours, and what Docker's
//! settings need for names.
//!
//! dockerd knows a network by an id of its own on each host, never tells a driver a network's or container's
//! name, and moves the interface to the container by itself. See `docs/docker.md` for what follows from that.

mod containers;
mod driver;
mod engine;
mod labels;
mod networks;
mod owner;
pub mod protocol;
pub mod proxy;
pub(crate) mod server;
pub mod setup;
#[cfg(test)]
mod tests;
mod watcher;

pub use owner::Owner;
pub use server::{Door, Plugin, default_socket};
pub use watcher::Watcher;
