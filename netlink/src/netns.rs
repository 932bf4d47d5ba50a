//! Network namespaces, held by file descriptor.
//!
//! A thread belongs to a namespace, not a process. Every function here that enters one does so on a
//! thread made for it, which ends there: no thread that the caller knows ever changes its namespace.

mod mounts;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    fmt, fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

use crate::{
    arp,
    broker::{self, Request, SocketKind},
};

pub(crate) use self::mounts::share_mount;
use self::mounts::unshare_mount;

/// `NS_GET_NSTYPE` of `linux/nsfs.h`: which kind of namespace a descriptor is.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// A network namespace, kept alive by a descriptor.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

/// Which namespace: equal ids are one namespace, whatever paths and descriptors lead to it.
///
/// The kernel may give the inode number to another namespace once this one is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// Device number of the kernel's namespace file system.
    pub dev: u64,
    /// Inode number on it, the one `readlink /proc/PID/ns/net` shows.
    pub ino: u64,
}

/// Why a namespace could not be opened, made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is there.
    #[error("the network namespace {} does not exist", .path.display())]
    NotFound {
        /// What was looked for.
        path: PathBuf,
    },
    /// A file of another kind.
    #[error("{} is not a network namespace", .path.display())]
    NotANetns {
        /// What was opened.
        path: PathBuf,
    },
    /// The name is taken.
    #[error("{} exists already", .path.display())]
    Exists {
        /// The path that should have been made.
        path: PathBuf,
    },
    /// The kernel refused, for want of a capability.
    #[error("no permission to {action} {}: this needs CAP_SYS_ADMIN, as root has or `unshare -Urn` gives", .path.display())]
    Permission {
        /// What was tried, a verb.
        action: Cow<'static, str>,
        /// On which object.
        path: PathBuf,
    },
    /// Anything else.
    #[error("could not {action} {}", .path.display())]
    Os {
        /// What was tried, a verb.
        action: Cow<'static, str>,
        /// On which object.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process that has the privileges for it is not there, or is stuck.
    #[error("the broker of the agent does not {action}; what was asked of it may have been done or not")]
    Broker {
        /// What it does not do.
        action: &'static str,
        /// What became of asking it.
        source: io::Error,
    },
    /// The process that has the privileges for it does no such thing for anybody.
    #[error("the broker of the agent refused: {reason}; nothing was done")]
    Refused {
        /// Its words.
        reason: String,
    },
}

impl NetnsError {
    pub(crate) fn new(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let path = path.to_owned();
        let source = source.into();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR) => Self::NotFound { path },
            Some(libc::EPERM | libc::EACCES) => Self::Permission {
                action: action.into(),
                path,
            },
            _ => Self::Os {
                action: action.into(),
                path,
                source,
            },
        }
    }
}

