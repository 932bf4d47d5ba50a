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

/// A port of a service, written `[NAME=]PORT[:TARGET][/PROTO]`: `80`, `http=80:8080`, `53/udp`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServicePort {
    /// What SRV records call it.
    #[serde(default)]
    pub name: Option<String>,
    /// The port of the service's virtual address.
    pub port: u16,
    /// The port that backends listen on.
    pub target: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Text that is not a port of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a port: {why}; write [NAME=]PORT[:TARGET][/tcp|udp], for example http=80:8080")]
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
        let number = |part: &str| match part.parse::<u16>() {
            Ok(port) if port > 0 && part.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
            _ => Err(error(format!("`{part}` is not a number from 1 to 65535"))),
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
            Some((_, other)) => return Err(error(format!("`{other}` is neither tcp nor udp"))),
            None => (rest, Protocol::Tcp),
        };
        let (port, target) = match ports.split_once(':') {
            Some((port, target)) => (number(port)?, number(target)?),
            None => (number(ports)?, number(ports)?),
        };
        Ok(Self {
            name: name.map(str::to_owned),
            port,
            target,
            protocol,
        })
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
        write!(f, "{}", self.port)?;
        if self.target != self.port {
            write!(f, ":{}", self.target)?;
        }
        write!(f, "/{}", self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_as_written() {
        let port = |name: Option<&str>, port, target, protocol| ServicePort {
            name: name.map(str::to_owned),
            port,
            target,
            protocol,
        };
        for (text, expected, shown) in [
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
            ("80/sctp", "`sctp` is neither tcp nor udp"),
            ("80/TCP", "`TCP` is neither"),
            ("=80", "`` is not 1 to 15 letters"),
            ("a_b=80", "`a_b` is not 1 to 15 letters"),
            ("averyverylongname=80", "is not 1 to 15 letters"),
        ] {
            let error = text.parse::<ServicePort>().unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("write [NAME=]PORT"),
                "{text}: {error}"
            );
        }
    }
}
