//! Leaving the machine: user, mount, PID, network, UTS and IPC namespaces of our own, as root or as anybody.
//!
//! Three processes take part. The *outer* one is the caller: it stays on the machine, passes signals on and ends
//! with the exit code of the work. Its child is the *init* of a new PID namespace: it reaps orphans. The init's child is the
//! *worker*, which is where [`isolate`] returns (or where the isolated command is executed). Whichever of the three is
//! killed, the kernel kills everything else in the PID namespace, and with the last process go all namespaces that
//! only descriptors held.

mod diagnose;

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, getegid, geteuid, pipe2};

use crate::{mounts, supervise, sys};
use diagnose::{Failure, diagnose};
pub use diagnose::{IsolateError, Step, Switch};

/// Where the isolated processes find out about their isolation.
const RECORD: &str = "/run/netns-harness/isolation";

/// Whether a user namespace is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserNamespace {
    /// Only where the process lacks the capabilities to do without.
    #[default]
    Auto,
    /// In any case, also for root.
    Always,
}

/// How to isolate.
#[derive(Clone, Debug)]
pub struct Isolate {
    keep: Vec<PathBuf>,
    user_namespace: UserNamespace,
    hostname: String,
}

impl Default for Isolate {
    fn default() -> Self {
        Self {
            keep: Vec::new(),
            user_namespace: UserNamespace::Auto,
            hostname: "lab".into(),
        }
    }
}

impl Isolate {
    /// The defaults: nothing kept, a user namespace only if needed, the host name `lab`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a path under `/run` reachable, which otherwise becomes an empty tmpfs. Paths elsewhere stay as they are
    /// anyway; a path that does not exist is skipped.
    #[must_use]
    pub fn keep(mut self, path: impl Into<PathBuf>) -> Self {
        self.keep.push(path.into());
        self
    }

    /// Whether a user namespace is made.
    #[must_use]
    pub fn user_namespace(mut self, choice: UserNamespace) -> Self {
        self.user_namespace = choice;
        self
    }

    /// The host name inside.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = name.into();
        self
    }
}

/// The isolation this process lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// The worker's process id as the machine outside sees it; `/proc/<this>/ns/*` are the doors in.
    pub outside_pid: u32,
    /// Whether a user namespace was made, so that root inside is an ordinary user outside.
    pub user_namespace: bool,
    /// The paths under `/run` that were kept; hosts keep them too.
    pub(crate) keep: Vec<PathBuf>,
}

impl Isolation {
    /// The isolation of the calling process, if [`isolate`] or [`spawn_isolated`] made one.
    #[must_use]
    pub fn current() -> Option<Self> {
        let text = fs::read_to_string(RECORD).ok()?;
        let mut isolation = Self {
            outside_pid: 0,
            user_namespace: false,
            keep: Vec::new(),
        };
        for line in text.lines() {
            match line.split_once('=')? {
                ("pid", value) => isolation.outside_pid = value.parse().ok()?,
                ("user", value) => isolation.user_namespace = value == "true",
                ("keep", value) => isolation.keep.push(value.into()),
                _ => {}
            }
        }
        (isolation.outside_pid != 0).then_some(isolation)
    }
}

/// Moves the rest of this program into namespaces of its own. Call it first thing in `main`, before any thread starts
/// (before a tokio runtime is built).
///
/// It returns in a new process, the worker; the calling process stays behind, passes signals on and ends with the
/// worker's exit code.
///
/// # Errors
///
/// [`IsolateError`]; where user namespaces are switched off it names the switch and how to go on.
pub fn isolate(options: &Isolate) -> Result<Isolation, IsolateError> {
    let count = thread_count();
    if count != 1 {
        return Err(IsolateError::ManyThreads { count });
    }
    let user_namespace = wants_user_namespace(options);
    enter(options, user_namespace).map_err(|failure| diagnose(failure, user_namespace, &read_sysctl))
}

/// Starts a command in namespaces of its own. Unlike [`isolate`] this works from a process with many threads, such as a
/// test binary or a program with a runtime.
///
/// The [`Child`] is the outer process: its exit status is the command's (128 + n for a death by signal n), and killing
/// it kills everything inside.
///
/// # Errors
///
/// [`IsolateError`], as for [`isolate`], or the failure to execute the command.
pub fn spawn_isolated(command: &mut Command, options: &Isolate) -> Result<Child, IsolateError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let user_namespace = wants_user_namespace(options);
    let step = |errno| {
        diagnose(
            Failure {
                step: Step::Fork,
                errno,
            },
            user_namespace,
            &read_sysctl,
        )
    };
    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(step)?;
    let mut reporter = fs::File::from(reporter);
    let options = options.clone();
    sys::before_exec(command, move || match enter(&options, user_namespace) {
        Ok(_) => Ok(()),
        Err(failure) => {
            let _ = reporter.write_all(&failure.encode());
            Err(io::Error::from(failure.errno))
        }
    });
    let result = command.spawn();
    // The hook, and with it the writing end, lives as long as the command; so read what is there, without waiting.
    let _ = nix::fcntl::fcntl(&report, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    result.map_err(|source| {
        let mut bytes = [0_u8; Failure::LEN];
        match fs::File::from(report)
            .read_exact(&mut bytes)
            .ok()
            .and_then(|()| Failure::decode(bytes))
        {
            Some(failure) => diagnose(failure, user_namespace, &read_sysctl),
            None => IsolateError::Execute { program, source },
        }
    })
}

