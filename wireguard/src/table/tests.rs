use super::*;
use crate::control;

fn vtep(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, 0, n)
}

fn secret(n: u8) -> Secret32 {
    Secret32::new([n; 32])
}

fn peer(n: u8) -> control::Peer {
    control::Peer {
        vtep: vtep(n),
        endpoint: format!("192.0.2.{n}:51820").parse().unwrap(),
        pairs: vec![pair(0, n)],
    }
}

fn pair(own: u8, key: u8) -> KeyPair {
    KeyPair {
        own,
        public_key: secret(key).public_key(),
        preshared_key: secret(0),
    }
}

/// The peer with a key that this node's first key has sessions with.
fn of_key(table: &Table, own: u8, key: u8) -> Option<(&Arc<Peer>, u32)> {
    let own = PublicKey::from(secret(own).public_key());
    table.peer_of_key(&own, &secret(key).public_key())
}

fn index_of(peer: &Peer) -> u32 {
    peer.link().pairs().next().unwrap().1
}

fn desired(peers: &[u8]) -> Desired {
    Desired {
        generation: 1,
        private_keys: vec![secret(1)],
        port: 51820,
        vtep: vtep(1),
        peers: peers.iter().map(|n| peer(*n)).collect(),
        networks: vec![Network {
            vni: Vni::try_from(7).unwrap(),
            netns: "/proc/self/ns/net".into(),
            tap: "there-is-none".to_owned(),
            members: vec![vtep(2), vtep(3)],
            fdb: vec![
                (Mac([2, 0, 0, 0, 0, 2]), vtep(2)),
                (Mac([2, 0, 0, 0, 0, 3]), vtep(3)),
            ],
        }],
    }
}

fn build(desired: Desired, before: Option<&Table>) -> Result<Table, String> {
    let mut next = 0;
    let random = || {
        next += 0x1ff;
        next
    };
    Table::build(desired, before, Instant::now(), random).map(|(table, _)| table)
}

fn packet(from: u8, to: u8, vni: u32, source: u8) -> Vec<u8> {
    let mut packet = vec![0; envelope::ENVELOPE];
    packet.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, source, 8, 0]);
    let vni = Vni::try_from(vni).unwrap();
    envelope::Envelope::new(vtep(from), vtep(to), vni).write(&mut packet, 14, 50_000);
    packet
}

#[test]
fn a_peer_speaks_only_for_itself_in_its_networks_with_its_addresses() {
    let table = build(desired(&[2, 3, 4]), None).unwrap();
    let of = |from: u8, packet: &[u8]| {
        let (peer, _) = of_key(&table, 1, from).unwrap();
        table.admit(peer, packet).map(|(_, frame)| frame.len())
    };
    let vni = Vni::try_from(7).unwrap();
    assert_eq!(of(2, &packet(2, 1, 7, 2)), Ok(14));
    assert_eq!(
        of(2, &packet(3, 1, 7, 3)),
        Err(Denied::Envelope(Refusal::WrongSource))
    );
    assert_eq!(
        of(2, &packet(2, 3, 7, 2)),
        Err(Denied::Envelope(Refusal::WrongDestination))
    );
    assert_eq!(of(2, &packet(2, 1, 8, 2)), Err(Denied::UnknownVni));
    assert_eq!(of(4, &packet(4, 1, 7, 2)), Err(Denied::NotAMember(vni)));
    assert_eq!(of(2, &packet(2, 1, 7, 3)), Err(Denied::WrongMac(vni)));
    assert_eq!(of(2, &packet(2, 1, 7, 9)), Err(Denied::WrongMac(vni)));
    // A gateway speaks for whoever it routes for, in its own network.
    let routed = |vni: u32, from: u8, gateway: u32| {
        let mut packet = packet(from, 1, vni, 0);
        let source = packet.len() - 8;
        let gateway = Vni::try_from(gateway).unwrap().gateway_mac();
        packet[source..source + 6].copy_from_slice(&gateway.0);
        packet
    };
    assert_eq!(of(2, &routed(7, 2, 7)), Ok(14));
    assert_eq!(of(2, &routed(7, 2, 8)), Err(Denied::WrongMac(vni)));
    assert_eq!(of(4, &routed(7, 4, 7)), Err(Denied::NotAMember(vni)));
}

#[test]
fn who_stays_keeps_what_it_has_and_who_goes_is_gone() {
    let before = build(desired(&[2, 3]), None).unwrap();
    let mut wanted = desired(&[2, 4]);
    wanted.peers[0].endpoint = "192.0.2.99:1".parse().unwrap();
    let roamed = "198.51.100.1:9".parse().unwrap();
    before.peers[0].link().move_to(roamed);
    // Where it said it was all the time is no news.
    let same = build(desired(&[2, 3]), Some(&before)).unwrap();
    assert_eq!(same.peers[0].link().endpoint(), roamed);
    let after = build(wanted, Some(&before)).unwrap();
    assert!(Arc::ptr_eq(&before.peers[0], &after.peers[0]));
    assert_eq!(after.peers[0].link().endpoint(), "192.0.2.99:1".parse().unwrap());
    assert!(of_key(&after, 1, 3).is_none());
    assert!(after.peer_of_index(index_of(&before.peers[1]) << 8).is_none());
    assert!(after.is_known("192.0.2.99".parse().unwrap()) && !after.is_known("192.0.2.2".parse().unwrap()));
    let indices: HashSet<_> = before
        .peers
        .iter()
        .chain(&after.peers)
        .map(|peer| index_of(peer))
        .collect();
    assert_eq!(indices.len(), 3);
}

