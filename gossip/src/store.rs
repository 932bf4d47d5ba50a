use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use weft_types::{NetworkId, NodeId};

pub(crate) use self::{
    digest::Digests,
    stream::{Amount, Stream, name_of},
};
use crate::{
    Key, Record,
    identity::Short,
    record::StateSum,
    wire::{self, AuthorSet, Entry, Liveness, Offer},
};

mod digest;
mod stream;

/// The scope of what concerns everybody.
pub(crate) const CLUSTER: NetworkId = NetworkId([0; 16]);

/// Everything anybody says, in streams: what an author says of one network is one, and all else it says another.
///
/// A merge keeps the higher version of each key, so order and repetition do not matter. What is special
/// here is how a node knows that it lacks nothing: every record carries the sum over all its author said in that stream as
/// of that version. A stream of which the sum over what is held equals the sum in the newest record is
/// *complete*; that is a proof signed by the author, not the claim of whoever passed the records on.
///
/// This is also what makes a tombstone safe to drop. To a stream that was complete at version `c`, a record
/// of version `c` or lower under a key that is not held is something its author has removed since.
#[derive(Debug)]
pub(crate) struct Store {
    streams: BTreeMap<Short, Stream>,
    /// The names of the streams of each.
    authors: BTreeMap<NodeId, BTreeSet<Short>>,
    /// The kinds of records that are in the stream of their network.
    kinds: Vec<u8>,
    max_authors: usize,
    /// Of each author.
    most: Amount,
    /// Tombstones that had to make room.
    dropped: Vec<(NodeId, Key)>,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// It is held now, in place of this one.
    New(Option<Record>),
    /// It was known, or is older than what is known.
    Old,
    /// There is no room for it.
    Full,
}

impl Store {
    pub(crate) fn new(max_authors: usize, most: Amount, kinds: Vec<u8>) -> Self {
        Self {
            streams: BTreeMap::new(),
            authors: BTreeMap::new(),
            kinds,
            max_authors,
            most,
            dropped: Vec::new(),
        }
    }

    /// Of what a record's stream is: its network, or the cluster.
    pub(crate) fn scope(&self, key: &Key) -> NetworkId {
        match self.kinds.contains(&key.kind) {
            true => key.scope,
            false => CLUSTER,
        }
    }

    /// The name of the stream that a record belongs to.
    pub(crate) fn place(&self, author: &NodeId, key: &Key) -> Short {
        name_of(author, &self.scope(key))
    }

    pub(crate) fn stream(&self, name: Short) -> Option<&Stream> {
        self.streams.get(&name)
    }

    pub(crate) fn stream_mut(&mut self, name: Short) -> Option<&mut Stream> {
        self.streams.get_mut(&name)
    }

    pub(crate) fn streams(&self, from: Short, to: Short) -> impl Iterator<Item = (Short, &Stream)> {
        self.streams
            .range(from..=to)
            .map(|(name, stream)| (*name, stream))
    }

    /// Everything an author says.
    pub(crate) fn streams_of(&self, author: &NodeId) -> impl Iterator<Item = &Stream> {
        let names = self.authors.get(author);
        names
            .into_iter()
            .flatten()
            .filter_map(|name| self.streams.get(name))
    }

    /// The highest version that an author is known to have used.
    pub(crate) fn highest(&self, author: &NodeId) -> u64 {
        let versions = self.streams_of(author).map(Stream::highest);
        versions.max().unwrap_or(0)
    }

    pub(crate) fn get(&self, author: &NodeId, key: &Key) -> Option<&Record> {
        let stream = self.streams.get(&self.place(author, key))?;
        let is_it = stream.author == *author && stream.scope == self.scope(key);
        stream.get(key).filter(|_| is_it)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.streams.values().flat_map(Stream::records)
    }

    /// Whether [`apply`](Self::apply) would change anything: asked before the signature is looked at.
    pub(crate) fn is_news(&self, record: &Record) -> bool {
        self.streams
            .get(&self.place(&record.author, &record.key))
            .is_none_or(|stream| stream.is_news(record))
    }

    /// Whether a record offered by name is one that [`apply`](Self::apply) might take.
    pub(crate) fn lacks(&self, offer: Offer) -> bool {
        self.streams.get(&offer.author).is_none_or(|stream| {
            offer.version > stream.complete && stream.numbered(offer.version).next().is_none()
        })
    }

    /// What is held under a name. Only a clone's author has used one twice.
    pub(crate) fn named(&self, offer: Offer) -> impl Iterator<Item = &Record> {
        let stream = self.streams.get(&offer.author);
        stream
            .into_iter()
            .flat_map(move |stream| stream.numbered(offer.version))
    }

