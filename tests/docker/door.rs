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

/// The socket, held open while no agent runs.
pub struct Door(UnixListener);

impl Door {
    pub fn open(host: &Host) -> Self {
        let opened = host.run(|| {
            fs::create_dir_all("/run/docker/plugins")?;
            UnixListener::bind("/run/docker/plugins/weft.sock")
        });
        let listener = opened.unwrap().unwrap();
        // The agents inherit it.
        fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        Self(listener)
    }

    /// A command that runs `program` with the socket as its first descriptor after the standard ones.
    pub fn pass_to(&self, program: &Path) -> Command {
        let mut command = Command::new("bash");
        let fd = self.0.as_raw_fd();
        // The number of this shell is that of the program which takes its place.
        let script = format!("export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\" 3<&{fd} {fd}<&-");
        command.args(["-c", &script, "weft"]).arg(program);
        command
    }

    /// Whether dockerd waits at it. Nobody else does while no agent runs.
    pub fn is_knocked_at(&self) -> bool {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
    }
}
