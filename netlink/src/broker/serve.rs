//! The broker's end: one thread for each request, which enters a namespace if it has to and ends with it.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, statat},
    io::Errno,
    net::{RecvFlags, sockopt::socket_peercred},
};

use super::{
    Policy,
    message::{Failure, MAX_SOCKETS, Received, Reply, Request, SocketKind, receive, send},
    path_of, settings,
};
use crate::{
    bpf,
    netns::{self, Netns, NetnsError},
    tap,
};

/// Requests that are carried out at one time; the next one waits in the socket.
const AT_ONCE: usize = 32;
/// Commands that run at one time. The agent starts fewer, and those that do not end are killed by it.
const COMMANDS: usize = 128;
/// What is asked for at one time of settings.
const MAX_SETTINGS: usize = 32;
/// How long commands have to be gone when the agent is.
const AT_THE_END: Duration = Duration::from_secs(2);

/// Does what the agent at the other end asks for, until it is gone.
///
/// # Errors
///
/// If the socket cannot be read, or no thread can be started.
pub fn serve(socket: &OwnedFd, policy: Policy) -> io::Result<()> {
    let agent = socket_peercred(socket)?.pid.as_raw_pid();
    let policy = Arc::new(policy);
    let (working, commands) = (Places::of(AT_ONCE), Places::of(COMMANDS));
    while let Some(received) = receive::<Request>(socket, RecvFlags::empty())? {
        let Received {
            message,
            descriptors,
            sender,
        } = received;
        let mut descriptors = descriptors.into_iter();
        // What has no place for its answer is none of the agent's.
        let Some(to) = descriptors.next() else { continue };
        let along: Vec<OwnedFd> = descriptors.collect();
        let refuse = |reason: &str| answer(&to, &Err(refused(reason)));
        if sender != Some(agent) {
            refuse("it does not come from the agent that this broker was started by");
            continue;
        }
        let Ok(request) = message else {
            refuse("it is no request that is known");
            continue;
        };
        let place = match &request {
            // These stay, and must not keep others waiting.
            Request::Run(_) | Request::Encrypt => commands.try_take(),
            _ => Some(working.take()),
        };
        let Some(place) = place else {
            refuse("too many commands are running already");
            continue;
        };
        let policy = Arc::clone(&policy);
        thread::Builder::new().name("request".to_owned()).spawn(move || {
            let _place = place;
            carry_out(&policy, request, along, &to);
        })?;
    }
    commands.await_none(AT_THE_END);
    Ok(())
}

/// What was asked for, and the descriptors it is about.
type Outcome = Result<(Reply, Vec<OwnedFd>), NetnsError>;

fn carry_out(policy: &Policy, request: Request, along: Vec<OwnedFd>, to: &OwnedFd) {
    match request {
        Request::Run(line) => match start_command(policy, &line, along) {
            Ok(child) => follow(child, to, true),
            Err(error) => answer(to, &Err(error)),
        },
        Request::Encrypt => match start_encrypter(policy) {
            Ok(child) => follow(child, to, false),
            Err(error) => answer(to, &Err(error)),
        },
        request => answer(to, &decide(policy, request, along)),
    }
}

fn answer(to: &OwnedFd, outcome: &Outcome) {
    // Whoever does not wait any more needs no answer.
    let _ = match outcome {
        Ok((reply, descriptors)) => {
            let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
            send(to, reply, &descriptors)
        }
        Err(error) => send(to, &Reply::Failed(Failure::from(error)), &[]),
    };
}

/// What a request asks for that depends on the words in it, and is done.
#[cfg(any(test, fuzzing))]
pub(crate) enum Checked {
    Place(PathBuf),
    Settings(Vec<String>),
    /// How many of each namespace.
    Sockets(usize),
}

