use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weft_gossip::{Config, Gossip, Identity};
use weft_types::NodeId;

use super::{
    super::{
        Command,
        admission::JoinError,
        admission::Refused,
        ring::MOST,
        token::Token,
        world::{World, faults::Crash},
    },
    *,
};
use crate::api::types::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn id(world: &World, node: usize) -> NodeId {
    world.nodes[node].control.me
}

fn ring(world: &World, node: usize) -> &Ring {
    world.nodes[node].control.keyring.ring()
}

fn rotate(world: &mut World, node: usize) -> GossipKeyStatus {
    world.done(node, Command::TokenRotateKey)
}

fn network(world: &mut World, node: usize, name: &str) {
    let request = NetworkCreateRequest::new(name);
    world.done(node, |to| Command::NetworkCreate(request, to));
}

fn knows(world: &World, node: usize, name: &str) -> bool {
    let mut networks = world.nodes[node].control.catalogue.networks();
    networks.any(|(_, spec)| spec.name == name)
}

fn remove(world: &mut World, node: usize, other: &str) {
    let query = NodeRemoveQuery { force: true };
    world.done(node, |to| Command::NodeRemove(other.to_owned(), query, to));
}

/// Whether these have one key, and the same, and nothing is said of it any more.
fn settled(world: &World, nodes: &[usize]) -> bool {
    let one = ring(world, nodes[0]);
    let is_done = |node: &usize| {
        let control = &world.nodes[*node].control;
        ring(world, *node) == one
            && world.nodes[*node].disk.ring == *one
            && control.catalogue.gossip_keys().offers().next().is_none()
    };
    one.newest_first().len() == 1 && nodes.iter().all(is_done)
}

fn until_settled(world: &mut World, nodes: &[usize]) -> Duration {
    world.until(Duration::from_secs(60), |world| settled(world, nodes))
}

/// Everybody hears everybody: what each says now, all know soon.
fn all_hear_all(world: &mut World, nodes: &[usize], of: &str) {
    for node in nodes {
        network(world, *node, &format!("{of}-{node}"));
    }
    world.until(Duration::from_secs(30), |world| {
        let said = nodes.iter().map(|node| format!("{of}-{node}"));
        said.into_iter()
            .all(|name| nodes.iter().all(|node| knows(world, *node, &name)))
    });
}

#[test]
fn all_go_over_to_a_new_key_and_forget_the_old_one() {
    let mut world = World::of(4);
    let told = rotate(&mut world, 2);
    assert_eq!((told.epoch, told.waiting_for.len()), (2, 0));
    let took = until_settled(&mut world, &[0, 1, 2, 3]);
    println!("four nodes have one key again after {took:?}");
    assert_eq!(ring(&world, 0).newest().epoch, 2);
    let status = world.nodes[0].control.gossip_key_status();
    assert_eq!((status.kept, status.id), (1, told.id));
    all_hear_all(&mut world, &[0, 1, 2, 3], "after");
    assert_eq!(
        world.nodes[1].control.gossip.stats().foreign,
        0,
        "nothing was lost on the way"
    );
    assert_eq!(world.nodes[1].control.gossip.stats().outdated, 0);

    // And once more, by another.
    rotate(&mut world, 0);
    until_settled(&mut world, &[0, 1, 2, 3]);
    assert_eq!(ring(&world, 3).newest().epoch, 3);
}

#[test]
fn a_node_that_was_away_for_months_of_changes_goes_on_from_its_old_key() {
    let mut world = World::of(4);
    world.stop(3);
    world.pass(Duration::from_secs(10));
    for epoch in 2..5 {
        let told = rotate(&mut world, epoch as usize % 3);
        assert_eq!((told.epoch, told.waiting_for), (epoch, vec!["h4".to_owned()]));
        world.pass(Duration::from_secs(30));
    }
    assert_eq!(
        ring(&world, 0).newest_first().len(),
        4,
        "h4 has the first one only"
    );
    // Others are started anew meanwhile, and find their keys where they were.
    world.restart(0);
    world.pass(Duration::from_secs(10));
    world.restart(3);
    let took = until_settled(&mut world, &[0, 1, 2, 3]);
    println!("it has the newest key, and all have forgotten the others, after {took:?}");
    assert_eq!(ring(&world, 3).newest().epoch, 4);
    all_hear_all(&mut world, &[0, 1, 2, 3], "after");
}

