//! Records of a network go to those who want to know of it, all of them, and to nobody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::RngExt;
use weft_gossip::{Event, Interest};
use weft_types::NetworkId;

use crate::world::{World, key_in, seed, thorough};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A cluster in which each node wants to know of the networks that `of` names.
fn cluster(seed: u64, count: usize, of: impl Fn(usize) -> Vec<u8>) -> World {
    let mut world = World::cluster(seed, count);
    for at in 0..count {
        world.want(at, of(at));
    }
    world.run_until("all know what each wants", secs(10), World::is_settled);
    world
}

fn wants(world: &World, at: usize, network: u8) -> bool {
    world.nodes[at].interest.covers(&NetworkId([network; 16]))
}

fn sum(world: &World, at: usize, network: u8) -> u64 {
    world.gossip(at).fingerprint_of(NetworkId([network; 16]))
}

/// Whether all running nodes that want to know of a network hold the same of it.
fn agree_on(world: &World, network: u8) -> bool {
    let on = world.running().filter(|at| wants(world, *at, network));
    on.map(|at| sum(world, at, network))
        .collect::<BTreeSet<_>>()
        .len()
        <= 1
}

/// What somebody holds of networks that it does not want to know of, but for what it said itself.
fn surplus(world: &World, at: usize) -> usize {
    let (own, interest) = (world.id(at), &world.nodes[at].interest);
    let records = world.gossip(at).records();
    let of_networks = records.filter(|record| record.key.kind == key_in(1, "").kind);
    let foreign = of_networks.filter(|record| record.author != own);
    foreign
        .filter(|record| !interest.covers(&record.key.scope))
        .count()
}

fn had(world: &World, at: usize, event: &Event) -> bool {
    world.nodes[at].events.iter().any(|(_, had)| had == event)
}

#[test]
fn who_is_on_a_network_hears_all_of_it_and_nobody_else_anything() {
    // Each on two of ten, the last on none.
    let of = |at: usize| match at {
        39 => vec![],
        at => vec![(at % 10) as u8 + 1, (at * 3 % 10) as u8 + 1],
    };
    let mut world = cluster(seed(201), 40, of);
    for at in 0..39 {
        for network in BTreeSet::from_iter(of(at)) {
            world.put_key(at, key_in(network, "endpoint"), &at.to_string());
        }
        world.put(at, "of all", "1");
    }
    let took = world.run_until("who is concerned knows", secs(3), |world| {
        world.is_settled()
            && (1..=10).all(|network| agree_on(world, network))
            && (0..39).all(|author| {
                world.running().all(|at| {
                    BTreeSet::from_iter(of(author)).into_iter().all(|network| {
                        let value = world.value_of(at, author, &key_in(network, "endpoint"));
                        value.is_some() == (wants(world, at, network) || at == author)
                    })
                })
            })
    });
    println!("known to all who are concerned after {took:.2?}");
    assert!((0..40).all(|at| surplus(&world, at) == 0));
    // Nor is it on the disk of anybody else.
    let on_disk = world.nodes[39].disk.keys();
    assert_eq!(on_disk.filter(|(_, key)| key.scope.0 != [0; 16]).count(), 0);
}

#[test]
fn who_comes_to_a_network_gets_all_of_it_and_who_goes_forgets_it() {
    let mut world = cluster(seed(202), 12, |at| if at < 6 { vec![1] } else { vec![2] });
    for at in 0..6 {
        for n in 0..200 {
            world.put_key(at, key_in(1, &n.to_string()), "x");
        }
    }
    world.run_until("those on it know it", secs(5), |world| agree_on(world, 1));
    let before = sum(&world, 0, 1);
    world.want(9, [1, 2]);
    let took = world.run_until("the newcomer has all of it", secs(3), |world| {
        sum(world, 9, 1) == before && had(world, 9, &Event::Known(NetworkId([1; 16])))
    });
    println!("1,200 records are there {took:.2?} after they were wanted");
    world.put_key(9, key_in(1, "mine"), "1");
    world.run_until("and is heard", secs(3), |world| {
        (0..6).all(|at| world.value_of(at, 9, &key_in(1, "mine")).is_some())
    });
    world.remove_key(9, &key_in(1, "mine"));
    world.want(9, [2]);
    let took = world.run_until("it has forgotten the network", secs(20), |world| {
        surplus(world, 9) == 0
    });
    println!("a network was left after {took:.2?}");
    assert!((0..6).all(|at| world.value_of(at, 9, &key_in(1, "mine")).is_none()));
    let author = world.id(9);
    let on_disk = world.nodes[9].disk.keys();
    assert!(
        on_disk
            .filter(|(of, key)| *of != author && key.scope.0 != [0; 16])
            .count()
            == 0
    );
    // Nobody tells it of the network any more, nor does it want to.
    world.put_key(0, key_in(1, "later"), "1");
    world.run_for(secs(20));
    assert_eq!(surplus(&world, 9), 0);
    world.run_until("all agree", secs(5), |world| {
        world.is_settled() && agree_on(world, 1)
    });
}

