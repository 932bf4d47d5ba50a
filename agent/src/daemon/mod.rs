//! The running agent: one task owns all state and carries out what `Control` decides.
//!
//! Around it: the gossip sockets, the API server, the host thread that talks to the kernel, and the DNS
//! servers. They send it events; nothing else changes state.

pub(crate) mod access;
mod cluster;
mod doctor;
mod entry;
mod events;
mod health;
mod host;
mod join;
mod keys;
mod listeners;
mod names;
pub(crate) mod observe;
pub(crate) mod resolv;
pub(crate) mod server;
mod service;
mod store;
mod tally;
pub(crate) mod target;
mod tunnels;
mod watch;
mod why;

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    net::SocketAddr,
    os::fd::OwnedFd,
    os::unix::net::UnixListener,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch as latest},
};
use tracing_subscriber::EnvFilter;
use weft_gossip::Identity;
use weft_netlink::broker::Readable;
use weft_wireguard::Secret32;

use crate::{
    api::ApiError,
    broker,
    control::{
        Encrypter, HealthResult, HostFacts, Now, Responder, Ring, TunnelKeys, TunnelReport,
        docker::DockerCommand,
    },
    docker::{self, Door, Owner, Plugin, Watcher},
    metrics::{Snapshot, Work},
    options::{AgentOptions, DockerPlugin, LogFormat},
    privileges,
};
use access::Sockets;
use cluster::Membership;
use events::EventLog;
use health::Prober;
use host::HostThread;
use keys::KeyFile;
use names::Names;
use observe::{Exposed, Monitoring};
use resolv::ResolverFiles;
use server::{Api, Request};
use service::{Passed, Watchdog};
use store::Store;
use tunnels::TunnelsThread;

/// It cannot be started by a process that has given up what it needs.
const WITHOUT_BROKER: &str = "the broker that enters namespaces for the agent was killed, and the one that stood by too; networks and \
    connections stay as they are: start the agent again, as a service manager does by itself";

/// API requests that wait to be handled; more are kept waiting in their connections.
const MAX_REQUESTS: usize = 64;

/// Runs the agent until it is told to stop by SIGTERM or SIGINT. The data plane stays.
pub fn run(options: AgentOptions) -> anyhow::Result<()> {
    start_log(options.log_format);
    let store = Store::open(&options.data_dir)?;
    // Nobody can connect yet, and other groups than this process's can be let in only while it may do everything.
    let sockets = Sockets::bind(&options)?;
    // Nothing can be started with more than this process keeps.
    let broker = broker::start(&options)?;
    let needed = privileges::of_agent(options.datapath);
    privileges::keep_only(needed)?;
    if options.sandbox {
        confine(&options)?;
    }
    tracing::info!(
        at_most = privileges::names(needed),
        "all other privileges are given up"
    );
    // Two threads: one for the owner of the state, one for the API and gossip beside it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let broker = broker.watch()?;
    let result =
        runtime.block_on(async { Daemon::start(options, store, sockets).await?.serve(broker).await });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// What the agent does not do by itself, it cannot be made to do.
fn confine(options: &AgentOptions) -> anyhow::Result<()> {
    if !privileges::confine_agent(options)? {
        tracing::warn!(
            "this kernel, or a filter of system calls, has no Landlock that would keep files of this host out of reach"
        );
    }
    // A unit of an earlier version may not let it: it bounds the calls by itself.
    if let Err(error) = privileges::forbid_calls(options.datapath) {
        tracing::warn!(
            reason = format!("{error:#}"),
            "the agent can make more system calls than it needs"
        );
    }
    Ok(())
}

fn start_log(format: LogFormat) {
    // The DNS library warns of each forged reply, with the names that workloads ask for.
    let default = || EnvFilter::new("info,hickory_net=error");
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| default());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second agent in one process, as in tests, writes to the log of the first.
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

fn now() -> Now {
    let unix_millis = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |past| past.as_millis() as u64);
    Now {
        instant: Instant::now(),
        unix_millis,
    }
}

