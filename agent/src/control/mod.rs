//! The part of the agent that decides: it introduces the cores to each other and does no I/O.
//!
//! [`Control`] takes packets, commands, timers and reports of what the kernel took, all with the time
//! they happened at, and collects what follows in a [`Turn`]. Whoever drives it carries a turn out in
//! this order: **commit** the records to the disk, **send** the packets, apply the **host** state,
//! give the **replies**. So nothing is sent or answered that a crash could undo.

pub mod admission;
mod away;
#[cfg(test)]
mod bounds;
pub mod catalogue;
mod claims;
mod command;
mod contest;
mod derived;
pub mod docker;
pub mod doctor;
mod drain;
mod eject;
pub(crate) mod endpoints;
mod finding;
mod happenings;
mod health;
mod interest;
mod keyring;
#[cfg(test)]
mod liar;
mod measures;
mod members;
mod names;
pub(crate) mod networks;
mod nodes;
mod operations;
pub mod own;
mod polls;
mod pools;
pub(crate) mod publish;
pub mod records;
mod refusals;
mod ring;
mod rotation;
#[cfg(test)]
mod scale;
pub(crate) mod services;
mod spaces;
mod sums;
mod timers;
pub mod token;
pub(crate) mod tokens;
mod touched;
mod traffic;
mod tunnels;
mod views;
mod ways;
pub mod why;
mod work;
#[cfg(test)]
mod world;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use weft_gossip::{Gossip, Key, Output, Record};
use weft_lb::{Ejections, SlowStart};
use weft_types::{ClusterId, EndpointId, NetworkId, NodeId};
use weft_wireguard::Secret32;

use crate::api::{
    ApiError,
    types::{ClusterJoinResponse, ClusterLeaveResponse, ConnectResponse, DisconnectResponse, Event},
};

pub use command::{Command, HostFacts, Responder};
pub use finding::HealthState;
pub use health::{HealthProbe, HealthResult, Try};
pub use measures::{HealthCounts, Measures};
pub use polls::CountOrder;
pub use pools::Pools;
use publish::Entering;
pub use publish::{Entered, EntryTable, host_port};
pub use ring::Ring;
pub use rotation::TunnelKeys;
pub use traffic::Traffic;
pub use tunnels::{Encrypter, TunnelReport};
pub use views::{DNS_V4, DNS_V6, HostState, Resolver, SandboxTables};

use away::Away;
use catalogue::{Catalogue, Presence};
use derived::Derived;
use docker::Docker;
use drain::Drains;
use health::Checks;
use interest::Interests;
use keyring::{Ground, Keyring};
use operations::Parked;
use polls::Polls;
use records::{Kind, SandboxSpec, SpaceKey};
use rotation::Rotation;
pub use spaces::Kept;
use spaces::{Estates, Spaces};
use touched::Place;
use tunnels::Tunnels;

/// What every node of a cluster knows about it, from `init` or from the answer to `join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFacts {
    pub id: ClusterId,
    /// The node that made the cluster and owned every number at first.
    pub founder: NodeId,
    /// The key of gossip, where a version wrote this that could not change it. The keys are apart from this, see [`Ring`].
    pub keys: Vec<[u8; 32]>,
    pub pools: Pools,
    /// What every pair of nodes makes the pre-shared key of its tunnel from, and what a key in tokens comes from. It does not
    /// change with the keys of gossip.
    pub secret: Secret32,
}

/// What this node is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    pub node_name: String,
    pub gossip: SocketAddr,
    pub vtep: IpAddr,
    pub underlay_mtu: u32,
    pub vxlan_port: u16,
    /// The domain that names end in.
    pub domain: String,
    /// Whether health checks may be commands.
    pub health_commands: bool,
    /// The UDP port of WireGuard.
    pub wireguard_port: u16,
    /// What encrypts on this host.
    pub encrypter: Encrypter,
    /// Whether networks that are made here are encrypted if nobody says otherwise.
    pub encrypt: bool,
    /// How old a WireGuard key may get.
    pub rotate_keys: Option<Duration>,
    /// How old the cluster's key of gossip may get.
    pub rotate_gossip_key: Option<Duration>,
    /// Networks whose names programs of this host are told, wherever their endpoints are.
    pub shown_networks: Vec<String>,
    /// Below which the namespaces of networks are.
    pub run_dir: PathBuf,
    /// The host's own namespace.
    pub host: SandboxSpec,
}

