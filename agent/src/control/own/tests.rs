use std::time::Duration;

use serde_json::json;

use super::*;
use crate::control::{Command, HostReport, world::World};

fn world() -> World {
    let mut world = World::of(2);
    let create = json!({"name": "app", "driver": "overlay", "subnets": ["10.7.0.0/16"]});
    let create = serde_json::from_value(create).unwrap();
    world.done(0, |to| Command::NetworkCreate(create, to));
    world.pass(Duration::from_secs(1));
    world
}

fn command(routes: &[(&str, &str)], to: Responder<ConnectResponse>) -> Command {
    let request = serde_json::from_value(json!({"target": TARGET})).unwrap();
    let routes = routes.iter().map(|(to, device)| HostRoute {
        to: to.parse().unwrap(),
        device: Some((*device).to_owned()),
    });
    Command::ConnectHost("app".to_owned(), request, routes.collect(), to)
}

#[test]
fn the_host_is_called_as_its_node_and_gets_no_default_route() {
    let mut world = world();
    let made = world.done(1, |to| command(&[("10.8.0.0/16", "eth0")], to));
    assert_eq!(made.name, "h2");
    assert_eq!(made.gateways, Vec::<std::net::IpAddr>::new());
    let control = &mut world.nodes[1].control;
    assert!(control.resolvers().is_empty());
}

#[test]
fn a_route_into_a_subnet_is_in_the_way() {
    let world = world();
    let control = &world.nodes[0].control;
    let id = names::network(&control.catalogue, "app").unwrap();
    let way = |to: &str| HostRoute {
        to: to.parse().unwrap(),
        device: Some("tun0".to_owned()),
    };
    assert!(
        control
            .check_ways(id, &[way("10.8.0.0/16"), way("fd00::/8")])
            .is_ok()
    );
    for to in ["10.7.3.0/24", "10.0.0.0/8", "10.7.0.1/32"] {
        let error = control
            .check_ways(id, &[way("192.0.2.0/24"), way(to)])
            .unwrap_err();
        let sentence = format!("a route to {to} by tun0");
        assert!(error.message.contains(&sentence), "{}", error.message);
    }
}

#[test]
fn an_endpoint_of_the_host_is_in_the_namespace_that_the_host_has_now() {
    let mut world = world();
    let made = world.done(0, |to| command(&[], to));
    world.pass(Duration::from_secs(1));
    let now = world.now;
    let control = &mut world.nodes[0].control;
    let spec = control.endpoint_spec(made.network_id, made.id).unwrap().clone();
    // The host was started anew.
    control.settings.host = SandboxSpec::of_host(4, 77);
    let vanished = || HostReport {
        vanished: vec![made.id],
        ..HostReport::default()
    };
    control.handle_report(vanished(), now);
    let moved = control.endpoint_spec(made.network_id, made.id).unwrap();
    assert_eq!(moved.sandbox().unwrap().inode, 77);
    assert_eq!(moved.addresses, spec.addresses);
    // One that is not even there now is gone as any other.
    control.handle_report(vanished(), now);
    assert_eq!(control.endpoint_spec(made.network_id, made.id), None);
}
