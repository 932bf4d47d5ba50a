use serde_json::json;

use super::*;
use crate::control::{
    Command, Traffic,
    world::{Answer, Kernel, World, sandbox},
};

const BACKEND: &str = "web-1";

/// Three nodes, and a service with a backend on the second and clients on the others.
fn world() -> (World, NetworkId, EndpointId) {
    let mut world = World::of(3);
    world.done(0, |to| {
        Command::NetworkCreate(NetworkCreateRequest::new("app"), to)
    });
    let service = serde_json::from_value(json!({"network": "app", "name": "web"})).unwrap();
    world.done(0, |to| Command::ServiceCreate(service, to));
    let connect = json!({"target": "a", "name": BACKEND, "service": "web", "weight": 3});
    let connect = serde_json::from_value(connect).unwrap();
    let sandbox = sandbox(1, "a");
    let made = world.done(1, |to| Command::Connect("app".to_owned(), connect, sandbox, to));
    for node in [0, 2] {
        world
            .connect(node, "app", &format!("client-{node}"), None)
            .unwrap();
    }
    world.pass(Duration::from_secs(1));
    (world, made.network_id, made.id)
}

fn drain(world: &mut World, node: usize, grace: Duration) -> Answer<EndpointDrainResponse> {
    let request = EndpointDrainRequest {
        network: None,
        grace_ms: grace.as_millis() as u64,
        reset: true,
    };
    world.ask(node, |to| Command::EndpointDrain(BACKEND.to_owned(), request, to))
}

fn activate(world: &mut World, node: usize) {
    let request = EndpointActivateRequest::default();
    let done = world.done(node, |to| {
        Command::EndpointActivate(BACKEND.to_owned(), request, to)
    });
    assert_eq!(done.unconfirmed, Vec::new());
}

/// What each node has in its datapath, and what it shows.
fn states(world: &World, network: NetworkId) -> Vec<(weft_lb::BackendState, BackendState)> {
    let state = |control: &Control| {
        let balanced = control.balanced_backends(network, "web");
        let shown = control.backends(network, "web");
        (balanced[0].state, shown[0].state)
    };
    world.nodes.iter().map(|node| state(&node.control)).collect()
}

#[test]
fn a_backend_gets_no_new_connections_anywhere_and_open_ones_are_counted_down_over_all_nodes() {
    let (mut world, network, id) = world();
    world.nodes[0].traffic.insert(id, Traffic::open(1));
    world.nodes[2].traffic.insert(id, Traffic::open(2));
    let mut answer = drain(&mut world, 0, Duration::from_secs(30));
    world.pass(Duration::from_secs(5));
    assert!(answer.get().is_none(), "three are open");
    let draining = (weft_lb::BackendState::Draining, BackendState::Draining);
    assert_eq!(states(&world, network), vec![draining; 3]);

    world.nodes[2].traffic.clear();
    world.pass(Duration::from_secs(5));
    assert!(answer.get().is_none(), "one is open");
    world.nodes[0].traffic.clear();
    let mut said = None;
    let took = world.until(Duration::from_secs(2), |_| {
        said = answer.get();
        said.is_some()
    });
    assert!(took <= LONGEST_PAUSE, "{took:?}");
    let said = said.unwrap();
    assert_eq!((said.left, said.unconfirmed, said.uncounted), (0, vec![], vec![]));
    world.pass(Duration::from_secs(1));
    let drained = (weft_lb::BackendState::Draining, BackendState::Drained);
    assert_eq!(states(&world, network), vec![drained; 3]);

    activate(&mut world, 2);
    let ready = (weft_lb::BackendState::Active, BackendState::Ready);
    assert_eq!(states(&world, network), vec![ready; 3]);
}

