use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net};
use weft_netlink::netns::NetnsId;
use weft_types::{EndpointId, Mac, NetworkId, Vni};

use super::ingress::{HostPorts, IngressLink, SourceRules};

/// What a look at the kernel says about our own objects, and the little about others that matters to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The host's own namespace.
    pub host: Host,
    /// The namespaces of our networks.
    pub networks: BTreeMap<NetworkId, ObservedNetwork>,
}

/// What we have and see in the host's own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Our nft table.
    pub rules: Option<HostRules>,
    /// Our nft table of published ports.
    pub ports: Option<HostPorts>,
    /// Whether the host forwards packets.
    pub forwarding: Forwarding,
    /// Docker's firewall for IPv4 and for IPv6, where it has one.
    pub docker: [Option<Gate>; 2],
    /// IPv4 link-local ranges that somebody else uses.
    pub link_local: BTreeSet<Ipv4Net>,
}

/// Our nft table in the host's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRules {
    /// VXLAN ports, on which only members are heard.
    pub ports: BTreeSet<u16>,
    /// At which addresses they are heard there.
    pub local: BTreeSet<IpAddr>,
    /// VXLAN ports that no process of this host sends to, and nobody through it who is no member.
    pub guarded: BTreeSet<u16>,
    /// Who is heard there.
    pub members: BTreeSet<IpAddr>,
    /// Whether packets out of the networks get an address of the host.
    pub masquerade: bool,
    /// Links of the host itself into networks, by their short ids, with the host's addresses there. Nothing passes
    /// between them and other links, and no other address is reached by them.
    pub links: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl HostRules {
    /// These, and the ports that others shut.
    pub(super) fn as_strict_as(&self, others: &Self) -> Self {
        Self {
            ports: &self.ports | &others.ports,
            local: &self.local | &others.local,
            guarded: &self.guarded | &others.guarded,
            links: others
                .links
                .clone()
                .into_iter()
                .chain(self.links.clone())
                .collect(),
            ..self.clone()
        }
    }
}

/// What dockerd's firewall does with what goes in and out of networks. dockerd has the host forward nothing but its own,
/// and has a chain for the rules of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It falls to what dockerd has decided for everybody.
    Shut,
    /// Our rules let it through.
    Open,
}

/// Whether the host forwards packets between its devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// IPv4 packets.
    pub ipv4: bool,
    /// IPv6 packets.
    pub ipv6: bool,
}

/// The namespace of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// The bridge. Without one the namespace is of no use and is made anew.
    pub bridge: Option<Bridge>,
    /// Addresses of the bridge.
    pub addresses: BTreeSet<IpNet>,
    /// The tunnel, if it is a port of the bridge with the flags it should have.
    pub tunnel: Option<Tunnel>,
    /// The way out.
    pub uplink: Option<Uplink>,
    /// The way in.
    pub ingress: Option<IngressLink>,
    /// Whose addresses connections that came in have.
    pub sources: Option<SourceRules>,
    /// Endpoints with a port on the bridge.
    pub endpoints: BTreeMap<EndpointId, ObservedEndpoint>,
    /// Where an Ethernet address is; `None` if the entry of the bridge or of the VXLAN device is missing.
    pub fdb: BTreeMap<Mac, Option<Far>>,
    /// The Ethernet address behind which an address is.
    pub neighbours: BTreeMap<IpAddr, Mac>,
}

impl ObservedNetwork {
    /// The same without what is bound to addresses, of which there may be much.
    pub(super) fn but_for_bindings(&self) -> Self {
        Self {
            bridge: self.bridge.clone(),
            addresses: self.addresses.clone(),
            tunnel: self.tunnel,
            uplink: self.uplink,
            ingress: self.ingress.clone(),
            sources: self.sources.clone(),
            endpoints: self.endpoints.clone(),
            fdb: BTreeMap::new(),
            neighbours: BTreeMap::new(),
        }
    }
}

/// The bridge of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its Ethernet address, the gateway's.
    pub mac: Mac,
    /// Its largest packet.
    pub mtu: u32,
    /// The network's name, kept in the alias.
    pub name: String,
    /// Whether it forwards anything.
    pub up: bool,
}

/// The tunnel of a network: the port of its bridge that leads to the other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// What it is.
    pub carrier: Carrier,
    /// Its largest packet.
    pub mtu: u32,
}

/// What carries the frames of a network to other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// A VXLAN device.
    Vxlan {
        /// The network on the wire.
        vni: Vni,
        /// Our underlay address.
        local: IpAddr,
        /// The UDP port.
        port: u16,
        /// Whether its UDP socket is in the namespace of the tunnels, where there is no way but WireGuard; else it is on the
        /// underlay.
        sealed: bool,
    },
    /// A TAP device, whose frames a process encrypts. It alone knows what they look like on the wire, and without it
    /// none leaves.
    Tap,
}

/// Where an Ethernet address is that is not on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Far {
    /// Behind this VTEP.
    Vtep(IpAddr),
    /// Where the process knows that has the TAP device open.
    Process,
}

/// A veth pair between a network's namespace and the host's, with a route and masquerade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    /// Which pair of link addresses.
    pub slot: u16,
    /// Whether it has IPv6 addresses too.
    pub ipv6: bool,
    /// Its largest packet.
    pub mtu: u32,
    /// Whether nothing of it is missing.
    pub intact: bool,
}

