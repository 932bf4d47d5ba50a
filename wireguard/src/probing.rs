//! What a path takes when nobody says so: packets that are too long are dropped, and no ICMP tells.
//!
//! In the manner of RFC 8899: while something is sent to a peer, it is asked now and then to answer a packet as long as
//! the longest, and a short one beside it. Where the short one is answered and the long one is not, several times in a
//! row, all lengths are asked for at once, and the longest that is answered is what the path takes. Longer ones are asked
//! for again from time to time.

use std::time::{Duration, Instant};

/// The short one. Every path of ours takes it: a network needs more.
const BASE: u16 = 576;
/// The lengths that are asked for: what is left of common links by common tunnels.
const LENGTHS: [u16; 20] = [
    8972, 4072, 1500, 1492, 1480, 1472, 1460, 1450, 1440, 1430, 1420, 1410, 1400, 1380, 1360, 1340, 1320,
    1300, 1280, 1024,
];
/// Between two questions while all is well.
const WATCH_EVERY: Duration = Duration::from_secs(3);
/// For an answer, until it counts as lost.
const PATIENCE: Duration = Duration::from_millis(500);
/// So many times in a row the long one is lost and the short one is not: it is not by chance.
const MOST_LOST: u8 = 3;
/// A path is in use so long after something was sent: who waits for an answer sends more and more rarely.
const USED_FOR: Duration = Duration::from_secs(5);
/// Between two attempts to find out that the path takes more again.
const RAISE_EVERY: Duration = Duration::from_secs(10);

/// What is known of a path.
#[derive(Debug, Default)]
pub struct Probing {
    /// What it takes, where that is less than it should.
    limit: Option<u16>,
    lost: u8,
    /// The lengths that were asked for last, of which no answer has come, and when they were.
    asked: Option<Asked>,
    watch_at: Option<Instant>,
    raise_at: Option<Instant>,
    sent: u64,
    used_until: Option<Instant>,
}

#[derive(Debug)]
struct Asked {
    until: Instant,
    long: u16,
    has_base: bool,
    has_long: bool,
    /// The longest answered, while all lengths are asked for.
    search: Option<u16>,
}

impl Probing {
    /// What the path takes, where that is less than it should and nobody said so.
    pub fn limit(&self) -> Option<u16> {
        self.limit
    }

    /// The lengths to be asked for now, as packets on the underlay. `sent` grows while the path is used; `full` is the
    /// longest that is of use and that the kernel would send.
    pub fn poll(&mut self, now: Instant, sent: u64, full: u16) -> Vec<u16> {
        if std::mem::replace(&mut self.sent, sent) != sent {
            self.used_until = Some(now + USED_FOR);
        }
        let is_used = self.used_until.is_some_and(|until| now < until);
        if let Some(asked) = self.asked.take_if(|asked| now >= asked.until) {
            self.judge(&asked, now);
            if self.lost >= MOST_LOST {
                self.lost = 0;
                return self.ask(now, asked.long, 0, true);
            }
        }
        if self.limit.is_some_and(|limit| limit >= full) {
            self.limit = None;
        }
        if !is_used || full <= BASE || self.asked.is_some() {
            return Vec::new();
        }
        if let Some(limit) = self.limit
            && self.raise_at.is_none_or(|at| now >= at)
        {
            self.raise_at = Some(now + RAISE_EVERY);
            return self.ask(now, full, limit, false);
        }
        if self.watch_at.is_some_and(|at| now < at) {
            return Vec::new();
        }
        self.watch_at = Some(now + if self.lost > 0 { PATIENCE } else { WATCH_EVERY });
        let long = self.limit.unwrap_or(full);
        self.asked = Some(Asked {
            until: now + PATIENCE,
            long,
            has_base: false,
            has_long: false,
            search: None,
        });
        vec![BASE, long]
    }

    /// All lengths between two, and these.
    fn ask(&mut self, now: Instant, most: u16, more_than: u16, is_search: bool) -> Vec<u16> {
        if is_search {
            self.asked = Some(Asked {
                until: now + PATIENCE,
                long: most,
                has_base: false,
                has_long: false,
                search: Some(0),
            });
        }
        let between = LENGTHS.into_iter().filter(|length| *length < most);
        let all = [most].into_iter().chain(between).chain([BASE]);
        all.filter(|length| *length > more_than).collect()
    }

