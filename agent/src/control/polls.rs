//! Asking every node of the cluster one thing, and answering those who ask.
//!
//! So a change is acknowledged and not assumed: whoever made it asks all nodes whether it is in force in their
//! kernels, and knows who has not said so. A node that is believed dead is not asked, and not waited for.
//!
//! Questions and answers are datagrams between two nodes, not records: what matters to one who waits is nobody
//! else's business, and a record of every node about every change would be told to every node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use weft_gossip::Key;
use weft_types::NodeId;

use super::{Control, HostReport, Now, Responder, records::Kind, spaces::Wire};
use crate::api::types::{ServiceChanged, ServiceRemoveResponse, ServiceSummary, Unconfirmed};

/// How long those are waited for who have not said that a change is in force.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A question or its answer may be lost: whoever has not answered is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long a question is kept that cannot be answered yet. Whoever asked asks again, or has given up.
const KEPT: Duration = Duration::from_secs(2);
/// Questions kept at most; those beyond are answered when they are asked again.
const MAX_KEPT: usize = 1024;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Question {
    /// Whether this record, or a later one under its key, is in force in the kernel.
    InForce { author: NodeId, key: Key, version: u64 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is, or the kernel did not take it, and why.
    InForce(Result<(), String>),
}

/// What is done when all have answered, or have had time enough.
pub(super) enum Then {
    ServiceSet(ServiceSummary, Responder<ServiceChanged>),
    ServiceRemoved(ServiceRemoveResponse, Responder<ServiceRemoveResponse>),
}

struct Poll {
    question: Question,
    missing: BTreeSet<NodeId>,
    refused: BTreeMap<NodeId, String>,
    deadline: Instant,
    ask_at: Instant,
    then: Then,
}

/// A question whose answer is not known yet.
struct Kept {
    from: NodeId,
    id: u64,
    question: Question,
    until: Instant,
    /// The host state that has the record in it, once this node has the record.
    generation: Option<u64>,
}

#[derive(Default)]
pub(super) struct Polls {
    next: u64,
    open: BTreeMap<u64, Poll>,
    kept: Vec<Kept>,
    /// The last host state that was applied, and why the kernel did not take all of it.
    applied: u64,
    refused: Option<String>,
}

impl Polls {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let times = self.open.values().map(|poll| poll.deadline.min(poll.ask_at));
        times.min()
    }
}

impl Control {
    /// Waits until what this node says under `key` is in force on every node, or has had time enough to be.
    pub(super) fn once_in_force(&mut self, key: Key, then: Then, now: Now) {
        let version = self.gossip.get(&self.me, &key).map_or(0, |record| record.version);
        let question = Question::InForce {
            author: self.me,
            key,
            version,
        };
        self.ask_all(question, PATIENCE, then, now);
    }

    fn ask_all(&mut self, question: Question, patience: Duration, then: Then, now: Now) {
        self.polls.next += 1;
        let id = self.polls.next;
        let nodes = self.catalogue.nodes().map(|(node, _)| node);
        let poll = Poll {
            question,
            missing: nodes.filter(|node| self.serves(*node)).collect(),
            refused: BTreeMap::new(),
            deadline: now.instant + patience,
            ask_at: now.instant,
            then,
        };
        self.polls.open.insert(id, poll);
        self.poll_on(now);
    }

