//! Devices and their changes as attributes of messages.

use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use zeroize::{Zeroize, Zeroizing};

use super::{Device, DeviceChange, Peer, PeerChange};

/// A peer takes less than 200 bytes, and an attribute has room for 65,535.
const PEERS_PER_MESSAGE: usize = 256;

impl Device {
    /// Takes a part of it: a device with many peers comes in several messages, each of which has some.
    pub(super) fn add(&mut self, attributes: Vec<WireguardAttribute>) {
        for attribute in attributes {
            match attribute {
                WireguardAttribute::PublicKey(key) => self.public_key = Some(key),
                WireguardAttribute::ListenPort(port) => self.port = port,
                WireguardAttribute::Peers(peers) => {
                    for peer in peers.into_iter().filter_map(read_peer) {
                        // The rest of one whose addresses did not fit.
                        match self.peers.last_mut() {
                            Some(last) if last.public_key == peer.public_key => {
                                last.allowed.extend(peer.allowed);
                            }
                            _ => self.peers.push(peer),
                        }
                    }
                }
                WireguardAttribute::PrivateKey(mut key) => key.zeroize(),
                _ => {}
            }
        }
    }
}

fn read_peer(peer: WireguardPeer) -> Option<Peer> {
    let mut read = Peer {
        public_key: [0; 32],
        preshared_key: Zeroizing::new([0; 32]),
        endpoint: None,
        last_handshake: None,
        received_bytes: 0,
        sent_bytes: 0,
        allowed: Vec::new(),
    };
    let mut is_named = false;
    for attribute in peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(key) => (read.public_key, is_named) = (key, true),
            WireguardPeerAttribute::PresharedKey(key) => read.preshared_key = Zeroizing::new(key),
            WireguardPeerAttribute::Endpoint(endpoint) => read.endpoint = Some(endpoint),
            WireguardPeerAttribute::LastHandshake(at) => {
                let since = u64::try_from(at.seconds).ok().filter(|seconds| *seconds > 0);
                let nanos = u32::try_from(at.nano_seconds).unwrap_or(0);
                read.last_handshake = since
                    .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)));
            }
            WireguardPeerAttribute::RxBytes(bytes) => read.received_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => read.sent_bytes = bytes,
            WireguardPeerAttribute::AllowedIps(allowed) => {
                read.allowed.extend(allowed.into_iter().filter_map(read_allowed));
            }
            _ => {}
        }
    }
    is_named.then_some(read)
}

fn read_allowed(allowed: WireguardAllowedIp) -> Option<IpNet> {
    let (mut address, mut length) = (None, None);
    for attribute in allowed.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(ip),
            WireguardAllowedIpAttr::Cidr(cidr) => length = Some(cidr),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}

impl DeviceChange {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn messages(&self, name: &str) -> Vec<WireguardMessage> {
        let mut first = Vec::new();
        first.extend(self.port.map(WireguardAttribute::ListenPort));
        let private_key = self.private_key.as_ref();
        first.extend(private_key.map(|key| WireguardAttribute::PrivateKey(**key)));
        let mut chunks = self.peers.chunks(PEERS_PER_MESSAGE);
        let mut messages = Vec::new();
        loop {
            let peers = chunks.next();
            if peers.is_none() && (first.is_empty() || !messages.is_empty()) {
                return messages;
            }
            let mut attributes = vec![WireguardAttribute::IfName(name.to_owned())];
            attributes.append(&mut first);
            attributes.extend(
                peers.map(|peers| {
                    WireguardAttribute::Peers(peers.iter().map(PeerChange::attributes).collect())
                }),
            );
            messages.push(WireguardMessage {
                cmd: WireguardCmd::SetDevice,
                attributes,
            });
        }
    }
}

impl PeerChange {
    fn attributes(&self) -> WireguardPeer {
        use WireguardPeerAttribute as Attribute;
        let set = match self {
            Self::Remove(key) => {
                return WireguardPeer(vec![
                    Attribute::PublicKey(*key),
                    Attribute::Flags(WireguardPeerFlags::RemoveMe),
                ]);
            }
            Self::Set(set) => set,
        };
        let mut flags = WireguardPeerFlags::empty();
        flags.set(WireguardPeerFlags::UpdateOnly, !set.is_new);
        flags.set(WireguardPeerFlags::ReplaceAllowedIps, set.allowed.is_some());
        let mut attributes = vec![Attribute::PublicKey(set.public_key), Attribute::Flags(flags)];
        let preshared_key = set.preshared_key.as_ref();
        attributes.extend(preshared_key.map(|key| Attribute::PresharedKey(**key)));
        attributes.extend(set.endpoint.map(Attribute::Endpoint));
        attributes.extend(set.keepalive.map(Attribute::PersistentKeepalive));
        let allowed = set.allowed.iter().filter(|allowed| !allowed.is_empty());
        attributes.extend(
            allowed.map(|allowed| Attribute::AllowedIps(allowed.iter().map(allowed_attributes).collect())),
        );
        WireguardPeer(attributes)
    }
}

pub(super) fn allowed_attributes(net: &IpNet) -> WireguardAllowedIp {
    let family = match net {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.addr()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}
