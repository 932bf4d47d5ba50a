use std::{fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use weft_types::{EndpointId, Mac, NetworkId};

use super::{
    desired::Place,
    ingress::{HostPorts, IngressLink, SourceRules},
    observed::{Bridge, EndpointRoute, Far, Gate, HostRules, Tunnel, Uplink},
};

/// What to do, in order. Displays one line per operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations.
    pub ops: Vec<Op>,
}

/// One operation on the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// In the host's own namespace.
    Host(HostOp),
    /// On the namespace of a network.
    Network(NetworkId, NetworkOp),
    /// On an endpoint of this host.
    Endpoint(NetworkId, EndpointId, EndpointOp),
}

/// An operation in the host's own namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostOp {
    /// Has the host forward packets. This is never taken back: nobody can say who else relies on it by then.
    EnableForwarding {
        /// IPv6, or IPv4.
        ipv6: bool,
    },
    /// Has Docker's firewall let through what goes in and out of networks, or no longer.
    SetGate {
        /// That for IPv6, or for IPv4.
        ipv6: bool,
        /// To what.
        to: Gate,
    },
    /// Makes our nft table, or replaces it in one step.
    SetRules(HostRules),
    /// Removes our nft table.
    DeleteRules,
    /// Opens these ports and no others, in one step.
    SetPorts(HostPorts),
    /// Closes all ports and removes their nft table.
    DeletePorts,
}

/// An operation on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkOp {
    /// Makes the namespace and its bridge.
    Add(Bridge),
    /// Removes the namespace with all that is in it and all that leads there.
    Delete,
    /// Changes the bridge's Ethernet address and alias.
    SetBridge(Bridge),
    /// Gives the bridge an address.
    AddAddress(IpNet),
    /// Takes an address from the bridge.
    DeleteAddress(IpNet),
    /// Makes the tunnel.
    AddTunnel(Tunnel),
    /// Removes the tunnel and with it all its forwarding entries.
    DeleteTunnel,
    /// Makes the way out.
    AddUplink(Uplink),
    /// Removes the way out.
    DeleteUplink,
    /// Makes the way in.
    AddIngress(IngressLink),
    /// Removes the way in.
    DeleteIngress,
    /// Says whose address connections have that came in, in one step.
    SetSources(SourceRules),
    /// Removes what says so.
    DeleteSources,
    /// Changes the largest packet of a link.
    SetMtu(Link, u32),
    /// Says behind which Ethernet address an address is.
    SetNeighbour(IpAddr, Mac),
    /// Forgets where an address is.
    DeleteNeighbour(IpAddr),
    /// Says where an Ethernet address is.
    SetFdb(Mac, Far),
    /// Forgets where an Ethernet address is.
    DeleteFdb(Mac),
}

/// A link of a network's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The bridge.
    Bridge,
    /// The tunnel.
    Tunnel,
    /// Both ends of the way out.
    Uplink,
    /// Both ends of the way in.
    Ingress,
}

/// An operation on an endpoint of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointOp {
    /// Makes the veth pair between sandbox and bridge.
    Add {
        /// The Ethernet address in the sandbox.
        mac: Mac,
        /// The largest packet of both ends.
        mtu: u32,
        /// Where the far end is born.
        place: Place,
        /// Its name there; without, the first free of `eth0`, `eth1`, …
        ifname: Option<String>,
    },
    /// Removes the veth pair.
    Delete,
    /// Changes the largest packet of both ends.
    SetMtu(u32),
    /// Adds an address in the sandbox.
    AddAddress(IpNet),
    /// Deletes an address in the sandbox.
    DeleteAddress(IpNet),
    /// Adds a route in the sandbox.
    AddRoute(EndpointRoute),
    /// Deletes a route in the sandbox.
    DeleteRoute(EndpointRoute),
    /// Has the sandbox forget at which Ethernet address it saw another endpoint, which is there no longer.
    Forget(IpAddr),
    /// The same in a container, whose namespace a container engine keeps there.
    ForgetInside(IpAddr, PathBuf),
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(op) => write!(f, "host: {op}"),
            Self::Network(network, op) => write!(f, "network {}: {op}", network.short()),
            Self::Endpoint(network, endpoint, op) => {
                write!(
                    f,
                    "network {} endpoint {}: {op}",
                    network.short(),
                    endpoint.short()
                )
            }
        }
    }
}

