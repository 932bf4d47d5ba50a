//! What a service is in nf_tables; pure, so that golden tests can read it.
//!
//! ```text
//! table inet weft-NETWORK
//!   map ports4 { VIP . PROTO . PORT : goto svc-ID-PROTO-PORT }      map ports6 likewise
//!   map vips4  { VIP : goto svc-ID }                                map vips6 likewise
//!   chain vips (nat, output)     asks ports4, vips4, ports6, vips6
//!   chain refuse                 TCP reset, else port unreachable
//!   made4, failed4, chains of the same names, and likewise for IPv6: see [`super::attempts`]
//!   chain svc-ID-tcp-80          the next slot: numgen counts through a map of backend addresses
//!   chain svc-ID-tcp-80-89       the same for a range; elements lead there from each of its ports
//!   map svc-ID-tcp-80-89-to-8080 { PORT : TARGET }, where those differ
//!   chain svc-ID                 the same for the rest of the address, or refuse
//!   ct timeout svc-ID-tcp-3600   for how long connections to a service may be idle, if it says so
//! ```
//!
//! However many services there are, a packet asks at most two maps; and it is only asked the first packet of a
//! connection. A change of a service touches its own chains and elements. The slots stand in a map that belongs to
//! one rule; replacing the rule makes `numgen` start with the first slot again, on which least connection relies.
//!
//! Of TCP only what opens a connection gets a backend. What comes in the middle of one was forgotten, and is reset: its
//! backend is not known any more.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use weft_netlink::nft::{
    CT_NEW, Chain, ChainType, Datum, Element, Expr, Family, Hook, Kind, Load, Reg, Reject, Rule, Set,
    SetData, TCP_OPENING, TCP_SYN, Table, Timeout, TimeoutProtocol, Transaction, Verdict, priority,
};
use weft_types::{NetworkId, ServiceId};

#[cfg(test)]
mod tests;

use super::attempts;
use crate::{Loads, PortMap, Protocol, Scheduler, Service, choices};

/// The comment of the first rule of the base chain. Another one means another layout, which is replaced whole.
pub(super) const LAYOUT: &str = "weft virtual addresses, layout 2";
pub(super) const BASE_CHAIN: &str = "vips";
const REFUSE_CHAIN: &str = "refuse";
const SERVICE_PREFIX: &str = "svc-";
const TABLE_PREFIX: &str = "weft-";
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Whose connections are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Side {
    /// Those of the namespace itself: it is the client.
    #[default]
    Client,
    /// Those that come into the namespace, to addresses of its own that several services share.
    Entry,
}

/// The table of one network.
pub(super) fn table_of(network: NetworkId) -> Table {
    Table::new(Family::Inet, format!("{TABLE_PREFIX}{}", network.short()))
}

/// Whether a table's name is of the form that [`table_of`] gives.
pub(super) fn is_table_name(name: &str) -> bool {
    name.strip_prefix(TABLE_PREFIX)
        .is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The maps of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    Ports { ipv6: bool },
    Vips { ipv6: bool },
}

impl Map {
    pub(super) const ALL: [Self; 4] = [
        Self::Ports { ipv6: false },
        Self::Ports { ipv6: true },
        Self::Vips { ipv6: false },
        Self::Vips { ipv6: true },
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ports { ipv6: false } => "ports4",
            Self::Ports { ipv6: true } => "ports6",
            Self::Vips { ipv6: false } => "vips4",
            Self::Vips { ipv6: true } => "vips6",
        }
    }

    fn key(self) -> Vec<Kind> {
        match self {
            Self::Ports { ipv6: false } => vec![Kind::Addr4, Kind::Proto, Kind::Port],
            Self::Ports { ipv6: true } => vec![Kind::Addr6, Kind::Proto, Kind::Port],
            Self::Vips { ipv6: false } => vec![Kind::Addr4],
            Self::Vips { ipv6: true } => vec![Kind::Addr6],
        }
    }
}

/// A key of one of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) vip: IpAddr,
    /// Protocol and port; none stands for the rest of the address.
    pub(super) port: Option<(u8, u16)>,
}

impl Key {
    pub(super) fn map(&self) -> Map {
        match self.port {
            Some(_) => Map::Ports {
                ipv6: self.vip.is_ipv6(),
            },
            None => Map::Vips {
                ipv6: self.vip.is_ipv6(),
            },
        }
    }

