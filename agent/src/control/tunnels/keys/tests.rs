use std::time::Duration;

use weft_wireguard::{Desired, PairStatus, Status};

use super::*;
use crate::{
    api::{ErrorKind, types::NetworkCreateRequest},
    control::{
        Command, TunnelReport,
        records::{CLUSTER, Kind, encode},
        world::World,
    },
};

/// Nodes with an endpoint each on an encrypted network.
fn encrypted(count: u8) -> World {
    let mut world = World::of(count);
    let mut request = NetworkCreateRequest::new("secret");
    request.options.insert("encrypted".to_owned(), "true".to_owned());
    world.done(0, |to| Command::NetworkCreate(request, to));
    world.pass(Duration::from_secs(1));
    for node in 0..usize::from(count) {
        world.connect(node, "secret", &format!("e{node}"), None).unwrap();
        world.pass(Duration::from_secs(1));
    }
    world
}

fn secret(n: u8) -> Secret32 {
    Secret32::new([n; 32])
}

fn told(world: &World, node: usize) -> Desired {
    world.nodes[node].control.tunnels().unwrap()
}

/// The pairs that a node has with another, by its place among the peers.
fn pairs(desired: &Desired, vtep: std::net::Ipv4Addr) -> Vec<([u8; 32], [u8; 32])> {
    let peer = desired.peers.iter().find(|peer| peer.vtep == vtep).unwrap();
    let pair = |pair: &weft_wireguard::KeyPair| {
        (
            desired.private_keys[usize::from(pair.own)].public_key(),
            pair.public_key,
        )
    };
    peer.pairs.iter().map(pair).collect()
}

fn vtep(world: &World, node: usize) -> std::net::Ipv4Addr {
    world.nodes[node].control.tunnel_address()
}

/// Has the process of a node say that it hears the others by some of their pairs, and when it did last.
fn hears(world: &mut World, node: usize, heard: impl Fn(&Desired, &PairStatus) -> Option<u64>) {
    let desired = told(world, node);
    let peers = desired.peers.iter().map(|peer| PeerStatus {
        pairs: pairs(&desired, peer.vtep)
            .into_iter()
            .map(|(own, public_key)| {
                let mut pair = PairStatus {
                    own,
                    public_key,
                    is_used: false,
                    last_handshake: None,
                    last_heard: None,
                };
                pair.last_heard = heard(&desired, &pair).map(Duration::from_secs);
                pair.is_used = pair.last_heard.is_some();
                pair.last_handshake = pair.last_heard;
                pair
            })
            .collect(),
        ..PeerStatus::new(peer.vtep, peer.endpoint)
    });
    let status = Status {
        generation: 1,
        peers: peers.collect(),
        ..Status::default()
    };
    let report = TunnelReport {
        status: Ok(status),
        failed: Vec::new(),
    };
    let now = world.now;
    world.nodes[node].control.handle_tunnels(report, now);
}

fn rotate(world: &mut World, node: usize, fresh: u8) -> NodeRotateKeyResponse {
    let name = format!("h{}", node + 1);
    world.done(node, |to| Command::NodeRotateKey(name, secret(fresh), to))
}

#[test]
fn a_new_key_is_told_beside_the_old_one_and_takes_its_place_when_all_use_it() {
    let mut world = encrypted(3);
    let (old, new) = (secret(1).public_key(), secret(101).public_key());
    let before = told(&world, 1);
    let answer = rotate(&mut world, 0, 101);
    assert_eq!(answer.fingerprint, fingerprint(&old));
    assert_eq!(
        (answer.change.fingerprint, answer.change.epoch),
        (fingerprint(&new), 2)
    );
    world.pass(Duration::from_secs(1));
    // Both sides have sessions of both, and the newer ones go first.
    assert_eq!(told(&world, 0).private_keys, [secret(101), secret(1)]);
    let (one, two) = (vtep(&world, 0), secret(2).public_key());
    assert_eq!(pairs(&told(&world, 1), one), [(two, new), (two, old)]);
    let here = pairs(&told(&world, 0), vtep(&world, 1));
    assert_eq!(here, [(new, two), (old, two)]);
    let shared = |desired: &Desired, vtep, place: usize| {
        let peer = desired.peers.iter().find(|peer| peer.vtep == vtep).unwrap();
        peer.pairs[place].preshared_key.clone()
    };
    for place in [0, 1] {
        let there = shared(&told(&world, 1), one, place);
        assert_eq!(shared(&told(&world, 0), vtep(&world, 1), place), there);
    }
    assert_eq!(shared(&told(&world, 1), one, 1), shared(&before, one, 0));

    // A second one is refused, and says what the first waits for.
    let name = "h1".to_owned();
    let (now, fresh) = (world.now, secret(102));
    let refused = world.nodes[0].control.rotate_key(&name, fresh, now).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.message.contains("it waits for h2, h3"), "{refused}");

    // One has gone over, the other still sends by the old key.
    let newest = move |_: &Desired, pair: &PairStatus| (pair.own == new).then_some(0);
    let three = secret(3).public_key();
    hears(&mut world, 0, move |_, pair| {
        let by = if pair.public_key == three { old } else { new };
        (pair.own == by).then_some(0)
    });
    world.pass(Duration::from_secs(3));
    let status = world.nodes[0].control.encryption(None, world.now).unwrap();
    assert_eq!(status.change.unwrap().waiting_for, ["h3"]);
    let epochs: Vec<_> = status.tunnels.iter().map(|tunnel| tunnel.own_epoch).collect();
    assert_eq!(epochs, [2, 1]);
    world.pass(Duration::from_secs(4));
    assert!(world.nodes[0].control.rotation.is_changing());

    hears(&mut world, 0, newest);
    world.pass(Duration::from_secs(4));
    assert_eq!(told(&world, 0).private_keys, [secret(101)]);
    for node in [1, 2] {
        let own = secret(node as u8 + 1).public_key();
        assert_eq!(pairs(&told(&world, node), one), [(own, new)]);
    }
    let now = world.now;
    let detail = world.nodes[1].control.node_detail("h1", now).unwrap();
    assert_eq!(
        (detail.key_fingerprint, detail.key_epoch),
        (Some(fingerprint(&new)), Some(2))
    );
    assert!(
        world.nodes[0]
            .control
            .encryption(None, now)
            .unwrap()
            .change
            .is_none()
    );
}

