//! Underlays that take less than they did, and nodes that move.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netns_harness::{eventually, isolated};
use nix::libc;
use weft_tests::slower;

use crate::{
    bed::{Bed, LOOK_EVERY, PATIENCE, PORT, container, has_tap, on_two_over_both},
    traffic::Talks,
};

#[test]
fn tcp_goes_on_when_the_path_takes_less_and_status_says_so() {
    on_two_over_both(|bed, one, two| {
        let shrink = |block| {
            if block == 20_000 {
                // The sender's kernel knows, and the other end takes no more.
                one.shell("ip link set eth0 mtu 1400");
                two.shell("ip link set eth0 mtu 1400");
            }
        };
        one.streams_with(two, false, 100_000, shrink).unwrap();
        let peer = one.about(2);
        assert_eq!(peer.path_mtu, Some(1400), "{peer:?}");
        for v6 in [false, true] {
            one.streams_to(two, v6, 10_000).unwrap();
            two.streams_to(one, v6, 10_000).unwrap();
        }
        // A sender that cuts nothing learns what fits: 1400 less 60 of WireGuard, or 80 over IPv6, and 50 of VXLAN.
        let fits = if bed.is_over_v6 { 1270 } else { 1290 };
        let socket = one
            .container
            .run(|| UdpSocket::bind(("0.0.0.0", 0)))
            .unwrap()
            .unwrap();
        socket.connect((container(2, false), 9)).unwrap();
        let longer = vec![0; fits + 1 - 28];
        let learned = || match socket.send(&longer) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
            other => Err(format!("{other:?}")),
        };
        eventually("a sender to learn what fits", *PATIENCE, LOOK_EVERY, learned).unwrap();
        socket.send(&longer[1..]).unwrap();
        // And all is well again when the path is.
        one.shell("ip link set eth0 mtu 1500");
        two.shell("ip link set eth0 mtu 1500");
        let healed = || {
            one.streams_to(two, false, 100).unwrap();
            one.about(2).path_mtu.map_or(Ok(()), Err)
        };
        eventually("the path to be what it was", *PATIENCE, LOOK_EVERY, healed).unwrap();
        drop(socket);
    });
}

#[test]
fn a_route_that_takes_less_does_not_stop_tcp() {
    on_two_over_both(|bed, one, two| {
        let shrink = |block| {
            if block == 20_000 {
                let to = bed.underlay(2);
                one.shell(&format!("ip route add {to} dev eth0 mtu 1400"));
            }
        };
        one.streams_with(two, false, 60_000, shrink).unwrap();
        let peer = one.about(2);
        // What was refused went at once, another way.
        assert_eq!((peer.path_mtu, peer.lost), (Some(1400), 0));
    });
}

#[test]
fn a_node_that_moves_keeps_its_sessions() {
    on_two_over_both(|bed, one, two| {
        one.asks(two, false).unwrap();
        let before = one.about(2);
        assert_eq!(before.endpoint.ip(), bed.underlay(2));
        let (from, to) = match bed.is_over_v6 {
            false => ("192.0.2.2/24", "192.0.2.77/24"),
            true => ("fd00:99::2/64", "fd00:99::77/64"),
        };
        // Without the search for others who have it, during which it is not sent from.
        two.shell(&format!(
            "ip addr del {from} dev eth0; ip addr add {to} dev eth0 nodad"
        ));
        two.streams_to(one, false, 1000).unwrap();
        let after = one.about(2);
        let to: IpNet = to.parse().unwrap();
        assert_eq!(after.endpoint, SocketAddr::new(to.addr(), PORT));
        assert!(
            after.last_handshake() >= before.last_handshake(),
            "a new handshake"
        );
        // What its record said all along does not move it back.
        one.apply(bed.desired(1));
        assert_eq!(one.about(2).endpoint, after.endpoint);
        one.asks(two, false).unwrap();
    });
}

#[test]
fn what_is_told_changes_nothing_for_those_who_stay() {
    isolated(|| {
        if !has_tap() {
            return;
        }
        let bed = Bed::new(3);
        bed.connect();
        let (one, two, three) = (&bed.nodes[0], &bed.nodes[1], &bed.nodes[2]);
        one.asks(three, false).unwrap();
        thread::scope(|scope| {
            let going = scope.spawn(|| one.streams_to(two, false, 100_000));
            let mut without = bed.desired(1);
            without.peers.retain(|peer| peer.vtep != crate::bed::vtep(3));
            for round in 0..50 {
                let wanted = if round % 2 == 0 {
                    without.clone()
                } else {
                    bed.desired(1)
                };
                assert_eq!(one.apply(wanted), [] as [&str; 0]);
            }
            going.join().unwrap().unwrap();
        });
        assert_eq!(one.about(2).lost, 0);
        // Who was taken away and came back begins anew.
        one.asks(three, false).unwrap();
        bed.close();
    });
}

#[test]
fn tcp_goes_on_over_a_path_that_drops_long_packets_in_silence() {
    on_two_over_both(|_, one, two| {
        for node in [one, two] {
            // Every packet by itself, as on a wire.
            node.shell("ethtool -K eth0 tso off gso off gro off tx-udp-segmentation off");
        }
        one.streams_to(two, false, 5_000).unwrap();
        assert_eq!(one.about(2).path_mtu, None);
        let mut since = None;
        let mut stall = Duration::ZERO;
        let swallow = |block| {
            if block == 20_000 {
                for node in [one, two] {
                    node.shell(
                        "nft 'table netdev hole { chain in { type filter hook ingress device eth0 priority 0; meta length \
                         > 1405 drop; }; }'",
                    );
                }
            }
            let now = Instant::now();
            stall = stall.max(since.replace(now).map_or(Duration::ZERO, |at| now - at));
        };
        one.streams_with(two, false, 60_000, swallow).unwrap();
        println!("long packets dropped in silence: TCP stood still for {stall:.1?}");
        assert!(stall > Duration::from_millis(500), "the hole is one");
        assert!(stall < slower(Duration::from_secs(15)), "{stall:?}");
        let peer = one.about(2);
        assert_eq!(
            (peer.path_mtu, peer.is_path_silent),
            (Some(1400), true),
            "{peer:?}"
        );
        // And back, when the path is what it was.
        for node in [one, two] {
            node.shell("nft delete table netdev hole");
        }
        let healed = || {
            one.streams_to(two, false, 100).unwrap();
            one.about(2).path_mtu.map_or(Ok(()), Err)
        };
        eventually("the path to be what it was", *PATIENCE, LOOK_EVERY, healed).unwrap();
        assert!(!one.about(2).is_path_silent);
    });
}
