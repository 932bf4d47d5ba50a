//! The nft tables of published ports: which port of the host leads into which network, and whose address has who came in.
//!
//! Rules of the host name addresses instead of looking them up: a commit makes new rules visible a moment before the
//! elements of their sets, and a connection in between would find a closed port. In a network's namespace there is a
//! set, and who misses it in that moment only loses its address.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use weft_netlink::{
    conntrack::{Conntrack, ConntrackError, Flow},
    netns::Netns,
    nft::{
        Chain, ChainType, Datum, Expr, FIB_LOCAL, Family, Hook, Load, Nft, NftError, Reg, Rule, Table,
        Transaction, Verdict, priority,
    },
};

use super::{
    addresses::AddressSets,
    names::{BRIDGE, UPLINK, uplink_host_of},
};
use crate::plan::{HostPort, HostPorts, SourceRules, Transport, Uplink};

const DIRECT: AddressSets = AddressSets(["direct4", "direct6"]);
const PORTS: &str = "ports";
const LOOPBACK: [(&str, u8); 2] = [("127.0.0.0", 8), ("::1", 128)];

fn host_table() -> Table {
    Table::new(Family::Inet, "weft-ports")
}

fn network_table() -> Table {
    Table::new(Family::Inet, "weft-ingress")
}

/// The host's table, in place of the one that may be there: packets see one or the other.
pub(super) fn host(ports: &HostPorts) -> Transaction {
    let table = host_table();
    let mut change = Transaction::new();
    change.delete_table(&table).add_table(&table);
    // The host's loopback is let in from its own end of an uplink, and whoever is behind it must not use that.
    change.add_chain(
        &table,
        Chain::base("guard", ChainType::Filter, Hook::Prerouting, priority::RAW),
    );
    for network in &ports.networks {
        let rule = Rule::new()
            .equal(Load::Iifname, Datum::Ifname(uplink_host_of(network)))
            .then(Expr::Version { ipv6: false })
            .then(Expr::Load(Load::Ip4Daddr, Reg(0)))
            .then(Expr::Mask {
                reg: Reg(0),
                mask: Datum::Addr4(Ipv4Addr::new(255, 0, 0, 0)),
            })
            .then(Expr::Compare {
                reg: Reg(0),
                equal: true,
                value: Datum::Addr4(Ipv4Addr::new(127, 0, 0, 0)),
            })
            .then(Expr::Verdict(Verdict::Drop))
            .comment(format!("guard {network}"));
        change.add_rule(&table, "guard", rule);
    }
    for (load, mask, ends) in network_ends() {
        let rule = Rule::new()
            .then(Expr::Version { ipv6: ends.is_ipv6() })
            .then(Expr::Load(load, Reg(0)))
            .then(Expr::Mask {
                reg: Reg(0),
                mask: mask.into(),
            })
            .then(Expr::Compare {
                reg: Reg(0),
                equal: true,
                value: ends.into(),
            })
            .then(Expr::Verdict(Verdict::Drop));
        change.add_rule(&table, "guard", rule);
    }
    change.add_chain(&table, Chain::regular(PORTS));
    for ((port, ipv6), to) in &ports.open {
        change.add_rule(&table, PORTS, lead_to(port, *ipv6, *to));
    }
    for (name, hook) in [("from-outside", Hook::Prerouting), ("from-here", Hook::Output)] {
        let to_ports = Rule::new()
            .equal(Load::DaddrKind, Datum::Number(FIB_LOCAL))
            .then(Expr::Verdict(Verdict::Goto(PORTS.to_owned())));
        change
            .add_chain(&table, Chain::base(name, ChainType::Nat, hook, priority::DSTNAT))
            .add_rule(&table, name, to_ports);
    }
    // Nobody answers to a loopback address that is not their own.
    change.add_chain(
        &table,
        Chain::base("postrouting", ChainType::Nat, Hook::Postrouting, priority::SNAT),
    );
    for (net, len) in LOOPBACK {
        if let Ok(net) = net.parse() {
            let rule = Rule::new()
                .from_subnet(net, len)
                .differs(Load::Oifname, Datum::Ifname("lo".to_owned()))
                .then(Expr::Masquerade);
            change.add_rule(&table, "postrouting", rule);
        }
    }
    change
}

