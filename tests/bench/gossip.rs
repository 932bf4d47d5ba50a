//! The gossip core in virtual time: how long changes, crashes and healing take, and what they cost.
//!
//! `cargo run --release -p weft-tests --example bench-gossip -- [--only PART,PART…] [--crashes N] [N]…` prints one table for each
//! cluster size (100 and 1,000 if none is named); the parts are `rest`, `changes`, `still`, `churn`, `crash`, `rack` and `split`. All
//! times are virtual and come out the same on every machine for the same `SIM_SEED`; nothing here measures how fast a machine
//! is, except for the last line of each table.

#[path = "../sim/world.rs"]
#[allow(dead_code)] // Shared with the simulation tests; each uses a part of it.
mod world;

use std::{
    collections::BTreeSet,
    io::Write,
    time::{Duration, Instant},
};

use rand::{RngExt, seq::IteratorRandom};
use weft_gossip::{Event, MemberState};

use crate::world::{World, key, seed};

/// What IPv4 and UDP add to a packet.
const HEADERS: f64 = 28.0;
const CHANGES: usize = 10;
const LOSSES: [f64; 3] = [0.0, 0.05, 0.10];

fn main() {
    let mut sizes: Vec<usize> = Vec::new();
    let mut only: Option<BTreeSet<String>> = None;
    let mut crashes = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--only" => {
                only = args
                    .next()
                    .map(|parts| parts.split(',').map(str::to_owned).collect())
            }
            "--crashes" => crashes = args.next().and_then(|count| count.parse().ok()),
            size => sizes.extend(size.parse::<usize>()),
        }
    }
    if sizes.is_empty() {
        sizes = vec![100, 1_000];
    }
    let seed = seed(1);
    for size in sizes {
        let runs = |part: &str| only.as_ref().is_none_or(|only| only.contains(part));
        let crashes = crashes.unwrap_or(if size > 300 { 5 } else { 15 });
        measure(seed, size, crashes, runs);
    }
}

/// A line of the table, at once: at 1,000 nodes the next one may be minutes away.
fn row(what: &str, value: String) {
    println!("{what:<58} {value}");
    std::io::stdout().flush().ok();
}

fn measure(seed: u64, size: usize, crashes: usize, runs: impl Fn(&str) -> bool) {
    let began = Instant::now();
    println!("\nN = {size}, simulated: 0.2 to 1 ms each way, loss is independent of one another");
    let (mut world, joined) = start(seed, size);
    row(
        "all joined within 2 ms of each other; all agree after",
        format!("{joined:.2?}"),
    );
    world.run_for(Duration::from_secs(15));
    if runs("rest") {
        rest(&mut world);
    }
    if runs("changes") {
        changes(&mut world);
    }
    if runs("still") {
        still(&mut world);
    }
    settle(&mut world);
    if runs("churn") {
        let (packets, bytes, rate, seconds) = churn(&mut world);
        row(
            &format!("{rate} changes per second for {seconds} s, sent per node and second"),
            format!(
                "{:.0} packets, {:.1} kB with headers",
                packets / (size * seconds) as f64,
                (bytes + packets * HEADERS) / (size * seconds) as f64 / 1_000.0
            ),
        );
        settle(&mut world);
    }
    if runs("crash") {
        crash_often(&mut world, crashes);
    }
    if runs("rack") {
        racks(&mut world);
    }
    if runs("split") {
        let (parted, data, agreed) = split(&mut world);
        row(
            "split in halves: each believes the other down after",
            format!("{parted:.1?}"),
        );
        row(
            "healed after a further minute: all data / all agree",
            format!("{data:.2?} / {agreed:.2?}"),
        );
    }
    println!("(took {:.0?} on this machine)", began.elapsed());
}

fn settle(world: &mut World) {
    world.run_until("all agree again", Duration::from_secs(60), World::is_settled);
}

