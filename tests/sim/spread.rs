//! Changes reach everybody, whatever the network does to the packets that carry them.

use std::time::Duration;

use rand::RngExt;
use weft_gossip::{Event, MemberState};

use crate::world::{World, key, seed, thorough};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// How long after `begin` the part `quantile` of the nodes other than the author had the record.
fn spread(world: &World, author: usize, name: &str, begin: Duration, quantile: f64) -> Option<Duration> {
    let (id, key) = (world.id(author), key(name));
    let mut times: Vec<Duration> = world
        .running()
        .filter(|index| *index != author)
        .filter_map(|index| {
            let arrived = |event: &Event| matches!(event, Event::Record { record, .. } if record.author == id && record.key == key);
            world.nodes[index].events.iter().find(|(_, event)| arrived(event)).map(|(at, _)| *at - begin)
        })
        .collect();
    times.sort();
    let needed = ((world.running().count() - 1) as f64 * quantile).ceil() as usize;
    times.get(needed - 1).copied()
}

/// Copies of records sent because they were new or wanted.
fn copies(world: &World) -> u64 {
    world
        .running()
        .map(|at| world.gossip(at).stats().records_told)
        .sum()
}

#[test]
fn two_hundred_nodes_spread_changes_notice_a_crash_and_take_a_newcomer() {
    let mut world = World::cluster(seed(1), 200);

    let quiet = world.packets;
    world.run_for(secs(10));
    println!(
        "at rest: {:.1} packets a second and node",
        (world.packets - quiet) as f64 / 2_000.0
    );

    let begin = world.elapsed();
    let told = copies(&world);
    world.put(17, "first", "value");
    world.run_until("everybody has the change", secs(5), |world| {
        spread(world, 17, "first", begin, 1.0).is_some()
    });
    world.run_for(secs(1));
    let told = (copies(&world) - told) as f64 / 200.0;
    println!("one change: {told:.2} copies sent per node");
    assert!(told <= 3.0, "{told} copies");
    let (most, all) = (
        spread(&world, 17, "first", begin, 0.99),
        spread(&world, 17, "first", begin, 1.0),
    );
    println!(
        "one change, no loss: 99 % after {:.3?}, all after {:.3?}",
        most.unwrap(),
        all.unwrap()
    );
    assert!(most.unwrap() < Duration::from_millis(500) && all.unwrap() < secs(3));

    for loss in [0.05, 0.10] {
        world.net.loss = loss;
        (world.net.duplicate, world.net.late) = (0.02, 0.05);
        let begin = world.elapsed();
        let authors: Vec<usize> = (0..20).map(|_| world.rng.random_range(0..200)).collect();
        for (n, author) in authors.iter().enumerate() {
            world.put(*author, &format!("{loss}/{n}"), "value");
        }
        let took = world.run_until("20 changes are everywhere", secs(15), |world| {
            authors
                .iter()
                .enumerate()
                .all(|(n, author)| spread(world, *author, &format!("{loss}/{n}"), begin, 1.0).is_some())
        });
        println!(
            "20 changes at {:.0} % loss: everywhere after {took:.2?}",
            loss * 100.0
        );
        let downs = world.nodes.iter().flat_map(|node| &node.events);
        let downs = downs
            .filter(|(_, event)| matches!(event, Event::Member(member) if member.state == MemberState::Down));
        assert_eq!(downs.count(), 0, "nobody died, yet somebody was believed down");
    }
    world.net.loss = 0.0;

    let begin = world.elapsed();
    let dead = 42;
    world.kill(dead);
    let noticed = |world: &World| {
        world
            .running()
            .filter(|at| world.state_at(*at, dead) == Some(MemberState::Down))
            .count()
    };
    let first = world.run_until("somebody notices the crash", secs(8), |world| noticed(world) > 0);
    world.run_until("everybody notices the crash", secs(8), |world| {
        noticed(world) == 199
    });
    println!(
        "a crash among 200: first noticed after {first:.2?}, by all after {:.2?}",
        world.elapsed() - begin
    );
    assert!(world.elapsed() - begin < secs(8));

    // A host that was never seen before gets everything, over a stream, from whom it asked first.
    let expected = world.gossip(0).records().count();
    let new = world.add();
    world.start(new);
    let member = world.nodes[3].address;
    world.with(new, |gossip, now| gossip.join([member], now));
    let took = world.run_until("the newcomer has everything", secs(3), |world| {
        world.nodes[new]
            .events
            .iter()
            .any(|(_, event)| *event == Event::CaughtUp)
            && world.gossip(new).records().count() > expected
    });
    let all = world.run_until("everybody knows the newcomer", secs(5), World::is_settled);
    println!("a newcomer had all {expected} records after {took:.2?}, and all knew it {all:.2?} later");
}

