//! The one system call (bpf(2)) and its argument, a union that is filled by offset.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// Large enough for every field that is used here; the kernel takes shorter and longer ones than its own.
const ATTR_LEN: usize = 128;

#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    MapCreate = 0,
    MapLookupElem = 1,
    MapUpdateElem = 2,
    MapDeleteElem = 3,
    MapGetNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ObjGetInfoByFd = 15,
    BtfLoad = 18,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `union bpf_attr`. A pointer in it is to memory that its owner keeps borrowed (`'a`) until after the call.
#[repr(C, align(8))]
pub(super) struct Attr<'a> {
    bytes: [u8; ATTR_LEN],
    memory: std::marker::PhantomData<&'a mut [u8]>,
}

impl<'a> Attr<'a> {
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; ATTR_LEN],
            memory: std::marker::PhantomData,
        }
    }

    pub(super) fn u32(mut self, offset: usize, value: u32) -> Self {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, offset: usize, value: u64) -> Self {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// Bytes that the kernel only reads.
    pub(super) fn input(self, offset: usize, memory: &'a [u8]) -> Self {
        self.u64(offset, memory.as_ptr() as u64)
    }

    /// Bytes that the kernel writes.
    pub(super) fn output(self, offset: usize, memory: &'a mut [u8]) -> Self {
        self.u64(offset, memory.as_mut_ptr() as u64)
    }

    /// Up to fifteen bytes of a name.
    pub(super) fn name(mut self, offset: usize, name: &str) -> Self {
        let len = name.len().min(15);
        self.bytes[offset..offset + len].copy_from_slice(&name.as_bytes()[..len]);
        self
    }
}

/// Calls. The caller sees to it that the memory which `attr` names is as long as the kernel takes it to be for this
/// command: the sizes of a map's keys and values, the count of instructions, the length of a buffer.
#[allow(unsafe_code)]
fn call(command: Command, attr: &mut Attr<'_>) -> io::Result<i32> {
    // SAFETY: `attr` is initialised and as long as is said. Pointers in it come from slices that are borrowed for
    // as long as it lives, and their lengths are checked where they are put in (`Map`, `load`, `info`).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, attr, size_of::<Attr<'_>>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

pub(super) fn run(command: Command, mut attr: Attr<'_>) -> io::Result<()> {
    call(command, &mut attr).map(drop)
}

/// For commands that return a descriptor.
#[allow(unsafe_code)]
pub(super) fn open(command: Command, mut attr: Attr<'_>) -> io::Result<OwnedFd> {
    let fd = call(command, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
