use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Instant,
};

use bytes::Bytes;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use weft_types::NodeId;

use crate::{
    Config, Event, INTEREST_KIND, Identity, Key, KeyRing, MAX_MESSAGE, MAX_NAME, MAX_VALUE, Member,
    MemberState, Output, PutError, Record, SendError, Stats, hearsay,
    identity::Short,
    interest::Said,
    membership::{Id, Membership},
    pace::Pace,
    replay::ReplayGuard,
    rumours::Rumours,
    seal::Sealer,
    store::{Amount, CLUSTER, Digests, Store},
    wire::{Body, Card},
};

mod contact;
mod doubt;
mod fetch;
mod interest;
mod own;
mod receive;
mod send;
mod sync;

/// One node's view of its cluster, and the protocol that keeps it true.
///
/// The crate's documentation says how to drive it.
#[derive(Debug)]
pub struct Gossip {
    config: Config,
    identity: Identity,
    node: NodeId,
    short: Short,
    boot: u64,
    created: Instant,
    rng: ChaCha12Rng,
    sealer: Sealer,
    replay: ReplayGuard,
    packets: Pace,
    pulls: Pace,
    store: Store,
    digests: Digests,
    wanted: interest::Wanted,
    /// What others want to be told of, but for those who want all.
    interests: BTreeMap<Short, Said>,
    membership: Membership,
    /// The generation that `digests` were told.
    generation: u64,
    rumours: Rumours,
    peers: BTreeMap<Short, Peer>,
    /// Those of them that can be talked to now, in no order.
    live: Vec<Short>,
    evicted: BTreeMap<Short, Evicted>,
    own: own::Own,
    join: contact::Join,
    sync: sync::Sync,
    /// Members that a peer believes down, and until when they may prove otherwise.
    doubts: BTreeMap<Short, doubt::Doubt>,
    rise: doubt::Rise,
    revive_at: Instant,
    tidy_at: Instant,
    outputs: VecDeque<Output>,
    stats: Stats,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Records may still be loaded; nothing was said yet.
    Loading,
    Running,
    Left,
}

/// Another node, as its card describes it.
#[derive(Debug)]
struct Peer {
    node: NodeId,
    card: Card,
    /// The last boot that any card of its has announced.
    boot: u64,
    /// The last generation in which it has itself spoken to this node.
    spoke: u64,
    state: MemberState,
    incarnation: u64,
    since: Instant,
    /// When it was last told to renew, or asked who it is, so that one incident does not cause a flood.
    nudged: Option<Instant>,
}

/// How often old tombstones are looked for.
const TIDY: std::time::Duration = std::time::Duration::from_secs(60);

impl Gossip {
    /// A node that knows nobody yet.
    ///
    /// `boot` counts the starts of this identity: it is kept on disk and raised before each start. `seed` is
    /// 32 secret random bytes, new at each start.
    pub fn new(config: Config, identity: Identity, boot: u64, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let node = identity.node();
        let short = Short::from(&node);
        let sealer = Sealer::new(
            config.cluster,
            config.keys.clone(),
            &identity,
            config.max_authors,
            &mut rng,
        );
        let generation = hearsay::first_of(boot);
        let membership = Membership::new(
            Id {
                node: short,
                generation,
            },
            ChaCha12Rng::from_rng(&mut rng),
        );
        Self {
            replay: ReplayGuard::new(config.max_authors),
            packets: Pace::new(
                config.max_packets_per_second,
                config.max_packets_per_second.saturating_mul(2),
                config.max_authors,
            ),
            pulls: Pace::new(
                config.max_pulls_per_second,
                config.max_pulls_per_second.saturating_mul(8),
                config.max_authors,
            ),
            store: Store::new(
                config.max_authors,
                Amount {
                    records: config.max_records_per_author,
                    bytes: config.max_bytes_per_author,
                },
                config.network_kinds.clone(),
            ),
            revive_at: now + config.revive,
            tidy_at: now + TIDY,
            sync: sync::Sync::new(now + config.anti_entropy),
            join: contact::Join::default(),
            own: own::Own::default(),
            digests: Digests::default(),
            wanted: interest::Wanted::default(),
            interests: BTreeMap::new(),
            rumours: Rumours::default(),
            peers: BTreeMap::new(),
            live: Vec::new(),
            evicted: BTreeMap::new(),
            doubts: BTreeMap::new(),
            rise: doubt::Rise::default(),
            outputs: VecDeque::new(),
            stats: Stats::default(),
            phase: Phase::Loading,
            config,
            identity,
            node,
            short,
            boot,
            created: now,
            rng,
            sealer,
            membership,
            generation,
        }
    }

