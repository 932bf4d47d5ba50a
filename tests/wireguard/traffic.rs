//! What containers send each other.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use netns_harness::eventually;
use nix::sys::socket::{setsockopt, sockopt};
use weft_netlink::netns::Netns;

use crate::bed::{LOOK_EVERY, Node, PATIENCE, container};

/// What a stream has on its way at most, whatever its ends would like to: on a machine that is slow all of it waits in the queue
/// of a TAP device, which has room for a thousand frames.
const ON_ITS_WAY: usize = 64 << 10;

/// Stands in everything that is sent, and nowhere on the underlay.
pub const CANARY: &[u8] = b"canary-0f9b1c-nobody-else-says-this";

/// Who has a container on the network. What others do to it goes to the address of its number.
pub trait Talks {
    fn number(&self) -> u8;

    fn container(&self) -> &Netns;

    /// Sends a datagram from container to container until one comes back. Says how long it took.
    fn asks(&self, other: &impl Talks, v6: bool) -> Result<Duration, String> {
        echo(self.container(), other.container(), container(other.number(), v6))
    }

    /// Whether nothing gets from container to container, all that time.
    fn is_unheard_by(&self, other: &impl Talks, v6: bool, time: Duration) -> bool {
        is_silent(
            self.container(),
            other.container(),
            container(other.number(), v6),
            time,
        )
    }

    /// Sends so many kilobytes from container to container over TCP, and sees them arrive whole.
    fn streams_to(&self, other: &impl Talks, v6: bool, kilobytes: usize) -> Result<Duration, String> {
        self.streams_with(other, v6, kilobytes, |_| {})
    }

    /// The same, with something to do at each block received.
    fn streams_with(
        &self,
        other: &impl Talks,
        v6: bool,
        kilobytes: usize,
        at: impl FnMut(usize),
    ) -> Result<Duration, String> {
        let address = container(other.number(), v6);
        stream(self.container(), other.container(), address, kilobytes, at)
    }
}

impl Talks for Node {
    fn number(&self) -> u8 {
        self.number
    }

    fn container(&self) -> &Netns {
        &self.container
    }
}

/// The kernel of the other end needs a port to refuse by.
fn echo(from: &Netns, to: &Netns, address: IpAddr) -> Result<Duration, String> {
    let server = to.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let client = from.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let target = server.local_addr().unwrap();
    let begun = Instant::now();
    let looked = eventually("a datagram to come back", *PATIENCE, LOOK_EVERY, || {
        let said = || -> std::io::Result<usize> {
            client.send_to(CANARY, target)?;
            let mut bytes = [0; 100];
            let (length, from) = server.recv_from(&mut bytes)?;
            server.send_to(&bytes[..length], from)?;
            client.recv(&mut bytes)
        };
        said()
    });
    looked.map(|_| begun.elapsed()).map_err(|error| error.to_string())
}

/// Whether nothing comes through, looked at for a while.
fn is_silent(from: &Netns, to: &Netns, address: IpAddr, pause: Duration) -> bool {
    let server = to.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let client = from.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let until = Instant::now() + pause;
    let mut bytes = [0; 100];
    while Instant::now() < until {
        let _ = client.send_to(CANARY, server.local_addr().unwrap());
        if server.recv(&mut bytes).is_ok() {
            return false;
        }
    }
    true
}

/// Bytes that say where they are, with a canary in each kilobyte.
fn pattern(block: usize) -> Vec<u8> {
    let mut bytes = vec![block as u8; 1024];
    bytes[..8].copy_from_slice(&(block as u64).to_le_bytes());
    bytes[100..100 + CANARY.len()].copy_from_slice(CANARY);
    bytes
}

/// A stream of so many kilobytes, checked to the last, with something to do at each block received.
fn stream(
    from: &Netns,
    to: &Netns,
    address: IpAddr,
    kilobytes: usize,
    mut at: impl FnMut(usize),
) -> Result<Duration, String> {
    let listener = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    setsockopt(&listener, sockopt::RcvBuf, &ON_ITS_WAY).unwrap();
    let target = listener.local_addr().unwrap();
    let begun = Instant::now();
    let mut sender = from.run(|| connect(target)).unwrap()?;
    let (mut receiver, _) = listener.accept().map_err(|error| error.to_string())?;
    receiver.set_read_timeout(Some(*PATIENCE)).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for block in 0..kilobytes {
                if sender.write_all(&pattern(block)).is_err() {
                    return;
                }
            }
        });
        let mut bytes = [0; 1024];
        for block in 0..kilobytes {
            receiver
                .read_exact(&mut bytes)
                .map_err(|error| format!("at block {block} of {kilobytes}: {error}"))?;
            if bytes[..] != pattern(block) {
                return Err(format!("block {block} came damaged"));
            }
            at(block);
        }
        Ok(begun.elapsed())
    })
}

fn connect(target: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect_timeout(&target, *PATIENCE).map_err(|error| format!("connect to {target}: {error}"))
}
