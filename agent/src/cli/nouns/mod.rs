//! A file per noun: its verbs and flags, what they ask the agent, and how the answer is shown.

pub(super) mod cluster;
pub(super) mod docker;
pub(super) mod doctor;
mod drain;
mod encryption;
pub(super) mod event;
mod health;
pub(super) mod network;
pub(super) mod node;
pub(super) mod report;
pub(super) mod service;
pub(super) mod status;
pub(super) mod token;
mod tuning;
pub(super) mod why;

/// Reads `KEY=VALUE`.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}
