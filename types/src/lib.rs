//! The vocabulary of Weft: identifiers and numbers that every crate means the same by.
//!
//! Nothing here decides anything. A value is checked once, where it enters (`FromStr`, `TryFrom`,
//! serde), and is right by construction afterwards.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod ids;
mod mac;
mod vni;

pub use ids::{ClusterId, EndpointId, NetworkId, NodeId, ParseIdError, ServiceId};
pub use mac::{Mac, ParseMacError};
pub use vni::{Vni, VniOutOfRange};
