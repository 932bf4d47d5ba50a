//! An ICMP or ICMPv6 echo, without a program.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LabError;
use crate::wait::{self, TimedOut};

/// Enough for the largest IPv4 header and our echo.
const BUFFER: usize = 256;
/// The kernel drops what is sent in the moment before it has noticed that a link is up again.
const SEND_EVERY: Duration = Duration::from_millis(200);

/// Sends echo requests from the calling thread's network namespace until one is answered.
pub(crate) fn ping(place: &str, address: IpAddr, timeout: Duration) -> Result<Duration, LabError> {
    match exchange(address, Instant::now() + timeout) {
        Ok(Some(round_trip)) => Ok(round_trip),
        Ok(None) => {
            let what = format!("an echo reply from {address} to {place}");
            Err(TimedOut {
                what,
                timeout,
                last: "none".into(),
            }
            .into())
        }
        Err(source) => Err(LabError::Os {
            what: format!("ping {address} from {place}"),
            source,
        }),
    }
}

/// The round-trip time of the first reply before the deadline.
fn exchange(address: IpAddr, deadline: Instant) -> io::Result<Option<Duration>> {
    let (domain, protocol, request, reply, anything) = match address {
        IpAddr::V4(_) => (
            Domain::IPV4,
            Protocol::ICMPV4,
            8,
            0,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ),
        IpAddr::V6(_) => (
            Domain::IPV6,
            Protocol::ICMPV6,
            128,
            129,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(anything, 0).into())?;
    // The thread is ours alone, so its id tells our replies from those of a ping beside us.
    let id = (nix::unistd::gettid().as_raw() as u16).to_be_bytes();
    let to = SocketAddr::new(address, 0).into();
    let mut sent = Vec::new();
    loop {
        let sequence = (sent.len() as u16).to_be_bytes();
        sent.push(Instant::now());
        let mut echo = [
            request,
            0,
            0,
            0,
            id[0],
            id[1],
            sequence[0],
            sequence[1],
            b'l',
            b'a',
            b'b',
            b' ',
        ];
        if address.is_ipv4() {
            // The kernel fills in the checksum of ICMPv6 only (RFC 3542, section 3.1).
            let sum = checksum(&echo).to_be_bytes();
            echo[2..4].copy_from_slice(&sum);
        }
        match socket.send_to(&echo, &to) {
            Ok(_) => {}
            // Neighbour discovery has failed before, and the error is told to the next sender.
            Err(error) if error.kind() == io::ErrorKind::HostUnreachable => {}
            Err(error) => return Err(error),
        }
        let again = deadline.min(Instant::now() + SEND_EVERY);
        while Instant::now() < again {
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, wait::poll_timeout(again))?;
            let mut buffer = [0_u8; BUFFER];
            match io::Read::read(&mut &socket, &mut buffer) {
                Ok(length) => {
                    // IPv4 hands over the IP header too; its length is in the low half of its first byte.
                    let skip = if address.is_ipv4() {
                        usize::from(buffer[0] & 15) * 4
                    } else {
                        0
                    };
                    let answer = buffer.get(skip..length).unwrap_or_default();
                    if answer.len() >= 8 && answer[0] == reply && answer[4..6] == id {
                        let sequence = u16::from_be_bytes([answer[6], answer[7]]);
                        let sent = sent.get(usize::from(sequence));
                        return Ok(sent.map(Instant::elapsed));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An error of an earlier packet, told here; the reply may still come.
                Err(error) if error.kind() == io::ErrorKind::HostUnreachable => {}
                Err(error) => return Err(error),
            }
        }
        if again >= deadline {
            return Ok(None);
        }
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}
