//! What a service is in nf_tables; pure, so that golden tests can read it.
//!
//! ```text
//! table inet weft-NETWORK
//!   map vips4  { VIP : where its pings go, or 0.0.0.0 }             map vips6 likewise, and so on
//!   map ports4 { VIP . PROTO . PORT : jump svc-ID-PROTO-PORT }
//!   map all4   { VIP : jump svc-ID }  of services with all ports
//!   map slots4-0 { NUMBER : address of a backend }                  and so on, see [`super::shards`]
//!   chain vips (nat, output)     whoever is in vips4 goes to vip4
//!   chain vip4                   asks ports4, all4, for pings vips4, and refuses the rest
//!   chain refuse                 TCP reset, else port unreachable
//!   made4, failed4, answered4, chains of the same names, and likewise for IPv6: see [`super::attempts`]
//!   chain svc-ID-tcp-80          the next slot: numgen counts through the numbers that are the service's
//!   chain svc-ID-tcp-80-89       the same for a range; elements lead there from each of its ports
//!   map svc-ID-tcp-80-89-to-8080 { PORT : TARGET }, where those differ
//!   chain svc-ID                 the same for all ports
//!   ct timeout svc-ID-tcp-3600   for how long connections to a service may be idle, if it says so
//! ```
//!
//! However many services there are, a packet asks one map, and four if it is for a virtual address; and it is only asked the
//! first packet of a connection. A change of a service touches its own chains and elements. Each has a range of numbers in a map
//! that it shares with others. New slots get other numbers, so that a packet that is with the old rule meets the old ones;
//! replacing the rule makes `numgen` start with the first slot again, on which least connection relies.
//!
//! The kernel follows all that elements lead to whenever rules change. Hence as few rules for each service as there can be:
//! what is the same for all stands in `vip4`, and what a service's chain does not translate comes back there to be refused.
//!
//! Of TCP only what opens a connection gets a backend. What comes in the middle of one was forgotten, and is reset: its
//! backend is not known any more.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use weft_netlink::nft::{
    CT_NEW, Chain, ChainType, Datum, Element, Expr, Family, Hook, Kind, Load, Reg, Reject, Rule, Set,
    SetData, TCP_OPENING, TCP_SYN, Table, Timeout, TimeoutProtocol, Transaction, Verdict, priority,
};
use weft_types::{NetworkId, ServiceId};

mod keys;
mod mark;
mod slots;
#[cfg(test)]
mod tests;
mod translate;

use self::translate::{Target, translated};
pub(super) use self::{
    keys::{
        Key, Map, add_elements, add_slots, add_slots_map, add_vips, addr_from, delete_elements, delete_slots,
        delete_vips, slots_map_of,
    },
    mark::{Mark, Range, sum},
    slots::Slots,
};
use super::attempts;
use crate::{Loads, PortMap, Protocol, Scheduler, Service};

/// The comment of the first rule of the base chain. Another one means another layout, which is replaced whole.
pub(super) const LAYOUT: &str = "weft virtual addresses, layout 4";
pub(super) const BASE_CHAIN: &str = "vips";
const REFUSE_CHAIN: &str = "refuse";
const SERVICE_PREFIX: &str = "svc-";
const TABLE_PREFIX: &str = "weft-";
/// Where a virtual address's backend for pings is.
const PINGED: Reg = Reg(4);
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

pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// The chain of a service with all ports.
fn main_chain(service: ServiceId) -> String {
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
        if service.ports.is_empty() && side == Side::Client {
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

/// The virtual addresses of a service, each with the backend that its pings go to; with no address where there is none, or where
/// they go by the service's chain.
pub(super) fn vips(service: &Service, seed: u64, side: Side) -> BTreeMap<IpAddr, IpAddr> {
    // Where services share addresses, what is nobody's port is the namespace's own.
    let vips = service.vips.iter().filter(|_| side == Side::Client);
    let pinged = |ipv6| {
        let active = service.active(ipv6);
        let one = seed.checked_rem(active.len() as u64);
        let one = one.filter(|_| !service.ports.is_empty());
        one.and_then(|one| active.get(one as usize).map(|(_, addr)| *addr))
    };
    let pinged = [false, true].map(|ipv6| pinged(ipv6).unwrap_or(nowhere(ipv6)));
    vips.map(|vip| (*vip, pinged[usize::from(vip.is_ipv6())]))
        .collect()
}

fn nowhere(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::UNSPECIFIED.into(),
        true => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The chains of a service.
pub(super) fn chains(service: &Service, side: Side) -> Vec<String> {
    let mut chains: Vec<String> = service
        .ports
        .iter()
        .map(|port| port_chain(service.id, port))
        .collect();
    if chains.is_empty() && side == Side::Client {
        chains.push(main_chain(service.id));
    }
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

/// What a service's configuration is known by in the kernel. The order of slots under least connection does not
/// enter: it changes with every connection.
pub(super) fn fingerprint(service: &Service, seed: u64, side: Side) -> String {
    let mut steady = service.clone();
    steady.scheduler = match service.scheduler {
        Scheduler::LeastConnections => Scheduler::WeightedRoundRobin,
        other => other,
    };
    let slots = Slots::of(&steady, &Loads::new(), seed, side);
    let mut text = format!(
        "{LAYOUT} {}\n{:?}\n{slots:?}\n",
        service.scheduler,
        elements(service, side)
    );
    let mut rules = Transaction::new();
    // Wherever the slots stand.
    write_rules(
        &mut rules,
        &table_of(NetworkId([0; 16])),
        service,
        &slots,
        &Mark::default(),
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
        change.add_set(table, Set::new(map.name(), map.key(), map.data()));
    }
    // Always so in a translating chain; but only with such a rule somewhere does the kernel track connections, and
    // ask translating chains, even while no service has a backend.
    let tracked = Rule::new()
        .equal(Load::CtState, Datum::Number(CT_NEW))
        .comment(LAYOUT);
    change.add_rule(table, BASE_CHAIN, tracked);
    for ipv6 in [false, true] {
        let version = Rule::new().then(Expr::Version { ipv6 });
        match side {
            Side::Client => {
                let chain = if ipv6 { "vip6" } else { "vip4" };
                let is_virtual = pinged(version, ipv6).then(Expr::Verdict(Verdict::Goto(chain.to_owned())));
                change
                    .add_chain(table, Chain::regular(chain))
                    .add_rule(table, BASE_CHAIN, is_virtual);
                write_vip_chain(change, table, chain, ipv6);
            }
            Side::Entry => {
                change.add_rule(table, BASE_CHAIN, by_port(version, ipv6));
            }
        }
    }
    change
        .add_rule(
            table,
            REFUSE_CHAIN,
            Rule::new()
                .equal(Load::L4Proto, Datum::Proto(protocol_number(Protocol::Tcp)))
                .then(Expr::Reject(Reject::TcpReset)),
        )
        .add_rule(
            table,
            REFUSE_CHAIN,
            Rule::new().then(Expr::Reject(Reject::PortUnreachable)),
        );
    attempts::write(change, table);
}

/// What is for a virtual address.
fn write_vip_chain(change: &mut Transaction, table: &Table, chain: &str, ipv6: bool) {
    let proto = |proto| Rule::new().equal(Load::L4Proto, Datum::Proto(proto));
    let all = Rule::new().then(daddr(ipv6)).then(Expr::Vmap {
        set: Map::All { ipv6 }.name().into(),
        key: Reg(0),
    });
    // A virtual address answers ping, whatever its ports.
    let ping = pinged(proto(if ipv6 { ICMPV6 } else { ICMP }), ipv6)
        .then(Expr::Compare {
            reg: PINGED,
            equal: false,
            value: nowhere(ipv6).into(),
        })
        .then(Expr::Dnat {
            ipv6,
            addr: PINGED,
            port: None,
        });
    change
        .add_rule(table, chain, stale_tcp(proto(protocol_number(Protocol::Tcp))))
        .add_rule(table, chain, by_port(Rule::new(), ipv6))
        .add_rule(table, chain, all)
        .add_rule(table, chain, ping)
        .add_rule(table, chain, Rule::new().then(refuse()));
}

fn daddr(ipv6: bool) -> Expr {
    let daddr = if ipv6 { Load::Ip6Daddr } else { Load::Ip4Daddr };
    Expr::Load(daddr, Reg(0))
}

/// Finds the chain of an address and port.
fn by_port(rule: Rule, ipv6: bool) -> Rule {
    let len = if ipv6 { 4 } else { 1 };
    rule.then(daddr(ipv6))
        .then(Expr::Load(Load::L4Proto, Reg(len)))
        .then(Expr::Load(Load::Dport, Reg(len + 1)))
        .then(Expr::Vmap {
            set: Map::Ports { ipv6 }.name().into(),
            key: Reg(0),
        })
}

/// Finds a virtual address, and where its pings go.
fn pinged(rule: Rule, ipv6: bool) -> Rule {
    rule.then(daddr(ipv6)).then(Expr::Lookup {
        set: Map::Vips { ipv6 }.name().into(),
        key: Reg(0),
        to: Some(PINGED),
        invert: false,
    })
}

/// Writes the rules of a service's chains anew; the chains are there, and the slots where `mark` says.
pub(super) fn write_rules(
    change: &mut Transaction,
    table: &Table,
    service: &Service,
    slots: &Slots,
    mark: &Mark,
) {
    let mut ports: Vec<&PortMap> = service.ports.iter().collect();
    ports.sort();
    for port in ports {
        let timeouts = timeouts(service).into_iter();
        let timeouts = timeouts.filter(|timeout| timeout.protocol == timeout_protocol(port.protocol));
        let target = match target_map(service.id, port) {
            Some(map) => Target::Map(map),
            None if port.port != port.target => Target::Port(port.target.get()),
            None => Target::Same,
        };
        let mut rules = Vec::new();
        if port.protocol == Protocol::Tcp && slots.side == Side::Entry {
            rules.push(stale_tcp(Rule::new()));
        }
        rules.extend(timeouts.map(|timeout| Rule::new().then(Expr::Timeout(timeout.name))));
        let chain = port_chain(service.id, port);
        write_chain(change, table, &chain, rules, slots, &target, mark);
    }
    if service.ports.is_empty() && slots.side == Side::Client {
        let timeouts = timeouts(service).into_iter();
        let rules = timeouts.map(|timeout| Rule::new().then(Expr::Timeout(timeout.name)));
        let chain = main_chain(service.id);
        write_chain(change, table, &chain, rules.collect(), slots, &Target::Same, mark);
    }
}

/// Writes a chain that ends with the translation. What it lets pass is refused; of addresses that are shared, right there.
fn write_chain(
    change: &mut Transaction,
    table: &Table,
    chain: &str,
    mut rules: Vec<Rule>,
    slots: &Slots,
    target: &Target,
    mark: &Mark,
) {
    let versions = [false, true].into_iter();
    rules.extend(versions.filter_map(|ipv6| translated(slots, ipv6, target, mark)));
    if slots.side == Side::Entry || slots.is_empty() {
        rules.push(Rule::new().then(refuse()));
    }
    change.flush_chain(table, chain);
    if let Some(last) = rules.pop() {
        // By its comment the service is known, and that the chain is whole.
        rules.push(last.comment(mark.to_string()));
    }
    for rule in rules {
        change.add_rule(table, chain, rule);
    }
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
        .then(refuse())
}

fn refuse() -> Expr {
    Expr::Verdict(Verdict::Goto(REFUSE_CHAIN.to_owned()))
}
