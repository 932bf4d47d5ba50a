//! Which numbers of an array are free.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// For so long a program may still use what was just given up; far longer than any runs.
const GRACE: Duration = Duration::from_secs(1);

/// Gives out ranges of numbers, the lowest first. What comes back is given out again only after a while.
#[derive(Debug)]
pub(super) struct Ranges {
    /// First number and length; no two touch.
    free: BTreeMap<u32, u32>,
    waiting: VecDeque<(Instant, u32, u32)>,
}

impl Ranges {
    /// The numbers below `end` are free.
    pub(super) fn new(end: u32) -> Self {
        Self {
            free: [(0, end)].into(),
            waiting: VecDeque::new(),
        }
    }

    /// Takes this very range, if all of it is free.
    pub(super) fn claim(&mut self, first: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let Some((&start, &free)) = self.free.range(..=first).next_back() else {
            return false;
        };
        let (end, free_end) = (first.saturating_add(len), start + free);
        if end > free_end {
            return false;
        }
        self.free.remove(&start);
        if start < first {
            self.free.insert(start, first - start);
        }
        if end < free_end {
            self.free.insert(end, free_end - end);
        }
        true
    }

    /// The first number of a range that was free, if there is one of this length.
    pub(super) fn take(&mut self, len: u32, now: Instant) -> Option<u32> {
        while let Some(&(since, first, waiting)) = self.waiting.front() {
            if now.saturating_duration_since(since) < GRACE {
                break;
            }
            self.waiting.pop_front();
            self.insert(first, waiting);
        }
        if len == 0 {
            return Some(0);
        }
        let first = self
            .free
            .iter()
            .find_map(|(&first, &free)| (free >= len).then_some(first))?;
        self.claim(first, len).then_some(first)
    }

    /// Gives a range back.
    pub(super) fn give(&mut self, first: u32, len: u32, now: Instant) {
        if len > 0 {
            self.waiting.push_back((now, first, len));
        }
    }

    fn insert(&mut self, mut first: u32, mut len: u32) {
        if let Some((&before, &free)) = self.free.range(..first).next_back()
            && before + free == first
        {
            self.free.remove(&before);
            (first, len) = (before, free + len);
        }
        if let Some(free) = self.free.remove(&(first + len)) {
            len += free;
        }
        self.free.insert(first, len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_is_given_out_twice_and_all_comes_back(steps in prop::collection::vec((any::<bool>(), 0u32..40), 1..200)) {
            let (mut ranges, mut now) = (Ranges::new(256), Instant::now());
            let mut out: Vec<(u32, u32)> = Vec::new();
            let mut used = [false; 256];
            for (take, n) in steps {
                now += GRACE;
                if take {
                    if let Some(first) = ranges.take(n, now) {
                        for number in first..first + n {
                            prop_assert!(!std::mem::replace(&mut used[number as usize], true));
                        }
                        out.push((first, n));
                    } else {
                        prop_assert!(used.iter().filter(|used| !**used).count() < 256);
                    }
                } else if !out.is_empty() {
                    let (first, len) = out.swap_remove(n as usize % out.len());
                    (first..first + len).for_each(|number| used[number as usize] = false);
                    ranges.give(first, len, now);
                }
            }
            for (first, len) in out {
                ranges.give(first, len, now);
            }
            prop_assert_eq!(ranges.take(256, now + GRACE), Some(0));
        }
    }

    #[test]
    fn what_came_back_rests_for_a_while() {
        let (mut ranges, now) = (Ranges::new(2), Instant::now());
        assert!(ranges.claim(1, 1) && !ranges.claim(1, 1) && !ranges.claim(0, 2));
        assert_eq!(ranges.take(1, now), Some(0));
        ranges.give(0, 1, now);
        assert_eq!(ranges.take(1, now), None);
        assert_eq!(ranges.take(1, now + GRACE), Some(0));
    }
}
