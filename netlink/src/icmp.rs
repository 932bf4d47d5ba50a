//! Echo requests (RFC 792, RFC 4443), many at once, from a namespace.

#![allow(unsafe_code)]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, SockaddrStorage, recv, sendto},
};

use crate::{
    broker::SocketKind,
    netns::{Netns, NetnsError},
};

/// What an echo consists of before its payload.
const HEADER: usize = 8;
/// By which our own are known among what others of the namespace send: the rest of a payload is zeros.
const MARK: usize = 8;

/// A request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// To whom.
    pub to: IpAddr,
    /// The length of the whole IP packet in bytes. It is not fragmented on its way, but lost where it does not fit.
    pub len: usize,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Nothing came.
    #[error("no answer")]
    Silent,
    /// The device it would leave by takes less.
    #[error("it is too long for the device it would leave by")]
    TooLong,
    /// There is no way there.
    #[error("{0}")]
    Unsent(String),
}

impl Echo {
    /// The shortest that can be sent.
    pub fn short(to: IpAddr) -> Self {
        Self {
            to,
            len: ip_header(to) + HEADER + MARK,
        }
    }

    /// One of this length, or the shortest if that is longer.
    pub fn of(to: IpAddr, len: usize) -> Self {
        let short = Self::short(to);
        Self {
            len: len.max(short.len),
            ..short
        }
    }

    fn request(&self, number: u16, mark: [u8; MARK]) -> Vec<u8> {
        let mut bytes = vec![0; self.len.saturating_sub(ip_header(self.to))];
        bytes.resize(bytes.len().max(HEADER + MARK), 0);
        bytes[0] = if self.to.is_ipv4() { 8 } else { 128 };
        bytes[4..6].copy_from_slice(&mark[..2]);
        bytes[6..8].copy_from_slice(&number.to_be_bytes());
        bytes[HEADER..HEADER + MARK].copy_from_slice(&mark);
        if self.to.is_ipv4() {
            // The kernel fills in the checksum of ICMPv6 only (RFC 3542, section 3.1).
            let sum = checksum(&bytes).to_be_bytes();
            bytes[2..4].copy_from_slice(&sum);
        }
        bytes
    }
}

/// Sends all of them, those that are not answered a second time after half of `patience`, and tells how long each answer
/// took, in the same order. Blocks for as long as `patience`, unless all are answered sooner.
pub fn ping(
    netns: &Netns,
    echoes: &[Echo],
    patience: Duration,
) -> Result<Vec<Result<Duration, Unanswered>>, PingError> {
    let mut answers = vec![Err(Unanswered::Silent); echoes.len()];
    for ipv4 in [true, false] {
        let of_version = |(_, echo): &(usize, &Echo)| echo.to.is_ipv4() == ipv4;
        let some: Vec<(usize, &Echo)> = echoes.iter().enumerate().filter(of_version).collect();
        // The number of one is a field of 16 bits.
        for some in some.chunks(1 << 16) {
            if !some.is_empty() {
                let socket = open(netns, ipv4)?;
                exchange(&socket, ipv4, some, patience, &mut answers)?;
            }
        }
    }
    Ok(answers)
}

/// Why nothing could be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No socket, or a broken one.
    #[error("echo requests cannot be sent")]
    Socket(#[from] io::Error),
}

impl From<Errno> for PingError {
    fn from(error: Errno) -> Self {
        Self::Socket(error.into())
    }
}

fn open(netns: &Netns, ipv4: bool) -> io::Result<OwnedFd> {
    let (level, option, probe) = match ipv4 {
        true => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        false => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    };
    let socket = netns.socket(SocketKind::Icmp { ipv4 })?;
    let flags = rustix::fs::fcntl_getfl(&socket)?;
    rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK)?;
    // Never in fragments, whatever the kernel has learned of the way: that is what is to be found out.
    // SAFETY: the option is an int, which is what the pointer leads to for the length that is given.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const probe).cast(),
            size_of_val(&probe) as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

