//! TAP devices: a network device on one side, a file on the other, with what the kernel put off doing (checksums,
//! segments) said in front of each frame (`struct virtio_net_hdr`).
//!
//! A persistent one stays when nobody has it open. Its carrier is off then, so that a bridge sends nothing into it.

#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::netns::{Netns, NetnsError};

/// Bytes in front of each frame, both ways.
pub const VNET_HEADER_LEN: usize = 10;

pub(crate) const DEVICE: &str = "/dev/net/tun";

/// What every open of one device has to ask for alike: Ethernet frames, each with a `virtio_net_hdr` that tells of
/// segments and checksums left to do, by several queues.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// `linux/if_tun.h`; the last two are since Linux 6.2.
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// Why there is no TAP device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has none, or the file is not for us.
    #[error(
        "cannot open {DEVICE}, which TAP devices are made with: the kernel module `tun` may be missing, or the file's mode \
         be too narrow for this user"
    )]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot make the TAP device {name}")]
    Create {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No interface can be called that.
    #[error("`{0}` is no name of an interface")]
    Name(String),
    /// There is none of this name.
    #[error("there is no device {0}")]
    Absent(String),
    /// There is one, but it cannot be opened.
    #[error("cannot open {name} as a TAP device{}", likely_cause(source))]
    Attach {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The namespace where it should be.
    #[error("cannot enter the namespace of the TAP device {name}")]
    Netns {
        /// Its name.
        name: String,
        /// What was wrong.
        source: NetnsError,
    },
}

fn likely_cause(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => ": this needs CAP_NET_ADMIN over its namespace",
        Some(libc::EINVAL) => ": it is of another kind, or was made without several queues",
        _ => "",
    }
}

/// A TAP device whose frames this process carries. Reading and writing do not wait.
#[derive(Debug)]
pub struct Tap {
    file: File,
    udp_segments: bool,
}

impl Tap {
    /// Opens a device that is there. From now on its frames come with checksums and segments put off, as far as this
    /// kernel can say so.
    pub fn open(netns: &Netns, name: &str) -> Result<Self, TapError> {
        let opened = netns.run(|| Self::open_here(name));
        opened.map_err(|source| in_netns(name, source))?
    }

    fn open_here(name: &str) -> Result<Self, TapError> {
        let mut request = request(name)?;
        // Otherwise one would be made, and go with the process.
        nix::net::if_::if_nametoindex(name).map_err(|_| TapError::Absent(name.to_owned()))?;
        let file = open_file().map_err(TapError::Open)?;
        let check = |done| {
            Errno::result(done).map(drop).map_err(|source| TapError::Attach {
                name: name.to_owned(),
                source: source.into(),
            })
        };
        // SAFETY: the request reads and writes one `ifreq`, which outlives the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let length = VNET_HEADER_LEN as libc::c_int;
        // SAFETY: the request reads one int, which outlives the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })?;
        let offload = |flags: libc::c_uint| {
            // SAFETY: the request takes its argument by value.
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) }
        };
        let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        let udp_segments = offload(tcp | TUN_F_USO4 | TUN_F_USO6) == 0;
        if !udp_segments {
            check(offload(tcp))?;
        }
        Ok(Self { file, udp_segments })
    }

    /// Whether several datagrams of UDP can be one frame, as segments of TCP always can.
    pub fn has_udp_segments(&self) -> bool {
        self.udp_segments
    }

    /// Takes a frame with its header, and says how long they are. [`io::ErrorKind::WouldBlock`] is none there.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.file, buffer)?)
    }

    /// Hands a frame over, in pieces of which the first begins with its header.
    pub fn write(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        Ok(nix::sys::uio::writev(&self.file, pieces)?)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The MTU of a device.
pub fn mtu(netns: &Netns, name: &str) -> Result<u32, TapError> {
    let asked = netns.run(|| -> Result<u32, TapError> {
        let mut request = request(name)?;
        let absent = |_| TapError::Absent(name.to_owned());
        let (flags, no_protocol) = (SockFlag::SOCK_CLOEXEC, None);
        let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, no_protocol).map_err(absent)?;
        // SAFETY: the request reads and writes one `ifreq`, which outlives the call.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
        Errno::result(done).map_err(absent)?;
        // SAFETY: the kernel wrote this field of the union just now.
        Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
    });
    asked.map_err(|source| in_netns(name, source))?
}

