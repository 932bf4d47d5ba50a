//! nf_tables, spoken directly over netlink.
//!
//! A [`Transaction`] lists changes; [`Nft::commit`] has the kernel make all of them at once or none. No `nft` program
//! is needed. Only what Weft uses can be said. Comments in the code name the kernel's constants from
//! `linux/netfilter/nf_tables.h`.
//!
//! A socket belongs to the network namespace in which [`Nft::open`] was called, for as long as it lives, whichever
//! thread uses it later; while it lives, the namespace lives.
//!
//! ```no_run
//! use weft_netlink::nft::*;
//!
//! let table = Table::new(Family::Inet, "weft-egress");
//! let mut change = Transaction::new();
//! change
//!     .add_table(&table)
//!     .add_chain(&table, Chain::base("out", ChainType::Nat, Hook::Postrouting, priority::SNAT))
//!     .add_rule(
//!         &table,
//!         "out",
//!         Rule::new()
//!             .from_subnet("10.20.0.0".parse().unwrap(), 24)
//!             .differs(Load::Oifname, Datum::Ifname("br0".into()))
//!             .then(Expr::Masquerade)
//!             .comment("egress of app"),
//!     );
//! Nft::open()?.commit(&change)?;
//! # Ok::<(), NftError>(())
//! ```

mod expr;
mod load;
mod model;
mod monitor;
pub(crate) mod nfnl;
mod read;
mod rule;
mod set;
mod timeout;
mod transaction;

#[cfg(test)]
mod tests;

use std::{io, os::fd::OwnedFd};

pub use expr::{Expr, Reg, Reject};
pub use load::{CT_ASSURED, CT_DNAT, CT_NEW, FIB_LOCAL, Load, TCP_OPENING, TCP_RST, TCP_SYN};
pub use model::{Chain, ChainType, Datum, Family, Hook, Kind, Table, Verdict};
pub use monitor::{Change, Event, Monitor};
pub use read::{Installed, InstalledRule};
pub use rule::Rule;
pub use set::{Element, Set, SetData, SetRef};
pub use timeout::{Timeout, TimeoutProtocol};
pub use transaction::Transaction;

use crate::netns::Netns;
use nfnl::NfSocket;

/// The usual priorities of base chains.
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// Destination translation.
    pub const DSTNAT: i32 = -100;
    /// Filtering.
    pub const FILTER: i32 = 0;
    /// Source translation.
    pub const SNAT: i32 = 100;
}

/// Why a change or a question to nf_tables failed. Nothing of a refused transaction is in effect.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No socket.
    #[error("cannot open a netfilter socket")]
    Open(#[source] io::Error),
    /// The kernel refused one change of a transaction.
    #[error("cannot {change}{}{}", detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default(), likely_cause(source))]
    Refused {
        /// The change, as [`Transaction`] displays it.
        change: String,
        /// What the kernel added in words.
        detail: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// The kernel refused to list.
    #[error("cannot list the {what} of family {family}{}", likely_cause(source))]
    Read {
        /// What was to be listed.
        what: &'static str,
        /// The family.
        family: Family,
        /// The error number.
        source: io::Error,
    },
}

fn likely_cause(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": needs CAP_NET_ADMIN over this network namespace",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
            ": the kernel lacks nf_tables or this part of it (CONFIG_NF_TABLES, CONFIG_NFT_…)"
        }
        Some(libc::ENOENT) => ": the table, chain, set, element or kernel part it needs is missing",
        Some(libc::EBUSY) => ": something still refers to it",
        Some(libc::EEXIST) => ": it is there already with another content",
        Some(libc::EMSGSIZE) => ": the transaction is larger than net.core.wmem_max allows",
        _ => "",
    }
}

/// A connection to nf_tables in one network namespace.
#[derive(Debug)]
pub struct Nft {
    socket: NfSocket,
}

impl Nft {
    /// Connects to the network namespace of the calling thread.
    pub fn open() -> Result<Self, NftError> {
        NfSocket::open()
            .map(|socket| Self { socket })
            .map_err(NftError::Open)
    }

    /// The same for another namespace than that of the calling thread.
    pub fn open_in(netns: &Netns) -> Result<Self, NftError> {
        NfSocket::open_in(netns)
            .map(|socket| Self { socket })
            .map_err(NftError::Open)
    }

    /// Uses a [socket](crate::broker::SocketKind::Netfilter) that belongs to some namespace.
    pub fn of(socket: OwnedFd) -> Result<Self, NftError> {
        NfSocket::of(socket)
            .map(|socket| Self { socket })
            .map_err(NftError::Open)
    }

    /// Makes all changes, or none and says which one the kernel refused. An empty transaction asks nothing.
    pub fn commit(&self, transaction: &Transaction) -> Result<(), NftError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let (batch, op_of_message) = transaction.encode();
        self.socket.execute(&batch).map_err(|refusal| {
            let op = op_of_message.get(refusal.index as usize).copied().unwrap_or(0);
            NftError::Refused {
                change: transaction.describe(op),
                detail: refusal.detail,
                source: refusal.source,
            }
        })
    }
}
