//! Who takes packets. While there is little, one thread, the first, takes from all sources: a packet then wakes one thread, which is often
//! awake still from the one before. While there is much, each thread takes from its own alone.
//!
//! ```text
//!              much                     all had little for a while
//! Together ───────────► Apart ─────────────────────────────────────► Gathering
//!     ▲                                                                  │
//!     └──────────────────────────────────────────────────────────────────┘
//!                       each of the others has come to rest
//! ```
//!
//! Nobody takes from a source while somebody else may: the others begin when the first has said that it takes from theirs no more, and it
//! begins when each of them has said so.

use std::time::{Duration, Instant};

/// What is added up.
const WINDOW: Duration = Duration::from_millis(1);
/// So much in one window is much: half of what a thread can do, or so. Ping-pong on a fast processor is half of that.
const MUCH_PACKETS: usize = 128;
const MUCH_BYTES: usize = 128 * 1024;
/// So many packets that waited at one source are much, however slow the processor.
const MUCH_WAITING: usize = 16;
/// For how long all must have had little before the first takes everything again.
const CALM_MS: u64 = 50;

/// How much there is to do for a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    Little,
    /// Nothing to change for: half of much.
    Some,
    Much,
}

/// What was taken from a source at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    pub packets: usize,
    pub bytes: usize,
}

/// What one thread has had to do of late.
#[derive(Debug)]
pub struct Meter {
    began: Instant,
    sum: Taken,
    woke_at: Instant,
    ended_at: Instant,
    has_leisure: bool,
}

impl Meter {
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            sum: Taken::default(),
            woke_at: now,
            ended_at: now,
            has_leisure: false,
        }
    }

    /// It waited, and there is something. Says for how long it waited.
    pub fn wake(&mut self, now: Instant) -> Duration {
        let waited = now.saturating_duration_since(self.ended_at);
        self.has_leisure = waited > self.ended_at.saturating_duration_since(self.woke_at);
        (self.woke_at, self.ended_at) = (now, now);
        waited
    }

    /// Whether it waited longer than it had worked before: then the first packet is probably alone.
    pub fn has_leisure(&self) -> bool {
        self.has_leisure
    }

    /// It has taken something.
    pub fn note(&mut self, taken: Taken, now: Instant) -> Load {
        if now.saturating_duration_since(self.began) >= WINDOW {
            (self.began, self.sum) = (now, Taken::default());
        }
        self.ended_at = now;
        self.sum.packets += taken.packets;
        self.sum.bytes += taken.bytes;
        let reaches = |share: usize| {
            self.sum.packets >= MUCH_PACKETS / share
                || self.sum.bytes >= MUCH_BYTES / share
                || taken.packets >= MUCH_WAITING / share
        };
        match (reaches(1), reaches(2)) {
            (true, _) => Load::Much,
            (false, true) => Load::Some,
            (false, false) => Load::Little,
        }
    }
}

/// Whether it is long enough ago that a thread had more than little to do, in milliseconds of a clock.
pub fn is_calm(busy_at: u64, now: u64) -> bool {
    now.saturating_sub(busy_at) >= CALM_MS
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Together,
    Apart,
    Gathering,
}

/// Whose turn it is.
#[derive(Debug)]
pub struct Turns {
    phase: Phase,
    /// How many threads beside the first take packets.
    taking: usize,
}

impl Turns {
    pub fn new() -> Self {
        Self {
            phase: Phase::Together,
            taking: 0,
        }
    }

    /// Whether the first may take from all.
    pub fn are_together(&self) -> bool {
        self.phase == Phase::Together
    }

    /// The first takes from the others' no more.
    pub fn spread(&mut self) {
        if self.phase == Phase::Together {
            self.phase = Phase::Apart;
        }
    }

    /// The first wants to take from all. Who takes rests before that; who has not come to take yet does not begin.
    pub fn gather(&mut self) {
        if self.phase == Phase::Apart {
            self.phase = Phase::Gathering;
            self.settle();
        }
    }

    /// One of the others begins to take, if it may.
    pub fn begin(&mut self) -> bool {
        let may = self.phase == Phase::Apart;
        self.taking += usize::from(may);
        may
    }

    /// One of the others takes no more.
    pub fn rest(&mut self) {
        self.taking = self.taking.saturating_sub(1);
        self.settle();
    }

