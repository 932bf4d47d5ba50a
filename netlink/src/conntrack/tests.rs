use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::{
    netns::Netns,
    nft::{Chain, ChainType, Datum, Expr, Family, Hook, Load, Nft, Rule, Table, Transaction, priority},
};

/// A namespace with loopback up, in which connections are tracked because a translating rule asks for it.
fn tracking() -> Option<Netns> {
    let netns = crate::testing::netns()?;
    netns
        .run(|| {
            assert!(
                Command::new("ip")
                    .args(["link", "set", "lo", "up"])
                    .status()
                    .unwrap()
                    .success()
            );
            let table = Table::new(Family::Inet, "weft-track");
            let mut change = Transaction::new();
            change
                .add_table(&table)
                .add_chain(
                    &table,
                    Chain::base("out", ChainType::Nat, Hook::Postrouting, priority::SNAT),
                )
                .add_rule(
                    &table,
                    "out",
                    Rule::new()
                        .equal(Load::Oifname, Datum::Ifname("none".into()))
                        .then(Expr::Masquerade),
                );
            Nft::open().unwrap().commit(&change).unwrap();
        })
        .unwrap();
    Some(netns)
}

/// Collects events until one satisfies `last`.
fn collect_until(events: &Events, last: impl Fn(&Event) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut seen = Vec::new();
    while !seen.iter().any(&last) {
        assert!(
            Instant::now() < deadline,
            "the awaited event is not among {seen:?}"
        );
        let _ = poll(
            &mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(100u8),
        )
        .unwrap();
        assert_eq!(events.drain(|event| seen.push(event)).unwrap(), None);
    }
    seen
}

#[test]
fn a_tcp_connection_is_followed_from_start_to_end() {
    let Some(netns) = tracking() else { return };
    netns
        .run(|| {
            let conntrack = Conntrack::open().unwrap();
            assert_eq!(conntrack.count(), Some(0));
            assert_eq!(conntrack.flows().unwrap(), []);
            let events = Events::open().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let mut server = listener.accept().unwrap().0;
            server.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();

            assert_eq!(conntrack.count(), Some(1));
            let flows = conntrack.flows().unwrap();
            assert_eq!(flows.len(), 1, "{flows:?}");
            let flow = &flows[0];
            assert_eq!((flow.protocol, flow.tcp_state), (6, Some(TcpState::Established)));
            assert_eq!(flow.original.dst_port, port);
            assert_eq!(flow.original.src_port, client.local_addr().unwrap().port());
            assert_eq!((flow.reply.src, flow.reply.src_port), (flow.original.dst, port));

            drop((client, server));
            let closing = |event: &Event| matches!(event, Event::Update(f) if f.tcp_state == Some(TcpState::Closing));
            let seen = collect_until(&events, closing);
            assert!(
                matches!(&seen[0], Event::New(f) if f.id == flow.id && f.tcp_state == Some(TcpState::Opening)),
                "{seen:?}"
            );
            let established =
                |event: &Event| matches!(event, Event::Update(f) if f.tcp_state == Some(TcpState::Established));
            assert!(seen.iter().any(established), "{seen:?}");
        })
        .unwrap();
}

#[test]
fn a_udp_flow_can_be_forgotten() {
    let Some(netns) = tracking() else { return };
    netns
        .run(|| {
            let events = Events::open().unwrap();
            let conntrack = Conntrack::open().unwrap();
            for addr in ["127.0.0.1", "::1"] {
                let socket = UdpSocket::bind((addr, 0)).unwrap();
                socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
                let flow = conntrack
                    .flows()
                    .unwrap()
                    .into_iter()
                    .find(|flow| flow.protocol == 17)
                    .unwrap();
                assert_eq!(flow.original.dst, addr.parse::<IpAddr>().unwrap());
                assert_eq!(flow.tcp_state, None);
                assert!(conntrack.delete(&flow).unwrap());
                assert!(!conntrack.delete(&flow).unwrap(), "it is gone");
                collect_until(
                    &events,
                    |event| matches!(event, Event::Destroy(f) if f.id == flow.id),
                );
            }
            assert_eq!(conntrack.flows().unwrap(), []);
        })
        .unwrap();
}

#[test]
fn lost_events_are_noticed() {
    let Some(netns) = tracking() else { return };
    netns
        .run(|| {
            let mut socket = NfSocket::open().unwrap();
            socket.subscribe(&[GROUP_NEW], 1).unwrap();
            let events = Events { socket };
            let target = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            for _ in 0..100 {
                UdpSocket::bind("127.0.0.1:0")
                    .unwrap()
                    .send_to(b"x", target)
                    .unwrap();
            }
            assert_eq!(events.drain(|_| {}).unwrap(), Some(Overflow));
            assert_eq!(events.drain(|_| {}).unwrap(), None);
        })
        .unwrap();
}
