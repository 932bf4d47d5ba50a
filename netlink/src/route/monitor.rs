use std::{fmt, io};

use futures_util::stream::{BoxStream, StreamExt};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, link::LinkMessage};
use rtnetlink::MulticastGroup;
use tokio::{runtime, task::JoinHandle};

use super::{
    PortFlags,
    dump::{Link, link, port_of_bridge},
    socket::OpenError,
};
use netlink_sys::{AsyncSocket as _, SocketAddr};

use crate::{broker::SocketKind, netns::Netns, socket};

/// Tells of changes to the links of one namespace, as they happen.
pub struct Monitor {
    events: BoxStream<'static, Event>,
    connection: JoinHandle<()>,
    /// The connection ends when nobody can ask it anything any more.
    _handle: rtnetlink::Handle,
}

/// A change to the links of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new, or is not what it was.
    Changed(Box<Link>),
    /// A link is gone, by deletion or by a move to another namespace.
    Deleted(Box<Link>),
    /// What a bridge does at one of its ports is not what it was.
    Port {
        /// Index of the link that is the port.
        link: u32,
        /// All that is known here, as it is now.
        flags: PortFlags,
    },
    /// Events were lost because they came faster than they were taken: read the tables again.
    Overrun,
}

impl Monitor {
    /// Listens in the namespace from now on. Must be called within a tokio runtime.
    pub fn open(netns: &Netns) -> Result<Self, OpenError> {
        let runtime = runtime::Handle::current();
        let opened = netns.socket(SocketKind::Route).and_then(|socket| {
            let _entered = runtime.enter();
            let mut socket = socket::registered(socket);
            let links = 1 << (MulticastGroup::Link as u32 - 1);
            socket.socket_mut().bind(&SocketAddr::new(0, links))?;
            Ok(rtnetlink::from_socket(socket))
        });
        let (connection, handle, messages) = opened.map_err(|source: io::Error| OpenError::Socket {
            netns: netns.id(),
            source,
        })?;
        let events = messages.filter_map(async |(message, _)| match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) if by_bridge(&message) => {
                let link = message.header.index;
                port_of_bridge(&message).map(|flags| Event::Port { link, flags })
            }
            // A port that is no port any more: of the link itself that is told as well.
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) if by_bridge(&message) => {
                None
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
                Some(Event::Changed(Box::new(link(message))))
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) => {
                Some(Event::Deleted(Box::new(link(message))))
            }
            NetlinkPayload::Overrun(_) => Some(Event::Overrun),
            _ => None,
        });
        Ok(Self {
            events: events.boxed(),
            connection: runtime.spawn(connection),
            _handle: handle,
        })
    }

    /// The next change; `None` if the kernel closed the socket.
    ///
    /// Cancel-safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.next().await
    }
}

/// Whether a bridge tells this of its port. Much of what is known of the link, its alias for one, is not in it.
fn by_bridge(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Bridge
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}
