//! Many datagrams of one size in one buffer: the kernel cuts them when they leave (`UDP_SEGMENT`, Linux 4.18) and joins
//! them when they come in (`UDP_GRO`, Linux 5.0), and one call takes several such buffers.

#![allow(unsafe_code)]

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrLike as _, SockaddrStorage, bind, getsockopt, setsockopt,
        socket, sockopt,
    },
};

use crate::datagrams::socket_address;

/// Datagrams that one buffer carries at most (`UDP_MAX_SEGMENTS` of kernels before 6.9).
pub const MOST_SEGMENTS: usize = 64;
/// Bytes that one buffer carries at most: an IPv4 packet less its headers.
pub const MOST_BYTES: usize = 65_507;
/// Buffers that one call takes at most.
const BATCH: usize = 32;
const ROOM: usize = 65_536;
/// A control message with one number, aligned as they have to be.
type Control = [u64; 4];
/// What the socket keeps for us while we are busy. Less is no error.
const BUFFER_LEN: usize = 8 * 1024 * 1024;

/// A UDP socket at a port of all addresses of one family, beside others of the same user at the same port: the kernel
/// spreads senders over them. It joins datagrams where the kernel can.
pub fn open_shared(port: u16, v6: bool) -> io::Result<OwnedFd> {
    let (family, address): (_, IpAddr) = if v6 {
        (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into())
    } else {
        (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into())
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if v6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    // Refused without CAP_NET_ADMIN; the ordinary size has to do then.
    let _ = setsockopt(&fd, sockopt::RcvBufForce, &BUFFER_LEN);
    let _ = setsockopt(&fd, sockopt::SndBufForce, &BUFFER_LEN);
    // Kernels before 5.0 hand datagrams out one by one.
    let _ = setsockopt(&fd, sockopt::UdpGroSegment, &true);
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::from((address, port))),
    )?;
    Ok(fd)
}

/// The largest packet that the kernel thinks the path to an address takes.
pub fn path_mtu(to: SocketAddr) -> io::Result<u32> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    let mtu = if to.is_ipv4() {
        getsockopt(&socket, sockopt::IpMtu)?
    } else {
        ipv6_mtu(&socket)?
    };
    Ok(mtu as u32)
}

fn ipv6_mtu(socket: &UdpSocket) -> io::Result<libc::c_int> {
    let mut mtu: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the socket is open; `mtu` and `length` are ours, and the kernel writes no more than `length` bytes.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU,
            (&raw mut mtu).cast(),
            &raw mut length,
        )
    })?;
    Ok(mtu)
}

const ADDRESS_LEN: libc::socklen_t = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;

/// Datagrams that came in.
pub struct Inbox {
    headers: Box<[libc::mmsghdr]>,
    addresses: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    /// What the headers point to, beside the addresses and controls; boxes stay where they are.
    _places: Box<[libc::iovec]>,
    bytes: Box<[u8]>,
    received: Vec<Received>,
}

struct Received {
    length: usize,
    segment: usize,
    from: SocketAddr,
}

// SAFETY: the pointers in the headers lead to what the same value owns, on the heap, and are followed by the kernel
// alone, during a call that has the value borrowed.
unsafe impl Send for Inbox {}

impl Default for Inbox {
    fn default() -> Self {
        // SAFETY: all of these are plain data of C, for which zeros are valid.
        let (address, header): (libc::sockaddr_storage, libc::mmsghdr) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let mut bytes = vec![0; BATCH * ROOM].into_boxed_slice();
        let mut addresses = vec![address; BATCH].into_boxed_slice();
        let mut controls = vec![Control::default(); BATCH].into_boxed_slice();
        let mut places: Box<[_]> = bytes
            .chunks_mut(ROOM)
            .map(|chunk| libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: ROOM,
            })
            .collect();
        let mut headers = vec![header; BATCH].into_boxed_slice();
        let parts = addresses.iter_mut().zip(&mut controls).zip(&mut places);
        for (header, ((address, control), place)) in headers.iter_mut().zip(parts) {
            header.msg_hdr.msg_name = ptr::from_mut(address).cast();
            header.msg_hdr.msg_namelen = ADDRESS_LEN;
            header.msg_hdr.msg_iov = place;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = ptr::from_mut(control).cast();
            header.msg_hdr.msg_controllen = mem::size_of::<Control>() as _;
        }
        Self {
            headers,
            addresses,
            controls,
            _places: places,
            bytes,
            received: Vec::with_capacity(BATCH),
        }
    }
}