struct Daemon {
    options: AgentOptions,
    node_name: String,
    store: Store,
    keys: KeyFile<TunnelKeys>,
    gossip_keys: KeyFile<Ring>,
    identity: Identity,
    membership: Option<Membership>,
    requests: mpsc::Receiver<Request>,
    /// What became of attempts to join, which take a while.
    joins: mpsc::Receiver<join::Attempt>,
    /// What Docker asks of its driver.
    docker: mpsc::Receiver<DockerCommand>,
    join_sender: mpsc::Sender<join::Attempt>,
    host: HostThread,
    names: Names,
    resolvers: ResolverFiles,
    tunnels: TunnelsThread,
    encrypter: Encrypter,
    prober: Prober,
    events: EventLog,
    started: Now,
    /// Whether the host was once compared with what it should be.
    is_ready: bool,
    _api: Api,
    _exposed: Option<Exposed>,
    _plugin: Option<Plugin>,
    /// Follows Docker where it is served, and is told of changes.
    _watcher: Option<Watcher>,
    changes: latest::Sender<u64>,
}

impl Daemon {
    async fn start(options: AgentOptions, store: Store, sockets: Sockets) -> anyhow::Result<Self> {
        let identity = Identity::from_seed(store.identity(rand::random())?);
        let node_name = node_name(&options)?;
        let events = EventLog::default();
        let (request_sender, requests) = mpsc::channel(MAX_REQUESTS);
        let (join_sender, joins) = mpsc::channel(1);
        let Passed {
            docker: door,
            mut kept,
        } = service::passed();
        let names = Names::new(&options.dns, &mut kept)?;
        let host = HostThread::start(&options, kept)?;
        let exposed = match options.metrics {
            Some(address) => Some(Monitoring::new(request_sender.clone()).expose(address).await?),
            None => None,
        };
        let host_facts = HostFacts {
            datapath: host.datapath(),
            names: names::status(&options.dns),
        };
        let api = Api::serve(sockets, request_sender, events.clone(), host_facts)?;
        let (docker_sender, docker) = mpsc::channel(MAX_REQUESTS);
        let plugin = serve_docker(&options.docker_plugin, door, Owner::new(docker_sender.clone()))?;
        let (changes, changed) = latest::channel(0);
        let watcher = plugin.as_ref().map(|plugin| {
            Watcher::start(
                options.docker_socket.clone(),
                plugin.driver(),
                docker_sender,
                changed,
            )
        });
        let encrypter = tunnels::choose(&options)?;
        let mut daemon = Self {
            node_name,
            store,
            keys: KeyFile::of_tunnels(&options.data_dir),
            gossip_keys: KeyFile::of_gossip(&options.data_dir),
            identity,
            membership: None,
            requests,
            joins,
            docker,
            join_sender,
            host,
            names,
            resolvers: ResolverFiles::new(resolv::ROOT),
            tunnels: TunnelsThread::start(&options, encrypter.kind)?,
            encrypter,
            prober: Prober::new(options.health_commands),
            events,
            started: now(),
            is_ready: false,
            options,
            _api: api,
            _exposed: exposed,
            _plugin: plugin,
            _watcher: watcher,
            changes,
        };
        if let Some(mut facts) = daemon.store.cluster()? {
            let ring = daemon.ring(&mut facts)?;
            let membership = daemon.open_membership(facts, ring, false).await?;
            daemon.enter(membership).await?;
        } else {
            // What an agent that has left its cluster since could not remove.
            daemon.clear_host();
        }
        tracing::info!(
            node = %daemon.identity.node().short(),
            name = %daemon.node_name,
            socket = %daemon.options.socket.display(),
            clustered = daemon.membership.is_some(),
            "agent started"
        );
        Ok(daemon)
    }

