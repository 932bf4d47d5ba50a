//! The fast datapath: programs at the root control group translate what sockets are told to connect to.
//!
//! An established connection is then one between client and backend, and costs nothing per packet. Programs know a
//! sandbox by its network namespace and do nothing for sockets of others. They see every socket of this machine that
//! is made in a sandbox, whatever its control group; they do not see what a sandbox forwards for virtual machines, raw
//! sockets and SCTP. A sandbox answers pings to a virtual address itself: the address is a local route there.
//!
//! Maps and links have names on a BPF file system in the run directory. They outlive the agent, and the next one
//! adopts them. With the last sandbox everything goes.
//!
//! Differences to nf_tables: connections are counted for every scheduler, exactly; sandboxes take turns in one
//! rotation; a connected datagram socket whose backend is gone gets an error once and has to be connected again;
//! datagrams of sockets that are not connected stay with a backend while they pause for less than a minute, and the
//! last such conversation of a socket counts as an open connection. If such a socket talks to a backend directly too,
//! at the same port, the backend's answers look as if they came from the virtual address.

mod layout;
mod names;
mod program;
mod sockets;
mod table;
mod taken;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use weft_netlink::{
    bpf::{BpfError, Link, Loaded, Pins},
    netns::{Netns, NetnsId},
    route::{Batch, LocalRoute, RouteSocket},
};
use weft_types::{EndpointId, ServiceId};

use self::{
    names::adopt_maps,
    table::{Maps, Table, TableError},
    taken::{Programs, Taken},
};
use super::{Failure, program::fnv};
use crate::{Attempts, ClientTable, Datapath, DatapathError, Written};

/// The protocol number of our routes (`ip route` shows `proto 119`), as everywhere in Weft.
pub(super) const ROUTE_PROTOCOL: u8 = 119;