/// What is sent while nothing happens, and whether anybody is believed down.
fn rest(world: &mut World) {
    let time = Duration::from_secs(30);
    for loss in LOSSES {
        world.net.loss = loss;
        world.run_for(Duration::from_secs(5));
        forget_events(world);
        let (packets, bytes) = traffic(world, |world| world.run_for(time));
        let per_node = |count: f64| count / world.nodes.len() as f64 / time.as_secs_f64();
        row(
            &format!("at rest, loss {:>2.0} %: sent per node and second", loss * 100.0),
            format!(
                "{:.2} packets, {:.0} bytes, {:.0} with IP and UDP headers; {} suspicions, {} believed down",
                per_node(packets),
                per_node(bytes),
                per_node(bytes + packets * HEADERS),
                became(world, MemberState::Suspect).len(),
                became(world, MemberState::Down).len(),
            ),
        );
    }
    world.net.loss = 0.0;
}

fn changes(world: &mut World) {
    let mut live_time = Duration::ZERO;
    let mut accused = 0;
    for loss in LOSSES {
        world.net.loss = loss;
        world.run_for(Duration::from_secs(5));
        let begin = world.elapsed();
        let changes: Vec<Change> = (0..CHANGES)
            .map(|n| change(world, &format!("{loss}/{n}")))
            .collect();
        world.run_for(Duration::from_secs(15));
        live_time += world.elapsed() - begin;
        accused += became(world, MemberState::Down).len();
        let worst = |of: fn(&Change) -> Duration| changes.iter().map(of).max().unwrap_or_default();
        let middle = |of: fn(&Change) -> Duration| {
            let mut times: Vec<Duration> = changes.iter().map(of).collect();
            times.sort();
            times[times.len() / 2]
        };
        let copies = changes.iter().map(|change| change.copies).sum::<f64>() / CHANGES as f64;
        row(
            &format!("one change, loss {:>2.0} %: 99 % / 100 % know it", loss * 100.0),
            format!(
                "median {:.0?} / {:.0?}, worst of {CHANGES} {:.0?} / {:.0?}; {copies:.2} copies per node",
                middle(|c| c.most),
                middle(|c| c.all),
                worst(|c| c.most),
                worst(|c| c.all),
            ),
        );
    }
    world.net.loss = 0.0;
    let hours = live_time.as_secs_f64() * world.nodes.len() as f64 / 3_600.0;
    row(
        "false accusations (believed down although alive)",
        format!("{accused} in {hours:.1} node-hours at 0, 5 and 10 % loss"),
    );
}

/// A tenth of the hosts stand still, again and again, each for this long.
fn still(world: &mut World) {
    for millis in [1_000, 2_000, 3_000] {
        forget_events(world);
        let begin = world.elapsed();
        let mut stops = 0;
        while world.elapsed() - begin < Duration::from_secs(60) {
            let wait = Duration::from_millis(world.rng.random_range(0..2_000));
            world.run_for(wait);
            let size = world.nodes.len();
            let hosts = (0..size).sample(&mut world.rng, size / 10);
            stops += hosts.len();
            for host in hosts {
                let late = Duration::from_millis(world.rng.random_range(0..1_000));
                let until = world.elapsed() + late + Duration::from_millis(millis);
                // Not all at the same moment.
                world.net.still.insert(host, until);
                world.run_for(Duration::from_millis(1));
            }
            world.run_for(Duration::from_millis(millis + 3_000));
            world.net.still.clear();
        }
        let down = became(world, MemberState::Down);
        let victims: BTreeSet<_> = down.iter().map(|(_, of)| *of).collect();
        row(
            &format!(
                "{stops} times a host stood still for {:.1} to {:.1} s",
                millis as f64 / 1e3,
                millis as f64 / 1e3 + 1.0
            ),
            format!(
                "{} of them believed down, by {} altogether",
                victims.len(),
                down.len()
            ),
        );
        settle(world);
    }
}

/// Nodes join through a random one that is there already.
fn start(seed: u64, size: usize) -> (World, Duration) {
    let mut world = World::new(seed);
    for index in 0..size {
        world.add();
        world.start(index);
        if index > 0 {
            let at = world.rng.random_range(0..index);
            let seed = world.nodes[at].address;
            world.with(index, |gossip, now| gossip.join([seed], now));
        }
        world.run_for(Duration::from_millis(2));
    }
    let took = world.run_until("all agree", Duration::from_secs(120), World::is_settled);
    (world, took)
}

