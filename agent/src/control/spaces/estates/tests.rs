use std::{collections::BTreeSet, net::IpAddr};

use serde_json::json;

use super::*;
use crate::{
    api::types::{NetworkCreateRequest, NodeRemoveQuery},
    control::{Command, records::network_key, world::World},
};

pub(super) const FORCE: NodeRemoveQuery = NodeRemoveQuery { force: true };

/// A network of 13 addresses, one of which is the virtual one of a service, all made by the first node.
fn world(nodes: u8) -> (World, IpAddr) {
    let mut world = World::of(nodes);
    let mut network = NetworkCreateRequest::new("app");
    network.subnets = vec!["10.7.0.0/28".parse().unwrap()];
    world.done(0, |to| Command::NetworkCreate(network, to));
    let service = serde_json::from_value(json!({"network": "app", "name": "web"})).unwrap();
    world.done(0, |to| Command::ServiceCreate(service, to));
    world.pass(Duration::from_secs(3));
    let services = world.nodes[1].control.catalogue.all_services();
    let vip = services.flat_map(|(_, service)| service.vips.clone()).next();
    (world, vip.unwrap())
}

/// Whether an endpoint could be made, and its address.
pub(super) fn connect(world: &mut World, node: usize, name: &str) -> Option<IpAddr> {
    let made = world.connect(node, "app", name, None).ok()?;
    Some(made.addresses[0].addr())
}

/// Every address that can still be had, on these nodes in turn.
fn connect_all(world: &mut World, nodes: &[usize]) -> Vec<IpAddr> {
    let mut had = Vec::new();
    for n in 0.. {
        let on_each = nodes
            .iter()
            .filter_map(|node| connect(world, *node, &format!("e{node}-{n}")));
        let more: Vec<_> = on_each.collect();
        if more.is_empty() {
            return had;
        }
        had.extend(more);
        // A grant counts for who got it once it has heard how the giver came to own it.
        world.pass(Duration::from_millis(100));
    }
    had
}

fn remove(world: &mut World, node: usize, name: &str, query: NodeRemoveQuery) -> NodeRemoveResponse {
    world.done(node, |to| Command::NodeRemove(name.to_owned(), query, to))
}

fn owned(world: &World, node: usize, of: usize) -> u128 {
    let of = world.nodes[of].control.me;
    let spaces = world.nodes[node].control.spaces.spaces.values();
    spaces.filter_map(|space| space.shares().remove(&of)).sum()
}

fn is_each_once(addresses: &[IpAddr]) -> bool {
    addresses.iter().collect::<BTreeSet<_>>().len() == addresses.len()
}

#[test]
fn with_the_word_of_all_it_is_taken_over_but_for_what_is_in_use() {
    let (mut world, vip) = world(3);
    connect(&mut world, 0, "lost").unwrap();
    let before = connect(&mut world, 2, "before").unwrap();
    world.nodes[0].is_cut_off = true;
    let said = remove(&mut world, 1, "h1", FORCE);
    assert!(
        said.blocks_reclaimed > 0 && said.still_owned.is_none(),
        "{said:?}"
    );
    world.pass(Duration::from_secs(2));
    for node in [1, 2] {
        assert_eq!(owned(&world, node, 0), 0);
        assert_eq!(world.nodes[node].control.estate_problems().count(), 0);
    }
    // Its endpoint's address is free, and the service's is not.
    let mut all = connect_all(&mut world, &[1, 2]);
    all.push(before);
    assert!(is_each_once(&all) && !all.contains(&vip), "{all:?} {vip}");
    assert_eq!(all.len(), 12, "{all:?}");
    // The subnet and the number of the network that it had made are not given to another one.
    let networks = |world: &World| -> Vec<_> {
        let networks = world.nodes[1].control.catalogue.networks();
        networks
            .map(|(_, spec)| (spec.vni, spec.subnets[0].net))
            .collect()
    };
    let made = networks(&world);
    for n in 0..4 {
        let network = NetworkCreateRequest::new(format!("more-{n}"));
        world.done(1, |to| Command::NetworkCreate(network, to));
    }
    let vnis: BTreeSet<_> = networks(&world).into_iter().map(|(vni, _)| vni).collect();
    assert_eq!((made.len(), vnis.len()), (1, 5));
}

