//! Services: making, changing, showing and removing them.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use rand::RngExt;
use weft_types::{NetworkId, ServiceId};

use super::{
    Control, Now, Responder, names,
    operations::{Operation, Stop},
    polls::{Backends, LOOK_PATIENCE, Outcome, Then},
    pools::{address, number},
    records::{Register, ServiceSpec, SpaceKey, encode, service_key},
};
use crate::api::{ApiError, Timestamp, types::*};

/// The largest number of services of one network, and of ports of one service.
pub(crate) const MAX_SERVICES: usize = 10_000;
pub(crate) const MAX_PORTS: usize = 32;
/// Of one service, those of ranges counted one by one: each is an entry in the kernel of every host.
pub(crate) const MAX_RANGED_PORTS: u32 = 1_024;

/// Makes a service or changes one: both end in a register being set.
pub(super) struct SetService {
    id: ServiceId,
    /// As it is to be, without addresses.
    spec: ServiceSpec,
    is_new: bool,
    taken: Vec<(u8, IpAddr)>,
}

impl Control {
    pub(super) fn start_create_service(
        &mut self,
        request: ServiceCreateRequest,
        responder: Responder<ServiceChanged>,
        now: Now,
    ) {
        match self.new_service(request) {
            Ok(set) => self.start(Operation::SetService(set, responder), now),
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    fn new_service(&mut self, request: ServiceCreateRequest) -> Result<SetService, ApiError> {
        check_name("a service", &request.name)?;
        check_ports(&request.name, &request.ports)?;
        self.check_health(&request.name, request.health.as_ref(), &request.ports)?;
        let network = names::network(&self.catalogue, &request.network)?;
        if self.catalogue.services(network).count() >= MAX_SERVICES {
            return Err(ApiError::exhausted(format!(
                "network `{}` has {MAX_SERVICES} services, which is the most",
                request.network
            )));
        }
        let tuning = request.tuning.apply(&request.name, Tuning::default())?;
        let spec = ServiceSpec {
            network,
            name: request.name,
            created: 0,
            creator: self.me,
            vips: Vec::new(),
            vips_from: self.me,
            scheduler: request.scheduler,
            mode: request.endpoint_mode,
            ports: request.ports,
            health: request.health,
            publish: request.publish,
            tuning,
        };
        Ok(SetService {
            id: ServiceId(self.rng.random()),
            spec,
            is_new: true,
            taken: Vec::new(),
        })
    }

    pub(super) fn start_update_service(
        &mut self,
        reference: &str,
        request: ServiceUpdateRequest,
        query: &ServiceQuery,
        responder: Responder<ServiceChanged>,
        now: Now,
    ) {
        match self.changed_service(reference, request, query) {
            Ok(set) => self.start(Operation::SetService(set, responder), now),
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    fn changed_service(
        &self,
        reference: &str,
        request: ServiceUpdateRequest,
        query: &ServiceQuery,
    ) -> Result<SetService, ApiError> {
        let (id, mut spec) = names::service(&self.catalogue, reference, query.network.as_deref())?;
        if let Some(ports) = request.ports {
            check_ports(&spec.name, &ports)?;
            spec.ports = ports;
        }
        if let Some(scheduler) = request.scheduler {
            spec.scheduler = scheduler;
        }
        if let Some(mode) = request.endpoint_mode {
            spec.mode = mode;
        }
        if let Some(change) = request.health {
            spec.health = change.apply(&spec.name, spec.health)?;
        }
        // Also where the ports change: a check may be of the first of them.
        self.check_health(&spec.name, spec.health.as_ref(), &spec.ports)?;
        if let Some(publish) = request.publish {
            spec.publish = publish;
        }
        spec.tuning = request.tuning.apply(&spec.name, spec.tuning)?;
        Ok(SetService {
            id,
            spec,
            is_new: false,
            taken: Vec::new(),
        })
    }

    pub(super) fn set_service(&mut self, set: &mut SetService, now: Now) -> Result<ServiceSummary, Stop> {
        let id = set.spec.network;
        let Some(network) = self.catalogue.network(id).cloned() else {
            return Err(ApiError::not_found("the network was removed meanwhile").into());
        };
        let namesake =
            |(other, spec): (ServiceId, &ServiceSpec)| other != set.id && spec.name == set.spec.name;
        if self.catalogue.services_called(id, &set.spec.name).any(namesake) {
            return Err(ApiError::conflict(format!(
                "network `{}` has a service `{}` already",
                network.name, set.spec.name
            ))
            .with_help(format!(
                "change it with `weft service update {}`, or choose another name",
                set.spec.name
            ))
            .into());
        }
        self.check_publish(set.id, &set.spec)?;
        if set.spec.mode == EndpointMode::Vip && set.spec.vips.is_empty() {
            for v4 in [true, false] {
                self.take_one(id, &network.subnets, v4, &mut set.taken, now)?;
            }
        }
        let mut spec = set.spec.clone();
        if set.is_new {
            spec.created = self.catalogue.next_lamport(self.me);
        }
        if spec.mode == EndpointMode::Dnsrr {
            spec.vips.clear();
        } else if spec.vips.is_empty() {
            spec.vips = set.taken.iter().map(|(_, vip)| *vip).collect();
            spec.vips_from = self.me;
        }
        let key = service_key(id, set.id);
        let register = Register {
            lamport: self.catalogue.lamport_for(&key).max(spec.created),
            removed: false,
            value: spec,
        };
        self.publish(key, encode(&register), now)?;
        Ok(self.service_summary(set.id, &register.value))
    }

    /// Answers once the change is in force everywhere.
    pub(super) fn await_service(
        &mut self,
        set: &SetService,
        summary: ServiceSummary,
        responder: Responder<ServiceChanged>,
        now: Now,
    ) {
        let key = service_key(set.spec.network, set.id);
        self.once_in_force(key, Then::ServiceSet(summary, responder), now);
    }

    /// Takes one address of a family, if the network has that family and `taken` has none.
    pub(super) fn take_one(
        &mut self,
        network: NetworkId,
        subnets: &[super::records::SubnetSpec],
        v4: bool,
        taken: &mut Vec<(u8, IpAddr)>,
        now: Now,
    ) -> Result<(), Stop> {
        if taken.iter().any(|(_, vip)| vip.is_ipv4() == v4) {
            return Ok(());
        }
        let mut stopped = None;
        for (index, subnet) in subnets.iter().enumerate() {
            if matches!(subnet.net, IpNet::V4(_)) != v4 {
                continue;
            }
            let space = SpaceKey::Addresses(network, index as u8);
            match self.spaces.allocate(space, subnet.range, now.instant) {
                Ok(number) => {
                    taken.push((index as u8, address(number, subnet.net)));
                    return Ok(());
                }
                Err(cause) => stopped = Some(self.better_stop(stopped, cause, now)),
            }
        }
        stopped.map_or(Ok(()), Err)
    }

    pub(super) fn abandon_service(&mut self, set: SetService, now: Now) {
        for (index, vip) in set.taken {
            self.spaces.release(
                SpaceKey::Addresses(set.spec.network, index),
                number(vip),
                now.instant,
            );
        }
    }

    pub(super) fn remove_service(
        &mut self,
        reference: &str,
        query: &ServiceQuery,
        responder: Responder<ServiceRemoveResponse>,
        now: Now,
    ) {
        match self.withdraw_service(reference, query, now) {
            Ok(response) => {
                let key = service_key(response.network_id, response.id);
                self.once_in_force(key, Then::ServiceRemoved(response, responder), now);
            }
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    pub(super) fn withdraw_service(
        &mut self,
        reference: &str,
        query: &ServiceQuery,
        now: Now,
    ) -> Result<ServiceRemoveResponse, ApiError> {
        let (id, spec) = names::service(&self.catalogue, reference, query.network.as_deref())?;
        let response = ServiceRemoveResponse {
            id,
            name: spec.name.clone(),
            network_id: spec.network,
            network_name: self.catalogue.display_name(spec.network).unwrap_or_default(),
            vips: spec.vips.clone(),
            unconfirmed: Vec::new(),
        };
        let network = spec.network;
        let key = service_key(network, id);
        let register = Register {
            lamport: self.catalogue.lamport_for(&key),
            removed: true,
            value: spec,
        };
        self.publish(key, encode(&register), now)?;
        Ok(response)
    }

    pub(super) fn service_summary(&self, id: ServiceId, spec: &ServiceSpec) -> ServiceSummary {
        let backends = self.backends(spec.network, &spec.name);
        let mut states = BTreeMap::new();
        for backend in &backends {
            *states.entry(backend.state).or_insert(0) += 1;
        }
        ServiceSummary {
            id,
            name: spec.name.clone(),
            network_id: spec.network,
            network_name: self.catalogue.display_name(spec.network).unwrap_or_default(),
            scheduler: spec.scheduler,
            endpoint_mode: spec.mode,
            vips: spec.vips.clone(),
            ports: spec.ports.clone(),
            published: spec.publish.clone(),
            backend_count: backends.len() as u32,
            ready_count: states.get(&BackendState::Ready).copied().unwrap_or(0),
            health: spec.health.clone(),
            backend_states: states,
            tuning: spec.tuning,
            counts: None,
        }
    }

    fn service_detail(&self, reference: &str, query: &ServiceQuery) -> Result<ServiceDetail, ApiError> {
        let (id, spec) = names::service(&self.catalogue, reference, query.network.as_deref())?;
        Ok(ServiceDetail {
            summary: self.service_summary(id, &spec),
            created_by: spec.creator,
            backends: self.growing_backends(id, &spec),
            uncounted: Vec::new(),
        })
    }

    /// Answers with what all nodes have open.
    pub(super) fn inspect_service(
        &mut self,
        reference: &str,
        query: &ServiceQuery,
        responder: Responder<ServiceDetail>,
        now: Now,
    ) {
        match self.service_detail(reference, query) {
            Ok(detail) => {
                let of = Backends::Service(detail.summary.network_id, detail.summary.id);
                let then = Then::Inspected(Box::new(detail), responder);
                self.count_open(of, self.members(), LOOK_PATIENCE, then, now);
            }
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    /// Adds what the nodes have counted.
    pub(super) fn with_counts(&self, mut detail: ServiceDetail, outcome: Outcome) -> ServiceDetail {
        for backend in &mut detail.backends {
            let clients = outcome.counts.iter().filter_map(|(node, counts)| {
                let count = counts.get(&backend.endpoint_id)?;
                Some(ClientConnections {
                    node_id: *node,
                    node_name: self.catalogue.node_name(*node),
                    open: count.open,
                    total: count.total,
                    failed: count.failed,
                    ejected: count.ejected.map(|ejected| Ejected {
                        failures: ejected.failures,
                        until: Timestamp::from_unix_millis(ejected.until_millis),
                    }),
                })
            });
            backend.clients = clients.collect();
            say_who_ejects(backend);
            backend
                .clients
                .sort_by(|one, other| one.node_name.cmp(&other.node_name));
            for clients in &backend.clients {
                let sums = [
                    (&mut backend.open_connections, clients.open),
                    (&mut backend.total_connections, clients.total),
                    (&mut backend.failed_connections, clients.failed),
                ];
                sums.into_iter()
                    .for_each(|(sum, count)| *sum = sum.saturating_add(count));
            }
        }
        detail.uncounted = outcome.unconfirmed;
        detail
    }

    /// Its backends; of those that have only a part of their share yet, that is said.
    fn growing_backends(&self, id: ServiceId, spec: &ServiceSpec) -> Vec<Backend> {
        let mut backends = self.backends(spec.network, &spec.name);
        for backend in &mut backends {
            if let (None, Some(tenths)) = (&backend.reason, self.slow_start.tenths(id, backend.endpoint_id)) {
                backend.reason = Some(format!("it is new: it has {tenths}/10 of its share so far"));
            }
        }
        backends
    }

    /// The endpoints that serve a service, by name; a node believed dead serves nothing.
    pub(super) fn backends(&self, network: NetworkId, service: &str) -> Vec<Backend> {
        self.serving(network, service)
            .map(|(endpoint_id, endpoint)| {
                let (reason, since) = self.backend_reason(network, endpoint_id, endpoint);
                Backend {
                    endpoint_id,
                    endpoint_name: endpoint.spec.name.clone(),
                    node_id: endpoint.node,
                    node_name: self.catalogue.node_name(endpoint.node),
                    addresses: endpoint.spec.addresses.iter().map(IpNet::addr).collect(),
                    weight: endpoint.spec.weight,
                    state: match self.backend_state(network, endpoint_id, endpoint) {
                        BackendState::Ready if self.ejections.ejected(endpoint_id).is_some() => {
                            BackendState::Ejected
                        }
                        state => state,
                    },
                    open_connections: 0,
                    total_connections: 0,
                    failed_connections: 0,
                    clients: Vec::new(),
                    reason,
                    since,
                }
            })
            .collect()
    }

    /// Whether the endpoints of a node can be reached, as far as this node knows.
    pub(super) fn serves(&self, node: weft_types::NodeId) -> bool {
        matches!(
            self.node_state(node),
            NodeState::Alive | NodeState::Suspect | NodeState::Away
        )
    }
}

/// Others may eject a backend that this host does not, and it may be over by now.
fn say_who_ejects(backend: &mut Backend) {
    let ejected =
        |client: &ClientConnections| client.ejected.map(|ejected| (client.node_name.clone(), ejected));
    let mut by: Vec<_> = backend.clients.iter().filter_map(ejected).collect();
    by.sort_by(|one, other| one.0.cmp(&other.0));
    match (backend.state, by.is_empty()) {
        (BackendState::Ejected, true) => backend.state = BackendState::Ready,
        (BackendState::Ready | BackendState::Ejected, false) => {
            let by = by.iter().map(|(node, Ejected { failures, until })| {
                format!("by {node} until {until}: {failures} connections in a row failed")
            });
            backend.state = BackendState::Ejected;
            backend.reason = Some(by.collect::<Vec<_>>().join("; "));
        }
        _ => {}
    }
}

fn check_ports(service: &str, ports: &[ServicePort]) -> Result<(), ApiError> {
    if ports.len() > MAX_PORTS {
        return Err(ApiError::invalid(format!(
            "service `{service}` asks for more than {MAX_PORTS} ports"
        )));
    }
    let all: u32 = ports.iter().map(|port| u32::from(port.count)).sum();
    if all > MAX_RANGED_PORTS {
        return Err(ApiError::invalid(format!(
            "service `{service}` asks for {all} ports; {MAX_RANGED_PORTS} is the most, with those of ranges"
        ))
        .with_help("without any port given a service has all of them"));
    }
    for (index, port) in ports.iter().enumerate() {
        if port.count == 0 || port.last().is_none() || port.last_target().is_none() {
            return Err(ApiError::invalid(format!(
                "service `{service}` asks for {} ports from {} on, which there are not",
                port.count,
                port.port.max(port.target)
            ))
            .with_help("ports are 1 to 65535"));
        }
        if port.count > 1 && port.name.is_some() {
            return Err(ApiError::invalid(format!(
                "service `{service}` has a name for the ports {port}, and SRV records name one port"
            ))
            .with_help("give the range no name, or name single ports"));
        }
        if port.port == 0 || port.target == 0 {
            return Err(ApiError::invalid(format!(
                "service `{service}` cannot have port 0"
            )));
        }
        if let Some(other) = ports[..index].iter().find(|other| other.overlaps(port)) {
            let both = port.port.max(other.port);
            return Err(ApiError::conflict(match (port.count, other.count) {
                (1, 1) => format!("service `{service}` gives port {both}/{} twice", port.protocol),
                _ => format!("service `{service}` gives port {both} twice, in {other} and in {port}"),
            })
            .with_help("give each port once; one port of the service leads to one port of its backends"));
        }
        let named = port.name.is_some() && ports[..index].iter().any(|other| other.name == port.name);
        if named {
            return Err(ApiError::conflict(format!(
                "service `{service}` has two ports of the name `{}`",
                port.name.as_deref().unwrap_or_default()
            ))
            .with_help("give each port a name of its own, or none"));
        }
    }
    Ok(())
}
