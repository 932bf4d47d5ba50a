//! Packets that should not exist change nothing and break nothing.

use std::{net::SocketAddr, time::Duration};

use rand::{Rng, RngExt};
use weft_gossip::{CARD_KIND, Event, Gossip, Stats};
use weft_types::ClusterId;

use crate::world::{CLUSTER, SECRET, World, seed};

const STRANGER: &str = "192.0.2.1:7946";

fn total(world: &World, count: impl Fn(&Stats) -> u64) -> u64 {
    world.running().map(|at| count(world.gossip(at).stats())).sum()
}

/// What a node holds and believes, as far as it may not change.
fn beliefs(gossip: &Gossip) -> (u64, usize, usize) {
    (
        gossip.fingerprint(),
        gossip.records().count(),
        gossip.members().count(),
    )
}

#[test]
fn garbage_and_damaged_packets_change_nothing() {
    let mut world = World::cluster(seed(30), 5);
    world.wire = Some(Vec::new());
    world.put(1, "a", "1");
    world.run_for(Duration::from_secs(3));
    let wire = world.wire.take().unwrap();
    let before: Vec<_> = world.running().map(|at| beliefs(world.gossip(at))).collect();
    let stranger: SocketAddr = STRANGER.parse().unwrap();
    for _ in 0..3_000 {
        let to = world.rng.random_range(0..5);
        let mut bytes = if world.rng.random_bool(0.3) {
            let mut bytes = vec![0; world.rng.random_range(0..2_000)];
            world.rng.fill_bytes(&mut bytes);
            bytes
        } else {
            wire[world.rng.random_range(0..wire.len())].2.to_vec()
        };
        if !bytes.is_empty() {
            let index = world.rng.random_range(0..bytes.len());
            bytes[index] ^= 1 << world.rng.random_range(0..8);
            if world.rng.random_bool(0.2) {
                bytes.truncate(index);
            }
        }
        world.with(to, |gossip, now| {
            gossip.handle_stream_response(&bytes, now);
            assert_eq!(gossip.handle_stream_request(&bytes, now), None);
        });
        world.inject(to, stranger, bytes.into());
    }
    world.run_for(Duration::from_secs(2));
    let after: Vec<_> = world.running().map(|at| beliefs(world.gossip(at))).collect();
    assert_eq!(before, after);
    assert!(total(&world, |stats| stats.foreign + stats.malformed) >= 9_000);
}

#[test]
fn another_cluster_and_another_key_stay_outside() {
    for (cluster, secret) in [(ClusterId([8; 16]), SECRET), (CLUSTER, [6; 32])] {
        let mut world = World::cluster(seed(31), 4);
        let before: Vec<_> = world.running().map(|at| beliefs(world.gossip(at))).collect();
        let outsider = world.add();
        world.start_with(outsider, cluster, secret);
        let seeds: Vec<SocketAddr> = (0..4).map(|at| world.nodes[at].address).collect();
        world.with(outsider, |gossip, now| gossip.join(seeds, now));
        world.put(outsider, "a", "not wanted");
        world.run_for(Duration::from_secs(20));
        let after: Vec<_> = (0..4).map(|at| beliefs(world.gossip(at))).collect();
        assert_eq!(before, after);
        assert_eq!(world.gossip(outsider).members().count(), 0);
        assert!((0..4).all(|at| world.gossip(at).stats().foreign > 0));
    }
}

#[test]
fn recorded_packets_played_again_change_nothing() {
    let mut world = World::cluster(seed(32), 5);
    world.wire = Some(Vec::new());
    world.put(1, "a", "1");
    let to = world.id(3);
    world
        .with(1, |gossip, now| gossip.send(to, b"once".to_vec().into(), now))
        .unwrap()
        .unwrap();
    world.run_for(Duration::from_secs(2));
    world.put(1, "a", "2");
    world.run_for(Duration::from_secs(5));
    let wire = world.wire.take().unwrap();
    let before: Vec<_> = world.running().map(|at| beliefs(world.gossip(at))).collect();
    for (from, to, bytes) in &wire {
        let to = world.nodes.iter().position(|node| node.address == *to).unwrap();
        world.inject(to, *from, bytes.clone());
    }
    world.run_for(Duration::from_secs(5));
    let after: Vec<_> = world.running().map(|at| beliefs(world.gossip(at))).collect();
    assert_eq!(before, after);
    assert!(total(&world, |stats| stats.replayed) as usize > wire.len() / 2);

    // Nor in a later life of the receiver, which knows nothing of what its former life has seen.
    world.kill(3);
    world.start(3);
    for (from, to, bytes) in &wire {
        if *to == world.nodes[3].address {
            world.inject(3, *from, bytes.clone());
        }
    }
    world.run_for(Duration::from_secs(5));
    world.run_until("all is well", Duration::from_secs(10), World::is_settled);
    let messages = world.nodes[3]
        .events
        .iter()
        .filter(|(_, event)| matches!(event, Event::Message { .. }));
    assert_eq!(messages.count(), 1);
}

#[test]
fn a_member_cannot_write_in_the_name_of_another() {
    // The forger has the cluster's key and is a member; it changes what it holds of others and passes it on.
    let mut world = World::cluster(seed(33), 4);
    world.put(1, "a", "the truth");
    world.run_for(Duration::from_secs(1));
    let (victim, forger) = (world.id(1), 3);
    let mut disk = world.nodes[forger].disk.clone();
    world.kill(forger);
    for ((author, key), record) in &mut disk {
        if *author == victim && key.kind != CARD_KIND {
            record.value = Some(b"a lie".to_vec().into());
            record.version += 100;
        }
    }
    world.nodes[forger].disk = disk;
    world.start(forger);
    assert_eq!(world.value(forger, 1, "a").as_deref(), Some("a lie"));
    world.run_for(Duration::from_secs(15));
    assert!((0..3).all(|at| world.value(at, 1, "a").as_deref() == Some("the truth")));
    assert!((0..3).map(|at| world.gossip(at).stats().forged).sum::<u64>() > 0);
}
