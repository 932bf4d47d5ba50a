//! Asking other nodes for numbers, and answering those who ask.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weft_ipam::{Grant, Negotiation, Patience, Reply, Request, Step, Want};
use weft_types::{NetworkId, NodeId};

use super::{
    super::{
        Control, Now,
        polls::{Answer, Question},
        records::{GrantFact, SpaceKey, encode, grant_key},
    },
    Kept,
};

/// After a negotiation in vain, how long this node looks no further by itself, and makes do with
/// numbers that were released a moment ago.
const LEAN_TIME: Duration = Duration::from_secs(10);
/// Grants that fit one message; the others arrive as records.
const MAX_GRANTS_IN_REPLY: usize = 8;

/// Messages between two nodes: about numbers, and about what all are asked.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::control) enum Wire {
    Request { space: SpaceKey, request: Request },
    Reply { space: SpaceKey, reply: Reply<NodeId> },
    Question { id: u64, question: Question },
    Answer { id: u64, answer: Answer },
}

/// A negotiation under way.
pub(super) struct Quest {
    want: Want,
    negotiation: Negotiation<NodeId>,
    pub(super) wake: Instant,
}

impl Control {
    /// Asks `ask` for `want`, unless that space is being asked for already.
    pub(in crate::control) fn seek(&mut self, key: SpaceKey, want: Want, ask: Vec<NodeId>, now: Now) {
        if self.spaces.quests.contains_key(&key) {
            return;
        }
        self.spaces.next_request = self.spaces.next_request.wrapping_add(1);
        let id = self.spaces.next_request;
        let mut negotiation = Negotiation::new(
            self.me,
            id,
            want.clone(),
            ask.clone(),
            Patience::default(),
            now.instant,
        );
        for node in ask.into_iter().filter(|node| !self.serves(*node)) {
            negotiation.handle_unreachable(node);
        }
        self.spaces.quests.insert(
            key,
            Quest {
                want,
                negotiation,
                wake: now.instant,
            },
        );
        self.seek_on(now);
    }

