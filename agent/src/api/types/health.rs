use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Protocol, ServicePort};
use crate::api::ApiError;

/// The longest path or command of a health check, in bytes: records are small.
const MAX_TEXT: usize = 256;
const INTERVAL_MS: (u32, u32) = (100, 3_600_000);
const TIMEOUT_MS: (u32, u32) = (10, 300_000);
const RETRIES: (u16, u16) = (1, 100);
const MAX_START_PERIOD_MS: u32 = 3_600_000;

/// How it is found out whether a backend is well, written as on the command line: `tcp`, `tcp=PORT`, `http=PATH`,
/// `http=:PORT/PATH`, `cmd=COMMAND`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HealthTest {
    /// It takes connections.
    Tcp {
        /// The port; the first TCP port of the service when not given.
        port: Option<u16>,
    },
    /// It answers GET with a status from 200 to 399.
    Http {
        /// The port; the first TCP port of the service when not given.
        port: Option<u16>,
        /// What is asked for, beginning with a slash.
        path: String,
    },
    /// A command of the shell ends with 0. It runs on the backend's host and in its network namespace.
    Cmd(String),
}

/// Text that is not a health check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a health check: {why}; write tcp[=PORT], http=[:PORT]/PATH or cmd=COMMAND")]
pub struct ParseHealthTestError {
    text: String,
    why: &'static str,
}

impl FromStr for HealthTest {
    type Err = ParseHealthTestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |why| ParseHealthTestError {
            text: text.to_owned(),
            why,
        };
        let number = |part: &str| match part.parse::<u16>() {
            Ok(port) if port > 0 && part.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(port)),
            _ => Err(error("a port is a number from 1 to 65535")),
        };
        if text.len() > MAX_TEXT {
            return Err(error("it is longer than 256 bytes"));
        }
        match text.split_once('=') {
            None if text == "tcp" => Ok(Self::Tcp { port: None }),
            Some(("tcp", port)) => Ok(Self::Tcp { port: number(port)? }),
            Some(("http", place)) => {
                let slash = place.find('/').ok_or_else(|| error("the path begins with `/`"))?;
                let (port, path) = place.split_at(slash);
                let port = match port.strip_prefix(':') {
                    None if port.is_empty() => None,
                    None => return Err(error("the path begins with `/`")),
                    Some(port) => number(port)?,
                };
                if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(error("a path has no spaces and only ASCII"));
                }
                let path = path.to_owned();
                Ok(Self::Http { port, path })
            }
            Some(("cmd", command)) if command.trim().is_empty() => Err(error("there is no command")),
            Some(("cmd", command)) if command.contains('\0') => Err(error("a command has no NUL")),
            Some(("cmd", command)) => Ok(Self::Cmd(command.to_owned())),
            _ => Err(error("it is none of tcp, http and cmd")),
        }
    }
}

impl fmt::Display for HealthTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port: None } => f.write_str("tcp"),
            Self::Tcp { port: Some(port) } => write!(f, "tcp={port}"),
            Self::Http { port: None, path } => write!(f, "http={path}"),
            Self::Http {
                port: Some(port),
                path,
            } => write!(f, "http=:{port}{path}"),
            Self::Cmd(command) => write!(f, "cmd={command}"),
        }
    }
}

impl TryFrom<String> for HealthTest {
    type Error = ParseHealthTestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HealthTest> for String {
    fn from(test: HealthTest) -> Self {
        test.to_string()
    }
}

/// How the backends of a service are checked, each on its own host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is tried.
    pub test: HealthTest,
    /// Milliseconds from the end of one try to the next.
    #[serde(default = "default_interval_ms")]
    pub interval_ms: u32,
    /// Milliseconds that a try may take.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
    /// How many failures in a row make a backend unhealthy. One success makes it healthy.
    #[serde(default = "default_retries")]
    pub retries: u16,
    /// For how many milliseconds failures of a backend that was never healthy do not count.
    #[serde(default)]
    pub start_period_ms: u32,
}

fn default_interval_ms() -> u32 {
    5_000
}

fn default_timeout_ms() -> u32 {
    2_000
}

