//! The sockets of a network namespace (sock_diag(7)), what BPF programs keep with them, and closing them.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use netlink_sys::Socket as Netlink;

use crate::{
    bpf::Map,
    broker::SocketKind,
    netns::Netns,
    nft::nfnl::{attribute, attributes},
    socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQ_SK_BPF_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_INFO: u16 = 2;
/// When it last sent data, got data and got an acknowledgement, in milliseconds before now (`struct tcp_info`).
const LAST_AT: [usize; 3] = [44, 52, 56];
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// States of sockets: of a TCP one that listens, and of a UDP one without a peer.
const TCP_LISTEN: u8 = 10;
const TCP_TIME_WAIT: u8 = 6;
const TCP_CLOSE: u8 = 7;
const EVERY: [(Transport, u8); 4] = [
    (Transport::Tcp, libc::AF_INET as u8),
    (Transport::Tcp, libc::AF_INET6 as u8),
    (Transport::Udp, libc::AF_INET as u8),
    (Transport::Udp, libc::AF_INET6 as u8),
];
const HEADER_LEN: usize = 16;
const ID_LEN: usize = 48;
const ID_AT: usize = 4;
/// `struct inet_diag_msg`
const MESSAGE_LEN: usize = 72;
const INODE_AT: usize = 68;
const RECEIVE_LEN: usize = 64 * 1024;

/// Why sockets could not be listed or closed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}{}", likely_cause(source))]
pub struct DiagError {
    doing: &'static str,
    #[source]
    source: io::Error,
}

impl DiagError {
    fn listing(source: io::Error) -> Self {
        Self {
            doing: "list the sockets of the network namespace",
            source,
        }
    }
}

fn likely_cause(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": needs CAP_NET_ADMIN over this network namespace",
        Some(libc::ENOENT) => ": the kernel lacks inet_diag (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)",
        Some(libc::EOPNOTSUPP) => ": the kernel cannot close sockets of others (CONFIG_INET_DIAG_DESTROY)",
        _ => "",
    }
}

/// A transport protocol whose sockets can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A connected socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectedSocket {
    /// Its protocol.
    pub transport: Transport,
    /// Where it is connected to.
    pub peer: IpAddr,
    /// To which port.
    pub peer_port: u16,
    /// Its cookie, by which BPF programs know it.
    pub cookie: u64,
    /// What the asked map keeps with it; the kernel does not say for UDP.
    pub stored: Option<Vec<u8>>,
    /// For how long a TCP one was silent, in both directions, if that was asked for.
    pub idle: Option<Duration>,
    family: u8,
    id: [u8; ID_LEN],
}

/// A socket that takes what comes to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// Its protocol.
    pub transport: Transport,
    /// Its address, unspecified for all of them.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Asks about the sockets of one network namespace.
pub struct Diag {
    socket: Netlink,
}

impl Diag {
    /// Connects to the network namespace of the calling thread.
    pub fn open() -> Result<Self, DiagError> {
        Self::of(socket::open(SocketKind::Diag))
    }

    /// The same for another namespace than that of the calling thread.
    pub fn open_in(netns: &Netns) -> Result<Self, DiagError> {
        Self::of(netns.socket(SocketKind::Diag).and_then(socket::connect))
    }

    fn of(opened: io::Result<Netlink>) -> Result<Self, DiagError> {
        let socket = opened.map_err(|source| DiagError {
            doing: "open a socket to list sockets",
            source,
        })?;
        Ok(Self { socket })
    }

