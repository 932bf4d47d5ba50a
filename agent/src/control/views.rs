//! What the host should be like, derived from the catalogue: the overlay, the services, the names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    sync::Arc,
};

use ipnet::IpNet;
use weft_dns::{NetworkZone, Zone};
use weft_overlay::plan;
use weft_types::{EndpointId, Mac, NetworkId, NodeId, ServiceId};

use super::{
    Control, EntryTable, Now,
    catalogue::Endpoint,
    records::{Attachment, DockerSpec, NetworkSpec, SandboxSpec, ServiceSpec},
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
        let tunnels = self.tunnels();
        self.tunnels.expect(tunnels.as_ref(), now);
        HostState {
            tunnels: tunnels.map(Box::new),
            tunnel_mtu: self.tunnel_mtu(),
            generation: self.generation,
            overlay: self.overlay(),
            sandboxes: self.sandbox_tables(),
            entries: self.entry_tables(),
            watched: self.ejecting(),
            entry_problems: self
                .publish_problems()
                .into_iter()
                .chain(self.entry_problems())
                .collect(),
            zone: self.zone(),
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
        for (_, networks) in self.sandboxes() {
            let mut resolver = Resolver::default();
            for (id, _) in &networks {
                let Some(spec) = self.catalogue.network(*id) else {
                    continue;
                };
                let new = self.dns_servers(spec).into_iter();
                let new: Vec<_> = new.filter(|server| !resolver.servers.contains(server)).collect();
                resolver.servers.extend(new);
                resolver.search.extend(self.search_domain(*id));
            }
            resolver.search.push(self.settings.domain.clone());
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

    /// The domain of a network's names.
    pub(super) fn search_domain(&self, network: NetworkId) -> Option<String> {
        let name = self.catalogue.display_name(network)?;
        Some(format!("{name}.{}", self.settings.domain))
    }

    fn overlay(&self) -> plan::Desired {
        let facts = self.catalogue.nodes().filter(|(id, _)| *id != self.me);
        let members: BTreeSet<IpAddr> = facts
            .filter_map(|(_, node)| Some(node.fact.as_ref()?.vtep))
            .collect();
        let networks = self
            .networks_here()
            .into_iter()
            .filter_map(|id| Some((id, self.overlay_network(id, self.catalogue.network(id)?))))
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

    fn overlay_network(&self, id: NetworkId, spec: &NetworkSpec) -> plan::Network {
        let mut endpoints = BTreeMap::new();
        let mut remotes = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for (endpoint_id, endpoint) in self.catalogue.endpoints(id) {
            if endpoint.node == self.me {
                endpoints.insert(endpoint_id, local_endpoint(&endpoint.spec, spec));
            } else if let Some(remote) =
                self.remote(endpoint.node, id, endpoint.spec.mac, &endpoint.spec.addresses)
            {
                remotes.insert(endpoint_id, remote);
                nodes.insert(endpoint_id, endpoint.node);
            }
        }
        for (node, ingress) in self.catalogue.ingresses(id).filter(|(node, _)| *node != self.me) {
            if let Some(remote) = self.remote(node, id, ingress.mac, &ingress.addresses) {
                // Ids are random, and the beginning of a node's is no endpoint's.
                if let Some(id) = node.0.first_chunk() {
                    remotes.insert(EndpointId(*id), remote);
                    nodes.insert(EndpointId(*id), node);
                }
            }
        }
        let mut network = plan::Network {
            ingress: self.overlay_ingress(id),
            name: spec.name.clone(),
            vni: spec.vni,
            mtu: spec.mtu,
            vtep: self.settings.vtep,
            vxlan_port: self.settings.vxlan_port,
            encryption: None,
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
            endpoints,
            remotes,
        };
        if spec.encrypted {
            self.encrypt(&mut network, &nodes);
        }
        network
    }

    /// A place on a network that another node has, as far as that is really its own.
    fn remote(
        &self,
        node: NodeId,
        network: NetworkId,
        mac: Mac,
        addresses: &[IpNet],
    ) -> Option<plan::RemoteEndpoint> {
        let fact = self.catalogue.node(node)?.fact.as_ref()?;
        let addresses = self.held_by(node, network, addresses);
        let is_real = !addresses.is_empty()
            && self.has_mac(node, network, mac)
            && fact.vtep != self.settings.vtep
            && fact.vtep.is_ipv4() == self.settings.vtep.is_ipv4();
        is_real.then_some(plan::RemoteEndpoint {
            mac,
            addresses,
            vtep: fact.vtep,
        })
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
    fn sandbox_tables(&mut self) -> Vec<SandboxTables> {
        let mut known = BTreeMap::new();
        let mut before = std::mem::take(&mut self.balanced);
        let tables = self
            .sandboxes()
            .into_iter()
            .map(|(sandbox, networks)| SandboxTables {
                sandbox: sandbox.clone(),
                tables: networks
                    .into_iter()
                    .map(|(network, _)| weft_lb::ClientTable {
                        network,
                        services: known
                            .entry(network)
                            .or_insert_with(|| {
                                let before = before.remove(&network).unwrap_or_default();
                                self.balanced_services(network, before)
                            })
                            .clone(),
                    })
                    .collect(),
            });
        let tables = tables.collect();
        self.balanced = known;
        tables
    }

    fn balanced_services(&self, network: NetworkId, before: Balanced) -> Balanced {
        let mut seen = BTreeSet::new();
        let services = self
            .catalogue
            .services(network)
            .map(|(id, spec)| {
                let mut service = self.balanced_service(id, spec);
                // A datapath has room for one service at an address, even of a node that says otherwise of its own.
                service.vips.retain(|vip| seen.insert(*vip));
                (id, service)
            })
            .filter(|(_, service)| !service.vips.is_empty());
        let mut kept = 0;
        let services: Balanced = services
            .map(|(id, service)| {
                let place = before.binary_search_by_key(&id, |service| service.id).ok();
                match place.map(|place| &before[place]) {
                    Some(same) if **same == service => {
                        kept += 1;
                        Arc::clone(same)
                    }
                    _ => Arc::new(service),
                }
            })
            .collect();
        let is_same = kept == services.len() && kept == before.len();
        if is_same { before } else { services }
    }

    /// Takes note of which backends are new, where that counts.
    fn look_who_is_new(&mut self, now: Now) {
        let services = self.catalogue.all_services();
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

    /// Of networks that nobody can ask for here it is only said which addresses are theirs.
    pub(super) fn zone(&self) -> Zone {
        let mut zone = Zone::new(&self.settings.domain).expect("the domain was checked at the start");
        let here = self.networks_here();
        for (id, spec) in self.catalogue.networks() {
            let name = self
                .catalogue
                .display_name(id)
                .unwrap_or_else(|| spec.name.clone());
            let subnets = spec.subnets.iter().map(|subnet| subnet.net).collect();
            let mut names = NetworkZone::new(&name, spec.internal, subnets);
            let mut shown = self.settings.shown_networks.iter();
            if !here.contains(&id) && !shown.any(|shown| shown.eq_ignore_ascii_case(&name)) {
                zone.set_network(id, names);
                continue;
            }
            for (endpoint_id, endpoint) in self.catalogue.endpoints(id) {
                if !self.serves(endpoint.node) {
                    continue;
                }
                let called = [&endpoint.spec.name]
                    .into_iter()
                    .chain(&endpoint.spec.aliases)
                    .cloned()
                    .collect();
                let addresses = self.held_by(endpoint.node, id, &endpoint.spec.addresses);
                names.set_endpoint(
                    endpoint_id,
                    weft_dns::Endpoint {
                        names: called,
                        addresses,
                    },
                );
            }
            for (service_id, service) in self.catalogue.services(id) {
                let healthy = self.balanced_backends(id, &service.name);
                let healthy = healthy
                    .into_iter()
                    .filter(|backend| backend.state == weft_lb::BackendState::Active);
                let mode = match service.mode {
                    EndpointMode::Vip => weft_dns::EndpointMode::Vip,
                    EndpointMode::Dnsrr => weft_dns::EndpointMode::DnsRr,
                };
                let backends = healthy.flat_map(|backend| backend.addrs).collect();
                names.set_service(
                    &service.name,
                    weft_dns::Service {
                        mode,
                        vips: self.held_vips(id, service_id),
                        backends,
                        ports: service.ports.iter().filter_map(dns_port).collect(),
                    },
                );
            }
            zone.set_network(id, names);
        }
        zone
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
    let gateways = network.subnets.iter().map(|subnet| subnet.gateway);
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