fn traffic(world: &mut World, act: impl FnOnce(&mut World)) -> (f64, f64) {
    let sum = |world: &World| {
        world
            .running()
            .map(|at| *world.gossip(at).stats())
            .fold((0, 0), |(packets, bytes), stats| {
                (packets + stats.packets_sent, bytes + stats.bytes_sent)
            })
    };
    let before = sum(world);
    act(world);
    let after = sum(world);
    ((after.0 - before.0) as f64, (after.1 - before.1) as f64)
}

struct Change {
    most: Duration,
    all: Duration,
    copies: f64,
}

/// One record is written; waits until everybody has it.
fn change(world: &mut World, name: &str) -> Change {
    let author = world.rng.random_range(0..world.nodes.len());
    let id = world.id(author);
    forget_events(world);
    let begin = world.elapsed();
    let told = |world: &World| {
        world
            .running()
            .map(|at| world.gossip(at).stats().records_told)
            .sum::<u64>()
    };
    let before = told(world);
    // As large as an endpoint's record.
    world.put(author, name, &"v".repeat(120));
    world.run_until("all know the change", Duration::from_secs(30), |world| {
        world
            .running()
            .all(|at| world.gossip(at).get(&id, &key(name)).is_some())
    });
    world.run_for(Duration::from_millis(300));
    let copies = (told(world) - before) as f64 / world.nodes.len() as f64;
    let mut times: Vec<Duration> = Vec::new();
    for at in world.running().filter(|at| *at != author) {
        let arrived = |event: &Event| matches!(event, Event::Record { record, .. } if record.author == id && record.key == key(name));
        let first = world.nodes[at].events.iter().find(|(_, event)| arrived(event));
        times.extend(first.map(|(when, _)| *when - begin));
    }
    times.sort();
    Change {
        most: times[(times.len() * 99).div_ceil(100) - 1],
        all: times[times.len() - 1],
        copies,
    }
}

fn forget_events(world: &mut World) {
    world.nodes.iter_mut().for_each(|node| node.events.clear());
}

/// When, for each node that noticed it, a member became this, and which member.
fn became(world: &World, state: MemberState) -> Vec<(Duration, [u8; 32])> {
    let events = world.nodes.iter().flat_map(|node| &node.events);
    let became = events.filter_map(|(at, event)| match event {
        Event::Member(member) if member.state == state => Some((*at, member.node.0)),
        _ => None,
    });
    became.collect()
}

/// A hundred changes a second for some seconds.
fn churn(world: &mut World) -> (f64, f64, usize, usize) {
    const RATE: usize = 100;
    const SECONDS: usize = 3;
    let (packets, bytes) = traffic(world, |world| {
        for n in 0..RATE * SECONDS {
            let author = world.rng.random_range(0..world.nodes.len());
            world.put(author, "changing", &format!("{n:0>120}"));
            world.run_for(Duration::from_secs(1) / RATE as u32);
        }
    });
    (packets, bytes, RATE, SECONDS)
}

fn crash_often(world: &mut World, crashes: usize) {
    let crashes: Vec<Crash> = (0..crashes).map(|_| crash(world)).collect();
    let sorted = |of: &dyn Fn(&Crash) -> Duration| {
        let mut times: Vec<Duration> = crashes.iter().map(of).collect();
        times.sort();
        times
    };
    let (suspected, all) = (
        sorted(&|crash| crash.suspected),
        sorted(&|crash| *crash.known.last().expect("somebody")),
    );
    let most = sorted(&|crash| crash.known[(crash.known.len() * 99).div_ceil(100) - 1]);
    let mut each: Vec<Duration> = crashes
        .iter()
        .flat_map(|crash| crash.known.iter().copied())
        .collect();
    each.sort();
    let (middle, last) = (crashes.len() / 2, crashes.len() - 1);
    row(
        "a crash is suspected by somebody after",
        format!(
            "median {:.2?}, worst of {} {:.2?}",
            suspected[middle],
            crashes.len(),
            suspected[last]
        ),
    );
    row(
        "a crash is known to 99 % / 100 % after",
        format!(
            "median {:.2?} / {:.2?}, worst of {} {:.2?} / {:.2?}",
            most[middle],
            all[middle],
            crashes.len(),
            most[last],
            all[last]
        ),
    );
    row(
        "over all crashes and nodes: median, p99",
        format!(
            "{:.2?}, {:.2?}",
            each[each.len() / 2],
            each[(each.len() * 99).div_ceil(100) - 1]
        ),
    );
}

