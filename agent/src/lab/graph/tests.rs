use super::*;
use crate::lab::{
    file::parse,
    live::{EndpointLive, HostState, NetworkLive, ReplicaLive, ReplicaState, ServiceLive},
    resolve::resolve,
};

fn shop() -> Topology {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop.yaml"));
    resolve(&parse("shop.yaml", text).unwrap().0, "shop")
}

/// What a holder would tell after h3 was killed: addresses counted up, two subnets.
fn live(topology: &Topology) -> Live {
    let mut live = Live::default();
    for host in &topology.hosts {
        let state = if host.name == "h3" {
            HostState::Killed
        } else {
            HostState::Up
        };
        live.hosts.insert(host.name.clone(), state);
    }
    for (number, network) in (0_u8..).zip(&topology.networks) {
        let mut subnets = vec![format!("10.99.{number}.0/24").parse().unwrap()];
        if network.ipv6 {
            subnets.push(format!("fd99:{number}::/64").parse().unwrap());
        }
        live.networks.insert(
            network.name.clone(),
            NetworkLive {
                vni: 4096,
                mtu: 1450,
                subnets,
            },
        );
    }
    let subnet_of = |name: &str| {
        topology
            .networks
            .iter()
            .position(|network| network.name == name)
            .unwrap()
    };
    for (number, service) in topology.services.iter().enumerate() {
        let vip = format!("10.99.{}.{}", subnet_of(&service.network), 200 + number)
            .parse()
            .unwrap();
        live.services.push(ServiceLive {
            name: service.name.clone(),
            network: service.network.clone(),
            vips: vec![vip],
        });
    }
    for (number, replica) in topology.replicas.iter().enumerate() {
        let endpoints = replica.attachments.iter().enumerate().map(|(index, attachment)| {
            let subnet = subnet_of(&attachment.network);
            let mut addresses = vec![format!("10.99.{subnet}.{}", 2 + number).parse().unwrap()];
            if topology.networks[subnet].ipv6 {
                addresses.push(format!("fd99:{subnet}::{}", 2 + number).parse().unwrap());
            }
            EndpointLive {
                network: attachment.network.clone(),
                ifname: format!("eth{index}"),
                addresses,
            }
        });
        let state = if replica.host == "h3" {
            ReplicaState::Killed
        } else {
            ReplicaState::Running
        };
        live.replicas.insert(
            replica.name.clone(),
            ReplicaLive {
                state,
                endpoints: endpoints.collect(),
            },
        );
    }
    live
}

#[test]
fn a_file_is_drawn_without_a_running_lab() {
    let topology = shop();
    let drawing = Drawing {
        topology: &topology,
        live: None,
    };
    insta::assert_snapshot!("file.mermaid", drawing.render(GraphFormat::Mermaid));
    insta::assert_snapshot!("file.svg", drawing.render(GraphFormat::Svg));
}

#[test]
fn a_running_lab_is_drawn_with_addresses_and_what_is_down() {
    let topology = shop();
    let live = live(&topology);
    let drawing = Drawing {
        topology: &topology,
        live: Some(&live),
    };
    insta::assert_snapshot!("live.mermaid", drawing.render(GraphFormat::Mermaid));
    insta::assert_snapshot!("live.svg", drawing.render(GraphFormat::Svg));
}

#[test]
fn many_replicas_on_one_host_take_several_lines() {
    let text = "services:\n  w:\n    x-weft: { builtin: idle }\n    deploy: { replicas: 8, endpoint_mode: dnsrr }\nx-weft: { hosts: 2 }\n";
    let topology = resolve(&parse("many.yaml", text).unwrap().0, "many");
    let drawing = Drawing {
        topology: &topology,
        live: None,
    };
    insta::assert_snapshot!("many.svg", drawing.render(GraphFormat::Svg));
}

#[test]
fn the_json_is_what_the_file_and_the_lab_say() {
    let topology = shop();
    let json: serde_json::Value = serde_json::from_str(
        &Drawing {
            topology: &topology,
            live: None,
        }
        .render(GraphFormat::Json),
    )
    .unwrap();
    assert_eq!(json["topology"]["hosts"][2]["name"], "h3");
    assert!(json["live"].is_null());
}
