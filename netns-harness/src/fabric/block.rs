//! Dropping frames between ports, one way, without the sender noticing.
//!
//! The rule sits in the forward hook of the bridges, where the sender's frame has long left its host: a drop there is
//! silent, while one on the sender's own interface makes its `sendto` fail with ENOBUFS. The key is the sender's
//! Ethernet address and the receiver's port, so broadcasts are dropped for exactly the receivers they must not reach, and
//! it holds across the bridges of a split switch.

use std::collections::BTreeSet;
use std::io;

use nix::sys::socket::SockProtocol;
use weft_netlink::netns::Netns;
use weft_types::Mac;

use super::raw::{Message, Raw};

/// From whom, and by which port of the fabric it would reach the receiver.
pub(super) type Blocked = (Mac, u32);

const TABLE: &str = "netns-harness";
const SET: &str = "blocked";

/// `linux/netfilter/nfnetlink.h` and `nf_tables.h`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0x0a00;
const NEWCHAIN: u16 = 0x0a03;
const NEWRULE: u16 = 0x0a06;
const NEWSET: u16 = 0x0a09;
const NEWSETELEM: u16 = 0x0a0c;
const DELSETELEM: u16 = 0x0a0e;
const FAMILY_BRIDGE: u8 = 7;
const HOOK_FORWARD: u32 = 2;
/// Elements of one message: a nest of attributes has at most 64 KiB.
const ELEMENTS: usize = 1000;

/// The rules of one fabric. The table is made when it is first needed.
#[derive(Debug)]
pub(super) struct Blocks {
    socket: Raw,
    ready: bool,
    installed: BTreeSet<Blocked>,
}

impl Blocks {
    pub(super) fn open(netns: &Netns) -> io::Result<Self> {
        let socket = netns
            .run(|| Raw::open(SockProtocol::NetlinkNetFilter))
            .map_err(io::Error::other)??;
        Ok(Self {
            socket,
            ready: false,
            installed: BTreeSet::new(),
        })
    }

    /// Makes exactly these be blocked, all at once.
    pub(super) fn set(&mut self, wanted: BTreeSet<Blocked>) -> io::Result<()> {
        let mut batch = vec![Message::unanswered(BATCH_BEGIN, &[0, 0, 0, 10])];
        if !self.ready {
            if wanted.is_empty() {
                return Ok(());
            }
            batch.extend(table());
        }
        let added: Vec<Blocked> = wanted.difference(&self.installed).copied().collect();
        let removed: Vec<Blocked> = self.installed.difference(&wanted).copied().collect();
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        batch.extend(
            removed
                .chunks(ELEMENTS)
                .map(|chunk| elements(DELSETELEM, 0, chunk)),
        );
        batch.extend(
            added
                .chunks(ELEMENTS)
                .map(|chunk| elements(NEWSETELEM, libc::NLM_F_CREATE, chunk)),
        );
        batch.push(Message::unanswered(BATCH_END, &[0, 0, 0, 10]));
        self.socket.execute(&batch)?;
        self.ready = true;
        self.installed = wanted;
        Ok(())
    }
}

fn message(kind: u16, flags: i32) -> Message {
    Message::new(kind, flags, &[FAMILY_BRIDGE, 0, 0, 0])
}

/// The table with its set, its chain, and the one rule: `ether saddr . oif @blocked drop`.
fn table() -> [Message; 4] {
    let create = libc::NLM_F_CREATE;
    [
        message(NEWTABLE, create).text(1, TABLE),
        message(NEWSET, create)
            .text(1, TABLE)
            .text(2, SET)
            .be32(3, 0)
            // How `nft list` shows the key: an Ethernet address and an interface index.
            .be32(4, (9 << 6) | 20)
            .be32(5, 12)
            .be32(10, 1),
        message(NEWCHAIN, create)
            .text(1, TABLE)
            .text(3, "forward")
            .nest(4, |hook| hook.be32(1, HOOK_FORWARD).be32(2, 0))
            .be32(5, libc::NF_ACCEPT as u32)
            .text(7, "filter"),
        message(NEWRULE, create | libc::NLM_F_APPEND)
            .text(1, TABLE)
            .text(2, "forward")
            .nest(4, |rule| {
                // Registers of four bytes begin at 8: the address takes two, the index the third.
                rule.nest(1, |e| {
                    e.text(1, "payload")
                        .nest(2, |d| d.be32(1, 8).be32(2, 0).be32(3, 6).be32(4, 6))
                })
                .nest(1, |e| e.text(1, "meta").nest(2, |d| d.be32(2, 5).be32(1, 10)))
                .nest(1, |e| {
                    e.text(1, "lookup")
                        .nest(2, |d| d.text(1, SET).be32(2, 8).be32(4, 1))
                })
                .nest(1, |e| {
                    let drop = |d: Message| {
                        d.be32(1, 0)
                            .nest(2, |v| v.nest(2, |c| c.be32(1, libc::NF_DROP as u32)))
                    };
                    e.text(1, "immediate").nest(2, drop)
                })
            }),
    ]
}

fn elements(kind: u16, flags: i32, blocked: &[Blocked]) -> Message {
    message(kind, flags).text(1, TABLE).text(2, SET).nest(3, |list| {
        blocked.iter().fold(list, |list, (mac, port)| {
            let mut key = [0_u8; 12];
            key[..6].copy_from_slice(&mac.0);
            key[8..].copy_from_slice(&port.to_ne_bytes());
            list.nest(1, |element| element.nest(1, |data| data.attr(1, &key)))
        })
    })
}