/// The two clocks: one to measure with, one to show.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    /// Milliseconds since the Unix epoch. Decides nothing but when a join token expires, and when a key is old.
    pub unix_millis: u64,
}

/// What was on the disk at the start.
#[derive(Debug)]
pub struct Stored {
    /// This node's keys for encrypted networks.
    pub tunnel_keys: TunnelKeys,
    /// The keys of gossip.
    pub ring: Ring,
    pub records: Vec<Record>,
    pub kept: Vec<(SpaceKey, Kept)>,
    /// The cluster's network behind each of Docker's on this host.
    pub bindings: Vec<(String, NetworkId)>,
}

/// What one input led to, to be carried out in the order of the fields.
#[derive(Default)]
pub struct Turn {
    /// This node's keys for encrypted networks, where they have changed; to be on the disk before anything else.
    pub tunnel_keys: Option<TunnelKeys>,
    /// The keys of gossip, likewise: no record says that this node has one that is not on the disk.
    pub gossip_keys: Option<Ring>,
    /// Records that must be on the disk before anything below happens.
    pub commit: Vec<Record>,
    /// What is to be committed together with the records.
    pub kept: Vec<(SpaceKey, Kept)>,
    /// Networks of Docker's on this host that became one of the cluster's, or none, to be committed as well.
    pub bindings: Vec<(String, Option<NetworkId>)>,
    /// Records that need not be kept any more.
    pub forget: Vec<(NodeId, Key)>,
    /// Packets and streams to send.
    pub send: Vec<Output>,
    /// Hosts to be asked whether they are there.
    pub probe: Vec<Probe>,
    /// Whether [`Control::host_state`] has changed.
    pub host_changed: bool,
    /// What is to be tried on this host, see [`Control::handle_health`].
    pub health_probes: Vec<HealthProbe>,
    /// Connections to be counted on this host, see [`Control::handle_counted`].
    pub counts: Vec<CountOrder>,
    /// What happened, for those who follow `weft events`.
    pub events: Vec<Event>,
    /// Answers to commands; calling one sends it.
    pub replies: Vec<Box<dyn FnOnce() + Send>>,
}

/// A host to be asked for a TCP connection, which is made or refused by one that is there. The answer is for
/// [`Control::handle_probe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub node: NodeId,
    pub address: SocketAddr,
}

impl Turn {
    /// Whether anything of it goes to the disk.
    pub fn is_to_commit(&self) -> bool {
        !(self.commit.is_empty()
            && self.kept.is_empty()
            && self.bindings.is_empty()
            && self.forget.is_empty())
    }
}

/// What the kernel made of a host state.
#[derive(Debug, Default)]
pub struct HostReport {
    /// The host state this is about, see [`HostState::generation`].
    pub generation: u64,
    /// The interface of each endpoint that is attached, in its sandbox.
    pub attached: BTreeMap<EndpointId, String>,
    /// Endpoints that could not be attached, and why.
    pub failed: BTreeMap<EndpointId, String>,
    /// Endpoints whose sandbox is gone.
    pub vanished: Vec<EndpointId>,
    /// What else went wrong, a sentence each.
    pub problems: Vec<String>,
    /// Why a sandbox did not take the services of this host state, if one did not.
    pub unbalanced: Option<String>,
    /// Whether dockerd's firewall is there and lets out what networks send.
    pub docker_lets_out: bool,
}

/// So many things that a node says are kept for what nobody asks for but all rely on: who owns which numbers, and who may take them over.
const RESERVE: usize = 256;
/// How long a node that was known before a restart counts as alive without being heard.
const GRACE: Duration = Duration::from_secs(10);
/// How long a joining node waits for the state of the cluster, and numbers of its own, before it says that it joined.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How long a restarted node waits for a peer to tell it what it may have forgotten, before it hands
/// out numbers and changes the kernel by itself.
const READ_BACK: Duration = Duration::from_secs(3);

