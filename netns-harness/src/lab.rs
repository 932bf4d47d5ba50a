//! Labs: hosts, switches and cables, what is cut between them, and their end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use weft_types::Mac;

use crate::audit::{self, Footprint, Snapshot};
use crate::error::LabError;
use crate::fabric::{Fabric, Pair};
use crate::host::{self, Host};
use crate::isolate::Isolation;
use crate::namespaces::{Inside, Namespaces};
use crate::switch::{Interface, Port, Switch, SwitchOptions};
use crate::wait::eventually;

/// The kernel takes namespaces apart in the background: some milliseconds for each.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Interface indices on hosts begin here, so that they never meet those that the kernel gives to links made by
/// programs on the host.
const FIRST_LINK: u32 = 1000;

/// A set of hosts and the network between them.
///
/// [`Lab::close`] ends it and checks that nothing is left. Dropping it does the same as well as it can, and logs what is left.
/// Should the process be killed, the kernel cleans up: all namespaces are held by descriptors of this process alone.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<LabInner>,
}

#[derive(Debug)]
pub(crate) struct LabInner {
    pub(crate) name: String,
    pub(crate) fabric: Fabric,
    pub(crate) keep: Vec<PathBuf>,
    pub(crate) isolation: Option<Isolation>,
    hosts: Mutex<BTreeMap<String, Host>>,
    switches: Mutex<BTreeMap<String, Switch>>,
    cuts: Mutex<Cuts>,
    /// Which namespace stands behind which number of the fabric.
    watched: Mutex<BTreeMap<i32, (String, u64)>>,
    before: Snapshot,
    next_mac: AtomicU32,
    closed: AtomicBool,
}

/// Pairs of hosts, from and to.
#[derive(Debug, Default)]
struct Cuts {
    partition: BTreeSet<(String, String)>,
    one_way: BTreeSet<(String, String)>,
}

/// What one host gets in a batch.
struct Plugged<'a> {
    host: &'a Host,
    namespaces: Arc<Namespaces>,
    ports: Vec<Port>,
}

/// How an interface is plugged in, where the defaults will not do.
#[derive(Clone, Debug, Default)]
pub struct Plug {
    name: Option<String>,
    addresses: Option<Vec<IpNet>>,
    mac: Option<Mac>,
}

impl Plug {
    /// The next `ethN`, the next addresses of the switch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The name of the interface on the host.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// This address instead of the switch's next ones; call it again for more.
    #[must_use]
    pub fn address(mut self, address: impl Into<IpNet>) -> Self {
        self.addresses.get_or_insert_default().push(address.into());
        self
    }

    /// The Ethernet address.
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }
}

