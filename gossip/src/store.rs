use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use weft_types::NodeId;

pub(crate) use self::{
    author::{Amount, Author},
    digest::Digest,
};
use crate::{
    Key, Record,
    identity::Short,
    record::StateSum,
    wire::{self, AuthorSet, Entry, Liveness, Offer},
};

mod author;
mod digest;

/// Everything anybody says, by author.
///
/// A merge keeps the higher version of each key, so order and repetition do not matter. What is special
/// here is how a node knows that it lacks nothing: every record carries the sum over all its author said as
/// of that version. An author of whom the sum over what is held equals the sum in the newest record is
/// *complete*; that is a proof signed by the author, not the claim of whoever passed the records on.
///
/// This is also what makes a tombstone safe to drop. To an author that was complete at version `c`, a record
/// of version `c` or lower under a key that is not held is something its author has removed since.
#[derive(Debug)]
pub(crate) struct Store {
    authors: BTreeMap<Short, Author>,
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
    pub(crate) fn new(max_authors: usize, most: Amount) -> Self {
        Self {
            authors: BTreeMap::new(),
            max_authors,
            most,
            dropped: Vec::new(),
        }
    }

    pub(crate) fn author(&self, short: Short) -> Option<&Author> {
        self.authors.get(&short)
    }

    pub(crate) fn author_mut(&mut self, short: Short) -> Option<&mut Author> {
        self.authors.get_mut(&short)
    }

    pub(crate) fn authors(&self, from: Short, to: Short) -> impl Iterator<Item = Short> {
        self.authors.range(from..=to).map(|(short, _)| *short)
    }

    pub(crate) fn get(&self, author: &NodeId, key: &Key) -> Option<&Record> {
        let known = self
            .authors
            .get(&Short::from(author))
            .filter(|known| known.node == *author)?;
        known.get(key)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.authors.values().flat_map(Author::records)
    }

    /// Whether [`apply`](Self::apply) would change anything: asked before the signature is looked at.
    pub(crate) fn is_news(&self, record: &Record) -> bool {
        self.authors
            .get(&Short::from(&record.author))
            .is_none_or(|author| author.is_news(record))
    }

    /// Whether a record offered by name is one that [`apply`](Self::apply) might take.
    pub(crate) fn lacks(&self, offer: Offer) -> bool {
        self.authors.get(&offer.author).is_none_or(|author| {
            offer.version > author.complete && author.numbered(offer.version).next().is_none()
        })
    }

    /// What is held under a name. Only a clone's author has used one twice.
    pub(crate) fn named(&self, offer: Offer) -> impl Iterator<Item = &Record> {
        let author = self.authors.get(&offer.author);
        author
            .into_iter()
            .flat_map(move |author| author.numbered(offer.version))
    }

    /// Takes a record that its author certainly signed.
    pub(crate) fn apply(&mut self, record: Record, now: Instant) -> Applied {
        if !self.is_news(&record) {
            return Applied::Old;
        }
        let short = Short::from(&record.author);
        if !self.authors.contains_key(&short) && self.authors.len() >= self.max_authors {
            return Applied::Full;
        }
        let author = self
            .authors
            .entry(short)
            .or_insert_with(|| Author::new(record.author));
        if author.node != record.author
            || !author.has_room(&record.key, Amount::of(&record), self.most, &mut self.dropped)
        {
            return Applied::Full;
        }
        Applied::New(author.insert(record, now))
    }

    /// Whether an author can have a value of `size` bytes under `key`, and its card become as long as any: where it is has to be
    /// told whatever else is.
    pub(crate) fn has_room(&mut self, short: Short, key: &Key, size: usize) -> bool {
        let more = Amount {
            records: 1,
            bytes: wire::size_of_record(key.name.len(), size),
        };
        let most = self.most_said();
        let author = self.authors.get_mut(&short);
        author.is_none_or(|author| author.has_room(key, more, most, &mut self.dropped))
    }

    /// How much an author may say besides that its card may change.
    fn most_said(&self) -> Amount {
        Amount {
            bytes: self.most.bytes.saturating_sub(wire::MAX_RECORD),
            ..self.most
        }
    }

