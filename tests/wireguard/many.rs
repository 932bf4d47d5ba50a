//! As many peers as a large cluster has.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use netns_harness::{Inside, eventually, isolated};
use weft_tests::slower;
use weft_wireguard::{Desired, KeyPair, Peer, Secret32};

use crate::{
    bed::{Bed, LOOK_EVERY, PATIENCE, PORT, has_tap, key, underlay},
    forgeries::memory,
};

const PEERS: u16 = 1000;
/// They share addresses, so that this test needs fewer descriptors.
const ADDRESSES: u16 = 250;
const RESPONSE: [u8; 4] = [2, 0, 0, 0];

fn secret(number: u16) -> Secret32 {
    let [low, high] = number.to_le_bytes();
    // None of them is the key of a host.
    Secret32::new([[low, high, 0x55, 0xaa]; 8].concat().try_into().unwrap())
}

fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, 0, 1 + (number % ADDRESSES) as u8)
}

#[test]
fn a_thousand_peers_that_restart_at_once_have_sessions_at_once() {
    isolated(|| {
        if !has_tap() {
            return;
        }
        let bed = Bed::new(2);
        let (one, two) = (&bed.nodes[0], &bed.nodes[1]);
        one.shell("ip route add 10.200.0.0/16 via 192.0.2.2");
        two.shell("ip route add local 10.200.0.0/16 dev lo");
        let shared = Secret32::new([99; 32]);
        let wanted = |number: u16| Peer {
            pairs: vec![KeyPair {
                own: 0,
                public_key: secret(number).public_key(),
                preshared_key: shared.clone(),
            }],
            vtep: Ipv4Addr::from_bits(0x6450_0000 + u32::from(number)),
            endpoint: SocketAddr::from((address(number), PORT)),
        };
        let nobody = Desired {
            peers: Vec::new(),
            ..bed.desired(1)
        };
        one.apply(nobody.clone());
        let before = memory(one);
        one.apply(Desired {
            peers: (0..PEERS).map(wanted).collect(),
            ..nobody
        });
        let each = (memory(one) - before) as f64 / f64::from(PEERS);
        assert!(each <= 12.0, "{each} KiB for each peer");

        let bind = |number| {
            two.host
                .run(|| UdpSocket::bind((address(number), PORT)))
                .unwrap()
                .unwrap()
        };
        let sockets: Vec<_> = (0..ADDRESSES).map(bind).collect();
        let mut peers: Vec<_> = (0..PEERS)
            .map(|number| {
                let (own, other) = (
                    StaticSecret::from(*secret(number).expose()),
                    PublicKey::from(key(1).public_key()),
                );
                let mut tunn = Tunn::new(own, other, Some(*shared.expose()), None, number.into(), None);
                let mut out = [0; 256];
                match tunn.format_handshake_initiation(&mut out, false) {
                    TunnResult::WriteToNetwork(initiation) => (tunn, initiation.to_vec()),
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        // Packets to a neighbour that is not known yet wait in a short queue.
        two.host.ping(underlay(1).into(), *PATIENCE).unwrap();
        let begun = Instant::now();
        for (number, (_, initiation)) in (0..).zip(&peers) {
            let socket = &sockets[usize::from(number % ADDRESSES)];
            socket.send_to(initiation, (underlay(1), PORT)).unwrap();
        }
        let mut responses: Vec<(usize, Vec<u8>)> = Vec::new();
        for socket in &sockets {
            socket
                .set_read_timeout(Some(slower(Duration::from_secs(10))))
                .unwrap();
            let mut bytes = [0; 256];
            let mut answered = HashSet::new();
            while answered.len() < usize::from(PEERS / ADDRESSES) {
                let length = socket.recv(&mut bytes).expect("a response");
                if bytes[..4] == RESPONSE {
                    let receiver = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
                    answered.insert(receiver >> 8);
                    responses.push(((receiver >> 8) as usize, bytes[..length].to_vec()));
                }
            }
        }
        let took = begun.elapsed();
        println!("{PEERS} peers: {each:.1} KiB each, all answered after {took:?}");
        // Two seconds are the aim, of a program that is not built for tests, with a machine to itself.
        assert!(took < slower(Duration::from_secs(8)), "{took:?}");
        for (number, response) in responses {
            let mut out = [0; 256];
            match peers[number].0.decapsulate(None, &response, &mut out) {
                TunnResult::WriteToNetwork(keepalive) => {
                    let socket = &sockets[number % usize::from(ADDRESSES)];
                    socket.send_to(keepalive, (underlay(1), PORT)).unwrap();
                }
                other => panic!("{other:?}"),
            };
        }
        let all = || {
            let status = one.status();
            let with_session = status
                .peers
                .iter()
                .filter(|peer| peer.last_handshake().is_some())
                .count();
            if with_session == usize::from(PEERS) {
                Ok(())
            } else {
                Err(with_session)
            }
        };
        eventually("sessions with all", *PATIENCE, LOOK_EVERY, all).unwrap();
        assert_eq!(one.status().dropped.over_budget, 0);
        drop(sockets);
        bed.close();
    });
}
