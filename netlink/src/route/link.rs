use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoBridge, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};
use weft_types::{Mac, Vni};

use super::{SetLink, batch::Request};

/// A link to be made. Adding it to a batch makes it, names it and marks it.
///
/// `'a` is the life of the namespace descriptors it mentions: the batch must be executed within it.
#[derive(Debug, Clone)]
pub struct NewLink<'a> {
    name: String,
    index: u32,
    mac: Option<Mac>,
    mtu: Option<u32>,
    alias: Option<String>,
    master: Option<u32>,
    up: bool,
    netns: Option<BorrowedFd<'a>>,
    kind: Kind<'a>,
}

#[derive(Debug, Clone)]
enum Kind<'a> {
    Veth(VethPeer<'a>),
    Bridge(BridgeOptions),
    Vxlan(VxlanOptions),
    Wireguard,
}

/// The far half of a veth pair. It can be born in another namespace, but not be born up, and only a
/// socket of that namespace can change it afterwards.
#[derive(Debug, Clone)]
pub struct VethPeer<'a> {
    name: String,
    index: u32,
    mac: Option<Mac>,
    mtu: Option<u32>,
    netns: Option<BorrowedFd<'a>>,
}

impl<'a> VethPeer<'a> {
    /// A peer with this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            index: 0,
            mac: None,
            mtu: None,
            netns: None,
        }
    }

    /// Chooses the interface index. Without, the kernel does; and it does unless the index of the other half
    /// is chosen too.
    pub fn index(self, index: u32) -> Self {
        Self { index, ..self }
    }

    /// The Ethernet address; without, the kernel makes a random one.
    pub fn mac(self, mac: Mac) -> Self {
        Self {
            mac: Some(mac),
            ..self
        }
    }

    /// The largest packet, in bytes.
    pub fn mtu(self, mtu: u32) -> Self {
        Self {
            mtu: Some(mtu),
            ..self
        }
    }

    /// The namespace to be born in; without, that of the other half.
    pub fn netns(self, netns: BorrowedFd<'a>) -> Self {
        Self {
            netns: Some(netns),
            ..self
        }
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::IfName(self.name.clone()));
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        attributes.extend(self.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        message
    }
}

/// How a bridge behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct BridgeOptions {
    /// Whether IGMP and MLD decide where multicast goes; without, it goes to every port.
    pub multicast_snooping: bool,
}

/// A VXLAN device without learning: it sends only where its forwarding entries say.
///
/// Its UDP socket belongs to the namespace of the [`RouteSocket`](super::RouteSocket) that makes it, even
/// if [`NewLink::netns`] says that the device is born elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanOptions {
    /// The network identifier.
    pub vni: Vni,
    /// The VTEP: our address on the underlay.
    pub local: IpAddr,
    /// The UDP port, here and there.
    pub port: u16,
}

impl<'a> NewLink<'a> {
    /// A pair of connected devices, this one and its peer.
    pub fn veth(name: impl Into<String>, peer: VethPeer<'a>) -> Self {
        Self::new(name, Kind::Veth(peer))
    }

    /// An Ethernet bridge without spanning tree.
    pub fn bridge(name: impl Into<String>, options: BridgeOptions) -> Self {
        Self::new(name, Kind::Bridge(options))
    }

    /// A VXLAN device.
    pub fn vxlan(name: impl Into<String>, options: VxlanOptions) -> Self {
        Self::new(name, Kind::Vxlan(options))
    }

    /// A WireGuard device, silent until it is given a key. Its UDP socket belongs to the namespace of the
    /// [`RouteSocket`](super::RouteSocket) that makes it, even if [`NewLink::netns`] says that the device is born elsewhere.
    pub fn wireguard(name: impl Into<String>) -> Self {
        Self::new(name, Kind::Wireguard)
    }

