//! The DNS servers of this host's networks, and the snapshot they answer from.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener, UdpSocket},
    sync::Arc,
};

use arc_swap::ArcSwap;
use weft_dns::{Asker, Forwarder, ForwarderConfig, Server, Zone};
use weft_types::NetworkId;

use crate::control::{DNS_V4, DNS_V6, HostState};

/// Sockets that were opened inside a network's namespace.
pub(super) struct DnsSockets {
    pub(super) network: NetworkId,
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

type Askers = BTreeMap<NetworkId, BTreeMap<IpAddr, Vec<NetworkId>>>;

pub(super) struct Names {
    domain: &'static str,
    zone: Arc<ArcSwap<Zone>>,
    askers: Arc<ArcSwap<Askers>>,
    forwarder: Forwarder,
    servers: BTreeMap<NetworkId, Vec<Server>>,
}

impl Names {
    pub(super) fn new(domain: &'static str) -> Self {
        Self {
            domain,
            zone: Arc::new(ArcSwap::from_pointee(empty(domain))),
            askers: Arc::default(),
            forwarder: Forwarder::new(ForwarderConfig {
                // The agent itself may run where its own servers are the resolvers.
                exclude: vec![DNS_V4.into(), DNS_V6.into()],
                ..ForwarderConfig::default()
            }),
            servers: BTreeMap::new(),
        }
    }

    /// From now on every answer is computed from `state`. Servers of networks this host has left are
    /// closed before their namespace is removed, which an open socket would keep alive.
    pub(super) fn publish(&mut self, state: &HostState) {
        self.zone.store(Arc::new(state.zone.clone()));
        self.askers.store(Arc::new(state.askers.clone()));
        self.servers
            .retain(|network, _| state.overlay.networks.contains_key(network));
    }

    pub(super) fn serve(&mut self, opened: Vec<DnsSockets>) {
        for DnsSockets { network, udp, tcp } in opened {
            let askers = Arc::clone(&self.askers);
            let find = move |address: IpAddr| {
                let all = askers.load();
                let networks = all.get(&network).and_then(|known| known.get(&address));
                Asker {
                    networks: networks.cloned().unwrap_or_default(),
                }
            };
            match Server::spawn(
                udp,
                tcp,
                Arc::clone(&self.zone),
                Arc::new(find),
                self.forwarder.clone(),
            ) {
                Ok(server) => self.servers.entry(network).or_default().push(server),
                Err(error) => tracing::error!(network = %network.short(), %error, "names are not served"),
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.servers.clear();
        self.zone.store(Arc::new(empty(self.domain)));
        self.askers.store(Arc::default());
    }
}

fn empty(domain: &str) -> Zone {
    Zone::new(domain).expect("the agent's own domain is one")
}
