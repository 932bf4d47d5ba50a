use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};

use super::batch::Request;

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// An address on a link.
///
/// An IPv6 address is usable at once: duplicate address detection would delay it by a second, and whoever
/// hands out the address knows that it is unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address and the length of its prefix.
    pub net: IpNet,
    /// Whether the kernel makes the route to the prefix by itself.
    pub prefix_route: bool,
}

impl Address {
    /// Adds it, or changes the flags of one that is there.
    pub fn add(self) -> Request {
        let what = format!("add address {} to link {}", self.net, self.link);
        Request::replace(RouteNetlinkMessage::NewAddress(self.message()), what)
    }

    /// Removes it.
    pub fn delete(self) -> Request {
        let what = format!("delete address {} of link {}", self.net, self.link);
        Request::delete(RouteNetlinkMessage::DelAddress(self.message()), what)
    }

    fn message(self) -> AddressMessage {
        let address = self.net.addr();
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = self.net.prefix_len();
        message.header.index = self.link;
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, address.is_ipv6());
        flags.set(AddressFlags::Noprefixroute, !self.prefix_route);
        message.attributes.extend([
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ]);
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        message
    }
}

/// A unicast route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// The next hop; without, the destination is on the link itself.
    pub via: Option<IpAddr>,
    /// Index of the link.
    pub link: u32,
    /// Takes the next hop to be on the link even if no address of the link says so.
    pub onlink: bool,
    /// Of routes to the same destination the lowest is taken; 0 leaves it to the kernel (IPv4: 0, IPv6: 1024).
    pub metric: u32,
    /// Who made it, as `ip route` shows after `proto`: [`STATIC`](Self::STATIC), or a mark of one's own.
    pub protocol: u8,
}

impl Route {
    /// Made by an administrator.
    pub const STATIC: u8 = libc::RTPROT_STATIC;

    /// The default route of the next hop's family.
    pub fn default_via(gateway: IpAddr, link: u32) -> Self {
        let to = match gateway {
            IpAddr::V4(_) => IpNet::V4(Default::default()),
            IpAddr::V6(_) => IpNet::V6(Default::default()),
        };
        Self {
            via: Some(gateway),
            ..Self::on_link(to, link)
        }
    }

    /// A destination that is on the link.
    pub fn on_link(to: IpNet, link: u32) -> Self {
        Self {
            to,
            via: None,
            link,
            onlink: false,
            metric: 0,
            protocol: Self::STATIC,
        }
    }

    /// Adds it, or takes the place of the route to the same destination with the same metric.
    pub fn add(self) -> Request {
        Request::replace(
            RouteNetlinkMessage::NewRoute(self.message()),
            format!("add {}", self.describe()),
        )
    }

    /// Removes it.
    pub fn delete(self) -> Request {
        Request::delete(
            RouteNetlinkMessage::DelRoute(self.message()),
            format!("delete {}", self.describe()),
        )
    }

    fn describe(self) -> String {
        match self.via {
            Some(via) => format!("route to {} via {via} on link {}", self.to, self.link),
            None => format!("route to {} on link {}", self.to, self.link),
        }
    }

    fn message(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.to.addr()),
            destination_prefix_length: self.to.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::from(self.protocol),
            scope: if self.via.is_none() && self.to.addr().is_ipv4() {
                RouteScope::Link
            } else {
                RouteScope::Universe
            },
            kind: RouteType::Unicast,
            flags: if self.onlink {
                RouteFlags::Onlink
            } else {
                RouteFlags::empty()
            },
            ..Default::default()
        };
        if self.to.prefix_len() > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(RouteAddress::from(self.to.addr())));
        }
        message.attributes.extend(
            self.via
                .map(|via| RouteAttribute::Gateway(RouteAddress::from(via))),
        );
        message.attributes.push(RouteAttribute::Oif(self.link));
        if self.metric != 0 {
            message.attributes.push(RouteAttribute::Priority(self.metric));
        }
        message
    }
}

/// An address that the namespace answers at as if it were its own, without an interface that has it (`ip route add
/// local ADDRESS dev lo`), or, an address of the loopback's, when it is asked through another interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalRoute {
    /// The address.
    pub to: IpAddr,
    /// Index of the link.
    pub link: u32,
    /// As with [`Route::metric`].
    pub metric: u32,
    /// Who made it, as with [`Route::protocol`].
    pub protocol: u8,
}

impl LocalRoute {
    /// The index of every namespace's loopback.
    pub const LOOPBACK: u32 = 1;

    /// Adds it, if it is not there.
    pub fn add(self) -> Request {
        let what = format!("add the local route to {}", self.to);
        Request::replace(RouteNetlinkMessage::NewRoute(self.message()), what)
    }

    /// Removes it.
    pub fn delete(self) -> Request {
        let what = format!("delete the local route to {}", self.to);
        Request::delete(RouteNetlinkMessage::DelRoute(self.message()), what)
    }

    fn message(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.to),
            destination_prefix_length: if self.to.is_ipv4() { 32 } else { 128 },
            table: libc::RT_TABLE_LOCAL,
            protocol: RouteProtocol::from(self.protocol),
            scope: if self.to.is_ipv4() {
                RouteScope::Host
            } else {
                RouteScope::Universe
            },
            kind: RouteType::Local,
            ..Default::default()
        };
        message.attributes.extend([
            RouteAttribute::Destination(RouteAddress::from(self.to)),
            RouteAttribute::Oif(self.link),
        ]);
        if self.metric != 0 {
            message.attributes.push(RouteAttribute::Priority(self.metric));
        }
        message
    }
}