/// The checks of a request, without doing it.
#[cfg(any(test, fuzzing))]
pub(crate) fn check(request: &[u8], networks: &Path) -> Option<Checked> {
    match postcard::from_bytes(request).ok()? {
        Request::CreateAt(path) | Request::RemoveAt(path) => {
            Place::of(networks, &path).ok()?;
            Some(Checked::Place(path))
        }
        Request::ReadSettings(names) => {
            check_settings(names.iter()).ok()?;
            Some(Checked::Settings(names))
        }
        Request::WriteSettings(pairs) => {
            let names: Vec<String> = pairs.into_iter().map(|(name, _)| name).collect();
            check_settings(names.iter()).ok()?;
            Some(Checked::Settings(names))
        }
        Request::Sockets(kinds) => {
            check_sockets(&kinds, 1).ok()?;
            Some(Checked::Sockets(kinds.len()))
        }
        _ => None,
    }
}

fn decide(policy: &Policy, request: Request, along: Vec<OwnedFd>) -> Outcome {
    let done = |()| (Reply::Done, Vec::new());
    let handed = |descriptor: OwnedFd| (Reply::Done, vec![descriptor]);
    match request {
        Request::Open(path) => open(&path).map(handed),
        Request::Create => Netns::create().map(OwnedFd::from).map(handed),
        Request::CreateAt(path) => {
            let place = Place::of(&policy.networks, &path)?;
            Netns::create_at(place.path(policy, true)?)
                .map(OwnedFd::from)
                .map(handed)
        }
        Request::RemoveAt(path) => {
            let place = Place::of(&policy.networks, &path)?;
            match place.path(policy, false) {
                Ok(path) => Netns::remove_at(path).map(done),
                Err(NetnsError::NotFound { .. }) => Ok(done(())),
                Err(error) => Err(error),
            }
        }
        Request::Socket(kind) => {
            enter(along)?;
            make_socket(kind).map(handed)
        }
        Request::Sockets(kinds) => {
            check_sockets(&kinds, along.len())?;
            let mut failures = Vec::with_capacity(along.len());
            let mut made = Vec::with_capacity(along.len() * kinds.len());
            for netns in along {
                // One after the other: what is made belongs to the namespace that the thread is in just then.
                let entered = along_namespace(Some(netns)).and_then(|netns| netns.enter());
                let sockets = entered.and_then(|()| kinds.iter().map(|kind| make_socket(*kind)).collect());
                let sockets: Result<Vec<OwnedFd>, NetnsError> = sockets;
                failures.push(sockets.as_ref().err().map(Failure::from));
                made.extend(sockets.into_iter().flatten());
            }
            Ok((Reply::Sockets(failures), made))
        }
        Request::TapFile => {
            enter(along)?;
            let file = tap::open_file().map_err(|error| failed("open", tap::DEVICE, error))?;
            Ok(handed(file.into()))
        }
        Request::ReadSettings(names) => {
            check_settings(names.iter())?;
            enter(along)?;
            let texts = names.iter().map(netns::read_setting).collect::<Result<_, _>>()?;
            Ok((Reply::Texts(texts), Vec::new()))
        }
        Request::WriteSettings(pairs) => {
            check_settings(pairs.iter().map(|(name, _)| name))?;
            if let Some((name, value)) = pairs.iter().find(|(_, value)| !settings::is_value(value)) {
                return Err(refused(&format!(
                    "{name} is not set to {value:?} by anything here"
                )));
            }
            enter(along)?;
            for (name, value) in &pairs {
                netns::write_setting(name, value)?;
            }
            Ok(done(()))
        }
        Request::MountBpf if !policy.may_mount_bpf => Err(refused("this agent was started without eBPF")),
        Request::MountBpf => {
            let dir = folder(policy, &policy.bpf, true)?;
            bpf::Pins::mount_here(&path_of(&dir))
                .map_err(|error| failed("mount a BPF file system at", &policy.bpf, error))?;
            Ok(done(()))
        }
        Request::UnmountBpf => {
            let dir = folder(policy, &policy.bpf, false)?;
            bpf::Pins::unmount_here(&path_of(&dir))
                .map_err(|error| failed("unmount the BPF file system at", &policy.bpf, error))?;
            Ok(done(()))
        }
        Request::Resolver(name, text) => {
            let written = (policy.resolver)(&name, text.as_deref());
            written.map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput => refused(&error.to_string()),
                _ => failed("write the resolver configuration of", &name, error),
            })?;
            Ok(done(()))
        }
        Request::Run(_) | Request::Encrypt => Err(refused("it is answered elsewhere")),
    }
}

