//! What one author says of one network, or of the whole cluster, and how much of it there may be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use sha2::{Digest as _, Sha256};
use weft_types::{NetworkId, NodeId};

use crate::{Key, Record, identity::Short, record::StateSum, wire};

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

/// What one author says that goes together: it is told, proven and compared as a whole.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(super) author: NodeId,
    /// The network; all zeros for the whole cluster.
    pub(super) scope: NetworkId,
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

impl Stream {
    pub(super) fn new(author: NodeId, scope: NetworkId) -> Self {
        Self {
            author,
            scope,
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

    pub(crate) fn newest(&self) -> Option<&Record> {
        self.get(&self.by_version.last()?.1)
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

    /// What is said of a kind that is about no network: names and values.
    pub(crate) fn said_of(&self, kind: u8) -> impl Iterator<Item = (&[u8], &[u8])> {
        let first = Key { kind, ..Key::first() };
        let records = self.records.range(first..);
        let records = records.take_while(move |(key, _)| key.kind == kind);
        let records = records.filter(|(key, _)| key.scope.0 == [0; 16]);
        records.filter_map(|(key, stored)| Some((&key.name[..], stored.record.value.as_deref()?)))
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values().map(|stored| &stored.record)
    }

    /// What is said, without what there is not any more.
    pub(crate) fn said(&self) -> Amount {
        self.held.minus(self.removed)
    }

    /// With the tombstones.
    pub(super) fn held(&self) -> Amount {
        self.held
    }

    pub(crate) fn author(&self) -> NodeId {
        self.author
    }

    pub(crate) fn scope(&self) -> NetworkId {
        self.scope
    }

    /// Tombstones that can go, the oldest first: all but the newest of what is said.
    pub(super) fn droppable(&self) -> impl Iterator<Item = &(u64, Key)> {
        let highest = self.highest();
        self.by_version.iter().filter(move |(version, key)| {
            *version < highest && self.get(key).is_some_and(|record| record.value.is_none())
        })
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

/// The short name of what `author` says of `scope`.
pub(crate) fn name_of(author: &NodeId, scope: &NetworkId) -> Short {
    if scope.0 == [0; 16] {
        return Short::from(author);
    }
    let hash = Sha256::new()
        .chain_update(b"weft stream 1")
        .chain_update(author.0)
        .chain_update(scope.0)
        .finalize();
    Short(hash[..8].try_into().expect("8 of 32 bytes"))
}
