//! The words: services, their ports and backends, and what one client sees of them.

use std::{fmt, net::IpAddr, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Serialize};
use weft_types::{EndpointId, NetworkId, ServiceId};

/// A virtual address, or several, served by endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Its name, for messages.
    pub name: String,
    /// Its virtual addresses: IPv4, IPv6 or both, and aliases that a merge left behind.
    pub vips: Vec<IpAddr>,
    /// The ports that are translated; the others refuse. None at all: every port and protocol is translated.
    pub ports: Vec<PortMap>,
    /// How a backend is chosen.
    pub scheduler: Scheduler,
    /// Who serves it, in any order.
    pub backends: Vec<Backend>,
}

/// An endpoint that serves a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Scheduler {
    /// One after the other; weights do not count.
    #[default]
    #[serde(rename = "rr")]
    RoundRobin,
    /// One after the other, each as often as its weight says.
    #[serde(rename = "wrr")]
    WeightedRoundRobin,
    /// The one with the fewest connections of this host's clients in relation to its weight; among equals the
    /// one that has waited longest.
    #[serde(rename = "lc")]
    LeastConnections,
    /// The same one for all connections of a sandbox, for as long as it is there; shares are as the weights say.
    #[serde(rename = "maglev")]
    Maglev,
}

impl Scheduler {
    /// All of them, for help texts.
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

impl FromStr for Scheduler {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL
            .into_iter()
            .find(|scheduler| scheduler.to_string() == text);
        found.ok_or_else(|| ParseError::Scheduler(text.to_owned()))
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
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

/// A port of a service and the port of its backends behind it, written `[NAME=]PORT[:TARGET][/PROTO]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMap {
    /// What SRV records call it.
    pub name: Option<String>,
    /// The port that clients use.
    pub port: NonZeroU16,
    /// The port on which backends listen.
    pub target: NonZeroU16,
    /// The protocol; TCP if the text names none.
    pub protocol: Protocol,
}

impl fmt::Display for PortMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}=")?;
        }
        write!(f, "{}", self.port)?;
        if self.target != self.port {
            write!(f, ":{}", self.target)?;
        }
        write!(f, "/{}", self.protocol)
    }
}

impl FromStr for PortMap {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::Port(text.to_owned());
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) if is_label(name) => (Some(name.to_owned()), rest),
            Some(_) => return Err(wrong()),
            None => (None, text),
        };
        let (ports, protocol) = match rest.split_once('/') {
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(wrong()),
            None => (rest, Protocol::default()),
        };
        let number = |text: &str| text.parse().map_err(|_| wrong());
        let (port, target) = match ports.split_once(':') {
            Some((port, target)) => (number(port)?, number(target)?),
            None => (number(ports)?, number(ports)?),
        };
        Ok(Self {
            name,
            port,
            target,
            protocol,
        })
    }
}

/// A name that can stand in `_name._tcp.SERVICE`.
fn is_label(name: &str) -> bool {
    (1..=62).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl Serialize for PortMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not a scheduler.
    #[error("`{0}` is not a scheduler: use rr, wrr, lc or maglev")]
    Scheduler(String),
    /// Not a port of a service.
    #[error(
        "`{0}` is not a service port: write [NAME=]PORT[:TARGET][/PROTO] with ports from 1 to 65535 and tcp or udp"
    )]
    Port(String),
}

/// What one sandbox sees of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTable {
    /// The network.
    pub network: NetworkId,
    /// Its services, in any order.
    pub services: Vec<Service>,
}

impl Service {
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
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_written() {
        for (text, written) in [
            ("80", "80/tcp"),
            ("80:8080", "80:8080/tcp"),
            ("53/udp", "53/udp"),
            ("http=80:8080/tcp", "http=80:8080/tcp"),
            ("80:80", "80/tcp"),
        ] {
            let port: PortMap = text.parse().unwrap();
            assert_eq!(port.to_string(), written);
            assert_eq!(written.parse(), Ok(port.clone()));
            assert_eq!(
                serde_json::from_str::<PortMap>(&serde_json::to_string(&port).unwrap()).unwrap(),
                port
            );
        }
    }

    #[test]
    fn what_is_not_a_port_is_refused_with_the_grammar() {
        for text in [
            "", "0", "80:0", "65536", "80/sctp", "=80", "a b=80", "80:", "-x=80", "80/",
        ] {
            let error = text.parse::<PortMap>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{text}` is not a service port: write [NAME=]PORT")),
                "{error}"
            );
        }
    }

    #[test]
    fn schedulers_are_named_as_in_ipvs() {
        for scheduler in Scheduler::ALL {
            assert_eq!(scheduler.to_string().parse(), Ok(scheduler));
            assert_eq!(
                serde_json::to_string(&scheduler).unwrap(),
                format!("\"{scheduler}\"")
            );
        }
        assert_eq!(
            "fifo".parse::<Scheduler>().unwrap_err().to_string(),
            "`fifo` is not a scheduler: use rr, wrr, lc or maglev"
        );
    }
}
