//! Every space of numbers this node knows, and the negotiations for more of them.

mod quests;

use std::{collections::BTreeMap, time::Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_gossip::Record;
use weft_ipam::{AllocateError, Block, ClaimError, Conflict, Grant, Merged, Space, Want};
use weft_types::{NetworkId, NodeId, ServiceId};

use self::quests::Quest;
pub(super) use self::quests::Wire;
use super::{
    ClusterFacts,
    catalogue::Catalogue,
    pools::{self, block_of, number, unusable},
    records::{EndpointSpec, GrantFact, Kind, NetworkSpec, SpaceKey, decode, grant_block, grant_key},
};

/// What is durable of a space beside the records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kept {
    /// A grant to this node that came in a message, before its record did.
    Grant(Grant<NodeId>),
    /// Two grants that cannot both be true; the block stays in quarantine.
    Conflict(Conflict<NodeId>),
}

pub(super) struct Spaces {
    me: NodeId,
    seed: u64,
    spaces: BTreeMap<SpaceKey, Space<NodeId>>,
    quests: BTreeMap<SpaceKey, Quest>,
    lean_until: BTreeMap<SpaceKey, Instant>,
    /// VIPs that this node has in use, by service: what to give back when the service changes.
    vips: BTreeMap<ServiceId, (NetworkId, Vec<std::net::IpAddr>)>,
    next_request: u64,
    stopped: bool,
    /// Conflicts to make durable, and sentences to show.
    conflicts: Vec<(SpaceKey, Conflict<NodeId>)>,
    complaints: Vec<String>,
}

impl Spaces {
    pub(super) fn new(me: NodeId, facts: &ClusterFacts, seed: u64) -> Self {
        let cluster = [
            (SpaceKey::Subnets4, facts.pools.units4()),
            (SpaceKey::Subnets6, facts.pools.units6()),
            (SpaceKey::Vnis, pools::vnis()),
        ];
        let spaces = cluster.map(|(key, universe)| (key, Space::new(me, universe, facts.founder, seed)));
        Self {
            me,
            seed,
            spaces: spaces.into(),
            quests: BTreeMap::new(),
            lean_until: BTreeMap::new(),
            vips: BTreeMap::new(),
            // Distinct from the requests of an earlier start.
            next_request: seed,
            stopped: false,
            conflicts: Vec::new(),
            complaints: Vec::new(),
        }
    }

