use std::{fmt::Debug, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

use crate::{Block, Grant};

/// What a node asks an owner to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// Some free numbers, as many as the owner sees fit.
    Any {
        /// Where they must lie.
        within: Option<RangeInclusive<u128>>,
    },
    /// Exactly this number.
    Number(u128),
    /// Whatever part of this block the owner has.
    Block(Block),
}

/// Asks an owner for numbers. Which space is meant is said by what carries the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the asker, never the same for two negotiations of one start, so that a repeated request
    /// gets the grants of the first answer again instead of more.
    pub id: u64,
    /// What is asked for.
    pub want: Want,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply<N> {
    /// The id of the request.
    pub id: u64,
    /// What came of it.
    pub outcome: Outcome<N>,
}

/// What an owner answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome<N> {
    /// The grants, durable at the giver. The receiver makes them durable before it merges them.
    Granted(Vec<Grant<N>>),
    /// These nodes are better asked; they own it or may have free numbers.
    Elsewhere(Vec<N>),
    /// No, and nobody else is known who could.
    Refused(Refusal),
}

/// Why an owner gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// It has no free number there.
    #[error("has no free number there")]
    NoSpace,
    /// It has the number in use.
    #[error("has {0} in use")]
    InUse(u128),
    /// The number is never handed out.
    #[error("holds {0} in reserve")]
    Reserved(u128),
    /// The ownership of the number is disputed.
    #[error("holds {0} in quarantine")]
    Quarantined(u128),
    /// The number is not part of the space.
    #[error("knows no such number in the space")]
    OutOfRange,
    /// The versions of the block are used up.
    #[error("cannot version another grant of the block")]
    Spent,
}
