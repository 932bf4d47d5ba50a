//! Endpoints: attaching namespaces of this host to networks, and detaching them.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use rand::RngExt;
use weft_gossip::{MAX_VALUE, PutError};
use weft_types::{EndpointId, Mac, NetworkId};

use super::{
    Control, HostReport, Now, Responder,
    catalogue::{Endpoint as Known, Presence},
    finding::EndpointHealth,
    names,
    networks::overlap,
    operations::{Operation, Stop},
    pools::{address, number},
    records::{Attachment, EndpointSpec, NetworkSpec, SandboxSpec, SpaceKey, encode, endpoint_key},
    refusals,
};
use crate::api::{ApiError, types::*};

pub(crate) const MAX_ALIASES: usize = 16;

pub(super) struct Connect {
    network: NetworkId,
    request: ConnectRequest,
    sandbox: SandboxSpec,
    /// Addresses that are taken already, with the subnet they are from.
    taken: Vec<(u8, IpNet)>,
    made: Option<EndpointId>,
}

impl Connect {
    pub(super) fn new(network: NetworkId, request: ConnectRequest, sandbox: SandboxSpec) -> Self {
        Self {
            network,
            request,
            sandbox,
            taken: Vec::new(),
            made: None,
        }
    }
}

impl Control {
    pub(super) fn start_connect(
        &mut self,
        reference: &str,
        request: ConnectRequest,
        sandbox: SandboxSpec,
        responder: Responder<ConnectResponse>,
        now: Now,
    ) {
        match names::network(&self.catalogue, reference) {
            Ok(network) => {
                let connect = Connect::new(network, request, sandbox);
                self.start(Operation::Connect(connect, responder), now);
            }
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    fn check_connect(&self, connect: &Connect) -> Result<NetworkSpec, ApiError> {
        let Connect {
            network: id,
            request,
            sandbox,
            ..
        } = connect;
        let Some(spec) = self.catalogue.network(*id) else {
            return Err(ApiError::not_found("the network was removed meanwhile"));
        };
        let network = self.catalogue.display_name(*id).unwrap_or_default();
        let name = endpoint_name(request);
        check_name("an endpoint", &name).map_err(|error| error.with_help(
            "give one with --name: 1 to 63 letters, digits, `-` and `_`, beginning and ending with a letter or digit",
        ))?;
        if request.aliases.len() > MAX_ALIASES {
            return Err(ApiError::invalid(format!(
                "endpoint `{name}` asks for more than {MAX_ALIASES} aliases"
            )));
        }
        for alias in &request.aliases {
            check_name("an endpoint", alias)?;
        }
        if request.mac.is_some_and(|mac| !mac.is_unicast()) {
            return Err(
                ApiError::invalid("the MAC address of an endpoint is a unicast address")
                    .with_help("leave --mac out for a random one"),
            );
        }
        for (_, other) in self.catalogue.endpoints(*id) {
            if other.spec.name == name {
                let node = self.catalogue.node_name(other.node);
                return Err(ApiError::conflict(format!(
                    "network `{network}` has an endpoint `{name}` already, on node `{node}`"
                ))
                .with_help(
                    "choose another name with --name; a name that several endpoints share is an --alias",
                ));
            }
            if request.mac == Some(other.spec.mac) {
                return Err(ApiError::conflict(format!(
                    "{} is the MAC address of endpoint `{}`",
                    other.spec.mac, other.spec.name
                ))
                .with_help("leave --mac out for a random one"));
            }
        }
        if let Some(service) = &request.service
            && !self
                .catalogue
                .services_called(*id, service)
                .any(|(_, spec)| spec.name == *service)
        {
            return Err(
                ApiError::not_found(format!("network `{network}` has no service `{service}`")).with_help(
                    format!("make it first: `weft service create --network {network} {service}`"),
                ),
            );
        }
        self.check_sandbox(*id, spec, sandbox)?;
        Ok(spec.clone())
    }

    fn check_sandbox(
        &self,
        id: NetworkId,
        spec: &NetworkSpec,
        sandbox: &SandboxSpec,
    ) -> Result<(), ApiError> {
        for (other_id, _, endpoint) in self.local_endpoints() {
            if !is_in(&endpoint.spec, sandbox) {
                continue;
            }
            let other = self.catalogue.display_name(other_id).unwrap_or_default();
            if other_id == id {
                return Err(ApiError::conflict(format!(
                    "namespace `{}` is on network `{other}` already, as `{}`",
                    sandbox.target, endpoint.spec.name
                ))
                .with_help(format!(
                    "detach it first: `weft network disconnect {other} {}`",
                    sandbox.target
                )));
            }
            let others = self
                .catalogue
                .network(other_id)
                .into_iter()
                .flat_map(|spec| &spec.subnets);
            for theirs in others {
                if let Some(ours) = spec.subnets.iter().find(|ours| overlap(ours.net, theirs.net)) {
                    return Err(ApiError::conflict(format!(
                        "namespace `{}` is on network `{other}`, whose subnet {} overlaps {}",
                        sandbox.target, theirs.net, ours.net
                    ))
                    .with_help("a namespace can be on one of two networks that share addresses"));
                }
            }
        }
        Ok(())
    }

    /// Settles addresses and publishes the endpoint; what remains is for the kernel to do.
    pub(super) fn connect(&mut self, connect: &mut Connect, now: Now) -> Result<(), Stop> {
        let spec = self.check_connect(connect)?;
        let (v4, v6) = (
            connect.request.ip.map(IpAddr::from),
            connect.request.ip6.map(IpAddr::from),
        );
        self.take_address(connect, &spec, true, v4, now)?;
        self.take_address(connect, &spec, false, v6, now)?;
        let request = &connect.request;
        let gives_default_route = !spec.internal
            && !connect.sandbox.is_host()
            && !self.local_endpoints().any(|(_, _, endpoint)| {
                is_in(&endpoint.spec, &connect.sandbox) && endpoint.spec.gives_default_route
            });
        let endpoint = EndpointSpec {
            name: endpoint_name(request),
            aliases: request.aliases.clone(),
            mac: request.mac.unwrap_or_else(|| Mac::from_random(self.rng.random())),
            addresses: connect.taken.iter().map(|(_, address)| *address).collect(),
            service: request.service.clone(),
            weight: request.weight.unwrap_or(1),
            gives_default_route,
            attachment: Attachment::Sandbox(connect.sandbox.clone()),
            health: EndpointHealth {
                check: self.first_finding(connect.network, request.service.as_deref(), now),
                engine: None,
            },
            leaving: false,
        };
        // What is told of its health later has to fit.
        let length = endpoint.longest();
        if length > MAX_VALUE {
            return Err(refusals::untold(PutError::ValueTooLong(length)).into());
        }
        let id = EndpointId(self.rng.random());
        self.publish(endpoint_key(connect.network, id), encode(&endpoint), now)?;
        connect.made = Some(id);
        Ok(())
    }

    /// Takes one address of a family, if the network has that family.
    fn take_address(
        &mut self,
        connect: &mut Connect,
        spec: &NetworkSpec,
        v4: bool,
        asked: Option<IpAddr>,
        now: Now,
    ) -> Result<(), Stop> {
        let of_family = |net: &IpNet| matches!(net, IpNet::V4(_)) == v4;
        if connect.taken.iter().any(|(_, address)| of_family(address)) {
            return Ok(());
        }
        let subnets: Vec<_> = spec
            .subnets
            .iter()
            .enumerate()
            .filter(|(_, subnet)| of_family(&subnet.net))
            .collect();
        if let Some(asked) = asked {
            let Some((index, subnet)) = subnets.iter().find(|(_, subnet)| subnet.net.contains(&asked)) else {
                let all: Vec<_> = spec.subnets.iter().map(|subnet| subnet.net.to_string()).collect();
                return Err(ApiError::invalid(format!(
                    "{asked} is not an address of network `{}`",
                    spec.name
                ))
                .with_help(format!("its subnets are {}", all.join(", ")))
                .into());
            };
            let space = SpaceKey::Addresses(connect.network, *index as u8);
            self.spaces
                .claim(space, number(asked))
                .map_err(|cause| self.stopped_claim_address(cause, asked, connect.network, subnet))?;
            connect.taken.push((*index as u8, with_prefix(asked, subnet.net)));
            return Ok(());
        }
        let mut stopped = None;
        for (index, subnet) in subnets {
            let space = SpaceKey::Addresses(connect.network, index as u8);
            match self.spaces.allocate(space, subnet.range, now.instant) {
                Ok(taken) => {
                    connect
                        .taken
                        .push((index as u8, with_prefix(address(taken, subnet.net), subnet.net)));
                    return Ok(());
                }
                // A later subnet may have room; if none has, the owners of one after the other are asked.
                Err(cause) => stopped = Some(self.better_stop(stopped, cause, now)),
            }
        }
        stopped.map_or(Ok(()), Err)
    }

    pub(super) fn await_attachment(&mut self, connect: Connect, responder: Responder<ConnectResponse>) {
        let id = connect.made.expect("an endpoint was published");
        let spec = self
            .catalogue
            .network(connect.network)
            .expect("it has an endpoint");
        let endpoint = self.endpoint_spec(connect.network, id).expect("just published");
        let gives = endpoint.gives_default_route;
        let gateways = spec.gateways(&endpoint.addresses).filter(|_| gives);
        let name = self.catalogue.display_name(connect.network).unwrap_or_default();
        let response = ConnectResponse {
            id,
            name: endpoint.name.clone(),
            network_id: connect.network,
            addresses: endpoint.addresses.clone(),
            mac: endpoint.mac,
            ifname: String::new(),
            mtu: spec.mtu,
            gateways: gateways.collect(),
            dns: EndpointDns {
                servers: self.dns_servers(spec),
                search: self
                    .search_domain(connect.network)
                    .into_iter()
                    .chain([self.settings.domain.clone()])
                    .collect(),
                resolv_conf: None,
            },
            network_name: name,
        };
        self.attaching.insert(id, (response, responder));
    }

    pub(super) fn abandon_connect(&mut self, connect: Connect, now: Now) {
        for (index, address) in connect.taken {
            let space = SpaceKey::Addresses(connect.network, index);
            self.spaces.release(space, number(address.addr()), now.instant);
        }
    }

    /// What the kernel said about the last host state.
    pub fn handle_report(&mut self, report: HostReport, now: Now) {
        self.containers_attached(&report);
        self.note_applied(&report);
        for (id, ifname) in report.attached {
            if let Some((mut response, responder)) = self.attaching.remove(&id) {
                response.ifname.clone_from(&ifname);
                self.reply(responder, Ok(response));
            }
            if self.ifnames.insert(id, ifname).is_none() {
                self.note_attached();
            }
        }
        for (id, reason) in report.failed {
            let Some((response, responder)) = self.attaching.remove(&id) else {
                continue;
            };
            self.drop_endpoint(response.network_id, id, now);
            let error = ApiError::internal(format!(
                "`{}` could not be attached to network `{}`: {reason}; nothing was changed",
                response.name, response.network_name
            ))
            .with_help("remove the cause and run the command again; the agent's log may say more");
            self.reply(responder, Err(error));
        }
        for id in report.vanished {
            let found = self.local_endpoints().find(|(_, known, _)| *known == id);
            if let Some((network, _, endpoint)) =
                found.map(|(network, id, endpoint)| (network, id, endpoint.clone()))
                && !self.follow_host(network, id, now)
            {
                tracing::info!(endpoint = %endpoint.spec.name, "its namespace is gone: the endpoint is removed");
                self.drop_endpoint(network, id, now);
            }
        }
        let (done, waiting) = std::mem::take(&mut self.detaching)
            .into_iter()
            .partition(|(since, ..)| *since <= report.generation);
        self.detaching = waiting;
        for (_, response, responder) in done {
            self.reply(responder, Ok(response));
        }
        self.set_host_problems(report.problems);
        self.settle(now);
    }

    pub(super) fn disconnect(
        &mut self,
        reference: &str,
        request: &DisconnectRequest,
        responder: Responder<DisconnectResponse>,
        now: Now,
    ) {
        match self.find_local(reference, &request.target) {
            Ok((network, id, endpoint)) => {
                let response = DisconnectResponse {
                    id,
                    name: endpoint.spec.name.clone(),
                    network_id: network,
                    network_name: self.catalogue.display_name(network).unwrap_or_default(),
                    addresses: endpoint.spec.addresses.iter().map(IpNet::addr).collect(),
                    left: 0,
                };
                let grace = Duration::from_millis(request.grace_ms);
                if endpoint.spec.service.is_some() && !grace.is_zero() {
                    self.drain_and_detach(network, id, response, grace, responder, now);
                    return;
                }
                self.drop_endpoint(network, id, now);
                self.settle(now);
                self.detaching.push((self.generation, response, responder));
            }
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    fn find_local(&self, reference: &str, target: &str) -> Result<(NetworkId, EndpointId, Known), ApiError> {
        let network = names::network(&self.catalogue, reference)?;
        let on_network = || {
            self.catalogue
                .endpoints(network)
                .filter(|(_, endpoint)| endpoint.node == self.me)
        };
        // What Docker has attached only Docker detaches.
        let in_sandbox = |is: fn(&SandboxSpec) -> &str| {
            on_network().find(|(_, endpoint)| match &endpoint.spec.attachment {
                Attachment::Sandbox(sandbox) => is(sandbox) == target,
                Attachment::Docker(_) => false,
            })
        };
        let by_target = in_sandbox(|sandbox| &sandbox.target);
        let by_path = || in_sandbox(|sandbox| &sandbox.path);
        let by_name =
            || on_network().find(|(id, endpoint)| endpoint.spec.name == target || id.to_string() == target);
        let name = self.catalogue.display_name(network).unwrap_or_default();
        if let Some((id, endpoint)) = by_target.or_else(by_path).or_else(by_name) {
            if endpoint.spec.docker().is_some() {
                return Err(ApiError::conflict(format!(
                    "endpoint `{target}` of network `{name}` is a container's, which Docker has attached"
                ))
                .with_help(format!(
                    "have Docker detach it: `docker network disconnect {name} CONTAINER`"
                )));
            }
            return Ok((network, id, endpoint.clone()));
        }
        let elsewhere = self
            .catalogue
            .endpoints(network)
            .find(|(_, endpoint)| endpoint.spec.name == target);
        Err(match elsewhere {
            Some((_, endpoint)) => {
                let node = self.catalogue.node_name(endpoint.node);
                ApiError::not_found(format!("`{target}` is on network `{name}`, but on node `{node}`"))
                    .with_help(format!(
                        "run the command there: `weft network disconnect {name} {target}`"
                    ))
            }
            None => ApiError::not_found(format!("namespace `{target}` is not on network `{name}`"))
                .with_help(format!("`weft network inspect {name}` lists its endpoints")),
        })
    }

    /// Withdraws an endpoint of this node and gives its addresses back.
    pub(super) fn drop_endpoint(&mut self, network: NetworkId, id: EndpointId, now: Now) {
        let Some(spec) = self.endpoint_spec(network, id).cloned() else {
            return;
        };
        self.forget_endpoint(network, id, now);
        self.spaces
            .release_endpoint(network, &spec, &self.catalogue, now.instant);
        if let (Attachment::Sandbox(sandbox), true) = (&spec.attachment, spec.gives_default_route) {
            self.move_default_route(sandbox, now);
        }
    }

    /// Withdraws an endpoint of this node; its addresses stay taken.
    pub(super) fn forget_endpoint(&mut self, network: NetworkId, id: EndpointId, now: Now) {
        self.withdraw(&endpoint_key(network, id), now);
        self.ifnames.remove(&id);
    }

    /// Another endpoint of the sandbox takes over its default route, if one can.
    fn move_default_route(&mut self, sandbox: &SandboxSpec, now: Now) {
        let heir = self
            .local_endpoints()
            .filter(|(_, _, endpoint)| is_in(&endpoint.spec, sandbox) && endpoint.spec.docker().is_none())
            .filter(|(network, _, _)| {
                self.catalogue
                    .network(*network)
                    .is_some_and(|spec| !spec.internal)
            })
            .map(|(network, id, endpoint)| (network, id, endpoint.spec.clone()))
            .next();
        if let Some((network, id, mut spec)) = heir {
            spec.gives_default_route = true;
            if let Err(error) = self.publish(endpoint_key(network, id), encode(&spec), now) {
                self.problem(error.message);
            }
        }
    }

    pub(super) fn local_endpoints(&self) -> impl Iterator<Item = (NetworkId, EndpointId, &Known)> {
        self.catalogue.endpoints_of(self.me)
    }

    pub(super) fn endpoint_spec(&self, network: NetworkId, id: EndpointId) -> Option<&EndpointSpec> {
        let endpoint = self.catalogue.endpoint(network, id);
        endpoint.map(|endpoint| &endpoint.spec)
    }

    pub(super) fn show_endpoint(&self, network: NetworkId, id: EndpointId, endpoint: &Known) -> Endpoint {
        let local = endpoint.node == self.me;
        let spec = &endpoint.spec;
        Endpoint {
            id,
            name: spec.name.clone(),
            aliases: spec.aliases.clone(),
            network_id: network,
            network_name: self.catalogue.display_name(network).unwrap_or_default(),
            node_id: endpoint.node,
            node_name: self.catalogue.node_name(endpoint.node),
            node_state: self.node_state(endpoint.node),
            addresses: spec.addresses.iter().map(IpNet::addr).collect(),
            mac: spec.mac,
            service: spec.service.clone(),
            weight: spec.weight,
            target: spec
                .sandbox()
                .filter(|_| local)
                .map(|sandbox| sandbox.target.clone()),
            ifname: self.ifnames.get(&id).cloned(),
        }
    }

    pub(super) fn node_state(&self, id: weft_types::NodeId) -> NodeState {
        match self.catalogue.node(id).map(|node| node.presence) {
            Some(Presence::Alive | Presence::Unheard) => NodeState::Alive,
            Some(Presence::Suspect) => NodeState::Suspect,
            Some(Presence::Down) if self.away.contains(id) => NodeState::Away,
            Some(Presence::Down) => NodeState::Down,
            Some(Presence::Left) | None => NodeState::Left,
        }
    }
}

fn is_in(endpoint: &EndpointSpec, sandbox: &SandboxSpec) -> bool {
    endpoint
        .sandbox()
        .is_some_and(|other| (other.device, other.inode) == (sandbox.device, sandbox.inode))
}

/// The name asked for, or one made from the target.
fn endpoint_name(request: &ConnectRequest) -> String {
    match &request.name {
        Some(name) => name.clone(),
        None => match request.target.strip_prefix("pid:") {
            Some(pid) => format!("pid-{pid}"),
            None => request.target.rsplit('/').next().unwrap_or_default().to_owned(),
        },
    }
}

fn with_prefix(address: IpAddr, net: IpNet) -> IpNet {
    IpNet::new(address, net.prefix_len()).expect("the prefix length of a subnet of that family")
}