    /// After a start: takes in what was durable, and then everything this node has in use.
    pub(super) fn restore<'a>(
        &mut self,
        catalogue: &Catalogue,
        records: impl Iterator<Item = &'a Record> + Clone,
        kept: Vec<(SpaceKey, Kept)>,
    ) {
        for (id, spec) in catalogue.networks() {
            self.make_spaces(id, spec);
        }
        let mut durable: BTreeMap<SpaceKey, (Vec<_>, Vec<_>)> = BTreeMap::new();
        for (key, grant) in records.filter_map(grant_of) {
            durable.entry(key).or_default().0.push(grant);
        }
        for (key, kept) in kept {
            let (grants, conflicts) = durable.entry(key).or_default();
            match kept {
                Kept::Grant(grant) => grants.push(grant),
                Kept::Conflict(conflict) => conflicts.push(conflict),
            }
        }
        for (key, (grants, conflicts)) in durable {
            let Some(space) = self.spaces.get_mut(&key) else {
                continue;
            };
            self.complaints
                .extend(conflicts.iter().map(|conflict| complain(key, conflict)));
            for reason in space.load(grants, conflicts) {
                tracing::warn!(?key, %reason, "a stored grant that no node can have written");
            }
        }
        for (id, spec) in catalogue.networks() {
            self.restore_network(id, spec, catalogue);
        }
        for (id, service) in catalogue.all_services() {
            if service.vips_from == self.me && !service.vips.is_empty() {
                self.vips.insert(id, (service.network, service.vips.clone()));
            }
        }
    }

    fn restore_network(&mut self, id: NetworkId, spec: &NetworkSpec, catalogue: &Catalogue) {
        let mut used = Vec::new();
        if spec.creator == self.me {
            used.push((SpaceKey::Vnis, Block::single(spec.vni.get().into())));
            let pooled = spec
                .subnets
                .iter()
                .filter_map(|subnet| Some((subnet.net, subnet.pooled?)));
            used.extend(pooled.map(|(net, units)| (super::networks::subnets_space(net), units)));
        }
        let endpoints = catalogue
            .endpoints(id)
            .filter(|(_, endpoint)| endpoint.node == self.me);
        let addresses = endpoints.flat_map(|(_, endpoint)| endpoint.spec.addresses.iter().map(IpNet::addr));
        let services = catalogue
            .services(id)
            .filter(|(_, service)| service.vips_from == self.me);
        let vips = services.flat_map(|(_, service)| service.vips.iter().copied());
        let ingress = catalogue.ingress(id, self.me).into_iter();
        let ingress = ingress.flat_map(|ingress| ingress.addresses.iter().map(IpNet::addr));
        for address in addresses.chain(vips).chain(ingress) {
            if let Some(key) = address_space(id, spec, address) {
                used.push((key, Block::single(number(address))));
            }
        }
        for (key, block) in used {
            let Some(space) = self.spaces.get_mut(&key) else {
                continue;
            };
            match space.restore(block) {
                // What this node has just taken for a network of its own making.
                Ok(()) | Err(ClaimError::InUse { .. }) => {}
                Err(error) => self.complaints.push(format!(
                    "{} is in use on this node, but {error}",
                    show(key, block.first(), spec)
                )),
            }
        }
    }

    fn make_spaces(&mut self, id: NetworkId, spec: &NetworkSpec) {
        for (index, subnet) in spec.subnets.iter().enumerate() {
            let key = SpaceKey::Addresses(id, index as u8);
            let mut space = Space::new(self.me, block_of(subnet.net), spec.creator, self.seed);
            let kept = subnet
                .aux
                .iter()
                .map(|(_, address)| *address)
                .chain([subnet.gateway]);
            for number in unusable(subnet.net).into_iter().chain(kept.map(number)) {
                space.reserve(number..=number);
            }
            self.spaces.insert(key, space);
        }
    }

    /// A network became known, possibly after grants of its addresses.
    pub(super) fn add_network<'a>(
        &mut self,
        id: NetworkId,
        spec: &NetworkSpec,
        catalogue: &Catalogue,
        records: impl Iterator<Item = &'a Record>,
    ) {
        self.make_spaces(id, spec);
        for (key, grant) in records
            .filter(|record| record.key.scope == id)
            .filter_map(grant_of)
        {
            self.merge(key, grant);
        }
        self.restore_network(id, spec, catalogue);
    }

    pub(super) fn remove_network(&mut self, id: NetworkId, spec: &NetworkSpec, now: Instant) {
        self.spaces.retain(|key, _| key.scope() != id);
        self.quests.retain(|key, _| key.scope() != id);
        if spec.creator == self.me {
            self.release(SpaceKey::Vnis, spec.vni.get().into(), now);
            for subnet in &spec.subnets {
                if let Some(units) = subnet.pooled {
                    self.release_block(super::networks::subnets_space(subnet.net), units, now);
                }
            }
        }
    }

    /// Takes a record that may be a grant. True if it gave this node something.
    pub(super) fn learn(&mut self, record: &Record) -> bool {
        grant_of(record).is_some_and(|(key, grant)| self.merge(key, grant))
    }

    fn merge(&mut self, key: SpaceKey, grant: Grant<NodeId>) -> bool {
        let Some(space) = self.spaces.get_mut(&key) else {
            return false;
        };
        let merged = space.merge(grant);
        match merged {
            Merged::Applied => return grant.to == self.me,
            Merged::Unchanged => {}
            Merged::Quarantined(conflict) => {
                self.complaints.push(complain(key, &conflict));
                self.conflicts.push((key, conflict));
            }
            Merged::Refused(reason) => tracing::warn!(?key, %reason, "a grant that no node can have written"),
        }
        false
    }

    /// Keeps the addresses of a service that are this node's to give in use, and gives back those
    /// that are no longer needed.
    pub(super) fn sync_service(
        &mut self,
        network: NetworkId,
        id: ServiceId,
        catalogue: &Catalogue,
        now: Instant,
    ) {
        let held = match catalogue.service(network, id) {
            Some(service) if service.vips_from == self.me => service.vips.clone(),
            _ => Vec::new(),
        };
        let before = self.vips.remove(&id).map(|(_, vips)| vips).unwrap_or_default();
        if let Some(spec) = catalogue.network(network) {
            for vip in before.iter().filter(|vip| !held.contains(vip)) {
                if let Some(key) = address_space(network, spec, *vip) {
                    self.release(key, number(*vip), now);
                }
            }
        }
        if !held.is_empty() {
            self.vips.insert(id, (network, held));
        }
    }

    pub(super) fn release_endpoint(
        &mut self,
        network: NetworkId,
        endpoint: &EndpointSpec,
        catalogue: &Catalogue,
        now: Instant,
    ) {
        let addresses = endpoint.addresses.iter().map(IpNet::addr);
        self.release_addresses(network, addresses, catalogue, now);
    }

    pub(super) fn release_addresses(
        &mut self,
        network: NetworkId,
        addresses: impl Iterator<Item = std::net::IpAddr>,
        catalogue: &Catalogue,
        now: Instant,
    ) {
        let Some(spec) = catalogue.network(network) else {
            return;
        };
        for address in addresses {
            if let Some(key) = address_space(network, spec, address) {
                self.release(key, number(address), now);
            }
        }
    }

    /// Two nodes have this identity: neither may hand out anything.
    pub(super) fn stop_allocating(&mut self) {
        self.stopped = true;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(super) fn allocate(
        &mut self,
        key: SpaceKey,
        within: Option<IpNet>,
        now: Instant,
    ) -> Result<u128, (SpaceKey, Option<IpNet>, AllocateError<NodeId>)> {
        let range = within.map(|net| block_of(net).range());
        let lean = self.lean_until.get(&key).is_some_and(|until| now < *until);
        let space = self.spaces.get_mut(&key).expect("a space of a known network");
        space.allocate(range.clone(), now).or_else(|error| match error {
            AllocateError::NoFreeOwned { resting: true, .. } if lean => {
                space.allocate_resting(range).ok_or((key, within, error))
            }
            error => Err((key, within, error)),
        })
    }

    pub(super) fn claim(
        &mut self,
        key: SpaceKey,
        number: u128,
    ) -> Result<(), (SpaceKey, Want, ClaimError<NodeId>)> {
        let space = self.spaces.get_mut(&key).expect("a space of a known network");
        space
            .claim(number)
            .map_err(|error| (key, Want::Number(number), error))
    }

    pub(super) fn claim_block(
        &mut self,
        key: SpaceKey,
        block: Block,
    ) -> Result<(), (SpaceKey, Want, ClaimError<NodeId>)> {
        let space = self.spaces.get_mut(&key).expect("a space of a known network");
        space
            .claim_block(block)
            .map_err(|error| (key, Want::Block(block), error))
    }

    pub(super) fn release(&mut self, key: SpaceKey, number: u128, now: Instant) {
        self.release_block(key, Block::single(number), now);
    }

    pub(super) fn release_block(&mut self, key: SpaceKey, block: Block, now: Instant) {
        if let Some(space) = self.spaces.get_mut(&key) {
            space.release_block(block, now);
        }
    }

    pub(super) fn shares(&self, key: SpaceKey) -> BTreeMap<NodeId, u128> {
        self.spaces.get(&key).map(Space::shares).unwrap_or_default()
    }

    /// How many numbers are in use on this node.
    #[cfg(test)]
    pub(super) fn in_use(&self, key: SpaceKey) -> u128 {
        let space = self.spaces.get(&key).into_iter();
        space
            .flat_map(Space::in_use)
            .map(|run| run.end() - run.start() + 1)
            .sum()
    }

    pub(super) fn is_seeking(&self, key: SpaceKey) -> bool {
        self.quests.contains_key(&key)
    }

    /// Whether numbers of the cluster, rather than of a network, are being asked for.
    pub(super) fn is_seeking_for_cluster(&self) -> bool {
        let of_network = |key: &SpaceKey| matches!(key, SpaceKey::Addresses(..));
        self.quests.keys().any(|key| !of_network(key))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.quests.values().map(|quest| quest.wake).min()
    }

    /// Gives everything this node owns to `heir`, for when it leaves. Returns the grants to publish.
    pub(super) fn hand_over(&mut self, heir: NodeId, now: Instant) -> Vec<(SpaceKey, Grant<NodeId>)> {
        let mut handed = Vec::new();
        for (key, space) in &mut self.spaces {
            let universe = space.universe();
            if let Ok(given) = space.give(heir, &Want::Block(universe), now) {
                handed.extend(given.stored().into_iter().map(|grant| (*key, grant)));
            }
        }
        handed
    }
}

