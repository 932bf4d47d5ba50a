//! Network namespaces, route netlink in batches, TAP devices, nf_tables, conntrack and BPF: the kernel's words for Weft's edges
#![warn(missing_docs)]

pub mod arp;
pub mod bpf;
pub mod broker;
pub mod conntrack;
pub mod datagrams;
pub mod diag;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod icmp;
pub mod look;
pub mod netns;
pub mod nft;
pub mod packet;
pub mod route;
pub mod segments;
mod socket;
pub mod tap;
pub mod testing;
pub mod wireguard;
