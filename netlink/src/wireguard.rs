//! WireGuard devices of the kernel, by generic netlink (`linux/wireguard.h`): what they are told, and what they say.
//!
//! A device is made with [`NewLink::wireguard`](crate::route::NewLink::wireguard). Its UDP socket stays in the namespace that
//! made it, while a [`WireguardSocket`] has to be of the namespace that the device is in.

use std::{fmt, io, net::SocketAddr, time::SystemTime};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use netlink_sys::Socket;
use zeroize::Zeroizing;

use crate::{
    broker::SocketKind,
    netns::{Netns, NetnsError},
    socket,
};

mod attributes;

const FAMILY: &str = "wireguard";
/// The kernel fills dump buffers of up to 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// 32 bytes that nobody may see, wiped when they are dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// A device as it is.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// The public half of its key; a device without one is silent.
    pub public_key: Option<[u8; 32]>,
    /// The UDP port that it has, or will have when it is up.
    pub port: u16,
    /// Its peers.
    pub peers: Vec<Peer>,
}

/// A peer of a device as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its key.
    pub public_key: [u8; 32],
    /// What the two share beside their keys; all zero for nothing.
    pub preshared_key: Secret,
    /// Where packets to it go now.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed, by the wall clock.
    pub last_handshake: Option<SystemTime>,
    /// Bytes of WireGuard that came from it.
    pub received_bytes: u64,
    /// Bytes of WireGuard that went to it.
    pub sent_bytes: u64,
    /// The addresses inside the tunnel that it may speak from, and that lead to it.
    pub allowed: Vec<IpNet>,
}

/// What is to become different of a device. What is not mentioned stays.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct DeviceChange {
    /// Another private key. Sessions go on receiving by the one before, and none sends by it any more.
    pub private_key: Option<Secret>,
    /// Another UDP port.
    pub port: Option<u16>,
    /// Changes of peers, in this order.
    pub peers: Vec<PeerChange>,
}

/// What is to become different of a peer.
#[derive(Clone, PartialEq, Eq)]
pub enum PeerChange {
    /// It goes, and its sessions with it.
    Remove([u8; 32]),
    /// It is made, or changed.
    Set(PeerSet),
}

/// A peer that is made, or changed in what is mentioned.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerSet {
    /// Its key.
    pub public_key: [u8; 32],
    /// Whether it is made; one that is changed and not there stays away.
    pub is_new: bool,
    /// What the two share beside their keys.
    pub preshared_key: Option<Secret>,
    /// Where packets to it go.
    pub endpoint: Option<SocketAddr>,
    /// After how many seconds of silence it is sent an empty packet, 0 for never. Where that was never before, one is sent now.
    pub keepalive: Option<u16>,
    /// These addresses and no others; another peer that has one of them loses it in the same moment.
    pub allowed: Option<Vec<IpNet>>,
}

impl PeerSet {
    /// A peer of which nothing changes yet.
    pub fn of(public_key: [u8; 32]) -> Self {
        Self {
            public_key,
            is_new: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            allowed: None,
        }
    }
}

/// Why a device could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum WireguardError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel knows nothing of WireGuard.
    #[error("this kernel has no WireGuard")]
    Missing,
    /// The exchange failed, or the kernel refused.
    #[error("could not {what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An answer that this version does not understand.
    #[error("the kernel's answer about {what} makes no sense: {reason}")]
    Malformed {
        /// About what.
        what: String,
        /// The decoder's words.
        reason: String,
    },
}

/// A blocking generic netlink socket of one namespace, for its WireGuard devices.
#[derive(Debug)]
pub struct WireguardSocket {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl WireguardSocket {
    /// Opens a socket that belongs to the namespace. This loads the kernel's module where there is one.
    pub fn open(netns: &Netns) -> Result<Self, WireguardError> {
        let socket = netns
            .socket(SocketKind::Generic)
            .and_then(socket::connect)
            .map_err(|source| WireguardError::Io {
                what: "open a generic netlink socket".to_owned(),
                source,
            })?;
        let mut opened = Self {
            socket,
            family: 0,
            sequence: 0,
        };
        opened.family = opened.resolve()?;
        Ok(opened)
    }