fn make_socket(kind: SocketKind) -> Result<OwnedFd, NetnsError> {
    netns::make_socket(kind).map_err(|error| failed("open a socket in", "a namespace", error))
}

/// Whether a question for sockets of so many namespaces is one that can be answered.
fn check_sockets(kinds: &[SocketKind], namespaces: usize) -> Result<(), NetnsError> {
    match kinds.len().saturating_mul(namespaces) {
        0 => Err(refused(
            "kinds of sockets are to be named, and namespaces to come along",
        )),
        1..=MAX_SOCKETS => Ok(()),
        _ => Err(refused("so many sockets are not needed at one time")),
    }
}

fn refused(reason: &str) -> NetnsError {
    NetnsError::Refused {
        reason: reason.to_owned(),
    }
}

fn failed(action: &'static str, object: impl AsRef<Path>, error: impl Into<io::Error>) -> NetnsError {
    NetnsError::new(action, object.as_ref(), error)
}

/// Nothing is opened by this but a namespace: neither a device, which may do something when it is opened, nor a file that the agent
/// may not read.
fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    if !path.is_absolute() {
        return Err(refused("the path of a namespace begins with a slash"));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let there = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
    if !netns::is_on_nsfs(&there) {
        return Err(NetnsError::NotANetns {
            path: path.to_owned(),
        });
    }
    // The path may lead elsewhere by now, the descriptor does not.
    match Netns::open_here(&path_of(&there)) {
        Err(NetnsError::NotANetns { .. }) => Err(NetnsError::NotANetns {
            path: path.to_owned(),
        }),
        opened => opened.map(OwnedFd::from),
    }
}

/// For good: the thread ends after the request.
fn enter(along: Vec<OwnedFd>) -> Result<(), NetnsError> {
    along_namespace(along.into_iter().next())?.enter()
}

fn along_namespace(descriptor: Option<OwnedFd>) -> Result<Netns, NetnsError> {
    let descriptor = descriptor.ok_or_else(|| refused("a namespace is to come along"))?;
    Netns::try_from(descriptor).map_err(|_| refused("what comes along is not a network namespace"))
}

fn check_settings<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), NetnsError> {
    for (count, name) in names.enumerate() {
        if count >= MAX_SETTINGS {
            return Err(refused("so many settings are not needed at one time"));
        }
        if !settings::is_listed(name) {
            return Err(refused(&format!(
                "the setting {name:?} is not one that networks need"
            )));
        }
    }
    Ok(())
}

/// Where a namespace may be made: in the folder of networks.
struct Place<'a> {
    folder: &'a Path,
    name: &'a str,
}

impl<'a> Place<'a> {
    fn of(networks: &Path, path: &'a Path) -> Result<Self, NetnsError> {
        let elsewhere = || {
            refused(&format!(
                "namespaces are made below {} only, not at {}",
                networks.display(),
                path.display()
            ))
        };
        let folder = path.parent().ok_or_else(elsewhere)?;
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(elsewhere)?;
        let is_plain = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        let is_ours = folder == networks;
        if is_ours && is_plain && !name.starts_with('.') && name.len() <= 64 {
            Ok(Self { folder, name })
        } else {
            Err(elsewhere())
        }
    }

    /// A path by way of the folder's descriptor, which the result keeps open, so that no link leads it elsewhere.
    fn path(&self, policy: &Policy, make: bool) -> Result<Kept, NetnsError> {
        let mut dir = folder(policy, self.folder, make)?;
        if make {
            netns::share_mount(&path_of(&dir)).map_err(|error| failed("share", self.folder, error))?;
            // Which may have laid a mount over it.
            dir = folder(policy, self.folder, false)?;
        }
        let path = path_of(&dir).join(self.name);
        Ok(Kept { path, _dir: dir })
    }
}

struct Kept {
    path: PathBuf,
    _dir: OwnedFd,
}