/// Why this kernel cannot be used with eBPF.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// There is no control group of version 2 to attach to.
    #[error("the root control group of version 2 cannot be seen, as in a container of one's own")]
    NoCgroup,
    /// The root control group cannot be opened.
    #[error("cannot open the root control group at {}", .path.display())]
    Cgroup {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a map, a program or a link.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

/// Translates virtual addresses with eBPF.
#[derive(Debug)]
pub struct EbpfDatapath {
    dir: PathBuf,
    cgroup: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None while nobody needs them: they take time to make, and memory.
    maps: Option<Maps>,
    programs: Programs,
    /// Where maps and links have their names; none while no sandbox has services.
    pins: Option<Pins>,
    /// The attached programs, by the names of their links; kept, so that they go on if somebody takes the names away.
    links: HashMap<String, Link>,
    /// Whether somebody else may have changed what all sandboxes share.
    is_suspect: bool,
    /// None after an error: it is read again.
    table: Option<Table>,
    /// The losses that the next table begins with.
    losses: u64,
    sandboxes: HashMap<String, Sandbox>,
    /// What was seen of sandboxes that are about to be synced.
    seen: HashMap<String, Seen>,
}

/// What is found in a sandbox that nothing is known of yet.
#[derive(Debug)]
pub(super) struct Seen {
    netns: NetnsId,
    cookie: u64,
    /// Unknown where they cannot be read.
    routes: Option<BTreeSet<IpAddr>>,
}

/// What this agent knows of a sandbox.
#[derive(Debug)]
struct Sandbox {
    netns: NetnsId,
    cookie: u64,
    /// The virtual addresses that are routed to itself; unknown until read.
    routes: Option<BTreeSet<IpAddr>>,
    /// Of which addresses that was.
    routed: Option<(u64, u64)>,
    /// Up to which loss of backends its sockets were looked through.
    looked: u64,
    /// What it was last given, if all of that is there.
    synced: Option<Vec<ClientTable>>,
    /// When its sockets were last looked through for such as were idle for too long.
    expired: Option<Instant>,
}

impl Sandbox {
    fn of(seen: Seen) -> Self {
        Self {
            netns: seen.netns,
            cookie: seen.cookie,
            routes: seen.routes,
            routed: None,
            looked: 0,
            synced: None,
            expired: None,
        }
    }
}

impl EbpfDatapath {
    /// Finds out whether the kernel takes the programs, and adopts what an earlier agent left in `dir`, a folder of this datapath's own.
    /// On a kernel that cannot it fails, and nothing has changed.
    pub fn open(dir: &Path) -> Result<Self, EbpfError> {
        let path = root_cgroup().ok_or(EbpfError::NoCgroup)?;
        let cgroup = File::open(&path).map_err(|source| EbpfError::Cgroup { path, source })?;
        let pins = Pins::find(dir);
        let adopted = match &pins {
            Some(pins) => adopt_maps(pins)?,
            None => None,
        };
        let is_adopted = adopted.is_some();
        let mut state = State {
            maps: adopted,
            programs: Programs::new(),
            pins: None,
            links: HashMap::new(),
            is_suspect: false,
            table: None,
            losses: 1,
            sandboxes: HashMap::new(),
            seen: HashMap::new(),
        };
        let taken = Taken::of(dir, &state.programs);
        match pins {
            Some(pins) if is_adopted => {
                state.link(&pins, &cgroup)?;
                state.pins = Some(pins);
            }
            Some(pins) => {
                tracing::warn!("what an earlier agent left is of another layout and is replaced");
                state.load()?;
                pins.unmount()?;
            }
            // Nobody needs them yet.
            None if taken.is_known() => {}
            None => drop(state.load()?),
        }
        taken.note();
        Ok(Self {
            dir: dir.to_owned(),
            cgroup,
            state: Mutex::new(state),
        })
    }

    /// Whether there is something in `dir`.
    pub(super) fn is_at(dir: &Path) -> bool {
        Pins::find(dir).is_some()
    }

    /// What matters of a sandbox, by a socket of it and its local routes of ours.
    pub(super) fn look(netns: &Netns, socket: &RouteSocket, local: &[LocalRoute]) -> Option<Seen> {
        let routes = local.iter().filter(|route| is_own(route)).map(|route| route.to);
        Some(Seen {
            netns: netns.id(),
            cookie: socket.cookie().ok()?,
            routes: Some(routes.collect()),
        })
    }

    /// What the next sync of a sandbox is to find there.
    pub(super) fn expect(&self, name: &str, seen: Seen) {
        self.lock().seen.insert(name.to_owned(), seen);
    }

    /// Whether that is known.
    pub(super) fn expects(&self, name: &str) -> bool {
        self.lock().seen.contains_key(name)
    }

    /// Takes out what is in a sandbox itself.
    pub(super) fn leave(netns: &Netns) -> Result<(), Failure> {
        let mut socket = RouteSocket::open(netns)?;
        let mut batch = Batch::new();
        batch.add(own_routes(&mut socket)?.into_iter().map(LocalRoute::delete));
        if !batch.is_empty() {
            socket.execute(batch)?;
        }
        Ok(())
    }

    /// Takes out everything that a datapath left in `dir`.
    pub fn clear(dir: &Path) -> Result<(), EbpfError> {
        Taken::forget(dir);
        Ok(Pins::find(dir).map_or(Ok(()), Pins::unmount)?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync_inner(&self, name: &str, netns: &Netns, tables: &[ClientTable]) -> Result<Written, Failure> {
        let mut state = self.lock();
        let state = &mut *state;
        let cookie = state.know(name, netns)?;
        if state.is_synced(name, tables) {
            return Ok(Written::default());
        }
        if tables.iter().all(|table| table.services.is_empty()) {
            let removed = state.table()?.services_of(cookie);
            state.route(name, netns, BTreeSet::new());
            state.forget(&[cookie])?;
            if let Some(sandbox) = state.sandboxes.get_mut(name) {
                sandbox.synced = Some(tables.to_vec());
            }
            return Ok(Written {
                removed,
                ..Written::default()
            });
        }
        if std::mem::take(&mut state.is_suspect) || state.pins.is_none() {
            state.establish(&self.dir, &self.cgroup)?;
        }
        let mut written =
            state.write(|table, maps| table.sync(maps, cookie, hash(name), tables, Instant::now()))?;
        let addresses = state.table()?.addresses(cookie);
        let routed = state.sandboxes.get(name).and_then(|sandbox| sandbox.routed);
        if addresses.is_none() || routed != addresses {
            let vips = state.table()?.vips_of(cookie);
            state.route(name, netns, vips);
            if let Some(sandbox) = state.sandboxes.get_mut(name) {
                sandbox.routed = addresses.filter(|_| sandbox.routes.is_some());
            }
        }
        written.cut = state.cut(name, netns)?;
        if let Some(sandbox) = state.sandboxes.get_mut(name) {
            sandbox.synced = Some(tables.to_vec());
        }
        Ok(written)
    }

    fn remove_inner(&self, name: &str, netns: Option<&Netns>) -> Result<(), Failure> {
        let mut state = self.lock();
        if let Some(netns) = netns {
            state.know(name, netns)?;
            state.route(name, netns, BTreeSet::new());
        }
        state.sandboxes.remove(name);
        let cookies = state.table()?.cookies(|found| found == hash(name));
        state.forget(&cookies)
    }
}

impl Datapath for EbpfDatapath {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn sync(&self, sandbox: &str, netns: &Netns, tables: &[ClientTable]) -> Result<Written, DatapathError> {
        let written = self.sync_inner(sandbox, netns, tables);
        written.map_err(DatapathError::of("translate virtual addresses", sandbox))
    }

    fn is_synced(&self, sandbox: &str, tables: &[ClientTable]) -> bool {
        self.lock().is_synced(sandbox, tables)
    }

    fn remove(&self, sandbox: &str, netns: Option<&Netns>) -> Result<(), DatapathError> {
        let removed = self.remove_inner(sandbox, netns);
        removed.map_err(DatapathError::of(
            "take out the translation of virtual addresses",
            sandbox,
        ))
    }

    fn retain(&self, sandboxes: &BTreeSet<String>) -> Result<(), DatapathError> {
        let mut state = self.lock();
        let names: BTreeSet<u64> = sandboxes.iter().map(|name| hash(name)).collect();
        let forget = |state: &mut State| {
            let cookies = state.table()?.cookies(|name| !names.contains(&name));
            state.forget(&cookies)
        };
        state.sandboxes.retain(|name, _| sandboxes.contains(name));
        // Whoever was not synced was gone.
        state.seen.clear();
        forget(&mut state).map_err(DatapathError::of(
            "take out the translation of virtual addresses",
            "that is gone",
        ))
    }

    fn expire(&self, sandbox: &str, netns: &Netns, now: Instant) -> Result<usize, DatapathError> {
        let closed = self.lock().expire(sandbox, netns, now);
        closed.map_err(DatapathError::of("end idle connections", sandbox))
    }

    fn resync(&self) {
        self.lock().suspect();
    }

    fn is_whole(&self) -> bool {
        self.lock().is_whole()
    }

    fn connections(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, u64>> {
        let mut state = self.lock();
        state.table().ok()?;
        state.table.as_ref()?.open(state.maps.as_ref()?, service)
    }

    fn attempts(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, Attempts>> {
        let mut state = self.lock();
        state.table().ok()?;
        state.table.as_ref()?.attempts(state.maps.as_ref()?, service)
    }
}

impl State {
    fn load(&mut self) -> Result<&[(String, Loaded)], BpfError> {
        self.programs.load(made(&mut self.maps)?)
    }

    fn table(&mut self) -> Result<&mut Table, Failure> {
        if self.table.is_none() {
            let mut table = match &self.maps {
                Some(maps) => Table::read(maps)?,
                None => Table::default(),
            };
            table.losses = self.losses;
            self.table = Some(table);
        }
        self.table.as_mut().ok_or_else(|| "the table is gone".into())
    }

    /// Changes the table. After a failure it is read again, as part of the change may be there.
    fn write<T>(
        &mut self,
        change: impl FnOnce(&mut Table, &Maps) -> Result<T, TableError>,
    ) -> Result<T, Failure> {
        self.table()?;
        let mut table = self.table.take().ok_or("the table is gone")?;
        // Whatever was lost in a part of it is looked for.
        self.losses = table.losses + 1;
        let done = change(&mut table, made(&mut self.maps)?)?;
        self.table = Some(table);
        Ok(done)
    }

    /// Whether a sandbox has all of this, and no backend was lost since.
    fn is_synced(&mut self, name: &str, tables: &[ClientTable]) -> bool {
        if self.seen.contains_key(name) && !self.sandboxes.contains_key(name) {
            self.know_empty(name, tables);
        }
        let losses = self.table.as_ref().map(|table| table.losses);
        let Some(sandbox) = self.sandboxes.get_mut(name) else {
            return false;
        };
        // Where there are no services no backend of one can be lost.
        let is_looked =
            losses == Some(sandbox.looked) || tables.iter().all(|table| table.services.is_empty());
        let is_synced = is_looked && sandbox.routes.is_some() && sandbox.synced.as_deref() == Some(tables);
        // Whatever happens now, it is not as it was.
        if !is_synced {
            sandbox.synced = None;
        }
        is_synced
    }

    /// Knows a sandbox that is to have no services, and has none, without entering it again.
    fn know_empty(&mut self, name: &str, tables: &[ClientTable]) {
        let is_to_have_none = tables.iter().all(|table| table.services.is_empty());
        if !is_to_have_none || !self.table().is_ok_and(|table| table.is_empty()) {
            return;
        }
        let has_none = |seen: &Seen| seen.routes.as_ref().is_some_and(BTreeSet::is_empty);
        if self.seen.get(name).is_some_and(has_none)
            && let Some(seen) = self.seen.remove(name)
        {
            let mut sandbox = Sandbox::of(seen);
            sandbox.synced = Some(tables.to_vec());
            self.sandboxes.insert(name.to_owned(), sandbox);
        }
    }

    /// The cookie of a sandbox; what is there of an earlier one of the same name is taken out.
    fn know(&mut self, name: &str, netns: &Netns) -> Result<u64, Failure> {
        if let Some(sandbox) = self
            .sandboxes
            .get(name)
            .filter(|sandbox| sandbox.netns == netns.id())
        {
            return Ok(sandbox.cookie);
        }
        let seen = match self.seen.remove(name).filter(|seen| seen.netns == netns.id()) {
            Some(seen) => seen,
            None => seen(netns)?,
        };
        let cookie = seen.cookie;
        let earlier = self.table()?.cookies(|found| found == hash(name));
        for earlier in earlier.into_iter().filter(|found| *found != cookie) {
            self.write(|table, maps| table.remove(maps, earlier, Instant::now()))?;
        }
        self.sandboxes.insert(name.to_owned(), Sandbox::of(seen));
        Ok(cookie)
    }

    /// Forgets sandboxes, and with the last one takes out everything.
    fn forget(&mut self, cookies: &[u64]) -> Result<(), Failure> {
        for &cookie in cookies {
            if !self.table()?.has(cookie) {
                continue;
            }
            self.write(|table, maps| table.remove(maps, cookie, Instant::now()))?;
        }
        if self.table()?.is_empty()
            && let Some(pins) = self.pins.take()
        {
            self.links.clear();
            pins.unmount()?;
        }
        Ok(())
    }

    /// What is in the kernel is looked at again by the next syncs. A sandbox without services has nothing there.
    fn suspect(&mut self) {
        if self.pins.is_none() {
            return;
        }
        self.is_suspect = true;
        if let Some(table) = self.table.take() {
            self.losses = table.losses;
        }
        for sandbox in self.sandboxes.values_mut() {
            let tables = sandbox.synced.iter().flatten();
            let is_empty =
                sandbox.synced.is_some() && tables.flat_map(|table| &*table.services).next().is_none();
            if !is_empty {
                (sandbox.synced, sandbox.routes, sandbox.routed) = (None, None, None);
            }
        }
    }

    /// Has a sandbox take its virtual addresses for its own: it answers pings, and what the programs let pass or do
    /// not see is refused and not lost. Where that fails, as without IPv6, only this is missing.
    fn route(&mut self, name: &str, netns: &Netns, wanted: BTreeSet<IpAddr>) {
        let Some(sandbox) = self.sandboxes.get_mut(name) else {
            return;
        };
        if sandbox.routes.as_ref() == Some(&wanted) {
            return;
        }
        let mut change = || -> Result<(), Failure> {
            let mut socket = RouteSocket::open(netns)?;
            let there: BTreeSet<IpAddr> = match sandbox.routes.take() {
                Some(routes) => routes,
                None => own_routes(&mut socket)?
                    .into_iter()
                    .map(|route| route.to)
                    .collect(),
            };
            let route = |to: &IpAddr| LocalRoute {
                to: *to,
                link: LocalRoute::LOOPBACK,
                metric: 0,
                protocol: ROUTE_PROTOCOL,
            };
            let mut batch = Batch::new();
            batch.add(wanted.difference(&there).map(|to| route(to).add()));
            batch.add(there.difference(&wanted).map(|to| route(to).delete()));
            if !batch.is_empty() {
                socket.execute(batch)?;
            }
            Ok(())
        };
        match change() {
            Ok(()) => sandbox.routes = Some(wanted),
            Err(error) => tracing::warn!(sandbox = %name, %error, "virtual addresses do not answer pings"),
        }
    }
}

/// The maps, made where there are none yet.
fn made(maps: &mut Option<Maps>) -> Result<&Maps, BpfError> {
    let made = match maps.take() {
        Some(maps) => maps,
        None => Maps::create()?,
    };
    Ok(maps.insert(made))
}

fn hash(name: &str) -> u64 {
    fnv(name.as_bytes())
}

/// Where the root control group of version 2 is, also beside version 1.
pub(super) fn root_cgroup() -> Option<PathBuf> {
    /// `PROC_CGROUP_INIT_INO`: with a namespace of one's own the root is another one.
    const FIRST_NAMESPACE: &str = "cgroup:[4026531835]";
    let namespace = fs::read_link("/proc/self/ns/cgroup").ok()?;
    if namespace != Path::new(FIRST_NAMESPACE) {
        return None;
    }
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        // 36 35 0:26 /root /point options - cgroup2 source options (proc_pid_mountinfo(5))
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let is_root = kind.starts_with("cgroup2 ") && fields.next() == Some("/");
        is_root.then(|| fields.next().map(PathBuf::from)).flatten()
    })
}

/// One socket is enough for all of it, and for many sandboxes sockets are what takes time.
fn seen(netns: &Netns) -> Result<Seen, Failure> {
    let mut socket = RouteSocket::open(netns)?;
    let cookie = socket.cookie()?;
    let routes = own_routes(&mut socket).ok();
    Ok(Seen {
        netns: netns.id(),
        cookie,
        routes: routes.map(|routes| routes.iter().map(|route| route.to).collect()),
    })
}

/// The virtual addresses that a sandbox takes for its own. The host, where it is one, has other local routes of ours, by its
/// ends of uplinks.
fn own_routes(socket: &mut RouteSocket) -> Result<Vec<LocalRoute>, Failure> {
    let (_, mut routes) = socket.marked_routes(ROUTE_PROTOCOL)?;
    routes.retain(is_own);
    Ok(routes)
}

fn is_own(route: &LocalRoute) -> bool {
    route.link == LocalRoute::LOOPBACK
}