impl Lab {
    /// An empty lab.
    ///
    /// # Errors
    ///
    /// [`LabError::NoPrivilege`] without root and without [`isolate`](crate::isolate()).
    pub fn new(name: &str) -> Result<Self, LabError> {
        check_name("lab", name)?;
        let before = Snapshot::take().map_err(LabError::os("look at the machine before the lab"))?;
        let isolation = Isolation::current();
        let keep = isolation
            .as_ref()
            .map(|isolation| isolation.keep.clone())
            .unwrap_or_default();
        Ok(Self {
            inner: Arc::new(LabInner {
                name: name.to_owned(),
                fabric: Fabric::new()?,
                keep,
                isolation,
                hosts: Mutex::default(),
                switches: Mutex::default(),
                cuts: Mutex::default(),
                watched: Mutex::default(),
                before,
                next_mac: AtomicU32::new(1),
                closed: AtomicBool::new(false),
            }),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Makes a switch.
    ///
    /// # Errors
    ///
    /// [`LabError::NameTaken`], [`LabError::BadName`], or what the kernel refuses.
    pub fn switch(&self, name: &str, options: SwitchOptions) -> Result<Switch, LabError> {
        check_name("switch", name)?;
        let mut switches = lock(&self.inner.switches);
        if switches.contains_key(name) {
            return Err(LabError::NameTaken {
                kind: "switch",
                name: name.to_owned(),
            });
        }
        let switch = Switch::new(&self.inner.fabric, name, options)?;
        switches.insert(name.to_owned(), switch.clone());
        Ok(switch)
    }

    /// Makes a host that is not connected to anything yet.
    ///
    /// # Errors
    ///
    /// As for [`Lab::hosts`].
    pub fn host(&self, name: &str) -> Result<Host, LabError> {
        let mut hosts = self.hosts(&[name])?;
        hosts.pop().ok_or_else(|| LabError::Closed {
            lab: self.inner.name.clone(),
        })
    }

    /// Makes many hosts at once, which is faster than one by one.
    ///
    /// # Errors
    ///
    /// [`LabError::NameTaken`], [`LabError::BadName`], or what the kernel refuses; then none of them exists.
    pub fn hosts<N: AsRef<str>>(&self, names: &[N]) -> Result<Vec<Host>, LabError> {
        let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        let mut unique = BTreeSet::new();
        for &name in &names {
            check_name("host", name)?;
            if !unique.insert(name) || lock(&self.inner.hosts).contains_key(name) {
                return Err(LabError::NameTaken {
                    kind: "host",
                    name: name.to_owned(),
                });
            }
        }
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        let built = std::thread::scope(|scope| {
            let keep = &self.inner.keep;
            let threads: Vec<_> = names
                .chunks(names.len().div_ceil(workers).max(1))
                .map(|chunk| {
                    scope.spawn(move || {
                        chunk
                            .iter()
                            .map(|name| host::build(name, keep))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect::<Result<Vec<Namespaces>, LabError>>()
        })?;
        let mut made = Vec::with_capacity(built.len());
        for (name, namespaces) in names.into_iter().zip(built) {
            self.inner.watch(&namespaces)?;
            made.push(Host::new(name, Arc::downgrade(&self.inner), namespaces));
        }
        let mut hosts = lock(&self.inner.hosts);
        hosts.extend(made.iter().map(|host| (host.name().to_owned(), host.clone())));
        Ok(made)
    }

    /// The host of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Host> {
        lock(&self.inner.hosts).get(name).cloned()
    }

    /// All hosts, by name.
    #[must_use]
    pub fn all_hosts(&self) -> Vec<Host> {
        self.inner.all_hosts()
    }

    /// Plugs hosts into a switch, each with its next free `ethN` and the switch's next addresses, in one batch.
    ///
    /// # Errors
    ///
    /// [`LabError::NoAddress`], [`LabError::Down`], or what the kernel refuses.
    pub fn plug(&self, switch: &Switch, hosts: &[Host]) -> Result<Vec<Interface>, LabError> {
        let plugs = hosts.iter().map(|host| (host, Plug::new()));
        self.plug_all(switch, plugs.collect())
    }

    /// Plugs one host into a switch, with a say in name and addresses.
    ///
    /// # Errors
    ///
    /// As for [`Lab::plug`].
    pub fn plug_with(&self, switch: &Switch, host: &Host, plug: Plug) -> Result<Interface, LabError> {
        let mut interfaces = self.plug_all(switch, vec![(host, plug)])?;
        interfaces.pop().ok_or_else(|| LabError::Closed {
            lab: self.inner.name.clone(),
        })
    }

    /// Connects two hosts with a cable of their own (a switch with two ports, so that all that can be done to a switch's
    /// interfaces can be done to these). Returns the interface of each.
    ///
    /// # Errors
    ///
    /// As for [`Lab::plug`].
    pub fn cable(
        &self,
        (a, plug_a): (&Host, Plug),
        (b, plug_b): (&Host, Plug),
        options: SwitchOptions,
    ) -> Result<(Interface, Interface), LabError> {
        let name = format!("{}--{}", a.name(), b.name());
        let switch = Switch::new(&self.inner.fabric, &name, options)?;
        Ok((
            self.plug_with(&switch, a, plug_a)?,
            self.plug_with(&switch, b, plug_b)?,
        ))
    }

    /// Splits the hosts into sides that cannot reach each other, silently; a host in no side keeps all its connections.
    /// Replaces what an earlier `partition` did.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the kernel refuses.
    pub fn partition(&self, sides: &[&[&Host]]) -> Result<(), LabError> {
        let mut pairs = BTreeSet::new();
        for (i, side) in sides.iter().enumerate() {
            for (_, other) in sides.iter().enumerate().filter(|(j, _)| *j != i) {
                for from in *side {
                    pairs.extend(
                        other
                            .iter()
                            .map(|to| (from.name().to_owned(), to.name().to_owned())),
                    );
                }
            }
        }
        lock(&self.inner.cuts).partition = pairs;
        self.inner.apply_cuts()
    }

    /// Lets nothing from one host reach another; the way back stays open.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the kernel refuses.
    pub fn block(&self, from: &Host, to: &Host) -> Result<(), LabError> {
        lock(&self.inner.cuts)
            .one_way
            .insert((from.name().to_owned(), to.name().to_owned()));
        self.inner.apply_cuts()
    }

    /// Undoes [`Lab::partition`] and [`Lab::block`].
    ///
    /// # Errors
    ///
    /// [`LabError`] if the kernel refuses.
    pub fn heal(&self) -> Result<(), LabError> {
        *lock(&self.inner.cuts) = Cuts::default();
        self.inner.apply_cuts()
    }

    /// What [`left_behind`](crate::left_behind) looks for after this process has ended. Ask after all hosts are made.
    ///
    /// # Errors
    ///
    /// [`LabError::Os`] if `/proc` cannot be read.
    pub fn footprint(&self) -> Result<Footprint, LabError> {
        let namespaces = lock(&self.inner.watched)
            .values()
            .map(|(_, inode)| *inode)
            .collect();
        Footprint::of_this_process(self.inner.isolation.as_ref(), namespaces)
            .map_err(LabError::os("read the namespaces of this process"))
    }

    /// Ends the lab: kills every process in it, lets go of every namespace, waits until the kernel has taken them apart, and
    /// compares the machine with what it was before.
    ///
    /// # Errors
    ///
    /// [`LabError::LeftBehind`] with a sentence for each thing that is still there and who holds it.
    pub fn close(self) -> Result<(), LabError> {
        self.inner.close()
    }

    fn plug_all(&self, switch: &Switch, plugs: Vec<(&Host, Plug)>) -> Result<Vec<Interface>, LabError> {
        let lab = &*self.inner;
        let mut interfaces = Vec::with_capacity(plugs.len());
        let mut plugged: BTreeMap<&str, Plugged<'_>> = BTreeMap::new();
        for (host, plug) in plugs {
            let namespaces = host.namespaces()?;
            let plugged = plugged.entry(host.name()).or_insert_with(|| Plugged {
                host,
                namespaces,
                ports: Vec::new(),
            });
            // Those it has, and those it is about to get.
            let mut names: Vec<String> = host.ports().into_iter().map(|port| port.name).collect();
            names.extend(plugged.ports.iter().map(|port| port.name.clone()));
            let name = match plug.name {
                Some(name) => name,
                None => (0..)
                    .map(|n| format!("eth{n}"))
                    .find(|name| !names.contains(name))
                    .unwrap_or_default(),
            };
            let addresses = match plug.addresses {
                Some(addresses) => addresses,
                None => switch.take_addresses()?,
            };
            interfaces.push(Interface {
                host: host.clone(),
                name: name.clone(),
            });
            plugged.ports.push(Port {
                name,
                mac: plug.mac.unwrap_or_else(|| lab.mac()),
                addresses,
                mtu: switch.mtu(),
                bridge: switch.take_port(&lab.fabric)?,
                switch: switch.name().to_owned(),
                port: lab.fabric.index(),
                link: FIRST_LINK + names.len() as u32,
                carrier: true,
            });
        }
        let pairs: Vec<Pair<'_>> = plugged
            .values()
            .flat_map(
                |Plugged {
                     host,
                     namespaces,
                     ports,
                 }| { ports.iter().map(|port| port.pair(host.name(), namespaces)) },
            )
            .collect();
        lab.fabric.connect(&pairs)?;
        drop(pairs);
        for Plugged {
            host,
            namespaces,
            ports,
        } in plugged.into_values()
        {
            host.bring_up(&namespaces, &ports)?;
            ports.into_iter().for_each(|port| host.add_port(port));
        }
        lab.apply_cuts()?;
        Ok(interfaces)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.inner.closed.load(Ordering::Relaxed)
            && let Err(error) = self.inner.close()
        {
            tracing::warn!("{error}");
        }
    }
}

impl LabInner {
    pub(crate) fn watch(&self, namespaces: &Namespaces) -> Result<(), LabError> {
        let id = self.fabric.watch(namespaces.net())?;
        lock(&self.watched).insert(id, (namespaces.place().to_owned(), namespaces.net().id().ino));
        Ok(())
    }

    /// Brings the rules in line with the cuts, for the interfaces as they are now.
    pub(crate) fn apply_cuts(&self) -> Result<(), LabError> {
        let hosts = lock(&self.hosts);
        // Held until the rules stand, so that of two changes at once the later one wins.
        let cuts = lock(&self.cuts);
        let mut blocked = BTreeSet::new();
        for (from, to) in cuts.partition.union(&cuts.one_way) {
            let (Some(from), Some(to)) = (hosts.get(from), hosts.get(to)) else {
                continue;
            };
            let (senders, receivers) = (from.ports(), to.ports());
            for sender in &senders {
                blocked.extend(receivers.iter().map(|receiver| (sender.mac, receiver.port)));
            }
        }
        self.fabric.block(blocked)
    }

    fn all_hosts(&self) -> Vec<Host> {
        lock(&self.hosts).values().cloned().collect()
    }

    fn mac(&self) -> Mac {
        let [_, a, b, c] = self.next_mac.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        // Locally administered; two labs never share a wire, so a count will do.
        Mac([0x02, b'l', b'a', a, b, c])
    }

    fn close(&self) -> Result<(), LabError> {
        self.closed.store(true, Ordering::Relaxed);
        let mut things = Vec::new();
        let hosts = std::mem::take(&mut *lock(&self.hosts));
        // All at once: one look at all processes is enough for all hosts.
        let inodes = hosts
            .values()
            .map(Host::inodes)
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect();
        if let Err(error) = audit::kill_all_in(&inodes, &format!("lab {}", self.name)) {
            things.push(error.to_string());
        }
        hosts.values().for_each(Host::forget);
        lock(&self.switches).clear();
        let gone = eventually(
            "the end of all namespaces",
            CLOSE_TIMEOUT,
            Duration::from_millis(5),
            || {
                let alive = self.fabric.alive().map_err(|error| error.to_string())?;
                if alive.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{} of them", alive.len()))
                }
            },
        );
        if gone.is_err() {
            let watched = lock(&self.watched);
            for id in self.fabric.alive()? {
                if let Some((place, inode)) = watched.get(&id) {
                    let holders = audit::holders(*inode);
                    things.push(format!(
                        "the network namespace of {place} still exists, held by {holders}"
                    ));
                }
            }
        }
        let after = Snapshot::take().map_err(LabError::os("look at the machine after the lab"))?;
        things.extend(after.machine_changes_since(&self.before));
        if things.is_empty() {
            Ok(())
        } else {
            Err(LabError::LeftBehind {
                lab: self.name.clone(),
                things,
            })
        }
    }
}

/// A name must do as a host name, a file name and a word on a command line.
pub(crate) fn check_name(kind: &'static str, name: &str) -> Result<(), LabError> {
    let fine = (1..=63).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if fine {
        Ok(())
    } else {
        Err(LabError::BadName {
            kind,
            name: name.to_owned(),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
