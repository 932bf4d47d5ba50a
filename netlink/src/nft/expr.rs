//! The expressions of a rule: what they are called, how the kernel reads them, how a person does.

use std::fmt;

use super::{
    load::{Load, Source},
    model::{Datum, Family, Verdict},
    nfnl::Attrs,
    set::SetRef,
    timeout::OBJECT_TIMEOUT,
};

/// `NFT_FIB_RESULT_ADDRTYPE` and `NFTA_FIB_F_DADDR`
const FIB_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 1 << 1;
const HASH_SEED: u32 = 0x7765_6674;

/// One of the sixteen 32-bit registers. A value longer than four bytes fills the following ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

impl Reg {
    fn number(self) -> u32 {
        libc::NFT_REG32_00 as u32 + u32::from(self.0)
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// With a TCP reset.
    TcpReset,
    /// With ICMP or ICMPv6 "port unreachable".
    PortUnreachable,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Goes on if the packet is IPv4, or IPv6. Uses register 0.
    Version {
        /// Which of the two.
        ipv6: bool,
    },
    /// Reads from the packet into a register.
    Load(Load, Reg),
    /// Goes on if the register (does not) hold this value.
    Compare {
        /// The register.
        reg: Reg,
        /// Whether equality is wanted.
        equal: bool,
        /// The value.
        value: Datum,
    },
    /// Clears the bits of a value that are not in the mask.
    Mask {
        /// The register.
        reg: Reg,
        /// A mask of the value's kind and length.
        mask: Datum,
    },
    /// Goes on if the key (or not, `invert`) is in the set; with `to`, the map's value is put there.
    Lookup {
        /// The set or map.
        set: SetRef,
        /// The first register of the key.
        key: Reg,
        /// Where a map's value goes.
        to: Option<Reg>,
        /// Go on when the key is not in.
        invert: bool,
    },
    /// Does what the verdict map says for the key; goes on if it says nothing.
    Vmap {
        /// The verdict map.
        set: SetRef,
        /// The first register of the key.
        key: Reg,
    },
    /// Puts `first`, and those that follow on it, into a register, one for each packet, and after `modulus` of them
    /// `first` again; every rule counts for itself.
    Numgen {
        /// How many numbers there are.
        modulus: u32,
        /// The first of them.
        first: u32,
        /// The register.
        to: Reg,
    },
    /// Puts one of `modulus` numbers from `first` on into a register: always the same one for the same `len` bytes
    /// from `key` on.
    Hash {
        /// The first register of what is hashed.
        key: Reg,
        /// How many bytes that is.
        len: u32,
        /// How many numbers there are.
        modulus: u32,
        /// The first of them.
        first: u32,
        /// The register.
        to: Reg,
    },
    /// Puts a constant into a register.
    Immediate {
        /// The constant.
        value: Datum,
        /// The register.
        to: Reg,
    },
    /// Translates the destination to the address in a register, and the port if a register is named.
    Dnat {
        /// Whether the address is an IPv6 one; packets of the other version go on untouched.
        ipv6: bool,
        /// The register of the address.
        addr: Reg,
        /// The register of the port.
        port: Option<Reg>,
    },
    /// Translates the source to the address in a register.
    Snat {
        /// Whether the address is an IPv6 one; packets of the other version go on untouched.
        ipv6: bool,
        /// The register of the address.
        addr: Reg,
    },
    /// Translates the source to the address of the outgoing device.
    Masquerade,
    /// Leaves the packet out of connection tracking, if it is met before that: at [`priority::RAW`](super::priority::RAW).
    Notrack,
    /// Gives a packet the priority in a register, which a tunnel that it goes into keeps, in another namespace too. What
    /// sockets can give themselves without privileges are small numbers.
    Priority(Reg),
    /// Refuses the packet and tells the sender.
    Reject(Reject),
    /// Counts packets and bytes.
    Counter,
    /// Has a connection that begins with this packet be forgotten when it was idle for as long as the named policy of the
    /// table says; see [`Transaction::add_timeout`](super::Transaction::add_timeout). Connections of other protocols go on
    /// untouched.
    Timeout(String),
    /// Counts packets by a key, in a set of [`Set::counting`](super::Set::counting); ends the rule if there is no room for the
    /// key.
    Count {
        /// The set.
        set: SetRef,
        /// The first register of the key.
        key: Reg,
    },
    /// Ends the rule.
    Verdict(Verdict),
}

impl Expr {
    pub(super) fn encode(&self, list: &mut Attrs, family: Family) {
        if let Self::Version { ipv6 } = self {
            // The word `nft` itself uses; in a netdev table it would say "netdev".
            let (key, value) = if family == Family::Netdev {
                let kind = if *ipv6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
                (libc::NFT_META_PROTOCOL, (kind as u16).to_be_bytes().to_vec())
            } else {
                let kind = if *ipv6 { Family::Ip6 } else { Family::Ip };
                (libc::NFT_META_NFPROTO, vec![kind.number()])
            };
            encode_expr(list, "meta", |data| encode_meta(data, Reg(0), key));
            encode_expr(list, "cmp", |data| encode_compare(data, Reg(0), true, &value));
        } else {
            encode_expr(list, self.kernel_name(), |data| self.encode_data(data));
        }
    }

