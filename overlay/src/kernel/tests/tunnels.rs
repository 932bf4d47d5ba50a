//! What leaves a host and what is heard: of encrypted networks nothing without the process, of others nothing forged.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use weft_netlink::{
    netns::Netns,
    route::{Batch, Link, NewLink, RouteSocket, SetLink, VethPeer, delete_link},
    tap::{TapError, create_persistent},
    testing::skip,
};

use super::{
    super::{names::TUNNEL_INDEX, *},
    bed::*,
};

const VXLAN: u16 = 4789;

/// Hosts with one encrypted network, and a sandbox of it on each.
fn encrypted(hosts: u8) -> Option<super::bed::Lab> {
    let mut lab = Lab::new(hosts)?;
    if let Err(TapError::Open(error)) = create_persistent(&Netns::create().unwrap(), "t", 9) {
        skip(format_args!("it needs /dev/net/tun: {error}"));
        return None;
    }
    for host in 0..hosts {
        let n = 10 * (host + 1) + 1;
        lab.attach(host.into(), APP, n, n, false);
    }
    for host in &mut lab.hosts {
        let network = host.desired.networks.get_mut(&APP).unwrap();
        network.encryption = Some(crate::plan::Encryption::Process);
        network.mtu = crate::encrypted_mtu(1500).unwrap();
    }
    Some(lab)
}

fn tunnel(host: &TestHost) -> Link {
    let space = host.kernel.namespace(APP).unwrap().unwrap();
    let links = RouteSocket::open(&space).unwrap().links().unwrap();
    links.into_iter().find(|link| link.name == names::TUNNEL).unwrap()
}

