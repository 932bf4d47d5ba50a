use std::net::IpAddr;

use weft_types::{Mac, Vni};

use super::*;
use crate::{netns::Netns, testing::netns};

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A bridge with a VXLAN port in one namespace whose underlay is another, and a veth from it to a third.
fn attachment(there: &Netns) -> Batch {
    use std::os::fd::AsFd;
    let mut batch = Batch::new();
    batch
        .add(
            NewLink::bridge("br0", BridgeOptions::default())
                .index(10)
                .mac(mac(1))
                .mtu(1450)
                .alias("weft:br")
                .up(),
        )
        .add(
            NewLink::veth(
                "p1",
                VethPeer::new("eth0")
                    .index(7)
                    .mac(mac(9))
                    .mtu(1450)
                    .netns(there.as_fd()),
            )
            .index(12)
            .mtu(1450)
            .alias("weft:port")
            .master(10)
            .up(),
        )
        .add(SetLink::index(12).port(PortFlags {
            learning: Some(false),
            flood: Some(false),
            ..Default::default()
        }))
        .add(
            Address {
                link: 10,
                net: "10.9.0.1/24".parse().unwrap(),
                prefix_route: true,
            }
            .add(),
        )
        .add(
            Address {
                link: 10,
                net: "fd00:9::1/64".parse().unwrap(),
                prefix_route: true,
            }
            .add(),
        )
        .add(
            Address {
                link: 10,
                net: "169.254.53.53/32".parse().unwrap(),
                prefix_route: false,
            }
            .add(),
        )
        .add(
            BridgeFdb {
                port: 12,
                mac: mac(9),
            }
            .replace(),
        )
        .add(
            Neighbour {
                link: 10,
                address: ip("10.9.0.9"),
                mac: mac(9),
            }
            .replace(),
        )
        .add(
            Neighbour {
                link: 10,
                address: ip("fd00:9::9"),
                mac: mac(9),
            }
            .replace(),
        )
        .add(Route::default_via(ip("10.9.0.254"), 10).add());
    batch
}

#[test]
fn one_batch_makes_a_link_and_all_that_hangs_on_it() {
    let (Some(here), Some(there)) = (netns(), netns()) else {
        return;
    };
    let mut socket = RouteSocket::open(&here).unwrap();
    socket.execute(attachment(&there)).unwrap();

    let links = socket.links().unwrap();
    let bridge = links.iter().find(|link| link.index == 10).unwrap();
    assert_eq!(
        (bridge.name.as_str(), bridge.kind.as_str(), bridge.mtu, bridge.up),
        ("br0", "bridge", 1450, true)
    );
    assert_eq!(
        (bridge.mac, bridge.alias.as_deref()),
        (Some(mac(1)), Some("weft:br"))
    );
    let port = links.iter().find(|link| link.index == 12).unwrap();
    assert_eq!((port.master, port.peer), (Some(10), Some(7)));
    assert!(port.peer_netnsid.is_some());
    let flags = port.detail.port.unwrap();
    assert_eq!(
        (flags.learning, flags.flood, flags.bcast_flood),
        (Some(false), Some(false), Some(true))
    );

    let address = |net: &str, prefix_route| Address {
        link: 10,
        net: net.parse().unwrap(),
        prefix_route,
    };
    let addresses = socket.addresses().unwrap();
    for expected in [
        address("10.9.0.1/24", true),
        address("fd00:9::1/64", true),
        address("169.254.53.53/32", false),
    ] {
        assert!(addresses.contains(&expected), "{expected:?} in {addresses:?}");
    }
    let routes = socket.routes().unwrap();
    assert!(
        routes.contains(&Route::default_via(ip("10.9.0.254"), 10)),
        "{routes:?}"
    );
    let neighbours = socket.neighbours().unwrap();
    for address in [ip("10.9.0.9"), ip("fd00:9::9")] {
        let expected = NeighbourEntry {
            link: 10,
            address,
            mac: Some(mac(9)),
            permanent: true,
        };
        assert!(neighbours.contains(&expected), "{neighbours:?}");
    }
    let fdb = socket.fdb(None).unwrap();
    let expected = FdbEntry {
        link: 12,
        mac: mac(9),
        vtep: None,
        is_static: true,
    };
    assert!(fdb.contains(&expected), "{fdb:?}");
    // One that is not there among more than are asked for at one time.
    let asked: Vec<_> = (0..70).map(|n| mac(if n == 66 { 9 } else { 0x80 + n })).collect();
    let found = socket.fdb_of_bridge(10, &asked).unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [(mac(9), expected)]);
    let of_link = socket.fdb(Some(12)).unwrap();
    assert!(of_link.contains(&expected) && of_link.iter().all(|entry| entry.link == 12));

    let mut inside = RouteSocket::open(&there).unwrap();
    let mut batch = Batch::new();
    batch.add(SetLink::index(7).up());
    inside.execute(batch).unwrap();
    let peer = inside.links().unwrap();
    let eth0 = peer.iter().find(|link| link.index == 7).unwrap();
    assert_eq!(
        (eth0.name.as_str(), eth0.mac, eth0.up),
        ("eth0", Some(mac(9)), true)
    );

    let mut batch = Batch::new();
    batch
        .add(delete_link(12))
        .add(delete_link(10))
        .add(delete_link(10));
    socket.execute(batch).unwrap();
    assert_eq!(socket.links().unwrap().len(), links.len() - 2);
}

