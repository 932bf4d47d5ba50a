//! A member with valid keys that floods, says too much, and numbers its records as it likes.

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use weft_gossip::{MAX_VALUE, MemberState, PutError};
use weft_tests::speaker::{Life, Liveness, Speaker, State, short};

use crate::world::{CLUSTER, SECRET, World, key, seed};

const LIAR: usize = 4;
const VICTIM: usize = 1;

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

/// The life in which `at` believes another node.
fn life(world: &World, at: usize, of: usize) -> Life {
    let id = world.id(of);
    let mut members = world.gossip(at).members();
    let incarnation = members.find(|member| member.node == id);
    (short(&id), incarnation.expect("it is known").incarnation)
}

/// A second mouth of the liar's, that says what its agent would not.
fn mouth(world: &World) -> Speaker {
    Speaker::new(CLUSTER, SECRET, world.nodes[LIAR].identity.seed(), 99)
}

/// Everything that can be said of the victim's life, up to the last number there is, to one node.
fn slander(world: &mut World, liar: &mut Speaker, to: usize, numbers: &[u64]) {
    let (node, from) = (world.id(to), world.nodes[LIAR].address);
    let (src, dst) = (life(world, 0, LIAR), life(world, LIAR, to));
    let victim = short(&world.id(VICTIM));
    let mut packets = Vec::new();
    for number in numbers {
        let life = (victim, *number);
        for state in [State::Down, State::Suspect, State::Alive] {
            packets.push(liar.membership(&node, src, dst, &[(life, 0, state)]));
            packets.push(liar.membership(&node, src, dst, &[(life, u16::MAX, state)]));
        }
        // Both at once, and in the victim's own name.
        let both = [(life, 7, State::Suspect), (life, 7, State::Down)];
        packets.push(liar.membership(&node, src, dst, &both));
        packets.push(liar.membership(&node, life, dst, &[(life, 0, State::Down)]));
        for believed in [Liveness::Down(*number), Liveness::Active(*number)] {
            packets.push(liar.entries(&node, &[(victim, believed)]));
        }
        packets.push(liar.renew(&node, *number));
    }
    packets.push(liar.turn_undead(&node, src, dst));
    for packet in packets {
        world.inject(to, from, packet.into());
    }
}

/// The ends of every range in which the victim can be.
fn numbers(world: &World) -> Vec<u64> {
    let (_, now) = life(world, 0, VICTIM);
    let boot = now >> 16;
    let mut numbers = vec![
        now,
        now + 1,
        now + 1_000,
        ((boot + 1) << 16) - 1,
        (boot + 1) << 16,
        ((boot + 2) << 16) - 1,
        1 << 62,
        u64::MAX - 1,
        u64::MAX,
    ];
    numbers.retain(|number| *number >= now);
    numbers
}

#[test]
fn no_word_of_a_member_makes_another_count_as_down_however_high_its_number() {
    let mut world = World::cluster(seed(65), 5);
    let mut liar = mouth(&world);
    let first = life(&world, 0, VICTIM).1;
    for round in 0..100 {
        world.net.loss = if round < 50 { 0.0 } else { 0.05 };
        let numbers = numbers(&world);
        // At times all of it, at times one number alone.
        let some = match round % 10 {
            n if n < numbers.len() => &numbers[n..=n],
            _ => &numbers[..],
        };
        for to in 0..LIAR {
            slander(&mut world, &mut liar, to, some);
        }
        for _ in 0..10 {
            world.run_for(Duration::from_millis(20));
            for at in [0, 2, 3] {
                let state = world.state_at(at, VICTIM);
                assert!(
                    matches!(state, Some(MemberState::Alive | MemberState::Suspect)),
                    "round {round}: {state:?} at {at}"
                );
            }
        }
    }
    // It has had to say so itself that it lives, and has.
    assert!(life(&world, 0, VICTIM).1 > first);
    // Nobody speaks in its name.
    assert!((0..LIAR).all(|at| world.gossip(at).stats().forged > 0));
    world.net.loss = 0.0;
    let took = world.run_until("all is well", Duration::from_secs(10), World::is_settled);
    println!("all is well {took:.2?} after the last lie");
    assert!(told(&mut world, "after") < Duration::from_secs(1));
    // Who dies in spite of that is seen to be dead.
    world.kill(VICTIM);
    world.run_until("it is down", Duration::from_secs(6), |world| {
        [0, 2, 3]
            .iter()
            .all(|at| world.state_at(*at, VICTIM) == Some(MemberState::Down))
    });
}

