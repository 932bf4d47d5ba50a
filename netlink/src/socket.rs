//! A netlink socket that asks the kernel and waits for what it says.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};

/// The kernel answers within the call that asks, so that long a silence means that an answer was lost.
const ANSWER_TIMEOUT_SECS: i64 = 5;

/// Connects to the kernel's part for the network namespace of the calling thread.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
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
