use std::time::SystemTime;

use proptest::prelude::*;
use weft_netlink::wireguard::Peer as HeldPeer;

use super::*;
use crate::{KeyPair, Peer};

fn key(number: u8) -> Secret32 {
    Secret32::new([number; 32])
}

fn shared(own: u8, theirs: u8) -> Secret32 {
    Secret32::new([own ^ theirs ^ 0xa5; 32])
}

fn vtep(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, 0, node)
}

/// Private keys by number, the newest first, and nodes with theirs.
fn desired(own: &[u8], nodes: &[(u8, &[u8])]) -> Desired {
    let peer = |(node, theirs): &(u8, &[u8])| Peer {
        vtep: vtep(*node),
        endpoint: SocketAddr::from(([192, 0, 2, *node], 51820)),
        pairs: own
            .iter()
            .enumerate()
            .flat_map(|(place, own)| theirs.iter().map(move |theirs| (place, own, theirs)))
            .map(|(place, own, theirs)| KeyPair {
                own: place as u8,
                public_key: key(*theirs).public_key(),
                preshared_key: shared(*own, *theirs),
            })
            .collect(),
    };
    Desired {
        generation: 1,
        private_keys: own.iter().map(|own| key(*own)).collect(),
        port: 51820,
        vtep: vtep(1),
        peers: nodes.iter().map(peer).collect(),
        networks: Vec::new(),
    }
}

/// What the kernel does with a change.
fn carry_out(device: &mut Device, change: &DeviceChange) {
    if let Some(key) = &change.private_key {
        device.public_key = Some(Secret32::new(**key).public_key());
    }
    device.port = change.port.unwrap_or(device.port);
    for change in &change.peers {
        let set = match change {
            PeerChange::Remove(gone) => {
                device.peers.retain(|peer| peer.public_key != *gone);
                continue;
            }
            PeerChange::Set(set) => set,
        };
        if let Some(allowed) = &set.allowed {
            for peer in &mut device.peers {
                peer.allowed.retain(|net| !allowed.contains(net));
            }
        }
        let known = device
            .peers
            .iter()
            .position(|peer| peer.public_key == set.public_key);
        let place = match known {
            Some(place) => place,
            None if !set.is_new => continue,
            None => {
                device.peers.push(HeldPeer {
                    public_key: set.public_key,
                    preshared_key: Secret::new([0; 32]),
                    endpoint: None,
                    last_handshake: None,
                    received_bytes: 0,
                    sent_bytes: 0,
                    allowed: Vec::new(),
                });
                device.peers.len() - 1
            }
        };
        let peer = &mut device.peers[place];
        peer.preshared_key = set
            .preshared_key
            .clone()
            .unwrap_or_else(|| peer.preshared_key.clone());
        peer.endpoint = set.endpoint.or(peer.endpoint);
        peer.allowed = set.allowed.clone().unwrap_or_else(|| peer.allowed.clone());
    }
}

fn told(device: &mut Device, desired: &Desired, own: usize) -> Plan {
    let plan = plan(desired, own, device, &announced(desired));
    carry_out(device, &plan.change);
    plan
}

fn announced(desired: &Desired) -> BTreeMap<Ipv4Addr, SocketAddr> {
    desired
        .peers
        .iter()
        .map(|peer| (peer.vtep, peer.endpoint))
        .collect()
}

fn shake_hands(device: &mut Device, theirs: u8) {
    let public = key(theirs).public_key();
    let peer = device.peers.iter_mut().find(|peer| peer.public_key == public);
    peer.unwrap().last_handshake = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
}

/// Whose the address of a node is: numbers of keys.
fn holders(device: &Device, node: u8, keys: &[u8]) -> Vec<u8> {
    let net = IpNet::from(std::net::IpAddr::from(vtep(node)));
    let holds = |number: &&u8| {
        let public = key(**number).public_key();
        let mut peers = device.peers.iter();
        peers.any(|peer| peer.public_key == public && peer.allowed.contains(&net))
    };
    keys.iter().filter(holds).copied().collect()
}

#[test]
fn a_device_is_given_its_key_before_its_peers_and_each_peer_its_address_alone() {
    let mut device = Device::default();
    let desired = desired(&[1], &[(2, &[2]), (3, &[3])]);
    let first = told(&mut device, &desired, 0);
    insta::assert_snapshot!(first.change.to_string());
    assert_eq!(first.greet.len(), 2);
    assert_eq!(told(&mut device, &desired, 0), Plan::default());
}