    fn data(&self) -> Vec<Datum> {
        let mut data = vec![Datum::from(self.vip)];
        if let Some((protocol, port)) = self.port {
            data.extend([Datum::Proto(protocol), Datum::Port(port)]);
        }
        data
    }

    /// Reads back the bytes of a key: the address, and the rest in fields padded to four bytes.
    pub(super) fn from_bytes(map: Map, bytes: &[u8]) -> Option<Self> {
        let (Map::Ports { ipv6 } | Map::Vips { ipv6 }) = map;
        let (vip, rest) = if ipv6 {
            let (addr, rest) = bytes.split_first_chunk::<16>()?;
            (IpAddr::from(*addr), rest)
        } else {
            let (addr, rest) = bytes.split_first_chunk::<4>()?;
            (IpAddr::from(*addr), rest)
        };
        let port = match (map, rest) {
            (Map::Ports { .. }, [protocol, _, _, _, high, low, ..]) => {
                Some((*protocol, u16::from_be_bytes([*high, *low])))
            }
            (Map::Ports { .. }, _) => return None,
            (Map::Vips { .. }, _) => None,
        };
        Some(Self { vip, port })
    }
}

pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// The chain for the whole address of a service; its first rule carries the service's fingerprint.
pub(super) fn main_chain(service: ServiceId) -> String {
    format!("{SERVICE_PREFIX}{service}")
}

fn port_chain(service: ServiceId, port: &PortMap) -> String {
    let name = format!("{SERVICE_PREFIX}{service}-{}-{}", port.protocol, port.port);
    match port.pairs().last() {
        Some((last, _)) if last > port.port.get() => format!("{name}-{last}"),
        _ => name,
    }
}

/// The map from the ports of a range to their targets, if it needs one. A rule could have a map of its own, but those are empty
/// for a moment whenever the rule is written, and least connection writes it with every connection.
fn target_map(service: ServiceId, port: &PortMap) -> Option<String> {
    let name = || format!("{}-to-{}", port_chain(service, port), port.target);
    (port.port != port.target && port.count.get() > 1).then(name)
}

/// The maps of a service.
pub(super) fn target_maps(service: &Service) -> BTreeMap<String, &PortMap> {
    let ports = service.ports.iter();
    ports
        .filter_map(|port| Some((target_map(service.id, port)?, port)))
        .collect()
}

/// Adds one of [`target_maps`].
pub(super) fn add_target_map(change: &mut Transaction, table: &Table, name: &str, port: &PortMap) {
    let pairs = port.pairs();
    let elements = pairs.map(|(from, to)| Element::value([Datum::Port(from)], Datum::Port(to)));
    change
        .add_set(table, Set::new(name, [Kind::Port], SetData::Value(Kind::Port)))
        .add_elements(table, name, elements.collect());
}

/// The service to which a chain, a map or a time-out belongs.
pub(super) fn service_of_chain(chain: &str) -> Option<ServiceId> {
    chain.strip_prefix(SERVICE_PREFIX)?.get(..32)?.parse().ok()
}

/// Everything that leads to a service: key and chain.
pub(super) fn elements(service: &Service, side: Side) -> BTreeMap<Key, String> {
    let mut elements = BTreeMap::new();
    for &vip in &service.vips {
        if side == Side::Client {
            elements.insert(Key { vip, port: None }, main_chain(service.id));
        }
        for port in &service.ports {
            for (number, _) in port.pairs() {
                let port_key = Some((protocol_number(port.protocol), number));
                let key = Key { vip, port: port_key };
                elements.insert(key, port_chain(service.id, port));
            }
        }
    }
    elements
}

/// The chains of a service.
pub(super) fn chains(service: &Service) -> Vec<String> {
    let mut chains: Vec<String> = service
        .ports
        .iter()
        .map(|port| port_chain(service.id, port))
        .collect();
    chains.push(main_chain(service.id));
    chains.sort();
    chains.dedup();
    chains
}

