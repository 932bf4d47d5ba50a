//! The seam to whatever translates virtual addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    ops::AddAssign,
    path::Path,
    time::Instant,
};

use weft_netlink::{broker::SocketKind, look::Inside, netns::Netns};
use weft_types::{EndpointId, ServiceId};

use crate::{ClientTable, Service};

/// Translates virtual addresses in the sandboxes of this host's clients.
///
/// All calls block for as long as the kernel takes (milliseconds); from async code call them on a blocking thread.
/// Dropping a datapath leaves what it installed in place and working; a new one adopts it.
pub trait Datapath: Send + Sync {
    /// Its name for `status`.
    fn name(&self) -> &'static str;

    /// Makes a sandbox see exactly these networks' services. Only the difference to what is there is written; on
    /// the first call for a sandbox what an earlier agent left there is read back. Open connections survive,
    /// except those to backends that are down or gone: they are cut, so that clients notice.
    ///
    /// `sandbox` is the caller's name for it, the same after a restart. One failed call leaves each service either
    /// as it was or as it should be; calling again continues.
    fn sync(&self, sandbox: &str, netns: &Netns, tables: &[ClientTable]) -> Result<Written, DatapathError>;

    /// Whether a [`sync`](Self::sync) would do nothing, as far as that is known without a look at the sandbox.
    fn is_synced(&self, sandbox: &str, tables: &[ClientTable]) -> bool {
        let _ = (sandbox, tables);
        false
    }

    /// The sockets that a [`look`](Self::look) into a sandbox needs; none where there is nothing to look for.
    fn sockets(&self) -> &'static [SocketKind] {
        &[]
    }

    /// Looks into a sandbox, where somebody else does so anyway, for the sync that follows. Nothing is written. May be called by several
    /// threads at a time.
    fn look(&self, sandbox: &str, inside: Inside<'_>) {
        let _ = (sandbox, inside);
    }

    /// Looks into sandboxes, by name and path, that are about to be synced for the first time: into all of them together it takes less
    /// time than into each by itself. Those that [`look`](Self::look) has seen are left out. What is found out is known to the sync of each, and nothing is written.
    fn look_into(&self, sandboxes: &[(&str, &Path)]) {
        let _ = sandboxes;
    }

    /// Forgets a sandbox and, if its namespace still exists, takes out everything that was installed there.
    fn remove(&self, sandbox: &str, netns: Option<&Netns>) -> Result<(), DatapathError>;

    /// Forgets all sandboxes but these: what an earlier agent left for others is taken out. Where it goes with a
    /// sandbox's namespace anyway there is nothing to do.
    fn retain(&self, sandboxes: &BTreeSet<String>) -> Result<(), DatapathError> {
        let _ = sandboxes;
        Ok(())
    }

    /// Ends the connections of a sandbox that were idle for longer than their service allows, where the kernel does not
    /// do so itself, and says how many. Call it about once a second; it looks when it is time to.
    fn expire(&self, sandbox: &str, netns: &Netns, now: Instant) -> Result<usize, DatapathError> {
        let _ = (sandbox, netns, now);
        Ok(0)
    }

    /// Somebody else may have changed what was installed: the next sync of each sandbox reads it back.
    fn resync(&self) {}

    /// Whether what all sandboxes share is there, as far as a quick look tells. What is not needs a [`Self::resync`] and a sync.
    fn is_whole(&self) -> bool {
        true
    }

    /// The open connections of this host's clients to the backends of a service; `None` if they are not counted,
    /// because no client has it with least connection.
    fn connections(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, u64>>;

    /// Counts what one sandbox has open to the backends of these services and [`connections`](Self::connections) does
    /// not count. It looks at everything that is tracked there: for somebody who asks, not for every packet.
    fn count(
        &self,
        sandbox: &str,
        netns: &Netns,
        services: &[&Service],
    ) -> Result<BTreeMap<EndpointId, u64>, DatapathError> {
        let _ = (sandbox, netns, services);
        Ok(BTreeMap::new())
    }

    /// What this host's clients have tried so far with the backends of a service; `None` where each sandbox has to be asked
    /// by [`attempts_of`](Self::attempts_of).
    fn attempts(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, Attempts>> {
        let _ = service;
        None
    }

    /// What a sandbox has tried so far with the backends of these services and [`attempts`](Self::attempts) does not count.
    fn attempts_of(
        &self,
        sandbox: &str,
        netns: &Netns,
        services: &[&Service],
    ) -> Result<BTreeMap<EndpointId, Attempts>, DatapathError> {
        let _ = (sandbox, netns, services);
        Ok(BTreeMap::new())
    }
}

/// Connections that were tried; conversations, where the protocol knows no connections. The counters stand in the kernel:
/// they outlive an agent, and begin anew when a backend or a sandbox does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    /// All of them.
    pub total: u64,
    /// Those over TCP that were never made: refused, reset before, nothing could lead there, or, where the datapath can
    /// tell, without an answer for too long.
    pub failed: u64,
    /// Of all of them, those over TCP.
    pub tcp: u64,
    /// Of those over TCP, the ones that were made; where a service is not watched, perhaps not all of them.
    pub made: u64,
    /// Of those over TCP, the ones of which nobody will know, because those who counted are gone.
    pub unknown: u64,
}

impl Attempts {
    /// Those over TCP of which it is known how they ended or began.
    pub fn settled(&self) -> u64 {
        self.made.saturating_add(self.failed).saturating_add(self.unknown)
    }

    /// Those over TCP of which it is not known yet, or never will be: their programs have given them up.
    pub fn pending(&self) -> u64 {
        self.tcp.saturating_sub(self.settled())
    }
}

impl AddAssign for Attempts {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.failed += other.failed;
        self.tcp += other.tcp;
        self.made += other.made;
        self.unknown += other.unknown;
    }
}

/// What a [`Datapath::sync`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Services that were added or changed.
    pub changed: usize,
    /// Services that were taken out.
    pub removed: usize,
    /// Connections that were cut because their backend is down or gone.
    pub cut: usize,
}

impl Written {
    /// Whether everything was right already.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A datapath that could not do what it was asked; the rest of the state is untouched.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} in sandbox {sandbox}")]
pub struct DatapathError {
    /// What was tried.
    pub doing: String,
    /// In which sandbox.
    pub sandbox: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl DatapathError {
    /// What a failure is part of.
    pub(crate) fn of(doing: &str, sandbox: &str) -> impl FnOnce(Box<dyn Error + Send + Sync>) -> Self {
        move |source| Self {
            doing: doing.to_owned(),
            sandbox: sandbox.to_owned(),
            source,
        }
    }
}
