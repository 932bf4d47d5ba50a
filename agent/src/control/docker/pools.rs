//! Docker's pools and addresses: subnets of networks, and subnets set aside for networks to come.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, time::Instant};

use ipnet::IpNet;
use weft_ipam::Block;
use weft_types::NetworkId;

use super::{
    super::{
        Control, Now, names,
        networks::{first_usable, subnets_space},
        operations::Stop,
        pools::{address, number, unusable},
        records::{NetworkSpec, SpaceKey, SubnetSpec, encode, endpoint_key},
    },
    Lease,
};
use crate::api::ApiError;

/// dockerd asks again, holding what it has, while a pool overlaps routes of its host.
const MAX_SET_ASIDE: usize = 64;

/// `IpamDriver.RequestPool`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPool {
    /// `--ipam-opt weft.network=`, by which the agent itself asks for a network of the cluster.
    pub network: Option<String>,
    pub pool: Option<IpNet>,
    /// `--ip-range`
    pub range: Option<IpNet>,
    pub ipv6: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolGrant {
    pub id: String,
    pub pool: IpNet,
    /// Known already for a network that exists: Docker does not ask for it then.
    pub gateway: Option<IpNet>,
}

/// `IpamDriver.RequestAddress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAddress {
    pub pool: String,
    pub address: Option<IpAddr>,
    pub for_gateway: bool,
    /// The container's name, where Docker tells it.
    pub name: Option<String>,
}

/// What a pool's id says: `NETWORK,SUBNET[,RANGE]`, where the network may be `new`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PoolId {
    network: Option<NetworkId>,
    net: IpNet,
    range: Option<IpNet>,
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network {
            Some(network) => write!(f, "{network},{}", self.net)?,
            None => write!(f, "new,{}", self.net)?,
        }
        self.range.iter().try_for_each(|range| write!(f, ",{range}"))
    }
}

impl FromStr for PoolId {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self, ApiError> {
        let read = || {
            let mut parts = text.split(',');
            let network = match parts.next()? {
                "new" => None,
                id => Some(id.parse().ok()?),
            };
            let net = parts.next()?.parse().ok()?;
            let range = parts.next().map(str::parse).transpose().ok()?;
            parts.next().is_none().then_some(Self { network, net, range })
        };
        read().ok_or_else(|| ApiError::not_found(format!("`{text}` is not a pool of Weft's")))
    }
}

/// A subnet set aside.
pub(super) struct SetAside {
    pub(super) since: Instant,
    pub(super) units: Option<Block>,
    pub(super) range: Option<IpNet>,
}

pub(in super::super) struct PoolTask {
    request: RequestPool,
}

pub(in super::super) struct AddressTask {
    pub(super) pool: PoolId,
    pub(super) request: RequestAddress,
}

/// What a pool's id stands for now.
enum Pool {
    SetAside,
    Subnet(NetworkId, u8, Box<NetworkSpec>),
}

impl Control {
    pub(super) fn pool_task(&self, request: RequestPool) -> Result<PoolTask, ApiError> {
        if let Some(range) = request.range
            && !request.pool.is_some_and(|pool| pool.contains(&range))
        {
            let error = ApiError::invalid(format!(
                "the range {range} is not within the subnet of its network"
            ));
            return Err(error.with_help("give the subnet too: `--subnet CIDR --ip-range CIDR`"));
        }
        if let Some(pool) = request.pool
            && matches!(pool, IpNet::V6(_)) != request.ipv6
        {
            return Err(ApiError::invalid(format!(
                "{pool} is of the other address family"
            )));
        }
        Ok(PoolTask { request })
    }

    pub(super) fn request_pool(&mut self, task: &PoolTask, now: Now) -> Result<PoolGrant, Stop> {
        let RequestPool {
            network,
            pool,
            range,
            ipv6,
        } = &task.request;
        let of_family = |subnet: &&SubnetSpec| matches!(subnet.net, IpNet::V6(_)) == *ipv6;
        if let Some(reference) = network {
            let id = names::network(&self.catalogue, reference)?;
            let spec = self.catalogue.network(id).expect("found by name");
            let subnet = spec
                .subnets
                .iter()
                .find(|subnet| pool.map_or_else(|| of_family(subnet), |pool| subnet.net == pool));
            return match subnet {
                Some(subnet) => Ok(grant_of(id, subnet, *range)),
                None => Err(
                    ApiError::not_found(format!("network `{reference}` has no such subnet"))
                        .with_help(format!("`weft network inspect {reference}` shows those it has"))
                        .into(),
                ),
            };
        }
        if let Some(pool) = *pool {
            let networks = self.catalogue.networks();
            let mut same = networks
                .filter_map(|(id, spec)| Some((id, spec.subnets.iter().find(|subnet| subnet.net == pool)?)));
            match (same.next(), same.next()) {
                (Some((id, subnet)), None) => return Ok(grant_of(id, subnet, *range)),
                (Some(_), Some(_)) => {
                    let error = ApiError::conflict(format!("several networks have the subnet {pool}"));
                    return Err(error
                        .with_help("say which with `--ipam-opt weft.network=NAME -o weft.network=NAME`")
                        .into());
                }
                (None, _) => {}
            }
        }
        self.set_aside(*pool, *range, *ipv6, now)
    }

