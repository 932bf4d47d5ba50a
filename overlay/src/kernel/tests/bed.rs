//! Hosts in namespaces, each with an agent's kernel part.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use weft_netlink::{
    netns::Netns,
    route::{Address, Batch, BridgeOptions, NewLink, RouteSocket, SetLink, VethPeer},
};
use weft_types::{EndpointId, Mac, NetworkId, Vni};

use super::super::*;
use crate::plan::{LocalEndpoint, Network, Place, RemoteEndpoint, Subnet};

pub(super) const APP: NetworkId = NetworkId([0xaa; 16]);
pub(super) const TWIN: NetworkId = NetworkId([0xbb; 16]);

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn vtep(host: u8, ipv6: bool) -> IpAddr {
    if ipv6 {
        ip(&format!("2001:db8::{host}"))
    } else {
        ip(&format!("192.0.2.{host}"))
    }
}

pub(super) fn endpoint(n: u8) -> EndpointId {
    EndpointId([n; 16])
}

pub(super) fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// A host: a namespace with an address on the underlay, and an agent's kernel part in it.
pub(super) struct TestHost {
    pub(super) netns: Netns,
    pub(super) kernel: Kernel,
    pub(super) desired: Desired,
    pub(super) number: u8,
    pub(super) dir: PathBuf,
}

pub(super) struct Lab {
    pub(super) _dir: tempfile::TempDir,
    pub(super) _underlay: Netns,
    pub(super) hosts: Vec<TestHost>,
    pub(super) sandboxes: BTreeMap<u8, (PathBuf, Netns)>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            let _ = host.kernel.reconcile(&Desired::default());
        }
        for (path, _) in self.sandboxes.values() {
            let _ = Netns::remove_at(path);
        }
    }
}

impl Lab {
    /// Hosts on one switch; `None` where namespaces cannot be made.
    pub(super) fn new(hosts: u8) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let probe = dir.path().join("probe/netns");
        weft_netlink::testing::made(Netns::create_at(&probe))?;
        Netns::remove_at(&probe).unwrap();
        let underlay = Netns::create().unwrap();
        let mut switch = RouteSocket::open(&underlay).unwrap();
        let mut batch = Batch::new();
        batch.add(NewLink::bridge("br", BridgeOptions::default()).index(10).up());
        switch.execute(batch).unwrap();
        let mut lab = Self {
            hosts: Vec::new(),
            sandboxes: BTreeMap::new(),
            _underlay: underlay.try_clone().unwrap(),
            _dir: dir,
        };
        for number in 1..=hosts {
            let netns = Netns::create().unwrap();
            let mut batch = Batch::new();
            let peer = VethPeer::new("eth0").index(5).netns(netns.as_fd());
            batch.add(
                NewLink::veth(format!("h{number}"), peer)
                    .index(20 + u32::from(number))
                    .master(10)
                    .up(),
            );
            switch.execute(batch).unwrap();
            let mut batch = Batch::new();
            batch.add(SetLink::index(1).up()).add(SetLink::index(5).up());
            for (address, len) in [(vtep(number, false), 24), (vtep(number, true), 64)] {
                let net = ipnet::IpNet::new(address, len).unwrap();
                batch.add(
                    Address {
                        link: 5,
                        net,
                        prefix_route: true,
                    }
                    .add(),
                );
            }
            RouteSocket::open(&netns).unwrap().execute(batch).unwrap();
            let dir = lab._dir.path().join(format!("run{number}"));
            lab.hosts.push(TestHost {
                kernel: start(&netns, &dir),
                netns,
                desired: Desired::default(),
                number,
                dir,
            });
        }
        Some(lab)
    }

    pub(super) fn sandbox(&mut self, n: u8) -> Sandbox {
        let path = self._dir.path().join(format!("sandboxes/s{n}"));
        let (path, netns) = self
            .sandboxes
            .entry(n)
            .or_insert_with(|| (path.clone(), Netns::create_at(&path).unwrap()));
        Sandbox {
            path: path.clone(),
            id: netns.id(),
        }
    }

    /// Attaches endpoint `n` in sandbox `sandbox` to a network on a host, and tells the other hosts.
    pub(super) fn attach(&mut self, host: usize, id: NetworkId, n: u8, sandbox: u8, ipv6_underlay: bool) {
        let sandbox = self.sandbox(sandbox);
        let number = self.hosts[host].number;
        let (v4, v6) = (format!("10.9.0.{n}/24"), format!("fd00:9::{n:x}/64"));
        let addresses: Vec<ipnet::IpNet> = vec![v4.parse().unwrap(), v6.parse().unwrap()];
        for other in 0..self.hosts.len() {
            let this = vtep(self.hosts[other].number, ipv6_underlay);
            let network = self.hosts[other]
                .desired
                .networks
                .entry(id)
                .or_insert_with(|| network(id, this));
            if other == host {
                let gateway = if id == APP {
                    vec![ip("10.9.0.1"), ip("fd00:9::1")]
                } else {
                    vec![]
                };
                let (addresses, sandbox) = (addresses.clone(), sandbox.clone());
                let local = LocalEndpoint {
                    mac: mac(n),
                    addresses,
                    place: Place::Sandbox(sandbox),
                    gateway,
                    ifname: None,
                };
                network.endpoints.insert(endpoint(n), local);
            } else {
                let addresses = addresses.iter().map(ipnet::IpNet::addr).collect();
                let remote = RemoteEndpoint {
                    mac: mac(n),
                    addresses,
                    vtep: vtep(number, ipv6_underlay),
                };
                network.remotes.insert(endpoint(n), remote);
            }
        }
    }

    pub(super) fn reconcile(&mut self) {
        self.hosts.iter_mut().for_each(TestHost::reconcile);
    }

    pub(super) fn netns(&self, sandbox: u8) -> &Netns {
        &self.sandboxes[&sandbox].1
    }

    pub(super) fn reaches(&self, from: u8, to: u8, address: &str) -> bool {
        reaches(self.netns(from), self.netns(to), ip(address))
    }

    /// The same of links that are new: that one has a carrier the kernel may say a second later, when many others came and went.
    pub(super) fn soon_reaches(&self, from: u8, to: u8, address: &str) -> bool {
        (0..10).any(|_| self.reaches(from, to, address))
    }
}