    /// The set it looks up.
    pub(super) fn set_mut(&mut self) -> Option<&mut SetRef> {
        match self {
            Self::Lookup { set, .. } | Self::Vmap { set, .. } | Self::Count { set, .. } => Some(set),
            _ => None,
        }
    }

    fn kernel_name(&self) -> &'static str {
        match self {
            Self::Load(load, _) => match load.source() {
                Source::Meta(_) => "meta",
                Source::Ct(_) | Source::CtSide(..) => "ct",
                Source::Fib => "fib",
                Source::Payload { .. } => "payload",
            },
            Self::Version { .. } | Self::Compare { .. } => "cmp",
            Self::Mask { .. } => "bitwise",
            Self::Lookup { .. } | Self::Vmap { .. } => "lookup",
            Self::Numgen { .. } => "numgen",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Hash { .. } => "hash",
            Self::Dnat { .. } | Self::Snat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Notrack => "notrack",
            Self::Priority(_) => "meta",
            Self::Reject(_) => "reject",
            Self::Counter => "counter",
            Self::Timeout(_) => "objref",
            Self::Count { .. } => "dynset",
        }
    }

    /// The attribute numbers are those of `linux/netfilter/nf_tables.h`, each named in its comment.
    fn encode_data(&self, data: &mut Attrs) {
        match self {
            Self::Load(load, to) => match load.source() {
                // NFTA_CT_DREG, _KEY have the same numbers.
                Source::Meta(key) | Source::Ct(key) => encode_meta(data, *to, key),
                // NFTA_CT_DREG, _KEY, _DIRECTION
                Source::CtSide(key, side) => {
                    encode_meta(data, *to, key);
                    data.bytes(3, &[side]);
                }
                // NFTA_FIB_DREG, _RESULT, _FLAGS
                Source::Fib => {
                    data.u32(1, to.number());
                    data.u32(2, FIB_ADDRTYPE);
                    data.u32(3, FIB_DADDR);
                }
                // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
                Source::Payload { base, offset, len } => {
                    data.u32(1, to.number());
                    data.u32(2, base as u32);
                    data.u32(3, offset);
                    data.u32(4, len);
                }
            },
            // NFTA_CMP_SREG, _OP, _DATA
            Self::Compare { reg, equal, value } => {
                data.u32(1, reg.number());
                data.u32(
                    2,
                    if *equal {
                        libc::NFT_CMP_EQ
                    } else {
                        libc::NFT_CMP_NEQ
                    } as u32,
                );
                data.nest(3, |d| encode_value(d, &value.bytes()));
            }
            // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR
            Self::Mask { reg, mask } => {
                let mask = mask.bytes();
                data.u32(1, reg.number());
                data.u32(2, reg.number());
                data.u32(3, mask.len() as u32);
                data.nest(4, |d| encode_value(d, &mask));
                data.nest(5, |d| encode_value(d, &vec![0; mask.len()]));
            }
            Self::Lookup { set, key, to, invert } => {
                encode_lookup(data, set, *key, to.map(Reg::number));
                if *invert {
                    data.u32(5, libc::NFT_LOOKUP_F_INV as u32); // NFTA_LOOKUP_FLAGS
                }
            }
            Self::Vmap { set, key } => encode_lookup(data, set, *key, Some(libc::NFT_REG_VERDICT as u32)),
            // NFTA_NG_DREG, _MODULUS, _TYPE, _OFFSET
            Self::Numgen { modulus, first, to } => {
                data.u32(1, to.number());
                data.u32(2, *modulus);
                data.u32(3, libc::NFT_NG_INCREMENTAL as u32);
                data.u32(4, *first);
            }
            // NFTA_IMMEDIATE_DREG, _DATA
            Self::Immediate { value, to } => {
                data.u32(1, to.number());
                data.nest(2, |d| encode_value(d, &value.bytes()));
            }
            Self::Verdict(verdict) => {
                data.u32(1, libc::NFT_REG_VERDICT as u32);
                data.nest(2, |d| encode_verdict(d, verdict));
            }
            // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_PROTO_MIN
            Self::Dnat { ipv6, addr, port } => {
                data.u32(1, libc::NFT_NAT_DNAT as u32);
                data.u32(2, if *ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u32);
                data.u32(3, addr.number());
                if let Some(port) = port {
                    data.u32(5, port.number());
                }
            }
            Self::Snat { ipv6, addr } => {
                data.u32(1, libc::NFT_NAT_SNAT as u32);
                data.u32(2, if *ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u32);
                data.u32(3, addr.number());
            }
            // NFTA_HASH_SREG, _DREG, _LEN, _MODULUS, _SEED, _OFFSET
            Self::Hash {
                key,
                len,
                modulus,
                first,
                to,
            } => {
                data.u32(1, key.number());
                data.u32(2, to.number());
                data.u32(3, *len);
                data.u32(4, *modulus);
                // Without one the kernel makes one up, and it would not be the same everywhere.
                data.u32(5, HASH_SEED);
                data.u32(6, *first);
            }
            // NFTA_META_KEY, _SREG
            Self::Priority(from) => {
                data.u32(2, libc::NFT_META_PRIORITY as u32);
                data.u32(3, from.number());
            }
            // NFTA_REJECT_TYPE, _ICMP_CODE
            Self::Reject(Reject::TcpReset) => {
                data.u32(1, libc::NFT_REJECT_TCP_RST as u32);
                data.bytes(2, &[0]);
            }
            Self::Reject(Reject::PortUnreachable) => {
                data.u32(1, libc::NFT_REJECT_ICMPX_UNREACH as u32);
                data.bytes(2, &[libc::NFT_REJECT_ICMPX_PORT_UNREACH as u8]);
            }
            // NFTA_OBJREF_IMM_TYPE, _IMM_NAME
            Self::Timeout(name) => {
                data.u32(1, OBJECT_TIMEOUT);
                data.string(2, name);
            }
            // NFTA_DYNSET_SET_NAME, _OP, _SREG_KEY, _EXPR; NFTA_EXPR_NAME
            Self::Count { set, key } => {
                data.string(1, set.name());
                data.u32(3, libc::NFT_DYNSET_OP_ADD as u32);
                data.u32(4, key.number());
                data.nest(7, |expr| expr.string(1, Self::Counter.kernel_name()));
            }
            Self::Version { .. } | Self::Masquerade | Self::Notrack | Self::Counter => {}
        }
    }
}

