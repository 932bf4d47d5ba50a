use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_OVERRUN, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;

use super::batch::{Batch, BatchError, Refusal, Request};
use crate::{
    broker::SocketKind,
    netns::{Netns, NetnsError, NetnsId, netns_cookie},
    socket,
};

/// Only errors and the last message are answered; this many answers fit a socket's default buffer
/// (212,992 bytes, 768 and more for an answer).
const MESSAGES_PER_SEND: usize = 128;
const BYTES_PER_SEND: usize = 64 * 1024;
/// Objects that are asked for at one time: all answers have to fit into the socket's buffer.
const QUERIES_PER_SEND: usize = 32;
/// The kernel fills dump buffers of up to 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// The first part of a table never takes more, nor the next ones where there is no room for more; and the tables of most sandboxes have one.
const SMALL_BUFFER: usize = 8 * 1024;
/// A table that changes faster than we can read it this often is not going to hold still.
const DUMP_ATTEMPTS: usize = 16;

const HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A blocking route netlink socket of one namespace.
#[derive(Debug)]
pub struct RouteSocket {
    socket: Socket,
    netns: NetnsId,
    sequence: u32,
    /// Whether it was asked to read queries to the letter.
    is_strict: bool,
    buffer: Vec<u8>,
}

impl RouteSocket {
    /// The cookie of its namespace, by which BPF programs know it: of this boot, and never given to another one.
    pub fn cookie(&self) -> io::Result<u64> {
        netns_cookie(self.socket.as_fd())
    }
}

/// Why no socket could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The socket could not be made.
    #[error("could not open a route netlink socket in {netns}")]
    Socket {
        /// In which namespace.
        netns: NetnsId,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why the kernel's state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The exchange failed.
    #[error("could not read the {what} of {netns}")]
    Io {
        /// Which table.
        what: &'static str,
        /// Of which namespace.
        netns: NetnsId,
        /// What the kernel said.
        source: io::Error,
    },
    /// The table changed during each of many attempts.
    #[error("the {what} of {netns} changed during each of {DUMP_ATTEMPTS} attempts to read them")]
    KeepsChanging {
        /// Which table.
        what: &'static str,
        /// Of which namespace.
        netns: NetnsId,
    },
    /// An answer that this version does not understand.
    #[error("the kernel's answer about the {what} of {netns} makes no sense: {reason}")]
    Malformed {
        /// Which table.
        what: &'static str,
        /// Of which namespace.
        netns: NetnsId,
        /// The decoder's words.
        reason: String,
    },
}

impl RouteSocket {
    /// Opens a socket that belongs to the namespace.
    pub fn open(netns: &Netns) -> Result<Self, OpenError> {
        let opened = netns.socket(SocketKind::Route).and_then(socket::connect);
        Self::connected(netns, opened, RECEIVE_BUFFER)
    }

    /// Uses one that belongs to the namespace, for some small tables.
    pub fn of(netns: &Netns, socket: OwnedFd) -> Result<Self, OpenError> {
        Self::connected(netns, socket::connect(socket), SMALL_BUFFER)
    }

    fn connected(netns: &Netns, socket: io::Result<Socket>, buffer: usize) -> Result<Self, OpenError> {
        let netns = netns.id();
        let socket = socket.map_err(|source| OpenError::Socket { netns, source })?;
        Ok(Self {
            socket,
            netns,
            sequence: 0,
            is_strict: false,
            buffer: vec![0; buffer],
        })
    }

    /// Has the kernel leave out of tables what a query does not want, if it can: it may still say more.
    pub(super) fn be_strict(&mut self) {
        if !self.is_strict {
            let _ = self.socket.set_netlink_get_strict_chk(true);
            self.is_strict = true;
        }
    }