    fn set_aside(
        &mut self,
        pool: Option<IpNet>,
        range: Option<IpNet>,
        ipv6: bool,
        now: Now,
    ) -> Result<PoolGrant, Stop> {
        if self.docker.set_aside.len() >= MAX_SET_ASIDE {
            let error = ApiError::exhausted(format!(
                "{MAX_SET_ASIDE} subnets are set aside for networks that Docker has not made"
            ));
            return Err(error
                .with_help("does a route of this host cover the default pool? Give a subnet: `--subnet CIDR`")
                .into());
        }
        let pools = self.facts.pools;
        let (net, units) = match pool {
            Some(net) if self.docker.set_aside.contains_key(&net) => return Ok(new_pool(net, range)),
            Some(net) => {
                self.check_subnet("of Docker", false, net, &[])?;
                let units = pools.units_of(net);
                if let Some(units) = units {
                    self.spaces
                        .claim_block(subnets_space(net), units)
                        .map_err(|cause| self.stopped_claim(cause, net))?;
                }
                (net, units)
            }
            None => {
                let space = if ipv6 {
                    SpaceKey::Subnets6
                } else {
                    SpaceKey::Subnets4
                };
                let unit = self
                    .spaces
                    .allocate(space, None, now.instant)
                    .map_err(|cause| self.stopped(cause))?;
                let net = if ipv6 {
                    pools.subnet6(unit)
                } else {
                    pools.subnet4(unit)
                };
                (net, Some(Block::single(unit)))
            }
        };
        let since = now.instant;
        self.docker
            .set_aside
            .insert(net, SetAside { since, units, range });
        Ok(new_pool(net, range))
    }

    /// Only what no network has taken goes back: a network's subnets go with the network.
    pub(super) fn release_pool(&mut self, pool: &str, now: Now) {
        if let Ok(PoolId {
            network: None, net, ..
        }) = pool.parse::<PoolId>()
        {
            self.give_back_pool(net, now);
        }
    }

    pub(super) fn give_back_pool(&mut self, net: IpNet, now: Now) {
        if let Some(SetAside {
            units: Some(units), ..
        }) = self.docker.set_aside.remove(&net)
        {
            self.spaces.release_block(subnets_space(net), units, now.instant);
        }
    }

    fn find_pool(&self, pool: &PoolId) -> Result<Pool, ApiError> {
        let subnet = |id: NetworkId| {
            let spec = self.catalogue.network(id)?;
            let index = spec.subnets.iter().position(|subnet| subnet.net == pool.net)?;
            Some(Pool::Subnet(id, index as u8, Box::new(spec.clone())))
        };
        let found = match pool.network {
            Some(id) => subnet(id),
            None if self.docker.set_aside.contains_key(&pool.net) => Some(Pool::SetAside),
            None => self.docker.networks.values().find_map(|id| subnet(*id)),
        };
        found.ok_or_else(|| no_network(pool.net))
    }

    pub(super) fn request_address(&mut self, task: &AddressTask, now: Now) -> Result<IpNet, Stop> {
        let AddressTask { pool, request } = task;
        let asked = request.address;
        if let Some(asked) = asked.filter(|asked| !pool.net.contains(asked)) {
            let error = ApiError::invalid(format!("{asked} is not in the subnet {}", pool.net));
            return Err(error
                .with_help("give an address of the subnet, or none for a free one")
                .into());
        }
        let with_prefix =
            |address| IpNet::new(address, pool.net.prefix_len()).expect("of that subnet's family");
        let (network, index, spec) = match self.find_pool(pool)? {
            // The gateway and auxiliary addresses, which come again when the network is made.
            Pool::SetAside => {
                let gateway = || request.for_gateway.then(|| first_usable(pool.net));
                let address = asked.or_else(gateway).ok_or_else(|| no_network(pool.net))?;
                if unusable(pool.net).contains(&number(address)) {
                    return Err(ApiError::invalid(format!(
                        "{address} is the network or broadcast address of {}",
                        pool.net
                    ))
                    .into());
                }
                return Ok(with_prefix(address));
            }
            Pool::Subnet(network, index, spec) => (network, index, spec),
        };
        let subnet = &spec.subnets[usize::from(index)];
        if request.for_gateway {
            if asked.is_some_and(|asked| asked != subnet.gateway) {
                let error = ApiError::conflict(format!(
                    "the gateway of network `{}` is {}, on every host",
                    spec.name, subnet.gateway
                ));
                return Err(error.with_help("leave `--gateway` out").into());
            }
            return Ok(with_prefix(subnet.gateway));
        }
        if let Some(asked) = asked.filter(|asked| subnet.aux.iter().any(|(_, aux)| aux == asked)) {
            return Ok(with_prefix(asked));
        }
        let address = self.take(network, index, subnet, pool.range, asked, now)?;
        let lease = Lease {
            since: now.instant,
            leaving: false,
            name: request.name.clone(),
        };
        self.docker.leases.insert((network, address), lease);
        Ok(with_prefix(address))
    }

