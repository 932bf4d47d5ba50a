//! How many handshakes are answered: each costs a quarter of a millisecond, and anybody who knows a public key can
//! write their first message.
//!
//! The cookies of WireGuard prove where a message came from, at the price of five seconds until the next one. So they
//! are asked for only from those over their share: addresses that a peer is known at have one each, everybody else one
//! together. What has a cookie is bounded by its address, and everything together by what this machine can spare.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Of all, a second: a quarter of a processor.
const TOGETHER: Bucket = Bucket::new(1000.0, 1000.0);
/// Of addresses where no peer is known to be, together.
const STRANGERS: Bucket = Bucket::new(20.0, 50.0);
/// Of one address.
const EACH: Bucket = Bucket::new(5.0, 10.0);
/// So many addresses are remembered; a full bucket is the same as none.
const MOST_SOURCES: usize = 16_384;
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// What is to be done with a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Answer,
    /// Answer if it proves its address by a cookie, else with a cookie.
    AskForCookie,
    Ignore,
}

/// Keeps count.
#[derive(Debug)]
pub struct Budget {
    together: Bucket,
    strangers: Bucket,
    sources: HashMap<IpAddr, Bucket>,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    a_second: f64,
    most: f64,
    left: f64,
    at: Option<Instant>,
}

impl Bucket {
    const fn new(a_second: f64, most: f64) -> Self {
        Self {
            a_second,
            most,
            left: most,
            at: None,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.left = (self.left + passed.as_secs_f64() * self.a_second).min(self.most);
        self.at = Some(now);
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            together: TOGETHER,
            strangers: STRANGERS,
            sources: HashMap::new(),
            swept: None,
        }
    }
}

impl Budget {
    /// For a message whose first code is right. `is_known` says whether a peer is known at the address.
    pub fn judge(&mut self, from: IpAddr, is_known: bool, now: Instant) -> Verdict {
        let has_share = if is_known {
            self.of_source(from, now)
        } else {
            self.strangers.take(now)
        };
        if has_share && self.together.take(now) {
            Verdict::Answer
        } else {
            Verdict::AskForCookie
        }
    }

    /// For a message that has a cookie.
    pub fn judge_proven(&mut self, from: IpAddr, now: Instant) -> Verdict {
        if self.of_source(from, now) && self.together.take(now) {
            Verdict::Answer
        } else {
            Verdict::Ignore
        }
    }

    fn of_source(&mut self, from: IpAddr, now: Instant) -> bool {
        let swept = *self.swept.get_or_insert(now);
        if self.sources.len() >= MOST_SOURCES || now.saturating_duration_since(swept) > FORGET_AFTER {
            let is_recent = |at: Instant| now.saturating_duration_since(at) < FORGET_AFTER;
            self.sources.retain(|_, bucket| bucket.at.is_some_and(is_recent));
            self.swept = Some(now);
        }
        let from = network(from);
        if self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&from) {
            return false;
        }
        self.sources.entry(from).or_insert(EACH).take(now)
    }
}

/// Who has one IPv6 address has a whole subnet of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn a_thousand_peers_that_restart_at_once_are_answered_at_once() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        for n in 0..1000 {
            assert_eq!(budget.judge(address(n), true, now), Verdict::Answer, "{n}");
        }
    }

    #[test]
    fn a_flood_of_strangers_has_to_show_cookies_and_leaves_peers_alone() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        let answered = (0..100_000)
            .filter(|n| budget.judge(address(*n), false, now) == Verdict::Answer)
            .count();
        assert_eq!(answered, 50);
        assert_eq!(budget.judge(address(7), true, now), Verdict::Answer);
        assert!(budget.sources.len() < 10, "no memory for them");
    }

    #[test]
    fn one_address_with_a_cookie_cannot_take_everything_and_gets_more_later() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        let count = |budget: &mut Budget, now| {
            let answered = |_: &i32| budget.judge_proven(address(1), now) == Verdict::Answer;
            (0..100).filter(answered).count()
        };
        assert_eq!(count(&mut budget, now), 10);
        assert_eq!(count(&mut budget, now + Duration::from_secs(1)), 5);
    }

    #[test]
    fn addresses_of_one_ipv6_subnet_are_one_and_memory_is_bounded() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        for n in 0..100_u128 {
            budget.judge_proven(IpAddr::V6(Ipv6Addr::from_bits(n)), now);
        }
        assert_eq!(budget.sources.len(), 1);
        for n in 0..100_000 {
            budget.judge_proven(address(n), now);
        }
        assert_eq!(budget.sources.len(), MOST_SOURCES);
        let later = now + FORGET_AFTER;
        assert_eq!(budget.judge_proven(address(1 << 30), later), Verdict::Answer);
        assert_eq!(budget.sources.len(), 1);
    }
}
