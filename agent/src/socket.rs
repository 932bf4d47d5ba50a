//! Unix sockets that commands and Docker find the agent by.

use std::{
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, lchown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Group};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

/// What the socket for reading is called, beside the one that takes every command.
pub const FOR_READING: &str = "weft-read.sock";

/// Where whoever may only look finds the agent that takes every command at `socket`.
pub fn for_reading(socket: &Path) -> PathBuf {
    socket.with_file_name(FOR_READING)
}

/// A socket in its place, with its owner and mode. Nobody can connect before it listens, so nobody ever finds it with others.
/// It goes when this is dropped instead.
#[derive(Debug)]
pub struct Bound {
    /// There until it listens.
    socket: Option<Socket>,
    path: PathBuf,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.socket.is_some() {
            // Gone already is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Bound {
    /// Takes over the socket of a process that is gone, not that of one that runs. Beside the owner nobody but `group`, or that
    /// of this process, may connect.
    pub fn new(path: &Path, group: Option<Gid>) -> anyhow::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        match UnixStream::connect(path) {
            Ok(_) => {
                anyhow::bail!(
                    "another process serves it; stop that one, or give this one a socket of its own"
                )
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => fs::remove_file(path)?,
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let bound = Self {
            socket: Some(socket),
            path: path.to_owned(),
        };
        if let Some(group) = group {
            lchown(path, None, Some(group.as_raw()))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(bound)
    }

    /// The same, for whoever may use the socket `other`.
    pub fn open_as(&self, other: &Path) -> io::Result<()> {
        let of = fs::metadata(other)?;
        lchown(&self.path, Some(of.uid()), Some(of.gid()))?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(of.mode() & 0o777))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on one can connect. Within a runtime.
    pub fn listen(mut self) -> io::Result<UnixListener> {
        let socket = self.socket.take().expect("it is taken only here");
        // The kernel cuts it to `net.core.somaxconn`.
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        UnixListener::from_std(socket.into())
    }
}

/// The group by that name or number; where nobody gave one that of the name `usual`, if there is one.
pub fn group(asked: Option<&str>, usual: &str) -> anyhow::Result<Option<Gid>> {
    let Some(asked) = asked else {
        // Without a list of groups there is none of that name.
        return Ok(Group::from_name(usual).ok().flatten().map(|group| group.gid));
    };
    if let Ok(number) = asked.parse() {
        return Ok(Some(Gid::from_raw(number)));
    }
    let found = Group::from_name(asked)
        .map_err(|error| anyhow::anyhow!("the groups of this host cannot be read: {error}"))?;
    let found = found.ok_or_else(|| {
        anyhow::anyhow!("this host has no group `{asked}`; `groupadd --system {asked}` makes one")
    })?;
    Ok(Some(found.gid))
}

/// The group that may connect to a socket, as people know it; `None` where only root may.
pub fn group_of(socket: &Path) -> Option<String> {
    let gid = Gid::from_raw(fs::metadata(socket).ok()?.gid());
    if gid == Gid::from_raw(0) {
        return None;
    }
    let group = Group::from_gid(gid).ok().flatten();
    Some(group.map_or_else(|| gid.to_string(), |group| group.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_can_connect_before_owner_and_mode_are_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft.sock");
        let own = nix::unistd::getegid();
        let bound = Bound::new(&path, Some(own)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o777, found.gid()), (0o660, own.as_raw()));
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.unwrap();
        let _entered = runtime.enter();
        let _listener = bound.listen().unwrap();
        UnixStream::connect(&path).unwrap();
        let taken = Bound::new(&path, None).unwrap_err();
        assert!(taken.to_string().contains("another process"), "{taken}");
    }

    #[test]
    fn the_socket_of_a_process_that_is_gone_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Bound::new(&path, None).unwrap());
        assert!(!path.exists(), "one that never listened is nobody's");
    }

    #[test]
    fn a_group_is_a_name_or_a_number_and_the_usual_one_need_not_be_there() {
        assert_eq!(group(Some("0"), "x").unwrap(), Some(Gid::from_raw(0)));
        assert_eq!(group(Some("root"), "x").unwrap(), Some(Gid::from_raw(0)));
        assert_eq!(group(None, "root").unwrap(), Some(Gid::from_raw(0)));
        assert_eq!(group(None, "no-such-group").unwrap(), None);
        let missing = group(Some("no-such-group"), "root").unwrap_err().to_string();
        assert!(missing.contains("groupadd --system no-such-group"), "{missing}");
    }
}
