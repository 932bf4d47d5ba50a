//! Many datagrams in one system call, with `recvmmsg(2)` and `sendmmsg(2)`.
//!
//! nix wraps both, but its headers cannot be sent to another thread, and keep the length of an address from one
//! call to the next, which cuts an IPv6 address after an IPv4 one.

#![allow(unsafe_code)]

use std::{io, mem, net::SocketAddr, os::fd::AsRawFd, ptr};

use nix::{
    errno::Errno,
    sys::socket::{SockaddrLike as _, SockaddrStorage},
};

/// Datagrams that one call takes at most.
pub const BATCH: usize = 64;

/// Datagrams that came in.
pub struct Inbox {
    headers: Box<[libc::mmsghdr]>,
    addresses: Box<[libc::sockaddr_storage]>,
    /// What the headers point to, beside the addresses; boxes stay where they are.
    _places: Box<[libc::iovec]>,
    bytes: Box<[u8]>,
    room: usize,
    received: Vec<(usize, SocketAddr)>,
}

// SAFETY: the pointers in the headers lead to what the same value owns, on the heap, and are followed by the kernel
// alone, during a call that has the value borrowed.
unsafe impl Send for Inbox {}

impl Inbox {
    /// For datagrams of at most `room` bytes. Of longer ones the rest is lost.
    pub fn new(room: usize) -> Self {
        // SAFETY: all of these are plain data of C, for which zeros are valid.
        let (address, header): (libc::sockaddr_storage, libc::mmsghdr) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let mut bytes = vec![0; BATCH * room].into_boxed_slice();
        let mut addresses = vec![address; BATCH].into_boxed_slice();
        let mut places: Box<[_]> = bytes
            .chunks_mut(room)
            .map(|chunk| libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: room,
            })
            .collect();
        let mut headers = vec![header; BATCH].into_boxed_slice();
        for ((header, address), place) in headers.iter_mut().zip(&mut addresses).zip(&mut places) {
            header.msg_hdr.msg_name = ptr::from_mut(address).cast();
            header.msg_hdr.msg_iov = place;
            header.msg_hdr.msg_iovlen = 1;
        }
        Self {
            headers,
            addresses,
            _places: places,
            bytes,
            room,
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Takes what waits at a socket in the place of what was taken before, and says how many that are. Does not
    /// wait: with nothing there this is [`io::ErrorKind::WouldBlock`].
    pub fn receive(&mut self, socket: &impl AsRawFd) -> io::Result<usize> {
        self.received.clear();
        for header in &mut self.headers {
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        // SAFETY: each header points to one address and one place for bytes, of the lengths it says, in boxes of `self`.
        let count = Errno::result(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        })?;
        for (header, address) in self.headers.iter().zip(&self.addresses).take(count as usize) {
            let length = header.msg_len as usize;
            // SAFETY: the kernel wrote an address here and, into the header, how long it is.
            let from = unsafe {
                SockaddrStorage::from_raw(ptr::from_ref(address).cast(), Some(header.msg_hdr.msg_namelen))
            };
            let nowhere = SocketAddr::from(([0; 4], 0));
            self.received
                .push((length, from.and_then(socket_address).unwrap_or(nowhere)));
        }
        Ok(self.received.len())
    }

    /// What was taken, with who sent it.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let messages = self.bytes.chunks(self.room).zip(&self.received);
        messages.map(|(bytes, (length, from))| (&bytes[..*length], *from))
    }
}

/// Datagrams that go out, in buffers that are used again and again.
#[derive(Default)]
pub struct Outbox {
    letters: Vec<Letter>,
    /// So many at the front have gone.
    sent: usize,
    /// So many at the front are to go; the next one is the draft.
    posted: usize,
}

struct Letter {
    bytes: Vec<u8>,
    to: SockaddrStorage,
}

impl Outbox {
    /// A buffer to write the next datagram into, which is empty.
    pub fn draft(&mut self) -> &mut Vec<u8> {
        if self.posted == self.letters.len() {
            self.letters.push(Letter {
                bytes: Vec::new(),
                to: SockaddrStorage::from(SocketAddr::from(([0; 4], 0))),
            });
        }
        let bytes = &mut self.letters[self.posted].bytes;
        bytes.clear();
        bytes
    }

