//! Ways from a container of the first host to one of the second.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use netns_harness::{Host, Inside, Output, Process, Sandbox, eventually};

use crate::{
    bed::{Bed, LOOK_EVERY, PATIENCE, key, mac, underlay},
    tools,
};

/// How packets come from host to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// The kernel's VXLAN, open
    Plain,
    /// `weft tunnels`
    Weft,
    /// The kernel's VXLAN in wireguard-go
    WireguardGo,
    /// The same in a newer one, found as wireguard-go-newest
    WireguardGoNewest,
    /// The kernel's VXLAN in gotatun
    Gotatun,
    /// The kernel's VXLAN in boringtun-cli
    Boringtun,
}

impl Way {
    pub const ALL: [Self; 6] = [
        Self::Plain,
        Self::Weft,
        Self::WireguardGo,
        Self::WireguardGoNewest,
        Self::Gotatun,
        Self::Boringtun,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain VXLAN",
            Self::Weft => "weft",
            Self::WireguardGo => "wireguard-go",
            Self::WireguardGoNewest => "newest",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun-cli",
        }
    }

    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Weft => &[],
            Self::WireguardGo => &["wireguard-go", "wg"],
            Self::WireguardGoNewest => &["wireguard-go-newest", "wg"],
            Self::Gotatun => &["gotatun", "wg"],
            Self::Boringtun => &["boringtun-cli", "wg"],
        }
    }

    /// What stands between a container and the underlay's 1,500.
    fn mtu(self) -> u32 {
        if self == Self::Plain {
            1450
        } else {
            crate::bed::MTU
        }
    }
}

/// A way that is ready.
pub struct Path {
    pub from: Sandbox,
    pub to: Sandbox,
    /// Of the container at the far end.
    pub address: Ipv4Addr,
    _daemons: Vec<Process>,
}

impl Path {
    pub fn new(bed: &Bed, way: Way) -> Result<Self> {
        let mut daemons = Vec::new();
        let subnet = 10 + way as u8;
        if way == Way::Weft {
            let pod = |number| bed.node(number).pod.clone();
            return Ok(Self {
                from: pod(1),
                to: pod(2),
                address: Ipv4Addr::new(10, 9, 0, 2),
                _daemons: daemons,
            });
        }
        let mut pods = Vec::new();
        for (number, other) in [(1, 2), (2, 1)] {
            let host = &bed.node(number).host;
            let vtep = |number| match way {
                Way::Plain => underlay(number),
                _ => Ipv4Addr::new(100, 65, subnet, number),
            };
            if way != Way::Plain {
                daemons.push(tunnel(host, way, number, other, vtep(number), vtep(other))?);
            }
            let (network, pod) = (format!("net{subnet}"), format!("pod{subnet}"));
            host.sandbox(&network)?;
            pods.push(host.sandbox(&pod)?);
            let mtu = way.mtu();
            let lines = format!(
                "set -e
                 ip link add vx{subnet} mtu {mtu} type vxlan id {subnet} local {vtep} dstport 4789 nolearning
                 ip link set vx{subnet} netns {network} name vx0
                 ip -n {network} link add br0 mtu {mtu} type bridge mcast_snooping 0
                 ip -n {network} link add pod0 mtu {mtu} type veth \
                    peer name eth0 mtu {mtu} address {mac} netns {pod}
                 for port in pod0 vx0; do ip -n {network} link set $port master br0 up; done
                 ip -n {network} link set br0 up
                 bridge -n {network} fdb replace {other_mac} dev vx0 dst {other_vtep}
                 ip -n {pod} addr add 10.{subnet}.0.{number}/24 dev eth0
                 ip -n {pod} link set lo up
                 ip -n {pod} link set eth0 up
                 ip -n {pod} neigh add 10.{subnet}.0.{other} lladdr {other_mac} dev eth0",
                vtep = vtep(number),
                other_vtep = vtep(other),
                mac = mac(number),
                other_mac = mac(other),
            );
            shell(host, &lines)?;
        }
        let [from, to] = <[_; 2]>::try_from(pods).ok().context("two hosts")?;
        Ok(Self {
            from,
            to,
            address: Ipv4Addr::new(10, subnet, 0, 2),
            _daemons: daemons,
        })
    }
}

fn tunnel(
    host: &Host,
    way: Way,
    number: u8,
    other: u8,
    vtep: Ipv4Addr,
    other_vtep: Ipv4Addr,
) -> Result<Process> {
    let device = format!("wg{}", way as u8);
    let line = match way {
        Way::Boringtun => format!("boringtun-cli -f --disable-drop-privileges {device}"),
        Way::Gotatun => format!("gotatun -f --disable-drop-privileges {device}"),
        Way::WireguardGoNewest => format!("wireguard-go-newest -f {device}"),
        _ => format!("wireguard-go -f {device}"),
    };
    let daemon = host.spawn(
        tools::command(&line).env("WG_PROCESS_FOREGROUND", "1"),
        Output::Discard,
    )?;
    let up = || tools::output(host, &format!("wg show {device}"));
    eventually(&line, *PATIENCE, LOOK_EVERY, up)?;
    let encode = |bytes: &[u8; 32]| data_encoding::BASE64.encode(bytes);
    let port = 51900 + u16::from(way as u8);
    let lines = format!(
        "set -e; umask 077
         echo {private} > /run/{device}.key
         wg set {device} listen-port {port} private-key /run/{device}.key \
            peer {public} allowed-ips {other_vtep}/32 endpoint {endpoint}:{port}
         ip addr add {vtep}/24 dev {device}
         ip link set {device} mtu 1420 up",
        private = encode(key(number).expose()),
        public = encode(&key(other).public_key()),
        endpoint = underlay(other),
    );
    shell(host, &lines)?;
    Ok(daemon)
}

fn shell(host: &Host, lines: &str) -> Result<()> {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", lines]);
    host.exec(&mut command, *PATIENCE)?
        .success()
        .with_context(|| lines.to_owned())?;
    Ok(())
}
