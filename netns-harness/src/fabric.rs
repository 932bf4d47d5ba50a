//! The namespace between the hosts: bridges, one port for each interface of a host, and what is blocked between them.
//! Hosts cannot see it or change it, so faults made here look like faults of the network.

mod block;
mod raw;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::SockProtocol;
use weft_netlink::netns::Netns;
use weft_netlink::route::{Batch, BridgeOptions, NewLink, RouteSocket, VethPeer, delete_link};
use weft_types::Mac;

use crate::error::LabError;
use crate::namespaces::{Namespaces, on_thread};
use block::Blocks;
use raw::{Message, Raw};

const RTM_NEWNSID: u16 = libc::RTM_NEWNSID;
const RTM_GETNSID: u16 = libc::RTM_GETNSID;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const NFT_GETTABLE: u16 = 0x0a01;

/// A bridge takes 1,023 ports (`BR_MAX_PORTS` less one); two of them lead to the bridges before and after it.
pub(crate) const PORTS_PER_BRIDGE: usize = 1021;

/// Its sockets hold the namespace.
#[derive(Debug)]
pub(crate) struct Fabric {
    route: Mutex<RouteSocket>,
    ids: Mutex<Raw>,
    blocks: Mutex<Blocks>,
    next_index: AtomicU32,
    next_id: AtomicI32,
}

/// One interface of a host to be made: the pair of devices and the bridge.
pub(crate) struct Pair<'a> {
    pub(crate) port: u32,
    pub(crate) bridge: u32,
    pub(crate) up: bool,
    pub(crate) alias: String,
    pub(crate) host: &'a Namespaces,
    pub(crate) link: u32,
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
}

impl Fabric {
    pub(crate) fn new() -> Result<Self, LabError> {
        let what = || "make the network between the hosts";
        let netns = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| LabError::no_privilege(what(), errno))?;
            // Bridges must not speak for themselves; this must be set before the first one is made. Where IPv6 is
            // built out there is nothing to set.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            Netns::current().map_err(|source| LabError::Netns {
                what: what().into(),
                source,
            })
        })??;
        let route = RouteSocket::open(&netns).map_err(|source| LabError::Open {
            what: "the network between the hosts".into(),
            source,
        })?;
        let ids = netns
            .run(|| Raw::open(SockProtocol::NetlinkRoute))
            .map_err(|source| LabError::Netns {
                what: what().into(),
                source,
            })?
            .map_err(LabError::os(what()))?;
        let blocks = Blocks::open(&netns).map_err(LabError::os(what()))?;
        Ok(Self {
            route: Mutex::new(route),
            ids: Mutex::new(ids),
            blocks: Mutex::new(blocks),
            next_index: AtomicU32::new(10),
            next_id: AtomicI32::new(0),
        })
    }

    /// An interface index that is not in use.
    pub(crate) fn index(&self) -> u32 {
        self.next_index.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn execute(&self, what: impl Into<String>, batch: Batch) -> Result<(), LabError> {
        if batch.is_empty() {
            return Ok(());
        }
        lock(&self.route)
            .execute(batch)
            .map_err(|source| LabError::Batch {
                what: what.into(),
                source,
            })
    }

    /// A new bridge, connected to the one before it if there is one.
    pub(crate) fn bridge(&self, switch: &str, before: Option<u32>, mtu: u32) -> Result<u32, LabError> {
        let index = self.index();
        let mut batch = Batch::new();
        let options = BridgeOptions {
            multicast_snooping: false,
        };
        batch.add(
            NewLink::bridge(format!("b{index}"), options)
                .index(index)
                .up()
                .alias(format!("switch {switch}")),
        );
        if let Some(before) = before {
            let (near, far) = (self.index(), self.index());
            let peer = VethPeer::new(format!("t{far}")).index(far).mtu(mtu);
            batch.add(
                NewLink::veth(format!("t{near}"), peer)
                    .index(near)
                    .master(before)
                    .mtu(mtu)
                    .up(),
            );
            batch.add(weft_netlink::route::SetLink::index(far).master(index).up());
        }
        self.execute(format!("make a bridge for switch {switch}"), batch)?;
        Ok(index)
    }

    /// Connects hosts to bridges, all or none. The hosts' ends are left down and without addresses.
    pub(crate) fn connect(&self, pairs: &[Pair<'_>]) -> Result<(), LabError> {
        let mut batch = Batch::new();
        for pair in pairs {
            let peer = VethPeer::new(pair.name)
                .index(pair.link)
                .mac(pair.mac)
                .mtu(pair.mtu)
                .netns(pair.host.net().as_fd());
            let port = NewLink::veth(format!("p{}", pair.port), peer)
                .index(pair.port)
                .master(pair.bridge)
                .mtu(pair.mtu)
                .alias(&pair.alias);
            batch.add(if pair.up { port.up() } else { port });
        }
        let connected = self.execute("connect hosts to their switches", batch);
        if connected.is_err() {
            // All or none: deleting what was not made is no error, and the first error is the one to tell.
            let mut undo = Batch::new();
            for pair in pairs {
                undo.add(delete_link(pair.port));
            }
            let _ = self.execute("disconnect hosts again", undo);
        }
        connected
    }

    /// Makes exactly these frames vanish: from this Ethernet address, out by this port.
    pub(crate) fn block(&self, wanted: BTreeSet<(Mac, u32)>) -> Result<(), LabError> {
        lock(&self.blocks)
            .set(wanted)
            .map_err(LabError::os("change what is blocked between hosts"))
    }

    /// Gives a namespace a number here that lives exactly as long as the namespace does, without keeping it alive.
    pub(crate) fn watch(&self, netns: &Netns) -> Result<i32, LabError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let message = Message::new(RTM_NEWNSID, 0, &[0; 4])
            .attr(NETNSA_NSID, &id.to_ne_bytes())
            .attr(NETNSA_FD, &netns.as_fd().as_raw_fd().to_ne_bytes());
        lock(&self.ids)
            .execute(&[message])
            .map_err(LabError::os(format!("number {}", netns.id())))?;
        Ok(id)
    }

    /// The numbers of those watched namespaces that still exist, whoever holds them.
    pub(crate) fn alive(&self) -> Result<BTreeSet<i32>, LabError> {
        let mut alive = BTreeSet::new();
        let dump = lock(&self.ids).dump(Message::new(RTM_GETNSID, 0, &[0; 4]), |body| {
            alive.extend(
                raw::attributes(body.get(4..).unwrap_or_default()).filter_map(|(kind, value)| {
                    (kind == NETNSA_NSID)
                        .then(|| value.try_into().map(i32::from_ne_bytes).ok())
                        .flatten()
                }),
            );
        });
        dump.map_err(LabError::os("list the namespaces of the lab"))?;
        Ok(alive)
    }
}

/// The names of all nf_tables tables in the calling thread's network namespace, as `nft list tables` shows them.
pub(crate) fn tables() -> io::Result<BTreeSet<String>> {
    let mut tables = BTreeSet::new();
    Raw::open(SockProtocol::NetlinkNetFilter)?.dump(Message::new(NFT_GETTABLE, 0, &[0; 4]), |body| {
        let family = match body.first() {
            Some(1) => "inet",
            Some(2) => "ip",
            Some(3) => "arp",
            Some(5) => "netdev",
            Some(7) => "bridge",
            Some(10) => "ip6",
            _ => "other",
        };
        for (kind, value) in raw::attributes(body.get(4..).unwrap_or_default()) {
            if kind == 1 {
                let name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value));
                tables.insert(format!("{family} {name}"));
            }
        }
    })?;
    Ok(tables)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
