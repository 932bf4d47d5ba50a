//! What a service is in nf_tables; pure, so that golden tests can read it.
//!
//! ```text
//! table inet weft-NETWORK
//!   map ports4 { VIP . PROTO . PORT : goto svc-ID-PROTO-PORT }      map ports6 likewise
//!   map vips4  { VIP : goto svc-ID }                                map vips6 likewise
//!   chain vips (nat, output)     asks ports4, vips4, ports6, vips6
//!   chain refuse                 TCP reset, else port unreachable
//!   made4, failed4, answered4, chains of the same names, and likewise for IPv6: see [`super::attempts`]
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

use std::{collections::BTreeMap, fmt::Write as _};

use weft_netlink::nft::{
    CT_NEW, Chain, ChainType, Datum, Element, Expr, Family, Hook, Kind, Load, Reg, Reject, Rule, Set,
    SetData, TCP_OPENING, TCP_SYN, Table, Timeout, TimeoutProtocol, Transaction, Verdict, priority,
};
use weft_types::{NetworkId, ServiceId};

mod keys;
mod slots;
#[cfg(test)]
mod tests;
mod translate;

use self::translate::{Target, translate};
pub(super) use self::{
    keys::{Key, Map, add_elements, delete_elements},
    slots::Slots,
};
use super::attempts;
use crate::{Loads, PortMap, Protocol, Scheduler, Service};

/// The comment of the first rule of the base chain. Another one means another layout, which is replaced whole.
pub(super) const LAYOUT: &str = "weft virtual addresses, layout 3";
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
                .equal(Load::L4Proto, Datum::Proto(protocol_number(Protocol::Tcp)))
                .then(Expr::Reject(Reject::TcpReset)),
        )
        .add_rule(
            table,
            REFUSE_CHAIN,
            Rule::new().then(Expr::Reject(Reject::PortUnreachable)),
        );
    attempts::write(change, table, side);
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
        change.add_rule(table, &chain, Rule::new().then(refuse()));
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
    let last = Rule::new().then(refuse());
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
        .then(refuse())
}

fn refuse() -> Expr {
    Expr::Verdict(Verdict::Goto(REFUSE_CHAIN.to_owned()))
}
