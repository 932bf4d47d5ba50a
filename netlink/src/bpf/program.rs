use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use super::{
    BpfError, Map, Program,
    sys::{self, Attr, Command},
};

const LOG_LEN: usize = 1 << 20;

/// Where a program is called: for what sockets below a control group do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Attach {
    SockOps,
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
    Recvmsg4,
    Recvmsg6,
    Getpeername4,
    Getpeername6,
    Release,
}

impl Attach {
    /// The kernel's numbers for the type of a program and the place where it is attached (`linux/bpf.h`).
    fn numbers(self) -> (u32, u32) {
        const CGROUP_SOCK: u32 = 9;
        const SOCK_OPS: u32 = 13;
        const SOCK_ADDR: u32 = 18;
        match self {
            Self::SockOps => (SOCK_OPS, 3),
            Self::Connect4 => (SOCK_ADDR, 10),
            Self::Connect6 => (SOCK_ADDR, 11),
            Self::Sendmsg4 => (SOCK_ADDR, 14),
            Self::Sendmsg6 => (SOCK_ADDR, 15),
            Self::Recvmsg4 => (SOCK_ADDR, 19),
            Self::Recvmsg6 => (SOCK_ADDR, 20),
            Self::Getpeername4 => (SOCK_ADDR, 29),
            Self::Getpeername6 => (SOCK_ADDR, 30),
            Self::Release => (CGROUP_SOCK, 34),
        }
    }
}

/// A program that the verifier has passed.
#[derive(Debug)]
pub struct Loaded {
    fd: OwnedFd,
    name: String,
    attach: Attach,
}

impl Program {
    /// Loads it with the maps that it names by index.
    ///
    /// # Panics
    ///
    /// If it names more maps than are given.
    pub fn load(&self, name: &str, attach: Attach, maps: &[&Map]) -> Result<Loaded, BpfError> {
        assert!(self.map_count() <= maps.len(), "{name} names more maps");
        let fds: Vec<i32> = maps.iter().map(|map| map.as_fd().as_raw_fd()).collect();
        let insns = self.encode(&fds);
        let bytes = insns.as_flattened();
        let (kind, expected) = attach.numbers();
        // No helper that we call asks for a licence compatible with the kernel's.
        let attr = || {
            Attr::new()
                .u32(0, kind)
                .u32(4, insns.len() as u32)
                .input(8, bytes)
                .input(16, b"Apache-2.0\0")
                .name(48, name)
                .u32(68, expected)
        };
        let loaded = sys::open(Command::ProgLoad, attr()).or_else(|error| {
            if !matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) {
                return Err(error);
            }
            // Asked again for the reason, of which the last lines say most.
            let mut log = vec![0; LOG_LEN];
            let attr = attr().u32(24, 1).u32(28, LOG_LEN as u32).output(32, &mut log);
            sys::open(Command::ProgLoad, attr).map_err(|error| {
                let text = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = text.trim_end_matches('\0').lines().collect();
                let last = lines[lines.len().saturating_sub(12)..].join("\n");
                io::Error::new(error.kind(), format!("{error}; the verifier says:\n{last}"))
            })
        });
        let fd = loaded.map_err(BpfError::new("load the BPF program", name))?;
        Ok(Loaded {
            fd,
            name: name.to_owned(),
            attach,
        })
    }
}

impl Loaded {
    /// Has it called for the sockets below a control group, beside others that are attached there, for as long as
    /// the link lives.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<Link, BpfError> {
        let attr = Attr::new()
            .u32(0, self.fd.as_raw_fd() as u32)
            .u32(4, cgroup.as_raw_fd() as u32)
            .u32(8, self.attach.numbers().1);
        let fd = sys::open(Command::LinkCreate, attr).map_err(BpfError::new(
            "attach to the root control group the BPF program",
            &self.name,
        ))?;
        Ok(Link { fd })
    }

    /// Takes the place of the program at a link; no socket meets neither or both.
    pub fn replace_at(&self, link: &Link) -> Result<(), BpfError> {
        let attr = Attr::new()
            .u32(0, link.fd.as_raw_fd() as u32)
            .u32(4, self.fd.as_raw_fd() as u32);
        sys::run(Command::LinkUpdate, attr).map_err(BpfError::new("replace the BPF program", &self.name))
    }
}

/// An attached program. It is detached when the last descriptor and the last name of the link are gone.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl Link {
    pub(super) fn of(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Whether its program is still called: others with the privilege can end that, and the link stays.
    pub fn is_attached(&self) -> Result<bool, BpfError> {
        // struct bpf_link_info { type, id, prog_id, 4 bytes of nothing, cgroup_id: u64, … }
        let mut found = [0; 24];
        info(self.fd.as_fd(), &mut found).map_err(BpfError::new("look at", "a link of BPF programs"))?;
        Ok(found[16..] != [0; 8])
    }

    /// Has its program called no more.
    pub fn detach(&self) -> Result<(), BpfError> {
        let attr = Attr::new().u32(0, self.fd.as_raw_fd() as u32);
        sys::run(Command::LinkDetach, attr).map_err(BpfError::new("detach", "a link of BPF programs"))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The first bytes of what the kernel knows about an object.
pub(super) fn info(fd: BorrowedFd<'_>, info: &mut [u8]) -> io::Result<()> {
    let attr = Attr::new()
        .u32(0, fd.as_raw_fd() as u32)
        .u32(4, info.len() as u32)
        .output(8, info);
    sys::run(Command::ObjGetInfoByFd, attr)
}
