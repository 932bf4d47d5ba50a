use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;

use crate::{
    api::{
        ApiError, ErrorKind,
        types::{ConnectResponse, NetworkCreateRequest, NetworkUpdateRequest, Subnet},
    },
    control::{Command, world::World},
};

fn request(subnets: &[&str]) -> NetworkUpdateRequest {
    NetworkUpdateRequest {
        subnets_add: subnets.iter().map(|net| net.parse().unwrap()).collect(),
        allow_overlap: false,
    }
}

fn grow(world: &mut World, node: usize, subnets: &[&str]) -> Result<Vec<IpNet>, ApiError> {
    let request = request(subnets);
    let done = world.tried(node, |to| Command::NetworkUpdate("app".to_owned(), request, to));
    done.map(|network| nets(network.subnets))
}

fn nets(subnets: Vec<Subnet>) -> Vec<IpNet> {
    subnets.into_iter().map(|subnet| subnet.subnet).collect()
}

/// What a node says the network has.
fn has(world: &mut World, node: usize) -> Vec<IpNet> {
    let detail = world.done(node, |to| Command::NetworkInspect("app".to_owned(), to));
    nets(detail.summary.subnets)
}

/// A cluster with a network of five addresses, besides that of the gateway.
fn small(nodes: u8) -> World {
    let mut world = World::of(nodes);
    let mut network = NetworkCreateRequest::new("app");
    network.subnets = vec!["10.7.0.0/29".parse().unwrap()];
    world.done(0, |to| Command::NetworkCreate(network, to));
    world.pass(Duration::from_secs(1));
    world
}

/// Connects on one node after the other until none can any more.
fn fill(world: &mut World, nodes: &[usize], prefix: &str) -> Vec<ConnectResponse> {
    let mut made = Vec::new();
    let mut full = BTreeSet::new();
    while full.len() < nodes.len() {
        for node in nodes {
            let name = format!("{prefix}{}", made.len());
            match world.connect(*node, "app", &name, None) {
                Ok(endpoint) => made.push(endpoint),
                Err(error) => {
                    let is_full = matches!(error.kind, ErrorKind::Exhausted | ErrorKind::Unavailable);
                    assert!(is_full, "{error:?}");
                    full.insert(*node);
                }
            }
            // A grant counts for who got it once it has heard how the giver came to own it.
            world.pass(Duration::from_millis(100));
        }
    }
    made
}

fn addresses(made: &[ConnectResponse]) -> BTreeSet<IpNet> {
    made.iter().flat_map(|made| made.addresses.clone()).collect()
}

#[test]
fn a_full_network_gets_more_addresses_for_whoever_asks() {
    let mut world = small(3);
    let before = fill(&mut world, &[0, 1, 2], "a");
    assert_eq!(addresses(&before).len(), 5);

    let subnets = ["10.7.0.0/29", "10.8.0.0/29"].map(|net| net.parse::<IpNet>().unwrap());
    assert_eq!(grow(&mut world, 0, &["10.8.0.0/29"]).unwrap(), subnets);
    world.pass(Duration::from_secs(1));
    for node in 0..3 {
        assert_eq!(has(&mut world, node), subnets);
    }
    // Who owns none of either asks for the first subnet in vain, and for the second; the last number may be another's spare one.
    let mut after = fill(&mut world, &[2], "b");
    assert!(after.len() >= 4, "{after:?}");
    after.extend(fill(&mut world, &[0, 1, 2], "again"));
    assert_eq!(addresses(&after).len(), 5);
    for made in &after {
        assert!(subnets[1].contains(&made.addresses[0]), "{made:?}");
        assert_eq!(made.gateways, [subnets[1].hosts().next().unwrap()]);
    }
    // Nobody forgets what is in use.
    world.restart(1);
    world.pass(Duration::from_secs(3));
    assert_eq!(fill(&mut world, &[0, 1, 2], "c").len(), 0);
    assert_eq!(has(&mut world, 1), subnets);
}