/// The networks' ends of all uplinks. Who names one instead of an address of the host would come to ports that are open at other
/// addresses only; what leads there by right has another destination until it is translated.
fn network_ends() -> [(Load, IpAddr, IpAddr); 2] {
    let (v4, v6) = (Uplink::IPV4, Uplink::IPV6);
    [
        (
            Load::Ip4Daddr,
            IpAddr::V4(Ipv4Addr::from_bits(v4.netmask().to_bits() | 1)),
            IpAddr::V4(Ipv4Addr::from_bits(v4.network().to_bits() | 1)),
        ),
        (
            Load::Ip6Daddr,
            IpAddr::V6(Ipv6Addr::from_bits(v6.netmask().to_bits() | 1)),
            IpAddr::V6(Ipv6Addr::from_bits(v6.network().to_bits() | 1)),
        ),
    ]
}

fn lead_to(port: &HostPort, ipv6: bool, to: IpAddr) -> Rule {
    let mut rule = Rule::new().then(Expr::Version { ipv6 });
    if let Some(at) = port.at.filter(|at| !at.is_unspecified()) {
        let daddr = if ipv6 { Load::Ip6Daddr } else { Load::Ip4Daddr };
        rule = rule.equal(daddr, at.into());
    }
    rule.equal(Load::L4Proto, Datum::Proto(number(port.transport)))
        .equal(Load::Dport, Datum::Port(port.port))
        .then(Expr::Immediate {
            value: to.into(),
            to: Reg(4),
        })
        .then(Expr::Dnat {
            ipv6,
            addr: Reg(4),
            port: None,
        })
        .comment(format!("open {port} to {to}"))
}

fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

pub(super) fn delete_host() -> Transaction {
    let mut change = Transaction::new();
    change.delete_table(&host_table());
    change
}

/// What the host's table says, if there is one.
pub(super) fn observe_host(nft: &Nft) -> Result<Option<HostPorts>, NftError> {
    let table = host_table();
    if !nft.tables(&table.name)?.contains(&table) {
        return Ok(None);
    }
    let mut ports = HostPorts::default();
    for (_, comment) in nft.rule_comments(&table)? {
        if let Some(network) = comment.strip_prefix("guard ") {
            ports.networks.insert(network.to_owned());
        } else if let Some((port, to)) = comment.strip_prefix("open ").and_then(opened) {
            ports.open.insert((port, to.is_ipv6()), to);
        }
    }
    Ok(Some(ports))
}

/// Reads what [`lead_to`] notes.
fn opened(text: &str) -> Option<(HostPort, IpAddr)> {
    let (port, to) = text.split_once(" to ")?;
    let (place, transport) = port.split_once('/')?;
    let (at, port) = match place.rsplit_once(':') {
        Some((at, port)) => (
            Some(at.trim_start_matches('[').trim_end_matches(']').parse().ok()?),
            port,
        ),
        None => (None, place),
    };
    let port = HostPort {
        port: port.parse().ok()?,
        transport: match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return None,
        },
        at,
    };
    Some((port, to.parse().ok()?))
}

/// Ends what the host goes on translating by the ports before, or not translating: a flow of datagrams goes on for as long
/// as somebody sends, and would go to nobody.
pub(super) fn forget_flows(
    host: &Netns,
    addresses: &BTreeSet<IpAddr>,
    before: &HostPorts,
    now: &HostPorts,
) -> Result<(), ConntrackError> {
    let closed: Vec<_> = before
        .open
        .iter()
        .filter(|(key, to)| now.open.get(key) != Some(to))
        .collect();
    let opened: Vec<_> = now
        .open
        .keys()
        .filter(|key| key.0.transport == Transport::Udp && !before.open.contains_key(key))
        .collect();
    if closed.is_empty() && opened.is_empty() {
        return Ok(());
    }
    let is_closed = |flow: &Flow| {
        closed.iter().any(|((port, _), to)| {
            (flow.protocol, flow.reply.src, flow.reply.src_port) == (number(port.transport), **to, port.port)
        })
    };
    let is_opened = |flow: &Flow| {
        addresses.contains(&flow.original.dst)
            && flow.reply.src == flow.original.dst
            && opened.iter().any(|(port, _)| {
                (flow.protocol, flow.original.dst_port) == (number(port.transport), port.port)
            })
    };
    let conntrack = Conntrack::open_in(host)?;
    for flow in conntrack.flows()? {
        if is_closed(&flow) || is_opened(&flow) {
            conntrack.delete(&flow)?;
        }
    }
    Ok(())
}

