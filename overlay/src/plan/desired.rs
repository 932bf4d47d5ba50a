use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use ipnet::IpNet;
use weft_netlink::netns::NetnsId;
use weft_types::{EndpointId, Mac, NetworkId, Vni};

use super::ingress::{Ingress, IngressLink, SourceRules};
use super::observed::{
    Bridge, Carrier, EndpointRoute, Far, HostRules, ObservedEndpoint, ObservedNetwork, Tunnel, Uplink,
};
use super::remotes::{RemoteEndpoint, Remotes};

/// All that the overlays of this host should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// VTEPs of the cluster: VXLAN packets from anybody else are dropped. Those of [`Network::remotes`] are
    /// members without being listed here.
    pub members: BTreeSet<IpAddr>,
    /// UDP ports of VXLAN that nobody on this host but the kernel may send to, whether or not it has networks: the other
    /// members believe what comes from its address.
    pub guarded: BTreeSet<u16>,
    /// The networks. One without local endpoints and without an ingress is left out of the kernel.
    pub networks: BTreeMap<NetworkId, Network>,
}

/// An overlay network, as seen from this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name, which its bridge shows to people as alias.
    pub name: String,
    /// Its number on the wire, the same on all hosts and no other network's.
    pub vni: Vni,
    /// The largest packet of its endpoints, the same on all hosts.
    pub mtu: u16,
    /// This host's address on the underlay; with [`Encryption::Kernel`] the one inside the tunnels, as of all other hosts.
    pub vtep: IpAddr,
    /// The UDP port of VXLAN.
    pub vxlan_port: u16,
    /// What encrypts its frames on their way to other hosts, if anything does.
    pub encryption: Option<Encryption>,
    /// Its address ranges, each with the gateway that every host carries.
    pub subnets: Vec<Subnet>,
    /// Whether it has no way out.
    pub internal: bool,
    /// Addresses of services of the host itself, such as DNS, that every host carries and that every endpoint
    /// has on its link.
    pub service_addresses: Vec<IpAddr>,
    /// The endpoints on this host.
    pub endpoints: BTreeMap<EndpointId, LocalEndpoint>,
    /// The endpoints on other hosts.
    pub remotes: Remotes,
    /// The way in, if ports of this host lead into it. A network without a way out has none.
    pub ingress: Option<Ingress>,
}

/// What encrypts the frames of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// A process: the network's bridge leads to a TAP device, and the kernel has no VXLAN device for it.
    Process,
    /// The kernel's WireGuard: the socket of the VXLAN device is in a namespace that nothing else leads out of.
    Kernel,
}

/// An address range of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The range.
    pub net: IpNet,
    /// The address of the gateway within.
    pub gateway: IpAddr,
}

/// An endpoint on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Its Ethernet address, no other endpoint's ever.
    pub mac: Mac,
    /// Its addresses with their subnets' prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Where its interface is put.
    pub place: Place,
    /// Next hops of default routes, if this is the endpoint that gives them to the sandbox.
    pub gateway: Vec<IpAddr>,
    /// The name its interface gets when it is made; without, the first free of `eth0`, `eth1`, …
    pub ifname: Option<String>,
}

/// Where an endpoint's interface is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Into a namespace, where it is set up and kept as it should be.
    Sandbox(Sandbox),
    /// Into the host's own namespace, whose processes use it. Nothing is forwarded between it and any other link, and of
    /// the host's addresses only the endpoint's can be reached by it.
    Host(Sandbox),
    /// Into the host's own namespace, for a container engine that moves it to a container and sets it up
    /// there. What is ours to keep is its port on the bridge.
    Engine {
        /// The name the engine finds it by.
        ifname: String,
        /// Where the container's namespace is, once the engine has said so.
        container: Option<PathBuf>,
    },
}

impl Place {
    /// The namespace that is ours to set up.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        match self {
            Self::Sandbox(sandbox) | Self::Host(sandbox) => Some(sandbox),
            Self::Engine { .. } => None,
        }
    }
}

/// A namespace that an endpoint is put into.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sandbox {
    /// Where to open it.
    pub path: PathBuf,
    /// Which one it is: what the path leads to may be another one by now.
    pub id: NetnsId,
}

impl Desired {
    /// The networks that the kernel should hold.
    pub(super) fn programmed(&self) -> impl Iterator<Item = (NetworkId, &Network)> {
        self.networks
            .iter()
            .filter(|(_, network)| network.is_programmed())
            .map(|(id, n)| (*id, n))
    }

    pub(super) fn host_rules(&self) -> Option<HostRules> {
        let mut rules = HostRules {
            ports: BTreeSet::new(),
            local: BTreeSet::new(),
            guarded: self.guarded.clone(),
            members: self.members.clone(),
            masquerade: self.programmed().any(|(_, network)| !network.internal),
            links: BTreeMap::new(),
        };
        for (id, network) in self.programmed() {
            let of_host = network.endpoints.values();
            for local in of_host.filter(|local| matches!(local.place, Place::Host(_))) {
                let addresses = local.addresses.iter().map(IpNet::addr).collect();
                rules.links.insert(id.short(), addresses);
            }
            if network.encryption != Some(Encryption::Kernel) {
                rules.members.extend(network.remotes.vteps());
            }
            if network.encryption.is_none() {
                rules.ports.insert(network.vxlan_port);
                rules.guarded.insert(network.vxlan_port);
                rules.local.insert(network.vtep);
            }
        }
        (rules.masquerade || !rules.guarded.is_empty() || !rules.links.is_empty()).then_some(rules)
    }
}

impl Network {
    pub(super) fn has_ipv6(&self) -> bool {
        self.subnets.iter().any(|subnet| subnet.gateway.is_ipv6())
    }

