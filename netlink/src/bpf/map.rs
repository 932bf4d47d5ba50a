use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use super::{
    BpfError,
    sys::{self, Attr, Command},
};

const NO_PREALLOC: u32 = 1;
const BTF_MAGIC: u16 = 0xeb9f;

/// How a map finds its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// By any key; memory is taken as it fills. An update replaces a value at once, and programs that still use the
    /// old one may go on.
    Hash,
    /// By a number of four bytes; all values are always there. An update is a copy into the value.
    Array,
    /// By any key; when it is full the values not used for longest make room.
    Recent,
    /// A value for each socket, which goes with it.
    Sockets,
}

/// What a map is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSpec {
    /// Its name, up to fifteen letters, digits and underscores.
    pub name: &'static str,
    /// How values are found.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
    /// How many values at most; without meaning for [`MapKind::Sockets`].
    pub entries: u32,
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A map, kept by a descriptor.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    spec: MapSpec,
}

impl Map {
    /// A new, empty map.
    pub fn create(spec: MapSpec) -> Result<Self, BpfError> {
        let failed = || BpfError::new("create the BPF map", spec.name);
        let (kind, flags) = match spec.kind {
            MapKind::Hash => (1, NO_PREALLOC),
            MapKind::Array => (2, 0),
            MapKind::Recent => (9, 0),
            MapKind::Sockets => (24, NO_PREALLOC),
        };
        let attr = Attr::new()
            .u32(0, kind)
            .u32(4, spec.key as u32)
            .u32(8, spec.value as u32)
            .u32(16, flags)
            .name(28, spec.name);
        // The kernel wants to know the types of what it keeps with a socket, to show them to whoever asks.
        let types = (spec.kind == MapKind::Sockets).then(|| socket_types(spec.value));
        let types = types.transpose().map_err(failed())?;
        let attr = match &types {
            Some(types) => attr.u32(48, types.as_raw_fd() as u32).u32(52, 1).u32(56, 2),
            None => attr.u32(12, spec.entries),
        };
        let fd = sys::open(Command::MapCreate, attr).map_err(failed())?;
        Ok(Self { fd, spec })
    }

    /// A map that was found by its name, if it is like `spec`.
    pub(super) fn adopt(fd: OwnedFd, spec: MapSpec) -> Result<Option<Self>, BpfError> {
        // struct bpf_map_info: type, id, key_size, value_size, max_entries, …
        let mut info = [0; 20];
        super::program::info(fd.as_fd(), &mut info)
            .map_err(BpfError::new("ask about the BPF map", spec.name))?;
        let field = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        let entries = spec.kind == MapKind::Sockets || field(16) == spec.entries;
        let is_like = field(8) == spec.key as u32 && field(12) == spec.value as u32 && entries;
        Ok(is_like.then_some(Self { fd, spec }))
    }

    /// The value of a key.
    ///
    /// # Panics
    ///
    /// Here and below, if a key or a value is not as long as the map's.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BpfError> {
        self.check(key, None);
        // Values are copied in steps of eight bytes.
        let mut value = vec![0; self.spec.value.next_multiple_of(8)];
        let attr = self.element(key).output(16, &mut value);
        match sys::run(Command::MapLookupElem, attr) {
            Ok(()) => {
                value.truncate(self.spec.value);
                Ok(Some(value))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BpfError::new("read from the BPF map", self.spec.name)(error)),
        }
    }

    /// Sets the value of a key.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<(), BpfError> {
        self.check(key, Some(value));
        let attr = self.element(key).input(16, value);
        sys::run(Command::MapUpdateElem, attr).map_err(BpfError::new("write to the BPF map", self.spec.name))
    }

    /// Sets many values: keys and values one after the other, as many of one as of the other. Of a failure it is not
    /// known which were set.
    pub fn set_all(&self, keys: &[u8], values: &[u8]) -> Result<(), BpfError> {
        let count = keys.len() / self.spec.key;
        assert_eq!(keys.len(), count * self.spec.key, "keys of {}", self.spec.name);
        assert_eq!(
            values.len(),
            count * self.spec.value,
            "values of {}",
            self.spec.name
        );
        if count == 0 {
            return Ok(());
        }
        let attr = Attr::new()
            .input(16, keys)
            .input(24, values)
            .u32(32, count as u32)
            .u32(36, self.fd.as_raw_fd() as u32);
        sys::run(Command::MapUpdateBatch, attr).map_err(BpfError::new("write to the BPF map", self.spec.name))
    }

    /// Deletes a key, which need not be there.
    pub fn delete(&self, key: &[u8]) -> Result<(), BpfError> {
        self.check(key, None);
        match sys::run(Command::MapDeleteElem, self.element(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(BpfError::new("delete from the BPF map", self.spec.name)),
        }
    }

    /// Everything in it, if nobody else changes its keys meanwhile.
    pub fn entries(&self) -> Result<Vec<Entry>, BpfError> {
        let mut entries = Vec::new();
        let mut last: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.spec.key.next_multiple_of(8)];
            let mut attr = Attr::new().u32(0, self.fd.as_raw_fd() as u32);
            if let Some(last) = &last {
                attr = attr.input(8, last);
            }
            match sys::run(Command::MapGetNextKey, attr.output(16, &mut next)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
                Err(error) => return Err(BpfError::new("list the BPF map", self.spec.name)(error)),
            }
            next.truncate(self.spec.key);
            if let Some(value) = self.get(&next)? {
                entries.push((next.clone(), value));
            }
            last = Some(next);
        }
    }

    fn element<'a>(&self, key: &'a [u8]) -> Attr<'a> {
        Attr::new().u32(0, self.fd.as_raw_fd() as u32).input(8, key)
    }

    fn check(&self, key: &[u8], value: Option<&[u8]>) {
        assert_eq!(key.len(), self.spec.key, "a key of {}", self.spec.name);
        if let Some(value) = value {
            assert_eq!(value.len(), self.spec.value, "a value of {}", self.spec.name);
        }
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The smallest description that the kernel takes: type 1 is a number of four bytes, type 2 a structure of `len`
/// bytes whose members are nobody's business.
fn socket_types(len: usize) -> io::Result<OwnedFd> {
    let strings = b"\0int\0value\0";
    let types: [u32; 7] = [
        1,       // the name "int"
        1 << 24, // BTF_KIND_INT
        4,       // bytes
        32,      // bits
        5,       // the name "value"
        4 << 24, // BTF_KIND_STRUCT without members
        len as u32,
    ];
    let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut btf = Vec::new();
    btf.extend(BTF_MAGIC.to_ne_bytes());
    btf.extend([1, 0]);
    // Length of the header; then where types and strings are, after it.
    for word in [
        24,
        0,
        types.len() as u32,
        types.len() as u32,
        strings.len() as u32,
    ] {
        btf.extend(word.to_ne_bytes());
    }
    btf.extend(types);
    btf.extend(strings);
    let attr = Attr::new().u32(16, btf.len() as u32).input(0, &btf);
    sys::open(Command::BtfLoad, attr)
}
