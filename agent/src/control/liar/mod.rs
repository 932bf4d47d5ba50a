//! A member that lies: it has keys that are valid, and writes under its own name whatever it likes.
//!
//! The others are honest, have networks, endpoints and services, and are to keep them as they are.

mod fuzz;
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use bytes::Bytes;
use serde_json::json;
use weft_gossip::Key;
use weft_types::{EndpointId, NetworkId, NodeId, ServiceId};

use super::{Command, records::NetworkSpec, world::World};
use crate::api::{
    ApiError,
    types::{NetworkCreateRequest, NodeRemoveQuery},
};

/// The last of the nodes.
pub(super) const LIAR: usize = 3;
const HONEST: std::ops::Range<usize> = 0..LIAR;

/// Three honest nodes and one that lies.
pub(super) struct Court {
    pub(super) world: World,
    pub(super) app: NetworkId,
    pub(super) secret: NetworkId,
    pub(super) web: ServiceId,
}

/// What a node has of the others' things: one line for each of them.
type Belief = BTreeSet<String>;

impl Court {
    pub(super) fn new() -> Self {
        let mut world = World::of(4);
        let mut app = NetworkCreateRequest::new("app");
        app.ipv6 = true;
        let app = world.done(0, |to| Command::NetworkCreate(app, to)).id;
        let mut secret = NetworkCreateRequest::new("secret");
        secret.options.insert("encrypted".to_owned(), "true".to_owned());
        let secret = world.done(1, |to| Command::NetworkCreate(secret, to)).id;
        world.pass(Duration::from_secs(1));
        let service = json!({"network": "app", "name": "web", "ports": [{"port": 80, "target": 8080}],
            "publish": [{"host_port": 8080, "port": 80}]});
        let service = serde_json::from_value(service).unwrap();
        let web = world.done(2, |to| Command::ServiceCreate(service, to)).summary.id;
        let mut court = Self {
            world,
            app,
            secret,
            web,
        };
        for node in HONEST {
            court
                .connect(node, "app", &format!("a{node}"), Some("web"))
                .unwrap();
            court.connect(node, "secret", &format!("s{node}"), None).unwrap();
        }
        court.world.pass(Duration::from_secs(5));
        court
    }

    /// Makes an endpoint; its addresses, or why there is none.
    pub(super) fn connect(
        &mut self,
        node: usize,
        network: &str,
        name: &str,
        service: Option<&str>,
    ) -> Result<(EndpointId, Vec<IpAddr>), ApiError> {
        let made = self.world.connect(node, network, name, service)?;
        Ok((made.id, made.addresses.iter().map(|net| net.addr()).collect()))
    }

    pub(super) fn id(&self, node: usize) -> NodeId {
        self.world.nodes[node].control.me
    }

    /// The liar says something, and does not believe it.
    pub(super) fn lie(&mut self, key: Key, value: impl Into<Bytes>) {
        let now = self.world.now.instant;
        let liar = &mut self.world.nodes[LIAR].control;
        // More than there is room for is no lie that others ever hear.
        let _ = liar.gossip.put(key, value.into(), now);
    }

    pub(super) fn unsay(&mut self, key: &Key) {
        let now = self.world.now.instant;
        self.world.nodes[LIAR].control.gossip.remove(key, now);
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.world.pass(Duration::from_secs(seconds));
    }

    /// The one command.
    pub(super) fn remove(&mut self) {
        let liar = self.id(LIAR).to_string();
        let query = NodeRemoveQuery { force: true };
        self.world.done(0, |to| Command::NodeRemove(liar, query, to));
        self.pass(5);
    }

    /// What each honest node makes of what is the honest nodes' own.
    pub(super) fn beliefs(&mut self) -> Vec<Belief> {
        HONEST.map(|node| self.belief(node)).collect()
    }

