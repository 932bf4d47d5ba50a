//! Hosts on one underlay, each with a network of its own behind a TAP device, and the process that carries it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use netns_harness::{Host, Inside, Lab, Output, Process, Sandbox, SwitchOptions, eventually, isolated};
use weft_netlink::{netns::Netns, tap};
use weft_tests::{slower, weft_binary};
use weft_types::{Mac, Vni};
use weft_wireguard::{Client, Desired, KeyPair, Network, Peer, PeerStatus, Secret32, Status};

/// For one thing to happen, on this machine.
pub static PATIENCE: LazyLock<Duration> = LazyLock::new(|| slower(Duration::from_secs(20)));
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
pub const PORT: u16 = 51820;
pub const MTU: u32 = 1370;

/// Hosts `h1`, `h2`, … at 192.0.2.1, .2, … and fd00:99::1, ….
pub struct Bed {
    pub lab: Lab,
    pub nodes: Vec<Node>,
    /// Whether tunnels go over IPv6, rather than IPv4.
    pub is_over_v6: bool,
}

/// A host. Its container is at 10.9.0.N and fd09::N.
pub struct Node {
    pub number: u8,
    pub host: Host,
    /// The bridge is here, with the TAP device `vx0`.
    pub network: Sandbox,
    pub pod: Sandbox,
    /// The network namespace of the pod.
    pub container: Netns,
    process: Option<Process>,
    dir: tempfile::TempDir,
}

pub fn vni() -> Vni {
    Vni::try_from(4097).unwrap()
}

pub fn vtep(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, 0, number)
}

pub fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 9, number])
}

pub fn key(number: u8) -> Secret32 {
    Secret32::new([number; 32])
}

pub fn container(number: u8, v6: bool) -> IpAddr {
    if v6 {
        format!("fd09::{number}").parse().unwrap()
    } else {
        Ipv4Addr::new(10, 9, 0, number).into()
    }
}

pub fn underlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

pub fn underlay6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, number.into())
}

/// A peer with the key and addresses of a number.
pub fn peer(number: u8) -> Peer {
    Peer {
        vtep: vtep(number),
        endpoint: SocketAddr::from((underlay(number), PORT)),
        pairs: vec![KeyPair {
            own: 0,
            public_key: key(number).public_key(),
            preshared_key: Secret32::new([99; 32]),
        }],
    }
}

/// Whether TAP devices can be made here. An ordinary user has them where `/dev/net/tun` is for everybody.
pub fn has_tap() -> bool {
    let openable = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    if let Err(error) = &openable {
        assert!(
            std::env::var_os("WEFT_SKIP").is_none_or(|value| value != "never"),
            "/dev/net/tun: {error}"
        );
        println!("skipped: /dev/net/tun: {error}");
    }
    openable.is_ok()
}

/// Runs a test on two nodes whose tunnels are up.
pub fn on_two(body: impl FnOnce(&Bed, &Node, &Node)) {
    isolated(|| {
        if has_tap() {
            with_two(false, body);
        }
    });
}

/// The same over IPv4, and then over IPv6.
pub fn on_two_over_both(body: impl Fn(&Bed, &Node, &Node)) {
    isolated(|| {
        if has_tap() {
            with_two(false, &body);
            with_two(true, &body);
        }
    });
}

fn with_two(over_v6: bool, body: impl FnOnce(&Bed, &Node, &Node)) {
    let mut bed = Bed::new(2);
    bed.is_over_v6 = over_v6;
    bed.connect();
    body(&bed, &bed.nodes[0], &bed.nodes[1]);
    bed.close();
}

