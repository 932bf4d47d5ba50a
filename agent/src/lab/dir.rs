//! Where a lab keeps its files, and who holds it.
//!
//! Every lab has one directory with its control socket, `lab.json`, the agents' sockets, data and logs. A
//! lock on the file `held` in it lives exactly as long as any process of the lab's holder, so a holder that
//! was killed is told from one that lives without trusting a process id.

use std::{
    env,
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use netns_harness::Footprint;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::resolve::Topology;
use crate::api::{ApiError, types::check_name};

/// A Unix socket's path has 107 bytes (unix(7)); some are left for tools that add to it.
const MAX_SOCKET_PATH: usize = 100;
/// How long a killed holder may take to be gone: the kernel frees a hundred namespaces in well under a second.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the directory of all labs is made again when others, ending the last lab, remove it.
const MAX_ATTEMPTS: u32 = 100;

/// What `lab.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// The holder's process, as everybody outside sees it; none while the lab is only beginning.
    pub(super) holder: Option<u32>,
    /// What is built.
    pub(super) topology: Topology,
    /// By what it is recognised after its end; none while it is only beginning.
    pub(super) footprint: Option<Footprint>,
}

/// The directory of one lab.
#[derive(Debug, Clone)]
pub(super) struct LabDir {
    name: String,
    path: PathBuf,
}

impl LabDir {
    /// The directory of the lab `name`, whether it exists or not.
    pub(super) fn of(name: &str) -> Result<Self, ApiError> {
        check_name("a lab", name)?;
        Ok(Self {
            name: name.to_owned(),
            path: base().join(name),
        })
    }

    /// The directory at `path`, as the holder is told.
    pub(super) fn at(path: PathBuf) -> Self {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Self { name, path }
    }

