use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hickory_proto::rr::Name;
use ipnet::IpNet;
use weft_types::{EndpointId, NetworkId};

use crate::shards::Shards;
pub(crate) use service::Located;
use service::ServiceEntry;
pub use service::{EndpointMode, Port, Protocol, Service};

mod service;

/// A domain that names cannot be put under.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` cannot be the domain of the cluster: it is not a domain name")]
pub struct DomainError(String);

/// Everything that has a name, as it was at one moment.
///
/// The agent keeps one `Zone`, changes it (or a copy, which is cheap) and publishes the copy with
/// [`arc_swap::ArcSwap::store`]; an answer is therefore never older than the last published change.
#[derive(Debug, Clone)]
pub struct Zone {
    domain: Box<str>,
    domain_name: Name,
    networks: BTreeMap<NetworkId, Arc<NetworkZone>>,
}

impl Zone {
    /// A zone without networks, under `domain`, for example `weft.internal`.
    pub fn new(domain: &str) -> Result<Self, DomainError> {
        let text = domain.trim_end_matches('.').to_ascii_lowercase();
        let error = || DomainError(domain.to_owned());
        if !is_host_name(&text) {
            return Err(error());
        }
        let domain_name = Name::from_labels(text.split('.').map(str::as_bytes)).map_err(|_| error())?;
        Ok(Self {
            domain: text.into(),
            domain_name,
            networks: BTreeMap::new(),
        })
    }

    /// Adds a network, or replaces what was known about it.
    pub fn set_network(&mut self, id: NetworkId, network: NetworkZone) {
        self.networks.insert(id, Arc::new(network));
    }

    /// Forgets a network with all its names.
    pub fn remove_network(&mut self, id: &NetworkId) {
        self.networks.remove(id);
    }

    /// A network to change. Only the parts that really change are copied when the zone is shared.
    pub fn network_mut(&mut self, id: &NetworkId) -> Option<&mut NetworkZone> {
        self.networks.get_mut(id).map(Arc::make_mut)
    }

    pub(crate) fn network(&self, id: &NetworkId) -> Option<&NetworkZone> {
        self.networks.get(id).map(Arc::as_ref)
    }

    pub(crate) fn networks(&self) -> impl Iterator<Item = &NetworkZone> {
        self.networks.values().map(Arc::as_ref)
    }

    /// What the networks are called, in lower case.
    pub fn network_names(&self) -> impl Iterator<Item = (NetworkId, &str)> {
        self.networks.iter().map(|(id, network)| (*id, network.name()))
    }

    /// All that it says, a line for each thing, however it came to that: two zones that answer alike have the same lines.
    pub fn lines(&self) -> BTreeSet<String> {
        let networks = self.networks.iter();
        let lines = networks.flat_map(|(id, network)| {
            network
                .lines()
                .into_iter()
                .map(move |line| format!("{id} {line}"))
        });
        lines.collect()
    }

    /// Whether an address is in a subnet of any network.
    pub(crate) fn covers(&self, address: IpAddr) -> bool {
        let mut subnets = self.networks().flat_map(NetworkZone::subnets);
        subnets.any(|subnet| subnet.contains(&address))
    }

    /// The domain in lower case, without the dot at the end.
    pub(crate) fn domain(&self) -> &str {
        &self.domain
    }

    pub(crate) fn domain_name(&self) -> &Name {
        &self.domain_name
    }
}

/// The names of one network.
#[derive(Debug, Clone)]
pub struct NetworkZone {
    name: Box<str>,
    internal: bool,
    subnets: Vec<IpNet>,
    endpoints: Shards<EndpointId, Endpoint>,
    names: Shards<Box<str>, Holders>,
    services: Shards<Box<str>, ServiceEntry>,
    /// How many names end in `.KEY`: a name that has others below it exists even if it has no
    /// address itself (RFC 8020).
    parents: Shards<Box<str>, u32>,
    reverse: Shards<IpAddr, Vec<Pointer>>,
}

/// What an endpoint is called and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name, which a reverse lookup gives, then its aliases. The first twelve digits of its id
    /// are a name without being listed.
    pub names: Vec<String>,
    /// Its addresses on this network.
    pub addresses: Vec<IpAddr>,
}

/// Addresses by family, sorted, each once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    pub(crate) v4: Vec<Ipv4Addr>,
    pub(crate) v6: Vec<Ipv6Addr>,
}

impl Addresses {
    pub(crate) const NONE: &'static Self = &Self {
        v4: Vec::new(),
        v6: Vec::new(),
    };

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut list = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => list.v4.push(address),
                IpAddr::V6(address) => list.v6.push(address),
            }
        }
        list.v4.sort_unstable();
        list.v4.dedup();
        list.v6.sort_unstable();
        list.v6.dedup();
        list
    }
}