#[test]
fn a_refusal_names_the_message_and_the_others_are_carried_out() {
    let Some(here) = netns() else { return };
    let mut socket = RouteSocket::open(&here).unwrap();
    let mut batch = Batch::new();
    batch
        .add(NewLink::bridge("br0", BridgeOptions::default()).index(10))
        .add(
            Address {
                link: 99,
                net: "10.0.0.1/24".parse().unwrap(),
                prefix_route: true,
            }
            .add(),
        )
        .add(NewLink::bridge("br0", BridgeOptions::default()))
        .add(SetLink::index(10).up());
    let BatchError::Refused(refusals) = socket.execute(batch).unwrap_err() else {
        panic!("not refused")
    };
    let [first, second] = refusals.as_slice() else {
        panic!("{refusals:?}")
    };
    assert_eq!((first.index, first.errno), (1, libc::ENODEV));
    assert!(
        first
            .to_string()
            .starts_with("could not add address 10.0.0.1/24 to link 99: No such device"),
        "{first}"
    );
    assert_eq!((second.index, second.errno), (2, libc::EEXIST));
    assert!(
        socket
            .links()
            .unwrap()
            .iter()
            .any(|link| link.index == 10 && link.up)
    );
}

#[test]
fn a_vxlan_device_keeps_its_socket_where_it_was_made() {
    use std::os::fd::AsFd;
    let (Some(underlay), Some(overlay)) = (netns(), netns()) else {
        return;
    };
    let mut outside = RouteSocket::open(&underlay).unwrap();
    let mut inside = RouteSocket::open(&overlay).unwrap();
    for (local, vtep) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let options = VxlanOptions {
            vni: Vni::try_from(77).unwrap(),
            local: ip(local),
            port: 4789,
        };
        let mut batch = Batch::new();
        batch.add(
            NewLink::vxlan("vx0", options)
                .index(3)
                .mtu(1450)
                .netns(overlay.as_fd()),
        );
        outside.execute(batch).unwrap();
        let mut batch = Batch::new();
        batch
            .add(NewLink::bridge("br0", BridgeOptions::default()).index(2).up())
            .add(SetLink::index(3).master(2).up().port(PortFlags {
                learning: Some(false),
                neigh_suppress: Some(true),
                flood: Some(false),
                mcast_flood: Some(false),
                bcast_flood: Some(false),
                hairpin: None,
            }))
            .add(BridgeFdb { port: 3, mac: mac(5) }.replace())
            .add(
                VxlanFdb {
                    link: 3,
                    mac: mac(5),
                    vtep: ip(local),
                }
                .replace(),
            )
            .add(
                VxlanFdb {
                    link: 3,
                    mac: mac(5),
                    vtep: ip(vtep),
                }
                .replace(),
            );
        inside.execute(batch).unwrap();
        let links = inside.links().unwrap();
        let vxlan = links.iter().find(|link| link.name == "vx0").unwrap();
        let shown = vxlan.detail.vxlan.unwrap();
        assert_eq!(
            (shown.vni, shown.local, shown.port),
            (options.vni, options.local, options.port)
        );
        assert_eq!(vxlan.detail.port.unwrap().neigh_suppress, Some(true));
        let mut entries: Vec<_> = inside
            .fdb(Some(3))
            .unwrap()
            .into_iter()
            .filter(|entry| entry.mac == mac(5))
            .collect();
        entries.sort();
        let entry = |vtep| FdbEntry {
            link: 3,
            mac: mac(5),
            vtep,
            is_static: true,
        };
        assert_eq!(
            entries,
            [entry(None), entry(Some(ip(vtep)))],
            "a replaced entry has one VTEP"
        );
        // Only the namespace of the socket knows that the VNI is taken.
        let mut batch = Batch::new();
        batch.add(NewLink::vxlan("other", options));
        let BatchError::Refused(refusals) = outside.execute(batch).unwrap_err() else {
            panic!("not refused")
        };
        assert_eq!(refusals[0].errno, libc::EEXIST);
        let mut batch = Batch::new();
        batch.add(
            VxlanFdb {
                link: 3,
                mac: mac(5),
                vtep: ip(vtep),
            }
            .delete(),
        );
        batch.add(BridgeFdb { port: 3, mac: mac(5) }.delete());
        batch.add(BridgeFdb { port: 3, mac: mac(5) }.delete());
        batch.add(delete_link(3)).add(delete_link(2));
        inside.execute(batch).unwrap();
    }
}

