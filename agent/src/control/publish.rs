//! Published ports: who has which, and this node's place on the networks that they lead into.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
};

use ipnet::IpNet;
use rand::RngExt;
use weft_overlay::plan;
use weft_types::{Mac, NetworkId, ServiceId};

use super::{
    Control, Now,
    catalogue::Trait,
    operations::{Operation, Stop},
    pools::number,
    records::{IngressSpec, ServiceSpec, SpaceKey, encode, ingress_key},
};
use crate::api::{
    ApiError,
    types::{Protocol, PublishMode, PublishedPort, ServicePort},
};

/// The largest number of ports that a cluster publishes: every host asks for each of them in turn whenever a connection
/// to it begins.
pub(crate) const MAX_PUBLISHED: usize = 256;

/// What comes into a network of this host by published ports, for a balancer of what comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryTable {
    /// The network.
    pub network: NetworkId,
    /// Who is entered.
    pub services: Vec<Entered>,
}

/// A service as it is entered, or the part of it that is for this host alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// Which service it is to everybody else.
    pub of: ServiceId,
    /// With the ports of the host as its own. The addresses it is entered at are the kernel's to tell.
    pub balanced: weft_lb::Service,
}

/// Takes an address of each IP version for this node itself, on a network that published ports lead into.
pub(super) struct Enter {
    network: NetworkId,
    taken: Vec<(u8, IpAddr)>,
}

/// A network that this node is not on yet.
#[derive(Debug, Default)]
pub(super) struct Entering {
    under_way: bool,
    /// What went wrong the last time, a sentence.
    failed: Option<String>,
}

/// A port of hosts, whatever its address: one service of the cluster has it.
type Slot = (u16, Protocol);

fn slot(port: &PublishedPort) -> Slot {
    (port.host_port, port.protocol)
}

impl Control {
    /// Who has which port. Where two services were given one during a split, the older has it.
    fn holders(&self) -> BTreeMap<Slot, (NetworkId, ServiceId)> {
        let publishing = self
            .catalogue
            .services_having(Trait::Publishes)
            .filter(|(_, spec)| !spec.publish.is_empty() && self.can_be_entered(spec.network));
        let mut publishing: Vec<_> = publishing.collect();
        publishing.sort_by_key(|(id, spec)| (self.catalogue.is_removed(spec.creator), spec.created, *id));
        let mut holders = BTreeMap::new();
        for (id, spec) in publishing {
            for port in &spec.publish {
                holders.entry(slot(port)).or_insert((spec.network, id));
            }
        }
        holders
    }

    fn can_be_entered(&self, network: NetworkId) -> bool {
        self.catalogue.network(network).is_some_and(|spec| !spec.internal)
    }

    fn publishing(&self, network: NetworkId) -> impl Iterator<Item = (ServiceId, &ServiceSpec)> {
        let all = self.catalogue.services_having(Trait::Publishes);
        all.filter(move |(_, spec)| spec.network == network)
    }

