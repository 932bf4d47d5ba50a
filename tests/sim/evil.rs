//! A member with valid keys that floods, says too much, and numbers its records as it likes.

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use weft_gossip::{MAX_VALUE, PutError};

use crate::world::{World, key, seed};

const LIAR: usize = 4;

#[test]
fn a_flood_of_records_delays_no_other_members_record() {
    let mut world = World::cluster(seed(60), 5);
    // Without a flood, to compare with.
    let quiet = told(&mut world, "quiet");
    for round in 0..5 {
        for n in 0..1_500 {
            world.put(LIAR, &format!("{n}"), &format!("{round} {}", "x".repeat(200)));
        }
        let loud = told(&mut world, &format!("loud {round}"));
        assert!(
            loud <= quiet + Duration::from_millis(500),
            "{loud:?} and not {quiet:?}"
        );
    }
}

/// How long it takes until all have heard of a record of the first node's.
fn told(world: &mut World, value: &str) -> Duration {
    world.put(0, "a", value);
    world.run_until("all have heard", Duration::from_secs(10), |world| {
        (0..5).all(|at| world.value(at, 0, "a").as_deref() == Some(value))
    })
}

#[test]
fn a_flood_of_packets_is_taken_at_the_rate_of_all_and_changes_nothing() {
    let mut world = World::cluster(seed(61), 5);
    let to = world.id(0);
    for _ in 0..30 {
        for _ in 0..1_000 {
            let sent = world.with(LIAR, |gossip, now| {
                gossip.send(to, Bytes::from_static(b"flood"), now)
            });
            sent.unwrap().unwrap();
        }
        world.run_for(Duration::from_millis(10));
    }
    let flooded = world.gossip(0).stats().flooded;
    assert!(flooded > 15_000, "{flooded} of 30,000");
    assert!((1..LIAR).all(|at| world.gossip(at).stats().flooded == 0));
    let took = told(&mut world, "after");
    assert!(took < Duration::from_secs(1), "{took:?}");
    world.run_for(Duration::from_secs(10));
    assert!(world.is_settled());
}

#[test]
fn requests_for_everything_again_and_again_are_answered_at_the_rate_of_all() {
    let mut world = World::cluster(seed(62), 5);
    for n in 0..200 {
        world.put(1, &format!("{n}"), &"x".repeat(900));
    }
    world.run_for(Duration::from_secs(5));
    // A node that has lost its disk asks for everything; here it does so all the time.
    for _ in 0..600 {
        world.kill(LIAR);
        world.nodes[LIAR].disk.clear();
        world.start(LIAR);
        let seeds = [world.nodes[0].address];
        world.with(LIAR, |gossip, now| gossip.join(seeds, now));
        world.run_for(Duration::from_millis(3));
    }
    let refused = world.gossip(0).stats().flooded;
    assert!(refused > 100, "{refused} of 600");
    let took = told(&mut world, "meanwhile");
    assert!(took < Duration::from_secs(2), "{took:?}");
    world.run_until("all is well", Duration::from_secs(60), World::is_settled);
}

#[test]
fn values_are_taken_up_to_the_limit_and_none_beyond() {
    let mut world = World::cluster(seed(63), 5);
    for (size, fits) in [(MAX_VALUE, true), (MAX_VALUE + 1, false), (10 * MAX_VALUE, false)] {
        let value = Bytes::from(vec![b'x'; size]);
        let name = format!("{size}");
        let put = world
            .with(LIAR, |gossip, now| gossip.put(key(&name), value, now))
            .unwrap();
        assert_eq!(put.is_ok(), fits);
        assert!(fits || put == Err(PutError::ValueTooLong(size)));
    }
    world.run_for(Duration::from_secs(3));
    assert!((0..LIAR).all(|at| world.value(at, LIAR, &MAX_VALUE.to_string()).is_some()));
}

#[test]
fn an_author_has_room_for_its_records_and_takes_none_of_anybody_elses() {
    let mut world = World::cluster(seed(64), 5);
    let refused = (0..5_000).filter(|n| {
        let name = key(&format!("{n}"));
        let put = world.with(LIAR, |gossip, now| {
            gossip.put(name, Bytes::from_static(b"x"), now)
        });
        put.unwrap().is_err()
    });
    assert!(refused.count() > 900);
    let name = world.rng.random_range(0..1000).to_string();
    world.put(2, &name, "mine");
    world.run_until("all have heard", Duration::from_secs(60), |world| {
        (0..5).all(|at| world.value(at, 2, &name).as_deref() == Some("mine"))
    });
    world.run_until("all is well", Duration::from_secs(60), World::is_settled);
}
