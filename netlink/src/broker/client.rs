//! The agent's end.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::OnceLock,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rustix::net::{RecvFlags, sockopt};
use tokio::io::{Interest, unix::AsyncFd};

use super::message::{Received, Reply, Request, receive, send};
use crate::netns::NetnsError;

/// For one answer. What takes longest is a namespace that is made while the kernel still takes others down.
const PATIENCE: Duration = Duration::from_secs(10);

static BROKER: OnceLock<Broker> = OnceLock::new();

/// From now on everything in this process that enters namespaces asks the broker at the other end.
///
/// # Errors
///
/// If there is one already.
pub fn install(socket: OwnedFd) -> io::Result<()> {
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    BROKER
        .set(Broker { socket })
        .map_err(|_| io::Error::other("this process has a broker already"))
}

/// The broker of this process.
pub(crate) fn get() -> Option<&'static Broker> {
    BROKER.get()
}

#[derive(Debug)]
pub(crate) struct Broker {
    socket: OwnedFd,
}

/// An answer, with the descriptors that it is about.
#[derive(Debug)]
pub(crate) struct Answer {
    reply: Reply,
    descriptors: Vec<OwnedFd>,
    /// Where more will come.
    rest: OwnedFd,
}

impl Broker {
    #[cfg(test)]
    pub(super) fn at(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Asks and waits for the answer, a second time if the broker died over the first and that does no harm.
    pub(crate) fn ask(&self, request: &Request, along: &[BorrowedFd<'_>]) -> Result<Answer, NetnsError> {
        match self.try_ask(request, along) {
            Err(error) if died_over_it(&error) && request.is_repeatable() => self.try_ask(request, along),
            asked => asked,
        }
        .map_err(not_answered)
    }

    /// Has a namespace made that a path keeps.
    ///
    /// A broker that dies over it may have made all of it, the path without the namespace, or nothing. Simply asked again, the next one
    /// would say of the first two that there is something already; so what is there is looked at, and taken for what was asked for.
    pub(crate) fn create_at(&self, path: &Path) -> Result<OwnedFd, NetnsError> {
        let make = Request::CreateAt(path.to_owned());
        match self.try_ask(&make, &[]) {
            Err(error) if died_over_it(&error) => {}
            asked => return asked.map_err(not_answered)?.descriptor(),
        }
        let open = Request::Open(path.to_owned());
        match self.ask(&open, &[])?.descriptor() {
            Err(NetnsError::NotFound { .. }) => {}
            Err(NetnsError::NotANetns { .. }) => {
                self.ask(&Request::RemoveAt(path.to_owned()), &[])?.done()?;
            }
            opened => return opened,
        }
        self.ask(&make, &[])?.descriptor()
    }

    fn try_ask(&self, request: &Request, along: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        let (mine, theirs) = super::message_pair()?;
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(along);
        send(&self.socket, request, &descriptors)?;
        // Theirs is in the message alone now, and its end is the broker's.
        drop(theirs);
        if !is_readable(&mine, PATIENCE)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (reply, descriptors) = next(&mine, RecvFlags::empty())?;
        Ok(Answer {
            reply,
            descriptors,
            rest: mine,
        })
    }
}

impl Answer {
    fn well(self) -> Result<Self, NetnsError> {
        match self.reply {
            Reply::Failed(failure) => Err(failure.into()),
            _ => Ok(self),
        }
    }

    pub(crate) fn done(self) -> Result<(), NetnsError> {
        self.well().map(drop)
    }

    pub(crate) fn descriptor(self) -> Result<OwnedFd, NetnsError> {
        let descriptor = self.well()?.descriptors.into_iter().next();
        descriptor.ok_or_else(|| senseless("a descriptor"))
    }

    /// Of each namespace so many sockets, or why there are none of it.
    pub(crate) fn sockets(self, each: usize) -> Result<Vec<Result<Vec<OwnedFd>, NetnsError>>, NetnsError> {
        let Self {
            reply, descriptors, ..
        } = self.well()?;
        let Reply::Sockets(failures) = reply else {
            return Err(senseless("sockets"));
        };
        let made = failures.iter().filter(|failure| failure.is_none()).count();
        if descriptors.len() != made * each {
            return Err(senseless("a socket"));
        }
        let mut descriptors = descriptors.into_iter();
        let of = failures.into_iter().map(|failure| match failure {
            Some(failure) => Err(failure.into()),
            None => Ok(descriptors.by_ref().take(each).collect()),
        });
        Ok(of.collect())
    }

    pub(crate) fn texts(self) -> Result<Vec<String>, NetnsError> {
        match self.well()?.reply {
            Reply::Texts(texts) => Ok(texts),
            _ => Err(senseless("texts")),
        }
    }

    pub(crate) fn started(self) -> Result<Started, NetnsError> {
        let Self { reply, rest, .. } = self.well()?;
        match reply {
            Reply::Started(pid) => Ok(Started { pid, rest }),
            _ => Err(senseless("a process")),
        }
    }
}

fn senseless(missing: &str) -> NetnsError {
    not_answered(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{missing} is missing"),
    ))
}

fn not_answered(source: io::Error) -> NetnsError {
    NetnsError::Broker {
        action: "answer",
        source,
    }
}

fn died_over_it(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// Has the broker of this process write the resolver configuration of a named namespace, or take it away. `None` if it has none.
pub fn set_resolver(name: &str, text: Option<&str>) -> Option<Result<(), NetnsError>> {
    let request = Request::Resolver(name.to_owned(), text.map(str::to_owned));
    Some(get()?.ask(&request, &[]).and_then(Answer::done))
}

/// Has the broker of this process start what encrypts, which goes on when this process and the broker end.
pub fn start_encrypter() -> Result<Started, NetnsError> {
    let broker = get().ok_or_else(|| NetnsError::Refused {
        reason: "this process has none".to_owned(),
    })?;
    broker.ask(&Request::Encrypt, &[])?.started()
}

/// A process that the broker started. A command is killed with all it started when this is dropped before its end.
#[derive(Debug)]
pub struct Started {
    pid: u32,
    rest: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// With this exit code.
    pub code: Option<i32>,
    /// By this signal.
    pub signal: Option<i32>,
}

impl Started {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if that is known.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] while it runs; [`io::ErrorKind::UnexpectedEof`] if nobody will say, as the broker died.
    pub fn try_wait(&self) -> io::Result<Ended> {
        match next(&self.rest, RecvFlags::DONTWAIT)? {
            (Reply::Ended { code, signal }, _) => Ok(Ended { code, signal }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// How it ended, when it has. Must be called within a tokio runtime.
    pub async fn wait(&self) -> io::Result<Ended> {
        let readable = Readable::new(self.rest.try_clone()?)?;
        loop {
            let mut ready = readable.0.readable().await?;
            if let Ok(ended) = ready.try_io(|_| self.try_wait()) {
                return ended;
            }
        }
    }
}

/// Something that is waited for in a tokio runtime.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Must be called within a tokio runtime.
    #[allow(unsafe_code)]
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: it names the same descriptor for all its life, which it owns.
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Until there is something to read, or the end of it. Cancel-safe.
    pub async fn wait(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

fn next(socket: &OwnedFd, flags: RecvFlags) -> io::Result<(Reply, Vec<OwnedFd>)> {
    let Some(Received {
        message, descriptors, ..
    }) = receive(socket, flags)?
    else {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the broker of the agent died over it",
        ));
    };
    let reply = message.map_err(io::Error::other)?;
    Ok((reply, descriptors))
}

fn is_readable(socket: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let begun = std::time::Instant::now();
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(
            &mut ready,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(count) => return Ok(count > 0),
        }
    }
}