/// All endpoints that share one name.
#[derive(Debug, Clone, Default)]
struct Holders {
    /// How many there are, some of which may have no address.
    endpoints: usize,
    members: Vec<(EndpointId, IpAddr)>,
    addresses: Addresses,
}

/// What one address is called.
#[derive(Debug, Clone)]
struct Pointer {
    /// `None` for a service's virtual address.
    endpoint: Option<EndpointId>,
    name: Box<str>,
}

/// What a name inside a network stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'a> {
    /// A service or an endpoint: addresses to connect to, of which some are enough.
    Name(&'a Addresses),
    /// `tasks.SERVICE`: the asker wants to know all of them.
    Tasks(&'a Addresses),
    /// `_PORT._PROTOCOL` before one of these: where to connect to, and to which port.
    Port(Located<'a>),
}

impl NetworkZone {
    /// A network without names. Nobody but its subnets' reverse zones is answered for then.
    pub fn new(name: &str, internal: bool, subnets: Vec<IpNet>) -> Self {
        Self {
            name: name.to_ascii_lowercase().into(),
            internal,
            subnets,
            endpoints: Shards::default(),
            names: Shards::default(),
            services: Shards::default(),
            parents: Shards::default(),
            reverse: Shards::default(),
        }
    }

    /// Adds an endpoint, or replaces its names and addresses.
    pub fn set_endpoint(&mut self, id: EndpointId, mut endpoint: Endpoint) {
        self.remove_endpoint(&id);
        endpoint.names.retain_mut(|name| {
            name.make_ascii_lowercase();
            is_host_name(name)
        });
        endpoint.names.push(id.short());
        // Not `dedup`: the first name must stay the first.
        let mut seen = std::collections::HashSet::new();
        endpoint.names.retain(|name| seen.insert(name.clone()));
        endpoint.addresses.sort_unstable();
        endpoint.addresses.dedup();
        for name in &endpoint.names {
            self.add_parents(name);
            let holders = self.names.entry_or_default(name.as_str().into());
            holders.endpoints += 1;
            holders
                .members
                .extend(endpoint.addresses.iter().map(|address| (id, *address)));
            holders.addresses = holders.members.iter().map(|(_, address)| *address).collect();
        }
        for address in &endpoint.addresses {
            let pointer = Pointer {
                endpoint: Some(id),
                name: endpoint.names[0].as_str().into(),
            };
            self.reverse.entry_or_default(*address).push(pointer);
        }
        self.endpoints.insert(id, endpoint);
    }

    /// Forgets an endpoint; one that is not known is forgotten already.
    pub fn remove_endpoint(&mut self, id: &EndpointId) {
        let Some(endpoint) = self.endpoints.remove(id) else {
            return;
        };
        for name in &endpoint.names {
            self.remove_parents(name);
            let Some(holders) = self.names.get_mut(name.as_str()) else {
                continue;
            };
            holders.members.retain(|(holder, _)| holder != id);
            holders.endpoints -= 1;
            if holders.endpoints == 0 {
                self.names.remove(name.as_str());
            } else {
                holders.addresses = holders.members.iter().map(|(_, address)| *address).collect();
            }
        }
        for address in &endpoint.addresses {
            self.remove_pointers(address, |pointer| pointer.endpoint.as_ref() == Some(id));
        }
    }

    /// Adds a service, or replaces its addresses. A name that cannot be asked for is ignored.
    pub fn set_service(&mut self, name: &str, service: Service) {
        self.remove_service(name);
        let name = name.to_ascii_lowercase();
        if !is_host_name(&name) {
            return;
        }
        for vip in &service.vips {
            self.reverse.entry_or_default(*vip).push(Pointer {
                endpoint: None,
                name: name.as_str().into(),
            });
        }
        self.add_parents(&name);
        self.services.insert(name.into(), ServiceEntry::new(service));
    }

    /// Forgets a service; one that is not known is forgotten already.
    pub fn remove_service(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        let Some(service) = self.services.remove(name.as_str()) else {
            return;
        };
        self.remove_parents(&name);
        for vip in &service.vips {
            self.remove_pointers(vip, |pointer| {
                pointer.endpoint.is_none() && *pointer.name == *name
            });
        }
    }

    fn add_parents(&mut self, name: &str) {
        for (dot, _) in name.match_indices('.') {
            *self.parents.entry_or_default(name[dot + 1..].into()) += 1;
        }
    }

    fn remove_parents(&mut self, name: &str) {
        for (dot, _) in name.match_indices('.') {
            let parent = &name[dot + 1..];
            let Some(children) = self.parents.get_mut(parent) else {
                continue;
            };
            *children -= 1;
            if *children == 0 {
                self.parents.remove(parent);
            }
        }
    }

    fn remove_pointers(&mut self, address: &IpAddr, is_removed: impl Fn(&Pointer) -> bool) {
        let Some(pointers) = self.reverse.get_mut(address) else {
            return;
        };
        pointers.retain(|pointer| !is_removed(pointer));
        if pointers.is_empty() {
            self.reverse.remove(address);
        }
    }

    fn lines(&self) -> Vec<String> {
        let (name, internal, subnets) = (&self.name, self.internal, &self.subnets);
        let mut lines = vec![format!("{name} {internal} {subnets:?}")];
        let endpoints = self.endpoints.iter();
        lines.extend(endpoints.map(|(id, endpoint)| format!("endpoint {id} {endpoint:?}")));
        lines.extend(self.names.iter().map(|(name, holders)| {
            let mut members = holders.members.clone();
            members.sort_unstable();
            format!("name {name} {:?} {members:?}", holders.addresses)
        }));
        let services = self.services.iter();
        lines.extend(services.map(|(name, service)| format!("service {name} {service:?}")));
        let parents = self.parents.iter();
        lines.extend(parents.map(|(name, children)| format!("parent {name} {children}")));
        lines.extend(self.reverse.iter().map(|(address, pointers)| {
            let mut names: Vec<_> = pointers.iter().map(|pointer| format!("{pointer:?}")).collect();
            names.sort_unstable();
            format!("address {address} {names:?}")
        }));
        lines
    }

    /// The network's name in lower case.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_internal(&self) -> bool {
        self.internal
    }

    pub(crate) fn subnets(&self) -> &[IpNet] {
        &self.subnets
    }

    /// Looks a lower-case name up; a service hides an endpoint of the same name.
    pub(crate) fn find<'a>(&'a self, name: &'a str) -> Option<Found<'a>> {
        if let Some(service) = self.services.get(name) {
            return Some(Found::Name(&service.name));
        }
        if let Some(holders) = self.names.get(name) {
            return Some(Found::Name(&holders.addresses));
        }
        if let Some(service) = name
            .strip_prefix("tasks.")
            .and_then(|service| self.services.get(service))
        {
            return Some(Found::Tasks(&service.tasks));
        }
        match self.parents.get(name) {
            Some(_) => Some(Found::Name(Addresses::NONE)),
            None => self.find_port(name),
        }
    }

    /// `_PORT._PROTOCOL.SERVICE` and `_PORT._PROTOCOL.tasks.SERVICE` (RFC 2782).
    fn find_port<'a>(&'a self, name: &'a str) -> Option<Found<'a>> {
        let (first, rest) = name.strip_prefix('_').and_then(|name| name.split_once('.'))?;
        if let Some((service, _)) = self.service_or_tasks(rest) {
            // `_tcp.web` has names below it.
            return service.has(first).then_some(Found::Name(Addresses::NONE));
        }
        let (protocol, rest) = rest.strip_prefix('_')?.split_once('.')?;
        let (service, virtual_name) = self.service_or_tasks(rest)?;
        service.locate(first, protocol, virtual_name).map(Found::Port)
    }

    /// The service behind `SERVICE`, with that name, or behind `tasks.SERVICE`.
    fn service_or_tasks<'a>(&'a self, name: &'a str) -> Option<(&'a ServiceEntry, Option<&'a str>)> {
        if let Some(service) = self.services.get(name) {
            return Some((service, Some(name)));
        }
        let service = self.services.get(name.strip_prefix("tasks.")?)?;
        Some((service, None))
    }

    /// The backends of a service by the name each has for itself, with its addresses.
    pub(crate) fn backends(&self, located: &Located<'_>) -> BTreeMap<String, Vec<IpAddr>> {
        let v4 = located.tasks.v4.iter().map(|address| IpAddr::V4(*address));
        let mut backends: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for address in v4.chain(located.tasks.v6.iter().map(|address| IpAddr::V6(*address))) {
            let pointers = self.reverse.get(&address).into_iter().flatten();
            for endpoint in pointers.filter_map(|pointer| pointer.endpoint) {
                backends.entry(endpoint.short()).or_default().push(address);
            }
        }
        backends
    }

    /// The names of an address, inside the network; empty when it has none.
    pub(crate) fn pointers(&self, address: &IpAddr) -> impl Iterator<Item = &str> {
        self.reverse
            .get(address)
            .into_iter()
            .flatten()
            .map(|pointer| &*pointer.name)
    }
}

/// Whether a lower-case name can be asked for: labels of 1 to 63 visible ASCII characters, and short
/// enough (RFC 1035, section 2.3.4) to leave room for a network and a domain.
fn is_host_name(name: &str) -> bool {
    name.len() <= 200
        && name
            .split('.')
            .all(|label| (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_graphic()))
}
