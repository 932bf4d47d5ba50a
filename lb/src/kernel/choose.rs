//! Which datapath a host has, and how one takes over from the other.
//!
//! The choice is made when an agent starts, which disturbs nothing, so a host changes its datapath by a restart of its
//! agent. What the other datapath left stays for as long as it is needed:
//!
//! * From nf_tables to eBPF: programs translate what is connected from now on. The rules of a sandbox stay, and are kept
//!   up to date, until no connection that they translate is open.
//! * From eBPF to nf_tables: connections that were made are between client and backend and need nobody. The programs go
//!   as soon as all sandboxes have rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use weft_netlink::{
    broker::SocketKind,
    look::{self, Inside},
    netns::Netns,
    nft::Nft,
    route::RouteSocket,
};
use weft_types::{EndpointId, ServiceId};

use super::{
    EbpfDatapath, EbpfError, NftDatapath, adopt,
    ebpf::{ROUTE_PROTOCOL, Seen},
};
use crate::{Attempts, ClientTable, Datapath, DatapathError, Service, Written};

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// eBPF where the kernel takes it, else nf_tables.
    #[default]
    Auto,
    /// nf_tables.
    Nft,
    /// eBPF, or an error.
    Ebpf,
}

/// A datapath, and why it is this one.
pub struct Chosen {
    /// The datapath.
    pub datapath: Box<dyn Datapath>,
    /// One sentence without an end.
    pub reason: String,
}

