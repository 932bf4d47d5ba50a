use serde_json::json;

use super::*;
use crate::{
    api::types::{Backend, ConnectRequest, NetworkCreateRequest, ServiceQuery, ServiceUpdateRequest},
    control::{
        Command,
        records::SandboxSpec,
        world::{Probes, World, sandbox},
    },
};

/// Two nodes, and a service with this check; the first has a client.
fn world(health: serde_json::Value) -> World {
    let mut world = World::of(2);
    let network = NetworkCreateRequest::new("app");
    world.done(0, |to| Command::NetworkCreate(network, to));
    let service =
        json!({"network": "app", "name": "web", "ports": [{"port": 80, "target": 8080}], "health": health});
    let service = serde_json::from_value(service).unwrap();
    world.done(0, |to| Command::ServiceCreate(service, to));
    world.connect(0, "app", "client", None).unwrap();
    world
}

/// A backend of it on the second node.
fn connect(world: &mut World) {
    world.connect(1, "app", "w", Some("web")).unwrap();
}

/// What a node says of it.
fn backend(world: &mut World, node: usize) -> Backend {
    let query = ServiceQuery::default();
    let mut detail = world.done(node, |to| Command::ServiceInspect("web".to_owned(), query, to));
    detail.backends.remove(0)
}

fn state(world: &mut World) -> BackendState {
    let [here, there] = [1, 0].map(|node| backend(world, node));
    assert_eq!(here, there, "what one node knows, all learn");
    here.state
}

/// Whether names lead to it, where somebody is who may ask.
fn is_named(world: &World) -> bool {
    let control = &world.nodes[1].control;
    let network = control.catalogue.networks().next().unwrap().0;
    let addresses = control.addresses_of(network, "tasks.web.app.weft.internal");
    assert!(addresses.len() < 2, "{addresses:?}");
    !addresses.is_empty()
}

fn update(world: &mut World, health: serde_json::Value) {
    let request: ServiceUpdateRequest = serde_json::from_value(json!({ "health": health })).unwrap();
    let query = ServiceQuery::default();
    world.done(0, |to| {
        Command::ServiceUpdate("web".to_owned(), request, query, to)
    });
}

fn fails(reason: &str) -> Probes {
    let reason = reason.to_owned();
    Probes::End(Box::new(move || Err(reason.clone())))
}

