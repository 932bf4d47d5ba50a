//! What a node can say has a bound: at it, one beyond and ten beyond.

use std::time::Duration;

use bytes::Bytes;
use weft_gossip::{Config, Gossip, Identity, Key, MAX_VALUE};

use super::{
    Command, RESERVE,
    admission::{JoinError, Refused},
    records::Kind,
    token::Token,
    world::{MAX_AUTHORS, World, address, facts, first_ring},
};
use crate::api::{
    ApiError, ErrorKind,
    types::{ConnectResponse, NetworkCreateRequest, NodeRemoveQuery, TokenCreateRequest},
};

mod requests;

/// Of a kind from the future.
fn junk(n: usize) -> Key {
    Key {
        kind: 200,
        scope: super::records::CLUSTER,
        name: n.to_be_bytes().to_vec(),
    }
}

/// A node says so much that there is room for `until` things more, or for none at all, be it ever so short.
fn fill(world: &mut World, node: usize, until: usize) {
    let now = world.now;
    let gossip = &mut world.nodes[node].control.gossip;
    let mut names = (0..).map(junk);
    let mut say = |gossip: &mut Gossip, value: &'static [u8]| {
        let name = names.next().expect("they do not end");
        gossip.put(name, Bytes::from_static(value), now.instant).is_ok()
    };
    while gossip.room() > until {
        assert!(say(gossip, &[b'x'; MAX_VALUE]));
    }
    if until == 0 {
        while say(gossip, b"") {}
    }
    world.pass(Duration::from_secs(10));
}

fn connect(world: &mut World, node: usize, name: &str) -> Result<ConnectResponse, ApiError> {
    world.connect(node, "app", name, None)
}

#[test]
fn a_node_that_has_said_enough_refuses_more_and_still_gives_numbers_away() {
    let mut world = World::of(2);
    let mut network = NetworkCreateRequest::new("app");
    network.subnets = vec!["10.7.0.0/27".parse().unwrap()];
    world.done(0, |to| Command::NetworkCreate(network, to));
    fill(&mut world, 0, RESERVE + 1);
    connect(&mut world, 0, "last").expect("there is room for one");
    // What is said of an endpoint is shorter than it might be.
    let more = (0..10).take_while(|n| connect(&mut world, 0, &format!("m{n}")).is_ok());
    let more = more.count();
    assert!(more < 8, "{more}");
    for n in 0..10 {
        let error = connect(&mut world, 0, &format!("e{n}")).expect_err("there is none for more");
        assert_eq!(error.kind, ErrorKind::Exhausted, "{error:?}");
        assert!(error.help.is_some_and(|help| help.contains("another node")));
    }
    // Nothing that was refused has kept an address: all others of 29 are there for the other, which has to be given half.
    for n in 0..28 - more {
        connect(&mut world, 1, &format!("e{n}")).unwrap_or_else(|error| panic!("{n}: {error:?}"));
        // A grant counts for who got it once it has heard how the giver came to own it.
        world.pass(Duration::from_millis(100));
    }
    let now = world.now;
    for n in 0..40_usize {
        world.nodes[0].control.gossip.remove(&junk(n), now.instant);
    }
    connect(&mut world, 0, "again").expect_err("all addresses are in use");
    world.disconnect(0, "app", "last");
    connect(&mut world, 0, "again").expect("there is room again");
}

fn token(world: &mut World, node: usize, ttl_secs: u64, reusable: bool) -> Token {
    let request = TokenCreateRequest { ttl_secs, reusable };
    let made = world.nodes[node].control.create_token(&request, world.now);
    made.unwrap().token.parse().unwrap()
}

#[test]
fn a_node_that_can_say_no_more_lets_nobody_in_and_another_does_by_the_same_token() {
    let mut world = World::of(2);
    let token = token(&mut world, 1, 900, false);
    fill(&mut world, 0, 0);
    for _ in 0..10 {
        let refused = world.join(0, Some(&token)).unwrap_err();
        let by = "h1".to_owned();
        assert_eq!(refused, JoinError::Refused(Refused::Untold { by }));
    }
    world.join(1, Some(&token)).expect("the token was not used");
}

#[test]
fn what_a_node_says_of_whom_it_let_in_ends_with_them_and_the_token() {
    let mut world = World::of(1);
    let reusable = token(&mut world, 0, 60, true);
    let joined: Vec<usize> = (0..3)
        .map(|_| world.join(0, Some(&reusable)).expect("it is reusable"))
        .collect();
    let uses = |world: &World| {
        let records = world.nodes[0].control.gossip.records();
        let uses = records.filter(|record| Kind::of(&record.key) == Some(Kind::TokenUse));
        uses.filter(|record| record.value.is_some()).count()
    };
    for gone in &joined[1..] {
        world.stop(*gone);
        let (name, query) = (format!("h{}", gone + 1), NodeRemoveQuery { force: true });
        world.done(0, |to| Command::NodeRemove(name, query, to));
    }
    token(&mut world, 0, 900, false);
    assert_eq!(uses(&world), 3, "who was let in might come again");
    world.pass(Duration::from_secs(61));
    token(&mut world, 0, 900, false);
    assert_eq!(uses(&world), 1, "that of who is a member stays");
    world.until(Duration::from_secs(10), |world| {
        let known = world.nodes[joined[0]].control.catalogue.gossip_keys();
        known.admissions().count() == 1
    });
}

#[test]
fn who_would_be_one_node_too_many_is_told_so() {
    let mut world = World::of(1);
    let others = MAX_AUTHORS - 2;
    for n in 0..others as u8 {
        let identity = Identity::from_seed([n + 100; 32]);
        let config = Config::new(facts().id, first_ring().to_seal(), address(n + 100));
        let mut gossip = Gossip::new(config, identity, 1, [n; 32], world.now.instant);
        let said = gossip.put(junk(0), Bytes::from_static(b"x"), world.now.instant);
        world.nodes[0].disk.write(said.unwrap());
    }
    world.restart(0);
    world.pass(Duration::from_secs(10));
    let last = token(&mut world, 0, 900, true);
    world.join(0, Some(&last)).expect("there is room for one");
    for _ in 0..10 {
        let refused = world.join(0, Some(&last)).unwrap_err();
        assert_eq!(refused, JoinError::Refused(Refused::NoRoom));
    }
}
