//! The thread that talks to the kernel: it makes the host what the control wants, and says what came of it.
//!
//! Namespaces are entered and netlink answers waited for here, so that the owner of the state never
//! waits for the kernel. Of several states that wait only the newest is applied.

mod count;
mod examine;
mod owner;
mod sockets;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use weft_lb::Datapath;
use weft_netlink::{
    broker::SocketKind,
    look::{Along, Inside},
    netns::{Netns, NetnsId},
    route::RouteSocket,
};
use weft_overlay::{
    kernel::Kernel,
    plan::{Desired, Gate, Op, Place},
};
use weft_types::{EndpointId, NetworkId};

pub(super) use self::{
    examine::KernelView,
    owner::{HostThread, Order, Report, Said},
};
use super::{entry::Entry, service::Kept, tally::Tally, target, watch::Watch};
use crate::{
    control::{HostReport, HostState, SandboxTables, records::SandboxSpec},
    metrics::Work,
};

/// How often the thread looks for what nobody tells it: sandboxes that are gone, and programs.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often everything the kernel holds is read back, for changes by others that it does not tell of.
const READ_BACK_EVERY: Duration = Duration::from_secs(30);

/// The MTU of the device that carries an underlay address; what Ethernet has where it cannot be told.
pub(super) fn underlay_mtu(address: IpAddr) -> u32 {
    let look = || -> anyhow::Result<Option<u32>> {
        let mut route = RouteSocket::open(&Netns::current()?)?;
        let addresses = route.addresses()?;
        let Some(found) = addresses.iter().find(|found| found.net.addr() == address) else {
            return Ok(None);
        };
        Ok(route
            .links()?
            .into_iter()
            .find(|link| link.index == found.link)
            .map(|link| link.mtu))
    };
    look().ok().flatten().unwrap_or_else(|| {
        tracing::warn!(%address, "no device of this host has the underlay address; an MTU of 1500 is assumed");
        1500
    })
}

struct Host {
    kernel: Kernel,
    datapath: Arc<dyn Datapath>,
    entry: Entry,
    state: Option<HostState>,
    /// Whether it was ever said what should be, if only that nothing should. Until then what the kernel holds
    /// is an earlier agent's, and is neither judged nor touched.
    is_told: bool,
    /// Networks whose DNS sockets are open, and in which namespace.
    served: BTreeMap<NetworkId, NetnsId>,
    /// Sockets of an agent before this one, until it is known which of them are wanted.
    kept: Kept,
    /// Sandboxes that have tables, and what they last had.
    balanced: BTreeMap<String, SandboxTables>,
    tally: Tally,
    /// When it was last said what clients have tried.
    told: Instant,
    work: Work,
    /// Whether somebody else may have changed what is ours since it was last made right.
    suspects: bool,
    /// The interfaces of attached endpoints.
    ifnames: BTreeMap<EndpointId, String>,
    /// When the kernel was last read back.
    read_back: Instant,
    /// When it was last looked for what nobody tells.
    looked: Instant,
    watch: Watch,
    said: UnboundedSender<Said>,
}

impl Host {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(LOOK_EVERY.saturating_sub(self.looked.elapsed())) {
                Ok(first) => {
                    let mut changed = false;
                    for order in std::iter::once(first).chain(orders.try_iter()) {
                        match order {
                            Order::LookAhead(sandboxes) => {
                                let along = Arc::new(LookAlong(Arc::clone(&self.datapath)));
                                self.kernel.look_ahead(sandboxes, along);
                                continue;
                            }
                            Order::Apply(state) => (self.state, self.is_told) = (Some(*state), true),
                            Order::Clear => (self.state, self.is_told) = (None, true),
                            Order::Count(order) => {
                                self.count(order);
                                continue;
                            }
                            Order::Measure(tell) => {
                                tell(self.measure());
                                continue;
                            }
                            Order::Examine { fix, tell } => {
                                tell(self.examine(fix));
                                continue;
                            }
                            Order::Ways { network, tell } => {
                                tell(self.ways(network));
                                continue;
                            }
                            Order::Look => self.suspect(),
                            // Those that we deleted ourselves are forgotten by now.
                            Order::Damaged { network, link } if !self.kernel.has_link(network, link) => {
                                continue;
                            }
                            Order::Damaged { .. } => self.suspect(),
                            Order::End => return,
                        }
                        changed = true;
                    }
                    if changed {
                        self.apply();
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tell();
        }
    }

