//! Services, virtual addresses and the choice of a backend.
//!
//! The core is pure: a [`Service`] and, for least connection, the [`Loads`] of its backends give a vector of slots,
//! the next choices one after the other ([`choices`]). A [`Datapath`] installs it in the network namespaces of the
//! *clients*, where a packet to a virtual address is translated before it leaves: no extra hop, and the backend sees
//! the client's own address. Who is to get connections at all is decided by each backend's own host, with a
//! [`Monitor`].
//!
//! * [`kernel::NftDatapath`] does it with nf_tables, also without root inside a user namespace.
//!   It sees what sockets of the sandbox itself send, not what a sandbox forwards for others (virtual machines on a
//!   TAP). [`kernel::NftDatapath::entry`] does it for what comes into a namespace: published ports of a host.
//! * [`kernel::EbpfDatapath`] does it with BPF programs when a socket is connected, which costs nothing per packet and
//!   counts connections exactly. It needs root outside of every user namespace.
//! * [`FakeDatapath`] keeps it in memory, for tests of whoever uses a datapath.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod datapath;
mod eject;
mod fake;
mod health;
pub mod kernel;
mod service;
mod slots;
mod slow_start;

#[cfg(test)]
mod tests;

pub use datapath::{Attempts, Datapath, DatapathError, Written};
pub use eject::{Change as EjectChange, EjectRule, Ejected, Ejections};
pub use fake::FakeDatapath;
pub use health::{Health, Monitor, Timing};
pub use service::{Backend, BackendState, ClientTable, PortMap, Protocol, Scheduler, Service};
pub use slots::{Candidate, Loads, maglev, round_robin, weighted_round_robin};
pub use slow_start::{Round, SlowStart};

use weft_types::EndpointId;

/// The next choices for new connections to a service over one IP version: only active backends, none if there is
/// none. A datapath takes them one after the other and then starts again; under [`Scheduler::Maglev`] it takes, for each
/// client, always the same one.
pub fn choices(service: &Service, ipv6: bool, loads: &Loads) -> Vec<EndpointId> {
    let candidates: Vec<Candidate> = service
        .active(ipv6)
        .into_iter()
        .map(|(backend, _)| Candidate {
            endpoint: backend.endpoint,
            weight: backend.weight,
        })
        .collect();
    match service.scheduler {
        Scheduler::RoundRobin => round_robin(&candidates),
        Scheduler::WeightedRoundRobin => weighted_round_robin(&candidates),
        Scheduler::LeastConnections => loads.next_choices(&candidates),
        Scheduler::Maglev => maglev(&candidates),
    }
}
