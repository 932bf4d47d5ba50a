//! Each lie by itself.

use weft_ipam::Block;

use super::*;
use crate::control::records::{
    Attachment, CLUSTER, EndpointSpec, GrantFact, Kind, NodeFact, Register, SpaceKey, decode, encode,
    endpoint_key, grant_key, network_key, service_key,
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
fn a_grant_of_what_another_gave_puts_no_number_out_of_use() {
    is_in_vain(|court| {
        let now = court.world.now;
        let honest: Vec<_> = HONEST.map(|node| court.id(node)).collect();
        let control = &court.world.nodes[0].control;
        let given: Vec<(Key, GrantFact)> = { control.gossip.records() }
            .filter(|record| honest.contains(&record.author) && record.key.kind == Kind::Grant as u8)
            .filter_map(|record| Some((record.key.clone(), decode(record.value.as_deref()?)?)))
            .collect();
        assert!(given.len() >= 6, "{given:?}");
        // In the same version, and in the one before: to who has it, and to others.
        for (key, fact) in given {
            for (version, to) in [
                (1, court.id(LIAR - 1)),
                (1, NodeId([9; 32])),
                (0, court.id(0)),
                (0, fact.to),
            ] {
                let version = fact.version.saturating_sub(version);
                court.lie(key.clone(), encode(&GrantFact { version, to, ..fact }));
                court.pass(1);
            }
        }
        for node in HONEST {
            let control = &mut court.world.nodes[node].control;
            let said = control.all_problems(now).join("\n");
            assert!(!said.contains("contradict"), "{said}");
        }
        let (id, _) = court.connect(1, "app", "later", None).unwrap();
        let now = court.world.now;
        court.world.nodes[1].control.forget_endpoint(court.app, id, now);
    });
}

#[test]
fn a_network_of_another_cannot_be_made_anew_or_taken_away_while_it_is_used() {
    is_in_vain(|court| {
        // In its maker's own words, that it is gone: but it is used.
        let register = Register {
            lamport: 1 << 60,
            removed: true,
            value: spec(court, court.app),
        };
        let before = court.beliefs();
        court.lie(network_key(court.app), encode(&register));
        court.pass(5);
        court.assert_same(&before, "a removal of what is used");
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
fn a_service_at_the_address_of_an_endpoint_takes_nothing_from_it() {
    is_in_vain(|court| {
        let taken = endpoint(court, 1).addresses[0].addr();
        let catalogue = &court.world.nodes[0].control.catalogue;
        let mut copy = catalogue.service(court.app, court.web).unwrap().clone();
        (copy.name, copy.vips, copy.vips_from) = ("other".to_owned(), vec![taken], court.id(LIAR));
        copy.publish.clear();
        let register = Register {
            lamport: 1,
            removed: false,
            value: copy,
        };
        court.lie(service_key(court.app, ServiceId([5; 16])), encode(&register));
        court.pass(3);
        let now = court.world.now;
        for node in HONEST {
            let state = court.world.nodes[node].control.host_state(now);
            let tables = state.sandboxes.iter().flat_map(|sandbox| &sandbox.tables);
            let mut vips = tables
                .flat_map(|table| table.services.iter())
                .flat_map(|service| &service.vips);
            assert!(!vips.any(|vip| *vip == taken), "node {node}");
        }
    });
}

#[test]
fn an_address_that_nobody_can_have_is_nobodys() {
    let mut court = Court::new();
    let before = court.beliefs();
    let subnet = spec(&court, court.app).subnets[0].clone();
    let mut copy = endpoint(&court, 1);
    copy.name = "other".to_owned();
    copy.mac = weft_types::Mac([2, 0, 0, 0, 0, 9]);
    let none = [subnet.gateway, subnet.net.network(), subnet.net.broadcast()];
    copy.addresses = none
        .map(|none| ipnet::IpNet::new(none, subnet.net.prefix_len()).unwrap())
        .to_vec();
    court.lie(endpoint_key(court.app, EndpointId([1; 16])), encode(&copy));
    court.pass(3);
    court.assert_same(&before, "after addresses that cannot be");
    let now = court.world.now;
    for node in HONEST {
        let state = court.world.nodes[node].control.host_state(now);
        let remotes = state.overlay.networks[&court.app].remotes.values();
        let mut addresses = remotes.flat_map(|remote| &remote.addresses);
        assert!(!addresses.any(|address| none.contains(address)), "node {node}");
    }
}

#[test]
fn a_node_where_no_packet_can_go_is_not_read() {
    let mut court = Court::new();
    let before = court.beliefs();
    let (id, mut own) = (court.id(LIAR), fact(&court, LIAR));
    for (vtep, mtu) in [("224.0.0.1", 1_500), ("0.0.0.0", 1_500), ("192.0.2.1", 68)] {
        (own.vtep, own.underlay_mtu) = (vtep.parse().unwrap(), mtu);
        court.lie(Kind::Node.key(CLUSTER, Vec::new()), encode(&own));
        court.pass(2);
        for node in HONEST {
            let known = court.world.nodes[node].control.catalogue.node(id);
            assert_eq!(known.and_then(|known| known.fact.clone()), None, "{vtep} {mtu}");
        }
        court.assert_same(&before, "after a place that cannot be");
    }
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