    /// All sockets that have a peer, with what a map of [`MapKind::Sockets`](crate::bpf::MapKind::Sockets) keeps
    /// with them, and on demand for how long they were silent.
    pub fn connected(&self, map: &Map, with_idle: bool) -> Result<Vec<ConnectedSocket>, DiagError> {
        let mut found = Vec::new();
        // INET_DIAG_REQ_SK_BPF_STORAGES { SK_DIAG_BPF_STORAGE_REQ_MAP_FD: fd }
        let mut attrs = Vec::new();
        for (len, kind) in [(12u16, REQ_SK_BPF_STORAGES), (8, REQ_MAP_FD)] {
            attrs.extend(len.to_ne_bytes());
            attrs.extend(kind.to_ne_bytes());
        }
        attrs.extend(map.as_fd().as_raw_fd().to_ne_bytes());
        for (transport, family) in EVERY {
            let asked = if with_idle { 1 << (INET_DIAG_INFO - 1) } else { 0 };
            let sockets = self.dump(transport, family, asked, &attrs, connected);
            found.extend(sockets.map_err(DiagError::listing)?);
        }
        Ok(found)
    }

    /// All sockets that wait for whoever comes: TCP ones that listen and UDP ones without a peer.
    pub fn listeners(&self) -> Result<Vec<Listener>, DiagError> {
        let mut found = Vec::new();
        for (transport, family) in EVERY {
            let sockets = self.dump(transport, family, 0, &[], listener);
            found.extend(sockets.map_err(DiagError::listing)?);
        }
        Ok(found)
    }

    /// Ends TCP connections that no program has any more and that the kernel still tries to bring to an end. They keep a
    /// network namespace alive for minutes after it has lost its links. Says how many there were.
    pub fn abort_orphans(&self) -> Result<usize, DiagError> {
        let mut ended = 0;
        for (transport, family) in EVERY {
            if transport == Transport::Tcp {
                let orphans = self.dump(transport, family, 0, &[], orphan);
                for orphan in orphans.map_err(DiagError::listing)? {
                    ended += usize::from(self.close(&orphan)?);
                }
            }
        }
        Ok(ended)
    }

