//! What the host should be like, derived from the catalogue: the overlay, the services, the names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    sync::Arc,
};

use ipnet::IpNet;
use weft_dns::Zone;
use weft_overlay::plan;
use weft_types::{EndpointId, NetworkId, ServiceId};

use super::{
    Control, EntryTable, Now,
    catalogue::{Endpoint, Trait},
    derived::Derived,
    records::{Attachment, DockerSpec, NetworkSpec, SandboxSpec, ServiceSpec},
    ways::Ways,
};
use crate::api::types::{BackendState, EndpointMode, Protocol, Scheduler, ServicePort};

/// Where the agent answers names, the same in all networks and on all hosts.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x53, 0, 0, 0, 0, 0, 0x53);

/// Everything the edges need to know of one moment.
#[derive(Clone)]
pub struct HostState {
    /// Grows with every change.
    pub generation: u64,
    pub overlay: plan::Desired,
    /// What the process that encrypts is told; `None` where there is nothing for it to do.
    pub tunnels: Option<Box<weft_wireguard::Desired>>,
    /// The largest packet inside the tunnels.
    pub tunnel_mtu: u32,
    pub sandboxes: Vec<SandboxTables>,
    /// What comes in by published ports.
    pub entries: Vec<EntryTable>,
    /// Services of which [`Control::handle_attempts`] is to be told about once a second what was tried.
    pub watched: BTreeSet<ServiceId>,
    /// What is wrong with that, a sentence each.
    pub entry_problems: Vec<String>,
    pub zone: Zone,
    /// Who asks, by network and address: all networks of the asker's sandbox, the one asked through first.
    pub askers: BTreeMap<NetworkId, BTreeMap<IpAddr, Vec<NetworkId>>>,
}

/// The services of a network, in order of their ids.
pub(super) type Balanced = Arc<[Arc<weft_lb::Service>]>;

/// What one sandbox sees of the services on its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxTables {
    pub sandbox: SandboxSpec,
    pub tables: Vec<weft_lb::ClientTable>,
}

/// What a resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
}

impl Control {
    pub fn host_state(&mut self, now: Now) -> HostState {
        self.look_who_is_new(now);
        self.derive();
        let tunnels = self.tunnels();
        self.tunnels.expect(tunnels.as_ref(), now);
        HostState {
            tunnels: tunnels.map(Box::new),
            tunnel_mtu: self.tunnel_mtu(),
            generation: self.generation,
            overlay: self.overlay(&self.derived.ways),
            sandboxes: self.sandbox_tables(&self.derived),
            entries: self.entry_tables(),
            watched: self.ejecting(),
            entry_problems: self
                .publish_problems()
                .into_iter()
                .chain(self.entry_problems())
                .collect(),
            zone: self.derived.zone.clone(),
            askers: self.askers(),
        }
    }

    /// The networks of each sandbox of this host that is known, in the order of their ids. It is one sandbox by
    /// whatever name or path it was connected.
    fn sandboxes(&self) -> Vec<(&SandboxSpec, Vec<(NetworkId, &Endpoint)>)> {
        let mut sandboxes: BTreeMap<(u64, u64), (&SandboxSpec, Vec<_>)> = BTreeMap::new();
        for (network, _, endpoint) in self.local_endpoints() {
            if let Some(sandbox) = endpoint.spec.sandbox() {
                let known = sandboxes.entry((sandbox.device, sandbox.inode));
                let (_, networks) = known.or_insert_with(|| (sandbox, Vec::new()));
                networks.push((network, endpoint));
            }
        }
        sandboxes.into_values().collect()
    }

    /// Where the sandboxes of this host find names, by the target they were connected as.
    pub fn resolvers(&self) -> BTreeMap<String, Resolver> {
        let mut resolvers = BTreeMap::new();
        // Many sandboxes are on the same networks.
        let mut by_networks: BTreeMap<Vec<NetworkId>, Resolver> = BTreeMap::new();
        for (_, networks) in self.sandboxes() {
            let ids: Vec<NetworkId> = networks.iter().map(|(id, _)| *id).collect();
            let resolver = by_networks
                .entry(ids)
                .or_insert_with_key(|ids| self.resolver(ids));
            for sandbox in networks
                .iter()
                .filter_map(|(_, endpoint)| endpoint.spec.sandbox())
                .filter(|sandbox| !sandbox.is_host())
            {
                resolvers.insert(sandbox.target.clone(), resolver.clone());
            }
        }
        resolvers
    }