impl Uplink {
    /// How many slots there are: pairs in 169.254.64.0/18, which is far from the fixed DNS address and from the
    /// clouds' metadata service.
    pub const SLOTS: u16 = 1 << 13;

    /// The IPv4 addresses of all uplinks.
    pub const IPV4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 64, 0), 18);
    /// The IPv6 addresses of all uplinks: a unique local prefix (RFC 4193).
    pub const IPV6: ipnet::Ipv6Net =
        ipnet::Ipv6Net::new_assert(Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 0), 64);

    /// The IPv4 addresses of the host's end and of the network's end, of a /31 (RFC 3021).
    pub fn ipv4(&self) -> (Ipv4Addr, Ipv4Addr) {
        let host = Self::IPV4.network().to_bits() + 2 * u32::from(self.slot);
        (Ipv4Addr::from_bits(host), Ipv4Addr::from_bits(host + 1))
    }

    /// The addresses of the host's end and of the network's end with their prefix lengths, per IP version.
    pub(crate) fn ends(&self) -> Vec<(IpNet, IpNet)> {
        let pair = |(host, network): (IpAddr, IpAddr), len| {
            Some((IpNet::new(host, len).ok()?, IpNet::new(network, len).ok()?))
        };
        let (v4, v6) = (self.ipv4(), self.ipv6());
        let v4 = pair((v4.0.into(), v4.1.into()), 31);
        let v6 = pair((v6.0.into(), v6.1.into()), 127).filter(|_| self.ipv6);
        v4.into_iter().chain(v6).collect()
    }

    /// The IPv6 addresses of the host's end and of the network's end, of a /127 (RFC 6164).
    pub fn ipv6(&self) -> (Ipv6Addr, Ipv6Addr) {
        let host = Self::IPV6.network().to_bits() + 2 + 2 * u128::from(self.slot);
        (Ipv6Addr::from_bits(host), Ipv6Addr::from_bits(host + 1))
    }
}

/// An endpoint of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedEndpoint {
    /// Its Ethernet address.
    pub mac: Mac,
    /// The largest packet of both ends.
    pub mtu: u32,
    /// Which namespace the far end is in, if that is ours to know and could be found out.
    pub sandbox: Option<NetnsId>,
    /// Whether both ends are up, the port is on the bridge, and its forwarding entry is there.
    pub intact: bool,
    /// Addresses in the sandbox.
    pub addresses: BTreeSet<IpNet>,
    /// Our routes in the sandbox.
    pub routes: BTreeSet<EndpointRoute>,
}

impl ObservedEndpoint {
    /// An endpoint that is a container engine's to set up, with its port as it should be.
    pub(crate) fn handed_over(mac: Mac, mtu: u32) -> Self {
        Self {
            mac,
            mtu,
            sandbox: None,
            intact: true,
            addresses: BTreeSet::new(),
            routes: BTreeSet::new(),
        }
    }
}

/// A route that a sandbox has because of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointRoute {
    /// Where to.
    pub to: IpNet,
    /// The next hop; without, it is on the link.
    pub via: Option<IpAddr>,
    /// Which of several routes to the same destination wins: the lowest.
    pub metric: u32,
}

impl fmt::Display for HostRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| {
            if items.is_empty() {
                "nobody".to_owned()
            } else {
                items.join(",")
            }
        };
        let ports = list(self.ports.iter().map(ToString::to_string).collect());
        let members = list(self.members.iter().map(ToString::to_string).collect());
        write!(f, "VXLAN on {ports} from {members}")?;
        if self.guarded != self.ports {
            let guarded = list(self.guarded.iter().map(ToString::to_string).collect());
            write!(f, ", no other VXLAN to {guarded}")?;
        }
        f.write_str(if self.masquerade { ", masquerade" } else { "" })?;
        self.links.iter().try_for_each(|(network, addresses)| {
            write!(f, ", the host itself on {network} as")?;
            addresses.iter().try_for_each(|address| write!(f, " {address}"))
        })
    }
}

impl fmt::Display for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bridge {} mtu {} named {}", self.mac, self.mtu, self.name)?;
        f.write_str(if self.up { "" } else { ", down" })
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.carrier {
            Carrier::Vxlan {
                vni,
                local,
                port,
                sealed,
            } => {
                write!(f, "vxlan vni {vni} local {local} port {port}")?;
                f.write_str(if sealed { " in wireguard" } else { "" })?;
            }
            Carrier::Tap => f.write_str("tap")?,
        }
        write!(f, " mtu {}", self.mtu)
    }
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vtep(vtep) => write!(f, "behind {vtep}"),
            Self::Process => f.write_str("behind the tap"),
        }
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, network) = self.ipv4();
        write!(
            f,
            "uplink {network} to {host}{} mtu {}",
            if self.ipv6 { " and ipv6" } else { "" },
            self.mtu
        )
    }
}

impl fmt::Display for EndpointRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}", self.to)?;
        self.via.iter().try_for_each(|via| write!(f, " via {via}"))?;
        write!(f, " metric {}", self.metric)
    }
}