/// NFTA_LIST_ELEM, NFTA_EXPR_NAME, _DATA
fn encode_expr(list: &mut Attrs, name: &str, data: impl FnOnce(&mut Attrs)) {
    list.nest(1, |expr| {
        expr.string(1, name);
        expr.nest(2, data);
    });
}

/// NFTA_SET_EXPR, NFTA_EXPR_NAME: every element counts what finds it.
pub(super) fn encode_set_counter(m: &mut Attrs) {
    m.nest(17, |expr| expr.string(1, Expr::Counter.kernel_name()));
}

/// NFTA_META_DREG, _KEY
fn encode_meta(data: &mut Attrs, to: Reg, key: i32) {
    data.u32(1, to.number());
    data.u32(2, key as u32);
}

/// NFTA_CMP_SREG, _OP, _DATA
fn encode_compare(data: &mut Attrs, reg: Reg, equal: bool, value: &[u8]) {
    data.u32(1, reg.number());
    data.u32(
        2,
        if equal {
            libc::NFT_CMP_EQ
        } else {
            libc::NFT_CMP_NEQ
        } as u32,
    );
    data.nest(3, |d| encode_value(d, value));
}

/// NFTA_LOOKUP_SET, _SREG, _DREG, _SET_ID
fn encode_lookup(data: &mut Attrs, set: &SetRef, key: Reg, to: Option<u32>) {
    data.string(1, set.name());
    data.u32(2, key.number());
    if let Some(to) = to {
        data.u32(3, to);
    }
    if let SetRef::Anonymous(number) = set {
        data.u32(4, *number);
    }
}

