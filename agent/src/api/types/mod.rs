//! Requests and answers. Field names and meanings are a stable contract: fields are added, never changed.
//!
//! Lists are answered as JSON arrays; an answer to a change names what was changed.

/// The word for people is the word in JSON.
macro_rules! display_as_serialized {
    ($($name:ident),*) => {$(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                serde::Serialize::serialize(self, f)
            }
        }
    )*};
}

mod cluster;
mod doctor;
mod drain;
mod encryption;
mod event;
mod health;
mod names;
mod network;
mod node;
mod port;
mod publish;
mod service;
mod status;
mod tuning;
mod why;

pub use cluster::*;
pub use doctor::*;
pub use drain::*;
pub use encryption::*;
pub use event::*;
pub use health::*;
pub use names::*;
pub use network::*;
pub use node::*;
pub use port::{ParsePortError, Protocol, ServicePort};
pub use publish::{ParsePublishError, PublishMode, PublishedPort};
pub use service::*;
pub use status::*;
pub use tuning::Tuning;
pub use why::*;

use super::ApiError;

/// Checks the name of a network, endpoint, service or alias: it is going to be one label of a DNS name.
///
/// Underscores are allowed, as Docker and Compose make names with them.
pub fn check_name(what: &str, name: &str) -> Result<(), ApiError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if bytes.len() <= 63 && outer(bytes.first()) && outer(bytes.last()) && bytes.iter().copied().all(inner) {
        return Ok(());
    }
    Err(
        ApiError::invalid(format!("`{name}` cannot be the name of {what}")).with_help(
            "a name is 1 to 63 letters, digits, `-` and `_`, and begins and ends with a letter or digit",
        ),
    )
}

display_as_serialized!(
    Availability,
    BackendState,
    DoctorTopic,
    DoctorVerdict,
    EndpointMode,
    EventKind,
    NodeState,
    Protocol,
    PublishMode,
    Scheduler,
    WhyStage
);

#[cfg(test)]
mod tests;