    /// Closes a socket under its program, which sees the connection aborted; the peer of a TCP connection gets a
    /// reset. Says whether it was still there.
    pub fn close(&self, socket: &ConnectedSocket) -> Result<bool, DiagError> {
        let request = request(
            SOCK_DESTROY,
            (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16,
            socket.transport,
            (socket.family, 0),
            &socket.id,
            &[],
        );
        let close = || -> io::Result<bool> {
            self.socket.send(&request, 0)?;
            let mut done = None;
            while done.is_none() {
                for_each(&self.receive()?, |kind, body| {
                    if kind == libc::NLMSG_ERROR as u16 {
                        done = Some(errno(body));
                    }
                });
            }
            match done.flatten() {
                None => Ok(true),
                Some(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Some(error) => Err(error),
            }
        };
        close().map_err(|source| DiagError {
            doing: "close a socket",
            source,
        })
    }

    fn dump<T>(
        &self,
        transport: Transport,
        family: u8,
        asked: u8,
        attrs: &[u8],
        read: impl Fn(Transport, &[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        let request = request(
            SOCK_DIAG_BY_FAMILY,
            flags,
            transport,
            (family, asked),
            &[0; ID_LEN],
            attrs,
        );
        self.socket.send(&request, 0)?;
        let (mut found, mut done) = (Vec::new(), None);
        while done.is_none() {
            for_each(&self.receive()?, |kind, body| {
                if kind == libc::NLMSG_DONE as u16 {
                    done.get_or_insert(None);
                } else if kind == libc::NLMSG_ERROR as u16 {
                    done.get_or_insert_with(|| errno(body));
                } else {
                    found.extend(read(transport, body));
                }
            });
        }
        done.flatten().map_or(Ok(found), Err)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(RECEIVE_LEN);
        socket::answer(|| self.socket.recv(&mut buffer, 0))?;
        Ok(buffer)
    }
}

/// A message with `struct inet_diag_req_v2`; `asked` are bits for what is wanted besides.
fn request(
    kind: u16,
    flags: u16,
    transport: Transport,
    (family, asked): (u8, u8),
    id: &[u8; ID_LEN],
    attrs: &[u8],
) -> Vec<u8> {
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
    };
    let mut message = Vec::new();
    message.extend(((HEADER_LEN + 8 + ID_LEN + attrs.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, protocol as u8, asked, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(id);
    message.extend(attrs);
    message
}

fn listener(transport: Transport, body: &[u8]) -> Option<Listener> {
    let waits = match transport {
        Transport::Tcp => TCP_LISTEN,
        Transport::Udp => TCP_CLOSE,
    };
    let id = body.get(ID_AT..ID_AT + ID_LEN)?;
    let port = u16::from_be_bytes([id[0], id[1]]);
    if *body.get(1)? != waits || port == 0 {
        return None;
    }
    let address = if i32::from(*body.first()?) == libc::AF_INET {
        IpAddr::from(<[u8; 4]>::try_from(&id[4..8]).ok()?)
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(&id[4..20]).ok()?).to_canonical()
    };
    Some(Listener {
        transport,
        address,
        port,
    })
}

/// What waits in `TIME_WAIT` holds nothing.
fn orphan(transport: Transport, body: &[u8]) -> Option<ConnectedSocket> {
    let inode = body.get(INODE_AT..MESSAGE_LEN)?;
    let waits = [TCP_TIME_WAIT, TCP_LISTEN].contains(body.get(1)?);
    if waits || inode.iter().any(|byte| *byte != 0) {
        return None;
    }
    connected(transport, body)
}

fn connected(transport: Transport, body: &[u8]) -> Option<ConnectedSocket> {
    let family = *body.first()?;
    let id: [u8; ID_LEN] = body.get(ID_AT..ID_AT + ID_LEN)?.try_into().ok()?;
    let peer_port = u16::from_be_bytes([id[2], id[3]]);
    if peer_port == 0 {
        return None;
    }
    let peer = if i32::from(family) == libc::AF_INET {
        IpAddr::from(<[u8; 4]>::try_from(&id[20..24]).ok()?)
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(&id[20..36]).ok()?).to_canonical()
    };
    let attrs = body.get(MESSAGE_LEN..)?;
    let storages = attribute(attrs, INET_DIAG_SK_BPF_STORAGES);
    let stored = storages.and_then(|storages| {
        let of_map = attributes(storages).find(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE)?;
        Some(attribute(of_map.1, SK_DIAG_BPF_STORAGE_MAP_VALUE)?.to_vec())
    });
    Some(ConnectedSocket {
        transport,
        peer,
        peer_port,
        cookie: u64::from_ne_bytes(id[40..48].try_into().ok()?),
        stored,
        idle: attribute(attrs, INET_DIAG_INFO).and_then(idle),
        family,
        id,
    })
}

/// From `struct tcp_info`.
fn idle(info: &[u8]) -> Option<Duration> {
    let millis = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let silent = LAST_AT.into_iter().filter_map(millis).min()?;
    Some(Duration::from_millis(silent.into()))
}

/// Splits a datagram into messages: their kind and what follows the header.
fn for_each(mut bytes: &[u8], mut each: impl FnMut(u16, &[u8])) {
    while let Some(header) = bytes.get(..HEADER_LEN) {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(body) = bytes.get(HEADER_LEN..len) else {
            return;
        };
        each(u16::from_ne_bytes([header[4], header[5]]), body);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// Reads an `NLMSG_ERROR`; an acknowledgement is one with the number 0.
fn errno(body: &[u8]) -> Option<io::Error> {
    let number = body
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match number {
        Some(0) => None,
        Some(number) => Some(io::Error::from_raw_os_error(-number)),
        None => Some(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn who_waits_on_a_port_is_listed_and_who_is_connected_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        let (tcp_at, udp_at) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        let _client = std::net::TcpStream::connect(tcp_at).unwrap();
        let found = match Diag::open().unwrap().listeners() {
            Ok(found) => found,
            Err(error) => return crate::testing::skip(format_args!("{error}")),
        };
        for (transport, at) in [(Transport::Tcp, tcp_at), (Transport::Udp, udp_at)] {
            let on_port = found
                .iter()
                .filter(|one| (one.transport, one.port) == (transport, at.port()));
            let addresses: Vec<_> = on_port.map(|one| one.address).collect();
            assert_eq!(addresses, [at.ip()], "{transport:?}");
        }
    }
}
