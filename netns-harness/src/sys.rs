//! The few kernel calls that need `unsafe`, each behind a safe function, so that the rest of the crate has none.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid};

/// Forks. The caller has checked that the process has one thread, or that it runs in a child between fork and exec.
#[allow(unsafe_code)]
pub(crate) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: callers run either in a process with one thread (`isolate` counts them), or between fork and exec
    // (`isolate_command`), where only one thread exists either; so no other thread can hold a lock in the child.
    unsafe { nix::unistd::fork() }
}

/// Ends the process at once: no destructors, no exit handlers, no flushing of buffers that belong to someone else.
#[allow(unsafe_code)]
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every file descriptor from 3 up, except `keep`.
#[allow(unsafe_code)]
pub(crate) fn close_all_but(keep: Option<RawFd>) {
    let close = |first: libc::c_uint, last: libc::c_uint| {
        if first <= last {
            // SAFETY: callers never return to code that owns one of these descriptors: they only supervise, then exit.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    };
    match keep {
        Some(fd) => {
            let fd = fd as libc::c_uint;
            close(3, fd.saturating_sub(1));
            close(fd.max(2) + 1, libc::c_uint::MAX);
        }
        None => close(3, libc::c_uint::MAX),
    }
}

/// Waits for one signal of the set, which must be blocked. Returns its number and whether a process sent it (as
/// opposed to the kernel, as a terminal does for Ctrl-C).
#[allow(unsafe_code)]
pub(crate) fn wait_signal(set: &SigSet) -> io::Result<(i32, bool)> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: both pointers are valid for the call, and the kernel fills `info` before it returns a signal number.
    let signal = unsafe { libc::sigwaitinfo(set.as_ref(), info.as_mut_ptr()) };
    if signal < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, which is a valid siginfo_t, and then written by the kernel.
    let info = unsafe { info.assume_init() };
    Ok((signal, info.si_code <= 0))
}

/// A descriptor that becomes readable when the process ends.
#[allow(unsafe_code)]
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor (close-on-exec), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Brings the loopback interface of the calling thread's network namespace up.
#[allow(unsafe_code)]
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: the call takes three numbers; the descriptor it returns is owned below.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives until the call returns.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Runs `prepare` in the child between fork and exec.
#[allow(unsafe_code)]
pub(crate) fn before_exec(
    command: &mut Command,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the closures given here make system calls and allocate. Allocation in the child of a process with
    // threads is sound on glibc and musl (both reset their allocator's locks in fork); no other lock is taken.
    unsafe { command.pre_exec(prepare) };
}

/// Receives one frame; the length is that of the frame, even where the buffer is shorter.
#[allow(unsafe_code)]
pub(crate) fn packet_recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe `buffer`, which is exclusively borrowed for the call.
    let length = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC | libc::MSG_DONTWAIT,
        )
    };
    if length < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(length as usize)
    }
}

/// How many frames the kernel dropped because nobody read them in time, since the last call.
#[allow(unsafe_code)]
pub(crate) fn packet_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut stats = [0_u32; 2];
    let mut length = std::mem::size_of_val(&stats) as libc::socklen_t;
    // SAFETY: PACKET_STATISTICS writes a struct of two u32, which is what `stats` is.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(stats[1])
    }
}

/// Lets ended children be waited for, also if whoever started us had chosen to ignore them.
#[allow(unsafe_code)]
pub(crate) fn default_sigchld() {
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGCHLD,
            nix::sys::signal::SigHandler::SigDfl,
        )
    };
}

/// Sets the host name of the calling thread's UTS namespace.
#[allow(unsafe_code)]
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `name`, which outlives the call.
    let done = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
