//! The way into a lab for a process outside of it: `lab exec`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigmaskHow;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::lab::LabInner;
use crate::namespaces::Namespaces;
use crate::{supervise, sys};

/// A namespace to enter: where it is, and which one it must be, in case the process id in the path has been reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacePath {
    /// Such as `/proc/PID/ns/user` or `/proc/PID/fd/N`, as seen from outside the lab.
    pub path: PathBuf,
    /// Its inode number.
    pub inode: u64,
}

/// Which namespaces make up a host or a sandbox, for a process outside the lab. It can be stored as JSON, and is good as
/// long as the lab's process lives and the host has not crashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnterSpec {
    /// Whose they are, for messages.
    pub place: String,
    /// The user namespace, if the lab has one of its own.
    pub user: Option<NamespacePath>,
    /// The PID namespace, if the lab has one of its own.
    pub pid: Option<NamespacePath>,
    /// The mount namespace.
    pub mnt: NamespacePath,
    /// The network namespace.
    pub net: NamespacePath,
    /// The UTS namespace.
    pub uts: NamespacePath,
}

/// Why a process could not enter a lab.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// Only a process with one thread may enter.
    #[error(
        "cannot enter {place} from a process with many threads; call enter_and_exec before the first thread starts"
    )]
    ManyThreads {
        /// The host or sandbox.
        place: String,
    },
    /// The lab has ended, or the host has crashed.
    #[error("{place} is gone: its lab has ended or the host has crashed")]
    Gone {
        /// The host or sandbox.
        place: String,
    },
    /// The lab belongs to someone else.
    #[error("{place} belongs to another user's lab; run this as the user who started the lab, or with sudo")]
    NotYours {
        /// The host or sandbox.
        place: String,
    },
    /// Anything else on the way in.
    #[error("could not enter the {kind} namespace of {place}")]
    Enter {
        /// Which namespace.
        kind: &'static str,
        /// The host or sandbox.
        place: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// We are in, but the command cannot be executed.
    #[error("could not execute {program} in {place}")]
    Execute {
        /// The command.
        program: String,
        /// The host or sandbox.
        place: String,
        /// Why; `NotFound` is what shells report as 127.
        source: io::Error,
    },
}

impl EnterSpec {
    pub(crate) fn new(lab: &LabInner, namespaces: &Namespaces) -> Result<Self, LabError> {
        let what = || format!("describe the way into {}", namespaces.place());
        let outside_pid = lab
            .isolation
            .as_ref()
            .map_or(std::process::id(), |isolation| isolation.outside_pid);
        let own = |kind: &str| -> Result<NamespacePath, LabError> {
            let inode = fs::metadata(format!("/proc/self/ns/{kind}"))
                .map_err(LabError::os(what()))?
                .ino();
            Ok(NamespacePath {
                path: format!("/proc/{outside_pid}/ns/{kind}").into(),
                inode,
            })
        };
        let [net, mnt, uts] = namespaces.inodes().map_err(LabError::os(what()))?;
        let held = |fd: i32, inode: u64| NamespacePath {
            path: format!("/proc/{outside_pid}/fd/{fd}").into(),
            inode,
        };
        let isolated = lab.isolation.as_ref();
        Ok(Self {
            place: namespaces.place().to_owned(),
            user: isolated
                .filter(|isolation| isolation.user_namespace)
                .map(|_| own("user"))
                .transpose()?,
            pid: isolated.map(|_| own("pid")).transpose()?,
            mnt: held(namespaces.mnt().as_raw_fd(), mnt),
            net: held(namespaces.net().as_fd().as_raw_fd(), net),
            uts: held(namespaces.uts().as_raw_fd(), uts),
        })
    }
}

/// Enters a host or sandbox of a running lab from outside, runs a command there with our own standard input, output and
/// terminal, passes signals on, and returns the command's exit code: 128 + n for a death by signal n.
///
/// The calling process is inside afterwards and should end. It must have one thread.
///
/// # Errors
///
/// [`EnterError`].
pub fn enter_and_exec(
    spec: &EnterSpec,
    argv: &[OsString],
    env: &[(OsString, OsString)],
) -> Result<i32, EnterError> {
    let place = || spec.place.clone();
    let program = argv.first().cloned().unwrap_or_default();
    let steps = [
        ("user", spec.user.as_ref(), CloneFlags::CLONE_NEWUSER),
        ("PID", spec.pid.as_ref(), CloneFlags::CLONE_NEWPID),
        ("UTS", Some(&spec.uts), CloneFlags::CLONE_NEWUTS),
        ("network", Some(&spec.net), CloneFlags::CLONE_NEWNET),
        // Last, because the paths lead through /proc as it is outside.
        ("mount", Some(&spec.mnt), CloneFlags::CLONE_NEWNS),
    ];
    // All are opened before the first is entered, so that a lab which ends meanwhile is noticed at once.
    let mut doors = Vec::new();
    for (kind, path, flag) in steps {
        let Some(path) = path else { continue };
        let file = File::open(&path.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => EnterError::Gone { place: place() },
            io::ErrorKind::PermissionDenied => EnterError::NotYours { place: place() },
            _ => EnterError::Enter {
                kind,
                place: place(),
                source,
            },
        })?;
        if file.metadata().is_ok_and(|metadata| metadata.ino() != path.inode) {
            return Err(EnterError::Gone { place: place() });
        }
        doors.push((kind, file, flag));
    }
    let directory = std::env::current_dir();
    for (kind, door, flag) in doors {
        setns(door.as_fd(), flag).map_err(|errno| match (kind, errno) {
            ("user", nix::errno::Errno::EINVAL) => EnterError::ManyThreads { place: place() },
            (_, nix::errno::Errno::EPERM) => EnterError::NotYours { place: place() },
            _ => EnterError::Enter {
                kind,
                place: place(),
                source: errno.into(),
            },
        })?;
    }
    // The same place in the file system, if it can be seen from inside.
    if let Ok(directory) = directory {
        let _ = nix::unistd::chdir(&directory);
    }
    let failed = |source: io::Error| EnterError::Execute {
        program: program.to_string_lossy().into_owned(),
        place: place(),
        source,
    };
    let signals = supervise::supervised_signals();
    sys::default_sigchld();
    let before = signals
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(|errno| failed(errno.into()))?;
    let mut command = Command::new(&program);
    command
        .args(argv.iter().skip(1))
        .envs(env.iter().map(|(key, value)| (key, value)));
    sys::before_exec(&mut command, move || Ok(before.thread_set_mask()?));
    // Entering a PID namespace takes effect for children only.
    let spawned = command.spawn();
    let result = spawned.map_err(failed).map(|child| {
        let pid = Pid::from_raw(child.id().cast_signed());
        supervise::supervise(pid, &signals, false)
    });
    let _ = before.thread_set_mask();
    result
}
