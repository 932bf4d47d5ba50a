//! What all known records together say: nodes, networks, services, endpoints, tokens.
//!
//! A pure function of the set of records, kept up to date one record at a time; the order in which
//! they arrive does not matter.

mod apply;
mod index;
mod keys;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_gossip::Key;
use weft_types::{EndpointId, NetworkId, NodeId, ServiceId};

use super::{
    claims::{Claims, Thing, of_place, of_service},
    contest::{Contest, MAX_LAMPORT, Shared},
    records::{
        CLUSTER, ConsentFact, DrainSpec, Drainee, EndpointSpec, IngressSpec, Kind, NetworkSpec, NodeFact,
        Register, RemovalFact, ServiceSpec, TokenFact, decode, endpoint_key, id_of, ingress_key, use_key,
    },
    work::looked,
};

pub use index::Trait;
use index::{ServiceIndex, Tags};
pub use keys::SaidOfKeys;

/// What this node thinks of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    /// Known from records, not heard of since this agent started.
    #[default]
    Unheard,
    Alive,
    Suspect,
    Down,
    Left,
}

#[derive(Debug, Default)]
pub struct Node {
    pub fact: Option<NodeFact>,
    pub presence: Presence,
    pub incarnation: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub node: NodeId,
    pub spec: EndpointSpec,
}

/// Something a user would notice, in the order it became known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Node(NodeId),
    NetworkCreated(NetworkId),
    NetworkChanged(NetworkId),
    /// With what it was.
    NetworkRemoved(NetworkId, Box<NetworkSpec>),
    /// Somebody says that it is gone, and it is in use.
    NetworkContested(NetworkId),
    ServiceCreated(NetworkId, ServiceId),
    ServiceChanged(NetworkId, ServiceId),
    ServiceRemoved(NetworkId, ServiceId, String),
    EndpointAdded(NetworkId, EndpointId),
    /// With what it was.
    EndpointChanged(NetworkId, EndpointId, Box<Endpoint>),
    EndpointRemoved(NetworkId, EndpointId, Box<Endpoint>),
    IngressChanged(NetworkId),
    TokensChanged,
    NodeRemoved(NodeId),
    /// What removed nodes owned, or who says what of it.
    EstatesChanged,
    DrainChanged(Drainee),
    /// Who has which key of gossip, or is offered one.
    KeysChanged,
}

/// One statement: a record without its proof.
#[derive(Clone, Copy)]
struct Said<'a> {
    author: NodeId,
    key: &'a Key,
    value: Option<&'a [u8]>,
}

#[derive(Debug, Default)]
pub struct Catalogue {
    nodes: BTreeMap<NodeId, Node>,
    networks: BTreeMap<NetworkId, Contest<NetworkSpec>>,
    /// The networks that anybody has called so.
    called: BTreeMap<String, BTreeSet<NetworkId>>,
    services: BTreeMap<(NetworkId, ServiceId), Contest<ServiceSpec>>,
    index: ServiceIndex,
    endpoints: BTreeMap<NetworkId, BTreeMap<EndpointId, Endpoint>>,
    /// The network and the node of each of them.
    places: BTreeMap<EndpointId, (NetworkId, NodeId)>,
    /// The endpoints of each node.
    of_node: BTreeMap<NodeId, BTreeSet<(NetworkId, EndpointId)>>,
    /// The endpoints that serve a service, by its name.
    serving: BTreeMap<NetworkId, BTreeMap<String, BTreeSet<EndpointId>>>,
    ingresses: BTreeMap<(NetworkId, NodeId), IngressSpec>,
    /// Who has endpoints on each network, by its own word: of most networks this node knows no more than that.
    users: BTreeMap<NetworkId, BTreeSet<NodeId>>,
    tokens: BTreeMap<[u8; 8], (NodeId, TokenFact)>,
    /// By whom each was removed.
    removals: BTreeMap<NodeId, BTreeMap<NodeId, RemovalFact>>,
    /// What is said of each removed node, and by whom.
    consents: BTreeMap<NodeId, BTreeMap<NodeId, ConsentFact>>,
    drains: BTreeMap<Drainee, Contest<DrainSpec>>,
    keys: SaidOfKeys,
    /// The latest time that each author has said.
    clocks: BTreeMap<NodeId, u64>,
    /// The virtual addresses that were really taken, and by whom.
    taken: BTreeMap<(NetworkId, ServiceId), (NodeId, Vec<IpAddr>)>,
    /// Who claims what only one can have.
    claims: Claims,
}