    /// Where names are found on these networks.
    fn resolver(&self, networks: &[NetworkId]) -> Resolver {
        let mut resolver = Resolver::default();
        for id in networks {
            let Some(spec) = self.catalogue.network(*id) else {
                continue;
            };
            let new = self.dns_servers(spec).into_iter();
            let new: Vec<_> = new.filter(|server| !resolver.servers.contains(server)).collect();
            resolver.servers.extend(new);
            resolver.search.extend(self.search_domain(*id));
        }
        resolver.search.push(self.settings.domain.clone());
        resolver
    }

    /// The domain of a network's names.
    pub(super) fn search_domain(&self, network: NetworkId) -> Option<String> {
        let name = self.catalogue.display_name(network)?;
        Some(format!("{name}.{}", self.settings.domain))
    }

    pub(super) fn overlay(&self, ways: &Ways) -> plan::Desired {
        let facts = self.catalogue.nodes().filter(|(id, _)| *id != self.me);
        let members: BTreeSet<IpAddr> = facts
            .filter_map(|(_, node)| Some(node.fact.as_ref()?.vtep))
            .collect();
        let networks = self
            .networks_here()
            .into_iter()
            .filter_map(|id| {
                let (spec, remotes) = (self.catalogue.network(id)?, ways.get(&id).cloned());
                Some((id, self.overlay_network(id, spec, remotes.unwrap_or_default())))
            })
            .collect();
        plan::Desired {
            networks,
            members,
            guarded: [self.settings.vxlan_port].into(),
        }
    }

    /// The networks that this node has an endpoint or a place of its own on.
    pub(super) fn networks_here(&self) -> BTreeSet<NetworkId> {
        let local = self.local_endpoints().map(|(network, _, _)| network);
        local.chain(self.catalogue.ingresses_of(self.me)).collect()
    }

    fn overlay_network(&self, id: NetworkId, spec: &NetworkSpec, remotes: plan::Remotes) -> plan::Network {
        let kind = spec.encrypted.then_some(self.settings.encrypter.kind);
        let locals = self.catalogue.endpoints_of_on(self.me, id);
        plan::Network {
            ingress: self.overlay_ingress(id),
            name: spec.name.clone(),
            vni: spec.vni,
            mtu: spec.mtu,
            vtep: match kind {
                Some(plan::Encryption::Kernel) => self.tunnel_address().into(),
                _ => self.settings.vtep,
            },
            vxlan_port: self.settings.vxlan_port,
            encryption: kind,
            subnets: spec
                .subnets
                .iter()
                .map(|subnet| plan::Subnet {
                    net: subnet.net,
                    gateway: subnet.gateway,
                })
                .collect(),
            internal: spec.internal,
            service_addresses: self.dns_servers(spec),
            endpoints: locals
                .map(|(id, endpoint)| (id, local_endpoint(&endpoint.spec, spec)))
                .collect(),
            remotes,
        }
    }

    /// The addresses at which names are answered, in the families that endpoints have.
    pub(super) fn dns_servers(&self, spec: &NetworkSpec) -> Vec<IpAddr> {
        let has = |v4| {
            spec.subnets
                .iter()
                .any(|subnet| matches!(subnet.net, IpNet::V4(_)) == v4)
        };
        let v4 = has(true).then_some(DNS_V4.into());
        let v6 = has(false).then_some(DNS_V6.into());
        v4.into_iter().chain(v6).collect()
    }

    /// What has not changed since the last time is the same in memory: whoever is told has only the rest to look at.
    pub(super) fn sandbox_tables(&self, derived: &Derived) -> Vec<SandboxTables> {
        let sandboxes = self.sandboxes().into_iter();
        let tables = sandboxes.map(|(sandbox, networks)| SandboxTables {
            sandbox: sandbox.clone(),
            tables: networks
                .into_iter()
                .map(|(network, _)| weft_lb::ClientTable {
                    network,
                    services: derived.balanced(network),
                })
                .collect(),
        });
        tables.collect()
    }