    async fn serve(mut self, broker: OwnedFd) -> anyhow::Result<()> {
        let broker = Readable::new(broker)?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut watchdog = Watchdog::start();
        loop {
            // Every arm takes one whole message from a channel or waits for a moment, so none loses
            // anything when another wins.
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // It says nothing but that it is gone.
                _ = broker.wait() => anyhow::bail!(WITHOUT_BROKER),
                Some(request) = self.requests.recv() => self.on_request(request).await?,
                Some(attempt) = self.joins.recv() => self.on_join(attempt).await?,
                Some(command) = self.docker.recv() => self.on_docker(command),
                said = self.host.says() => self.on_host(said),
                report = self.tunnels.says() => self.on_tunnels(report),
                result = self.prober.result() => self.on_health(result),
                () = Membership::progress(&mut self.membership) => {}
                () = watchdog.due() => watchdog.at_work(),
            }
            self.carry_out().await?;
        }
        service::stopping();
        tracing::info!("agent stopped; networks and connections stay as they are");
        Ok(())
    }

    async fn on_request(&mut self, request: Request) -> anyhow::Result<()> {
        match (request, &mut self.membership) {
            (Request::Init(responder), None) => self.init(responder).await?,
            (Request::Init(responder), Some(membership)) => responder.send(Err(join::already(membership))),
            (Request::Join(request, responder), None) => self.start_join(request, responder),
            (Request::Join(_, responder), Some(membership)) => responder.send(Err(join::already(membership))),
            (Request::Command(command), Some(membership)) => {
                membership.control.handle_command(command, now())
            }
            (Request::Command(command), None) => self.command_alone(command),
            (Request::Measure(responder), _) => self.measure(responder),
            (Request::Ways(network, responder), _) => {
                self.host.ways(network, move |ways| responder.send(Ok(ways)));
            }
            (Request::Examine(fix, responder), _) => {
                self.host.examine(fix, move |view| responder.send(Ok(view)));
            }
            (Request::Readiness(responder), membership) => {
                let control = membership.as_ref().map(|membership| &membership.control);
                responder.send(Ok(control.map_or(Ok(()), |control| control.readiness())));
            }
        }
        Ok(())
    }

    /// Tells what the owner knows, once the host thread has told what it does.
    fn measure(&self, responder: Responder<Box<Snapshot>>) {
        let control = self.membership.as_ref().map(|membership| &membership.control);
        let mut snapshot = Snapshot {
            node_name: self.node_name.clone(),
            datapath: self.host.datapath(),
            started_unix_millis: self.started.unix_millis,
            cluster: control.map(|control| control.measures(now())).unwrap_or_default(),
            dns: self.names.counts(),
            work: Work::default(),
            traffic: BTreeMap::new(),
            losses: BTreeMap::new(),
        };
        self.host.measure(move |measured| {
            snapshot.work = measured.work;
            snapshot.traffic = measured.traffic;
            snapshot.losses = measured.losses;
            responder.send(Ok(Box::new(snapshot)));
        });
    }

    /// In no cluster, nobody answers: the driver knows what that means.
    fn on_docker(&mut self, command: DockerCommand) {
        if let Some(membership) = &mut self.membership {
            membership.control.handle_docker(command, now());
        }
    }

    fn on_host(&mut self, said: host::Said) {
        let control = self.membership.as_mut().map(|membership| &mut membership.control);
        match (said, control) {
            (host::Said::Report(report), control) => {
                self.names.serve(report.sockets);
                if !std::mem::replace(&mut self.is_ready, true) {
                    service::ready();
                }
                // A device may be there now that was missing.
                self.tunnels.look_again();
                if let Some(control) = control {
                    control.handle_report(report.host, now());
                }
            }
            (host::Said::Counted(order, open), Some(control)) => {
                control.handle_counted(order, open.as_ref(), now())
            }
            (host::Said::Tried(tried), Some(control)) => control.handle_attempts(&tried, now()),
            (host::Said::Counted(..) | host::Said::Tried(_), None) => {}
        }
    }

    fn on_tunnels(&mut self, report: TunnelReport) {
        if let Some(membership) = &mut self.membership {
            membership.control.handle_tunnels(report, now());
        }
    }

    fn on_health(&mut self, result: HealthResult) {
        if let Some(membership) = &mut self.membership {
            membership.control.handle_health(result, now());
        }
    }

    /// Carries out what the control decided, in the order that keeps promises: disk, network, kernel,
    /// answers.
    async fn carry_out(&mut self) -> anyhow::Result<()> {
        let Some(membership) = &mut self.membership else {
            return Ok(());
        };
        let turn = membership.control.take_turn();
        if let Some(keys) = &turn.tunnel_keys {
            tokio::task::block_in_place(|| self.keys.save(keys))
                .context("the agent stops rather than use a key that is not on the disk")?;
        }
        if let Some(ring) = &turn.gossip_keys {
            tokio::task::block_in_place(|| self.gossip_keys.save(ring))
                .context("the agent stops rather than say that it has a key that is not on the disk")?;
        }
        if turn.is_to_commit() {
            // The disk may be slow; the other tasks of this thread go on meanwhile.
            let store = &self.store;
            tokio::task::block_in_place(|| {
                store.commit(&turn.commit, &turn.kept, &turn.bindings, &turn.forget)
            })
            .context("the agent stops rather than promise what is not on the disk")?;
        }
        membership.send(turn.send);
        membership.probe(turn.probe);
        if turn.host_changed {
            let mut state = membership.control.host_state(now());
            self.changes
                .send_modify(|generation| *generation = state.generation);
            self.names.publish(&state);
            // Who is out of the cluster is out of this at once. What needs a device that is still to be made waits for it.
            self.tunnels.apply(state.tunnels.take(), state.tunnel_mtu);
            self.host.apply(state);
            self.resolvers.set(membership.control.resolvers());
        }
        for probe in turn.health_probes {
            self.prober.start(probe);
        }
        // After the state they are asked about.
        turn.counts.into_iter().for_each(|order| self.host.count(order));
        for mut event in turn.events {
            event.time = SystemTime::now().into();
            self.events.push(event);
        }
        for reply in turn.replies {
            reply();
        }
        if membership.control.is_key_old(now()) {
            membership
                .control
                .change_old_key(Secret32::new(rand::random()), now());
        }
        if membership.control.is_out() {
            self.depart().await?;
        }
        Ok(())
    }

    /// Ends the membership: the host is cleared, the disk forgets, and the node is a new one.
    async fn depart(&mut self) -> anyhow::Result<()> {
        tracing::info!("this node is in no cluster any more");
        self.membership = None;
        self.names.clear();
        self.clear_host();
        self.store.reset()?;
        self.keys.forget()?;
        self.gossip_keys.forget()?;
        self.identity = Identity::from_seed(self.store.identity(rand::random())?);
        Ok(())
    }
}

