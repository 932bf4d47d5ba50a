use std::time::Duration;

use serde_json::json;
use weft_types::NodeId;

use crate::{
    api::types::{NetworkCreateRequest, NodeRemoveQuery, TokenCreateRequest},
    control::{Command, world::World},
};

/// What `of` has, as a node sees it.
fn had(world: &World, node: usize, of: NodeId) -> Vec<String> {
    let catalogue = &world.nodes[node].control.catalogue;
    let endpoints = { catalogue.all_endpoints() }
        .filter(|(_, _, endpoint)| endpoint.node == of)
        .map(|(_, _, endpoint)| endpoint.spec.name.clone());
    let tokens = catalogue.tokens().filter(|(_, author, _)| *author == of);
    let tokens = tokens.map(|_| "a token".to_owned());
    let ingresses = catalogue.ingresses_of(of).map(|_| "a way in".to_owned());
    endpoints.chain(tokens).chain(ingresses).collect()
}

#[test]
fn what_a_removed_node_had_is_nobodys_at_once_and_after_a_restart() {
    let mut world = World::of(3);
    world.done(0, |to| {
        Command::NetworkCreate(NetworkCreateRequest::new("app"), to)
    });
    let service = json!({"network": "app", "name": "web", "ports": [{"port": 80, "target": 80}],
        "publish": [{"host_port": 8080, "port": 80}]});
    let service = serde_json::from_value(service).unwrap();
    world.done(0, |to| Command::ServiceCreate(service, to));
    world.connect(2, "app", "early", Some("web")).unwrap();
    world.done(2, |to| Command::TokenCreate(TokenCreateRequest::default(), to));
    world.pass(Duration::from_secs(3));
    let lost = world.nodes[2].control.me;
    for node in 0..2 {
        assert_eq!(
            had(&world, node, lost),
            ["early", "a token", "a way in"],
            "node {node}"
        );
    }
    // Of its last word only one of the others hears, and of its removal first the other one.
    world.split(&[1, 2]);
    world.connect(2, "app", "late", Some("web")).unwrap();
    world.pass(Duration::from_secs(1));
    assert!(had(&world, 1, lost).contains(&"late".to_owned()));
    world.nodes[2].is_cut_off = true;
    let (answer, forced) = (NodeRemoveQuery { force: true }, "h3".to_owned());
    world.ask(0, |to| Command::NodeRemove(forced, answer, to));
    world.pass(Duration::from_secs(1));
    assert_eq!(had(&world, 0, lost), [""; 0]);
    world.heal();
    let is_gone = |world: &World| (0..2).all(|node| had(world, node, lost).is_empty());
    world.until(Duration::from_secs(60), |world| is_gone(world));
    let holds = |world: &World, node: usize| {
        let control = &world.nodes[node].control;
        let records = control.gossip.records();
        { records }.filter(|record| record.author == lost).count()
    };
    world.until(Duration::from_secs(60), |world| {
        holds(world, 0) == holds(world, 1)
    });
    assert!(is_gone(&world), "what came later");
    for node in 0..2 {
        world.stop(node);
        world.restart(node);
    }
    world.pass(Duration::from_secs(10));
    assert!(is_gone(&world), "after a restart");
}
