use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    time::Instant,
};

use crate::{
    Block, Grant, Node, Outcome, Refusal, Reply, Request, Space, Want,
    faults::{Fault, planted},
    runs::Runs,
};

/// The most grants in one answer: they fit one packet.
const MAX_GRANTS: usize = 12;
/// The most blocks given for [`Want::Any`], so that the set of grants stays small.
const MAX_PIECES: usize = 4;
/// How many nodes' last answers are kept for repetition.
const MAX_ANSWERED: usize = 256;
/// The most nodes named in an answer.
const MAX_ELSEWHERE: usize = 12;

/// Grants that are made but not yet durable. They count as given from now on; whoever crashes before
/// storing them still owns the numbers, for nobody has seen the grants.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "store the grants, then send them"]
pub struct Given<N> {
    grants: Vec<Grant<N>>,
}

/// A reply whose grants are made but not yet durable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "store the grants, then send the reply"]
pub struct Answer<N> {
    reply: Reply<N>,
}

/// Why nothing was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GiveError<N: Node> {
    /// Other nodes own it, or may have free numbers where this one has none.
    #[error("this node has none to give there; {owners:?} may")]
    Elsewhere {
        /// Whom to ask, the most promising first.
        owners: Vec<N>,
    },
    /// It cannot be given.
    #[error("this node {0}")]
    Refused(Refusal),
}

/// The last answer with grants to each node, for requests that come again.
#[derive(Debug, Clone)]
pub(crate) struct Answered<N> {
    last: BTreeMap<N, (u64, Vec<Grant<N>>)>,
    order: VecDeque<N>,
}

