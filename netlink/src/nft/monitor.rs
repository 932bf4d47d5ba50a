//! What is committed to nf_tables, by whomever.

use std::{collections::BTreeMap, io};

use tokio::io::unix::AsyncFd;

use super::{
    NftError,
    nfnl::{NfSocket, text},
};
use crate::netns::Netns;

const NFNLGRP_NFTABLES: u32 = libc::NFNLGRP_NFTABLES as u32;
const NFT_MSG_NEWGEN: u16 = libc::NFT_MSG_NEWGEN as u16;
const NFT_MSG_DELFLOWTABLE: i32 = 24;
/// Of tables, chains, rules, sets and elements alike the name of the table.
const NFTA_TABLE: u16 = 1;
/// A full ruleset of some thousand rules that is flushed.
const EVENT_BUFFER_BYTES: usize = 4 << 20;

/// The commits to the tables of a network namespace, as they happen.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<NfSocket>,
    /// Of a commit whose end has not been read yet.
    open: BTreeMap<String, Change>,
    /// Read and not given out yet, the oldest last.
    read: Vec<Event>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Tables were changed together, by name.
    Commit(BTreeMap<String, Change>),
    /// Commits were lost because they came faster than they were taken: read the tables again.
    Overrun,
}

/// How a commit changed a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// The table, or something in it, is new or was altered.
    pub gained: bool,
    /// The table, or something in it, is gone.
    pub lost: bool,
}

impl Monitor {
    /// Listens in the namespace from now on. Must be called within a tokio runtime.
    pub fn open(netns: &Netns) -> Result<Self, NftError> {
        let socket = NfSocket::open_in(netns).and_then(|mut socket| {
            socket.subscribe(&[NFNLGRP_NFTABLES], EVENT_BUFFER_BYTES)?;
            Ok(socket)
        });
        Ok(Self {
            socket: socket.and_then(register).map_err(NftError::Open)?,
            open: BTreeMap::new(),
            read: Vec::new(),
        })
    }

    /// The next event; `None` if the kernel closed the socket.
    ///
    /// Cancel-safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.read.pop() {
                return Some(event);
            }
            let mut ready = self.socket.readable().await.ok()?;
            let (open, read) = (&mut self.open, &mut self.read);
            let drained = ready.get_inner().drain(|kind, attrs, _| {
                read.extend(take(open, kind, attrs));
            });
            match drained {
                Ok(()) => ready.clear_ready(),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    open.clear();
                    read.push(Event::Overrun);
                }
                Err(_) => return None,
            }
            read.reverse();
        }
    }
}

#[allow(unsafe_code)]
fn register(socket: NfSocket) -> io::Result<AsyncFd<NfSocket>> {
    // SAFETY: the socket owns one descriptor for all its life, and that is the one it names.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Adds a message to the commit that is open, and gives it back when this was its last.
fn take(open: &mut BTreeMap<String, Change>, kind: u16, attrs: &[u8]) -> Option<Event> {
    let message = kind & 0xff;
    if message == NFT_MSG_NEWGEN {
        return Some(Event::Commit(std::mem::take(open)));
    }
    let change = open.entry(text(attrs, NFTA_TABLE)?).or_default();
    match i32::from(message) {
        libc::NFT_MSG_DELTABLE
        | libc::NFT_MSG_DELCHAIN
        | libc::NFT_MSG_DELRULE
        | libc::NFT_MSG_DELSET
        | libc::NFT_MSG_DELSETELEM
        | libc::NFT_MSG_DELOBJ
        | NFT_MSG_DELFLOWTABLE => change.lost = true,
        _ => change.gained = true,
    }
    None
}
