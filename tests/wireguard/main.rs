//! The process of the tunnels on hosts in namespaces: real packets through real devices, real sockets and real
//! strangers. As an ordinary user they run where `/dev/net/tun` is for everybody.

mod bed;
mod forgeries;
mod interop;
mod many;
mod paths;
mod rotation;
mod stranger;
mod traffic;
mod turns;

use std::time::Duration;

use netns_harness::{CaptureOptions, Inside, isolated};
use weft_wireguard::Secret32;

use bed::{Bed, PATIENCE, PORT, container, has_tap, on_two};
use traffic::{CANARY, Talks};

/// Quick enough that the capture keeps up.
fn has_canary(frame: &[u8]) -> bool {
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|byte| *byte == CANARY[0]) {
        if rest[at..].starts_with(CANARY) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[test]
fn two_hosts_carry_everything_and_show_nothing() {
    isolated(|| {
        if !has_tap() {
            return;
        }
        let mut bed = Bed::new(2);
        let canary = bed.nodes[0]
            .host
            .capture("eth0", CaptureOptions::new().filter(has_canary))
            .unwrap();
        let other = |frame: &[u8]| {
            // IPv4 with UDP to and from our port, or ARP and the kernel's own of IPv6.
            let ports = frame.get(34..38).unwrap_or_default();
            let ours = frame[12..14] == [8, 0] && ports == [PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
            let neighbours = frame[12..14] == [8, 6] || (frame[12..14] == [0x86, 0xdd] && frame[20] != 17);
            !ours && !neighbours
        };
        let strange = bed.nodes[0]
            .host
            .capture("eth0", CaptureOptions::new().filter(other))
            .unwrap();
        let (one, two) = (&bed.nodes[0], &bed.nodes[1]);
        assert!(one.is_unheard_by(two, false, Duration::from_millis(300)));
        bed.connect();
        for v6 in [false, true] {
            one.pod.ping(container(2, v6), *PATIENCE).unwrap();
            one.asks(two, v6).unwrap();
            one.streams_to(two, v6, 5_000).unwrap();
            two.streams_to(one, v6, 5_000).unwrap();
        }
        let (status, peer) = (one.status(), one.about(2));
        assert!(peer.last_handshake().is_some() && peer.segmentation, "{peer:?}");
        assert!(
            peer.sent_bytes > 10_000_000 && peer.received_bytes > 10_000_000,
            "{peer:?}"
        );
        assert_eq!((peer.path_mtu, peer.lost), (None, 0));
        assert!(
            status.networks[0].attached && status.networks[0].received_frames > 7_000,
            "{status:?}"
        );
        // Killed and started again, it knows nothing and says nothing until it is told.
        bed.nodes[0].process().kill().unwrap();
        let (one, two) = (&bed.nodes[0], &bed.nodes[1]);
        assert!(one.is_unheard_by(two, false, Duration::from_millis(300)));
        bed.nodes[0].start();
        let (one, two) = (&bed.nodes[0], &bed.nodes[1]);
        assert!(one.is_unheard_by(two, false, Duration::from_millis(300)));
        one.apply(bed.desired(1));
        two.streams_to(one, false, 1000).unwrap();
        let seen = canary.stop().unwrap();
        assert_eq!((seen.matched, seen.missed), (0, 0), "{seen:?}");
        assert!(seen.frames > 300, "{seen:?}");
        assert_eq!(strange.stop().unwrap().matched, 0);
        bed.close();
    });
}

#[test]
fn a_wrong_secret_carries_nothing() {
    on_two(|bed, one, two| {
        one.asks(two, false).unwrap();
        let mut wrong = bed.desired(2);
        wrong.peers[0].pairs[0].preshared_key = Secret32::new([1; 32]);
        two.apply(wrong);
        assert!(one.is_unheard_by(two, false, Duration::from_secs(2)));
        assert!(two.is_unheard_by(one, false, Duration::from_secs(1)));
        two.apply(bed.desired(2));
        one.asks(two, false).unwrap();
    });
}