#[test]
fn a_removed_node_holds_nothing_up_is_not_heard_and_cannot_read() {
    let mut world = World::of(4);
    // It goes on behind a split, with all it knows, and does not hear that it was removed.
    world.split(&[3]);
    world.pass(Duration::from_secs(10));
    let (removed, old) = (id(&world, 3), ring(&world, 3).clone());
    remove(&mut world, 0, "h4");
    let told = rotate(&mut world, 0);
    assert_eq!(told.waiting_for.len(), 0);
    until_settled(&mut world, &[0, 1, 2]);

    world.faults.wire = Some(Vec::new());
    world.heal();
    network(&mut world, 0, "secret");
    network(&mut world, 3, "forged");
    world.pass(Duration::from_secs(30));
    assert!((0..3).all(|node| !knows(&world, node, "forged")) && !knows(&world, 3, "secret"));
    assert!(world.nodes[0].control.gossip.stats().foreign > 0, "it tried");

    // What went over the wire between the others says nothing to whoever has its keys and identity, or any other.
    let wire = world.faults.wire.take().unwrap();
    let of_removed = world.address(3);
    for seed in [4, 99] {
        let config = Config::new(world.nodes[0].control.facts.id, old.to_seal(), of_removed);
        let identity = Identity::from_seed([seed; 32]);
        assert_eq!(identity.node() == removed, seed == 4);
        let mut listener = Gossip::new(config, identity, 99, [9; 32], world.now.instant);
        let seen = wire.iter().filter(|(from, _, _)| *from != of_removed);
        let mut count = 0;
        for (from, _, packet) in seen {
            listener.handle_packet(*from, packet, world.now.instant);
            count += 1;
        }
        assert!(count > 100, "{count}");
        assert_eq!(listener.stats().foreign, count, "of all packets");
    }
}

#[test]
fn a_stranger_with_the_old_key_is_not_heard_while_a_member_still_is() {
    let mut world = World::of(3);
    let old = ring(&world, 0).clone();
    world.stop(2);
    world.pass(Duration::from_secs(10));
    rotate(&mut world, 0);
    world.pass(Duration::from_secs(5));
    assert_eq!(ring(&world, 0).newest_first().len(), 2);

    // Somebody makes an identity of his own, with the key that a removed node has kept.
    let now = world.now.instant;
    let config = Config::new(world.nodes[0].control.facts.id, old.to_seal(), world.address(8));
    let mut stranger = Gossip::new(config, Identity::from_seed([99; 32]), 1, [9; 32], now);
    stranger.join([world.address(0)], now);
    stranger.handle_timeout(now);
    let mut packets = 0;
    while let Some(output) = stranger.poll_output() {
        if let weft_gossip::Output::Packet { bytes, .. } = output {
            let from = world.address(8);
            let moment = world.now;
            world.nodes[0].control.handle_packet(from, &bytes, moment);
            packets += 1;
        }
    }
    assert!(packets > 0);
    assert_eq!(world.nodes[0].control.gossip.stats().outdated, packets);
    assert!(world.nodes[0].control.catalogue.node(stranger.node()).is_none());
    let told = world.nodes[0].control.take_turn();
    assert!(told.send.is_empty(), "nor is it answered");

    world.restart(2);
    until_settled(&mut world, &[0, 1, 2]);
}

#[test]
fn who_comes_in_by_the_old_key_gets_no_new_one_and_holds_nothing_up() {
    let mut world = World::of(3);
    let old = ring(&world, 0).clone();
    world.stop(2);
    world.pass(Duration::from_secs(10));
    rotate(&mut world, 0);
    // Whoever has kept the old key meets the one member that has no other yet, and is told of by it.
    world.split(&[2]);
    world.restart(2);
    let stranger = world.intrude(2, old.clone());
    world.pass(Duration::from_secs(10));
    world.heal();
    until_settled(&mut world, &[0, 1, 2]);
    let of_stranger = id(&world, stranger);
    assert!(
        world.nodes[0].control.catalogue.node(of_stranger).is_some(),
        "it is known"
    );
    assert_eq!(*ring(&world, stranger), old);

    rotate(&mut world, 1);
    until_settled(&mut world, &[0, 1, 2]);
    assert_eq!(ring(&world, 0).newest().epoch, 3);
    assert_eq!(*ring(&world, stranger), old);
    network(&mut world, 0, "secret");
    world.pass(Duration::from_secs(10));
    assert!(!knows(&world, stranger, "secret"));
}