#[test]
fn a_network_of_nobody_else_is_known_at_once_and_left_soon() {
    let mut world = cluster(seed(203), 3, |_| vec![]);
    world.want(0, [7]);
    world.run_until("there is nothing to wait for", secs(2), |world| {
        had(world, 0, &Event::Known(NetworkId([7; 16])))
    });
    world.put_key(0, key_in(7, "a"), "1");
    world.want(0, []);
    let said = |world: &World, at: usize| {
        let record = world
            .gossip(at)
            .records()
            .find(|record| record.key.name == [7; 16]);
        record.is_some_and(|record| record.value.is_some())
    };
    world.run_until("nobody counts on it", secs(20), |world| {
        (0..3).all(|at| !said(world, at))
    });
    // What it said itself it can say again.
    assert!(world.value_of(0, 0, &key_in(7, "a")).is_some());
    world.want(2, [7]);
    world.run_for(secs(10));
    assert!(world.value_of(2, 0, &key_in(7, "a")).is_none(), "its author left");
    world.want(0, [7]);
    world.run_until("until it is back", secs(5), |world| {
        world.value_of(2, 0, &key_in(7, "a")).is_some()
    });
}

#[test]
fn what_somebody_took_back_before_it_left_is_not_lost_with_it() {
    for run in 0..10 {
        let mut world = cluster(seed(204) + run, 6, |at| if at < 3 { vec![1] } else { vec![] });
        // The second may have nothing to say itself, and is still the one who knows of the first.
        let authors = if run < 5 { 2 } else { 1 };
        for at in 0..authors {
            world.put_key(at, key_in(1, "gone"), "1");
        }
        world.run_until("it is known", secs(3), |world| {
            (0..3).all(|at| (0..authors).all(|of| world.value_of(at, of, &key_in(1, "gone")).is_some()))
        });
        // One is away, and the others leave one after the other; the last has to wait for it.
        if run % 2 == 0 {
            world.kill(2);
        } else {
            world.net.groups.insert(2, 1);
        }
        world.run_for(secs(4));
        for at in [0, 1] {
            world.remove_key(at, &key_in(1, "gone"));
            world.want(at, []);
            // Two that leave at once know nothing of each other's intention.
            if run % 3 != 1 {
                world.run_for(secs(30));
            }
        }
        world.run_for(secs(30));
        // Whoever leaves may be started anew meanwhile.
        if run % 3 == 0 {
            world.kill(1);
            world.start(1);
            world.run_for(secs(30));
        }
        if run % 2 == 0 {
            world.start(2);
        }
        world.net.groups.clear();
        world.run_until("who was away hears of it", secs(20), |world| {
            (0..authors).all(|of| world.value_of(2, of, &key_in(1, "gone")).is_none())
        });
        world.run_until("and the last one leaves", secs(40), |world| {
            let record = world.gossip(3).get(&world.id(1), &interest_in(1));
            (0..2).all(|at| surplus(world, at) == 0) && record.is_none_or(|record| record.value.is_none())
        });
    }
}

fn interest_in(network: u8) -> weft_gossip::Key {
    weft_gossip::Key {
        kind: weft_gossip::INTEREST_KIND,
        scope: NetworkId([0; 16]),
        name: vec![network; 16],
    }
}

/// Whether a node says of a network what it wants: it is about to leave none.
fn says(world: &World, at: usize, network: u8) -> bool {
    let said = world.gossip(at).get(&world.id(at), &interest_in(network));
    let said = said.and_then(|record| record.value.clone());
    said.map(|value| value.is_empty()) == wants(world, at, network).then_some(true)
}

