//! What one request can ask for, and what there can be of it at one time: as much as that, one more and ten times as much.

use std::time::Duration;

use serde_json::{Value, json};
use weft_types::{NetworkId, ServiceId, Vni};

use super::super::{
    Command,
    endpoints::MAX_ALIASES,
    networks::{MAX_NETWORKS, MAX_SUBNETS},
    publish::MAX_PUBLISHED,
    records::{NetworkSpec, Register, ServiceSpec, encode, network_key, service_key},
    services::{MAX_PORTS, MAX_RANGED_PORTS, MAX_SERVICES},
    tokens::MAX_TOKENS,
    world::{World, sandbox},
};
use crate::api::{
    ApiError, ErrorKind,
    types::{ConnectRequest, NetworkCreateRequest, TokenCreateRequest},
};

fn app(nodes: u8) -> World {
    let mut world = World::of(nodes);
    let network = NetworkCreateRequest::new("app");
    world.done(0, |to| Command::NetworkCreate(network, to));
    world
}

fn create(world: &mut World, network: &str, name: &str, rest: &Value) -> Result<(), ApiError> {
    let mut service = json!({"network": network, "name": name});
    let fields = rest.as_object().expect("it is one").clone();
    service.as_object_mut().expect("it is one").extend(fields);
    let service = serde_json::from_value(service).unwrap();
    let made = world.tried(0, |to| Command::ServiceCreate(service, to));
    made.map(drop)
}

/// As many are taken as there can be, and none are where there are more; what was refused is not there in part.
fn at_most(most: usize, mut ask: impl FnMut(usize) -> Result<(), ApiError>) {
    for count in [most + 1, 10 * most] {
        let error = ask(count).expect_err("it is more than there can be");
        let kinds = [ErrorKind::Invalid, ErrorKind::Exhausted];
        assert!(kinds.contains(&error.kind), "{error:?}");
        assert!(error.message.contains(&most.to_string()), "{error:?}");
    }
    ask(most).unwrap();
}

#[test]
fn a_network_has_so_many_subnets() {
    let mut world = World::of(1);
    at_most(MAX_SUBNETS, |count| {
        let mut network = NetworkCreateRequest::new("app");
        let subnet = |n: usize| format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap();
        network.subnets = (0..count).map(subnet).collect();
        let made = world.tried(0, |to| Command::NetworkCreate(network, to));
        made.map(drop)
    });
}

#[test]
fn an_endpoint_has_so_many_aliases() {
    let mut world = app(1);
    at_most(MAX_ALIASES, |count| {
        let request = ConnectRequest {
            aliases: (0..count).map(|n| format!("a{n}")).collect(),
            ..ConnectRequest::new("one")
        };
        let made = world.tried(0, |to| {
            Command::Connect("app".to_owned(), request, sandbox(0, "one"), to)
        });
        made.map(drop)
    });
}

#[test]
fn a_service_has_so_many_ports() {
    let mut world = app(1);
    at_most(MAX_PORTS, |count| {
        let port = |n| json!({"port": n, "target": n});
        let ports: Vec<_> = (1..=count).map(port).collect();
        create(&mut world, "app", "single", &json!({ "ports": ports }))
    });
    at_most(MAX_RANGED_PORTS as usize, |count| {
        let ports = json!([{"port": 1, "target": 1, "count": count}]);
        create(&mut world, "app", "ranged", &json!({ "ports": ports }))
    });
}

#[test]
fn a_cluster_publishes_so_many_ports() {
    let mut world = app(1);
    // So many that the record of a service has room for them.
    const EACH: usize = 32;
    let mut publish = |name: &str, first: usize, count: usize| {
        let port = |n| json!({"host_port": n, "port": 80});
        let ports: Vec<_> = (first..first + count).map(port).collect();
        let rest = json!({"ports": [{"port": 80, "target": 80}], "publish": ports});
        create(&mut world, "app", name, &rest)
    };
    for n in 1..MAX_PUBLISHED / EACH {
        publish(&format!("s{n}"), 1_000 + n * EACH, EACH).unwrap();
    }
    publish("almost", 10_000, EACH - 1).unwrap();
    at_most(MAX_PUBLISHED, |count| {
        publish("last", 20_000, count - MAX_PUBLISHED + 1)
    });
}

