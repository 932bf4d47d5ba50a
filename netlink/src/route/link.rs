use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};
use weft_types::{Mac, Vni};

use super::batch::Request;

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

/// Changes to a link that exists. What is not mentioned stays.
#[derive(Debug, Clone)]
pub struct SetLink {
    message: LinkMessage,
    link: String,
    changes: Vec<String>,
    port: Option<PortFlags>,
}

/// What a bridge does at one of its ports; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// Whether source addresses of frames make forwarding entries.
    pub learning: Option<bool>,
    /// Whether the bridge answers ARP and ND for what is known to be behind the port, instead of asking there.
    pub neigh_suppress: Option<bool>,
    /// Whether frames to unknown addresses go out here.
    pub flood: Option<bool>,
    /// Whether multicast goes out here.
    pub mcast_flood: Option<bool>,
    /// Whether broadcast goes out here.
    pub bcast_flood: Option<bool>,
    /// Whether a frame may leave by the port it came in.
    pub hairpin: Option<bool>,
}

impl SetLink {
    /// The link with this index.
    pub fn index(index: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Self {
            message,
            link: format!("link {index}"),
            changes: Vec::new(),
            port: None,
        }
    }

    /// The link with this name.
    pub fn named(name: &str) -> Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Self {
            message,
            link: format!("link {name}"),
            changes: Vec::new(),
            port: None,
        }
    }

    fn with(mut self, attribute: LinkAttribute, change: String) -> Self {
        self.message.attributes.push(attribute);
        self.changes.push(change);
        self
    }

    fn state(mut self, up: bool) -> Self {
        self.message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.message.header.change_mask = LinkFlags::Up;
        self.changes
            .push(format!("state {}", if up { "up" } else { "down" }));
        self
    }

    /// Brings it up.
    pub fn up(self) -> Self {
        self.state(true)
    }

    /// Takes it down.
    pub fn down(self) -> Self {
        self.state(false)
    }

    /// The largest packet, in bytes.
    pub fn mtu(self, mtu: u32) -> Self {
        self.with(LinkAttribute::Mtu(mtu), format!("MTU {mtu}"))
    }

    /// The Ethernet address.
    pub fn mac(self, mac: Mac) -> Self {
        self.with(LinkAttribute::Address(mac.0.to_vec()), format!("address {mac}"))
    }

    /// The mark.
    pub fn alias(self, alias: impl Into<String>) -> Self {
        let alias = alias.into();
        let change = format!("alias {alias}");
        self.with(LinkAttribute::IfAlias(alias), change)
    }

    /// The bridge it is a port of, by index; 0 takes it out.
    pub fn master(self, index: u32) -> Self {
        self.with(LinkAttribute::Controller(index), format!("bridge {index}"))
    }

    /// A new name; only for a link chosen by index.
    pub fn rename(self, name: impl Into<String>) -> Self {
        let name = name.into();
        let change = format!("name {name}");
        self.with(LinkAttribute::IfName(name), change)
    }

    /// Moves it to another namespace; the batch must be executed while the descriptor is open.
    pub fn move_to(self, netns: BorrowedFd<'_>) -> Self {
        self.with(
            LinkAttribute::NetNsFd(netns.as_raw_fd()),
            "another namespace".to_owned(),
        )
    }

    /// What the bridge does at this port.
    pub fn port(self, flags: PortFlags) -> Self {
        Self {
            port: Some(flags),
            ..self
        }
    }
}

impl IntoIterator for SetLink {
    type Item = Request;
    type IntoIter = std::vec::IntoIter<Request>;

    fn into_iter(mut self) -> Self::IntoIter {
        let mut requests = Vec::with_capacity(1);
        if let Some(port) = self.port {
            let link = &self.link;
            let mut message = LinkMessage::default();
            message.header.index = self.message.header.index;
            message.attributes.extend(
                self.message
                    .attributes
                    .iter()
                    .find(|a| matches!(a, LinkAttribute::IfName(_)))
                    .cloned(),
            );
            message.attributes.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(port.attributes())),
            ]));
            // Only a NEWLINK message is read for the data of a port; without NLM_F_CREATE it makes nothing.
            let what = format!("set the bridge port flags of {link}");
            requests.push(Request::new(RouteNetlinkMessage::NewLink(message), what));
        }
        if !self.changes.is_empty() {
            let what = format!("set {} of {}", self.changes.join(", "), self.link);
            self.message.header.interface_family = AddressFamily::Unspec;
            requests.insert(0, Request::new(RouteNetlinkMessage::SetLink(self.message), what));
        }
        requests.into_iter()
    }
}

impl PortFlags {
    fn attributes(&self) -> Vec<InfoBridgePort> {
        [
            self.learning.map(InfoBridgePort::Learning),
            self.neigh_suppress.map(InfoBridgePort::NeighSupress),
            self.flood.map(InfoBridgePort::UnicastFlood),
            self.mcast_flood.map(InfoBridgePort::MulticastFlood),
            self.bcast_flood.map(InfoBridgePort::BroadcastFlood),
            self.hairpin.map(InfoBridgePort::HairpinMode),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Removes a link by index; of a veth pair, the other half goes too. That it is gone already is success.
pub fn delete_link(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request::delete(
        RouteNetlinkMessage::DelLink(message),
        format!("delete link {index}"),
    )
}