#[test]
fn who_is_away_holds_it_up_and_is_named() {
    let (mut world, _) = world(4);
    for away in [0, 3] {
        world.nodes[away].is_cut_off = true;
    }
    world.pass(Duration::from_secs(60));
    let said = remove(&mut world, 1, "h1", NodeRemoveQuery::default());
    let why = said.still_owned.unwrap();
    assert!(why.contains("before h4 can say"), "{why}");
    assert_eq!(said.blocks_reclaimed, 0);
    world.pass(Duration::from_secs(60));
    assert!(owned(&world, 1, 0) > 0);
    assert_eq!(
        world.nodes[2].control.estate_problems().collect::<Vec<_>>(),
        [why]
    );
    world.nodes[3].is_cut_off = false;
    world.until(Duration::from_secs(60), |world| {
        [1, 2, 3].iter().all(|node| owned(world, *node, 0) == 0)
    });
}

#[test]
fn who_holds_it_up_can_be_removed_too() {
    let (mut world, _) = world(5);
    for away in [0, 3] {
        world.nodes[away].is_cut_off = true;
    }
    world.pass(Duration::from_secs(60));
    remove(&mut world, 1, "h1", NodeRemoveQuery::default());
    remove(&mut world, 2, "h4", NodeRemoveQuery::default());
    world.until(Duration::from_secs(5), |world| {
        let is_over = |node| owned(world, node, 0) == 0 && owned(world, node, 3) == 0;
        [1, 2, 4].into_iter().all(is_over)
    });
}

#[test]
fn one_of_two_needs_an_operators_word() {
    let (mut world, vip) = world(2);
    world.nodes[0].is_cut_off = true;
    world.pass(Duration::from_secs(60));
    let said = remove(&mut world, 1, "h1", NodeRemoveQuery::default());
    let why = said.still_owned.unwrap();
    assert!(why.contains("`weft node rm --force h1`"), "{why}");
    world.pass(Duration::from_secs(60));
    assert!(owned(&world, 1, 0) > 0);
    let said = remove(&mut world, 1, "h1", FORCE);
    assert!(
        said.blocks_reclaimed > 0 && said.still_owned.is_none(),
        "{said:?}"
    );
    let all = connect_all(&mut world, &[1]);
    assert!(
        is_each_once(&all) && !all.contains(&vip) && all.len() == 12,
        "{all:?}"
    );
}

#[test]
fn what_it_gave_while_others_were_away_stays_with_whom_it_gave_it() {
    let (mut world, vip) = world(4);
    // Only the fourth node hears of this, and uses it.
    for away in [1, 2] {
        world.nodes[away].is_cut_off = true;
    }
    let mut kept = vec![
        connect(&mut world, 3, "one").unwrap(),
        connect(&mut world, 3, "two").unwrap(),
    ];
    for (node, is_away) in [(0, true), (1, false), (2, false), (3, true)] {
        world.nodes[node].is_cut_off = is_away;
    }
    world.pass(Duration::from_secs(60));
    remove(&mut world, 1, "h1", FORCE);
    let mut all = connect_all(&mut world, &[1, 2]);
    world.nodes[3].is_cut_off = false;
    world.pass(Duration::from_secs(60));
    all.extend(connect_all(&mut world, &[1, 2, 3]));
    all.append(&mut kept);
    assert!(is_each_once(&all) && !all.contains(&vip), "{all:?}");
    assert_eq!(all.len(), 12, "{all:?}");
    assert_eq!(owned(&world, 3, 0), 0);
}