#[test]
fn a_partition_of_many_heals_to_equal_state() {
    let size = if thorough() { 200 } else { 80 };
    let mut world = World::cluster(seed(2), size);
    for index in 0..size / 2 {
        world.net.groups.insert(index, 1);
    }
    world.run_until("each half believes the other down", secs(30), |world| {
        world.running().all(|at| {
            let down = world
                .gossip(at)
                .members()
                .filter(|member| member.state == MemberState::Down)
                .count();
            down == size / 2
        })
    });
    for index in (0..size).step_by(10) {
        world.put(index, "split", "written while split");
    }
    world.run_for(secs(5));
    assert_eq!(world.value(size - 1, 10, "split"), None);
    for node in &mut world.nodes {
        node.events.clear();
    }

    world.net.groups.clear();
    let data = world.run_until("all records are everywhere", secs(15), |world| {
        world.running().all(|at| {
            (0..size)
                .step_by(10)
                .all(|author| world.value(at, author, "split").is_some())
        })
    });
    let all = world.run_until(
        "all believe all alive and hold the same",
        secs(20),
        World::is_settled,
    );
    println!("healed: data everywhere after {data:.2?}, all agree {all:.2?} later");
    assert!(data + all < secs(15));
    // Coming back must not look like going away to those who never lost each other.
    let wrong = world.nodes.iter().flat_map(|node| &node.events);
    let wrong = wrong
        .filter(|(_, event)| matches!(event, Event::Member(member) if member.state == MemberState::Down));
    println!(
        "{} times a live member was believed down during the heal",
        wrong.count()
    );
}

#[test]
fn a_small_cluster_notices_a_crash_in_about_two_seconds_and_a_leave_at_once() {
    let seed = seed(3);
    let mut worst = Duration::ZERO;
    for run in 0..20 {
        let mut world = World::cluster(seed + run, 3);
        let pause = Duration::from_millis(world.rng.random_range(0..2_000));
        world.run_for(pause);
        world.kill(2);
        let took = world.run_until("both notice the crash", secs(4), |world| {
            (0..2).all(|at| world.state_at(at, 2) == Some(MemberState::Down))
        });
        worst = worst.max(took);

        world.start(2);
        world.run_until("it is back", secs(4), World::is_settled);
        world.with(2, |gossip, now| gossip.leave(now));
        world.kill(2);
        let took = world.run_until("both know that it left", secs(1), |world| {
            (0..2).all(|at| world.state_at(at, 2) == Some(MemberState::Left))
        });
        assert!(took <= Duration::from_millis(100), "{took:?}");
    }
    println!("a crash among 3, worst of 20: noticed by both after {worst:.2?}");
    assert!(worst < Duration::from_millis(2_800), "{worst:?}");
}

#[test]
fn any_one_packet_may_be_lost_for_ever() {
    let seed = seed(4);
    // The same life every time, but for one packet; the first run only counts them.
    let run = |lost: Option<u64>| {
        let mut world = World::new(seed);
        world.net.lost.extend(lost);
        for index in 0..5 {
            world.add();
            world.start(index);
        }
        let first = world.nodes[0].address;
        for index in 1..5 {
            world.with(index, |gossip, now| gossip.join([first], now));
        }
        world.run_for(secs(1));
        world.put(1, "a", "1");
        world.put(3, "b", "1");
        world.run_for(Duration::from_millis(30));
        world.put(1, "a", "2");
        world.remove(3, "b");
        let packets = world.packets;
        let what = format!("all agree although packet {lost:?} was lost");
        world.run_until(&what, secs(12), |world| {
            world.is_settled()
                && (0..5).all(|at| {
                    world.value(at, 1, "a").as_deref() == Some("2") && world.value(at, 3, "b").is_none()
                })
        });
        packets
    };
    let packets = run(None);
    for lost in 1..=packets + 20 {
        run(Some(lost));
    }
    println!("{packets} packets, and each of them could be spared");
}

#[test]
fn what_all_first_packets_lost_is_brought_by_comparing() {
    let mut world = World::cluster(seed(5), 20);
    let begin = world.elapsed();
    // Not one rumour gets out of the author's host.
    world.net.mute.insert(7, begin + Duration::from_millis(300));
    world.put(7, "quiet", "value");
    let took = world.run_until("everybody has it all the same", secs(10), |world| {
        (0..20).all(|at| world.value(at, 7, "quiet").is_some())
    });
    println!("without its rumours a change was everywhere after {took:.2?}");
}