impl Inbox {
    /// Takes what waits at a socket in the place of what was taken before. Does not wait: with nothing there this is
    /// [`io::ErrorKind::WouldBlock`].
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<()> {
        // The kernel wrote to those that it used, and to no others.
        let used = self.received.len();
        self.received.clear();
        for header in &mut self.headers[..used] {
            header.msg_hdr.msg_namelen = ADDRESS_LEN;
            header.msg_hdr.msg_controllen = mem::size_of::<Control>() as _;
        }
        // SAFETY: each header points to one address, one control buffer and one place for bytes, of the lengths it
        // says, in boxes of `self`.
        let count = Errno::result(unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        })?;
        let parts = self.headers.iter().zip(&self.addresses).zip(&self.controls);
        for ((header, address), control) in parts.take(count as usize) {
            let length = header.msg_len as usize;
            // SAFETY: the kernel wrote an address here and, into the header, how long it is.
            let from = unsafe {
                SockaddrStorage::from_raw(ptr::from_ref(address).cast(), Some(header.msg_hdr.msg_namelen))
            };
            let nowhere = SocketAddr::from(([0; 4], 0));
            self.received.push(Received {
                length,
                segment: segment(control, header.msg_hdr.msg_controllen).unwrap_or(length),
                from: from.and_then(socket_address).unwrap_or(nowhere),
            });
        }
        Ok(())
    }

    /// What was taken, in order, with who sent it.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let messages = self.bytes.chunks(ROOM).zip(&self.received);
        messages.flat_map(|(bytes, received)| {
            let datagrams = bytes[..received.length].chunks(received.segment.max(1));
            datagrams.map(|datagram| (datagram, received.from))
        })
    }
}

/// The size that the kernel says all but the last datagram of a buffer have.
fn segment(control: &Control, length: usize) -> Option<usize> {
    // struct cmsghdr { size_t len; int level; int type; }, then an int
    let [len, level_and_type, value, _] = control.map(u64::to_ne_bytes);
    let number = |bytes: &[u8]| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let told = length >= 20 && u64::from_ne_bytes(len) >= 20;
    let ours = number(&level_and_type[..4]) == libc::SOL_UDP && number(&level_and_type[4..]) == libc::UDP_GRO;
    (told && ours).then(|| number(&value[..4]) as usize)
}

/// Datagrams of one size to one place, the last of which may be shorter.
#[derive(Debug, Clone)]
pub struct Burst {
    /// Where they lie in the bytes.
    pub range: Range<usize>,
    /// How long each is.
    pub segment: u16,
    /// How many they are.
    pub count: u16,
    /// Where they go.
    pub to: SockaddrStorage,
}

/// What a call needs, to be used again and again.
#[derive(Default)]
pub struct Sender {
    headers: Vec<libc::mmsghdr>,
    places: Vec<libc::iovec>,
    controls: Vec<Control>,
}

// SAFETY: the pointers in the vectors are written anew by each call and followed within it only.
unsafe impl Send for Sender {}

impl Sender {
    /// Sends bursts and says how many went. With an error, so many went before the one that it is about.
    pub fn send(
        &mut self,
        socket: &impl AsFd,
        bytes: &[u8],
        bursts: &[Burst],
        wait: bool,
    ) -> (usize, io::Result<()>) {
        let mut sent = 0;
        while sent < bursts.len() {
            match self.send_some(socket, bytes, &bursts[sent..], wait) {
                Ok(count) => sent += count,
                Err(error) => return (sent, Err(error)),
            }
        }
        (sent, Ok(()))
    }

