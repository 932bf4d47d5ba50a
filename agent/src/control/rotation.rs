//! How this node goes from one WireGuard key to the next, without a packet lost.
//!
//! The next key is on the disk before anybody hears of it. Then it is in this node's record beside the current one, and
//! the process that encrypts takes packets by both. The others make sessions of it, and each goes over to them when they
//! carry; nobody waits for anybody. The old key is forgotten when all that answer have been heard by the new one and not by
//! the old one any more, or after a time that is long enough for every session of it to be over.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use weft_types::NodeId;
use weft_wireguard::Secret32;

use super::Now;

/// A node that has not answered by the new key until then has no session of the old one either: those end three minutes
/// after their handshake.
pub const LONGEST: Duration = Duration::from_secs(300);
/// Nobody is asked for so long: records are on their way.
const SETTLE: Duration = Duration::from_secs(3);
/// What an agent told the process that encrypts goes on without it, for as long as a session lasts after it was last heard.
const SESSION: Duration = Duration::from_secs(180);
/// For so long the new key has been heard, and nothing has come by the old one, when that goes: what is on its way arrives,
/// also if it was encrypted before the first word by the new key and sent after it.
const QUIET: Duration = Duration::from_secs(2);

/// This node's keys, as they are on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelKeys {
    /// How many keys this node had before.
    pub epoch: u32,
    pub current: Secret32,
    /// When it was made, in milliseconds since the Unix epoch.
    pub made_millis: u64,
    /// The one that follows, from when it was made until the current one is forgotten.
    pub next: Option<NextKey>,
}

/// The key that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextKey {
    pub key: Secret32,
    pub made_millis: u64,
}

impl TunnelKeys {
    /// Those of a node that has just come to be.
    pub fn first(key: Secret32, unix_millis: u64) -> Self {
        Self {
            epoch: 1,
            current: key,
            made_millis: unix_millis,
            next: None,
        }
    }

    /// The newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Secret32> {
        let next = self.next.iter().map(|next| &next.key);
        next.chain([&self.current])
    }

    pub(super) fn next_public(&self) -> Option<[u8; 32]> {
        Some(self.next.as_ref()?.key.public_key())
    }
}

/// A node that there are tunnels to, as seen by this one while its key changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Party {
    pub(super) node: NodeId,
    /// Whether it is believed alive. Who is not is waited for only while it may send by the old key.
    pub(super) answers: bool,
    /// Whether it was heard by the newest keys of both: then it sends by these.
    pub(super) heard_by_newest: bool,
    /// How long ago it was heard by the key that goes.
    pub(super) heard_by_old: Option<Duration>,
}

impl Party {
    fn may_have_a_session(&self) -> bool {
        self.answers || self.heard_by_old.is_some_and(|ago| ago < SESSION)
    }

    fn is_silent_by_old(&self) -> bool {
        self.heard_by_old.is_none_or(|ago| ago >= QUIET)
    }
}

/// The keys, and how far a change of them is.
pub(super) struct Rotation {
    keys: TunnelKeys,
    /// Since when the next one is told of, by this run.
    since: Option<Instant>,
    /// Since when each of the others has been heard by the newest keys.
    heard_since: BTreeMap<NodeId, Instant>,
}

impl Rotation {
    /// From the disk. A change that was interrupted goes on.
    pub(super) fn new(keys: TunnelKeys, now: Instant) -> Self {
        Self {
            since: keys.next.as_ref().map(|_| now),
            heard_since: BTreeMap::new(),
            keys,
        }
    }

    pub(super) fn keys(&self) -> &TunnelKeys {
        &self.keys
    }

    pub(super) fn is_changing(&self) -> bool {
        self.since.is_some()
    }

    /// Begins a change; false if there is one already.
    pub(super) fn begin(&mut self, fresh: Secret32, now: Now) -> bool {
        if self.is_changing() {
            return false;
        }
        self.since = Some(now.instant);
        self.heard_since.clear();
        self.keys.next = Some(NextKey {
            key: fresh,
            made_millis: now.unix_millis,
        });
        true
    }

    /// Whether the key is older than it may get, and nothing is done about that yet.
    pub(super) fn is_due(&self, every: Duration, unix_millis: u64) -> bool {
        let age = unix_millis.saturating_sub(self.keys.made_millis);
        !self.is_changing() && u128::from(age) >= every.as_millis()
    }

    /// How long the old key is kept yet, whoever has not gone over.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        Some(LONGEST.saturating_sub(now.saturating_duration_since(self.since?)))
    }

    /// Those who have not gone over, but for the dead, as of the last time that [`finish`](Self::finish) looked.
    pub(super) fn waits_for(&self, parties: &[Party], now: Instant) -> Vec<NodeId> {
        let has_been_heard = |party: &Party| {
            let since = self.heard_since.get(&party.node);
            since.is_some_and(|since| now.saturating_duration_since(*since) >= QUIET)
        };
        let is_done = |party: &Party| has_been_heard(party) && party.is_silent_by_old();
        let late = parties
            .iter()
            .filter(|party| party.may_have_a_session() && !is_done(party));
        late.map(|party| party.node).collect()
    }

    fn look(&mut self, parties: &[Party], now: Instant) {
        let heard = parties.iter().filter(|party| party.heard_by_newest);
        let since = |party: &Party| *self.heard_since.get(&party.node).unwrap_or(&now);
        self.heard_since = heard.map(|party| (party.node, since(party))).collect();
    }

    /// Forgets the old key if it is time to, and says whether it did.
    pub(super) fn finish(&mut self, parties: &[Party], now: Instant) -> bool {
        let Some(since) = self.since else {
            return false;
        };
        self.look(parties, now);
        let passed = now.saturating_duration_since(since);
        let is_over = passed >= LONGEST || (passed >= SETTLE && self.waits_for(parties, now).is_empty());
        let Some(next) = self.keys.next.take_if(|_| is_over) else {
            return false;
        };
        self.keys = TunnelKeys {
            epoch: self.keys.epoch.saturating_add(1),
            current: next.key,
            made_millis: next.made_millis,
            next: None,
        };
        self.since = None;
        true
    }
}

#[cfg(test)]
mod tests;
