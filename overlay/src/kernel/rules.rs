//! Our nft tables: who is heard on the VXLAN port and who may send to it, what is not tracked, and masquerade.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_netlink::nft::{
    Chain, ChainType, Datum, Expr, Hook, Load, Nft, NftError, Reg, Rule, Table, Transaction, Verdict,
    priority,
};

use super::{
    addresses::AddressSets,
    names::{UPLINK, host_link, table},
    own,
};
use crate::plan::{HostRules, Uplink};

const MEMBERS: AddressSets = AddressSets(["members4", "members6"]);
/// Where members are heard.
const LOCAL: AddressSets = AddressSets(["local4", "local6"]);
/// What is read of a packet's source and destination, of IPv4 and of IPv6.
const ADDRESSES: [[Load; 2]; 2] = [[Load::Ip4Saddr, Load::Ip4Daddr], [Load::Ip6Saddr, Load::Ip6Daddr]];
const MASQUERADE: &str = "masquerade";
const LINK: &str = "link ";
const OWN: &str = "own ";
const IPPROTO_UDP: u8 = 17;

/// The host's table, in place of the one that may be there: packets see one or the other.
pub(super) fn host(rules: &HostRules) -> Transaction {
    let table = table();
    let mut change = Transaction::new();
    change.delete_table(&table).add_table(&table);
    MEMBERS.add(&mut change, &table, &rules.members);
    LOCAL.add(&mut change, &table, &rules.local);
    hear_members(&mut change, &table, rules);
    guard(&mut change, &table, rules);
    for (network, addresses) in &rules.links {
        confine(&mut change, &table, network, addresses);
    }
    // Each flow inside is a source port outside, and so a tracked connection that says nothing: it would cost time with every
    // packet, and a full table would drop it. What is inside is tracked where it is inside.
    for (name, hook) in [("raw-in", Hook::Prerouting), ("raw-out", Hook::Output)] {
        change.add_chain(&table, Chain::base(name, ChainType::Filter, hook, priority::RAW));
        for port in &rules.ports {
            let rule = to_port(*port)
                .then(Expr::Notrack)
                .comment(format!("untracked {port}"));
            change.add_rule(&table, name, rule);
        }
    }
    if rules.masquerade {
        change.add_chain(
            &table,
            Chain::base("postrouting", ChainType::Nat, Hook::Postrouting, priority::SNAT),
        );
        let (v4, v6) = (Uplink::IPV4, Uplink::IPV6);
        for (net, len) in [
            (IpAddr::V4(v4.network()), v4.prefix_len()),
            (IpAddr::V6(v6.network()), v6.prefix_len()),
        ] {
            let rule = Rule::new()
                .from_subnet(net, len)
                .then(Expr::Masquerade)
                .comment(MASQUERADE);
            change.add_rule(&table, "postrouting", rule);
        }
    }
    change
}

fn to_port(port: u16) -> Rule {
    Rule::new()
        .equal(Load::L4Proto, Datum::Proto(IPPROTO_UDP))
        .equal(Load::Dport, Datum::Port(port))
}

fn dropped(rule: Rule) -> Rule {
    rule.then(Expr::Counter).then(Expr::Verdict(Verdict::Drop))
}

/// The kernel's VXLAN socket hears at every address, whatever the device says: members alone are heard, and only at the
/// address where they send to.
fn hear_members(change: &mut Transaction, table: &Table, rules: &HostRules) {
    change.add_chain(
        table,
        Chain::base("input", ChainType::Filter, Hook::Input, priority::FILTER),
    );
    for port in &rules.ports {
        for ([source, target], ipv6) in ADDRESSES.into_iter().zip([false, true]) {
            let from_stranger = dropped(MEMBERS.miss(to_port(*port), ipv6, source));
            let elsewhere = dropped(LOCAL.miss(to_port(*port), ipv6, target));
            change.add_rule(table, "input", from_stranger.comment(format!("vxlan {port}")));
            change.add_rule(table, "input", elsewhere);
        }
    }
}

/// The others hear what comes from this host's address, so nobody but the kernel may send it from there: no process of
/// the host, whose packets have a socket, as the kernel's own out of a network's namespace have none here; and nobody who
/// is routed through it, a container of whatever engine say, whose address becomes the host's.
fn guard(change: &mut Transaction, table: &Table, rules: &HostRules) {
    for (name, hook) in [("output", Hook::Output), ("forward", Hook::Forward)] {
        change.add_chain(
            table,
            Chain::base(name, ChainType::Filter, hook, priority::FILTER),
        );
    }
    for port in &rules.guarded {
        // What is no user's number is compared with, so that `nft list` shows that it was asked for.
        let mut forged = to_port(*port).differs(Load::Skuid, Datum::Number(u32::MAX));
        if !rules.links.is_empty() {
            // What the host's processes send into a network keeps their socket when it is wrapped.
            forged = forged.differs(Load::Priority, Datum::Number(own::PRIORITY));
        }
        let forged = dropped(forged).comment(format!("guarded {port}"));
        change.add_rule(table, "output", forged);
        for ([source, target], ipv6) in ADDRESSES.into_iter().zip([false, true]) {
            let to_member = MEMBERS.hit(to_port(*port), ipv6, target);
            change.add_rule(table, "forward", dropped(MEMBERS.miss(to_member, ipv6, source)));
        }
    }
}