#[test]
fn a_suspicion_that_is_always_ahead_of_its_refutation_convicts_nobody() {
    let mut world = World::cluster(seed(69), 5);
    let (mut liar, victim) = (mouth(&world), world.id(VICTIM));
    for round in 0..200_u16 {
        for to in [0, 2, 3] {
            let (src, dst) = (life(&world, 0, LIAR), life(&world, LIAR, to));
            let (life, from) = (life(&world, to, VICTIM), world.nodes[LIAR].address);
            assert_eq!(life.0, short(&victim));
            for state in [State::Suspect, State::Down] {
                let said = [(life, round * 100, state)];
                let packet = liar.membership(&world.id(to), src, dst, &said);
                world.inject(to, from, packet.into());
            }
        }
        world.run_for(Duration::from_millis(40));
        for at in [0, 2, 3] {
            let state = world.state_at(at, VICTIM);
            assert_ne!(state, Some(MemberState::Down), "round {round} at {at}");
        }
    }
    world.run_until("all is well", Duration::from_secs(10), World::is_settled);
}

#[test]
fn one_lie_with_any_number_is_refuted_and_forgotten() {
    let mut world = World::cluster(seed(66), 5);
    let mut liar = mouth(&world);
    for to in 0..LIAR {
        for index in 0..numbers(&world).len() {
            let numbers = numbers(&world);
            slander(&mut world, &mut liar, to, &numbers[index..=index]);
            world.run_for(Duration::from_secs(5));
            world.run_until("all is well", Duration::from_secs(10), World::is_settled);
        }
    }
    let downs = world.nodes.iter().flat_map(|node| &node.events);
    let downs = downs.filter(|(_, event)| {
        matches!(event, weft_gossip::Event::Member(member) if member.state == MemberState::Down
            && member.incarnation > 0)
    });
    assert_eq!(downs.count(), 0);
}

#[test]
fn a_node_that_begins_anew_hears_from_the_victim_that_it_lives() {
    let mut world = World::cluster(seed(67), 5);
    let mut liar = mouth(&world);
    for round in 0..8 {
        world.kill(3);
        world.start(3);
        for _ in 0..20 {
            let numbers = numbers(&world);
            if world
                .gossip(LIAR)
                .members()
                .any(|member| member.node == world.id(3))
            {
                slander(&mut world, &mut liar, 3, &numbers);
            }
            world.run_for(Duration::from_millis(100));
        }
        let took = world.run_until("the victim is alive there", Duration::from_secs(3), |world| {
            world.state_at(3, VICTIM) == Some(MemberState::Alive)
        });
        println!("round {round}: after {took:.2?}");
    }
    world.run_until("all is well", Duration::from_secs(10), World::is_settled);
}

#[test]
fn a_liar_cannot_say_that_another_has_left() {
    let mut world = World::cluster(seed(68), 5);
    world.wire = Some(Vec::new());
    // It says so itself; its word is kept, and it comes back.
    world.with(VICTIM, |gossip, now| gossip.leave(now));
    world.run_for(Duration::from_secs(2));
    world.kill(VICTIM);
    let id = world.id(VICTIM);
    let card = |world: &World| {
        let gossip = world.gossip(0);
        let card = gossip
            .records()
            .find(|record| record.author == id && record.key.kind == weft_gossip::CARD_KIND);
        card.expect("a card").clone()
    };
    let left = card(&world);
    assert_eq!(world.state_at(0, VICTIM), Some(MemberState::Left));
    world.start(VICTIM);
    world.run_until("it is back", Duration::from_secs(5), World::is_settled);
    let mut liar = mouth(&world);
    let mut forged = card(&world);
    forged.value.clone_from(&left.value);
    forged.version += 1;
    let from = world.nodes[LIAR].address;
    for record in [left, forged] {
        for to in [0, 2, 3] {
            let node = world.id(to);
            world.inject(to, from, liar.rumour(&node, &[&record]).into());
        }
        world.run_for(Duration::from_millis(500));
        for at in [0, 2, 3] {
            assert_eq!(world.state_at(at, VICTIM), Some(MemberState::Alive));
        }
    }
    assert!((0..LIAR).map(|at| world.gossip(at).stats().forged).sum::<u64>() > 0);
}