#[test]
fn who_joins_meanwhile_has_all_keys_on_whatever_side_of_a_split() {
    let mut world = World::of(3);
    world.split(&[2]);
    world.pass(Duration::from_secs(10));
    rotate(&mut world, 0);
    // One gets both keys, one the old one only, of whom the others have never heard.
    let with_both = world.join(1, None).unwrap();
    let with_old = world.join(2, None).unwrap();
    assert_eq!(ring(&world, with_both).newest_first().len(), 2);
    assert_eq!(ring(&world, with_old).newest().epoch, 1);
    // Who made the key is gone by the time of the heal.
    world.stop(0);
    world.heal();
    let took = world.until(Duration::from_secs(60), |world| {
        [1, 2, with_both, with_old]
            .iter()
            .all(|node| ring(world, *node).newest().epoch == 2)
    });
    println!("the newcomer has the key after {took:?}");
    world.restart(0);
    until_settled(&mut world, &[0, 1, 2, with_both, with_old]);
    all_hear_all(&mut world, &[0, 1, 2, with_both, with_old], "after");
}

#[test]
fn the_change_outlives_who_made_the_key() {
    for is_removed in [false, true] {
        let mut world = World::of(5);
        // Not the lowest of them, which would go on with it in any case.
        let (away, maker) = (4, 3);
        world.stop(away);
        world.pass(Duration::from_secs(10));
        rotate(&mut world, maker);
        world.pass(Duration::from_secs(5));
        if is_removed {
            world.stop(maker);
            remove(&mut world, 0, "h4");
        } else {
            world.done(maker, Command::Leave);
            world.stop(maker);
        }
        world.pass(Duration::from_secs(10));
        for node in 0..3 {
            world.restart(node);
        }
        world.pass(Duration::from_secs(10));
        assert_eq!(
            ring(&world, 0).newest_first().len(),
            2,
            "the old one is kept for h5"
        );
        world.restart(away);
        world.until(Duration::from_secs(60), |world| {
            [0, 1, 2, away].iter().all(|node| {
                let ring = ring(world, *node);
                ring.newest().epoch == 2 && ring.newest_first().len() == 1
            })
        });
        all_hear_all(&mut world, &[0, 1, 2, away], "after");
    }
}

#[test]
fn of_two_changes_at_once_one_wins_everywhere() {
    let mut world = World::of(4);
    world.split(&[2, 3]);
    world.pass(Duration::from_secs(10));
    let one = rotate(&mut world, 0);
    let other = rotate(&mut world, 3);
    assert_eq!((one.epoch, other.epoch), (2, 2));
    world.pass(Duration::from_secs(20));
    assert_eq!(
        ring(&world, 1).newest_first().len(),
        2,
        "two have not said that they have it"
    );
    world.heal();
    until_settled(&mut world, &[0, 1, 2, 3]);
    let last = world.nodes[0].control.gossip_key_status().id;
    assert_eq!(last, one.id.max(other.id));
    all_hear_all(&mut world, &[0, 1, 2, 3], "after");
}

#[test]
fn a_key_that_was_made_beside_a_removal_is_followed_by_one_that_the_removed_has_not() {
    // Which of the two keys wins is chance.
    let mut follows = 0;
    for losses in 0..6 {
        let mut world = World::of(5);
        // Other random numbers for other keys.
        (0..losses).for_each(|_| drop(rotate(&mut world, 3)));
        world.pass(Duration::from_secs(10));
        let before = ring(&world, 0).newest().epoch;
        world.stop(4);
        world.pass(Duration::from_secs(10));
        world.split(&[2, 3]);
        world.pass(Duration::from_secs(10));
        remove(&mut world, 0, "h5");
        let without = rotate(&mut world, 0);
        let with = rotate(&mut world, 3);
        world.heal();
        until_settled(&mut world, &[0, 1, 2, 3]);
        let epoch = ring(&world, 0).newest().epoch;
        assert_eq!(epoch - before, if with.id > without.id { 2 } else { 1 });
        follows += u32::from(with.id > without.id);
        assert_ne!(world.nodes[0].control.gossip_key_status().id, with.id);
    }
    println!("in {follows} of 6 another key had to follow");
    assert!(follows > 0, "this test has tested something");
}

