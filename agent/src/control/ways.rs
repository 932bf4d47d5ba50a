//! How this host reaches what is on other hosts: a part of the overlay that is as large as the networks are, and so is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_overlay::plan::{self, Encryption};
use weft_types::{EndpointId, Mac, NetworkId, NodeId};

use super::{
    Control,
    catalogue::Endpoint,
    records::NetworkSpec,
    touched::Touched,
    tunnels::{End, ends},
};

/// The tunnels' ends, if that is how a network's other hosts are reached.
type Ends<'a> = BTreeMap<NodeId, End<'a>>;

/// By network, of those that this host is on.
pub(super) type Ways = BTreeMap<NetworkId, plan::Remotes>;

impl Control {
    /// Follows what was touched. The networks in `whole` are derived as a whole.
    pub(super) fn update_ways(
        &self,
        ways: &mut Ways,
        touched: &Touched,
        here: &BTreeSet<NetworkId>,
        whole: &BTreeSet<NetworkId>,
    ) {
        ways.retain(|id, _| here.contains(id) && !whole.contains(id));
        for (network, id) in &touched.ways {
            if let (Some(remotes), Some(spec)) = (ways.get_mut(network), self.catalogue.network(*network)) {
                let ends = self.ends_of(spec);
                let endpoint = self.catalogue.endpoint(*network, *id);
                match endpoint.and_then(|endpoint| self.way(*network, endpoint, ends.as_ref())) {
                    Some(remote) => remotes.insert(*id, remote),
                    None => remotes.remove(id),
                }
            }
        }
        let new: Vec<_> = here.iter().filter(|id| !ways.contains_key(id)).collect();
        for id in new {
            if let Some(spec) = self.catalogue.network(*id) {
                ways.insert(*id, self.all_ways(*id, spec));
            }
        }
    }

    fn all_ways(&self, id: NetworkId, spec: &NetworkSpec) -> plan::Remotes {
        let ends = self.ends_of(spec);
        let endpoints = self.catalogue.endpoints(id);
        let mut remotes = plan::Remotes::default();
        for (of, endpoint) in endpoints {
            if let Some(remote) = self.way(id, endpoint, ends.as_ref()) {
                remotes.insert(of, remote);
            }
        }
        for (node, ingress) in self.catalogue.ingresses(id).filter(|(node, _)| *node != self.me) {
            let remote = self.remote(node, id, ingress.mac, &ingress.addresses, ends.as_ref());
            // Ids are random, and the beginning of a node's is no endpoint's.
            if let (Some(remote), Some(of)) = (remote, node.0.first_chunk()) {
                remotes.insert(EndpointId(*of), remote);
            }
        }
        remotes
    }

    fn way(
        &self,
        network: NetworkId,
        endpoint: &Endpoint,
        ends: Option<&Ends<'_>>,
    ) -> Option<plan::RemoteEndpoint> {
        let (node, spec) = (endpoint.node, &endpoint.spec);
        let is_elsewhere = node != self.me;
        is_elsewhere
            .then(|| self.remote(node, network, spec.mac, &spec.addresses, ends))
            .flatten()
    }

    /// A place on a network that another node has, as far as that is really its own.
    fn remote(
        &self,
        node: NodeId,
        network: NetworkId,
        mac: Mac,
        addresses: &[IpNet],
        ends: Option<&Ends<'_>>,
    ) -> Option<plan::RemoteEndpoint> {
        let fact = self.catalogue.node(node)?.fact.as_ref()?;
        let addresses = self.held_by(node, network, addresses);
        let is_real = !addresses.is_empty()
            && self.has_mac(node, network, mac)
            && fact.vtep != self.settings.vtep
            && fact.vtep.is_ipv4() == self.settings.vtep.is_ipv4();
        let vtep: IpAddr = match ends {
            // The kernel's VXLAN is between the addresses inside the tunnels. Who has none is not reached.
            Some(ends) => ends.get(&node)?.fact.tunnel.address.into(),
            None => fact.vtep,
        };
        is_real.then_some(plan::RemoteEndpoint { mac, addresses, vtep })
    }

    fn ends_of(&self, spec: &NetworkSpec) -> Option<Ends<'_>> {
        let is_inside = spec.encrypted && self.settings.encrypter.kind == Encryption::Kernel;
        is_inside.then(|| ends(&self.catalogue))
    }
}