fn complain(key: SpaceKey, conflict: &Conflict<NodeId>) -> String {
    format!("two contradicting grants in {key:?}: {conflict}; nothing is allocated from that block any more")
}

fn grant_of(record: &Record) -> Option<(SpaceKey, Grant<NodeId>)> {
    if Kind::of(&record.key) != Some(Kind::Grant) {
        return None;
    }
    let fact: GrantFact = decode(record.value.as_deref()?)?;
    let block = grant_block(&record.key)?;
    let agrees = grant_key(fact.space, block) == record.key;
    let grant = Grant {
        block,
        from: record.author,
        to: fact.to,
        version: fact.version,
    };
    agrees.then_some((fact.space, grant))
}

/// The space that an address of a network belongs to.
fn address_space(id: NetworkId, spec: &NetworkSpec, address: std::net::IpAddr) -> Option<SpaceKey> {
    let index = spec
        .subnets
        .iter()
        .position(|subnet| subnet.net.contains(&address))?;
    Some(SpaceKey::Addresses(id, index as u8))
}

fn show(key: SpaceKey, number: u128, spec: &NetworkSpec) -> String {
    match key {
        SpaceKey::Addresses(_, index) => {
            let net = spec.subnets[usize::from(index)].net;
            format!(
                "address {} of network `{}`",
                pools::address(number, net),
                spec.name
            )
        }
        SpaceKey::Vnis => format!("VNI {number} of network `{}`", spec.name),
        SpaceKey::Subnets4 | SpaceKey::Subnets6 => format!("the subnet of network `{}`", spec.name),
    }
}
