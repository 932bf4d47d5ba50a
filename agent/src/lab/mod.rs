//! Labs: a whole multi-host cluster in network namespaces on one machine, described by a Compose file.
//!
//! [`file`] reads a lab file and knows line and column of everything in it; [`model`] is what it says;
//! [`resolve`] decides what it leaves open.

pub mod file;
pub mod model;
pub mod resolve;
