//! What stands in the maps: shared by the programs, which know it by offset, and by the agent.
//!
//! ```text
//! sandboxes  cookie of a network namespace        → view
//! vips       view . address . port . protocol     → service, target port      port 0: the rest of the address
//! services   service id                           → scheduler, where its slots are
//! slots      number                               → backend number, weight
//! backends   number                               → addresses, tag             never changed while in use
//! loads      number                               → open, tried, failed, made  changed by the programs only
//! sockets    a socket                             → what was translated last, and whether it counts
//! flows      socket cookie . address . port       → for sockets that are not connected: backend, and back
//! ledger     service id . endpoint id             → backend number             for the agent after a restart
//! ```
//!
//! A view is a set of networks: sandboxes on the same networks share what they see. Addresses are written in sixteen
//! bytes, IPv4 as `::ffff:a.b.c.d`, as sockets of IPv6 that talk to IPv4 have it. Ports are in network byte order, all
//! else in the machine's.

use std::net::{IpAddr, Ipv6Addr};

use weft_netlink::bpf::{MapKind, MapSpec};
use weft_types::{EndpointId, NetworkId, ServiceId};

use crate::{Protocol, Scheduler};

/// Maps of another layout are not adopted.
pub(super) const LAYOUT: u32 = 3;

const MAX_SANDBOXES: u32 = 65_536;
const MAX_VIPS: u32 = 1 << 18;
const MAX_SERVICES: u32 = 65_536;
pub(super) const MAX_SLOTS: u32 = 1 << 19;
pub(super) const MAX_BACKENDS: u32 = 1 << 17;
const MAX_FLOWS: u32 = 1 << 14;

/// The maps, in the order in which programs are given them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapId {
    Sandboxes,
    Vips,
    Services,
    Slots,
    Backends,
    Loads,
    Sockets,
    Flows,
    Ledger,
}

impl MapId {
    pub(super) const ALL: [Self; 9] = [
        Self::Sandboxes,
        Self::Vips,
        Self::Services,
        Self::Slots,
        Self::Backends,
        Self::Loads,
        Self::Sockets,
        Self::Flows,
        Self::Ledger,
    ];

    pub(super) fn spec(self) -> MapSpec {
        let spec = |name, kind, key, value, entries| MapSpec {
            name,
            kind,
            key,
            value,
            entries,
        };
        match self {
            Self::Sandboxes => spec("weft_sandboxes", MapKind::Hash, 8, sandbox::LEN, MAX_SANDBOXES),
            Self::Vips => spec("weft_vips", MapKind::Hash, vip::KEY_LEN, vip::LEN, MAX_VIPS),
            Self::Services => spec("weft_services", MapKind::Hash, 16, service::LEN, MAX_SERVICES),
            Self::Slots => spec("weft_slots", MapKind::Array, 4, slot::LEN, MAX_SLOTS),
            Self::Backends => spec("weft_backends", MapKind::Array, 4, backend::LEN, MAX_BACKENDS),
            Self::Loads => spec("weft_loads", MapKind::Array, 4, load::LEN, MAX_BACKENDS),
            Self::Sockets => spec("weft_sockets", MapKind::Sockets, 4, socket::LEN, 0),
            Self::Flows => spec("weft_flows", MapKind::Recent, flow::KEY_LEN, flow::LEN, MAX_FLOWS),
            Self::Ledger => spec("weft_ledger", MapKind::Hash, 32, 4, MAX_BACKENDS),
        }
    }
}

/// Value of `sandboxes`.
pub(super) mod sandbox {
    pub(in super::super) const VIEW: i16 = 0;
    /// A hash of the sandbox's name, by which an agent that has restarted knows it, and the key of `maglev`.
    pub(in super::super) const NAME: i16 = 8;
    pub(in super::super) const LEN: usize = 16;
}