impl Daemon {
    /// Leaves nothing of ours on the host.
    fn clear_host(&mut self) {
        self.tunnels.apply(None, 0);
        self.host.clear();
        self.resolvers.set(BTreeMap::new());
    }
}

/// Where the driver is served because the host has Docker, a failure is no reason to do without the agent.
fn serve_docker(
    wanted: &DockerPlugin,
    passed: Option<UnixListener>,
    owner: Owner,
) -> anyhow::Result<Option<Plugin>> {
    let passed = passed.map(Door::passed).transpose();
    let passed = passed.context("the socket that the service manager has passed cannot be used")?;
    let (opened, asked_for) = match (wanted, passed) {
        (DockerPlugin::Off, _) => return Ok(None),
        (_, Some(door)) => (Ok(door), true),
        (DockerPlugin::At(socket), None) => (Door::open(socket.clone()), true),
        (DockerPlugin::Auto, None) => match docker::default_socket() {
            Some(socket) => (Door::open(socket), false),
            None => return Ok(None),
        },
    };
    match opened {
        Ok(door) => {
            tracing::info!(socket = %door.socket().display(), "Docker's driver is served");
            Ok(Some(Plugin::serve(door, owner)))
        }
        Err(error) if asked_for => Err(error),
        Err(error) => {
            tracing::warn!(reason = format!("{error:#}"), "Docker's driver is not served");
            Ok(None)
        }
    }
}

fn node_name(options: &AgentOptions) -> anyhow::Result<String> {
    let name = match &options.node_name {
        Some(name) => name.clone(),
        None => {
            let host = nix::unistd::gethostname().context("this host has no name")?;
            host.to_string_lossy()
                .split('.')
                .next()
                .unwrap_or_default()
                .to_owned()
        }
    };
    crate::api::types::check_name("a node", &name).map_err(|error| {
        anyhow::anyhow!(
            "{}: {}; give one with --node-name",
            error.message,
            error.help.unwrap_or_default()
        )
    })?;
    Ok(name)
}

/// The address that other nodes reach this one at: as told, or the one this host would send from.
fn advertise(options: &AgentOptions) -> Result<SocketAddr, ApiError> {
    if let Some(address) = options.advertise {
        return Ok(address);
    }
    // Connecting a UDP socket sends nothing; it asks the routing table. The addresses are from the
    // blocks kept for documentation (RFC 5737, RFC 3849).
    let probe = |local: &str, remote: &str| {
        let socket = std::net::UdpSocket::bind(local)?;
        socket.connect(remote)?;
        socket.local_addr()
    };
    let found = probe("0.0.0.0:0", "192.0.2.1:9").or_else(|_| probe("[::]:0", "[2001:db8::1]:9"));
    let found = found
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
    let ip = found.ok_or_else(|| {
        ApiError::unavailable(
            "this host has no default route that would tell which address other nodes reach it at",
        )
        .with_help("start the agent with --advertise IP")
    })?;
    Ok(SocketAddr::new(ip, crate::options::DEFAULT_GOSSIP_PORT))
}
