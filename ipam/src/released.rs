use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::runs::Runs;

/// How many runs of released numbers are remembered; the oldest beyond that count as never used.
const REMEMBERED: usize = 4096;

/// Numbers that were in use, and since when they are not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Released {
    runs: BTreeMap<u128, Run>,
    /// (turn, first), so that the longest-released comes first.
    by_age: BTreeSet<(u64, u128)>,
    next_turn: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    last: u128,
    turn: u64,
    at: Instant,
}

impl Released {
    pub(crate) fn insert(&mut self, first: u128, last: u128, at: Instant) {
        self.remove(first, last);
        let turn = self.next_turn;
        self.next_turn += 1;
        self.put(first, Run { last, turn, at });
        if self.runs.len() > REMEMBERED
            && let Some((_, first)) = self.by_age.pop_first()
        {
            self.runs.remove(&first);
        }
    }

    pub(crate) fn remove(&mut self, first: u128, last: u128) {
        while let Some((&f, &run)) = self.runs.range(..=last).next_back() {
            if run.last < first {
                break;
            }
            self.runs.remove(&f);
            self.by_age.remove(&(run.turn, f));
            if run.last > last {
                self.put(last + 1, run);
            }
            if f < first {
                self.put(
                    f,
                    Run {
                        last: first - 1,
                        ..run
                    },
                );
            }
        }
    }

    /// The run that holds `number`, or else the first one after it.
    pub(crate) fn next(&self, number: u128) -> Option<(u128, u128)> {
        let before = self
            .runs
            .range(..=number)
            .next_back()
            .filter(|(_, run)| run.last >= number);
        before
            .or_else(|| self.runs.range(number..).next())
            .map(|(f, run)| (*f, run.last))
    }

    /// The runs, the longest-released first, with the time of their release.
    pub(crate) fn oldest_first(&self) -> impl Iterator<Item = (u128, u128, Instant)> {
        self.by_age.iter().filter_map(|(_, first)| {
            let run = self.runs.get(first)?;
            Some((*first, run.last, run.at))
        })
    }

    /// The numbers released less than `rest` before `now`.
    pub(crate) fn resting(&self, rest: Duration, now: Instant) -> Runs {
        let mut resting = Runs::default();
        for (first, run) in &self.runs {
            if now.saturating_duration_since(run.at) < rest {
                resting.insert(*first, run.last);
            }
        }
        resting
    }

    fn put(&mut self, first: u128, run: Run) {
        self.runs.insert(first, run);
        self.by_age.insert((run.turn, first));
    }
}
