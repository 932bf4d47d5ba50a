use std::{net::IpAddr, num::NonZeroU16};

use proptest::prelude::*;
use weft_types::ServiceId;

use super::*;
use crate::{Backend, Scheduler};

const RULE: EjectRule = EjectRule {
    failures: 5,
    time: Duration::from_secs(30),
};
const SECOND: Duration = Duration::from_secs(1);

fn id(n: usize) -> EndpointId {
    EndpointId([n as u8; 16])
}

fn service(backends: usize) -> Service {
    let backend = |n| Backend {
        endpoint: id(n),
        addrs: vec![IpAddr::from([10, 0, 0, n as u8])],
        weight: NonZeroU16::MIN,
        state: BackendState::Active,
    };
    Service {
        id: ServiceId([1; 16]),
        vips: vec![IpAddr::from([10, 0, 1, 0])],
        ports: vec![],
        scheduler: Scheduler::RoundRobin,
        backends: (0..backends).map(backend).collect(),
        idle_timeout: None,
        is_watched: false,
    }
}

/// A host whose clients use a service, looked at once a second.
struct Host {
    web: Service,
    counted: BTreeMap<EndpointId, Attempts>,
    ejections: Ejections,
    now: Instant,
}

impl Host {
    fn new(backends: usize) -> Self {
        let mut host = Self {
            web: service(backends),
            counted: BTreeMap::new(),
            ejections: Ejections::default(),
            now: Instant::now(),
        };
        host.look();
        host
    }

    /// Connections to a backend: that are made, fail, and have no answer yet.
    fn calls(&mut self, backend: usize, made: u64, failed: u64, pending: u64) -> &mut Self {
        let counted = self.counted.entry(id(backend)).or_default();
        counted.tcp += made + failed + pending;
        counted.total = counted.tcp;
        counted.made += made;
        counted.failed += failed;
        self
    }

    fn look(&mut self) {
        self.now += SECOND;
        self.ejections.handle_timeout(self.now);
        self.ejections
            .handle_attempts(&self.web, RULE, &self.counted, self.now);
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.look();
        }
    }

    fn out(&self) -> Vec<usize> {
        let mut web = self.web.clone();
        self.ejections.apply(&mut web);
        let out = |n: &usize| web.backends[*n].state != self.web.backends[*n].state;
        (0..web.backends.len()).filter(out).collect()
    }

    fn changes(&mut self) -> Vec<(usize, bool)> {
        let changes = std::iter::from_fn(|| self.ejections.poll_change());
        changes
            .map(|change| (usize::from(change.endpoint.0[0]), change.ejected.is_some()))
            .collect()
    }
}

#[test]
fn a_backend_that_refuses_is_out_after_so_many_and_comes_back() {
    let mut host = Host::new(2);
    host.calls(0, 0, 4, 0).look();
    assert!(host.out().is_empty());
    host.calls(0, 0, 1, 0).calls(1, 5, 0, 0).look();
    assert_eq!(host.out(), [0]);
    assert_eq!(host.ejections.ejected(id(0)).unwrap().failures, 5);
    assert_eq!(host.ejections.poll_timeout(), Some(host.now + RULE.time));
    host.pass(RULE.time);
    assert!(host.out().is_empty());
    assert_eq!(host.changes(), [(0, true), (0, false)]);
    assert_eq!(host.ejections.poll_timeout(), None);
}

#[test]
fn one_that_is_made_ends_the_row() {
    let mut host = Host::new(2);
    for _ in 0..20 {
        host.calls(0, 0, 4, 0).look();
        host.calls(0, 1, 30, 0).look();
    }
    assert!(host.out().is_empty());
}

#[test]
fn whoever_does_not_answer_has_failed_once_and_not_again_when_the_kernel_gives_up() {
    let mut host = Host::new(2);
    host.calls(0, 0, 0, 4).look();
    host.pass(PATIENCE + SECOND);
    assert!(host.out().is_empty());
    // The four end.
    host.counted.get_mut(&id(0)).unwrap().failed += 4;
    host.pass(2 * PATIENCE);
    assert!(host.out().is_empty(), "counted twice");
    host.calls(0, 0, 0, 1).look();
    assert!(host.out().is_empty());
    host.pass(PATIENCE + SECOND);
    assert_eq!(host.out(), [0]);
}

#[test]
fn what_was_pending_before_anybody_looked_is_nobodys_failure() {
    let mut host = Host::new(2);
    host.ejections = Ejections::default();
    host.calls(0, 0, 0, 50).look();
    host.pass(3 * PATIENCE);
    assert!(host.out().is_empty());
    host.calls(0, 0, 0, 5).look();
    host.pass(PATIENCE + SECOND);
    assert_eq!(host.out(), [0], "and hides none");
}

#[test]
fn whose_end_nobody_knows_proves_nothing() {
    let mut host = Host::new(2);
    for _ in 0..10 {
        host.calls(0, 0, 0, 5);
        host.counted.get_mut(&id(0)).unwrap().unknown += 5;
        host.look();
    }
    host.pass(2 * PATIENCE);
    assert!(host.out().is_empty());
}