    /// Takes an address out of this node's share of a subnet.
    pub(super) fn take(
        &mut self,
        network: NetworkId,
        index: u8,
        subnet: &SubnetSpec,
        range: Option<IpNet>,
        asked: Option<IpAddr>,
        now: Now,
    ) -> Result<IpAddr, Stop> {
        let space = SpaceKey::Addresses(network, index);
        let Some(asked) = asked else {
            let taken = self
                .spaces
                .allocate(space, range.or(subnet.range), now.instant)
                .map_err(|cause| self.stopped(cause))?;
            return Ok(address(taken, subnet.net));
        };
        match self.docker.leases.get(&(network, asked)) {
            // Given before; that it was used nobody has told.
            Some(lease) if !lease.leaving => return Ok(asked),
            Some(_) => {
                return Err(ApiError::conflict(format!(
                    "{asked} belongs to a container that is being removed"
                ))
                .with_help("try again in a moment")
                .into());
            }
            None => {}
        }
        self.spaces
            .claim(space, number(asked))
            .map_err(|cause| self.stopped_claim_address(cause, asked, network, subnet))?;
        Ok(asked)
    }

    /// An address that an endpoint still has is taken from it: Docker does so where a container has one of the
    /// families switched off. Without any left Docker has forgotten the endpoint: it was killed and says no more
    /// than this after its restart.
    pub(super) fn release_address(&mut self, pool: &str, address: IpAddr, now: Now) {
        let Ok(Pool::Subnet(network, ..)) = pool.parse().and_then(|pool| self.find_pool(&pool)) else {
            return;
        };
        if self.docker.leases.contains_key(&(network, address)) {
            self.end_lease(network, address, now);
            return;
        }
        let is_it = |net: &IpNet| net.addr() == address;
        let holder = self.local_endpoints().find(|(of, _, endpoint)| {
            *of == network && endpoint.spec.docker().is_some() && endpoint.spec.addresses.iter().any(is_it)
        });
        let Some((_, id, mut spec)) = holder.map(|(of, id, known)| (of, id, known.spec.clone())) else {
            return;
        };
        spec.addresses.retain(|net| !is_it(net));
        if spec.addresses.is_empty() {
            tracing::info!(endpoint = %id.short(), %address, "Docker has forgotten an endpoint: it is removed");
            self.drop_endpoint(network, id, now);
        } else if self
            .publish(endpoint_key(network, id), encode(&spec), now)
            .is_ok()
        {
            self.spaces
                .release_addresses(network, [address].into_iter(), &self.catalogue, now.instant);
        }
    }

    pub(super) fn end_lease(&mut self, network: NetworkId, address: IpAddr, now: Now) {
        self.docker.leases.remove(&(network, address));
        let index = self.catalogue.network(network).and_then(|spec| {
            spec.subnets
                .iter()
                .position(|subnet| subnet.net.contains(&address))
        });
        if let Some(index) = index {
            let space = SpaceKey::Addresses(network, index as u8);
            self.spaces.release(space, number(address), now.instant);
        }
    }

    /// What was set aside for a network that is made now, per subnet.
    pub(super) fn take_set_aside(&mut self, nets: &[IpNet]) -> BTreeMap<IpNet, SetAside> {
        let taken = nets
            .iter()
            .filter_map(|net| Some((*net, self.docker.set_aside.remove(net)?)));
        taken.collect()
    }
}

/// Docker does not say of which driver the network is that it asks for.
fn no_network(net: IpNet) -> ApiError {
    ApiError::not_found(format!(
        "no network of the cluster has the subnet {net} that Docker asks for an address of"
    ))
    .with_help(
        "the network was removed, or is not one of Weft's: the IPAM driver `weft` serves networks of the driver `weft` only \
         (`docker network create -d weft`)",
    )
}

fn grant_of(id: NetworkId, subnet: &SubnetSpec, range: Option<IpNet>) -> PoolGrant {
    let pool = PoolId {
        network: Some(id),
        net: subnet.net,
        range,
    };
    PoolGrant {
        id: pool.to_string(),
        pool: subnet.net,
        gateway: IpNet::new(subnet.gateway, subnet.net.prefix_len()).ok(),
    }
}

fn new_pool(net: IpNet, range: Option<IpNet>) -> PoolGrant {
    let pool = PoolId {
        network: None,
        net,
        range,
    };
    PoolGrant {
        id: pool.to_string(),
        pool: net,
        gateway: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pools_id_says_it_all() {
        for text in [
            "new,10.0.0.0/24",
            "new,fd00::/64,fd00::/112",
            "0101010101010101abababababababab,10.0.0.0/24,10.0.0.128/25",
        ] {
            assert_eq!(text.parse::<PoolId>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "new",
            "new,",
            "x,10.0.0.0/24",
            "new,10.0.0.0/24,,",
            "new,10.0.0.0/33",
        ] {
            assert!(text.parse::<PoolId>().is_err(), "{text}");
        }
    }
}
