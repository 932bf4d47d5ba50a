//! Nodes that change their keys: nothing is lost, and what was made of the old key is gone.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use netns_harness::{Inside, eventually};
use weft_tests::{
    flow::Flow,
    keys::{copies, is_answered},
    queues, slowness,
};
use weft_wireguard::{Desired, KeyPair, Secret32};

use crate::{
    bed::{Bed, LOOK_EVERY, Node, PATIENCE, PORT, container, key, on_two, underlay},
    traffic::{CANARY, Talks},
};

/// The key after that of a number: bytes that nothing else in the memory of a process is made of.
fn next(number: u8) -> Secret32 {
    let bytes: Vec<_> = (0..32_u8)
        .map(|at| at.wrapping_mul(37).wrapping_add(number.wrapping_mul(91) ^ 3))
        .collect();
    Secret32::new(bytes.try_into().unwrap())
}

/// What a node is told, with keys of its own and of the other, the newest first.
fn told(bed: &Bed, number: u8, own: &[&Secret32], theirs: &[&Secret32]) -> Desired {
    let mut desired = bed.desired(number);
    let pair = |own: usize, theirs: &&Secret32| KeyPair {
        own: own as u8,
        public_key: theirs.public_key(),
        preshared_key: desired.peers[0].pairs[0].preshared_key.clone(),
    };
    let pairs = (0..own.len()).flat_map(|own| theirs.iter().map(move |theirs| (own, theirs)));
    let pairs: Vec<_> = pairs.map(|(own, theirs)| pair(own, theirs)).collect();
    desired.peers[0].pairs = pairs;
    desired.private_keys = own.iter().copied().cloned().collect();
    desired
}

fn apply(node: &Node, desired: Desired) {
    assert_eq!(node.apply(desired), [] as [&str; 0]);
}

/// The same after somebody else had the key of a peer: whoever shows it is where the peer is, until the peer says that it
/// has moved.
fn apply_anew(node: &Node, desired: Desired) {
    let mut elsewhere = desired.clone();
    elsewhere.peers[0].endpoint.set_port(9);
    apply(node, elsewhere);
    apply(node, desired);
}

/// Waits until a node sends by a pair of keys and hears the other by it, and by no other any more.
fn uses(node: &Node, other: u8, own: &Secret32, theirs: &Secret32) {
    let (own, theirs) = (own.public_key(), theirs.public_key());
    let look = || {
        let peer = node.about(other);
        let is_it = |pair: &&weft_wireguard::PairStatus| (pair.own, pair.public_key) == (own, theirs);
        let used = peer.used().filter(is_it);
        let others = peer.pairs.iter().filter(|pair| !is_it(pair));
        let late = others
            .filter_map(|pair| pair.last_heard)
            .any(|ago| ago < Duration::from_secs(1));
        match used.is_some_and(|pair| pair.last_heard.is_some()) && !late {
            true => Ok(()),
            false => Err(format!("{peer:?}")),
        }
    };
    eventually("the new keys to be used", *PATIENCE, LOOK_EVERY, look).unwrap();
}

fn answers(from: &Node, to: &Node, own: &Secret32, theirs: &Secret32) -> bool {
    let at = (underlay(to.number), PORT).into();
    is_answered(&from.host, at, own.expose(), &theirs.public_key())
}

fn flow(from: &Node, to: &Node) -> Flow {
    let address = container(to.number, false);
    let bind = |node: &Node, address| {
        let bound = node.container.run(|| UdpSocket::bind((address, 0)));
        bound.unwrap().unwrap()
    };
    Flow::start(bind(from, [0; 4].into()), bind(to, address), CANARY)
}

/// How many packets found a queue full on the way between containers so far.
fn overflows(nodes: &[&Node]) -> u64 {
    let of = |node: &&Node| {
        let host = node.host.run(queues::overflows).unwrap();
        let inside = [&node.network, &node.pod].map(|sandbox| sandbox.run(queues::overflows).unwrap());
        host + inside.iter().sum::<u64>()
    };
    nodes.iter().map(of).sum()
}

