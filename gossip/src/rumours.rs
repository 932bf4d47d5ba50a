use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::{Rng, seq::IndexedRandom};
use weft_types::NetworkId;

use crate::{
    Key, Record,
    identity::Short,
    wire::{self, MAX_BODY, MAX_RUMOURS, Offer, RUMOUR_HEAD},
};

/// To how many peers a record is told, once and in full.
const TOLD: usize = 3;
/// To how many peers it is offered at a time.
const OFFERED: usize = 5;
/// How many times.
pub(crate) const ROUNDS: u8 = 3;
/// How long before it is offered: by then nearly everybody has been told.
const PAUSE: Duration = Duration::from_millis(25);
/// What arrives within this time goes on in the same packets.
const MERGE: Duration = Duration::from_millis(1);
/// When much is told, it is told in packets that are at least so far apart, and so hold more.
const TELL_GAP: Duration = Duration::from_millis(5);
const OFFER_GAP: Duration = Duration::from_millis(25);
/// Rumours waiting at most. Those beyond are left to anti-entropy.
const LIMIT: usize = 4096;
/// How many of those who offer a record are asked for it, because one question or answer may be lost.
const ASKED: u8 = 2;
/// After this time others are asked.
const PATIENCE: Duration = Duration::from_millis(40);

/// Records that are being told to others, and those that others have offered.
///
/// Each node tells a record to three others; that alone reaches more than nine in ten, and costs three copies
/// for each node. Then the record is only offered, by author and version; whoever lacks it asks.
#[derive(Debug, Default)]
pub(crate) struct Rumours {
    /// By the name of their streams and their keys.
    waiting: BTreeMap<(Short, Key), Rumour>,
    asked: BTreeMap<Offer, Asked>,
    /// Nothing is told, or offered, before.
    tell_after: Option<Instant>,
    offer_after: Option<Instant>,
}

#[derive(Debug)]
struct Rumour {
    author: Short,
    /// Who is not interested in that is not told.
    scope: NetworkId,
    offer: Offer,
    /// The record, until it was told.
    encoded: Option<Vec<u8>>,
    rounds: u8,
    due: Instant,
    /// Who told us, and so need not be told.
    source: Option<Short>,
}

#[derive(Debug)]
struct Asked {
    times: u8,
    until: Instant,
}

impl Rumour {
    fn due_after(&self, tell: Option<Instant>, offer: Option<Instant>) -> Instant {
        let after = if self.encoded.is_some() { tell } else { offer };
        after.map_or(self.due, |after| after.max(self.due))
    }
}

impl Rumours {
    /// Starts to tell. Returns false if too much is being told already.
    ///
    /// A record that had to be asked for was told to nearly everybody before; it is only offered, and so is
    /// one that is to be told for less than all rounds.
    pub(crate) fn add(
        &mut self,
        record: &Record,
        (scope, stream): (NetworkId, Short),
        source: Option<Short>,
        rounds: u8,
        now: Instant,
    ) -> bool {
        let author = Short::from(&record.author);
        let offer = Offer {
            author: stream,
            version: record.version,
        };
        let late = self.asked.remove(&offer).is_some();
        let key = (stream, record.key.clone());
        if self.waiting.len() >= LIMIT && !self.waiting.contains_key(&key) && !self.make_room(author) {
            return false;
        }
        let rumour = Rumour {
            author,
            scope,
            offer,
            encoded: (rounds == ROUNDS && !late).then(|| wire::encode(record)),
            rounds,
            due: now + MERGE,
            source,
        };
        self.waiting.insert(key, rumour);
        true
    }

    /// Of whoever has most waiting one is left to anti-entropy, if that is more than `author` has: who floods delays itself.
    fn make_room(&mut self, author: Short) -> bool {
        let mut counts: BTreeMap<Short, usize> = BTreeMap::new();
        for rumour in self.waiting.values() {
            *counts.entry(rumour.author).or_default() += 1;
        }
        let own = counts.get(&author).copied().unwrap_or(0);
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        let Some((loudest, _)) = most.filter(|(_, count)| *count > own + 1) else {
            return false;
        };
        let mut all = self.waiting.iter().rev();
        let last = all.find(|(_, rumour)| rumour.author == loudest);
        let last = last.map(|(key, _)| key.clone());
        last.is_some_and(|key| self.waiting.remove(&key).is_some())
    }

    /// Whether to ask for a record that is offered and lacking.
    pub(crate) fn ask(&mut self, offer: Offer, now: Instant) -> bool {
        if self.asked.len() >= LIMIT {
            self.asked.retain(|_, asked| asked.until > now);
            if self.asked.len() >= LIMIT {
                return false;
            }
        }
        let until = now + PATIENCE;
        let asked = self.asked.entry(offer).or_insert(Asked { times: 0, until });
        if asked.until <= now {
            *asked = Asked { times: 0, until };
        }
        asked.times += 1;
        asked.times <= ASKED
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        let due = |rumour: &Rumour| rumour.due_after(self.tell_after, self.offer_after);
        self.waiting.values().map(due).min()
    }