#[test]
fn two_that_remove_it_without_hearing_of_each_other_agree_on_one() {
    let (mut world, vip) = world(5);
    world.nodes[0].is_cut_off = true;
    world.nodes[2].is_cut_off = true;
    world.pass(Duration::from_secs(60));
    remove(&mut world, 1, "h1", FORCE);
    world.nodes[2].is_cut_off = false;
    // It speaks before it hears.
    remove(&mut world, 2, "h1", FORCE);
    world.until(Duration::from_secs(60), |world| {
        (1..5).all(|node| owned(world, node, 0) == 0)
    });
    let all = connect_all(&mut world, &[1, 2, 3, 4]);
    assert!(
        is_each_once(&all) && !all.contains(&vip) && all.len() == 12,
        "{all:?}"
    );
}

#[test]
fn who_takes_its_record_of_a_network_back_ends_only_what_nobody_uses() {
    let (mut world, _) = world(3);
    let app = world.nodes[0].control.catalogue.networks().next().unwrap().0;
    let unused = NetworkCreateRequest::new("unused");
    world.done(0, |to| Command::NetworkCreate(unused, to));
    connect(&mut world, 1, "user").unwrap();
    world.pass(Duration::from_secs(3));
    // No agent does this; a member may.
    let networks: Vec<_> = world.nodes[0]
        .control
        .catalogue
        .networks()
        .map(|(id, _)| id)
        .collect();
    for id in networks {
        let now = world.now;
        world.nodes[0].control.withdraw(&network_key(id), now);
    }
    world.pass(Duration::from_secs(3));
    for node in 0..3 {
        let left = world.nodes[node].control.catalogue.networks().map(|(id, _)| id);
        assert_eq!(left.collect::<Vec<_>>(), [app], "on node {node}");
    }
}

#[test]
fn who_says_good_bye_is_nobody_afterwards_and_what_it_could_not_give_away_has_an_owner() {
    let (mut world, vip) = world(3);
    let before = connect(&mut world, 2, "before").unwrap();
    connect(&mut world, 0, "gone").unwrap();
    world.done(0, Command::Leave);
    // One of two that are left is cut off for a while: the other waits for it, and needs no operator.
    world.nodes[2].is_cut_off = true;
    world.pass(Duration::from_secs(5));
    world.nodes[2].is_cut_off = false;
    world.until(Duration::from_secs(60), |world| {
        let is_done = |node: &usize| {
            let control = &world.nodes[*node].control;
            owned(world, *node, 0) == 0 && control.estate_problems().count() == 0
        };
        [1, 2].iter().all(is_done)
    });
    for node in [1, 2] {
        let nodes = world.nodes[node].control.catalogue.nodes();
        assert_eq!(nodes.count(), 2, "on node {node}");
    }
    let mut all = connect_all(&mut world, &[1, 2]);
    all.push(before);
    assert!(is_each_once(&all) && !all.contains(&vip), "{all:?} {vip}");
    assert_eq!(all.len(), 12, "{all:?}");
}

#[test]
fn of_two_nodes_one_may_leave_and_the_other_owns_all() {
    let (mut world, _) = world(2);
    world.done(0, Command::Leave);
    world.until(Duration::from_secs(20), |world| {
        owned(world, 1, 0) == 0 && world.nodes[1].control.estate_problems().count() == 0
    });
    assert_eq!(world.nodes[1].control.catalogue.nodes().count(), 1);
}

#[test]
fn what_is_in_use_stays_so_over_restarts() {
    let (mut world, vip) = world(2);
    let mut had = Vec::new();
    for n in 0..3 {
        let more = [0, 1].map(|node| connect(&mut world, node, &format!("before-{node}-{n}")));
        had.extend(more.into_iter().flatten());
        for node in 0..2 {
            world.stop(node);
            world.restart(node);
        }
        world.pass(Duration::from_secs(10));
    }
    had.extend(connect_all(&mut world, &[0, 1]));
    assert!(is_each_once(&had) && !had.contains(&vip), "{had:?} {vip}");
    assert_eq!(had.len(), 12, "{had:?}");
}