#[test]
fn a_peer_that_roams_stays_where_it_is_and_one_that_says_it_moved_is_followed() {
    let mut device = Device::default();
    let mut desired = desired(&[1], &[(2, &[2])]);
    told(&mut device, &desired, 0);
    let roamed = "198.51.100.7:4000".parse().unwrap();
    device.peers[0].endpoint = Some(roamed);
    assert_eq!(told(&mut device, &desired, 0), Plan::default());
    // Nor does an agent that has just started know better.
    let fresh = plan(&desired, 0, &device, &BTreeMap::new());
    assert_eq!(fresh, Plan::default());
    let before = announced(&desired);
    desired.peers[0].endpoint = "192.0.2.77:51820".parse().unwrap();
    let moved = plan(&desired, 0, &device, &before);
    insta::assert_snapshot!(moved.change.to_string(), @"change peer ce8d3ad1 at 192.0.2.77:51820
");
}

#[test]
fn a_node_that_changes_its_key_is_spoken_to_by_the_old_one_until_the_new_one_carries() {
    let mut device = Device::default();
    told(&mut device, &desired(&[1], &[(2, &[2])]), 0);
    shake_hands(&mut device, 2);
    let changing = desired(&[1], &[(2, &[12, 2])]);
    let plan = told(&mut device, &changing, 0);
    assert_eq!(plan.greet, [key(12).public_key()]);
    assert_eq!(holders(&device, 2, &[2, 12]), [2]);
    assert_eq!(told(&mut device, &changing, 0), Plan::default());
    shake_hands(&mut device, 12);
    let plan = told(&mut device, &changing, 0);
    // The one that gets the address comes first: it is never nobody's.
    insta::assert_snapshot!(plan.change.to_string());
    assert_eq!(holders(&device, 2, &[2, 12]), [12]);
    told(&mut device, &desired(&[1], &[(2, &[12])]), 0);
    assert_eq!(device.peers.len(), 1);
}

#[test]
fn this_nodes_key_changes_when_the_others_know_it_and_not_back() {
    let mut device = Device::default();
    let before = desired(&[1], &[(2, &[2])]);
    told(&mut device, &before, 0);
    let changing = desired(&[11, 1], &[(2, &[2])]);
    assert_eq!(own_key(&changing, &device, Duration::ZERO), Some(1));
    assert_eq!(told(&mut device, &changing, 1), Plan::default());
    assert_eq!(own_key(&changing, &device, SETTLE), Some(0));
    let plan = told(&mut device, &changing, 0);
    assert!(plan.change.private_key.is_some());
    assert_eq!(*device.peers[0].preshared_key, *shared(11, 2).expose());
    assert_eq!(plan.greet, [key(2).public_key()]);
    // An agent that starts in the middle of it goes on.
    assert_eq!(own_key(&changing, &device, Duration::ZERO), Some(0));
    assert_eq!(
        told(&mut device, &desired(&[11], &[(2, &[2])]), 0),
        Plan::default()
    );
    assert_eq!(own_key(&desired(&[], &[]), &device, SETTLE), None);
}

#[test]
fn nobody_is_a_peer_of_itself() {
    let mut device = Device::default();
    told(&mut device, &desired(&[1], &[(2, &[1]), (3, &[3])]), 0);
    assert_eq!(device.peers.len(), 1);
}

fn nodes() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let node = (2..8_u8, prop_oneof![Just(1_u8), Just(2)], 0..3_u8);
    proptest::collection::vec(node, 0..6).prop_map(|nodes| {
        let nodes: BTreeMap<_, _> = nodes
            .into_iter()
            .map(|(node, keys, from)| (node, (keys, from)))
            .collect();
        let keys =
            |node: u8, keys: u8, from: u8| (0..keys).map(|n| node + 10 * (1 + from + n)).rev().collect();
        nodes
            .into_iter()
            .map(|(node, (count, from))| (node, keys(node, count, from)))
            .collect()
    })
}

proptest! {
    /// Whatever the device has, it has what is wanted afterwards and nothing else, and there is nothing left to do; an address
    /// that somebody had before and is to have after is somebody's after each step.
    #[test]
    fn a_device_becomes_what_is_wanted(
        steps in proptest::collection::vec((nodes(), 1..3_u8, any::<u64>()), 1..6),
    ) {
        let mut device = Device::default();
        for (nodes, own, shaken) in steps {
            let nodes: Vec<(u8, &[u8])> = nodes.iter().map(|(node, keys)| (*node, &keys[..])).collect();
            let own: Vec<u8> = (0..own).map(|number| 200 + number).collect();
            let desired = desired(&own, &nodes);
            let place = own.len() - 1;
            let before = device.clone();
            let plan = told(&mut device, &desired, place);
            let wanted: BTreeSet<Key> = nodes.iter().flat_map(|(_, keys)| *keys).map(|n| key(*n).public_key()).collect();
            let held: BTreeSet<Key> = device.peers.iter().map(|peer| peer.public_key).collect();
            prop_assert_eq!(held, wanted);
            for (node, keys) in &nodes {
                prop_assert_eq!(holders(&device, *node, keys).len(), 1);
            }
            prop_assert!(device.peers.iter().all(|peer| peer.allowed.len() <= 1));
            for peer in &plan.greet {
                prop_assert!(device.peers.iter().any(|held| held.public_key == *peer));
            }
            prop_assert_eq!(told(&mut device, &desired, place), Plan::default());
            let mut step = before;
            for (count, change) in plan.change.peers.iter().enumerate() {
                carry_out(&mut step, &DeviceChange { peers: vec![change.clone()], ..DeviceChange::default() });
                let stays = plan.change.peers[count..].iter().all(|left| !matches!(left, PeerChange::Remove(_)));
                for peer in device.peers.iter().filter(|peer| stays && !peer.allowed.is_empty()) {
                    let had = step.peers.iter().any(|held| held.public_key == peer.public_key);
                    let holds = step.peers.iter().any(|held| held.allowed == peer.allowed);
                    let is_given = plan.change.peers[count + 1..].iter().any(|left| matches!(
                        left, PeerChange::Set(set) if set.allowed.as_ref() == Some(&peer.allowed)));
                    prop_assert!(!had || holds || is_given);
                }
            }
            for (bit, peer) in device.peers.iter_mut().enumerate() {
                if shaken >> (bit % 64) & 1 == 1 {
                    peer.last_handshake = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
                }
            }
        }
    }
}
