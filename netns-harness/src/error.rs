use std::io;
use std::time::Duration;

use weft_netlink::netns::NetnsError;
use weft_netlink::route::{BatchError, DumpError, OpenError};

use crate::wait::TimedOut;

/// Why something in a lab could not be done. Each text is a sentence that names the object.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A step needed the kernel or the file system, and it refused.
    #[error("could not {what}")]
    Os {
        /// What was tried, on which object.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Namespaces need privileges, which isolation gives to anybody.
    #[error("could not {what} ({errno}): this needs root, or netns_harness::isolate called first")]
    NoPrivilege {
        /// What was tried.
        what: String,
        /// How it was refused.
        errno: nix::errno::Errno,
    },
    /// A network namespace could not be made or entered.
    #[error("could not {what}")]
    Netns {
        /// What was tried, on which object.
        what: String,
        /// Why.
        source: NetnsError,
    },
    /// No route netlink socket.
    #[error("could not speak route netlink for {what}")]
    Open {
        /// Whose namespace.
        what: String,
        /// Why.
        source: OpenError,
    },
    /// The kernel refused to change links or addresses.
    #[error("could not {what}")]
    Batch {
        /// What was tried, on which object.
        what: String,
        /// Why.
        source: BatchError,
    },
    /// The kernel's state could not be read.
    #[error("could not {what}")]
    Dump {
        /// What was tried, on which object.
        what: String,
        /// Why.
        source: DumpError,
    },
    /// Two things of one name.
    #[error("there is a {kind} named {name} already")]
    NameTaken {
        /// Host, switch or sandbox.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A name that would not do as a host name and a file name.
    #[error(
        "{name:?} cannot name a {kind}: use 1 to 63 letters, digits, dots, dashes or underscores, the first a letter or digit"
    )]
    BadName {
        /// Host, switch or sandbox.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// The host has crashed.
    #[error("host {host} is down; restart it first")]
    Down {
        /// The host.
        host: String,
    },
    /// The sandbox does not exist any more.
    #[error("{sandbox} is gone: it was removed, or its host has crashed")]
    Gone {
        /// The sandbox and its host.
        sandbox: String,
    },
    /// The host is up, so it cannot be restarted.
    #[error("host {host} is up; crash it before restarting it")]
    Up {
        /// The host.
        host: String,
    },
    /// The lab is closed.
    #[error("the lab {lab} is closed")]
    Closed {
        /// The lab.
        lab: String,
    },
    /// A switch's subnet has no address left.
    #[error("the subnet {subnet} of switch {switch} has no address left for another interface")]
    NoAddress {
        /// The switch.
        switch: String,
        /// The subnet.
        subnet: ipnet::IpNet,
    },
    /// No such interface.
    #[error("{place} has no interface named {interface}")]
    NoInterface {
        /// The host or sandbox.
        place: String,
        /// The interface.
        interface: String,
    },
    /// A bind mount has nothing to cover.
    #[error(
        "{path} does not exist on this machine, so {whom} cannot have its own; create it (an empty file will do) and start the lab again"
    )]
    NothingToCover {
        /// The file.
        path: &'static str,
        /// The host or sandbox.
        whom: String,
    },
    /// A command could not be started.
    #[error("could not start {program} in {place}")]
    Spawn {
        /// The program.
        program: String,
        /// The host or sandbox.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// A process did not end in time.
    #[error("{program} (process {pid}) in {place} did not end within {timeout:?}")]
    StillRunning {
        /// The program.
        program: String,
        /// Its process id.
        pid: u32,
        /// The host or sandbox.
        place: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// A command ended with a failure.
    #[error("{program} in {place} ended with {status}, saying: {stderr}")]
    Failed {
        /// The program.
        program: String,
        /// The host or sandbox.
        place: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote to its standard error, or to its standard output if that was empty.
        stderr: String,
    },
    /// A condition did not come true.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The audit found things that should be gone.
    #[error("the lab {lab} left things behind: {}", .things.join("; "))]
    LeftBehind {
        /// The lab.
        lab: String,
        /// One sentence for each.
        things: Vec<String>,
    },
}

impl LabError {
    /// What the kernel's refusal to make a namespace means.
    pub(crate) fn no_privilege(what: impl Into<String>, errno: nix::errno::Errno) -> Self {
        let what = what.into();
        match errno {
            nix::errno::Errno::EPERM => Self::NoPrivilege { what, errno },
            _ => Self::Os {
                what,
                source: errno.into(),
            },
        }
    }

    /// For `map_err`: wraps what the kernel said with what was tried.
    pub(crate) fn os<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Os {
            what: what.into(),
            source: source.into(),
        }
    }
}