fn default_retries() -> u16 {
    3
}

/// A change of a service's health check. What is not given stays, or has its default where there was no check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthUpdate {
    /// Switch it off: every backend counts as healthy again.
    pub off: bool,
    /// What is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<HealthTest>,
    /// Milliseconds from the end of one try to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u32>,
    /// Milliseconds that a try may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// How many failures in a row make a backend unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u16>,
    /// For how many milliseconds failures of a backend that was never healthy do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u32>,
}

impl HealthUpdate {
    /// What comes of it.
    pub fn apply(self, service: &str, before: Option<HealthCheck>) -> Result<Option<HealthCheck>, ApiError> {
        if self.off {
            return Ok(None);
        }
        let mut check = match (self.test, before) {
            (Some(test), Some(before)) => HealthCheck { test, ..before },
            (Some(test), None) => HealthCheck::new(test),
            (None, Some(before)) => before,
            (None, None) => {
                return Err(
                    ApiError::invalid(format!("service `{service}` has no health check to change"))
                        .with_help("give it one: --health tcp, --health http=/PATH or --health cmd=COMMAND"),
                );
            }
        };
        let HealthCheck {
            interval_ms,
            timeout_ms,
            retries,
            start_period_ms,
            ..
        } = &mut check;
        *interval_ms = self.interval_ms.unwrap_or(*interval_ms);
        *timeout_ms = self.timeout_ms.unwrap_or(*timeout_ms);
        *retries = self.retries.unwrap_or(*retries);
        *start_period_ms = self.start_period_ms.unwrap_or(*start_period_ms);
        Ok(Some(check))
    }
}

impl HealthCheck {
    /// With the timing that there is when none is given.
    pub fn new(test: HealthTest) -> Self {
        Self {
            test,
            interval_ms: default_interval_ms(),
            timeout_ms: default_timeout_ms(),
            retries: default_retries(),
            start_period_ms: 0,
        }
    }

    /// Checks it for a service with these ports.
    pub fn check(&self, service: &str, ports: &[ServicePort]) -> Result<(), ApiError> {
        self.check_times(service)?;
        match self.test {
            HealthTest::Cmd(_) => Ok(()),
            _ if self.port(ports).is_some() => Ok(()),
            _ => Err(ApiError::invalid(format!(
                "service `{service}` has no TCP port for its health check"
            ))
            .with_help("name one: --health tcp=8080 or --health http=:8080/PATH")),
        }
    }