    fn settle(&mut self) {
        if self.phase == Phase::Gathering && self.taking == 0 {
            self.phase = Phase::Together;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(packets: usize, bytes: usize) -> Taken {
        Taken { packets, bytes }
    }

    fn after(begun: Instant, micros: u64) -> Instant {
        begun + Duration::from_micros(micros)
    }

    #[test]
    fn a_ping_pong_as_fast_as_it_goes_is_little() {
        let begun = Instant::now();
        let mut meter = Meter::new(begun);
        for packet in 0..10_000 {
            assert_eq!(meter.note(taken(1, 200), after(begun, packet * 16)), Load::Little);
        }
    }

    #[test]
    fn many_packets_or_bytes_in_one_window_are_much_and_in_two_are_not() {
        for (one, count) in [(taken(1, 64), 128), (taken(1, 64 * 1024), 2)] {
            let begun = Instant::now();
            let mut meter = Meter::new(begun);
            let loads: Vec<_> = (0..count).map(|_| meter.note(one, after(begun, 999))).collect();
            assert_eq!(loads.iter().position(|load| *load == Load::Much), Some(count - 1));
            assert_eq!(
                loads.iter().position(|load| *load == Load::Some),
                Some(count / 2 - 1)
            );
            let mut meter = Meter::new(begun);
            for i in 0..count {
                let at = if i < count / 2 { 999 } else { 1_000 };
                assert_ne!(meter.note(one, after(begun, at)), Load::Much);
            }
        }
    }

    #[test]
    fn what_had_to_wait_is_much_on_the_slowest_processor() {
        let begun = Instant::now();
        let mut meter = Meter::new(begun);
        let cases = [
            (7, Load::Little),
            (8, Load::Some),
            (15, Load::Some),
            (16, Load::Much),
        ];
        for ((packets, load), at) in cases.into_iter().zip(1..) {
            assert_eq!(meter.note(taken(packets, 1_000), after(begun, at * 10_000)), load);
        }
    }

    #[test]
    fn who_works_longer_than_it_waits_expects_more() {
        let begun = Instant::now();
        let mut meter = Meter::new(begun);
        let one = taken(1, 100);
        assert_eq!(meter.wake(after(begun, 20)), Duration::from_micros(20));
        assert!(meter.has_leisure());
        meter.note(one, after(begun, 25));
        meter.note(one, after(begun, 30));
        // It waited for 11, having worked for 10.
        assert_eq!(meter.wake(after(begun, 41)), Duration::from_micros(11));
        assert!(meter.has_leisure());
        meter.note(one, after(begun, 50));
        meter.wake(after(begun, 51));
        assert!(!meter.has_leisure());
        // To have waited in vain is not to have worked.
        meter.wake(after(begun, 60));
        assert!(meter.has_leisure());
    }

    #[test]
    fn calm_is_fifty_milliseconds_of_little() {
        assert!(!is_calm(1_000, 1_049));
        assert!(is_calm(1_000, 1_050));
        // Another thread has said later that it is busy than this one looked at the clock.
        assert!(!is_calm(1_001, 1_000));
    }

    #[test]
    fn the_first_waits_until_all_others_rest_and_they_until_it_has_let_go() {
        let mut turns = Turns::new();
        assert!(turns.are_together() && !turns.begin());
        turns.spread();
        assert!(!turns.are_together() && turns.begin() && turns.begin());
        turns.gather();
        assert!(!turns.are_together());
        turns.rest();
        // Who was asked to rest does not begin again before all have: the first would wait for ever.
        assert!(!turns.are_together() && !turns.begin());
        turns.rest();
        assert!(turns.are_together() && !turns.begin());
    }

    #[test]
    fn who_was_given_no_processor_in_time_is_not_waited_for() {
        let mut turns = Turns::new();
        turns.spread();
        turns.gather();
        assert!(turns.are_together() && !turns.begin());
    }

    #[test]
    fn what_nobody_asked_for_changes_nothing() {
        let mut turns = Turns::new();
        turns.gather();
        assert!(turns.are_together());
        turns.spread();
        turns.spread();
        assert!(turns.begin());
        turns.rest();
        assert!(!turns.are_together() && turns.begin());
    }

    proptest! {
        #[test]
        fn never_do_two_take_from_one_source_and_nobody_waits_for_ever(
            steps in proptest::collection::vec((0_usize..4, any::<bool>()), 1..200),
        ) {
            // Three others: whether each takes.
            let (mut turns, mut taking) = (Turns::new(), [false; 3]);
            for (who, flag) in steps {
                match taking.get_mut(who) {
                    None if flag => turns.spread(),
                    None => turns.gather(),
                    Some(takes) if *takes => {
                        if flag {
                            turns.rest();
                            *takes = false;
                        }
                    }
                    Some(takes) => *takes = turns.begin(),
                }
                prop_assert!(!(turns.are_together() && taking.contains(&true)));
            }
            turns.gather();
            taking.iter().filter(|takes| **takes).for_each(|_| turns.rest());
            prop_assert!(turns.are_together());
        }
    }
}
