//! Names on overlay networks: a pure answer over a snapshot, and the server that gives it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod reverse;
mod server;
mod shards;
mod zone;

pub use answer::{Answer, Asker, MAX_RECORDS, MAX_TASKS, TTL_SECS, answer};
pub use hickory_proto::op::Query;
pub use server::{Counts, FindAsker, Forwarder, ForwarderConfig, Server, SpawnError, Upstreams};
pub use zone::{DomainError, Endpoint, EndpointMode, NetworkZone, Service, Zone};
