use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::Listen;
use crate::{api::ApiError, cli::failure::Failure};

type Pair = (tokio::net::TcpListener, tokio::net::UdpSocket);

/// A port the kernel chose for TCP may be taken for UDP or the other family; then it chooses again.
const ATTEMPTS: usize = 16;

/// Sockets for TCP and UDP, on the same port.
pub(super) fn bind(listen: Listen) -> Result<Vec<Pair>, Failure> {
    match listen {
        Listen::At(address) => again(address.port(), |port| {
            Ok(vec![pair(SocketAddr::new(address.ip(), port))?])
        }),
        Listen::Everywhere { port } => again(port, |port| {
            let v4 = pair((Ipv4Addr::UNSPECIFIED, port).into())?;
            let chosen =
                v4.0.local_addr()
                    .map_err(|error| refuse((Ipv4Addr::UNSPECIFIED, port).into(), error))?;
            match pair((Ipv6Addr::UNSPECIFIED, chosen.port()).into()) {
                Ok(v6) => Ok(vec![v4, v6]),
                Err(refusal) if refusal.no_such_family => Ok(vec![v4]),
                Err(refusal) => Err(refusal),
            }
        }),
    }
}

struct Refusal {
    in_use: bool,
    no_such_family: bool,
    failure: Failure,
}

fn again(port: u16, mut bind: impl FnMut(u16) -> Result<Vec<Pair>, Refusal>) -> Result<Vec<Pair>, Failure> {
    let attempts = if port == 0 { ATTEMPTS } else { 1 };
    let mut result = bind(port);
    for _ in 1..attempts {
        match result {
            Err(Refusal { in_use: true, .. }) => result = bind(port),
            _ => break,
        }
    }
    result.map_err(|refusal| refusal.failure)
}

fn pair(address: SocketAddr) -> Result<Pair, Refusal> {
    let bind = || -> io::Result<Pair> {
        let tcp = TcpListener::from(socket(address, Type::STREAM, Protocol::TCP)?);
        let udp = UdpSocket::from(socket(tcp.local_addr()?, Type::DGRAM, Protocol::UDP)?);
        Ok((tcp.try_into()?, udp.try_into()?))
    };
    bind().map_err(|error| refuse(address, error))
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if kind == Type::STREAM {
        // A restarted replica does not wait for its predecessor's connections to be forgotten.
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        // IPv4 has a socket of its own, so that a client's address is never shown as ::ffff:a.b.c.d.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(1024)?;
    }
    Ok(socket)
}

fn refuse(address: SocketAddr, error: io::Error) -> Refusal {
    let in_use = error.kind() == io::ErrorKind::AddrInUse;
    let sentence = format!("whoami cannot listen on {address}: {error}");
    let failure = match error.kind() {
        io::ErrorKind::AddrInUse => ApiError::conflict(sentence).with_help(format!(
            "`ss -lntup sport = :{}` says who does; --listen takes another port",
            address.port()
        )),
        io::ErrorKind::PermissionDenied => ApiError::forbidden(sentence)
            .with_help("ports below 1024 need root, or a namespace of one's own: --listen :8080 does not"),
        io::ErrorKind::AddrNotAvailable => {
            ApiError::invalid(sentence).with_help("`ip address` lists the addresses that this namespace has")
        }
        _ => ApiError::internal(sentence),
    };
    // Without IPv6 the kernel has no such sockets, or has them and no address to bind them to.
    let no_such_family = error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
        || error.kind() == io::ErrorKind::AddrNotAvailable;
    Refusal {
        in_use,
        no_such_family,
        failure: failure.into(),
    }
}