    /// Has the datapath end what was idle for too long.
    fn expire(&self) {
        let sandboxes = self.state.iter().flat_map(|state| &state.sandboxes);
        for SandboxTables { sandbox, tables } in sandboxes {
            let mut services = tables.iter().flat_map(|table| table.services.iter());
            if services.all(|service| service.idle_timeout.is_none()) || !target::still_there(sandbox) {
                continue;
            }
            let name = sandbox_name(sandbox);
            let expired = Netns::open(&sandbox.path)
                .map_err(|error| sentence(&error))
                .and_then(|netns| {
                    let expired = self.datapath.expire(&name, &netns, Instant::now());
                    expired.map_err(|error| sentence(&error))
                });
            match expired {
                Ok(0) => {}
                Ok(count) => tracing::debug!(sandbox = name, count, "idle connections were ended"),
                Err(error) => tracing::warn!(sandbox = name, %error, "idle connections are not ended"),
            }
        }
    }

    /// Applies the state again if a sandbox that it names is gone, or if it is time to read back the kernel.
    fn look(&mut self) {
        self.looked = Instant::now();
        self.expire();
        self.forget_gone();
        let Some(state) = &self.state else { return };
        let gone = !vanished(state).is_empty();
        let due = self.read_back.elapsed() >= READ_BACK_EVERY || !self.datapath.is_whole();
        if due {
            self.suspect();
        }
        if gone || due {
            self.apply();
        }
    }

    fn suspect(&mut self) {
        self.suspects = true;
        self.read_back();
    }

    fn read_back(&mut self) {
        self.read_back = Instant::now();
        self.work.read_backs += 1;
        self.kernel.resync();
        self.datapath.resync();
        self.entry.resync();
    }

    /// What the kernel is to hold, and what has to be reported of how it came to that.
    fn desired(&mut self) -> (Desired, HostReport) {
        let mut report = HostReport::default();
        let mut desired = Desired::default();
        if let Some(state) = &self.state {
            report.generation = state.generation;
            report.vanished = vanished(state);
            desired = state.overlay.clone();
            for network in desired.networks.values_mut() {
                network.endpoints.retain(|id, _| !report.vanished.contains(id));
            }
            report.problems.clone_from(&state.entry_problems);
        }
        self.entry.step_aside(&self.kernel, &mut desired, &mut report);
        (desired, report)
    }

    fn apply(&mut self) {
        let begun = Instant::now();
        let before = self.work.changes;
        let (desired, mut report) = self.desired();
        let sandboxes = self.state.iter().flat_map(|state| state.sandboxes.clone());
        let sandboxes = sandboxes.collect();
        self.let_go_of_sockets(&desired);
        self.listen(&desired);
        self.reconcile(&desired, &mut report);
        report.docker_lets_out = self.kernel.docker() == Some(Gate::Open);
        self.balance(sandboxes, &mut report);
        let entries = self.state.as_ref().map(|state| &state.entries[..]);
        self.entry
            .balance(&self.kernel, entries.unwrap_or_default(), &desired, &mut report);
        let sockets = self.open_sockets(&desired, &mut report);
        self.watch(&desired, &mut report);
        self.work.applies += 1;
        self.work.apply_time += begun.elapsed();
        self.work.errors += report.problems.len() as u64 + report.failed.len() as u64;
        if std::mem::take(&mut self.suspects) {
            self.work.repairs += self.work.changes - before;
        }
        // The owner is gone only when the process ends.
        let _ = self.said.send(Said::Report(Report {
            host: report,
            sockets,
        }));
    }

