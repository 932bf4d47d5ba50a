//! Docker's endpoints: the interface is made here, and moved to its container and set up by Docker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand::RngExt;
use weft_gossip::MAX_VALUE;
use weft_types::{EndpointId, Mac, NetworkId};

use super::{
    super::{
        Control, HostReport, Now, Responder,
        endpoints::MAX_ALIASES,
        finding::{EndpointHealth, Finding, HealthState},
        operations::Stop,
        records::{Attachment, DockerSpec, EndpointSpec, JoinedSpec, SandboxSpec, encode, endpoint_key},
        views::{DNS_V4, DNS_V6},
    },
    Lease,
};
use crate::api::{ApiError, types::check_name};

/// The networks of one container that lead to the DNS addresses; through more of them nothing is asked.
const MAX_DNS_BITS: u8 = 8;

/// `NetworkDriver.CreateEndpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateEndpoint {
    /// Docker's id of the network on this host.
    pub network: String,
    pub id: EndpointId,
    pub addresses: Vec<IpNet>,
    pub mac: Option<Mac>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointGrant {
    pub mac: Mac,
}

/// `NetworkDriver.Join`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    pub id: EndpointId,
    /// Docker's name for the container's namespace.
    pub sandbox: String,
    /// Whether ports of the container are published by Docker.
    pub publishes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinGrant {
    /// The interface to move to the container.
    pub ifname: String,
    /// What is on-link through it besides its subnets.
    pub on_link: Vec<IpNet>,
    /// The way out. Without one Docker connects the container to a bridge of its own as well, by which it publishes ports too.
    pub gateways: Vec<IpAddr>,
}

/// What Docker knows of a container that its driver is not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub id: EndpointId,
    /// The container's name.
    pub name: String,
    /// What else it is called, on this network.
    pub aliases: Vec<String>,
    pub service: Option<String>,
    pub weight: u16,
    pub sandbox: Option<SandboxSpec>,
    /// Whether it was told to stop.
    pub leaving: bool,
    /// What Docker's own health check says, where the container has one.
    pub health: Option<HealthState>,
    /// Whether it is from before the container ran: it is taken only until something is known since.
    pub is_early: bool,
}

pub(in super::super) struct EndpointTask {
    network: NetworkId,
    request: CreateEndpoint,
    /// Addresses that it claimed because no lease was known.
    claimed: Vec<IpAddr>,
}

impl Control {
    pub(super) fn endpoint_task(&self, request: CreateEndpoint) -> Result<EndpointTask, ApiError> {
        let network = self.docker.networks.get(&request.network).copied();
        let network = network.filter(|id| self.catalogue.network(*id).is_some());
        let network = network.ok_or_else(|| {
            let short = request.network.get(..12).unwrap_or(&request.network);
            ApiError::not_found(format!(
                "network {short} of Docker's is no network of the cluster: it was removed on another host, \
                 or the agent's state was lost"
            ))
            .with_help("remove it: `docker network rm NETWORK`")
        })?;
        if request.addresses.is_empty() {
            return Err(ApiError::invalid("Docker gives the endpoint no address")
                .with_help("make the network with `--ipam-driver weft`: addresses come from the cluster"));
        }
        if request.mac.is_some_and(|mac| !mac.is_unicast()) {
            return Err(ApiError::invalid(
                "the MAC address of an endpoint is a unicast address",
            ));
        }
        Ok(EndpointTask {
            network,
            request,
            claimed: Vec::new(),
        })
    }

