//! The set of namespaces that makes a host or a sandbox, and being inside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use weft_netlink::diag::Diag;
use weft_netlink::netns::Netns;
use weft_netlink::route::RouteSocket;

use crate::capture::{Capture, CaptureOptions, Stop};
use crate::error::LabError;
use crate::process::{Finished, Output, Process};

/// Network, mount and UTS namespaces, kept alive by descriptors. No process is needed to hold them.
#[derive(Debug)]
pub struct Namespaces {
    place: String,
    net: Netns,
    mnt: OwnedFd,
    uts: OwnedFd,
    /// Captures hold sockets, and sockets hold a network namespace: they must end with it.
    captures: Mutex<Vec<Weak<Stop>>>,
}

impl Namespaces {
    /// Runs `prepare` on a thread that has left for namespaces of its own, in which it can still unshare and mount, and
    /// keeps what namespaces the thread is in at the end.
    pub(crate) fn create(
        place: String,
        prepare: impl FnOnce() -> Result<(), LabError> + Send,
    ) -> Result<Self, LabError> {
        let what = format!("keep the namespaces of {place}");
        let (net, mnt, uts) = on_thread(|| {
            prepare()?;
            let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from);
            let net = Netns::current().map_err(|source| LabError::Netns {
                what: what.clone(),
                source,
            })?;
            let mnt = open("mnt").map_err(LabError::os(what.clone()))?;
            let uts = open("uts").map_err(LabError::os(what.clone()))?;
            Ok::<_, LabError>((net, mnt, uts))
        })??;
        Ok(Self {
            place,
            net,
            mnt,
            uts,
            captures: Mutex::default(),
        })
    }

    /// Whose they are, for messages: `host h1`, `sandbox web-1 on host h1`.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The network namespace.
    #[must_use]
    pub fn net(&self) -> &Netns {
        &self.net
    }

    pub(crate) fn mnt(&self) -> &OwnedFd {
        &self.mnt
    }

    pub(crate) fn uts(&self) -> &OwnedFd {
        &self.uts
    }

    /// Inode numbers of the network, mount and UTS namespace.
    pub(crate) fn inodes(&self) -> io::Result<[u64; 3]> {
        let inode = |fd: &OwnedFd| Ok::<_, io::Error>(File::from(fd.try_clone()?).metadata()?.ino());
        Ok([self.net.id().ino, inode(&self.mnt)?, inode(&self.uts)?])
    }

    pub(crate) fn remember_capture(&self, stop: &Arc<Stop>) {
        let mut captures = self.captures.lock().unwrap_or_else(PoisonError::into_inner);
        captures.retain(|capture| capture.strong_count() > 0);
        captures.push(Arc::downgrade(stop));
    }

    /// Ends what would keep the network namespace alive though no process is left in it.
    pub(crate) fn let_go(&self) {
        self.stop_captures();
        // Whose last packets found no way any more the kernel would go on sending for minutes.
        let ended = self.net.run(|| Diag::open()?.abort_orphans());
        if let Ok(Err(error)) = ended {
            tracing::debug!(place = self.place, %error, "connections without a process may outlive it");
        }
    }

    fn stop_captures(&self) {
        let captures = std::mem::take(&mut *self.captures.lock().unwrap_or_else(PoisonError::into_inner));
        captures
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|capture| capture.stop());
    }

    pub(crate) fn route_socket(&self) -> Result<RouteSocket, LabError> {
        RouteSocket::open(&self.net).map_err(|source| LabError::Open {
            what: self.place.clone(),
            source,
        })
    }

    /// Runs a closure on a thread inside, and hands back what it returns. Sockets it opens stay inside for good;
    /// threads it starts begin inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        on_thread(|| {
            self.enter()
                .map_err(LabError::os(format!("enter {}", self.place)))?;
            Ok(work())
        })?
    }

    /// Moves the calling thread in, for good.
    fn enter(&self) -> nix::Result<()> {
        let directory = std::env::current_dir();
        // A thread that shares its root and working directory with others may not change mount namespaces.
        unshare(CloneFlags::CLONE_FS)?;
        setns(self.mnt.as_fd(), CloneFlags::CLONE_NEWNS)?;
        setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)?;
        setns(self.uts.as_fd(), CloneFlags::CLONE_NEWUTS)?;
        // Relative paths of programs go on working, where the directory is to be seen from inside.
        if let Ok(directory) = directory {
            let _ = nix::unistd::chdir(&directory);
        }
        Ok(())
    }
}

