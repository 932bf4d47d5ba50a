use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{Emitable as _, NlaBuffer, Parseable as _};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkExtentMask,
        LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType},
};
use weft_types::{Mac, Vni};

use super::{
    Address, LocalRoute, PortFlags, Route, VxlanOptions,
    socket::{DumpError, RouteSocket},
};

const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `veth`, `bridge`, `vxlan` and so on; empty for hardware and loopback.
    pub kind: String,
    /// Ethernet address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether somebody wants it up.
    pub up: bool,
    /// Whether it is a loopback.
    pub loopback: bool,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// The mark.
    pub alias: Option<String>,
    /// Index of the link at the other end, of a veth pair for example.
    pub peer: Option<u32>,
    /// The number by which this namespace knows the peer's, if that is another.
    pub peer_netnsid: Option<i32>,
    /// What only some kinds have.
    pub detail: LinkDetail,
}

/// What only some kinds of link have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkDetail {
    /// Of a VXLAN device with an own VNI and local address.
    pub vxlan: Option<VxlanOptions>,
    /// Of a port of a bridge.
    pub port: Option<PortFlags>,
}

/// Frames that a link was given and did not pass on: dropped, or in error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    /// That were to go out by it.
    pub sent: u64,
    /// That came in by it.
    pub received: u64,
}

/// A neighbour as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourEntry {
    /// Index of the link.
    pub link: u32,
    /// Who.
    pub address: IpAddr,
    /// Where, if that is known.
    pub mac: Option<Mac>,
    /// Whether somebody wrote it, instead of the kernel finding out.
    pub permanent: bool,
}

/// A forwarding entry of a bridge or of a VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Index of the bridge port or of the VXLAN device.
    pub link: u32,
    /// Who.
    pub mac: Mac,
    /// In a VXLAN device: the VTEP. In a bridge: `None`.
    pub vtep: Option<IpAddr>,
    /// Whether somebody wrote it, instead of the bridge learning it or having it for itself.
    pub is_static: bool,
}

impl RouteSocket {
    /// What a link has lost since it was made. None if the kernel does not say.
    pub fn losses(&mut self, link: u32) -> Result<Option<Losses>, DumpError> {
        let mut query = LinkMessage::default();
        query.header.index = link;
        let losses = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(Losses {
                sent: stats.tx_dropped + stats.tx_errors,
                received: stats.rx_dropped + stats.rx_errors,
            }),
            _ => None,
        };
        self.get(
            "counters of a link",
            RouteNetlinkMessage::GetLink(query),
            |message| match message {
                RouteNetlinkMessage::NewLink(message) => message.attributes.iter().find_map(losses),
                _ => None,
            },
        )
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<Link>, DumpError> {
        let mut query = LinkMessage::default();
        query
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.dump(
            "links",
            RouteNetlinkMessage::GetLink(query),
            |message| match message {
                RouteNetlinkMessage::NewLink(message) => Some(link(message)),
                _ => None,
            },
        )
    }

    /// All addresses.
    pub fn addresses(&mut self) -> Result<Vec<Address>, DumpError> {
        let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump("addresses", query, |message| match message {
            RouteNetlinkMessage::NewAddress(message) => address(&message),
            _ => None,
        })
    }

    /// The unicast routes of the main table that have one next hop, or none.
    pub fn routes(&mut self) -> Result<Vec<Route>, DumpError> {
        let mut query = RouteMessage::default();
        query.header.table = RouteHeader::RT_TABLE_MAIN;
        self.be_strict();
        let query = RouteNetlinkMessage::GetRoute(query);
        self.dump("routes", query, |message| match message {
            RouteNetlinkMessage::NewRoute(message) => route(&message),
            _ => None,
        })
    }

