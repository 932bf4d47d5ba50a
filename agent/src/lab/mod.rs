//! Labs: a whole multi-host cluster in network namespaces on one machine, described by a Compose file.
//!
//! [`file`] reads a lab file and knows line and column of everything in it; [`model`] is what it says;
//! [`resolve`] decides what it leaves open; [`live`] is what became of it; [`graph`] draws both.

pub mod file;
pub mod graph;
pub mod live;
pub mod model;
pub mod resolve;