/// Does all the work; returns only in the worker, or with a failure in whichever process met it.
fn enter(options: &Isolate, user_namespace: bool) -> Result<Isolation, Failure> {
    let at = |step| move |errno| Failure { step, errno };
    sys::default_sigchld();
    let signals = supervise::supervised_signals();
    let before = signals
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(at(Step::Fork))?;
    let restore = |failure| {
        // The caller of `isolate` goes on with its error message, and should be able to be interrupted.
        let _ = before.thread_set_mask();
        failure
    };
    if user_namespace {
        make_user_namespace().map_err(restore)?;
    }
    unshare(CloneFlags::CLONE_NEWPID)
        .map_err(at(Step::PidNamespace))
        .map_err(restore)?;
    let (alive, alive_outer) = pipe2(OFlag::O_CLOEXEC).map_err(at(Step::Fork)).map_err(restore)?;
    match sys::fork().map_err(at(Step::Fork)).map_err(restore)? {
        ForkResult::Parent { child } => {
            use std::os::fd::AsRawFd;
            sys::close_all_but(Some(alive_outer.as_raw_fd()));
            sys::exit_now(supervise::supervise(child, &signals, false))
        }
        ForkResult::Child => {
            drop(alive_outer);
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
                .map_err(at(Step::Fork))
                .map_err(restore)?;
            // If the outer process was killed before it could be followed, the pipe says so.
            let mut hung_up = [PollFd::new(alive.as_fd(), PollFlags::POLLIN)];
            if poll(&mut hung_up, PollTimeout::ZERO) == Ok(1) {
                sys::exit_now(1);
            }
            drop(alive);
            init(options, user_namespace, &signals, &before).map_err(restore)
        }
    }
}

/// The init of the PID namespace: prepares mounts and network, then forks the worker and looks after it.
fn init(
    options: &Isolate,
    user_namespace: bool,
    signals: &SigSet,
    before: &SigSet,
) -> Result<Isolation, Failure> {
    let at = |step| move |errno| Failure { step, errno };
    let io_at = |step| {
        move |error: io::Error| Failure {
            step,
            errno: errno_of(&error),
        }
    };
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .map_err(at(Step::Namespaces))?;
    mounts::set_propagation(MsFlags::MS_PRIVATE).map_err(at(Step::PrivateMounts))?;
    // Through the old /proc the worker learns its process id as the outside sees it.
    let old_proc =
        open("/proc", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(at(Step::Proc))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(at(Step::Proc))?;
    let keep = mounts::keepable(&options.keep);
    mounts::fresh_run(&keep).map_err(io_at(Step::Run))?;
    sys::set_hostname(&options.hostname).map_err(io_at(Step::Hostname))?;
    sys::loopback_up().map_err(io_at(Step::Loopback))?;

    match sys::fork().map_err(at(Step::Fork))? {
        ForkResult::Parent { child } => {
            sys::close_all_but(None);
            sys::exit_now(supervise::supervise(child, signals, true))
        }
        ForkResult::Child => {
            let isolation = Isolation {
                outside_pid: outside_pid(&old_proc)?,
                user_namespace,
                keep,
            };
            let mut text = format!("pid={}\nuser={user_namespace}\n", isolation.outside_pid);
            for path in &isolation.keep {
                text.push_str(&format!("keep={}\n", path.display()));
            }
            fs::create_dir_all(Path::new(RECORD).parent().unwrap_or(Path::new("/run")))
                .and_then(|()| fs::write(RECORD, text))
                .map_err(io_at(Step::Run))?;
            before.thread_set_mask().map_err(at(Step::Fork))?;
            Ok(isolation)
        }
    }
}

fn outside_pid(old_proc: &OwnedFd) -> Result<u32, Failure> {
    let link = readlinkat(old_proc, "self").map_err(|errno| Failure {
        step: Step::Proc,
        errno,
    })?;
    link.to_str().and_then(|pid| pid.parse().ok()).ok_or(Failure {
        step: Step::Proc,
        errno: Errno::EINVAL,
    })
}

fn make_user_namespace() -> Result<(), Failure> {
    // Read before: inside the namespace we are nobody until the maps are written.
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| Failure {
        step: Step::UserNamespace,
        errno,
    })?;
    let write = |path: &str, text: String| {
        fs::write(path, text).map_err(|error| Failure {
            step: Step::IdMap,
            errno: errno_of(&error),
        })
    };
    // Without this an ordinary user may not write a group map (CVE-2014-8989).
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn wants_user_namespace(options: &Isolate) -> bool {
    const NEEDED: u64 = 1 << 21 /* SYS_ADMIN */ | 1 << 12 /* NET_ADMIN */ | 1 << 13 /* NET_RAW */;
    options.user_namespace == UserNamespace::Always
        || status_field("CapEff:")
            .and_then(|hex| u64::from_str_radix(&hex, 16).ok())
            .is_none_or(|effective| effective & NEEDED != NEEDED)
}

fn thread_count() -> usize {
    status_field("Threads:")
        .and_then(|count| count.parse().ok())
        .unwrap_or(1)
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))?
            .trim()
            .to_owned(),
    )
}

fn read_sysctl(name: &str) -> Option<String> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