#[test]
fn another_key_of_either_side_or_another_secret_begins_anew() {
    let before = build(desired(&[2]), None).unwrap();
    let mut other = desired(&[2]);
    other.peers[0].pairs[0].preshared_key = secret(9);
    let after = build(other, Some(&before)).unwrap();
    assert!(!Arc::ptr_eq(&before.peers[0], &after.peers[0]));
    let other = Desired {
        private_keys: vec![secret(8)],
        ..desired(&[2])
    };
    let after = build(other, Some(&before)).unwrap();
    assert!(!Arc::ptr_eq(&before.peers[0], &after.peers[0]));
}

#[test]
fn a_node_that_changes_its_key_stays_the_same_and_keeps_its_sessions_while_both_are_told() {
    let before = build(desired(&[2, 3]), None).unwrap();
    let roamed = "198.51.100.1:9".parse().unwrap();
    before.peers[0].link().move_to(roamed);
    // This node has a new key, and so has the other.
    let mut wanted = desired(&[2, 3]);
    wanted.private_keys = vec![secret(11), secret(1)];
    wanted.peers[0].pairs = vec![pair(0, 12), pair(0, 2), pair(1, 12), pair(1, 2)];
    wanted.peers[1].pairs = vec![pair(0, 3), pair(1, 3)];
    let both = build(wanted.clone(), Some(&before)).unwrap();
    assert!(Arc::ptr_eq(&before.peers[0], &both.peers[0]));
    assert_eq!(both.peers[0].link().endpoint(), roamed);
    let old = of_key(&before, 1, 2).unwrap().1;
    assert_eq!(of_key(&both, 1, 2).unwrap().1, old);
    let numbers: HashSet<_> = both.peers[0].link().pairs().map(|(_, index)| index).collect();
    assert_eq!(numbers.len(), 4);
    for index in numbers {
        assert!(Arc::ptr_eq(
            both.peer_of_index(index << 8).unwrap(),
            &both.peers[0]
        ));
    }
    // The old ones go, with everything that was made of them.
    wanted.private_keys = vec![secret(11)];
    wanted.peers[0].pairs = vec![pair(0, 12)];
    wanted.peers[1].pairs = vec![pair(0, 3)];
    let after = build(wanted, Some(&both)).unwrap();
    assert!(Arc::ptr_eq(&before.peers[0], &after.peers[0]));
    assert_eq!(after.identities.len(), 1);
    assert!(of_key(&after, 1, 2).is_none() && of_key(&after, 11, 2).is_none());
    assert!(after.peer_of_index(old << 8).is_none());
    assert_eq!(
        of_key(&after, 11, 12).unwrap().1,
        of_key(&both, 11, 12).unwrap().1
    );
    assert_eq!(
        after
            .peers
            .iter()
            .map(|peer| peer.link().pairs().count())
            .sum::<usize>(),
        2
    );
}

#[test]
fn a_state_that_means_two_things_is_refused_whole() {
    let mut wanted = desired(&[2, 3]);
    wanted.peers[1].pairs = vec![pair(0, 2)];
    assert_eq!(
        build(wanted, None).err().unwrap(),
        "two peers have one public key"
    );
    let mut wanted = desired(&[2]);
    wanted.peers[0].pairs[0].own = 1;
    assert_eq!(
        build(wanted, None).err().unwrap(),
        "there is no key 1 of this node"
    );
    let mut wanted = desired(&[2, 3]);
    wanted.peers[1].vtep = vtep(2);
    assert_eq!(
        build(wanted, None).err().unwrap(),
        "two nodes have the address 100.64.0.2"
    );
    let mut wanted = desired(&[2]);
    wanted.peers[0].vtep = vtep(1);
    assert_eq!(
        build(wanted, None).err().unwrap(),
        "two nodes have the address 100.64.0.1"
    );
    let mut wanted = desired(&[]);
    wanted.networks.push(wanted.networks[0].clone());
    assert_eq!(
        build(wanted, None).err().unwrap(),
        "two networks have the number 7"
    );
}

#[test]
fn a_frame_goes_to_the_peer_of_its_address_and_a_group_nowhere() {
    let table = build(desired(&[2]), None).unwrap();
    let network = table.networks.values().next().unwrap();
    let to = |mac: [u8; 6]| {
        let frame = [&mac[..], &[0; 8]].concat();
        network.route(&frame).map(|peer| peer.vtep())
    };
    assert_eq!(to([2, 0, 0, 0, 0, 2]), Some(vtep(2)));
    assert_eq!(to([2, 0, 0, 0, 0, 3]), None, "a member that is no peer yet");
    assert_eq!(to([0xff; 6]), None);
    assert_eq!(to([2, 0, 0, 0, 0, 9]), None);
}

#[test]
fn a_device_that_cannot_be_opened_is_told_about_and_the_rest_is_done() {
    let (table, failed) = Table::build(desired(&[2]), None, Instant::now(), || 256).unwrap();
    assert_eq!(failed, ["network 7: there is no device there-is-none"]);
    assert!(!table.network_status()[0].attached);
}
