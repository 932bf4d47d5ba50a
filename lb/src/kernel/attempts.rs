//! How many connections were tried and how many failed, counted by rules of their own.
//!
//! ```text
//! set made4    { original destination . protocol . who answers; counter }
//! set failed4, answered4  likewise                                made6, failed6, answered6 likewise
//! chain made   (nat, postrouting)          the first packet of each connection: made4, made6
//! chain failed (filter, input or forward)  what comes before a connection is made: a reset: failed4, failed6,
//!                                          or the answer that makes it: answered4, answered6, where somebody watches a service
//! ```
//!
//! The rules count by what connection tracking says, and know nothing of services, so that a change of those does not touch
//! them. The sets take up keys as they are met, which costs nothing for backends that nobody uses; if one is full, or there is
//! no memory, all that happens is that something is not counted. Among the keys may be what others have translated.
//! A packet of a connection that is made gets no further than the first rule, and what is counted no further than the rule that
//! counts it; of what is left, most is the answer that makes a connection, so that comes first.
//!
//! ICMP errors are not counted: of one connection that is tried there may be several, one for each time that its first packet is
//! sent. Nor is that nobody answers, of which there is no packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_netlink::{
    netns::Netns,
    nft::{
        CT_ASSURED, CT_DNAT, Chain, ChainType, Datum, Element, Expr, Family, Hook, Kind, Load, Nft, NftError,
        Reg, Rule, Set, TCP_RST, TCP_SYN, Table, Transaction, Verdict, priority,
    },
};
use weft_types::EndpointId;

use super::{
    Failure,
    program::{Side, is_table_name, protocol_number},
};
use crate::{Attempts, Protocol, Service};

const MADE: &str = "made";
const FAILED: &str = "failed";
const ANSWERED: &str = "answered";
/// The comments of the chain, by what it counts.
const FAILURES: &str = "failures";
const WITH_ANSWERS: &str = "failures and answers";
/// Pairs of a virtual address and a backend; about 100 bytes each.
const MOST: u32 = 1 << 16;

/// What a counter is kept for: a virtual address, a protocol, a backend's address.
type Key = (IpAddr, u8, IpAddr);

/// Adds sets, and the chain of all that is tried, to a new table.
pub(super) fn write(change: &mut Transaction, table: &Table) {
    for (set, ipv6) in sets() {
        let addr = if ipv6 { Kind::Addr6 } else { Kind::Addr4 };
        change.add_set(
            table,
            Set::counting(name(set, ipv6), [addr, Kind::Proto, addr], MOST),
        );
    }
    // Before anybody translates the source.
    let made = Chain::base(MADE, ChainType::Nat, Hook::Postrouting, priority::SNAT - 1);
    change.add_chain(table, made);
    for ipv6 in [false, true] {
        let translated = Rule::new().then(Expr::Load(Load::CtStatus, Reg(0)));
        let translated = masked(translated, Datum::Number(CT_DNAT), true, Datum::Number(CT_DNAT));
        change.add_rule(table, MADE, count(translated, MADE, ipv6));
    }
}

/// Writes the chain of what comes before a connection is made, in place of whatever is there. Resets are few; an answer there is to
/// every connection, and who is told the numbers wants to know of those only where a service is watched.
pub(super) fn write_failed(change: &mut Transaction, table: &Table, side: Side, counts_made: bool) {
    let hook = match side {
        Side::Client => Hook::Input,
        Side::Entry => Hook::Forward,
    };
    let failed = Chain::base(FAILED, ChainType::Filter, hook, priority::FILTER);
    change.add_chain(table, failed).flush_chain(table, FAILED);
    let is_made = Rule::new().then(Expr::Load(Load::CtStatus, Reg(0)));
    let is_made = masked(
        is_made,
        Datum::Number(CT_ASSURED | CT_DNAT),
        false,
        Datum::Number(CT_DNAT),
    );
    let comment = if counts_made { WITH_ANSWERS } else { FAILURES };
    let is_made = is_made.then(Expr::Verdict(Verdict::Accept)).comment(comment);
    change.add_rule(table, FAILED, is_made);
    let counted: &[_] = match counts_made {
        true => &[(TCP_SYN, ANSWERED), (TCP_RST, FAILED)],
        false => &[(TCP_RST, FAILED)],
    };
    for ipv6 in [false, true] {
        for &(flag, set) in counted {
            let answer = Rule::new()
                .equal(Load::CtDirection, Datum::Bits(1))
                .equal(Load::L4Proto, Datum::Proto(protocol_number(Protocol::Tcp)))
                .then(Expr::Load(Load::TcpFlags, Reg(0)));
            let answer = masked(answer, Datum::Bits(flag), true, Datum::Bits(flag));
            change.add_rule(table, FAILED, count(answer, set, ipv6));
        }
    }
}

/// Whether the rule with this comment says that connections are counted that are made, or that they are not.
pub(super) fn counts_made(chain: &str, comment: &str) -> Option<bool> {
    match comment {
        _ if chain != FAILED => None,
        WITH_ANSWERS => Some(true),
        FAILURES => Some(false),
        _ => None,
    }
}

