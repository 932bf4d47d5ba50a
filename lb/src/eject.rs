//! A backend to which connections fail, one after the other, gets none for a time.
//!
//! Each host decides for its own clients, by what came of *their* connections: where the way between two hosts is broken, the
//! others go on using the backend, and where the backend itself is broken each host finds that out by itself, with as many
//! connections. Nothing is told between hosts, so nobody can be talked into ejecting.
//!
//! A failure is a connection over TCP that was refused or reset before it was made, or that had no answer for [`PATIENCE`]; the
//! datapath's counters say the first, and of the second how many are still pending is enough, whether or not its program has given it
//! up meanwhile. One that is made ends the row, in
//! whatever order they were within two looks at the counters: this is for backends that do not answer, not for those that
//! answer badly. Datapaths see an ejected backend as draining: what is open stays open.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use weft_types::EndpointId;

use crate::{Attempts, BackendState, Service};

#[cfg(test)]
mod proptests;

/// A connection that has had no answer for so long has failed: its first packet was sent three times by then.
const PATIENCE: Duration = Duration::from_secs(4);
/// Each ejection of a backend that has not become better lasts twice as long as the one before, up to so many times the first.
const LONGEST: u32 = 16;

/// When a service's backends are ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EjectRule {
    /// After so many failures in a row.
    pub failures: u32,
    /// For so long at first.
    pub time: Duration,
}

/// That a backend is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    /// Failures in a row that led to it.
    pub failures: u64,
    /// When it is readmitted.
    pub until: Instant,
}

/// A backend that was ejected, or was and is readmitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The backend.
    pub endpoint: EndpointId,
    /// None: it gets connections again, as far as this is concerned.
    pub ejected: Option<Ejected>,
}

/// Who is ejected, and what is known of the others.
///
/// [Feed](Self::handle_attempts) it what the datapath has counted for each service, about once a second, and
/// [`apply`](Self::apply) it to what datapaths are given.
#[derive(Debug, Default)]
pub struct Ejections {
    watched: HashMap<EndpointId, Watched>,
    changes: VecDeque<Change>,
}

#[derive(Debug)]
struct Watched {
    last: Attempts,
    /// How many connections had been tried by when.
    tried: VecDeque<(Instant, u64)>,
    /// Of those that are pending, the ones that count as failed already, or are not counted.
    charged: u64,
    failures: u64,
    ejected: Option<Ejected>,
    /// The last ejection: how many times the first it lasted, and when it ended.
    before: Option<(u32, Duration, Instant)>,
    /// Whether a connection was made since.
    well: bool,
}

impl Ejections {
    /// What was counted so far for the backends of a service, which has its backends as they are without this. At the first
    /// look nothing follows: how long ago it all was is not known.
    pub fn handle_attempts(
        &mut self,
        service: &Service,
        rule: EjectRule,
        counted: &BTreeMap<EndpointId, Attempts>,
        now: Instant,
    ) {
        let (active, others): (Vec<_>, Vec<_>) = service
            .backends
            .iter()
            .partition(|backend| backend.state == BackendState::Active);
        for other in others {
            self.forget(other.endpoint);
        }
        let most = active.len() / 2;
        let mut out = 0;
        for backend in &active {
            let counted = counted.get(&backend.endpoint).copied().unwrap_or_default();
            self.watched
                .entry(backend.endpoint)
                .and_modify(|watched| watched.take(counted, now))
                .or_insert_with(|| Watched::new(counted, now));
            out += usize::from(self.ejected(backend.endpoint).is_some());
        }
        // Others went meanwhile.
        while out > most {
            let ejected = active.iter().map(|backend| backend.endpoint);
            let until = |endpoint: &EndpointId| self.ejected(*endpoint).map(|ejected| ejected.until);
            let next = ejected
                .filter(|endpoint| until(endpoint).is_some())
                .min_by_key(until);
            next.into_iter().for_each(|endpoint| self.readmit(endpoint, now));
            out -= 1;
        }
        for backend in &active {
            let Some(watched) = self.watched.get_mut(&backend.endpoint) else {
                continue;
            };
            if out < most
                && let Some(ejected) = watched.eject(rule, now)
            {
                out += 1;
                self.changes.push_back(Change {
                    endpoint: backend.endpoint,
                    ejected: Some(ejected),
                });
            }
        }
    }

    /// Forgets all backends but these.
    pub fn retain(&mut self, stays: impl Fn(EndpointId) -> bool) {
        let gone = self.watched.keys().copied().filter(|endpoint| !stays(*endpoint));
        for endpoint in gone.collect::<Vec<_>>() {
            self.forget(endpoint);
        }
    }