pub struct Control {
    me: NodeId,
    facts: ClusterFacts,
    settings: Settings,
    gossip: Gossip,
    catalogue: Catalogue,
    spaces: Spaces,
    rng: ChaCha20Rng,
    started: Now,
    /// Until when this node does nothing to numbers and kernel before a peer has told it what it missed;
    /// `None` once that is settled. The kernel holds what an earlier run left there, which may be newer than the disk.
    reading_back: Option<Instant>,
    grace_until: Option<Instant>,
    away: Away,
    parked: VecDeque<Parked>,
    /// What the operation that is being tried has waited for in vain.
    in_vain: Vec<SpaceKey>,
    attaching: BTreeMap<EndpointId, (ConnectResponse, Responder<ConnectResponse>)>,
    detaching: Vec<(u64, DisconnectResponse, Responder<DisconnectResponse>)>,
    ifnames: BTreeMap<EndpointId, String>,
    interests: Interests,
    /// Networks that this node is to be on for published ports and is not yet.
    entering: BTreeMap<NetworkId, Entering>,
    /// Whether something changed that those depend on.
    ingresses_to_look_at: bool,
    docker: Docker,
    checks: Checks,
    polls: Polls,
    drains: Drains,
    /// What the host was last told, as far as it is kept.
    derived: Derived,
    slow_start: SlowStart,
    ejections: Ejections,
    /// How often this host has ejected a backend.
    ejected_so_far: u64,
    estates: Estates,
    tunnels: Tunnels,
    rotation: Rotation,
    keyring: Keyring,
    problems: BTreeSet<String>,
    /// Those of `problems` that the last report of the kernel named.
    host_problems: BTreeSet<String>,
    generation: u64,
    /// Records of others that are not on the disk yet.
    unsaved: Vec<Record>,
    /// When they will be.
    save_at: Option<Instant>,
    next_look: Instant,
    /// Who waits for this node to have caught up with the cluster it joins, and until when.
    joining: Option<(Instant, Responder<ClusterJoinResponse>)>,
    /// Whether a peer has told this node all it knows.
    caught_up: bool,
    /// Whether it was let in by others in this very run.
    is_newcomer: bool,
    /// Who is to be told that this node has left, and when it goes.
    leaving: Option<(Instant, ClusterLeaveResponse, Responder<ClusterLeaveResponse>)>,
    removed: bool,
    turn: Turn,
}

impl Control {
    /// A node of the cluster `facts`, with what was on its disk.
    ///
    /// `fresh` says that this node was never in the cluster before, so that there is nothing it
    /// could have forgotten.
    pub fn new(
        facts: ClusterFacts,
        settings: Settings,
        mut gossip: Gossip,
        stored: Stored,
        fresh: bool,
        seed: [u8; 32],
        now: Now,
    ) -> Self {
        let me = gossip.node();
        let mut catalogue = Catalogue::default();
        for record in &stored.records {
            catalogue.apply(record.author, &record.key, record.value.as_deref());
        }
        let others_removed: Vec<NodeId> = catalogue.removed_nodes().filter(|node| *node != me).collect();
        for node in &others_removed {
            catalogue.withdraw(*node);
        }
        let cursor = u64::from_le_bytes(seed[..8].try_into().expect("eight bytes"));
        let mut spaces = Spaces::new(me, &facts, cursor);
        let interests = Interests::restored(me, &stored.records, &catalogue);
        gossip.load(stored.records);
        gossip.set_interest(interests.wanted(), now.instant);
        let peers: Vec<SocketAddr> = catalogue
            .nodes()
            .filter(|(id, _)| *id != me)
            .filter_map(|(_, node)| Some(node.fact.as_ref()?.gossip))
            .collect();
        let alone = peers.is_empty();
        let is_newcomer = fresh && facts.founder != me;
        let keyring = Keyring::new(stored.ring, now.instant);
        let ground = Ground {
            catalogue: &catalogue,
            me,
            founder: facts.founder,
        };
        gossip.set_keys(keyring.to_seal(ground));
        gossip.join(peers, now.instant);
        catalogue.set_presence(me, Presence::Alive, 0);
        let known: Vec<Record> = gossip.records().cloned().collect();
        spaces.restore(&catalogue, known.iter(), stored.kept, now.instant);
        for node in others_removed {
            let why = members::removal_of(node, &gossip, &catalogue);
            gossip.evict(node, why, now.instant);
        }
        let removed = catalogue.is_removed(me);
        let derived = Derived::new(&settings.domain);
        let reading_back = (!fresh && !alone).then(|| now.instant + READ_BACK);
        let mut control = Self {
            me,
            facts,
            settings,
            gossip,
            catalogue,
            spaces,
            rng: ChaCha20Rng::from_seed(seed),
            started: now,
            reading_back,
            grace_until: Some(now.instant + GRACE),
            away: Away::default(),
            parked: VecDeque::new(),
            in_vain: Vec::new(),
            attaching: BTreeMap::new(),
            detaching: Vec::new(),
            ifnames: BTreeMap::new(),
            interests,
            entering: BTreeMap::new(),
            ingresses_to_look_at: true,
            docker: Docker::new(stored.bindings),
            checks: Checks::default(),
            polls: Polls::default(),
            drains: Drains::default(),
            slow_start: SlowStart::default(),
            derived,
            ejections: Ejections::default(),
            ejected_so_far: 0,
            estates: Estates::default(),
            tunnels: Tunnels::default(),
            rotation: Rotation::new(stored.tunnel_keys, now.instant),
            keyring,
            problems: BTreeSet::new(),
            host_problems: BTreeSet::new(),
            generation: 1,
            unsaved: Vec::new(),
            save_at: None,
            next_look: now.instant,
            joining: None,
            caught_up: false,
            is_newcomer,
            leaving: None,
            removed,
            turn: Turn {
                host_changed: reading_back.is_none(),
                ..Turn::default()
            },
        };
        control.note_conflicts();
        control.introduce(now);
        control.look_at_estates(now);
        control
    }