    /// Takes a record that its author certainly signed.
    pub(crate) fn apply(&mut self, record: Record, now: Instant) -> Applied {
        if !self.is_news(&record) {
            return Applied::Old;
        }
        if !self.authors.contains_key(&record.author) && self.authors.len() >= self.max_authors {
            return Applied::Full;
        }
        let (name, scope) = (self.place(&record.author, &record.key), self.scope(&record.key));
        let is_other = |stream: &Stream| stream.author != record.author || stream.scope != scope;
        if self.streams.get(&name).is_some_and(is_other)
            || !self.makes_room(&record.author, &record.key, Amount::of(&record), self.most)
        {
            return Applied::Full;
        }
        Applied::New(self.adopt(record, now))
    }

    /// Whether so much can be held under `key` and all its author says within `most`, after the oldest tombstones have made room
    /// for it if need be: many at once, since finding them takes a look at all that is older.
    fn makes_room(&mut self, author: &NodeId, key: &Key, more: Amount, most: Amount) -> bool {
        let replaced = self.get(author, key).map_or(Amount::default(), Amount::of);
        loop {
            let held = self.streams_of(author).map(Stream::held);
            let held = held.fold(Amount::default(), Amount::plus);
            if held.minus(replaced).plus(more).is_within(most) {
                return true;
            }
            let mut oldest: Vec<_> = self
                .streams_of(author)
                .flat_map(|stream| {
                    let name = name_of(author, &stream.scope);
                    stream
                        .droppable()
                        .map(move |(version, key)| (*version, name, key))
                })
                .filter(|(_, _, other)| *other != key)
                .collect();
            oldest.sort();
            oldest.truncate((most.records / 8).max(1));
            if oldest.is_empty() {
                return false;
            }
            let oldest: Vec<_> = oldest
                .into_iter()
                .map(|(version, name, key)| (version, name, key.clone()))
                .collect();
            for (version, name, key) in oldest {
                if let Some(stream) = self.streams.get_mut(&name) {
                    stream.drop_tombstone(version, &key);
                    self.dropped.push((*author, key));
                }
            }
        }
    }

    /// Whether an author can have a value of `size` bytes under `key`, and its card become as long as any: where it is has to be
    /// told whatever else is.
    pub(crate) fn has_room(&mut self, author: &NodeId, key: &Key, size: usize) -> bool {
        let more = Amount {
            records: 1,
            bytes: wire::size_of_record(key.name.len(), size),
        };
        self.makes_room(author, key, more, self.most_said())
    }

    /// How much an author may say besides that its card may change.
    fn most_said(&self) -> Amount {
        Amount {
            bytes: self.most.bytes.saturating_sub(wire::MAX_RECORD),
            ..self.most
        }
    }

    /// How many records more an author can have, however long they are.
    pub(crate) fn room(&self, author: &NodeId) -> usize {
        let said = self.streams_of(author).map(Stream::said);
        let said = said.fold(Amount::default(), Amount::plus);
        let most = self.most_said();
        let bytes = most.bytes.saturating_sub(said.bytes);
        (most.records.saturating_sub(said.records)).min(bytes / wire::MAX_RECORD)
    }

    /// Whether somebody who was never heard of can be heard.
    pub(crate) fn has_room_for_authors(&self) -> bool {
        self.authors.len() < self.max_authors
    }

    /// The tombstones that had to make room since this was last asked.
    pub(crate) fn take_dropped(&mut self) -> Vec<(NodeId, Key)> {
        std::mem::take(&mut self.dropped)
    }

    /// Takes a record, whatever is held: it is new, or this node's own.
    pub(crate) fn adopt(&mut self, record: Record, now: Instant) -> Option<Record> {
        let (author, scope) = (record.author, self.scope(&record.key));
        let name = name_of(&author, &scope);
        self.authors.entry(author).or_default().insert(name);
        let stream = self.streams.entry(name);
        let stream = stream.or_insert_with(|| Stream::new(author, scope));
        stream.insert(record, now)
    }

    /// Takes out one record.
    pub(crate) fn take(&mut self, author: &NodeId, key: &Key) -> Option<Record> {
        let name = self.place(author, key);
        self.streams.get_mut(&name)?.take(key)
    }

    /// Forgets a stream; what was in it.
    pub(crate) fn forget(&mut self, name: Short) -> Vec<(NodeId, Key)> {
        let Some(stream) = self.streams.remove(&name) else {
            return Vec::new();
        };
        if let Some(names) = self.authors.get_mut(&stream.author) {
            names.remove(&name);
            if names.is_empty() {
                self.authors.remove(&stream.author);
            }
        }
        let records = stream.records();
        records
            .map(|record| (stream.author, record.key.clone()))
            .collect()
    }

