use proptest::prelude::*;

use super::{Health::*, *};

fn timing(interval_ms: u64, retries: u16, start_period_ms: u64) -> Timing {
    Timing {
        interval: Duration::from_millis(interval_ms),
        retries: NonZeroU16::new(retries).unwrap(),
        start_period: Duration::from_millis(start_period_ms),
    }
}

/// A monitor whose probes take no time, and the clock it lives by.
struct Bed {
    monitor: Monitor,
    now: Instant,
}

impl Bed {
    fn new(timing: Timing, health: Health) -> Self {
        let now = Instant::now();
        Self {
            monitor: Monitor::new(timing, health, now, 0),
            now,
        }
    }

    /// Waits for the next probe, which ends so.
    fn probe(&mut self, passes: bool) -> Health {
        self.now = self.monitor.poll_timeout().unwrap();
        self.monitor.begin();
        self.monitor.handle_result(passes, self.now, 0);
        self.monitor.health()
    }
}

#[test]
fn failures_in_a_row_are_a_verdict_and_one_pass_revokes_it() {
    let mut bed = Bed::new(timing(1000, 3, 0), Starting);
    for (passes, expected) in [
        (true, Healthy),
        (false, Healthy),
        (false, Healthy),
        (true, Healthy),
        (false, Healthy),
        (false, Healthy),
        (false, Unhealthy),
        (false, Unhealthy),
        (true, Healthy),
        (false, Healthy),
    ] {
        assert_eq!(bed.probe(passes), expected);
    }
}

#[test]
fn a_backend_that_starts_is_probed_at_once_and_often() {
    let mut bed = Bed::new(timing(30_000, 2, 0), Starting);
    let began = bed.now;
    assert_eq!(bed.monitor.poll_timeout(), Some(began));
    bed.probe(false);
    let wait = bed.monitor.poll_timeout().unwrap() - bed.now;
    assert!(wait <= Duration::from_millis(1100), "{wait:?}");
    assert_eq!(bed.probe(false), Unhealthy);
    let wait = bed.monitor.poll_timeout().unwrap() - bed.now;
    assert!(wait >= Duration::from_secs(27), "{wait:?}");
}

#[test]
fn failures_of_the_start_period_count_for_nothing() {
    let mut bed = Bed::new(timing(1000, 2, 10_000), Starting);
    let began = bed.now;
    while bed.now < began + Duration::from_secs(9) {
        assert_eq!(bed.probe(false), Starting);
    }
    while bed.now < began + Duration::from_secs(10) {
        bed.probe(false);
    }
    assert_eq!(bed.probe(false), Unhealthy);
}

#[test]
fn once_it_was_well_the_start_period_is_over() {
    let mut bed = Bed::new(timing(100, 2, 60_000), Starting);
    assert_eq!(bed.probe(true), Healthy);
    assert_eq!(bed.probe(false), Healthy);
    assert_eq!(bed.probe(false), Unhealthy);
}

#[test]
fn after_a_restart_nothing_changes_before_a_probe_says_so() {
    for health in [Healthy, Unhealthy] {
        let mut bed = Bed::new(timing(1000, 3, 0), health);
        assert_eq!(bed.monitor.health(), health);
        assert_eq!(bed.probe(false), health);
        assert_eq!(bed.probe(false), health);
        assert_eq!(bed.probe(false), Unhealthy);
    }
}

#[test]
fn probes_drift_apart_by_up_to_a_tenth() {
    let interval = Duration::from_secs(10);
    let now = Instant::now();
    for (chance, percent) in [(0, 90), (u16::MAX / 2 + 1, 100), (u16::MAX, 110)] {
        let mut monitor = Monitor::new(timing(10_000, 3, 0), Healthy, now, chance);
        let first = monitor.poll_timeout().unwrap() - now;
        let due = interval * (percent - 90) / 20;
        assert!(first.abs_diff(due) < Duration::from_millis(1), "{first:?}");
        monitor.begin();
        assert!(!monitor.handle_result(true, now, chance));
        let wait = monitor.poll_timeout().unwrap() - now;
        assert!(
            wait.abs_diff(interval * percent / 100) < Duration::from_millis(1),
            "{wait:?}"
        );
    }
}

fn health() -> impl Strategy<Value = Health> {
    prop::sample::select(vec![Starting, Healthy, Unhealthy])
}

proptest! {
    #[test]
    fn the_verdict_is_that_of_the_last_results(
        first in health(),
        retries in 1u16..6,
        start_period_ms in 0u64..5000,
        interval_ms in 10u64..5000,
        results in prop::collection::vec((any::<bool>(), 0u64..3000, any::<u16>()), 0..80),
    ) {
        let timing = timing(interval_ms, retries, start_period_ms);
        let began = Instant::now();
        let mut monitor = Monitor::new(timing, first, began, 7);
        let mut now = began;
        // The model: which results count, in order.
        let mut counted = Vec::new();
        let mut was_well = first != Starting;
        for (passes, took_ms, chance) in results {
            let due = monitor.poll_timeout().unwrap();
            prop_assert!(due >= now, "never due in the past: no busy loop");
            now = due;
            monitor.begin();
            prop_assert_eq!(monitor.poll_timeout(), None, "one probe at a time");
            now += Duration::from_millis(took_ms);
            let before = monitor.health();
            let changed = monitor.handle_result(passes, now, chance);
            prop_assert_eq!(changed, before != monitor.health());

            if passes || was_well || now >= began + timing.start_period {
                counted.push(passes);
            }
            was_well |= passes;
            let failures = counted.iter().rev().take_while(|passed| !**passed).count();
            let expected = if passes {
                Healthy
            } else if failures >= usize::from(retries) {
                Unhealthy
            } else {
                before
            };
            prop_assert_eq!(monitor.health(), expected);

            let wait = monitor.poll_timeout().unwrap() - now;
            let full = match monitor.health() {
                Starting => timing.interval.min(WHILE_STARTING),
                _ => timing.interval,
            };
            prop_assert!(wait >= full * 8 / 10 && wait <= full * 12 / 10, "{wait:?} of {full:?}");
        }
    }
}