    /// The same, and the local routes, as far as they bear this mark.
    pub fn marked_routes(&mut self, protocol: u8) -> Result<(Vec<Route>, Vec<LocalRoute>), DumpError> {
        let mut query = RouteMessage::default();
        query.header.protocol = protocol.into();
        self.be_strict();
        let query = RouteNetlinkMessage::GetRoute(query);
        let routes = self.dump("routes", query, |message| match message {
            RouteNetlinkMessage::NewRoute(message) if u8::from(message.header.protocol) == protocol => {
                Some((route(&message), local_route(&message)))
            }
            _ => None,
        })?;
        let (routes, local): (Vec<_>, Vec<_>) = routes.into_iter().unzip();
        Ok((
            routes.into_iter().flatten().collect(),
            local.into_iter().flatten().collect(),
        ))
    }

    /// Where all routes lead that are not local, of any table, with the link if there is one.
    pub fn destinations(&mut self) -> Result<Vec<(IpNet, Option<u32>)>, DumpError> {
        let query = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.dump("destinations", query, |message| match message {
            RouteNetlinkMessage::NewRoute(message) => destination(&message),
            _ => None,
        })
    }

    /// The local routes that bear this mark.
    pub fn local_routes(&mut self, protocol: u8) -> Result<Vec<LocalRoute>, DumpError> {
        let query = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.dump("local routes", query, |message| match message {
            RouteNetlinkMessage::NewRoute(message) => {
                local_route(&message).filter(|route| route.protocol == protocol)
            }
            _ => None,
        })
    }

    /// All neighbours, IPv4 and IPv6.
    pub fn neighbours(&mut self) -> Result<Vec<NeighbourEntry>, DumpError> {
        let query = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.dump("neighbours", query, |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => neighbour(&message),
            _ => None,
        })
    }

    /// All forwarding entries of bridges and VXLAN devices but those for frames with a VLAN's tag, one of which most
    /// kernels make beside each that is written without; or those of one link.
    pub fn fdb(&mut self, link: Option<u32>) -> Result<Vec<FdbEntry>, DumpError> {
        let mut query = NeighbourMessage::default();
        query.header.family = AddressFamily::Bridge;
        if let Some(link) = link {
            query.header.ifindex = link;
            self.be_strict();
        }
        self.dump(
            "forwarding entries",
            RouteNetlinkMessage::GetNeighbour(query),
            |message| match message {
                RouteNetlinkMessage::NewNeighbour(message) => {
                    fdb(&message).filter(|entry| link.is_none_or(|link| entry.link == link))
                }
                _ => None,
            },
        )
    }
}

pub(super) fn link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        master: None,
        alias: None,
        peer: None,
        peer_netnsid: None,
        detail: LinkDetail::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netnsid = Some(id),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| match info {
                LinkInfo::Kind(kind) => link.kind = kind_name(&kind),
                LinkInfo::Data(InfoData::Vxlan(attributes)) => link.detail.vxlan = vxlan(&attributes),
                LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
                    link.detail.port = Some(port(&attributes));
                }
                _ => {}
            }),
            _ => {}
        }
    }
    link
}

/// The flags of a port, if that is what a bridge's own message is about.
pub(super) fn port_of_bridge(message: &LinkMessage) -> Option<PortFlags> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::ProtoInfoBridge(infos) => Some(infos),
        _ => None,
    })?;
    // The same attributes as in a link's own message, of which the library reads one in this place.
    let attributes = infos.iter().filter_map(|info| {
        let mut bytes = vec![0; info.buffer_len()];
        info.emit(&mut bytes);
        InfoBridgePort::parse(&NlaBuffer::new_checked(&bytes[..]).ok()?).ok()
    });
    Some(port(&attributes.collect::<Vec<_>>()))
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

fn vxlan(attributes: &[InfoVxlan]) -> Option<VxlanOptions> {
    let (mut vni, mut local, mut port) = (None, None, None);
    for attribute in attributes {
        match *attribute {
            InfoVxlan::Id(id) => vni = Vni::try_from(id).ok(),
            InfoVxlan::Local(address) => local = Some(IpAddr::V4(address)),
            InfoVxlan::Local6(address) => local = Some(IpAddr::V6(address)),
            InfoVxlan::Port(number) => port = Some(number),
            _ => {}
        }
    }
    Some(VxlanOptions {
        vni: vni?,
        local: local?,
        port: port?,
    })
}

