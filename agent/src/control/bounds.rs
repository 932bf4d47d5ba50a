//! What a node can say has a bound: at it, one beyond and ten beyond.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use weft_gossip::Key;

use super::{Command, RESERVE, world::World};
use crate::api::{
    ApiError, ErrorKind,
    types::{ConnectResponse, NetworkCreateRequest},
};

/// Of a kind from the future.
fn junk(n: usize) -> Key {
    Key {
        kind: 200,
        scope: super::records::CLUSTER,
        name: n.to_be_bytes().to_vec(),
    }
}

fn fill(world: &mut World, node: usize, until: usize) {
    let now = world.now;
    let gossip = &mut world.nodes[node].control.gossip;
    for n in 0..gossip.room() - until {
        gossip
            .put(junk(n), Bytes::from_static(b"x"), now.instant)
            .expect("there is room");
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
    for n in 0..10 {
        let error = connect(&mut world, 0, &format!("e{n}")).expect_err("there is none for more");
        assert_eq!(error.kind, ErrorKind::Exhausted, "{error:?}");
        assert!(error.help.is_some_and(|help| help.contains("another node")));
    }
    // Nothing that was refused has kept an address: all 29 but one are there for the other, which has to be given half.
    for n in 0..28 {
        connect(&mut world, 1, &format!("e{n}")).unwrap_or_else(|error| panic!("{n}: {error:?}"));
        // A grant counts for who got it once it has heard how the giver came to own it.
        world.pass(Duration::from_millis(100));
    }
    let now = world.now;
    for n in 0..40_usize {
        world.nodes[0].control.gossip.remove(&junk(n), now.instant);
    }
    connect(&mut world, 0, "again").expect_err("all addresses are in use");
    world.done(0, |to| {
        let what = serde_json::from_value(json!({"target": "last"})).unwrap();
        Command::Disconnect("app".to_owned(), what, to)
    });
    connect(&mut world, 0, "again").expect("there is room again");
}