/// NFTA_DATA_VALUE
pub(super) fn encode_value(data: &mut Attrs, bytes: &[u8]) {
    data.bytes(1, bytes);
}

/// NFTA_DATA_VERDICT with NFTA_VERDICT_CODE, _CHAIN
pub(super) fn encode_verdict(data: &mut Attrs, verdict: &Verdict) {
    data.nest(2, |v| {
        v.u32(1, verdict.code() as u32);
        if let Some(chain) = verdict.chain() {
            v.string(2, chain);
        }
    });
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { ipv6 } => f.write_str(if *ipv6 { "ip6" } else { "ip" }),
            Self::Load(load, to) => write!(f, "{to} = {}", load.name()),
            Self::Compare { reg, equal, value } => {
                write!(f, "{reg} {} {value}", if *equal { "==" } else { "!=" })
            }
            Self::Mask { reg, mask } => write!(f, "{reg} &= {mask}"),
            Self::Lookup {
                set,
                key,
                to: None,
                invert,
            } => {
                write!(f, "{key} {}in {set}", if *invert { "not " } else { "" })
            }
            Self::Lookup {
                set,
                key,
                to: Some(to),
                ..
            } => write!(f, "{to} = {set}[{key}]"),
            Self::Vmap { set, key } => write!(f, "do {set}[{key}]"),
            Self::Numgen { modulus, first, to } => {
                write!(f, "{to} = numgen inc mod {modulus} offset {first}")
            }
            Self::Immediate { value, to } => write!(f, "{to} = {value}"),
            Self::Dnat { ipv6, addr, port } => {
                write!(f, "dnat {} to {addr}", if *ipv6 { "ip6" } else { "ip" })?;
                port.map_or(Ok(()), |port| write!(f, " port {port}"))
            }
            Self::Snat { ipv6, addr } => write!(f, "snat {} to {addr}", if *ipv6 { "ip6" } else { "ip" }),
            Self::Hash {
                key,
                modulus,
                first,
                to,
                ..
            } => write!(f, "{to} = hash {key} mod {modulus} offset {first}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Notrack => f.write_str("notrack"),
            Self::Priority(from) => write!(f, "set priority {from}"),
            Self::Reject(Reject::TcpReset) => f.write_str("reject with tcp reset"),
            Self::Reject(Reject::PortUnreachable) => f.write_str("reject with port unreachable"),
            Self::Counter => f.write_str("counter"),
            Self::Timeout(name) => write!(f, "ct timeout {name}"),
            Self::Count { set, key } => write!(f, "count {set}[{key}]"),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}
