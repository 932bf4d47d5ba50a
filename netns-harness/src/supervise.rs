//! Standing between a child and whoever started us: pass signals on, reap, report how the child ended.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The signals a supervisor waits for. Job control is left alone: a stop must stop us too.
pub(crate) fn supervised_signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        set.add(signal);
    }
    set
}

/// Waits until `child` has ended and returns its exit code, 128 + n for a death by signal n.
///
/// `signals` must be blocked. Signals that a process sent are passed on to the child; those of the terminal are not,
/// because the terminal gives them to the child by itself. With `reap_all`, orphans that were handed to us are reaped too.
pub(crate) fn supervise(child: Pid, signals: &SigSet, reap_all: bool) -> i32 {
    loop {
        let target = if reap_all { None } else { Some(child) };
        loop {
            match waitpid(target, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == child => return code,
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
                Ok(WaitStatus::Stopped(pid, _)) if pid == child && !reap_all => {
                    // The shell that started us must see the stop; when it continues us, the child goes on too.
                    let _ = nix::sys::signal::raise(Signal::SIGSTOP);
                    let _ = kill(child, Signal::SIGCONT);
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                // No child left although nobody told us: whoever took its status has it.
                Err(_) => return 0,
            }
        }
        if let Ok((signal, sent_by_a_process)) = crate::sys::wait_signal(signals)
            && signal != libc::SIGCHLD
            && sent_by_a_process
            && let Ok(signal) = Signal::try_from(signal)
        {
            let _ = kill(child, signal);
        }
    }
}
