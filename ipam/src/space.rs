use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use crate::{
    BadGrant, Block, Conflict, Grant, Merged, Node, give::Answered, ledger::Ledger, released::Released,
    runs::Runs,
};

/// How long a released number rests before it is handed out again while another is free.
pub const DEFAULT_REST: Duration = Duration::from_secs(60);

/// How many nodes' free-space hints are kept.
const MAX_HINTS: usize = 4096;

/// A set of numbers, shared with all nodes: what this node knows of the owners, and what it uses.
#[derive(Debug, Clone)]
pub struct Space<N: Node> {
    pub(crate) me: N,
    pub(crate) ledger: Ledger<N>,
    /// What I own and may allocate in: of record mine, and not quarantined.
    pub(crate) own: Runs,
    pub(crate) in_use: Runs,
    pub(crate) reserved: Runs,
    pub(crate) released: Released,
    pub(crate) rest: Duration,
    pub(crate) answered: Answered<N>,
    cursor: Cursor,
    hints: BTreeMap<N, u128>,
}

#[derive(Debug, Clone, Copy)]
enum Cursor {
    /// The so-many-th number I own, modulo how many there are; found at the first allocation.
    Seed(u64),
    At(u128),
}

/// Why no number could be allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError<N: Node> {
    /// This node has no free number there. Others own some and may have free ones.
    #[error("this node owns no free number there; {} other nodes own some", ask.len())]
    NoFreeOwned {
        /// Who may have free numbers, the most promising first.
        ask: Vec<N>,
        /// Whether [`Space::allocate_resting`] would find a number that was released just now.
        resting: bool,
    },
    /// Nobody can have a free number there.
    #[error("all numbers there are in use, reserved or quarantined ({quarantined} quarantined)")]
    Exhausted {
        /// How many numbers there are quarantined because of contradicting grants.
        quarantined: u128,
    },
    /// No number of the space lies in the range.
    #[error("no number of the space lies in the range that was asked for")]
    OutOfRange,
}

/// Why a number, or a block of numbers, cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError<N: Node> {
    /// It is not part of the space.
    #[error("{number} is outside the space")]
    OutOfRange {
        /// The number.
        number: u128,
    },
    /// It is never handed out.
    #[error("{number} is reserved")]
    Reserved {
        /// The number.
        number: u128,
    },
    /// This node has it in use.
    #[error("{number} is in use on this node")]
    InUse {
        /// The number.
        number: u128,
    },
    /// Its ownership is disputed.
    #[error("{number} is quarantined because of contradicting grants")]
    Quarantined {
        /// The number.
        number: u128,
    },
    /// Only other nodes can give it.
    #[error("{owners:?} must grant it first")]
    OwnedBy {
        /// Who owns some of it, each of whom must be asked.
        owners: Vec<N>,
    },
}

impl<N: Node> Space<N> {
    /// The space `universe`, all of it owned by `genesis` until grants say otherwise.
    ///
    /// Allocation begins at the `seed`-th number that this node owns (modulo their count) and goes
    /// round, so that a start with another seed does not re-use at once what was just released.
    pub fn new(me: N, universe: Block, genesis: N, seed: u64) -> Self {
        let mut space = Self {
            me,
            ledger: Ledger::new(universe, genesis),
            own: Runs::default(),
            in_use: Runs::default(),
            reserved: Runs::default(),
            released: Released::default(),
            rest: DEFAULT_REST,
            answered: Answered::default(),
            cursor: Cursor::Seed(seed),
            hints: BTreeMap::new(),
        };
        space.refresh(universe);
        space
    }

    /// Lets released numbers rest for `rest` instead of [`DEFAULT_REST`].
    pub fn with_rest(mut self, rest: Duration) -> Self {
        self.rest = rest;
        self
    }

    /// Keeps the numbers of `range` from ever being handed out or given away by this node.
    pub fn reserve(&mut self, range: RangeInclusive<u128>) {
        if !range.is_empty() {
            self.reserved.insert(*range.start(), *range.end());
        }
    }

    /// Takes in what this node stored, in any order, after a start and before anything else.
    ///
    /// Other than with [`merge`](Self::merge) a grant that is absent here is no evidence that it was
    /// never made: those that newer ones covered need not be stored. What cannot be a grant of this
    /// space is left out and returned.
    pub fn load(
        &mut self,
        grants: impl IntoIterator<Item = Grant<N>>,
        conflicts: impl IntoIterator<Item = Conflict<N>>,
    ) -> Vec<BadGrant<N>> {
        let mut grants: Vec<_> = grants.into_iter().collect();
        grants.sort_unstable_by_key(|grant| std::cmp::Reverse(grant.version));
        let mut bad = Vec::new();
        for grant in grants {
            match self.ledger.check(&grant) {
                Ok(()) => drop(self.ledger.paint(grant, None)),
                Err(error) => bad.push(error),
            }
        }
        for conflict in conflicts {
            self.ledger.restore(&conflict);
        }
        self.refresh(self.universe());
        bad
    }

