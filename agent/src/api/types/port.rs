use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a port speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A port of a service or a range of them, written `[NAME=]PORT[:TARGET][/PROTO]`: `80`, `http=80:8080`, `53/udp`,
/// `5000-5010`, `5000-5010:6000-6010`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServicePort {
    /// What SRV records call it.
    #[serde(default)]
    pub name: Option<String>,
    /// The port of the service's virtual address; of a range the first.
    pub port: u16,
    /// The port that backends listen on; of a range the first.
    pub target: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
    /// How many ports the range has, 1 for a single port. Each leads to its own target.
    #[serde(default = "one")]
    pub count: u16,
}

fn one() -> u16 {
    1
}

/// Text that is not a port of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a port: {why}; write [NAME=]PORT[:TARGET][/tcp|udp], for example http=80:8080 or 5000-5010"
)]
pub struct ParsePortError {
    text: String,
    why: String,
}

impl FromStr for ServicePort {
    type Err = ParsePortError;

    fn from_str(text: &str) -> Result<Self, ParsePortError> {
        let error = |why: String| ParsePortError {
            text: text.to_owned(),
            why,
        };
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => (Some(name), rest),
            None => (None, text),
        };
        if let Some(name) = name {
            check_port_name(name).map_err(error)?;
        }
        let (ports, protocol) = match rest.split_once('/') {
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(error(unknown_protocol(other))),
            None => (rest, Protocol::Tcp),
        };
        let (port, target) = ports.split_once(':').unwrap_or((ports, ports));
        let (port, count) = range(port).map_err(error)?;
        let (target, targets) = range(target).map_err(error)?;
        if count != targets {
            return Err(error(format!(
                "a range leads to one of the same length, not {count} ports to {targets}"
            )));
        }
        if count > 1 && name.is_some() {
            return Err(error("a range has no name: SRV records name one port".to_owned()));
        }
        Ok(Self {
            name: name.map(str::to_owned),
            port,
            target,
            protocol,
            count,
        })
    }
}

impl ServicePort {
    /// The last port; `None` if there is no such number.
    pub fn last(&self) -> Option<u16> {
        self.port.checked_add(self.count.checked_sub(1)?)
    }

    /// The last target; `None` if there is no such number.
    pub fn last_target(&self) -> Option<u16> {
        self.target.checked_add(self.count.checked_sub(1)?)
    }

    /// What backends listen on behind one of its ports.
    pub fn target_of(&self, port: u16) -> Option<u16> {
        let place = port.checked_sub(self.port).filter(|place| *place < self.count)?;
        self.target.checked_add(place)
    }

    /// Whether it has ports in common with another one.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.port <= other.last().unwrap_or(u16::MAX)
            && other.port <= self.last().unwrap_or(u16::MAX)
    }
}

/// Why a port cannot speak it.
pub(super) fn unknown_protocol(word: &str) -> String {
    match word {
        "sctp" => "SCTP has no ports of its own here, as hosts with eBPF cannot balance it; a service with \
                   --endpoint-mode dnsrr serves it by its backends' addresses"
            .to_owned(),
        other => format!("`{other}` is neither tcp nor udp"),
    }
}

/// The first port and the number of ports of `PORT` or `PORT-PORT`.
pub(super) fn range(text: &str) -> Result<(u16, u16), String> {
    let number = |part: &str| match part.parse::<u16>() {
        Ok(port) if port > 0 && part.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(format!("`{part}` is not a number from 1 to 65535")),
    };
    let Some((first, last)) = text.split_once('-') else {
        return Ok((number(text)?, 1));
    };
    let (first, last) = (number(first)?, number(last)?);
    match last.checked_sub(first) {
        Some(more) if more < u16::MAX => Ok((first, more + 1)),
        _ => Err(format!("the range `{text}` ends before it begins")),
    }
}

/// The name of a port is that of a service in RFC 6335, section 5.1: it becomes `_name` in SRV records.
fn check_port_name(name: &str) -> Result<(), String> {
    let bytes = name.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let known = bytes.len() <= 15
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    if known {
        return Ok(());
    }
    Err(format!(
        "`{name}` is not 1 to 15 letters, digits and `-`, with a letter or digit at both ends"
    ))
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}=")?;
        }
        let range = |f: &mut fmt::Formatter<'_>, first: u16| match self.count {
            0 | 1 => write!(f, "{first}"),
            count => write!(f, "{first}-{}", u32::from(first) + u32::from(count) - 1),
        };
        range(f, self.port)?;
        if self.target != self.port {
            f.write_str(":")?;
            range(f, self.target)?;
        }
        write!(f, "/{}", self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_of(port: u16, target: u16) -> ServicePort {
        ServicePort {
            name: None,
            port,
            target,
            protocol: Protocol::Tcp,
            count: 1,
        }
    }

    #[test]
    fn a_port_is_read_as_written() {
        let port = |name: Option<&str>, port, target, protocol| ServicePort {
            name: name.map(str::to_owned),
            port,
            target,
            protocol,
            count: 1,
        };
        let many = |port, target, count| ServicePort {
            count,
            ..port_of(port, target)
        };
        for (text, expected, shown) in [
            ("5000-5010", many(5000, 5000, 11), "5000-5010/tcp"),
            (
                "5000-5001:6000-6001",
                many(5000, 6000, 2),
                "5000-5001:6000-6001/tcp",
            ),
            ("7-7:8", many(7, 8, 1), "7:8/tcp"),
            ("1-65535", many(1, 1, 65535), "1-65535/tcp"),
            ("80", port(None, 80, 80, Protocol::Tcp), "80/tcp"),
            ("80:8080", port(None, 80, 8080, Protocol::Tcp), "80:8080/tcp"),
            ("53/udp", port(None, 53, 53, Protocol::Udp), "53/udp"),
            (
                "http=80:8080/tcp",
                port(Some("http"), 80, 8080, Protocol::Tcp),
                "http=80:8080/tcp",
            ),
            (
                "dns=53/udp",
                port(Some("dns"), 53, 53, Protocol::Udp),
                "dns=53/udp",
            ),
            ("65535:1", port(None, 65535, 1, Protocol::Tcp), "65535:1/tcp"),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), shown);
            assert_eq!(shown.parse(), Ok(expected), "{shown}");
        }
    }

    #[test]
    fn what_is_no_port_says_which_part_is_wrong() {
        for (text, why) in [
            ("", "`` is not a number"),
            ("0", "`0` is not a number"),
            ("65536", "`65536` is not a number"),
            ("+80", "`+80` is not a number"),
            ("80:", "`` is not a number"),
            (":80", "`` is not a number"),
            ("80:81:82", "`81:82` is not a number"),
            ("80/sctp", "SCTP has no ports of its own here"),
            ("80/dccp", "`dccp` is neither tcp nor udp"),
            ("80/TCP", "`TCP` is neither"),
            ("=80", "`` is not 1 to 15 letters"),
            ("a_b=80", "`a_b` is not 1 to 15 letters"),
            ("averyverylongname=80", "is not 1 to 15 letters"),
            ("5010-5000", "the range `5010-5000` ends before it begins"),
            ("5000-", "`` is not a number"),
            ("5000-5010:6000", "one of the same length, not 11 ports to 1"),
            ("5000-5010:6000-6001", "one of the same length, not 11 ports to 2"),
            ("rtp=5000-5010", "a range has no name"),
        ] {
            let error = text.parse::<ServicePort>().unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("write [NAME=]PORT"),
                "{text}: {error}"
            );
        }
    }
}