    pub(super) fn create_endpoint(
        &mut self,
        task: &mut EndpointTask,
        now: Now,
    ) -> Result<EndpointGrant, Stop> {
        let (network, id) = (task.network, task.request.id);
        let Some(spec) = self.catalogue.network(network).cloned() else {
            return Err(ApiError::not_found("the network was removed meanwhile").into());
        };
        if let Some(known) = self.catalogue.endpoint(network, id) {
            return Ok(EndpointGrant { mac: known.spec.mac });
        }
        let wanted = task.request.mac;
        let same_mac =
            |other: &super::super::catalogue::Endpoint| wanted.is_some_and(|mac| mac == other.spec.mac);
        if let Some((_, other)) = self
            .catalogue
            .endpoints(network)
            .find(|(_, other)| same_mac(other))
        {
            let name = &other.spec.name;
            return Err(
                ApiError::conflict(format!("{} is the MAC address of `{name}`", other.spec.mac))
                    .with_help("leave `--mac-address` out for a random one")
                    .into(),
            );
        }
        for net in task.request.addresses.clone() {
            let address = net.addr();
            if task.claimed.contains(&address) || self.docker.leases.contains_key(&(network, address)) {
                continue;
            }
            let index = spec.subnets.iter().position(|subnet| subnet.net == net.trunc());
            let index = index.ok_or_else(|| {
                ApiError::invalid(format!("{net} is not an address of network `{}`", spec.name))
            })?;
            self.take(
                network,
                index as u8,
                &spec.subnets[index],
                None,
                Some(address),
                now,
            )?;
            task.claimed.push(address);
            let lease = Lease {
                since: now.instant,
                leaving: false,
                name: None,
            };
            self.docker.leases.insert((network, address), lease);
        }
        let addresses = &task.request.addresses;
        let lease = |net: &IpNet| self.docker.leases.get(&(network, net.addr()));
        if let Some(net) = addresses
            .iter()
            .find(|net| lease(net).is_some_and(|lease| lease.leaving))
        {
            return Err(ApiError::conflict(format!(
                "{} belongs to a container that is being removed",
                net.addr()
            ))
            .with_help("try again in a moment")
            .into());
        }
        let told = addresses.iter().find_map(|net| lease(net)?.name.clone());
        let endpoint = EndpointSpec {
            name: self.endpoint_name(network, id, told),
            aliases: Vec::new(),
            mac: wanted.unwrap_or_else(|| Mac::from_random(self.rng.random())),
            addresses: addresses.clone(),
            service: None,
            weight: 1,
            gives_default_route: false,
            attachment: Attachment::Docker(DockerSpec {
                ifname: interface_name(id),
                ..DockerSpec::default()
            }),
            health: EndpointHealth::default(),
            leaving: false,
        };
        self.publish(endpoint_key(network, id), encode(&endpoint), now)?;
        for net in &endpoint.addresses {
            self.docker.leases.remove(&(network, net.addr()));
        }
        Ok(EndpointGrant { mac: endpoint.mac })
    }

    pub(super) fn docker_endpoints(&self) -> Vec<EndpointId> {
        let all = self.local_endpoints();
        all.filter(|(_, _, known)| known.spec.docker().is_some())
            .map(|(_, id, _)| id)
            .collect()
    }

    /// Removes an endpoint that no container has, whatever Docker thinks: nothing is to be released by it.
    pub(super) fn collect_endpoint(&mut self, id: EndpointId, now: Now) {
        self.docker.joining.remove(&id);
        if let Some((network, _, _)) = self.docker_endpoint(id) {
            self.drop_endpoint(network, id, now);
        }
    }

    /// Takes over what a container is called and what it serves. A name that is taken on this network, by a
    /// container on another host say, becomes one more alias.
    pub(super) fn describe_endpoint(&mut self, description: Description, now: Now) -> Result<(), ApiError> {
        let Some((network, known, mut docker)) = self.docker_endpoint(description.id) else {
            return Ok(());
        };
        if description.is_early && docker.sandbox.is_some() {
            return Ok(());
        }
        let is_taken = self
            .catalogue
            .endpoints(network)
            .any(|(id, other)| id != description.id && other.spec.name == description.name);
        let name = match check_name("an endpoint", &description.name) {
            Ok(()) if !is_taken => description.name.clone(),
            _ => format!("docker-{}", description.id.short()),
        };
        let mut aliases: Vec<String> = Vec::new();
        for alias in [description.name].into_iter().chain(description.aliases) {
            let is_new = alias != name && !aliases.contains(&alias) && aliases.len() < MAX_ALIASES;
            if is_new && check_name("an endpoint", &alias).is_ok() {
                aliases.push(alias);
            }
        }
        docker.sandbox = description.sandbox.or(docker.sandbox);
        let mut health = known.health.clone();
        if known.service != description.service {
            health.check = self.first_finding(network, description.service.as_deref(), now);
        }
        if health.engine.as_ref().map(|engine| engine.state) != description.health {
            let says = |state| Finding::new(state, engine_reason(state), now.unix_millis);
            health.engine = description.health.map(says);
        }
        let mut described = EndpointSpec {
            name,
            aliases,
            service: description.service,
            weight: description.weight,
            attachment: Attachment::Docker(docker),
            health,
            // Who has begun to leave does not come back.
            leaving: known.leaving || description.leaving,
            ..known.clone()
        };
        while described.longest() > MAX_VALUE
            && let Some(alias) = described.aliases.pop()
        {
            tracing::warn!(endpoint = %description.id.short(), alias, "an alias is left out: a container has too many long ones");
        }
        if described != known {
            self.publish(endpoint_key(network, description.id), encode(&described), now)?;
        }
        Ok(())
    }