fn in_netns(name: &str, source: NetnsError) -> TapError {
    TapError::Netns {
        name: name.to_owned(),
        source,
    }
}

/// Makes a TAP device with this name and interface index in a namespace. It stays until somebody deletes it.
pub fn create_persistent(netns: &Netns, name: &str, index: u32) -> Result<(), TapError> {
    let mut request = request(name)?;
    let failed = |source: Errno| TapError::Create {
        name: name.to_owned(),
        source: source.into(),
    };
    let device = netns.tap_file().map_err(TapError::Open)?;
    let index = libc::c_int::try_from(index).map_err(|_| failed(Errno::EINVAL))?;
    // SAFETY: the request reads one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFINDEX, &raw const index) })
        .map_err(failed)?;
    // SAFETY: the request reads and writes one `ifreq`, which outlives the call.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
        .map_err(failed)?;
    // SAFETY: the request takes its argument by value.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1) }).map_err(failed)?;
    Ok(())
}

/// A device belongs to the namespace of the thread that opens this.
pub(crate) fn open_file() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
}

fn request(name: &str) -> Result<libc::ifreq, TapError> {
    // SAFETY: an `ifreq` is plain data of C, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let places = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > places || name.contains('\0') {
        return Err(TapError::Name(name.to_owned()));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        netns::Netns,
        route::{Batch, RouteSocket, delete_link},
        testing::skip,
    };

    #[test]
    fn a_persistent_tap_is_there_until_it_is_deleted() {
        let netns = match Netns::create() {
            Ok(netns) => netns,
            Err(error) => return skip(error),
        };
        match create_persistent(&netns, "tap0", 57) {
            Err(TapError::Open(error)) => return skip(format_args!("{DEVICE}: {error}")),
            made => made.unwrap(),
        }
        let mut route = RouteSocket::open(&netns).unwrap();
        let links = route.links().unwrap();
        let tap = links.iter().find(|link| link.name == "tap0").unwrap();
        assert_eq!((tap.index, tap.kind.as_str()), (57, "tun"));
        let mut batch = Batch::new();
        batch.add(delete_link(57));
        route.execute(batch).unwrap();
        assert!(route.links().unwrap().iter().all(|link| link.name != "tap0"));
    }

    #[test]
    fn a_device_that_is_opened_again_is_the_same_and_none_is_made_by_opening() {
        let netns = match Netns::create() {
            Ok(netns) => netns,
            Err(error) => return skip(error),
        };
        assert!(matches!(Tap::open(&netns, "vx0"), Err(TapError::Absent(_))));
        assert!(mtu(&netns, "vx0").is_err());
        match create_persistent(&netns, "vx0", 57) {
            Err(TapError::Open(error)) => return skip(format_args!("{DEVICE}: {error}")),
            made => made.unwrap(),
        }
        drop(Tap::open(&netns, "vx0").unwrap());
        let tap = Tap::open(&netns, "vx0").unwrap();
        assert_eq!(mtu(&netns, "vx0").unwrap(), 1500);
        let none = tap.read(&mut [0; 2000]).unwrap_err();
        // EIO while the device is down.
        assert!(none.raw_os_error() == Some(libc::EIO) || none.kind() == io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        let here = Netns::current().unwrap();
        for name in ["", "sixteen-bytes-01", "a\0b"] {
            assert!(
                matches!(create_persistent(&here, name, 1), Err(TapError::Name(_))),
                "{name}"
            );
        }
    }
}