    /// What the rumours are about that are due.
    pub(crate) fn scopes_due(&self, now: Instant) -> BTreeSet<NetworkId> {
        let due = self.waiting.values();
        let due = due.filter(|rumour| rumour.due_after(self.tell_after, self.offer_after) <= now);
        due.map(|rumour| rumour.scope).collect()
    }

    /// The packets that are due, at most a few for each of a few of the `peers` that are to be told of one of the `scopes`.
    pub(crate) fn flush<'a>(
        &mut self,
        scopes: &BTreeSet<NetworkId>,
        peers: impl Fn(&NetworkId) -> &'a [Short],
        now: Instant,
        rng: &mut impl Rng,
    ) -> Vec<(Short, Telling)> {
        let (tell_after, offer_after) = (self.tell_after, self.offer_after);
        let is_due = |rumour: &&mut Rumour| rumour.due_after(tell_after, offer_after) <= now;
        let due: Vec<&mut Rumour> = self.waiting.values_mut().filter(is_due).collect();
        if due.is_empty() {
            return Vec::new();
        }
        let mut batches: Vec<ForPeer<'_>> = Vec::new();
        for scope in scopes {
            for (index, peer) in peers(scope).sample(rng, OFFERED).copied().enumerate() {
                let place = batches.iter().position(|(of, ..)| *of == peer);
                let place = place.unwrap_or_else(|| {
                    batches.push((peer, Batch::default(), Vec::new()));
                    batches.len() - 1
                });
                let (_, batch, bodies) = &mut batches[place];
                let for_peer = due.iter().filter(|rumour| {
                    rumour.scope == *scope && rumour.source != Some(peer) && rumour.author != peer
                });
                for rumour in for_peer {
                    match &rumour.encoded {
                        Some(record) if index < TOLD => batch.tell(record, bodies),
                        Some(_) => {}
                        None => batch.offer(rumour.offer, bodies),
                    }
                }
            }
        }
        let mut packets = Vec::new();
        for (peer, mut batch, mut bodies) in batches {
            batch.close(&mut bodies);
            packets.extend(bodies.into_iter().map(|body| (peer, body)));
        }
        for rumour in due {
            match rumour.encoded.take() {
                Some(_) => {
                    rumour.due = now + PAUSE;
                    self.tell_after = Some(now + TELL_GAP);
                }
                None => {
                    rumour.rounds -= 1;
                    rumour.due = now + PAUSE * 2;
                    self.offer_after = Some(now + OFFER_GAP);
                }
            }
        }
        self.waiting.retain(|_, rumour| rumour.rounds > 0);
        packets
    }
}

/// What one peer is to be told: the last packet, and those that are full.
type ForPeer<'a> = (Short, Batch<&'a [u8]>, Vec<Telling>);

/// An encoded [`wire::Body::Rumour`], and how many records are in it.
pub(crate) struct Telling {
    pub(crate) body: Vec<u8>,
    pub(crate) records: u64,
}

/// What goes into the next packet for one peer; whatever is full goes to the `bodies`.
pub(crate) struct Batch<R> {
    records: Vec<R>,
    offers: Vec<Offer>,
    length: usize,
}

impl<R> Default for Batch<R> {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            offers: Vec::new(),
            length: 0,
        }
    }
}

impl<R: AsRef<[u8]>> Batch<R> {
    /// Adds an encoded record.
    pub(crate) fn tell(&mut self, record: R, bodies: &mut Vec<Telling>) {
        let length = record.as_ref().len();
        self.make_room(length, bodies);
        self.length += length;
        self.records.push(record);
    }

    fn offer(&mut self, offer: Offer, bodies: &mut Vec<Telling>) {
        self.make_room(Offer::MOST, bodies);
        self.length += Offer::MOST;
        self.offers.push(offer);
    }

    fn make_room(&mut self, more: usize, bodies: &mut Vec<Telling>) {
        let full = self.records.len() == MAX_RUMOURS || self.offers.len() == MAX_RUMOURS;
        if full || RUMOUR_HEAD + self.length + more > MAX_BODY {
            self.close(bodies);
        }
    }

