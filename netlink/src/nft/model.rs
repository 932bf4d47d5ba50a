//! What a table is made of. Only the parts of nf_tables that Weft uses exist here.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use weft_types::{Mac, Vni};

/// The packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Everything that enters or leaves one device.
    Netdev,
}

impl Family {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Netdev => 5,
            Self::Ip6 => 10,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Netdev => "netdev",
        })
    }
}

/// The name of a table within one network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    /// The packets it sees.
    pub family: Family,
    /// Its name; ours start with `weft`.
    pub name: String,
}

impl Table {
    /// Names a table.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self {
            family,
            name: name.into(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// Where in a packet's way a base chain is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// Before the routing decision.
    Prerouting,
    /// For this namespace itself.
    Input,
    /// Passing through.
    Forward,
    /// From a socket of this namespace.
    Output,
    /// After the routing decision.
    Postrouting,
    /// As it comes in on this device (family netdev).
    Ingress(String),
}

impl Hook {
    pub(super) fn number(&self) -> u32 {
        match self {
            Self::Prerouting | Self::Ingress(_) => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prerouting => f.write_str("prerouting"),
            Self::Input => f.write_str("input"),
            Self::Forward => f.write_str("forward"),
            Self::Output => f.write_str("output"),
            Self::Postrouting => f.write_str("postrouting"),
            Self::Ingress(device) => write!(f, "ingress device {device}"),
        }
    }
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainType {
    /// Accept and drop, asked for every packet.
    Filter,
    /// Translate addresses, asked once per connection.
    Nat,
}

impl ChainType {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// A chain to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub(super) name: String,
    pub(super) base: Option<(ChainType, Hook, i32)>,
}

impl Chain {
    /// A chain that rules jump or go to.
    pub fn regular(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            base: None,
        }
    }

    /// A chain that the kernel calls at `hook`; of several, the lower `priority` first. Packets that
    /// reach its end are accepted.
    pub fn base(name: impl Into<String>, kind: ChainType, hook: Hook, priority: i32) -> Self {
        Self {
            name: name.into(),
            base: Some((kind, hook, priority)),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some((kind, hook, priority)) = &self.base {
            write!(f, " {{ type {} hook {hook} priority {priority}; }}", kind.name())?;
        }
        Ok(())
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, and no later rule of this base chain sees it.
    Accept,
    /// It is gone.
    Drop,
    /// Back to where this chain was jumped to from.
    Return,
    /// On in another chain, and back here from its end.
    Jump(String),
    /// On in another chain, not back here.
    Goto(String),
}

impl Verdict {
    pub(super) fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Return => libc::NFT_RETURN,
            Self::Jump(_) => libc::NFT_JUMP,
            Self::Goto(_) => libc::NFT_GOTO,
        }
    }

    pub(super) fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// One value as the kernel compares it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datum {
    /// An IPv4 address.
    Addr4(Ipv4Addr),
    /// An IPv6 address.
    Addr6(Ipv6Addr),
    /// A transport protocol (`IPPROTO_…`).
    Proto(u8),
    /// Bits of one byte, such as TCP flags.
    Bits(u8),
    /// A port.
    Port(u16),
    /// A number in the kernel's own byte order, such as `numgen` makes.
    Number(u32),
    /// An interface name.
    Ifname(String),
    /// What interface names begin with.
    IfnamePrefix(String),
    /// The number of a network as VXLAN headers have it.
    Vni(Vni),
    /// An Ethernet address.
    Ether(Mac),
}

impl Datum {
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Addr4(addr) => addr.octets().to_vec(),
            Self::Addr6(addr) => addr.octets().to_vec(),
            Self::Proto(byte) | Self::Bits(byte) => vec![*byte],
            Self::Port(number) => number.to_be_bytes().to_vec(),
            Self::Number(number) => number.to_ne_bytes().to_vec(),
            Self::Ifname(name) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(libc::IFNAMSIZ, 0);
                bytes
            }
            Self::IfnamePrefix(prefix) => prefix.as_bytes().to_vec(),
            Self::Vni(vni) => (vni.get() << 8).to_be_bytes().to_vec(),
            Self::Ether(mac) => mac.0.to_vec(),
        }
    }

    /// Several values side by side in registers: each starts at a multiple of four bytes.
    pub(super) fn concat(data: &[Self]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for datum in data {
            bytes.extend_from_slice(&datum.bytes());
            if data.len() > 1 {
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
        bytes
    }
}

impl From<IpAddr> for Datum {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::Addr4(addr),
            IpAddr::V6(addr) => Self::Addr6(addr),
        }
    }
}

impl fmt::Display for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr4(addr) => write!(f, "{addr}"),
            Self::Addr6(addr) => write!(f, "{addr}"),
            Self::Proto(proto) => match i32::from(*proto) {
                libc::IPPROTO_ICMP => f.write_str("icmp"),
                libc::IPPROTO_TCP => f.write_str("tcp"),
                libc::IPPROTO_UDP => f.write_str("udp"),
                libc::IPPROTO_ICMPV6 => f.write_str("icmpv6"),
                other => write!(f, "{other}"),
            },
            Self::Bits(bits) => write!(f, "{bits:#04x}"),
            Self::Port(number) => write!(f, "{number}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Ifname(name) => write!(f, "\"{name}\""),
            Self::IfnamePrefix(prefix) => write!(f, "\"{prefix}*\""),
            Self::Vni(vni) => write!(f, "{vni}"),
            Self::Ether(mac) => write!(f, "{mac}"),
        }
    }
}

/// The kind of a [`Datum`], as a set declares its keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An IPv4 address.
    Addr4,
    /// An IPv6 address.
    Addr6,
    /// A transport protocol.
    Proto,
    /// A port.
    Port,
    /// A number.
    Number,
    /// An interface name.
    Ifname,
    /// The number of a network as VXLAN headers have it, with the byte after it, which is 0.
    Vni,
    /// An Ethernet address.
    Ether,
}

impl Kind {
    /// The number by which the `nft` program knows the type, so that it can list our sets; the kernel only stores it.
    fn type_id(self) -> u32 {
        match self {
            Self::Addr4 => 7,
            Self::Addr6 => 8,
            Self::Proto => 12,
            Self::Port => 13,
            Self::Ether => 9,
            Self::Number | Self::Vni => 19,
            Self::Ifname => 41,
        }
    }

    fn len(self) -> u32 {
        match self {
            Self::Proto => 1,
            Self::Port => 2,
            Self::Addr4 | Self::Number | Self::Vni => 4,
            Self::Ether => 6,
            Self::Addr6 | Self::Ifname => 16,
        }
    }

    /// Type and length of one kind or of a concatenation.
    pub(super) fn type_and_len(kinds: &[Self]) -> (u32, u32) {
        const TYPE_BITS: u32 = 6;
        match kinds {
            [one] => (one.type_id(), one.len()),
            many => many.iter().fold((0, 0), |(id, len), kind| {
                (
                    (id << TYPE_BITS) | kind.type_id(),
                    len + kind.len().next_multiple_of(4),
                )
            }),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Addr4 => "ipv4_addr",
            Self::Addr6 => "ipv6_addr",
            Self::Proto => "inet_proto",
            Self::Port => "inet_service",
            Self::Number => "mark",
            Self::Ifname => "ifname",
            Self::Vni => "vni",
            Self::Ether => "ether_addr",
        }
    }
}