    /// Takes in a grant that another node sent or that came as a record.
    ///
    /// A grant to this node must be durable before, for its numbers may be used as soon as this
    /// returns. The order in which grants come does not matter, nor how often.
    pub fn merge(&mut self, grant: Grant<N>) -> Merged<N> {
        if let Err(bad) = self.ledger.check(&grant) {
            return Merged::Refused(bad);
        }
        let (first, last) = grant.block.range().into_inner();
        // Numbers in use that a grant of my own, which I do not remember, would take away.
        let forgotten = (grant.from == self.me)
            .then(|| {
                self.own
                    .between(first, last)
                    .find_map(|(f, l)| self.in_use.any(f, l))
            })
            .flatten();
        let painted = self.ledger.paint(grant, Some(self.me));
        self.refresh(grant.block);
        let forgotten = forgotten.filter(|number| !self.own.contains(*number));
        let forgotten = forgotten.map(|number| Conflict::Forgotten { grant, number });
        match painted.conflict.or(forgotten) {
            Some(conflict) => {
                // Late evidence may have quarantined a block larger than the grant's own.
                self.refresh(conflict.block());
                Merged::Quarantined(conflict)
            }
            None if painted.changed => Merged::Applied,
            None => Merged::Unchanged,
        }
    }

    /// Hands out a free number, in `within` if given.
    ///
    /// Numbers never used come first, then those released longest ago. A number released less than
    /// the resting time ago comes only when no other node can have a free one.
    pub fn allocate(
        &mut self,
        within: Option<RangeInclusive<u128>>,
        now: Instant,
    ) -> Result<u128, AllocateError<N>> {
        let range = self.clip(within.as_ref()).ok_or(AllocateError::OutOfRange)?;
        let rest = self.rest;
        let rested = |at| now.saturating_duration_since(at) >= rest;
        if let Some(number) = self
            .never_used(&range)
            .or_else(|| self.longest_released(&range, rested))
        {
            self.take(number);
            return Ok(number);
        }
        let ask = self.who_may_have_free(&range);
        let resting = self.longest_released(&range, |_| true);
        match (ask.is_empty(), resting) {
            (true, Some(number)) => {
                self.take(number);
                Ok(number)
            }
            (true, None) => Err(AllocateError::Exhausted {
                quarantined: self.quarantined(range),
            }),
            (false, resting) => Err(AllocateError::NoFreeOwned {
                ask,
                resting: resting.is_some(),
            }),
        }
    }

    /// Hands out the number released longest ago even if it has not rested, for when the others were
    /// asked in vain.
    pub fn allocate_resting(&mut self, within: Option<RangeInclusive<u128>>) -> Option<u128> {
        let range = self.clip(within.as_ref())?;
        let number = self.longest_released(&range, |_| true)?;
        self.take(number);
        Some(number)
    }

    /// Takes exactly `number` into use; one that was released just now is allowed.
    pub fn claim(&mut self, number: u128) -> Result<(), ClaimError<N>> {
        self.claim_block(Block::single(number))
    }

    /// Takes all numbers of `block` into use, or none.
    pub fn claim_block(&mut self, block: Block) -> Result<(), ClaimError<N>> {
        let (first, last) = block.range().into_inner();
        let universe = self.ledger.universe();
        if !universe.holds(&block) {
            let number = if universe.contains(first) { last } else { first };
            return Err(ClaimError::OutOfRange { number });
        }
        if let Some(number) = self.reserved.any(first, last) {
            return Err(ClaimError::Reserved { number });
        }
        if let Some(number) = self.in_use.any(first, last) {
            return Err(ClaimError::InUse { number });
        }
        if !self.own.covers(first, last) {
            return Err(self.why_not_owned(block));
        }
        self.in_use.insert(first, last);
        self.released.remove(first, last);
        Ok(())
    }

    /// Takes `block` back into use after a restart, from this node's durable record of who uses it.
    ///
    /// Unlike [`claim_block`](Self::claim_block) the numbers count as in use even when the error says
    /// that they should not be: whatever has them goes on running, and an operator should hear of it.
    pub fn restore(&mut self, block: Block) -> Result<(), ClaimError<N>> {
        let claimed = self.claim_block(block);
        if claimed.is_err() && self.ledger.universe().holds(&block) {
            self.in_use.insert(block.first(), block.last());
        }
        claimed
    }