#[test]
fn with_no_open_connection_it_takes_no_time() {
    let (mut world, ..) = world();
    let mut answer = drain(&mut world, 0, Duration::from_secs(30));
    let took = world.until(Duration::from_secs(1), |_| answer.get().is_some());
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn what_is_open_when_time_is_up_is_reset_everywhere_before_the_answer() {
    let (mut world, network, id) = world();
    world.nodes[2].traffic.insert(id, Traffic::open(2));
    let mut answer = drain(&mut world, 0, Duration::from_secs(3));
    world.pass(Duration::from_millis(2_900));
    assert!(answer.get().is_none());
    world.nodes[2].kernel = Kernel::Hangs;
    world.pass(Duration::from_secs(2));
    assert!(answer.get().is_none(), "one kernel has not reset them");
    world.nodes[2].kernel = Kernel::Obeys;
    world.pass(Duration::from_secs(1));
    assert_eq!(answer.get().unwrap().left, 2);
    let cut = (weft_lb::BackendState::Down, BackendState::Drained);
    assert_eq!(states(&world, network), vec![cut; 3]);
    activate(&mut world, 1);
}

#[test]
fn what_is_open_when_time_is_up_stays_open_if_so_asked() {
    let (mut world, network, id) = world();
    world.nodes[2].traffic.insert(id, Traffic::open(2));
    let request = EndpointDrainRequest {
        network: None,
        grace_ms: 3_000,
        reset: false,
    };
    let mut answer = world.ask(0, |to| Command::EndpointDrain(BACKEND.to_owned(), request, to));
    world.pass(Duration::from_millis(2_900));
    assert!(answer.get().is_none());
    world.pass(Duration::from_secs(1));
    assert_eq!(answer.get().unwrap().left, 2);
    let draining = (weft_lb::BackendState::Draining, BackendState::Draining);
    assert_eq!(states(&world, network), vec![draining; 3]);
}

#[test]
fn nothing_is_counted_before_new_connections_have_stopped() {
    let (mut world, ..) = world();
    world.nodes[2].kernel = Kernel::Hangs;
    let mut answer = drain(&mut world, 0, Duration::from_secs(30));
    world.pass(Duration::from_secs(4));
    assert!(answer.get().is_none());
    world.pass(Duration::from_secs(2));
    world.nodes[2].kernel = Kernel::Obeys;
    world.pass(Duration::from_secs(1));
    let said = answer.get().unwrap();
    let silent: Vec<_> = said
        .unconfirmed
        .iter()
        .map(|node| node.node_name.as_str())
        .collect();
    assert_eq!(silent, ["h3"]);
}

#[test]
fn who_does_not_wait_for_the_end_leaves_it_draining() {
    let (mut world, network, id) = world();
    world.nodes[0].traffic.insert(id, Traffic::open(1));
    let answer = drain(&mut world, 0, Duration::from_secs(3));
    drop(answer);
    world.pass(Duration::from_secs(10));
    let draining = (weft_lb::BackendState::Draining, BackendState::Draining);
    assert_eq!(states(&world, network), vec![draining; 3]);
}

#[test]
fn a_drained_node_takes_all_its_backends_along() {
    let (mut world, network, id) = world();
    world.nodes[0].traffic.insert(id, Traffic::open(1));
    let request = NodeDrainRequest { grace_ms: 2_000 };
    let said = world.done(2, |to| Command::NodeDrain("h2".to_owned(), request, to));
    assert_eq!((said.backends, said.left), (1, 1));
    let cut = (weft_lb::BackendState::Down, BackendState::Drained);
    assert_eq!(states(&world, network), vec![cut; 3]);
    let nodes = world.done(0, Command::NodeList);
    let availability: Vec<_> = nodes.iter().map(|node| node.availability).collect();
    let active = Availability::Active;
    assert_eq!(availability, [active, Availability::Drained, active]);
    let said = world.done(0, |to| Command::NodeActivate("h2".to_owned(), to));
    assert_eq!(said.unconfirmed, Vec::new());
    let ready = (weft_lb::BackendState::Active, BackendState::Ready);
    assert_eq!(states(&world, network), vec![ready; 3]);
}

#[test]
fn an_endpoint_is_detached_when_nothing_is_open_to_it_or_time_is_up() {
    for ends in [true, false] {
        let (mut world, network, id) = world();
        world.nodes[0].traffic.insert(id, Traffic::open(4));
        let request = DisconnectRequest {
            target: BACKEND.to_owned(),
            grace_ms: 3_000,
        };
        let mut answer = world.ask(1, |to| Command::Disconnect("app".to_owned(), request, to));
        world.pass(Duration::from_secs(2));
        assert!(answer.get().is_none());
        let draining = (weft_lb::BackendState::Draining, BackendState::Draining);
        assert_eq!(states(&world, network), vec![draining; 3]);
        if ends {
            world.nodes[0].traffic.clear();
        }
        world.pass(if ends {
            LONGEST_PAUSE
        } else {
            Duration::from_secs(2)
        });
        assert_eq!(answer.get().unwrap().left, if ends { 0 } else { 4 });
        for node in &world.nodes {
            assert!(node.control.backends(network, "web").is_empty());
        }
    }
}

#[test]
fn the_record_of_a_drain_goes_some_time_after_what_was_drained() {
    let (mut world, network, id) = world();
    let mut answer = drain(&mut world, 0, Duration::from_secs(1));
    world.pass(Duration::from_secs(1));
    assert!(answer.get().is_some());
    let request = DisconnectRequest {
        target: BACKEND.to_owned(),
        grace_ms: 0,
    };
    world.done(1, |to| Command::Disconnect("app".to_owned(), request, to));
    let is_said = |world: &World| {
        let drain = |node: &crate::control::world::Node| {
            node.control
                .catalogue
                .drain(Drainee::Endpoint(network, id))
                .is_some()
        };
        world.nodes.iter().map(drain).collect::<Vec<_>>()
    };
    world.pass(ORPHANED / 2);
    assert_eq!(is_said(&world), [true; 3]);
    world.pass(ORPHANED);
    assert_eq!(is_said(&world), [false; 3]);
}

#[test]
fn a_count_that_takes_long_is_made_once_however_often_it_is_asked_for() {
    let (mut world, ..) = world();
    world.nodes[2].kernel = Kernel::Hangs;
    let query = ServiceQuery::default();
    let inspect = |to| Command::ServiceInspect("web".to_owned(), query, to);
    let detail = world.done(0, inspect);
    let silent: Vec<_> = detail
        .uncounted
        .iter()
        .map(|node| node.node_name.as_str())
        .collect();
    assert_eq!(silent, ["h3"]);
    assert_eq!(world.nodes[2].uncounted.len(), 1);
}

#[test]
fn an_inspection_says_how_many_are_open_from_where_however_many_backends_there_are() {
    let (mut world, network, first) = world();
    for n in 2..=100_u64 {
        let connect = json!({"target": format!("a{n}"), "name": format!("web-{n}"), "service": "web"});
        let sandbox = sandbox(1, &format!("a{n}"));
        let connect = serde_json::from_value(connect).unwrap();
        let made = world.done(1, |to| Command::Connect("app".to_owned(), connect, sandbox, to));
        world.nodes[0].traffic.insert(made.id, Traffic::open(n));
        let tried = Traffic {
            open: 1,
            total: 10 * n,
            failed: n,
            ..Traffic::default()
        };
        world.nodes[2].traffic.insert(made.id, tried);
    }
    world.nodes[2].traffic.insert(first, Traffic::open(7));
    // It has nothing open, and has had no luck.
    let unlucky = Traffic {
        failed: u64::MAX,
        total: u64::MAX,
        ..Traffic::default()
    };
    world.nodes[1].traffic.insert(first, unlucky);
    world.pass(Duration::from_secs(1));
    let query = ServiceQuery::default();
    let detail = world.done(1, |to| Command::ServiceInspect("web".to_owned(), query, to));
    assert_eq!(detail.uncounted, Vec::new());
    assert_eq!(detail.backends.len(), 100);
    for backend in detail.backends {
        let n: u64 = backend.endpoint_name.trim_start_matches("web-").parse().unwrap();
        let clients = backend.clients.iter();
        let clients: Vec<_> = clients
            .map(|clients| (clients.node_name.as_str(), clients.open))
            .collect();
        if n == 1 {
            assert_eq!(
                (backend.open_connections, clients),
                (7, vec![("h2", 0), ("h3", 7)])
            );
            assert_eq!(backend.clients[0].failed, u64::MAX);
            assert_eq!(backend.total_connections, u64::MAX);
        } else {
            assert_eq!(
                (backend.open_connections, clients),
                (n + 1, vec![("h1", n), ("h3", 1)])
            );
            assert_eq!(
                (backend.total_connections, backend.failed_connections),
                (10 * n, n)
            );
        }
    }
    let _ = network;
}
