//! Nodes that die, come back, lose their disk, or live twice.

use std::{collections::BTreeMap, hash::Hasher, time::Duration};

use rand::RngExt;
use weft_gossip::{Event, MemberState};

use crate::world::{World, key, seed};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn had(world: &World, at: usize, wanted: impl Fn(&Event) -> bool) -> bool {
    world.nodes[at].events.iter().any(|(_, event)| wanted(event))
}

#[test]
fn the_same_seed_gives_the_same_life() {
    let seed = seed(10);
    let live = || {
        let mut world = World::cluster(seed, 20);
        (world.net.loss, world.net.duplicate, world.net.late) = (0.1, 0.05, 0.1);
        for index in 0..10 {
            world.put(index, "a", "b");
            world.run_for(Duration::from_millis(200));
        }
        world.kill(3);
        world.run_for(secs(5));
        (world.trace.finish(), world.packets)
    };
    let (first, second) = (live(), live());
    assert_eq!(first, second);
    println!("{} packets, trace {:016x}", first.1, first.0);
}

#[test]
fn the_records_of_a_dead_node_stay_and_it_comes_back_by_itself() {
    let mut world = World::cluster(seed(11), 8);
    world.put(5, "mine", "kept");
    world.run_until("all have it", secs(2), |world| {
        (0..8).all(|at| world.value(at, 5, "mine").is_some())
    });
    world.kill(5);
    world.run_until("it is believed down", secs(5), |world| {
        world.state_at(0, 5) == Some(MemberState::Down)
    });
    assert_eq!(world.value(0, 5, "mine").as_deref(), Some("kept"));
    world.put(2, "news", "meanwhile");
    // Nobody tells it where the others are: it remembers their cards.
    world.start(5);
    let took = world.run_until("it is back with everything", secs(3), |world| {
        world.is_settled() && world.value(5, 2, "news").is_some() && world.value(0, 5, "mine").is_some()
    });
    println!("back after {took:.2?}");
    assert!(had(&world, 5, |event| *event == Event::CaughtUp));
}

#[test]
fn a_pair_that_was_cut_finds_itself_again() {
    let mut world = World::cluster(seed(12), 2);
    world.net.groups.insert(0, 1);
    world.run_until("each believes the other down", secs(5), |world| {
        world.state_at(0, 1) == Some(MemberState::Down) && world.state_at(1, 0) == Some(MemberState::Down)
    });
    world.put(0, "a", "1");
    world.put(1, "b", "1");
    world.run_for(secs(30));
    world.net.groups.clear();
    let took = world.run_until("both are whole again", secs(6), World::is_settled);
    println!("whole again after {took:.2?}");
    assert!(world.value(0, 1, "b").is_some() && world.value(1, 0, "a").is_some());
}

#[test]
fn a_node_with_yesterdays_disk_learns_what_it_said_since() {
    let mut world = World::cluster(seed(13), 4);
    world.put(1, "old", "1");
    world.put(1, "gone", "1");
    world.run_for(secs(1));
    let disk = world.nodes[1].disk.clone();
    let boot = world.nodes[1].boot;
    world.put(1, "old", "2");
    world.put(1, "new", "1");
    world.remove(1, "gone");
    world.run_for(secs(1));
    world.kill(1);
    (world.nodes[1].disk, world.nodes[1].boot) = (disk, boot - 1);
    world.nodes[1].events.clear();
    world.start(1);
    // It even writes before it has heard of anybody.
    world.put(1, "fresh", "1");
    world.run_until("all agree", secs(8), |world| {
        world.is_settled()
            && (0..4).all(|at| {
                world.value(at, 1, "old").as_deref() == Some("2")
                    && world.value(at, 1, "new").is_some()
                    && world.value(at, 1, "gone").is_none()
                    && world.value(at, 1, "fresh").is_some()
            })
    });
    assert!(had(
        &world,
        1,
        |event| matches!(event, Event::OwnRecordNewer(record) if record.key == key("new"))
    ));
    assert!(
        !had(&world, 1, |event| *event == Event::Cloned),
        "a former life is not a clone"
    );
}

