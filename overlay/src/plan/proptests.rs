use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use proptest::{collection, option, prelude::*};
use weft_netlink::netns::NetnsId;
use weft_types::{EndpointId, Mac, NetworkId, Vni};

use super::*;

/// A kernel made of maps: panics at what the real one would refuse.
pub(super) fn carry_out(plan: &Plan, observed: &mut Observed) {
    for op in &plan.ops {
        assert!(observed.record(op), "impossible: {op}");
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    (2..10_u8, any::<bool>()).prop_map(|(n, ipv6)| {
        if ipv6 {
            format!("fd00::{n:x}").parse().unwrap()
        } else {
            IpAddr::from([10, 0, 0, n])
        }
    })
}

fn mac() -> impl Strategy<Value = Mac> {
    (0..10_u8).prop_map(|n| Mac([2, 0, 0, 0, 0, n]))
}

fn vtep() -> impl Strategy<Value = IpAddr> {
    (1..4_u8).prop_map(|n| IpAddr::from([192, 0, 2, n]))
}

fn sandbox() -> impl Strategy<Value = Sandbox> {
    (0..4_u64).prop_map(|ino| Sandbox {
        path: PathBuf::from(format!("/run/netns/s{ino}")),
        id: NetnsId { dev: 4, ino },
    })
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    address().prop_map(|address| ipnet::IpNet::new(address, if address.is_ipv4() { 24 } else { 64 }).unwrap())
}

fn local() -> impl Strategy<Value = LocalEndpoint> {
    let gateway = any::<bool>().prop_map(|has| {
        if has {
            vec![IpAddr::from([10, 0, 0, 1])]
        } else {
            vec![]
        }
    });
    (mac(), collection::vec(net(), 0..3), sandbox(), gateway).prop_map(
        |(mac, addresses, sandbox, gateway)| LocalEndpoint {
            mac,
            addresses,
            place: Place::Sandbox(sandbox),
            gateway,
            ifname: None,
        },
    )
}

fn remote() -> impl Strategy<Value = RemoteEndpoint> {
    (mac(), collection::vec(address(), 0..3), vtep()).prop_map(|(mac, addresses, vtep)| RemoteEndpoint {
        mac,
        addresses,
        vtep,
    })
}

fn endpoint_id() -> impl Strategy<Value = EndpointId> {
    (0..6_u8).prop_map(|n| EndpointId([n; 16]))
}

fn host_port() -> impl Strategy<Value = HostPort> {
    (80..82_u16, any::<bool>(), option::of(address())).prop_map(|(port, udp, at)| HostPort {
        port,
        transport: if udp { Transport::Udp } else { Transport::Tcp },
        at,
    })
}

fn ingress() -> impl Strategy<Value = Ingress> {
    (
        mac(),
        collection::vec(address(), 0..2),
        collection::btree_set(host_port(), 0..3),
    )
        .prop_map(|(mac, addresses, ports)| Ingress {
            mac,
            addresses,
            ports,
        })
}

fn desired_network() -> impl Strategy<Value = Network> {
    (
        (
            1..3_u32,
            1400..1402_u16,
            1..3_u8,
            any::<bool>(),
            any::<bool>(),
            option::of(prop_oneof![Just(Encryption::Process), Just(Encryption::Kernel)]),
        ),
        collection::btree_map(endpoint_id(), local(), 0..4),
        collection::btree_map(endpoint_id(), remote(), 0..4),
        option::of(ingress()),
    )
        .prop_map(
            |((vni, mtu, subnets, internal, services, encryption), endpoints, remotes, ingress)| Network {
                ingress,
                name: format!("n{vni}"),
                vni: Vni::try_from(vni).unwrap(),
                mtu,
                vtep: IpAddr::from([192, 0, 2, 1]),
                vxlan_port: 4789,
                encryption,
                subnets: [("10.0.0.0/24", "10.0.0.1"), ("fd00::/64", "fd00::1")][..subnets.into()]
                    .iter()
                    .map(|(net, gateway)| Subnet {
                        net: net.parse().unwrap(),
                        gateway: gateway.parse().unwrap(),
                    })
                    .collect(),
                internal,
                service_addresses: if services {
                    vec![IpAddr::from([169, 254, 53, 53])]
                } else {
                    vec![]
                },
                endpoints,
                remotes: remotes.into(),
            },
        )
}

fn network_id() -> impl Strategy<Value = NetworkId> {
    (0..4_u8).prop_map(|n| NetworkId([n; 16]))
}

fn desired() -> impl Strategy<Value = Desired> {
    (
        collection::btree_set(vtep(), 0..3),
        collection::btree_map(network_id(), desired_network(), 0..4),
    )
        .prop_map(|(members, networks)| Desired {
            members,
            networks,
            guarded: BTreeSet::new(),
        })
}

fn observed_endpoint() -> impl Strategy<Value = ObservedEndpoint> {
    let route = (net(), option::of(address()), 0..3_u32).prop_map(|(to, via, metric)| EndpointRoute {
        to,
        via,
        metric,
    });
    (
        mac(),
        1400..1402_u32,
        option::of(sandbox()),
        any::<bool>(),
        collection::btree_set(net(), 0..3),
        collection::btree_set(route, 0..3),
    )
        .prop_map(
            |(mac, mtu, sandbox, intact, addresses, routes)| ObservedEndpoint {
                mac,
                mtu,
                sandbox: sandbox.map(|sandbox| sandbox.id),
                intact,
                addresses,
                routes,
            },
        )
}

fn observed_network() -> impl Strategy<Value = ObservedNetwork> {
    let bridge = (mac(), 1400..1402_u32, any::<bool>()).prop_map(|(mac, mtu, up)| Bridge {
        mac,
        mtu,
        name: "n1".to_owned(),
        up,
    });
    let vxlan = (1..3_u32, vtep(), any::<bool>()).prop_map(|(vni, local, sealed)| Carrier::Vxlan {
        vni: Vni::try_from(vni).unwrap(),
        local,
        port: 4789,
        sealed,
    });
    let tunnel = (prop_oneof![vxlan, Just(Carrier::Tap)], 1400..1402_u32)
        .prop_map(|(carrier, mtu)| Tunnel { carrier, mtu });
    let far = prop_oneof![vtep().prop_map(Far::Vtep), Just(Far::Process)];
    let uplink =
        (0..3_u16, any::<bool>(), 1400..1402_u32, any::<bool>()).prop_map(|(slot, ipv6, mtu, intact)| {
            Uplink {
                slot,
                ipv6,
                mtu,
                intact,
            }
        });
    let ingress = (
        mac(),
        1400..1402_u32,
        collection::btree_set(address(), 0..2),
        any::<bool>(),
    )
        .prop_map(|(mac, mtu, addresses, intact)| IngressLink {
            mac,
            mtu,
            addresses,
            intact,
        });
    let sources = (
        collection::btree_set(address(), 0..2),
        collection::btree_set(address(), 0..2),
    )
        .prop_map(|(own, direct)| SourceRules { own, direct });
    (
        option::weighted(0.9, bridge),
        collection::btree_set(net(), 0..3),
        option::of(tunnel),
        option::of(uplink),
        collection::btree_map(endpoint_id(), observed_endpoint(), 0..4),
        collection::btree_map(mac(), option::of(far), 0..4),
        collection::btree_map(address(), mac(), 0..4),
        (option::of(ingress), option::of(sources)),
    )
        .prop_map(
            |(bridge, addresses, tunnel, uplink, endpoints, fdb, neighbours, (ingress, sources))| {
                ObservedNetwork {
                    ingress,
                    sources,
                    bridge,
                    addresses,
                    // Without a tunnel there are no entries of it.
                    fdb: if tunnel.is_some() { fdb } else { BTreeMap::new() },
                    tunnel,
                    uplink,
                    endpoints,
                    neighbours,
                }
            },
        )
}

fn gate() -> impl Strategy<Value = Option<Gate>> {
    option::of(prop_oneof![Just(Gate::Open), Just(Gate::Shut)])
}

fn observed() -> impl Strategy<Value = Observed> {
    let rules =
        (collection::btree_set(vtep(), 0..3), any::<bool>()).prop_map(|(members, masquerade)| HostRules {
            ports: [4789].into(),
            local: members.clone(),
            guarded: [4789].into(),
            members,
            masquerade,
            links: BTreeMap::new(),
        });
    let ports =
        collection::btree_map((host_port(), any::<bool>()), address(), 0..3).prop_map(|open| HostPorts {
            open,
            networks: ["n".to_owned()].into(),
        });
    (
        option::of(rules),
        option::of(ports),
        any::<bool>(),
        [gate(), gate()],
        collection::btree_map(network_id(), observed_network(), 0..4),
    )
        .prop_map(|(rules, ports, forwards, docker, networks)| Observed {
            host: Host {
                rules,
                ports,
                forwarding: Forwarding {
                    ipv4: forwards,
                    ipv6: forwards,
                },
                docker,
                link_local: BTreeSet::new(),
            },
            networks,
        })
}

/// One state, and another in which the networks are the same and the others' endpoints are elsewhere.
fn moved() -> impl Strategy<Value = (Desired, Desired)> {
    let remotes = || collection::btree_map(endpoint_id(), remote(), 0..4);
    (desired(), collection::vec(remotes(), 4)).prop_map(|(before, remotes)| {
        let mut after = before.clone();
        for (network, remotes) in after.networks.values_mut().zip(remotes) {
            network.remotes = remotes.into();
        }
        (before, after)
    })
}

/// A state of several networks, and what each of their endpoints on other hosts does in turn.
fn history() -> impl Strategy<Value = (Desired, Vec<Step>)> {
    let mac = prop_oneof![3 => any::<u8>(), 1 => 0..10_u8].prop_map(|n| Mac([2, 0, 0, 0, 0, n]));
    let address = prop_oneof![3 => any::<u8>(), 1 => 0..10_u8].prop_map(|n| IpAddr::from([10, 0, 0, n]));
    let vtep = (0..12_u8).prop_map(|n| IpAddr::from([192, 0, 2, n]));
    let remote = (mac, collection::vec(address, 0..3), vtep)
        .prop_map(|(mac, addresses, vtep)| RemoteEndpoint { mac, addresses, vtep });
    let id = any::<u8>().prop_map(|n| EndpointId([n / 16 * 16; 16]));
    let step = (network_id(), id, option::weighted(0.8, remote));
    let steps = collection::vec((step, any::<bool>()), 0..60);
    (desired(), steps)
}

/// Of which network, which endpoint, what it is then, and whether the host is made so at once.
type Step = ((NetworkId, EndpointId, Option<RemoteEndpoint>), bool);

/// Whether the kernel holds just what is desired, and there is nothing left to do.
fn is_reached(desired: &Desired, observed: &Observed) -> Result<(), TestCaseError> {
    prop_assert_eq!(plan(desired, observed), Plan::default());
    prop_assert_eq!(&observed.host.rules, &desired.host_rules());
    let programmed: BTreeMap<_, _> = desired.programmed().collect();
    prop_assert!(programmed.keys().eq(observed.networks.keys()));
    let mut slots = BTreeSet::new();
    for (id, network) in programmed {
        let slot = observed.networks[&id].uplink.map(|uplink| uplink.slot);
        prop_assert_eq!(slot.is_none(), network.internal);
        prop_assert_eq!(&observed.networks[&id], &network.as_observed(slot));
        prop_assert!(
            slot.is_none_or(|slot| slots.insert(slot)),
            "two uplinks share addresses"
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_plan_leads_to_what_is_desired_and_then_there_is_nothing_to_do(
        desired in desired(), mut observed in observed()
    ) {
        carry_out(&plan(&desired, &observed), &mut observed);
        is_reached(&desired, &observed)?;
    }

    #[test]
    fn what_moves_is_followed_whatever_stood_there_before((before, after) in moved()) {
        let mut observed = Observed::default();
        for desired in [before, after] {
            carry_out(&plan(&desired, &observed), &mut observed);
            is_reached(&desired, &observed)?;
        }
    }

    #[test]
    fn what_is_followed_is_what_a_look_at_everything_finds((mut desired, steps) in history()) {
        let mut observed = Observed::default();
        carry_out(&plan(&desired, &observed), &mut observed);
        let mut before = desired.clone();
        for ((network, id, remote), is_applied) in steps {
            let Some(network) = desired.networks.get_mut(&network) else { continue };
            match remote {
                Some(remote) => network.remotes.insert(id, remote),
                None => network.remotes.remove(&id),
            }
            if is_applied {
                let followed = plan_since(&before, &desired, &observed);
                prop_assert_eq!(&followed, &plan(&desired, &observed));
                carry_out(&followed, &mut observed);
                is_reached(&desired, &observed)?;
                before = desired.clone();
            }
        }
    }

    #[test]
    fn whatever_has_changed_is_found(before in desired(), after in desired()) {
        let mut observed = Observed::default();
        carry_out(&plan(&before, &observed), &mut observed);
        prop_assert_eq!(plan_since(&before, &after, &observed), plan(&after, &observed));
    }

    #[test]
    fn from_nothing_to_something_and_back_leaves_nothing(desired in desired()) {
        let mut observed = Observed::default();
        carry_out(&plan(&desired, &observed), &mut observed);
        carry_out(&plan(&Desired::default(), &observed), &mut observed);
        prop_assert_eq!(observed.networks, BTreeMap::new());
        prop_assert_eq!(observed.host.rules, None);
        prop_assert_eq!(observed.host.ports, None);
    }

    #[test]
    fn an_address_is_never_without_a_place_while_it_moves(before in desired(), after in desired()) {
        let mut observed = Observed::default();
        carry_out(&plan(&before, &observed), &mut observed);
        let plan = plan(&after, &observed);
        let kept = |id: &NetworkId| after.programmed().any(|(other, _)| other == *id);
        let wanted: BTreeMap<_, _> =
            after.programmed().map(|(id, network)| (id, network.as_observed(None))).collect();
        for op in &plan.ops {
            if let Op::Network(id, NetworkOp::DeleteNeighbour(address)) = op {
                prop_assert!(kept(id));
                prop_assert!(!wanted[id].neighbours.contains_key(address));
            }
        }
    }
}
