//! What a host should be like, in the words of whoever looks whether it is: for `weft doctor`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use weft_dns::{Answer, Asker, Query, Zone, answer};
use weft_types::{EndpointId, Mac, NetworkId, NodeId};

use super::{
    Control, Now, Responder,
    polls::{LOOK_PATIENCE, Outcome, Question, Then},
    records::{NetworkSpec, SandboxSpec, ServiceSpec},
};
use crate::api::types::{BackendState, NodeState, Protocol};

/// Problems of its own that a node tells who asks, and their bytes: all of it is to fit a datagram.
const MAX_PROBLEMS: usize = 4;
const MAX_PROBLEM: usize = 160;
/// Names and services of a network that are tried at most.
const MAX_NAMES: usize = 100;
const MAX_SERVICES: usize = 100;

/// What the records say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    pub node: String,
    pub vtep: Option<IpAddr>,
    pub vxlan_port: u16,
    pub peers: Vec<Peer>,
    /// Those that have a sandbox on this host.
    pub networks: Vec<NetworkView>,
    /// What more than one endpoint has, a sentence each.
    pub doubles: Vec<String>,
    /// What this agent knows to be wrong already.
    pub problems: Vec<String>,
    /// All networks and endpoints of this host by name, those without a sandbox as well.
    pub network_names: BTreeMap<NetworkId, String>,
    pub endpoint_names: BTreeMap<EndpointId, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub vtep: IpAddr,
    pub state: NodeState,
    /// `None` if it did not answer, or was not asked.
    pub said: Option<PeerView>,
}

/// What a peer believes, beside what this node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Whether it has the same records.
    pub agrees: bool,
    /// By how many milliseconds its clock is ahead of this node's.
    pub ahead_millis: i64,
    pub problems: Vec<String>,
}

/// A node's answer to [`Question::Examine`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    fingerprint: u64,
    unix_millis: u64,
    problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkView {
    pub name: String,
    pub mtu: u16,
    pub encrypted: bool,
    pub dns: Vec<IpAddr>,
    /// Its gateways, which every host has.
    pub gateways: Vec<IpAddr>,
    /// Endpoints of this host whose namespace is known, the first of which is where things are tried from.
    pub locals: Vec<Local>,
    pub remotes: Vec<Remote>,
    /// What names resolve to.
    pub names: BTreeMap<String, BTreeSet<IpAddr>>,
    pub services: Vec<ServiceView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub name: String,
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
    pub sandbox: SandboxSpec,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub name: String,
    pub mac: Mac,
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub vtep: IpAddr,
}

/// A service's first port over TCP: what can be tried without sending it anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    pub name: String,
    pub vips: Vec<IpAddr>,
    pub port: u16,
    pub target: u16,
    /// Only those that get new connections.
    pub ready: Vec<BackendView>,
    pub backends: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendView {
    pub name: String,
    pub node: String,
    pub addresses: Vec<IpAddr>,
}

impl Control {
    /// Tells what should be, once all peers have said what they believe or had time enough to.
    pub(super) fn examine(&mut self, to: Responder<Box<Expected>>, now: Now) {
        let mut asked = self.members();
        asked.remove(&self.me);
        self.ask(Question::Examine, asked, LOOK_PATIENCE, Then::Examined(to), now);
    }

    pub(super) fn said(&self, now: Now) -> Said {
        let problems = self.all_problems(now).into_iter().take(MAX_PROBLEMS);
        Said {
            fingerprint: self.gossip.fingerprint(),
            unix_millis: now.unix_millis,
            problems: problems
                .map(|text| text[..text.floor_char_boundary(MAX_PROBLEM)].to_owned())
                .collect(),
        }
    }

    pub(super) fn peer_view(&self, said: Said, now: Now) -> PeerView {
        let millis = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
        PeerView {
            agrees: said.fingerprint == self.gossip.fingerprint(),
            ahead_millis: millis(said.unix_millis).saturating_sub(millis(now.unix_millis)),
            problems: said.problems,
        }
    }

    pub(super) fn expected(&self, outcome: Outcome, now: Now) -> Expected {
        let mut views = outcome.views;
        let peers = self.catalogue.nodes().filter(|(id, _)| *id != self.me);
        let peers = peers.filter_map(|(id, node)| {
            let state = self.node_state(id);
            (state != NodeState::Left).then_some(Peer {
                name: self.catalogue.node_name(id),
                vtep: node.fact.as_ref()?.vtep,
                state,
                said: views.remove(&id),
            })
        });
        let zone = self.zone();
        let networks = self.catalogue.networks();
        Expected {
            node: self.settings.node_name.clone(),
            vtep: Some(self.settings.vtep),
            vxlan_port: self.settings.vxlan_port,
            peers: peers.collect(),
            networks: networks
                .filter_map(|(id, spec)| self.network_view(id, spec, &zone))
                .collect(),
            doubles: self.doubles(),
            problems: self.all_problems(now),
            network_names: self
                .catalogue
                .networks()
                .map(|(id, _)| (id, self.network_name(id)))
                .collect(),
            endpoint_names: self
                .local_endpoints()
                .map(|(_, id, endpoint)| (id, endpoint.spec.name.clone()))
                .collect(),
        }
    }

    fn network_name(&self, id: NetworkId) -> String {
        self.catalogue.display_name(id).unwrap_or_else(|| id.short())
    }

