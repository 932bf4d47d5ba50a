use std::{collections::BTreeMap, time::Instant};

use weft_types::NodeId;

/// How many packets or requests of each sender are taken, so that one that floods has no more than its share of the time of those
/// it floods.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: u32,
    burst: u32,
    limit: usize,
    senders: BTreeMap<NodeId, Allowance>,
}

#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl Pace {
    /// Of each of `limit` senders at most `burst` at once, and `per_second` in the long run.
    pub(crate) fn new(per_second: u32, burst: u32, limit: usize) -> Self {
        Self {
            per_second,
            burst,
            limit,
            senders: BTreeMap::new(),
        }
    }

    /// Whether one more is taken.
    pub(crate) fn allows(&mut self, sender: &NodeId, now: Instant) -> bool {
        if !self.senders.contains_key(sender) && self.senders.len() >= self.limit {
            // Who begins anew has a whole burst, and nobody can be a sender whose keys it does not have.
            self.senders.clear();
        }
        let allowance = self.senders.entry(*sender).or_insert(Allowance {
            left: self.burst,
            since: now,
        });
        let passed = now.saturating_duration_since(allowance.since);
        let more = passed.as_secs_f64() * f64::from(self.per_second);
        if more >= 1.0 {
            allowance.left = self.burst.min(allowance.left.saturating_add(more as u32));
            allowance.since = now;
        }
        match allowance.left.checked_sub(1) {
            Some(left) => {
                allowance.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_floods_is_heard_at_the_rate_of_all_and_others_do_not_feel_it() {
        let (one, other) = (NodeId([1; 32]), NodeId([2; 32]));
        let mut pace = Pace::new(100, 200, 8);
        let begin = Instant::now();
        let mut taken = 0;
        for millis in 0..2_000 {
            let now = begin + Duration::from_millis(millis);
            taken += (0..10).filter(|_| pace.allows(&one, now)).count();
            assert!(millis % 20 != 0 || pace.allows(&other, now));
        }
        assert!((380..=401).contains(&taken), "{taken} of 20,000");
        assert_eq!(pace.senders.len(), 2);
    }

    #[test]
    fn so_many_senders_are_kept_and_none_is_heard_more_for_being_one_of_them() {
        let nodes = [1, 2, 3].map(|n| NodeId([n; 32]));
        let mut pace = Pace::new(1, 1, 2);
        let now = Instant::now();
        let mut allows = |n: usize| pace.allows(&nodes[n], now);
        assert!(allows(0) && allows(1));
        assert!(!allows(0) && !allows(1), "both are known");
        assert!(allows(2));
        assert!(pace.senders.len() <= 2);
    }
}