impl Catalogue {
    /// The virtual addresses of a service of which the node that is said to have taken them says so itself.
    fn taken_vips(&self, network: NetworkId, id: ServiceId, spec: &ServiceSpec) -> Vec<IpAddr> {
        let contest = self.services.get(&(network, id));
        let said = contest.and_then(|contest| contest.said_by(spec.vips_from));
        let of_taker = said.filter(|said| said.value.vips_from == spec.vips_from);
        let is_taken = |vip: &IpAddr| of_taker.is_some_and(|said| said.value.vips.contains(vip));
        spec.vips.iter().copied().filter(is_taken).collect()
    }

    /// Who has taken which virtual addresses for a service.
    pub fn taken(&self, network: NetworkId, id: ServiceId) -> Option<(NodeId, &[IpAddr])> {
        let (node, vips) = self.taken.get(&(network, id))?;
        Some((*node, vips))
    }

    pub(super) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether a node says itself that it has made a network.
    pub fn has_made(&self, node: NodeId, id: NetworkId) -> bool {
        let contest = self.networks.get(&id);
        let said = contest.and_then(|contest| contest.said_by(node));
        said.is_some_and(|said| said.value.creator == node)
    }

    /// Whether somebody says that a network is gone that is there because it is in use.
    fn is_contested(&self, id: NetworkId) -> bool {
        let contest = self.networks.get(&id);
        contest
            .is_some_and(|contest| contest.live(|_| false, |_| false).is_none() && self.network(id).is_some())
    }

    /// Whether a node says that it has endpoints on a network.
    fn uses(&self, network: NetworkId, node: NodeId) -> bool {
        let users = self.users.get(&network);
        users.is_some_and(|users| users.contains(&node))
    }

    /// The nodes that say that they have endpoints on a network.
    pub fn users(&self, network: NetworkId) -> impl Iterator<Item = NodeId> {
        self.users.get(&network).into_iter().flatten().copied()
    }

    /// The networks on which a node says that it has endpoints.
    pub fn used_by(&self, node: NodeId) -> impl Iterator<Item = NetworkId> {
        let used = self.users.iter().filter(move |(_, users)| users.contains(&node));
        used.map(|(network, _)| *network)
    }

    /// Those who name themselves the makers of a network that another has made, with that network.
    pub fn pretenders(&self) -> impl Iterator<Item = (NodeId, NetworkId)> {
        let networks = self.networks.iter();
        networks.flat_map(|(id, contest)| contest.pretenders().map(|node| (node, *id)))
    }

    /// The Lamport time of something new: later than all that `me` has said, and all that others have, but for a single one
    /// that may be far ahead of everybody for no good reason.
    pub fn next_lamport(&self, me: NodeId) -> u64 {
        let others = self.clocks.iter().filter(|(node, _)| **node != me);
        let mut others: Vec<u64> = others.map(|(_, clock)| *clock).collect();
        others.sort_unstable();
        let measure = others.iter().rev().nth(1).or(others.first()).copied();
        let own = self.clocks.get(&me).copied();
        (own.max(measure).unwrap_or(0) + 1).min(MAX_LAMPORT)
    }

