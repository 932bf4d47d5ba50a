//! Labs: a whole multi-host cluster in network namespaces on one machine, described by a Compose file.
//!
//! [`mod@file`] reads a lab file and knows line and column of everything in it; [`model`] is what it says;
//! [`resolve`] decides what it leaves open; [`live`] is what became of it; [`graph`] draws both.
//!
//! `weft lab up` starts a *holder* in the background, which builds the lab and keeps it. The other verbs find
//! it by the lab's directory and ask it on a socket there. [`run`] is called before the process has a second
//! thread: entering namespaces demands that.

mod command;
mod dir;
mod fetch;
pub mod file;
pub mod graph;
mod holder;
pub mod live;
pub mod model;
pub mod resolve;
mod wire;

pub use command::{LabCommand, run};