#[test]
fn two_nodes_that_change_their_keys_at_once_have_sessions_of_all_four_pairs() {
    let mut world = encrypted(2);
    rotate(&mut world, 0, 101);
    rotate(&mut world, 1, 102);
    world.pass(Duration::from_secs(1));
    let [a, a2, b, b2] = [1, 101, 2, 102].map(|n| secret(n).public_key());
    let other = vtep(&world, 1);
    assert_eq!(
        pairs(&told(&world, 0), other),
        [(a2, b2), (a2, b), (a, b2), (a, b)]
    );
    // To be heard by the new key of its own and the old one of the other is not enough.
    hears(&mut world, 0, move |_, pair| {
        ((pair.own, pair.public_key) == (a2, b)).then_some(0)
    });
    world.pass(Duration::from_secs(4));
    assert!(world.nodes[0].control.rotation.is_changing());
    hears(&mut world, 0, move |_, pair| {
        ((pair.own, pair.public_key) == (a2, b2)).then_some(0)
    });
    world.pass(Duration::from_secs(4));
    assert_eq!(told(&world, 0).private_keys, [secret(101)]);
    assert_eq!(pairs(&told(&world, 1), vtep(&world, 0)), [(b2, a2), (b, a2)]);
}

#[test]
fn who_is_down_or_removed_is_not_waited_for() {
    let mut world = encrypted(3);
    let new = secret(101).public_key();
    let two = secret(2).public_key();
    world.nodes[2].is_cut_off = true;
    rotate(&mut world, 0, 101);
    let heard =
        move |_: &Desired, pair: &PairStatus| (pair.own == new && pair.public_key == two).then_some(0);
    world.until(Duration::from_secs(60), |world| {
        hears(world, 0, heard);
        !world.nodes[0].control.rotation.is_changing()
    });
    assert_eq!(told(&world, 0).private_keys, [secret(101)]);
    // Who was away learns the new key when it is back.
    world.nodes[2].is_cut_off = false;
    world.until(Duration::from_secs(120), |world| {
        let own = secret(3).public_key();
        pairs(&told(world, 2), vtep(world, 0)) == [(own, new)]
    });
}

#[test]
fn only_a_node_itself_changes_its_key_and_an_old_one_is_changed_where_that_is_asked_for() {
    let mut world = encrypted(2);
    let now = world.now;
    let control = &mut world.nodes[0].control;
    let refused = control.rotate_key("h2", secret(9), now).unwrap_err();
    assert!(refused.message.contains("`h2` is another node"), "{refused}");
    let later = Now {
        unix_millis: 90 * 24 * 3600 * 1000,
        ..now
    };
    assert!(!control.is_key_old(later));
    control.settings.rotate_keys = Some(Duration::from_secs(90 * 24 * 3600));
    assert!(!control.is_key_old(now) && control.is_key_old(later));
    control.change_old_key(secret(101), later);
    assert!(!control.is_key_old(later));
    assert_eq!(control.rotation.keys().newest_first().count(), 2);
    assert!(control.take_turn().tunnel_keys.is_some(), "it goes to the disk");
}

#[test]
fn a_key_that_two_nodes_say_they_have_is_a_problem_and_what_one_has_no_other_gets() {
    let mut world = encrypted(2);
    let (thief, victim) = (world.nodes[1].control.me, secret(1).public_key());
    let control = &mut world.nodes[0].control;
    let mut said = control.catalogue.node(thief).unwrap().fact.clone().unwrap();
    said.tunnel.next = Some(victim);
    let key = Kind::Node.key(CLUSTER, Vec::new());
    control.catalogue.apply(thief, &key, Some(&encode(&said)));
    let ends = ends(&control.catalogue);
    assert_eq!(ends[&thief].keys, [secret(2).public_key()]);
    assert_eq!(ends[&control.me].keys, [victim]);
    let now = world.now;
    let problems = world.nodes[0].control.key_problems(now);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("have the same key"), "{problems:?}");
}