#[test]
fn a_disk_of_before_a_network_learns_what_its_node_said_there() {
    let mut world = cluster(seed(205), 8, |at| if at < 3 { vec![1] } else { vec![] });
    world.run_for(secs(1));
    let (disk, boot) = (world.nodes[5].disk.clone(), world.nodes[5].boot);
    world.want(5, [1]);
    world.put_key(5, key_in(1, "endpoint"), "1");
    world.run_until("it is known", secs(3), |world| {
        (0..3).all(|at| world.value_of(at, 5, &key_in(1, "endpoint")).is_some())
    });
    world.kill(5);
    (world.nodes[5].disk, world.nodes[5].boot) = (disk, boot - 1);
    world.nodes[5].interest = Interest::These(BTreeSet::new());
    world.nodes[5].events.clear();
    world.start(5);
    world.run_until("it hears of its former life", secs(10), |world| {
        world.value_of(5, 5, &key_in(1, "endpoint")).is_some()
    });
    let newer =
        |event: &Event| matches!(event, Event::OwnRecordNewer(record) if record.key == key_in(1, "endpoint"));
    world.run_until("and is told so", secs(3), |world| {
        world.nodes[5].events.iter().any(|(_, event)| newer(event))
    });
    // It does not want that any more.
    world.remove_key(5, &key_in(1, "endpoint"));
    world.run_until("it is taken back everywhere", secs(20), |world| {
        (0..3).all(|at| world.value_of(at, 5, &key_in(1, "endpoint")).is_none())
            && surplus(world, 5) == 0
            && world.is_settled()
    });
}

#[test]
fn who_wants_all_and_who_wants_some_live_together() {
    let mut world = cluster(seed(206), 10, |at| vec![(at % 3) as u8 + 1]);
    for at in [0, 5] {
        world.nodes[at].interest = Interest::Every;
        world.with(at, |gossip, now| gossip.set_interest(Interest::Every, now));
    }
    (world.net.loss, world.net.late) = (0.2, 0.1);
    for at in 0..10 {
        for network in 1..=3 {
            if wants(&world, at, network) {
                world.put_key(at, key_in(network, "a"), "1");
            }
        }
        world.run_for(secs(1));
    }
    world.net.loss = 0.0;
    world.run_until("all who want it have it", secs(20), |world| {
        world.is_settled() && (1..=3).all(|network| agree_on(world, network))
    });
    for at in 0..10 {
        for author in 0..10 {
            for network in 1..=3 {
                let is_said = wants(&world, author, network);
                let is_known = world.value_of(at, author, &key_in(network, "a")).is_some();
                assert_eq!(is_known, is_said && (wants(&world, at, network) || at == author));
            }
        }
    }
}