/// Key and value of `vips`.
pub(super) mod vip {
    pub(in super::super) const KEY_VIEW: i16 = 0;
    pub(in super::super) const KEY_ADDR: i16 = 8;
    pub(in super::super) const KEY_PORT: i16 = 24;
    pub(in super::super) const KEY_PROTOCOL: i16 = 26;
    pub(in super::super) const KEY_LEN: usize = 32;
    pub(in super::super) const SERVICE: i16 = 0;
    /// 0: as it is.
    pub(in super::super) const TARGET: i16 = 16;
    pub(in super::super) const REFUSE: i16 = 18;
    /// After so many seconds of silence a conversation of datagrams may go on at another backend; 0: `FLOW_IDLE_SECS`.
    pub(in super::super) const IDLE: i16 = 20;
    pub(in super::super) const LEN: usize = 24;
}

/// Value of `services`.
pub(super) mod service {
    /// Counts the choices; written by the programs.
    pub(in super::super) const TURN: i16 = 0;
    /// First slot and number of slots, for IPv4 and then for IPv6.
    pub(in super::super) const RANGES: i16 = 8;
    pub(in super::super) const SCHEDULER: i16 = 24;
    /// What the service's configuration is known by.
    pub(in super::super) const MARK: i16 = 32;
    pub(in super::super) const LEN: usize = 40;
}

/// Value of `slots`.
pub(super) mod slot {
    pub(in super::super) const BACKEND: i16 = 0;
    pub(in super::super) const WEIGHT: i16 = 4;
    pub(in super::super) const LEN: usize = 8;
}

/// Value of `backends`.
pub(super) mod backend {
    /// For IPv4 and then for IPv6.
    pub(in super::super) const ADDRS: i16 = 0;
    /// Never given twice; 0: nobody, or down.
    pub(in super::super) const TAG: i16 = 32;
    pub(in super::super) const LEN: usize = 40;
}

/// Value of `loads`.
pub(super) mod load {
    pub(in super::super) const OPEN: i16 = 0;
    /// The turn at which it was last chosen.
    pub(in super::super) const CHOSEN: i16 = 8;
    pub(in super::super) const TOTAL: i16 = 16;
    /// Of the total, those that were never made.
    pub(in super::super) const FAILED: i16 = 24;
    /// Of the total, those over TCP; of these, those that were made.
    pub(in super::super) const TCP: i16 = 32;
    pub(in super::super) const MADE: i16 = 40;
    pub(in super::super) const LEN: usize = 48;
}

/// Value of `sockets`.
pub(super) mod socket {
    pub(in super::super) const VIP: i16 = 0;
    pub(in super::super) const PEER: i16 = 16;
    pub(in super::super) const VIP_PORT: i16 = 32;
    pub(in super::super) const PEER_PORT: i16 = 34;
    pub(in super::super) const BACKEND: i16 = 36;
    pub(in super::super) const TAG: i16 = 40;
    /// Whether it is counted as open at the backend.
    pub(in super::super) const COUNTED: i16 = 48;
    pub(in super::super) const LEN: usize = 56;
}

/// Key and value of `flows`.
pub(super) mod flow {
    pub(in super::super) const KEY_COOKIE: i16 = 0;
    pub(in super::super) const KEY_ADDR: i16 = 8;
    pub(in super::super) const KEY_PORT: i16 = 24;
    /// 0: from a virtual address to its backend; 1: back.
    pub(in super::super) const KEY_BACK: i16 = 28;
    pub(in super::super) const KEY_LEN: usize = 32;
    pub(in super::super) const ADDR: i16 = 0;
    pub(in super::super) const TAG: i16 = 16;
    pub(in super::super) const SEEN: i16 = 24;
    pub(in super::super) const BACKEND: i16 = 32;
    pub(in super::super) const PORT: i16 = 36;
    pub(in super::super) const LEN: usize = 40;
}

pub(super) fn scheduler_number(scheduler: Scheduler) -> u32 {
    match scheduler {
        Scheduler::RoundRobin => 0,
        Scheduler::WeightedRoundRobin => 1,
        Scheduler::LeastConnections => 2,
        Scheduler::Maglev => 3,
    }
}

pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

pub(super) fn canonical(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn addr_of(bytes: &[u8]) -> IpAddr {
    Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()).to_canonical()
}

