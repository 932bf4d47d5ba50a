//! Our rules in the chain that dockerd has for the rules of others.
//!
//! dockerd drops what its host forwards and is not its own, published ports and the way out of networks among it. No
//! table of ours can take that back: what one table drops is gone. Only nf_tables are looked at; where `iptables` is the
//! old program, its chains cannot be seen from here.

use weft_netlink::nft::{Datum, Expr, Family, Load, Nft, NftError, Rule, Table, Transaction, Verdict};

use super::names::UPLINK_HOST;
use crate::plan::Gate;

const CHAIN: &str = "DOCKER-USER";
const COMMENTS: [&str; 2] = ["weft: out of networks", "weft: into networks"];

fn table(ipv6: bool) -> Table {
    Table::new(if ipv6 { Family::Ip6 } else { Family::Ip }, "filter")
}

/// `None` if there is no dockerd, or it has no firewall for this IP version.
pub(super) fn observe(nft: &Nft, ipv6: bool) -> Result<Option<Gate>, NftError> {
    if !nft.chains(&table(ipv6))?.iter().any(|chain| chain == CHAIN) {
        return Ok(None);
    }
    let rules = nft.commented_rules(&table(ipv6))?;
    let has = |comment: &str| {
        let mut ours = rules.iter().filter(|rule| rule.chain == CHAIN);
        ours.any(|rule| rule.comment == comment)
    };
    let is_open = COMMENTS.into_iter().all(has);
    Ok(Some(if is_open { Gate::Open } else { Gate::Shut }))
}

/// Ours come first: the last rule of the chain goes back to where the packet is dropped.
pub(super) fn set(nft: &Nft, ipv6: bool, to: Gate) -> Result<(), NftError> {
    let table = table(ipv6);
    let mut change = Transaction::new();
    for rule in nft.commented_rules(&table)? {
        if rule.chain == CHAIN && COMMENTS.contains(&rule.comment.as_str()) {
            change.delete_rule(&table, CHAIN, rule.handle);
        }
    }
    if to == Gate::Open {
        for (load, comment) in [Load::Iifname, Load::Oifname].into_iter().zip(COMMENTS) {
            // In the form that `iptables` reads and shows.
            let rule = Rule::new()
                .equal(load, Datum::IfnamePrefix(UPLINK_HOST.to_owned()))
                .then(Expr::Counter)
                .then(Expr::Verdict(Verdict::Accept))
                .comment(comment);
            change.insert_rule(&table, CHAIN, rule);
        }
    }
    nft.commit(&change)
}