impl Netns {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace that a path leads to: one of `ip netns add`, or `/proc/PID/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        match (Self::open_here(path), broker::get()) {
            // Of a process that may do more than this one, or of another user.
            (Err(NetnsError::Permission { .. }), Some(broker)) => {
                let request = Request::Open(path.to_owned());
                Self::try_from(broker.ask(&request, &[])?.descriptor()?)
            }
            (opened, _) => opened,
        }
    }

    /// The same, by this process alone.
    pub(crate) fn open_here(path: &Path) -> Result<Self, NetnsError> {
        // O_NONBLOCK: a FIFO put at the path must not hold us up.
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| NetnsError::new("open", path, error))?;
        Self::try_from(OwnedFd::from(file)).map_err(|error| match error {
            NetnsError::NotANetns { .. } => NetnsError::NotANetns {
                path: path.to_owned(),
            },
            error => error,
        })
    }

    /// A new namespace without a name. It goes when its last descriptor, process and mount are gone.
    pub fn create() -> Result<Self, NetnsError> {
        if let Some(broker) = broker::get() {
            return Self::try_from(broker.ask(&Request::Create, &[])?.descriptor()?);
        }
        on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|error| NetnsError::new("make", Path::new("a network namespace"), error))?;
            Self::current()
        })
    }

    /// A new namespace that a path keeps alive, as `ip netns add` makes. Parent folders are made.
    ///
    /// Like iproute2, this makes the folder a shared mount of its own where the one it lies on is
    /// private: otherwise copies of the mount in other mount namespaces would outlive [`remove_at`](Self::remove_at).
    pub fn create_at(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        if let Some(broker) = broker::get() {
            return Self::try_from(broker.create_at(path)?);
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| NetnsError::new("make", parent, error))?;
            share_mount(parent).map_err(|error| NetnsError::new("share", parent, error))?;
        }
        let place = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(path)
            .map_err(|error| {
                if error.kind() == io::ErrorKind::AlreadyExists {
                    NetnsError::Exists {
                        path: path.to_owned(),
                    }
                } else {
                    NetnsError::new("make", path, error)
                }
            })?;
        let made = Self::create().and_then(|netns| {
            // By descriptors: the name may be another file's by now.
            let [source, place] = [netns.fd.as_raw_fd(), place.as_raw_fd()]
                .map(|fd| PathBuf::from(format!("/proc/self/fd/{fd}")));
            mount(
                Some(&source),
                &place,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .map_err(|error| NetnsError::new("mount", path, error))?;
            Ok(netns)
        });
        if made.is_err() {
            // The first error is the one to tell; a file without a mount is what was there before.
            let _ = fs::remove_file(path);
        }
        made
    }

    /// The namespace that a path of [`create_at`](Self::create_at) keeps, made if there is none; whoever asks at the same
    /// time in this process gets the same one.
    pub fn ensure_at(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let path = path.as_ref();
        match Self::open(path) {
            Err(NetnsError::NotFound { .. }) => Self::create_at(path),
            // A crash between making the file and the mount.
            Err(NetnsError::NotANetns { .. }) => {
                Self::remove_at(path)?;
                Self::create_at(path)
            }
            opened => opened,
        }
    }

    /// Takes a path of [`create_at`](Self::create_at) away, and with it the folder it is in if we made
    /// that a mount and nothing else is in it. A path that is not there is no error.
    pub fn remove_at(path: impl AsRef<Path>) -> Result<(), NetnsError> {
        let path = path.as_ref();
        if let Some(broker) = broker::get() {
            return broker.ask(&Request::RemoveAt(path.to_owned()), &[])?.done();
        }
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: a file without a mount, which a crash between the two steps leaves.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(NetnsError::new("unmount", path, error)),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(NetnsError::new("remove", path, error));
            }
            _ => {}
        }
        if let Some(parent) = path.parent() {
            unshare_mount(parent).map_err(|error| NetnsError::new("unmount", parent, error))?;
        }
        Ok(())
    }

    /// Which namespace this is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Another handle on the same namespace.
    pub fn try_clone(&self) -> Result<Self, NetnsError> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|error| NetnsError::new("open", &self.path(), error))?;
        Ok(Self { fd, id: self.id })
    }

    /// Runs a closure inside the namespace, on a thread that ends with it, and returns what it returns.
    ///
    /// A socket opened inside belongs to the namespace for good and may be used anywhere afterwards. A process with a
    /// [broker] cannot do this, and has [`Self::socket`] and its like.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_new_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// For the calling thread, for good.
    pub(crate) fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|error| NetnsError::new("enter", &self.path(), error))
    }

    /// A socket that belongs to the namespace, bound to nothing.
    pub fn socket(&self, kind: SocketKind) -> io::Result<OwnedFd> {
        match broker::get() {
            Some(broker) => self
                .ask(broker, &Request::Socket(kind))
                .and_then(broker::Answer::descriptor),
            None => return self.run(|| make_socket(kind)).map_err(in_words)?,
        }
        .map_err(in_words)
    }

    /// The same of many namespaces at once, of each these, in order. One thread makes them all, so that each costs little.
    pub fn sockets(of: &[&Self], kinds: &[SocketKind]) -> Vec<io::Result<Vec<OwnedFd>>> {
        let at_once = (broker::MAX_SOCKETS / kinds.len().max(1)).max(1);
        let chunks = of.chunks(at_once).flat_map(|of| {
            let made: Result<Vec<io::Result<_>>, _> = match broker::get() {
                Some(broker) => {
                    let along: Vec<_> = of.iter().map(AsFd::as_fd).collect();
                    broker
                        .ask(&Request::Sockets(kinds.to_vec()), &along)
                        .and_then(|answer| answer.sockets(kinds.len()))
                        .map(|made| made.into_iter().map(|made| made.map_err(in_words)).collect())
                }
                None => on_new_thread(|| {
                    let each = of.iter().map(|netns| {
                        netns.enter().map_err(in_words)?;
                        kinds.iter().map(|kind| make_socket(*kind)).collect()
                    });
                    Ok(each.collect())
                }),
            };
            made.unwrap_or_else(|error| {
                let error = Arc::new(error);
                of.iter()
                    .map(|_| Err(io::Error::other(Arc::clone(&error))))
                    .collect()
            })
        });
        chunks.collect()
    }

    /// The file by which TAP devices of the namespace are made and opened.
    pub(crate) fn tap_file(&self) -> io::Result<fs::File> {
        match broker::get() {
            Some(broker) => self
                .ask(broker, &Request::TapFile)
                .and_then(broker::Answer::descriptor),
            None => return self.run(crate::tap::open_file).map_err(in_words)?,
        }
        .map(fs::File::from)
        .map_err(in_words)
    }

    /// Has the broker of this process run a line of shell inside, with what the broker leaves to commands.
    pub fn start_command(&self, line: &str, errors: BorrowedFd<'_>) -> Result<broker::Started, NetnsError> {
        let broker = broker::get().ok_or_else(|| NetnsError::Refused {
            reason: "this process has none".to_owned(),
        })?;
        broker
            .ask(&Request::Run(line.to_owned()), &[self.as_fd(), errors])?
            .started()
    }

    fn ask(&self, broker: &broker::Broker, request: &Request) -> Result<broker::Answer, NetnsError> {
        broker.ask(request, &[self.as_fd()])
    }

    /// Writes settings of the namespace, each a path below `/proc/sys` such as `net/ipv4/ip_forward`.
    pub fn set_sysctls<N: AsRef<str> + Sync>(&self, settings: &[(N, &str)]) -> Result<(), NetnsError> {
        if let Some(broker) = broker::get() {
            let pairs = settings
                .iter()
                .map(|(name, value)| (name.as_ref().to_owned(), (*value).to_owned()));
            return self.ask(broker, &Request::WriteSettings(pairs.collect()))?.done();
        }
        self.run(|| {
            settings
                .iter()
                .try_for_each(|(name, value)| write_setting(name.as_ref(), value))
        })?
    }

    /// Reads settings of the namespace, in order, without the line end.
    pub fn sysctls<N: AsRef<str> + Sync>(&self, names: &[N]) -> Result<Vec<String>, NetnsError> {
        if let Some(broker) = broker::get() {
            let names = names.iter().map(|name| name.as_ref().to_owned());
            return self.ask(broker, &Request::ReadSettings(names.collect()))?.texts();
        }
        self.run(|| names.iter().map(read_setting).collect())?
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(self.id.to_string())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.fd
    }
}

impl TryFrom<OwnedFd> for Netns {
    type Error = NetnsError;

    fn try_from(fd: OwnedFd) -> Result<Self, NetnsError> {
        let path = || PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        if !is_netns(fd.as_fd()) {
            return Err(NetnsError::NotANetns { path: path() });
        }
        let found = rustix::fs::fstat(&fd).map_err(|error| NetnsError::new("open", &path(), error))?;
        let id = NetnsId {
            dev: found.st_dev,
            ino: found.st_ino,
        };
        Ok(Self { fd, id })
    }
}

fn in_words(error: NetnsError) -> io::Error {
    io::Error::other(error)
}

/// In the namespace of the calling thread.
pub(crate) fn make_socket(kind: SocketKind) -> io::Result<OwnedFd> {
    let of = |ipv4| {
        if ipv4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        }
    };
    let netlink = |protocol| (AddressFamily::Netlink, SockType::Raw, Some(protocol));
    let (family, how, protocol) = match kind {
        SocketKind::Route => netlink(SockProtocol::NetlinkRoute),
        SocketKind::Generic => netlink(SockProtocol::NetlinkGeneric),
        SocketKind::Netfilter => netlink(SockProtocol::NetlinkNetFilter),
        SocketKind::Diag => netlink(SockProtocol::NetlinkSockDiag),
        SocketKind::Udp { ipv4 } => (of(ipv4), SockType::Datagram, None),
        SocketKind::Tcp { ipv4 } => (of(ipv4), SockType::Stream, None),
        SocketKind::Neighbours { link, ipv4 } => return arp::open(link, ipv4),
        SocketKind::Icmp { ipv4: true } => (of(true), SockType::Raw, Some(SockProtocol::Icmp)),
        SocketKind::Icmp { ipv4: false } => (of(false), SockType::Raw, Some(SockProtocol::IcmpV6)),
    };
    Ok(socket(family, how, SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// In the namespace of the calling thread.
pub(crate) fn write_setting(name: &str, value: &str) -> Result<(), NetnsError> {
    let path = Path::new("/proc/sys").join(name);
    let file = fs::OpenOptions::new().write(true).open(&path);
    file.and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| NetnsError::Os {
            action: "write".into(),
            path,
            source,
        })
}

/// In the namespace of the calling thread.
pub(crate) fn read_setting(name: &impl AsRef<str>) -> Result<String, NetnsError> {
    let path = Path::new("/proc/sys").join(name.as_ref());
    let text = fs::read_to_string(&path).map_err(|source| NetnsError::Os {
        action: "read".into(),
        path,
        source,
    })?;
    Ok(text.trim_end().to_owned())
}

/// Whether a descriptor is of the file system that namespaces are on, which can be asked before anything is opened.
pub(crate) fn is_on_nsfs(fd: &OwnedFd) -> bool {
    /// `NSFS_MAGIC` of `linux/magic.h`
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    #[allow(clippy::unnecessary_cast)]
    rustix::fs::fstatfs(fd).is_ok_and(|found| found.f_type as i64 == NSFS_MAGIC)
}

/// As `readlink /proc/PID/ns/net` writes it.
impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

fn on_new_thread<T: Send>(work: impl FnOnce() -> Result<T, NetnsError> + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| {
                NetnsError::new("start", Path::new("a thread for a network namespace"), error)
            })?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[allow(unsafe_code)]
fn is_netns(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: the descriptor is open for as long as it is borrowed, and the request takes no argument.
    // A file that is not a namespace answers ENOTTY.
    unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

#[allow(unsafe_code)]
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// `asm-generic/socket.h`; not yet in libc for every architecture.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open for as long as it is borrowed; `cookie` and `len` are ours and live through the
    // call, and the kernel writes no more than `len` bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if done == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