fn port(attributes: &[InfoBridgePort]) -> PortFlags {
    let mut flags = PortFlags::default();
    for attribute in attributes {
        match *attribute {
            InfoBridgePort::Learning(on) => flags.learning = Some(on),
            InfoBridgePort::NeighSupress(on) => flags.neigh_suppress = Some(on),
            InfoBridgePort::UnicastFlood(on) => flags.flood = Some(on),
            InfoBridgePort::MulticastFlood(on) => flags.mcast_flood = Some(on),
            InfoBridgePort::BroadcastFlood(on) => flags.bcast_flood = Some(on),
            InfoBridgePort::HairpinMode(on) => flags.hairpin = Some(on),
            _ => {}
        }
    }
    flags
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut address, mut local) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point link ADDRESS is the other end.
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    let prefix_route = !flags.contains(AddressFlags::Noprefixroute);
    Some(Address {
        link: message.header.index,
        net,
        prefix_route,
    })
}

fn local_route(message: &RouteMessage) -> Option<LocalRoute> {
    let header = &message.header;
    if header.kind != RouteType::Local {
        return None;
    }
    let mut found = LocalRoute {
        to: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        link: 0,
        metric: 0,
        protocol: u8::from(header.protocol),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => found.to = ip(address)?,
            RouteAttribute::Oif(index) => found.link = *index,
            RouteAttribute::Priority(number) => found.metric = *number,
            _ => {}
        }
    }
    (!found.to.is_unspecified()).then_some(found)
}

fn destination(message: &RouteMessage) -> Option<(IpNet, Option<u32>)> {
    let header = &message.header;
    let somewhere = [
        RouteType::Unicast,
        RouteType::BlackHole,
        RouteType::Unreachable,
        RouteType::Prohibit,
        RouteType::Throw,
    ];
    if !somewhere.contains(&header.kind) || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut to = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    Some((IpNet::new(to, header.destination_prefix_length).ok()?, link))
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut to = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut via, mut link, mut metric) = (None, None, 0);
    let mut table = u32::from(header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Gateway(address) => via = Some(ip(address)?),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    if header.kind != RouteType::Unicast || table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let to = match to {
        IpAddr::V4(to) => IpNet::V4(Ipv4Net::new(to, header.destination_prefix_length).ok()?),
        IpAddr::V6(to) => IpNet::V6(Ipv6Net::new(to, header.destination_prefix_length).ok()?),
    };
    Some(Route {
        to,
        via,
        link: link?,
        onlink: header.flags.contains(RouteFlags::Onlink),
        metric,
        protocol: header.protocol.into(),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<NeighbourEntry> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => address = destination_ip(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(NeighbourEntry {
        link: message.header.ifindex,
        address: address?,
        mac,
        permanent,
    })
}

pub(super) fn fdb(message: &NeighbourMessage) -> Option<FdbEntry> {
    let (mut vtep, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => vtep = destination_ip(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            NeighbourAttribute::Vlan(_) => return None,
            _ => {}
        }
    }
    let state = u16::from(message.header.state);
    let is_static = if message.header.flags.contains(NeighbourFlags::Own) {
        // Without a VTEP it is one of the groups that any device hears.
        state & NUD_PERMANENT != 0 && vtep.is_some()
    } else {
        state & (NUD_PERMANENT | NUD_NOARP) == NUD_NOARP
    };
    Some(FdbEntry {
        link: message.header.ifindex,
        mac: mac?,
        vtep,
        is_static,
    })
}

fn destination_ip(destination: &NeighbourAddress) -> Option<IpAddr> {
    match destination {
        NeighbourAddress::Inet(address) => Some(IpAddr::V4(*address)),
        NeighbourAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        // Forwarding entries are of the family of bridges, which does not tell what their VTEPs are.
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}
