//! Sums of counters that begin anew now and then.

use std::collections::{BTreeMap, BTreeSet};

use weft_lb::Attempts;
use weft_types::EndpointId;

/// What somebody who counts shows of each backend.
pub(super) type Shown = BTreeMap<EndpointId, Attempts>;

/// What was counted so far for each backend, by sources that come and go: a sandbox takes its counters with it, and a backend
/// that was down may have new ones. The sums only grow while this agent runs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    last: BTreeMap<String, Shown>,
    sums: Shown,
}

impl Tally {
    /// Takes in what a source shows now, of some backends.
    pub(super) fn take(&mut self, source: &str, shown: Shown) {
        if shown.is_empty() {
            return;
        }
        let last = self.last.entry(source.to_owned()).or_default();
        for (endpoint, now) in shown {
            let before = last.insert(endpoint, now).unwrap_or_default();
            let has_begun_anew = now.total < before.total || now.failed < before.failed;
            let sum = self.sums.entry(endpoint).or_default();
            let before = if has_begun_anew {
                give_up(sum, before);
                Attempts::default()
            } else {
                before
            };
            *sum += Attempts {
                total: now.total - before.total,
                failed: now.failed - before.failed,
                tcp: now.tcp.saturating_sub(before.tcp),
                made: now.made.saturating_sub(before.made),
                unknown: now.unknown.saturating_sub(before.unknown),
            };
        }
    }

    /// A source is gone; what it showed stays in the sums.
    pub(super) fn end(&mut self, source: &str) {
        for (endpoint, last) in self.last.remove(source).into_iter().flatten() {
            give_up(self.sums.entry(endpoint).or_default(), last);
        }
    }

    /// Forgets all backends but these.
    pub(super) fn retain(&mut self, backends: impl Iterator<Item = EndpointId>) {
        if self.sums.is_empty() {
            return;
        }
        let known = backends.filter(|backend| self.sums.contains_key(backend));
        let known: BTreeSet<EndpointId> = known.collect();
        self.sums.retain(|endpoint, _| known.contains(endpoint));
        for last in self.last.values_mut() {
            last.retain(|endpoint, _| known.contains(endpoint));
        }
        self.last.retain(|_, last| !last.is_empty());
    }

    /// What was counted for each backend.
    pub(super) fn sums(&self) -> &Shown {
        &self.sums
    }
}

/// What was pending where counters ended never ends for those who count.
fn give_up(sum: &mut Attempts, last: Attempts) {
    sum.unknown += last.pending();
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: EndpointId = EndpointId([1; 16]);

    fn shows(total: u64, failed: u64) -> Shown {
        let attempts = Attempts {
            total,
            failed,
            tcp: total,
            ..Attempts::default()
        };
        [(WEB, attempts)].into()
    }

    fn sum(tally: &Tally) -> (u64, u64) {
        tally
            .sums()
            .get(&WEB)
            .map_or((0, 0), |sum| (sum.total, sum.failed))
    }

    #[test]
    fn sums_only_grow_whatever_becomes_of_those_who_count() {
        let mut tally = Tally::default();
        tally.take("one", shows(5, 1));
        tally.take("two", shows(2, 0));
        assert_eq!(sum(&tally), (7, 1));
        tally.take("one", shows(5, 1));
        tally.take("one", shows(6, 2));
        assert_eq!(sum(&tally), (8, 2));
        tally.end("two");
        tally.take("two", shows(1, 1));
        assert_eq!(sum(&tally), (9, 3), "another sandbox under an old name");
        tally.take("one", shows(2, 2));
        assert_eq!(sum(&tally), (11, 5), "its counters began anew");
        let other = [(EndpointId([2; 16]), Attempts::default())];
        tally.take("one", other.into());
        tally.take("one", shows(2, 2));
        assert_eq!(sum(&tally), (11, 5), "it was asked for another in between");
        let pending = tally.sums()[&WEB].pending();
        assert_eq!(pending, 0, "those of ended counters are not waited for");
        tally.retain(std::iter::empty());
        assert_eq!(sum(&tally), (0, 0));
        tally.take("one", shows(1, 0));
        assert_eq!(sum(&tally), (1, 0));
    }
}
