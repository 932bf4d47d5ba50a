//! Beside others who speak WireGuard and VXLAN: Debian's wireguard-go under the kernel's own VXLAN device.

use std::{net::SocketAddr, process::Command};

use netns_harness::{Host, Inside, Output, Process, Sandbox, eventually, isolated};
use weft_netlink::netns::Netns;

use crate::{
    bed::{Bed, LOOK_EVERY, MTU, PATIENCE, PORT, container, has_tap, key, mac, peer, underlay, vni, vtep},
    traffic::Talks,
};

/// A host that has nothing of ours.
struct Foreign {
    number: u8,
    _process: Option<Process>,
    container: Netns,
}

/// What a host that has nothing of ours speaks WireGuard with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Go,
    Kernel,
}

/// Whether the programs are here; where every test has to run they are.
fn has_programs(kind: Kind) -> bool {
    let programs: &[_] = match kind {
        Kind::Go => &["wireguard-go", "wg"],
        Kind::Kernel => &["wg"],
    };
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| Command::new(program).arg("--version").output().is_err())
        .collect();
    assert!(
        missing.is_empty() || std::env::var_os("WEFT_SKIP").is_none_or(|value| value != "never"),
        "{missing:?} are missing: apt-get install wireguard-go wireguard-tools"
    );
    if !missing.is_empty() {
        println!("skipped: {missing:?} are missing: apt-get install wireguard-go wireguard-tools");
    }
    missing.is_empty()
}

fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

impl Foreign {
    /// The node of a number, that knows the one of another.
    fn new(kind: Kind, host: &Host, number: u8, other: u8) -> Self {
        let pod: Sandbox = host.sandbox("foreign").unwrap();
        let process = (kind == Kind::Go).then(|| {
            let mut go = Command::new("wireguard-go");
            go.args(["-f", "wg0"]).env("WG_PROCESS_FOREGROUND", "1");
            host.spawn(&mut go, Output::Keep).unwrap()
        });
        if kind == Kind::Kernel {
            let mut add = Command::new("ip");
            add.args("link add wg0 type wireguard".split(' '));
            host.exec(&mut add, *PATIENCE).unwrap().success().unwrap();
        }
        let up = || {
            let mut show = Command::new("wg");
            show.args(["show", "wg0"]);
            host.exec(&mut show, *PATIENCE).unwrap().success().map(drop)
        };
        eventually("a WireGuard device", *PATIENCE, LOOK_EVERY, up).unwrap();
        let lines = format!(
            "set -e
             umask 077
             echo {private} > /run/private; echo {shared} > /run/shared
             wg set wg0 listen-port {PORT} private-key /run/private \
                peer {public} preshared-key /run/shared allowed-ips {other_vtep}/32 endpoint {endpoint}:{PORT}
             ip addr add {vtep}/10 dev wg0
             ip link set wg0 mtu 1420 up
             ip link add vx0 mtu {MTU} address {mac} type vxlan id {vni} local {vtep} dstport 4789 nolearning
             ip link set vx0 netns foreign
             ip -n foreign addr add 10.9.0.{number}/24 dev vx0
             ip -n foreign addr add fd09::{number}/64 dev vx0 nodad
             ip -n foreign link set lo up
             ip -n foreign link set vx0 up
             bridge -n foreign fdb replace {other_mac} dev vx0 dst {other_vtep}
             ip -n foreign neigh add {other_ip} lladdr {other_mac} dev vx0
             ip -n foreign neigh add {other_ip6} lladdr {other_mac} dev vx0",
            private = base64(key(number).expose()),
            shared = base64(peer(other).pairs[0].preshared_key.expose()),
            public = base64(&key(other).public_key()),
            endpoint = underlay(other),
            vtep = vtep(number),
            other_vtep = vtep(other),
            mac = mac(number),
            other_mac = mac(other),
            other_ip = container(other, false),
            other_ip6 = container(other, true),
            vni = vni().get(),
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &lines]);
        host.exec(&mut shell, *PATIENCE).unwrap().success().unwrap();
        let container = pod.run(|| Netns::current().unwrap()).unwrap();
        Self {
            number,
            _process: process,
            container,
        }
    }
}

impl Talks for Foreign {
    fn number(&self) -> u8 {
        self.number
    }

    fn container(&self) -> &Netns {
        &self.container
    }
}

#[test]
fn wireguard_go_and_the_kernels_vxlan_are_understood_both_ways() {
    understands(Kind::Go);
}

/// `.ci/guest 6.12 wireguard interop` has it.
#[test]
fn the_kernels_wireguard_is_understood_both_ways() {
    match weft_wireguard::probe_kernel() {
        Ok(()) => understands(Kind::Kernel),
        Err(why) => println!("skipped: {why}"),
    }
}

fn understands(kind: Kind) {
    isolated(|| {
        if !has_tap() || !has_programs(kind) {
            return;
        }
        let bed = Bed::new(2);
        let (one, two) = (&bed.nodes[0], &bed.nodes[1]);
        let foreign = Foreign::new(kind, &two.host, 2, 1);
        one.apply(bed.desired(1));
        // Begun here, and by the other side.
        one.asks(&foreign, false).unwrap();
        for v6 in [false, true] {
            one.asks(&foreign, v6).unwrap();
            one.streams_to(&foreign, v6, 5000).unwrap();
            foreign.streams_to(one, v6, 5000).unwrap();
        }
        one.apply(weft_wireguard::Desired {
            peers: Vec::new(),
            ..bed.desired(1)
        });
        let mut again = bed.desired(1);
        // Where nobody is: only the other side can begin.
        again.peers[0].endpoint = SocketAddr::from(([192, 0, 2, 200], PORT));
        one.apply(again);
        foreign.asks(one, false).unwrap();
        assert_eq!(one.about(2).endpoint, SocketAddr::from((underlay(2), PORT)));
        // It moves, and keeps its session.
        two.shell("ip addr del 192.0.2.2/24 dev eth0; ip addr add 192.0.2.77/24 dev eth0");
        foreign.streams_to(one, false, 1000).unwrap();
        assert_eq!(one.about(2).endpoint.to_string(), "192.0.2.77:51820");
        one.streams_to(&foreign, false, 1000).unwrap();
        drop(foreign);
        bed.close();
    });
}
