//! What a change costs a node, by how much there is that does not change.
//!
//! `cargo test -p weft --lib --config 'profile.dev.package.weft.opt-level=2' -- --ignored --nocapture what_a_change_costs`

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::*;

const ROUNDS: usize = 15;

/// The processor time of this thread.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("every thread has that clock")
        .into()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// What is done over and over, with the number of the round.
pub(super) type Act = fn(&mut Large, usize);

pub(super) const CHANGES: [(&str, Act); 4] = [
    ("an endpoint's health", |large, round| {
        let state = [HealthState::Healthy, HealthState::Unhealthy][round % 2];
        large.set_endpoint(0, 3, Some(0), state);
    }),
    ("a backend goes or comes", |large, round| match round % 2 {
        0 => large.remove_endpoint(0, 3),
        _ => large.set_endpoint(0, 3, Some(0), HealthState::Healthy),
    }),
    ("a service goes or comes", |large, round| {
        large.set_service(0, 1, round % 2 == 1);
    }),
    ("nothing", |_, _| {}),
];

/// The medians of taking the record in, and of what the host is told then.
fn measure(large: &mut Large, act: Act) -> [Duration; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let begin = processor_time();
        act(large, round);
        let taken = processor_time();
        let state = large.state();
        let derived = processor_time();
        drop(state);
        times[0].push(taken - begin);
        times[1].push(derived - taken);
    }
    times.map(median)
}

#[test]
#[ignore = "it measures and judges nothing"]
fn what_a_change_costs() {
    println!(
        "networks  services  backends  change                       record      state        all  ratio"
    );
    let mut first = BTreeMap::new();
    for (networks, services, backends) in [(1, 100, 10), (1, 1_000, 10), (1, 10_000, 10), (300, 3, 10)] {
        let mut large = Large::new(networks, networks, services, backends);
        let everything: (&str, Act) = ("everything anew", |large, _| large.control.host_changed());
        for (name, act) in CHANGES.into_iter().chain([everything]) {
            let [record, state] = measure(&mut large, act);
            let all = record + state;
            let first = *first.entry(name).or_insert(all);
            println!(
                "{networks:>8}  {services:>8}  {backends:>8}  {name:<24}  {:>6.0} µs  {:>6.0} µs  {:>6.0} µs  {:>5.1}",
                record.as_secs_f64() * 1e6,
                state.as_secs_f64() * 1e6,
                all.as_secs_f64() * 1e6,
                all.as_secs_f64() / first.as_secs_f64(),
            );
        }
    }
}