impl<N> Default for Answered<N> {
    fn default() -> Self {
        Self {
            last: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<N> Given<N> {
    /// What must be durable before it is sent.
    pub fn to_store(&self) -> &[Grant<N>] {
        &self.grants
    }

    /// The grants to send and publish, now that they are durable.
    pub fn stored(self) -> Vec<Grant<N>> {
        self.grants
    }
}

impl<N> Answer<N> {
    /// What must be durable before the reply is sent; often nothing.
    pub fn to_store(&self) -> &[Grant<N>] {
        match &self.reply.outcome {
            Outcome::Granted(grants) => grants,
            _ => &[],
        }
    }

    /// The reply to send, now that its grants are durable.
    pub fn stored(self) -> Reply<N> {
        self.reply
    }
}

impl<N: Node> Space<N> {
    /// Answers a request of `to`. A request that comes again gets the same grants again.
    pub fn answer(&mut self, to: N, request: &Request, now: Instant) -> Answer<N> {
        let id = request.id;
        let outcome = match self.answered.again(to, id) {
            Some(grants) => Outcome::Granted(grants),
            None => match self.give(to, &request.want, now) {
                Ok(given) => {
                    self.answered.note(to, id, given.grants.clone());
                    Outcome::Granted(given.grants)
                }
                Err(GiveError::Elsewhere { mut owners }) => {
                    owners.truncate(MAX_ELSEWHERE);
                    Outcome::Elsewhere(owners)
                }
                Err(GiveError::Refused(refusal)) => Outcome::Refused(refusal),
            },
        };
        Answer {
            reply: Reply { id, outcome },
        }
    }

    /// Gives numbers of this node's own to `to`: of [`Want::Any`] about half of what is free.
    ///
    /// Numbers in use, reserved or quarantined are never given, those released just now only when there
    /// are no others. What this node already gave to `to` is given again as the same grants.
    pub fn give(&mut self, to: N, want: &Want, now: Instant) -> Result<Given<N>, GiveError<N>> {
        let pieces = match want {
            Want::Any { within } => {
                let range = self
                    .clip(within.as_ref())
                    .ok_or(GiveError::Refused(Refusal::OutOfRange))?;
                let pieces = match to == self.me {
                    true => Vec::new(),
                    false => self.spare(range.clone(), now),
                };
                if pieces.is_empty() {
                    let mut owners = self.who_may_have_free(&range);
                    owners.retain(|owner| *owner != to);
                    return Err(match owners.is_empty() {
                        true => GiveError::Refused(Refusal::NoSpace),
                        false => GiveError::Elsewhere { owners },
                    });
                }
                pieces
            }
            Want::Number(number) => self.exactly(to, Block::single(*number))?,
            Want::Block(block) => self.exactly(to, *block)?,
        };
        let grants = self.grant(to, pieces);
        match grants.is_empty() {
            true => Err(GiveError::Refused(Refusal::Spent)),
            false => Ok(Given { grants }),
        }
    }

    /// Gives everything this node owns and does not use to `heir`, for when it leaves. Reserved
    /// numbers go as well: all nodes reserve the same, and whoever follows hands them out as little.
    pub fn hand_over(&mut self, heir: N) -> Given<N> {
        let mut free = self.own.clone();
        for used in self.in_use.iter() {
            free.remove(*used.start(), *used.end());
        }
        let pieces = match heir == self.me {
            true => Vec::new(),
            false => free.iter().flat_map(Block::cover).collect(),
        };
        Given {
            grants: self.grant(heir, pieces),
        }
    }

    /// Takes over what `removed` owns, whose endpoints are no more. What it had in use rests from now on.
    ///
    /// The caller has seen to it that this is safe: every other node that may own anything in the space has said, since it
    /// takes nothing from `removed` any more, that it believes the same numbers to be those of `removed`, and no other node
    /// takes them over (`docs/algorithms/addresses.md`). What is quarantined stays where it is.
    pub fn take_over(&mut self, removed: N, now: Instant) -> Given<N> {
        let owners = self.owners();
        let estate = owners.filter(|(_, owner)| *owner == removed && *owner != self.me);
        let pieces: Vec<Block> = estate.flat_map(|(range, _)| Block::cover(range)).collect();
        let mut grants = Vec::new();
        for block in pieces {
            let Some(version) = self.ledger.next_epoch(&block) else {
                continue;
            };
            let grant = Grant {
                block,
                from: removed,
                to: self.me,
                version,
            };
            self.ledger.paint(grant, Some(self.me));
            self.refresh(block);
            let (first, last) = block.range().into_inner();
            self.released.insert(first, last, now);
            grants.push(grant);
        }
        Given { grants }
    }

    /// Grants each of `pieces` that can still be versioned; one that is no longer mine was given to
    /// `to` before and is given again.
    fn grant(&mut self, to: N, pieces: Vec<Block>) -> Vec<Grant<N>> {
        let mut grants = Vec::new();
        for block in pieces {
            let given = self.ledger.at(block.first()).and_then(|segment| {
                segment
                    .tips()
                    .iter()
                    .find(|tip| tip.from == self.me && tip.to == to)
                    .copied()
            });
            if let Some(grant) = given {
                grants.push(grant);
                continue;
            }
            let Some(version) = self.ledger.next_version(&block) else {
                continue;
            };
            let grant = Grant {
                block,
                from: self.me,
                to,
                version,
            };
            if !planted(Fault::KeepGiven) {
                self.ledger.paint(grant, Some(self.me));
                self.refresh(block);
            }
            grants.push(grant);
        }
        grants.dedup();
        grants
    }

    /// About half of what is free in `range`, as a few large blocks.
    fn spare(&self, range: RangeInclusive<u128>, now: Instant) -> Vec<Block> {
        let resting = self.released.resting(self.rest, now);
        let pieces = self.half_of(self.free_runs(range.clone(), |number| resting.next(number)));
        match pieces.is_empty() {
            true => self.half_of(self.free_runs(range, |_| None)),
            false => pieces,
        }
    }

    fn half_of(&self, free: impl Iterator<Item = (u128, u128)>) -> Vec<Block> {
        let mut total: u128 = 0;
        let mut largest: Vec<Block> = Vec::new();
        for (first, last) in free {
            total += last - first + 1;
            for block in Block::cover(first..=last) {
                // Of equals the highest, so that the giver keeps the low numbers.
                let size = |block: &Block| (block.order(), block.first());
                let at = largest.partition_point(|other| size(other) > size(&block));
                largest.insert(at, block);
                largest.truncate(MAX_PIECES);
            }
        }
        let half = total.div_ceil(2);
        let mut left = half;
        let mut pieces = Vec::new();
        for mut block in largest {
            // An eighth more or a quarter less than half is worth it for fewer blocks. At least one number is left, so a
            // block of one is never halved.
            while block.count() > left + half / 8 {
                block = block.upper_half();
            }
            pieces.push(block);
            left = left.saturating_sub(block.count());
            if left <= half / 4 {
                break;
            }
        }
        pieces
    }

    /// The parts of `block` that are mine, all free, or were given to `to` before.
    fn exactly(&self, to: N, block: Block) -> Result<Vec<Block>, GiveError<N>> {
        let (first, last) = block.range().into_inner();
        if !self.universe().holds(&block) {
            return Err(GiveError::Refused(Refusal::OutOfRange));
        }
        let mut mine = Runs::default();
        let mut given = Vec::new();
        let mut owners = BTreeSet::new();
        for (part, segment) in self.ledger.over(first..=last) {
            let owner = self.ledger.owner(segment);
            let involved = segment.tips().iter().any(|tip| tip.to == self.me) || owner == self.me;
            if segment.quarantined() && involved {
                return Err(GiveError::Refused(Refusal::Quarantined(*part.start())));
            }
            if owner == self.me || planted(Fault::GiveUnowned) {
                mine.insert(*part.start(), *part.end());
            } else if owner == to
                && segment
                    .tips()
                    .iter()
                    .any(|tip| tip.from == self.me && tip.to == to)
            {
                given.push(Block::single(*part.start()));
            } else if owner != to {
                owners.insert(owner);
            }
        }
        for (first, last) in mine.between(first, last) {
            if let Some(number) = self.reserved.any(first, last) {
                return Err(GiveError::Refused(Refusal::Reserved(number)));
            }
            if let Some(number) = self.in_use.any(first, last)
                && !planted(Fault::GiveInUse)
            {
                return Err(GiveError::Refused(Refusal::InUse(number)));
            }
        }
        if to != self.me {
            given.extend(mine.iter().flat_map(Block::cover));
            given.truncate(MAX_GRANTS);
        }
        match (given.is_empty(), owners.is_empty()) {
            (false, _) => Ok(given),
            (true, false) => Err(GiveError::Elsewhere {
                owners: owners.into_iter().collect(),
            }),
            (true, true) => Err(GiveError::Refused(Refusal::NoSpace)),
        }
    }
}

impl<N: Node> Answered<N> {
    fn again(&self, to: N, id: u64) -> Option<Vec<Grant<N>>> {
        self.last
            .get(&to)
            .filter(|(last, _)| *last == id)
            .map(|(_, grants)| grants.clone())
    }

    fn note(&mut self, to: N, id: u64, grants: Vec<Grant<N>>) {
        if self.last.insert(to, (id, grants)).is_none() {
            self.order.push_back(to);
        }
        if self.order.len() > MAX_ANSWERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.last.remove(&oldest);
        }
    }
}