/// How long connections to a service may be idle, by protocol.
pub(super) fn timeouts(service: &Service) -> Vec<Timeout> {
    let Some(secs) = service.idle_secs() else {
        return Vec::new();
    };
    let has = |protocol: &TimeoutProtocol| {
        let of = |port: &PortMap| timeout_protocol(port.protocol) == *protocol;
        service.ports.is_empty() || service.ports.iter().any(of)
    };
    let protocols = TimeoutProtocol::ALL.into_iter().filter(has);
    protocols
        .map(|protocol| Timeout {
            name: format!("{SERVICE_PREFIX}{}-{}-{secs}", service.id, protocol.name()),
            protocol,
            secs,
        })
        .collect()
}

fn timeout_protocol(protocol: Protocol) -> TimeoutProtocol {
    match protocol {
        Protocol::Tcp => TimeoutProtocol::Tcp,
        Protocol::Udp => TimeoutProtocol::Udp,
    }
}

/// The addresses to translate to, one after the other, for IPv4 and IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Slots {
    side: Side,
    /// Whether it is the client's address that finds its slot, instead of each connection taking the next one.
    by_client: bool,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

impl Slots {
    /// `seed` differs between sandboxes, so that they do not all begin with the same backend.
    pub(super) fn of(service: &Service, loads: &Loads, seed: u64, side: Side) -> Self {
        let by_client = service.scheduler == Scheduler::Maglev && side == Side::Entry;
        let slots = |ipv6| {
            if !service.vips.iter().any(|vip| vip.is_ipv6() == ipv6) {
                return Vec::new();
            }
            let mut chosen = choices(service, ipv6, loads);
            if service.scheduler != Scheduler::LeastConnections && !by_client && !chosen.is_empty() {
                let len = chosen.len();
                chosen.rotate_left((seed % len as u64) as usize);
            }
            if service.scheduler == Scheduler::Maglev && !by_client {
                // The sandbox is the client, so its place in the table is all it needs.
                chosen.truncate(1);
            }
            let addrs: BTreeMap<_, _> = service
                .active(ipv6)
                .into_iter()
                .map(|(backend, addr)| (backend.endpoint, addr))
                .collect();
            chosen
                .iter()
                .filter_map(|endpoint| addrs.get(endpoint).copied())
                .collect()
        };
        Self {
            side,
            by_client,
            v4: slots(false),
            v6: slots(true),
        }
    }

    fn of_version(&self, ipv6: bool) -> &[IpAddr] {
        if ipv6 { &self.v6 } else { &self.v4 }
    }

    /// Whether the order can make a difference.
    pub(super) fn has_choice(&self) -> bool {
        self.v4.len() > 1 || self.v6.len() > 1
    }
}

/// What a service's configuration is known by in the kernel. The order of slots under least connection does not
/// enter: it changes with every connection.
pub(super) fn fingerprint(service: &Service, seed: u64, side: Side) -> String {
    let mut steady = service.clone();
    steady.scheduler = match service.scheduler {
        Scheduler::LeastConnections => Scheduler::WeightedRoundRobin,
        other => other,
    };
    let mut text = format!("{LAYOUT} {}\n{:?}\n", service.scheduler, elements(service, side));
    let mut rules = Transaction::new();
    write_rules(
        &mut rules,
        &table_of(NetworkId([0; 16])),
        service,
        &Slots::of(&steady, &Loads::new(), seed, side),
        "",
    );
    let _ = write!(text, "{rules}");
    format!("{:016x}", fnv(text.as_bytes()))
}