#[test]
fn a_node_that_lost_its_disk_gets_its_own_records_back() {
    let mut world = World::cluster(seed(14), 4);
    world.put(1, "a", "1");
    world.put(1, "b", "1");
    world.run_for(secs(1));
    world.kill(1);
    world.nodes[1].disk.clear();
    world.nodes[1].boot = 0;
    world.start(1);
    let member = world.nodes[2].address;
    world.with(1, |gossip, now| gossip.join([member], now));
    world.run_until("all agree", secs(8), |world| {
        world.is_settled() && world.value(1, 1, "b").is_some()
    });
    world.put(1, "a", "2");
    world.run_until("what it says now counts", secs(3), |world| {
        (0..4).all(|at| world.value(at, 1, "a").as_deref() == Some("2"))
    });
}

#[test]
fn two_lives_with_one_disk_find_out() {
    let mut world = World::cluster(seed(15), 5);
    world.put(1, "a", "1");
    world.run_for(secs(1));
    let clone = world.add();
    world.nodes[clone].identity = world.nodes[1].identity.clone();
    world.nodes[clone].disk = world.nodes[1].disk.clone();
    world.nodes[clone].boot = world.nodes[1].boot;
    world.start(clone);
    let took = world.run_until("both know", secs(15), |world| {
        [1, clone]
            .iter()
            .all(|at| had(world, *at, |event| *event == Event::Cloned))
    });
    println!("a clone was found after {took:.2?}");
    assert!(!had(&world, 2, |event| *event == Event::Cloned));
}

#[test]
fn a_node_that_stood_still_does_not_accuse_the_others() {
    let mut world = World::cluster(seed(16), 12);
    for node in &mut world.nodes {
        node.events.clear();
    }
    // Stopped for a second: its timers all run out, then its socket is read.
    let mut stopped = world.nodes[4].gossip.take();
    world.run_for(secs(1));
    std::mem::swap(&mut world.nodes[4].gossip, &mut stopped);
    world.with(4, |gossip, now| gossip.handle_timeout(now));
    world.run_for(secs(6));
    assert!(!had(
        &world,
        4,
        |event| matches!(event, Event::Member(member) if member.state == MemberState::Down)
    ));
    world.run_until("all is well", secs(5), World::is_settled);
}

#[test]
fn an_evicted_node_is_not_heard_and_what_it_said_before_stays() {
    let mut world = World::cluster(seed(17), 5);
    // This one has it from the others, after the eviction.
    world.net.groups.insert(3, 1);
    world.put(4, "a", "1");
    world.run_for(secs(1));
    let gone = world.id(4);
    // One of them says why, while it is away.
    world.net.groups.insert(4, 2);
    world.put(0, "why", "it had to go");
    world.run_for(secs(1));
    let why = world.gossip(0).get(&world.id(0), &key("why")).cloned();
    assert!(world.gossip(4).get(&world.id(0), &key("why")).is_none());
    for at in 0..4 {
        let why = why.clone();
        world.with(at, |gossip, now| gossip.evict(gone, why, now));
    }
    world.put(4, "b", "1");
    world.net.groups.clear();
    world.run_for(secs(20));
    // Nobody answers, and it is told why.
    assert_eq!(world.gossip(4).get(&world.id(0), &key("why")), why.as_ref());
    for at in 0..4 {
        let said = world.gossip(at).records();
        let said = said.filter(|record| record.author == gone && record.key.kind == key("a").kind);
        let said: Vec<_> = said.map(|record| record.key.clone()).collect();
        assert_eq!(said, [key("a")]);
        assert!(world.gossip(at).members().all(|member| member.node != gone));
        assert!(world.gossip(at).stats().evicted > 0);
        assert_eq!(world.gossip(at).fingerprint(), world.gossip(0).fingerprint());
    }
}

#[test]
fn messages_arrive_once_and_only_where_they_were_sent() {
    let mut world = World::cluster(seed(18), 4);
    (world.net.duplicate, world.net.late) = (0.5, 0.5);
    let to = world.id(3);
    for n in 0..100_u8 {
        world
            .with(1, |gossip, now| gossip.send(to, vec![n].into(), now))
            .unwrap()
            .unwrap();
    }
    world.run_for(secs(1));
    let sender = world.id(1);
    let mut got: Vec<u8> = Vec::new();
    for (_, event) in &world.nodes[3].events {
        if let Event::Message { from, payload } = event {
            assert_eq!(*from, sender);
            got.push(payload[0]);
        }
    }
    got.sort();
    assert_eq!(got, (0..100).collect::<Vec<u8>>());
    assert!((0..3).all(|at| !had(&world, at, |event| matches!(event, Event::Message { .. }))));
}

