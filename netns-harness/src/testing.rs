//! Tests inside namespaces of their own, without a test harness of our own.

use std::any::type_name;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pipe2};

use crate::isolate::{Isolate, spawn_isolated};
use crate::{sys, wait};

/// Set in the isolated process: the descriptor on which it reports that the test's body has run.
const INSIDE: &str = "NETNS_HARNESS_INSIDE";
/// Set by the user where skipping is wanted, as on machines that cannot isolate.
const SKIP: &str = "NETNS_HARNESS_SKIP";
/// Set by the user for slow machines.
const TIMEOUT: &str = "NETNS_HARNESS_TIMEOUT_SECS";
const DEFAULT_TIMEOUT_SECS: u64 = 120;

/// Runs the body of a test in namespaces of its own, as root or as an ordinary user.
///
/// The test binary starts itself again, isolated, with this one test as its argument; there the body runs. Call it as the
/// whole of a test function:
///
/// ```no_run
/// #[test]
/// fn two_hosts_see_each_other() {
///     netns_harness::isolated(|| {
///         let lab = netns_harness::Lab::new("pair").unwrap();
///         // …
///         lab.close().unwrap();
///     });
/// }
/// ```
///
/// Where isolation is impossible the test fails and says why; with `NETNS_HARNESS_SKIP=1` it says why and passes. It is
/// killed after 120 seconds, or `NETNS_HARNESS_TIMEOUT_SECS`.
///
/// # Panics
///
/// If the body does, or cannot be run.
pub fn isolated<F: FnOnce()>(body: F) {
    isolated_with(&Isolate::new(), body);
}

/// The same, with a say in how to isolate.
///
/// # Panics
///
/// As for [`isolated`].
pub fn isolated_with<F: FnOnce()>(options: &Isolate, body: F) {
    if let Ok(descriptor) = std::env::var(INSIDE) {
        body();
        // An exit code alone would not tell a test that passed from a filter that matched no test.
        let report = File::options()
            .write(true)
            .open(format!("/proc/self/fd/{descriptor}"));
        if let Err(error) = report.and_then(|mut report| io::Write::write_all(&mut report, b"!")) {
            panic!("could not report that the test has run: {error}");
        }
        return;
    }
    let name = test_name::<F>();
    match run_again(&name, options) {
        Ok((true, output)) => print!("{output}"),
        Ok((false, output)) => panic!("{name} failed in its namespaces; this is what it wrote:\n{output}"),
        Err(error) if std::env::var_os(SKIP).is_some_and(|value| value == "1") => {
            println!("{name} is skipped: {error}");
        }
        Err(error) => panic!("{name} could not run: {error} (set {SKIP}=1 to skip such tests)"),
    }
}

/// Whether it passed, and what it wrote.
fn run_again(name: &str, options: &Isolate) -> Result<(bool, String), Box<dyn std::error::Error>> {
    let (reported, report) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let (mut output, writer) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args([
            name,
            "--exact",
            "--nocapture",
            "--include-ignored",
            "--test-threads=1",
        ])
        .env(INSIDE, report.as_raw_fd().to_string())
        .stdin(std::process::Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    hand_down(&mut command, report);
    let child = spawn_isolated(&mut command, options)?;
    // With it go our copies of the writing ends.
    drop(command);
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = output.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let seconds = std::env::var(TIMEOUT)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_TIMEOUT_SECS);
    let passed = wait_or_kill(child, Duration::from_secs(seconds))?;
    let mut text = reader.join().unwrap_or_default();
    match passed {
        None => text.push_str(&format!("(killed after {seconds} s)\n")),
        Some(true) if !matches!(nix::unistd::read(&reported, &mut [0]), Ok(1)) => {
            text.push_str(
                "(no such test was found; isolated() must be called directly by a #[test] function)\n",
            );
            return Ok((false, text));
        }
        Some(_) => {}
    }
    Ok((passed == Some(true), text))
}

/// Lets the command inherit a descriptor, and end with the calling thread.
fn hand_down(command: &mut Command, fd: OwnedFd) {
    sys::before_exec(command, move || {
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        // The thread that runs the test waits for us; should it be killed, nobody else would end us.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    });
}

/// None if it had to be killed.
fn wait_or_kill(mut child: std::process::Child, timeout: Duration) -> io::Result<Option<bool>> {
    let deadline = Instant::now() + timeout;
    let pidfd = sys::pidfd_open(Pid::from_raw(child.id().cast_signed()))?;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        let _ = poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            wait::poll_timeout(deadline),
        );
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// The name by which the test binary knows the calling test.
fn test_name<F>() -> String {
    // Tests run on threads that carry their names, except where there is one thread only.
    if let Some(name) = thread::current().name().filter(|name| *name != "main") {
        return name.to_owned();
    }
    let mut path = type_name::<F>();
    while let Some(outer) = path.strip_suffix("::{{closure}}") {
        path = outer;
    }
    path.split_once("::")
        .map_or(path, |(_crate, name)| name)
        .to_owned()
}