    fn reconcile(&mut self, desired: &Desired, report: &mut HostReport) {
        // At a start both edges have to look into all sandboxes.
        let along = LookAlong(Arc::clone(&self.datapath));
        let along = self.balanced.is_empty().then_some(&along as &dyn Along);
        let errors = match self.kernel.reconcile_with(desired, along) {
            Ok(outcome) => {
                self.work.changes += outcome.ops_done as u64;
                outcome.errors
            }
            Err(error) => {
                report
                    .problems
                    .push(format!("the kernel's state cannot be read: {}", sentence(&error)));
                return;
            }
        };
        for error in errors {
            let sentence = sentence(&error);
            match error.op {
                Op::Endpoint(_, endpoint, _) if !self.ifnames.contains_key(&endpoint) => {
                    report.failed.entry(endpoint).or_insert(sentence);
                }
                // An endpoint of a network that is not whole would find only some of the others.
                Op::Network(network, _) => {
                    let endpoints = desired.networks.get(&network).into_iter();
                    let new = endpoints.flat_map(|network| network.endpoints.keys());
                    for endpoint in new.filter(|id| !self.ifnames.contains_key(id)) {
                        report.failed.entry(*endpoint).or_insert(sentence.clone());
                    }
                    report.problems.push(sentence);
                }
                _ => report.problems.push(sentence),
            }
        }
        let locals = desired.networks.iter().flat_map(|(network, spec)| {
            spec.endpoints
                .iter()
                .map(move |(id, endpoint)| (*id, (*network, endpoint)))
        });
        let locals: BTreeMap<EndpointId, _> = locals.collect();
        self.ifnames.retain(|id, _| locals.contains_key(id));
        for (id, (network, endpoint)) in locals {
            if report.failed.contains_key(&id) || self.ifnames.contains_key(&id) {
                continue;
            }
            let name = match &endpoint.place {
                Place::Sandbox(sandbox) | Place::Host(sandbox) => self
                    .kernel
                    .ifname(network, id)
                    .map(str::to_owned)
                    .ok_or_else(|| format!("its interface is not in {}", sandbox.path.display())),
                Place::Engine { ifname, .. } => Ok(ifname.clone()),
            };
            match name {
                Ok(name) => drop(self.ifnames.insert(id, name)),
                Err(reason) => drop(report.failed.insert(id, reason)),
            }
        }
        report.attached.clone_from(&self.ifnames);
    }

    fn balance(&mut self, sandboxes: Vec<SandboxTables>, report: &mut HostReport) {
        let datapath = &*self.datapath;
        let mut before = std::mem::take(&mut self.balanced);
        let named = sandboxes.into_iter();
        let named: Vec<_> = named
            .map(|wanted| (sandbox_name(&wanted.sandbox), wanted))
            .collect();
        let new = named.iter().filter(|(name, _)| !before.contains_key(name));
        let new: Vec<_> = new
            .map(|(name, wanted)| (name.as_str(), Path::new(&wanted.sandbox.path)))
            .collect();
        if new.len() > 1 {
            datapath.look_into(&new);
        }
        for (name, wanted) in named {
            let SandboxTables { sandbox, tables } = &wanted;
            if datapath.is_synced(&name, tables) {
                before.remove(&name);
                self.balanced.insert(name, wanted);
                continue;
            }
            let netns = Netns::open(&sandbox.path);
            // Of one that is gone nothing is kept: the next namespace may get its name.
            let is_it = |netns: &Netns| (netns.id().dev, netns.id().ino) == (sandbox.device, sandbox.inode);
            if !netns
                .as_ref()
                .map_or_else(|_| target::still_there(sandbox), is_it)
            {
                continue;
            }
            before.remove(&name);
            let synced = netns.map_err(|error| sentence(&error)).and_then(|netns| {
                datapath
                    .sync(&name, &netns, tables)
                    .map_err(|error| sentence(&error))
            });
            match synced {
                Ok(written) => self.work.changes += (written.changed + written.removed) as u64,
                Err(error) => {
                    report.unbalanced.get_or_insert_with(|| error.clone());
                    report.problems.push(error);
                }
            }
            self.balanced.insert(name, wanted);
        }
        for (name, SandboxTables { sandbox, tables }) in before {
            let netns = target::still_there(&sandbox)
                .then(|| Netns::open(&sandbox.path).ok())
                .flatten();
            if let Some(netns) = &netns {
                let services = tables.iter().flat_map(|table| table.services.iter());
                let services: Vec<_> = services.map(|service| &**service).collect();
                match datapath.attempts_of(&name, netns, &services) {
                    Ok(last) => self.tally.take(&name, last),
                    Err(error) => {
                        tracing::debug!(sandbox = name, error = sentence(&error), "counters are lost")
                    }
                }
            }
            self.tally.end(&name);
            if let Err(error) = datapath.remove(&name, netns.as_ref()) {
                report.problems.push(sentence(&error));
            }
        }
        // What an earlier agent left for sandboxes that went while there was none.
        if report.unbalanced.is_none()
            && let Err(error) = datapath.retain(&self.balanced.keys().cloned().collect())
        {
            report.problems.push(sentence(&error));
        }
    }

