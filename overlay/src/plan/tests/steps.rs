//! What a plan does on the way, and what it leaves alone.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_network_of_ipv4_alone_has_ipv4_alone_forwarded() {
    let mut desired = desired();
    let network = desired.networks.get_mut(&APP).unwrap();
    network.subnets.truncate(1);
    let forwarding = |desired: &Desired| {
        let ops = plan(desired, &Observed::default()).ops;
        let enabled = ops.into_iter().filter_map(|op| match op {
            Op::Host(HostOp::EnableForwarding { ipv6 }) => Some(ipv6),
            _ => None,
        });
        enabled.collect::<Vec<_>>()
    };
    assert_eq!(forwarding(&desired), [false]);
    let network = desired.networks.get_mut(&APP).unwrap();
    network.subnets = vec![Subnet {
        net: "fd00::/64".parse().unwrap(),
        gateway: ip("fd00::1"),
    }];
    // What goes out over IPv6 may have to come in over IPv4.
    assert_eq!(forwarding(&desired), [false, true]);
}

#[test]
fn another_mtu_is_set_where_it_is_and_cuts_nothing() {
    let mut desired = desired();
    desired.networks.get_mut(&APP).unwrap().ingress = Some(published());
    let observed = applied(&desired);
    desired.networks.get_mut(&APP).unwrap().mtu = 1400;
    let set = plan(&desired, &observed).ops.into_iter().map(|op| match op {
        Op::Network(_, NetworkOp::SetMtu(link, 1400)) => Some(link),
        Op::Endpoint(_, _, EndpointOp::SetMtu(1400)) => None,
        op => panic!("{op}"),
    });
    let set: Vec<_> = set.flatten().collect();
    assert_eq!(set, [Link::Bridge, Link::Tunnel, Link::Uplink, Link::Ingress]);
}

#[test]
fn what_was_shut_stays_so_until_nobody_can_come_in_that_way() {
    let mut desired = desired();
    desired.guarded.clear();
    let observed = applied(&desired);
    let network = desired.networks.get_mut(&APP).unwrap();
    (network.vxlan_port, network.vtep) = (8472, ip("192.0.2.7"));
    let rules: Vec<_> = plan(&desired, &observed)
        .ops
        .into_iter()
        .filter_map(|op| match op {
            Op::Host(HostOp::SetRules(rules)) => Some(rules),
            _ => None,
        })
        .collect();
    let [first, last] = rules.try_into().expect("before the rest and after it");
    assert_eq!(first.ports, [4789, 8472].into());
    assert_eq!(first.guarded, [4789, 8472].into());
    assert_eq!(first.local, [ip("192.0.2.1"), ip("192.0.2.7")].into());
    assert_eq!((last.ports, last.guarded), ([8472].into(), [8472].into()));
    assert_eq!(last.local, [ip("192.0.2.7")].into());
}

#[test]
fn who_has_just_come_has_nothing_to_forget() {
    let mut desired = desired();
    let observed = applied(&desired);
    let network = desired.networks.get_mut(&APP).unwrap();
    network.remotes = Default::default();
    network.endpoints.insert(endpoint(7), local(7));
    let forget = |op: &Op| match op {
        Op::Endpoint(_, id, EndpointOp::Forget(_)) => Some(*id),
        _ => None,
    };
    let told: BTreeSet<_> = plan(&desired, &observed).ops.iter().filter_map(forget).collect();
    assert_eq!(told, [endpoint(5)].into());
}

#[test]
fn uplinks_have_pairs_of_addresses_of_their_own() {
    let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
    for slot in 0..Uplink::SLOTS {
        let uplink = Uplink {
            slot,
            ipv6: true,
            mtu: 1450,
            intact: true,
        };
        for (host, network) in uplink.ends() {
            assert_eq!(host.trunc(), network.trunc(), "they are on one link");
            for end in [host.addr(), network.addr()] {
                let is_ours = match end {
                    IpAddr::V4(end) => Uplink::IPV4.contains(&end),
                    IpAddr::V6(end) => Uplink::IPV6.contains(&end),
                };
                assert!(is_ours && seen.insert(end), "{end} of slot {slot}");
            }
        }
    }
}

#[test]
fn one_address_of_a_pair_that_another_has_is_enough_to_avoid_it() {
    for taken in ["169.254.64.0/32", "169.254.64.1/32"] {
        let mut observed = Observed::default();
        observed.host.link_local.insert(taken.parse().unwrap());
        carry_out(&plan(&desired(), &observed), &mut observed);
        assert_eq!(observed.networks[&APP].uplink.unwrap().slot, 1, "{taken}");
    }
}

#[test]
fn what_cannot_have_been_carried_out_is_not_recorded() {
    let mut desired = desired();
    desired.networks.get_mut(&APP).unwrap().ingress = Some(published());
    let observed = applied(&desired);
    let network = observed.networks[&APP].clone();
    let (bridge, ingress) = (network.bridge.unwrap(), network.ingress.unwrap());
    let way_in = Op::Network(APP, NetworkOp::AddIngress(ingress));
    assert!(!observed.clone().record(&way_in), "it is there");
    let mut without = observed.clone();
    for op in [NetworkOp::DeleteIngress, NetworkOp::DeleteUplink] {
        assert!(without.record(&Op::Network(APP, op)));
    }
    assert!(!without.record(&way_in), "it begins with the uplink");
    // Another name is not another MTU, which an operation of its own sets.
    let renamed = Bridge {
        name: "other".to_owned(),
        mtu: 9000,
        ..bridge.clone()
    };
    let mut after = observed;
    assert!(after.record(&Op::Network(APP, NetworkOp::SetBridge(renamed.clone()))));
    let expected = Bridge {
        mtu: bridge.mtu,
        ..renamed
    };
    assert_eq!(after.networks[&APP].bridge, Some(expected));
}

#[test]
fn of_a_network_whatever_changes_alone_is_found() {
    let changes: [fn(&mut Network); 11] = [
        |network| network.name = "other".to_owned(),
        |network| network.vni = Vni::try_from(0x99).unwrap(),
        |network| network.mtu = 1400,
        |network| network.vtep = ip("192.0.2.9"),
        |network| network.vxlan_port = 8472,
        |network| network.encryption = Some(Encryption::Process),
        |network| network.subnets.truncate(1),
        |network| network.internal = true,
        |network| network.service_addresses.truncate(1),
        |network| network.endpoints.insert(endpoint(7), local(7)).map_or((), drop),
        |network| network.ingress = Some(published()),
    ];
    let before = desired();
    let observed = applied(&before);
    for (place, change) in changes.into_iter().enumerate() {
        let mut after = before.clone();
        change(after.networks.get_mut(&APP).unwrap());
        let all = plan(&after, &observed);
        assert_ne!(all, Plan::default(), "change {place}");
        assert_eq!(plan_since(&before, &after, &observed), all, "change {place}");
    }
}
