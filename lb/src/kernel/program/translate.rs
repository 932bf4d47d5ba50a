//! The end of a service's rules: the translation to the next backend.

use weft_netlink::nft::{Datum, Expr, Load, Reg, Rule};

use super::{Mark, Slots, keys::slots_map};

/// The port of a backend.
pub(super) enum Target {
    Same,
    Port(u16),
    /// By this map from that of the service.
    Map(String),
}

/// A rule that translates to the next slot; `None` without a backend.
pub(super) fn translated(slots: &Slots, ipv6: bool, target: &Target, mark: &Mark) -> Option<Rule> {
    let (number, addr, port) = (Reg(0), Reg(4), Reg(8));
    let mut rule = Rule::new().then(Expr::Version { ipv6 });
    rule = match slots.of_version(ipv6) {
        [] => return None,
        [one] => rule.then(Expr::Immediate {
            value: (*one).into(),
            to: addr,
        }),
        many => {
            let modulus = many.len() as u32;
            let first = mark.ranges[usize::from(ipv6)].first;
            let rule = if slots.by_client {
                let (saddr, len) = if ipv6 {
                    (Load::Ip6Saddr, 16)
                } else {
                    (Load::Ip4Saddr, 4)
                };
                rule.then(Expr::Load(saddr, addr)).then(Expr::Hash {
                    key: addr,
                    len,
                    modulus,
                    first,
                    to: number,
                })
            } else {
                rule.then(Expr::Numgen {
                    modulus,
                    first,
                    to: number,
                })
            };
            rule.then(Expr::Lookup {
                set: slots_map(mark.shard, ipv6).as_str().into(),
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
    Some(rule.then(Expr::Dnat { ipv6, addr, port }))
}