    /// The ports that a service really has, of those that it was given.
    fn held<'a>(
        holders: &'a BTreeMap<Slot, (NetworkId, ServiceId)>,
        id: ServiceId,
        spec: &'a ServiceSpec,
    ) -> impl Iterator<Item = &'a PublishedPort> {
        let mine = move |port: &&PublishedPort| holders.get(&slot(port)) == Some(&(spec.network, id));
        spec.publish.iter().filter(mine)
    }

    /// Whether a port is open on this host.
    fn is_open_here(&self, spec: &ServiceSpec, port: &PublishedPort) -> bool {
        port.mode == PublishMode::Ingress
            || self
                .serving(spec.network, &spec.name)
                .any(|(_, endpoint)| endpoint.node == self.me)
    }

    /// What `service` may not publish, before anything is changed. `spec` is as it is to be.
    pub(super) fn check_publish(&self, id: ServiceId, spec: &ServiceSpec) -> Result<(), ApiError> {
        if spec.publish.is_empty() {
            return Ok(());
        }
        if !self.can_be_entered(spec.network) {
            let name = self.catalogue.display_name(spec.network).unwrap_or_default();
            return Err(ApiError::invalid(format!(
                "network `{name}` is internal: nothing leads into it from outside, so service `{}` cannot publish a port",
                spec.name
            ))
            .with_help("put the service on a network that was made without --internal"));
        }
        let holders = self.holders();
        let mut seen = BTreeSet::new();
        for port in &spec.publish {
            let shown = format!("{}/{}", port.host_port, port.protocol);
            if port.host_port == 0 || port.port == 0 {
                return Err(
                    ApiError::invalid(format!("`{port}` cannot be published: there is no port 0"))
                        .with_help("a port is 1 to 65535, as in `8080:80`"),
                );
            }
            if target(spec, port).is_none() {
                return Err(no_such_port(spec, port));
            }
            if !seen.insert(slot(port)) {
                return Err(ApiError::conflict(format!(
                    "service `{}` publishes port {shown} twice",
                    spec.name
                ))
                .with_help(
                    "a port of the hosts leads to one port of one service, whatever address it is open at",
                ));
            }
            if let Some((network, holder)) = holders.get(&slot(port)).filter(|(_, holder)| *holder != id) {
                let name = self
                    .catalogue
                    .service(*network, *holder)
                    .map(|spec| spec.name.clone())
                    .unwrap_or_default();
                return Err(ApiError::conflict(format!(
                    "port {shown} is published by service `{name}` of network `{}` already",
                    self.catalogue.display_name(*network).unwrap_or_default()
                ))
                .with_help(format!(
                    "choose another port of the hosts, or give that one up: `weft service update {name} --unpublish`"
                )));
            }
            if slot(port) == (self.settings.vxlan_port, Protocol::Udp) {
                return Err(ApiError::conflict(format!(
                    "the hosts send each other VXLAN packets on port {shown}"
                ))
                .with_help("choose another port of the hosts"));
            }
        }
        let others = holders.values().filter(|(_, holder)| *holder != id).count();
        if others + spec.publish.len() > MAX_PUBLISHED {
            return Err(ApiError::exhausted(format!(
                "the cluster would publish more than {MAX_PUBLISHED} ports"
            ))
            .with_help("close ports that are not needed: `weft service ls` shows them"));
        }
        Ok(())
    }

    /// Services that were given a port that another one has.
    pub(super) fn publish_problems(&self) -> Vec<String> {
        let holders = self.holders();
        let mut problems = Vec::new();
        for (id, spec) in self.catalogue.services_having(Trait::Publishes) {
            for port in &spec.publish {
                let Some((network, holder)) = holders.get(&slot(port)).filter(|(_, holder)| *holder != id)
                else {
                    continue;
                };
                let Some(winner) = self.catalogue.service(*network, *holder) else {
                    continue;
                };
                problems.push(format!(
                    "port {}/{} is published by the services `{}` and `{}`, and leads to the first of them, which is older; \
                     give the other one another port",
                    port.host_port, port.protocol, winner.name, spec.name
                ));
            }
        }
        problems
    }

    /// The networks that published ports lead into from this host.
    fn entered_networks(&self) -> BTreeSet<NetworkId> {
        if self.leaving.is_some() || self.removed {
            return BTreeSet::new();
        }
        let holders = self.holders();
        let services = self.catalogue.services_having(Trait::Publishes);
        services
            .filter(|(id, spec)| Self::held(&holders, *id, spec).any(|port| self.is_open_here(spec, port)))
            .map(|(_, spec)| spec.network)
            .collect()
    }

    /// Has this node be on the networks that published ports lead into, and on no others. Says whether anything changed.
    pub(super) fn keep_ingresses(&mut self, now: Now) -> bool {
        if !self.ingresses_to_look_at || self.reading_back.is_some() {
            return false;
        }
        self.ingresses_to_look_at = false;
        let wanted = self.entered_networks();
        self.interests.to_look_at |= self.interests.entered != wanted;
        self.interests.entered.clone_from(&wanted);
        let there: BTreeSet<NetworkId> = self.catalogue.ingresses_of(self.me).collect();
        let leaving: Vec<_> = there.difference(&wanted).copied().collect();
        for network in &leaving {
            self.leave_ingress(*network, now);
        }
        let entering: Vec<_> = wanted
            .difference(&there)
            .filter(|network| !self.is_entering(**network))
            .copied()
            .collect();
        for network in &entering {
            self.entering.entry(*network).or_default().under_way = true;
            let taken = Vec::new();
            let network = *network;
            self.start(Operation::Enter(Enter { network, taken }), now);
        }
        self.entering
            .retain(|network, _| wanted.contains(network) && !there.contains(network));
        !leaving.is_empty() || !entering.is_empty()
    }

    /// Whether this node is on its way onto a network.
    pub(super) fn is_entering(&self, network: NetworkId) -> bool {
        self.entering
            .get(&network)
            .is_some_and(|entering| entering.under_way)
    }

    /// Tries again what failed.
    pub(super) fn retry_ingresses(&mut self) {
        self.ingresses_to_look_at |= self.entering.values().any(|entering| !entering.under_way);
    }

    pub(super) fn leave_ingress(&mut self, network: NetworkId, now: Now) {
        let Some(spec) = self.catalogue.ingress(network, self.me).cloned() else {
            return;
        };
        self.withdraw(&ingress_key(network), now);
        let addresses = spec.addresses.iter().map(IpNet::addr);
        self.spaces
            .release_addresses(network, addresses, &self.catalogue, now.instant);
    }

    pub(super) fn enter(&mut self, enter: &mut Enter, now: Now) -> Result<(), Stop> {
        let network = enter.network;
        let Some(spec) = self.catalogue.network(network).cloned() else {
            return Err(ApiError::not_found("the network was removed meanwhile").into());
        };
        for v4 in [true, false] {
            self.take_one(network, &spec.subnets, v4, &mut enter.taken, now)?;
        }
        let with_prefix = |(index, address): &(u8, IpAddr)| {
            let net = spec.subnets.get(usize::from(*index))?.net;
            IpNet::new(*address, net.prefix_len()).ok()
        };
        let ingress = IngressSpec {
            mac: Mac::from_random(self.rng.random()),
            addresses: enter.taken.iter().filter_map(with_prefix).collect(),
        };
        self.publish(ingress_key(network), encode(&ingress), now)?;
        self.entering.remove(&network);
        Ok(())
    }

    pub(super) fn abandon_enter(&mut self, enter: Enter, error: ApiError, now: Now) {
        let name = self.catalogue.display_name(enter.network).unwrap_or_default();
        for (index, address) in enter.taken {
            let space = SpaceKey::Addresses(enter.network, index);
            self.spaces.release(space, number(address), now.instant);
        }
        let problem = format!(
            "published ports of network `{name}` are closed on this host, which has no address there: {}",
            error.message
        );
        let failed = Some(problem);
        let entering = Entering {
            under_way: false,
            failed,
        };
        self.entering.insert(enter.network, entering);
        self.host_changed();
    }

    /// Why this node is not on networks that it should be on.
    pub(super) fn entry_problems(&self) -> impl Iterator<Item = String> {
        self.entering
            .values()
            .filter_map(|entering| entering.failed.clone())
    }

    /// How a network is entered through this host, once this node has addresses there.
    pub(super) fn overlay_ingress(&self, network: NetworkId) -> Option<plan::Ingress> {
        let ingress = self.catalogue.ingress(network, self.me)?;
        let holders = self.holders();
        let services = self.publishing(network);
        let ports = services.flat_map(|(id, spec)| {
            Self::held(&holders, id, spec)
                .filter(|port| self.is_open_here(spec, port))
                .map(host_port)
                .collect::<Vec<_>>()
        });
        Some(plan::Ingress {
            mac: ingress.mac,
            addresses: ingress.addresses.iter().map(IpNet::addr).collect(),
            ports: ports.collect(),
        })
    }

    /// Where published ports lead to within each network that this node is on for them.
    pub(super) fn entry_tables(&self) -> Vec<EntryTable> {
        let holders = self.holders();
        let networks = self.catalogue.ingresses_of(self.me);
        networks
            .map(|network| EntryTable {
                network,
                services: self
                    .publishing(network)
                    .flat_map(|(id, spec)| self.entry_services(&holders, id, spec))
                    .collect(),
            })
            .collect()
    }

    /// A service as it is entered: with all its backends, and for ports of mode `host` with those of this host alone.
    fn entry_services(
        &self,
        holders: &BTreeMap<Slot, (NetworkId, ServiceId)>,
        id: ServiceId,
        spec: &ServiceSpec,
    ) -> Vec<Entered> {
        let mut services = Vec::new();
        for mode in PublishMode::ALL {
            let ports = Self::held(holders, id, spec).filter(|port| port.mode == mode);
            let ports = ports.filter(|port| self.is_open_here(spec, port));
            let ports: Vec<_> = ports.filter_map(|port| port_map(spec, port)).collect();
            if ports.is_empty() {
                continue;
            }
            let mut balanced = self.service_with_all(id, spec);
            (balanced.vips, balanced.ports) = (Vec::new(), ports);
            if mode == PublishMode::Host {
                // The balancer has it beside the other, by an id of its own that is the same after a restart.
                balanced.id.0.iter_mut().for_each(|byte| *byte = !*byte);
                let local: BTreeSet<_> = self.local_endpoints().map(|(_, endpoint, _)| endpoint).collect();
                balanced
                    .backends
                    .retain(|backend| local.contains(&backend.endpoint));
            }
            self.adjust(&mut balanced);
            services.push(Entered { of: id, balanced });
        }
        services
    }
}

