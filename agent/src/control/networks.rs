//! Networks: making, showing and removing them.

mod grow;

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use rand::RngExt;
use weft_ipam::Block;
use weft_types::{NetworkId, Vni};

use super::{
    Control, Now, Responder, names,
    operations::{Operation, Stop},
    pools::{block_of, number, unusable},
    records::{NetworkSpec, Register, SpaceKey, SubnetSpec, encode, network_key},
};
use crate::api::{ApiError, types::*};

pub(super) use grow::GrowNetwork;

/// The largest number of networks of a cluster.
pub(crate) const MAX_NETWORKS: usize = 10_000;
/// The largest number of subnets of a network.
pub(crate) const MAX_SUBNETS: usize = 16;

pub(super) struct CreateNetwork {
    /// Its id, and Docker's id of what it is on this host, if Docker makes it.
    docker: Option<(NetworkId, String)>,
    request: NetworkCreateRequest,
    options: NetworkOptions,
    vni: Option<Vni>,
    /// Subnets that are settled, with what they took from the pool.
    subnets: Vec<(IpNet, Option<Block>)>,
}

impl CreateNetwork {
    /// A network that Docker makes, with the subnets that were settled before, which are the first ones of
    /// the request.
    pub(super) fn for_docker(
        id: NetworkId,
        docker: String,
        options: NetworkOptions,
        subnets: Vec<(IpNet, Option<Block>)>,
        request: NetworkCreateRequest,
    ) -> Self {
        Self {
            docker: Some((id, docker)),
            request,
            options,
            vni: None,
            subnets,
        }
    }
}

