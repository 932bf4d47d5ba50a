//! The agent's API: HTTP and JSON on a Unix socket, the same for the command line, for scripts and for plugins.
//!
//! [`types`] are the contract (snake_case fields, ids in hexadecimal, times as RFC 3339), [`routes`] says which
//! path takes and answers which of them, and [`client`] speaks it. The server is written against the same
//! types, so the two cannot drift apart; `openapi.json` is held to them by a test.
//!
//! `{ref}` in a path is a name, a whole id or the beginning of one id only. Every failure is an
//! [`ApiError`]: a kind, a sentence and, where there is one, a way out.

pub mod client;
#[cfg(test)]
pub(crate) mod contract;
mod error;
pub mod routes;
mod timestamp;
pub mod types;

pub use error::{ApiError, ErrorBody, ErrorKind};
pub use routes::ROUTES;
pub use timestamp::Timestamp;

/// The description of this API that `GET /v1/openapi.json` answers with.
pub const OPENAPI: &str = include_str!("../../openapi.json");
