use weft_types::EndpointId;

use super::{
    observed::{Bridge, Host, Observed, ObservedEndpoint, ObservedNetwork},
    op::{EndpointOp, HostOp, Link, NetworkOp, Op},
};

impl Observed {
    /// Notes that an operation was carried out. False if it cannot have been: what it changes is not there, or
    /// what it makes is there already.
    pub(crate) fn record(&mut self, op: &Op) -> bool {
        match op {
            Op::Host(op) => host(op, &mut self.host),
            Op::Network(id, NetworkOp::Add(bridge)) => {
                let network = ObservedNetwork {
                    bridge: Some(bridge.clone()),
                    ..Default::default()
                };
                self.networks.insert(*id, network).is_none()
            }
            Op::Network(id, NetworkOp::Delete) => self.networks.remove(id).is_some(),
            Op::Network(id, op) => self
                .with_bridge(id)
                .is_some_and(|network| self::network(op, network)),
            Op::Endpoint(id, endpoint, op) => self
                .with_bridge(id)
                .is_some_and(|network| self::endpoint(*endpoint, op, network)),
        }
    }

    fn with_bridge(&mut self, id: &weft_types::NetworkId) -> Option<&mut ObservedNetwork> {
        self.networks
            .get_mut(id)
            .filter(|network| network.bridge.is_some())
    }
}

fn host(op: &HostOp, host: &mut Host) -> bool {
    match op {
        HostOp::EnableForwarding { ipv6: false } => host.forwarding.ipv4 = true,
        HostOp::EnableForwarding { ipv6: true } => host.forwarding.ipv6 = true,
        HostOp::SetGate { ipv6, to } => host.docker[usize::from(*ipv6)] = Some(*to),
        HostOp::SetRules(rules) => host.rules = Some(rules.clone()),
        HostOp::DeleteRules => return host.rules.take().is_some(),
        HostOp::SetPorts(ports) => host.ports = Some(ports.clone()),
        HostOp::DeletePorts => return host.ports.take().is_some(),
    }
    true
}

fn network(op: &NetworkOp, network: &mut ObservedNetwork) -> bool {
    match op {
        NetworkOp::Add(_) | NetworkOp::Delete => return false,
        NetworkOp::SetBridge(bridge) => {
            if let Some(current) = &mut network.bridge {
                *current = Bridge {
                    mtu: current.mtu,
                    ..bridge.clone()
                };
            }
        }
        NetworkOp::AddAddress(net) => return network.addresses.insert(*net),
        NetworkOp::DeleteAddress(net) => return network.addresses.remove(net),
        NetworkOp::AddTunnel(tunnel) => {
            network.fdb.clear();
            return network.tunnel.replace(*tunnel).is_none();
        }
        NetworkOp::DeleteTunnel => {
            network.fdb.clear();
            return network.tunnel.take().is_some();
        }
        NetworkOp::AddUplink(uplink) => return network.uplink.replace(*uplink).is_none(),
        NetworkOp::DeleteUplink => return network.uplink.take().is_some(),
        // The host's loopback comes in by the uplink.
        NetworkOp::AddIngress(ingress) => {
            return network.uplink.is_some() && network.ingress.replace(ingress.clone()).is_none();
        }
        NetworkOp::DeleteIngress => return network.ingress.take().is_some(),
        NetworkOp::SetSources(sources) => network.sources = Some(sources.clone()),
        NetworkOp::DeleteSources => return network.sources.take().is_some(),
        NetworkOp::SetMtu(link, mtu) => {
            let current = match link {
                Link::Bridge => network.bridge.as_mut().map(|bridge| &mut bridge.mtu),
                Link::Tunnel => network.tunnel.as_mut().map(|tunnel| &mut tunnel.mtu),
                Link::Uplink => network.uplink.as_mut().map(|uplink| &mut uplink.mtu),
                Link::Ingress => network.ingress.as_mut().map(|ingress| &mut ingress.mtu),
            };
            return current.map(|current| *current = *mtu).is_some();
        }
        NetworkOp::SetNeighbour(address, mac) => {
            network.neighbours.insert(*address, *mac);
        }
        NetworkOp::DeleteNeighbour(address) => return network.neighbours.remove(address).is_some(),
        NetworkOp::SetFdb(mac, far) => {
            network.fdb.insert(*mac, Some(*far));
            return network.tunnel.is_some();
        }
        NetworkOp::DeleteFdb(mac) => return network.fdb.remove(mac).is_some(),
    }
    true
}

fn endpoint(id: EndpointId, op: &EndpointOp, network: &mut ObservedNetwork) -> bool {
    if let EndpointOp::Add { mac, mtu, place, .. } = op {
        let endpoint = ObservedEndpoint {
            sandbox: place.sandbox().map(|sandbox| sandbox.id),
            ..ObservedEndpoint::handed_over(*mac, *mtu)
        };
        return network.endpoints.insert(id, endpoint).is_none();
    }
    if matches!(op, EndpointOp::Delete) {
        return network.endpoints.remove(&id).is_some();
    }
    let Some(endpoint) = network.endpoints.get_mut(&id) else {
        return false;
    };
    match op {
        EndpointOp::Add { .. } | EndpointOp::Delete => return false,
        EndpointOp::SetMtu(mtu) => endpoint.mtu = *mtu,
        EndpointOp::AddAddress(net) => return endpoint.addresses.insert(*net),
        EndpointOp::DeleteAddress(net) => return endpoint.addresses.remove(net),
        EndpointOp::AddRoute(route) => return endpoint.routes.insert(*route),
        EndpointOp::DeleteRoute(route) => return endpoint.routes.remove(route),
        EndpointOp::Forget(_) | EndpointOp::ForgetInside(..) => {}
    }
    true
}