/// FNV-1a: the same in every build, which the standard library's hasher does not promise.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Makes an empty table in place of whatever is there.
pub(super) fn write_table(change: &mut Transaction, table: &Table, side: Side) {
    let hook = match side {
        Side::Client => Hook::Output,
        Side::Entry => Hook::Prerouting,
    };
    change
        .delete_table(table)
        .add_table(table)
        .add_chain(
            table,
            Chain::base(BASE_CHAIN, ChainType::Nat, hook, priority::DSTNAT),
        )
        .add_chain(table, Chain::regular(REFUSE_CHAIN));
    for map in Map::ALL {
        change.add_set(table, Set::new(map.name(), map.key(), SetData::Verdict));
    }
    // Always so in a translating chain; but only with such a rule somewhere does the kernel track connections, and
    // ask translating chains, even while no service has a backend.
    let tracked = Rule::new()
        .equal(Load::CtState, Datum::Number(CT_NEW))
        .comment(LAYOUT);
    change.add_rule(table, BASE_CHAIN, tracked);
    for ipv6 in [false, true] {
        let (daddr, len) = if ipv6 {
            (Load::Ip6Daddr, 4)
        } else {
            (Load::Ip4Daddr, 1)
        };
        let address = || {
            Rule::new()
                .then(Expr::Version { ipv6 })
                .then(Expr::Load(daddr, Reg(0)))
        };
        let ports = address()
            .then(Expr::Load(Load::L4Proto, Reg(len)))
            .then(Expr::Load(Load::Dport, Reg(len + 1)))
            .then(Expr::Vmap {
                set: Map::Ports { ipv6 }.name().into(),
                key: Reg(0),
            });
        let vips = address().then(Expr::Vmap {
            set: Map::Vips { ipv6 }.name().into(),
            key: Reg(0),
        });
        change
            .add_rule(table, BASE_CHAIN, ports)
            .add_rule(table, BASE_CHAIN, vips);
    }
    change
        .add_rule(
            table,
            REFUSE_CHAIN,
            Rule::new()
                .equal(Load::L4Proto, Datum::Proto(6))
                .then(Expr::Reject(Reject::TcpReset)),
        )
        .add_rule(
            table,
            REFUSE_CHAIN,
            Rule::new().then(Expr::Reject(Reject::PortUnreachable)),
        );
    attempts::write(change, table, side);
}

/// Adds what leads to a service.
pub(super) fn add_elements<'a>(
    change: &mut Transaction,
    table: &Table,
    elements: impl Iterator<Item = (&'a Key, &'a String)> + Clone,
) {
    for map in Map::ALL {
        let of_map = elements.clone().filter(|(key, _)| key.map() == map);
        let new = of_map
            .map(|(key, chain)| Element::verdict(key.data(), Verdict::Goto(chain.clone())))
            .collect();
        change.add_elements(table, map.name(), new);
    }
}

/// Deletes what leads to a service.
pub(super) fn delete_elements<'a>(
    change: &mut Transaction,
    table: &Table,
    keys: impl Iterator<Item = &'a Key> + Clone,
) {
    for map in Map::ALL {
        let old = keys
            .clone()
            .filter(|key| key.map() == map)
            .map(|key| Element::key(key.data()))
            .collect();
        change.delete_elements(table, map.name(), old);
    }
}

/// Writes the rules of a service's chains anew; the chains are there.
pub(super) fn write_rules(
    change: &mut Transaction,
    table: &Table,
    service: &Service,
    slots: &Slots,
    fingerprint: &str,
) {
    let mut ports: Vec<&PortMap> = service.ports.iter().collect();
    ports.sort();
    for port in ports {
        let chain = port_chain(service.id, port);
        change.flush_chain(table, &chain);
        if port.protocol == Protocol::Tcp {
            change.add_rule(table, &chain, stale_tcp(Rule::new()));
        }
        for timeout in timeouts(service) {
            if timeout.protocol == timeout_protocol(port.protocol) {
                change.add_rule(table, &chain, Rule::new().then(Expr::Timeout(timeout.name)));
            }
        }
        let target = match target_map(service.id, port) {
            Some(map) => Target::Map(map),
            None if port.port != port.target => Target::Port(port.target.get()),
            None => Target::Same,
        };
        for ipv6 in [false, true] {
            if !slots.of_version(ipv6).is_empty() {
                let rule = Rule::new().then(Expr::Version { ipv6 });
                translate(change, table, &chain, rule, slots, ipv6, &target);
            }
        }
        change.add_rule(table, &chain, goto_refuse());
    }
    let chain = main_chain(service.id);
    change.flush_chain(table, &chain);
    if service.ports.is_empty() && slots.side == Side::Client {
        let tcp = Rule::new().equal(Load::L4Proto, Datum::Proto(protocol_number(Protocol::Tcp)));
        change.add_rule(table, &chain, stale_tcp(tcp));
        for timeout in timeouts(service) {
            change.add_rule(table, &chain, Rule::new().then(Expr::Timeout(timeout.name)));
        }
    }
    let mut comment = Some(fingerprint);
    for ipv6 in [false, true] {
        // Nobody comes by this chain to an address that is not the service's alone.
        if slots.of_version(ipv6).is_empty() || slots.side == Side::Entry {
            continue;
        }
        let mut rule = Rule::new().then(Expr::Version { ipv6 });
        if !service.ports.is_empty() {
            // A virtual address answers ping, whatever its ports.
            rule = rule.equal(Load::L4Proto, Datum::Proto(if ipv6 { ICMPV6 } else { ICMP }));
        }
        if let Some(comment) = comment.take() {
            rule = rule.comment(comment);
        }
        translate(change, table, &chain, rule, slots, ipv6, &Target::Same);
    }
    let last = goto_refuse();
    change.add_rule(
        table,
        &chain,
        if let Some(comment) = comment {
            last.comment(comment)
        } else {
            last
        },
    );
}

