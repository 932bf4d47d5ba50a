//! What arrives: opened, checked, and only then believed.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Gossip, Peer};
use crate::{
    Event, INTEREST_KIND, Key, MAX_PACKET, MemberState, Record,
    identity::Short,
    rumours::{Batch, ROUNDS},
    seal::{Channel, Opened, Rejected},
    store::{Applied, CLUSTER, name_of},
    wire::{self, AuthorSet, Body, Card, MAX_RUMOURS, Offer, Part},
};

/// How often an evicted node that speaks is told why nobody answers.
const TELL_AGAIN: Duration = Duration::from_secs(1);

impl Gossip {
    pub(super) fn receive(&mut self, from: SocketAddr, packet: &[u8], now: Instant) {
        self.stats.packets_received += 1;
        self.stats.bytes_received += packet.len() as u64;
        if packet.len() > MAX_PACKET {
            self.stats.malformed += 1;
            return;
        }
        let Some(opened) = self.open(Channel::Packet, packet) else {
            return;
        };
        if self.is_evicted(&opened.from) {
            self.stats.evicted += 1;
            self.tell_why(&opened, from, now);
            return;
        }
        if !self.is_heard(&opened) {
            return;
        }
        if opened.authentic && !self.packets.allows(&opened.from, now) {
            self.stats.flooded += 1;
            return;
        }
        let sender = Short::from(&opened.from);
        let known = self.peers.get(&sender).filter(|peer| peer.node == opened.from);
        let current = known.map(|peer| peer.card.session);
        let is_known = known.is_some();
        if opened.authentic
            && !self
                .replay
                .accept(opened.from, opened.session, opened.counter, current)
        {
            self.stats.replayed += 1;
            return;
        }
        if opened.authentic {
            self.sealer.keys.note(opened.from, opened.key);
        }
        let Some(body) = wire::decode::<Body>(&opened.body) else {
            self.stats.malformed += 1;
            return;
        };
        if let Body::Contact(contact) = body {
            self.handle_contact(&opened, from, contact, now);
            return;
        }
        if !opened.authentic {
            self.stats.malformed += 1;
            return;
        }
        if !is_known {
            // A member of which only membership has heard so far. To answer it takes its address; it is asked
            // for its card where it speaks from, and what it said will be said again.
            self.ask_for_card(&opened, from);
            return;
        }
        if current != Some(opened.session) && self.may_nudge(sender, now) {
            // It speaks in a start that its card does not name. It is new, or somebody else lives with its id;
            // what it is told where it speaks from, the other one does not get.
            self.contact_at(sender, from);
        }
        if !self.membership.seen(sender).is_some_and(|seen| seen.is_active())
            && !matches!(body, Body::Foca(_))
        {
            // It talks, and yet is not believed alive: it is to know, and to take a later generation.
            if self.may_nudge(sender, now) {
                self.contact(sender, false);
            }
        }
        self.dispatch(&opened, sender, current, body, now);
    }

    /// One that was evicted while it was away is to hear of it, and not to wonder why nobody answers.
    fn tell_why(&mut self, opened: &Opened, from: SocketAddr, now: Instant) {
        let node = &opened.from;
        let Some(evicted) = self.evicted.get_mut(&Short::from(node)) else {
            return;
        };
        let is_told = |last: Instant| now.saturating_duration_since(last) < TELL_AGAIN;
        if evicted.told.is_some_and(is_told) {
            return;
        }
        if let Some(why) = evicted.why.clone() {
            evicted.told = Some(now);
            let body = Body::Rumour {
                records: vec![why],
                offers: Vec::new(),
            };
            self.send_packet_by(opened.key, Some(node), from, &wire::encode(&body));
        }
    }

    /// Whether its sender may speak by the key it was sealed by; counts it if not.
    pub(super) fn is_heard(&mut self, opened: &Opened) -> bool {
        let is_heard = self.sealer.keys.may_speak(&opened.from, opened.key);
        self.stats.outdated += u64::from(!is_heard);
        is_heard
    }

