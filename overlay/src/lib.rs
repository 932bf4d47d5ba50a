//! What the kernel should hold for the overlay networks of a host, and the difference from what it holds.
//!
//! [`plan`] decides and touches nothing: [`plan::plan`] takes what is [`Desired`](plan::Desired) and what was
//! [`Observed`](plan::Observed) and lists the operations between them. [`kernel`] carries them out and reads
//! back what is there. On an unchanged host the list is empty.
//!
//! Per network and host there is a namespace of our own:
//!
//! ```text
//!  sandbox               overlay namespace                        host namespace
//!  eth0 ────── p<endpoint> ─┐
//!                           ├─ br0 ── vx0 ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ UDP socket on the underlay
//!  eth0 ────── p<endpoint> ─┘   │
//!              gateway and DNS addresses
//!                               └ routing, masquerade ─ up0 ────── weft-<network> ─ masquerade
//! ```
//!
//! Ports of the host that are published lead to the end of the uplink in here. Who balances such connections translates them to an
//! endpoint; towards another host they then come from addresses of this host's own, on a link `in0` that is a port
//! of the bridge (`in0-port`), because the gateway is the same on all hosts and would be answered there.
//!
//! Who is where is written, never learned: the bridge's forwarding table and neighbours, and the VXLAN
//! device's, hold one static entry per endpoint. The bridge answers ARP and ND for remote endpoints by itself
//! and floods nothing into the tunnel.
//!
//! Of an encrypted network `vx0` is a TAP device instead. A process of its own takes the frames from there, and has them
//! encrypted on the underlay; without the process the device has no carrier, and nothing leaves.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod kernel;
mod mtu;
pub mod plan;

pub use mtu::{MtuTooSmall, encrypted_mtu, encrypted_overhead, overhead, overlay_mtu};
