//! The framing that nf_tables and conntrack share: netlink messages with a netfilter header
//! (`linux/netfilter/nfnetlink.h`), nested attributes, and one socket to send them on.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use netlink_sys::Socket;
use nix::sys::socket::{setsockopt, sockopt};

use crate::{broker::SocketKind, netns::Netns, socket};

/// Flags of a request (`linux/netlink.h`).
pub(crate) const ACK: u16 = libc::NLM_F_ACK as u16;
pub(crate) const DUMP: u16 = libc::NLM_F_DUMP as u16;
pub(crate) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(crate) const APPEND: u16 = libc::NLM_F_APPEND as u16;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const HEADER_LEN: usize = 16;
const NFGEN_LEN: usize = 4;
/// Larger than any message the kernel puts into one datagram of a dump (32 KiB) or an event.
const RECEIVE_LEN: usize = 64 * 1024;
/// How often a dump is repeated that a concurrent change made inconsistent.
const DUMP_ATTEMPTS: usize = 8;

/// Messages under construction, in one buffer that is sent as one datagram.
#[derive(Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    count: u32,
}

impl Messages {
    /// Appends one message; its sequence number is its index.
    pub(crate) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        res_id: u16,
        body: impl FnOnce(&mut Attrs),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&res_id.to_be_bytes());
        self.count += 1;
        body(&mut Attrs {
            bytes: &mut self.bytes,
        });
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The attributes of one message, or of one nest within it.
pub(crate) struct Attrs<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attrs<'_> {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let len = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// nf_tables and conntrack speak network byte order.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut text = value.as_bytes().to_vec();
        text.push(0);
        self.bytes(kind, &text);
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Attrs)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(&mut Attrs { bytes: self.bytes });
        // Callers split element lists well below this; nothing else comes near it.
        let len = u16::try_from(self.bytes.len() - start).expect("a netlink attribute below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

/// Splits attributes into (kind, value); ends quietly at the first malformed one.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute of one kind, if there.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(k, value)| (k == kind).then_some(value))
}

/// A text attribute without its closing NUL.
pub(crate) fn text(bytes: &[u8], kind: u16) -> Option<String> {
    let value = attribute(bytes, kind)?;
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    Some(String::from_utf8_lossy(value).into_owned())
}

/// A number attribute in network byte order.
pub(crate) fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attribute(bytes, kind)?.try_into().ok()?))
}

/// One received message: its type and its attributes.
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) attrs: &'a [u8],
}

/// What the kernel said against a message, known by its index.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) index: u32,
    pub(crate) source: io::Error,
    pub(crate) detail: Option<String>,
}

impl Refusal {
    fn of_io(source: io::Error) -> Self {
        Self {
            index: 0,
            source,
            detail: None,
        }
    }
}

/// A netfilter socket of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct NfSocket {
    socket: Socket,
}

