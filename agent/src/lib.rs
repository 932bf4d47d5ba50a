//! Weft: one network for containers, namespaces and processes on many hosts.
//!
//! This crate is the agent and its command line. It owns tokio, the clock, seeds, the disk and the API,
//! and introduces to each other the cores that decide: `weft-ipam`, `weft-gossip`, `weft-overlay`, `weft-lb`
//! and `weft-dns`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod api;
mod broker;
pub mod cli;
mod control;
pub mod daemon;
mod docker;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod lab;
#[cfg(test)]
mod limits;
mod metrics;
pub mod options;
mod privileges;
mod serve;
mod socket;