    /// Readmits those whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_due = |watched: &Watched| watched.ejected.is_some_and(|ejected| ejected.until <= now);
        let due = self.watched.iter().filter(|(_, watched)| is_due(watched));
        for endpoint in due.map(|(endpoint, _)| *endpoint).collect::<Vec<_>>() {
            self.readmit(endpoint, now);
        }
    }

    /// When the next one is readmitted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let ejected = self.watched.values().filter_map(|watched| watched.ejected);
        ejected.map(|ejected| ejected.until).min()
    }

    /// What has changed.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Whether a backend is ejected.
    pub fn ejected(&self, endpoint: EndpointId) -> Option<Ejected> {
        self.watched.get(&endpoint)?.ejected
    }

    /// Gives ejected backends no new connections, but never to more than half of those that would get some: whoever has
    /// been out for longest gets them again at once when others go.
    pub fn apply(&self, service: &mut Service) {
        let active = |backend: &&mut crate::Backend| backend.state == BackendState::Active;
        let most = service.backends.iter_mut().filter(active).count() / 2;
        let active = service.backends.iter_mut().filter(active);
        let mut ejected: Vec<_> = active
            .filter_map(|backend| Some((self.ejected(backend.endpoint)?.until, backend)))
            .collect();
        ejected.sort_by_key(|(until, backend)| (std::cmp::Reverse(*until), backend.endpoint));
        for (_, backend) in ejected.into_iter().take(most) {
            backend.state = BackendState::Draining;
        }
    }

    fn readmit(&mut self, endpoint: EndpointId, now: Instant) {
        if let Some(watched) = self.watched.get_mut(&endpoint)
            && watched.readmit(now)
        {
            self.changes.push_back(Change {
                endpoint,
                ejected: None,
            });
        }
    }

    fn forget(&mut self, endpoint: EndpointId) {
        let forgotten = self.watched.remove(&endpoint);
        if forgotten.is_some_and(|watched| watched.ejected.is_some()) {
            self.changes.push_back(Change {
                endpoint,
                ejected: None,
            });
        }
    }
}

impl Watched {
    fn new(counted: Attempts, now: Instant) -> Self {
        Self {
            last: counted,
            tried: [(now, counted.tcp)].into(),
            charged: counted.pending(),
            failures: 0,
            ejected: None,
            before: None,
            well: false,
        }
    }

    fn take(&mut self, counted: Attempts, now: Instant) {
        let last = std::mem::replace(&mut self.last, counted);
        let made = counted.made.saturating_sub(last.made);
        let failed = counted.failed.saturating_sub(last.failed);
        self.tried.push_back((now, counted.tcp));
        while self.tried.get(1).is_some_and(|(then, _)| *then + PATIENCE <= now) {
            self.tried.pop_front();
        }
        // Those that had no answer for too long failed already; now it is said by the kernel.
        let known = failed.min(self.charged);
        let unknown = counted.unknown.saturating_sub(last.unknown);
        self.charged = self
            .charged
            .saturating_sub(known + unknown)
            .min(counted.pending());
        let old = self.tried.front().filter(|(then, _)| *then + PATIENCE <= now);
        let overdue = old.map_or(0, |(_, tried)| {
            tried.saturating_sub(counted.settled() + self.charged)
        });
        self.charged += overdue;
        if made > 0 {
            self.failures = 0;
            self.well = true;
        } else if self.ejected.is_none() {
            self.failures += failed - known + overdue;
        }
    }

    fn eject(&mut self, rule: EjectRule, now: Instant) -> Option<Ejected> {
        if self.ejected.is_some() || self.failures < u64::from(rule.failures) {
            return None;
        }
        let again = self
            .before
            .filter(|(_, time, back)| !self.well || now.saturating_duration_since(*back) < *time);
        let times = again.map_or(1, |(times, ..)| (times * 2).min(LONGEST));
        let time = rule.time * times;
        let ejected = Ejected {
            failures: self.failures,
            until: now + time,
        };
        self.before = Some((times, time, ejected.until));
        self.ejected = Some(ejected);
        Some(ejected)
    }

    fn readmit(&mut self, now: Instant) -> bool {
        let was_ejected = self.ejected.take().is_some();
        if let Some((_, _, back)) = &mut self.before {
            *back = now;
        }
        self.failures = 0;
        self.well = false;
        was_ejected
    }
}
