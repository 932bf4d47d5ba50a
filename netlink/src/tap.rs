//! TAP devices: a network device on one side, a file on the other.
//!
//! A persistent one stays when nobody has it open. Its carrier is off then, so that a bridge sends nothing into it.

#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

use nix::errno::Errno;

const DEVICE: &str = "/dev/net/tun";

/// What every open of one device has to ask for alike: Ethernet frames, each with a `virtio_net_hdr` that tells of
/// segments and checksums left to do, by several queues.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

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
}

/// Makes a TAP device with this name and interface index in the namespace of the calling thread. It stays until somebody
/// deletes it.
pub fn create_persistent(name: &str, index: u32) -> Result<(), TapError> {
    let mut request = request(name)?;
    let failed = |source: Errno| TapError::Create {
        name: name.to_owned(),
        source: source.into(),
    };
    let device = open()?;
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

fn open() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(TapError::Open)
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
        match netns.run(|| create_persistent("tap0", 57)).unwrap() {
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
    fn a_name_that_no_interface_can_have_is_refused() {
        for name in ["", "sixteen-bytes-01", "a\0b"] {
            assert!(
                matches!(create_persistent(name, 1), Err(TapError::Name(_))),
                "{name}"
            );
        }
    }
}
