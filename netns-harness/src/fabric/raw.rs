//! Netlink messages that no library at hand knows: namespace ids, and nf_tables rules on bridges.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use libc::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// The kernel answers at once; this bounds a kernel that never does.
const ANSWER_SECS: i64 = 10;

/// One message under construction, or a nest of attributes in one.
#[derive(Debug, Default)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// A message with its fixed part, to be answered.
    pub(super) fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        Self {
            kind,
            flags: (flags | NLM_F_ACK) as u16,
            body: fixed.to_vec(),
        }
    }

    /// The same, but not answered: the frame of a batch.
    pub(super) fn unanswered(kind: u16, fixed: &[u8]) -> Self {
        Self {
            kind,
            flags: 0,
            body: fixed.to_vec(),
        }
    }

    pub(super) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (value.len() + 4) as u16;
        self.body.extend_from_slice(&length.to_ne_bytes());
        self.body.extend_from_slice(&kind.to_ne_bytes());
        self.body.extend_from_slice(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }

    /// A number in network byte order, as nf_tables wants all of its own.
    pub(super) fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub(super) fn nest(self, kind: u16, inner: impl FnOnce(Message) -> Message) -> Self {
        let inner = inner(Message::default()).body;
        self.attr(kind | libc::NLA_F_NESTED as u16, &inner)
    }
}

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Raw {
    socket: OwnedFd,
    sequence: u32,
}

impl Raw {
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECS))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all messages at once and waits for every answer. Returns the first refusal.
    pub(super) fn execute(&mut self, messages: &[Message]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut awaited = 0;
        let first = self.sequence + 1;
        for message in messages {
            self.sequence += 1;
            self.append(&mut bytes, message, 0);
            awaited += usize::from(message.flags & NLM_F_ACK as u16 != 0);
        }
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut refused = None;
        while awaited > 0 {
            self.receive(|kind, sequence, body| {
                if kind == NLMSG_ERROR && sequence >= first {
                    awaited -= 1;
                    let errno = i32::from_ne_bytes(body[..4].try_into().unwrap_or_default());
                    if errno != 0 {
                        refused.get_or_insert(io::Error::from_raw_os_error(-errno));
                        // A refused batch may answer nothing else.
                        awaited = 0;
                    }
                }
                true
            })?;
        }
        refused.map_or(Ok(()), Err)
    }

    /// Asks for a table, and calls `each` with the body of every object.
    pub(super) fn dump(&mut self, mut message: Message, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        message.flags = 0;
        self.sequence += 1;
        let wanted = self.sequence;
        let mut bytes = Vec::new();
        self.append(&mut bytes, &message, NLM_F_DUMP as u16);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut done = false;
        let mut refused = None;
        while !done {
            self.receive(|kind, sequence, body| {
                if sequence != wanted {
                    return true;
                }
                match kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => {
                        let errno = i32::from_ne_bytes(body[..4].try_into().unwrap_or_default());
                        refused = Some(io::Error::from_raw_os_error(-errno));
                        done = true;
                    }
                    _ => each(body),
                }
                !done
            })?;
        }
        refused.map_or(Ok(()), Err)
    }

    fn append(&self, bytes: &mut Vec<u8>, message: &Message, flags: u16) {
        let length = (HEADER + message.body.len()) as u32;
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&message.kind.to_ne_bytes());
        bytes.extend_from_slice(&(message.flags | flags | NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&message.body);
    }

    /// Receives one datagram and hands over its messages until `each` says no.
    fn receive(&self, mut each: impl FnMut(u16, u32, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while rest.len() >= HEADER {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap_or_default());
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let length = word(0) as usize;
            if length < HEADER + 4 || length > rest.len() {
                break;
            }
            if !each(kind, word(8), &rest[HEADER..length]) {
                break;
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }
}

/// The attributes in a run of bytes, kind and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !(libc::NLA_F_NESTED as u16), value))
    })
}