    /// Addresses what was written into the draft.
    pub fn post(&mut self, to: SocketAddr) {
        if let Some(letter) = self.letters.get_mut(self.posted) {
            letter.to = to.into();
            self.posted += 1;
        }
    }

    /// Sends what was posted, without waiting. After an error it has to be called again: with
    /// [`io::ErrorKind::WouldBlock`] the socket has no room now, and with any other one datagram is lost.
    pub fn send(&mut self, socket: &impl AsRawFd) -> io::Result<()> {
        while self.sent < self.posted {
            match send(socket, &mut self.letters[self.sent..self.posted]) {
                Ok(count) => self.sent += count,
                Err(error) => {
                    self.sent += usize::from(error.kind() != io::ErrorKind::WouldBlock);
                    return Err(error);
                }
            }
        }
        (self.sent, self.posted) = (0, 0);
        Ok(())
    }
}

/// How many were sent, at least one.
fn send(socket: &impl AsRawFd, letters: &mut [Letter]) -> io::Result<usize> {
    let mut places: Vec<_> = letters
        .iter_mut()
        .map(|letter| libc::iovec {
            iov_base: letter.bytes.as_mut_ptr().cast(),
            iov_len: letter.bytes.len(),
        })
        .collect();
    let mut headers: Vec<_> = letters
        .iter()
        .zip(&mut places)
        .map(|(letter, place)| {
            // SAFETY: plain data of C, for which zeros are valid.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = letter.to.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = letter.to.len();
            header.msg_hdr.msg_iov = place;
            header.msg_hdr.msg_iovlen = 1;
            header
        })
        .collect();
    // SAFETY: each header points to one address and one place with bytes, of the lengths they have, and all of these
    // are borrowed until the call is over.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len() as libc::c_uint,
            libc::MSG_DONTWAIT,
        )
    };
    Ok(Errno::result(sent)? as usize)
}

pub(crate) fn socket_address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn socket(address: &str) -> UdpSocket {
        UdpSocket::bind((address, 0)).expect("loopback")
    }

    #[test]
    fn more_than_a_batch_goes_out_and_comes_in_whole_whatever_the_family() {
        let mut inbox = Inbox::new(100);
        let mut outbox = Outbox::default();
        // The longer addresses last: the kernel must be told of the room again.
        for address in ["127.0.0.1", "::1"] {
            let (from, to) = (socket(address), socket(address));
            for round in 0..2 {
                for n in 0..=BATCH {
                    outbox.draft().extend(vec![n as u8; n + round]);
                    outbox.post(to.local_addr().unwrap());
                }
                outbox.send(&from).unwrap();
                assert_eq!(inbox.receive(&to).unwrap(), BATCH);
                for (n, (bytes, client)) in inbox.iter().enumerate() {
                    assert_eq!(bytes, vec![n as u8; n + round]);
                    assert_eq!(client, from.local_addr().unwrap());
                }
                assert_eq!(inbox.receive(&to).unwrap(), 1);
                assert_eq!(inbox.iter().count(), 1);
                let none = inbox.receive(&to).unwrap_err();
                assert_eq!(
                    (none.kind(), inbox.iter().count()),
                    (io::ErrorKind::WouldBlock, 0)
                );
            }
        }
    }

    #[test]
    fn a_datagram_that_cannot_go_is_lost_alone() {
        let (from, to) = (socket("127.0.0.1"), socket("127.0.0.1"));
        let mut outbox = Outbox::default();
        for letter in [b"one".as_slice(), &[0; 70_000], b"two"] {
            outbox.draft().extend_from_slice(letter);
            outbox.post(to.local_addr().unwrap());
        }
        assert_eq!(
            outbox.send(&from).unwrap_err().raw_os_error(),
            Some(libc::EMSGSIZE)
        );
        outbox.send(&from).unwrap();
        let mut inbox = Inbox::new(2);
        assert_eq!(inbox.receive(&to).unwrap(), 2);
        let bytes: Vec<_> = inbox.iter().map(|(bytes, _)| bytes).collect();
        assert_eq!(bytes, [b"on", b"tw"], "longer than there is room for");
    }
}
