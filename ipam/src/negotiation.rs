use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{Grant, Node, Outcome, Refusal, Reply, Request, Want};

/// How often one owner is asked in one negotiation: again when it was silent, and again when another
/// owner names it.
const MAX_ASKS: u8 = 3;

/// How long a negotiation waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For the answer of one owner, before the next is asked.
    pub each: Duration,
    /// For all of it.
    pub overall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            each: Duration::from_millis(700),
            overall: Duration::from_secs(4),
        }
    }
}

/// Asks owners for numbers, one after another, in bounded time.
///
/// ```text
///            handle_unreachable, time-out           candidates left
/// Ask(owner) ─────────────────────────────▶ next ──────────────────▶ Ask(next owner)
///     │ handle_reply                          │ none left, or overall deadline
///     ├─ granted ──▶ Done                     └──────▶ Failed
///     ├─ elsewhere ─▶ those are next
///     └─ refused ──▶ next
/// ```
///
/// A block may have several owners and each must give its part, so for [`Want::Block`] the negotiation
/// is done when all have granted, and fails as soon as one refuses.
#[derive(Debug, Clone)]
pub struct Negotiation<N> {
    me: N,
    request: Request,
    patience: Patience,
    deadline: Instant,
    candidates: VecDeque<N>,
    asked: BTreeMap<N, (u8, Result<(), Why>)>,
    waiting: Option<(N, Instant)>,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Failed,
}

/// What the caller does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<N: Node> {
    /// Send the request to this node, then poll again.
    Ask {
        /// To whom.
        node: N,
        /// What.
        request: Request,
    },
    /// Poll again when something was handled, at this time at the latest.
    Wait(Instant),
    /// Numbers were granted: try the allocation or the claim again.
    Done,
    /// Nobody gave any.
    Failed(NegotiationError<N>),
}

/// Why an owner that was asked, or should have been, gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It is known not to be reachable.
    #[error("is not reachable")]
    Unreachable,
    /// It did not answer in time.
    #[error("did not answer in time")]
    Silent,
    /// The time was up before its turn came.
    #[error("was not asked before the time was up")]
    NotAsked,
    /// It named other nodes.
    #[error("does not own any free number there")]
    Elsewhere,
    /// It refused.
    #[error("{0}")]
    Refused(Refusal),
}

/// Nobody gave what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no owner granted it: {}", list(owners))]
pub struct NegotiationError<N: Node> {
    /// Every owner that could have, and why it did not.
    pub owners: Vec<(N, Why)>,
}

impl<N: Node> Negotiation<N> {
    /// Asks the nodes of `ask`, in this order. `id` must be new for each negotiation of one start.
    pub fn new(
        me: N,
        id: u64,
        want: Want,
        ask: impl IntoIterator<Item = N>,
        patience: Patience,
        now: Instant,
    ) -> Self {
        let mut seen = BTreeSet::from([me]);
        Self {
            me,
            request: Request { id, want },
            patience,
            deadline: now + patience.overall,
            candidates: ask.into_iter().filter(|node| seen.insert(*node)).collect(),
            asked: BTreeMap::new(),
            waiting: None,
            end: None,
        }
    }

    /// Takes an answer in, however late, and returns the grants in it: make them durable, then merge
    /// them, whatever the negotiation has come to.
    pub fn handle_reply(&mut self, from: N, reply: Reply<N>) -> Vec<Grant<N>> {
        let grants = match &reply.outcome {
            Outcome::Granted(grants) => grants.clone(),
            _ => Vec::new(),
        };
        if reply.id != self.request.id || self.end.is_some() || !self.asked.contains_key(&from) {
            return grants;
        }
        if self.waiting.is_some_and(|(node, _)| node == from) {
            self.waiting = None;
        }
        // A late answer makes a second question needless.
        self.candidates.retain(|node| *node != from);
        let outcome = match reply.outcome {
            Outcome::Granted(_) => Ok(()),
            Outcome::Refused(refusal) => Err(Why::Refused(refusal)),
            Outcome::Elsewhere(nodes) => {
                for node in nodes.into_iter().rev() {
                    self.prefer(node, from);
                }
                Err(Why::Elsewhere)
            }
        };
        self.note(from, outcome);
        let needs_all = matches!(self.request.want, Want::Block(_));
        match outcome {
            Ok(()) if !needs_all => self.end = Some(End::Done),
            Err(Why::Refused(_)) if needs_all => self.end = Some(End::Failed),
            _ => {}
        }
        grants
    }

