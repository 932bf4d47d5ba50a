use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{Backend, Candidate, Loads};

const TIME: Duration = Duration::from_secs(30);

fn id(n: usize) -> EndpointId {
    EndpointId([n as u8; 16])
}

/// A service with backends of these weights.
fn service(scheduler: Scheduler, weights: &[u16]) -> Service {
    let backend = |(n, weight): (usize, &u16)| Backend {
        endpoint: id(n),
        addrs: vec![IpAddr::from([10, 0, 0, n as u8])],
        weight: NonZeroU16::new(*weight).unwrap(),
        state: BackendState::Active,
    };
    Service {
        id: ServiceId([1; 16]),
        vips: vec![IpAddr::from([10, 0, 1, 0])],
        ports: vec![],
        scheduler,
        backends: weights.iter().enumerate().map(backend).collect(),
        idle_timeout: None,
        is_watched: false,
    }
}

fn weights(slow: &SlowStart, service: &Service) -> Vec<u16> {
    let mut service = service.clone();
    slow.apply(&mut service);
    service
        .backends
        .iter()
        .map(|backend| backend.weight.get())
        .collect()
}

fn candidates(slow: &SlowStart, service: &Service) -> Vec<Candidate> {
    let mut service = service.clone();
    slow.apply(&mut service);
    let backends = service.backends.iter();
    backends
        .map(|backend| Candidate {
            endpoint: backend.endpoint,
            weight: backend.weight,
        })
        .collect()
}

proptest! {
    /// A minute of connections that last, placed one by one: whoever is new has at no time more of them than its
    /// share of what the others have, and in the end as many.
    #[test]
    fn a_new_backend_is_not_flooded(
        others in 1usize..8,
        held in 5u64..60,
        pace in 20u64..200,
        lasts in 200u64..3_000,
    ) {
        let start = Instant::now();
        let (mut slow, mut loads) = (SlowStart::default(), Loads::new());
        slow.begin().observe(&service(Scheduler::LeastConnections, &vec![1; others]), TIME, start);
        let web = service(Scheduler::LeastConnections, &vec![1; others + 1]);
        let new = id(others);
        let mut open = std::collections::VecDeque::new();
        for n in 0..held * others as u64 {
            let endpoint = id(n as usize % others);
            loads.opened(endpoint);
            open.push_back(endpoint);
        }
        slow.begin().observe(&web, TIME, start);
        let mut now = start;
        let mut placed = 0;
        while now < start + 2 * TIME {
            now += Duration::from_millis(pace);
            if slow.poll_timeout().is_some_and(|due| due <= now) {
                slow.begin().observe(&web, TIME, now);
            }
            // One ends for each that begins, after some were added.
            if placed * pace > lasts {
                open.pop_front().into_iter().for_each(|endpoint| loads.closed(endpoint));
            }
            let choice = loads.next_choices(&candidates(&slow, &web))[0];
            loads.opened(choice);
            open.push_back(choice);
            placed += 1;
            if choice == new {
                let most = (0..others).map(|n| loads.open(id(n))).max().unwrap();
                let tenths = u64::from(slow.tenths(web.id, new).unwrap_or(STEPS));
                prop_assert!(
                    loads.open(new) <= (most + 1) * tenths / 10 + 1,
                    "{} of {most} at {tenths} tenths", loads.open(new)
                );
            }
        }
        prop_assert_eq!(slow.tenths(web.id, new), None);
        prop_assert_eq!(slow.poll_timeout(), None);
    }

    #[test]
    fn a_share_only_grows_and_is_whole_in_time(weights in prop::collection::vec(1u16.., 2..10), looks in prop::collection::vec(0u64..10_000, 1..30)) {
        let start = Instant::now();
        let web = service(Scheduler::WeightedRoundRobin, &weights);
        let old = service(Scheduler::WeightedRoundRobin, &weights[..1]);
        let mut slow = SlowStart::default();
        slow.begin().observe(&old, TIME, start);
        let (mut now, mut before) = (start, 0.0);
        for look in looks {
            now += Duration::from_millis(look);
            slow.begin().observe(&web, TIME, now);
            let after = self::weights(&slow, &web);
            // In relation to the one that was there.
            let share = f64::from(after[1]) / f64::from(after[0]) * f64::from(weights[0]) / f64::from(weights[1]);
            let slack = 1.0 / f64::from(after[1]);
            prop_assert!(share + slack >= before && share <= 1.0 + slack.max(1.0 / f64::from(after[0])), "{share} after {before}");
            before = share.min(1.0);
        }
        slow.begin().observe(&web, TIME, now + TIME);
        prop_assert_eq!(self::weights(&slow, &web), weights);
    }
}

