use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::statfs,
};

use super::{
    BpfError, Link, Map, MapSpec,
    sys::{self, Attr, Command},
};
use crate::broker::{self, Request};

/// `BPF_FS_MAGIC` of `linux/magic.h`
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// A folder of our own on a BPF file system, whose names keep maps and links alive without a process.
#[derive(Debug)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// The folder, with a BPF file system mounted there if it has none.
    pub fn mount(dir: &Path) -> Result<Self, BpfError> {
        let failed = || BpfError::new("mount a BPF file system at", dir.display().to_string());
        fs::create_dir_all(dir).map_err(failed())?;
        match broker::get() {
            Some(broker) if !is_mounted(dir) => {
                let asked = broker.ask(&Request::MountBpf, &[]).and_then(broker::Answer::done);
                asked.map_err(|error| failed()(io::Error::other(error)))?;
            }
            Some(_) => {}
            None => Self::mount_here(dir).map_err(failed())?,
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// By this process alone.
    pub(crate) fn mount_here(dir: &Path) -> io::Result<()> {
        if !is_mounted(dir) {
            mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
        }
        Ok(())
    }

    /// By this process alone: the mount, and nothing that is not a BPF file system.
    pub(crate) fn unmount_here(dir: &Path) -> io::Result<()> {
        if is_mounted(dir) {
            umount2(dir, MntFlags::MNT_DETACH)?;
        }
        Ok(())
    }

    /// The folder, if a BPF file system is mounted there.
    pub fn find(dir: &Path) -> Option<Self> {
        is_mounted(dir).then(|| Self { dir: dir.to_owned() })
    }

    /// Whether there is a BPF file system, as there was.
    pub fn are_mounted(&self) -> bool {
        is_mounted(&self.dir)
    }

    /// Takes all names away, and the mount and the folder with them.
    pub fn unmount(self) -> Result<(), BpfError> {
        let failed = || BpfError::new("unmount the BPF file system at", self.dir.display().to_string());
        for name in self.names()? {
            self.remove(&name)?;
        }
        match broker::get() {
            Some(broker) => {
                let asked = broker
                    .ask(&Request::UnmountBpf, &[])
                    .and_then(broker::Answer::done);
                asked.map_err(|error| failed()(io::Error::other(error)))?;
            }
            None => Self::unmount_here(&self.dir).map_err(failed())?,
        }
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed()(error)),
            _ => Ok(()),
        }
    }

    /// The names there are.
    pub fn names(&self) -> Result<Vec<String>, BpfError> {
        let list = || -> io::Result<Vec<String>> {
            let names = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
            let names = names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten();
            // Those with a dot are the kernel's own.
            Ok(names.filter(|name| !name.contains('.')).collect())
        };
        list().map_err(BpfError::new("list", self.dir.display().to_string()))
    }

    /// Gives a map or a link a name.
    pub fn pin(&self, name: &str, object: &impl AsFd) -> Result<(), BpfError> {
        let path = self.path(name);
        let attr = Attr::new()
            .u32(8, object.as_fd().as_raw_fd() as u32)
            .input(0, path.as_bytes_with_nul());
        sys::run(Command::ObjPin, attr).map_err(BpfError::new("pin", self.full(name)))
    }

    /// The map of a name, if there is one and it is like `spec`.
    pub fn map(&self, name: &str, spec: MapSpec) -> Result<Option<Map>, BpfError> {
        match self.get(name)? {
            Some(fd) => Map::adopt(fd, spec),
            None => Ok(None),
        }
    }

    /// The link of a name.
    pub fn link(&self, name: &str) -> Result<Option<Link>, BpfError> {
        Ok(self.get(name)?.map(Link::of))
    }

    /// Takes a name away, which need not be there.
    pub fn remove(&self, name: &str) -> Result<(), BpfError> {
        match fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BpfError::new("remove", self.full(name))(error))
            }
            _ => Ok(()),
        }
    }

    /// Gives what has one name another.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), BpfError> {
        fs::rename(self.dir.join(from), self.dir.join(to)).map_err(BpfError::new("rename", self.full(from)))
    }

    fn get(&self, name: &str) -> Result<Option<OwnedFd>, BpfError> {
        let path = self.path(name);
        let attr = Attr::new().input(0, path.as_bytes_with_nul());
        match sys::open(Command::ObjGet, attr) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BpfError::new("open", self.full(name))(error)),
        }
    }

    fn full(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn path(&self, name: &str) -> CString {
        // A folder that was mounted on has no NUL in its name, and names are constants.
        CString::new(self.dir.join(name).as_os_str().as_bytes()).unwrap_or_default()
    }
}

fn is_mounted(dir: &Path) -> bool {
    #[allow(clippy::unnecessary_cast)]
    statfs(dir).is_ok_and(|found| found.filesystem_type().0 as i64 == BPF_FS_MAGIC)
}
