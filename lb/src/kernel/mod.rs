//! The portable datapath: nf_tables in each client's own network namespace. It also works without root, inside a user
//! namespace.
//!
//! Least connection follows the connections of each sandbox that has such a service: every event of connection
//! tracking lays out the slots anew (several that wait are taken in together). One thread does so for all sandboxes;
//! it starts with the first such service and ends with the datapath. While a sandbox is watched, sockets of ours keep
//! its namespace alive: call [`Datapath::remove`] when a sandbox goes.

mod adopt;
mod attempts;
mod batch;
mod choose;
mod delta;
mod ebpf;
mod flows;
mod linger;
mod program;
mod ranges;
mod sandbox;
mod shards;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    error::Error,
    io::{self, PipeReader},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use weft_netlink::{
    conntrack::{Conntrack, Flow, TcpState},
    netns::Netns,
    nft::{Family, Nft, Table, Transaction},
};
use weft_types::{EndpointId, ServiceId};

pub use self::{
    choose::{Choice, ChoiceError, Chosen, choose},
    ebpf::{EbpfDatapath, EbpfError},
};
use self::{
    flows::{AllLoads, Index},
    linger::Lingering,
    program::Side,
    sandbox::{Sandbox, cut_stale, is_counted},
    watch::{Shared, Watch},
};
use crate::{Attempts, ClientTable, Datapath, DatapathError, Service, Written};

const EVENTS_SETTING: &str = "net/netfilter/nf_conntrack_events";

/// Translates virtual addresses with nf_tables.
#[derive(Debug)]
pub struct NftDatapath {
    shared: Arc<Shared>,
    follower: Mutex<Follower>,
    lingering: Lingering,
}

#[derive(Debug)]
enum Follower {
    NotYet(PipeReader),
    Running(JoinHandle<()>),
    Ended,
}

#[derive(Debug, Default)]
struct State {
    side: Side,
    sandboxes: BTreeMap<String, Sandbox>,
    loads: AllLoads,
}

type Failure = Box<dyn Error + Send + Sync>;

impl NftDatapath {
    /// Touches nothing yet; each sandbox is read at its first sync.
    pub fn new() -> io::Result<Self> {
        Self::at(Side::Client)
    }

    /// The same for connections that come into a namespace instead of those that it makes. Services may have
    /// their addresses in common there, as long as no two have the same port: the rest of an address is nobody's.
    pub fn entry() -> io::Result<Self> {
        Self::at(Side::Entry)
    }

    fn at(side: Side) -> io::Result<Self> {
        let (reader, bell) = io::pipe()?;
        let state = State {
            side,
            ..State::default()
        };
        let shared = Arc::new(Shared::new(state, bell));
        Ok(Self {
            shared,
            follower: Mutex::new(Follower::NotYet(reader)),
            lingering: Lingering::default(),
        })
    }

    /// How many open connections of a sandbox are translated by rules; none at all if it has no rules.
    fn translated(netns: &Netns) -> Result<Option<usize>, Failure> {
        let tables = adopt::read(&Nft::open_in(netns)?)?;
        if tables.is_empty() {
            return Ok(None);
        }
        let vips: BTreeSet<IpAddr> = tables.values().flat_map(adopt::FoundTable::vips).collect();
        let flows = Conntrack::open_in(netns)?.flows()?;
        let is_open = |flow: &&Flow| {
            vips.contains(&flow.original.dst) && flow.reply.src != flow.original.dst && flow.is_open()
        };
        Ok(Some(flows.iter().filter(is_open).count()))
    }

