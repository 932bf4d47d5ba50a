//! What rules read from packets.

/// `IP_CT_DIR_ORIGINAL`, `IP_CT_DIR_REPLY`
const ORIGINAL: u8 = 0;
const REPLY: u8 = 1;

/// Something read from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Name of the device it came in on.
    Iifname,
    /// Name of the device it leaves by.
    Oifname,
    /// The user whose socket of this namespace a packet comes from; a rule that asks for it does not go on for a packet
    /// that comes from none.
    Skuid,
    /// What [`Expr::Priority`](super::Expr::Priority) set, on any way through this machine until it leaves it.
    Priority,
    /// Transport protocol.
    L4Proto,
    /// IPv4 source address.
    Ip4Saddr,
    /// IPv4 destination address.
    Ip4Daddr,
    /// IPv6 source address.
    Ip6Saddr,
    /// IPv6 destination address.
    Ip6Daddr,
    /// TCP or UDP destination port.
    Dport,
    /// The number of the network in the VXLAN header of a UDP packet, with the byte after it.
    VxlanVni,
    /// The Ethernet source address of the frame in a VXLAN packet.
    VxlanSource,
    /// The flags of a TCP header, such as [`TCP_SYN`].
    TcpFlags,
    /// State of the tracked connection, such as [`CT_NEW`]. A rule that asks for it, whether it is reached
    /// or not, has the kernel track connections in this namespace.
    CtState,
    /// What kind of address the destination is to this namespace, such as [`FIB_LOCAL`].
    DaddrKind,
    /// Marks of a tracked connection, such as [`CT_ASSURED`].
    CtStatus,
    /// 0 for a packet in the direction of the connection's first, 1 for one of the other direction.
    CtDirection,
    /// Transport protocol of the connection: for an ICMP error that of the packet it is about.
    CtProtocol,
    /// IPv4 destination address of a connection before it was translated.
    CtOriginalIp4Daddr,
    /// IPv6 destination address of a connection before it was translated.
    CtOriginalIp6Daddr,
    /// IPv4 address that answers.
    CtReplyIp4Saddr,
    /// IPv6 address that answers.
    CtReplyIp6Saddr,
}

/// The connection state of a first packet, as [`Load::CtState`] reads it.
pub const CT_NEW: u32 = 1 << 3;
/// Packets have gone to and fro: over TCP, the connection was made. See [`Load::CtStatus`].
pub const CT_ASSURED: u32 = 1 << 2;
/// The destination was translated. See [`Load::CtStatus`].
pub const CT_DNAT: u32 = 1 << 5;
/// See [`Load::TcpFlags`].
pub const TCP_RST: u8 = 1 << 2;

/// An address of this namespace itself, as [`Load::DaddrKind`] reads it (`RTN_LOCAL`).
pub const FIB_LOCAL: u32 = libc::RTN_LOCAL as u32;

/// The flags of a first packet among those of [`TCP_OPENING`], as [`Load::TcpFlags`] reads them.
pub const TCP_SYN: u8 = 1 << 1;

/// The flags that tell the packet that opens a TCP connection from all later ones: FIN, SYN, RST, ACK.
pub const TCP_OPENING: u8 = 1 | TCP_SYN | 1 << 2 | 1 << 4;

pub(super) enum Source {
    Meta(i32),
    Ct(i32),
    /// Of one direction.
    CtSide(i32, u8),
    Fib,
    Payload {
        base: i32,
        offset: u32,
        len: u32,
    },
}

impl Load {
    pub(super) fn source(self) -> Source {
        let network = |offset, len| Source::Payload {
            base: libc::NFT_PAYLOAD_NETWORK_HEADER,
            offset,
            len,
        };
        let transport = |offset, len| Source::Payload {
            base: libc::NFT_PAYLOAD_TRANSPORT_HEADER,
            offset,
            len,
        };
        match self {
            Self::Iifname => Source::Meta(libc::NFT_META_IIFNAME),
            Self::Oifname => Source::Meta(libc::NFT_META_OIFNAME),
            Self::Skuid => Source::Meta(libc::NFT_META_SKUID),
            Self::Priority => Source::Meta(libc::NFT_META_PRIORITY),
            Self::L4Proto => Source::Meta(libc::NFT_META_L4PROTO),
            Self::Ip4Saddr => network(12, 4),
            Self::Ip4Daddr => network(16, 4),
            Self::Ip6Saddr => network(8, 16),
            Self::Ip6Daddr => network(24, 16),
            Self::Dport => transport(2, 2),
            Self::VxlanVni => transport(12, 4),
            Self::VxlanSource => transport(22, 6),
            Self::TcpFlags => transport(13, 1),
            Self::CtState => Source::Ct(libc::NFT_CT_STATE),
            Self::DaddrKind => Source::Fib,
            Self::CtStatus => Source::Ct(libc::NFT_CT_STATUS),
            Self::CtDirection => Source::Ct(libc::NFT_CT_DIRECTION),
            Self::CtProtocol => Source::Ct(libc::NFT_CT_PROTOCOL),
            Self::CtOriginalIp4Daddr => Source::CtSide(libc::NFT_CT_DST_IP, ORIGINAL),
            Self::CtOriginalIp6Daddr => Source::CtSide(libc::NFT_CT_DST_IP6, ORIGINAL),
            Self::CtReplyIp4Saddr => Source::CtSide(libc::NFT_CT_SRC_IP, REPLY),
            Self::CtReplyIp6Saddr => Source::CtSide(libc::NFT_CT_SRC_IP6, REPLY),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Iifname => "iifname",
            Self::Oifname => "oifname",
            Self::Skuid => "skuid",
            Self::Priority => "priority",
            Self::L4Proto => "l4proto",
            Self::Ip4Saddr => "ip saddr",
            Self::Ip4Daddr => "ip daddr",
            Self::Ip6Saddr => "ip6 saddr",
            Self::Ip6Daddr => "ip6 daddr",
            Self::Dport => "dport",
            Self::VxlanVni => "vxlan vni",
            Self::VxlanSource => "vxlan ether saddr",
            Self::TcpFlags => "tcp flags",
            Self::CtState => "ct state",
            Self::DaddrKind => "fib daddr type",
            Self::CtStatus => "ct status",
            Self::CtDirection => "ct direction",
            Self::CtProtocol => "ct protocol",
            Self::CtOriginalIp4Daddr => "ct original ip daddr",
            Self::CtOriginalIp6Daddr => "ct original ip6 daddr",
            Self::CtReplyIp4Saddr => "ct reply ip saddr",
            Self::CtReplyIp6Saddr => "ct reply ip6 saddr",
        }
    }
}
