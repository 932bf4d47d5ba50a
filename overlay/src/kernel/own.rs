//! The mark on packets of the host itself on their way into a network.
//!
//! They are wrapped into VXLAN with their socket, which is the host's own, and would be taken for forged by the rule that keeps
//! the host's processes from sending VXLAN. A priority is what both wrapping and the way to another namespace leave alone.

use weft_netlink::nft::{
    Chain, ChainType, Datum, Expr, Family, Hook, Nft, NftError, Reg, Rule, Table, Transaction, priority,
};

/// No socket can give it to itself without privileges, with which it needs none of our links either.
pub(super) const PRIORITY: u32 = 0x7765_6674;
const CHAIN: &str = "from-host";

fn table() -> Table {
    Table::new(Family::Netdev, "weft-host")
}

/// Marks what comes in by a port of the network's bridge.
pub(super) fn mark(port: &str) -> Transaction {
    let table = table();
    let ingress = Hook::Ingress(port.to_owned());
    let rule = Rule::new()
        .then(Expr::Immediate {
            value: Datum::Number(PRIORITY),
            to: Reg(0),
        })
        .then(Expr::Priority(Reg(0)))
        .comment(port);
    let mut change = Transaction::new();
    change
        .delete_table(&table)
        .add_table(&table)
        .add_chain(
            &table,
            Chain::base(CHAIN, ChainType::Filter, ingress, priority::FILTER),
        )
        .add_rule(&table, CHAIN, rule);
    change
}

pub(super) fn unmark() -> Transaction {
    let mut change = Transaction::new();
    change.delete_table(&table());
    change
}

/// Whether what comes in by a port is marked.
pub(super) fn is_marked(nft: &Nft, port: &str) -> Result<bool, NftError> {
    let comments = nft.rule_comments(&table())?;
    Ok(comments.iter().any(|(_, comment)| comment == port))
}