#[test]
fn thousands_of_entries_go_in_and_come_back() {
    let Some(here) = netns() else { return };
    let mut socket = RouteSocket::open(&here).unwrap();
    let mut batch = Batch::new();
    batch.add(NewLink::bridge("br0", BridgeOptions::default()).index(10).up());
    let expected: Vec<_> = (0..2000_u16)
        .map(|n| Neighbour {
            link: 10,
            address: IpAddr::from([10, 9, n.to_be_bytes()[0], n.to_be_bytes()[1]]),
            mac: Mac([2, 0, 0, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]),
        })
        .collect();
    // The kernel holds at most gc_thresh3 neighbours that it may forget; permanent ones are not counted.
    expected.iter().for_each(|neighbour| {
        batch.add(neighbour.replace());
    });
    socket.execute(batch).unwrap();
    let entries = socket.neighbours().unwrap();
    let permanent = entries.iter().filter(|entry| entry.permanent && entry.link == 10);
    assert_eq!(permanent.count(), expected.len());
    // A batch in which everything fails has more answers than one that succeeds.
    let mut batch = Batch::new();
    expected.iter().for_each(|neighbour| {
        batch.add(
            Neighbour {
                link: 99,
                ..*neighbour
            }
            .replace(),
        );
    });
    let BatchError::Refused(refusals) = socket.execute(batch).unwrap_err() else {
        panic!("not refused")
    };
    assert_eq!(refusals.len(), expected.len());
    assert_eq!(refusals.last().unwrap().index, expected.len() - 1);
}

#[test]
fn an_existing_link_can_be_readdressed_and_taken_down() {
    let Some(here) = netns() else { return };
    let mut socket = RouteSocket::open(&here).unwrap();
    let mut batch = Batch::new();
    batch
        .add(NewLink::veth("a", VethPeer::new("b").index(12)).index(11).up())
        .add(SetLink::index(11).mac(mac(3)).mtu(1400).alias("weft:x").down());
    socket.execute(batch).unwrap();
    let links = socket.links().unwrap();
    let link = links.iter().find(|link| link.index == 11).unwrap();
    assert_eq!((link.mac, link.mtu, link.up), (Some(mac(3)), 1400, false));
    assert_eq!(link.alias.as_deref(), Some("weft:x"));
}