    /// The container's name if it is known, fit and free; else one made from the endpoint's id.
    fn endpoint_name(&self, network: NetworkId, id: EndpointId, told: Option<String>) -> String {
        let told = told.filter(|name| check_name("an endpoint", name).is_ok());
        let is_free = |name: &String| {
            self.catalogue
                .endpoints(network)
                .all(|(_, other)| other.spec.name != *name)
        };
        told.filter(is_free)
            .unwrap_or_else(|| format!("docker-{}", id.short()))
    }

    fn docker_endpoint(&self, id: EndpointId) -> Option<(NetworkId, EndpointSpec, DockerSpec)> {
        let (network, _, known) = self.local_endpoints().find(|(_, known, _)| *known == id)?;
        let docker = known.spec.docker()?.clone();
        Some((network, known.spec.clone(), docker))
    }

    pub(super) fn join_container(&mut self, request: Join, to: Responder<JoinGrant>, now: Now) {
        match self.joined_container(&request, now) {
            // The kernel may be done before Docker asks.
            Ok(grant) if self.ifnames.contains_key(&request.id) => self.answer_join(grant, to),
            Ok(grant) => {
                self.host_changed();
                self.docker.joining.insert(request.id, (grant, to));
            }
            Err(error) => self.reply(to, Err(error)),
        }
    }

    /// Where dockerd drops what we send, or nobody knows, its own way out is the one that works.
    fn answer_join(&mut self, mut grant: JoinGrant, to: Responder<JoinGrant>) {
        if !self.docker.lets_out {
            grant.gateways.clear();
        }
        self.reply(to, Ok(grant));
    }

    fn joined_container(&mut self, request: &Join, now: Now) -> Result<JoinGrant, ApiError> {
        let (network, mut endpoint, mut docker) = self.docker_endpoint(request.id).ok_or_else(|| {
            ApiError::not_found(format!(
                "there is no endpoint {} on this node",
                request.id.short()
            ))
        })?;
        let dns_bits = match docker
            .joined
            .as_ref()
            .filter(|joined| joined.key == request.sandbox)
        {
            Some(joined) => joined.dns_bits,
            None => self.free_dns_bits(&request.sandbox),
        };
        let joined = JoinedSpec {
            key: request.sandbox.clone(),
            dns_bits,
        };
        let addresses = &endpoint.addresses;
        let spec = self.catalogue.network(network);
        let gives = spec.filter(|spec| !spec.internal && !request.publishes);
        let gateways = gives.into_iter().flat_map(|spec| spec.gateways(addresses));
        let others = spec.into_iter().flat_map(|spec| spec.other_subnets(addresses));
        let grant = JoinGrant {
            ifname: docker.ifname.clone(),
            on_link: dns_routes(addresses, dns_bits)
                .into_iter()
                .chain(others)
                .collect(),
            gateways: gateways.collect(),
        };
        if docker.joined.as_ref() != Some(&joined) {
            docker.joined = Some(joined);
            endpoint.leaving = false;
            docker.sandbox = None;
            endpoint.attachment = Attachment::Docker(docker);
            self.publish(endpoint_key(network, request.id), encode(&endpoint), now)?;
        }
        Ok(grant)
    }

    fn free_dns_bits(&self, sandbox: &str) -> Option<u8> {
        let taken: Vec<u8> = self
            .local_endpoints()
            .filter_map(|(_, _, endpoint)| endpoint.spec.docker()?.joined.as_ref())
            .filter(|joined| joined.key == sandbox)
            .filter_map(|joined| joined.dns_bits)
            .collect();
        (0..=MAX_DNS_BITS).find(|bits| !taken.contains(bits))
    }