    /// Ends the use of a number. It will be handed out again as late as possible.
    pub fn release(&mut self, number: u128, now: Instant) {
        self.release_block(Block::single(number), now);
    }

    /// Ends the use of all numbers of a block.
    pub fn release_block(&mut self, block: Block, now: Instant) {
        let (first, last) = block.range().into_inner();
        let used: Vec<_> = self.in_use.between(first, last).collect();
        self.in_use.remove(first, last);
        for (first, last) in used {
            for (first, last) in self.own.between(first, last).collect::<Vec<_>>() {
                self.released.insert(first, last, now);
            }
        }
    }

    /// Notes how many free numbers `from` says it has. Hints may be old or wrong; they decide only
    /// whom to ask first.
    pub fn hint(&mut self, from: N, free: u128) {
        if self.hints.len() < MAX_HINTS || self.hints.contains_key(&from) {
            self.hints.insert(from, free);
        }
    }

    /// All numbers of the space.
    pub fn universe(&self) -> Block {
        self.ledger.universe()
    }

    /// The owner of record of a number of the space.
    pub fn owner_of(&self, number: u128) -> Option<N> {
        self.ledger.at(number).map(|segment| self.ledger.owner(segment))
    }

    /// Who owns which numbers, lowest first; what is quarantined is left out.
    pub fn owners(&self) -> impl Iterator<Item = (RangeInclusive<u128>, N)> {
        let segments = self.ledger.over(self.universe().range());
        let undisputed = segments.filter(|(_, segment)| !segment.quarantined());
        undisputed.map(|(range, segment)| (range, self.ledger.owner(segment)))
    }

    /// Whether all that a grant would move is its author's, as far as this node knows, and all that it contradicts was. Of an
    /// honest author it is as soon as this node has heard of the grants that made it the owner; [`merge`](Self::merge) takes a
    /// grant without asking.
    pub fn is_by_owner(&self, grant: &Grant<N>) -> bool {
        self.ledger
            .over(grant.block.range())
            .all(|(_, segment)| match segment.version() < grant.version {
                true => self.ledger.owns(segment, grant.from),
                false => segment.may_have_been_given_by(grant),
            })
    }

    /// Whether nobody may allocate the number, as far as this node knows.
    pub fn is_quarantined(&self, number: u128) -> bool {
        self.ledger
            .at(number)
            .is_some_and(|segment| segment.quarantined())
    }

    /// How many numbers each owner of record has.
    pub fn shares(&self) -> BTreeMap<N, u128> {
        let mut shares = BTreeMap::new();
        for (range, segment) in self.ledger.over(self.universe().range()) {
            *shares.entry(self.ledger.owner(segment)).or_default() += count(&range);
        }
        shares
    }

    /// How many numbers this node could hand out without asking anybody.
    pub fn free_owned(&self) -> u128 {
        self.free_runs(self.universe().range(), |_| None)
            .map(|(f, l)| l - f + 1)
            .sum()
    }

    /// What is in use here, as runs, lowest first.
    pub fn in_use(&self) -> impl Iterator<Item = RangeInclusive<u128>> {
        self.in_use.iter()
    }

    /// Every conflict that still quarantines something: to store, and to show to an operator.
    pub fn conflicts(&self) -> Vec<Conflict<N>> {
        self.ledger.conflicts()
    }

    /// Every grant that still matters: to store, to publish those by this node, to hand to a joiner.
    pub fn grants(&self) -> BTreeSet<Grant<N>> {
        self.ledger.grants()
    }

    /// Brings `own` and `released` up to date with the ledger.
    pub(crate) fn refresh(&mut self, block: Block) {
        for (range, segment) in self.ledger.over(block.range()) {
            let (first, last) = range.into_inner();
            if self.ledger.owner(segment) == self.me && !segment.quarantined() {
                self.own.insert(first, last);
            } else {
                self.own.remove(first, last);
                self.released.remove(first, last);
            }
        }
    }

    /// The part of `within` that lies in the space.
    pub(crate) fn clip(&self, within: Option<&RangeInclusive<u128>>) -> Option<RangeInclusive<u128>> {
        let universe = self.universe();
        let Some(within) = within else {
            return Some(universe.range());
        };
        let clipped = *within.start().max(&universe.first())..=*within.end().min(&universe.last());
        (!clipped.is_empty()).then_some(clipped)
    }