    /// If `set` is everything its author says in a stream, proven by its sum, and no older than what is held: takes out
    /// what is held beyond it.
    pub(crate) fn retain_only(&mut self, set: &AuthorSet) -> Vec<Record> {
        let Some(newest) = proven(set) else {
            return Vec::new();
        };
        let name = self.place(&newest.author, &newest.key);
        let Some(stream) = self.streams.get_mut(&name) else {
            return Vec::new();
        };
        if newest.version < stream.highest() {
            return Vec::new();
        }
        let keys: BTreeSet<&Key> = set.records.iter().map(|record| &record.key).collect();
        let surplus: Vec<Key> = stream
            .records()
            .filter(|record| record.value.is_some() && !keys.contains(&record.key))
            .map(|record| record.key.clone())
            .collect();
        stream.dropped = stream.dropped.max(set.dropped);
        let taken = surplus.iter().filter_map(|key| stream.take(key)).collect();
        stream.note_if_complete();
        taken
    }

    /// What somebody lacks who has everything of `short` up to version `since`.
    pub(crate) fn since(&self, short: Short, since: u64) -> AuthorSet {
        let Some(stream) = self.streams.get(&short) else {
            return AuthorSet {
                all: false,
                dropped: 0,
                records: Vec::new(),
            };
        };
        // If tombstones that he lacks are gone, only all that is left tells him what they were.
        let all = since < stream.dropped || since == 0;
        // Nothing comes after the last version there is, which somebody may have used, or says to have.
        let first = if all { Some(0) } else { since.checked_add(1) };
        let newer = first.map(|first| stream.by_version.range((first, Key::first())..));
        let records = newer
            .into_iter()
            .flatten()
            .filter_map(|(_, key)| stream.get(key).cloned())
            .collect();
        AuthorSet {
            all,
            dropped: stream.dropped,
            records,
        }
    }

    /// What is held of `short`, for others to compare with.
    pub(crate) fn entry(&self, short: Short, liveness: Liveness) -> Entry {
        self.streams.get(&short).map_or(
            Entry {
                liveness,
                ..Entry::nothing(short)
            },
            |stream| Entry {
                node: short,
                highest: stream.highest(),
                complete: stream.complete_for_others(),
                live: stream.live.half(),
                liveness,
            },
        )
    }

    /// Drops tombstones held since before `limit`. The newest record of a stream stays whatever it is: its
    /// version is where its author counts on, and its sum is what completeness is measured by.
    pub(crate) fn drop_tombstones(&mut self, limit: Instant) -> Vec<(NodeId, Key)> {
        let mut dropped = Vec::new();
        for stream in self.streams.values_mut() {
            let highest = stream.highest();
            let old: Vec<(u64, Key)> = stream
                .records
                .values()
                .filter(|stored| stored.record.value.is_none() && stored.since < limit)
                .filter(|stored| stored.record.version < highest)
                .map(|stored| (stored.record.version, stored.record.key.clone()))
                .collect();
            for (version, key) in old {
                stream.drop_tombstone(version, &key);
                dropped.push((stream.author, key));
            }
        }
        dropped
    }
}

/// The newest record of a set that is proven to be all its author says there.
pub(crate) fn proven(set: &AuthorSet) -> Option<&Record> {
    let newest = set
        .records
        .iter()
        .max_by_key(|record| (record.version, record.state))?;
    let sum = set
        .records
        .iter()
        .fold(StateSum::default(), |sum, record| sum.plus(record.sum()));
    (set.all && sum == newest.state).then_some(newest)
}

#[cfg(test)]
mod tests {
    use weft_types::{ClusterId, NetworkId};

    use super::*;
    use crate::Identity;

    const MOST: Amount = Amount {
        records: 8,
        bytes: 10_000,
    };

    #[test]
    fn nothing_comes_after_the_last_version() {
        let (identity, cluster) = (Identity::from_seed([1; 32]), ClusterId([2; 16]));
        let (short, now) = (Short::from(&identity.node()), Instant::now());
        let mut store = Store::new(8, MOST, Vec::new());
        let state = StateSum::of(&Key::first(), u64::MAX, &None);
        let last = Record::sign(&identity, &cluster, Key::first(), u64::MAX, None, state);
        assert_eq!(store.apply(last.clone(), now), Applied::New(None));
        assert_eq!(store.apply(last.clone(), now), Applied::Old);
        assert_eq!(store.since(short, u64::MAX).records, []);
        assert_eq!(store.since(short, u64::MAX - 1).records, [last]);
    }

