//! What one author says, and how much of it there may be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use weft_types::NodeId;

use crate::{Key, Record, record::StateSum, wire};

/// So much of what somebody says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) records: usize,
    /// As records are encoded, or a few more.
    pub(crate) bytes: usize,
}

impl Amount {
    pub(super) fn of(record: &Record) -> Self {
        Self {
            records: 1,
            bytes: wire::size_bound(record),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            records: self.records + other.records,
            bytes: self.bytes + other.bytes,
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            records: self.records - other.records,
            bytes: self.bytes - other.bytes,
        }
    }

    pub(super) fn is_within(self, most: Self) -> bool {
        self.records <= most.records && self.bytes <= most.bytes
    }
}

#[derive(Debug)]
pub(crate) struct Author {
    pub(super) node: NodeId,
    pub(super) records: BTreeMap<Key, Stored>,
    pub(super) by_version: BTreeSet<(u64, Key)>,
    held: Amount,
    /// How much of it is tombstones.
    removed: Amount,
    /// The sum that the newest record carries.
    expected: StateSum,
    /// The sum over what is held.
    pub(super) live: StateSum,
    /// The last version at which both were equal.
    pub(super) complete: u64,
    /// The highest version of a tombstone dropped here, or by whoever this was learnt from.
    pub(super) dropped: u64,
    /// Everything since `complete` was fetched and something is still missing, or too much: ask for all.
    pub(crate) ask_all: bool,
}

#[derive(Debug)]
pub(super) struct Stored {
    pub(super) record: Record,
    pub(super) since: Instant,
}

impl Author {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            records: BTreeMap::new(),
            by_version: BTreeSet::new(),
            held: Amount::default(),
            removed: Amount::default(),
            expected: StateSum::default(),
            live: StateSum::default(),
            complete: 0,
            dropped: 0,
            ask_all: false,
        }
    }

    pub(crate) fn highest(&self) -> u64 {
        self.by_version.last().map_or(0, |(version, _)| *version)
    }

    pub(crate) fn live(&self) -> StateSum {
        self.live
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.live == self.expected
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Record> {
        self.records.get(key).map(|stored| &stored.record)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values().map(|stored| &stored.record)
    }

    /// What is said, without what there is not any more.
    pub(crate) fn said(&self) -> Amount {
        self.held.minus(self.removed)
    }

    /// Whether so much can be held under `key` and all within `most`, after the oldest tombstones have made room for it if need
    /// be: many at once, since finding them takes a look at all that is older.
    pub(super) fn has_room(
        &mut self,
        key: &Key,
        more: Amount,
        most: Amount,
        dropped: &mut Vec<(NodeId, Key)>,
    ) -> bool {
        let replaced = self.get(key).map_or(Amount::default(), Amount::of);
        loop {
            if self.held.minus(replaced).plus(more).is_within(most) {
                return true;
            }
            let highest = self.highest();
            let is_droppable = |(version, other): &&(u64, Key)| {
                let is_tombstone = self.get(other).is_some_and(|record| record.value.is_none());
                is_tombstone && *version < highest && other != key
            };
            let oldest = self.by_version.iter().filter(is_droppable);
            let oldest: Vec<_> = oldest.take((most.records / 8).max(1)).cloned().collect();
            if oldest.is_empty() {
                return false;
            }
            for (version, key) in oldest {
                self.drop_tombstone(version, &key);
                dropped.push((self.node, key));
            }
        }
    }

    pub(super) fn drop_tombstone(&mut self, version: u64, key: &Key) {
        self.take(key);
        self.dropped = self.dropped.max(version);
    }

    pub(super) fn numbered(&self, version: u64) -> impl Iterator<Item = &Record> {
        let keys = self.by_version.range((version, Key::first())..);
        let keys = keys.take_while(move |(number, _)| *number == version);
        keys.filter_map(|(_, key)| self.get(key))
    }

    /// From which version on others should send what this node lacks.
    pub(super) fn complete_for_others(&self) -> u64 {
        if self.ask_all || (self.complete == self.highest() && !self.is_complete()) {
            0
        } else {
            self.complete
        }
    }

    pub(super) fn is_news(&self, record: &Record) -> bool {
        match self.records.get(&record.key) {
            Some(stored) => {
                (record.version, &record.signature) > (stored.record.version, &stored.record.signature)
            }
            // Two records can have the highest version only if their author was cloned; then all must see both.
            None => record.version > self.complete || record.version == self.highest(),
        }
    }

    pub(super) fn insert(&mut self, record: Record, now: Instant) -> Option<Record> {
        let highest = self.highest();
        let previous = self.take(&record.key);
        if (record.version, record.state) > (highest, self.expected) || record.version > highest {
            self.expected = record.state;
        }
        self.live = self.live.plus(record.sum());
        self.held = self.held.plus(Amount::of(&record));
        if record.value.is_none() {
            self.removed = self.removed.plus(Amount::of(&record));
        }
        self.by_version.insert((record.version, record.key.clone()));
        self.records
            .insert(record.key.clone(), Stored { record, since: now });
        self.note_if_complete();
        previous
    }

    pub(super) fn take(&mut self, key: &Key) -> Option<Record> {
        let record = self.records.remove(key)?.record;
        self.by_version.remove(&(record.version, record.key.clone()));
        self.live = self.live.minus(record.sum());
        self.held = self.held.minus(Amount::of(&record));
        if record.value.is_none() {
            self.removed = self.removed.minus(Amount::of(&record));
        }
        Some(record)
    }

    pub(super) fn note_if_complete(&mut self) {
        if self.is_complete() {
            self.complete = self.highest();
            self.ask_all = false;
        }
    }
}
