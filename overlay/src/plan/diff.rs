use std::collections::{BTreeMap, BTreeSet};

use weft_types::{EndpointId, NetworkId};

use super::{
    desired::{Desired, Network, Place},
    ingress::{HostPorts, IngressLink},
    observed::{Gate, Observed, ObservedEndpoint, ObservedNetwork, Uplink},
    op::{EndpointOp, HostOp, Link, NetworkOp, Op, Plan},
    rules::RulesDiff,
};

/// The operations that make what was observed into what is desired; none if it is that already.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut ops = Vec::new();
    let rules = RulesDiff::of(desired, &observed.host);
    ops.extend(rules.first());
    for ipv6 in [false, true] {
        let wanted = desired
            .programmed()
            .any(|(_, network)| !network.internal && (!ipv6 || network.has_ipv6()));
        let forwarding = &observed.host.forwarding;
        if wanted && !(if ipv6 { forwarding.ipv6 } else { forwarding.ipv4 }) {
            ops.push(Op::Host(HostOp::EnableForwarding { ipv6 }));
        }
        let to = if wanted { Gate::Open } else { Gate::Shut };
        if observed.host.docker[usize::from(ipv6)].is_some_and(|gate| gate != to) {
            ops.push(Op::Host(HostOp::SetGate { ipv6, to }));
        }
    }
    let mut slots = Slots::of(desired, observed);
    let mut ports = HostPorts::default();
    for (id, network) in desired.programmed() {
        let observed = observed.networks.get(&id);
        let slot = (!network.internal).then(|| slots.take(id)).flatten();
        lead_in(id, network, slot, &mut ports);
        NetworkDiff {
            id,
            network,
            ops: &mut ops,
        }
        .run(&network.as_observed(slot), observed);
    }
    // Nobody is let in before there is a way on.
    if ports.networks.is_empty() {
        if observed.host.ports.is_some() {
            ops.push(Op::Host(HostOp::DeletePorts));
        }
    } else if observed.host.ports.as_ref() != Some(&ports) {
        ops.push(Op::Host(HostOp::SetPorts(ports)));
    }
    let programmed: BTreeSet<_> = desired.programmed().map(|(id, _)| id).collect();
    for id in observed.networks.keys().filter(|id| !programmed.contains(id)) {
        ops.push(Op::Network(*id, NetworkOp::Delete));
    }
    ops.extend(rules.last());
    Plan { ops }
}

/// Has the ports of a network's ingress lead to its end of the uplink.
fn lead_in(id: NetworkId, network: &Network, slot: Option<u16>, ports: &mut HostPorts) {
    let (Some(ingress), Some(slot)) = (network.ingress(), slot) else {
        return;
    };
    let uplink = Uplink {
        slot,
        ipv6: network.has_ipv6(),
        mtu: 0,
        intact: true,
    };
    ports.networks.insert(id.short());
    for (_, end) in uplink.ends() {
        let (end, ipv6) = (end.addr(), end.addr().is_ipv6());
        let of_version = ingress.ports.iter().filter(|port| port.has(ipv6));
        for port in of_version {
            // Of two networks that claim one port the one with the lower id keeps it, on every host.
            ports.open.entry((*port, ipv6)).or_insert(end);
        }
    }
}

/// Which pairs of uplink addresses are taken.
struct Slots {
    taken: BTreeSet<u16>,
    kept: BTreeMap<NetworkId, u16>,
}

impl Slots {
    fn of(desired: &Desired, observed: &Observed) -> Self {
        let mut taken: BTreeSet<u16> = (0..Uplink::SLOTS)
            .filter(|slot| {
                let (host, network) = Uplink {
                    slot: *slot,
                    ipv6: false,
                    mtu: 0,
                    intact: true,
                }
                .ipv4();
                observed
                    .host
                    .link_local
                    .iter()
                    .any(|net| net.contains(&host) || net.contains(&network))
            })
            .collect();
        let mut kept = BTreeMap::new();
        let mut owned = BTreeSet::new();
        for (id, uplink) in observed
            .networks
            .iter()
            .filter_map(|(id, n)| Some((id, n.uplink?)))
        {
            let stays = desired
                .programmed()
                .any(|(other, network)| other == *id && !network.internal);
            if stays && uplink.intact && owned.insert(uplink.slot) {
                kept.insert(*id, uplink.slot);
            }
            // An uplink that goes is still there when the new ones come.
            taken.insert(uplink.slot);
        }
        Self { taken, kept }
    }

    /// The slot a network has, else the first free one; none if others use the whole range.
    fn take(&mut self, id: NetworkId) -> Option<u16> {
        if let Some(slot) = self.kept.get(&id) {
            return Some(*slot);
        }
        let slot = (0..Uplink::SLOTS).find(|slot| !self.taken.contains(slot))?;
        self.taken.insert(slot);
        Some(slot)
    }
}

