//! The plan from one desired state to the next, where only endpoints of other hosts came, went or moved: it costs what they do.

use std::{collections::BTreeSet, net::IpAddr};

use weft_types::{Mac, NetworkId};

use super::{
    Plan,
    desired::{Desired, Network},
    diff::NetworkDiff,
    observed::{Observed, ObservedNetwork},
    op::Op,
    plan,
    rules::RulesDiff,
};

/// What [`plan`] says where nothing was left to do for `before`. Of what is the same as then nothing is looked at, as far as that
/// can be: where more has changed than who is elsewhere, or something is claimed twice, everything is.
pub fn plan_since(before: &Desired, desired: &Desired, observed: &Observed) -> Plan {
    match narrow(before, desired, observed) {
        Some(ops) => Plan { ops },
        None => plan(desired, observed),
    }
}

fn narrow(before: &Desired, desired: &Desired, observed: &Observed) -> Option<Vec<Op>> {
    if !before.networks.keys().eq(desired.networks.keys()) {
        return None;
    }
    let mut ops = Vec::new();
    let rules = RulesDiff::of(desired, &observed.host);
    ops.extend(rules.first());
    let pairs = before.networks.values().zip(&desired.networks);
    for (before, (id, network)) in pairs {
        if !is_same_but_for_remotes(before, network) {
            return None;
        }
        if before.remotes != network.remotes && network.is_programmed() {
            follow(*id, before, network, observed.networks.get(id)?, &mut ops)?;
        }
    }
    ops.extend(rules.last());
    Some(ops)
}

fn is_same_but_for_remotes(before: &Network, now: &Network) -> bool {
    // In full, so that what is added to a network is not forgotten here.
    let Network {
        name,
        vni,
        mtu,
        vtep,
        vxlan_port,
        encryption,
        subnets,
        internal,
        service_addresses,
        endpoints,
        remotes: _,
        ingress,
    } = before;
    (name, vni, mtu, vtep, vxlan_port, encryption)
        == (
            &now.name,
            &now.vni,
            &now.mtu,
            &now.vtep,
            &now.vxlan_port,
            &now.encryption,
        )
        && (subnets, internal, service_addresses, endpoints, ingress)
            == (
                &now.subnets,
                &now.internal,
                &now.service_addresses,
                &now.endpoints,
                &now.ingress,
            )
}

