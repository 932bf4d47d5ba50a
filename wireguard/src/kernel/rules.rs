//! Who is heard in the namespace of the tunnels: WireGuard says which node a packet comes from, and these say whether that
//! node may send for the network, and as this Ethernet address.

use std::collections::BTreeSet;

use weft_netlink::nft::{
    Chain, ChainType, Datum, Element, Expr, Family, Hook, Kind, Load, Nft, NftError, Reg, Rule, Set, SetData,
    Table, Transaction, Verdict, priority,
};

use weft_types::{Mac, Vni};

use crate::Network;

const SENDERS: &str = "senders";
/// Packets that were not for anybody, by their protocols.
const REFUSED: &str = "refused";
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_UDP: u8 = 17;

fn table() -> Table {
    Table::new(Family::Inet, "weft-wireguard")
}

/// Node, network and Ethernet address, as the kernel compares them.
fn senders(networks: &[Network]) -> BTreeSet<[Datum; 3]> {
    let of_network = |network: &Network| {
        let known = network
            .fdb
            .iter()
            .filter(|(_, vtep)| network.members.contains(vtep));
        let known =
            known.map(|(mac, vtep)| [Datum::Addr4(*vtep), Datum::Vni(network.vni), Datum::Ether(*mac)]);
        known.collect::<Vec<_>>()
    };
    networks.iter().flat_map(of_network).collect()
}

/// The table, in place of the one that may be there: packets see one or the other.
fn rules(vxlan_port: u16, senders: &BTreeSet<[Datum; 3]>) -> Transaction {
    let table = table();
    let mut change = Transaction::new();
    change
        .delete_table(&table)
        .add_table(&table)
        .add_set(
            &table,
            Set::new(SENDERS, [Kind::Addr4, Kind::Vni, Kind::Ether], SetData::None),
        )
        .add_set(&table, Set::counting(REFUSED, [Kind::Proto], 256))
        .add_elements(
            &table,
            SENDERS,
            senders.iter().cloned().map(Element::key).collect(),
        )
        .add_chain(
            &table,
            Chain::base("input", ChainType::Filter, Hook::Input, priority::FILTER),
        );
    let heard = Rule::new()
        .then(Expr::Version { ipv6: false })
        .equal(Load::L4Proto, Datum::Proto(IPPROTO_UDP))
        .equal(Load::Dport, Datum::Port(vxlan_port))
        .then(Expr::Load(Load::Ip4Saddr, Reg(4)))
        .then(Expr::Load(Load::VxlanVni, Reg(5)))
        .then(Expr::Load(Load::VxlanSource, Reg(6)))
        .then(Expr::Lookup {
            set: SENDERS.into(),
            key: Reg(4),
            to: None,
            invert: false,
        })
        .then(Expr::Verdict(Verdict::Accept))
        .comment(format!("vxlan {vxlan_port}"));
    // By this the others find out what the path takes.
    let echo = Rule::new()
        .then(Expr::Version { ipv6: false })
        .equal(Load::L4Proto, Datum::Proto(IPPROTO_ICMP))
        .then(Expr::Verdict(Verdict::Accept));
    let counted = Rule::new()
        .then(Expr::Load(Load::L4Proto, Reg(4)))
        .then(Expr::Count {
            set: REFUSED.into(),
            key: Reg(4),
        });
    let refused = Rule::new().then(Expr::Verdict(Verdict::Drop)).comment(REFUSED);
    for rule in [heard, echo, counted, refused] {
        change.add_rule(&table, "input", rule);
    }
    change
}

/// Makes it so, if it is not.
pub fn ensure(nft: &Nft, vxlan_port: u16, networks: &[Network]) -> Result<(), NftError> {
    let wanted = senders(networks);
    let held = held(nft, vxlan_port)?;
    let change = match held {
        None => rules(vxlan_port, &wanted),
        Some(held) => difference(&held, &wanted),
    };
    match change.is_empty() {
        true => Ok(()),
        false => nft.commit(&change),
    }
}

/// Who is to be heard and who no longer, at once.
fn difference(held: &BTreeSet<[Datum; 3]>, wanted: &BTreeSet<[Datum; 3]>) -> Transaction {
    let keys = |of: &BTreeSet<[Datum; 3]>, but: &BTreeSet<[Datum; 3]>| -> Vec<Element> {
        of.difference(but).cloned().map(Element::key).collect()
    };
    let (gone, new) = (keys(held, wanted), keys(wanted, held));
    let mut change = Transaction::new();
    if !gone.is_empty() {
        change.delete_elements(&table(), SENDERS, gone);
    }
    if !new.is_empty() {
        change.add_elements(&table(), SENDERS, new);
    }
    change
}

/// Who is heard now; `None` if the table is not there or not whole.
fn held(nft: &Nft, vxlan_port: u16) -> Result<Option<BTreeSet<[Datum; 3]>>, NftError> {
    let comments = nft.rule_comments(&table())?;
    let has = |wanted: &str| comments.iter().any(|(_, comment)| comment == wanted);
    if !has(&format!("vxlan {vxlan_port}")) || !has(REFUSED) {
        return Ok(None);
    }
    let elements = nft.elements(&table(), SENDERS)?;
    Ok(elements.iter().map(|element| read(&element.key)).collect())
}

fn read(key: &[u8]) -> Option<[Datum; 3]> {
    let [a, b, c, d, v0, v1, v2, 0, m0, m1, m2, m3, m4, m5, 0, 0] = *key else {
        return None;
    };
    let vni = Vni::try_from(u32::from_be_bytes([0, v0, v1, v2])).ok()?;
    let mac = Mac([m0, m1, m2, m3, m4, m5]);
    Some([
        Datum::Addr4([a, b, c, d].into()),
        Datum::Vni(vni),
        Datum::Ether(mac),
    ])
}

/// How many packets were not for anybody.
pub fn refused(nft: &Nft) -> Result<u64, NftError> {
    let counters = nft.counters(&table(), REFUSED);
    let counters = counters?;
    Ok(counters.iter().map(|(_, packets)| packets).sum())
}

#[cfg(test)]
mod tests;