pub(super) struct NetworkDiff<'a> {
    pub(super) id: NetworkId,
    pub(super) network: &'a Network,
    pub(super) ops: &'a mut Vec<Op>,
}

impl NetworkDiff<'_> {
    fn push(&mut self, op: NetworkOp) {
        self.ops.push(Op::Network(self.id, op));
    }

    fn push_endpoint(&mut self, endpoint: EndpointId, op: EndpointOp) {
        self.ops.push(Op::Endpoint(self.id, endpoint, op));
    }

    fn run(&mut self, wanted: &ObservedNetwork, observed: Option<&ObservedNetwork>) {
        let mut now = observed.cloned().unwrap_or_default();
        if observed.is_some() && now.bridge.is_none() {
            self.push(NetworkOp::Delete);
            now = ObservedNetwork::default();
        }
        self.bridge(wanted, &now);
        self.tunnel(wanted, &mut now);
        self.uplink(wanted, &mut now);
        self.ingress(wanted, &now);
        self.replaced_endpoints(wanted, &mut now);
        self.follow(wanted, &now);
    }

    /// What is on the links, where those are as they should be.
    pub(super) fn follow(&mut self, wanted: &ObservedNetwork, now: &ObservedNetwork) {
        self.bindings(wanted, now);
        self.endpoints(wanted, now);
        self.leftovers(wanted, now);
        // Last: who is asked again must not give the answer that is to be forgotten.
        self.forget(wanted, now);
    }

    fn bridge(&mut self, wanted: &ObservedNetwork, now: &ObservedNetwork) {
        let Some(bridge) = &wanted.bridge else { return };
        match &now.bridge {
            None => self.push(NetworkOp::Add(bridge.clone())),
            Some(current) => {
                if (current.mac, &current.name, current.up) != (bridge.mac, &bridge.name, bridge.up) {
                    self.push(NetworkOp::SetBridge(bridge.clone()));
                }
                if current.mtu != bridge.mtu {
                    self.push(NetworkOp::SetMtu(Link::Bridge, bridge.mtu));
                }
            }
        }
        for net in wanted.addresses.difference(&now.addresses) {
            self.push(NetworkOp::AddAddress(*net));
        }
    }

    fn tunnel(&mut self, wanted: &ObservedNetwork, now: &mut ObservedNetwork) {
        let Some(tunnel) = wanted.tunnel else { return };
        match now.tunnel {
            Some(current) if current.carrier == tunnel.carrier => {
                if current.mtu != tunnel.mtu {
                    self.push(NetworkOp::SetMtu(Link::Tunnel, tunnel.mtu));
                }
                return;
            }
            Some(_) => self.push(NetworkOp::DeleteTunnel),
            None => {}
        }
        now.fdb.clear();
        self.push(NetworkOp::AddTunnel(tunnel));
    }

    fn uplink(&mut self, wanted: &ObservedNetwork, now: &mut ObservedNetwork) {
        match (wanted.uplink, now.uplink) {
            (Some(uplink), Some(current))
                if (Uplink {
                    mtu: uplink.mtu,
                    ..current
                }) == uplink =>
            {
                if current.mtu != uplink.mtu {
                    self.push(NetworkOp::SetMtu(Link::Uplink, uplink.mtu));
                }
            }
            (wanted, current) => {
                // The way in begins with it.
                if now.ingress.take().is_some() {
                    self.push(NetworkOp::DeleteIngress);
                }
                if current.is_some() {
                    self.push(NetworkOp::DeleteUplink);
                }
                if let Some(uplink) = wanted {
                    self.push(NetworkOp::AddUplink(uplink));
                }
            }
        }
    }

    fn ingress(&mut self, wanted: &ObservedNetwork, now: &ObservedNetwork) {
        match (&wanted.ingress, &now.ingress) {
            (Some(link), Some(current))
                if (IngressLink {
                    mtu: link.mtu,
                    ..current.clone()
                }) == *link =>
            {
                if current.mtu != link.mtu {
                    self.push(NetworkOp::SetMtu(Link::Ingress, link.mtu));
                }
            }
            (wanted, current) => {
                if current.is_some() {
                    self.push(NetworkOp::DeleteIngress);
                }
                if let Some(link) = wanted {
                    self.push(NetworkOp::AddIngress(link.clone()));
                }
            }
        }
        match (&wanted.sources, &now.sources) {
            (Some(sources), current) if current.as_ref() != Some(sources) => {
                self.push(NetworkOp::SetSources(sources.clone()));
            }
            (None, Some(_)) => self.push(NetworkOp::DeleteSources),
            _ => {}
        }
    }

    /// Endpoints that must be made anew: an Ethernet address or a sandbox is for life.
    fn replaced_endpoints(&mut self, wanted: &ObservedNetwork, now: &mut ObservedNetwork) {
        for (id, endpoint) in &wanted.endpoints {
            let differs = |current: &ObservedEndpoint| {
                (current.mac, current.sandbox, current.intact)
                    != (endpoint.mac, endpoint.sandbox, endpoint.intact)
            };
            if now.endpoints.get(id).is_some_and(differs) {
                self.push_endpoint(*id, EndpointOp::Delete);
                now.endpoints.remove(id);
            }
        }
    }

    fn bindings(&mut self, wanted: &ObservedNetwork, now: &ObservedNetwork) {
        for (mac, far) in &wanted.fdb {
            if let Some(far) = far.filter(|_| now.fdb.get(mac) != Some(far)) {
                self.push(NetworkOp::SetFdb(*mac, far));
            }
        }
        for (address, mac) in &wanted.neighbours {
            if now.neighbours.get(address) != Some(mac) {
                self.push(NetworkOp::SetNeighbour(*address, *mac));
            }
        }
    }

    fn endpoints(&mut self, wanted: &ObservedNetwork, now: &ObservedNetwork) {
        // All links first, then sandbox by sandbox: as few changes of namespace as can be.
        for (id, local) in &self.network.endpoints {
            if !now.endpoints.contains_key(id) {
                let mtu = u32::from(self.network.mtu);
                let (place, ifname) = (local.place.clone(), local.ifname.clone());
                self.push_endpoint(
                    *id,
                    EndpointOp::Add {
                        mac: local.mac,
                        mtu,
                        place,
                        ifname,
                    },
                );
            }
        }
        for (id, endpoint) in &wanted.endpoints {
            let fresh = ObservedEndpoint {
                addresses: BTreeSet::new(),
                routes: BTreeSet::new(),
                ..endpoint.clone()
            };
            let current = now.endpoints.get(id).unwrap_or(&fresh);
            if current.mtu != endpoint.mtu {
                self.push_endpoint(*id, EndpointOp::SetMtu(endpoint.mtu));
            }
            for net in endpoint.addresses.difference(&current.addresses) {
                self.push_endpoint(*id, EndpointOp::AddAddress(*net));
            }
            for route in endpoint.routes.difference(&current.routes) {
                self.push_endpoint(*id, EndpointOp::AddRoute(*route));
            }
            for route in current.routes.difference(&endpoint.routes) {
                self.push_endpoint(*id, EndpointOp::DeleteRoute(*route));
            }
            for net in current.addresses.difference(&endpoint.addresses) {
                self.push_endpoint(*id, EndpointOp::DeleteAddress(*net));
            }
        }
    }

    /// Sandboxes that stay may remember the Ethernet address of an endpoint that moved, for up to a minute.
    fn forget(&mut self, wanted: &ObservedNetwork, now: &ObservedNetwork) {
        let moved: Vec<_> = now
            .neighbours
            .iter()
            .filter(|(address, mac)| wanted.neighbours.get(address) != Some(mac))
            .map(|(address, _)| *address)
            .collect();
        let network = self.network;
        for (id, local) in &network.endpoints {
            if !now.endpoints.contains_key(id) {
                continue;
            }
            for address in &moved {
                match &local.place {
                    Place::Sandbox(_) | Place::Host(_) => {
                        self.push_endpoint(*id, EndpointOp::Forget(*address))
                    }
                    Place::Engine {
                        container: Some(path),
                        ..
                    } => self.push_endpoint(*id, EndpointOp::ForgetInside(*address, path.clone())),
                    // It has not heard of anybody yet.
                    Place::Engine { container: None, .. } => {}
                }
            }
        }
    }

    fn leftovers(&mut self, wanted: &ObservedNetwork, now: &ObservedNetwork) {
        for id in now
            .endpoints
            .keys()
            .filter(|id| !wanted.endpoints.contains_key(id))
        {
            self.push_endpoint(*id, EndpointOp::Delete);
        }
        for address in now
            .neighbours
            .keys()
            .filter(|address| !wanted.neighbours.contains_key(address))
        {
            self.push(NetworkOp::DeleteNeighbour(*address));
        }
        for mac in now.fdb.keys().filter(|mac| !wanted.fdb.contains_key(mac)) {
            self.push(NetworkOp::DeleteFdb(*mac));
        }
        for net in now.addresses.difference(&wanted.addresses) {
            self.push(NetworkOp::DeleteAddress(*net));
        }
    }
}
