//! What is asked and answered, and how it goes through a socket.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::netns::NetnsError;

/// No request and no answer is longer.
const MAX_LEN: usize = 64 * 1024;
/// What is made at one time of sockets, in all namespaces that come along together.
pub(crate) const MAX_SOCKETS: usize = 128;
/// The socket to answer at, and as many namespaces; an answer has no more. The kernel takes 253 with a message.
const MAX_DESCRIPTORS: usize = 1 + MAX_SOCKETS;

/// What a broker can be asked for. "In a namespace" is in the one whose descriptor comes with the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The namespace that a path leads to; nothing else that is at a path is opened.
    Open(PathBuf),
    /// A namespace without a name.
    Create,
    /// One with a path, below the run directory.
    CreateAt(PathBuf),
    RemoveAt(PathBuf),
    /// A socket in a namespace.
    Socket(SocketKind),
    /// These in each of all the namespaces that come along.
    Sockets(Vec<SocketKind>),
    /// The file that TAP devices of a namespace are made and opened with.
    TapFile,
    ReadSettings(Vec<String>),
    WriteSettings(Vec<(String, String)>),
    MountBpf,
    UnmountBpf,
    /// Writes the resolver configuration of a named namespace, or takes it away.
    Resolver(String, Option<String>),
    /// Runs a line of shell in a namespace, its error output to a descriptor that comes along. It is killed when nobody waits for its
    /// end any more.
    Run(String),
    /// Starts the process that encrypts, which goes on by itself.
    Encrypt,
}

impl Request {
    /// Whether it does no harm to ask again when one does not know what became of the first time, and nothing has to be looked at first.
    pub(super) fn is_repeatable(&self) -> bool {
        match self {
            Self::Open(_) | Self::Create | Self::RemoveAt(_) => true,
            Self::Socket(_) | Self::Sockets(_) | Self::TapFile => true,
            Self::ReadSettings(_)
            | Self::WriteSettings(_)
            | Self::MountBpf
            | Self::UnmountBpf
            | Self::Resolver(..) => true,
            Self::CreateAt(_) | Self::Run(_) | Self::Encrypt => false,
        }
    }
}

/// Sockets that belong to the namespace they are made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketKind {
    /// Route netlink.
    Route,
    /// Generic netlink, for WireGuard.
    Generic,
    /// nf_tables and conntrack.
    Netfilter,
    /// Sockets of the namespace.
    Diag,
    /// UDP, over IPv4 or IPv6.
    Udp {
        /// Which of them.
        ipv4: bool,
    },
    /// TCP, over IPv4 or IPv6.
    Tcp {
        /// Which of them.
        ipv4: bool,
    },
    /// Raw, for echo requests over IPv4 or IPv6.
    Icmp {
        /// Which of them.
        ipv4: bool,
    },
    /// For frames of one link, of which it receives what answers the question who has an address, and can be made to receive
    /// nothing else.
    Neighbours {
        /// The index of the link.
        link: u32,
        /// Answers of ARP, or neighbour advertisements.
        ipv4: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    Texts(Vec<String>),
    /// Of each namespace, in order, why there are none of it; the others' come along, in order.
    Sockets(Vec<Option<Failure>>),
    /// A process runs; [`Self::Ended`] follows.
    Started(u32),
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
    },
    Failed(Failure),
}

/// A [`NetnsError`] on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Failure {
    NotFound(PathBuf),
    NotANetns(PathBuf),
    Exists(PathBuf),
    Permission(String, PathBuf),
    Os(String, PathBuf, i32),
    Refused(String),
}

impl From<&NetnsError> for Failure {
    fn from(error: &NetnsError) -> Self {
        match error {
            NetnsError::NotFound { path } => Self::NotFound(path.clone()),
            NetnsError::NotANetns { path } => Self::NotANetns(path.clone()),
            NetnsError::Exists { path } => Self::Exists(path.clone()),
            NetnsError::Permission { action, path } => Self::Permission(action.to_string(), path.clone()),
            NetnsError::Os { action, path, source } => Self::Os(
                action.to_string(),
                path.clone(),
                source.raw_os_error().unwrap_or(libc::EIO),
            ),
            NetnsError::Broker { action, source } => Self::Refused(format!("{action}: {source}")),
            NetnsError::Refused { reason } => Self::Refused(reason.clone()),
        }
    }
}

impl From<Failure> for NetnsError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound(path) => Self::NotFound { path },
            Failure::NotANetns(path) => Self::NotANetns { path },
            Failure::Exists(path) => Self::Exists { path },
            Failure::Permission(action, path) => Self::Permission {
                action: action.into(),
                path,
            },
            Failure::Os(action, path, errno) => Self::Os {
                action: action.into(),
                path,
                source: io::Error::from_raw_os_error(errno),
            },
            Failure::Refused(reason) => Self::Refused { reason },
        }
    }
}

/// A message with what came along.
#[derive(Debug)]
pub(super) struct Received<T> {
    /// `Err` where the bytes say nothing.
    pub(super) message: Result<T, postcard::Error>,
    pub(super) descriptors: Vec<OwnedFd>,
    /// The process that sent it, as the kernel says; where the socket asks for that.
    pub(super) sender: Option<i32>,
}

pub(super) fn send(
    socket: impl std::os::fd::AsFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if bytes.len() > MAX_LEN {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut along = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !along.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut along, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// The next message; `None` when nobody is at the other end any more. More descriptors than anybody has a use for are closed.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl std::os::fd::AsFd,
    flags: RecvFlags,
) -> io::Result<Option<Received<T>>> {
    // Most are of some bytes, and room for the longest would have to be filled with zeros first.
    let mut bytes = vec![0; next_len(&socket, flags)?.min(MAX_LEN)];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1))];
    let mut along = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut place = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut place, &mut along, flags | RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            got => break got?,
        }
    };
    let (mut descriptors, mut sender) = (Vec::new(), None);
    for message in along.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
            RecvAncillaryMessage::ScmCredentials(said) => sender = Some(said.pid.as_raw_pid()),
            _ => {}
        }
    }
    // An empty message is one that nobody sends who means well, and looks like the end.
    if got.bytes == 0 {
        return Ok(None);
    }
    let is_whole = !got.flags.contains(ReturnFlags::TRUNC);
    let message = match is_whole {
        true => postcard::from_bytes(&bytes[..got.bytes]),
        false => Err(postcard::Error::DeserializeUnexpectedEnd),
    };
    Ok(Some(Received {
        message,
        descriptors,
        sender,
    }))
}

/// How long the next message is, which stays where it is.
fn next_len(socket: impl std::os::fd::AsFd, flags: RecvFlags) -> io::Result<usize> {
    loop {
        match recv(
            &socket,
            &mut [0u8; 0][..],
            flags | RecvFlags::PEEK | RecvFlags::TRUNC,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            got => return Ok(got?.1),
        }
    }
}
