//! A set of addresses in an nft table: one named set for each IP version, since a set holds one type.

use std::{collections::BTreeSet, net::IpAddr};

use weft_netlink::nft::{
    Datum, Element, Expr, Kind, Load, Nft, NftError, Reg, Rule, Set, SetData, Table, Transaction,
};

/// The names of the sets of IPv4 and of IPv6.
pub(super) struct AddressSets(pub(super) [&'static str; 2]);

impl AddressSets {
    pub(super) fn add(&self, change: &mut Transaction, table: &Table, addresses: &BTreeSet<IpAddr>) {
        for (name, ipv6) in self.0.into_iter().zip([false, true]) {
            let kind = if ipv6 { Kind::Addr6 } else { Kind::Addr4 };
            let of_version = addresses.iter().filter(|address| address.is_ipv6() == ipv6);
            let elements = of_version
                .map(|address| Element::key([Datum::from(*address)]))
                .collect();
            change
                .add_set(table, Set::new(name, [kind], SetData::None))
                .add_elements(table, name, elements);
        }
    }

    /// Goes on for packets of an IP version whose `address` is not in its set.
    pub(super) fn miss(&self, rule: Rule, ipv6: bool, address: Load) -> Rule {
        self.lookup(rule, ipv6, address, true)
    }

    /// Goes on for packets of an IP version whose `address` is in its set.
    pub(super) fn hit(&self, rule: Rule, ipv6: bool, address: Load) -> Rule {
        self.lookup(rule, ipv6, address, false)
    }

    fn lookup(&self, rule: Rule, ipv6: bool, address: Load, invert: bool) -> Rule {
        rule.then(Expr::Version { ipv6 })
            .then(Expr::Load(address, Reg(0)))
            .then(Expr::Lookup {
                set: self.0[usize::from(ipv6)].into(),
                key: Reg(0),
                to: None,
                invert,
            })
    }

    pub(super) fn observe(&self, nft: &Nft, table: &Table) -> Result<BTreeSet<IpAddr>, NftError> {
        let mut addresses = BTreeSet::new();
        for name in self.0 {
            let elements = nft.elements(table, name)?;
            addresses.extend(elements.iter().filter_map(|element| address(&element.key)));
        }
        Ok(addresses)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