    fn sync_inner(&self, name: &str, netns: &Netns, tables: &[ClientTable]) -> Result<Written, Failure> {
        if self.shared.lock().is_synced(name, Some(netns), tables) {
            return Ok(Written::default());
        }
        let lingering = self.lingering.take(name, netns.id());
        let has_lingered = lingering.is_some();
        let (nft, conntrack) = match lingering {
            Some(sockets) => sockets,
            None => open(netns)?,
        };
        let mut state = self.shared.lock();
        let state = &mut *state;
        let adopt = state
            .sandboxes
            .get(name)
            .is_none_or(|sandbox| sandbox.netns != netns.id());
        if adopt {
            state.forget(name);
            state.sandboxes.insert(
                name.to_owned(),
                Sandbox::adopt(name, netns.id(), state.side, &nft)?,
            );
        }
        if let Some(sandbox) = state.sandboxes.get_mut(name).filter(|sandbox| sandbox.unread) {
            sandbox.reread(&nft)?;
        }
        let services = tables.iter().flat_map(|table| table.services.iter());
        let counted: Vec<Arc<Service>> = services.filter(|service| is_counted(service)).cloned().collect();
        let is_counting = !counted.is_empty();
        let mut touched = BTreeSet::new();
        if is_counting {
            state.count(name, netns, counted, &mut touched)?;
        }
        let Some(sandbox) = state.sandboxes.get_mut(name) else {
            return Ok(Written::default());
        };
        sandbox.synced = None;
        let outcome = match sandbox.sync(&nft, tables, &state.loads) {
            Ok(outcome) => outcome,
            Err(error) => {
                // Part of it may be there: read it back next time.
                state.forget(name);
                return Err(error.into());
            }
        };
        if !is_counting && let Some(mut watch) = sandbox.watch.take() {
            watch.open.clear(&mut state.loads);
            restore_setting(netns, &watch);
        }
        state.drop_unused_loads();
        let mut written = outcome.written;
        let closed = state.side == Side::Entry && !outcome.gone.is_empty();
        if outcome.may_be_stale || closed {
            let vips = if closed { outcome.gone } else { HashSet::new() };
            let all: Vec<Arc<Service>>;
            let looked_at = match state.side {
                Side::Client => &outcome.changed,
                // They share their addresses.
                Side::Entry => {
                    all = tables
                        .iter()
                        .flat_map(|table| table.services.iter())
                        .cloned()
                        .collect();
                    &all
                }
            };
            written.cut = cut_stale(&conntrack, looked_at, state.side, vips)?;
        }
        if has_lingered || !written.is_nothing() {
            self.lingering.keep(name, netns.id(), (nft, conntrack));
        }
        // The choices depend on connections that were only now found. What an earlier agent left goes on as it is
        // until the next connection: a restart on an unchanged host writes nothing.
        if !adopt {
            state.refresh(&touched);
        }
        if is_counting {
            self.follow()?;
        }
        if let Some(sandbox) = state.sandboxes.get_mut(name) {
            sandbox.synced = Some(tables.to_vec());
        }
        Ok(written)
    }

    fn remove_inner(&self, name: &str, netns: Option<&Netns>) -> Result<(), Failure> {
        let watch = self.shared.lock().forget(name);
        self.shared.ring();
        let Some(netns) = netns else {
            self.lingering.forget(name);
            return Ok(());
        };
        if let Some(watch) = &watch {
            restore_setting(netns, watch);
        }
        let (nft, conntrack) = match self.lingering.take(name, netns.id()) {
            Some(sockets) => sockets,
            None => open(netns)?,
        };
        let mut change = Transaction::new();
        for table in adopt::read(&nft)?.into_keys() {
            change.delete_table(&Table::new(Family::Inet, table));
        }
        nft.commit(&change)?;
        self.lingering.close(name, netns.id(), (nft, conntrack));
        Ok(())
    }

    /// Starts the thread, or has it look at the new state.
    fn follow(&self) -> io::Result<()> {
        let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        *follower = match std::mem::replace(&mut *follower, Follower::Ended) {
            Follower::NotYet(reader) => {
                let shared = Arc::clone(&self.shared);
                let thread = std::thread::Builder::new().name("weft-lb".to_owned());
                Follower::Running(thread.spawn(move || watch::run(&shared, reader))?)
            }
            other => other,
        };
        self.shared.ring();
        Ok(())
    }
}

impl Datapath for NftDatapath {
    fn name(&self) -> &'static str {
        "nft"
    }

    fn sync(&self, sandbox: &str, netns: &Netns, tables: &[ClientTable]) -> Result<Written, DatapathError> {
        let written = self.sync_inner(sandbox, netns, tables);
        written.map_err(DatapathError::of("translate virtual addresses", sandbox))
    }

    fn is_synced(&self, sandbox: &str, tables: &[ClientTable]) -> bool {
        self.shared.lock().is_synced(sandbox, None, tables)
    }

    fn remove(&self, sandbox: &str, netns: Option<&Netns>) -> Result<(), DatapathError> {
        let removed = self.remove_inner(sandbox, netns);
        removed.map_err(DatapathError::of(
            "take out the translation of virtual addresses",
            sandbox,
        ))
    }

    fn resync(&self) {
        for sandbox in self.shared.lock().sandboxes.values_mut() {
            sandbox.synced = None;
            sandbox.unread = true;
        }
    }

    fn connections(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, u64>> {
        let state = self.shared.lock();
        let known: Vec<&Arc<Service>> = state
            .sandboxes
            .values()
            .flat_map(Sandbox::services)
            .filter(|known| known.id == service && is_counted(known))
            .collect();
        let loads = state.loads.get(&service);
        let open = |endpoint| loads.map_or(0, |loads| loads.open(endpoint));
        let backends = known.iter().flat_map(|service| &service.backends);
        let open = backends
            .map(|backend| (backend.endpoint, open(backend.endpoint)))
            .collect();
        (!known.is_empty()).then_some(open)
    }

    fn count(
        &self,
        sandbox: &str,
        netns: &Netns,
        services: &[&Service],
    ) -> Result<BTreeMap<EndpointId, u64>, DatapathError> {
        let followed: BTreeSet<ServiceId> = services
            .iter()
            .filter(|service| is_counted(service))
            .map(|service| service.id)
            .collect();
        // To a scheduler it is the end of a connection that one side closes it; to who asks, that both have.
        let is_left = |service, flow: &Flow| !(followed.contains(&service) && flow.is_open());
        let side = self.shared.lock().side;
        count(netns, services, side, is_left).map_err(DatapathError::of("count connections", sandbox))
    }

    fn attempts_of(
        &self,
        sandbox: &str,
        netns: &Netns,
        services: &[&Service],
    ) -> Result<BTreeMap<EndpointId, Attempts>, DatapathError> {
        attempts::read(netns, services).map_err(DatapathError::of("read the counters", sandbox))
    }
}

