//! Real processes inside hosts and sandboxes.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::error::LabError;
use crate::namespaces::Namespaces;
use crate::wait::{self, TimedOut};

/// Of what a process writes, this much is kept in memory at most: the newest.
const KEPT_BYTES: usize = 4 << 20;

/// How long a killed process may take to end. It takes longer only in the midst of a broken file system.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Where standard output and standard error of a process go.
#[derive(Clone, Debug)]
pub enum Output {
    /// Nowhere.
    Discard,
    /// Where ours go.
    Inherit,
    /// Both to the end of this file.
    File(PathBuf),
    /// Into memory (the newest 4 MiB of each), to be looked at by [`Process::stdout`] and
    /// [`Process::wait_for_line`].
    Keep,
}

/// A process inside a host or sandbox. Dropping it kills it, with its process group.
#[derive(Debug)]
pub struct Process {
    program: String,
    place: String,
    child: Mutex<Child>,
    pidfd: OwnedFd,
    stdout: Arc<Kept>,
    stderr: Arc<Kept>,
}

/// How a command ended, and what it wrote.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    program: String,
    place: String,
}

impl Finished {
    /// Itself if the exit status is 0.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`] with what the command wrote otherwise.
    pub fn success(self) -> Result<Self, LabError> {
        if self.status.success() {
            return Ok(self);
        }
        let said = if self.stderr.trim().is_empty() {
            self.stdout
        } else {
            self.stderr
        };
        let stderr = said.trim().to_owned();
        Err(LabError::Failed {
            program: self.program,
            place: self.place,
            status: self.status,
            stderr,
        })
    }
}

impl Process {
    pub(crate) fn spawn(
        namespaces: &Namespaces,
        command: &mut Command,
        output: Output,
    ) -> Result<Self, LabError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let place = namespaces.place().to_owned();
        // A group of its own: Ctrl-C in the terminal is for the lab, which then ends its processes itself.
        command.stdin(Stdio::null()).process_group(0);
        match &output {
            Output::Discard => command.stdout(Stdio::null()).stderr(Stdio::null()),
            Output::Inherit => command.stdout(Stdio::inherit()).stderr(Stdio::inherit()),
            Output::Keep => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
            Output::File(path) => {
                let open = || File::options().create(true).append(true).open(path);
                let refused = || LabError::os(format!("open {} for the output of {program}", path.display()));
                command
                    .stdout(open().map_err(refused())?)
                    .stderr(open().map_err(refused())?)
            }
        };
        let spawned = namespaces.run(|| command.spawn())?;
        let mut child = spawned.map_err(|source| LabError::Spawn {
            program: program.clone(),
            place: place.clone(),
            source,
        })?;
        let pidfd = match crate::sys::pidfd_open(pid_of(&child)) {
            Ok(pidfd) => pidfd,
            Err(source) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(LabError::Spawn {
                    program,
                    place,
                    source,
                });
            }
        };
        let stdout = Kept::collect(child.stdout.take())?;
        let stderr = Kept::collect(child.stderr.take())?;
        Ok(Self {
            program,
            place,
            child: Mutex::new(child),
            pidfd,
            stdout,
            stderr,
        })
    }

    /// Its process id, as the lab sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// [`LabError::StillRunning`] after `timeout`; the process goes on.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus, LabError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(LabError::StillRunning {
                    program: self.program.clone(),
                    pid: self.pid(),
                    place: self.place.clone(),
                    timeout,
                });
            }
            let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ended, wait::poll_timeout(deadline));
        }
    }

    /// Sends a signal to the process. One that has ended is no error.
    ///
    /// # Errors
    ///
    /// [`LabError::Os`] if the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let mut child = self.child();
        // While it is not reaped, its number cannot belong to another process.
        if matches!(child.try_wait(), Ok(None)) {
            let what = format!(
                "send {signal} to {} (process {}) in {}",
                self.program,
                child.id(),
                self.place
            );
            kill(pid_of(&child), signal).map_err(LabError::os(what))?;
        }
        Ok(())
    }

    /// Kills the process at once (SIGKILL) and waits for its end. What it has started lives on.
    ///
    /// # Errors
    ///
    /// [`LabError::StillRunning`] if the kernel cannot end it.
    pub fn kill(&self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::SIGKILL)?;
        self.wait(KILL_TIMEOUT)
    }

    /// What it has written to its standard output so far, with [`Output::Keep`].
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to its standard error so far, with [`Output::Keep`].
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it has written a whole line to its standard output for which `wanted` says yes, and returns it.
    ///
    /// # Errors
    ///
    /// [`LabError::TimedOut`] with what it wrote instead, also when it ends before.
    pub fn wait_for_line(
        &self,
        timeout: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String, LabError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.stdout.lock();
        loop {
            let text = String::from_utf8_lossy(&state.bytes).into_owned();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(line) = whole.lines().find(|line| wanted(line)) {
                return Ok(line.to_owned());
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() || !state.open {
                drop(state);
                let last = format!("standard output {text:?} and standard error {:?}", self.stderr());
                let what = format!("the awaited line from {} in {}", self.program, self.place);
                return Err(TimedOut { what, timeout, last }.into());
            }
            state = self
                .stdout
                .changed
                .wait_timeout(state, rest)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the end of the process and of its output.
    pub(crate) fn finish(self, timeout: Duration) -> Result<Finished, LabError> {
        let deadline = Instant::now() + timeout;
        // On the error path the drop kills it.
        let status = self.wait(timeout)?;
        // Something it left running may hold the pipes open for ever; a moment is enough for what was in them.
        let drained = deadline.min(Instant::now() + Duration::from_secs(1));
        for kept in [&self.stdout, &self.stderr] {
            kept.wait_closed(drained);
        }
        Ok(Finished {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            program: self.program.clone(),
            place: self.place.clone(),
        })
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(None)) {
            let _ = killpg(pid_of(&child), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// What a process wrote to one stream.
#[derive(Debug, Default)]
struct Kept {
    state: Mutex<KeptState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct KeptState {
    bytes: Vec<u8>,
    open: bool,
}

impl Kept {
    fn collect(stream: Option<impl Read + Send + 'static>) -> Result<Arc<Self>, LabError> {
        let kept = Arc::new(Self::default());
        let Some(mut stream) = stream else { return Ok(kept) };
        kept.lock().open = true;
        let shared = Arc::clone(&kept);
        // The thread ends when the last holder of the pipe's other end does.
        thread::Builder::new()
            .name("process-output".into())
            .spawn(move || {
                let mut buffer = vec![0; 16 << 10];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let mut state = shared.lock();
                    state.bytes.extend_from_slice(&buffer[..length]);
                    let excess = state.bytes.len().saturating_sub(KEPT_BYTES);
                    state.bytes.drain(..excess);
                    shared.changed.notify_all();
                }
                shared.lock().open = false;
                shared.changed.notify_all();
            })
            .map_err(LabError::os("start a thread that reads a process's output"))?;
        Ok(kept)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    fn wait_closed(&self, deadline: Instant) {
        let mut state = self.lock();
        while state.open {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return;
            }
            state = self
                .changed
                .wait_timeout(state, rest)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, KeptState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
