//! A process apart that has the privileges which the agent does not keep, and hands over what they are for: descriptors.
//!
//! The agent has one end of a pair of sockets and the broker the other, and no path leads to it. What may be asked is the closed list
//! `Request`; the broker takes the agent to be in the hands of somebody else, and checks each request by what it was started with
//! ([`Policy`]), never by what the agent says of itself. With each request comes a socket to answer at: requests of different threads
//! are carried out beside each other, and one whose broker died meanwhile is known by the end of that socket.
//!
//! [`Netns`](crate::netns::Netns) asks the broker of its process where there is one, so that callers do not know of it.

mod client;
mod message;
mod serve;
mod settings;

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    io::{FdFlags, fcntl_getfd, fcntl_setfd},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};

pub(crate) use client::{Answer, Broker, get};
pub use client::{Ended, Readable, Started, install, set_resolver, start_encrypter};
pub use message::SocketKind;
pub(crate) use message::{MAX_SOCKETS, Request};
pub use serve::serve;
#[cfg(any(test, fuzzing))]
pub(crate) use serve::{Checked, check};

/// What a broker does for its agent, said by whoever starts it.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Below it are the namespaces and the mount that are made.
    pub run_dir: PathBuf,
    /// The folder in it that holds the namespaces of networks.
    pub networks: PathBuf,
    /// The folder in it with the eBPF file system; `None` where none may be mounted.
    pub bpf: PathBuf,
    /// Whether that may be mounted. It is always unmounted.
    pub may_mount_bpf: bool,
    /// Whether commands are run in namespaces.
    pub commands: bool,
    /// What the thread that is about to start a command gives up.
    pub give_up: fn() -> io::Result<()>,
    /// Checks and writes the resolver configuration of a named namespace, or takes it away.
    pub resolver: fn(&str, Option<&str>) -> io::Result<()>,
    /// The program that encrypts and its arguments; `None` where somebody else starts it.
    pub encrypter: Option<Vec<PathBuf>>,
}

/// Two connected sockets: the agent's, and the broker's, at which the kernel says with each message which process sent it.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (agents, brokers) = message_pair()?;
    rustix::net::sockopt::set_socket_passcred(&brokers, true)?;
    Ok((agents, brokers))
}

fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Sees to it that no program which this process starts gets a descriptor that whoever started this one has left open.
pub fn keep_descriptors() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if number > 2 {
            close_on_exec(number);
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
fn close_on_exec(number: i32) {
    // SAFETY: the number is used for two calls that neither read nor close what it stands for; one that is not open is an error.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    if let Ok(flags) = fcntl_getfd(descriptor) {
        // It was open just now.
        let _ = fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC);
    }
}

/// A path to what a descriptor is open at, whatever becomes of the name it was opened by.
fn path_of(descriptor: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    Path::new("/proc/self/fd").join(descriptor.as_fd().as_raw_fd().to_string())
}

#[cfg(test)]
mod tests;