impl Control {
    pub(super) fn start_create_network(
        &mut self,
        request: NetworkCreateRequest,
        responder: Responder<NetworkSummary>,
        now: Now,
    ) {
        match request
            .check()
            .and_then(|options| self.check_new_network(&request).map(|()| options))
        {
            Ok(options) => {
                let create = CreateNetwork {
                    docker: None,
                    request,
                    options,
                    vni: None,
                    subnets: Vec::new(),
                };
                self.start(Operation::CreateNetwork(create, responder), now);
            }
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    /// What can be refused before anything is taken.
    pub(super) fn check_new_network(&self, request: &NetworkCreateRequest) -> Result<(), ApiError> {
        let name = &request.name;
        if let Some((id, _)) = self.catalogue.networks().find(|(_, spec)| spec.name == *name) {
            return Err(
                ApiError::conflict(format!("there is a network `{name}` already ({})", id.short()))
                    .with_help(format!(
                        "use it, choose another name, or remove it first: `weft network rm {name}`"
                    )),
            );
        }
        if self.catalogue.networks().count() >= MAX_NETWORKS {
            return Err(ApiError::exhausted(format!(
                "the cluster has {MAX_NETWORKS} networks, which is the most"
            )));
        }
        if request.subnets.len() > MAX_SUBNETS {
            return Err(ApiError::invalid(format!(
                "network `{name}` asks for more than {MAX_SUBNETS} subnets"
            )));
        }
        for (index, subnet) in request.subnets.iter().enumerate() {
            self.check_subnet(name, request.allow_overlap, *subnet, &request.subnets[..index])?;
        }
        check_inside(
            request,
            "--ip-range",
            request.ip_ranges.iter().map(|range| (*range, range.to_string())),
        )?;
        let host = |address: &IpAddr| (IpNet::from(*address), address.to_string());
        check_inside(request, "--gateway", request.gateways.iter().map(host))?;
        check_inside(request, "--aux-address", request.aux_addresses.values().map(host))?;
        if let Some(mtu) = self.largest_mtu_exceeded(request)? {
            return Err(ApiError::invalid(format!(
                "network `{name}` cannot have an MTU larger than {mtu} bytes: the underlay carries no more"
            ))
            .with_help("leave `--opt mtu` out, and it is computed"));
        }
        Ok(())
    }

    fn largest_mtu_exceeded(&self, request: &NetworkCreateRequest) -> Result<Option<u16>, ApiError> {
        let encrypted = request.check()?.encrypted.unwrap_or(self.settings.encrypt);
        let largest = self.overlay_mtu(encrypted)?;
        let asked = request.options.get("mtu").and_then(|mtu| mtu.parse::<u16>().ok());
        Ok(asked.filter(|asked| *asked > largest).map(|_| largest))
    }

    /// What fits through the smallest underlay among the nodes.
    fn overlay_mtu(&self, encrypted: bool) -> Result<u16, ApiError> {
        let facts = self.catalogue.nodes().filter_map(|(_, node)| node.fact.as_ref());
        let own = (self.settings.underlay_mtu, self.settings.vtep);
        let (underlay, vtep) = facts
            .map(|fact| (fact.underlay_mtu, fact.vtep))
            .chain([own])
            .min()
            .expect("this node is one");
        let mtu = match encrypted {
            true => weft_overlay::encrypted_mtu(underlay),
            false => weft_overlay::overlay_mtu(underlay, vtep),
        };
        mtu.map_err(|error| ApiError::invalid(error.to_string()))
    }

    pub(super) fn check_subnet(
        &self,
        name: &str,
        allow_overlap: bool,
        subnet: IpNet,
        earlier: &[IpNet],
    ) -> Result<(), ApiError> {
        if subnet.trunc() != subnet {
            return Err(
                ApiError::invalid(format!("`{subnet}` is an address within a subnet, not a subnet"))
                    .with_help(format!("did you mean `--subnet {}`?", subnet.trunc())),
            );
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(ApiError::invalid(format!(
                "subnet {subnet} of network `{name}` is too small for endpoints"
            ))
            .with_help(
                "a subnet needs room for a gateway and one endpoint: at least a /30, or a /126 in IPv6",
            ));
        }
        if subnet.addr().is_loopback() || subnet.addr().is_multicast() || subnet.prefix_len() == 0 {
            return Err(ApiError::invalid(format!(
                "{subnet} cannot be the subnet of a network"
            )));
        }
        if let Some(other) = earlier.iter().find(|other| overlap(**other, subnet)) {
            return Err(ApiError::conflict(format!(
                "the subnets {other} and {subnet} of network `{name}` overlap"
            ))
            .with_help("give subnets that have no address in common"));
        }
        for (id, node) in self.catalogue.nodes() {
            let Some(fact) = &node.fact else { continue };
            if subnet.contains(&fact.vtep) {
                let node = self.catalogue.node_name(id);
                return Err(ApiError::conflict(format!(
                    "subnet {subnet} contains {}, the underlay address of node `{node}`",
                    fact.vtep
                ))
                .with_help(
                    "endpoints could not reach that node; choose another subnet, or none for a free one",
                ));
            }
        }
        if allow_overlap {
            return Ok(());
        }
        for (id, spec) in self.catalogue.networks() {
            if let Some(other) = spec.subnets.iter().find(|other| overlap(other.net, subnet)) {
                let network = self.catalogue.display_name(id).unwrap_or_default();
                return Err(ApiError::conflict(format!(
                    "subnet {subnet} overlaps {} of network `{network}`",
                    other.net
                ))
                .with_help(
                    "choose another subnet, or none for a free one; \
                     with --allow-overlap both exist, and no namespace can be on both",
                ));
            }
        }
        Ok(())
    }

    pub(super) fn create_network(
        &mut self,
        create: &mut CreateNetwork,
        now: Now,
    ) -> Result<NetworkSummary, Stop> {
        // Others may have been faster while this one was parked.
        self.check_new_network(&create.request)?;
        if create.vni.is_none() {
            let taken = self
                .spaces
                .allocate(SpaceKey::Vnis, None, now.instant)
                .map_err(|cause| self.stopped(cause))?;
            let vni = Vni::try_from(taken as u32).expect("the space of VNIs has only VNIs");
            create.vni = Some(vni);
        }
        self.settle_subnets(create, now)?;
        let subnets = self.describe_subnets(create)?;
        let request = &create.request;
        let id = match &create.docker {
            Some((id, _)) => *id,
            None => NetworkId(self.rng.random()),
        };
        let lamport = self.catalogue.next_lamport(self.me);
        let encrypted = create.options.encrypted.unwrap_or(self.settings.encrypt);
        let spec = NetworkSpec {
            name: request.name.clone(),
            created: lamport,
            created_millis: now.unix_millis,
            creator: self.me,
            vni: create.vni.expect("taken above"),
            mtu: create
                .options
                .mtu
                .map_or_else(|| self.overlay_mtu(encrypted), Ok)?,
            subnets,
            internal: request.internal,
            labels: request.labels.clone().into_iter().collect(),
            options: request.options.clone().into_iter().collect(),
            encrypted,
        };
        let register = Register {
            lamport,
            removed: false,
            value: spec,
        };
        self.publish(network_key(id), encode(&register), now)?;
        if let Some((_, docker)) = &create.docker {
            self.bind(docker, id);
        }
        Ok(self.network_summary(id, &register.value))
    }

    /// Takes what is still missing: explicit subnets out of the pool if they lie in it, else a free one.
    fn settle_subnets(&mut self, create: &mut CreateNetwork, now: Now) -> Result<(), Stop> {
        let explicit: Vec<_> = create
            .request
            .subnets
            .iter()
            .skip(create.subnets.len())
            .copied()
            .collect();
        for subnet in explicit {
            let units = self.claim_subnet(subnet, create.request.allow_overlap)?;
            create.subnets.push((subnet, units));
        }
        let pools = self.facts.pools;
        let has = |subnets: &[(IpNet, Option<Block>)], v4: bool| {
            subnets
                .iter()
                .any(|(subnet, _)| matches!(subnet, IpNet::V4(_)) == v4)
        };
        if create.request.subnets.is_empty() && !has(&create.subnets, true) {
            let unit = self
                .spaces
                .allocate(SpaceKey::Subnets4, None, now.instant)
                .map_err(|cause| self.stopped(cause))?;
            create
                .subnets
                .push((pools.subnet4(unit), Some(Block::single(unit))));
        }
        if create.request.ipv6 && !has(&create.subnets, false) {
            let unit = self
                .spaces
                .allocate(SpaceKey::Subnets6, None, now.instant)
                .map_err(|cause| self.stopped(cause))?;
            create
                .subnets
                .push((pools.subnet6(unit), Some(Block::single(unit))));
        }
        Ok(())
    }

    /// Takes a subnet out of the pool if it lies in it; says what it took.
    fn claim_subnet(&mut self, subnet: IpNet, allow_overlap: bool) -> Result<Option<Block>, Stop> {
        let units = self.facts.pools.units_of(subnet).filter(|_| !allow_overlap);
        if let Some(units) = units {
            self.spaces
                .claim_block(subnets_space(subnet), units)
                .map_err(|cause| self.stopped_claim(cause, subnet))?;
        }
        Ok(units)
    }

    fn describe_subnets(&self, create: &CreateNetwork) -> Result<Vec<SubnetSpec>, ApiError> {
        let request = &create.request;
        let mut subnets = Vec::new();
        for (net, pooled) in &create.subnets {
            let asked = request
                .gateways
                .iter()
                .find(|gateway| net.contains(*gateway))
                .copied();
            let gateway = asked.unwrap_or_else(|| first_usable(*net));
            if unusable(*net).contains(&number(gateway)) {
                return Err(ApiError::invalid(format!(
                    "gateway {gateway} is the network or broadcast address of {net}"
                ))
                .with_help(format!("leave it out to get {}", first_usable(*net))));
            }
            let aux: Vec<_> = request
                .aux_addresses
                .iter()
                .filter(|(_, address)| net.contains(*address))
                .map(|(name, address)| (name.clone(), *address))
                .collect();
            if let Some((name, address)) = aux.iter().find(|(_, address)| *address == gateway) {
                return Err(
                    ApiError::conflict(format!("{address} is both the gateway and `{name}`"))
                        .with_help("give the gateway or the auxiliary address another address"),
                );
            }
            let range = request
                .ip_ranges
                .iter()
                .find(|range| net.contains(*range))
                .copied();
            subnets.push(SubnetSpec {
                net: *net,
                gateway,
                range,
                aux,
                pooled: *pooled,
            });
        }
        Ok(subnets)
    }

    pub(super) fn abandon_network(&mut self, create: CreateNetwork, now: Now) {
        if let Some(vni) = create.vni {
            self.spaces.release(SpaceKey::Vnis, vni.get().into(), now.instant);
        }
        self.release_subnets(create.subnets, now);
    }

    /// Gives back what was taken from the pool.
    fn release_subnets(&mut self, subnets: Vec<(IpNet, Option<Block>)>, now: Now) {
        for (subnet, pooled) in subnets {
            if let Some(units) = pooled {
                self.spaces
                    .release_block(subnets_space(subnet), units, now.instant);
            }
        }
    }

    pub(super) fn remove_network(
        &mut self,
        reference: &str,
        now: Now,
    ) -> Result<NetworkRemoveResponse, ApiError> {
        let id = names::network(&self.catalogue, reference)?;
        let name = self.catalogue.display_name(id).expect("found by name");
        let users: Vec<_> = self
            .catalogue
            .endpoints(id)
            .filter(|(_, endpoint)| self.node_state(endpoint.node) != NodeState::Left)
            .map(|(_, endpoint)| {
                format!(
                    "`{}` on {}",
                    endpoint.spec.name,
                    self.catalogue.node_name(endpoint.node)
                )
            })
            .collect();
        if !users.is_empty() {
            let shown = users.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = if users.len() > 5 {
                format!(" and {} more", users.len() - 5)
            } else {
                String::new()
            };
            return Err(ApiError::conflict(format!(
                "network `{name}` is in use by {} endpoint(s): {shown}{more}; it was not removed",
                users.len()
            ))
            .with_help(format!(
                "disconnect them first: `weft network disconnect {name} TARGET` on their nodes"
            )));
        }
        self.check_unused_elsewhere(id, &name)?;
        let services: Vec<_> = self
            .catalogue
            .services(id)
            .map(|(id, spec)| (id, spec.name.clone()))
            .collect();
        if !services.is_empty() {
            let shown = services
                .iter()
                .map(|(_, name)| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ");
            return Err(ApiError::conflict(format!(
                "network `{name}` has the services {shown}; it was not removed"
            ))
            .with_help("remove them first: `weft service rm NAME`"));
        }
        let value = self.catalogue.network(id).expect("found by name").clone();
        let register = Register {
            lamport: self.catalogue.lamport_for(&network_key(id)),
            removed: true,
            value,
        };
        self.publish(network_key(id), encode(&register), now)?;
        Ok(NetworkRemoveResponse { id, name })
    }

    /// Of a network that nobody who knows about it could be asked about, it is still known who uses it.
    fn check_unused_elsewhere(&self, id: NetworkId, name: &str) -> Result<(), ApiError> {
        if self.knows_network(id) {
            return Ok(());
        }
        let users = self.catalogue.users(id);
        let users = users.filter(|node| self.node_state(*node) != NodeState::Left);
        let users: Vec<_> = users
            .map(|node| format!("`{}`", self.catalogue.node_name(node)))
            .collect();
        if users.is_empty() {
            return Ok(());
        }
        let users = users.join(", ");
        Err(ApiError::conflict(format!(
            "network `{name}` is in use on {users}, and nobody answers who knows its endpoints; it was not removed"
        ))
        .with_help(
            "`weft node ls` shows which nodes can be reached; try again when one of them can, or remove those that are gone for \
             good with `weft node rm`",
        ))
    }

    pub(super) fn network_summary(&self, id: NetworkId, spec: &NetworkSpec) -> NetworkSummary {
        NetworkSummary {
            id,
            name: self
                .catalogue
                .display_name(id)
                .unwrap_or_else(|| spec.name.clone()),
            driver: DRIVER_OVERLAY.to_owned(),
            vni: spec.vni,
            mtu: spec.mtu,
            subnets: spec.subnets.iter().map(show_subnet).collect(),
            ipv6: spec
                .subnets
                .iter()
                .any(|subnet| matches!(subnet.net, IpNet::V6(_))),
            internal: spec.internal,
            encrypted: spec.encrypted,
            endpoint_count: self.catalogue.endpoints(id).count() as u32,
        }
    }

    pub(super) fn network_detail(&self, reference: &str, now: Now) -> Result<NetworkDetail, ApiError> {
        let id = names::network(&self.catalogue, reference)?;
        let spec = self.catalogue.network(id).expect("found by name");
        Ok(NetworkDetail {
            summary: self.network_summary(id, spec),
            options: spec.options.iter().cloned().collect(),
            labels: spec.labels.iter().cloned().collect(),
            created_by: spec.creator,
            created: crate::api::Timestamp::from_unix_millis(spec.created_millis),
            endpoints: self
                .catalogue
                .endpoints(id)
                .map(|(endpoint_id, endpoint)| self.show_endpoint(id, endpoint_id, endpoint))
                .collect(),
            services: self
                .catalogue
                .services(id)
                .map(|(id, spec)| self.service_summary(id, spec))
                .collect(),
            shares: self.network_shares(id, spec),
            encryption: self.encryption(Some(id), now),
        })
    }

    pub(super) fn network_shares(&self, id: NetworkId, spec: &NetworkSpec) -> Vec<AddressShare> {
        let used = self.used_addresses(id);
        let mut shares = Vec::new();
        for (index, subnet) in spec.subnets.iter().enumerate() {
            let owned = self.spaces.shares(SpaceKey::Addresses(id, index as u8));
            for (node_id, owned) in owned {
                let used = used
                    .get(&node_id)
                    .into_iter()
                    .flatten()
                    .filter(|address| subnet.net.contains(*address));
                shares.push(AddressShare {
                    node_id,
                    node_name: self.catalogue.node_name(node_id),
                    subnet: subnet.net,
                    owned: owned.try_into().unwrap_or(u64::MAX),
                    used: used.count() as u64,
                });
            }
        }
        shares
    }

    /// The addresses in use on a network by the node that gave them: endpoints and service VIPs.
    pub(super) fn used_addresses(&self, id: NetworkId) -> BTreeMap<weft_types::NodeId, Vec<IpAddr>> {
        let mut used: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
        for (_, endpoint) in self.catalogue.endpoints(id) {
            used.entry(endpoint.node)
                .or_default()
                .extend(endpoint.spec.addresses.iter().map(IpNet::addr));
        }
        for (_, spec) in self.catalogue.services(id) {
            used.entry(spec.vips_from).or_default().extend(&spec.vips);
        }
        for (node, ingress) in self.catalogue.ingresses(id) {
            used.entry(node)
                .or_default()
                .extend(ingress.addresses.iter().map(IpNet::addr));
        }
        used
    }
}

fn show_subnet(spec: &SubnetSpec) -> Subnet {
    Subnet {
        subnet: spec.net,
        gateway: spec.gateway,
        ip_range: spec.range,
        aux_addresses: spec.aux.iter().cloned().collect(),
    }
}

pub(super) fn subnets_space(subnet: IpNet) -> SpaceKey {
    match subnet {
        IpNet::V4(_) => SpaceKey::Subnets4,
        IpNet::V6(_) => SpaceKey::Subnets6,
    }
}

pub(super) fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

pub(super) fn first_usable(net: IpNet) -> IpAddr {
    let skip = unusable(net).len().min(1) as u128;
    super::pools::address(block_of(net).first() + skip, net)
}

/// Refuses what lies in none of the subnets that were asked for.
fn check_inside(
    request: &NetworkCreateRequest,
    flag: &str,
    parts: impl Iterator<Item = (IpNet, String)>,
) -> Result<(), ApiError> {
    let mut seen: Vec<IpNet> = Vec::new();
    for (part, text) in parts {
        let Some(subnet) = request.subnets.iter().find(|subnet| subnet.contains(&part)) else {
            let subnets: Vec<_> = request.subnets.iter().map(IpNet::to_string).collect();
            let error = ApiError::invalid(format!(
                "`{flag} {text}` is in no subnet of network `{}`",
                request.name
            ));
            return Err(error.with_help(match subnets.as_slice() {
                [] => "give the subnet it belongs to with --subnet".to_owned(),
                subnets => format!("its subnets are {}", subnets.join(", ")),
            }));
        };
        if flag != "--aux-address" && seen.contains(subnet) {
            return Err(ApiError::invalid(format!(
                "subnet {subnet} has more than one `{flag}`"
            )));
        }
        seen.push(*subnet);
    }
    Ok(())
}
