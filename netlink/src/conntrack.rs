//! Connection tracking over netlink: the flows of one network namespace, and the stream of their changes.
//!
//! As with [`crate::nft`], a socket belongs to the namespace in which it was opened. Comments name the kernel's
//! constants from `linux/netfilter/nfnetlink_conntrack.h`.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use crate::{
    netns::Netns,
    nft::nfnl::{ACK, DUMP, Messages, NfSocket, attribute, number},
};

#[cfg(test)]
mod tests;

const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const IPCTNL_MSG_CT_GET_STATS: u16 = 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const GROUP_NEW: u32 = 1;
const GROUP_UPDATE: u32 = 2;
const GROUP_DESTROY: u32 = 3;
/// Some ten thousand events.
const EVENT_BUFFER_BYTES: usize = 8 << 20;

/// Why connection tracking could not be asked or told something.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}{}", likely_cause(source))]
pub struct ConntrackError {
    doing: &'static str,
    #[source]
    source: io::Error,
}

fn likely_cause(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": needs CAP_NET_ADMIN over this network namespace",
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            ": the kernel lacks conntrack over netlink (CONFIG_NF_CT_NETLINK)"
        }
        _ => "",
    }
}

/// Addresses and ports of one direction; the ports are 0 where the protocol has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where from.
    pub src: IpAddr,
    /// Where to.
    pub dst: IpAddr,
    /// From which port.
    pub src_port: u16,
    /// To which port.
    pub dst_port: u16,
}

/// How far a TCP connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// The handshake is under way.
    Opening,
    /// Data flows.
    Established,
    /// One end has sent its FIN, or both have and not all is acknowledged.
    Closing,
    /// Both ends have closed it, or an RST was seen. A new connection may take its place.
    Closed,
}

/// A tracked flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Tells it from an earlier one with the same addresses and ports.
    pub id: u32,
    /// The transport protocol (`IPPROTO_…`).
    pub protocol: u8,
    /// As the first packet had it before any translation.
    pub original: Tuple,
    /// As answers have it: its source is who really answers.
    pub reply: Tuple,
    /// For TCP; an event that does not change it may leave it out.
    pub tcp_state: Option<TcpState>,
    /// `CTA_TUPLE_ORIG` as it came, which names the flow whatever its protocol.
    key: Vec<u8>,
}

impl Flow {
    /// Whether neither end of it, if it is TCP, has begun to close it.
    pub fn is_open(&self) -> bool {
        !matches!(self.tcp_state, Some(TcpState::Closing | TcpState::Closed))
    }
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A flow began.
    New(Flow),
    /// A flow changed.
    Update(Flow),
    /// A flow ended.
    Destroy(Flow),
}

/// Asks and tells about the flows of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: NfSocket,
}

impl Conntrack {
    /// Connects to the network namespace of the calling thread.
    pub fn open() -> Result<Self, ConntrackError> {
        Self::of(NfSocket::open())
    }

    /// The same for another namespace than that of the calling thread.
    pub fn open_in(netns: &Netns) -> Result<Self, ConntrackError> {
        Self::of(NfSocket::open_in(netns))
    }

    fn of(opened: io::Result<NfSocket>) -> Result<Self, ConntrackError> {
        let socket = opened.map_err(|source| ConntrackError {
            doing: "open a netfilter socket",
            source,
        })?;
        Ok(Self { socket })
    }

    /// All flows, of IPv4 and IPv6.
    pub fn flows(&self) -> Result<Vec<Flow>, ConntrackError> {
        // The kernel keeps one table for all namespaces, and goes through it for milliseconds however few are ours.
        if self.count() == Some(0) {
            return Ok(Vec::new());
        }
        let mut request = Messages::default();
        request.push(
            message_type(IPCTNL_MSG_CT_GET),
            DUMP,
            libc::AF_UNSPEC as u8,
            0,
            |_| {},
        );
        let answer = self.socket.dump(&request, |_, attrs| flow(attrs));
        answer.map_err(|source| ConntrackError {
            doing: "list the tracked connections",
            source,
        })
    }

    /// How many flows there are, some perhaps not listed yet; `None` where the kernel does not say.
    fn count(&self) -> Option<u32> {
        let mut request = Messages::default();
        let family = libc::AF_UNSPEC as u8;
        // The acknowledgement ends the answer, as the end of a listing does.
        request.push(message_type(IPCTNL_MSG_CT_GET_STATS), ACK, family, 0, |_| {});
        let answer = self
            .socket
            .dump(&request, |_, attrs| number(attrs, CTA_STATS_GLOBAL_ENTRIES));
        answer.ok()?.pop()
    }