impl AsRef<Path> for Kept {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// A folder right below the run directory, which itself is where the operator has put it.
fn folder(policy: &Policy, path: &Path, make: bool) -> Result<OwnedFd, NetnsError> {
    let at = |error: Errno| failed("open", path, error);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if make {
        fs::create_dir_all(&policy.run_dir).map_err(|error| failed("make", &policy.run_dir, error))?;
    }
    let run_dir = openat(CWD, &policy.run_dir, flags, Mode::empty()).map_err(at)?;
    let Ok(below) = path.strip_prefix(&policy.run_dir) else {
        return Err(refused("it is not below the run directory"));
    };
    if below.components().count() != 1 {
        return Err(refused("it is not right below the run directory"));
    }
    if make && statat(&run_dir, below, AtFlags::SYMLINK_NOFOLLOW).is_err() {
        match mkdirat(&run_dir, below, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("make", path, error)),
        }
    }
    // Its name is one word, so that there is no way to it on which to be led elsewhere.
    openat(&run_dir, below, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(at)
}

fn start_command(policy: &Policy, line: &str, along: Vec<OwnedFd>) -> Result<Child, NetnsError> {
    if !policy.commands {
        return Err(refused("this agent was started without --health-commands"));
    }
    let mut along = along.into_iter();
    let netns = along_namespace(along.next())?;
    let errors = along
        .next()
        .ok_or_else(|| refused("a command needs a place for its errors"))?;
    netns.enter()?;
    let failed = |error| failed("run", "/bin/sh", error);
    (policy.give_up)().map_err(failed)?;
    Command::new("/bin/sh")
        .args(["-c", line])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(failed)
}

fn start_encrypter(policy: &Policy) -> Result<Child, NetnsError> {
    let [program, arguments @ ..] = policy.encrypter.as_deref().unwrap_or_default() else {
        return Err(refused("what encrypts is started by somebody else here"));
    };
    let started = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    started.map_err(|error| failed("start", program, error))
}

/// Says that a process runs and how it ended. `kills` is what becomes of it when nobody wants to know any more.
fn follow(mut child: Child, to: &OwnedFd, kills: bool) {
    let started = Ok((Reply::Started(child.id()), Vec::new()));
    answer(to, &started);
    let ended = rustix::process::Pid::from_child(&child);
    let ended = rustix::process::pidfd_open(ended, rustix::process::PidfdFlags::empty());
    if let (true, Ok(ended)) = (kills, ended) {
        await_either(ended.as_fd(), to.as_fd());
        if !matches!(child.try_wait(), Ok(Some(_))) {
            // Its number is its own until it is waited for.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        }
    }
    if let Ok(status) = child.wait() {
        answer(to, &Ok((how(status), Vec::new())));
    }
}

fn how(status: ExitStatus) -> Reply {
    Reply::Ended {
        code: status.code(),
        signal: status.signal(),
    }
}

/// Until the process has ended, or nobody is at the other end.
fn await_either(process: BorrowedFd<'_>, other: BorrowedFd<'_>) {
    loop {
        let mut ready = [
            PollFd::new(process, PollFlags::POLLIN),
            PollFd::new(other, PollFlags::empty()),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            _ => return,
        }
    }
}

/// How many there may be of something.
#[derive(Clone)]
struct Places(Arc<(Mutex<usize>, Condvar, usize)>);

struct Taken(Places);

impl Places {
    fn of(all: usize) -> Self {
        Self(Arc::new((Mutex::new(0), Condvar::new(), all)))
    }

    fn taken(&self) -> MutexGuard<'_, usize> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Taken {
        let waited = self.0.1.wait_while(self.taken(), |taken| *taken >= self.0.2);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        Taken(self.clone())
    }

    fn try_take(&self) -> Option<Taken> {
        let mut taken = self.taken();
        (*taken < self.0.2).then(|| {
            *taken += 1;
            Taken(self.clone())
        })
    }

    fn await_none(&self, patience: Duration) {
        let waited = self
            .0
            .1
            .wait_timeout_while(self.taken(), patience, |taken| *taken > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.0.taken() -= 1;
        self.0.0.1.notify_all();
    }
}
