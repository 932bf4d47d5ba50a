use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};
use weft_types::Mac;

use super::{address::family, batch::Request};

const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;

/// A permanent neighbour: the Ethernet address behind an address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// Who.
    pub address: IpAddr,
    /// Where.
    pub mac: Mac,
}

impl Neighbour {
    /// Adds it, or takes the place of what is known about the address.
    pub fn replace(self) -> Request {
        let what = format!(
            "set neighbour {} of link {} to {}",
            self.address, self.link, self.mac
        );
        Request::replace(RouteNetlinkMessage::NewNeighbour(self.message()), what)
    }

    /// Forgets what is known about the address.
    pub fn delete(self) -> Request {
        let what = format!("delete neighbour {} of link {}", self.address, self.link);
        Request::delete(RouteNetlinkMessage::DelNeighbour(self.message()), what)
    }

    fn message(self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.address);
        message.header.ifindex = self.link;
        message.header.state = NeighbourState::Permanent;
        message.attributes.extend([
            NeighbourAttribute::Destination(destination(self.address)),
            NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec()),
        ]);
        message
    }
}

/// A static entry of a bridge's forwarding table: the port behind which an Ethernet address is.
///
/// It is sticky: frames that claim the address at another port do not move it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BridgeFdb {
    /// Index of the port.
    pub port: u32,
    /// Who.
    pub mac: Mac,
}

impl BridgeFdb {
    /// Adds it, or moves the address to this port.
    pub fn replace(self) -> Request {
        let what = format!("set bridge forwarding entry {} to port {}", self.mac, self.port);
        let mut message = fdb(
            self.port,
            self.mac,
            NeighbourFlags::Controller | NeighbourFlags::Sticky,
        );
        // NUD_PERMANENT would make it an address of the bridge itself.
        message.header.state = NeighbourState::Noarp;
        Request::replace(RouteNetlinkMessage::NewNeighbour(message), what)
    }

    /// Removes it.
    pub fn delete(self) -> Request {
        let what = format!(
            "delete bridge forwarding entry {} of port {}",
            self.mac, self.port
        );
        let message = fdb(self.port, self.mac, NeighbourFlags::Controller);
        Request::delete(RouteNetlinkMessage::DelNeighbour(message), what)
    }
}

/// A permanent entry of a VXLAN device's forwarding table: the VTEP behind which an Ethernet address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VxlanFdb {
    /// Index of the VXLAN device.
    pub link: u32,
    /// Who.
    pub mac: Mac,
    /// The underlay address of the host.
    pub vtep: IpAddr,
}

impl VxlanFdb {
    /// Adds it, or moves the address to this VTEP.
    pub fn replace(self) -> Request {
        let what = format!(
            "set VXLAN forwarding entry {} of link {} to {}",
            self.mac, self.link, self.vtep
        );
        let mut message = fdb(self.link, self.mac, NeighbourFlags::Own);
        message.header.state = NeighbourState::Other(NUD_NOARP | NUD_PERMANENT);
        message
            .attributes
            .push(NeighbourAttribute::Destination(destination(self.vtep)));
        Request::replace(RouteNetlinkMessage::NewNeighbour(message), what)
    }

    /// Removes it, wherever it points.
    pub fn delete(self) -> Request {
        let what = format!("delete VXLAN forwarding entry {} of link {}", self.mac, self.link);
        let message = fdb(self.link, self.mac, NeighbourFlags::Own);
        Request::delete(RouteNetlinkMessage::DelNeighbour(message), what)
    }
}

fn fdb(link: u32, mac: Mac, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.flags = flags;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn destination(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}