/// The host's own link into a network is for its processes: the host routes nothing to or from there, and only its
/// addresses there are reached by it. This comes after what is said of VXLAN, as it lets packets in.
fn confine(change: &mut Transaction, table: &Table, network: &str, addresses: &BTreeSet<IpAddr>) {
    let link = || Datum::Ifname(host_link(network));
    let from = || Rule::new().equal(Load::Iifname, link());
    let accepted = |rule: Rule| rule.then(Expr::Verdict(Verdict::Accept));
    for address in addresses {
        let ipv6 = address.is_ipv6();
        let daddr = if ipv6 { Load::Ip6Daddr } else { Load::Ip4Daddr };
        let own = from()
            .then(Expr::Version { ipv6 })
            .equal(daddr, (*address).into());
        let comment = format!("{OWN}{network} {address}");
        change.add_rule(table, "input", accepted(own).comment(comment));
    }
    // Neighbours are found by these.
    for (mask, prefix) in [([0xff, 0xc0], [0xfe, 0x80]), ([0xff, 0], [0xff, 0])] {
        let widen = |[a, b]: [u8; 2]| {
            let mut bytes = [0; 16];
            (bytes[0], bytes[1]) = (a, b);
            Datum::from(IpAddr::from(bytes))
        };
        let neighbourly = from()
            .then(Expr::Version { ipv6: true })
            .then(Expr::Load(Load::Ip6Daddr, Reg(0)))
            .then(Expr::Mask {
                reg: Reg(0),
                mask: widen(mask),
            })
            .then(Expr::Compare {
                reg: Reg(0),
                equal: true,
                value: widen(prefix),
            });
        change.add_rule(table, "input", accepted(neighbourly));
    }
    change.add_rule(
        table,
        "input",
        dropped(from()).comment(format!("{LINK}{network}")),
    );
    let towards = Rule::new().equal(Load::Oifname, link());
    change.add_rule(table, "forward", dropped(from()));
    change.add_rule(table, "forward", dropped(towards));
}

/// What the rules of a link say of themselves.
fn links(comments: &[(String, String)]) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let texts = || comments.iter().map(|(_, comment)| comment);
    let networks = texts().filter_map(|text| text.strip_prefix(LINK));
    let mut links: BTreeMap<String, BTreeSet<IpAddr>> = networks
        .map(|network| (network.to_owned(), BTreeSet::new()))
        .collect();
    for (network, address) in texts().filter_map(|text| text.strip_prefix(OWN)?.split_once(' ')) {
        if let (Some(addresses), Ok(address)) = (links.get_mut(network), address.parse()) {
            addresses.insert(address);
        }
    }
    links
}

pub(super) fn delete() -> Transaction {
    let mut change = Transaction::new();
    change.delete_table(&table());
    change
}

/// The table of a network's namespace. Two networks may have the same addresses, so each hides its own
/// behind the address of its uplink, and the host hides those.
pub(super) fn network() -> Transaction {
    let table = table();
    let mut change = Transaction::new();
    change
        .delete_table(&table)
        .add_table(&table)
        .add_chain(
            &table,
            Chain::base("postrouting", ChainType::Nat, Hook::Postrouting, priority::SNAT),
        )
        .add_rule(
            &table,
            "postrouting",
            Rule::new()
                .equal(Load::Oifname, Datum::Ifname(UPLINK.to_owned()))
                .then(Expr::Masquerade)
                .comment(MASQUERADE),
        );
    change
}

/// What the host's table says, if there is one.
pub(super) fn observe_host(nft: &Nft) -> Result<Option<HostRules>, NftError> {
    let table = table();
    if !is_there(nft)? {
        return Ok(None);
    }
    let comments = nft.rule_comments(&table)?;
    let ports = |what: &str| {
        let named = comments.iter();
        named
            .filter_map(|(_, comment)| comment.strip_prefix(what)?.parse().ok())
            .collect()
    };
    Ok(Some(HostRules {
        ports: ports("vxlan "),
        guarded: ports("guarded "),
        local: LOCAL.observe(nft, &table)?,
        members: MEMBERS.observe(nft, &table)?,
        masquerade: comments.iter().any(|(_, comment)| comment == MASQUERADE),
        links: links(&comments),
    }))
}

/// Whether a network's namespace has its table.
pub(super) fn observe_network(nft: &Nft) -> Result<bool, NftError> {
    Ok(nft
        .rule_comments(&table())?
        .iter()
        .any(|(_, comment)| comment == MASQUERADE))
}

fn is_there(nft: &Nft) -> Result<bool, NftError> {
    let ours = table();
    Ok(nft.tables(&ours.name)?.contains(&ours))
}
