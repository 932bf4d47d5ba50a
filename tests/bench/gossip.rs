//! The gossip core in virtual time: how long changes, crashes and healing take, and what they cost.
//!
//! `cargo run -p weft-tests --example bench-gossip -- [N]…` prints one table for each cluster size (100 and 1,000 if
//! none is named). All times are virtual and come out the same on every machine for the same `SIM_SEED`;
//! nothing here measures how fast a machine is, except for the last line of each table.

#[path = "../sim/world.rs"]
#[allow(dead_code)] // Shared with the simulation tests; each uses a part of it.
mod world;

use std::time::{Duration, Instant};

use rand::RngExt;
use weft_gossip::{Event, MemberState};

use crate::world::{World, key, seed};

/// What IPv4 and UDP add to a packet.
const HEADERS: f64 = 28.0;
const CHANGES: usize = 10;

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|size| size.parse().ok())
        .collect();
    let sizes = if sizes.is_empty() { vec![100, 1_000] } else { sizes };
    let seed = seed(1);
    for size in sizes {
        measure(seed, size);
    }
}

fn measure(seed: u64, size: usize) {
    let began = Instant::now();
    let row = |what: &str, value: String| println!("{what:<58} {value}");
    println!("\nN = {size}, simulated: 0.2 to 1 ms each way, loss is independent of one another");
    let (mut world, joined) = start(seed, size);
    row(
        "all joined within 2 ms of each other; all agree after",
        format!("{joined:.2?}"),
    );
    world.run_for(Duration::from_secs(15));

    let rest = Duration::from_secs(30);
    let (packets, bytes) = traffic(&mut world, |world| world.run_for(rest));
    let per_node = |count: f64| count / size as f64 / rest.as_secs_f64();
    row(
        "at rest, sent per node and second",
        format!(
            "{:.2} packets, {:.0} bytes, {:.0} with IP and UDP headers",
            per_node(packets),
            per_node(bytes),
            per_node(bytes + packets * HEADERS)
        ),
    );

    let mut live_time = Duration::ZERO;
    let mut accused = 0;
    for loss in [0.0, 0.05, 0.10] {
        world.net.loss = loss;
        world.run_for(Duration::from_secs(5));
        let begin = world.elapsed();
        let changes: Vec<Change> = (0..CHANGES)
            .map(|n| change(&mut world, &format!("{loss}/{n}")))
            .collect();
        world.run_for(Duration::from_secs(15));
        live_time += world.elapsed() - begin;
        accused += downs(&world);
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
    let hours = live_time.as_secs_f64() * size as f64 / 3_600.0;
    row(
        "false accusations (believed down although alive)",
        format!("{accused} in {hours:.1} node-hours at 0, 5 and 10 % loss"),
    );
    world.net.loss = 0.0;
    world.run_until("all agree again", Duration::from_secs(60), World::is_settled);

    let (packets, bytes, rate, seconds) = churn(&mut world);
    row(
        &format!("{rate} changes per second for {seconds} s, sent per node and second"),
        format!(
            "{:.0} packets, {:.1} kB with headers",
            packets / (size * seconds) as f64,
            (bytes + packets * HEADERS) / (size * seconds) as f64 / 1_000.0
        ),
    );
    world.run_until("all agree again", Duration::from_secs(60), World::is_settled);

    let crashes: usize = if size > 300 { 5 } else { 15 };
    let mut times: Vec<(Duration, Duration)> = (0..crashes).map(|_| crash(&mut world)).collect();
    times.sort_by_key(|(_, all)| *all);
    row(
        "a crash is known to 99 % / 100 % after",
        format!(
            "median {:.1?} / {:.1?}, worst of {crashes} {:.1?} / {:.1?}",
            times[crashes / 2].0,
            times[crashes / 2].1,
            times.iter().map(|(most, _)| *most).max().unwrap_or_default(),
            times[crashes - 1].1
        ),
    );

    let (parted, data, agreed) = split(&mut world);
    row(
        "split in halves: each believes the other down after",
        format!("{parted:.1?}"),
    );
    row(
        "healed after a further minute: all data / all agree",
        format!("{data:.2?} / {agreed:.2?}"),
    );
    println!("(took {:.0?} on this machine)", began.elapsed());
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

fn downs(world: &World) -> usize {
    let events = world.nodes.iter().flat_map(|node| &node.events);
    events
        .filter(|(_, event)| matches!(event, Event::Member(member) if member.state == MemberState::Down))
        .count()
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

/// One node dies; then it comes back, so that the next finds a whole cluster.
fn crash(world: &mut World) -> (Duration, Duration) {
    let pause = Duration::from_millis(world.rng.random_range(0..1_000));
    world.run_for(pause);
    let dead = world.rng.random_range(0..world.nodes.len());
    world.kill(dead);
    let others = world.nodes.len() - 1;
    let know = |world: &World| {
        let knows = |at: &usize| world.state_at(*at, dead) == Some(MemberState::Down);
        world.running().filter(knows).count()
    };
    let limit = Duration::from_secs(30);
    let most = world.run_until("99 % know of the crash", limit, |world| {
        know(world) * 100 >= others * 99
    });
    let rest = world.run_until("all know of the crash", limit, |world| know(world) == others);
    world.start(dead);
    world.run_until("it is back", limit, World::is_settled);
    (most, most + rest)
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