/// FNV-1a, as in the other datapath.
pub(super) fn view_of(networks: impl Iterator<Item = NetworkId>) -> u64 {
    let mut ids: Vec<[u8; 16]> = networks.map(|network| network.0).collect();
    ids.sort();
    super::super::program::fnv(&ids.concat())
}

/// A key of `vips`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct VipKey {
    pub(super) view: u64,
    pub(super) addr: IpAddr,
    /// Protocol and port; none stands for the rest of the address.
    pub(super) port: Option<(u8, u16)>,
}

/// A value of `vips`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VipEntry {
    pub(super) service: ServiceId,
    pub(super) target: Option<u16>,
    pub(super) refuse: bool,
    /// In seconds; 0 is the default.
    pub(super) idle: u32,
}

/// A value of `services`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ServiceEntry {
    pub(super) turn: u64,
    /// First slot and number of slots, for IPv4 and IPv6.
    pub(super) ranges: [(u32, u32); 2],
    pub(super) scheduler: u32,
    pub(super) mark: u64,
}

/// A value of `backends`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BackendEntry {
    pub(super) v4: Option<IpAddr>,
    pub(super) v6: Option<IpAddr>,
    pub(super) tag: u64,
}

impl VipKey {
    pub(super) fn encode(&self) -> [u8; vip::KEY_LEN] {
        let mut bytes = [0; vip::KEY_LEN];
        put(&mut bytes, vip::KEY_VIEW, &self.view.to_ne_bytes());
        put(&mut bytes, vip::KEY_ADDR, &canonical(self.addr));
        if let Some((protocol, port)) = self.port {
            put(&mut bytes, vip::KEY_PORT, &port.to_be_bytes());
            put(&mut bytes, vip::KEY_PROTOCOL, &[protocol]);
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let port = u16::from_be_bytes(take(bytes, vip::KEY_PORT));
        let [protocol] = take(bytes, vip::KEY_PROTOCOL);
        Self {
            view: u64::from_ne_bytes(take(bytes, vip::KEY_VIEW)),
            addr: addr_of(&take::<16>(bytes, vip::KEY_ADDR)),
            port: (protocol != 0).then_some((protocol, port)),
        }
    }
}

impl VipEntry {
    pub(super) fn encode(&self) -> [u8; vip::LEN] {
        let mut bytes = [0; vip::LEN];
        put(&mut bytes, vip::SERVICE, &self.service.0);
        put(
            &mut bytes,
            vip::TARGET,
            &self.target.unwrap_or_default().to_be_bytes(),
        );
        put(&mut bytes, vip::REFUSE, &[u8::from(self.refuse)]);
        put(&mut bytes, vip::IDLE, &self.idle.to_ne_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let target = u16::from_be_bytes(take(bytes, vip::TARGET));
        Self {
            service: ServiceId(take(bytes, vip::SERVICE)),
            target: (target != 0).then_some(target),
            refuse: take(bytes, vip::REFUSE) != [0],
            idle: u32::from_ne_bytes(take(bytes, vip::IDLE)),
        }
    }
}

impl ServiceEntry {
    pub(super) fn encode(&self) -> [u8; service::LEN] {
        let mut bytes = [0; service::LEN];
        put(&mut bytes, service::TURN, &self.turn.to_ne_bytes());
        for (family, (first, count)) in self.ranges.into_iter().enumerate() {
            let at = service::RANGES + 8 * family as i16;
            put(&mut bytes, at, &first.to_ne_bytes());
            put(&mut bytes, at + 4, &count.to_ne_bytes());
        }
        put(&mut bytes, service::SCHEDULER, &self.scheduler.to_ne_bytes());
        put(&mut bytes, service::MARK, &self.mark.to_ne_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let number = |at| u32::from_ne_bytes(take(bytes, at));
        let range = |at| (number(at), number(at + 4));
        Self {
            turn: u64::from_ne_bytes(take(bytes, service::TURN)),
            ranges: [range(service::RANGES), range(service::RANGES + 8)],
            scheduler: number(service::SCHEDULER),
            mark: u64::from_ne_bytes(take(bytes, service::MARK)),
        }
    }
}

impl BackendEntry {
    pub(super) fn encode(&self) -> [u8; backend::LEN] {
        let mut bytes = [0; backend::LEN];
        for (family, addr) in [self.v4, self.v6].into_iter().enumerate() {
            if let Some(addr) = addr {
                put(&mut bytes, backend::ADDRS + 16 * family as i16, &canonical(addr));
            }
        }
        put(&mut bytes, backend::TAG, &self.tag.to_ne_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let addr = |at| {
            let octets: [u8; 16] = take(bytes, at);
            (octets != [0; 16]).then(|| addr_of(&octets))
        };
        Self {
            v4: addr(backend::ADDRS),
            v6: addr(backend::ADDRS + 16),
            tag: u64::from_ne_bytes(take(bytes, backend::TAG)),
        }
    }
}

pub(super) fn slot_bytes(backend: u32, weight: u32) -> [u8; slot::LEN] {
    let mut bytes = [0; slot::LEN];
    put(&mut bytes, slot::BACKEND, &backend.to_ne_bytes());
    put(&mut bytes, slot::WEIGHT, &weight.to_ne_bytes());
    bytes
}

pub(super) fn sandbox_bytes(view: u64, name: u64) -> [u8; sandbox::LEN] {
    let mut bytes = [0; sandbox::LEN];
    put(&mut bytes, sandbox::VIEW, &view.to_ne_bytes());
    put(&mut bytes, sandbox::NAME, &name.to_ne_bytes());
    bytes
}

/// View and hash of the name.
pub(super) fn sandbox_of(bytes: &[u8]) -> (u64, u64) {
    let number = |at| u64::from_ne_bytes(take(bytes, at));
    (number(sandbox::VIEW), number(sandbox::NAME))
}

pub(super) fn ledger_key(service: ServiceId, endpoint: EndpointId) -> [u8; 32] {
    let mut bytes = [0; 32];
    put(&mut bytes, 0, &service.0);
    put(&mut bytes, 16, &endpoint.0);
    bytes
}

pub(super) fn ledger_key_of(bytes: &[u8]) -> (ServiceId, EndpointId) {
    (ServiceId(take(bytes, 0)), EndpointId(take(bytes, 16)))
}

/// What a socket was translated to, as far as it matters outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketEntry {
    pub(super) peer: IpAddr,
    pub(super) number: u32,
    pub(super) tag: u64,
}

impl SocketEntry {
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= socket::LEN).then(|| Self {
            peer: addr_of(&take::<16>(bytes, socket::PEER)),
            number: u32::from_ne_bytes(take(bytes, socket::BACKEND)),
            tag: u64::from_ne_bytes(take(bytes, socket::TAG)),
        })
    }