    /// Takes note of which backends are new, where that counts.
    fn look_who_is_new(&mut self, now: Now) {
        let services = self.catalogue.services_having(Trait::Grows);
        let slow = services.filter_map(|(id, spec)| Some((id, spec, spec.tuning.slow_start()?)));
        let slow: Vec<_> = slow
            .map(|(id, spec, time)| {
                let mut service = self.service_with_all(id, spec);
                self.ejections.apply(&mut service);
                (service, time)
            })
            .collect();
        let mut round = self.slow_start.begin();
        for (service, time) in &slow {
            round.observe(service, *time, now.instant);
        }
    }

    pub(super) fn balanced_service(&self, id: ServiceId, spec: &ServiceSpec) -> weft_lb::Service {
        let mut service = self.service_with_all(id, spec);
        self.adjust(&mut service);
        service
    }

    /// Gives the backends of a service what this host's clients are to make of them.
    pub(super) fn adjust(&self, service: &mut weft_lb::Service) {
        self.ejections.apply(service);
        self.slow_start.apply(service);
    }

    /// The same with all backends, at their whole weights.
    pub(super) fn service_with_all(&self, id: ServiceId, spec: &ServiceSpec) -> weft_lb::Service {
        weft_lb::Service {
            id,
            vips: self.held_vips(spec.network, id),
            ports: spec.ports.iter().filter_map(port_map).collect(),
            scheduler: match spec.scheduler {
                Scheduler::Rr => weft_lb::Scheduler::RoundRobin,
                Scheduler::Wrr => weft_lb::Scheduler::WeightedRoundRobin,
                Scheduler::Lc => weft_lb::Scheduler::LeastConnections,
                Scheduler::Maglev => weft_lb::Scheduler::Maglev,
            },
            backends: self.balanced_backends(spec.network, &spec.name),
            idle_timeout: spec.tuning.idle_timeout(),
            is_watched: spec.tuning.eject().is_some(),
        }
    }

    pub(super) fn balanced_backends(&self, network: NetworkId, service: &str) -> Vec<weft_lb::Backend> {
        let serving = self.serving(network, service).map(|(id, endpoint)| {
            let addresses = self.held_by(endpoint.node, network, &endpoint.spec.addresses);
            (id, endpoint, addresses)
        });
        serving
            .filter(|(_, _, addresses)| !addresses.is_empty())
            .map(|(id, endpoint, addresses)| weft_lb::Backend {
                endpoint: id,
                addrs: addresses.into_iter().collect(),
                weight: NonZeroU16::new(endpoint.spec.weight).unwrap_or(NonZeroU16::MIN),
                state: match (self.backend_state(network, id, endpoint), endpoint.spec.weight) {
                    (BackendState::Down, _) => weft_lb::BackendState::Down,
                    // What is open to it may still be answered.
                    (
                        BackendState::Starting
                        | BackendState::Unhealthy
                        | BackendState::Ejected
                        | BackendState::Draining,
                        _,
                    ) => weft_lb::BackendState::Draining,
                    (BackendState::Drained, _) if self.is_cut(network, id, endpoint) => {
                        weft_lb::BackendState::Down
                    }
                    (BackendState::Drained, _) => weft_lb::BackendState::Draining,
                    // As in IPVS: no weight, no new connections.
                    (BackendState::Ready, 0) => weft_lb::BackendState::Draining,
                    (BackendState::Ready, _) => weft_lb::BackendState::Active,
                },
            })
            .collect()
    }

