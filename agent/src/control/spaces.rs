//! Every space of numbers this node knows, and the negotiations for more of them.

mod estates;
mod learn;
mod quests;
mod unowned;

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_gossip::Record;
use weft_ipam::{AllocateError, Block, ClaimError, Conflict, Grant, Merged, Space, Want};
use weft_types::{NetworkId, NodeId, ServiceId};

use self::quests::Quest;
use self::unowned::Unowned;
pub(super) use self::{estates::Estates, quests::Wire};
use super::{
    ClusterFacts,
    catalogue::Catalogue,
    pools::{self, block_of, number, unusable},
    records::{
        EndpointSpec, GrantFact, HoldingFact, Kind, NetworkSpec, ServiceSpec, SpaceKey, block_of_key, decode,
        grant_key, holding_key,
    },
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
    vips: BTreeMap<ServiceId, (NetworkId, Vec<IpAddr>)>,
    next_request: u64,
    stopped: bool,
    unowned: Unowned,
    /// What this node was given, to make durable.
    gained: Vec<(SpaceKey, Grant<NodeId>)>,
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
            unowned: Unowned::default(),
            gained: Vec::new(),
            conflicts: Vec::new(),
            complaints: Vec::new(),
        }
    }

    /// True if there are spaces that were not there before. Only a member that lies changes subnets that were there.
    fn make_spaces(&mut self, id: NetworkId, spec: &NetworkSpec) -> bool {
        let mut is_new = false;
        for (index, subnet) in spec.subnets.iter().enumerate() {
            let key = SpaceKey::Addresses(id, index as u8);
            let known = self.spaces.get(&key).map(Space::universe);
            if known == Some(block_of(subnet.net)) {
                continue;
            }
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
            is_new = true;
        }
        is_new
    }

    /// A network became known, or has other subnets than before, possibly after grants of its addresses.
    pub(super) fn add_network<'a>(
        &mut self,
        id: NetworkId,
        spec: &NetworkSpec,
        catalogue: &Catalogue,
        records: impl Iterator<Item = &'a Record>,
        now: Instant,
    ) {
        if !self.make_spaces(id, spec) {
            return;
        }
        for record in records.filter(|record| record.key.scope == id) {
            self.learn(record, catalogue, now);
        }
        self.restore_network(id, spec, catalogue);
    }

    pub(super) fn remove_network(
        &mut self,
        id: NetworkId,
        spec: &NetworkSpec,
        catalogue: &Catalogue,
        now: Instant,
    ) {
        self.spaces.retain(|key, _| key.scope() != id);
        self.unowned.forget_network(id);
        self.quests.retain(|key, _| key.scope() != id);
        let mut others = Vec::new();
        for (other, spec) in catalogue.networks() {
            others.extend(self.made_of(other, spec, catalogue));
        }
        for (key, block) in self.made_of(id, spec, catalogue) {
            let is_same =
                |(of, other): &(SpaceKey, Block)| *of == key && (other.holds(&block) || block.holds(other));
            if !others.iter().any(is_same) {
                self.release_block(key, block, now);
            }
        }
    }

    /// The numbers of the cluster that a network is made of, as far as they are this node's to keep in use.
    fn made_of(&self, id: NetworkId, spec: &NetworkSpec, catalogue: &Catalogue) -> Vec<(SpaceKey, Block)> {
        let pooled = spec
            .subnets
            .iter()
            .filter_map(|subnet| Some((super::networks::subnets_space(subnet.net), subnet.pooled?)));
        let vni = (SpaceKey::Vnis, Block::single(spec.vni.get().into()));
        let all = pooled.chain([vni]);
        // What this node has made, it has said itself.
        let is_real = spec.creator != self.me || catalogue.has_made(self.me, id);
        all.filter(|(key, block)| is_real && self.keeps(*key, block.first(), spec.creator, catalogue))
            .collect()
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
        let service = catalogue.service(network, id);
        let held = service.map_or_else(Vec::new, |service| self.kept_vips(id, service, catalogue));
        let before = self.vips.remove(&id).map(|(_, vips)| vips).unwrap_or_default();
        if let Some(spec) = catalogue.network(network) {
            for vip in before.iter().filter(|vip| !held.contains(vip)) {
                if let Some(key) = address_space(network, spec, *vip) {
                    self.release(key, number(*vip), now);
                }
            }
        }
        // What was given back when somebody changed the service comes back with the change undone.
        if let Some(spec) = catalogue.network(network) {
            for vip in held.iter().filter(|vip| !before.contains(vip)) {
                let space = address_space(network, spec, *vip).and_then(|key| self.spaces.get_mut(&key));
                drop(space.map(|space| space.claim(number(*vip))));
            }
        }
        if !held.is_empty() {
            self.vips.insert(id, (network, held));
        }
    }

    pub(super) fn space_of(&self, id: NetworkId, spec: &NetworkSpec, address: IpAddr) -> Option<SpaceKey> {
        address_space(id, spec, address)
    }

    pub(super) fn owner_of(&self, key: SpaceKey, number: u128) -> Option<NodeId> {
        self.spaces.get(&key)?.owner_of(number)
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
        addresses: impl Iterator<Item = IpAddr>,
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

    /// Whether its other owners said a moment ago that they can give nothing of it.
    pub(super) fn is_lean(&self, key: SpaceKey, now: Instant) -> bool {
        self.lean_until.get(&key).is_some_and(|until| now < *until)
    }

    pub(super) fn allocate(
        &mut self,
        key: SpaceKey,
        within: Option<IpNet>,
        now: Instant,
    ) -> Result<u128, (SpaceKey, Option<IpNet>, AllocateError<NodeId>)> {
        let range = within.map(|net| block_of(net).range());
        let lean = self.is_lean(key, now);
        // A member that lies can have a network be there without its numbers, and no agent is to end because of that.
        let Some(space) = self.spaces.get_mut(&key) else {
            return Err((key, within, AllocateError::Exhausted { quarantined: 0 }));
        };
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
        let Some(space) = self.spaces.get_mut(&key) else {
            return Err((key, Want::Number(number), ClaimError::OutOfRange { number }));
        };
        space
            .claim(number)
            .map_err(|error| (key, Want::Number(number), error))
    }

    pub(super) fn claim_block(
        &mut self,
        key: SpaceKey,
        block: Block,
    ) -> Result<(), (SpaceKey, Want, ClaimError<NodeId>)> {
        let Some(space) = self.spaces.get_mut(&key) else {
            let number = block.first();
            return Err((key, Want::Block(block), ClaimError::OutOfRange { number }));
        };
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

    /// The newest grants of each space.
    fn grants(&self) -> impl Iterator<Item = (SpaceKey, Grant<NodeId>)> {
        let spaces = self.spaces.iter();
        spaces.flat_map(|(key, space)| space.grants().into_iter().map(|grant| (*key, grant)))
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

/// The space that an address of a network belongs to.
fn address_space(id: NetworkId, spec: &NetworkSpec, address: IpAddr) -> Option<SpaceKey> {
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
