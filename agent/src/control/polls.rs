//! Asking every node of the cluster one thing, and answering those who ask.
//!
//! So a change is acknowledged and not assumed: whoever made it asks all nodes whether it is in force in their
//! kernels, and knows who has not said so. A node that is believed dead is not asked, and not waited for; one whose agent
//! is away is named without waiting.
//!
//! Questions and answers are datagrams between two nodes, not records: what matters to one who waits is nobody
//! else's business, and a record of every node about every change would be told to every node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use weft_gossip::Key;
use weft_types::{EndpointId, NetworkId, NodeId, ServiceId};

use super::{
    Control, HostReport, Now, Responder,
    doctor::{Expected, Said, Views},
    drain::Draining,
    records::{Drainee, Kind},
    spaces::Wire,
    sums::{Part, Sums},
    traffic::Traffic,
};
use crate::api::types::{
    EndpointActivateResponse, NodeActivateResponse, NodeState, ServiceChanged, ServiceDetail,
    ServiceRemoveResponse, ServiceSummary, Unconfirmed,
};

/// How long those are waited for who have not said that a change is in force.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long somebody who looks waits for those who have not said how many connections are open.
pub(super) const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// A question or its answer may be lost: whoever has not answered is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long a question is kept that cannot be answered yet. Whoever asked asks again, or has given up.
const KEPT: Duration = Duration::from_secs(2);
/// Questions kept at most; those beyond are answered when they are asked again.
const MAX_KEPT: usize = 1024;
/// What is said of a node whose agent is away.
const AWAY: &str = "its agent is away; it hears of this when it is back";
/// Counts that fit one message; for the others the rest is asked for.
const MAX_COUNTS: usize = 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Question {
    /// Whether this record, or a later one under its key, is in force in the kernel.
    InForce { author: NodeId, key: Key, version: u64 },
    /// To which backends this node's clients have connections, and how many, in the order of their ids.
    Open { of: Backends, after: Option<EndpointId> },
    /// What this node believes.
    Examine,
    /// How many connections this node's clients have to each service, of one network or of all.
    Sums { of: Option<NetworkId> },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is, or the kernel did not take it, and why.
    InForce(Result<(), String>),
    Open {
        counts: Vec<(EndpointId, Traffic)>,
        /// Whether there are others after these.
        more: bool,
    },
    Examine(Said),
    Sums(Part),
}

/// Whose connections are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Backends {
    Drained(Drainee),
    Service(NetworkId, ServiceId),
}

/// Connections that the host is to count; what it found goes to [`Control::handle_counted`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountOrder {
    pub(super) asker: NodeId,
    pub(super) id: u64,
    /// Whose backends they are.
    pub services: BTreeSet<ServiceId>,
    /// Whether what was tried so far is asked for too, and not only what is open.
    pub with_attempts: bool,
    pub(super) backends: BTreeSet<EndpointId>,
    /// Whether the answer is one number for each service.
    pub(super) summed: bool,
}

/// What is done when all have answered, or have had time enough.
pub(super) enum Then {
    ServiceSet(ServiceSummary, Responder<ServiceChanged>),
    ServiceRemoved(ServiceRemoveResponse, Responder<ServiceRemoveResponse>),
    Inspected(Box<ServiceDetail>, Responder<ServiceDetail>),
    Listed(Vec<ServiceSummary>, Responder<Vec<ServiceSummary>>),
    Drain(Box<Draining>),
    EndpointActivated(NetworkId, EndpointId, Responder<EndpointActivateResponse>),
    NodeActivated(NodeActivateResponse, Responder<NodeActivateResponse>),
    Examined(Responder<Box<Expected>>),
}

/// What came of asking.
pub(super) struct Outcome {
    /// Who did not answer, or could not.
    pub(super) unconfirmed: Vec<Unconfirmed>,
    pub(super) counts: BTreeMap<NodeId, BTreeMap<EndpointId, Traffic>>,
    pub(super) views: Views,
    pub(super) sums: Sums,
}

struct Poll {
    question: Question,
    missing: BTreeSet<NodeId>,
    refused: BTreeMap<NodeId, String>,
    counts: BTreeMap<NodeId, BTreeMap<EndpointId, Traffic>>,
    views: Views,
    sums: Sums,
    patience: Duration,
    deadline: Instant,
    ask_at: Instant,
    then: Then,
}

/// A question whose answer is not known yet.
struct Kept {
    from: NodeId,
    id: u64,
    author: NodeId,
    key: Key,
    version: u64,
    until: Instant,
    /// The host state that has the record in it, once this node has the record.
    generation: Option<u64>,
}

#[derive(Default)]
pub(super) struct Polls {
    next: u64,
    open: BTreeMap<u64, Poll>,
    kept: Vec<Kept>,
    /// Counts that the host has been told to make, by who asked. With many connections one takes longer than a question
    /// is asked once.
    pub(super) counting: BTreeSet<(NodeId, u64)>,
    /// The last host state that was applied, and why the kernel did not take all of it.
    applied: u64,
    refused: Option<String>,
}

