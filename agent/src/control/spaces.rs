//! Every space of numbers this node knows, and the negotiations for more of them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_gossip::Record;
use weft_ipam::{
    AllocateError, Block, ClaimError, Conflict, Grant, Merged, Negotiation, Patience, Reply, Request, Space,
    Step, Want,
};
use weft_types::{NetworkId, NodeId, ServiceId};

use super::{
    ClusterFacts, Control, Now,
    catalogue::Catalogue,
    pools::{self, block_of, number, unusable},
    records::{EndpointSpec, GrantFact, Kind, NetworkSpec, SpaceKey, decode, encode, grant_block, grant_key},
};

/// After a negotiation in vain, how long this node looks no further by itself, and makes do with
/// numbers that were released a moment ago.
const LEAN_TIME: Duration = Duration::from_secs(10);
/// Grants that fit one message; the others arrive as records.
const MAX_GRANTS_IN_REPLY: usize = 8;

/// Messages between two nodes about numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Wire {
    Request { space: SpaceKey, request: Request },
    Reply { space: SpaceKey, reply: Reply<NodeId> },
}

/// What is durable of a space beside the records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kept {
    /// A grant to this node that came in a message, before its record did.
    Grant(Grant<NodeId>),
    /// Two grants that cannot both be true; the block stays in quarantine.
    Conflict(Conflict<NodeId>),
}

/// A negotiation under way.
struct Quest {
    want: Want,
    negotiation: Negotiation<NodeId>,
    wake: Instant,
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
        for address in addresses.chain(vips) {
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
        let Some(spec) = catalogue.network(network) else {
            return;
        };
        for address in endpoint.addresses.iter().map(IpNet::addr) {
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

    pub(super) fn is_seeking(&self, key: SpaceKey) -> bool {
        self.quests.contains_key(&key)
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

impl Control {
    /// Asks `ask` for `want`, unless that space is being asked for already.
    pub(super) fn seek(&mut self, key: SpaceKey, want: Want, ask: Vec<NodeId>, now: Now) {
        if self.spaces.quests.contains_key(&key) {
            return;
        }
        self.spaces.next_request = self.spaces.next_request.wrapping_add(1);
        let id = self.spaces.next_request;
        let mut negotiation = Negotiation::new(
            self.me,
            id,
            want.clone(),
            ask.clone(),
            Patience::default(),
            now.instant,
        );
        for node in ask.into_iter().filter(|node| !self.serves(*node)) {
            negotiation.handle_unreachable(node);
        }
        self.spaces.quests.insert(
            key,
            Quest {
                want,
                negotiation,
                wake: now.instant,
            },
        );
        self.seek_on(now);
    }

    /// Carries every negotiation on as far as it goes now.
    pub(super) fn seek_on(&mut self, now: Now) {
        let due: Vec<SpaceKey> = self
            .spaces
            .quests
            .iter()
            .filter(|(_, quest)| quest.wake <= now.instant)
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.seek_step(key, now);
        }
    }

    fn seek_step(&mut self, key: SpaceKey, now: Now) {
        loop {
            let Some(quest) = self.spaces.quests.get_mut(&key) else {
                return;
            };
            match quest.negotiation.poll(now.instant) {
                Step::Ask { node, request } => {
                    let message = Wire::Request { space: key, request };
                    if !self.tell(node, &message, now)
                        && let Some(quest) = self.spaces.quests.get_mut(&key)
                    {
                        quest.negotiation.handle_unreachable(node);
                    }
                }
                Step::Wait(until) => {
                    quest.wake = until;
                    return;
                }
                Step::Done => {
                    self.spaces.quests.remove(&key);
                    self.resume(now);
                    return;
                }
                Step::Failed(error) => {
                    let quest = self.spaces.quests.remove(&key).expect("looked up above");
                    let was_lean = self.spaces.lean_until.insert(key, now.instant + LEAN_TIME);
                    // Numbers released a moment ago are better than none; they are tried once.
                    if was_lean.is_none_or(|until| until <= now.instant)
                        && matches!(quest.want, Want::Any { .. })
                    {
                        self.resume(now);
                    }
                    let error = self.negotiation_failed(key, &quest.want, &error);
                    self.fail_waiting(key, &quest.want, &error, now);
                    return;
                }
            }
        }
    }

    fn tell(&mut self, node: NodeId, message: &Wire, now: Now) -> bool {
        let payload = postcard::to_allocvec(message).expect("a message always encodes");
        match self.gossip.send(node, payload.into(), now.instant) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "message not sent");
                false
            }
        }
    }

