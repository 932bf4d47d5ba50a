use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::{Rng, seq::IndexedRandom};

use crate::{
    Key, Record,
    identity::Short,
    wire::{self, MAX_BODY, MAX_RUMOURS, RUMOUR_HEAD},
};

/// To how many peers a record is told at a time.
const FAN_OUT: usize = 5;
/// How many times.
pub(crate) const ROUNDS: u8 = 3;
/// How long after one another.
const PAUSE: Duration = Duration::from_millis(50);
/// What arrives within this time goes on in the same packets.
const MERGE: Duration = Duration::from_millis(1);
/// Rumours waiting at most. Those beyond are left to anti-entropy.
const LIMIT: usize = 4096;

/// Records that are being told to others.
#[derive(Debug, Default)]
pub(crate) struct Rumours {
    waiting: BTreeMap<(Short, Key), Rumour>,
}

#[derive(Debug)]
struct Rumour {
    encoded: Vec<u8>,
    rounds: u8,
    due: Instant,
    /// Who told us, and so need not be told.
    source: Option<Short>,
}

impl Rumours {
    /// Starts to tell. Returns false if too much is being told already.
    pub(crate) fn add(&mut self, record: &Record, source: Option<Short>, rounds: u8, now: Instant) -> bool {
        let key = (Short::from(&record.author), record.key.clone());
        if self.waiting.len() >= LIMIT && !self.waiting.contains_key(&key) {
            return false;
        }
        let due = now + MERGE;
        self.waiting.insert(
            key,
            Rumour {
                encoded: wire::encode(record),
                rounds,
                due,
                source,
            },
        );
        true
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|rumour| rumour.due).min()
    }

    /// The packets that are due, at most a few for each of a few peers.
    pub(crate) fn flush(
        &mut self,
        peers: &[Short],
        now: Instant,
        rng: &mut impl Rng,
    ) -> Vec<(Short, Vec<u8>)> {
        let due = |rumour: &Rumour| rumour.due <= now;
        if !self.waiting.values().any(due) {
            return Vec::new();
        }
        let mut packets = Vec::new();
        for peer in peers.sample(rng, FAN_OUT).copied() {
            let mut batch: Vec<&[u8]> = Vec::new();
            let mut length = RUMOUR_HEAD;
            let told = self.waiting.iter().filter(|((author, _), rumour)| {
                due(rumour) && rumour.source != Some(peer) && *author != peer
            });
            for (_, rumour) in told {
                if length + rumour.encoded.len() > MAX_BODY || batch.len() == MAX_RUMOURS {
                    packets.push((peer, wire::rumour(&batch)));
                    batch.clear();
                    length = RUMOUR_HEAD;
                }
                length += rumour.encoded.len();
                batch.push(&rumour.encoded);
            }
            if !batch.is_empty() {
                packets.push((peer, wire::rumour(&batch)));
            }
        }
        for rumour in self.waiting.values_mut().filter(|rumour| due(rumour)) {
            rumour.rounds -= 1;
            rumour.due = now + PAUSE;
        }
        self.waiting.retain(|_, rumour| rumour.rounds > 0);
        packets
    }
}