#[test]
fn each_time_is_longer_until_it_is_well_for_as_long() {
    let mut host = Host::new(2);
    let mut lasted = Vec::new();
    let mut fail = |host: &mut Host| {
        host.calls(0, 0, 5, 0).look();
        let until = host.ejections.ejected(id(0)).expect("it is out").until;
        lasted.push((until - host.now).as_secs() / RULE.time.as_secs());
        host.pass(until - host.now);
    };
    (0..7).for_each(|_| fail(&mut host));
    // Idle for long is not well.
    host.pass(1000 * RULE.time);
    fail(&mut host);
    host.calls(0, 1, 0, 0).look();
    fail(&mut host);
    host.calls(0, 1, 0, 0).look();
    host.pass(LONGEST * RULE.time);
    fail(&mut host);
    assert_eq!(lasted, [1, 2, 4, 8, 16, 16, 16, 16, 16, 1]);
}

#[test]
fn never_more_than_half_are_out() {
    for (backends, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (7, 3)] {
        let mut host = Host::new(backends);
        for n in 0..backends {
            host.calls(n, 0, 100, 0);
        }
        host.look();
        assert_eq!(host.out().len(), most);
        assert_eq!(host.changes().len(), most, "nor said to be");
    }
    // Others go: at once, and for those who ask too.
    let mut host = Host::new(4);
    host.calls(0, 0, 9, 0).look();
    host.calls(1, 0, 9, 0).look();
    assert_eq!(host.out(), [0, 1]);
    host.web.backends[3].state = BackendState::Draining;
    assert_eq!(host.out(), [1], "who has the longest to wait stays out");
    host.look();
    assert_eq!(host.ejections.ejected(id(0)), None);
    assert_eq!(host.changes(), [(0, true), (1, true), (0, false)]);
    // Who is drained is out for that reason; activated, it begins anew.
    host.web.backends[1].state = BackendState::Down;
    host.look();
    assert_eq!(host.changes(), [(1, false)]);
    host.web.backends[1].state = BackendState::Active;
    host.look();
    assert!(host.out().is_empty());
    host.ejections.retain(|_| false);
    assert!(host.ejections.watched.is_empty());
}

#[derive(Debug, Clone, Copy)]
enum Input {
    Calls(usize, u64, u64, u64),
    /// Some of the pending ones end.
    Settle(usize, u64, u64),
    State(usize, BackendState),
    Pass(u64),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    use BackendState::{Active, Down, Draining};
    let backend = 0usize..4;
    let state = prop::sample::select(vec![Active, Active, Draining, Down]);
    let input = prop_oneof![
        (backend.clone(), 0u64..3, 0u64..8, 0u64..8).prop_map(|(n, a, b, c)| Input::Calls(n, a, b, c)),
        (backend.clone(), 0u64..8, 0u64..8).prop_map(|(n, a, b)| Input::Settle(n, a, b)),
        (backend, state).prop_map(|(n, state)| Input::State(n, state)),
        (1u64..40).prop_map(Input::Pass),
    ];
    prop::collection::vec(input, 1..60)
}

proptest! {
    /// Whatever happens: no more than half of the active ones are out; nobody is out without having failed often enough since
    /// the last connection that was made to it; and whoever is left alone comes back.
    #[test]
    fn it_keeps_its_promises(inputs in inputs()) {
        let mut host = Host::new(4);
        // Failed since the last one that was made, as an outsider would count them: all that were tried.
        let mut row = [0u64; 4];
        let mut was_out = Vec::new();
        for input in inputs {
            match input {
                Input::Calls(n, made, failed, pending) => {
                    host.calls(n, made, failed, pending);
                    // What is still pending may fail after that.
                    row[n] = match made {
                        0 => row[n] + failed + pending,
                        _ => host.counted[&id(n)].pending(),
                    };
                    host.look();
                }
                Input::Settle(n, made, failed) => {
                    let counted = host.counted.entry(id(n)).or_default();
                    let made = made.min(counted.pending());
                    counted.made += made;
                    let failed = failed.min(counted.pending());
                    counted.failed += failed;
                    if made > 0 {
                        row[n] = counted.pending() + failed;
                    }
                    host.look();
                }
                Input::State(n, state) => {
                    host.web.backends[n].state = state;
                    host.look();
                }
                Input::Pass(secs) => host.pass(Duration::from_secs(secs)),
            }
            let active = host.web.backends.iter().filter(|b| b.state == BackendState::Active).count();
            let out = host.out();
            prop_assert!(out.len() <= active / 2);
            for n in &out {
                prop_assert!(was_out.contains(n) || row[*n] >= 5, "{n} failed {} times", row[*n]);
            }
            was_out = out;
        }
        host.pass((LONGEST + 1) * RULE.time);
        prop_assert!(host.out().is_empty());
        // Every change is one.
        let mut known = [false; 4];
        for (n, is_out) in host.changes() {
            prop_assert_ne!(known[n], is_out);
            known[n] = is_out;
        }
    }
}
