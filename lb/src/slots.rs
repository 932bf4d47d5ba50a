//! From backends to slots.
//!
//! A datapath takes the slots one after the other, again and again, one for each new connection. So a slot vector
//! is the list of the next choices, and everything that a scheduler decides can be said in one.

use std::{cmp::Ordering, collections::HashMap, num::NonZeroU16};

use weft_types::EndpointId;

#[cfg(test)]
mod proptests;

/// No weighted vector is longer, unless there are more backends.
const LONGEST_WEIGHTED: usize = 1024;
/// Least connection looks about this far ahead: far enough for a burst between two updates.
const LOOK_AHEAD: usize = 32;
/// And never farther than this.
const LONGEST_LOOK_AHEAD: usize = 64;

/// Lengths of Maglev's table, primes: a hundred slots for each of a few backends, and what many need. Where one gives
/// way to the other every client may move, so there are only two.
const MAGLEV_FEW: usize = 100;
const MAGLEV_SHORT: u64 = 1_021;
const MAGLEV_LONG: u64 = 16_381;

/// A backend as a scheduler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its share.
    pub weight: NonZeroU16,
}

/// Round robin: each once, in the order given.
pub fn round_robin(candidates: &[Candidate]) -> Vec<EndpointId> {
    candidates.iter().map(|candidate| candidate.endpoint).collect()
}

/// Weighted round robin: each as often as its weight says, evenly interleaved ("smooth"), in the shortest vector
/// that has the proportions; very large ones are rounded, to no less than one slot.
pub fn weighted_round_robin(candidates: &[Candidate]) -> Vec<EndpointId> {
    let divisor = candidates
        .iter()
        .fold(0, |divisor, c| gcd(divisor, usize::from(c.weight.get())))
        .max(1);
    let mut shares: Vec<usize> = candidates
        .iter()
        .map(|c| usize::from(c.weight.get()) / divisor)
        .collect();
    let total: usize = shares.iter().sum();
    if total > LONGEST_WEIGHTED {
        shares
            .iter_mut()
            .for_each(|share| *share = (*share * LONGEST_WEIGHTED / total).max(1));
    }
    let total: i64 = shares.iter().sum::<usize>() as i64;
    // Each turn everyone gains its share, and whoever has most pays the total for the turn.
    let mut credit = vec![0i64; shares.len()];
    (0..total)
        .filter_map(|_| {
            credit
                .iter_mut()
                .zip(&shares)
                .for_each(|(credit, share)| *credit += *share as i64);
            let winner = (0..credit.len()).max_by_key(|&i| (credit[i], std::cmp::Reverse(i)))?;
            credit[winner] -= total;
            Some(candidates[winner].endpoint)
        })
        .collect()
}

/// Maglev's consistent hashing (Eisenbud et al., NSDI 2016, section 3.4): a table in which a client's hash finds its
/// backend. Backends take turns, each claiming the next free slot of its own order of all slots, as often as their
/// weights say. So shares are even, and of the clients of the others few move when a backend comes or goes.
pub fn maglev(candidates: &[Candidate]) -> Vec<EndpointId> {
    let Some(heaviest) = candidates.iter().map(|c| u64::from(c.weight.get())).max() else {
        return Vec::new();
    };
    let len = if candidates.len() <= MAGLEV_FEW {
        MAGLEV_SHORT
    } else {
        MAGLEV_LONG
    };
    struct Claimant {
        next: u64,
        step: u64,
        credit: u64,
    }
    let mut claimants: Vec<Claimant> = candidates
        .iter()
        .map(|candidate| Claimant {
            next: mix(candidate.endpoint, 1) % len,
            step: mix(candidate.endpoint, 2) % (len - 1) + 1,
            credit: 0,
        })
        .collect();
    let mut table: Vec<Option<EndpointId>> = vec![None; len as usize];
    let mut free = len;
    while free > 0 {
        for (claimant, candidate) in claimants.iter_mut().zip(candidates) {
            claimant.credit += u64::from(candidate.weight.get());
            if claimant.credit < heaviest || free == 0 {
                continue;
            }
            claimant.credit -= heaviest;
            // The length is prime, so every step leads through all slots.
            while table[claimant.next as usize].is_some() {
                claimant.next = (claimant.next + claimant.step) % len;
            }
            table[claimant.next as usize] = Some(candidate.endpoint);
            free -= 1;
        }
    }
    table.into_iter().flatten().collect()
}

/// A hash that is the same on every host and in every build: FNV-1a, and the end of splitmix64 to spread its bits.
fn mix(endpoint: EndpointId, salt: u64) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = endpoint.0.iter().fold(0xcbf2_9ce4_8422_2325 ^ salt, fnv);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The open connections of one service's backends.
#[derive(Debug, Clone, Default)]
pub struct Loads {
    loads: HashMap<EndpointId, Load>,
    turn: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    open: u64,
    /// When it was last chosen; among equals the one that waited longest is next, so that an idle service is
    /// spread as evenly as by round robin.
    chosen: u64,
}

impl Loads {
    /// Nobody has a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection to this backend was opened.
    pub fn opened(&mut self, endpoint: EndpointId) {
        self.turn += 1;
        let load = self.loads.entry(endpoint).or_default();
        load.open += 1;
        load.chosen = self.turn;
    }

    /// A connection to this backend was closed.
    pub fn closed(&mut self, endpoint: EndpointId) {
        if let Some(load) = self.loads.get_mut(&endpoint) {
            load.open = load.open.saturating_sub(1);
        }
    }

    /// How many connections a backend has.
    pub fn open(&self, endpoint: EndpointId) -> u64 {
        self.loads.get(&endpoint).map_or(0, |load| load.open)
    }

    /// Forgets idle backends that are gone.
    pub fn retain(&mut self, stays: impl Fn(EndpointId) -> bool) {
        self.loads
            .retain(|&endpoint, load| load.open > 0 || stays(endpoint));
    }

    /// The next choices of an exact least connection scheduler, one after the other, if nothing closes meanwhile:
    /// as water fills a vessel, the least loaded first up to the level of the next.
    pub fn next_choices(&self, candidates: &[Candidate]) -> Vec<EndpointId> {
        let mut vessels: Vec<(Candidate, Load)> = candidates
            .iter()
            .map(|&candidate| {
                (
                    candidate,
                    self.loads.get(&candidate.endpoint).copied().unwrap_or_default(),
                )
            })
            .collect();
        let mut turn = self.turn;
        (0..look_ahead(candidates.len()))
            .filter_map(|_| {
                let (candidate, load) = vessels.iter_mut().min_by(|a, b| preference(a, b))?;
                turn += 1;
                load.open += 1;
                load.chosen = turn;
                Some(candidate.endpoint)
            })
            .collect()
    }
}

/// A whole number of rounds over all backends, so that equal ones stay equal when the vector starts again.
fn look_ahead(backends: usize) -> usize {
    match backends {
        0 | 1 => backends,
        _ => (backends * LOOK_AHEAD.div_ceil(backends)).min(LONGEST_LOOK_AHEAD),
    }
}

/// Who comes first: the lowest load per weight, counted with the connection to come.
fn preference((a, load_a): &(Candidate, Load), (b, load_b): &(Candidate, Load)) -> Ordering {
    let per_weight =
        |load: &Load, other: &Candidate| (load.open + 1).saturating_mul(u64::from(other.weight.get()));
    per_weight(load_a, b)
        .cmp(&per_weight(load_b, a))
        .then(load_a.chosen.cmp(&load_b.chosen))
        .then(a.endpoint.cmp(&b.endpoint))
}