    /// Opens a seal, and counts what does not open.
    pub(super) fn open(&mut self, channel: Channel, sealed: &[u8]) -> Option<Opened> {
        match self.sealer.open(channel, sealed) {
            // Our own name in another's packet: a reflection, or a clone. Clones are found by their cards.
            Ok(opened) if opened.from == self.node => self.stats.forged += 1,
            Ok(opened) => return Some(opened),
            Err(Rejected::Foreign) => self.stats.foreign += 1,
            Err(Rejected::Forged) => self.stats.forged += 1,
            Err(Rejected::Malformed) => self.stats.malformed += 1,
        }
        None
    }

    fn dispatch(&mut self, opened: &Opened, sender: Short, current: Option<u64>, body: Body, now: Instant) {
        match body {
            Body::Foca(data) => self.hear(&data, sender, now),
            Body::Rumour { records, offers } => {
                for record in records {
                    self.take_rumour(record, sender, now);
                }
                self.take_offers(offers, sender, now);
            }
            Body::Want(offers) => self.answer_wants(&offers, sender),
            Body::Message { session, payload } => {
                // Both ends must be in the start they are known to be in, or a recording could be played to
                // a later one.
                if session == self.sealer.session && current == Some(opened.session) {
                    self.emit(Event::Message {
                        from: opened.from,
                        payload: payload.into(),
                    });
                } else {
                    self.stats.replayed += 1;
                }
            }
            Body::Renew { above } => {
                self.rise(above, now);
                if self.membership.id().generation > above {
                    self.membership.greet(sender);
                }
            }
            Body::Digest { root } => self.handle_digest(sender, root),
            Body::InSync { root } => self.handle_in_sync(root, now),
            Body::Buckets(buckets) => self.handle_buckets(sender, Part::Cluster, &buckets, now),
            Body::Vector(ranges) => self.handle_vector(sender, &Part::Cluster, ranges, now),
            Body::Entries(entries) => self.handle_entries(sender, entries, now),
            Body::Sets(sets) => {
                for set in sets {
                    self.take_set(set, Some(sender), 1, now);
                }
            }
            Body::Invite => self.pull_from(sender, Part::Cluster, now),
            Body::Roots(roots) => self.handle_roots(sender, &roots),
            Body::SameRoots(roots) => self.handle_same_roots(sender, &roots, now),
            Body::NetworkBuckets(networks, buckets) => {
                let part = self.part_wanted(networks);
                self.handle_buckets(sender, part, &buckets, now);
            }
            Body::NetworkVector(networks, ranges) => {
                let part = self.part_wanted(networks);
                self.handle_vector(sender, &part, ranges, now);
            }
            Body::NetworkInvite(networks) => {
                let part = self.part_wanted(networks);
                self.pull_from(sender, part, now);
            }
            Body::Contact(_) => {}
        }
    }

    fn take_rumour(&mut self, record: Record, sender: Short, now: Instant) {
        if record.author == self.node {
            self.take_set(
                AuthorSet {
                    all: false,
                    dropped: 0,
                    records: vec![record],
                },
                Some(sender),
                0,
                now,
            );
            return;
        }
        let name = self.store.place(&record.author, &record.key);
        if self.take_record(record, Some(sender), ROUNDS, now)
            && self
                .store
                .stream(name)
                .is_some_and(|stream| !stream.is_complete())
        {
            // Something between this and what was known is missing.
            self.sync.soon_with(sender, now);
        }
    }

    /// Asks for what is lacking here of what a peer offers.
    fn take_offers(&mut self, offers: Vec<Offer>, sender: Short, now: Instant) {
        let mut wanted = offers;
        wanted.retain(|offer| self.store.lacks(*offer) && self.rumours.ask(*offer, now));
        if !wanted.is_empty() {
            self.send_body(sender, &Body::Want(wanted));
        }
    }

    fn answer_wants(&mut self, wanted: &[Offer], sender: Short) {
        let mut batch = Batch::default();
        let mut bodies = Vec::new();
        let wanted = wanted.iter().take(MAX_RUMOURS);
        for record in wanted.flat_map(|offer| self.store.named(*offer)) {
            batch.tell(wire::encode(record), &mut bodies);
        }
        batch.close(&mut bodies);
        for telling in bodies {
            self.tell(sender, &telling);
        }
    }

