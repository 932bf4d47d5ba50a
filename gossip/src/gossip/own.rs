//! What this node says itself, and what others remember of it.

use std::{collections::BTreeSet, time::Instant};

use bytes::Bytes;

use super::Gossip;
use crate::{
    Event, Key, Record,
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
        let author = self.store.author(self.short);
        let highest = author.map_or(0, |author| author.highest());
        let live = author.map_or(StateSum::default(), |author| author.live());
        let previous = author
            .and_then(|author| author.get(&key))
            .map_or(StateSum::default(), Record::sum);
        let version = highest.max(self.own.floor) + 1;
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
        self.touch(self.short);
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
        let body = wire::encode(&Body::Rumour(vec![card]));
        let peers: Vec<Short> = self.live_peers().take(AT_MOST).collect();
        for peer in peers {
            self.send_encoded(peer, &body);
        }
        self.flush_rumours(now);
        self.membership.leave(now);
    }

    /// Takes what a peer remembers of this node's own records; their signatures were checked.
    ///
    /// Normally it is an echo, and older than what is held. If it is newer, then either the disk was rolled
    /// back, or it was copied and somebody else lives with it.
    pub(super) fn adopt(&mut self, set: &AuthorSet, now: Instant) {
        let Some(newest) = set.records.iter().max_by_key(|record| record.version) else {
            return;
        };
        let highest = self.store.author(self.short).map_or(0, |author| author.highest());
        let echo = self.get(&self.node, &newest.key) == Some(newest);
        if newest.version < highest.max(self.own.floor) || echo {
            return;
        }
        self.own.floor = newest.version;
        let whole = proven(set).is_some();
        for record in &set.records {
            if record.key == Key::card() {
                self.notice_clone(record);
            }
            let held = self.get(&self.node, &record.key).map(|held| held.version);
            let newer = held.is_none_or(|version| version < record.version);
            // What is not held and not new either may have been removed since, unless the set is the whole truth.
            let believable = whole || held.is_some() || record.version > highest;
            if newer && believable && !self.own.fresh.contains(&record.key) {
                self.store.adopt(record.clone(), now);
                self.emit(Event::OwnRecordNewer(record.clone()));
            }
        }
        if whole {
            let keys: BTreeSet<&Key> = set.records.iter().map(|record| &record.key).collect();
            let author = self.store.author(self.short);
            let surplus: Vec<Key> = author
                .into_iter()
                .flat_map(|author| author.records())
                .filter(|record| !keys.contains(&record.key) && !self.own.fresh.contains(&record.key))
                .map(|record| record.key.clone())
                .collect();
            for key in surplus {
                self.store.take(self.short, &key);
                self.emit(Event::Dropped {
                    author: self.node,
                    key,
                });
            }
        }
        self.write_again(now);
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