    /// The directories of all labs of this user, by name.
    pub(super) fn all() -> Result<Vec<Self>> {
        let base = base();
        let entries = match fs::read_dir(&base) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot list the labs in {}", base.display()));
            }
        };
        let mut labs: Vec<_> = entries.flatten().map(|entry| Self::at(entry.path())).collect();
        // Whatever else somebody put there.
        labs.retain(|lab| check_name("a lab", &lab.name).is_ok() && lab.path.is_dir());
        labs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(labs)
    }

    /// Makes the directory of a lab that is about to be built, and takes its lock. A dead lab of this name is
    /// cleaned away; one that lives is a conflict.
    pub(super) fn create(&self, topology: &Topology) -> Result<File> {
        let longest = topology
            .hosts
            .iter()
            .map(|host| self.agent_socket(&host.name))
            .max_by_key(|path| path.as_os_str().len());
        if let Some(path) = longest.filter(|path| path.as_os_str().len() > MAX_SOCKET_PATH) {
            return Err(
                ApiError::invalid(format!("the socket path {} would be too long", path.display()))
                    .with_help("give the lab a shorter name with --name")
                    .into(),
            );
        }
        let _labs = make_and_lock_base(self.base())?;
        if self.is_held() {
            let name = &self.name;
            return Err(ApiError::conflict(format!("the lab `{name}` is up already"))
                .with_help(format!(
                    "end it with `weft lab down {name}`, or give this one another name with --name"
                ))
                .into());
        }
        self.remove_files()?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.path)
            .with_context(|| format!("cannot make the directory {}", self.path.display()))?;
        fs::create_dir(self.path.join("logs"))
            .and_then(|()| fs::create_dir(self.path.join("data")))
            .with_context(|| format!("cannot make directories in {}", self.path.display()))?;
        let lock = self.lock()?;
        self.write(&Record {
            holder: None,
            topology: topology.clone(),
            footprint: None,
        })?;
        Ok(lock)
    }

    /// Removes the directory of a dead lab with everything in it.
    pub(super) fn remove(&self) -> Result<()> {
        let Some(_labs) = lock_base(self.base())? else {
            return Ok(());
        };
        if self.is_held() {
            // Somebody has just made a new lab of this name.
            return Ok(());
        }
        self.remove_files()?;
        // The last lab takes the directory of all labs with it.
        let _ = fs::remove_dir(self.base());
        Ok(())
    }

    fn remove_files(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove the directory {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes `lab.json`: whole or not at all.
    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let path = self.path.join("lab.json");
        let write = || -> io::Result<()> {
            let draft = self.path.join("lab.json.new");
            let mut file = File::create(&draft)?;
            serde_json::to_writer_pretty(&mut file, record)?;
            file.write_all(b"\n")?;
            fs::rename(draft, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads `lab.json`.
    pub(super) fn read(&self) -> Result<Record> {
        let path = self.path.join("lab.json");
        let text = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::Error::from(self.not_found()),
            _ => anyhow::Error::from(error).context(format!("cannot read {}", path.display())),
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not what a lab writes", path.display()))
    }

    /// Says that there is no such lab.
    pub(super) fn not_found(&self) -> ApiError {
        let name = &self.name;
        ApiError::not_found(format!("there is no lab `{name}`"))
            .with_help("`weft lab ls` lists the labs; `weft lab up FILE` builds one")
    }

    /// Whether a process of the lab lives.
    pub(super) fn is_held(&self) -> bool {
        // Shared, so that two who look do not take each other for the lab.
        File::open(self.path.join("held"))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Waits until no process of the lab lives.
    pub(super) fn wait_until_free(&self) -> Result<()> {
        netns_harness::eventually(
            format!("the end of all processes of the lab `{}`", self.name),
            GONE_TIMEOUT,
            Duration::from_millis(5),
            || {
                if self.is_held() {
                    Err("its lock, still held")
                } else {
                    Ok(())
                }
            },
        )?;
        Ok(())
    }

    /// Takes the lock. It lasts until the file is closed by all who inherited it.
    fn lock(&self) -> Result<File> {
        let path = self.path.join("held");
        let file = File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        file.try_lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// The directory of all labs.
    fn base(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    pub(super) fn agent_socket(&self, host: &str) -> PathBuf {
        self.path.join(format!("{host}.sock"))
    }

    pub(super) fn data_dir(&self, host: &str) -> PathBuf {
        self.path.join("data").join(host)
    }

    /// The log of a host's agent, of a replica, or of the holder.
    pub(super) fn log(&self, of: &str) -> PathBuf {
        self.path.join("logs").join(format!("{of}.log"))
    }
}

/// The directory of all labs of this user.
fn base() -> PathBuf {
    let uid = geteuid();
    if uid.is_root() {
        return "/run/weft-labs".into();
    }
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match runtime
        .filter(|dir| fs::metadata(dir).is_ok_and(|found| found.is_dir() && found.uid() == uid.as_raw()))
    {
        Some(dir) => dir.join("weft-labs"),
        None => env::temp_dir().join(format!("weft-labs-{uid}")),
    }
}

/// Locks the directory of all labs until the file is closed, so that labs begin and end one after the other. `None` if there is
/// no such directory.
fn lock_base(base: &Path) -> Result<Option<File>> {
    let lock = || -> io::Result<Option<File>> {
        let file = File::open(base)?;
        file.lock()?;
        // The end of the last lab may have taken it away before we had the lock.
        let same = fs::metadata(base)?.ino() == file.metadata()?.ino();
        Ok(same.then_some(file))
    };
    match lock() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.with_context(|| format!("cannot lock the directory {}", base.display())),
    }
}

/// The same, and makes the directory where needed.
fn make_and_lock_base(base: &Path) -> Result<File> {
    for _ in 0..MAX_ATTEMPTS {
        make_base(base)?;
        if let Some(file) = lock_base(base)? {
            return Ok(file);
        }
    }
    Err(ApiError::unavailable(format!("{} is removed again and again", base.display())).into())
}

/// Makes the directory of all labs. In `/tmp` anybody could have made it before, so it is checked.
fn make_base(base: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(base) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot make the directory {}", base.display()));
        }
    }
    let found = fs::symlink_metadata(base).with_context(|| format!("cannot look at {}", base.display()))?;
    if found.is_dir() && found.uid() == geteuid().as_raw() && found.permissions().mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "{} belongs to somebody else, or others may write to it",
        base.display()
    ))
    .with_help("remove it, or set XDG_RUNTIME_DIR to a directory of your own")
    .into())
}
