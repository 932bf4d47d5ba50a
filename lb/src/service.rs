//! The words: services, their ports and backends, and what one client sees of them.

use std::{fmt, net::IpAddr, num::NonZeroU16, sync::Arc, time::Duration};

use weft_types::{EndpointId, NetworkId, ServiceId};

/// A virtual address, or several, served by endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Its virtual addresses: IPv4, IPv6 or both, and aliases that a merge left behind.
    pub vips: Vec<IpAddr>,
    /// The ports that are translated; the others refuse. None at all: every port and protocol is translated.
    pub ports: Vec<PortMap>,
    /// How a backend is chosen.
    pub scheduler: Scheduler,
    /// Who serves it, in any order.
    pub backends: Vec<Backend>,
    /// A connection that was idle for so long is forgotten, and reset when it next speaks. None: as the datapath has it.
    pub idle_timeout: Option<Duration>,
    /// Whether somebody looks at what becomes of its connections ([`Attempts::made`](crate::Attempts::made)).
    pub is_watched: bool,
}

/// An endpoint that serves a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its addresses; the first of each version is used.
    pub addrs: Vec<IpAddr>,
    /// Its share under `wrr`, `lc` and `maglev`, relative to the others.
    pub weight: NonZeroU16,
    /// Whether it gets connections.
    pub state: BackendState,
}

/// Whether a backend gets connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// It gets new connections.
    Active,
    /// It gets no new connections and keeps the open ones.
    Draining,
    /// It gets nothing; what is open to it is cut off, so that clients notice.
    Down,
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Down => "down",
        })
    }
}

/// How a backend is chosen for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheduler {
    /// One after the other; weights do not count.
    RoundRobin,
    /// One after the other, each as often as its weight says.
    WeightedRoundRobin,
    /// The one with the fewest connections of this host's clients in relation to its weight; among equals the
    /// one that has waited longest.
    LeastConnections,
    /// The same one for all connections of a sandbox, for as long as it is there; shares are as the weights say.
    Maglev,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnections,
        Self::Maglev,
    ];
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::LeastConnections => "lc",
            Self::Maglev => "maglev",
        })
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of a service and the port of its backends behind it, or a range of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMap {
    /// The port that clients use.
    pub port: NonZeroU16,
    /// The port on which backends listen.
    pub target: NonZeroU16,
    /// How many ports: those that follow on the first lead to those that follow on its target.
    pub count: NonZeroU16,
    /// The protocol.
    pub protocol: Protocol,
}

impl PortMap {
    /// Every port with its target, as far as there are such numbers.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let (port, target) = (self.port.get(), self.target.get());
        let pair = move |n| Some((port.checked_add(n)?, target.checked_add(n)?));
        (0..self.count.get()).map_while(pair)
    }
}

/// What one sandbox sees of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTable {
    /// The network.
    pub network: NetworkId,
    /// Its services, in any order. Who changes one keeps the others: what is the same in memory is not compared.
    pub services: Arc<[Arc<Service>]>,
}

impl ClientTable {
    /// Of services that nobody shares.
    pub fn new(network: NetworkId, services: impl IntoIterator<Item = Service>) -> Self {
        let services = services.into_iter().map(Arc::new).collect();
        Self { network, services }
    }
}

impl Service {
    /// How long its connections may be idle, in whole seconds, as the kernel counts; less than one would be none at all.
    pub(crate) fn idle_secs(&self) -> Option<u32> {
        let secs = self.idle_timeout?.as_secs();
        Some(u32::try_from(secs).unwrap_or(u32::MAX).max(1))
    }

    /// The backends that get new connections, each with its address of one IP version, in order of their ids.
    pub(crate) fn active(&self, ipv6: bool) -> Vec<(&Backend, IpAddr)> {
        let mut active: Vec<_> = self
            .backends
            .iter()
            .filter(|backend| backend.state == BackendState::Active)
            .filter_map(|backend| Some((backend, backend.addr(ipv6)?)))
            .collect();
        active.sort_by_key(|(backend, _)| backend.endpoint);
        active
    }
}

impl Backend {
    /// Its address of one IP version.
    pub(crate) fn addr(&self, ipv6: bool) -> Option<IpAddr> {
        self.addrs.iter().copied().find(|addr| addr.is_ipv6() == ipv6)
    }
}

#[cfg(test)]
impl PortMap {
    pub(crate) fn tcp(port: u16, target: u16) -> Self {
        Self {
            port: port.try_into().unwrap(),
            target: target.try_into().unwrap(),
            count: NonZeroU16::MIN,
            protocol: Protocol::Tcp,
        }
    }

    /// So many of them.
    pub(crate) fn times(self, count: u16) -> Self {
        let count = count.try_into().unwrap();
        Self { count, ..self }
    }

    pub(crate) fn udp(port: u16, target: u16) -> Self {
        Self {
            protocol: Protocol::Udp,
            ..Self::tcp(port, target)
        }
    }
}
