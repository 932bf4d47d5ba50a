//! What a network is: its addresses, its walls, its ways out, its largest packet.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use netns_harness::{Inside as _, Sandbox};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    bed::{Bed, Endpoint, Node, alone, items, soon, text},
    traffic::{Answer, PORT, Server, call},
};

/// Long enough for an answer within a lab, and the time that is waited for one that must not come.
const MOMENT: Duration = Duration::from_millis(400);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Sends a UDP datagram in an IPv4 packet of `length` bytes that may not be fragmented.
fn send_whole(from: SocketAddr, to: SocketAddr, length: u16) -> io::Result<()> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else {
        panic!("IPv4 only")
    };
    // The kernel fills in identification and checksum of the IP header, and UDP over IPv4 needs none (RFC 768).
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend((length - 20).to_be_bytes());
    packet.resize(length.into(), 0);
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
    raw.send_to(&packet, &SocketAddr::from((destination, 0)).into())?;
    Ok(())
}

/// Whether a packet of this length gets to the other end, and an answer back.
fn passes(from: &Endpoint, to: IpAddr, length: u16) -> io::Result<Answer> {
    from.sandbox
        .run(|| {
            let socket = UdpSocket::bind((from.address(), 0))?;
            socket.set_read_timeout(Some(MOMENT))?;
            let to = SocketAddr::new(to, PORT);
            for attempt in 0.. {
                send_whole(socket.local_addr()?, to, length)?;
                let mut buffer = [0; 256];
                match socket.recv(&mut buffer) {
                    Ok(length) => return Answer::parse(&String::from_utf8_lossy(&buffer[..length])),
                    Err(_) if attempt < 5 => {}
                    Err(error) => return Err(error),
                }
            }
            unreachable!("the loop returns")
        })
        .unwrap()
}

fn unreachable(from: &Sandbox, to: &str) {
    let answer = from.ping(ip(to), MOMENT);
    assert!(answer.is_err(), "{to} answers {}", from.name());
}