/// A VXLAN packet of network 77 with an Ethernet frame to an endpoint: a UDP datagram from 10.9.0.99 to 10.9.0.`n`.
fn forged(n: u8, port: u16) -> Vec<u8> {
    let payload = b"forged";
    let mut packet = vec![8, 0, 0, 0, 0, 0, 77, 0];
    packet.extend(mac(n).0);
    packet.extend(mac(99).0);
    packet.extend([8, 0]);
    let mut header = vec![0x45, 0, 0, 28 + payload.len() as u8, 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend([10, 9, 0, 99, 10, 9, 0, n]);
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(header);
    packet.extend(5000_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    // A checksum of 0 is none.
    packet.extend([0, 8 + payload.len() as u8, 0, 0]);
    packet.extend(payload);
    packet
}

fn bind(netns: &Netns, address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = netns.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

fn hears(victim: &UdpSocket) -> bool {
    let mut buffer = [0; 64];
    victim.recv_from(&mut buffer).is_ok()
}

#[test]
fn an_encrypted_network_leads_to_a_tap_and_nothing_of_it_leaves_without_the_process() {
    let Some(mut lab) = encrypted(2) else { return };
    let before: Vec<_> = lab.hosts.iter().map(TestHost::objects).collect();
    lab.reconcile();
    let link = tunnel(&lab.hosts[0]);
    assert_eq!(
        (link.index, link.kind.as_str(), link.mtu, link.alias.as_deref()),
        (TUNNEL_INDEX, "tun", 1370, Some("weft:tap"))
    );
    let space = lab.hosts[0].kernel.namespace(APP).unwrap().unwrap();
    let links = RouteSocket::open(&space).unwrap().links().unwrap();
    assert!(links.iter().all(|link| link.kind != "vxlan"), "{links:?}");
    assert!(!lab.reaches(11, 21, "10.9.0.21"));
    assert!(!lab.reaches(21, 11, "fd00:9::b"));

    // A new agent finds it as it should be; what was damaged is made again.
    for damage in [
        SetLink::index(TUNNEL_INDEX).down(),
        SetLink::index(TUNNEL_INDEX).master(0),
        SetLink::index(TUNNEL_INDEX).mtu(1500),
    ] {
        let mut batch = Batch::new();
        batch.add(damage);
        RouteSocket::open(&space).unwrap().execute(batch).unwrap();
        lab.hosts[0].restart();
        lab.hosts[0].reconcile();
        lab.hosts[0].restart();
        lab.hosts[0].assert_unchanged();
    }
    let mut batch = Batch::new();
    batch.add(delete_link(TUNNEL_INDEX));
    RouteSocket::open(&space).unwrap().execute(batch).unwrap();
    lab.hosts[0].kernel.resync();
    lab.hosts[0].reconcile();
    assert_eq!(tunnel(&lab.hosts[0]).kind, "tun");
    drop(space);

    // A local endpoint is reached without the tunnel.
    lab.attach(0, APP, 12, 12, false);
    lab.reconcile();
    assert!(lab.soon_reaches(11, 12, "10.9.0.12"));

    for host in &mut lab.hosts {
        host.desired.networks.clear();
    }
    lab.reconcile();
    let after: Vec<_> = lab.hosts.iter().map(TestHost::objects).collect();
    assert_eq!(before, after);
}

/// Stands for the WireGuard devices of two hosts: a link that joins the namespaces of their tunnels.
fn join_tunnels(one: &TestHost, other: &TestHost) {
    let netns = [one, other].map(|host| Netns::open(names::wireguard_path(&host.dir)).unwrap());
    let peer = VethPeer::new("wg0").netns(netns[1].as_fd());
    let mut batch = Batch::new();
    batch.add(NewLink::veth("wg0", peer));
    RouteSocket::open(&netns[0]).unwrap().execute(batch).unwrap();
    for (number, netns) in (1..).zip(&netns) {
        let mut socket = RouteSocket::open(netns).unwrap();
        let link = socket
            .links()
            .unwrap()
            .into_iter()
            .find(|link| link.name == "wg0")
            .unwrap();
        let address = weft_netlink::route::Address {
            link: link.index,
            net: format!("100.64.0.{number}/10").parse().unwrap(),
            prefix_route: true,
        };
        let mut batch = Batch::new();
        batch.add(address.add());
        batch.add(SetLink::index(link.index).up());
        socket.execute(batch).unwrap();
    }
}

#[test]
fn in_the_kernels_wireguard_frames_leave_by_the_namespace_of_the_tunnels_alone() {
    let Some(mut lab) = Lab::new(2) else { return };
    let before: Vec<_> = lab.hosts.iter().map(TestHost::objects).collect();
    for host in 0..2 {
        let n = 10 * (host + 1) + 1;
        lab.attach(host.into(), APP, n, n, false);
    }
    let seal = |host: &mut TestHost| {
        let inside = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(v4) if v4.octets()[0] != 100 => [100, 64, 0, v4.octets()[3]].into(),
            other => other,
        };
        for network in host.desired.networks.values_mut() {
            network.encryption = Some(crate::plan::Encryption::Kernel);
            network.mtu = crate::encrypted_mtu(1500).unwrap();
            network.vtep = inside(network.vtep);
            for (id, mut remote) in network
                .remotes
                .clone()
                .iter()
                .map(|(id, remote)| (*id, remote.clone()))
            {
                remote.vtep = inside(remote.vtep);
                network.remotes.insert(id, remote);
            }
        }
    };
    lab.hosts.iter_mut().for_each(seal);
    lab.reconcile();
    let link = tunnel(&lab.hosts[0]);
    assert_eq!(
        (link.index, link.kind.as_str(), link.mtu, link.alias.as_deref()),
        (TUNNEL_INDEX, "vxlan", 1370, Some("weft:vxlan in wireguard"))
    );
    // No VXLAN socket on the underlay: a program can have the port.
    drop(bind(&lab.hosts[0].netns, "0.0.0.0:4789"));
    assert!(!lab.reaches(11, 21, "10.9.0.21"));
    join_tunnels(&lab.hosts[0], &lab.hosts[1]);
    assert!(lab.soon_reaches(11, 21, "10.9.0.21"));
    assert!(lab.soon_reaches(21, 11, "fd00:9::b"));
    for host in &mut lab.hosts {
        host.restart();
        host.assert_unchanged();
    }
    // Without its mark nobody knows where its socket is, and it is made anew.
    let space = lab.hosts[0].kernel.namespace(APP).unwrap().unwrap();
    let mut batch = Batch::new();
    batch.add(SetLink::index(TUNNEL_INDEX).alias("weft:vxlan"));
    RouteSocket::open(&space).unwrap().execute(batch).unwrap();
    drop(space);
    lab.hosts[0].restart();
    lab.hosts[0].reconcile();
    assert_eq!(
        tunnel(&lab.hosts[0]).alias.as_deref(),
        Some("weft:vxlan in wireguard")
    );
    assert!(lab.soon_reaches(11, 21, "10.9.0.21"));
    // The namespace goes, and the device with it when the kernel gets to that; it is made anew, and leads nowhere.
    for host in &lab.hosts {
        Netns::remove_at(names::wireguard_path(&host.dir)).unwrap();
    }
    let leads_nowhere = (0..100).any(|_| {
        lab.hosts[0].restart();
        lab.hosts[0].reconcile();
        !lab.reaches(11, 21, "10.9.0.21")
    });
    assert!(leads_nowhere);
    for host in &mut lab.hosts {
        host.desired.networks.clear();
        host.kernel.resync();
    }
    lab.reconcile();
    for host in &lab.hosts {
        Netns::remove_at(names::wireguard_path(&host.dir)).unwrap();
    }
    let after: Vec<_> = lab.hosts.iter().map(TestHost::objects).collect();
    assert_eq!(before, after);
}

#[test]
fn plain_vxlan_of_an_encrypted_network_finds_nobody() {
    let Some(mut lab) = encrypted(2) else { return };
    // A plain network beside it, so that the kernel listens to VXLAN.
    lab.attach(0, TWIN, 13, 113, false);
    lab.attach(1, TWIN, 23, 123, false);
    lab.reconcile();
    assert!(lab.soon_reaches(113, 123, "10.9.0.23"));
    let victim = bind(lab.netns(11), "10.9.0.11:6000");
    // Even from a member.
    let member = bind(&lab.hosts[1].netns, "192.0.2.2:0");
    unguard(&lab.hosts[1]);
    member.send_to(&forged(11, 6000), "192.0.2.1:4789").unwrap();
    assert!(!hears(&victim));
}

fn unguard(host: &TestHost) {
    let delete = || Nft::open().unwrap().commit(&rules::delete()).unwrap();
    host.netns.run(delete).unwrap();
}

#[test]
fn nobody_but_the_kernel_of_a_member_sends_vxlan_that_is_heard() {
    let Some(mut lab) = Lab::new(2) else { return };
    for host in &mut lab.hosts {
        host.desired.guarded = [VXLAN].into();
        host.desired.members = [vtep(1, false), vtep(2, false)].into();
    }
    lab.attach(0, APP, 11, 11, false);
    lab.reconcile();
    // The other host has no network, and is guarded all the same.
    let victim = bind(lab.netns(11), "10.9.0.11:6000");
    let packet = forged(11, 6000);
    let local = bind(&lab.hosts[0].netns, "0.0.0.0:0");
    let remote = bind(&lab.hosts[1].netns, "0.0.0.0:0");
    for (who, socket) in [("a process of this host", &local), ("one of a member", &remote)] {
        for target in ["127.0.0.1:4789", "192.0.2.1:4789"] {
            let sent = socket.send_to(&packet, target);
            let denied = sent.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
            assert!(denied, "{who} to {target}");
            assert!(!hears(&victim), "{who} to {target}");
        }
    }
    // The same frame is heard once the guard is gone: it is the guard that keeps it out.
    unguard(&lab.hosts[1]);
    remote.send_to(&packet, "192.0.2.1:4789").unwrap();
    assert!(hears(&victim));
    // Not at another address of the host, which no member sends to.
    let mut batch = Batch::new();
    batch.add(
        weft_netlink::route::Address {
            link: 5,
            net: "192.0.2.101/24".parse().unwrap(),
            prefix_route: false,
        }
        .add(),
    );
    RouteSocket::open(&lab.hosts[0].netns)
        .unwrap()
        .execute(batch)
        .unwrap();
    remote.send_to(&packet, "192.0.2.101:4789").unwrap();
    assert!(!hears(&victim));
    lab.hosts[1].restart();
    lab.hosts[1].reconcile();
    assert!(remote.send_to(&packet, "192.0.2.1:4789").is_err());

    // A container of another engine, whose packets get the host's address.
    let container = Netns::create().unwrap();
    lab.hosts[1]
        .netns
        .set_sysctls(&[("net/ipv4/ip_forward", "1")])
        .unwrap();
    let mut batch = Batch::new();
    let peer = VethPeer::new("eth0").index(7).netns(container.as_fd());
    batch.add(NewLink::veth("docker0", peer).index(70).up());
    batch.add(address(70, "172.17.0.1/16").add());
    RouteSocket::open(&lab.hosts[1].netns)
        .unwrap()
        .execute(batch)
        .unwrap();
    let mut batch = Batch::new();
    batch.add(SetLink::index(7).up());
    batch.add(address(7, "172.17.0.2/16").add());
    batch.add(weft_netlink::route::Route::default_via(ip("172.17.0.1"), 7).add());
    RouteSocket::open(&container).unwrap().execute(batch).unwrap();
    masquerade(&lab.hosts[1].netns);
    let inside = bind(&container, "0.0.0.0:0");
    let far = bind(&lab.hosts[0].netns, "192.0.2.1:7000");
    // A new link takes a moment until it carries anything.
    let has_way_out = (0..20).any(|_| {
        inside.send_to(b"out", "192.0.2.1:7000").unwrap();
        hears(&far)
    });
    assert!(has_way_out, "the container has a way out");
    inside.send_to(&packet, "192.0.2.1:4789").unwrap();
    assert!(!hears(&victim), "from a container");
    // And one of a network of ours, by its uplink.
    lab.attach(1, TWIN, 23, 123, false);
    lab.reconcile();
    let endpoint = bind(lab.netns(123), "0.0.0.0:0");
    let _ = endpoint.send_to(&packet, "192.0.2.1:4789");
    assert!(!hears(&victim), "from an endpoint");
}

fn address(link: u32, net: &str) -> weft_netlink::route::Address {
    weft_netlink::route::Address {
        link,
        net: net.parse().unwrap(),
        prefix_route: true,
    }
}

/// As container engines do it.
fn masquerade(netns: &Netns) {
    use weft_netlink::nft::{Chain, ChainType, Expr, Family, Hook, Rule, Table, Transaction, priority};
    let table = Table::new(Family::Inet, "engine");
    let mut change = Transaction::new();
    let chain = Chain::base("postrouting", ChainType::Nat, Hook::Postrouting, priority::SNAT);
    let rule = Rule::new()
        .from_subnet(ip("172.17.0.0"), 16)
        .then(Expr::Masquerade);
    change
        .add_table(&table)
        .add_chain(&table, chain)
        .add_rule(&table, "postrouting", rule);
    netns
        .run(|| Nft::open().unwrap().commit(&change).unwrap())
        .unwrap();
}
