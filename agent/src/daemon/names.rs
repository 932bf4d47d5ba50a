//! The DNS servers of this host's networks, and the snapshot they answer from.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener, UdpSocket},
    sync::Arc,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::{runtime, sync::oneshot};
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
    thread: Thread,
}

/// Where questions are answered: beside everything else the agent does, so that neither waits for the other,
/// however many come or however large a change is.
struct Thread {
    runtime: runtime::Handle,
    _until_dropped: oneshot::Sender<()>,
}

impl Thread {
    fn start() -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (until_dropped, dropped) = oneshot::channel();
        std::thread::Builder::new()
            .name("names".into())
            .spawn(move || runtime.block_on(dropped))?;
        Ok(Self {
            runtime: handle,
            _until_dropped: until_dropped,
        })
    }
}

impl Names {
    pub(super) fn new(domain: &'static str) -> anyhow::Result<Self> {
        Ok(Self {
            domain,
            zone: Arc::new(ArcSwap::from_pointee(empty(domain))),
            askers: Arc::default(),
            forwarder: Forwarder::new(ForwarderConfig {
                // The agent itself may run where its own servers are the resolvers.
                exclude: vec![DNS_V4.into(), DNS_V6.into()],
                ..ForwarderConfig::default()
            }),
            servers: BTreeMap::new(),
            thread: Thread::start().context("the thread for names cannot be started")?,
        })
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
        let _there = self.thread.runtime.enter();
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