    /// Nothing is another than it was.
    pub(super) fn assert_same(&mut self, before: &[Belief], what: &str) {
        for (node, (was, is)) in before.iter().zip(self.beliefs()).enumerate() {
            let gone: Vec<_> = was.difference(&is).collect();
            let new: Vec<_> = is.difference(was).collect();
            assert!(
                gone.is_empty() && new.is_empty(),
                "{what}, node {node}: not {gone:#?} but {new:#?}"
            );
        }
    }

    fn belief(&mut self, node: usize) -> Belief {
        let liar = self.id(LIAR);
        let now = self.world.now;
        let control = &mut self.world.nodes[node].control;
        let state = control.host_state(now);
        let mut belief = Belief::new();
        let mut note = |line: String| belief.insert(line);
        let owners: BTreeMap<EndpointId, NodeId> = control
            .catalogue
            .all_endpoints()
            .map(|(_, id, endpoint)| (id, endpoint.node))
            .collect();
        // A place of a node's own has the beginning of the node's id.
        let is_liars = |id: &EndpointId| owners.get(id) == Some(&liar) || liar.0.first_chunk() == Some(&id.0);
        let theirs = [self.app, self.secret];
        let networks = state.overlay.networks.iter();
        for (id, network) in networks.filter(|(id, _)| theirs.contains(id)) {
            let mut network = network.clone();
            if *id == self.secret {
                // Anybody may publish a port that leads into any network.
                network.ingress = None;
            }
            let frame = frame(&network);
            note(format!("network {id} {frame}"));
            for (endpoint, local) in &network.endpoints {
                note(format!("local {id} {endpoint} {local:?}"));
            }
            let is_place = |of: &EndpointId| *id == self.secret && !owners.contains_key(of);
            let remotes = network.remotes.iter();
            for (endpoint, remote) in remotes.filter(|(id, _)| !is_liars(id) && !is_place(id)) {
                note(format!("remote {id} {endpoint} {remote:?}"));
                for address in &remote.addresses {
                    let others = network.remotes.iter().filter(|(id, other)| {
                        is_liars(id) && (other.addresses.contains(address) || other.mac == remote.mac)
                    });
                    assert_eq!(others.count(), 0, "the liar has what {endpoint} has");
                }
            }
        }
        for sandbox in &state.sandboxes {
            for table in &sandbox.tables {
                let vips: Vec<_> = table.services.iter().flat_map(|service| &service.vips).collect();
                assert_eq!(vips.iter().collect::<BTreeSet<_>>().len(), vips.len(), "{vips:?}");
                for service in table.services.iter().filter(|service| service.id == self.web) {
                    let backends = service.backends.iter();
                    let backends: Vec<_> = backends.filter(|backend| !is_liars(&backend.endpoint)).collect();
                    note(format!(
                        "service {} {} {:?} {:?} {backends:?}",
                        sandbox.sandbox.target, service.id, service.vips, service.ports
                    ));
                }
            }
        }
        for (network, asked) in &state.askers {
            note(format!("askers {network} {asked:?}"));
        }
        if let Some(tunnels) = &state.tunnels {
            let others = control.catalogue.nodes().filter(|(id, _)| *id != liar);
            let others: Vec<_> = others
                .filter_map(|(_, node)| Some(node.fact.as_ref()?.tunnel.address))
                .collect();
            note(format!("own tunnel {}", tunnels.vtep));
            for peer in tunnels.peers.iter().filter(|peer| others.contains(&peer.vtep)) {
                note(format!("tunnel {peer:?}"));
            }
        }
        belief
    }
}

/// What a network is for those who are on it.
fn frame(network: &weft_overlay::plan::Network) -> String {
    format!(
        "{} {} {} {:?} {} {:?} {:?}",
        network.name,
        network.vni,
        network.mtu,
        network.subnets,
        network.internal,
        network.service_addresses,
        network
            .ingress
            .as_ref()
            .map(|ingress| (ingress.mac, &ingress.addresses)),
    )
}

/// What all say is there.
fn spec(court: &Court, network: NetworkId) -> NetworkSpec {
    court.world.nodes[0]
        .control
        .catalogue
        .network(network)
        .expect("it is there")
        .clone()
}
