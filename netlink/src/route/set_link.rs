use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use weft_types::Mac;

use super::batch::Request;

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