/// What a sandbox has tried with the backends of these services.
pub(super) fn read(netns: &Netns, services: &[&Service]) -> Result<BTreeMap<EndpointId, Attempts>, Failure> {
    let nft = Nft::open_in(netns)?;
    let mut endpoints = BTreeMap::new();
    for service in services {
        for (vip, backend, endpoint) in pairs_of(service) {
            endpoints.insert((vip, backend), endpoint);
        }
    }
    let known: BTreeSet<u8> = [Protocol::Tcp, Protocol::Udp].map(protocol_number).into();
    let mut attempts: BTreeMap<EndpointId, Attempts> = BTreeMap::new();
    for table in nft.tables("weft-")? {
        if table.family != Family::Inet || !is_table_name(&table.name) {
            continue;
        }
        for (set, (vip, protocol, backend), count) in counters(&nft, &table)? {
            let endpoint = endpoints
                .get(&(vip, backend))
                .filter(|_| known.contains(&protocol));
            let Some(endpoint) = endpoint else { continue };
            let attempts = attempts.entry(*endpoint).or_default();
            match set {
                FAILED => attempts.failed += count,
                ANSWERED => attempts.made += count,
                _ => {
                    attempts.total += count;
                    if protocol == protocol_number(Protocol::Tcp) {
                        attempts.tcp += count;
                    }
                }
            }
        }
    }
    Ok(attempts)
}

/// Deletes the counters of all but these.
pub(super) fn forget(
    nft: &Nft,
    table: &Table,
    stays: impl Fn(IpAddr, IpAddr) -> bool,
    change: &mut Transaction,
) -> Result<(), NftError> {
    for (set, (vip, protocol, backend), _) in counters(nft, table)? {
        if !stays(vip, backend) {
            let key = [vip.into(), Datum::Proto(protocol), backend.into()];
            let set = name(set, vip.is_ipv6());
            change.delete_elements(table, set.as_str(), vec![Element::key(key)]);
        }
    }
    Ok(())
}

fn counters(nft: &Nft, table: &Table) -> Result<Vec<(&'static str, Key, u64)>, NftError> {
    let mut found = Vec::new();
    for (set, ipv6) in sets() {
        let counters = nft.counters(table, &name(set, ipv6))?;
        let counters = counters
            .into_iter()
            .filter_map(|(key, count)| Some((set, key_of(&key, ipv6)?, count)));
        found.extend(counters);
    }
    Ok(found)
}

/// From its bytes: addresses, and a protocol that is padded to four bytes.
fn key_of(bytes: &[u8], ipv6: bool) -> Option<Key> {
    let addr = |bytes: &[u8]| -> Option<IpAddr> {
        Some(match ipv6 {
            false => <[u8; 4]>::try_from(bytes).ok()?.into(),
            true => <[u8; 16]>::try_from(bytes).ok()?.into(),
        })
    };
    let len = if ipv6 { 16 } else { 4 };
    let (vip, rest) = bytes.split_at_checked(len)?;
    let (protocol, backend) = rest.split_at_checked(4)?;
    Some((addr(vip)?, *protocol.first()?, addr(backend)?))
}

/// The virtual addresses of a service, each with the backends behind it.
pub(super) fn pairs_of(service: &Service) -> impl Iterator<Item = (IpAddr, IpAddr, EndpointId)> {
    service.vips.iter().flat_map(|vip| {
        let backends = service.backends.iter();
        backends.flat_map(|backend| backend.addrs.iter().map(|addr| (*vip, *addr, backend.endpoint)))
    })
}

fn sets() -> impl Iterator<Item = (&'static str, bool)> {
    [MADE, FAILED, ANSWERED]
        .into_iter()
        .flat_map(|set| [(set, false), (set, true)])
}

fn name(set: &str, ipv6: bool) -> String {
    format!("{set}{}", if ipv6 { 6 } else { 4 })
}

/// Ends a rule with the count of the packet's connection. One of the other IP version goes no further than the first address.
fn count(rule: Rule, set: &str, ipv6: bool) -> Rule {
    let (vip, backend, len) = match ipv6 {
        false => (Load::CtOriginalIp4Daddr, Load::CtReplyIp4Saddr, 1),
        true => (Load::CtOriginalIp6Daddr, Load::CtReplyIp6Saddr, 4),
    };
    rule.then(Expr::Load(vip, Reg(0)))
        .then(Expr::Load(Load::CtProtocol, Reg(len)))
        .then(Expr::Load(backend, Reg(len + 1)))
        .then(Expr::Count {
            set: name(set, ipv6).as_str().into(),
            key: Reg(0),
        })
        .then(Expr::Verdict(Verdict::Accept))
}

/// Goes on if what register 0 holds under a mask is (not) this.
fn masked(rule: Rule, mask: Datum, equal: bool, value: Datum) -> Rule {
    rule.then(Expr::Mask { reg: Reg(0), mask }).then(Expr::Compare {
        reg: Reg(0),
        equal,
        value,
    })
}