    fn judge(&mut self, asked: &Asked, now: Instant) {
        match asked.search {
            Some(0) => {}
            Some(found) => {
                self.limit = (found < asked.long || self.limit.is_some()).then_some(found);
                self.raise_at = Some(now + RAISE_EVERY);
                self.watch_at = Some(now + WATCH_EVERY);
            }
            // Where nothing is answered, nothing is known: the peer may be away, or may not know what it is asked.
            None if !asked.has_base => self.lost = 0,
            None if asked.has_long => self.lost = 0,
            None => {
                self.lost += 1;
                self.watch_at = Some(now);
            }
        }
    }

    /// A packet of this length was answered.
    pub fn answered(&mut self, length: u16) {
        if let Some(limit) = &mut self.limit {
            *limit = length.max(*limit);
        }
        if let Some(asked) = &mut self.asked {
            asked.has_base |= length == BASE;
            asked.has_long |= length >= asked.long;
            asked.search = asked.search.map(|found| found.max(length));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// A path, and the packets that are on it.
    struct Path {
        probing: Probing,
        now: Instant,
        takes: u16,
        asked: usize,
        sent: u64,
    }

    impl Path {
        fn new() -> Self {
            Self {
                probing: Probing::default(),
                now: Instant::now(),
                takes: 1500,
                asked: 0,
                sent: 0,
            }
        }

        /// Lets time pass, with some of the questions lost.
        fn pass(&mut self, time: Duration, mut loses: impl FnMut(u16) -> bool) {
            let end = self.now + time;
            while self.now < end {
                self.now += TICK;
                self.sent += 1;
                for length in self.probing.poll(self.now, self.sent, 1480) {
                    self.asked += 1;
                    if length <= self.takes && !loses(length) {
                        self.probing.answered(length);
                    }
                }
            }
        }
    }

    #[test]
    fn a_path_that_swallows_long_packets_is_found_in_seconds_and_one_that_heals_too() {
        let mut path = Path::new();
        path.pass(Duration::from_secs(60), |_| false);
        assert_eq!(path.probing.limit(), None);
        assert!(path.asked <= 42, "{} questions in a minute", path.asked);
        path.takes = 1405;
        path.pass(Duration::from_secs(6), |_| false);
        assert_eq!(path.probing.limit(), Some(1400));
        path.takes = 1300;
        path.pass(Duration::from_secs(6), |_| false);
        assert_eq!(path.probing.limit(), Some(1300));
        path.takes = 1500;
        path.pass(Duration::from_secs(11), |_| false);
        assert_eq!(path.probing.limit(), None);
    }

    #[test]
    fn who_does_not_answer_at_all_and_what_is_not_used_tell_nothing() {
        let mut path = Path::new();
        path.takes = 0;
        path.pass(Duration::from_secs(60), |_| false);
        assert_eq!(path.probing.limit(), None);
        let later = path.now + Duration::from_secs(60);
        let sent = path.sent;
        path.probing.poll(path.now, sent, 1480);
        assert_eq!(path.probing.poll(later, sent, 1480), [0; 0], "it is not used");
        assert_eq!(
            path.probing.poll(later, sent + 1, 500),
            [0; 0],
            "nothing is too long for it"
        );
        assert_eq!(path.probing.poll(later, sent + 2, 1480), [BASE, 1480]);
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_the_path_takes(takes in 576..1500_u16, chance in any::<u64>()) {
            let mut path = Path::new();
            path.takes = takes;
            let mut random = chance | 1;
            // One in sixteen is lost by chance.
            path.pass(Duration::from_secs(30), |_| {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                random >> 60 == 0
            });
            path.pass(Duration::from_secs(30), |_| false);
            let best = LENGTHS.into_iter().chain([BASE, 1480]).filter(|length| *length <= takes.min(1480)).max();
            let found = path.probing.limit().unwrap_or(1480);
            prop_assert_eq!(Some(found), best);
        }
    }
}