    /// Takes back what was written to disk. To be called before everything else; the records must have come out
    /// of here, their signatures are not checked again.
    pub fn load(&mut self, records: impl IntoIterator<Item = Record>) {
        debug_assert_eq!(self.phase, Phase::Loading);
        let now = self.created;
        for record in records {
            let card = (record.key == Key::card()).then(|| record.clone());
            let (author, name) = (record.author, self.store.place(&record.author, &record.key));
            let is_interest = record.key.kind == INTEREST_KIND && author != self.node;
            self.store.apply(record, now);
            if let Some(card) = card.filter(|card| card.author != self.node) {
                self.take_card(&card, now);
            }
            if is_interest {
                self.note_interest(Short::from(&author));
            }
            self.touch(name);
        }
    }

    /// Asks these addresses to let this node in, again and again until a member answers. Members remembered
    /// from before are asked without being named here.
    pub fn join(&mut self, seeds: impl IntoIterator<Item = SocketAddr>, now: Instant) {
        self.start(now);
        self.add_seeds(seeds, now);
        self.settle(now);
    }

    /// Says `value` under `key`. The record is to be on disk before the outputs are carried out.
    ///
    /// After a start, writing is best left until [`Event::CaughtUp`], unless there is nobody to catch up with:
    /// what is written earlier over a disk that was rolled back is written a second time, with a new version.
    pub fn put(&mut self, key: Key, value: Bytes, now: Instant) -> Result<Record, PutError> {
        if key.kind >= INTEREST_KIND {
            return Err(PutError::ReservedKind(key.kind));
        }
        if key.name.len() > MAX_NAME {
            return Err(PutError::NameTooLong(key.name.len()));
        }
        if value.len() > MAX_VALUE {
            return Err(PutError::ValueTooLong(value.len()));
        }
        self.start(now);
        if !self.store.has_room(&self.node, &key, value.len()) {
            return Err(PutError::NoRoom {
                records: self.config.max_records_per_author,
                bytes: self.config.max_bytes_per_author,
            });
        }
        let record = self.write(key, Some(value), now);
        self.settle(now);
        Ok(record)
    }

    /// Says that there is nothing under `key` any more. None if there was nothing.
    pub fn remove(&mut self, key: &Key, now: Instant) -> Option<Record> {
        if key.kind >= INTEREST_KIND {
            return None;
        }
        self.get(&self.node, key)?.value.as_ref()?;
        self.start(now);
        let record = self.write(key.clone(), None, now);
        self.settle(now);
        Some(record)
    }

    /// Sends a datagram to another node's application: it arrives once or not at all.
    pub fn send(&mut self, to: NodeId, payload: Bytes, now: Instant) -> Result<(), SendError> {
        if payload.len() > MAX_MESSAGE {
            return Err(SendError::TooLong(payload.len()));
        }
        if to == self.node || self.is_evicted(&to) {
            return Err(SendError::NotAPeer(to));
        }
        let short = Short::from(&to);
        let peer = self
            .peers
            .get(&short)
            .filter(|peer| peer.node == to)
            .ok_or(SendError::Unknown(to))?;
        if peer.state == MemberState::Left || self.phase == Phase::Left {
            return Err(SendError::NotAPeer(to));
        }
        let body = Body::Message {
            session: peer.card.session,
            payload: payload.to_vec(),
        };
        self.start(now);
        self.send_body(short, &body);
        self.settle(now);
        Ok(())
    }