#[test]
fn keys_change_under_load_and_nothing_is_lost() {
    on_two(|bed, one, two| {
        one.asks(two, false).unwrap();
        let flows = [flow(one, two), flow(two, one)];
        // As much as is carried in about the same time.
        let kilobytes = 200_000 / slowness() as usize;
        thread::scope(|scope| {
            let streams = [
                scope.spawn(|| one.streams_to(two, false, kilobytes)),
                scope.spawn(|| two.streams_to(one, true, kilobytes)),
            ];
            let begun = Instant::now();
            let [old1, old2, new1, new2] = [key(1), key(2), next(1), next(2)];
            // The first has a new key, and the other hears of it later.
            let both1 = [&new1, &old1];
            apply(one, told(bed, 1, &both1, &[&old2]));
            flows.iter().for_each(|flow| flow.goes_on(300));
            apply(two, told(bed, 2, &[&old2], &both1));
            uses(one, 2, &new1, &old2);
            uses(two, 1, &old2, &new1);
            // Before the first has forgotten its old one, the second changes too.
            let both2 = [&new2, &old2];
            apply(two, told(bed, 2, &both2, &both1));
            flows.iter().for_each(|flow| flow.goes_on(300));
            apply(one, told(bed, 1, &both1, &both2));
            uses(one, 2, &new1, &new2);
            uses(two, 1, &new2, &new1);
            apply(one, told(bed, 1, &[&new1], &both2));
            flows.iter().for_each(|flow| flow.goes_on(300));
            apply(two, told(bed, 2, &[&new2], &[&new1]));
            apply(one, told(bed, 1, &[&new1], &[&new2]));
            flows.iter().for_each(|flow| flow.goes_on(300));
            println!("two changes of keys under load: {:.1?}", begun.elapsed());
            for stream in streams {
                stream.join().unwrap().unwrap();
            }
        });
        let mut all_lost = 0;
        for (sent, lost) in flows.map(Flow::stop) {
            println!("{sent} datagrams, {} lost: {lost:?}", lost.len());
            all_lost += lost.len() as u64;
        }
        // Who encrypts and gets no processor for seconds loses packets by any key.
        let overflown = overflows(&[one, two]);
        println!("{overflown} packets found a queue full");
        assert!(all_lost <= overflown, "{all_lost} lost");
        assert_eq!((one.about(2).lost, two.about(1).lost), (0, 0));
    });
}

#[test]
fn an_old_key_opens_nothing_and_is_nowhere() {
    on_two(|bed, one, two| {
        // Keys that can be told from anything else.
        let [old, new] = [next(11), next(12)];
        let second = key(2);
        let theirs = [&second];
        apply(one, told(bed, 1, &[&old], &theirs));
        apply(two, told(bed, 2, &theirs, &[&old]));
        one.asks(two, false).unwrap();
        assert!(answers(two, one, &key(2), &old), "the key is in use");
        assert!(answers(one, two, &old, &key(2)));
        assert!(
            copies(one.process().pid(), old.expose()) > 0,
            "one sees it in memory"
        );
        let both = [&new, &old];
        apply_anew(one, told(bed, 1, &both, &theirs));
        apply_anew(two, told(bed, 2, &theirs, &both));
        uses(one, 2, &new, &key(2));
        uses(two, 1, &key(2), &new);
        assert!(answers(two, one, &key(2), &old) && answers(two, one, &key(2), &new));
        apply_anew(one, told(bed, 1, &[&new], &theirs));
        apply_anew(two, told(bed, 2, &theirs, &[&new]));
        assert!(!answers(two, one, &key(2), &old), "with the old key");
        assert!(!answers(one, two, &old, &key(2)), "by the old key");
        assert!(answers(two, one, &key(2), &new));
        apply_anew(one, told(bed, 1, &[&new], &theirs));
        one.asks(two, false).unwrap();
        // A part of it is enough: to compute with it, some bits are changed.
        let part = &old.expose()[4..28];
        let gone = || match copies(one.process().pid(), part) {
            0 => Ok(()),
            count => Err(count),
        };
        eventually("the old key to be gone from memory", *PATIENCE, LOOK_EVERY, gone).unwrap();
    });
}

#[test]
fn who_has_not_heard_of_a_new_key_is_spoken_to_by_the_old_one() {
    on_two(|bed, one, two| {
        one.asks(two, false).unwrap();
        let flows = [flow(one, two), flow(two, one)];
        let [new, old, theirs] = [next(1), key(1), key(2)];
        apply(one, told(bed, 1, &[&new, &old], &[&theirs]));
        flows.iter().for_each(|flow| flow.goes_on(2000));
        let pair = one.about(2).used().cloned().unwrap();
        assert_eq!(pair.own, key(1).public_key());
        for flow in flows {
            assert_eq!(flow.stop().1, [0; 0]);
        }
    });
}