#[test]
fn whatever_step_a_crash_comes_at_the_change_goes_on() {
    for crash in [Crash::AtOnce, Crash::KeysSaved, Crash::Committed] {
        // Of who makes the key, and of one who takes it.
        for victim in [1, 2] {
            println!("node {victim} stops {crash:?}");
            let mut world = World::of(3);
            world.faults.crash = Some((victim, crash));
            let _answer = world.ask(1, Command::TokenRotateKey);
            world.until(Duration::from_secs(10), |world| world.nodes[victim].is_off);
            world.pass(Duration::from_secs(10));
            let others: Vec<usize> = (0..3).filter(|node| *node != victim).collect();
            assert!(
                others
                    .iter()
                    .all(|node| ring(&world, *node).newest_first().last().unwrap().epoch == 1)
            );
            world.restart(victim);
            let is_lost = victim == 1 && crash == Crash::AtOnce;
            until_settled(&mut world, &[0, 1, 2]);
            assert_eq!(ring(&world, 0).newest().epoch, if is_lost { 1 } else { 2 });
            all_hear_all(&mut world, &[0, 1, 2], "after");
        }
    }
}

#[test]
fn a_node_whose_disk_was_set_back_gets_the_key_again_while_the_old_one_is_kept() {
    let mut world = World::of(4);
    let before = world.nodes[1].disk.clone();
    world.stop(3);
    world.pass(Duration::from_secs(10));
    rotate(&mut world, 0);
    world.pass(Duration::from_secs(5));
    assert_eq!(ring(&world, 1).newest().epoch, 2);
    world.nodes[1].disk = before;
    world.restart(1);
    assert_eq!(ring(&world, 1).newest_first().len(), 1);
    world.until(Duration::from_secs(30), |world| {
        ring(world, 1).newest().epoch == 2
    });
    world.restart(3);
    until_settled(&mut world, &[0, 1, 2, 3]);
    all_hear_all(&mut world, &[0, 1, 2, 3], "after");
}

#[test]
fn a_version_that_says_nothing_of_keys_has_the_first_one_and_is_spoken_to_by_it() {
    let mut world = World::of(3);
    world.stop(2);
    world.pass(Duration::from_secs(10));
    rotate(&mut world, 0);
    let control = &mut world.nodes[0].control;
    // As if h3 had never said anything of keys.
    let key = Kind::Keys.key(CLUSTER, Vec::new());
    let old = Identity::from_seed([3; 32]).node();
    control.catalogue.apply(old, &key, None);
    let keyring = &control.keyring;
    let ground = control.ground();
    assert_eq!(keyring.ring.newest_first().len(), 2);
    assert_eq!(keyring.place_of(&old, ground), 1);
    assert_eq!(keyring.lacking(ground), BTreeSet::from([old]));
    control.forget_keys();
    assert_eq!(control.keyring.ring.newest_first().len(), 2, "it is kept for h3");
}

#[test]
fn an_old_key_is_changed_on_schedule_by_the_lowest_that_lives_and_once() {
    let mut world = World::of(3);
    for node in &mut world.nodes {
        node.control.settings.rotate_gossip_key = Some(30 * DAY);
    }
    world.now.unix_millis += (29 * DAY).as_millis() as u64;
    world.pass(Duration::from_secs(5));
    assert!((0..3).all(|node| ring(&world, node).newest().epoch == 1));
    let lowest = (0..3).min_by_key(|node| id(&world, *node)).unwrap();
    world.stop(lowest);
    world.pass(Duration::from_secs(10));
    world.now.unix_millis += DAY.as_millis() as u64;
    world.pass(Duration::from_secs(5));
    let others: Vec<usize> = (0..3).filter(|node| *node != lowest).collect();
    assert!(others.iter().all(|node| ring(&world, *node).newest().epoch == 2));
    world.restart(lowest);
    world.pass(Duration::from_secs(200));
    assert!(settled(&world, &[0, 1, 2]));
    assert_eq!(ring(&world, 0).newest().epoch, 2);
}