    /// Seals and opens with these keys from now on.
    pub fn set_keys(&mut self, ring: KeyRing) {
        self.sealer.keys.set(ring);
    }

    /// Seals a text for one node alone, whoever has the keys of the cluster. `context` says what it is, and is never the same for
    /// two texts. None if `to` is not a public key.
    pub fn seal_for(&self, to: &NodeId, context: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        self.identity.seal_for(to, context, text)
    }

    /// Opens what `from` has sealed for this node.
    pub fn open_from(&self, from: &NodeId, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        self.identity.open_from(from, context, sealed)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn sealer(&mut self) -> &mut Sealer {
        &mut self.sealer
    }

    /// Takes a datagram that arrived. Whatever it holds, it cannot do harm.
    pub fn handle_packet(&mut self, from: SocketAddr, packet: &[u8], now: Instant) {
        if self.phase == Phase::Left {
            return;
        }
        self.start(now);
        self.receive(from, packet, now);
        self.settle(now);
    }

    /// Takes a frame that a peer sent over a stream; the answer is to be sent back.
    pub fn handle_stream_request(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        if self.phase == Phase::Left {
            return None;
        }
        self.start(now);
        let answer = self.answer_pull(frame, now);
        self.settle(now);
        answer
    }

    /// Takes the answer to an [`Output::Stream`].
    pub fn handle_stream_response(&mut self, frame: &[u8], now: Instant) {
        if self.phase == Phase::Left {
            return;
        }
        self.start(now);
        self.take_chunk(frame, now);
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.phase == Phase::Left {
            return;
        }
        self.start(now);
        self.membership.handle_timeout(now);
        self.settle(now);
        self.flush_rumours(now);
        self.rejoin_if_due(now);
        self.revive_if_due(now);
        self.sync_if_due(now);
        self.look_at_doubts(now);
        self.rise_if_due(now);
        if self.tidy_at <= now {
            self.tidy_at = now + TIDY;
            if let Some(limit) = now.checked_sub(self.config.tombstone_ttl) {
                for (author, key) in self.store.drop_tombstones(limit) {
                    self.emit(Event::Dropped { author, key });
                }
            }
        }
        self.settle(now);
    }

    /// Says good-bye. Carry out the outputs, then drop this.
    pub fn leave(&mut self, now: Instant) {
        if self.phase == Phase::Left {
            return;
        }
        self.start(now);
        self.say_goodbye(now);
        self.settle(now);
        self.phase = Phase::Left;
    }

    /// Never talks to `node` again, but to show it a record that says why, if there is one, when it speaks. What it said stays,
    /// and comes from others as before: that is part of what all of them know, and the application decides how much of it still
    /// counts. Not remembered across starts: the caller does.
    pub fn evict(&mut self, node: NodeId, why: Option<Record>, now: Instant) {
        let short = Short::from(&node);
        if node == self.node || self.is_evicted(&node) {
            return;
        }
        let told = None;
        self.evicted.insert(short, Evicted { node, why, told });
        self.peers.remove(&short);
        self.live.retain(|live| *live != short);
        self.replay.forget(&node);
        if let Some(seen) = self.membership.seen(short).filter(|seen| seen.is_active()) {
            self.membership.down(short, seen.generation, true, now);
        }
        self.touch(short);
        if self.phase == Phase::Running {
            self.settle(now);
        }
    }

    fn is_evicted(&self, node: &NodeId) -> bool {
        self.evicted
            .get(&Short::from(node))
            .is_some_and(|evicted| evicted.node == *node)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Loading | Phase::Left => None,
            Phase::Running => [
                self.membership.next_due(),
                self.rumours.next_due(),
                self.join.next_due(),
                self.sync.next_due(),
                self.next_doubt(),
                self.rise.next_due(),
                Some(self.revive_at),
                Some(self.tidy_at),
            ]
            .into_iter()
            .flatten()
            .min(),
        }
    }