    /// The runs of numbers in `range` that this node owns, are neither in use nor reserved, and are not
    /// among those that `avoid` finds at or after a number.
    pub(crate) fn free_runs(
        &self,
        range: RangeInclusive<u128>,
        avoid: impl Fn(u128) -> Option<(u128, u128)>,
    ) -> impl Iterator<Item = (u128, u128)> {
        let (first, last) = range.into_inner();
        let mut next = Some(first);
        std::iter::from_fn(move || {
            'next: loop {
                let (own_first, own_last) = self.own.next(next?)?;
                let from = own_first.max(next?);
                if from > last {
                    return None;
                }
                let mut to = own_last.min(last);
                for blocked in [self.in_use.next(from), self.reserved.next(from), avoid(from)] {
                    match blocked {
                        Some((first, last)) if first <= from => {
                            next = last.checked_add(1);
                            continue 'next;
                        }
                        Some((first, _)) => to = to.min(first - 1),
                        None => {}
                    }
                }
                next = to.checked_add(1);
                return Some((from, to));
            }
        })
    }

    fn never_used(&self, range: &RangeInclusive<u128>) -> Option<u128> {
        let avoid = |number| self.released.next(number);
        let (first, last) = (*range.start(), *range.end());
        let start = match self.cursor {
            Cursor::At(number) => number.clamp(first, last),
            Cursor::Seed(seed) => self.nth_owned(range, seed).unwrap_or(first),
        };
        let ahead = self.free_runs(start..=last, avoid).next();
        ahead
            .or_else(|| self.free_runs(first..=last, avoid).next())
            .map(|(number, _)| number)
    }

    fn longest_released(
        &self,
        range: &RangeInclusive<u128>,
        wanted: impl Fn(Instant) -> bool,
    ) -> Option<u128> {
        // Releases are in order of time, so the first that is not wanted ends the search.
        self.released
            .oldest_first()
            .take_while(|(_, _, at)| wanted(*at))
            .find_map(|(first, last, _)| {
                let part = first.max(*range.start())..=last.min(*range.end());
                if part.is_empty() {
                    return None;
                }
                self.free_runs(part, |_| None).next().map(|(number, _)| number)
            })
    }

    fn nth_owned(&self, range: &RangeInclusive<u128>, n: u64) -> Option<u128> {
        let own = || self.own.between(*range.start(), *range.end());
        // Only a space of all 2^128 numbers could overflow, and there is none.
        let total: u128 = own().map(|(f, l)| l - f + 1).sum();
        let mut n = u128::from(n).checked_rem(total)?;
        for (first, last) in own() {
            if n <= last - first {
                return Some(first + n);
            }
            n -= last - first + 1;
        }
        None
    }

    fn take(&mut self, number: u128) {
        self.in_use.insert(number, number);
        self.released.remove(number, number);
        self.cursor = Cursor::At(number.checked_add(1).unwrap_or_default());
    }

    /// Owners other than me of numbers in `range` that are not all reserved. Of those that are
    /// quarantined only what was taken from me can safely come back to me.
    pub(crate) fn who_may_have_free(&self, range: &RangeInclusive<u128>) -> Vec<N> {
        let mut shares: BTreeMap<N, u128> = BTreeMap::new();
        for (part, segment) in self.ledger.over(range.clone()) {
            let owner = self.ledger.owner(segment);
            let all_reserved = self.reserved.covers(*part.start(), *part.end());
            let safe = !segment.quarantined() || segment.wronged() == Some(self.me);
            if owner != self.me && !all_reserved && safe {
                *shares.entry(owner).or_default() += count(&part);
            }
        }
        let mut ask: Vec<_> = shares.into_iter().collect();
        // No more can be free than is owned; without a hint, half of it is a fair guess.
        ask.sort_by_key(|(node, share)| {
            let free = self.hints.get(node).map_or(share / 2, |hint| *hint.min(share));
            std::cmp::Reverse(free)
        });
        ask.into_iter().map(|(node, _)| node).collect()
    }

    fn why_not_owned(&self, block: Block) -> ClaimError<N> {
        let mut owners = BTreeSet::new();
        for (part, segment) in self.ledger.over(block.range()) {
            if segment.quarantined() {
                return ClaimError::Quarantined {
                    number: *part.start(),
                };
            }
            owners.insert(self.ledger.owner(segment));
        }
        owners.remove(&self.me);
        ClaimError::OwnedBy {
            owners: owners.into_iter().collect(),
        }
    }

    fn quarantined(&self, range: RangeInclusive<u128>) -> u128 {
        let quarantined = self
            .ledger
            .over(range)
            .filter(|(_, segment)| segment.quarantined());
        quarantined.map(|(part, _)| count(&part)).sum()
    }
}

fn count(range: &RangeInclusive<u128>) -> u128 {
    range.end() - range.start() + 1
}