impl fmt::Display for HostOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EnableForwarding { ipv6: false } => f.write_str("enable IPv4 forwarding"),
            Self::EnableForwarding { ipv6: true } => f.write_str("enable IPv6 forwarding"),
            Self::SetGate { ipv6, to } => {
                let verb = if *to == Gate::Open { "open" } else { "shut" };
                write!(
                    f,
                    "{verb} Docker's firewall for {}",
                    if *ipv6 { "IPv6" } else { "IPv4" }
                )
            }
            Self::SetRules(rules) => write!(f, "set rules: {rules}"),
            Self::DeleteRules => f.write_str("delete rules"),
            Self::SetPorts(ports) => write!(f, "open {ports}"),
            Self::DeletePorts => f.write_str("close all ports"),
        }
    }
}

impl fmt::Display for NetworkOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(bridge) => write!(f, "add namespace with {bridge}"),
            Self::Delete => f.write_str("delete namespace and all that is in it"),
            Self::SetBridge(bridge) => write!(f, "set {bridge}"),
            Self::AddAddress(net) => write!(f, "add bridge address {net}"),
            Self::DeleteAddress(net) => write!(f, "delete bridge address {net}"),
            Self::AddTunnel(tunnel) => write!(f, "add {tunnel}"),
            Self::DeleteTunnel => f.write_str("delete tunnel"),
            Self::AddUplink(uplink) => write!(f, "add {uplink}"),
            Self::DeleteUplink => f.write_str("delete uplink"),
            Self::AddIngress(ingress) => write!(f, "add {ingress}"),
            Self::DeleteIngress => f.write_str("delete ingress"),
            Self::SetSources(sources) => write!(f, "set {sources}"),
            Self::DeleteSources => f.write_str("delete sources"),
            Self::SetMtu(Link::Bridge, mtu) => write!(f, "set bridge mtu {mtu}"),
            Self::SetMtu(Link::Tunnel, mtu) => write!(f, "set tunnel mtu {mtu}"),
            Self::SetMtu(Link::Uplink, mtu) => write!(f, "set uplink mtu {mtu}"),
            Self::SetMtu(Link::Ingress, mtu) => write!(f, "set ingress mtu {mtu}"),
            Self::SetNeighbour(address, mac) => write!(f, "set neighbour {address} at {mac}"),
            Self::DeleteNeighbour(address) => write!(f, "delete neighbour {address}"),
            Self::SetFdb(mac, far) => write!(f, "set fdb {mac} {far}"),
            Self::DeleteFdb(mac) => write!(f, "delete fdb {mac}"),
        }
    }
}

impl fmt::Display for EndpointOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add {
                mac,
                mtu,
                place,
                ifname,
            } => match place {
                Place::Sandbox(sandbox) => {
                    write!(f, "add veth {mac} mtu {mtu} into {}", sandbox.path.display())?;
                    ifname.iter().try_for_each(|name| write!(f, " as {name}"))
                }
                Place::Host(_) => write!(f, "add veth {mac} mtu {mtu} into the host itself"),
                Place::Engine { ifname, .. } => {
                    write!(f, "add veth {mac} mtu {mtu} to hand over as {ifname}")
                }
            },
            Self::Delete => f.write_str("delete veth"),
            Self::SetMtu(mtu) => write!(f, "set mtu {mtu}"),
            Self::AddAddress(net) => write!(f, "add address {net}"),
            Self::DeleteAddress(net) => write!(f, "delete address {net}"),
            Self::AddRoute(route) => write!(f, "add {route}"),
            Self::DeleteRoute(route) => write!(f, "delete {route}"),
            Self::Forget(address) => write!(f, "forget where {address} was"),
            Self::ForgetInside(address, path) => {
                write!(f, "forget in {} where {address} was", path.display())
            }
        }
    }
}
