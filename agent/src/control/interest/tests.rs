use std::time::Duration;

use weft_gossip::{Config, Gossip, Identity};

use super::*;
use crate::{
    api::types::{EventKind, NetworkCreateRequest, NetworkDetail, NodeRemoveQuery},
    control::{
        records::Kind,
        world::{World, address, facts, first_ring},
    },
};

const SECOND: Duration = Duration::from_secs(1);

/// Four nodes, and a network with endpoints on the first two.
fn world() -> (World, NetworkId) {
    let mut world = World::of(4);
    let network = NetworkCreateRequest::new("app");
    let made = world.done(0, |to| Command::NetworkCreate(network, to));
    world.pass(SECOND);
    for node in 0..2 {
        world.connect(node, "app", &format!("e{node}"), None).unwrap();
    }
    // What the maker was interested in is over.
    world.pass(100 * SECOND);
    (world, made.id)
}

fn inspect(world: &mut World, node: usize) -> NetworkDetail {
    world.done(node, |to| Command::NetworkInspect("app".to_owned(), to))
}

/// How many records of endpoints a node has, tombstones among them.
fn held(world: &World, node: usize) -> usize {
    let records = world.nodes[node].control.gossip.records();
    let endpoints = records.filter(|record| Kind::of(&record.key) == Some(Kind::Endpoint));
    endpoints.count()
}

#[test]
fn endpoints_are_known_to_those_on_their_network_and_for_a_while_to_whoever_asks() {
    let (mut world, network) = world();
    assert_eq!([0, 1, 2, 3].map(|node| held(&world, node)), [2, 2, 0, 0]);
    let users: Vec<_> = world.nodes[3].control.catalogue.users(network).collect();
    assert_eq!(users.len(), 2, "who is there, all know");

    let begin = world.now.instant;
    assert_eq!(inspect(&mut world, 3).endpoints.len(), 2);
    assert!(world.now.instant - begin < SECOND / 2);
    world.connect(0, "app", "late", None).unwrap();
    world.pass(SECOND);
    assert_eq!(held(&world, 3), 3, "it is told what happens");
    world.pass(100 * SECOND);
    assert_eq!([0, 1, 2, 3].map(|node| held(&world, node)), [3, 3, 0, 0]);

    world.disconnect(1, "app", "e1");
    world.pass(100 * SECOND);
    assert_eq!(
        [1, 2, 3].map(|node| world.nodes[node].control.interests.wanted.len()),
        [0; 3]
    );
    let users = world.nodes[3].control.catalogue.users(network);
    assert_eq!(users.count(), 1);
    let there = inspect(&mut world, 1).endpoints;
    let mut names: Vec<_> = there.iter().map(|endpoint| endpoint.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["e0", "late"]);
}

#[test]
fn a_node_alone_knows_its_networks_at_once() {
    let mut world = World::of(1);
    world.done(0, |to| {
        Command::NetworkCreate(NetworkCreateRequest::new("app"), to)
    });
    world.connect(0, "app", "e0", None).unwrap();
    let measured = world.nodes[0].control.measures(world.now).networks;
    assert_eq!(measured.len(), 1);
    assert_eq!(measured[0].0.endpoint_count, 1);
}

#[test]
fn whoever_comes_onto_a_network_knows_who_is_there_when_it_is_told_so() {
    let (mut world, network) = world();
    world.connect(2, "app", "e2", None).unwrap();
    assert_eq!(world.nodes[2].control.catalogue.endpoints(network).count(), 3);
    let twice = world.connect(3, "app", "e0", None).unwrap_err();
    assert!(twice.message.contains("on node `h1`"), "{twice:?}");
}