    /// From a value of `flows`.
    pub(super) fn of_flow(peer: IpAddr, bytes: &[u8]) -> Self {
        Self {
            peer,
            number: u32::from_ne_bytes(take(bytes, flow::BACKEND)),
            tag: u64::from_ne_bytes(take(bytes, flow::TAG)),
        }
    }
}

/// The key of `flows` for the way back from a backend to a socket.
pub(super) fn way_back(cookie: u64, peer: IpAddr, port: u16) -> [u8; flow::KEY_LEN] {
    let mut bytes = [0; flow::KEY_LEN];
    put(&mut bytes, flow::KEY_COOKIE, &cookie.to_ne_bytes());
    put(&mut bytes, flow::KEY_ADDR, &canonical(peer));
    put(&mut bytes, flow::KEY_PORT, &port.to_be_bytes());
    put(&mut bytes, flow::KEY_BACK, &1u32.to_ne_bytes());
    bytes
}

pub(super) fn number_at(bytes: &[u8], at: i16) -> u64 {
    u64::from_ne_bytes(take(bytes, at))
}

fn put(bytes: &mut [u8], at: i16, value: &[u8]) {
    let at = usize::from(at.unsigned_abs());
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Zeros where the bytes end early, which they do not: maps are adopted only with the lengths given here.
fn take<const N: usize>(bytes: &[u8], at: i16) -> [u8; N] {
    let at = usize::from(at.unsigned_abs());
    bytes
        .get(at..at + N)
        .and_then(|field| field.try_into().ok())
        .unwrap_or([0; N])
}