    /// This node's id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// How many things more this node can say, however long they are.
    pub fn room(&self) -> usize {
        self.store.room(&self.node)
    }

    /// Whether there is room for what somebody says who was never heard of.
    pub fn has_room_for_authors(&self) -> bool {
        self.store.has_room_for_authors()
    }

    /// What `author` says under `key`; a tombstone has no value.
    pub fn get(&self, author: &NodeId, key: &Key) -> Option<&Record> {
        self.store.get(author, key)
    }

    /// Everything anybody says, tombstones and cards included.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.store.records()
    }

    /// Every node ever heard of, but this one and those evicted.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.peers.values().map(Peer::member)
    }

    /// What was counted since the start.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// A short sum over all records that concern the cluster and all that is believed of members: nodes that agree have the same.
    pub fn fingerprint(&self) -> u64 {
        self.digests.cluster().root()
    }

    fn start(&mut self, now: Instant) {
        if self.phase == Phase::Loading {
            self.phase = Phase::Running;
            self.note_loaded();
            self.begin_anew(now);
            self.write_card(now);
            self.renew_own_sums(now);
            self.announce_interest(true, now);
            self.join.wake(now);
        }
    }

    /// After every input: turns what membership did into packets and events.
    fn settle(&mut self, now: Instant) {
        for node in self.membership.take_changes(now) {
            self.sync.busy(now, self.config.anti_entropy_busy);
            self.touch(node);
            self.refresh(node, now);
        }
        for (author, key) in self.store.take_dropped() {
            self.emit(Event::Dropped { author, key });
        }
        if self.membership.id().generation != self.generation {
            self.generation = self.membership.id().generation;
            self.touch(self.short);
            self.answer_for_generation(now);
        }
        for (to, data) in self.membership.take_packets() {
            self.send_body(to.node, &Body::Foca(data));
        }
        if self.membership.active().next().is_none() {
            self.join.wake(now);
        } else {
            self.join.rest();
        }
    }

    /// Takes note of what is held of a stream now, and believed of the node if it is one's own.
    fn touch(&mut self, name: Short) {
        let scope = self.store.stream(name).map_or(CLUSTER, |stream| stream.scope());
        self.digests.set(scope, &self.entry(name));
    }

    /// Brings a peer's state up to date with its card and with membership.
    fn refresh(&mut self, node: Short, now: Instant) {
        let seen = self.membership.seen(node);
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let state = match seen.map(|seen| seen.state) {
            _ if peer.card.left => MemberState::Left,
            Some(foca::State::Alive) => MemberState::Alive,
            Some(foca::State::Suspect) => MemberState::Suspect,
            Some(foca::State::Down) | None => MemberState::Down,
        };
        let incarnation = seen.map_or(0, |seen| seen.generation);
        self.doubts
            .retain(|doubted, doubt| *doubted != node || doubt.generation >= incarnation);
        let returned = state == MemberState::Alive && peer.state != MemberState::Alive;
        let changed = peer.state != state || peer.incarnation != incarnation;
        if peer.state != state {
            peer.since = now;
            if peer.is_live() {
                self.live.retain(|live| *live != node);
            }
            if matches!(state, MemberState::Alive | MemberState::Suspect) {
                self.live.push(node);
            }
        }
        (peer.state, peer.incarnation) = (state, incarnation);
        let member = peer.member();
        if returned {
            // It may have missed anything while it was away, and so may we.
            self.sync.soon_with(node, now);
        }
        if changed {
            self.emit(Event::Member(member));
        }
    }

    fn emit(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}

/// A node that is no member any more, and why.
#[derive(Debug)]
struct Evicted {
    node: NodeId,
    why: Option<Record>,
    told: Option<Instant>,
}

impl Peer {
    fn is_live(&self) -> bool {
        matches!(self.state, MemberState::Alive | MemberState::Suspect)
    }

    fn member(&self) -> Member {
        Member {
            node: self.node,
            address: self.card.address,
            state: self.state,
            incarnation: self.incarnation,
            since: self.since,
        }
    }
}