    #[test]
    fn there_is_room_for_as_many_of_any_length_as_fit_beside_a_card() {
        let now = Instant::now();
        let author = Identity::from_seed([1; 32]).node();
        let most = |records, bytes| Amount { records, bytes };
        for (most, at_first, with_two) in [
            (most(8, 5 * wire::MAX_RECORD), 4, 3),
            (most(8, 50 * wire::MAX_RECORD), 8, 6),
            (most(8, wire::MAX_RECORD), 0, 0),
            (most(1, 50 * wire::MAX_RECORD), 1, 0),
        ] {
            let mut store = Store::new(8, most, Vec::new());
            assert_eq!(store.room(&author), at_first);
            // The third is a tombstone, which makes room.
            for record in written(&[(1, true), (2, true), (3, true), (3, false)]) {
                store.apply(record, now);
            }
            assert_eq!(store.room(&author), with_two, "{most:?}");
        }
    }

    #[test]
    fn what_an_author_says_of_networks_takes_room_from_what_it_says_of_the_cluster() {
        let (identity, cluster, now) = (Identity::from_seed([1; 32]), ClusterId([2; 16]), Instant::now());
        let author = identity.node();
        let say = |store: &mut Store, version: u64, network: u8, is_there: bool| {
            let key = Key {
                kind: 2,
                scope: NetworkId([network; 16]),
                name: vec![network],
            };
            let value = is_there.then(|| bytes::Bytes::from_static(b"x"));
            let state = StateSum::of(&key, version, &value);
            store.apply(Record::sign(&identity, &cluster, key, version, value, state), now)
        };
        let mut store = Store::new(8, MOST, vec![2]);
        for network in 0..8 {
            assert_eq!(
                say(&mut store, u64::from(network) + 1, network, true),
                Applied::New(None)
            );
        }
        assert_eq!(store.streams_of(&author).count(), 8);
        assert_eq!(say(&mut store, 9, 9, true), Applied::Full, "one over");
        assert_eq!(store.room(&author), 0);
        // The newest of a stream stays, so what is taken back makes room only where something was said later.
        assert!(matches!(say(&mut store, 10, 3, false), Applied::New(Some(_))));
        assert_eq!(say(&mut store, 11, 9, true), Applied::Full);
        assert_eq!(store.forget(name_of(&author, &NetworkId([3; 16]))).len(), 1);
        assert_eq!(say(&mut store, 12, 9, true), Applied::New(None));
        assert_eq!(store.highest(&author), 12);
        for stream in store.streams(Short::MIN, Short::MAX) {
            assert!(stream.1.is_complete(), "each is proven by its own newest record");
        }
    }

    /// Records of one author, as it would write them: for each name its version after, and whether it is there.
    fn written(said: &[(u8, bool)]) -> Vec<Record> {
        let (identity, cluster) = (Identity::from_seed([1; 32]), ClusterId([2; 16]));
        let mut held: BTreeMap<Key, (u64, Option<bytes::Bytes>)> = BTreeMap::new();
        let versions = said.iter().zip(1..);
        versions
            .map(|((name, is_there), version)| {
                let key = Key {
                    name: vec![*name],
                    ..Key::first()
                };
                let value = is_there.then(|| bytes::Bytes::from(vec![version as u8]));
                held.insert(key.clone(), (version, value.clone()));
                let sums = held
                    .iter()
                    .map(|(key, (version, value))| StateSum::of(key, *version, value));
                let state = sums.fold(StateSum::default(), StateSum::plus);
                Record::sign(&identity, &cluster, key, version, value, state)
            })
            .collect()
    }

    fn applied<'a>(records: impl IntoIterator<Item = &'a Record>) -> Store {
        let (mut store, now) = (Store::new(8, MOST, Vec::new()), Instant::now());
        for record in records {
            store.apply(record.clone(), now);
        }
        store
    }

    #[test]
    fn records_merge_to_the_same_in_any_order() {
        let said = written(&[(1, true), (2, true), (1, false), (2, true), (1, true)]);
        let in_order = applied(&said);
        let newest: Vec<&Record> = in_order.records().collect();
        assert_eq!(newest, [&said[4], &said[3]]);
        // Every order of five, with repetitions, as digits to the base of five.
        for order in 0..5_u32.pow(5) {
            let order = (0..5).map(|place| &said[(order / 5_u32.pow(place) % 5) as usize]);
            let store = applied(order.chain(&said).chain(&said[..4]));
            assert_eq!(store.records().collect::<Vec<_>>(), newest);
        }
    }

    #[test]
    fn what_is_older_than_what_was_complete_does_not_come_back() {
        let said = written(&[(1, true), (2, true), (1, false), (2, true)]);
        let mut store = applied(&said);
        let (short, later) = (
            Short::from(&said[0].author),
            Instant::now() + std::time::Duration::from_secs(1),
        );
        assert!(store.stream(short).unwrap().is_complete());
        assert_eq!(store.drop_tombstones(later).len(), 1);
        for old in &said[..3] {
            assert_eq!(
                store.apply(old.clone(), later),
                Applied::Old,
                "version {}",
                old.version
            );
        }
        assert_eq!(store.records().collect::<Vec<_>>(), [&said[3]]);
    }
}