struct Crash {
    /// When the first one suspected it.
    suspected: Duration,
    /// When each of the others knew, in order.
    known: Vec<Duration>,
}

/// One node dies; then it comes back, so that the next finds a whole cluster.
fn crash(world: &mut World) -> Crash {
    let pause = Duration::from_millis(world.rng.random_range(0..1_000));
    world.run_for(pause);
    let dead = world.rng.random_range(0..world.nodes.len());
    let id = world.id(dead).0;
    forget_events(world);
    let begin = world.elapsed();
    world.kill(dead);
    let others = world.nodes.len() - 1;
    let of_it = |world: &World, state| {
        let became = became(world, state).into_iter().filter(|(_, of)| *of == id);
        let mut times: Vec<Duration> = became.map(|(at, _)| at - begin).collect();
        times.sort();
        times
    };
    wait(world, "all know of the crash", |world| {
        of_it(world, MemberState::Down).len() >= others
    });
    let suspected = of_it(world, MemberState::Suspect);
    let crash = Crash {
        suspected: suspected.first().copied().unwrap_or_default(),
        known: of_it(world, MemberState::Down),
    };
    world.start(dead);
    settle(world);
    crash
}

/// Waits in longer steps than `run_until`, because to look is dear; the times come from events.
fn wait(world: &mut World, what: &str, condition: impl Fn(&World) -> bool) {
    let begin = world.elapsed();
    while !condition(world) {
        assert!(
            world.elapsed() - begin < Duration::from_secs(60),
            "not within a minute: {what}"
        );
        world.run_for(Duration::from_millis(200));
    }
}

/// A tenth of the nodes die at once: neighbours in the order of their ids, and any.
fn racks(world: &mut World) {
    let size = world.nodes.len();
    let mut ring: Vec<usize> = (0..size).collect();
    ring.sort_by_key(|at| world.id(*at).0);
    let any = (0..size).sample(&mut world.rng, size / 10);
    for (what, dead) in [("neighbours by id", ring[..size / 10].to_vec()), ("any", any)] {
        forget_events(world);
        let begin = world.elapsed();
        for at in &dead {
            world.kill(*at);
        }
        let wanted = (size - dead.len()) * dead.len();
        wait(world, "all know of all", |world| {
            became(world, MemberState::Down).len() >= wanted
        });
        let last = became(world, MemberState::Down)
            .into_iter()
            .map(|(at, _)| at - begin)
            .max();
        row(
            &format!("{} die together ({what}): all know of all after", dead.len()),
            format!("{:.2?}", last.unwrap_or_default()),
        );
        for at in dead {
            world.start(at);
        }
        settle(world);
    }
}

/// The cluster falls apart in halves for a minute, in which both write.
fn split(world: &mut World) -> (Duration, Duration, Duration) {
    let size = world.nodes.len();
    for at in 0..size / 2 {
        world.net.groups.insert(at, 1);
    }
    let begin = world.elapsed();
    let apart = |world: &World| {
        [(0, size / 2), (size / 2, size)].iter().all(|(from, to)| {
            (*from..*to).all(|at| {
                let members = world.gossip(at).members();
                let down = members.filter(|member| member.state == MemberState::Down).count();
                down == size - (to - from)
            })
        })
    };
    while !apart(world) && world.elapsed() - begin < Duration::from_secs(120) {
        world.run_for(Duration::from_millis(500));
    }
    let parted = world.elapsed() - begin;
    let authors: Vec<usize> = (0..size).step_by(10).collect();
    for author in &authors {
        world.put(*author, "split", "written while split");
    }
    world.run_for(Duration::from_secs(60));
    forget_events(world);
    world.net.groups.clear();
    let limit = Duration::from_secs(120);
    let data = world.run_until("all data is everywhere", limit, |world| {
        world.running().all(|at| {
            authors
                .iter()
                .all(|author| world.gossip(at).get(&world.id(*author), &key("split")).is_some())
        })
    });
    let agreed = world.run_until("all agree", limit, World::is_settled);
    (parted, data, data + agreed)
}