    /// Checks what does not depend on the service's ports.
    pub fn check_times(&self, service: &str) -> Result<(), ApiError> {
        let within = |what: &str, value: u32, (least, most): (u32, u32)| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let shown = |ms: u32| humantime::format_duration(Duration::from_millis(ms.into()));
            Err(ApiError::invalid(format!(
                "the health check of service `{service}` cannot have {what} of {}: it is {} to {}",
                shown(value),
                shown(least),
                shown(most)
            )))
        };
        within("an interval", self.interval_ms, INTERVAL_MS)?;
        within("a timeout", self.timeout_ms, TIMEOUT_MS)?;
        within("a start period", self.start_period_ms, (0, MAX_START_PERIOD_MS))?;
        if !(RETRIES.0..=RETRIES.1).contains(&self.retries) {
            return Err(ApiError::invalid(format!(
                "the health check of service `{service}` has {} retries: it is {} to {}",
                self.retries, RETRIES.0, RETRIES.1
            )));
        }
        Ok(())
    }

    /// The port of a backend that is tried, if there is one.
    pub fn port(&self, ports: &[ServicePort]) -> Option<u16> {
        let given = match self.test {
            HealthTest::Tcp { port } | HealthTest::Http { port, .. } => port,
            HealthTest::Cmd(_) => return None,
        };
        let of_service = || ports.iter().find(|port| port.protocol == Protocol::Tcp);
        given.or_else(|| Some(of_service()?.target))
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |ms: u32| humantime::format_duration(Duration::from_millis(ms.into()));
        write!(
            f,
            "{}, every {}, {} at most, {} failures in a row",
            self.test,
            shown(self.interval_ms),
            shown(self.timeout_ms),
            self.retries
        )?;
        match self.start_period_ms {
            0 => Ok(()),
            ms => write!(f, ", not counted in its first {}", shown(ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_read_as_written() {
        let http = |port, path: &str| HealthTest::Http {
            port,
            path: path.to_owned(),
        };
        for (text, expected) in [
            ("tcp", HealthTest::Tcp { port: None }),
            ("tcp=8080", HealthTest::Tcp { port: Some(8080) }),
            ("http=/", http(None, "/")),
            ("http=/ready?deep=1", http(None, "/ready?deep=1")),
            ("http=:8080/ready", http(Some(8080), "/ready")),
            ("cmd=test -e /a=b", HealthTest::Cmd("test -e /a=b".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), text);
            let json = serde_json::to_string(&expected).unwrap();
            assert_eq!(serde_json::from_str::<HealthTest>(&json).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_test_says_what_is_wrong() {
        for (text, why) in [
            ("", "it is none of"),
            ("udp", "it is none of"),
            ("tcp=", "a port is a number"),
            ("tcp=0", "a port is a number"),
            ("tcp=+1", "a port is a number"),
            ("http", "it is none of"),
            ("http=", "the path begins with `/`"),
            ("http=ready", "the path begins with `/`"),
            ("http=8080/ready", "the path begins with `/`"),
            ("http=:/ready", "a port is a number"),
            ("http=/a b", "a path has no spaces"),
            ("http=/a\r\nX: y", "a path has no spaces"),
            ("cmd= ", "there is no command"),
            (&format!("cmd={}", "x".repeat(300)), "longer than 256 bytes"),
        ] {
            let error = text.parse::<HealthTest>().unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("write tcp[=PORT]"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_check_needs_a_port_and_times_that_make_sense() {
        let ports = ["53/udp", "80:8080"].map(|port| port.parse::<ServicePort>().unwrap());
        let check = |text: &str| HealthCheck::new(text.parse().unwrap());
        assert_eq!(check("tcp").port(&ports), Some(8080));
        assert_eq!(check("http=:9/").port(&ports), Some(9));
        assert_eq!(check("cmd=true").check("web", &[]), Ok(()));
        let error = check("tcp").check("web", &ports[..1]).unwrap_err();
        assert_eq!(
            error.message,
            "service `web` has no TCP port for its health check"
        );
        let often = HealthCheck {
            interval_ms: 10,
            ..check("tcp")
        };
        assert_eq!(
            often.check("web", &ports).unwrap_err().message,
            "the health check of service `web` cannot have an interval of 10ms: it is 100ms to 1h"
        );
        for bad in [
            HealthCheck {
                retries: 0,
                ..check("tcp")
            },
            HealthCheck {
                timeout_ms: 0,
                ..check("tcp")
            },
            HealthCheck {
                start_period_ms: 3_600_001,
                ..check("tcp")
            },
        ] {
            assert!(bad.check("web", &ports).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let update = |text: &str| serde_json::from_str::<HealthUpdate>(text).unwrap();
        let check: HealthCheck =
            serde_json::from_str(r#"{"test":"tcp","interval_ms":700,"retries":2}"#).unwrap();
        let faster = update(r#"{"interval_ms":200}"#).apply("web", Some(check.clone()));
        assert_eq!(
            faster.unwrap().unwrap().to_string(),
            "tcp, every 200ms, 2s at most, 2 failures in a row"
        );
        let other = update(r#"{"test":"http=/"}"#).apply("web", Some(check.clone()));
        assert_eq!(other.unwrap().unwrap().interval_ms, 700);
        assert_eq!(update(r#"{"off":true}"#).apply("web", Some(check)), Ok(None));
        assert_eq!(update(r#"{"off":true}"#).apply("web", None), Ok(None));
        let error = update(r#"{"retries":1}"#).apply("web", None).unwrap_err();
        assert_eq!(error.message, "service `web` has no health check to change");
        let new = update(r#"{"test":"tcp","start_period_ms":60000}"#).apply("web", None);
        assert!(
            new.unwrap()
                .unwrap()
                .to_string()
                .ends_with("not counted in its first 1m")
        );
    }
}