    /// The device of this name; `None` if there is none.
    pub fn device(&mut self, name: &str) -> Result<Option<Device>, WireguardError> {
        let what = || format!("read the WireGuard device {name}");
        let message = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::IfName(name.to_owned())],
        };
        let mut device = Device::default();
        let asked = self.ask(
            message,
            NLM_F_DUMP,
            &what,
            |message: GenlMessage<WireguardMessage>| {
                device.add(message.into_parts().1.attributes);
            },
        );
        match asked {
            Ok(()) => Ok(Some(device)),
            Err(WireguardError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes the device of this name. After an error part of it may have been done.
    pub fn change(&mut self, name: &str, change: &DeviceChange) -> Result<(), WireguardError> {
        for message in change.messages(name) {
            let what = || format!("change the WireGuard device {name}");
            self.ask(message, NLM_F_ACK, &what, |_: GenlMessage<WireguardMessage>| {})?;
        }
        Ok(())
    }

    fn resolve(&mut self) -> Result<u16, WireguardError> {
        let message = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        };
        let what = || "find out whether the kernel has WireGuard".to_owned();
        let mut family = None;
        let asked = self.ask(message, NLM_F_ACK, &what, |message: GenlMessage<GenlCtrl>| {
            for nla in &message.payload.nlas {
                if let GenlCtrlAttrs::FamilyId(id) = nla {
                    family = Some(*id);
                }
            }
        });
        match asked {
            Err(WireguardError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                Err(WireguardError::Missing)
            }
            Err(error) => Err(error),
            Ok(()) => family.ok_or(WireguardError::Missing),
        }
    }

    /// Sends a message and takes what comes, until the kernel says that this was all.
    fn ask<Q, A>(
        &mut self,
        question: Q,
        flags: u16,
        what: &impl Fn() -> String,
        mut take: impl FnMut(GenlMessage<A>),
    ) -> Result<(), WireguardError>
    where
        Q: netlink_packet_generic::GenlFamily + fmt::Debug,
        GenlMessage<Q>: NetlinkSerializable,
        A: fmt::Debug,
        GenlMessage<A>: NetlinkDeserializable,
    {
        let failed = |source| WireguardError::Io { what: what(), source };
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut payload = GenlMessage::from_payload(question);
        payload.set_resolved_family_id(self.family);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload));
        message.finalize();
        let mut bytes = Zeroizing::new(vec![0; message.buffer_len()]);
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(failed)?;
        let mut buffer = Zeroizing::new(vec![0; RECEIVE_BUFFER]);
        loop {
            let length = socket::answer(|| self.socket.recv(&mut &mut buffer[..], 0)).map_err(failed)?;
            let mut rest = &buffer[..length];
            while let Some(answer) = next_message(&mut rest) {
                if answer.sequence != self.sequence {
                    continue;
                }
                if let NLMSG_DONE | NLMSG_ERROR = answer.kind {
                    return match answer.errno() {
                        0 => Ok(()),
                        errno => Err(failed(io::Error::from_raw_os_error(errno))),
                    };
                }
                let decoded = NetlinkMessage::<GenlMessage<A>>::deserialize(answer.whole);
                let decoded = decoded.map_err(|error| WireguardError::Malformed {
                    what: what(),
                    reason: error.to_string(),
                })?;
                if let NetlinkPayload::InnerMessage(message) = decoded.payload {
                    take(message);
                }
            }
        }
    }
}

/// One message, not decoded further than its header (RFC 3549, section 2.3.2).
struct Answer<'a> {
    kind: u16,
    sequence: u32,
    whole: &'a [u8],
}

impl Answer<'_> {
    /// What the kernel says by an error or at an end, positive.
    fn errno(&self) -> i32 {
        let code = self.whole.get(16..20).and_then(|code| code.try_into().ok());
        code.map_or(0, |code| i32::from_ne_bytes(code).wrapping_neg())
    }
}

fn next_message<'a>(bytes: &mut &'a [u8]) -> Option<Answer<'a>> {
    let header = bytes.get(..16)?;
    let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
    let whole = bytes.get(..length).filter(|_| length >= 16)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(Answer {
        kind: u16::from_ne_bytes(header[4..6].try_into().ok()?),
        sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
        whole,
    })
}

/// A line for each change, without what is secret.
impl fmt::Display for DeviceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.private_key.is_some() {
            writeln!(f, "private key …")?;
        }
        self.port.iter().try_for_each(|port| writeln!(f, "port {port}"))?;
        self.peers.iter().try_for_each(|peer| writeln!(f, "{peer}"))
    }
}

impl fmt::Display for PeerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |key: &[u8; 32]| {
            key[..4]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let set = match self {
            Self::Remove(key) => return write!(f, "remove peer {}", short(key)),
            Self::Set(set) => set,
        };
        let verb = if set.is_new { "add" } else { "change" };
        write!(f, "{verb} peer {}", short(&set.public_key))?;
        if set.preshared_key.is_some() {
            f.write_str(" preshared key …")?;
        }
        set.endpoint
            .iter()
            .try_for_each(|endpoint| write!(f, " at {endpoint}"))?;
        set.keepalive
            .iter()
            .try_for_each(|seconds| write!(f, " keepalive {seconds}"))?;
        match set.allowed.as_deref() {
            None => Ok(()),
            Some([]) => f.write_str(" nobody's address"),
            Some(allowed) => allowed.iter().try_for_each(|net| write!(f, " as {net}")),
        }
    }
}

impl fmt::Debug for DeviceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests;
