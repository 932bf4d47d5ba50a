//! What this node says itself, and what others remember of it.

use std::{collections::BTreeSet, time::Instant};

use bytes::Bytes;
use rand::seq::IndexedRandom;

use super::Gossip;
use crate::{
    Event, INTEREST_KIND, Key, Record, hearsay,
    identity::Short,
    record::StateSum,
    rumours::ROUNDS,
    store::proven,
    wire::{self, AuthorSet, Body, Card},
};

#[derive(Debug, Default)]
pub(super) struct Own {
    /// Keys written since this start. If the disk was rolled back, these are later intentions than anything
    /// a peer remembers.
    fresh: BTreeSet<Key>,
    /// The highest version that was on disk at the start. What peers know above it and we did not write since
    /// is from a life that this disk has forgotten.
    loaded: u64,
    /// No version up to this one is to be used again.
    floor: u64,
    /// The session of another start of this node whose card was seen.
    replaces: Option<u64>,
    /// Sessions that were reported to live at the same time as this one.
    clones: BTreeSet<u64>,
}

impl Gossip {
    /// Writes, signs and spreads a record.
    pub(super) fn write(&mut self, key: Key, value: Option<Bytes>, now: Instant) -> Record {
        let name = self.store.place(&self.node, &key);
        let stream = self.store.stream(name);
        let live = stream.map_or(StateSum::default(), |stream| stream.live());
        let previous = stream
            .and_then(|stream| stream.get(&key))
            .map_or(StateSum::default(), Record::sum);
        let version = self.store.highest(&self.node).max(self.own.floor) + 1;
        let state = live.minus(previous).plus(StateSum::of(&key, version, &value));
        let record = Record::sign(
            &self.identity,
            &self.config.cluster,
            key.clone(),
            version,
            value,
            state,
        );
        self.own.fresh.insert(key);
        self.store.adopt(record.clone(), now);
        self.touch(name);
        self.spread(&record, None, ROUNDS, now);
        record
    }

    pub(super) fn write_card(&mut self, now: Instant) {
        self.write_card_with(false, now);
    }

    fn write_card_with(&mut self, left: bool, now: Instant) {
        let card = Card {
            address: self.config.advertise,
            boot: self.boot,
            session: self.sealer.session,
            replaces: self.own.replaces,
            left,
        };
        let previous = self.get(&self.node, &Key::card()).cloned();
        let record = self.write(Key::card(), Some(wire::encode(&card).into()), now);
        // Nobody returned this one to the caller, who must write it to disk like the others.
        self.emit(Event::Record { record, previous });
    }

    pub(super) fn own_card(&self) -> Option<Record> {
        self.get(&self.node, &Key::card()).cloned()
    }

    /// Tells everybody in reach, at once, because there will be no later.
    pub(super) fn say_goodbye(&mut self, now: Instant) {
        const AT_MOST: usize = 16;
        self.write_card_with(true, now);
        let Some(card) = self.own_card() else { return };
        let body = wire::encode(&Body::Rumour {
            records: vec![card],
            offers: Vec::new(),
        });
        for peer in self
            .live
            .sample(&mut self.rng, AT_MOST)
            .copied()
            .collect::<Vec<_>>()
        {
            self.send_encoded(peer, &body);
        }
        self.flush_rumours(now);
        self.membership.leave(now);
    }

    pub(super) fn note_loaded(&mut self) {
        self.own.loaded = self.store.highest(&self.node);
    }

    /// Takes what a peer remembers of this node's own records; their signatures were checked.
    ///
    /// Normally it is an echo of what is held. If there is something in it that is newer, then either the
    /// disk was rolled back, or it was copied and somebody else lives with it.
    pub(super) fn adopt(&mut self, set: &AuthorSet, source: Option<Short>, now: Instant) {
        let Some(newest) = set.records.iter().map(|record| record.version).max() else {
            return;
        };
        let forgotten = |record: &&Record| {
            record.version > self.own.loaded
                && self.get(&self.node, &record.key).is_none_or(|held| {
                    held.version < record.version || (held.version == record.version && held != *record)
                })
        };
        let news: Vec<Record> = set.records.iter().filter(forgotten).cloned().collect();
        if news.is_empty() {
            return;
        }
        self.own.floor = self.own.floor.max(newest);
        for record in news.iter().filter(|record| record.key == Key::card()) {
            // Others believe what this says of generations, until they have our next card.
            self.boot = self.boot.max(boot_of(record).unwrap_or(0));
            self.notice_clone(record);
        }
        if !set.all {
            // To go on from a part would be to disown the rest: peers believe us to know what we have said.
            if let Some(source) = source {
                self.pull_from(source, self.part_of(set), now);
            }
            return;
        }
        if let Some(proof) = proven(set).filter(|_| newest > self.own.loaded) {
            let keys: BTreeSet<&Key> = set.records.iter().map(|record| &record.key).collect();
            let stream = self.store.stream(self.store.place(&self.node, &proof.key));
            let surplus: Vec<Key> = stream
                .into_iter()
                .flat_map(|stream| stream.records())
                .filter(|record| !keys.contains(&record.key) && !self.own.fresh.contains(&record.key))
                .map(|record| record.key.clone())
                .collect();
            for key in surplus {
                self.store.take(&self.node, &key);
                self.emit(Event::Dropped {
                    author: self.node,
                    key,
                });
            }
        }
        for record in news {
            if !self.own.fresh.contains(&record.key) {
                self.store.adopt(record.clone(), now);
                self.emit(Event::OwnRecordNewer(record));
            }
        }
        if let Some(record) = set.records.first() {
            self.touch(self.store.place(&self.node, &record.key));
        }
        self.write_again(now);
        if set.records.iter().any(|record| record.key.kind == INTEREST_KIND) {
            self.announce_interest(false, now);
        }
    }

    /// Gives everything written since this start a version that peers will take for newer.
    fn write_again(&mut self, now: Instant) {
        for key in self.own.fresh.clone() {
            if key == Key::card() {
                self.write_card(now);
            } else if let Some(previous) = self.get(&self.node, &key).cloned() {
                let record = self.write(key, previous.value.clone(), now);
                self.emit(Event::Record {
                    record,
                    previous: Some(previous),
                });
            }
        }
    }

    /// A start takes the boot after the last one that was announced: one may have been used up in this disk's last life.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        let announced = self.own_card().and_then(|card| boot_of(&card));
        if let Some(announced) = announced.filter(|announced| *announced >= self.boot) {
            self.boot = announced.saturating_add(1);
            self.membership.renew(hearsay::first_of(self.boot) - 1, now);
        }
    }

    /// A card names the session of the card it replaced. One that names ours was written by a start that was
    /// alive after we began: only a living clone could, a former life could not.
    fn notice_clone(&mut self, record: &Record) {
        let Some(card) = record.value.as_deref().and_then(wire::decode::<Card>) else {
            return;
        };
        if card.session == self.sealer.session {
            return;
        }
        self.own.replaces = Some(card.session);
        if card.replaces == Some(self.sealer.session) && self.own.clones.insert(card.session) {
            self.emit(Event::Cloned);
        }
    }
}

pub(super) fn boot_of(card: &Record) -> Option<u64> {
    let card = card.value.as_deref().and_then(wire::decode::<Card>)?;
    Some(card.boot)
}
