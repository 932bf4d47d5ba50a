use std::time::Duration;

use netlink_packet_core::Emitable;
use netlink_packet_wireguard::{WireguardPeer, WireguardPeerAttribute};

use super::{attributes::allowed_attributes, *};

fn peer(number: u8) -> PeerSet {
    PeerSet {
        is_new: true,
        preshared_key: Some(Zeroizing::new([99; 32])),
        endpoint: Some("192.0.2.2:51820".parse().unwrap()),
        allowed: Some(vec!["100.64.0.2/32".parse().unwrap()]),
        ..PeerSet::of([number; 32])
    }
}

fn bytes(change: &DeviceChange) -> Vec<Vec<u8>> {
    let emit = |message: WireguardMessage| {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    };
    change.messages("wg0").into_iter().map(emit).collect()
}

/// An attribute as `linux/netlink.h` lays it out.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

const NESTED: u16 = 1 << 15;

#[test]
fn a_device_with_a_peer_is_written_as_the_kernel_reads_it() {
    let change = DeviceChange {
        private_key: Some(Zeroizing::new([7; 32])),
        port: Some(51820),
        peers: vec![PeerChange::Set(peer(2)), PeerChange::Remove([3; 32])],
    };
    let [written] = &bytes(&change)[..] else {
        panic!("more than one message")
    };
    let allowed = [
        attribute(1, &2_u16.to_ne_bytes()),
        attribute(2, &[100, 64, 0, 2]),
        attribute(3, &[32]),
    ]
    .concat();
    let endpoint = [&2_u16.to_ne_bytes()[..], &[0xca, 0x6c, 192, 0, 2, 2], &[0; 8]].concat();
    let set = [
        attribute(1, &[2; 32]),
        // WGPEER_F_REPLACE_ALLOWEDIPS
        attribute(3, &2_u32.to_ne_bytes()),
        attribute(2, &[99; 32]),
        attribute(4, &endpoint),
        attribute(9 | NESTED, &attribute(NESTED, &allowed)),
    ]
    .concat();
    // WGPEER_F_REMOVE_ME
    let removed = [attribute(1, &[3; 32]), attribute(3, &1_u32.to_ne_bytes())].concat();
    let peers = [attribute(NESTED, &set), attribute(NESTED, &removed)].concat();
    let wanted = [
        attribute(2, b"wg0\0"),
        attribute(6, &51820_u16.to_ne_bytes()),
        attribute(3, &[7; 32]),
        attribute(8 | NESTED, &peers),
    ]
    .concat();
    assert_eq!(*written, wanted);
}

#[test]
fn many_peers_go_in_several_messages_and_the_key_in_the_first() {
    let change = DeviceChange {
        private_key: Some(Zeroizing::new([7; 32])),
        port: None,
        peers: (0..1000_u16)
            .map(|number| PeerChange::Set(peer(number as u8)))
            .collect(),
    };
    let messages = change.messages("wg0");
    assert_eq!(messages.len(), 4);
    let has_key = |message: &WireguardMessage| {
        let mut attributes = message.attributes.iter();
        attributes.any(|attribute| matches!(attribute, WireguardAttribute::PrivateKey(_)))
    };
    assert_eq!(
        messages.iter().map(has_key).collect::<Vec<_>>(),
        [true, false, false, false]
    );
    assert!(bytes(&change).iter().all(|message| message.len() < 60_000));
    assert!(DeviceChange::default().messages("wg0").is_empty());
}

#[test]
fn a_device_that_comes_in_parts_is_read_whole() {
    let peer = |number, allowed: &[&str]| {
        let allowed = allowed
            .iter()
            .map(|net| allowed_attributes(&net.parse().unwrap()))
            .collect();
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey([number; 32]),
            WireguardPeerAttribute::LastHandshake(netlink_packet_wireguard::WireguardTimeSpec {
                seconds: i64::from(number),
                nano_seconds: 5,
            }),
            WireguardPeerAttribute::RxBytes(148),
            WireguardPeerAttribute::AllowedIps(allowed),
        ])
    };
    let mut device = Device::default();
    device.add(vec![
        WireguardAttribute::PublicKey([1; 32]),
        WireguardAttribute::PrivateKey([9; 32]),
        WireguardAttribute::ListenPort(51820),
        WireguardAttribute::Peers(vec![peer(0, &[]), peer(2, &["100.64.0.2/32"])]),
    ]);
    device.add(vec![WireguardAttribute::Peers(vec![
        peer(2, &["100.64.0.3/32"]),
        peer(3, &[]),
    ])]);
    assert_eq!((device.public_key, device.port), (Some([1; 32]), 51820));
    let [never, two, three] = &device.peers[..] else {
        panic!("{} peers", device.peers.len())
    };
    assert_eq!(never.last_handshake, None);
    assert_eq!(two.allowed.len(), 2);
    assert_eq!((two.received_bytes, two.sent_bytes), (148, 0));
    let at = SystemTime::UNIX_EPOCH + Duration::new(3, 5);
    assert_eq!(three.last_handshake, Some(at));
}

#[test]
fn nobody_reads_a_key_in_a_log() {
    let change = DeviceChange {
        private_key: Some(Zeroizing::new([7; 32])),
        port: Some(51820),
        peers: vec![PeerChange::Set(peer(2)), PeerChange::Remove([3; 32])],
    };
    assert_eq!(
        format!("{change:?}"),
        "private key …\nport 51820\nadd peer 02020202 preshared key … at 192.0.2.2:51820 as 100.64.0.2/32\n\
         remove peer 03030303\n"
    );
}

#[test]
fn a_kernel_without_wireguard_says_so() {
    let netns = match Netns::create() {
        Ok(netns) => netns,
        Err(error) => return crate::testing::skip(error),
    };
    match WireguardSocket::open(&netns) {
        Err(error) => assert_eq!(error.to_string(), "this kernel has no WireGuard"),
        Ok(mut socket) => assert!(socket.device("wg0").unwrap().is_none()),
    }
}