#[test]
fn networks_are_apart_and_their_settings_hold() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let [h1, h2] = [&bed["h1"], &bed["h2"]];
        let outside = bed.outsider("outside");
        let outside_address = outside.interface("eth0").unwrap().addresses().unwrap()[0].addr();
        let server = Server::start(&outside, "outside");

        // Two networks of the same addresses.
        h1.weft("network create --subnet 10.20.0.0/24 red");
        h1.weft("network create --subnet 10.20.0.0/24 --allow-overlap blue");
        h1.weft("network create --internal inner");
        h1.weft(
            "network create --subnet 10.21.0.0/24 --ip-range 10.21.0.64/26 --gateway 10.21.0.254 \
             --aux-address printer=10.21.0.65 --subnet fd21::/64 --ipv6 --opt mtu=1400 fixed",
        );
        bed.everywhere("all networks", |node| {
            match items(&node.json("network ls")).count() {
                4 => Ok(()),
                count => Err(count),
            }
        });
        let mut both = Vec::new();
        for color in ["red", "blue"] {
            let near = h1.connected(&format!("{color}-1"), color, "--ip 10.20.0.5");
            let far = h2.replica(&format!("{color}-2"), color, "--ip 10.20.0.6");
            both.push((color, near, far));
        }
        let only_blue = h1.connected("blue-3", "blue", "--ip 10.20.0.7");
        for (color, near, far) in &both {
            for to in [near, far] {
                assert_eq!(to.said["mtu"], 1450);
            }
            let call = soon(format!("an answer on {color}"), || {
                call(&near.sandbox, ip("10.20.0.6"))
            });
            assert_eq!(
                call.answer.name,
                format!("{color}-2"),
                "the other network's endpoint answers"
            );
            assert_eq!(call.answer.seen.ip(), ip("10.20.0.5"));
        }
        let (_, red, far_red) = &both[0];
        let (_, blue, _) = &both[1];
        soon("an echo on blue", || {
            blue.sandbox.ping(only_blue.address(), MOMENT)
        });
        unreachable(&red.sandbox, "10.20.0.7");

        // The largest packet passes whole, and a larger one is refused where it is sent.
        assert_eq!(passes(red, far_red.address(), 1450).unwrap().name, "red-2");
        let error = passes(red, far_red.address(), 1451).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EMSGSIZE), "{error}");

        // A way out through the host, but not from an internal network.
        let call_out = call(&red.sandbox, outside_address).unwrap();
        assert_eq!(call_out.answer.name, "outside");
        assert_eq!(call_out.answer.seen.ip(), h1.address(), "hidden behind the host");
        let inner = h1.connected("inner-1", "inner", "");
        let error = call(&inner.sandbox, outside_address).err().expect("no way out");
        assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable, "{error}");
        unreachable(&inner.sandbox, &h1.address().to_string());
        assert_eq!(items(&inner.said["gateways"]).count(), 0);

        // What was asked for is what there is.
        let near = h1.connected(
            "fixed-1",
            "fixed",
            "--ip 10.21.0.9 --ip6 fd21::9 --mac 02:00:00:00:21:09",
        );
        let far = h2.replica("fixed-2", "fixed", "");
        assert_eq!(near.addresses, [ip("10.21.0.9"), ip("fd21::9")]);
        assert_eq!(text(&near.said["mac"]), "02:00:00:00:21:09");
        assert_eq!(near.said["mtu"], 1400);
        assert_eq!(text(&near.said["gateways"][0]), "10.21.0.254");
        assert_eq!(far.addresses.len(), 2);
        for &address in &far.addresses {
            let call = soon(format!("an answer of {address}"), || call(&near.sandbox, address));
            assert!(
                near.addresses.contains(&call.answer.seen.ip()),
                "{:?}",
                call.answer
            );
        }
        soon("an echo of the gateway", || {
            near.sandbox.ping(ip("10.21.0.254"), MOMENT)
        });
        assert!(passes(&near, far.address(), 1400).is_ok());
        assert!(passes(&near, far.address(), 1401).is_err());

        // Released addresses are handed out again late.
        let mut seen = BTreeSet::from([far.address()]);
        let again = h2.host.sandbox("again").unwrap();
        for _ in 0..6 {
            let endpoint = h2.connect(again.clone(), "fixed", "");
            let IpAddr::V4(address) = endpoint.address() else {
                panic!("{:?}", endpoint.addresses)
            };
            let (first, last) = (Ipv4Addr::new(10, 21, 0, 66), Ipv4Addr::new(10, 21, 0, 127));
            assert!(
                (first..=last).contains(&address),
                "{address} is not from the range"
            );
            assert!(seen.insert(address.into()), "{address} again");
            h2.weft("network disconnect fixed again");
        }
        bed.all_well();
        drop((server, both, far, call_out));
        bed.close();
    });
}

#[test]
fn networks_that_nobody_uses_are_removed_together_and_no_others() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let [h1, h2] = [&bed["h1"], &bed["h2"]];
        for network in ["used", "served", "idle", "spare"] {
            h1.weft(&format!("network create {network}"));
        }
        h1.weft("service create --network served web");
        let names = |node: &Node| {
            let networks = node.json("network ls");
            let names = items(&networks).map(|network| text(&network["name"]).to_owned());
            names.collect::<BTreeSet<_>>()
        };
        let has = |node: &Node, count: usize| {
            let what = format!("{count} networks");
            soon(&what, || match names(node).len() {
                found if found == count => Ok(()),
                found => Err(found),
            });
        };
        has(h2, 4);
        let end = h2.connected("end", "used", "");
        soon("the endpoint and the service", || {
            let said = h1.weft("network prune --dry-run");
            let lines = said.lines().collect::<Vec<_>>();
            let as_wanted = lines.len() == 2 && lines.iter().all(|line| line.starts_with("would remove"));
            as_wanted.then_some(()).ok_or(said)
        });
        has(h1, 4);
        let said = h1.weft("network prune");
        assert_eq!(said.matches("removed network").count(), 2, "{said}");
        for node in [h1, h2] {
            has(node, 2);
            assert_eq!(names(node), BTreeSet::from(["used".into(), "served".into()]));
        }
        assert!(h2.weft("network prune").contains("none to remove"));
        drop(end);
        bed.close();
    });
}
