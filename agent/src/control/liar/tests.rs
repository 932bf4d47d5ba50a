//! Each lie by itself.

use weft_ipam::Block;

use super::*;
use crate::control::records::{
    Attachment, CLUSTER, EndpointSpec, GrantFact, Kind, NodeFact, Register, SpaceKey, encode, endpoint_key,
    grant_key, network_key,
};

/// What node `at` shows as wrong.
fn problems(court: &mut Court, at: usize) -> String {
    let now = court.world.now;
    court.world.nodes[at].control.all_problems(now).join("\n")
}

fn fact(court: &Court, of: usize) -> NodeFact {
    let of = court.id(of);
    let node = court.world.nodes[0].control.catalogue.node(of).unwrap();
    node.fact.clone().unwrap()
}

fn endpoint(court: &Court, of: usize) -> EndpointSpec {
    let of = court.id(of);
    let mut endpoints = court.world.nodes[0].control.catalogue.endpoints(court.app);
    let (_, endpoint) = endpoints.find(|(_, endpoint)| endpoint.node == of).unwrap();
    endpoint.spec.clone()
}

/// After a lie everything is as it was, the liar is named, and after its removal it is not any more.
fn is_in_vain(lie: impl FnOnce(&mut Court)) {
    let mut court = Court::new();
    let before = court.beliefs();
    lie(&mut court);
    court.pass(15);
    court.assert_same(&before, "after the lie");
    let said = problems(&mut court, 0);
    assert!(said.contains("node `h4` says what others know better"), "{said}");
    court.remove();
    court.assert_same(&before, "after its removal");
    let said = problems(&mut court, 0);
    assert!(!said.contains("know better"), "{said}");
}

#[test]
fn the_court_is_in_order() {
    let mut court = Court::new();
    let beliefs = court.beliefs();
    assert!(beliefs.iter().all(|belief| belief.len() >= 14), "{beliefs:#?}");
    court.pass(10);
    court.assert_same(&beliefs, "nobody lies");
    assert!(!problems(&mut court, 0).contains("know better"));
}

#[test]
fn a_grant_of_all_numbers_by_who_does_not_own_them_moves_none() {
    is_in_vain(|court| {
        let to = court.id(LIAR - 1);
        let mut spaces = vec![SpaceKey::Vnis, SpaceKey::Subnets4, SpaceKey::Subnets6];
        spaces.extend([court.app, court.secret].map(|network| SpaceKey::Addresses(network, 0)));
        for space in spaces {
            let block = match space {
                SpaceKey::Vnis => crate::control::pools::vnis(),
                SpaceKey::Addresses(network, _) => {
                    crate::control::pools::block_of(spec(court, network).subnets[0].net)
                }
                _ => Block::new(0, 15).unwrap(),
            };
            for version in [7, (1 << 48) - 1, u64::MAX] {
                let fact = GrantFact { space, to, version };
                court.lie(grant_key(space, block), encode(&fact));
                court.pass(1);
            }
        }
        // Who is named as the receiver does not believe it either.
        let made = court.connect(LIAR - 1, "app", "later", None);
        let now = court.world.now;
        let id = made.unwrap().0;
        let control = &mut court.world.nodes[LIAR - 1].control;
        control.forget_endpoint(court.app, id, now);
    });
}

#[test]
fn a_network_of_another_cannot_be_made_anew_or_taken_away_while_it_is_used() {
    is_in_vain(|court| {
        for (lamport, removed) in [
            (1 << 61, true),
            ((1 << 62) - 1, true),
            (1 << 62, true),
            (u64::MAX, true),
            (1 << 62, false),
        ] {
            let mut value = spec(court, court.app);
            value.created = 0;
            for own in [false, true] {
                if own {
                    value.creator = court.id(LIAR);
                    value.subnets.truncate(1);
                }
                let register = Register {
                    lamport,
                    removed,
                    value: value.clone(),
                };
                court.lie(network_key(court.app), encode(&register));
                court.pass(1);
            }
        }
    });
}

#[test]
fn the_address_and_the_hardware_address_of_an_endpoint_stay_its_own() {
    is_in_vain(|court| {
        let mut copy = endpoint(court, 1);
        let Attachment::Sandbox(_) = &copy.attachment else {
            panic!("it is in a sandbox")
        };
        copy.name = "other".to_owned();
        court.lie(endpoint_key(court.app, EndpointId([0; 16])), encode(&copy));
        copy.addresses.clear();
        copy.addresses.push("10.129.1.200/24".parse().unwrap());
        court.lie(endpoint_key(court.app, EndpointId([1; 16])), encode(&copy));
    });
}

#[test]
fn a_nodes_tunnel_address_and_key_stay_its_own() {
    is_in_vain(|court| {
        let (victim, mut own) = (fact(court, 1), fact(court, LIAR));
        own.tunnel = victim.tunnel;
        own.vtep = victim.vtep;
        court.lie(Kind::Node.key(CLUSTER, Vec::new()), encode(&own));
    });
}

#[test]
fn a_subnet_of_all_addresses_ends_no_agent() {
    let mut court = Court::new();
    let before = court.beliefs();
    let mut value = spec(&court, court.app);
    value.creator = court.id(LIAR);
    value.name = "all".to_owned();
    value.subnets[0].net = "::/0".parse().unwrap();
    let register = Register {
        lamport: 1,
        removed: false,
        value,
    };
    court.lie(network_key(NetworkId([3; 16])), encode(&register));
    court.pass(2);
    court.assert_same(&before, "after a subnet that cannot be");
}