#[test]
fn nobody_waits_for_those_who_do_not_answer_and_is_told_what_is_lacking() {
    let (mut world, _) = world();
    world.split(&[2, 3]);
    // Until they are believed to be gone, they are waited for, a little.
    let begin = world.now.instant;
    assert_eq!(inspect(&mut world, 3).endpoints.len(), 0);
    assert!(world.now.instant - begin <= PATIENCE);
    world.pass(30 * SECOND);
    let begin = world.now.instant;
    inspect(&mut world, 3);
    assert_eq!(world.now.instant, begin, "there is nobody to wait for");
    let problems = world.nodes[3].control.all_problems(world.now);
    let lacking = |problems: &[String]| {
        problems
            .iter()
            .any(|problem| problem.contains("endpoints of network `app`"))
    };
    assert!(lacking(&problems), "{problems:?}");
    let error = world
        .tried(3, |to| Command::NetworkRemove("app".to_owned(), to))
        .unwrap_err();
    assert!(error.message.contains("and nobody answers"), "{error:?}");

    world.heal();
    world.pass(30 * SECOND);
    assert_eq!(inspect(&mut world, 3).endpoints.len(), 2);
    let problems = world.nodes[3].control.all_problems(world.now);
    assert!(!lacking(&problems), "{problems:?}");
}

#[test]
fn what_had_happened_before_somebody_asked_is_no_event() {
    let (mut world, _) = world();
    let follow = |world: &mut World| world.done(3, Command::Follow);
    world.events.clear();
    follow(&mut world);
    world.pass(SECOND);
    let of_endpoints = |world: &World, node: usize| {
        let events = world.events.iter().filter(|(of, _)| *of == node);
        let kinds = events.map(|(_, event)| event.kind);
        kinds
            .filter(|kind| {
                matches!(
                    kind,
                    EventKind::EndpointConnected | EventKind::EndpointDisconnected
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(of_endpoints(&world, 3), []);
    world.connect(0, "app", "late", None).unwrap();
    world.disconnect(1, "app", "e1");
    world.pass(SECOND);
    let both = [EventKind::EndpointConnected, EventKind::EndpointDisconnected];
    assert_eq!(of_endpoints(&world, 3), both);
    assert_eq!(of_endpoints(&world, 0), both);
    assert_eq!(of_endpoints(&world, 2), [], "nobody follows there");
    for _ in 0..4 {
        world.pass(30 * SECOND);
        follow(&mut world);
    }
    assert_eq!(held(&world, 3), 3, "who goes on following goes on being told");
    world.pass(100 * SECOND);
    assert_eq!(held(&world, 3), 0);
    assert_eq!(of_endpoints(&world, 3), both, "what is forgotten has not ended");
}

#[test]
fn a_node_that_is_removed_while_somebody_looks_comes_to_rest() {
    let (mut world, _) = world();
    world.done(3, Command::NetworkList);
    let force = NodeRemoveQuery { force: true };
    world.done(0, |to| Command::NodeRemove("h4".to_owned(), force, to));
    world.until(10 * SECOND, |world| world.nodes[3].control.is_out());
    world.now.instant += 2 * KEPT;
    let control = &mut world.nodes[3].control;
    control.handle_timeout(world.now);
    let next = control.interests.poll_timeout();
    assert!(
        next.is_none_or(|next| next > world.now.instant),
        "it would never end"
    );
}

#[test]
fn what_an_agent_before_this_one_has_written_is_told_to_others() {
    let (mut world, network) = world();
    world.stop(0);
    // It counted everything it said as one.
    let config = Config::new(facts().id, first_ring().to_seal(), address(1));
    let now = world.now.instant;
    let mut before = Gossip::new(config, Identity::from_seed([1; 32]), 1, [0; 32], now);
    let own = |record: &Record| record.author == before.node();
    let said: Vec<_> = world.nodes[0]
        .control
        .gossip
        .records()
        .filter(|record| own(record))
        .cloned()
        .collect();
    for record in said {
        world.nodes[0].disk.remove(&record);
        let is_older = record.key.kind < INTEREST_KIND && Kind::of(&record.key) != Some(Kind::Use);
        if let Some(value) = record.value.filter(|_| is_older) {
            let record = before.put(record.key, value, now).unwrap();
            world.nodes[0].disk.write(record);
        }
    }
    for n in 0..3_u8 {
        // Between them.
        let key = Kind::Drain.key(network, [n; 16]);
        let record = before.put(key, bytes::Bytes::from_static(b"?"), now).unwrap();
        world.nodes[0].disk.write(record);
    }
    world.restart(0);
    world.pass(30 * SECOND);
    let there = inspect(&mut world, 3).endpoints;
    assert_eq!(there.len(), 2);
    assert_eq!(world.nodes[3].control.catalogue.users(network).count(), 2);
    assert!(world.nodes[3].control.knows_network(network));
}