/// Refuses what is in the middle of a connection.
fn stale_tcp(tcp: Rule) -> Rule {
    tcp.then(Expr::Load(Load::TcpFlags, Reg(0)))
        .then(Expr::Mask {
            reg: Reg(0),
            mask: Datum::Bits(TCP_OPENING),
        })
        .then(Expr::Compare {
            reg: Reg(0),
            equal: false,
            value: Datum::Bits(TCP_SYN),
        })
        .then(Expr::Verdict(Verdict::Goto(REFUSE_CHAIN.to_owned())))
}

fn goto_refuse() -> Rule {
    Rule::new().then(Expr::Verdict(Verdict::Goto(REFUSE_CHAIN.to_owned())))
}

/// The port of a backend.
enum Target {
    Same,
    Port(u16),
    /// By this map from that of the service.
    Map(String),
}

/// Ends `rule` with the translation to the next slot.
fn translate(
    change: &mut Transaction,
    table: &Table,
    chain: &str,
    rule: Rule,
    slots: &Slots,
    ipv6: bool,
    target: &Target,
) {
    let (slots, by_client) = (slots.of_version(ipv6), slots.by_client);
    if let [first, _, ..] = slots {
        // A commit makes new rules visible a moment before the elements of their maps. Whoever comes in between
        // finds no slot, and must not be refused.
        translate_to(change, table, chain, rule.clone(), slots, by_client, target);
        translate_to(change, table, chain, rule, &[*first], by_client, target);
    } else {
        translate_to(change, table, chain, rule, slots, by_client, target);
    }
}

fn translate_to(
    change: &mut Transaction,
    table: &Table,
    chain: &str,
    mut rule: Rule,
    slots: &[IpAddr],
    by_client: bool,
    target: &Target,
) {
    let (number, addr, port) = (Reg(0), Reg(4), Reg(8));
    let ipv6 = slots.first().is_some_and(IpAddr::is_ipv6);
    rule = match slots {
        [one] => rule.then(Expr::Immediate {
            value: (*one).into(),
            to: addr,
        }),
        many => {
            let kind = if ipv6 { Kind::Addr6 } else { Kind::Addr4 };
            let elements = many
                .iter()
                .enumerate()
                .map(|(slot, addr)| Element::value([Datum::Number(slot as u32)], (*addr).into()))
                .collect();
            let set = Set::anonymous([Kind::Number], SetData::Value(kind));
            let set = change.add_anonymous_set(table, set, elements);
            let modulus = many.len() as u32;
            let rule = if by_client {
                let (saddr, len) = if ipv6 {
                    (Load::Ip6Saddr, 16)
                } else {
                    (Load::Ip4Saddr, 4)
                };
                rule.then(Expr::Load(saddr, addr)).then(Expr::Hash {
                    key: addr,
                    len,
                    modulus,
                    to: number,
                })
            } else {
                rule.then(Expr::Numgen { modulus, to: number })
            };
            rule.then(Expr::Lookup {
                set,
                key: number,
                to: Some(addr),
                invert: false,
            })
        }
    };
    let port = match target {
        Target::Same => None,
        Target::Port(target) => {
            rule = rule.then(Expr::Immediate {
                value: Datum::Port(*target),
                to: port,
            });
            Some(port)
        }
        Target::Map(map) => {
            rule = rule.then(Expr::Load(Load::Dport, number)).then(Expr::Lookup {
                set: map.as_str().into(),
                key: number,
                to: Some(port),
                invert: false,
            });
            Some(port)
        }
    };
    change.add_rule(table, chain, rule.then(Expr::Dnat { ipv6, addr, port }));
}