    /// How many records more an author can have, however long they are.
    pub(crate) fn room(&self, short: Short) -> usize {
        let said = self.authors.get(&short).map_or(Amount::default(), Author::said);
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

    /// Takes a record of this node's own, learnt from a peer, whatever is held.
    pub(crate) fn adopt(&mut self, record: Record, now: Instant) {
        let author = self
            .authors
            .entry(Short::from(&record.author))
            .or_insert_with(|| Author::new(record.author));
        author.insert(record, now);
    }

    /// Takes out one record.
    pub(crate) fn take(&mut self, short: Short, key: &Key) -> Option<Record> {
        self.authors.get_mut(&short)?.take(key)
    }

    /// If `set` is everything its author says, proven by its sum, and no older than what is held: takes out
    /// what is held beyond it.
    pub(crate) fn retain_only(&mut self, set: &AuthorSet) -> Vec<Record> {
        let Some(newest) = proven(set) else {
            return Vec::new();
        };
        let Some(author) = self.authors.get_mut(&Short::from(&newest.author)) else {
            return Vec::new();
        };
        if newest.version < author.highest() {
            return Vec::new();
        }
        let keys: BTreeSet<&Key> = set.records.iter().map(|record| &record.key).collect();
        let surplus: Vec<Key> = author
            .records()
            .filter(|record| record.value.is_some() && !keys.contains(&record.key))
            .map(|record| record.key.clone())
            .collect();
        author.dropped = author.dropped.max(set.dropped);
        let taken = surplus.iter().filter_map(|key| author.take(key)).collect();
        author.note_if_complete();
        taken
    }

    /// What somebody lacks who has everything of `short` up to version `since`.
    pub(crate) fn since(&self, short: Short, since: u64) -> AuthorSet {
        let Some(author) = self.authors.get(&short) else {
            return AuthorSet {
                all: false,
                dropped: 0,
                records: Vec::new(),
            };
        };
        // If tombstones that he lacks are gone, only all that is left tells him what they were.
        let all = since < author.dropped || since == 0;
        // Nothing comes after the last version there is, which somebody may have used, or says to have.
        let first = if all { Some(0) } else { since.checked_add(1) };
        let newer = first.map(|first| author.by_version.range((first, Key::first())..));
        let records = newer
            .into_iter()
            .flatten()
            .filter_map(|(_, key)| author.get(key).cloned())
            .collect();
        AuthorSet {
            all,
            dropped: author.dropped,
            records,
        }
    }

    /// What is held of `short`, for others to compare with.
    pub(crate) fn entry(&self, short: Short, liveness: Liveness) -> Entry {
        self.authors.get(&short).map_or(
            Entry {
                liveness,
                ..Entry::nothing(short)
            },
            |author| Entry {
                node: short,
                highest: author.highest(),
                complete: author.complete_for_others(),
                live: author.live.half(),
                liveness,
            },
        )
    }

    /// Drops tombstones held since before `limit`. An author's newest record stays whatever it is: its
    /// version is where the author counts on, and its sum is what completeness is measured by.
    pub(crate) fn drop_tombstones(&mut self, limit: Instant) -> Vec<(NodeId, Key)> {
        let mut dropped = Vec::new();
        for author in self.authors.values_mut() {
            let highest = author.highest();
            let old: Vec<(u64, Key)> = author
                .records
                .values()
                .filter(|stored| stored.record.value.is_none() && stored.since < limit)
                .filter(|stored| stored.record.version < highest)
                .map(|stored| (stored.record.version, stored.record.key.clone()))
                .collect();
            for (version, key) in old {
                author.drop_tombstone(version, &key);
                dropped.push((author.node, key));
            }
        }
        dropped
    }
}

/// The newest record of a set that is proven to be all its author says.
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
    use weft_types::ClusterId;

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
        let mut store = Store::new(8, MOST);
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
        let short = Short::from(&Identity::from_seed([1; 32]).node());
        let most = |records, bytes| Amount { records, bytes };
        for (most, at_first, with_two) in [
            (most(8, 5 * wire::MAX_RECORD), 4, 3),
            (most(8, 50 * wire::MAX_RECORD), 8, 6),
            (most(8, wire::MAX_RECORD), 0, 0),
            (most(1, 50 * wire::MAX_RECORD), 1, 0),
        ] {
            let mut store = Store::new(8, most);
            assert_eq!(store.room(short), at_first);
            // The third is a tombstone, which makes room.
            for record in written(&[(1, true), (2, true), (3, true), (3, false)]) {
                store.apply(record, now);
            }
            assert_eq!(store.room(short), with_two, "{most:?}");
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
        let (mut store, now) = (Store::new(8, MOST), Instant::now());
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
        assert!(store.author(short).unwrap().is_complete());
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