impl NfSocket {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket::open(SocketKind::Netfilter)?;
        Ok(Self { socket })
    }

    /// The same for another namespace.
    pub(crate) fn open_in(netns: &Netns) -> io::Result<Self> {
        Self::of(netns.socket(SocketKind::Netfilter)?)
    }

    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        let socket = socket::connect(socket)?;
        Ok(Self { socket })
    }

    /// Joins multicast groups and makes room for a burst of their messages.
    pub(crate) fn subscribe(&mut self, groups: &[u32], receive_bytes: usize) -> io::Result<()> {
        if setsockopt(&self.socket, sockopt::RcvBufForce, &receive_bytes).is_err() {
            // Without privilege over the first user namespace the kernel caps it at net.core.rmem_max.
            setsockopt(&self.socket, sockopt::RcvBuf, &receive_bytes)?;
        }
        groups
            .iter()
            .try_for_each(|&group| self.socket.add_membership(group))
    }

    /// Sends a batch and collects the verdict on every message in it. The kernel works a batch off within `send`,
    /// so all answers are there when it returns.
    pub(crate) fn execute(&self, messages: &Messages) -> Result<(), Refusal> {
        let bytes = &messages.bytes;
        if bytes.len() > 100 * 1024 {
            // Accepted up to net.core.wmem_max; beyond it the send fails with EMSGSIZE, which is reported.
            setsockopt(&self.socket, sockopt::SndBuf, &(bytes.len() + 4096))
                .map_err(|errno| Refusal::of_io(errno.into()))?;
        }
        self.socket.send(bytes, 0).map_err(Refusal::of_io)?;
        let mut first = None;
        let mut answered = false;
        loop {
            // The first answer is waited for; after it, what there is is all there is.
            let flags = if answered { libc::MSG_DONTWAIT } else { 0 };
            let datagram = match self.receive(flags) {
                Ok(datagram) => datagram,
                Err(error) if answered && error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(first.unwrap_or_else(|| Refusal::of_io(error))),
            };
            for_each_message(&datagram, |message, seq| {
                if message.kind == libc::NLMSG_ERROR as u16 {
                    answered = true;
                    if let Some(refusal) = refusal(&message, seq) {
                        first.get_or_insert(refusal);
                    }
                }
                true
            });
        }
        first.map_or(Ok(()), Err)
    }

    /// Sends a dump request and passes each message of the answer to `each`, from the start again when the
    /// kernel says that the dump was interrupted by a change.
    pub(crate) fn dump<T>(
        &self,
        request: &Messages,
        each: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.dump_once(request, &each) {
                Ok((_, true)) => {}
                // nf_tables says so of a dump that raced with a commit.
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Ok((found, false)) => return Ok(found),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the tables changed during every attempt to list them",
        ))
    }

    fn dump_once<T>(
        &self,
        request: &Messages,
        each: &impl Fn(u16, &[u8]) -> Option<T>,
    ) -> io::Result<(Vec<T>, bool)> {
        self.socket.send(&request.bytes, 0)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        let mut done = None;
        while done.is_none() {
            let datagram = self.receive(0)?;
            for_each_message(&datagram, |message, seq| {
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                if message.kind == libc::NLMSG_DONE as u16 {
                    done = Some(Ok(()));
                } else if message.kind == libc::NLMSG_ERROR as u16 {
                    done = Some(refusal(&message, seq).map_or(Ok(()), |refusal| Err(refusal.source)));
                } else {
                    found.extend(each(message.kind, message.attrs));
                }
                done.is_none()
            });
        }
        done.unwrap_or(Ok(()))?;
        Ok((found, interrupted))
    }

    /// Passes on every message that is waiting, without blocking.
    pub(crate) fn drain(&self, mut each: impl FnMut(u16, &[u8], u16)) -> io::Result<()> {
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(datagram) => for_each_message(&datagram, |message, _| {
                    each(message.kind, message.attrs, message.flags);
                    true
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&self, flags: i32) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(RECEIVE_LEN);
        let mut receive = || self.socket.recv(&mut buffer, flags);
        match flags & libc::MSG_DONTWAIT {
            0 => socket::answer(receive)?,
            _ => receive()?,
        };
        Ok(buffer)
    }
}

impl AsRawFd for NfSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for NfSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn for_each_message(mut bytes: &[u8], mut each: impl FnMut(Received<'_>, u32) -> bool) {
    let u16_at = |b: &[u8], at: usize| u16::from_ne_bytes([b[at], b[at + 1]]);
    let u32_at = |b: &[u8], at: usize| u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    while bytes.len() >= HEADER_LEN {
        let len = u32_at(bytes, 0) as usize;
        if len < HEADER_LEN || len > bytes.len() {
            return;
        }
        let kind = u16_at(bytes, 4);
        // Control messages (type below 16) have no netfilter header.
        let header = if kind < libc::NLMSG_MIN_TYPE as u16 {
            HEADER_LEN
        } else {
            HEADER_LEN + NFGEN_LEN
        };
        let message = Received {
            kind,
            flags: u16_at(bytes, 6),
            attrs: bytes.get(header..len).unwrap_or_default(),
        };
        if !each(message, u32_at(bytes, 8)) {
            return;
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// Reads an `NLMSG_ERROR`; an acknowledgement is one with the number 0.
fn refusal(message: &Received<'_>, index: u32) -> Option<Refusal> {
    const EXTACK_MESSAGE: u16 = 1;
    let errno = i32::from_ne_bytes(message.attrs.get(..4)?.try_into().ok()?);
    if errno == 0 {
        return None;
    }
    // Of the request only the header is repeated when the answer is capped; then come the attributes.
    let capped = (libc::NLM_F_CAPPED | libc::NLM_F_ACK_TLVS) as u16;
    let detail = (message.flags & capped == capped)
        .then(|| text(message.attrs.get(4 + HEADER_LEN..)?, EXTACK_MESSAGE))
        .flatten();
    Some(Refusal {
        index,
        source: io::Error::from_raw_os_error(-errno),
        detail,
    })
}