#[test]
fn without_it_a_new_backend_gets_every_connection() {
    let mut loads = Loads::new();
    for n in 0..2 {
        (0..20).for_each(|_| loads.opened(id(n)));
    }
    let web = service(Scheduler::LeastConnections, &[1; 3]);
    let plain = candidates(&SlowStart::default(), &web);
    let first: Vec<_> = loads.next_choices(&plain).into_iter().take(18).collect();
    assert!(first.iter().all(|choice| *choice == id(2)), "{first:?}");

    let now = Instant::now();
    let mut slow = SlowStart::default();
    slow.begin()
        .observe(&service(Scheduler::LeastConnections, &[1; 2]), TIME, now);
    slow.begin().observe(&web, TIME, now);
    let slowly = loads.next_choices(&candidates(&slow, &web));
    let first = slowly
        .into_iter()
        .take(18)
        .filter(|choice| *choice == id(2))
        .count();
    assert!(first <= 3, "{first}");
}

#[test]
fn shares_grow_from_a_tenth_step_by_step_and_who_was_there_first_has_all() {
    let start = Instant::now();
    let mut slow = SlowStart::default();
    let mut web = service(Scheduler::LeastConnections, &[4, 2]);
    slow.begin()
        .observe(&service(Scheduler::LeastConnections, &[4]), TIME, start);
    assert_eq!(weights(&slow, &web), [4, 2], "it was not looked at yet");
    slow.begin().observe(&web, TIME, start);
    assert_eq!(weights(&slow, &web), [40, 2]);
    let due = slow.poll_timeout().unwrap();
    slow.begin().observe(&web, TIME, due);
    assert_eq!(weights(&slow, &web), [40, 4]);
    slow.begin().observe(&web, TIME, start + TIME / 2);
    assert_eq!(weights(&slow, &web), [40, 10]);
    assert_eq!(slow.tenths(web.id, id(1)), Some(5));

    // It does not count where weights do not, or would move clients.
    for scheduler in [Scheduler::RoundRobin, Scheduler::Maglev] {
        let other = Service {
            scheduler,
            ..web.clone()
        };
        assert_eq!(weights(&slow, &other), [4, 2]);
    }
    // Away and back it is new again; all new ones together are as all old ones.
    web.backends[1].state = BackendState::Draining;
    slow.begin().observe(&web, TIME, start + TIME);
    web.backends[1].state = BackendState::Active;
    slow.begin().observe(&web, TIME, start + TIME);
    assert_eq!(weights(&slow, &web), [40, 2]);
    web.backends[0].state = BackendState::Down;
    slow.begin().observe(&web, TIME, start + TIME);
    assert_eq!(weights(&slow, &web), [4, 2]);
    // Who is not observed is forgotten.
    slow.begin();
    assert_eq!((slow.poll_timeout(), slow.tenths(web.id, id(1))), (None, None));
}

#[test]
fn each_timeout_is_the_next_tenth_and_comes_once() {
    let start = Instant::now();
    let mut slow = SlowStart::default();
    assert!(!slow.handle_timeout(start), "nothing is due");
    let web = service(Scheduler::LeastConnections, &[1, 1]);
    let old = service(Scheduler::LeastConnections, &[1]);
    slow.begin().observe(&old, TIME, start);
    slow.begin().observe(&web, TIME, start);
    for tenths in 1..STEPS {
        assert_eq!(slow.tenths(web.id, id(1)), Some(tenths));
        let due = slow.poll_timeout().unwrap();
        assert!(!slow.handle_timeout(due - Duration::from_nanos(1)));
        assert!(slow.handle_timeout(due) && !slow.handle_timeout(due));
        slow.begin().observe(&web, TIME, due);
    }
    assert_eq!((slow.tenths(web.id, id(1)), slow.poll_timeout()), (None, None));
}
