//! The end of a service's rules: the translation to the next backend.

use std::net::IpAddr;

use weft_netlink::nft::{Datum, Element, Expr, Kind, Load, Reg, Rule, Set, SetData, Table, Transaction};

use super::Slots;

/// The port of a backend.
pub(super) enum Target {
    Same,
    Port(u16),
    /// By this map from that of the service.
    Map(String),
}

/// Ends `rule` with the translation to the next slot.
pub(super) fn translate(
    change: &mut Transaction,
    table: &Table,
    chain: &str,
    rule: Rule,
    slots: &Slots,
    ipv6: bool,
    target: &Target,
) {
    let (slots, by_client) = (slots.of_version(ipv6), slots.by_client);
    if let [first, _, ..] = slots {
        // A commit makes new rules visible a moment before the elements of their maps. Whoever comes in between
        // finds no slot, and must not be refused.
        translate_to(change, table, chain, rule.clone(), slots, by_client, target);
        translate_to(change, table, chain, rule, &[*first], by_client, target);
    } else {
        translate_to(change, table, chain, rule, slots, by_client, target);
    }
}

fn translate_to(
    change: &mut Transaction,
    table: &Table,
    chain: &str,
    mut rule: Rule,
    slots: &[IpAddr],
    by_client: bool,
    target: &Target,
) {
    let (number, addr, port) = (Reg(0), Reg(4), Reg(8));
    let ipv6 = slots.first().is_some_and(IpAddr::is_ipv6);
    rule = match slots {
        [one] => rule.then(Expr::Immediate {
            value: (*one).into(),
            to: addr,
        }),
        many => {
            let kind = if ipv6 { Kind::Addr6 } else { Kind::Addr4 };
            let elements = many
                .iter()
                .enumerate()
                .map(|(slot, addr)| Element::value([Datum::Number(slot as u32)], (*addr).into()))
                .collect();
            let set = Set::anonymous([Kind::Number], SetData::Value(kind));
            let set = change.add_anonymous_set(table, set, elements);
            let modulus = many.len() as u32;
            let rule = if by_client {
                let (saddr, len) = if ipv6 {
                    (Load::Ip6Saddr, 16)
                } else {
                    (Load::Ip4Saddr, 4)
                };
                rule.then(Expr::Load(saddr, addr)).then(Expr::Hash {
                    key: addr,
                    len,
                    modulus,
                    to: number,
                })
            } else {
                rule.then(Expr::Numgen { modulus, to: number })
            };
            rule.then(Expr::Lookup {
                set,
                key: number,
                to: Some(addr),
                invert: false,
            })
        }
    };
    let port = match target {
        Target::Same => None,
        Target::Port(target) => {
            rule = rule.then(Expr::Immediate {
                value: Datum::Port(*target),
                to: port,
            });
            Some(port)
        }
        Target::Map(map) => {
            rule = rule.then(Expr::Load(Load::Dport, number)).then(Expr::Lookup {
                set: map.as_str().into(),
                key: number,
                to: Some(port),
                invert: false,
            });
            Some(port)
        }
    };
    change.add_rule(table, chain, rule.then(Expr::Dnat { ipv6, addr, port }));
}
