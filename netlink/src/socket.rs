//! A netlink socket that asks the kernel and waits for what it says.

use std::{
    io,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
};

use netlink_sys::{Socket, SocketAddr, TokioSocket};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};

use crate::{broker::SocketKind, netns::make_socket};

/// The kernel answers within the call that asks, so that long a silence means that an answer was lost.
const ANSWER_TIMEOUT_SECS: i64 = 5;

/// Connects to the kernel's part for the network namespace of the calling thread.
pub(crate) fn open(kind: SocketKind) -> io::Result<Socket> {
    connect(make_socket(kind)?)
}

/// Connects to the kernel's part for the network namespace that the socket belongs to.
pub(crate) fn connect(socket: OwnedFd) -> io::Result<Socket> {
    let mut socket = of(socket);
    // The kernel chooses the address, and nobody asks which.
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Both only make answers smaller and clearer; not all of the kernel's parts know them.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(ANSWER_TIMEOUT_SECS),
    )?;
    Ok(socket)
}

#[allow(unsafe_code)]
fn of(socket: OwnedFd) -> Socket {
    // SAFETY: the descriptor is owned by nobody else from here on, and the library closes it.
    unsafe { Socket::from_raw_fd(socket.into_raw_fd()) }
}

/// For waiting in a tokio runtime, within which this must be called.
#[allow(unsafe_code)]
pub(crate) fn registered(socket: OwnedFd) -> TokioSocket {
    // SAFETY: the descriptor is owned by nobody else from here on, and the library closes it.
    unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) }
}

/// Receives by `receive`, again if a signal came between, and says in words that nothing came.
pub(crate) fn answer(mut receive: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the kernel did not answer in {ANSWER_TIMEOUT_SECS} seconds"),
                ));
            }
            received => return received,
        }
    }
}