impl Bed {
    pub fn new(count: u8) -> Self {
        let lab = Lab::new("wireguard").unwrap();
        let options = SwitchOptions::new()
            .subnet("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap())
            .subnet("fd00:99::/64".parse::<ipnet::IpNet>().unwrap());
        let lan = lab.switch("lan", options).unwrap();
        let names: Vec<_> = (1..=count).map(|number| format!("h{number}")).collect();
        let hosts = lab.hosts(&names).unwrap();
        lab.plug(&lan, &hosts).unwrap();
        let nodes = hosts.into_iter().zip(1..);
        let nodes = nodes
            .map(|(host, number)| Node::new(host, number, count))
            .collect();
        Self {
            lab,
            nodes,
            is_over_v6: false,
        }
    }

    /// All know all, and are told so.
    pub fn connect(&self) {
        for node in &self.nodes {
            assert_eq!(node.apply(self.desired(node.number)), [] as [&str; 0]);
        }
    }

    pub fn desired(&self, number: u8) -> Desired {
        let others = || {
            self.nodes
                .iter()
                .map(|node| node.number)
                .filter(|other| *other != number)
        };
        let peer_here = |number| Peer {
            endpoint: SocketAddr::new(self.underlay(number), PORT),
            ..peer(number)
        };
        Desired {
            generation: 1,
            private_keys: vec![key(number)],
            port: PORT,
            vtep: vtep(number),
            peers: others().map(peer_here).collect(),
            networks: vec![self.node(number).wanted_network(&others().collect::<Vec<_>>())],
        }
    }

    /// Where a node says that it is.
    pub fn underlay(&self, number: u8) -> IpAddr {
        match self.is_over_v6 {
            true => underlay6(number).into(),
            false => underlay(number).into(),
        }
    }

    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    pub fn close(self) {
        for node in &self.nodes {
            node.stop();
        }
        drop(self.nodes);
        self.lab.close().unwrap();
    }
}

impl Node {
    fn new(host: Host, number: u8, count: u8) -> Self {
        let network = host.sandbox("net").unwrap();
        let pod = host.sandbox("pod").unwrap();
        let netns = |sandbox: &Sandbox| sandbox.run(|| Netns::current().unwrap()).unwrap();
        let inside = netns(&network);
        tap::create_persistent(&inside, "vx0", 77).unwrap();
        let mut lines = format!(
            "set -e
             ip link set lo up
             ip link set vx0 mtu {MTU}
             ip link add br0 mtu {MTU} type bridge mcast_snooping 0
             ip link add pod0 mtu {MTU} type veth peer name eth0 mtu {MTU} address {mac} netns pod
             ip link set pod0 master br0
             ip link set vx0 master br0
             ip link set br0 up; ip link set pod0 up; ip link set vx0 up
             ip -n pod link set lo up
             ip -n pod addr add 10.9.0.{number}/24 dev eth0
             ip -n pod addr add fd09::{number}/64 dev eth0 nodad
             ip -n pod link set eth0 up\n",
            mac = mac(number),
        );
        for other in (1..=count).filter(|other| *other != number) {
            // As the agent has them: nothing is asked for by broadcast.
            for v6 in [false, true] {
                let (ip, mac) = (container(other, v6), mac(other));
                lines += &format!("ip -n pod neigh add {ip} lladdr {mac} dev eth0\n");
            }
        }
        let container = netns(&pod);
        let node = Self {
            number,
            host,
            network,
            pod,
            container,
            process: None,
            dir: tempfile::tempdir().unwrap(),
        };
        let done = node.network.run(|| node.shell_here(&lines)).unwrap();
        assert!(done, "{lines}");
        let mut node = node;
        node.start();
        node
    }

    fn shell_here(&self, lines: &str) -> bool {
        Command::new("sh").args(["-c", lines]).status().unwrap().success()
    }

    /// Runs commands on the host.
    pub fn shell(&self, lines: &str) {
        let done = self.host.run(|| self.shell_here(lines)).unwrap();
        assert!(done, "{lines}");
    }

    /// Begins the process of the tunnels, and waits until it answers.
    pub fn start(&mut self) {
        let mut command = Command::new(weft_binary());
        command.arg("tunnels").arg("--run-dir").arg(self.dir.path());
        // The namespaces here are not where an agent has them.
        command.arg("--no-sandbox");
        self.process = Some(self.host.spawn(&mut command, Output::Inherit).unwrap());
        eventually("an answer of the tunnels", *PATIENCE, LOOK_EVERY, || {
            self.try_status()
        })
        .unwrap();
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// Ends it by SIGTERM.
    pub fn stop(&self) {
        if self.process().try_wait().is_some() {
            return;
        }
        self.process().signal(netns_harness::Signal::SIGTERM).unwrap();
        let status = self.process().wait(*PATIENCE).unwrap();
        assert!(status.success(), "{status}");
        assert!(!self.socket().exists());
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("tunnels.sock")
    }

    pub fn wanted_network(&self, members: &[u8]) -> Network {
        Network {
            vni: vni(),
            netns: Path::new("/run/netns/net").to_owned(),
            tap: "vx0".to_owned(),
            members: members.iter().map(|number| vtep(*number)).collect(),
            fdb: members
                .iter()
                .map(|number| (mac(*number), vtep(*number)))
                .collect(),
        }
    }

    /// Says what could not be done.
    pub fn apply(&self, desired: Desired) -> Vec<String> {
        Client::connect(&self.socket())
            .unwrap()
            .apply(desired, *PATIENCE)
            .unwrap()
    }

    pub fn status(&self) -> Status {
        self.try_status().unwrap()
    }

    fn try_status(&self) -> Result<Status, weft_wireguard::ClientError> {
        Client::connect(&self.socket())?.status(*PATIENCE)
    }

    /// What it says of a peer.
    pub fn about(&self, number: u8) -> PeerStatus {
        let peers = self.status().peers;
        peers.into_iter().find(|peer| peer.vtep == vtep(number)).unwrap()
    }

    /// Frames that the kernel says came out of the tunnels, whatever the process says.
    pub fn delivered(&self) -> u64 {
        let mut command = Command::new("ip");
        command.args(["-j", "-s", "link", "show", "vx0"]);
        let shown = self
            .network
            .exec(&mut command, *PATIENCE)
            .unwrap()
            .success()
            .unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    }
}
