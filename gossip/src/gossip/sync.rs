//! Anti-entropy: whatever was missed is found by comparing, and fetched.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, seq::IndexedRandom};

use super::{Gossip, Peer};
use crate::{
    Event, Output,
    identity::Short,
    seal::Channel,
    wire::{self, AuthorSet, Body, Chunk, Entry, Liveness, MAX_BODY, Pull, Range},
};

/// More than this is fetched over a stream rather than sent in packets.
const PACKETS: usize = 16 * 1024;
/// A chunk on a stream ends after the author that makes it this large.
const CHUNK: usize = 512 * 1024;
/// The most authors asked about in one request.
const PULL_ENTRIES: usize = 8192;
/// The most packets a version vector may take.
const VECTORS: usize = 16;
/// How long the answer to a request may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(6);
/// The pause between exchanges with one returned member and the next.
const NEXT: Duration = Duration::from_millis(100);
/// Returned members waiting for an exchange. Those beyond are met by chance.
const MAX_QUEUE: usize = 8;
/// Room for the tag and lengths of a body with one set in it.
const SET_HEAD: usize = 24;

#[derive(Debug)]
pub(super) struct Sync {
    next: Instant,
    queue: VecDeque<Short>,
    pull: Option<Pulling>,
    caught_up: bool,
    busy: bool,
}

#[derive(Debug)]
struct Pulling {
    peer: Short,
    id: u64,
    deadline: Instant,
}