    fn network_view(&self, id: NetworkId, spec: &NetworkSpec, zone: &Zone) -> Option<NetworkView> {
        let (mut locals, mut remotes) = (Vec::new(), Vec::new());
        for (_, endpoint) in self.catalogue.endpoints(id) {
            let (name, mac) = (endpoint.spec.name.clone(), endpoint.spec.mac);
            let addresses = endpoint.spec.addresses.iter().map(IpNet::addr).collect();
            if endpoint.node == self.me {
                let sandbox = endpoint.spec.sandbox().cloned();
                locals.extend(sandbox.map(|sandbox| Local {
                    name,
                    mac,
                    addresses,
                    sandbox,
                }));
            } else if self.serves(endpoint.node)
                && let Some(fact) = self
                    .catalogue
                    .node(endpoint.node)
                    .and_then(|node| node.fact.as_ref())
            {
                let node = self.catalogue.node_name(endpoint.node);
                remotes.push(Remote {
                    name,
                    mac,
                    node,
                    addresses,
                    vtep: fact.vtep,
                });
            }
        }
        (!locals.is_empty()).then(|| NetworkView {
            name: self.network_name(id),
            mtu: spec.mtu,
            encrypted: spec.encrypted,
            dns: self.dns_servers(spec),
            gateways: spec.subnets.iter().map(|subnet| subnet.gateway).collect(),
            locals,
            remotes,
            names: self.resolved(id, zone),
            services: self.service_views(id),
        })
    }

    /// What the names of a network resolve to, as far as they do.
    fn resolved(&self, network: NetworkId, zone: &Zone) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let Some(domain) = self.search_domain(network) else {
            return BTreeMap::new();
        };
        let endpoints = self.catalogue.endpoints(network);
        let endpoints = endpoints.map(|(_, endpoint)| &endpoint.spec.name);
        let services = self.catalogue.services(network).map(|(_, service)| &service.name);
        let names: BTreeSet<&String> = services.chain(endpoints).collect();
        let names = names.into_iter().map(|name| {
            let name = format!("{name}.{domain}");
            let addresses = resolve(network, &name, zone);
            (name, addresses)
        });
        let known = names.filter(|(_, addresses)| !addresses.is_empty());
        known.take(MAX_NAMES).collect()
    }

    pub(super) fn addresses_of(&self, network: NetworkId, name: &str) -> BTreeSet<IpAddr> {
        resolve(network, name, &self.zone())
    }

    fn service_views(&self, network: NetworkId) -> Vec<ServiceView> {
        let services = self.catalogue.services(network);
        let views = services.filter_map(|(_, service)| {
            let (port, target) = first_tcp(service)?;
            let backends: Vec<_> = self.serving(network, &service.name).collect();
            let ready = backends.iter().filter(|(id, endpoint)| {
                endpoint.spec.weight > 0 && self.backend_state(network, *id, endpoint) == BackendState::Ready
            });
            let ready = ready.map(|(_, endpoint)| BackendView {
                name: endpoint.spec.name.clone(),
                node: self.catalogue.node_name(endpoint.node),
                addresses: endpoint.spec.addresses.iter().map(IpNet::addr).collect(),
            });
            Some(ServiceView {
                name: service.name.clone(),
                vips: service.vips.clone(),
                port,
                target,
                ready: ready.collect(),
                backends: backends.len(),
            })
        });
        views.take(MAX_SERVICES).collect()
    }

    /// No two endpoints of a network may have an address in common.
    fn doubles(&self) -> Vec<String> {
        let mut doubles = Vec::new();
        for (id, _) in self.catalogue.networks() {
            let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (_, endpoint) in self.catalogue.endpoints(id) {
                let owner = format!(
                    "`{}` on {}",
                    endpoint.spec.name,
                    self.catalogue.node_name(endpoint.node)
                );
                let addresses = endpoint.spec.addresses.iter().map(|net| net.addr().to_string());
                for address in addresses.chain([endpoint.spec.mac.to_string()]) {
                    owners.entry(address).or_default().push(owner.clone());
                }
            }
            let network = self.network_name(id);
            let twice = owners.into_iter().filter(|(_, owners)| owners.len() > 1);
            doubles.extend(twice.map(|(address, owners)| {
                format!(
                    "{address} on network `{network}` belongs to {}",
                    owners.join(" and ")
                )
            }));
        }
        doubles
    }
}

/// What a name resolves to for somebody on one network.
fn resolve(network: NetworkId, name: &str, zone: &Zone) -> BTreeSet<IpAddr> {
    let asker = Asker::on(vec![network]);
    // Which of very many addresses are given is chance, and whoever compares knows.
    let mut rng = ChaCha20Rng::from_seed([0; 32]);
    let mut addresses = BTreeSet::new();
    for kind in ["A", "AAAA"] {
        let (Ok(owner), Ok(kind)) = (format!("{name}.").parse(), kind.parse()) else {
            continue;
        };
        if let Answer::Records(records) = answer(&Query::query(owner, kind), &asker, zone, &mut rng) {
            addresses.extend(records.iter().filter_map(|record| record.data.ip_addr()));
        }
    }
    addresses
}

/// A service's first port over TCP, and where that leads at a backend.
pub(super) fn first_tcp(service: &ServiceSpec) -> Option<(u16, u16)> {
    let mut ports = service.ports.iter();
    let port = ports.find(|port| port.protocol == Protocol::Tcp)?;
    Some((port.port, port.target))
}

/// What was said by which node.
pub(super) type Views = BTreeMap<NodeId, PeerView>;
