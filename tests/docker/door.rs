//! What systemd does for Docker's driver by `packaging/systemd/weft-docker.socket`.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixListener,
    },
    path::Path,
    process::Command,
};

use netns_harness::{Host, Inside as _};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::waits::Waits;

const DRIVER: &str = "/run/docker/plugins/weft.sock";
/// Where the agent's is, as somebody stands before it. The driver is called what its socket is.
const BEHIND: &str = "/run/weft-driver/weft.sock";

/// The socket, held open while no agent runs.
pub struct Door {
    listener: UnixListener,
    pub waits: Waits,
}

impl Door {
    pub fn open(host: &Host) -> Self {
        let listener = bind(host, BEHIND);
        // The agents inherit it.
        fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let waits = Waits::between(bind(host, DRIVER), host, BEHIND);
        Self { listener, waits }
    }

    /// A command that runs `program` with the socket as its first descriptor after the standard ones.
    pub fn pass_to(&self, program: &Path) -> Command {
        let mut command = Command::new("bash");
        let fd = self.listener.as_raw_fd();
        // The number of this shell is that of the program which takes its place.
        let script = format!("export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\" 3<&{fd} {fd}<&-");
        command.args(["-c", &script, "weft"]).arg(program);
        command
    }

    /// Whether dockerd waits at it. Nobody else does while no agent runs.
    pub fn is_knocked_at(&self) -> bool {
        let mut polled = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
    }
}

fn bind(host: &Host, socket: &str) -> UnixListener {
    let bound = host.run(|| {
        fs::create_dir_all(Path::new(socket).parent().unwrap())?;
        UnixListener::bind(socket)
    });
    bound.unwrap().unwrap()
}
