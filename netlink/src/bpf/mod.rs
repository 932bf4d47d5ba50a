//! Programs and maps in the kernel (bpf(2)), without a compiler, an object file or a C library: programs are written
//! with [`Asm`] and loaded as they are. Objects are kept beyond the process by names in a file system ([`Pins`]).

mod asm;
mod map;
mod pins;
mod program;
mod sys;

#[cfg(test)]
mod tests;

use std::io;

pub use asm::{Asm, Helper, If, Label, Op, Operand, Program, Reg, Size};
pub use map::{Entry, Map, MapKind, MapSpec};
pub use pins::Pins;
pub use program::{Attach, Link, Loaded};

/// Why the kernel did not take a program or a map.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {object}{}", likely_cause(source))]
pub struct BpfError {
    doing: &'static str,
    object: String,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl BpfError {
    fn new(doing: &'static str, object: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let object = object.into();
        move |source| Self {
            doing,
            object,
            source,
        }
    }
}

fn likely_cause(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            ": needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN outside of every user namespace"
        }
        Some(libc::ENOSYS) => ": the kernel is built without bpf(2)",
        _ => "",
    }
}