#[test]
fn a_node_has_made_so_many_tokens_that_are_valid() {
    let mut world = World::of(1);
    let create = |world: &mut World, ttl_secs| {
        let (reusable, now) = (false, world.now);
        let request = TokenCreateRequest { ttl_secs, reusable };
        world.nodes[0].control.create_token(&request, now).map(drop)
    };
    for _ in 0..MAX_TOKENS {
        create(&mut world, 60).unwrap();
    }
    for _ in 0..10 {
        let error = create(&mut world, 60).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exhausted);
    }
    world.pass(Duration::from_secs(61));
    create(&mut world, 60).unwrap();
}

fn say(world: &mut World, key: weft_gossip::Key, value: bytes::Bytes) {
    let now = world.now;
    world.nodes[0].control.publish(key, value, now).unwrap();
}

/// One is there. One may be made while there are fewer than `most`; when more have come, as by the end of a split, all are there.
fn made_up_to(
    mut world: World,
    most: usize,
    come: impl Fn(&mut World, usize),
    make: impl Fn(&mut World, &str) -> Result<(), ApiError>,
    count: impl Fn(&World) -> usize,
) {
    for n in 1..most - 1 {
        come(&mut world, n);
    }
    assert_eq!(count(&world), most - 1);
    make(&mut world, "last").unwrap();
    let refused = |error: ApiError| {
        assert_eq!(error.kind, ErrorKind::Exhausted);
        assert!(error.message.contains(&most.to_string()), "{error:?}");
    };
    refused(make(&mut world, "over").unwrap_err());
    for n in most..most + 10 {
        come(&mut world, n);
    }
    assert_eq!(count(&world), most + 10);
    refused(make(&mut world, "over").unwrap_err());
}

#[test]
fn a_cluster_has_so_many_networks_and_takes_those_of_a_split() {
    let world = app(1);
    let like = network(&world);
    let come = |world: &mut World, n: usize| {
        let id = NetworkId((n as u128 + 1).to_be_bytes());
        let value = NetworkSpec {
            name: format!("n{n}"),
            vni: Vni::try_from((1 << 20) + n as u32).unwrap(),
            ..like.1.clone()
        };
        let register = Register {
            lamport: 1,
            removed: false,
            value,
        };
        say(world, network_key(id), encode(&register));
    };
    let make = |world: &mut World, name: &str| {
        let network = NetworkCreateRequest::new(name);
        let made = world.tried(0, |to| Command::NetworkCreate(network, to));
        made.map(drop)
    };
    let count = |world: &World| world.nodes[0].control.catalogue.networks().count();
    made_up_to(world, MAX_NETWORKS, come, make, count);
}

fn network(world: &World) -> (NetworkId, NetworkSpec) {
    let mut networks = world.nodes[0].control.catalogue.networks();
    networks.next().map(|(id, spec)| (id, spec.clone())).unwrap()
}

#[test]
fn a_network_has_so_many_services_and_takes_those_of_a_split() {
    let mut world = app(1);
    create(&mut world, "app", "first", &json!({"endpoint_mode": "dnsrr"})).unwrap();
    let network = network(&world).0;
    let like = world.nodes[0].control.catalogue.services(network).next();
    let like = like.map(|(_, spec)| spec.clone()).unwrap();
    let come = |world: &mut World, n: usize| {
        let id = ServiceId((n as u128 + 1).to_be_bytes());
        let value = ServiceSpec {
            name: format!("s{n}"),
            ..like.clone()
        };
        let register = Register {
            lamport: 1,
            removed: false,
            value,
        };
        say(world, service_key(network, id), encode(&register));
    };
    let make = |world: &mut World, name: &str| create(world, "app", name, &json!({"endpoint_mode": "dnsrr"}));
    let count = |world: &World| world.nodes[0].control.catalogue.services(network).count();
    made_up_to(world, MAX_SERVICES, come, make, count);
}