    pub(super) fn is_programmed(&self) -> bool {
        !self.endpoints.is_empty() || self.ingress().is_some()
    }

    /// Its way in; one without a way out has none.
    pub(super) fn ingress(&self) -> Option<&Ingress> {
        self.ingress.as_ref().filter(|_| !self.internal)
    }

    /// What the kernel shows when it holds just this, with the uplink in the given slot.
    pub(super) fn as_observed(&self, slot: Option<u16>) -> ObservedNetwork {
        let mtu = u32::from(self.mtu);
        let gateways = self
            .subnets
            .iter()
            .filter_map(|s| IpNet::new(s.gateway, s.net.prefix_len()).ok());
        let services = self.service_addresses.iter().map(|address| IpNet::from(*address));
        let remotes = self.remotes.values().filter(|remote| remote.vtep != self.vtep);
        // Where two records claim an address, this host believes its own.
        let neighbours = remotes
            .clone()
            .flat_map(|remote| remote.addresses.iter().map(|address| (*address, remote.mac)))
            .chain(
                self.endpoints
                    .values()
                    .flat_map(|local| local.addresses.iter().map(|net| (net.addr(), local.mac))),
            )
            .collect();
        let mut fdb: BTreeMap<_, _> = remotes
            .map(|remote| (remote.mac, Some(self.far(remote))))
            .collect();
        self.endpoints.values().for_each(|local| {
            fdb.remove(&local.mac);
        });
        ObservedNetwork {
            bridge: Some(Bridge {
                mac: self.vni.gateway_mac(),
                mtu,
                name: self.name.clone(),
                up: true,
            }),
            addresses: gateways.chain(services).collect(),
            tunnel: Some(Tunnel {
                carrier: match self.encryption {
                    Some(Encryption::Process) => Carrier::Tap,
                    encryption => Carrier::Vxlan {
                        vni: self.vni,
                        local: self.vtep,
                        port: self.vxlan_port,
                        sealed: encryption.is_some(),
                    },
                },
                mtu,
            }),
            uplink: slot.filter(|_| !self.internal).map(|slot| Uplink {
                slot,
                ipv6: self.has_ipv6(),
                mtu,
                intact: true,
            }),
            ingress: slot.and(self.ingress()).map(|ingress| IngressLink {
                mac: ingress.mac,
                mtu,
                addresses: ingress.addresses.iter().copied().collect(),
                intact: true,
            }),
            sources: slot.and(self.ingress()).map(|ingress| self.sources(ingress)),
            endpoints: self
                .endpoints
                .iter()
                .map(|(id, local)| (*id, self.endpoint(local)))
                .collect(),
            fdb,
            neighbours,
        }
    }

    /// Where frames for an endpoint on another host are sent.
    pub(super) fn far(&self, remote: &RemoteEndpoint) -> Far {
        match self.encryption {
            Some(Encryption::Process) => Far::Process,
            Some(Encryption::Kernel) | None => Far::Vtep(remote.vtep),
        }
    }

    /// An endpoint answers a stranger by its default route, and only if that is this network's does the answer come
    /// back the way the question came.
    fn sources(&self, ingress: &Ingress) -> SourceRules {
        let answers = |local: &&LocalEndpoint| !local.gateway.is_empty();
        SourceRules {
            own: ingress.addresses.iter().copied().collect(),
            direct: self
                .endpoints
                .values()
                .filter(answers)
                .flat_map(|local| local.addresses.iter().map(IpNet::addr))
                .collect(),
        }
    }

    fn endpoint(&self, local: &LocalEndpoint) -> ObservedEndpoint {
        // A sandbox on two networks has two routes to the DNS address, and may have two default routes: the
        // VNI keeps them apart, and what is left works when a network goes. Routes of somebody else, with the
        // usual metric of 0, are neither hidden nor replaced.
        let metric = self.vni.get().max(1);
        let services = self
            .service_addresses
            .iter()
            .map(|address| (IpNet::from(*address), None));
        let nets = self.subnets.iter().map(|subnet| subnet.net);
        let others = nets.filter(|net| is_other(net, &local.addresses));
        let others = others.map(|net| (net, None));
        let defaults = local.gateway.iter().map(|gateway| {
            let everywhere = if gateway.is_ipv4() {
                IpNet::V4(Default::default())
            } else {
                IpNet::V6(Default::default())
            };
            (everywhere, Some(*gateway))
        });
        let has = |to: &IpNet| {
            local
                .addresses
                .iter()
                .any(|net| net.addr().is_ipv4() == to.addr().is_ipv4())
        };
        let Some(sandbox) = local.place.sandbox() else {
            return ObservedEndpoint::handed_over(local.mac, u32::from(self.mtu));
        };
        ObservedEndpoint {
            mac: local.mac,
            mtu: u32::from(self.mtu),
            sandbox: Some(sandbox.id),
            intact: true,
            addresses: local.addresses.iter().copied().collect(),
            routes: services
                .chain(others)
                .chain(defaults)
                .filter(|(to, _)| has(to))
                .map(|(to, via)| EndpointRoute { to, via, metric })
                .collect(),
        }
    }
}

/// Whether somebody with these addresses reaches a subnet of its network without being in it: it is on the same link.
pub fn is_other(subnet: &IpNet, addresses: &[IpNet]) -> bool {
    let mut of_version = addresses
        .iter()
        .map(IpNet::addr)
        .filter(|address| address.is_ipv4() == subnet.addr().is_ipv4())
        .peekable();
    of_version.peek().is_some() && !of_version.any(|address| subnet.contains(&address))
}