    pub(crate) fn close(&mut self, bodies: &mut Vec<Telling>) {
        if !self.records.is_empty() || !self.offers.is_empty() {
            bodies.push(Telling {
                body: wire::rumour(&self.records, &self.offers),
                records: self.records.len() as u64,
            });
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use weft_types::ClusterId;

    use super::*;
    use crate::{Identity, record::StateSum, store::CLUSTER, wire::Body};

    fn record(version: u64) -> Record {
        let key = Key {
            name: version.to_be_bytes().to_vec(),
            ..Key::first()
        };
        let (identity, cluster) = (Identity::from_seed([1; 32]), ClusterId([2; 16]));
        let value = Some(Bytes::from_static(b"value"));
        Record::sign(&identity, &cluster, key, version, value, StateSum::default())
    }

    fn add(rumours: &mut Rumours, record: &Record, source: Option<Short>, rounds: u8, now: Instant) -> bool {
        rumours.add(
            record,
            (CLUSTER, Short::from(&record.author)),
            source,
            rounds,
            now,
        )
    }

    /// Everything that is sent until nothing is waiting: to whom, how many records and how many offers.
    fn run(rumours: &mut Rumours, now: Instant) -> Vec<(Instant, Short, usize, usize)> {
        let peers: Vec<Short> = (1..=40_u64).map(|n| Short(n.to_be_bytes())).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut sent = Vec::new();
        while let Some(due) = rumours.next_due() {
            assert!(due >= now);
            for (to, telling) in rumours.flush(&BTreeSet::from([CLUSTER]), |_| &peers, due, &mut rng) {
                let body = wire::decode::<Body>(&telling.body);
                let Some(Body::Rumour { records, offers }) = body else {
                    panic!("{body:?} is not a rumour")
                };
                assert_eq!(records.len() as u64, telling.records);
                sent.push((due, to, records.len(), offers.len()));
            }
        }
        sent
    }

    #[test]
    fn a_record_is_told_to_three_and_then_offered() {
        let mut rumours = Rumours::default();
        let now = Instant::now();
        assert!(add(&mut rumours, &record(1), None, ROUNDS, now));
        let sent = run(&mut rumours, now);
        let told: usize = sent.iter().map(|(_, _, records, _)| records).sum();
        let offered: usize = sent.iter().map(|(_, _, _, offers)| offers).sum();
        assert_eq!((told, offered), (TOLD, OFFERED * usize::from(ROUNDS)));
    }

    #[test]
    fn who_has_the_most_waiting_makes_room_for_others() {
        let mut rumours = Rumours::default();
        let now = Instant::now();
        for version in 1..=LIMIT as u64 {
            assert!(add(&mut rumours, &record(version), None, ROUNDS, now));
        }
        assert!(!add(&mut rumours, &record(LIMIT as u64 + 1), None, ROUNDS, now));
        let mut other = record(1);
        other.author = Identity::from_seed([2; 32]).node();
        assert!(add(&mut rumours, &other, None, ROUNDS, now));
        assert_eq!(rumours.waiting.len(), LIMIT);
        let author = Short::from(&other.author);
        assert!(rumours.waiting.contains_key(&(author, other.key)));
    }

    #[test]
    fn many_records_at_once_share_packets() {
        let mut rumours = Rumours::default();
        let now = Instant::now();
        for version in 1..=100 {
            assert!(add(
                &mut rumours,
                &record(version),
                None,
                ROUNDS,
                now + Duration::from_millis(version)
            ));
        }
        let sent = run(&mut rumours, now);
        let told: usize = sent.iter().map(|(_, _, records, _)| records).sum();
        assert_eq!(told, 100 * TOLD);
        assert!(sent.len() < 150, "{} packets", sent.len());
    }

    #[test]
    fn what_had_to_be_asked_for_is_only_offered_and_two_are_asked_at_a_time() {
        let mut rumours = Rumours::default();
        let now = Instant::now();
        let record = record(7);
        let offer = Offer {
            author: Short::from(&record.author),
            version: 7,
        };
        let asked = |rumours: &mut Rumours, at| (0..4).filter(|_| rumours.ask(offer, at)).count();
        assert_eq!(asked(&mut rumours, now), 2);
        assert_eq!(asked(&mut rumours, now + PATIENCE), 2);
        assert!(add(&mut rumours, &record, None, ROUNDS, now));
        assert!(
            run(&mut rumours, now)
                .iter()
                .all(|(_, _, records, _)| *records == 0)
        );
    }

    #[test]
    fn questions_are_bounded_and_old_ones_make_room() {
        let mut rumours = Rumours::default();
        let now = Instant::now();
        let offer = |version| Offer {
            author: Short([1; 8]),
            version,
        };
        assert!((0..LIMIT as u64).all(|version| rumours.ask(offer(version), now)));
        let soon = now + PATIENCE / 2;
        assert!(!rumours.ask(offer(LIMIT as u64), soon), "all are waited for");
        assert!(rumours.ask(offer(LIMIT as u64), now + PATIENCE));
        assert_eq!(rumours.asked.len(), 1);
    }

    #[test]
    fn a_packet_is_as_full_as_it_can_be_and_no_fuller() {
        let (mut batch, mut bodies) = (Batch::default(), Vec::new());
        let records: Vec<_> = (1..=60).map(|version| wire::encode(&record(version))).collect();
        for (record, version) in records.iter().zip(1..) {
            batch.tell(record, &mut bodies);
            let author = Short([1; 8]);
            batch.offer(Offer { author, version }, &mut bodies);
        }
        batch.close(&mut bodies);
        let both = records[0].len() + Offer::MOST;
        let (last, full) = bodies.split_last().unwrap();
        assert!(!full.is_empty());
        for told in full {
            let room = MAX_BODY - told.body.len();
            assert!(
                room < both + RUMOUR_HEAD + told.records as usize * Offer::MOST,
                "{room}"
            );
        }
        assert!(last.body.len() <= MAX_BODY);
        let told: u64 = bodies.iter().map(|told| told.records).sum();
        assert_eq!(told, 60);
        let sent = bodies.len();
        batch.close(&mut bodies);
        assert_eq!(bodies.len(), sent, "nothing is not sent");
    }
}
