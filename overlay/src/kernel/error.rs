use std::{fmt, io};

use weft_netlink::{
    netns::{NetnsError, NetnsId},
    nft::NftError,
    route::{BatchError, DumpError, OpenError, Refusal},
    tap::TapError,
};

use crate::plan::{Carrier, EndpointOp, NetworkOp, Op, Tunnel};

/// The kernel could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A socket.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A table of links, addresses and so on.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// An nft table.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The folder of namespaces.
    #[error("could not list {}", .path.display())]
    List {
        /// Which folder.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An operation that was not carried out, or not wholly.
#[derive(Debug, thiserror::Error)]
pub struct OpError {
    /// Which.
    pub op: Op,
    /// Why.
    #[source]
    pub cause: Cause,
}

/// Why an operation was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused.
    #[error("{0}")]
    Refused(Refusal),
    /// The exchange of messages failed.
    #[error(transparent)]
    Batch(BatchError),
    /// A namespace could not be opened, made or removed.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No socket.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What is there could not be read.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// Nft refused.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// No TAP device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The sandbox's path leads to another namespace now.
    #[error("{path} is {now} and was {before} when the endpoint was made: the sandbox was replaced")]
    OtherSandbox {
        /// The path.
        path: String,
        /// What it leads to.
        now: NetnsId,
        /// What it should lead to.
        before: NetnsId,
    },
    /// Something that an earlier operation should have made is not there.
    #[error("{0} is not there")]
    Missing(&'static str),
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not carry out `{}`", self.op)?;
        self.hint()
            .iter()
            .try_for_each(|hint| write!(f, " (likely cause: {hint})"))
    }
}

impl OpError {
    /// The likely cause, where the kernel's word alone would puzzle.
    pub fn hint(&self) -> Option<String> {
        let Cause::Refused(refusal) = &self.cause else {
            return None;
        };
        if let Op::Network(
            _,
            NetworkOp::AddTunnel(Tunnel {
                carrier: Carrier::Vxlan { vni, port, .. },
                ..
            }),
        ) = self.op
        {
            match refusal.errno {
                EEXIST => {
                    return Some(format!(
                        "another VXLAN device of this host, perhaps in a namespace that a process keeps alive, has VNI {vni} \
                         on port {port}"
                    ));
                }
                EADDRINUSE => return Some(format!("a program on this host uses UDP port {port}")),
                _ => {}
            }
        }
        match (&self.op, refusal.errno) {
            (Op::Endpoint(_, _, EndpointOp::Add { .. }), EEXIST) => {
                Some("the sandbox has an interface of that name".to_owned())
            }
            (Op::Endpoint(_, _, EndpointOp::Add { .. }), EXFULL) => {
                Some("a bridge has at most 1023 ports".to_owned())
            }
            (Op::Endpoint(_, _, EndpointOp::AddAddress(net)), EACCES) if net.addr().is_ipv6() => {
                Some("IPv6 is switched off in the sandbox".to_owned())
            }
            (_, EPERM) => Some("the agent lacks CAP_NET_ADMIN".to_owned()),
            _ => None,
        }
    }
}

// Numbers of Linux; the same on all architectures but MIPS, SPARC, Alpha and PA-RISC, where only hints suffer.
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const EXFULL: i32 = 54;
const EADDRINUSE: i32 = 98;