/// The port that backends listen on behind a published one; `None` if the service has no such port.
fn target(spec: &ServiceSpec, port: &PublishedPort) -> Option<NonZeroU16> {
    let of_service = |known: &ServicePort| {
        let same = known.protocol == port.protocol;
        same.then(|| known.target_of(port.port)).flatten()
    };
    let target = match spec.ports.iter().find_map(of_service) {
        Some(target) => target,
        None if spec.ports.is_empty() => port.port,
        None => return None,
    };
    NonZeroU16::new(target)
}

fn no_such_port(spec: &ServiceSpec, port: &PublishedPort) -> ApiError {
    let ports: Vec<_> = spec.ports.iter().map(ToString::to_string).collect();
    ApiError::invalid(format!(
        "service `{}` has no port {}/{} that could be published",
        spec.name, port.port, port.protocol
    ))
    .with_help(format!(
        "its ports are {}; what is published is HOSTPORT:PORT, with a port of the service behind the colon",
        ports.join(", ")
    ))
}

fn port_map(spec: &ServiceSpec, port: &PublishedPort) -> Option<weft_lb::PortMap> {
    Some(weft_lb::PortMap {
        port: NonZeroU16::new(port.host_port)?,
        target: target(spec, port)?,
        count: NonZeroU16::MIN,
        protocol: match port.protocol {
            Protocol::Tcp => weft_lb::Protocol::Tcp,
            Protocol::Udp => weft_lb::Protocol::Udp,
        },
    })
}

/// The same, as the overlay names it.
pub fn host_port(port: &PublishedPort) -> plan::HostPort {
    plan::HostPort {
        port: port.host_port,
        transport: match port.protocol {
            Protocol::Tcp => plan::Transport::Tcp,
            Protocol::Udp => plan::Transport::Udp,
        },
        at: port.ip,
    }
}