    /// Whoever takes a running container off a network waits until nothing is open to it any more, for a while. One
    /// that was told to stop gets no new connections already, and nobody can be made to wait for the open ones.
    pub(super) fn drain_container(&mut self, id: EndpointId, to: Responder<()>, now: Now) {
        match self.docker_endpoint(id) {
            Some((network, spec, docker))
                if docker.joined.is_some() && spec.service.is_some() && !spec.leaving =>
            {
                self.docker.joining.remove(&id);
                self.drain_and_leave(network, id, to, now);
            }
            _ => {
                let result = self.leave_container(id, now);
                self.reply(to, result);
            }
        }
    }

    pub(in super::super) fn leave_container(&mut self, id: EndpointId, now: Now) -> Result<(), ApiError> {
        self.docker.joining.remove(&id);
        let Some((network, mut endpoint, docker)) = self.docker_endpoint(id) else {
            return Ok(());
        };
        if docker.joined.is_some() {
            endpoint.attachment = Attachment::Docker(DockerSpec {
                ifname: docker.ifname,
                ..DockerSpec::default()
            });
            self.publish(endpoint_key(network, id), encode(&endpoint), now)?;
        }
        Ok(())
    }

    /// Its addresses stay taken until Docker releases them, which it does next.
    pub(super) fn delete_docker_endpoint(&mut self, id: EndpointId, now: Now) {
        self.docker.joining.remove(&id);
        let Some((network, endpoint, _)) = self.docker_endpoint(id) else {
            return;
        };
        self.forget_endpoint(network, id, now);
        for net in endpoint.addresses {
            let lease = Lease {
                since: now.instant,
                leaving: true,
                name: None,
            };
            self.docker.leases.insert((network, net.addr()), lease);
        }
    }

    /// Answers those who wait for an interface that is there now, or cannot be made.
    pub(in super::super) fn containers_attached(&mut self, report: &HostReport) {
        self.docker.lets_out = report.docker_lets_out;
        for id in report.attached.keys() {
            if let Some((grant, to)) = self.docker.joining.remove(id) {
                self.answer_join(grant, to);
            }
        }
        for (id, reason) in &report.failed {
            if let Some((grant, to)) = self.docker.joining.remove(id) {
                let error = ApiError::internal(format!(
                    "the interface {} of endpoint {} could not be made: {reason}",
                    grant.ifname,
                    id.short()
                ));
                self.reply(to, Err(error));
            }
        }
    }
}

fn engine_reason(state: HealthState) -> &'static str {
    match state {
        HealthState::Healthy => "",
        HealthState::Starting => "Docker's health check has not passed yet",
        HealthState::Unhealthy => "Docker's health check fails",
    }
}

/// What an interface is called until Docker gives it its name; at most 15 characters.
fn interface_name(id: EndpointId) -> String {
    format!("wf{}", id.short())
}

/// The DNS addresses of the families that an endpoint has, as prefixes with `bits` free bits.
fn dns_routes(addresses: &[IpNet], bits: Option<u8>) -> Vec<IpNet> {
    let Some(bits) = bits else { return Vec::new() };
    let v4 = |address: Ipv4Addr| Ipv4Net::new(address, 32 - bits).map(|net| IpNet::V4(net.trunc()));
    let v6 = |address: Ipv6Addr| Ipv6Net::new(address, 128 - bits).map(|net| IpNet::V6(net.trunc()));
    let has = |ipv4: bool| addresses.iter().any(|net| net.addr().is_ipv4() == ipv4);
    let v4 = has(true).then(|| v4(DNS_V4).expect("few bits"));
    let v6 = has(false).then(|| v6(DNS_V6).expect("few bits"));
    v4.into_iter().chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_of_a_container_lead_to_the_dns_addresses_by_different_prefixes() {
        let addresses = ["10.0.0.2/24".parse().unwrap(), "fd01::2/64".parse().unwrap()];
        let routes = |bits| {
            let routes = dns_routes(&addresses, bits);
            routes.iter().map(IpNet::to_string).collect::<Vec<_>>()
        };
        assert_eq!(routes(Some(0)), ["169.254.53.53/32", "fd00:53::53/128"]);
        assert_eq!(routes(Some(3)), ["169.254.53.48/29", "fd00:53::50/125"]);
        assert_eq!(routes(None), [""; 0]);
        assert_eq!(dns_routes(&addresses[..1], Some(0)).len(), 1);
    }
}