    /// How many went, at least one.
    fn send_some(
        &mut self,
        socket: &impl AsFd,
        bytes: &[u8],
        bursts: &[Burst],
        wait: bool,
    ) -> io::Result<usize> {
        let bursts = &bursts[..bursts.len().min(BATCH)];
        self.places.clear();
        self.controls.clear();
        self.headers.clear();
        for burst in bursts {
            let piece = &bytes[burst.range.clone()];
            self.places.push(libc::iovec {
                iov_base: piece.as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            });
            self.controls.push(told(burst.segment));
        }
        for (i, burst) in bursts.iter().enumerate() {
            // SAFETY: plain data of C, for which zeros are valid.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = burst.to.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = burst.to.len();
            header.msg_hdr.msg_iov = &raw mut self.places[i];
            header.msg_hdr.msg_iovlen = 1;
            if burst.count > 1 {
                header.msg_hdr.msg_control = (&raw mut self.controls[i]).cast();
                header.msg_hdr.msg_controllen = CONTROL_LEN as _;
            }
            self.headers.push(header);
        }
        // SAFETY: each header points to one address, one place with bytes and one control message, of the lengths it
        // says, all of which are borrowed or ours until the call is over, and the kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                if wait { 0 } else { libc::MSG_DONTWAIT },
            )
        };
        Ok(Errno::result(sent)? as usize)
    }
}

/// `CMSG_SPACE(sizeof(u16))`
const CONTROL_LEN: usize = 24;

/// The control message that has the kernel cut a buffer.
fn told(segment: u16) -> Control {
    // struct cmsghdr { size_t len; int level; int type; }, then a u16
    let mut level_and_type = [0; 8];
    level_and_type[..4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    level_and_type[4..].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    let mut value = [0; 8];
    value[..2].copy_from_slice(&segment.to_ne_bytes());
    [
        18,
        u64::from_ne_bytes(level_and_type),
        u64::from_ne_bytes(value),
        0,
    ]
}

// The control messages above are written for 64-bit kernels, the only ones Weft is built for.
const _: () = assert!(size_of::<libc::cmsghdr>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(v6: bool) -> (OwnedFd, OwnedFd, SockaddrStorage) {
        let (from, to) = (open_shared(0, v6).unwrap(), open_shared(0, v6).unwrap());
        let port = UdpSocket::from(to.try_clone().unwrap())
            .local_addr()
            .unwrap()
            .port();
        let host: IpAddr = if v6 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        };
        (from, to, SocketAddr::from((host, port)).into())
    }

    #[test]
    fn a_burst_comes_in_as_the_datagrams_it_was_made_of_whatever_the_family() {
        for v6 in [false, true] {
            let (from, to, address) = pair(v6);
            let bytes: Vec<u8> = (0..250_u8).collect();
            let burst = |range: Range<usize>, segment, count| Burst {
                range,
                segment,
                count,
                to: address,
            };
            let bursts = [burst(0..250, 100, 3), burst(7..8, 1, 1)];
            let (sent, result) = Sender::default().send(&from, &bytes, &bursts, true);
            result.unwrap();
            assert_eq!(sent, 2);
            let mut inbox = Inbox::default();
            let mut got = Vec::new();
            while inbox.receive(&to).is_ok() {
                got.extend(inbox.iter().map(|(bytes, _)| bytes.to_vec()));
            }
            let pieces = [0..100, 100..200, 200..250, 7..8].map(|range| bytes[range].to_vec());
            assert_eq!(got, pieces);
        }
    }

    #[test]
    fn after_an_error_one_knows_which_burst_it_was() {
        let (from, _to, address) = pair(false);
        let bytes = vec![0; 70_000];
        let burst = |range: Range<usize>| Burst {
            range,
            segment: 0,
            count: 1,
            to: address,
        };
        let bursts = [burst(0..1), burst(0..70_000), burst(0..1)];
        let (sent, result) = Sender::default().send(&from, &bytes, &bursts, true);
        assert_eq!(sent, 1);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn the_path_to_oneself_takes_what_loopback_does() {
        assert!(path_mtu("127.0.0.1:9".parse().unwrap()).unwrap() >= 65_535);
        assert!(path_mtu("[::1]:9".parse().unwrap()).unwrap() >= 65_535);
    }
}
