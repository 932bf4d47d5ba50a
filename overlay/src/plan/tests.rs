use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use weft_netlink::netns::NetnsId;
use weft_types::{EndpointId, Mac, NetworkId, Vni};

use super::{proptests::carry_out, *};

mod steps;

const APP: NetworkId = NetworkId([0xaa; 16]);
const OTHER: NetworkId = NetworkId([0xbb; 16]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn endpoint(n: u8) -> EndpointId {
    EndpointId([n; 16])
}

fn sandbox(n: u8) -> Sandbox {
    Sandbox {
        path: PathBuf::from(format!("/run/netns/s{n}")),
        id: NetnsId {
            dev: 4,
            ino: n.into(),
        },
    }
}

fn local(n: u8) -> LocalEndpoint {
    LocalEndpoint {
        mac: Mac([2, 0, 0, 0, 0, n]),
        addresses: vec![
            format!("10.0.0.{n}/24").parse().unwrap(),
            format!("fd00::{n:x}/64").parse().unwrap(),
        ],
        place: Place::Sandbox(sandbox(n)),
        gateway: vec![ip("10.0.0.1"), ip("fd00::1")],
        ifname: None,
    }
}

fn remote(n: u8, host: u8) -> RemoteEndpoint {
    RemoteEndpoint {
        mac: Mac([2, 0, 0, 0, 1, n]),
        addresses: vec![ip(&format!("10.0.0.{n}")), ip(&format!("fd00::{n:x}"))],
        vtep: ip(&format!("192.0.2.{host}")),
    }
}

fn network(vni: u32) -> Network {
    Network {
        name: "app".to_owned(),
        vni: Vni::try_from(vni).unwrap(),
        mtu: 1450,
        vtep: ip("192.0.2.1"),
        vxlan_port: 4789,
        encryption: None,
        subnets: vec![
            Subnet {
                net: "10.0.0.0/24".parse().unwrap(),
                gateway: ip("10.0.0.1"),
            },
            Subnet {
                net: "fd00::/64".parse().unwrap(),
                gateway: ip("fd00::1"),
            },
        ],
        internal: false,
        service_addresses: vec![ip("169.254.53.53"), ip("fd00:53::53")],
        endpoints: BTreeMap::from([(endpoint(5), local(5))]),
        remotes: BTreeMap::from([(endpoint(6), remote(6, 2))]).into(),
        ingress: None,
    }
}

fn desired() -> Desired {
    Desired {
        members: [ip("192.0.2.3")].into(),
        guarded: [4789].into(),
        networks: BTreeMap::from([(APP, network(0x1234))]),
    }
}

fn applied(desired: &Desired) -> Observed {
    let mut observed = Observed::default();
    carry_out(&plan(desired, &observed), &mut observed);
    observed
}

fn text(desired: &Desired, observed: &Observed) -> String {
    plan(desired, observed).to_string()
}

#[test]
fn a_first_endpoint_brings_the_whole_network() {
    insta::assert_snapshot!(text(&desired(), &Observed::default()));
}

#[test]
fn an_unchanged_host_has_an_empty_plan() {
    let desired = desired();
    assert_eq!(text(&desired, &applied(&desired)), "");
}

#[test]
fn endpoints_that_are_there_get_a_way_to_a_subnet_that_is_added() {
    let mut desired = desired();
    let observed = applied(&desired);
    let net = "10.9.0.0/24".parse().unwrap();
    let more = Subnet {
        net,
        gateway: ip("10.9.0.1"),
    };
    desired.networks.get_mut(&APP).unwrap().subnets.push(more);
    insta::assert_snapshot!(text(&desired, &observed));
    assert_eq!(text(&desired, &applied(&desired)), "");
    // Who is in the new one alone has a way to the first.
    assert!(is_other(&net, &[local(5).addresses[0]]));
    assert!(!is_other(&net, &[local(5).addresses[1]]), "of the other version");
}

#[test]
fn a_second_endpoint_is_all_that_is_added() {
    let mut desired = desired();
    let observed = applied(&desired);
    desired
        .networks
        .get_mut(&APP)
        .unwrap()
        .endpoints
        .insert(endpoint(7), local(7));
    insta::assert_snapshot!(text(&desired, &observed));
}

#[test]
fn an_address_that_moved_to_another_host_is_replaced_and_forgotten() {
    let mut desired = desired();
    let observed = applied(&desired);
    let remotes = &mut desired.networks.get_mut(&APP).unwrap().remotes;
    // The same endpoint on another host; and its old address on a new endpoint.
    remotes.insert(
        endpoint(6),
        RemoteEndpoint {
            addresses: vec![ip("10.0.0.66")],
            ..remote(6, 3)
        },
    );
    remotes.insert(
        endpoint(8),
        RemoteEndpoint {
            mac: Mac([2, 0, 0, 0, 1, 8]),
            ..remote(6, 2)
        },
    );
    insta::assert_snapshot!(text(&desired, &observed));
}

#[test]
fn what_is_forgotten_is_not_learned_again_from_us() {
    let mut desired = desired();
    let observed = applied(&desired);
    desired.networks.get_mut(&APP).unwrap().remotes = Default::default();
    let plan = plan(&desired, &observed);
    let address = ip("10.0.0.6");
    let at = |what: &dyn Fn(&Op) -> bool| plan.ops.iter().position(what).unwrap();
    let told = at(&|op| *op == Op::Network(APP, NetworkOp::DeleteNeighbour(address)));
    let forgotten = at(&|op| *op == Op::Endpoint(APP, endpoint(5), EndpointOp::Forget(address)));
    // Between the two the sandbox asks again, and who is still there answers.
    assert!(told < forgotten, "{plan}");
}

#[test]
fn the_last_endpoint_takes_everything_along() {
    let mut desired = desired();
    let observed = applied(&desired);
    desired.networks.get_mut(&APP).unwrap().endpoints.clear();
    insta::assert_snapshot!(text(&desired, &observed));
    let mut left = observed;
    carry_out(&plan(&desired, &left), &mut left);
    assert_eq!(left.networks, BTreeMap::new());
    // Others still hear what comes from this host.
    let guarded = left.host.rules.as_ref().map(|rules| rules.guarded.clone());
    assert_eq!(guarded, Some([4789].into()));
    desired.guarded.clear();
    carry_out(&plan(&desired, &left), &mut left);
    assert_eq!(left.host.rules, None);
}

#[test]
fn an_encrypted_network_has_a_tap_and_its_entries_lead_there() {
    let mut desired = desired();
    let network = desired.networks.get_mut(&APP).unwrap();
    (network.encryption, network.mtu) = (Some(Encryption::Process), 1370);
    insta::assert_snapshot!(text(&desired, &Observed::default()));
    let observed = applied(&desired);
    assert_eq!(text(&desired, &observed), "");
    // Where a remote endpoint is on the underlay is not the kernel's business.
    let network = desired.networks.get_mut(&APP).unwrap();
    network.remotes.insert(endpoint(6), remote(6, 3));
    let members = HostRules {
        members: [ip("192.0.2.3")].into(),
        ..observed.host.rules.clone().unwrap()
    };
    let expected = Plan {
        ops: vec![Op::Host(HostOp::SetRules(members))],
    };
    assert_eq!(plan(&desired, &observed), expected);
}

#[test]
fn in_the_kernels_wireguard_a_network_has_a_vxlan_device_that_is_nowhere_else() {
    let mut desired = desired();
    let network = desired.networks.get_mut(&APP).unwrap();
    (network.encryption, network.mtu) = (Some(Encryption::Kernel), 1370);
    network.vtep = ip("100.64.0.1");
    let remotes = network.remotes.iter();
    let inside = remotes.map(|(id, remote)| {
        let vtep = ip("100.64.0.2");
        (
            *id,
            RemoteEndpoint {
                vtep,
                ..remote.clone()
            },
        )
    });
    network.remotes = inside.collect::<BTreeMap<_, _>>().into();
    insta::assert_snapshot!(text(&desired, &Observed::default()));
    let mut observed = applied(&desired);
    assert_eq!(text(&desired, &observed), "");
    // Addresses inside the tunnels are nobody's on the underlay.
    let rules = observed.host.rules.clone().unwrap();
    assert!(
        !rules.members.contains(&ip("100.64.0.2")) && rules.ports.is_empty(),
        "{rules:?}"
    );
    // One in the open is never taken for it, nor a TAP device.
    for carrier in [
        Carrier::Vxlan {
            vni: desired.networks[&APP].vni,
            local: ip("100.64.0.1"),
            port: 4789,
            sealed: false,
        },
        Carrier::Tap,
    ] {
        observed
            .networks
            .get_mut(&APP)
            .unwrap()
            .tunnel
            .as_mut()
            .unwrap()
            .carrier = carrier;
        let text = text(&desired, &observed);
        assert!(
            text.contains("delete tunnel\n") && text.contains(" in wireguard mtu 1370\n"),
            "{text}"
        );
    }
}

#[test]
fn a_half_made_network_is_made_anew() {
    let desired = desired();
    let mut observed = applied(&desired);
    observed.networks.get_mut(&APP).unwrap().bridge = None;
    let text = text(&desired, &observed);
    assert!(
        text.starts_with("network aaaaaaaaaaaa: delete namespace and all that is in it\n"),
        "{text}"
    );
    carry_out(&plan(&desired, &observed), &mut observed);
    assert_eq!(observed, applied(&desired));
}

#[test]
fn another_vni_means_another_tunnel_but_no_new_endpoints() {
    let mut desired = desired();
    let observed = applied(&desired);
    desired.networks.insert(
        APP,
        Network {
            vxlan_port: 8472,
            mtu: 1400,
            ..network(0x1234)
        },
    );
    insta::assert_snapshot!(text(&desired, &observed));
}

#[test]
fn a_sandbox_that_was_replaced_gets_a_new_link() {
    let mut desired = desired();
    let observed = applied(&desired);
    let local = desired
        .networks
        .get_mut(&APP)
        .unwrap()
        .endpoints
        .get_mut(&endpoint(5))
        .unwrap();
    local.place = Place::Sandbox(Sandbox {
        id: NetnsId { dev: 4, ino: 99 },
        ..sandbox(5)
    });
    let text = text(&desired, &observed);
    assert!(
        text.starts_with("network aaaaaaaaaaaa endpoint 050505050505: delete veth\n"),
        "{text}"
    );
    assert!(
        text.contains("add veth 02:00:00:00:00:05 mtu 1450 into /run/netns/s5\n"),
        "{text}"
    );
}

#[test]
fn uplinks_avoid_link_local_addresses_of_others() {
    let mut desired = desired();
    desired.networks.insert(
        OTHER,
        Network {
            name: "other".to_owned(),
            ..network(0x99)
        },
    );
    let mut observed = Observed::default();
    observed
        .host
        .link_local
        .insert("169.254.64.0/30".parse().unwrap());
    carry_out(&plan(&desired, &observed), &mut observed);
    let slots: Vec<_> = observed
        .networks
        .values()
        .map(|network| network.uplink.unwrap().slot)
        .collect();
    assert_eq!(slots, [2, 3], "slots 0 and 1 are in 169.254.64.0/30");
    // Who has a slot keeps it, even if somebody else took the address later.
    observed.host.link_local.insert("169.254.0.0/16".parse().unwrap());
    assert_eq!(text(&desired, &observed), "");
}

fn published() -> Ingress {
    let port = |port, transport, at: Option<&str>| HostPort {
        port,
        transport,
        at: at.map(ip),
    };
    Ingress {
        mac: Mac([2, 0, 0, 0, 2, 1]),
        addresses: vec![ip("10.0.0.9"), ip("fd00::9")],
        ports: [
            port(8080, Transport::Tcp, None),
            port(53, Transport::Udp, Some("192.0.2.1")),
        ]
        .into(),
    }
}

#[test]
fn a_published_port_leads_in_from_every_host() {
    let mut desired = desired();
    let network = desired.networks.get_mut(&APP).unwrap();
    network.endpoints.clear();
    network.ingress = Some(published());
    insta::assert_snapshot!(text(&desired, &Observed::default()));
    assert_eq!(text(&desired, &applied(&desired)), "");
}

#[test]
fn whoever_has_no_default_route_here_does_not_see_the_client() {
    let mut desired = desired();
    let network = desired.networks.get_mut(&APP).unwrap();
    let without = LocalEndpoint {
        gateway: Vec::new(),
        ..local(7)
    };
    network.endpoints.insert(endpoint(7), without);
    let observed = applied(&desired);
    desired.networks.get_mut(&APP).unwrap().ingress = Some(published());
    insta::assert_snapshot!(text(&desired, &observed));
}

#[test]
fn the_last_published_port_takes_everything_along() {
    let mut desired = desired();
    desired.networks.get_mut(&APP).unwrap().ingress = Some(published());
    let mut observed = applied(&desired);
    desired.networks.get_mut(&APP).unwrap().ingress = None;
    assert_eq!(
        text(&desired, &observed),
        "network aaaaaaaaaaaa: delete ingress\nnetwork aaaaaaaaaaaa: delete sources\nhost: close all ports\n"
    );
    carry_out(&plan(&desired, &observed), &mut observed);
    assert_eq!(observed.host.ports, None);
}

#[test]
fn an_internal_network_has_no_way_in() {
    let mut desired = desired();
    let network = desired.networks.get_mut(&APP).unwrap();
    (network.internal, network.ingress) = (true, Some(published()));
    let text = text(&desired, &Observed::default());
    assert!(!text.contains("ingress") && !text.contains("open"), "{text}");
}

#[test]
fn an_internal_network_has_no_way_out() {
    let mut desired = desired();
    desired.networks.get_mut(&APP).unwrap().internal = true;
    let text = text(&desired, &Observed::default());
    assert!(
        !text.contains("uplink") && !text.contains("masquerade") && !text.contains("forwarding"),
        "{text}"
    );
}

#[test]
fn a_record_of_this_host_among_the_remotes_is_not_sent_to_itself() {
    let mut desired = desired();
    desired
        .networks
        .get_mut(&APP)
        .unwrap()
        .remotes
        .insert(endpoint(9), remote(9, 1));
    let text = text(&desired, &Observed::default());
    assert!(!text.contains("02:00:00:00:01:09"), "{text}");
}

#[test]
fn an_endpoint_for_a_container_engine_is_a_port_and_nothing_more() {
    let mut desired = desired();
    let observed = applied(&desired);
    let handed = LocalEndpoint {
        place: Place::Engine {
            ifname: "wf0707".to_owned(),
            container: Some(PathBuf::from("/run/docker/netns/c7")),
        },
        gateway: Vec::new(),
        ..local(7)
    };
    let network = desired.networks.get_mut(&APP).unwrap();
    network.endpoints.insert(endpoint(7), handed);
    assert_eq!(
        text(&desired, &observed),
        "network aaaaaaaaaaaa: set neighbour 10.0.0.7 at 02:00:00:00:00:07\n\
         network aaaaaaaaaaaa: set neighbour fd00::7 at 02:00:00:00:00:07\n\
         network aaaaaaaaaaaa endpoint 070707070707: add veth 02:00:00:00:00:07 mtu 1450 to hand over as wf0707\n"
    );
    let observed = applied(&desired);
    assert_eq!(text(&desired, &observed), "");
    // Another endpoint with the address of one that is gone: the container may remember the old one.
    let network = desired.networks.get_mut(&APP).unwrap();
    let again = LocalEndpoint {
        mac: Mac([2, 0, 0, 0, 0, 9]),
        ..local(5)
    };
    network.endpoints.remove(&endpoint(5));
    network.endpoints.insert(endpoint(9), again);
    let text = text(&desired, &observed);
    assert!(
        text.contains("endpoint 070707070707: forget in /run/docker/netns/c7 where 10.0.0.5 was\n"),
        "{text}"
    );
}

#[test]
fn the_host_itself_is_confined_before_its_link_is_there_and_until_it_is_gone() {
    let mut desired = desired();
    let without = applied(&desired);
    let host = LocalEndpoint {
        place: Place::Host(sandbox(9)),
        gateway: Vec::new(),
        ..local(9)
    };
    let network = desired.networks.get_mut(&APP).unwrap();
    network.endpoints.insert(endpoint(9), host);
    let with = applied(&desired);
    insta::assert_snapshot!(text(&desired, &without));
    assert_eq!(text(&desired, &with), "");
    desired
        .networks
        .get_mut(&APP)
        .unwrap()
        .endpoints
        .remove(&endpoint(9));
    insta::assert_snapshot!(text(&desired, &with));
}