    pub fn facts(&self) -> &ClusterFacts {
        &self.facts
    }

    /// Looks for the cluster at `seeds`, and answers when this node knows what they know.
    pub fn join(&mut self, seeds: Vec<SocketAddr>, responder: Responder<ClusterJoinResponse>, now: Now) {
        self.gossip.join(seeds, now.instant);
        self.joining = Some((now.instant + CATCH_UP, responder));
        self.settle(now);
    }

    pub fn handle_packet(&mut self, from: SocketAddr, packet: &[u8], now: Now) {
        self.gossip.handle_packet(from, packet, now.instant);
        self.settle(now);
    }

    pub fn handle_stream_request(&mut self, frame: &[u8], now: Now) -> Option<Vec<u8>> {
        let answer = self.gossip.handle_stream_request(frame, now.instant);
        self.settle(now);
        answer
    }

    pub fn handle_stream_response(&mut self, frame: &[u8], now: Now) {
        self.gossip.handle_stream_response(frame, now.instant);
        self.settle(now);
    }

    /// Everything that the inputs since the last call led to.
    pub fn take_turn(&mut self) -> Turn {
        if !self.turn.commit.is_empty() {
            // What is committed may build on what others said: an endpoint on its network, say.
            self.turn.commit.append(&mut self.unsaved);
            self.save_at = None;
        }
        std::mem::take(&mut self.turn)
    }

    /// This node knows what it missed, or nobody can tell it.
    fn end_reading_back(&mut self, now: Now) {
        self.interests.to_look_at = true;
        if self.reading_back.take().is_some() {
            self.host_changed();
            self.resume(now);
        }
    }

    /// Publishes a record of this node's own. It is committed before anything else of this turn.
    fn publish(&mut self, key: Key, value: Bytes, now: Now) -> Result<(), ApiError> {
        let is_asked_for = matches!(
            Kind::of(&key),
            Some(Kind::Endpoint | Kind::Network | Kind::Service | Kind::Token)
        );
        if is_asked_for && self.gossip.get(&self.me, &key).is_none() && self.gossip.room() <= RESERVE {
            return Err(refusals::full());
        }
        let record = self.gossip.put(key, value, now.instant);
        let record = record.map_err(refusals::untold)?;
        self.learn(&record, now);
        self.turn.commit.push(record);
        Ok(())
    }

    /// Withdraws a record of this node's own.
    fn withdraw(&mut self, key: &Key, now: Now) {
        if let Some(record) = self.gossip.remove(key, now.instant) {
            self.learn(&record, now);
            self.turn.commit.push(record);
        }
    }

    fn reply<T: Send + 'static>(&mut self, responder: Responder<T>, result: Result<T, ApiError>) {
        self.turn.replies.push(Box::new(move || responder.send(result)));
    }

    /// The host is to be told, and anything may be another than before.
    fn host_changed(&mut self) {
        self.host_changed_at(Place::Everything);
    }
}