#[test]
fn so_many_changes_may_wait_for_a_node_and_no_more() {
    let mut world = World::of(2);
    world.stop(1);
    world.pass(Duration::from_secs(10));
    for epoch in 2..=MOST as u32 {
        assert_eq!(rotate(&mut world, 0).epoch, epoch);
    }
    let (responder, mut answer) = crate::control::Responder::new();
    let now = world.now;
    let control = &mut world.nodes[0].control;
    control.handle_command(Command::TokenRotateKey(responder), now);
    world.pass(Duration::from_secs(1));
    let error = answer.try_recv().unwrap().unwrap_err();
    assert!(error.message.contains("because h2 has none"), "{}", error.message);
    assert_eq!(ring(&world, 0).newest().epoch, MOST as u32);
    remove(&mut world, 0, "h2");
    world.until(Duration::from_secs(10), |world| settled(world, &[0]));
}

#[test]
fn tokens_outlive_changes_and_let_nobody_in_who_knows_only_what_is_stored() {
    let mut world = World::of(2);
    let now = world.now;
    let request = TokenCreateRequest {
        reusable: true,
        ..TokenCreateRequest::default()
    };
    let made = world.nodes[0].control.create_token(&request, now).unwrap();
    let token: Token = made.token.parse().unwrap();
    rotate(&mut world, 0);
    until_settled(&mut world, &[0, 1]);
    let joined = world.join(1, Some(&token)).unwrap();
    assert_eq!(ring(&world, joined).newest().epoch, 2);
    world.pass(Duration::from_secs(5));
    assert!(
        settled(&world, &[0, 1, joined]),
        "what it got with the answer is not offered to it once more"
    );

    // A member knows the join key and the public half, and not the secret.
    let mut guessed = token.clone();
    guessed.secret = token.public()[..16].try_into().unwrap();
    let refused = world.join(1, Some(&guessed)).unwrap_err();
    assert_eq!(refused, JoinError::Refused(Refused::UnknownToken));
}

#[test]
fn a_large_cluster_is_offered_a_key_in_several_records() {
    let mut world = World::of(14);
    rotate(&mut world, 0);
    let all: Vec<usize> = (0..14).collect();
    until_settled(&mut world, &all);
    assert_eq!(ring(&world, 13).newest().epoch, 2);
}

/// Everything at once, by chance: loss, splits, stops and starts, and changes by anybody at any time.
#[test]
fn through_any_life_all_end_with_one_key_and_hear_each_other() {
    let own: u64 = 20261122;
    let given = std::env::var("SIM_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = given.map_or(own..own + 12, |seed: u64| seed..seed + 1);
    for seed in seeds {
        println!("SIM_SEED={seed}");
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        let count = chance.random_range(2..6);
        let mut world = World::of(count);
        let count = usize::from(count);
        world.lose(chance.random_range(0..20), seed);
        for _ in 0..chance.random_range(5..25) {
            let node = chance.random_range(0..count);
            match chance.random_range(0..8) {
                0 | 1 if !world.nodes[node].is_off && !ring(&world, node).is_full() => {
                    drop(world.ask(node, Command::TokenRotateKey));
                }
                2 => world.stop(node),
                3 | 4 => world.restart(node),
                5 => {
                    let apart: Vec<usize> = (0..count).filter(|_| chance.random_bool(0.5)).collect();
                    world.split(&apart);
                }
                6 => world.heal(),
                _ => {
                    let step = [Crash::AtOnce, Crash::KeysSaved, Crash::Committed];
                    world.faults.crash = Some((node, step[chance.random_range(0..3)]));
                }
            }
            world.pass(Duration::from_millis(chance.random_range(1..15_000)));
        }
        world.heal();
        world.faults.crash = None;
        for node in 0..count {
            if world.nodes[node].is_off {
                world.restart(node);
            }
        }
        let all: Vec<usize> = (0..count).collect();
        let took = until_settled(&mut world, &all);
        println!(
            "{count} nodes have key {} after {took:?}",
            ring(&world, 0).newest().epoch
        );
        world.faults.loss = None;
        all_hear_all(&mut world, &all, "after");
    }
}