    /// The endpoints that serve a service, by name.
    pub(super) fn serving<'a>(
        &'a self,
        network: NetworkId,
        service: &'a str,
    ) -> impl Iterator<Item = (EndpointId, &'a Endpoint)> {
        self.catalogue.serving(network, service)
    }

    /// What an endpoint is called and where it is, unless it cannot be reached.
    pub(super) fn named_endpoint(&self, network: NetworkId, id: EndpointId) -> Option<weft_dns::Endpoint> {
        let endpoint = self.catalogue.endpoint(network, id)?;
        let spec = &endpoint.spec;
        let names = [&spec.name].into_iter().chain(&spec.aliases).cloned();
        self.serves(endpoint.node).then(|| weft_dns::Endpoint {
            names: names.collect(),
            addresses: self.held_by(endpoint.node, network, &spec.addresses),
        })
    }

    /// Where a service is.
    pub(super) fn named_service(&self, id: ServiceId, service: &ServiceSpec) -> weft_dns::Service {
        let healthy = self.balanced_backends(service.network, &service.name);
        let healthy = healthy
            .into_iter()
            .filter(|backend| backend.state == weft_lb::BackendState::Active);
        weft_dns::Service {
            mode: match service.mode {
                EndpointMode::Vip => weft_dns::EndpointMode::Vip,
                EndpointMode::Dnsrr => weft_dns::EndpointMode::DnsRr,
            },
            vips: self.held_vips(service.network, id),
            backends: healthy.flat_map(|backend| backend.addrs).collect(),
            ports: service.ports.iter().filter_map(dns_port).collect(),
        }
    }

    fn askers(&self) -> BTreeMap<NetworkId, BTreeMap<IpAddr, Vec<NetworkId>>> {
        let mut askers: BTreeMap<NetworkId, BTreeMap<IpAddr, Vec<NetworkId>>> = BTreeMap::new();
        // A container is known by its engine's name for it before its namespace is.
        let mut containers: BTreeMap<&str, Vec<(NetworkId, &Endpoint)>> = BTreeMap::new();
        let mut groups: Vec<Vec<(NetworkId, &Endpoint)>> = Vec::new();
        let mut sandboxes: BTreeMap<(u64, u64), Vec<(NetworkId, &Endpoint)>> = BTreeMap::new();
        for (network, _, endpoint) in self.local_endpoints() {
            match &endpoint.spec.attachment {
                Attachment::Sandbox(sandbox) => sandboxes.entry((sandbox.device, sandbox.inode)).or_default(),
                Attachment::Docker(DockerSpec {
                    joined: Some(joined), ..
                }) => containers.entry(&joined.key).or_default(),
                Attachment::Docker(_) => continue,
            }
            .push((network, endpoint));
        }
        groups.extend(sandboxes.into_values().chain(containers.into_values()));
        for networks in groups {
            for (through, endpoint) in &networks {
                let others = networks
                    .iter()
                    .map(|(network, _)| *network)
                    .filter(|network| network != through);
                let all: Vec<_> = [*through].into_iter().chain(others).collect();
                for address in &endpoint.spec.addresses {
                    askers
                        .entry(*through)
                        .or_default()
                        .insert(address.addr(), all.clone());
                }
            }
        }
        askers
    }
}

fn local_endpoint(spec: &super::records::EndpointSpec, network: &NetworkSpec) -> plan::LocalEndpoint {
    let gateways = network.gateways(&spec.addresses);
    plan::LocalEndpoint {
        mac: spec.mac,
        addresses: spec.addresses.clone(),
        place: match &spec.attachment {
            Attachment::Sandbox(sandbox) => {
                let of_host = sandbox.is_host();
                let sandbox = plan::Sandbox {
                    path: sandbox.path.clone().into(),
                    id: weft_netlink::netns::NetnsId {
                        dev: sandbox.device,
                        ino: sandbox.inode,
                    },
                };
                match of_host {
                    true => plan::Place::Host(sandbox),
                    false => plan::Place::Sandbox(sandbox),
                }
            }
            Attachment::Docker(docker) => plan::Place::Engine {
                ifname: docker.ifname.clone(),
                container: docker.joined.as_ref().map(|joined| joined.key.clone().into()),
            },
        },
        gateway: gateways.filter(|_| spec.gives_default_route).collect(),
        ifname: None,
    }
}

/// A range is in no SRV record, as it has no name.
fn dns_port(port: &ServicePort) -> Option<weft_dns::Port> {
    (port.count == 1).then(|| weft_dns::Port {
        name: port.name.clone(),
        port: port.port,
        target: port.target,
        protocol: match port.protocol {
            Protocol::Tcp => weft_dns::Protocol::Tcp,
            Protocol::Udp => weft_dns::Protocol::Udp,
        },
    })
}

/// Port 0 cannot be connected to; a record that names it came from another version.
fn port_map(port: &ServicePort) -> Option<weft_lb::PortMap> {
    Some(weft_lb::PortMap {
        port: NonZeroU16::new(port.port)?,
        target: NonZeroU16::new(port.target)?,
        count: NonZeroU16::new(port.count)?,
        protocol: match port.protocol {
            Protocol::Tcp => weft_lb::Protocol::Tcp,
            Protocol::Udp => weft_lb::Protocol::Udp,
        },
    })
}
