//! The DNS servers of this host's networks, and the snapshot they answer from.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::{runtime, sync::oneshot};
use weft_dns::{Asker, Counts, Forwarder, ForwarderConfig, Server, Zone};
use weft_netlink::netns::Netns;
use weft_types::NetworkId;

use super::service::{self, Kept, NameSockets};
use crate::{
    api::types::{ForwardedDomain, NamesStatus},
    control::{DNS_V4, DNS_V6, HostState},
    options::{DOMAIN, DnsOptions},
};

/// Sockets that were opened inside a network's namespace.
pub(super) struct DnsSockets {
    pub(super) network: NetworkId,
    /// What they are called while they are kept.
    pub(super) name: String,
    pub(super) sockets: NameSockets,
}

/// What answers in one namespace.
struct Served {
    name: String,
    servers: Vec<Server>,
}

type Askers = BTreeMap<NetworkId, BTreeMap<IpAddr, Vec<NetworkId>>>;

pub(super) struct Names {
    zone: Arc<ArcSwap<Zone>>,
    askers: Arc<ArcSwap<Askers>>,
    host: HostNames,
    forwarder: Forwarder,
    servers: BTreeMap<NetworkId, Served>,
    /// What servers did that are closed by now.
    past: Counts,
    thread: Thread,
}

/// What programs of this host may ask.
struct HostNames {
    shown: Arc<ArcSwap<Vec<NetworkId>>>,
    /// Networks by name; none for all that are on this host.
    only: Vec<String>,
    server: Option<Server>,
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
    /// Those for programs of this host are taken out of `kept`.
    pub(super) fn new(options: &DnsOptions, kept: &mut Kept) -> anyhow::Result<Self> {
        let ours = [DNS_V4.into(), DNS_V6.into()];
        let mut names = Self {
            zone: Arc::new(ArcSwap::from_pointee(empty())),
            askers: Arc::default(),
            host: HostNames {
                shown: Arc::default(),
                only: options.host_networks.clone(),
                server: None,
            },
            forwarder: Forwarder::new(ForwarderConfig {
                // The agent itself may run where its own servers are the resolvers.
                exclude: ours.into_iter().chain(options.host.map(|at| at.ip())).collect(),
                split: options.forward.clone(),
                ..ForwarderConfig::default()
            }),
            servers: BTreeMap::new(),
            past: Counts::default(),
            thread: Thread::start().context("the thread for names cannot be started")?,
        };
        if let Some(address) = options.host {
            let server = names.serve_host(address, kept);
            names.host.server = Some(server.with_context(|| {
                format!("names cannot be answered for this host at {address} (`--dns-host`)")
            })?);
        }
        Ok(names)
    }

    /// Answers programs of this host, whoever runs them, and nobody else: packets from elsewhere to a loopback
    /// address are dropped by the kernel, unless somebody has told it not to.
    fn serve_host(&self, address: SocketAddr, kept: &mut Kept) -> anyhow::Result<Server> {
        let name = service::name_of_host();
        let is_there = |kept: &NameSockets| kept.udp.local_addr().is_ok_and(|bound| bound == address);
        let sockets = match kept.take(&name).remove(&address.ip()).filter(is_there) {
            Some(sockets) => sockets,
            None => {
                service::let_go(&name);
                NameSockets::bind(&Netns::current()?, address)?
            }
        };
        service::keep(&name, &sockets);
        let shown = Arc::clone(&self.host.shown);
        let find = move |client: IpAddr| match client.is_loopback() {
            true => Asker::host(shown.load().to_vec()),
            false => Asker::default(),
        };
        let _there = self.thread.runtime.enter();
        Ok(Server::spawn(
            sockets.udp,
            sockets.tcp,
            Arc::clone(&self.zone),
            Arc::new(find),
            self.forwarder.clone(),
        )?)
    }

    /// From now on every answer is computed from `state`. Servers of networks this host has left are
    /// closed before their namespace is removed, which an open socket would keep alive.
    pub(super) fn publish(&mut self, state: &HostState) {
        self.zone.store(Arc::new(state.zone.clone()));
        self.askers.store(Arc::new(state.askers.clone()));
        self.host.publish(state);
        self.close(|network| !state.overlay.networks.contains_key(network));
    }

    /// What all servers have done so far.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = self.past;
        for server in self
            .servers
            .values()
            .flat_map(|served| &served.servers)
            .chain(&self.host.server)
        {
            counts += server.counts();
        }
        counts
    }

    fn close(&mut self, is_gone: impl Fn(&NetworkId) -> bool) {
        for (_, served) in self.servers.extract_if(.., |network, _| is_gone(network)) {
            served.close(&mut self.past);
        }
    }

    pub(super) fn serve(&mut self, opened: Vec<DnsSockets>) {
        let _there = self.thread.runtime.enter();
        for DnsSockets {
            network,
            name,
            sockets,
        } in opened
        {
            // A network that is opened again has a new namespace, and servers of the old one would keep that alive.
            if self
                .servers
                .get(&network)
                .is_some_and(|served| served.name != name)
                && let Some(old) = self.servers.remove(&network)
            {
                old.close(&mut self.past);
            }
            service::keep(&name, &sockets);
            let NameSockets { udp, tcp } = sockets;
            let askers = Arc::clone(&self.askers);
            let find = move |address: IpAddr| {
                let all = askers.load();
                let networks = all.get(&network).and_then(|known| known.get(&address));
                Asker::on(networks.cloned().unwrap_or_default())
            };
            match Server::spawn(
                udp,
                tcp,
                Arc::clone(&self.zone),
                Arc::new(find),
                self.forwarder.clone(),
            ) {
                Ok(server) => {
                    let served = self.servers.entry(network);
                    let servers = Vec::new();
                    served.or_insert(Served { name, servers }).servers.push(server);
                }
                Err(error) => tracing::error!(network = %network.short(), %error, "names are not served"),
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.close(|_| true);
        self.zone.store(Arc::new(empty()));
        self.askers.store(Arc::default());
    }
}

impl Served {
    fn close(self, past: &mut Counts) {
        self.servers.iter().for_each(|server| *past += server.counts());
        service::let_go(&self.name);
    }
}

impl HostNames {
    fn publish(&self, state: &HostState) {
        let on_host = state.overlay.networks.keys().copied();
        let shown = match self.only.is_empty() {
            true => on_host.collect(),
            false => {
                let names = state.zone.network_names();
                let named =
                    names.filter(|(_, name)| self.only.iter().any(|only| only.eq_ignore_ascii_case(name)));
                named.map(|(id, _)| id).collect()
            }
        };
        self.shown.store(Arc::new(shown));
    }
}

/// What `weft status` says of it.
pub(super) fn status(options: &DnsOptions) -> NamesStatus {
    let forward = options.forward.iter().map(|split| ForwardedDomain {
        domain: split.domain.clone(),
        servers: split.servers.clone(),
    });
    NamesStatus {
        host: options.host,
        host_networks: options.host_networks.clone(),
        forward: forward.collect(),
    }
}

fn empty() -> Zone {
    Zone::new(DOMAIN).expect("the agent's own domain is one")
}