/// What comparing with a peer comes to.
#[derive(Default)]
struct Findings {
    /// With each whether the peer has something of that author already.
    sets: Vec<(AuthorSet, bool)>,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Sync {
    pub(super) fn new(next: Instant) -> Self {
        Self {
            next,
            queue: VecDeque::new(),
            pull: None,
            caught_up: false,
            busy: false,
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        Some(self.pull.as_ref().map_or(self.next, |pull| pull.deadline))
    }

    /// Compare with this peer before others.
    pub(super) fn soon_with(&mut self, peer: Short, now: Instant) {
        if self.queue.len() < MAX_QUEUE && !self.queue.contains(&peer) {
            self.queue.push_back(peer);
            self.next = self.next.min(now + NEXT);
        }
    }

    /// Something changed, so somebody may have missed it.
    pub(super) fn busy(&mut self, now: Instant, pause: Duration) {
        if !self.busy {
            self.busy = true;
            self.next = self.next.min(now + pause);
        }
    }
}

impl Gossip {
    pub(super) fn sync_if_due(&mut self, now: Instant) {
        if let Some(pull) = &self.sync.pull {
            if pull.deadline > now {
                return;
            }
            self.sync.pull = None;
        }
        if self.sync.next > now {
            return;
        }
        let peer = loop {
            match self.sync.queue.pop_front() {
                Some(peer) if self.peers.get(&peer).is_some_and(Peer::is_live) => break Some(peer),
                Some(_) => {}
                None => break self.live.choose(&mut self.rng).copied(),
            }
        };
        let pause = match (self.sync.queue.is_empty(), self.sync.busy) {
            (false, _) => NEXT,
            (true, true) => self.config.anti_entropy_busy,
            (true, false) => self.config.anti_entropy,
        };
        self.sync.busy = false;
        self.sync.next = now + pause.mul_f64(self.rng.random_range(0.75..1.25));
        if let Some(peer) = peer {
            if self.sync.caught_up {
                self.send_body(
                    peer,
                    &Body::Digest {
                        root: self.digest.root(),
                    },
                );
            } else {
                self.pull_from(peer, now);
            }
        }
    }

    /// What is held and believed of `node`, for others to compare with.
    pub(super) fn entry(&self, node: Short) -> Entry {
        let liveness = match self.evicted.contains_key(&node) {
            true => Liveness::Unknown,
            false => self.membership.liveness(node),
        };
        self.store.entry(node, liveness)
    }

    pub(super) fn handle_digest(&mut self, from: Short, root: u64) {
        if root == self.digest.root() {
            self.send_body(from, &Body::InSync { root });
        } else {
            self.stats.exchanges += 1;
            self.send_body(from, &Body::Buckets(self.digest.buckets()));
        }
    }

    pub(super) fn handle_in_sync(&mut self, root: u64) {
        if root == self.digest.root() {
            self.note_caught_up();
        }
    }

    pub(super) fn handle_buckets(&mut self, from: Short, buckets: &[u8], now: Instant) {
        // One exchange may not settle it: the next is to follow soon.
        self.sync.busy(now, self.config.anti_entropy_busy);
        let ranges: Vec<Range> = self
            .digest
            .differing(buckets)
            .into_iter()
            .map(|index| self.bucket(index))
            .collect();
        let mut packets: Vec<Vec<Range>> = Vec::new();
        let mut length = MAX_BODY;
        for range in ranges {
            let more = wire::encode(&range).len();
            if length + more > MAX_BODY {
                packets.push(Vec::new());
                length = SET_HEAD;
            }
            length += more;
            packets.last_mut().expect("one was just pushed").push(range);
        }
        let fits = |ranges: &Vec<Range>| wire::encode(ranges).len() < MAX_BODY;
        if packets.len() > VECTORS || !packets.iter().all(fits) {
            self.pull_from(from, now);
            return;
        }
        for ranges in packets {
            self.send_body(from, &Body::Vector(ranges));
        }
    }

    fn bucket(&self, index: u8) -> Range {
        let (mut from, mut to) = (Short::MIN, Short::MAX);
        (from.0[0], to.0[0]) = (index, index);
        Range {
            from,
            to,
            entries: self
                .nodes_between(from, to)
                .into_iter()
                .map(|node| self.shown(self.entry(node)))
                .collect(),
        }
    }

    fn nodes_between(&self, from: Short, to: Short) -> BTreeSet<Short> {
        if from > to {
            return BTreeSet::new();
        }
        let own = (from..=to).contains(&self.short).then_some(self.short);
        self.store
            .authors(from, to)
            .chain(self.membership.known(from, to))
            .chain(own)
            .collect()
    }

    pub(super) fn handle_vector(&mut self, from: Short, ranges: Vec<Range>, now: Instant) {
        let mut findings = Findings::default();
        for range in ranges {
            self.compare_range(&range, &mut findings, PACKETS, now);
        }
        self.send_findings(from, findings);
    }

    pub(super) fn handle_entries(&mut self, from: Short, entries: Vec<Entry>, now: Instant) {
        let mut findings = Findings::default();
        for entry in entries {
            self.compare(&entry, &mut findings, now);
        }
        // The other knows by now what it knows more of.
        findings.entries.clear();
        self.send_findings(from, findings);
    }

    /// Compares what a peer has of a range of authors with what is here; stops after the author with whom
    /// the findings exceed `limit` bytes, and says which that was.
    fn compare_range(&mut self, range: &Range, findings: &mut Findings, limit: usize, now: Instant) -> Short {
        let nodes = self.nodes_between(range.from, range.to);
        let mut entries: BTreeMap<Short, Entry> = nodes
            .into_iter()
            .map(|node| (node, Entry::nothing(node)))
            .collect();
        entries.extend(range.entries.iter().map(|entry| (entry.node, *entry)));
        for (node, theirs) in entries {
            self.compare(&theirs, findings, now);
            if findings.bytes > limit {
                return node;
            }
        }
        range.to
    }

    fn compare(&mut self, theirs: &Entry, findings: &mut Findings, now: Instant) {
        let node = theirs.node;
        let tell = !self.evicted.contains_key(&node) && self.compare_liveness(node, theirs.liveness, now);
        let mine = self.entry(node);
        let differ = mine.highest != theirs.highest || mine.live != theirs.live;
        let (whole, theirs_whole) = (mine.complete == mine.highest, theirs.complete == theirs.highest);
        let same_age = mine.highest == theirs.highest;
        let ahead = mine.highest > theirs.highest || (same_age && (whole || !theirs_whole));
        let behind = mine.highest < theirs.highest || (same_age && (theirs_whole || !whole));
        if differ && ahead {
            let set = self.store.since(node, theirs.complete);
            findings.bytes += set.records.iter().map(wire::size_bound).sum::<usize>();
            findings.sets.push((set, theirs.highest > 0));
        }
        if (differ && behind) || tell {
            findings.entries.push(self.shown(mine));
        }
    }

    /// Learns from what a peer believes of a member; true if the peer has something to learn.
    fn compare_liveness(&mut self, node: Short, theirs: Liveness, now: Instant) -> bool {
        use Liveness::{Active, Down, Unknown};
        if node == self.short {
            let generation = self.membership.id().generation;
            match theirs {
                Down(down) if down >= generation => self.rise(down, now),
                Active(active) if active > generation => self.rise(active, now),
                _ => {}
            }
            return theirs != self.membership.liveness(node);
        }
        if let Active(generation) | Down(generation) = theirs
            && !self.is_announced(node, generation)
        {
            return self.membership.liveness(node) != Unknown;
        }
        let tell = match (self.membership.liveness(node), theirs) {
            (Unknown, Unknown) => false,
            (_, Unknown) => true,
            (Unknown, Active(generation)) => {
                self.membership.alive(node, generation, now);
                false
            }
            (Active(mine) | Down(mine), Active(theirs)) if theirs > mine => {
                self.membership.alive(node, theirs, now);
                false
            }
            (Unknown, Down(generation)) => {
                self.membership.down(node, generation, false, now);
                // If that is not so, it is to say so at once.
                self.ask_to_rise(node, generation);
                false
            }
            (Down(mine), Down(theirs)) if theirs > mine => {
                self.membership.down(node, theirs, false, now);
                false
            }
            (Active(mine), Down(theirs)) if theirs >= mine => {
                if self.is_settled_that_down(node, theirs, now) {
                    self.membership.down(node, theirs, true, now);
                } else {
                    self.doubt(node, theirs, now);
                }
                false
            }
            (mine, theirs) => mine != theirs,
        };
        self.settle(now);
        tell
    }

    fn send_findings(&mut self, to: Short, findings: Findings) {
        let mut invite = findings.bytes > PACKETS;
        if !invite {
            let mut packets: Vec<Vec<AuthorSet>> = Vec::new();
            let mut length = MAX_BODY;
            for (set, has_some) in findings.sets {
                let size =
                    |set: &AuthorSet| SET_HEAD + set.records.iter().map(wire::size_bound).sum::<usize>();
                let pieces = if size(&set) <= MAX_BODY - SET_HEAD {
                    vec![set]
                } else {
                    split(set, has_some, &mut invite)
                };
                for piece in pieces {
                    if length + size(&piece) > MAX_BODY {
                        packets.push(Vec::new());
                        length = 2;
                    }
                    length += size(&piece);
                    packets.last_mut().expect("one was just pushed").push(piece);
                }
            }
            for sets in packets {
                self.send_body(to, &Body::Sets(sets));
            }
        }
        const ENTRIES: usize = MAX_BODY / 50;
        for entries in findings.entries.chunks(ENTRIES) {
            self.send_body(to, &Body::Entries(entries.to_vec()));
        }
        if invite {
            self.send_body(to, &Body::Invite);
        }
    }

    /// After a start: fetches everything from the first member that answers.
    pub(super) fn catch_up_with(&mut self, peer: Short, now: Instant) {
        if !self.sync.caught_up {
            self.pull_from(peer, now);
        }
    }

    fn note_caught_up(&mut self) {
        if !self.sync.caught_up {
            self.sync.caught_up = true;
            self.emit(Event::CaughtUp);
        }
    }

    /// Fetches what is lacking over a stream, unless that is going on already.
    pub(super) fn pull_from(&mut self, peer: Short, now: Instant) {
        if self.sync.pull.is_none() {
            self.pull(peer, Short::MIN, now);
        }
    }

    fn pull(&mut self, peer: Short, from: Short, now: Instant) {
        let Some((node, address)) = self.peers.get(&peer).map(|peer| (peer.node, peer.card.address)) else {
            return;
        };
        let nodes = self.nodes_between(from, Short::MAX);
        let to = nodes.iter().nth(PULL_ENTRIES).copied().unwrap_or(Short::MAX);
        let entries = nodes
            .range(..=to)
            .map(|node| self.entry_for_pull(*node))
            .collect();
        let id = self.rng.next_u64();
        let request = wire::encode(&Pull {
            id,
            range: Range { from, to, entries },
        });
        if let Some(request) = self.sealer.seal(Channel::Request, Some(&node), &request) {
            self.sync.pull = Some(Pulling {
                peer,
                id,
                deadline: now + PULL_TIMEOUT,
            });
            self.outputs.push_back(Output::Stream { to: address, request });
        }
    }

    /// As others are to see it: who knows more of us than we do is to tell all.
    fn shown(&self, entry: Entry) -> Entry {
        if entry.node == self.short {
            Entry { complete: 0, ..entry }
        } else {
            entry
        }
    }

    /// In a pull the other is to tell all it knows of us in any case. There may be something among it that was
    /// said before the disk was rolled back, although we have counted further since.
    fn entry_for_pull(&self, node: Short) -> Entry {
        let entry = self.entry(node);
        if node == self.short {
            let liveness = entry.liveness;
            Entry {
                liveness,
                ..Entry::nothing(node)
            }
        } else {
            entry
        }
    }

    pub(super) fn answer_pull(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let opened = self.open(Channel::Request, frame)?;
        if self.is_evicted(&opened.from) {
            self.stats.evicted += 1;
            return None;
        }
        if !self.is_heard(&opened) {
            return None;
        }
        if opened.authentic && !self.pulls.allows(&opened.from, now) {
            self.stats.flooded += 1;
            return None;
        }
        let pull = wire::decode::<Pull>(&opened.body).filter(|_| opened.authentic);
        let Some(Pull { id, range }) = pull else {
            self.stats.malformed += 1;
            return None;
        };
        let mut findings = Findings::default();
        let upto = self.compare_range(&range, &mut findings, CHUNK, now);
        let chunk = Chunk {
            id,
            upto,
            sets: findings.sets.into_iter().map(|(set, _)| set).collect(),
            entries: findings.entries,
        };
        let (to, body) = (Some(&opened.from), wire::encode(&chunk));
        let sealed = self.sealer.seal_by(opened.key, Channel::Response, to, &body)?;
        Some(sealed.into())
    }

    pub(super) fn take_chunk(&mut self, frame: &[u8], now: Instant) {
        let Some(opened) = self.open(Channel::Response, frame) else {
            return;
        };
        if self.is_evicted(&opened.from) {
            self.stats.evicted += 1;
            return;
        }
        if !self.is_heard(&opened) {
            return;
        }
        let peer = Short::from(&opened.from);
        let chunk = wire::decode::<Chunk>(&opened.body).filter(|_| opened.authentic);
        let Some(Chunk {
            id,
            upto,
            sets,
            entries,
        }) = chunk
        else {
            self.stats.malformed += 1;
            return;
        };
        if self
            .sync
            .pull
            .as_ref()
            .is_none_or(|pull| pull.id != id || pull.peer != peer)
        {
            self.stats.replayed += 1;
            return;
        }
        self.sync.pull = None;
        for set in sets {
            self.take_set(set, Some(peer), 0, now);
        }
        self.handle_entries(peer, entries, now);
        match upto.successor() {
            Some(next) => self.pull(peer, next, now),
            None => self.note_caught_up(),
        }
    }
}

/// Cuts a set that does not fit a packet into pieces that do. If the peer has to look at it as a whole, to
/// find what it has too much, that is of no use, and `invite` becomes true.
fn split(set: AuthorSet, has_some: bool, invite: &mut bool) -> Vec<AuthorSet> {
    *invite |= set.all && has_some;
    let mut pieces: Vec<AuthorSet> = Vec::new();
    let mut length = MAX_BODY;
    for record in set.records {
        let more = wire::size_bound(&record);
        if length + more > MAX_BODY {
            pieces.push(AuthorSet {
                all: false,
                dropped: set.dropped,
                records: Vec::new(),
            });
            length = 2 * SET_HEAD;
        }
        length += more;
        pieces
            .last_mut()
            .expect("one was just pushed")
            .records
            .push(record);
    }
    pieces
}