/// The table of a network's namespace: a connection that came in by the uplink and leaves towards an endpoint.
pub(super) fn network(sources: &SourceRules) -> Transaction {
    let table = network_table();
    let mut change = Transaction::new();
    change.delete_table(&table).add_table(&table);
    DIRECT.add(&mut change, &table, &sources.direct);
    change.add_chain(
        &table,
        Chain::base("postrouting", ChainType::Nat, Hook::Postrouting, priority::SNAT),
    );
    for own in &sources.own {
        let ipv6 = own.is_ipv6();
        let daddr = if ipv6 { Load::Ip6Daddr } else { Load::Ip4Daddr };
        let inwards = Rule::new()
            .equal(Load::Iifname, Datum::Ifname(UPLINK.to_owned()))
            .equal(Load::Oifname, Datum::Ifname(BRIDGE.to_owned()));
        let rule = DIRECT
            .miss(inwards, ipv6, daddr)
            .then(Expr::Immediate {
                value: (*own).into(),
                to: Reg(4),
            })
            .then(Expr::Snat { ipv6, addr: Reg(4) })
            .comment(format!("source {own}"));
        change.add_rule(&table, "postrouting", rule);
    }
    change
}

pub(super) fn delete_network() -> Transaction {
    let mut change = Transaction::new();
    change.delete_table(&network_table());
    change
}

/// What a network's table says, if there is one.
pub(super) fn observe_network(nft: &Nft) -> Result<Option<SourceRules>, NftError> {
    let table = network_table();
    let chains = nft.chains(&table)?;
    if chains.is_empty() {
        return Ok(None);
    }
    let comments = nft.rule_comments(&table)?;
    Ok(Some(SourceRules {
        own: comments
            .iter()
            .filter_map(|(_, comment)| comment.strip_prefix("source ")?.parse().ok())
            .collect(),
        direct: DIRECT.observe(nft, &table)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(at: Option<&str>, transport: Transport) -> HostPort {
        HostPort {
            port: 8080,
            transport,
            at: at.map(|at| at.parse().unwrap()),
        }
    }

    fn both_ways() -> HostPorts {
        let mut ports = HostPorts {
            networks: ["aaaaaaaaaaaa".to_owned()].into(),
            ..HostPorts::default()
        };
        let (v4, v6) = (
            "169.254.64.1".parse().unwrap(),
            "fd77:6566:7400::3".parse().unwrap(),
        );
        for (port, ipv6, to) in [
            (port(None, Transport::Tcp), false, v4),
            (port(None, Transport::Tcp), true, v6),
            (port(Some("0.0.0.0"), Transport::Udp), false, v4),
            (port(Some("192.0.2.7"), Transport::Udp), false, v4),
            (port(Some("2001:db8::7"), Transport::Udp), true, v6),
        ] {
            ports.open.insert((port, ipv6), to);
        }
        ports
    }

    #[test]
    fn the_table_of_the_host() {
        insta::assert_snapshot!(host(&both_ways()).to_string());
    }

    #[test]
    fn what_a_rule_notes_is_read_back() {
        for ((port, ipv6), to) in both_ways().open {
            assert_eq!(to.is_ipv6(), ipv6);
            assert_eq!(opened(&format!("{port} to {to}")), Some((port, to)));
        }
    }

    #[test]
    fn the_table_of_a_network() {
        let sources = SourceRules {
            own: ["10.0.0.9", "fd00::9"].map(|own| own.parse().unwrap()).into(),
            direct: ["10.0.0.5", "fd00::5"]
                .map(|direct| direct.parse().unwrap())
                .into(),
        };
        insta::assert_snapshot!(network(&sources).to_string());
    }
}
