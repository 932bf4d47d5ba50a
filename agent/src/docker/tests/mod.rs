//! The driver as dockerd meets it: on its socket, with a control behind it, without a network.
//!
//! [`conformance`] repeats what a real dockerd was recorded to send, [`fuzz`] sends what none would.

mod collection;
mod conformance;
mod fuzz;
mod newer;
mod rig;
mod starting;