    /// Forgets a flow, so that its next packet is a new connection. Says whether it was still there.
    pub fn delete(&self, flow: &Flow) -> Result<bool, ConntrackError> {
        let family = if flow.original.src.is_ipv6() {
            libc::AF_INET6
        } else {
            libc::AF_INET
        };
        let mut request = Messages::default();
        request.push(message_type(IPCTNL_MSG_CT_DELETE), ACK, family as u8, 0, |m| {
            m.bytes(CTA_TUPLE_ORIG | libc::NLA_F_NESTED as u16, &flow.key);
            m.u32(CTA_ID, flow.id);
        });
        match self.socket.execute(&request) {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(refusal) => Err(ConntrackError {
                doing: "forget a tracked connection",
                source: refusal.source,
            }),
        }
    }
}

/// The changes of the flows of one network namespace, as they happen.
#[derive(Debug)]
pub struct Events {
    socket: NfSocket,
}

/// Events were lost because nobody read them in time: count anew from [`Conntrack::flows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

impl Events {
    /// Subscribes in the network namespace of the calling thread.
    pub fn open() -> Result<Self, ConntrackError> {
        Self::of(NfSocket::open())
    }

    /// The same for another namespace.
    pub fn open_in(netns: &Netns) -> Result<Self, ConntrackError> {
        Self::of(NfSocket::open_in(netns))
    }

    fn of(opened: io::Result<NfSocket>) -> Result<Self, ConntrackError> {
        let subscribed = opened.and_then(|mut socket| {
            socket.subscribe(&[GROUP_NEW, GROUP_UPDATE, GROUP_DESTROY], EVENT_BUFFER_BYTES)?;
            Ok(socket)
        });
        let socket = subscribed.map_err(|source| ConntrackError {
            doing: "subscribe to connection tracking",
            source,
        })?;
        Ok(Self { socket })
    }

    /// Passes on every event that is waiting, without blocking. `Ok(Some(Overflow))` says that some were lost.
    pub fn drain(&self, mut each: impl FnMut(Event)) -> Result<Option<Overflow>, ConntrackError> {
        let mut overflow = None;
        loop {
            match self
                .socket
                .drain(|kind, attrs, flags| event(kind, attrs, flags).into_iter().for_each(&mut each))
            {
                Ok(()) => return Ok(overflow),
                // Said once for each loss; what was not lost follows.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => overflow = Some(Overflow),
                Err(source) => {
                    return Err(ConntrackError {
                        doing: "read from connection tracking",
                        source,
                    });
                }
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn message_type(message: u16) -> u16 {
    ((libc::NFNL_SUBSYS_CTNETLINK as u16) << 8) | message
}

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;

fn event(kind: u16, attrs: &[u8], flags: u16) -> Option<Event> {
    let flow = flow(attrs)?;
    if kind == message_type(IPCTNL_MSG_CT_DELETE) {
        Some(Event::Destroy(flow))
    } else if kind != message_type(IPCTNL_MSG_CT_NEW) {
        None
    } else if flags & libc::NLM_F_CREATE as u16 != 0 {
        Some(Event::New(flow))
    } else {
        Some(Event::Update(flow))
    }
}

fn flow(attrs: &[u8]) -> Option<Flow> {
    let key = attribute(attrs, CTA_TUPLE_ORIG)?;
    let (original, protocol) = tuple(key)?;
    let (reply, _) = tuple(attribute(attrs, CTA_TUPLE_REPLY)?)?;
    Some(Flow {
        id: number(attrs, CTA_ID)?,
        protocol,
        original,
        reply,
        tcp_state: attribute(attrs, CTA_PROTOINFO).and_then(tcp_state),
        key: key.to_vec(),
    })
}

/// CTA_TUPLE_IP with CTA_IP_V4_SRC, _DST or CTA_IP_V6_SRC, _DST; CTA_TUPLE_PROTO with CTA_PROTO_NUM, _SRC_PORT, _DST_PORT
fn tuple(attrs: &[u8]) -> Option<(Tuple, u8)> {
    let (ip, proto) = (attribute(attrs, 1)?, attribute(attrs, 2)?);
    let addr = |v4, v6| {
        let v4 = attribute(ip, v4).and_then(|bytes| Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)));
        v4.or_else(|| Some(IpAddr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?)))
    };
    let port = |kind| {
        attribute(proto, kind)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u16::from_be_bytes)
    };
    let tuple = Tuple {
        src: addr(1, 3)?,
        dst: addr(2, 4)?,
        src_port: port(2),
        dst_port: port(3),
    };
    Some((tuple, *attribute(proto, 1)?.first()?))
}

/// CTA_PROTOINFO_TCP with CTA_PROTOINFO_TCP_STATE, a number of `enum tcp_conntrack`.
fn tcp_state(protoinfo: &[u8]) -> Option<TcpState> {
    Some(match *attribute(attribute(protoinfo, 1)?, 1)?.first()? {
        // NONE, SYN_SENT, SYN_RECV, SYN_SENT2
        0..=2 | 9 => TcpState::Opening,
        // ESTABLISHED
        3 => TcpState::Established,
        // FIN_WAIT, CLOSE_WAIT, LAST_ACK
        4..=6 => TcpState::Closing,
        // TIME_WAIT, CLOSE
        _ => TcpState::Closed,
    })
}