fn exchange(
    socket: &OwnedFd,
    ipv4: bool,
    echoes: &[(usize, &Echo)],
    patience: Duration,
    answers: &mut [Result<Duration, Unanswered>],
) -> Result<(), PingError> {
    let begun = Instant::now();
    let mark = mark(socket, begun);
    let mut sent = vec![begun; echoes.len()];
    for until in [begun + patience / 2, begun + patience] {
        for (number, (place, echo)) in echoes.iter().enumerate() {
            if answers[*place].is_ok() {
                continue;
            }
            let to = SockaddrStorage::from(SocketAddr::new(echo.to, 0));
            sent[number] = Instant::now();
            let request = echo.request(number as u16, mark);
            let outcome = sendto(socket.as_raw_fd(), &request, &to, MsgFlags::empty());
            match outcome {
                Ok(_) => answers[*place] = Err(Unanswered::Silent),
                Err(Errno::EMSGSIZE) => answers[*place] = Err(Unanswered::TooLong),
                // A queue is full: the second time comes.
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                Err(error) => answers[*place] = Err(Unanswered::Unsent(error.desc().to_owned())),
            }
            receive(socket, ipv4, mark, &sent, echoes, answers)?;
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let waited_for = |answer: &Result<_, _>| matches!(answer, Err(Unanswered::Silent));
            if left.is_zero() || !echoes.iter().any(|(place, _)| waited_for(&answers[*place])) {
                break;
            }
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut ready, timeout) {
                Ok(_) | Err(Errno::EINTR) => receive(socket, ipv4, mark, &sent, echoes, answers)?,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Takes in what has come.
fn receive(
    socket: &OwnedFd,
    ipv4: bool,
    mark: [u8; MARK],
    sent: &[Instant],
    echoes: &[(usize, &Echo)],
    answers: &mut [Result<Duration, Unanswered>],
) -> Result<(), PingError> {
    // Long packets are cut: only their beginning is read.
    let mut buffer = [0; 128];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return Ok(()),
            // Of an earlier packet; its own answer is what counts.
            Err(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EMSGSIZE | Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(number) = reply(&buffer[..length], ipv4, mark).map(usize::from) else {
            continue;
        };
        if let (Some((place, _)), Some(sent)) = (echoes.get(number), sent.get(number)) {
            answers[*place] = Ok(sent.elapsed());
        }
    }
}

/// The number of the request that a packet answers, if it is one of ours.
fn reply(packet: &[u8], ipv4: bool, mark: [u8; MARK]) -> Option<u16> {
    // IPv4 hands over the IP header too; its length is in the low half of its first byte.
    let skip = if ipv4 {
        usize::from(packet.first()? & 15) * 4
    } else {
        0
    };
    let echo = packet.get(skip..)?;
    let is_reply = *echo.first()? == if ipv4 { 0 } else { 129 };
    let is_ours = echo.get(HEADER..HEADER + MARK)? == mark;
    (is_reply && is_ours).then(|| u16::from_be_bytes([echo[6], echo[7]]))
}

/// Differs between sockets, and from one moment to the next.
fn mark(socket: &OwnedFd, now: Instant) -> [u8; MARK] {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new()
        .hash_one((socket.as_raw_fd(), now))
        .to_be_bytes()
}

fn ip_header(to: IpAddr) -> usize {
    if to.is_ipv4() { 20 } else { 40 }
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_fits_is_answered_and_what_does_not_is_said_to() {
        let Some(netns) = testing::netns() else { return };
        netns
            .run(|| {
                std::process::Command::new("ip")
                    .args(["link", "set", "lo", "mtu", "1400", "up"])
                    .status()
            })
            .unwrap()
            .unwrap();
        for loopback in ["127.0.0.1", "::1"] {
            let to: IpAddr = loopback.parse().unwrap();
            let echoes = [
                Echo::short(to),
                Echo::of(to, 1400),
                Echo::of(to, 1401),
                Echo::of(to, 1399),
            ];
            let answers = ping(&netns, &echoes, Duration::from_secs(5)).unwrap();
            assert!(
                answers[0].is_ok() && answers[1].is_ok() && answers[3].is_ok(),
                "{answers:?}"
            );
            assert_eq!(answers[2], Err(Unanswered::TooLong));
        }
        let nowhere = Echo::short("192.0.2.1".parse().unwrap());
        let answers = ping(&netns, &[nowhere], Duration::from_millis(50)).unwrap();
        assert!(matches!(&answers[0], Err(Unanswered::Unsent(_))), "{answers:?}");
    }

    #[test]
    fn replies_of_others_are_not_ours() {
        let mark = [7; MARK];
        let mut packet = Echo::short("::1".parse().unwrap()).request(5, mark);
        assert_eq!(reply(&packet, false, mark), None, "a request");
        packet[0] = 129;
        assert_eq!(reply(&packet, false, mark), Some(5));
        assert_eq!(reply(&packet, false, [8; MARK]), None);
        assert_eq!(reply(&packet[..HEADER], false, mark), None);
        assert_eq!(reply(&[], true, mark), None);
    }
}
