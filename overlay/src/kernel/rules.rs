//! Our nft tables: who is heard on the VXLAN port, what is not tracked, and masquerade.

use std::net::IpAddr;

use weft_netlink::nft::{
    Chain, ChainType, Datum, Expr, Hook, Load, Nft, NftError, Rule, Transaction, Verdict, priority,
};

use super::{
    addresses::AddressSets,
    names::{UPLINK, table},
};
use crate::plan::{HostRules, Uplink};

const MEMBERS: AddressSets = AddressSets(["members4", "members6"]);
const MASQUERADE: &str = "masquerade";
const IPPROTO_UDP: u8 = 17;

/// The host's table, in place of the one that may be there: packets see one or the other.
pub(super) fn host(rules: &HostRules) -> Transaction {
    let table = table();
    let mut change = Transaction::new();
    change.delete_table(&table).add_table(&table);
    MEMBERS.add(&mut change, &table, &rules.members);
    change.add_chain(
        &table,
        Chain::base("input", ChainType::Filter, Hook::Input, priority::FILTER),
    );
    for port in &rules.ports {
        for (ipv6, source) in [(false, Load::Ip4Saddr), (true, Load::Ip6Saddr)] {
            let to_port = Rule::new()
                .equal(Load::L4Proto, Datum::Proto(IPPROTO_UDP))
                .equal(Load::Dport, Datum::Port(*port));
            let rule = MEMBERS
                .miss(to_port, ipv6, source)
                .then(Expr::Counter)
                .then(Expr::Verdict(Verdict::Drop))
                .comment(format!("vxlan {port}"));
            change.add_rule(&table, "input", rule);
        }
    }
    // Each flow inside is a source port outside, and so a tracked connection that says nothing: it would cost time with every
    // packet, and a full table would drop it. What is inside is tracked where it is inside.
    for (name, hook) in [("raw-in", Hook::Prerouting), ("raw-out", Hook::Output)] {
        change.add_chain(&table, Chain::base(name, ChainType::Filter, hook, priority::RAW));
        for port in &rules.ports {
            let rule = Rule::new()
                .equal(Load::L4Proto, Datum::Proto(IPPROTO_UDP))
                .equal(Load::Dport, Datum::Port(*port))
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
    let port = |comment: &str| comment.strip_prefix("vxlan ")?.parse().ok();
    Ok(Some(HostRules {
        ports: comments.iter().filter_map(|(_, comment)| port(comment)).collect(),
        members: MEMBERS.observe(nft, &table)?,
        masquerade: comments.iter().any(|(_, comment)| comment == MASQUERADE),
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
