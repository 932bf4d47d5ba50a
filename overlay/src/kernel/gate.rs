//! Our rules in the chain that dockerd has for the rules of others.
//!
//! dockerd drops what its host forwards and is not its own, published ports and the way out of networks among it. No
//! table of ours can take that back: what one table drops is gone. Only nf_tables are looked at; where `iptables` is the
//! old program, its chains cannot be seen from here.

use weft_netlink::nft::{
    Datum, Expr, Family, InstalledRule, Load, Nft, NftError, Rule, Table, Transaction, Verdict,
};

use super::names::UPLINK_HOST;
use crate::plan::Gate;

const CHAIN: &str = "DOCKER-USER";
/// What every comment of ours begins with.
const COMMENT: &str = "weft: ";
/// What dockerd calls bridges. Its networks are isolated from each other by rules that come later, and from ours too.
const BRIDGES: [&str; 2] = ["docker", "br-"];

/// Ours, the first one first, in the form that `iptables` reads and shows.
fn rules() -> Vec<Rule> {
    let named = |rule: Rule, load, prefix: &str| rule.equal(load, Datum::IfnamePrefix(prefix.to_owned()));
    let into = named(Rule::new(), Load::Oifname, UPLINK_HOST);
    let out = named(Rule::new(), Load::Iifname, UPLINK_HOST);
    let ended = |rule: Rule, verdict, why: &str| {
        rule.then(Expr::Counter)
            .then(Expr::Verdict(verdict))
            .comment(format!("{COMMENT}{why}"))
    };
    let to_docker = BRIDGES.map(|bridge| {
        let rule = named(out.clone(), Load::Oifname, bridge);
        ended(rule, Verdict::Return, &format!("as Docker likes, to {bridge}*"))
    });
    let through = [
        ended(into, Verdict::Accept, "into networks"),
        ended(out.clone(), Verdict::Accept, "out of networks"),
    ];
    to_docker.into_iter().chain(through).collect()
}

fn table(ipv6: bool) -> Table {
    Table::new(if ipv6 { Family::Ip6 } else { Family::Ip }, "filter")
}

/// `None` if there is no dockerd, or it has no firewall for this IP version.
pub(super) fn observe(nft: &Nft, ipv6: bool) -> Result<Option<Gate>, NftError> {
    if !nft.chains(&table(ipv6))?.iter().any(|chain| chain == CHAIN) {
        return Ok(None);
    }
    let installed = ours(nft, &table(ipv6))?.into_iter().map(|rule| rule.comment);
    let wanted = rules()
        .into_iter()
        .filter_map(|rule| rule.why().map(str::to_owned));
    Ok(Some(if installed.eq(wanted) {
        Gate::Open
    } else {
        Gate::Shut
    }))
}

fn ours(nft: &Nft, table: &Table) -> Result<Vec<InstalledRule>, NftError> {
    let mut rules = nft.commented_rules(table)?;
    rules.retain(|rule| rule.chain == CHAIN && rule.comment.starts_with(COMMENT));
    Ok(rules)
}

/// Ours come first: the last rule of the chain goes back to where the packet is dropped.
pub(super) fn set(nft: &Nft, ipv6: bool, to: Gate) -> Result<(), NftError> {
    let table = table(ipv6);
    let mut change = Transaction::new();
    for rule in ours(nft, &table)? {
        change.delete_rule(&table, CHAIN, rule.handle);
    }
    if to == Gate::Open {
        for rule in rules().into_iter().rev() {
            change.insert_rule(&table, CHAIN, rule);
        }
    }
    nft.commit(&change)
}