fn passes() -> Probes {
    Probes::End(Box::new(|| Ok(())))
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_probes_of_a_backend_are_made_on_its_node_alone_and_only_changes_are_told() {
    let mut world = world(json!({"test": "tcp", "interval_ms": 1000}));
    world.nodes[1].probes = passes();
    connect(&mut world);
    world.pass(SECOND);
    assert_eq!(state(&mut world), BackendState::Ready);
    let (before, probes) = (world.nodes[0].control.generation, world.nodes[1].probed);
    world.pass(100 * SECOND);
    assert_eq!(world.nodes[0].control.generation, before, "nothing has changed");
    assert_eq!(world.nodes[0].probed, 0);
    let probes = world.nodes[1].probed - probes;
    assert!((85..=115).contains(&probes), "{probes} in 100 s");
}

#[test]
fn a_backend_starts_fails_and_recovers_for_all_nodes_alike() {
    let mut world = world(json!({"test": "tcp", "interval_ms": 1000, "retries": 3, "start_period_ms": 5000}));
    world.nodes[1].probes = fails("connection refused");
    connect(&mut world);
    world.pass(4 * SECOND);
    assert_eq!(state(&mut world), BackendState::Starting);
    assert!(!is_named(&world));
    assert_eq!(
        backend(&mut world, 0).reason.as_deref(),
        Some("connection refused")
    );
    world.pass(6 * SECOND);
    assert_eq!(state(&mut world), BackendState::Unhealthy);
    assert!(!is_named(&world));
    world.nodes[1].probes = passes();
    world.pass(2 * SECOND);
    assert_eq!(state(&mut world), BackendState::Ready);
    assert!(is_named(&world));
    assert_eq!(backend(&mut world, 0).reason, None);
    world.nodes[1].probes = fails("no answer within 2s");
    world.pass(2 * SECOND);
    assert_eq!(
        state(&mut world),
        BackendState::Ready,
        "two failures are not three"
    );
    world.pass(2 * SECOND);
    assert_eq!(state(&mut world), BackendState::Unhealthy);
    assert!(!is_named(&world));
    update(&mut world, json!({"off": true}));
    world.pass(SECOND);
    assert_eq!(state(&mut world), BackendState::Ready);
    assert_eq!(backend(&mut world, 0).since, None);
    let probes = world.nodes[1].probed;
    world.pass(10 * SECOND);
    assert_eq!(world.nodes[1].probed, probes, "nobody asks any more");
}

#[test]
fn a_reason_that_is_another_each_time_is_not_told_each_time() {
    let mut world = world(json!({"test": "tcp", "interval_ms": 200, "retries": 1}));
    let mut count = 0;
    world.nodes[1].probes = Probes::End(Box::new(move || {
        count += 1;
        Err(format!("failure {count}"))
    }));
    connect(&mut world);
    world.pass(SECOND);
    let before = world.nodes[0].control.generation;
    let told = backend(&mut world, 0);
    world.pass(299 * SECOND);
    let times = world.nodes[0].control.generation - before;
    assert!((8..=10).contains(&times), "told {times} times in five minutes");
    let now = backend(&mut world, 0);
    assert_ne!(now.reason, told.reason);
    assert_eq!(now.since, told.since);
}

#[test]
fn the_result_of_a_probe_that_nobody_wants_any_more_says_nothing() {
    let mut world = world(json!({"test": "tcp", "interval_ms": 1000, "retries": 1}));
    world.nodes[1].probes = passes();
    connect(&mut world);
    world.nodes[1].probes = Probes::Hang(Vec::new());
    world.pass(3 * SECOND);
    let hanging = std::mem::replace(&mut world.nodes[1].probes, passes());
    let Probes::Hang(hanging) = hanging else {
        unreachable!()
    };
    assert_eq!(hanging.len(), 1, "one at a time");
    update(&mut world, json!({"test": "tcp=9"}));
    world.pass(3 * SECOND);
    for probe in hanging {
        world.end(1, &probe, Err("refused".to_owned()));
    }
    assert_eq!(backend(&mut world, 1).state, BackendState::Ready);
}

#[test]
fn a_check_of_a_backend_that_serves_already_interrupts_nothing() {
    let mut world = world(json!(null));
    connect(&mut world);
    world.nodes[1].probes = passes();
    update(&mut world, json!({"test": "tcp", "interval_ms": 1000}));
    let before = world.nodes[1].control.generation;
    world.pass(5 * SECOND);
    assert_eq!(state(&mut world), BackendState::Ready);
    assert!(world.nodes[1].probed > 0);
    assert!(
        world.nodes[1].control.generation <= before + 1,
        "only that it is checked is told"
    );
}

/// A record holds so many bytes. With a name as long as the node takes, whatever a check says of a backend still has to be told.
#[test]
fn that_a_backend_fails_is_told_however_much_there_is_to_say_of_it() {
    let mut world = world(json!({"test": "tcp", "interval_ms": 1000, "retries": 1}));
    world.nodes[1].probes = passes();
    let connect = |world: &mut World, name: &str, length: usize| {
        let path = format!("/run/netns/{}", "x".repeat(length));
        let request = ConnectRequest {
            name: Some(name.to_owned()),
            service: Some("web".to_owned()),
            aliases: (0..8).map(|n| format!("{n}{}", "a".repeat(40))).collect(),
            ..ConnectRequest::new("x")
        };
        let sandbox = SandboxSpec {
            path,
            ..sandbox(1, name)
        };
        world.tried(1, |to| Command::Connect("app".to_owned(), request, sandbox, to))
    };
    let (mut fits, mut does_not) = (0, 1_000);
    while does_not - fits > 1 {
        let length = usize::midpoint(fits, does_not);
        match connect(&mut world, "w", length) {
            Ok(_) => {
                world.disconnect(1, "app", "w");
                fits = length;
            }
            Err(error) => {
                assert!(error.message.contains("1000 bytes"), "{error:?}");
                does_not = length;
            }
        }
    }
    for over in [1, 10] {
        connect(&mut world, "w", fits + over).expect_err("it is too long");
    }
    connect(&mut world, "w", fits).unwrap();
    world.pass(2 * SECOND);
    assert_eq!(state(&mut world), BackendState::Ready);
    world.nodes[1].probes = fails(&"健".repeat(1_000));
    world.pass(5 * SECOND);
    assert_eq!(state(&mut world), BackendState::Unhealthy);
    assert!(!is_named(&world));
}
