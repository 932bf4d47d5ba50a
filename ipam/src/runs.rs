use std::{collections::BTreeMap, ops::RangeInclusive};

/// A set of numbers kept as runs, so that its size follows the gaps and not the numbers.
///
/// Runs are apart and never touch: neighbours are joined as they are inserted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs(BTreeMap<u128, u128>);

impl Runs {
    pub(crate) fn insert(&mut self, mut first: u128, mut last: u128) {
        // Whatever overlaps or touches becomes part of the new run.
        let reach = last.saturating_add(1);
        while let Some((&f, &l)) = self.0.range(..=reach).next_back() {
            if l.saturating_add(1) < first {
                break;
            }
            self.0.remove(&f);
            first = first.min(f);
            last = last.max(l);
        }
        self.0.insert(first, last);
    }

    pub(crate) fn remove(&mut self, first: u128, last: u128) {
        while let Some((&f, &l)) = self.0.range(..=last).next_back() {
            if l < first {
                break;
            }
            self.0.remove(&f);
            if l > last {
                self.0.insert(last + 1, l);
            }
            if f < first {
                self.0.insert(f, first - 1);
                break;
            }
        }
    }

    pub(crate) fn contains(&self, number: u128) -> bool {
        self.next(number).is_some_and(|(first, _)| first <= number)
    }

    /// The run that holds `number`, or else the first one after it.
    pub(crate) fn next(&self, number: u128) -> Option<(u128, u128)> {
        let before = self
            .0
            .range(..=number)
            .next_back()
            .filter(|(_, last)| **last >= number);
        before
            .or_else(|| self.0.range(number..).next())
            .map(|(f, l)| (*f, *l))
    }

    /// The parts of the runs that lie between `first` and `last`.
    pub(crate) fn between(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, u128)> {
        let begin = self.next(first).map_or(first, |(f, _)| f.min(last));
        self.0
            .range(begin..=last.max(begin))
            .map(move |(f, l)| ((*f).max(first), (*l).min(last)))
            .filter(|(f, l)| f <= l)
    }

    /// The lowest number between `first` and `last` that is in the set.
    pub(crate) fn any(&self, first: u128, last: u128) -> Option<u128> {
        self.next(first).map(|(f, _)| f.max(first)).filter(|n| *n <= last)
    }

    /// Whether every number between `first` and `last` is in the set.
    pub(crate) fn covers(&self, first: u128, last: u128) -> bool {
        self.next(first).is_some_and(|(f, l)| f <= first && last <= l)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = RangeInclusive<u128>> {
        self.0.iter().map(|(f, l)| *f..=*l)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_reach_both_ends_of_the_numbers() {
        let mut runs = Runs::default();
        runs.insert(0, 0);
        runs.insert(2, u128::MAX);
        runs.insert(1, 1);
        assert_eq!(runs.iter().collect::<Vec<_>>(), [0..=u128::MAX]);
        runs.remove(u128::MAX, u128::MAX);
        runs.remove(0, 0);
        assert_eq!(runs.iter().collect::<Vec<_>>(), [1..=u128::MAX - 1]);
    }

    proptest! {
        #[test]
        fn runs_are_a_set(ops in prop::collection::vec((any::<bool>(), 0u128..40, 0u128..12), 1..40)) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (add, first, more) in ops {
                let last = first + more;
                if add {
                    runs.insert(first, last);
                    set.extend(first..=last);
                } else {
                    runs.remove(first, last);
                    set.retain(|n| *n < first || *n > last);
                }
                prop_assert_eq!(runs.iter().flatten().collect::<BTreeSet<_>>(), set.clone());
                for pair in runs.iter().collect::<Vec<_>>().windows(2) {
                    prop_assert!(*pair[0].end() + 1 < *pair[1].start(), "neighbours are joined");
                }
                for n in 0..55 {
                    prop_assert_eq!(runs.contains(n), set.contains(&n));
                    prop_assert_eq!(runs.any(n, n + 5), set.range(n..=n + 5).next().copied());
                    prop_assert_eq!(runs.covers(n, n + 3), (n..=n + 3).all(|n| set.contains(&n)));
                    let between = runs.between(n, n + 7).flat_map(|(f, l)| f..=l).collect::<Vec<_>>();
                    prop_assert_eq!(between, set.range(n..=n + 7).copied().collect::<Vec<_>>());
                }
            }
        }
    }
}
