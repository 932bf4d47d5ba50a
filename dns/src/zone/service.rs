use std::net::IpAddr;

use super::Addresses;

/// What the name of a service gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointMode {
    /// The virtual addresses.
    Vip,
    /// The addresses of the healthy backends, shuffled.
    DnsRr,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What its name gives.
    pub mode: EndpointMode,
    /// Its virtual addresses; none in `DnsRr` mode.
    pub vips: Vec<IpAddr>,
    /// Addresses of the backends that are healthy now, and only those.
    pub backends: Vec<IpAddr>,
    /// What SRV records say.
    pub ports: Vec<Port>,
}

/// A port of a service, which SRV records find by `_NAME._PROTOCOL` or `_NUMBER._PROTOCOL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// What it is called; its number does in any case.
    pub name: Option<String>,
    /// The port of the virtual addresses.
    pub port: u16,
    /// The port on which backends listen.
    pub target: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
}

/// What a port of a service is a port of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct ServiceEntry {
    mode: EndpointMode,
    pub(super) vips: Vec<IpAddr>,
    pub(super) name: Addresses,
    pub(super) tasks: Addresses,
    ports: Vec<Port>,
}

/// What SRV records are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Located<'a> {
    pub(crate) port: &'a Port,
    /// The service's name and virtual addresses, if it is these that are asked for.
    pub(crate) virtual_name: Option<(&'a str, &'a [IpAddr])>,
    pub(super) tasks: &'a Addresses,
}

impl ServiceEntry {
    pub(super) fn new(service: Service) -> Self {
        let tasks: Addresses = service.backends.into_iter().collect();
        Self {
            mode: service.mode,
            name: match service.mode {
                EndpointMode::Vip => service.vips.iter().copied().collect(),
                EndpointMode::DnsRr => tasks.clone(),
            },
            vips: service.vips,
            tasks,
            ports: service.ports,
        }
    }

    /// Whether it has a port of this protocol.
    pub(super) fn has(&self, protocol: &str) -> bool {
        self.ports.iter().any(|port| port.protocol.label() == protocol)
    }

    /// A port by its name or number.
    pub(super) fn locate<'a>(
        &'a self,
        port: &str,
        protocol: &str,
        virtual_name: Option<&'a str>,
    ) -> Option<Located<'a>> {
        let mut ports = self.ports.iter().filter(|of| of.protocol.label() == protocol);
        let is_called = |of: &&Port| {
            of.name
                .as_deref()
                .is_some_and(|name| name.eq_ignore_ascii_case(port))
        };
        let named = ports.clone().find(is_called);
        Some(Located {
            port: named.or_else(|| ports.find(|of| of.port.to_string() == port))?,
            virtual_name: virtual_name
                .filter(|_| self.mode == EndpointMode::Vip)
                .map(|name| (name, &*self.vips)),
            tasks: &self.tasks,
        })
    }
}