#[tokio::test]
async fn a_monitor_tells_when_a_link_goes() {
    let Some(here) = netns() else { return };
    let mut monitor = Monitor::open(&here).unwrap();
    let mut socket = RouteSocket::open(&here).unwrap();
    let mut batch = Batch::new();
    batch
        .add(NewLink::bridge("br0", BridgeOptions::default()).index(10))
        .add(delete_link(10));
    socket.execute(batch).unwrap();
    let mut seen = Vec::new();
    let wait = async {
        while let Some(event) = monitor.next().await {
            seen.push(event);
            if matches!(seen.last(), Some(Event::Deleted(link)) if link.name == "br0") {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), wait)
        .await
        .unwrap();
    assert!(matches!(&seen[0], Event::Changed(link) if link.index == 10 && link.name == "br0"));
}

#[tokio::test]
async fn a_monitor_tells_what_a_bridge_does_at_a_port_and_not_that_the_link_lost_its_name() {
    let Some(here) = netns() else { return };
    let mut socket = RouteSocket::open(&here).unwrap();
    let mut batch = Batch::new();
    batch.add(NewLink::bridge("br0", BridgeOptions::default()).index(10));
    socket.execute(batch).unwrap();
    let sh = |line: &str| {
        let mut words = line.split(' ');
        let mut command = std::process::Command::new(words.next().unwrap());
        let status = here.run(|| command.args(words).status()).unwrap().unwrap();
        assert!(status.success(), "{line}");
    };
    sh("ip link add p0 type veth peer name q0");
    sh("ip link set p0 alias weft:x");
    let mut monitor = Monitor::open(&here).unwrap();
    sh("ip link set p0 master br0");
    sh("bridge link set dev p0 learning off flood off");
    sh("bridge link set dev p0 flood on");
    sh("ip link set p0 nomaster");
    sh("ip link delete p0");
    let mut flags = Vec::new();
    let mut masters = Vec::new();
    let wait = async {
        while let Some(event) = monitor.next().await {
            match event {
                Event::Changed(link) if link.name == "p0" => {
                    assert_eq!(link.alias.as_deref(), Some("weft:x"), "{link:?}");
                    masters.push(link.master);
                }
                Event::Port { flags: now, .. } => flags.push((now.learning, now.flood)),
                Event::Deleted(link) if link.name == "p0" => {
                    assert_eq!(link.master, None, "{link:?}");
                    return;
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), wait)
        .await
        .unwrap();
    flags.dedup();
    masters.dedup();
    let (on, off) = (Some(true), Some(false));
    assert_eq!(flags, [(on, on), (off, off), (off, on)]);
    assert_eq!(masters, [Some(10), None]);
}

#[test]
fn routes_of_one_mark_are_read_without_the_others() {
    const OURS: u8 = 119;
    let Some(netns) = netns() else { return };
    let lo = LocalRoute::LOOPBACK;
    let to = |net: &str, protocol| Route {
        protocol,
        ..Route::on_link(net.parse().unwrap(), lo)
    };
    let local = |address: &str, protocol| LocalRoute {
        to: ip(address),
        link: lo,
        metric: 0,
        protocol,
    };
    let mut batch = Batch::new();
    batch.add(SetLink::index(lo).up());
    for protocol in [OURS, Route::STATIC] {
        batch
            .add(to(&format!("10.{protocol}.0.0/16"), protocol).add())
            .add(to(&format!("fd00:{protocol}::/64"), protocol).add())
            .add(local(&format!("10.{protocol}.0.1"), protocol).add())
            .add(local(&format!("fd00:{protocol}::1"), protocol).add());
    }
    let mut socket = RouteSocket::open(&netns).unwrap();
    socket.execute(batch).unwrap();
    let (routes, local) = socket.marked_routes(OURS).unwrap();
    let routes: Vec<String> = routes.iter().map(|route| route.to.to_string()).collect();
    let local: Vec<String> = local.iter().map(|route| route.to.to_string()).collect();
    assert_eq!(routes, ["10.119.0.0/16", "fd00:119::/64"]);
    assert_eq!(local, ["10.119.0.1", "fd00:119::1"]);
    // Whoever wants all still gets all.
    assert_eq!(socket.routes().unwrap().len(), 4);
    assert_eq!(socket.local_routes(Route::STATIC).unwrap().len(), 2);
}