impl Drop for NftDatapath {
    fn drop(&mut self) {
        self.shared.stop();
        let follower = self.follower.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Follower::Running(thread) = std::mem::replace(follower, Follower::Ended)
            && thread.join().is_err()
        {
            tracing::error!("the thread that follows connections had panicked");
        }
    }
}

impl State {
    /// Whether a sandbox has just this already, so that there is no reason to enter it. If its connections are to be counted and are
    /// not, there is one.
    fn is_synced(&self, name: &str, netns: Option<&Netns>, tables: &[ClientTable]) -> bool {
        let is_it = |sandbox: &&Sandbox| netns.is_none_or(|netns| sandbox.netns == netns.id());
        let sandbox = self.sandboxes.get(name).filter(is_it);
        sandbox.is_some_and(|sandbox| {
            sandbox.synced.as_deref() == Some(tables) && (sandbox.watch.is_some() || !sandbox.is_counting())
        })
    }

    /// Sees to it that the connections of these services in a sandbox are counted from now on.
    fn count(
        &mut self,
        name: &str,
        netns: &Netns,
        services: Vec<Arc<Service>>,
        touched: &mut BTreeSet<ServiceId>,
    ) -> Result<(), Failure> {
        let Some(sandbox) = self.sandboxes.get_mut(name) else {
            return Ok(());
        };
        let watch = match &mut sandbox.watch {
            Some(watch) => watch,
            empty @ None => {
                let setting_before = set_events(netns);
                let (nft, conntrack) = open(netns)?;
                let mut watch = Watch::open(netns, nft, conntrack)?;
                watch.setting_before = setting_before;
                empty.insert(watch)
            }
        };
        if watch.counted != services {
            watch.index = Index::of(services.iter().map(|service| &**service), self.side);
            watch.counted = services;
            watch.recount(&mut self.loads, touched)?;
        }
        Ok(())
    }

    /// Forgets a sandbox and its part in the loads.
    fn forget(&mut self, name: &str) -> Option<Watch> {
        let mut watch = self.sandboxes.remove(name)?.watch?;
        watch.open.clear(&mut self.loads);
        self.drop_unused_loads();
        Some(watch)
    }

    fn drop_unused_loads(&mut self) {
        if self.loads.is_empty() {
            return;
        }
        let used: BTreeMap<ServiceId, BTreeSet<EndpointId>> = self
            .sandboxes
            .values()
            .flat_map(Sandbox::services)
            .filter(|service| is_counted(service))
            .map(|service| {
                (
                    service.id,
                    service.backends.iter().map(|backend| backend.endpoint).collect(),
                )
            })
            .collect();
        self.loads.retain(|service, loads| match used.get(service) {
            Some(backends) => {
                loads.retain(|endpoint| backends.contains(&endpoint));
                true
            }
            None => false,
        });
    }
}

/// Connections that are not over, of those that `counts_in` takes.
fn count(
    netns: &Netns,
    services: &[&Service],
    side: Side,
    counts_in: impl Fn(ServiceId, &Flow) -> bool,
) -> Result<BTreeMap<EndpointId, u64>, Failure> {
    let index = Index::of(services.iter().copied(), side);
    let (_, conntrack) = open(netns)?;
    let mut counts = BTreeMap::new();
    for flow in conntrack.flows()? {
        if flow.tcp_state != Some(TcpState::Closed)
            && let Some((service, endpoint)) = index.find(&flow)
            && counts_in(service, &flow)
        {
            *counts.entry(endpoint).or_default() += 1;
        }
    }
    Ok(counts)
}

fn open(netns: &Netns) -> Result<(Nft, Conntrack), Failure> {
    Ok((Nft::open_in(netns)?, Conntrack::open_in(netns)?))
}

/// Without it the kernel sends no end of connections that began while nobody listened, as during an agent's
/// restart. Returns what it was if it was changed.
fn set_events(netns: &Netns) -> Option<String> {
    // The host's settings are its own, if it is a client itself.
    if Netns::current().is_ok_and(|host| host.id() == netns.id()) {
        return None;
    }
    let before = netns.sysctls(&[EVENTS_SETTING]).ok()?.pop()?;
    if before.trim() == "1" {
        return None;
    }
    // Where it is not allowed, counting anew from time to time has to do.
    netns.set_sysctls(&[(EVENTS_SETTING, "1")]).ok().map(|()| before)
}

fn restore_setting(netns: &Netns, watch: &Watch) {
    if let Some(before) = &watch.setting_before {
        let _ = netns.set_sysctls(&[(EVENTS_SETTING, before.trim())]);
    }
}
