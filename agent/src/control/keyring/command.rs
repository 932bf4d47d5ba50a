//! What users ask of the keys of gossip and see of them, and the change of a key that is old.

use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use weft_gossip::KeyId;
use weft_types::NodeId;

use super::super::{
    Control, Now, Responder,
    ring::{MOST, Ring},
};
use crate::api::{
    ApiError, Timestamp,
    types::{EventKind, GossipKeyStatus},
};

/// So long who changes the key waits for all that live to have it.
const PATIENCE: Duration = Duration::from_secs(5);
/// A node that lives and does not take a key by then has something wrong.
const LONG: Duration = Duration::from_secs(30);
/// The lowest of those that live changes an old key first; if it does not, by whatever reason, the next one does so later.
const TURN: Duration = Duration::from_secs(60);

/// Somebody who changed the key and is told how far that is.
pub(super) struct Waiting {
    pub(super) until: Instant,
    responder: Responder<GossipKeyStatus>,
}

impl Control {
    /// Gives the cluster another key of gossip.
    pub(in crate::control) fn rotate_gossip_key(&mut self, responder: Responder<GossipKeyStatus>, now: Now) {
        if let Err(error) = self.may_make_key() {
            return self.reply(responder, Err(error));
        }
        self.make_key(now);
        let until = now.instant + PATIENCE;
        self.keyring.waiting.push(Waiting { until, responder });
        self.note_new_key(now);
    }

    fn may_make_key(&self) -> Result<(), ApiError> {
        if self.reading_back.is_some() {
            let message = "this node has just started, and does not know yet which keys the others have; nothing was changed";
            return Err(ApiError::unavailable(message).with_help("try again in some seconds"));
        }
        if self.keyring.ring().is_full() {
            let late = self.late_for_keys().join(", ");
            return Err(ApiError::exhausted(format!(
                "{MOST} keys are kept at most, and so many are needed because {late} has none of the newer ones; nothing was \
                 changed"
            ))
            .with_help("start the agents there; `weft node rm` takes a host out that will not come back"));
        }
        Ok(())
    }

    /// Changes a key that is older than it may get. All who are told to do so look; the lowest of the living is the first.
    pub(in crate::control) fn rotate_old_gossip_key(&mut self, now: Now) {
        let Some(every) = self.settings.rotate_gossip_key else {
            return;
        };
        let made = self.keyring.ring().newest().made_millis;
        let age = Duration::from_millis(now.unix_millis.saturating_sub(made));
        if age < every || self.removed || self.leaving.is_some() || self.may_make_key().is_err() {
            return;
        }
        let before = self.catalogue.nodes().filter(|(id, _)| *id < self.me);
        let before = before.filter(|(id, _)| self.catalogue.lives(*id)).count();
        if age >= every + TURN * before as u32 {
            self.make_key(now);
            self.note_new_key(now);
        }
    }

    /// What was made just now is on the disk with this turn, and all of the rest follows at the next look.
    fn note_new_key(&mut self, now: Now) {
        self.turn.gossip_keys = Some(self.keyring.ring().clone());
        self.keyring.changing_since.get_or_insert(now.instant);
        self.key_event(EventKind::KeyRotated);
        self.keyring.look_now(now.instant);
    }

    /// Has the disk and whoever follows events know what became of the ring.
    pub(super) fn note_ring(&mut self, before: &Ring, now: Now) {
        let ring = self.keyring.ring();
        if ring == before {
            return;
        }
        let is_newer = ring.newest() != before.newest();
        self.turn.gossip_keys = Some(ring.clone());
        if is_newer {
            self.key_event(EventKind::KeyRotated);
        }
        if self.keyring.is_changing() {
            self.keyring.changing_since.get_or_insert(now.instant);
        } else {
            self.keyring.changing_since = None;
            self.key_event(EventKind::KeySettled);
        }
    }

    fn key_event(&mut self, kind: EventKind) {
        let newest = self.keyring.ring().newest();
        let (id, name) = (shown(newest.id()), format!("gossip key {}", newest.epoch));
        self.event(kind, id, name, []);
    }

    pub(super) fn answer_who_waits(&mut self, now: Now) {
        let late = self.keyring.lacking(self.ground());
        let is_over = !late.into_iter().any(|node| self.catalogue.lives(node));
        let waiting = std::mem::take(&mut self.keyring.waiting);
        for waiting in waiting {
            if is_over || waiting.until <= now.instant {
                let status = self.gossip_key_status();
                self.reply(waiting.responder, Ok(status));
            } else {
                self.keyring.waiting.push(waiting);
            }
        }
    }

    fn late_for_keys(&self) -> Vec<String> {
        let late = self.keyring.lacking(self.ground());
        late.into_iter()
            .map(|node| self.catalogue.node_name(node))
            .collect()
    }

    pub(in crate::control) fn gossip_key_status(&self) -> GossipKeyStatus {
        let ring = self.keyring.ring();
        GossipKeyStatus {
            epoch: ring.newest().epoch,
            id: shown(ring.newest().id()),
            made: Timestamp::from_unix_millis(ring.newest().made_millis),
            kept: ring.newest_first().len() as u32,
            waiting_for: self.late_for_keys(),
        }
    }

    /// What is wrong with the keys of gossip, a sentence each.
    pub(in crate::control) fn gossip_key_problems(&self, now: Now) -> Vec<String> {
        let mut problems = Vec::new();
        let since = self.keyring.changing_since;
        let is_long = since.is_some_and(|since| now.instant.saturating_duration_since(since) >= LONG);
        let late = self.keyring.lacking(self.ground());
        let late: Vec<NodeId> = late
            .into_iter()
            .filter(|node| self.catalogue.lives(*node))
            .collect();
        if is_long && !late.is_empty() {
            let names: Vec<_> = late.iter().map(|node| self.catalogue.node_name(*node)).collect();
            problems.push(format!(
                "{} answers and has not taken the newest gossip key: is its agent an older version?",
                names.join(", ")
            ));
        }
        if self.settings.rotate_gossip_key.is_some() && self.keyring.ring().is_full() {
            problems.push(format!(
                "the gossip key is not changed on schedule any more, because {MOST} are kept for {}; `weft node rm` takes a \
                 host out that will not come back",
                self.late_for_keys().join(", ")
            ));
        }
        let has_peers = self.catalogue.members().any(|node| node != self.me);
        let is_alone = !self
            .catalogue
            .members()
            .any(|node| self.catalogue.lives(node) && node != self.me);
        if has_peers && is_alone && self.gossip.stats().foreign > 0 {
            problems.push(
                "no other node answers, and what arrives is sealed by a key that this node does not have. Was its data directory \
                 set back to a time before the gossip key changed? Then `weft leave` here, `weft node rm` there, and join again"
                    .to_owned(),
            );
        }
        problems
    }
}

fn shown(id: KeyId) -> String {
    HEXLOWER.encode(&id.0[..8])
}
