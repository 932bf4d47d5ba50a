use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use crate::{
    BadGrant, Block, Conflict, Grant, MAX_VERSION, Node,
    faults::{Fault, planted},
    grant::next_epoch,
};

/// Who owns what: for each number the grants of the highest version that cover it.
///
/// Merging takes the higher version number by number, and both where versions are equal. That is a
/// join of semilattices, one for each number, and so commutative, associative and idempotent. Only
/// grants that are the highest for some number are kept, which bounds the set by the blocks in play.
#[derive(Debug, Clone)]
pub(crate) struct Ledger<N> {
    universe: Block,
    genesis: N,
    /// By first number; together they are the universe, and neighbours differ.
    segments: BTreeMap<u128, Segment<N>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment<N> {
    pub(crate) last: u128,
    /// All of one version, sorted. None: still as at genesis. Several: disputed.
    tips: Vec<Grant<N>>,
    /// Who gave the numbers in the version before, if that was known and undisputed.
    giver_before: Option<N>,
    /// Set when the tip, or a grant it descends from, is by a node that cannot have owned the numbers.
    suspect: Option<Suspicion<N>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Suspicion<N> {
    grant: Grant<N>,
    /// Who may have numbers in use there that the owner of record does not know of.
    owner: N,
}

/// What a grant did to the ledger.
pub(crate) struct Painted<N: Node> {
    pub(crate) changed: bool,
    /// Nothing is quarantined outside of the grant's block and that of the conflict.
    pub(crate) conflict: Option<Conflict<N>>,
}

impl<N: Node> Segment<N> {
    pub(crate) fn version(&self) -> u64 {
        self.tips.first().map_or(0, |grant| grant.version)
    }

    pub(crate) fn tips(&self) -> &[Grant<N>] {
        &self.tips
    }

    /// Whether a grant that comes after a newer one, or beside one of its version, can be by who owned the numbers before that. A
    /// second grant by the same giver is a contradiction; one by anybody else is none, because the giver was the owner.
    pub(crate) fn may_have_been_given_by(&self, grant: &Grant<N>) -> bool {
        let [tip, ..] = self.tips[..] else { return true };
        match tip.version.checked_sub(grant.version) {
            Some(0) => self.tips.iter().any(|tip| tip.from == grant.from),
            Some(1) => self.giver_before.is_none_or(|giver| giver == grant.from),
            _ => true,
        }
    }

    /// Nobody may allocate here or grant it.
    pub(crate) fn quarantined(&self) -> bool {
        self.suspect.is_some() || self.tips.len() > 1
    }
}

impl<N: Node> Ledger<N> {
    pub(crate) fn new(universe: Block, genesis: N) -> Self {
        let all = Segment {
            last: universe.last(),
            tips: Vec::new(),
            giver_before: None,
            suspect: None,
        };
        Self {
            universe,
            genesis,
            segments: BTreeMap::from([(universe.first(), all)]),
        }
    }

    /// Merges a grant. With `witness`, a node that has all it ever granted or was granted in here,
    /// the grant is also held against what that node knows for certain.
    pub(crate) fn paint(&mut self, grant: Grant<N>, witness: Option<N>) -> Painted<N> {
        let (first, last) = grant.block.range().into_inner();
        self.split_around(first, last);
        let mut painted = Painted {
            changed: false,
            conflict: None,
        };
        // Of several, the one that quarantines most: blocks that meet are nested, so it covers the others.
        let mut report = |conflict: Conflict<N>| {
            let order = |conflict: &Conflict<N>| conflict.block().order();
            if painted
                .conflict
                .as_ref()
                .is_none_or(|known| order(known) < order(&conflict))
            {
                painted.conflict = Some(conflict);
            }
        };
        // Blocks that someone gave without owning them, known or new.
        let mut stolen = BTreeMap::new();
        for segment in self.segments.range_mut(first..=last).map(|(_, segment)| segment) {
            let version = segment.version();
            if version < grant.version || planted(Fault::LastMergeWins) {
                if let Some(owner) = segment.rightful_owner_against(&grant, self.genesis, witness) {
                    report(Conflict::NotOwner {
                        block: grant.block,
                        grant,
                        owner,
                    });
                    stolen.insert(grant, owner);
                }
                segment.suspect = segment.suspicion_left_by(&grant);
                segment.giver_before = match segment.tips[..] {
                    [tip] if version + 1 == grant.version => Some(tip.from),
                    _ => None,
                };
                segment.tips = vec![grant];
                painted.changed = true;
            } else if version == grant.version {
                if let Err(at) = segment.tips.binary_search(&grant) {
                    report(Conflict::Fork {
                        known: segment.tips[0],
                        found: grant,
                    });
                    match planted(Fault::EqualVersionWins) {
                        true => segment.tips = vec![grant],
                        false => segment.tips.insert(at, grant),
                    }
                    painted.changed = true;
                }
            } else if version == grant.version + 1 && segment.suspect.is_none() {
                // The missing link of a chain came late; it must fit all the same.
                for tip in segment
                    .tips
                    .iter()
                    .filter(|tip| grant.to != tip.from && grant.to != tip.to)
                {
                    report(Conflict::NotOwner {
                        block: tip.block,
                        grant: *tip,
                        owner: grant.to,
                    });
                    stolen.insert(*tip, grant.to);
                }
            }
        }
        for (grant, owner) in stolen {
            let (first, last) = grant.block.range().into_inner();
            for (_, segment) in self.segments.range_mut(first..=last) {
                if segment.tips.contains(&grant) {
                    segment.suspect.get_or_insert(Suspicion { grant, owner });
                }
            }
        }
        self.join(first, last);
        painted
    }

    /// Quarantines what a conflict seen before a restart had quarantined. Where grants of one version
    /// meet, they say so themselves.
    pub(crate) fn restore(&mut self, conflict: &Conflict<N>) {
        let Conflict::NotOwner { block, grant, owner } = *conflict else {
            return;
        };
        if !self.universe.holds(&block) {
            return;
        }
        let (first, last) = block.range().into_inner();
        self.split_around(first, last);
        for (_, segment) in self.segments.range_mut(first..=last) {
            segment.suspect.get_or_insert(Suspicion { grant, owner });
        }
        self.join(first, last);
    }

    /// Every conflict that still quarantines something.
    pub(crate) fn conflicts(&self) -> Vec<Conflict<N>> {
        let mut conflicts = Vec::new();
        for (first, segment) in &self.segments {
            if let [known, found, ..] = segment.tips[..] {
                conflicts.push(Conflict::Fork { known, found });
            }
            if let Some(Suspicion { grant, owner }) = segment.suspect {
                let blocks = Block::cover(*first..=segment.last);
                conflicts.extend(blocks.map(|block| Conflict::NotOwner { block, grant, owner }));
            }
        }
        conflicts.dedup();
        conflicts
    }

    pub(crate) fn check(&self, grant: &Grant<N>) -> Result<(), BadGrant<N>> {
        let Grant {
            block,
            from,
            to,
            version,
        } = *grant;
        if !self.universe.holds(&block) {
            return Err(BadGrant::OutsideSpace {
                block,
                universe: self.universe,
            });
        }
        if from == to {
            return Err(BadGrant::ToItself { block, node: from });
        }
        if version == 0 {
            return Err(BadGrant::Version { block });
        }
        Ok(())
    }

    pub(crate) fn universe(&self) -> Block {
        self.universe
    }

    /// Where two grants dispute a number, the one that sorts first is the owner of record.
    pub(crate) fn owner(&self, segment: &Segment<N>) -> N {
        segment.tips.first().map_or(self.genesis, |grant| grant.to)
    }

    /// Whether `node` is an owner of record; where two grants dispute a number, both their receivers are.
    pub(crate) fn owns(&self, segment: &Segment<N>, node: N) -> bool {
        match segment.tips.is_empty() {
            true => self.genesis == node,
            false => segment.tips.iter().any(|tip| tip.to == node),
        }
    }

    pub(crate) fn at(&self, number: u128) -> Option<&Segment<N>> {
        let inside = self.universe.contains(number);
        self.segments
            .range(..=number)
            .next_back()
            .map(|(_, segment)| segment)
            .filter(|_| inside)
    }

    /// The segments that meet `range`, with the part of each that lies in it.
    pub(crate) fn over(
        &self,
        range: RangeInclusive<u128>,
    ) -> impl Iterator<Item = (RangeInclusive<u128>, &Segment<N>)> {
        let (first, last) = range.into_inner();
        let begin = self
            .segments
            .range(..=first)
            .next_back()
            .map_or(first, |(begin, _)| *begin);
        self.segments
            .range(begin..=last.max(begin))
            .map(move |(begin, segment)| ((*begin).max(first)..=segment.last.min(last), segment))
            .filter(|(range, _)| !range.is_empty())
    }

    /// Every grant that is the newest word on some number.
    pub(crate) fn grants(&self) -> BTreeSet<Grant<N>> {
        self.segments
            .values()
            .flat_map(|segment| segment.tips.iter().copied())
            .collect()
    }

    /// One more than any version known for a part of `block`.
    pub(crate) fn next_version(&self, block: &Block) -> Option<u64> {
        let known = match planted(Fault::VersionOfBlockOnly) {
            true => self
                .grants()
                .iter()
                .find(|grant| grant.block == *block)
                .map_or(0, |grant| grant.version),
            false => self
                .over(block.range())
                .map(|(_, segment)| segment.version())
                .max()
                .unwrap_or(0),
        };
        // The last of an epoch is the last: the next one would look as if it had been taken over.
        (known & MAX_VERSION < MAX_VERSION).then(|| known + 1)
    }

    /// The version in which what is known of `block` now is taken over from a node that was removed.
    pub(crate) fn next_epoch(&self, block: &Block) -> Option<u64> {
        let known = self.over(block.range()).map(|(_, segment)| segment.version());
        next_epoch(known.max().unwrap_or(0))
    }

    fn split_around(&mut self, first: u128, last: u128) {
        self.split(first);
        if let Some(next) = last.checked_add(1) {
            self.split(next);
        }
    }

    fn split(&mut self, at: u128) {
        let Some((first, segment)) = self.segments.range_mut(..=at).next_back() else {
            return;
        };
        if *first < at && at <= segment.last {
            let upper = segment.clone();
            segment.last = at - 1;
            self.segments.insert(at, upper);
        }
    }

    /// Joins equal neighbours around and between `first` and `last`.
    fn join(&mut self, first: u128, last: u128) {
        let begin = self
            .segments
            .range(..first)
            .next_back()
            .map_or(first, |(begin, _)| *begin);
        let starts: Vec<u128> = self
            .segments
            .range(begin..=last.saturating_add(1))
            .map(|(start, _)| *start)
            .collect();
        let mut left = begin;
        for right in starts.into_iter().skip(1) {
            let (a, b) = (&self.segments[&left], &self.segments[&right]);
            if a.tips == b.tips && a.suspect == b.suspect {
                let last = b.last;
                let giver_before = a.giver_before.filter(|giver| b.giver_before == Some(*giver));
                self.segments.remove(&right);
                if let Some(segment) = self.segments.get_mut(&left) {
                    segment.last = last;
                    segment.giver_before = giver_before;
                }
            } else {
                left = right;
            }
        }
    }
}

impl<N: Node> Segment<N> {
    /// What stays suspect when `grant` comes on top of a quarantined segment.
    ///
    /// Two nodes may have numbers in use there. The grant ends that only when it leaves the numbers
    /// to the one of them whose claim it did not pass on: nobody gives what is in use.
    fn suspicion_left_by(&self, grant: &Grant<N>) -> Option<Suspicion<N>> {
        let other = self.tips.iter().map(|tip| tip.to).find(|to| *to != grant.from);
        let fork = other
            .filter(|_| self.tips.len() > 1)
            .map(|owner| Suspicion { grant: *grant, owner });
        self.suspect
            .or(fork)
            .filter(|suspicion| suspicion.owner != grant.to)
    }

    /// The node that must not be passed over when these numbers are quarantined.
    pub(crate) fn wronged(&self) -> Option<N> {
        self.suspect.map(|suspicion| suspicion.owner)
    }

    /// The owner of these numbers, if it is certain that `grant`, though newer, is not by the owner
    /// but takes them away from it.
    fn rightful_owner_against(&self, grant: &Grant<N>, genesis: N, witness: Option<N>) -> Option<N> {
        let owner = self.tips.first().map_or(genesis, |tip| tip.to);
        let by_owner = match self.tips.is_empty() {
            true => grant.from == genesis,
            false => self.tips.iter().any(|tip| tip.to == grant.from),
        };
        let harmless = by_owner || grant.to == owner;
        // Versions rise along the chain of owners. When this one is the next, no owner can lie between.
        let no_gap = self.version() + 1 == grant.version;
        // And nobody but the witness can have moved what the witness owns.
        (!harmless && (no_gap || (Some(owner) == witness && !self.quarantined()))).then_some(owner)
    }
}