/// The operations of one network; `None` if something is claimed twice, and others may have a part in who has it.
fn follow(
    id: NetworkId,
    before: &Network,
    network: &Network,
    observed: &ObservedNetwork,
    ops: &mut Vec<Op>,
) -> Option<()> {
    let local = network.endpoints.values().map(|local| local.addresses.len());
    let addresses = before.remotes.addresses() + local.sum::<usize>();
    if (observed.fdb.len(), observed.neighbours.len()) != (before.remotes.len(), addresses) {
        return None;
    }
    let differing = network.remotes.differing(&before.remotes);
    let mut left: (BTreeSet<Mac>, BTreeSet<IpAddr>) = Default::default();
    for old in differing.iter().filter_map(|(old, _)| *old) {
        left.0.insert(old.mac);
        left.1.extend(&old.addresses);
    }
    let mut taken: (BTreeSet<Mac>, BTreeSet<IpAddr>) = Default::default();
    let mut wanted = observed.but_for_bindings();
    for new in differing.iter().filter_map(|(_, new)| *new) {
        let is_free = |mac| left.0.contains(mac) || !observed.fdb.contains_key(mac);
        let is_ours = network.endpoints.values().any(|local| local.mac == new.mac);
        if new.vtep == network.vtep || is_ours || !is_free(&new.mac) || !taken.0.insert(new.mac) {
            return None;
        }
        wanted.fdb.insert(new.mac, Some(network.far(new)));
        for address in &new.addresses {
            let is_free = left.1.contains(address) || !observed.neighbours.contains_key(address);
            if !is_free || !taken.1.insert(*address) {
                return None;
            }
            wanted.neighbours.insert(*address, new.mac);
        }
    }
    let mut now = observed.but_for_bindings();
    let macs = left.0.iter();
    now.fdb = macs
        .filter_map(|mac| Some((*mac, *observed.fdb.get(mac)?)))
        .collect();
    let addresses = left.1.iter();
    now.neighbours = addresses
        .filter_map(|address| Some((*address, *observed.neighbours.get(address)?)))
        .collect();
    NetworkDiff { id, network, ops }.follow(&wanted, &now);
    Some(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Instant};

    use weft_types::EndpointId;

    use super::{super::proptests::carry_out, *};
    use crate::plan::{LocalEndpoint, Place, RemoteEndpoint, Subnet};

    fn id(n: u32) -> EndpointId {
        // In the whole range, as random ones.
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b1).to_be_bytes());
        EndpointId(id)
    }

    fn remote(n: u32, vtep: u8) -> RemoteEndpoint {
        let [a, b, c, d] = (0x0a01_0000 + n).to_be_bytes();
        RemoteEndpoint {
            mac: Mac([2, 0, a, b, c, d]),
            addresses: vec![IpAddr::from([a, b, c, d])],
            vtep: IpAddr::from([192, 0, 2, vtep]),
        }
    }

    /// A network with an endpoint here and so many elsewhere.
    fn desired(elsewhere: u32) -> Desired {
        let local = LocalEndpoint {
            mac: Mac([2; 6]),
            addresses: vec!["10.0.0.2/8".parse().unwrap()],
            place: Place::Engine {
                ifname: "weft0".to_owned(),
                container: None,
            },
            gateway: Vec::new(),
            ifname: None,
        };
        let remotes: BTreeMap<_, _> = (0..elsewhere).map(|n| (id(n), remote(n, 2))).collect();
        let network = Network {
            name: "app".to_owned(),
            vni: 7.try_into().unwrap(),
            mtu: 1450,
            vtep: IpAddr::from([192, 0, 2, 1]),
            vxlan_port: 4789,
            encryption: None,
            subnets: vec![Subnet {
                net: "10.0.0.0/8".parse().unwrap(),
                gateway: IpAddr::from([10, 0, 0, 1]),
            }],
            internal: false,
            service_addresses: Vec::new(),
            endpoints: [(id(u32::MAX), local)].into(),
            remotes: remotes.into(),
            ingress: None,
        };
        Desired {
            networks: [(NetworkId([1; 16]), network)].into(),
            ..Desired::default()
        }
    }

    /// An endpoint that comes, one that moves, one that goes; none of which another has a part in.
    const STEPS: [(u32, Option<u8>); 3] = [(1_000_000, Some(3)), (1, Some(4)), (2, None)];

    fn step(desired: &mut Desired, (n, vtep): (u32, Option<u8>)) {
        for network in desired.networks.values_mut() {
            match vtep {
                Some(vtep) => network.remotes.insert(id(n), remote(n, vtep)),
                None => network.remotes.remove(&id(n)),
            }
        }
    }

    #[test]
    fn of_endpoints_elsewhere_only_those_that_changed_are_looked_at() {
        let mut desired = desired(500);
        let mut observed = Observed::default();
        carry_out(&plan(&desired, &observed), &mut observed);
        for change in STEPS {
            let before = desired.clone();
            assert_eq!(narrow(&before, &desired, &observed), Some(Vec::new()));
            step(&mut desired, change);
            let ops = narrow(&before, &desired, &observed).expect("nothing is claimed twice");
            let networks = before.networks.values().zip(desired.networks.values());
            let differing: usize = networks
                .map(|(before, now)| now.remotes.differing(&before.remotes).len())
                .sum();
            assert_eq!(differing, 1, "{change:?}");
            let plan = plan(&desired, &observed);
            assert_eq!(ops, plan.ops);
            assert!(!ops.is_empty(), "{change:?}");
            carry_out(&plan, &mut observed);
        }
        // One that is of no concern to this host, because it has no endpoint there.
        let mut elsewhere = desired.clone();
        for network in elsewhere.networks.values_mut() {
            network.endpoints.clear();
        }
        let mut observed_elsewhere = Observed::default();
        carry_out(&plan(&elsewhere, &observed_elsewhere), &mut observed_elsewhere);
        let before = elsewhere.clone();
        step(&mut elsewhere, STEPS[1]);
        step(&mut elsewhere, (5, Some(9)));
        assert_eq!(narrow(&before, &elsewhere, &observed_elsewhere), Some(Vec::new()));
        // Two that claim one address.
        let before = desired.clone();
        for network in desired.networks.values_mut() {
            network.remotes.insert(id(3), remote(4, 5));
        }
        assert_eq!(narrow(&before, &desired, &observed), None);
    }

    #[test]
    #[ignore = "it measures and judges nothing"]
    fn what_a_change_costs_a_plan() {
        for elsewhere in [100, 10_000, 100_000] {
            let mut desired = desired(elsewhere);
            let mut observed = Observed::default();
            carry_out(&plan(&desired, &observed), &mut observed);
            for change in STEPS {
                let before = desired.clone();
                let begun = Instant::now();
                step(&mut desired, change);
                let stepped = begun.elapsed();
                let ops = plan_since(&before, &desired, &observed);
                let since = begun.elapsed() - stepped;
                let begun = Instant::now();
                assert_eq!(plan(&desired, &observed), ops);
                let all = begun.elapsed();
                println!(
                    "{elsewhere:>7} elsewhere, {change:?}: changed in {stepped:?}, planned in {since:?}, as a whole in {all:?}"
                );
                carry_out(&ops, &mut observed);
            }
        }
    }
}