/// Runs on a thread of its own, which ends there: no thread that the caller knows ever changes its namespaces.
pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("in-namespace".into())
            .spawn_scoped(scope, work)
            .map_err(LabError::os("start a thread"))?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// What can be done inside a host or a sandbox.
pub trait Inside {
    /// The namespaces, while they exist.
    ///
    /// # Errors
    ///
    /// [`LabError::Down`] after a crash, [`LabError::Gone`] after a removal.
    fn namespaces(&self) -> Result<Arc<Namespaces>, LabError>;

    /// Runs a closure on a thread inside, and hands back what it returns. Sockets it opens stay inside for good;
    /// threads and runtimes it starts begin inside.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the namespaces cannot be entered; a panic of the closure goes on in the caller.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.namespaces()?.run(work)
    }

    /// Starts a process inside, in a process group of its own and with nothing to read on its standard input.
    ///
    /// # Errors
    ///
    /// [`LabError::Spawn`] if it cannot be executed.
    fn spawn(&self, command: &mut Command, output: Output) -> Result<Process, LabError> {
        Process::spawn(&*self.namespaces()?, command, output)
    }

    /// Runs a command inside to its end, and captures what it writes. After `timeout` it is killed.
    ///
    /// # Errors
    ///
    /// [`LabError::Spawn`] or [`LabError::StillRunning`]; an exit status other than 0 is not an error
    /// here, see [`Finished::success`].
    fn exec(&self, command: &mut Command, timeout: Duration) -> Result<Finished, LabError> {
        Process::spawn(&*self.namespaces()?, command, Output::Keep)?.finish(timeout)
    }

    /// Captures the frames of an interface, in both directions, until the capture is stopped or dropped.
    ///
    /// # Errors
    ///
    /// [`LabError::NoInterface`], or what the kernel or the file system refuses.
    fn capture(&self, interface: &str, options: CaptureOptions) -> Result<Capture, LabError> {
        Capture::start(&*self.namespaces()?, interface, options)
    }

    /// Sends echo requests to an address, five a second, until one is answered; no program is needed. Returns its
    /// round-trip time.
    ///
    /// # Errors
    ///
    /// [`LabError::TimedOut`] without a reply, [`LabError::Os`] where the request could not be sent.
    fn ping(&self, address: std::net::IpAddr, timeout: Duration) -> Result<Duration, LabError> {
        let place = self.namespaces()?.place().to_owned();
        self.run(|| crate::ping::ping(&place, address, timeout))?
    }

    /// Replaces the text of `/etc/resolv.conf` as seen inside.
    ///
    /// # Errors
    ///
    /// [`LabError::NothingToCover`] on a machine without that file.
    fn set_resolv_conf(&self, text: &str) -> Result<(), LabError> {
        write_own(&*self.namespaces()?, "/etc/resolv.conf", text)
    }

    /// Replaces the text of `/etc/hosts` as seen inside.
    ///
    /// # Errors
    ///
    /// [`LabError::NothingToCover`] on a machine without that file.
    fn set_hosts_file(&self, text: &str) -> Result<(), LabError> {
        write_own(&*self.namespaces()?, "/etc/hosts", text)
    }
}

/// Writes through the bind mount into the private file below it; never into the machine's.
fn write_own(namespaces: &Namespaces, path: &'static str, text: &str) -> Result<(), LabError> {
    namespaces.run(|| {
        let target = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
        let target_dev = std::fs::metadata(&target).ok().map(|file| file.dev());
        let run_dev = std::fs::metadata("/run").ok().map(|run| run.dev());
        // Every private file lies in the host's tmpfs on /run: another device means that nothing is bound there.
        if target_dev.is_none() || target_dev != run_dev {
            return Err(LabError::NothingToCover {
                path,
                whom: namespaces.place().to_owned(),
            });
        }
        std::fs::write(&target, text).map_err(LabError::os(format!("write {path} of {}", namespaces.place())))
    })?
}