#[test]
fn after_a_storm_of_comings_and_goings_each_holds_what_it_wants() {
    const NODES: usize = 16;
    const NETWORKS: u8 = 6;
    let seed = seed(207);
    for run in 0..if thorough() { 50 } else { 5 } {
        let mut world = cluster(seed + run, NODES, |at| vec![(at % 6) as u8 + 1]);
        world.keep_events = false;
        (world.net.loss, world.net.duplicate, world.net.late) = (0.08, 0.05, 0.1);
        let mut said: BTreeMap<(usize, u8, String), Option<String>> = BTreeMap::new();
        for round in 0..300 {
            let at = world.rng.random_range(0..NODES);
            let network = world.rng.random_range(1..=NETWORKS);
            let name = format!("k{}", world.rng.random_range(0..4));
            let runs = world.nodes[at].gossip.is_some();
            let Interest::These(mut on) = world.nodes[at].interest.clone() else {
                panic!("nobody wants all")
            };
            match world.rng.random_range(0..12) {
                0 => world.kill(at),
                1 | 2 if !runs => world.start(at),
                3 => {
                    let other = world.rng.random_range(0..NODES);
                    world.net.groups.insert(other, world.rng.random_range(0..3));
                }
                4 => world.net.groups.clear(),
                5 | 6 if runs => {
                    // It leaves, with or without taking back what it said.
                    if on.remove(&NetworkId([network; 16])) && round % 4 > 0 {
                        for n in 0..4 {
                            let name = format!("k{n}");
                            world.remove_key(at, &key_in(network, &name));
                            said.insert((at, network, name), None);
                        }
                    }
                    world.want(at, on.iter().map(|network| network.0[0]));
                }
                7 if runs => {
                    on.insert(NetworkId([network; 16]));
                    world.want(at, on.iter().map(|network| network.0[0]));
                }
                8 if runs && wants(&world, at, network) => {
                    world.remove_key(at, &key_in(network, &name));
                    said.insert((at, network, name), None);
                }
                _ if runs && wants(&world, at, network) => {
                    world.put_key(at, key_in(network, &name), &round.to_string());
                    world.put(at, &name, &round.to_string());
                    said.insert((at, network, name), Some(round.to_string()));
                }
                _ => {}
            }
            world.run_for(Duration::from_millis(200));
        }
        (world.net.loss, world.net.groups) = (0.0, BTreeMap::new());
        for at in 0..NODES {
            if world.nodes[at].gossip.is_none() {
                world.start(at);
            }
        }
        let took = world.run_until("each holds what it wants", secs(120), |world| {
            world.is_settled()
                && (1..=NETWORKS).all(|network| agree_on(world, network))
                && (0..NODES).all(|at| {
                    surplus(world, at) == 0 && (1..=NETWORKS).all(|network| says(world, at, network))
                })
        });
        println!("agreed {took:.2?} after the storm");
        for ((author, network, name), value) in &said {
            for at in 0..NODES {
                if wants(&world, at, *network) {
                    let held = world.value_of(at, *author, &key_in(*network, name));
                    // Who left without taking it back handed it over to those who were there; they may have left too.
                    let has_left = !wants(&world, *author, *network) && held.is_none();
                    assert!(
                        held == *value || has_left,
                        "{run}: {author}/{network}/{name} at {at}: {held:?} {value:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_change_costs_those_alone_who_want_to_know() {
    // Each network on three hosts of sixty.
    let of = |at: usize| vec![(at % 20) as u8 + 1];
    let mut sent = Vec::new();
    for is_every in [true, false] {
        let mut world = World::cluster(seed(208), 60);
        if !is_every {
            (0..60).for_each(|at| world.want(at, of(at)));
        }
        world.run_for(secs(10));
        let bytes = |world: &World| -> u64 { (0..60).map(|at| world.gossip(at).stats().bytes_sent).sum() };
        let before = bytes(&world);
        for round in 0..100 {
            let at = round % 60;
            world.put_key(at, key_in(of(at)[0], "endpoint"), &"x".repeat(200));
            world.run_for(Duration::from_millis(100));
        }
        sent.push(bytes(&world) - before);
        world.run_until("who is concerned knows", secs(10), |world| {
            (0..100).map(|round| round % 60).all(|author| {
                let network = of(author)[0];
                let on = world.running().filter(|at| of(*at)[0] == network);
                on.into_iter()
                    .all(|at| world.value_of(at, author, &key_in(network, "endpoint")).is_some())
            })
        });
    }
    let share = sent[1] as f64 / sent[0] as f64;
    println!(
        "bytes of all: {} told to all, {} to those concerned ({share:.2})",
        sent[0], sent[1]
    );
    assert!(share < 0.35, "{share}");
}

#[test]
fn those_who_come_to_a_network_at_the_same_moment_hear_of_each_other_at_once() {
    let mut world = cluster(seed(209), 4, |_| vec![]);
    let mut longest = Duration::ZERO;
    for network in 1..=20 {
        for at in 0..2 {
            world.want(at, 1..=network);
            world.put_key(at, key_in(network, "endpoint"), "x");
            world.run_for(Duration::from_millis(u64::from(network % 3)));
        }
        let took = world.run_until("all know all", secs(5), |world| {
            (0..2).all(|at| {
                let mut others = 0..2;
                others.all(|of| world.value_of(at, of, &key_in(network, "endpoint")).is_some())
            })
        });
        longest = longest.max(took);
        world.run_for(secs(1));
    }
    println!("known to all at most {longest:.2?} after the last has come");
    assert!(longest < Duration::from_millis(500), "{longest:?}");
}
