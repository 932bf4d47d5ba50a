//! Ports of the host that lead into a network.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use weft_types::Mac;

/// How a network is entered through this host, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// The Ethernet address at which the answers of other hosts' endpoints arrive. The gateway's will not do: it is the
    /// same on all hosts, so that they would be answered where they are.
    pub mac: Mac,
    /// Addresses of the network that are this host's, at most one of each IP version: what comes in here and goes on to
    /// another host comes from them.
    pub addresses: Vec<IpAddr>,
    /// The ports of this host that lead here.
    pub ports: BTreeSet<HostPort>,
}

/// A transport protocol whose ports can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub transport: Transport,
    /// Of this address of the host's alone; unspecified for all of that IP version, and none for all there are.
    pub at: Option<IpAddr>,
}

impl HostPort {
    /// Whether it is a port of addresses of this IP version.
    pub(crate) fn has(&self, ipv6: bool) -> bool {
        self.at.is_none_or(|at| at.is_ipv6() == ipv6)
    }
}

/// The part of an ingress that is in the network's namespace: a link onto the bridge, and the host's loopback let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressLink {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its largest packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether nothing of it is missing.
    pub intact: bool,
}

/// Whose address a connection from outside has when it leaves a network's namespace towards an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceRules {
    /// What the source is rewritten to, at most one of each IP version.
    pub own: BTreeSet<IpAddr>,
    /// Endpoints that see the client's own address: those on this host whose answers come back here whoever asked.
    pub direct: BTreeSet<IpAddr>,
}

/// All ports of the host that lead into networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPorts {
    /// To which ends of uplinks they lead; the port stays what it is.
    pub open: BTreeMap<(HostPort, bool), IpAddr>,
    /// The networks they lead into, by their short ids.
    pub networks: BTreeSet<String>,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            None => {}
            Some(IpAddr::V4(at)) => write!(f, "{at}:")?,
            Some(IpAddr::V6(at)) => write!(f, "[{at}]:")?,
        }
        write!(f, "{}/{}", self.port, self.transport)
    }
}

impl fmt::Display for IngressLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ingress {} mtu {}", self.mac, self.mtu)?;
        self.addresses
            .iter()
            .try_for_each(|address| write!(f, " {address}"))
    }
}

impl fmt::Display for SourceRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sources:")?;
        self.own.iter().try_for_each(|own| write!(f, " {own}"))?;
        if !self.direct.is_empty() {
            f.write_str(", the client's own towards")?;
        }
        self.direct.iter().try_for_each(|address| write!(f, " {address}"))
    }
}

impl fmt::Display for HostPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        self.open.iter().try_for_each(|((port, _), to)| {
            write!(f, "{between}{port} to {to}")?;
            between = ", ";
            Ok(())
        })
    }
}