    pub(super) fn on_space_request(&mut self, from: NodeId, key: SpaceKey, request: Request, now: Now) {
        if self.spaces.stopped || self.reading_back.is_some() {
            return;
        }
        let Some(space) = self.spaces.spaces.get_mut(&key) else {
            return;
        };
        let answer = space.answer(from, &request, now.instant);
        for grant in answer.to_store().to_vec() {
            if let Err(error) = self.publish_grant(key, grant, now) {
                // Given, but not told: the numbers stay given until the next start. Nobody has them twice.
                self.problem(format!("a grant could not be published: {}", error.message));
                return;
            }
        }
        let mut reply = answer.stored();
        if let weft_ipam::Outcome::Granted(grants) = &mut reply.outcome {
            grants.truncate(MAX_GRANTS_IN_REPLY);
        }
        self.tell(from, &Wire::Reply { space: key, reply }, now);
    }

    pub(super) fn publish_grant(
        &mut self,
        key: SpaceKey,
        grant: Grant<NodeId>,
        now: Now,
    ) -> Result<(), crate::api::ApiError> {
        let fact = GrantFact {
            space: key,
            to: grant.to,
            version: grant.version,
        };
        self.publish(grant_key(key, grant.block), encode(&fact), now)
    }

    pub(super) fn on_space_reply(&mut self, from: NodeId, key: SpaceKey, reply: Reply<NodeId>, now: Now) {
        let grants = match self.spaces.quests.get_mut(&key) {
            Some(quest) => quest.negotiation.handle_reply(from, reply),
            // Too late for whoever asked, but the numbers are this node's now.
            None => match reply.outcome {
                weft_ipam::Outcome::Granted(grants) => grants,
                _ => Vec::new(),
            },
        };
        for grant in grants
            .into_iter()
            .filter(|grant| grant.from == from && grant.to == self.me)
        {
            // In this turn's commit, which comes before anything that uses the numbers.
            self.turn.kept.push((key, Kept::Grant(grant)));
            self.spaces.merge(key, grant);
        }
        self.note_conflicts();
        self.seek_step(key, now);
    }

    /// Makes conflicts durable and shows them.
    pub(super) fn note_conflicts(&mut self) {
        let conflicts = std::mem::take(&mut self.spaces.conflicts);
        self.turn.kept.extend(
            conflicts
                .into_iter()
                .map(|(key, conflict)| (key, Kept::Conflict(conflict))),
        );
        for complaint in std::mem::take(&mut self.spaces.complaints) {
            self.problem(complaint);
        }
    }

    /// Asks for more of what this node has run out of, before anybody waits for it: every kind of
    /// number of the cluster, and addresses of the networks it has endpoints on.
    pub(super) fn look_ahead(&mut self, now: Now) {
        if self.reading_back.is_some() || self.spaces.stopped || self.removed {
            return;
        }
        let networks: std::collections::BTreeSet<NetworkId> =
            self.local_endpoints().map(|(network, _, _)| network).collect();
        let short: Vec<(SpaceKey, Vec<NodeId>)> = self
            .spaces
            .spaces
            .iter()
            .filter(|(key, _)| !matches!(key, SpaceKey::Addresses(network, _) if !networks.contains(network)))
            .filter(|(key, _)| !self.spaces.quests.contains_key(key))
            .filter(|(key, _)| {
                self.spaces
                    .lean_until
                    .get(key)
                    .is_none_or(|until| *until <= now.instant)
            })
            .filter(|(_, space)| space.free_owned() == 0)
            .map(|(key, space)| {
                let owners = space
                    .shares()
                    .into_keys()
                    .filter(|node| *node != self.me && self.serves(*node));
                (*key, owners.collect())
            })
            .collect();
        for (key, ask) in short {
            if !ask.is_empty() {
                self.seek(key, Want::Any { within: None }, ask, now);
            }
        }
    }
}