    /// Listens to the namespaces of networks that are not watched yet, where an earlier agent made them: the look at them is then what the
    /// watch begins with.
    fn listen(&mut self, desired: &Desired) {
        for network in desired.networks.keys().copied() {
            if self.watch.watched(Some(network)).is_some() {
                continue;
            }
            // Whatever is wrong with it, the look will tell.
            if let Ok(netns) = self.kernel.find_namespace(network) {
                self.watch.listen(Some(network), &netns);
            }
        }
    }

    /// Watches the host and every network's namespace for changes by others.
    fn watch(&mut self, desired: &Desired, report: &mut HostReport) {
        self.watch
            .retain(|network| desired.networks.contains_key(&network));
        let networks = desired.networks.keys().copied().map(Some);
        for what in std::iter::once(None).chain(networks) {
            let watched = self.watch.watched(what);
            if watched
                .is_some_and(|watched| what.is_none_or(|id| self.kernel.namespace_id(id) == Some(watched)))
            {
                continue;
            }
            let netns = match what {
                None => Netns::current().map(Some),
                Some(network) => self.kernel.namespace(network),
            };
            let seen = what.and_then(|network| self.kernel.take_links(network));
            let watched = match netns {
                Ok(Some(netns)) => self.watch.watch(what, &netns, seen),
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = watched {
                let error = format!("{error:#}");
                report
                    .problems
                    .push(format!("changes by others are not noticed at once: {error}"));
            }
        }
        self.watch.stop_listening();
    }
}

fn vanished(state: &HostState) -> Vec<EndpointId> {
    let locals = state
        .overlay
        .networks
        .values()
        .flat_map(|network| &network.endpoints);
    locals
        .filter(|(_, endpoint)| {
            let sandbox = endpoint.place.sandbox();
            sandbox.is_some_and(|sandbox| !target::is_at(&sandbox.path, sandbox.id.dev, sandbox.id.ino))
        })
        .map(|(id, _)| *id)
        .collect()
}

/// Has the datapath look into sandboxes where the overlay does.
struct LookAlong(Arc<dyn Datapath>);

impl Along for LookAlong {
    fn sockets(&self) -> &[SocketKind] {
        self.0.sockets()
    }

    fn look(&self, inside: Inside<'_>) {
        let id = inside.netns.id();
        self.0.look(&name_of(id.dev, id.ino), inside);
    }
}

/// The same after a restart of the agent, and that of another namespace only once this one is gone.
fn sandbox_name(sandbox: &SandboxSpec) -> String {
    name_of(sandbox.device, sandbox.inode)
}

fn name_of(device: u64, inode: u64) -> String {
    format!("{device}-{inode}")
}

/// An error with its causes.
pub(super) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
