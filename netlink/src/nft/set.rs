//! Sets, maps and their elements.

use std::fmt;

use super::model::{Datum, Kind, Verdict};

/// What a set gives for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetData {
    /// Only whether it is in.
    None,
    /// A value: a map.
    Value(Kind),
    /// A verdict: a verdict map.
    Verdict,
}

/// A set or map to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub(super) name: String,
    pub(super) key: Vec<Kind>,
    pub(super) data: SetData,
    /// How many elements rules may add; 0 where only transactions do.
    pub(super) counters: u32,
}

impl Set {
    /// A set of these keys; several kinds are a concatenation.
    pub fn new(name: impl Into<String>, key: impl Into<Vec<Kind>>, data: SetData) -> Self {
        Self {
            name: name.into(),
            key: key.into(),
            data,
            counters: 0,
        }
    }

    /// A set to which [`Expr::Count`](super::Expr::Count) adds keys, `most` at most, and in which it counts packets.
    pub fn counting(name: impl Into<String>, key: impl Into<Vec<Kind>>, most: u32) -> Self {
        Self {
            counters: most,
            ..Self::new(name, key, SetData::None)
        }
    }

    /// A set that lives and dies with the one rule that looks it up, see [`Transaction::add_anonymous_set`].
    ///
    /// [`Transaction::add_anonymous_set`]: super::Transaction::add_anonymous_set
    pub fn anonymous(key: impl Into<Vec<Kind>>, data: SetData) -> Self {
        Self::new("", key, data)
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {{ type ", self.name)?;
        for (i, kind) in self.key.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { " . " }, kind.name())?;
        }
        match self.data {
            SetData::None => {}
            SetData::Value(kind) => write!(f, " : {}", kind.name())?,
            SetData::Verdict => f.write_str(" : verdict")?,
        }
        match self.counters {
            0 => f.write_str("; }"),
            most => write!(f, "; size {most}; counter; }}"),
        }
    }
}

/// A set within a table, as a rule or an element names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetRef {
    /// By name.
    Named(String),
    /// The nth anonymous set of the same transaction.
    Anonymous(u32),
}

impl From<&str> for SetRef {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

impl SetRef {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            // The kernel puts a number in.
            Self::Anonymous(_) => "__set%d",
        }
    }
}

impl fmt::Display for SetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "@{name}"),
            Self::Anonymous(number) => write!(f, "@#{number}"),
        }
    }
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub(super) key: Vec<Datum>,
    pub(super) data: ElementData,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ElementData {
    None,
    Value(Datum),
    Verdict(Verdict),
}

impl Element {
    /// A key alone: of a plain set, or of any set to delete it.
    pub fn key(key: impl Into<Vec<Datum>>) -> Self {
        Self {
            key: key.into(),
            data: ElementData::None,
        }
    }

    /// A key and its value in a map.
    pub fn value(key: impl Into<Vec<Datum>>, value: Datum) -> Self {
        Self {
            key: key.into(),
            data: ElementData::Value(value),
        }
    }

    /// A key and its verdict in a verdict map.
    pub fn verdict(key: impl Into<Vec<Datum>>, verdict: Verdict) -> Self {
        Self {
            key: key.into(),
            data: ElementData::Verdict(verdict),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, datum) in self.key.iter().enumerate() {
            write!(f, "{}{datum}", if i == 0 { "" } else { " . " })?;
        }
        match &self.data {
            ElementData::None => Ok(()),
            ElementData::Value(value) => write!(f, " : {value}"),
            ElementData::Verdict(verdict) => write!(f, " : {verdict}"),
        }
    }
}