pub(super) fn network(id: NetworkId, vtep: IpAddr) -> Network {
    let number = if id == APP { 77 } else { 78 };
    Network {
        name: format!("net{number}"),
        vni: Vni::try_from(number).unwrap(),
        mtu: crate::overlay_mtu(1500, vtep).unwrap(),
        vtep,
        vxlan_port: 4789,
        encryption: None,
        subnets: vec![
            Subnet {
                net: "10.9.0.0/24".parse().unwrap(),
                gateway: ip("10.9.0.1"),
            },
            Subnet {
                net: "fd00:9::/64".parse().unwrap(),
                gateway: ip("fd00:9::1"),
            },
        ],
        internal: false,
        service_addresses: vec![ip("169.254.53.53"), ip("fd00:53::53")],
        endpoints: BTreeMap::new(),
        remotes: Default::default(),
        ingress: None,
    }
}

pub(super) fn start(netns: &Netns, dir: &Path) -> Kernel {
    netns
        .run(|| {
            Kernel::new(Options {
                run_dir: dir.to_owned(),
            })
        })
        .unwrap()
        .unwrap()
}

impl TestHost {
    pub(super) fn reconcile(&mut self) {
        let report = self.kernel.reconcile(&self.desired).unwrap();
        assert!(
            report.errors.is_empty(),
            "host {}: {}",
            self.number,
            errors(&report)
        );
        self.assert_unchanged();
    }

    /// A fresh look finds nothing to do.
    pub(super) fn assert_unchanged(&mut self) {
        let observed = self.kernel.observe(&self.desired, None).unwrap();
        let plan = plan(&self.desired, &observed);
        assert_eq!(plan.to_string(), "", "host {}: {observed:#?}", self.number);
    }

    /// `kill -9` and a new agent.
    pub(super) fn restart(&mut self) {
        self.kernel = start(&self.netns, &self.dir);
    }

    /// Names of all links and tables in the host's own namespace.
    pub(super) fn objects(&self) -> (Vec<String>, usize) {
        let links = RouteSocket::open(&self.netns).unwrap().links().unwrap();
        let tables = self
            .netns
            .run(|| Nft::open().unwrap().tables("").unwrap().len())
            .unwrap();
        (links.into_iter().map(|link| link.name).collect(), tables)
    }
}

pub(super) fn errors(report: &Report) -> String {
    report
        .errors
        .iter()
        .map(|error| format!("{error}: {}\n", error.cause))
        .collect()
}

/// Whether a datagram from one namespace arrives in another, and its answer back.
pub(super) fn reaches(from: &Netns, to: &Netns, address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let bind = |address: IpAddr| move || UdpSocket::bind((address, 0)).unwrap();
    let (client, server) = (from.run(bind(any)).unwrap(), to.run(bind(address)).unwrap());
    let target = SocketAddr::new(address, server.local_addr().unwrap().port());
    let mut buffer = [0; 16];
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    }
    // The first datagram may be lost to address resolution.
    (0..3).any(|_| {
        client.send_to(b"ping", target).is_ok()
            && server
                .recv_from(&mut buffer)
                .is_ok_and(|(_, source)| server.send_to(b"pong", source).is_ok())
            && client
                .recv_from(&mut buffer)
                .is_ok_and(|(_, source)| source == target)
    })
}