    /// Takes a record of another node, from anybody, if it is news and really its author's.
    pub(super) fn take_record(
        &mut self,
        record: Record,
        source: Option<Short>,
        rounds: u8,
        now: Instant,
    ) -> bool {
        let scope = self.store.scope(&record.key);
        if record.author == self.node || !self.wants(&scope) || !self.store.is_news(&record) {
            return false;
        }
        if !record.is_bounded() {
            self.stats.malformed += 1;
            return false;
        }
        if !record.verify(&self.config.cluster) {
            self.stats.forged += 1;
            return false;
        }
        match self.store.apply(record.clone(), now) {
            Applied::Old => false,
            Applied::Full => {
                self.stats.records_refused += 1;
                false
            }
            Applied::New(previous) => {
                if record.key == Key::card() && !self.is_evicted(&record.author) {
                    self.take_card(&record, now);
                }
                let author = Short::from(&record.author);
                if record.key.kind == INTEREST_KIND {
                    self.note_interest(author);
                }
                self.touch(name_of(&record.author, &scope));
                self.spread(&record, source, rounds, now);
                self.refresh(author, now);
                self.emit(Event::Record { record, previous });
                true
            }
        }
    }

    /// Takes several records of one author, which together may be all it says.
    pub(super) fn take_set(&mut self, set: AuthorSet, source: Option<Short>, rounds: u8, now: Instant) {
        let Some(first) = set.records.first() else {
            return;
        };
        let (author, scope) = (first.author, self.store.scope(&first.key));
        let is_foreign = |record: &Record| {
            record.author != author || self.store.scope(&record.key) != scope || !record.is_bounded()
        };
        if set.records.iter().any(is_foreign) {
            self.stats.malformed += 1;
            return;
        }
        if author != self.node && !self.wants(&scope) {
            return;
        }
        // What the sum over a set proves hangs on its newest record, so even that has to be genuine which
        // would not be taken.
        let genuine = |record: &Record| {
            self.store.get(&author, &record.key) == Some(record) || record.verify(&self.config.cluster)
        };
        if !set.records.iter().all(genuine) {
            self.stats.forged += 1;
            return;
        }
        if author == self.node {
            self.adopt(&set, source, now);
            return;
        }
        for record in &set.records {
            // Verified once more if it is news; sets are small and rare.
            self.take_record(record.clone(), source, rounds, now);
        }
        for record in self.store.retain_only(&set) {
            self.emit(Event::Dropped {
                author,
                key: record.key,
            });
        }
        let name = name_of(&author, &scope);
        if let Some(stream) = self.store.stream_mut(name).filter(|stream| !stream.is_complete()) {
            stream.ask_all = true;
        }
        if scope == CLUSTER {
            self.note_interest(name);
        }
        self.touch(name);
    }

    /// Tells others of a record, unless nobody is to be told.
    pub(super) fn spread(&mut self, record: &Record, source: Option<Short>, rounds: u8, now: Instant) {
        let scope = self.store.scope(&record.key);
        let stream = (scope, name_of(&record.author, &scope));
        if rounds > 0 && !self.rumours.add(record, stream, source, rounds, now) {
            self.stats.rumours_dropped += 1;
        }
        self.sync.busy(now, self.config.anti_entropy_busy);
    }

    pub(super) fn take_card(&mut self, record: &Record, now: Instant) {
        let Some(card) = record.value.as_deref().and_then(wire::decode::<Card>) else {
            return;
        };
        let node = Short::from(&record.author);
        let left = card.left;
        let peer = self.peers.entry(node).or_insert_with(|| Peer {
            node: record.author,
            card: card.clone(),
            boot: 0,
            spoke: 0,
            state: MemberState::Down,
            incarnation: 0,
            since: now,
            nudged: None,
        });
        peer.boot = peer.boot.max(card.boot);
        peer.card = card;
        if let Some(seen) = self.membership.seen(node).filter(|seen| left && seen.is_active()) {
            self.membership.down(node, seen.generation, true, now);
        }
    }

    fn ask_for_card(&mut self, opened: &Opened, address: SocketAddr) {
        let Some(card) = self.own_card() else { return };
        let generation = self.membership.id().generation;
        let contact = wire::Contact {
            card,
            generation,
            yours: None,
            your_card: None,
            reply: false,
        };
        let body = wire::encode(&Body::Contact(contact));
        self.send_packet_by(opened.key, Some(&opened.from), address, &body);
    }
}

#[cfg(test)]
mod tests;
