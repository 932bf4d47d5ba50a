use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    Protocol,
    port::{range, unknown_protocol},
};

/// On which hosts a port is open, and where it leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishMode {
    /// On every host, to every backend.
    #[default]
    Ingress,
    /// On the hosts where a backend runs, to the backends of that host.
    Host,
}

impl PublishMode {
    /// Every mode, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Host];
}

/// A port of hosts that leads to a port of a service, written `[IP:]HOSTPORT:PORT[/PROTO][,mode=host]`: `8080:80`,
/// `127.0.0.1:53:53/udp`, `[2001:db8::7]:443:443,mode=host`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// The host's address that it is open at; of all addresses of both IP versions when null, of all of one version when
    /// `0.0.0.0` or `::`.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// The port of the hosts.
    pub host_port: u16,
    /// The port of the service.
    pub port: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
    /// On which hosts.
    #[serde(default)]
    pub mode: PublishMode,
}

/// Text that does not say how to publish a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` does not say how to publish a port: {why}; write [IP:]HOSTPORT:PORT[/tcp|udp][,mode=host], for example \
     8080:80, [::1]:5353:53/udp or 6000-6010:5000-5010"
)]
pub struct ParsePublishError {
    text: String,
    why: String,
}

impl FromStr for PublishedPort {
    type Err = ParsePublishError;

    fn from_str(text: &str) -> Result<Self, ParsePublishError> {
        let one = read(text).and_then(|(port, count)| match count {
            1 => Ok(port),
            count => Err(format!("it is {count} ports at once")),
        });
        one.map_err(|why| ParsePublishError {
            text: text.to_owned(),
            why,
        })
    }
}

impl PublishedPort {
    /// All that a text stands for: a range is as many ports, each leading to its own.
    pub fn read_range(text: &str) -> Result<Vec<Self>, ParsePublishError> {
        let (first, count) = read(text).map_err(|why| ParsePublishError {
            text: text.to_owned(),
            why,
        })?;
        let ports = (0..count).map(|n| Self {
            host_port: first.host_port + n,
            port: first.port + n,
            ..first.clone()
        });
        Ok(ports.collect())
    }
}

/// The first port, and how many there are.
fn read(text: &str) -> Result<(PublishedPort, u16), String> {
    let (ports, mode) = match text.split_once(',') {
        None => (text, PublishMode::Ingress),
        Some((ports, option)) => match option.strip_prefix("mode=") {
            Some("host") => (ports, PublishMode::Host),
            Some("ingress") => (ports, PublishMode::Ingress),
            Some(other) => return Err(format!("`{other}` is neither of the modes ingress and host")),
            None => return Err(format!("`{option}` is not an option of it")),
        },
    };
    let (ports, protocol) = match ports.split_once('/') {
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => return Err(unknown_protocol(other)),
        None => (ports, Protocol::Tcp),
    };
    let Some((before, port)) = ports.rsplit_once(':') else {
        return Err("it names one port only".to_owned());
    };
    let (ip, host_port) = match before.rsplit_once(':') {
        Some((ip, host_port)) => (Some(address(ip)?), host_port),
        None => (None, before),
    };
    let (host_port, host_ports) = range(host_port)?;
    let (port, ports) = range(port)?;
    if host_ports != ports {
        return Err(format!(
            "a range leads to one of the same length, not {host_ports} ports to {ports}"
        ));
    }
    let first = PublishedPort {
        ip,
        host_port,
        port,
        protocol,
        mode,
    };
    Ok((first, ports))
}

/// IPv6 addresses are in brackets, as in a URL.
fn address(part: &str) -> Result<IpAddr, String> {
    let inner = part.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let parsed = match inner {
        Some(v6) => v6.parse().ok().filter(IpAddr::is_ipv6),
        None => part.parse().ok().filter(IpAddr::is_ipv4),
    };
    parsed.ok_or_else(|| format!("`{part}` is no IP address, or an IPv6 address without brackets"))
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            None => {}
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
        }
        write!(f, "{}:{}/{}", self.host_port, self.port, self.protocol)?;
        match self.mode {
            PublishMode::Ingress => Ok(()),
            PublishMode::Host => f.write_str(",mode=host"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_as_many_ports() {
        let ports = PublishedPort::read_range("127.0.0.1:6000-6002:53-55/udp,mode=host").unwrap();
        let shown: Vec<_> = ports.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "127.0.0.1:6000:53/udp,mode=host",
                "127.0.0.1:6001:54/udp,mode=host",
                "127.0.0.1:6002:55/udp,mode=host"
            ]
        );
        assert_eq!(PublishedPort::read_range("8080:80").unwrap().len(), 1);
        for (text, why) in [
            ("6000-6002:53", "one of the same length, not 3 ports to 1"),
            ("6002-6000:53-55", "ends before it begins"),
            ("6000-:53-55", "`` is not a number"),
        ] {
            let error = PublishedPort::read_range(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let error = "6000-6002:53-55"
            .parse::<PublishedPort>()
            .unwrap_err()
            .to_string();
        assert!(error.contains("3 ports at once"), "{error}");
    }

    #[test]
    fn a_published_port_is_read_as_written() {
        for (text, shown) in [
            ("8080:80", "8080:80/tcp"),
            ("8080:80/tcp,mode=ingress", "8080:80/tcp"),
            ("53:53/udp", "53:53/udp"),
            ("8080:80,mode=host", "8080:80/tcp,mode=host"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp"),
            (
                "[2001:db8::7]:53:5353/udp,mode=host",
                "[2001:db8::7]:53:5353/udp,mode=host",
            ),
            ("[::]:443:443", "[::]:443:443/tcp"),
        ] {
            let port: PublishedPort = text.parse().unwrap();
            assert_eq!(port.to_string(), shown);
            assert_eq!(shown.parse(), Ok(port));
        }
    }

    #[test]
    fn what_is_none_says_which_part_is_wrong() {
        for (text, why) in [
            ("", "one port only"),
            ("8080", "one port only"),
            ("8080:", "`` is not a number"),
            (":80", "`` is not a number"),
            ("0:80", "`0` is not a number"),
            ("8080:65536", "`65536` is not a number"),
            ("8080:80/sctp", "SCTP has no ports of its own here"),
            ("8080:80,mode=all", "`all` is neither of the modes"),
            ("8080:80,host", "`host` is not an option"),
            ("host:8080:80", "`host` is no IP address"),
            ("::1:8080:80", "`::1` is no IP address"),
            ("[10.0.0.1]:8080:80", "`[10.0.0.1]` is no IP address"),
        ] {
            let error = text.parse::<PublishedPort>().unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("write [IP:]HOSTPORT:PORT"),
                "{text}: {error}"
            );
        }
    }
}