    /// Carries every poll on as far as it goes now.
    pub(super) fn poll_on(&mut self, now: Now) {
        let due = |poll: &&Poll| poll.deadline.min(poll.ask_at) <= now.instant;
        let ids: Vec<u64> = self
            .polls
            .open
            .iter()
            .filter(|(_, poll)| due(poll))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(mut poll) = self.polls.open.remove(&id) else {
                continue;
            };
            poll.missing.retain(|node| self.serves(*node));
            if poll.missing.is_empty() || poll.deadline <= now.instant {
                self.conclude(poll, now);
                continue;
            }
            poll.ask_at = now.instant + ASK_AGAIN;
            let (question, missing) = (poll.question.clone(), poll.missing.clone());
            self.polls.open.insert(id, poll);
            for node in missing {
                if node == self.me {
                    self.on_question(node, id, question.clone(), now);
                } else {
                    let question = question.clone();
                    self.tell(node, &Wire::Question { id, question }, now);
                }
            }
        }
    }

    pub(super) fn on_question(&mut self, from: NodeId, id: u64, question: Question, now: Now) {
        let is_kept = |kept: &Kept| kept.from == from && kept.id == id;
        self.polls.kept.retain(|kept| kept.until > now.instant);
        if self.polls.kept.iter().any(is_kept) || self.polls.kept.len() >= MAX_KEPT {
            return;
        }
        self.polls.kept.push(Kept {
            from,
            id,
            question,
            until: now.instant + KEPT,
            generation: None,
        });
    }

    /// Answers the questions whose answers are known by now. True if there were some.
    pub(super) fn answer_kept(&mut self, now: Now) -> bool {
        let kept = std::mem::take(&mut self.polls.kept);
        let mut known = Vec::new();
        for mut question in kept {
            match self.answer_to(&mut question) {
                Some(answer) => known.push((question.from, question.id, answer)),
                None => self.polls.kept.push(question),
            }
        }
        let any = !known.is_empty();
        for (from, id, answer) in known {
            if from == self.me {
                self.on_answer(from, id, answer, now);
            } else {
                self.tell(from, &Wire::Answer { id, answer }, now);
            }
        }
        any
    }

    fn answer_to(&self, kept: &mut Kept) -> Option<Answer> {
        let Question::InForce { author, key, version } = &kept.question;
        if self.reading_back.is_some() {
            return None;
        }
        let is_known = || {
            let record = self.gossip.get(author, key);
            record.is_some_and(|record| record.version >= *version)
        };
        // A service may publish ports on a network that this node first needs an address of.
        if Kind::of(key) == Some(Kind::Service) && self.is_entering(key.scope) {
            return None;
        }
        if kept.generation.is_none() && is_known() {
            // A turn that is still being made has raised it already.
            kept.generation = Some(self.generation);
        }
        let is_applied = kept.generation? <= self.polls.applied;
        is_applied.then(|| Answer::InForce(self.polls.refused.clone().map_or(Ok(()), Err)))
    }

    pub(super) fn on_answer(&mut self, from: NodeId, id: u64, answer: Answer, now: Now) {
        let Some(poll) = self.polls.open.get_mut(&id) else {
            return;
        };
        if !poll.missing.remove(&from) {
            return;
        }
        let Answer::InForce(result) = answer;
        if let Err(reason) = result {
            poll.refused.insert(from, reason);
        }
        if poll.missing.is_empty()
            && let Some(poll) = self.polls.open.remove(&id)
        {
            self.conclude(poll, now);
        }
    }

    /// Takes note of what the kernel has taken.
    pub(super) fn note_applied(&mut self, report: &HostReport) {
        if report.generation >= self.polls.applied {
            self.polls.applied = report.generation;
            self.polls.refused.clone_from(&report.unbalanced);
        }
    }

    fn conclude(&mut self, poll: Poll, _now: Now) {
        let silent = poll.missing.into_iter().map(|node| {
            let reason = format!("no answer within {} s", PATIENCE.as_secs());
            (node, reason)
        });
        let unconfirmed: Vec<Unconfirmed> = (poll.refused.into_iter().chain(silent))
            .map(|(node, reason)| Unconfirmed {
                node_id: node,
                node_name: self.catalogue.node_name(node),
                reason,
            })
            .collect();
        match poll.then {
            Then::ServiceSet(summary, to) => self.reply(to, Ok(ServiceChanged { summary, unconfirmed })),
            Then::ServiceRemoved(mut response, to) => {
                response.unconfirmed = unconfirmed;
                self.reply(to, Ok(response));
            }
        }
    }
}

#[cfg(test)]
mod tests;