    /// A Lamport time for what this node says under a key that several may set: later than what was said there.
    pub fn lamport_for(&self, key: &Key) -> u64 {
        let id = id_of(key);
        let last = match Kind::of(key) {
            Some(Kind::Network) => id.and_then(|id| Some(self.networks.get(&NetworkId(id))?.next_lamport())),
            Some(Kind::Service) => {
                id.and_then(|id| Some(self.services.get(&(key.scope, ServiceId(id)))?.next_lamport()))
            }
            Some(Kind::Drain) => {
                Drainee::of(key).and_then(|what| Some(self.drains.get(&what)?.next_lamport()))
            }
            _ => None,
        };
        last.unwrap_or(1)
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes
            .iter()
            .filter(|(id, _)| !self.is_removed(**id))
            .map(|(id, node)| (*id, node))
    }

    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).filter(|_| !self.is_removed(id))
    }

    /// Whether it is a member that answers.
    pub fn lives(&self, id: NodeId) -> bool {
        let node = self.node(id);
        node.is_some_and(|node| node.presence == Presence::Alive)
    }

    /// Whether it said good-bye itself.
    pub fn has_left(&self, id: NodeId) -> bool {
        let node = self.nodes.get(&id);
        node.is_some_and(|node| node.presence == Presence::Left)
    }

    pub fn is_removed(&self, id: NodeId) -> bool {
        self.removals.contains_key(&id)
    }

    /// What is said of the keys of gossip.
    pub fn gossip_keys(&self) -> &SaidOfKeys {
        &self.keys
    }

    pub fn removed_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.removals.keys().copied()
    }

    /// Who takes over what a removed node owned. Of several who removed it the lowest: none of them had heard of the others, and
    /// so none can have had the word of all of them for itself.
    pub fn heir_of(&self, removed: NodeId) -> Option<NodeId> {
        let by = self.removals.get(&removed)?;
        let mut removers = self.members().filter(|node| by.contains_key(node));
        removers.next().or_else(|| self.members().next())
    }

    pub fn removers_of(&self, removed: NodeId) -> impl Iterator<Item = NodeId> {
        self.removals
            .get(&removed)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .copied()
    }

    /// Whether its removal rests on an operator's word, or its own.
    pub fn is_forced_out(&self, removed: NodeId) -> bool {
        let mut by = self.removals.get(&removed).into_iter().flat_map(BTreeMap::values);
        by.any(|removal| removal.forced)
    }

    /// What a node says of a removed one.
    pub fn consent(&self, removed: NodeId, by: NodeId) -> Option<&ConsentFact> {
        self.consents.get(&removed)?.get(&by)
    }

    /// The nodes that may own numbers: all but those that left in order or were removed.
    pub fn members(&self) -> impl Iterator<Item = NodeId> {
        let members = self.nodes().filter(|(_, node)| node.presence != Presence::Left);
        members.map(|(id, _)| id)
    }

    /// A node's name, or the start of its id while it has not told its name.
    pub fn node_name(&self, id: NodeId) -> String {
        match self.nodes.get(&id).and_then(|node| node.fact.as_ref()) {
            Some(fact) => fact.name.clone(),
            None => id.short(),
        }
    }

    pub fn networks(&self) -> impl Iterator<Item = (NetworkId, &NetworkSpec)> {
        self.networks
            .keys()
            .filter_map(|id| Some((*id, self.network(*id)?)))
    }

    pub fn network(&self, id: NetworkId) -> Option<&NetworkSpec> {
        self.networks
            .get(&id)?
            .live(|node| self.uses(id, node), |node| self.is_removed(node))
    }

    pub fn services(&self, network: NetworkId) -> impl Iterator<Item = (ServiceId, &ServiceSpec)> {
        let range = (network, ServiceId([0; 16]))..=(network, ServiceId([0xff; 16]));
        self.services.range(range).filter_map(|((_, id), contest)| {
            Some((*id, contest.live(|_| false, |node| self.is_removed(node))?))
        })
    }

    pub fn all_services(&self) -> impl Iterator<Item = (ServiceId, &ServiceSpec)> {
        self.services.iter().filter_map(|((_, id), contest)| {
            Some((*id, contest.live(|_| false, |node| self.is_removed(node))?))
        })
    }

    /// The services that have something, by what they are.
    pub fn services_having(&self, what: Trait) -> impl Iterator<Item = (ServiceId, &ServiceSpec)> {
        let having = self.index.having(what);
        having.filter_map(|(network, id)| Some((id, self.service(network, id)?)))
    }

    /// The services of a network by a name, whatever its case.
    pub fn services_called(
        &self,
        network: NetworkId,
        name: &str,
    ) -> impl Iterator<Item = (ServiceId, &ServiceSpec)> {
        let called = self.index.called(network, name);
        let there = called.filter_map(move |id| Some((id, self.service(network, id)?)));
        let name = name.to_ascii_lowercase();
        there.filter(move |(_, spec)| spec.name.eq_ignore_ascii_case(&name))
    }

    /// The services of all networks that are called exactly so.
    pub fn all_services_called(&self, name: &str) -> impl Iterator<Item = (ServiceId, &ServiceSpec)> {
        let called = self.index.called_anywhere(name);
        let there = called.filter_map(|(network, id)| Some((id, self.service(network, id)?)));
        there.filter(move |(_, spec)| spec.name == name)
    }

    pub fn service(&self, network: NetworkId, id: ServiceId) -> Option<&ServiceSpec> {
        self.services
            .get(&(network, id))?
            .live(|_| false, |node| self.is_removed(node))
    }

    pub fn endpoints(&self, network: NetworkId) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        self.endpoints
            .get(&network)
            .into_iter()
            .flatten()
            .inspect(|_| looked())
            .map(|(id, endpoint)| (*id, endpoint))
    }

    /// The endpoints of a network that serve a service.
    pub fn serving(
        &self,
        network: NetworkId,
        service: &str,
    ) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        let endpoints = self.endpoints.get(&network);
        let by_name = self.serving.get(&network);
        let ids = by_name
            .and_then(|by_name| by_name.get(service))
            .into_iter()
            .flatten();
        ids.filter_map(move |id| Some((*id, endpoints?.get(id)?)))
    }

    pub fn endpoint(&self, network: NetworkId, id: EndpointId) -> Option<&Endpoint> {
        self.endpoints.get(&network)?.get(&id)
    }

    pub fn all_endpoints(&self) -> impl Iterator<Item = (NetworkId, EndpointId, &Endpoint)> {
        self.endpoints
            .iter()
            .flat_map(|(network, all)| all.iter().map(|(id, endpoint)| (*network, *id, endpoint)))
            .inspect(|_| looked())
    }

    /// The endpoints of a node, by networks.
    pub fn endpoints_of(&self, node: NodeId) -> impl Iterator<Item = (NetworkId, EndpointId, &Endpoint)> {
        let places = self.of_node.get(&node).into_iter().flatten();
        places.filter_map(|(network, id)| Some((*network, *id, self.endpoint(*network, *id)?)))
    }

    /// Those of them that are on one network.
    pub fn endpoints_of_on(
        &self,
        node: NodeId,
        network: NetworkId,
    ) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        let range = (network, EndpointId([0; 16]))..=(network, EndpointId([0xff; 16]));
        let places = self.of_node.get(&node).into_iter();
        let places = places.flat_map(move |places| places.range(range.clone()));
        places.filter_map(move |(_, id)| Some((*id, self.endpoint(network, *id)?)))
    }

    /// The network that an endpoint is on.
    pub fn network_of(&self, id: EndpointId) -> Option<NetworkId> {
        self.places.get(&id).map(|(network, _)| *network)
    }

    /// A node's own place on a network.
    pub fn ingress(&self, network: NetworkId, node: NodeId) -> Option<&IngressSpec> {
        self.ingresses.get(&(network, node))
    }

    /// The nodes with a place of their own on a network.
    pub fn ingresses(&self, network: NetworkId) -> impl Iterator<Item = (NodeId, &IngressSpec)> {
        let range = (network, NodeId([0; 32]))..=(network, NodeId([0xff; 32]));
        let all = self.ingresses.range(range);
        all.map(|((_, node), spec)| (*node, spec))
    }

    /// The networks that a node has a place of its own on.
    pub fn ingresses_of(&self, node: NodeId) -> impl Iterator<Item = NetworkId> {
        let all = self.ingresses.keys().filter(move |(_, of)| *of == node);
        all.map(|(network, _)| *network)
    }

    pub fn drain(&self, drainee: Drainee) -> Option<&DrainSpec> {
        self.drains
            .get(&drainee)?
            .live(|_| false, |node| self.is_removed(node))
    }

    /// What this node's own word is needed for, or was once.
    pub fn drains_said_by(&self, author: NodeId) -> impl Iterator<Item = Drainee> {
        let said = move |(drainee, contest): (&Drainee, &Contest<DrainSpec>)| {
            contest.is_said_by(author).then_some(*drainee)
        };
        self.drains.iter().filter_map(said)
    }

    pub fn tokens(&self) -> impl Iterator<Item = ([u8; 8], NodeId, &TokenFact)> {
        self.tokens
            .iter()
            .map(|(id, (author, fact))| (*id, *author, fact))
    }

    pub fn token(&self, id: &[u8; 8]) -> Option<&TokenFact> {
        self.tokens.get(id).map(|(_, fact)| fact)
    }

    /// Who joined with a token.
    pub fn token_users(&self, id: [u8; 8]) -> BTreeSet<NodeId> {
        let admissions = self.keys.admissions();
        let users = admissions.filter(|(.., token)| *token == id);
        users.map(|(node, ..)| node).collect()
    }

    /// The name a network is known by. Where two networks got one name during a split, the older
    /// (Lamport time, then id) keeps it and the other is `name~id`. What a removed node has made comes last.
    pub fn display_name(&self, id: NetworkId) -> Option<String> {
        let spec = self.network(id)?;
        let same = self.called.get(&spec.name).into_iter().flatten();
        let same = same.filter_map(|other| Some((*other, self.network(*other)?)));
        let keeper = same
            .filter(|(_, other)| other.name == spec.name)
            .min_by_key(|(other_id, other)| (self.is_removed(other.creator), other.created, *other_id));
        Some(match keeper {
            Some((keeper, _)) if keeper != id => format!("{}~{}", spec.name, id.short()),
            _ => spec.name.clone(),
        })
    }
}