#[test]
fn after_a_wild_minute_everybody_holds_what_the_authors_said_last() {
    let seed = seed(19);
    for run in 0..3 {
        let mut world = World::cluster(seed + run, 24);
        world.keep_events = false;
        (world.net.loss, world.net.duplicate, world.net.late) = (0.08, 0.05, 0.1);
        let mut said: BTreeMap<(usize, String), Option<String>> = BTreeMap::new();
        for round in 0..300 {
            let at = world.rng.random_range(0..24);
            let name = format!("k{}", world.rng.random_range(0..6));
            match world.rng.random_range(0..10) {
                0 => world.kill(at),
                1 | 2 if world.nodes[at].gossip.is_none() => world.start(at),
                3 => {
                    let other = world.rng.random_range(0..24);
                    world.net.groups.insert(other, world.rng.random_range(0..3));
                }
                4 => world.net.groups.clear(),
                5 if world.nodes[at].gossip.is_some() => {
                    world.remove(at, &name);
                    said.insert((at, name), None);
                }
                _ if world.nodes[at].gossip.is_some() => {
                    world.put(at, &name, &round.to_string());
                    said.insert((at, name), Some(round.to_string()));
                }
                _ => {}
            }
            world.run_for(Duration::from_millis(200));
        }
        (world.net.loss, world.net.groups) = (0.0, BTreeMap::new());
        for at in 0..24 {
            if world.nodes[at].gossip.is_none() {
                world.start(at);
            }
        }
        let took = world.run_until("all agree", secs(30), World::is_settled);
        println!("agreed {took:.2?} after the storm");
        for ((author, name), value) in &said {
            for at in 0..24 {
                assert_eq!(world.value(at, *author, name), *value, "{author}/{name} at {at}");
            }
        }
    }
}

#[test]
fn a_removed_record_does_not_come_back_after_its_tombstone_is_gone() {
    let mut world = World::cluster(seed(20), 6);
    world.keep_events = false;
    world.put(1, "short-lived", "1");
    world.put(1, "other", "1");
    world.run_for(secs(2));
    world.kill(5);
    world.remove(1, "short-lived");
    world.put(1, "other", "2");
    // Two hours: long enough for everybody to drop the tombstone.
    world.run_for(secs(7_200));
    let tombstones = |world: &World, at: usize| {
        world
            .gossip(at)
            .records()
            .filter(|record| record.value.is_none())
            .count()
    };
    assert!((0..5).all(|at| tombstones(&world, at) == 0));
    // The one that slept still has the record, and shows it to everybody.
    assert!(
        world.nodes[5]
            .disk
            .contains_key(&(world.id(1), key("short-lived")))
    );
    world.start(5);
    world.run_until("all agree", secs(8), World::is_settled);
    assert!((0..6).all(|at| world.value(at, 1, "short-lived").is_none()));
    assert!(
        !world.nodes[5]
            .disk
            .contains_key(&(world.id(1), key("short-lived")))
    );
}

#[test]
fn a_node_may_say_and_take_back_any_number_of_things_within_the_hour() {
    let mut world = World::cluster(seed(21), 4);
    world.keep_events = false;
    world.put(0, "stays", "1");
    world.put(0, "goes", "1");
    world.run_for(secs(2));
    // Asleep, with all that by then.
    world.kill(3);
    world.remove(0, "goes");
    for n in 0..10_000 {
        world.put(0, &n.to_string(), "1");
        if n % 20 == 0 {
            world.run_for(Duration::from_millis(20));
        }
        world.remove(0, &n.to_string());
    }
    world.run_until("all agree", secs(20), World::is_settled);
    world.start(3);
    world.run_until("who slept too", secs(20), World::is_settled);
    for at in 0..4 {
        assert!(
            world.value(at, 0, "stays").is_some() && world.value(at, 0, "goes").is_none(),
            "{at}"
        );
        let author = world.id(0);
        let said = world
            .gossip(at)
            .records()
            .filter(|record| record.author == author);
        let (live, gone): (Vec<_>, Vec<_>) = said.partition(|record| record.value.is_some());
        assert!(
            live.len() == 2 && gone.len() < 4_096,
            "{at}: {} and {}",
            live.len(),
            gone.len()
        );
        assert_eq!(world.gossip(at).stats().records_refused, 0);
    }
    // The disk holds no more than memory.
    let disk = &world.nodes[0].disk;
    assert!(disk.len() < 4_200, "{}", disk.len());
}