    fn new(name: impl Into<String>, kind: Kind<'a>) -> Self {
        let name = name.into();
        Self {
            name,
            index: 0,
            mac: None,
            mtu: None,
            alias: None,
            master: None,
            up: false,
            netns: None,
            kind,
        }
    }

    /// Chooses the interface index, so that later messages of the batch can use it. Without, the kernel does.
    pub fn index(self, index: u32) -> Self {
        Self { index, ..self }
    }

    /// The Ethernet address; without, the kernel makes a random one.
    pub fn mac(self, mac: Mac) -> Self {
        Self {
            mac: Some(mac),
            ..self
        }
    }

    /// The largest packet, in bytes.
    pub fn mtu(self, mtu: u32) -> Self {
        Self {
            mtu: Some(mtu),
            ..self
        }
    }

    /// The text that marks the link (`ip link` shows it as `alias`).
    pub fn alias(self, alias: impl Into<String>) -> Self {
        Self {
            alias: Some(alias.into()),
            ..self
        }
    }

    /// The bridge to be a port of, by index, in the namespace the link is born in.
    pub fn master(self, index: u32) -> Self {
        Self {
            master: Some(index),
            ..self
        }
    }

    /// Whether the link is up from the start.
    pub fn up(self) -> Self {
        Self { up: true, ..self }
    }

    /// The namespace to be born in; without, the socket's. Such a link cannot be given an alias.
    pub fn netns(self, netns: BorrowedFd<'a>) -> Self {
        Self {
            netns: Some(netns),
            ..self
        }
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        if self.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::IfName(self.name.clone()));
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        attributes.extend(self.master.map(LinkAttribute::Controller));
        attributes.extend(self.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        attributes.push(match &self.kind {
            Kind::Veth(peer) => info(InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(peer.message()))),
            Kind::Bridge(options) => info(
                InfoKind::Bridge,
                InfoData::Bridge(vec![InfoBridge::MulticastSnooping(options.multicast_snooping)]),
            ),
            Kind::Vxlan(options) => info(InfoKind::Vxlan, InfoData::Vxlan(options.attributes())),
            Kind::Wireguard => LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
        });
        message
    }

    fn describe(&self) -> String {
        let Self { name, .. } = self;
        match &self.kind {
            Kind::Veth(peer) => format!("make veth {name} with peer {}", peer.name),
            Kind::Bridge(_) => format!("make bridge {name}"),
            Kind::Vxlan(VxlanOptions { vni, local, port }) => {
                format!("make VXLAN device {name} with VNI {vni} on {local} port {port}")
            }
            Kind::Wireguard => format!("make WireGuard device {name}"),
        }
    }
}

fn info(kind: InfoKind, data: InfoData) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)])
}

impl VxlanOptions {
    fn attributes(&self) -> Vec<InfoVxlan> {
        let mut attributes = vec![
            InfoVxlan::Id(self.vni.get()),
            InfoVxlan::Port(self.port),
            InfoVxlan::Learning(false),
        ];
        match self.local {
            IpAddr::V4(local) => attributes.push(InfoVxlan::Local(local)),
            // RFC 6935 allows the checksum of the outer IPv6 UDP header to be zero for tunnels, but a NAT
            // or firewall on the way drops such packets; offload makes the checksum cheap.
            IpAddr::V6(local) => attributes.push(InfoVxlan::Local6(local)),
        }
        attributes
    }
}

impl IntoIterator for NewLink<'_> {
    type Item = Request;
    type IntoIter = std::vec::IntoIter<Request>;

    fn into_iter(self) -> Self::IntoIter {
        let create = Request::create(RouteNetlinkMessage::NewLink(self.message()), self.describe());
        // The kernel ignores an alias in the message that makes a link.
        let mark = self.alias.map(|alias| SetLink::named(&self.name).alias(alias));
        std::iter::once(create)
            .chain(mark.into_iter().flatten())
            .collect::<Vec<_>>()
            .into_iter()
    }
}
