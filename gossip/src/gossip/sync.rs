//! Anti-entropy: whatever was missed is found by comparing, and fetched.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use rand::{RngExt, seq::IndexedRandom};
use weft_types::NetworkId;

use super::{Gossip, Peer, fetch::Pulling};
use crate::{
    Event,
    identity::Short,
    store::CLUSTER,
    wire::{self, AuthorSet, Body, Entry, Liveness, MAX_BODY, MAX_NETWORKS, Part, Range},
};

/// More than this is fetched over a stream rather than sent in packets.
const PACKETS: usize = 16 * 1024;
/// The most packets a version vector may take.
const VECTORS: usize = 16;
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
    pub(super) pull: Option<Pulling>,
    pub(super) caught_up: bool,
    busy: bool,
}

/// What comparing with a peer comes to.
#[derive(Default)]
pub(super) struct Findings {
    /// With each whether the peer has something of that author already.
    pub(super) sets: Vec<(AuthorSet, bool)>,
    pub(super) entries: Vec<Entry>,
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
        self.look_at_interest(now);
        let returned = loop {
            match self.sync.queue.pop_front() {
                Some(peer) if self.peers.get(&peer).is_some_and(Peer::is_live) => break Some(peer),
                Some(_) => {}
                None => break None,
            }
        };
        let peer = returned.or_else(|| self.live.choose(&mut self.rng).copied());
        let pause = match (self.sync.queue.is_empty(), self.sync.busy) {
            (false, _) => NEXT,
            (true, true) => self.config.anti_entropy_busy,
            (true, false) => self.config.anti_entropy,
        };
        self.sync.busy = false;
        self.sync.next = now + pause.mul_f64(self.rng.random_range(0.75..1.25));
        let Some(peer) = peer else { return };
        if !self.sync.caught_up {
            self.pull_from(peer, Part::Cluster, now);
            return;
        }
        let root = self.digests.cluster().root();
        self.send_body(peer, &Body::Digest { root });
        self.fetch_networks(now);
        let partner = match returned {
            Some(peer) => Some((peer, None)),
            None => self.partner_in_networks(),
        };
        if let Some((peer, network)) = partner {
            let roots = self.shared_with(peer, network);
            if !roots.is_empty() {
                self.send_body(peer, &Body::Roots(roots));
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
        let buckets = self.digests.cluster();
        if root == buckets.root() {
            self.send_body(from, &Body::InSync { root });
        } else {
            let buckets = buckets.bytes();
            self.stats.exchanges += 1;
            self.send_body(from, &Body::Buckets(buckets));
        }
    }

    pub(super) fn handle_in_sync(&mut self, root: u64, now: Instant) {
        if root == self.digests.cluster().root() {
            self.note_caught_up(now);
        }
    }

    /// A peer compares networks that both are to know of.
    pub(super) fn handle_roots(&mut self, from: Short, roots: &[(NetworkId, u64)]) {
        let wanted = roots.iter().take(MAX_NETWORKS);
        let wanted = wanted.copied().filter(|(network, _)| self.wants(network));
        let (same, other): (Vec<_>, Vec<_>) =
            wanted.partition(|(network, root)| self.fingerprint_of(*network) == *root);
        if !same.is_empty() {
            let same = same.into_iter();
            let same = same.map(|(network, root)| (network, root, self.stays_in(&network)));
            let body = Body::SameRoots(same.collect());
            self.send_body(from, &body);
        }
        if !other.is_empty() {
            self.stats.exchanges += 1;
            let networks: Vec<_> = other.into_iter().map(|(network, _)| network).collect();
            let part = Part::Networks(networks.iter().copied().collect());
            let buckets = self.digests.of(&part).bytes();
            self.send_body(from, &Body::NetworkBuckets(networks, buckets));
        }
    }

    pub(super) fn handle_same_roots(&mut self, from: Short, roots: &[(NetworkId, u64, bool)], now: Instant) {
        for (network, root, stays) in roots.iter().take(MAX_NETWORKS) {
            if self.fingerprint_of(*network) == *root {
                self.note_same(*network, *root, from, *stays, now);
            }
        }
    }

    /// Of the networks that a peer speaks of those that this node is to know of too.
    pub(super) fn part_wanted(&self, networks: Vec<NetworkId>) -> Part {
        let wanted = networks.into_iter().filter(|network| *network != CLUSTER);
        Part::Networks(wanted.filter(|network| self.wants(network)).collect())
    }

    /// Where a set belongs.
    pub(super) fn part_of(&self, set: &AuthorSet) -> Part {
        let scopes = set.records.iter().map(|record| self.store.scope(&record.key));
        match scopes.last() {
            None | Some(CLUSTER) => Part::Cluster,
            Some(network) => Part::Networks(BTreeSet::from([network])),
        }
    }

    pub(super) fn handle_buckets(&mut self, from: Short, part: Part, buckets: &[u8], now: Instant) {
        // One exchange may not settle it: the next is to follow soon.
        self.sync.busy(now, self.config.anti_entropy_busy);
        let ranges: Vec<Range> = self
            .digests
            .of(&part)
            .differing(buckets)
            .into_iter()
            .map(|index| self.bucket(index, &part))
            .collect();
        let networks: Option<Vec<NetworkId>> = match &part {
            Part::Cluster => None,
            Part::Networks(networks) => Some(networks.iter().copied().collect()),
        };
        let head = SET_HEAD
            + networks
                .as_ref()
                .map_or(0, |networks| wire::encode(networks).len());
        let mut packets: Vec<Vec<Range>> = Vec::new();
        let mut length = MAX_BODY;
        for range in ranges {
            let more = wire::encode(&range).len();
            if length + more > MAX_BODY {
                packets.push(Vec::new());
                length = head;
            }
            length += more;
            packets.last_mut().expect("one was just pushed").push(range);
        }
        let fits = |ranges: &Vec<Range>| wire::encode(ranges).len() + head < MAX_BODY + SET_HEAD;
        if packets.len() > VECTORS || !packets.iter().all(fits) {
            self.pull_from(from, part, now);
            return;
        }
        for ranges in packets {
            let body = match networks.clone() {
                None => Body::Vector(ranges),
                Some(networks) => Body::NetworkVector(networks, ranges),
            };
            self.send_body(from, &body);
        }
    }

    fn bucket(&self, index: u8, part: &Part) -> Range {
        let (mut from, mut to) = (Short::MIN, Short::MAX);
        (from.0[0], to.0[0]) = (index, index);
        Range {
            from,
            to,
            entries: self
                .names_between(from, to, part)
                .into_iter()
                .map(|name| self.shown(self.entry(name)))
                .collect(),
        }
    }

    /// The streams that belong to a part, and of the cluster's those of members that have said nothing yet.
    pub(super) fn names_between(&self, from: Short, to: Short, part: &Part) -> BTreeSet<Short> {
        if from > to {
            return BTreeSet::new();
        }
        let streams = self.store.streams(from, to);
        let streams = streams.filter(|(_, stream)| part.covers(&stream.scope()));
        let mut names: BTreeSet<Short> = streams.map(|(name, _)| name).collect();
        if *part == Part::Cluster {
            names.extend(self.membership.known(from, to));
            names.extend((from..=to).contains(&self.short).then_some(self.short));
        }
        names
    }

    pub(super) fn handle_vector(&mut self, from: Short, part: &Part, ranges: Vec<Range>, now: Instant) {
        let mut findings = Findings::default();
        for range in ranges {
            self.compare_range(&range, part, &mut findings, PACKETS, now);
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

    /// Compares what a peer has of a range of streams with what is here; stops after the one with which
    /// the findings exceed `limit` bytes, and says which that was.
    pub(super) fn compare_range(
        &mut self,
        range: &Range,
        part: &Part,
        findings: &mut Findings,
        limit: usize,
        now: Instant,
    ) -> Short {
        let names = self.names_between(range.from, range.to, part);
        let mut entries: BTreeMap<Short, Entry> = names
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
        let scopes = findings.sets.iter().filter_map(|(set, _)| set.records.first());
        let scopes: BTreeSet<_> = scopes.map(|record| self.store.scope(&record.key)).collect();
        let networks = scopes.into_iter().filter(|scope| *scope != CLUSTER);
        let networks: Vec<NetworkId> = networks.take(MAX_NETWORKS).collect();
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
            let body = if networks.is_empty() {
                Body::Invite
            } else {
                Body::NetworkInvite(networks)
            };
            self.send_body(to, &body);
        }
    }

    pub(super) fn note_caught_up(&mut self, now: Instant) {
        if !self.sync.caught_up {
            self.sync.caught_up = true;
            self.emit(Event::CaughtUp);
            self.fetch_networks(now);
        }
    }

    /// As others are to see it: who knows more of us than we do is to tell all.
    fn shown(&self, entry: Entry) -> Entry {
        if self.is_own_stream(entry.node) {
            Entry { complete: 0, ..entry }
        } else {
            entry
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