    /// Notes that `node` cannot be asked, or cannot answer any more.
    pub fn handle_unreachable(&mut self, node: N) {
        if self.waiting.is_some_and(|(waiting, _)| waiting == node) {
            self.waiting = None;
        } else if !self.candidates.contains(&node) {
            return;
        }
        self.candidates.retain(|candidate| *candidate != node);
        self.note(node, Err(Why::Unreachable));
    }

    /// What to do now.
    pub fn poll(&mut self, now: Instant) -> Step<N> {
        if self.end.is_none() && now >= self.deadline {
            if let Some((node, _)) = self.waiting.take() {
                self.note(node, Err(Why::Silent));
            }
            self.end = Some(End::Failed);
        }
        match self.end {
            Some(End::Done) => return Step::Done,
            Some(End::Failed) => return Step::Failed(self.error()),
            None => {}
        }
        if let Some((node, until)) = self.waiting {
            if now < until {
                return Step::Wait(until.min(self.deadline));
            }
            self.waiting = None;
            self.note(node, Err(Why::Silent));
            // The question or the answer may have been lost; ask once more when all others were asked.
            if self.times_asked(node) < 2 {
                self.candidates.push_back(node);
            }
        }
        if let Some(node) = self.candidates.pop_front() {
            let times = self.times_asked(node) + 1;
            self.asked.insert(node, (times, Err(Why::Silent)));
            self.waiting = Some((node, now + self.patience.each));
            return Step::Ask {
                node,
                request: self.request.clone(),
            };
        }
        let all_granted = !self.asked.is_empty() && self.asked.values().all(|(_, outcome)| outcome.is_ok());
        let redirected = |(_, outcome): &(u8, Result<(), Why>)| *outcome == Err(Why::Elsewhere);
        let any_granted = self.asked.values().any(|(_, outcome)| outcome.is_ok());
        // Who sent us elsewhere owns no part of the block any more, and those it named were asked.
        let rest_redirected = self
            .asked
            .values()
            .all(|asked| asked.1.is_ok() || redirected(asked));
        if all_granted || (any_granted && rest_redirected) {
            self.end = Some(End::Done);
            return Step::Done;
        }
        self.end = Some(End::Failed);
        Step::Failed(self.error())
    }

    /// Makes a node that another one named the next to ask.
    fn prefer(&mut self, node: N, named_by: N) {
        if node == self.me || node == named_by {
            return;
        }
        let answered = self.asked.get(&node).is_some_and(|(_, outcome)| outcome.is_ok());
        let waiting = self.waiting.is_some_and(|(waiting, _)| waiting == node);
        if answered || waiting || self.times_asked(node) >= MAX_ASKS {
            return;
        }
        self.candidates.retain(|candidate| *candidate != node);
        self.candidates.push_front(node);
    }

    fn note(&mut self, node: N, outcome: Result<(), Why>) {
        let times = self.times_asked(node);
        self.asked.insert(node, (times, outcome));
    }

    fn times_asked(&self, node: N) -> u8 {
        self.asked.get(&node).map_or(0, |(times, _)| *times)
    }

    fn error(&self) -> NegotiationError<N> {
        let mut owners: Vec<_> = self
            .asked
            .iter()
            .filter_map(|(node, (_, outcome))| Some((*node, outcome.err()?)))
            .collect();
        let not_asked = self
            .candidates
            .iter()
            .filter(|node| !self.asked.contains_key(node));
        owners.extend(not_asked.map(|node| (*node, Why::NotAsked)));
        NegotiationError { owners }
    }
}

fn list<N: Node>(owners: &[(N, Why)]) -> String {
    if owners.is_empty() {
        return "no other node owns any".to_owned();
    }
    let owners: Vec<_> = owners
        .iter()
        .map(|(node, why)| format!("{node:?} {why}"))
        .collect();
    owners.join(", ")
}
