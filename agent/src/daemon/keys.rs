//! The files of keys that change: this node's for WireGuard, and the cluster's of gossip. They are not in the store: what a
//! database has deleted stays in its file for a while, and an old key is to be gone.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    marker::PhantomData,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::control::{Ring, TunnelKeys};

/// The first byte of the file.
const VERSION: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub(super) enum KeyFileError {
    #[error("cannot {what} the keys of {of} in {}", .file.display())]
    Access {
        what: &'static str,
        of: &'static str,
        file: PathBuf,
        source: io::Error,
    },
    #[error("the keys of {of} in {} are not readable; the file was written by another version or damaged. {without}", .file.display())]
    Malformed {
        of: &'static str,
        file: PathBuf,
        without: &'static str,
    },
}

/// Where some keys are, and how they get there.
pub(super) struct KeyFile<T> {
    dir: PathBuf,
    name: &'static str,
    of: &'static str,
    /// What it is to be without them.
    without: &'static str,
    keys: PhantomData<T>,
}

impl KeyFile<TunnelKeys> {
    pub(super) fn of_tunnels(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            name: "wireguard.keys",
            of: "encrypted networks",
            without: "Without it this node makes a new key, and its tunnels begin anew",
            keys: PhantomData,
        }
    }
}

impl KeyFile<Ring> {
    pub(super) fn of_gossip(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            name: "gossip.keys",
            of: "gossip",
            without: "Without it no other node is understood: put it back from a copy, or remove the data directory, and join again \
                      after `weft node rm` on another host",
            keys: PhantomData,
        }
    }
}

impl<T: Serialize + DeserializeOwned> KeyFile<T> {
    /// What was saved last; `None` if nothing was since the last [`forget`](Self::forget).
    pub(super) fn load(&self) -> Result<Option<T>, KeyFileError> {
        let failed = |source| self.failed("read", source);
        // Of a save that a crash has interrupted: it was not in force yet.
        wipe(&self.unfinished()).map_err(failed)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
        match File::open(self.file()) {
            Ok(file) => file.take(4096).read_to_end(&mut bytes).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).ok(),
            _ => None,
        }
        .map(Some)
        .ok_or_else(|| KeyFileError::Malformed {
            of: self.of,
            file: self.file(),
            without: self.without,
        })
    }

    /// Writes all of it or nothing; when it returns, it is on the disk, and what was there before is not, as far as the
    /// file system writes where it is told to.
    pub(super) fn save(&self, keys: &T) -> Result<(), KeyFileError> {
        let failed = |source| self.failed("write", source);
        let bytes =
            Zeroizing::new(postcard::to_extend(keys, vec![VERSION]).expect("plain data always encodes"));
        let before = OpenOptions::new().write(true).open(self.file()).ok();
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(self.unfinished()).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(self.unfinished(), self.file()).map_err(failed)?;
        self.sync_dir().map_err(failed)?;
        before.map_or(Ok(()), |before| blank(&before)).map_err(failed)
    }

    /// Leaves no key.
    pub(super) fn forget(&self) -> Result<(), KeyFileError> {
        wipe(&self.file())
            .and_then(|()| self.sync_dir())
            .map_err(|source| self.failed("remove", source))
    }

    fn file(&self) -> PathBuf {
        self.dir.join(self.name)
    }

    fn unfinished(&self) -> PathBuf {
        self.dir.join(format!("{}.new", self.name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn failed(&self, what: &'static str, source: io::Error) -> KeyFileError {
        KeyFileError::Access {
            what,
            of: self.of,
            file: self.file(),
            source,
        }
    }
}

fn wipe(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => blank(&file).and_then(|()| std::fs::remove_file(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes zeros over what is there.
fn blank(mut file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use weft_wireguard::Secret32;

    use super::*;

    fn keys(n: u8) -> TunnelKeys {
        TunnelKeys::first(Secret32::new([n; 32]), 5)
    }

    #[test]
    fn keys_survive_a_reopen_and_leave_nothing_of_the_last_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::of_tunnels(dir.path());
        assert_eq!(file.load().unwrap(), None);
        file.save(&keys(1)).unwrap();
        // Whoever has the file open sees that its key is gone.
        let mut before = File::open(file.file()).unwrap();
        assert_eq!(before.metadata().unwrap().mode() & 0o777, 0o600);
        file.save(&keys(2)).unwrap();
        let mut bytes = Vec::new();
        before.read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() > 32 && bytes.iter().all(|byte| *byte == 0));
        let again = KeyFile::of_tunnels(dir.path());
        assert_eq!(again.load().unwrap(), Some(keys(2)));
        again.forget().unwrap();
        again.forget().unwrap();
        assert_eq!(again.load().unwrap(), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_save_that_was_interrupted_changed_nothing_and_a_damaged_file_is_told_about() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::of_tunnels(dir.path());
        file.save(&keys(1)).unwrap();
        std::fs::write(file.unfinished(), [7; 20]).unwrap();
        assert_eq!(file.load().unwrap(), Some(keys(1)));
        assert!(!file.unfinished().exists());
        std::fs::write(file.file(), [VERSION, 7]).unwrap();
        let error = file.load().unwrap_err().to_string();
        assert!(error.contains("wireguard.keys are not readable"), "{error}");

        let file = KeyFile::of_gossip(dir.path());
        assert_eq!(file.load().unwrap(), None);
        let ring = Ring::first(Secret32::new([3; 32]), 7);
        file.save(&ring).unwrap();
        assert_eq!(file.load().unwrap(), Some(ring));
    }
}