impl Polls {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let times = self.open.values().map(|poll| poll.deadline.min(poll.ask_at));
        times.min()
    }

    /// Whether the kernel has taken a state of this agent.
    pub(super) fn has_applied(&self) -> bool {
        self.applied > 0
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
        self.ask(question, self.members(), PATIENCE, then, now);
    }

    /// Counts the connections that clients on these nodes have open.
    pub(super) fn count_open(
        &mut self,
        of: Backends,
        on: BTreeSet<NodeId>,
        patience: Duration,
        then: Then,
        now: Now,
    ) {
        let question = Question::Open { of, after: None };
        self.ask(question, on, patience, then, now);
    }

    /// Who is to be asked: whoever is not believed dead, this node among them.
    pub(super) fn members(&self) -> BTreeSet<NodeId> {
        let nodes = self.catalogue.nodes().map(|(node, _)| node);
        nodes.filter(|node| self.serves(*node)).collect()
    }

    pub(super) fn ask(
        &mut self,
        question: Question,
        missing: BTreeSet<NodeId>,
        patience: Duration,
        then: Then,
        now: Now,
    ) {
        self.polls.next += 1;
        let id = self.polls.next;
        let poll = Poll {
            question,
            missing,
            refused: BTreeMap::new(),
            counts: BTreeMap::new(),
            views: Views::new(),
            sums: Sums::default(),
            patience,
            deadline: now.instant + patience,
            ask_at: now.instant,
            then,
        };
        self.polls.open.insert(id, poll);
        self.poll_on(now);
    }

    /// Carries every poll on as far as it goes now.
    pub(super) fn poll_on(&mut self, now: Now) {
        let due = |poll: &Poll| poll.deadline.min(poll.ask_at) <= now.instant;
        let polls = self.polls.open.iter();
        let ids: Vec<u64> = polls.filter(|(_, poll)| due(poll)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(mut poll) = self.polls.open.remove(&id) else {
                continue;
            };
            poll.missing.retain(|node| self.serves(*node));
            // Nobody is there to answer, and what the kernel has is what it had.
            for node in poll
                .missing
                .extract_if(.., |node| self.node_state(*node) == NodeState::Away)
            {
                poll.refused.insert(node, AWAY.to_owned());
            }
            if poll.missing.is_empty() || poll.deadline <= now.instant {
                self.conclude(poll, now);
                continue;
            }
            poll.ask_at = now.instant + ASK_AGAIN;
            let (question, missing) = (poll.question.clone(), poll.missing.clone());
            self.polls.open.insert(id, poll);
            for node in missing {
                self.put(node, id, question.clone(), now);
            }
        }
    }

    fn put(&mut self, node: NodeId, id: u64, question: Question, now: Now) {
        if node == self.me {
            self.on_question(node, id, question, now);
        } else {
            self.tell(node, &Wire::Question { id, question }, now);
        }
    }

    pub(super) fn give(&mut self, node: NodeId, id: u64, answer: Answer, now: Now) {
        if node == self.me {
            self.on_answer(node, id, answer, now);
        } else {
            self.tell(node, &Wire::Answer { id, answer }, now);
        }
    }

    pub(super) fn on_question(&mut self, from: NodeId, id: u64, question: Question, now: Now) {
        match question {
            Question::InForce { author, key, version } => {
                let is_same = |kept: &Kept| kept.from == from && kept.id == id;
                self.polls.kept.retain(|kept| kept.until > now.instant);
                if self.polls.kept.len() < MAX_KEPT && !self.polls.kept.iter().any(is_same) {
                    self.polls.kept.push(Kept {
                        from,
                        id,
                        author,
                        key,
                        version,
                        until: now.instant + KEPT,
                        generation: None,
                    });
                }
            }
            Question::Open { of, after } => {
                if !self.polls.counting.insert((from, id)) {
                    return;
                }
                let (services, mut backends) = self.backends_of(of);
                backends.retain(|endpoint| after.is_none_or(|after| *endpoint > after));
                self.turn.counts.push(CountOrder {
                    asker: from,
                    id,
                    services,
                    with_attempts: matches!(of, Backends::Service(..)),
                    backends,
                    summed: false,
                });
            }
            Question::Sums { of } => self.order_sums(from, id, of),
            Question::Examine => {
                let said = self.said(now);
                self.give(from, id, Answer::Examine(said), now);
            }
        }
    }

    /// The services that have these backends, and the backends themselves.
    fn backends_of(&self, of: Backends) -> (BTreeSet<ServiceId>, BTreeSet<EndpointId>) {
        let (mut services, mut backends) = (BTreeSet::new(), BTreeSet::new());
        for (service, spec) in self.catalogue.all_services() {
            for (id, endpoint) in self.catalogue.endpoints(spec.network) {
                let is_meant = match of {
                    Backends::Service(network, wanted) => (network, wanted) == (spec.network, service),
                    Backends::Drained(Drainee::Endpoint(network, wanted)) => {
                        (network, wanted) == (spec.network, id)
                    }
                    Backends::Drained(Drainee::Node(node)) => node == endpoint.node,
                };
                if is_meant && endpoint.spec.service.as_deref() == Some(&spec.name) {
                    services.insert(service);
                    backends.insert(id);
                }
            }
        }
        (services, backends)
    }

    /// What the host has counted; without an answer it is asked again.
    pub fn handle_counted(
        &mut self,
        order: CountOrder,
        counted: Option<&BTreeMap<EndpointId, Traffic>>,
        now: Now,
    ) {
        self.polls.counting.remove(&(order.asker, order.id));
        let Some(counted) = counted else { return };
        if order.summed {
            return self.tell_sums(&order, counted, now);
        }
        let counted = counted.iter().map(|(endpoint, count)| (*endpoint, *count));
        let mut counts: BTreeMap<EndpointId, Traffic> = counted
            .filter(|(endpoint, _)| order.backends.contains(endpoint))
            .collect();
        for endpoint in order.backends.iter().filter(|_| order.with_attempts) {
            if let Some(ejected) = self.ejected_until(*endpoint, now) {
                counts.entry(*endpoint).or_default().ejected = Some(ejected);
            }
        }
        counts.retain(|_, count| *count != Traffic::default());
        let mut counts: Vec<_> = counts.into_iter().collect();
        let more = counts.len() > MAX_COUNTS;
        counts.truncate(MAX_COUNTS);
        self.give(order.asker, order.id, Answer::Open { counts, more }, now);
        self.settle(now);
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
            self.give(from, id, answer, now);
        }
        any
    }

    fn answer_to(&self, kept: &mut Kept) -> Option<Answer> {
        if self.reading_back.is_some() {
            return None;
        }
        let is_known = || {
            let record = self.gossip.get(&kept.author, &kept.key);
            record.is_some_and(|record| record.version >= kept.version)
        };
        // A service may publish ports on a network that this node first needs an address of.
        if Kind::of(&kept.key) == Some(Kind::Service) && self.is_entering(kept.key.scope) {
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
        let view = match &answer {
            Answer::Examine(said) => Some(self.peer_view(said.clone(), now)),
            Answer::InForce(_) | Answer::Open { .. } | Answer::Sums(_) => None,
        };
        let Some(poll) = self.polls.open.get_mut(&id) else {
            return;
        };
        if !poll.missing.contains(&from) {
            return;
        }
        poll.views.extend(view.map(|view| (from, view)));
        match answer {
            Answer::Sums(part) => {
                if !poll.sums.take(from, part) {
                    return;
                }
            }
            Answer::Examine(_) => {}
            Answer::InForce(result) => poll.refused.extend(result.err().map(|reason| (from, reason))),
            Answer::Open { counts, more } => {
                let last = counts.last().map(|(endpoint, _)| *endpoint);
                poll.counts.entry(from).or_default().extend(counts);
                if let (true, Question::Open { of, .. }) = (more, &poll.question) {
                    let rest = Question::Open { of: *of, after: last };
                    return self.put(from, id, rest, now);
                }
            }
        }
        poll.missing.remove(&from);
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

    fn conclude(&mut self, poll: Poll, now: Now) {
        let silent = poll.missing.into_iter().map(|node| {
            let reason = format!("no answer within {} s", poll.patience.as_secs_f32());
            (node, reason)
        });
        let unconfirmed: Vec<Unconfirmed> = (poll.refused.into_iter().chain(silent))
            .map(|(node, reason)| Unconfirmed {
                node_id: node,
                node_name: self.catalogue.node_name(node),
                reason,
            })
            .collect();
        let outcome = Outcome {
            unconfirmed,
            counts: poll.counts,
            views: poll.views,
            sums: poll.sums,
        };
        match poll.then {
            Then::ServiceSet(summary, to) => self.reply(
                to,
                Ok(ServiceChanged {
                    summary,
                    unconfirmed: outcome.unconfirmed,
                }),
            ),
            Then::ServiceRemoved(mut response, to) => {
                response.unconfirmed = outcome.unconfirmed;
                self.reply(to, Ok(response));
            }
            Then::Inspected(detail, to) => {
                let detail = self.with_counts(*detail, outcome);
                self.reply(to, Ok(detail));
            }
            Then::Listed(services, to) => {
                let services = outcome.sums.add_to(services, &outcome.unconfirmed);
                self.reply(to, Ok(services));
            }
            Then::EndpointActivated(network, id, to) => {
                let result = self.endpoint_activated(network, id, outcome.unconfirmed);
                self.reply(to, result);
            }
            Then::NodeActivated(mut response, to) => {
                response.unconfirmed = outcome.unconfirmed;
                self.reply(to, Ok(response));
            }
            Then::Drain(drain) => self.drain_on(*drain, outcome, now),
            Then::Examined(to) => {
                let expected = self.expected(outcome, now);
                self.reply(to, Ok(Box::new(expected)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