    /// Carries every negotiation on as far as it goes now.
    pub(in crate::control) fn seek_on(&mut self, now: Now) {
        let due: Vec<SpaceKey> = self
            .spaces
            .quests
            .iter()
            .filter(|(_, quest)| quest.wake <= now.instant)
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.seek_step(key, now);
        }
    }

    fn seek_step(&mut self, key: SpaceKey, now: Now) {
        loop {
            let Some(quest) = self.spaces.quests.get_mut(&key) else {
                return;
            };
            match quest.negotiation.poll(now.instant) {
                Step::Ask { node, request } => {
                    let message = Wire::Request { space: key, request };
                    if !self.tell(node, &message, now)
                        && let Some(quest) = self.spaces.quests.get_mut(&key)
                    {
                        quest.negotiation.handle_unreachable(node);
                    }
                }
                Step::Wait(until) => {
                    quest.wake = until;
                    return;
                }
                Step::Done => {
                    self.spaces.quests.remove(&key);
                    self.resume(now);
                    self.joined_if_complete();
                    return;
                }
                Step::Failed(error) => {
                    let quest = self.spaces.quests.remove(&key).expect("looked up above");
                    let was_lean = self.spaces.lean_until.insert(key, now.instant + LEAN_TIME);
                    // Numbers released a moment ago are better than none; they are tried once.
                    if was_lean.is_none_or(|until| until <= now.instant)
                        && matches!(quest.want, Want::Any { .. })
                    {
                        self.resume(now);
                    }
                    let error = self.negotiation_failed(key, &quest.want, &error);
                    self.fail_waiting(key, &quest.want, &error, now);
                    self.joined_if_complete();
                    return;
                }
            }
        }
    }

    pub(in crate::control) fn tell(&mut self, node: NodeId, message: &Wire, now: Now) -> bool {
        let payload = postcard::to_allocvec(message).expect("a message always encodes");
        match self.gossip.send(node, payload.into(), now.instant) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "message not sent");
                false
            }
        }
    }

    pub(in crate::control) fn on_space_request(
        &mut self,
        from: NodeId,
        key: SpaceKey,
        request: Request,
        now: Now,
    ) {
        if self.spaces.stopped || self.reading_back.is_some() {
            return;
        }
        let Some(space) = self.spaces.spaces.get_mut(&key) else {
            return;
        };
        let answer = space.answer(from, &request, now.instant);
        for grant in answer.to_store().to_vec() {
            if let Err(error) = self.publish_grant(key, grant, now) {
                // Given, but not told: the numbers stay given until the next start. Nobody has them twice.
                self.problem(format!("a grant could not be published: {}", error.message));
                return;
            }
        }
        let mut reply = answer.stored();
        if let weft_ipam::Outcome::Granted(grants) = &mut reply.outcome {
            grants.truncate(MAX_GRANTS_IN_REPLY);
        }
        self.tell(from, &Wire::Reply { space: key, reply }, now);
    }

    pub(in crate::control) fn publish_grant(
        &mut self,
        key: SpaceKey,
        grant: Grant<NodeId>,
        now: Now,
    ) -> Result<(), crate::api::ApiError> {
        let fact = GrantFact {
            space: key,
            to: grant.to,
            version: grant.version,
        };
        self.publish(grant_key(key, grant.block), encode(&fact), now)
    }

    pub(in crate::control) fn on_space_reply(
        &mut self,
        from: NodeId,
        key: SpaceKey,
        reply: Reply<NodeId>,
        now: Now,
    ) {
        let grants = match self.spaces.quests.get_mut(&key) {
            Some(quest) => quest.negotiation.handle_reply(from, reply),
            // Too late for whoever asked, but the numbers are this node's now.
            None => match reply.outcome {
                weft_ipam::Outcome::Granted(grants) => grants,
                _ => Vec::new(),
            },
        };
        for grant in grants
            .into_iter()
            .filter(|grant| grant.from == from && grant.to == self.me)
        {
            let place = (from, grant_key(key, grant.block));
            self.spaces.believe(place, key, grant, now.instant);
        }
        self.note_conflicts();
        self.seek_step(key, now);
    }

    /// Makes conflicts durable and shows them.
    pub(in crate::control) fn note_conflicts(&mut self) {
        // In this turn's commit, which comes before anything that uses the numbers.
        let gained = std::mem::take(&mut self.spaces.gained).into_iter();
        self.turn
            .kept
            .extend(gained.map(|(key, grant)| (key, Kept::Grant(grant))));
        let conflicts = std::mem::take(&mut self.spaces.conflicts);
        self.turn.kept.extend(
            conflicts
                .into_iter()
                .map(|(key, conflict)| (key, Kept::Conflict(conflict))),
        );
        for complaint in std::mem::take(&mut self.spaces.complaints) {
            self.problem(complaint);
        }
    }

    /// Asks for more of what this node has run out of, before anybody waits for it: every kind of
    /// number of the cluster, and addresses of the networks it has endpoints on.
    pub(in crate::control) fn look_ahead(&mut self, now: Now) {
        if self.reading_back.is_some() || self.spaces.stopped || self.removed || self.leaving.is_some() {
            return;
        }
        let networks: std::collections::BTreeSet<NetworkId> =
            self.local_endpoints().map(|(network, _, _)| network).collect();
        let short: Vec<(SpaceKey, Vec<NodeId>)> = self
            .spaces
            .spaces
            .iter()
            .filter(|(key, _)| !matches!(key, SpaceKey::Addresses(network, _) if !networks.contains(network)))
            .filter(|(key, _)| !self.spaces.quests.contains_key(key))
            .filter(|(key, _)| !self.spaces.is_lean(**key, now.instant))
            .filter(|(_, space)| space.free_owned() == 0)
            .map(|(key, space)| {
                let owners = space
                    .shares()
                    .into_keys()
                    .filter(|node| *node != self.me && self.serves(*node));
                (*key, owners.collect())
            })
            .collect();
        for (key, ask) in short {
            if !ask.is_empty() {
                self.seek(key, Want::Any { within: None }, ask, now);
            }
        }
    }
}