/// Why there is no datapath.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// eBPF was asked for.
    #[error("eBPF was asked for and cannot be used")]
    Ebpf(#[from] EbpfError),
    /// The process has no room for a pipe.
    #[error("nf_tables cannot be used")]
    Nft(#[from] io::Error),
}

/// Opens the datapath of this host. `dir` is for what eBPF keeps until the next boot, the same at every start.
pub fn choose(choice: Choice, dir: &Path) -> Result<Chosen, ChoiceError> {
    let reason = match choice {
        Choice::Nft => "it was asked for".to_owned(),
        Choice::Auto | Choice::Ebpf => match EbpfDatapath::open(dir) {
            Ok(current) => {
                let datapath = OverNft {
                    current,
                    earlier: NftDatapath::new()?,
                    settled: Mutex::default(),
                };
                let why = if choice == Choice::Auto {
                    "the kernel takes its programs, and established connections cost nothing"
                } else {
                    "it was asked for"
                };
                return Ok(Chosen {
                    datapath: Box::new(datapath),
                    reason: why.to_owned(),
                });
            }
            Err(error) if choice == Choice::Ebpf => return Err(error.into()),
            Err(error) => format!("eBPF cannot be used here: {}", chain(&error)),
        },
    };
    let current = NftDatapath::new()?;
    let datapath: Box<dyn Datapath> = if EbpfDatapath::is_at(dir) {
        let dir = Mutex::new(Some(dir.to_owned()));
        Box::new(OverEbpf { current, dir })
    } else {
        Box::new(current)
    };
    Ok(Chosen { datapath, reason })
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// eBPF where there may be rules of nf_tables.
#[derive(Debug)]
struct OverNft {
    current: EbpfDatapath,
    earlier: NftDatapath,
    /// Sandboxes that have no rules, or none any more.
    settled: Mutex<BTreeSet<String>>,
}

impl OverNft {
    /// Takes the rules of a sandbox out if nothing needs them, else brings them up to date.
    fn settle(&self, sandbox: &str, netns: &Netns, tables: &[ClientTable]) -> Result<(), DatapathError> {
        if self.settled().contains(sandbox) {
            return Ok(());
        }
        let open =
            NftDatapath::translated(netns).map_err(DatapathError::of("look for earlier rules", sandbox))?;
        match open {
            Some(1..) => return self.earlier.sync(sandbox, netns, tables).map(drop),
            Some(0) => self.earlier.remove(sandbox, Some(netns))?,
            None => {}
        }
        self.settled().insert(sandbox.to_owned());
        Ok(())
    }

    /// What could not be seen the sync of the sandbox looks for again, and tells why not.
    fn expect(&self, sandbox: &str, found: Option<(Seen, bool)>) {
        let Some((seen, has_rules)) = found else { return };
        self.current.expect(sandbox, seen);
        if !has_rules {
            self.settled().insert(sandbox.to_owned());
        }
    }

    fn settled(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What matters of a sandbox, and whether it has rules.
fn glimpse(inside: Inside<'_>) -> Option<(Seen, bool)> {
    let netfilter = inside.sockets.into_iter().next()?;
    let has_rules = Nft::of(netfilter).and_then(|nft| adopt::has_tables(&nft));
    let seen = EbpfDatapath::look(inside.netns, inside.route, inside.local)?;
    Some((seen, has_rules.ok()?))
}

impl Datapath for OverNft {
    fn name(&self) -> &'static str {
        self.current.name()
    }

    fn sync(&self, sandbox: &str, netns: &Netns, tables: &[ClientTable]) -> Result<Written, DatapathError> {
        let written = self.current.sync(sandbox, netns, tables)?;
        self.settle(sandbox, netns, tables)?;
        Ok(written)
    }

    fn sockets(&self) -> &'static [SocketKind] {
        &[SocketKind::Netfilter]
    }

    fn look(&self, sandbox: &str, inside: Inside<'_>) {
        self.expect(sandbox, glimpse(inside));
    }

    fn look_into(&self, sandboxes: &[(&str, &Path)]) {
        let unseen = sandboxes.iter().filter(|(name, _)| !self.current.expects(name));
        let (names, paths): (Vec<&str>, Vec<&Path>) = unseen.copied().unzip();
        let kinds = [SocketKind::Route, SocketKind::Netfilter];
        let found = look::into_each(&paths, &kinds, |netns, mut sockets| {
            let mut route = RouteSocket::of(netns, sockets.remove(0)).ok()?;
            let (_, local) = route.marked_routes(ROUTE_PROTOCOL).ok()?;
            glimpse(Inside {
                netns,
                route: &route,
                local: &local,
                sockets,
            })
        });
        for (name, found) in names.into_iter().zip(found) {
            self.expect(name, found.ok().flatten());
        }
    }

    fn is_synced(&self, sandbox: &str, tables: &[ClientTable]) -> bool {
        self.settled().contains(sandbox) && self.current.is_synced(sandbox, tables)
    }

    fn remove(&self, sandbox: &str, netns: Option<&Netns>) -> Result<(), DatapathError> {
        self.settled().remove(sandbox);
        let earlier = self.earlier.remove(sandbox, netns);
        self.current.remove(sandbox, netns).and(earlier)
    }

    fn retain(&self, sandboxes: &BTreeSet<String>) -> Result<(), DatapathError> {
        self.settled().retain(|sandbox| sandboxes.contains(sandbox));
        self.current.retain(sandboxes)
    }

    fn expire(&self, sandbox: &str, netns: &Netns, now: Instant) -> Result<usize, DatapathError> {
        self.current.expire(sandbox, netns, now)
    }

    fn resync(&self) {
        self.current.resync();
        self.earlier.resync();
    }

    fn is_whole(&self) -> bool {
        self.current.is_whole()
    }

    fn connections(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, u64>> {
        self.current.connections(service)
    }

    fn attempts(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, Attempts>> {
        self.current.attempts(service)
    }

    fn attempts_of(
        &self,
        sandbox: &str,
        netns: &Netns,
        services: &[&Service],
    ) -> Result<BTreeMap<EndpointId, Attempts>, DatapathError> {
        if self.settled().contains(sandbox) {
            return Ok(BTreeMap::new());
        }
        self.earlier.attempts_of(sandbox, netns, services)
    }

    fn count(
        &self,
        sandbox: &str,
        netns: &Netns,
        services: &[&Service],
    ) -> Result<BTreeMap<EndpointId, u64>, DatapathError> {
        // Those that began with nf_tables are nobody else's.
        super::count(netns, services, super::Side::Client, |_, _| true)
            .map_err(DatapathError::of("count connections", sandbox))
    }
}

/// nf_tables where there are programs.
#[derive(Debug)]
struct OverEbpf {
    current: NftDatapath,
    /// Until they are taken out.
    dir: Mutex<Option<PathBuf>>,
}

impl OverEbpf {
    fn dir(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(sandbox: &str) -> impl FnOnce(super::Failure) -> DatapathError {
        DatapathError::of("take out what eBPF left", sandbox)
    }
}

impl Datapath for OverEbpf {
    fn name(&self) -> &'static str {
        self.current.name()
    }

    fn sync(&self, sandbox: &str, netns: &Netns, tables: &[ClientTable]) -> Result<Written, DatapathError> {
        let written = self.current.sync(sandbox, netns, tables)?;
        if self.dir().is_some() {
            EbpfDatapath::leave(netns).map_err(Self::failure(sandbox))?;
        }
        Ok(written)
    }

    fn is_synced(&self, sandbox: &str, tables: &[ClientTable]) -> bool {
        self.dir().is_none() && self.current.is_synced(sandbox, tables)
    }

    fn remove(&self, sandbox: &str, netns: Option<&Netns>) -> Result<(), DatapathError> {
        if let Some(netns) = netns.filter(|_| self.dir().is_some()) {
            EbpfDatapath::leave(netns).map_err(Self::failure(sandbox))?;
        }
        self.current.remove(sandbox, netns)
    }

    fn retain(&self, sandboxes: &BTreeSet<String>) -> Result<(), DatapathError> {
        let mut dir = self.dir();
        if let Some(at) = &*dir {
            EbpfDatapath::clear(at).map_err(|error| Self::failure("of any name")(error.into()))?;
            *dir = None;
        }
        self.current.retain(sandboxes)
    }

    fn resync(&self) {
        self.current.resync();
    }

    fn connections(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, u64>> {
        self.current.connections(service)
    }

    fn attempts_of(
        &self,
        sandbox: &str,
        netns: &Netns,
        services: &[&Service],
    ) -> Result<BTreeMap<EndpointId, Attempts>, DatapathError> {
        self.current.attempts_of(sandbox, netns, services)
    }

    fn count(
        &self,
        sandbox: &str,
        netns: &Netns,
        services: &[&Service],
    ) -> Result<BTreeMap<EndpointId, u64>, DatapathError> {
        self.current.count(sandbox, netns, services)
    }
}