    /// Sends all messages, in as few system calls as the kernel can answer, and waits for the answers.
    ///
    /// All messages are tried: see [`Batch`].
    pub fn execute(&mut self, batch: Batch) -> Result<(), BatchError> {
        let of = batch.len();
        let mut refusals = Vec::new();
        let mut requests = batch.requests.into_iter().peekable();
        let mut after = 0;
        while requests.peek().is_some() {
            let mut bytes = Vec::with_capacity(4096);
            let mut sent: Vec<Sent> = Vec::new();
            let first = self.sequence.wrapping_add(1);
            let mut last_header = 0;
            while sent.len() < MESSAGES_PER_SEND && bytes.len() < BYTES_PER_SEND {
                let Some(request) = requests.next() else { break };
                last_header = bytes.len();
                self.sequence = self.sequence.wrapping_add(1);
                let Request {
                    message,
                    flags,
                    what,
                    tolerated,
                } = request;
                append(&mut bytes, message, flags, self.sequence);
                sent.push(Sent { what, tolerated });
            }
            // Errors are always answered; success only where asked for, and messages are carried out in
            // order: the answer to the last one closes the exchange.
            let flags = u16_at(&bytes, last_header + 6).unwrap_or_default() | NLM_F_ACK;
            bytes[last_header + 6..last_header + 8].copy_from_slice(&flags.to_ne_bytes());
            self.exchange(&bytes, first, &sent, after, &mut refusals)
                .map_err(|source| BatchError::Interrupted { after, of, source })?;
            after += sent.len();
        }
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(BatchError::Refused(refusals))
        }
    }

    fn exchange(
        &mut self,
        bytes: &[u8],
        first: u32,
        sent: &[Sent],
        before: usize,
        refusals: &mut Vec<Refusal>,
    ) -> io::Result<()> {
        self.socket.send(bytes, 0)?;
        loop {
            let length = self.receive()?;
            for answer in answers(&self.buffer[..length]) {
                // An answer to an exchange that timed out may still come.
                let place = answer.sequence.wrapping_sub(first) as usize;
                let Some(request) = sent.get(place).filter(|_| answer.kind == NLMSG_ERROR) else {
                    continue;
                };
                let (errno, detail) = answer.error();
                if errno != 0 && !request.tolerated.contains(&errno) {
                    let what = request.what.clone();
                    refusals.push(Refusal {
                        index: before + place,
                        what,
                        errno,
                        detail,
                    });
                }
                if place + 1 == sent.len() {
                    return Ok(());
                }
            }
        }
    }

    /// Asks for a table and hands over every object in it.
    pub(super) fn dump<T>(
        &mut self,
        what: &'static str,
        query: RouteNetlinkMessage,
        read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, DumpError> {
        self.ask(what, query, NLM_F_DUMP, read)
    }

    /// Asks for one object.
    pub(super) fn get<T>(
        &mut self,
        what: &'static str,
        query: RouteNetlinkMessage,
        read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<T>, DumpError> {
        // The acknowledgement ends the answer, as the last message of a table does.
        Ok(self.ask(what, query, NLM_F_ACK, read)?.pop())
    }

    /// Asks for many objects, of which any may be missing. None if this kernel gives tables only.
    pub(super) fn look_up<T>(
        &mut self,
        what: &'static str,
        queries: impl Iterator<Item = RouteNetlinkMessage>,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<Vec<T>>, DumpError> {
        let netns = self.netns;
        let mut found = Vec::new();
        let mut queries = queries.peekable();
        while queries.peek().is_some() {
            let mut bytes = Vec::with_capacity(4096);
            let first = self.sequence.wrapping_add(1);
            for query in queries.by_ref().take(QUERIES_PER_SEND) {
                self.sequence = self.sequence.wrapping_add(1);
                append(&mut bytes, query, 0, self.sequence);
            }
            match self.look_up_once(&bytes, first, &mut read) {
                Ok(Some(some)) => found.extend(some),
                Ok(None) => return Ok(None),
                // Answers that did not fit; they would not the next time either.
                Err(Attempt::Again) => return Ok(None),
                Err(Attempt::Io(source)) => return Err(DumpError::Io { what, netns, source }),
                Err(Attempt::Malformed(reason)) => return Err(DumpError::Malformed { what, netns, reason }),
            }
        }
        Ok(Some(found))
    }

    /// Each question has one answer, an object or an error.
    fn look_up_once<T>(
        &mut self,
        bytes: &[u8],
        first: u32,
        read: &mut impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Attempt> {
        self.socket.send(bytes, 0)?;
        let asked = self.sequence.wrapping_sub(first) + 1;
        let (mut found, mut answered, mut can) = (Vec::new(), 0, true);
        while answered < asked {
            let length = match self.receive() {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Err(Attempt::Again),
                received => received?,
            };
            for answer in answers(&self.buffer[..length]) {
                if answer.sequence.wrapping_sub(first) >= asked {
                    continue;
                }
                answered += 1;
                if answer.kind != NLMSG_ERROR {
                    found.extend(answer.message()?.and_then(&mut *read));
                    continue;
                }
                match answer.error().0 {
                    0 | libc::ENOENT => {}
                    // EINVAL: an earlier kernel does not know the attributes.
                    libc::EOPNOTSUPP | libc::EINVAL => can = false,
                    errno => return Err(io::Error::from_raw_os_error(errno).into()),
                }
            }
        }
        Ok(can.then_some(found))
    }

    fn ask<T>(
        &mut self,
        what: &'static str,
        query: RouteNetlinkMessage,
        flags: u16,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, DumpError> {
        let netns = self.netns;
        for _ in 0..DUMP_ATTEMPTS {
            self.sequence = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            append(&mut bytes, query.clone(), flags, self.sequence);
            match self.dump_once(&bytes, &mut read) {
                Ok(objects) => return Ok(objects),
                Err(Attempt::Again) => {}
                Err(Attempt::Io(source)) => return Err(DumpError::Io { what, netns, source }),
                Err(Attempt::Malformed(reason)) => return Err(DumpError::Malformed { what, netns, reason }),
            }
        }
        Err(DumpError::KeepsChanging { what, netns })
    }

    fn dump_once<T>(
        &mut self,
        bytes: &[u8],
        read: &mut impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Attempt> {
        self.socket.send(bytes, 0)?;
        let mut objects = Vec::new();
        let mut interrupted = false;
        loop {
            let length = match self.receive() {
                // Parts of the answer were lost; the rest still comes, with an old sequence number.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Err(Attempt::Again),
                received => received?,
            };
            for answer in answers(&self.buffer[..length]) {
                if answer.sequence != self.sequence {
                    continue;
                }
                interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let (errno, _) = answer.error();
                        return match errno {
                            0 if !interrupted => Ok(objects),
                            0 | libc::EINTR | libc::EAGAIN | libc::EBUSY => Err(Attempt::Again),
                            _ => Err(io::Error::from_raw_os_error(errno).into()),
                        };
                    }
                    NLMSG_OVERRUN => interrupted = true,
                    _ => objects.extend(answer.message()?.and_then(&mut *read)),
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let length = socket::answer(|| self.socket.recv(&mut &mut self.buffer[..], libc::MSG_TRUNC))?;
        if length > self.buffer.len() {
            // What was cut off is lost, but the next attempt has room for it.
            self.buffer.resize(length.next_power_of_two(), 0);
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        Ok(length)
    }
}

/// What is kept of a message until it is answered.
struct Sent {
    what: String,
    tolerated: &'static [i32],
}

enum Attempt {
    Again,
    Io(io::Error),
    Malformed(String),
}

impl From<io::Error> for Attempt {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Puts one message at the end of the buffer, at a place that suits the next.
fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize((start + message.buffer_len()).next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

/// One message of the kernel, not decoded further than its header (RFC 3549, section 2.3.2).
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    whole: &'a [u8],
}

fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let whole = bytes.get(..length).filter(|_| length >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer {
            kind: u16_at(whole, 4)?,
            flags: u16_at(whole, 6)?,
            sequence: u32_at(whole, 8)?,
            whole,
        })
    })
}

impl Answer<'_> {
    /// What it says, decoded.
    fn message(&self) -> Result<Option<RouteNetlinkMessage>, Attempt> {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(self.whole)
            .map_err(|error| Attempt::Malformed(error.to_string()))?;
        Ok(match message.payload {
            NetlinkPayload::InnerMessage(message) => Some(message),
            _ => None,
        })
    }

    /// The error number, positive, and what the kernel says about it in words.
    fn error(&self) -> (i32, Option<String>) {
        let errno = u32_at(self.whole, HEADER).map_or(0, |code| code.cast_signed().wrapping_neg());
        if self.flags & NLM_F_ACK_TLVS == 0 || errno == 0 {
            return (errno, None);
        }
        // The refused message's header follows, and its payload unless it was capped.
        let quoted = match u32_at(self.whole, HEADER + 4) {
            Some(length) if self.flags & NLM_F_CAPPED == 0 => length as usize,
            _ => HEADER,
        };
        let mut attributes = self
            .whole
            .get(HEADER + 4 + quoted.next_multiple_of(4)..)
            .unwrap_or_default();
        while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
            let Some(value) = attributes.get(4..usize::from(length)) else {
                break;
            };
            if kind == NLMSGERR_ATTR_MSG {
                let text = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
                return (errno, Some(text));
            }
            attributes = attributes
                .get(usize::from(length).next_multiple_of(4)..)
                .unwrap_or_default();
        }
        (errno, None)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
