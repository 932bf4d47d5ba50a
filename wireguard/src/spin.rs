//! Whether to look for the next packet again and again, for a short time, instead of sleeping until it comes. To be woken on a
//! processor that has gone idle takes longer than all the rest of a packet's way. It is worth it while packets come one by one and soon
//! after each other, as in a ping-pong, and while nobody else wants the processor.

use std::time::{Duration, Instant};

use crate::turns::Taken;

/// For so long, at most.
const LOOK_FOR: Duration = Duration::from_micros(100);
/// So soon each has to come after the one before, on processors that go idle in between.
const SOON: Duration = Duration::from_micros(300);
/// So many have to have come that soon, one after the other: a question and its answer alone are no ping-pong. Also so many that come
/// later than they were looked for pay for having looked in vain.
const STREAK: u32 = 8;
/// Longer ones are no ping-pong.
const SHORT: usize = 2048;
/// Who lets others go first and has the processor back within this was alone on it.
const ALONE: Duration = Duration::from_micros(3);
/// Whoever was not so often in a row shares it with others, and would be woken there at no cost.
const SHARED: u32 = 8;
const PAUSE: Duration = Duration::from_millis(20);
/// Who had to wait for it for so long shares it with somebody who computes.
const TAKEN_AWAY: Duration = Duration::from_micros(300);
const LONG_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Spin {
    streak: u32,
    shared: u32,
    not_before: Instant,
}

impl Spin {
    pub fn new(now: Instant) -> Self {
        Self {
            streak: 0,
            shared: 0,
            not_before: now,
        }
    }

    /// So much was taken after so long.
    pub fn note(&mut self, waited: Duration, taken: Taken) {
        let is_next = waited < SOON && taken.packets <= 1 && taken.bytes <= SHORT;
        self.streak = if is_next { (self.streak + 1).min(STREAK) } else { 0 };
    }

    /// Whether to look, rather than to sleep.
    pub fn may_begin(&self, now: Instant) -> bool {
        self.streak >= STREAK && now >= self.not_before
    }

    /// Having looked since `begun`, it let others go first at `yielded`, and it is `now`.
    pub fn may_go_on(&mut self, begun: Instant, yielded: Instant, now: Instant) -> bool {
        let took = now.saturating_duration_since(yielded);
        self.shared = if took < ALONE { 0 } else { self.shared + 1 };
        if took >= TAKEN_AWAY {
            self.not_before = now + LONG_PAUSE;
        } else if self.shared >= SHARED {
            self.not_before = now + PAUSE;
            self.shared = 0;
        }
        if now.saturating_duration_since(begun) >= LOOK_FOR {
            self.streak = 0;
        }
        self.may_begin(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Taken = Taken {
        packets: 1,
        bytes: 200,
    };

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn in_ping_pong(now: Instant) -> Spin {
        let mut spin = Spin::new(now);
        (0..STREAK).for_each(|_| spin.note(micros(60), ONE));
        assert!(spin.may_begin(now));
        spin
    }

    #[test]
    fn only_packets_that_come_one_by_one_and_soon_are_looked_for() {
        let now = Instant::now();
        let mut spin = Spin::new(now);
        for _ in 0..STREAK {
            assert!(!spin.may_begin(now));
            spin.note(micros(299), ONE);
        }
        assert!(spin.may_begin(now));
        let others = [
            (micros(300), ONE),
            (
                micros(10),
                Taken {
                    packets: 2,
                    bytes: 300,
                },
            ),
            (
                micros(10),
                Taken {
                    packets: 1,
                    bytes: 2049,
                },
            ),
        ];
        for (waited, taken) in others {
            let mut spin = in_ping_pong(now);
            spin.note(waited, taken);
            assert!(!spin.may_begin(now));
        }
    }

    #[test]
    fn a_question_with_its_answer_now_and_then_is_none() {
        let now = Instant::now();
        let mut spin = Spin::new(now);
        for _ in 0..100 {
            spin.note(micros(1_000), ONE);
            spin.note(micros(50), ONE);
            assert!(!spin.may_begin(now));
        }
    }

    #[test]
    fn what_was_looked_for_in_vain_is_looked_for_again_eight_packets_later() {
        let begun = Instant::now();
        let mut spin = in_ping_pong(begun);
        for at in 1..100 {
            let yielded = begun + micros(at);
            assert!(spin.may_go_on(begun, yielded, yielded));
        }
        let end = begun + micros(100);
        assert!(!spin.may_go_on(begun, end, end));
        for _ in 0..STREAK {
            assert!(!spin.may_begin(end));
            spin.note(micros(200), ONE);
        }
        assert!(spin.may_begin(end));
    }

    #[test]
    fn who_is_not_alone_on_the_processor_sleeps_and_tries_again_later() {
        for (times, took, pause) in [(8, 3, 20_000), (1, 300, 1_000_000)] {
            let begun = Instant::now();
            let mut spin = in_ping_pong(begun);
            let now = begun + micros(took);
            // Each looks for the next packet anew.
            for _ in 1..times {
                assert!(spin.may_go_on(now, begun, now));
            }
            assert!(!spin.may_go_on(now, begun, now));
            assert!(!spin.may_begin(now + micros(pause - 1)));
            assert!(spin.may_begin(now + micros(pause)));
        }
    }

    #[test]
    fn now_and_then_somebody_else_may_go_first() {
        let begun = Instant::now();
        let mut spin = in_ping_pong(begun);
        for at in 0..80 {
            let took = micros(if at % 8 == 7 { 2 } else { 4 });
            assert!(spin.may_go_on(begun, begun, begun + took));
        }
    }
}
