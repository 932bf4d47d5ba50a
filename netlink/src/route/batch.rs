use std::{fmt, io};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;

/// One change, with the words to name it in an error.
#[derive(Debug, Clone)]
pub struct Request {
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
    pub(super) what: String,
    pub(super) tolerated: &'static [i32],
}

impl Request {
    /// A change to something that exists.
    pub(super) fn new(message: RouteNetlinkMessage, what: String) -> Self {
        Self {
            message,
            flags: 0,
            what,
            tolerated: &[],
        }
    }

    /// Makes something that must not exist yet.
    pub(super) fn create(message: RouteNetlinkMessage, what: String) -> Self {
        Self {
            flags: NLM_F_CREATE | NLM_F_EXCL,
            ..Self::new(message, what)
        }
    }

    /// Makes something, or overwrites what is there.
    pub(super) fn replace(message: RouteNetlinkMessage, what: String) -> Self {
        Self {
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            ..Self::new(message, what)
        }
    }

    /// Removes something; that it is gone already is success.
    pub(super) fn delete(message: RouteNetlinkMessage, what: String) -> Self {
        const GONE: &[i32] = &[libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL];
        Self {
            tolerated: GONE,
            ..Self::new(message, what)
        }
    }
}

/// Changes to be sent together, in order.
///
/// The kernel carries out each by itself and goes on after one it refuses, so a batch is an order and a
/// saving of system calls, not a transaction.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(super) requests: Vec<Request>,
}

impl Batch {
    /// A batch of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a change at the end. What it makes of one value may be several messages.
    pub fn add(&mut self, requests: impl IntoIterator<Item = Request>) -> &mut Self {
        self.requests.extend(requests);
        self
    }

    /// How many messages there are; the next one added gets this index in [`Refusal::index`].
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

impl IntoIterator for Request {
    type Item = Request;
    type IntoIter = std::iter::Once<Request>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self)
    }
}

/// A message of a batch that the kernel refused.
#[derive(Debug)]
pub struct Refusal {
    /// Its place in the batch.
    pub index: usize,
    /// What was tried, on which object: `add address 10.0.0.1/24 to link 5`.
    pub what: String,
    /// The error number.
    pub errno: i32,
    /// The kernel's own words, where it has any.
    pub detail: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "could not {}: {}",
            self.what,
            io::Error::from_raw_os_error(self.errno)
        )?;
        self.detail.iter().try_for_each(|detail| write!(f, " ({detail})"))
    }
}

/// What went wrong with a batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The kernel refused these messages and carried out all others.
    #[error("{}", join(.0))]
    Refused(Vec<Refusal>),
    /// The exchange itself failed: messages before this index were carried out, later ones perhaps.
    #[error("lost touch with the kernel after {after} of {of} route netlink messages")]
    Interrupted {
        /// Messages that were answered.
        after: usize,
        /// Messages in the batch.
        of: usize,
        /// What the socket said.
        source: io::Error,
    },
}

fn join(refusals: &[Refusal]) -> String {
    refusals
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