#[test]
fn what_cannot_be_added_is_refused_and_changes_nothing() {
    let mut world = small(2);
    let mut other = NetworkCreateRequest::new("other");
    other.subnets = vec!["10.9.0.0/24".parse().unwrap()];
    world.done(0, |to| Command::NetworkCreate(other, to));
    let many: Vec<String> = (0..16).map(|n| format!("10.10.{n}.0/24")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (node, subnets, kind, says) in [
        (0, &[][..], ErrorKind::Invalid, "nothing to change"),
        (1, &["10.8.0.0/24"][..], ErrorKind::Conflict, "made on node `h1`"),
        (0, &["10.7.0.0/24"][..], ErrorKind::Conflict, "overlap"),
        (
            0,
            &["10.8.0.0/24", "10.8.0.0/25"][..],
            ErrorKind::Conflict,
            "overlap",
        ),
        (
            0,
            &["10.9.0.128/25"][..],
            ErrorKind::Conflict,
            "of network `other`",
        ),
        (0, &["fd08::/64"][..], ErrorKind::Invalid, "no IPv6"),
        (0, &["10.8.0.0/31"][..], ErrorKind::Invalid, "too small"),
        (0, &many[..], ErrorKind::Exhausted, "more than 16"),
    ] {
        let error = grow(&mut world, node, subnets).unwrap_err();
        assert_eq!(error.kind, kind, "{error:?}");
        assert!(error.message.contains(says), "{error:?}");
    }
    assert_eq!(has(&mut world, 0).len(), 1);
    assert_eq!(grow(&mut world, 0, &many[1..]).unwrap().len(), 16);
}

#[test]
fn a_subnet_that_was_added_during_a_split_is_everywhere_after_it() {
    let mut world = small(3);
    let there = world.connect(2, "app", "there", None).unwrap();
    world.pass(Duration::from_secs(1));
    world.split(&[2]);
    let added: IpNet = "10.8.0.0/29".parse().unwrap();
    grow(&mut world, 0, &["10.8.0.0/29"]).unwrap();
    world.pass(Duration::from_secs(10));
    let made = fill(&mut world, &[1], "b");
    let of_added = made.iter().filter(|made| added.contains(&made.addresses[0]));
    assert_eq!(of_added.count(), 5);
    for made in &made {
        world.disconnect(1, "app", &made.name);
    }
    // Who is apart uses the network, and has heard neither of the subnet nor of the end.
    world.heal();
    world.pass(Duration::from_secs(30));
    for node in 0..3 {
        assert_eq!(has(&mut world, node).len(), 2, "h{}", node + 1);
    }
    let mut all = addresses(&fill(&mut world, &[2, 0], "c"));
    let known = addresses(&[there]);
    assert!(all.is_disjoint(&known), "{all:?} {known:?}");
    all.extend(known);
    assert_eq!(all.len(), 10);
}

#[test]
fn a_network_that_was_removed_while_somebody_used_it_is_back_with_all_its_subnets() {
    let mut world = small(3);
    // It has numbers of its own from now on.
    world.connect(2, "app", "before", None).unwrap();
    world.disconnect(2, "app", "before");
    world.pass(Duration::from_secs(1));
    world.split(&[2]);
    world.connect(2, "app", "there", None).unwrap();
    assert_eq!(grow(&mut world, 0, &["10.8.0.0/29"]).unwrap().len(), 2);
    world.done(1, |to| Command::NetworkRemove("app".to_owned(), to));
    world.pass(Duration::from_secs(10));
    world.heal();
    world.pass(Duration::from_secs(30));
    for node in 0..3 {
        assert_eq!(has(&mut world, node).len(), 2, "h{}", node + 1);
    }
    let made = fill(&mut world, &[0, 1, 2], "c");
    assert_eq!(addresses(&made).len(), 9);
}
