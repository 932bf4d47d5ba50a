//! What a peer has and this node lacks, over a stream: after a start, of networks that have come to be wanted, and where packets would
//! be too many.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{Gossip, sync::Findings};
use crate::{
    Output,
    identity::Short,
    seal::Channel,
    store::CLUSTER,
    wire::{self, Chunk, Entry, NetworkPull, Part, Pull, Range},
};

/// A chunk on a stream ends after the author that makes it this large.
const CHUNK: usize = 512 * 1024;
/// The most authors asked about in one request.
const PULL_ENTRIES: usize = 8192;
/// How long the answer to a request may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(6);

/// What is being fetched, and from whom.
#[derive(Debug)]
pub(super) struct Pulling {
    peer: Short,
    part: Part,
    id: u64,
    pub(super) deadline: Instant,
}

impl Gossip {
    /// After a start: fetches everything from the first member that answers.
    pub(super) fn catch_up_with(&mut self, peer: Short, now: Instant) {
        if !self.sync.caught_up {
            self.pull_from(peer, Part::Cluster, now);
        }
    }

    /// Fetches what is said of networks that this node has only just come to want to know of.
    pub(super) fn fetch_networks(&mut self, now: Instant) {
        if self.sync.pull.is_none()
            && self.sync.caught_up
            && let Some((peer, part)) = self.next_to_fetch()
        {
            self.pull_from(peer, part, now);
        }
    }

    /// Fetches what is lacking over a stream, unless that is going on already.
    pub(super) fn pull_from(&mut self, peer: Short, part: Part, now: Instant) {
        if self.sync.pull.is_none() {
            self.pull(peer, part, Short::MIN, now);
        }
    }

    fn pull(&mut self, peer: Short, part: Part, from: Short, now: Instant) {
        let Some((node, address)) = self.peers.get(&peer).map(|peer| (peer.node, peer.card.address)) else {
            return;
        };
        let names = self.names_between(from, Short::MAX, &part);
        let to = names.iter().nth(PULL_ENTRIES).copied().unwrap_or(Short::MAX);
        let entries = names
            .range(..=to)
            .map(|name| self.entry_for_pull(*name))
            .collect();
        let id = self.rng.next_u64();
        let pull = Pull {
            id,
            range: Range { from, to, entries },
        };
        let request = match &part {
            Part::Cluster => wire::encode(&pull),
            Part::Networks(networks) => wire::encode(&NetworkPull {
                pull,
                networks: networks.iter().copied().collect(),
            }),
        };
        if let Some(request) = self.sealer.seal(Channel::Request, Some(&node), &request) {
            self.sync.pull = Some(Pulling {
                peer,
                part,
                id,
                deadline: now + PULL_TIMEOUT,
            });
            self.outputs.push_back(Output::Stream { to: address, request });
        }
    }

    /// In a pull the other is to tell all it knows of us in any case. There may be something among it that was
    /// said before the disk was rolled back, although we have counted further since.
    fn entry_for_pull(&self, name: Short) -> Entry {
        let entry = self.entry(name);
        if self.is_own_stream(name) {
            let liveness = entry.liveness;
            Entry {
                liveness,
                ..Entry::nothing(name)
            }
        } else {
            entry
        }
    }

    pub(super) fn answer_pull(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let opened = self.open(Channel::Request, frame)?;
        if self.is_evicted(&opened.from) {
            self.stats.evicted += 1;
            return None;
        }
        if !self.is_heard(&opened) {
            return None;
        }
        if opened.authentic && !self.pulls.allows(&opened.from, now) {
            self.stats.flooded += 1;
            return None;
        }
        let of_cluster = || Some((wire::decode::<Pull>(&opened.body)?, Part::Cluster));
        let of_networks = || {
            let asked = wire::decode::<NetworkPull>(&opened.body)?;
            let networks = asked.networks.into_iter();
            // Who asks is told, whatever this node wants: what it has there is at least what it said itself.
            let networks = networks.filter(|network| *network != CLUSTER).collect();
            Some((asked.pull, Part::Networks(networks)))
        };
        let asked = of_cluster().or_else(of_networks).filter(|_| opened.authentic);
        let Some((Pull { id, range }, part)) = asked else {
            self.stats.malformed += 1;
            return None;
        };
        let mut findings = Findings::default();
        let upto = self.compare_range(&range, &part, &mut findings, CHUNK, now);
        let chunk = Chunk {
            id,
            upto,
            sets: findings.sets.into_iter().map(|(set, _)| set).collect(),
            entries: findings.entries,
        };
        let (to, body) = (Some(&opened.from), wire::encode(&chunk));
        let sealed = self.sealer.seal_by(opened.key, Channel::Response, to, &body)?;
        Some(sealed.into())
    }

    pub(super) fn take_chunk(&mut self, frame: &[u8], now: Instant) {
        let Some(opened) = self.open(Channel::Response, frame) else {
            return;
        };
        if self.is_evicted(&opened.from) {
            self.stats.evicted += 1;
            return;
        }
        if !self.is_heard(&opened) {
            return;
        }
        let peer = Short::from(&opened.from);
        let chunk = wire::decode::<Chunk>(&opened.body).filter(|_| opened.authentic);
        let Some(Chunk {
            id,
            upto,
            sets,
            entries,
        }) = chunk
        else {
            self.stats.malformed += 1;
            return;
        };
        let ours = self.sync.pull.take_if(|pull| pull.id == id && pull.peer == peer);
        let Some(Pulling { part, .. }) = ours else {
            self.stats.replayed += 1;
            return;
        };
        for set in sets {
            self.take_set(set, Some(peer), 0, now);
        }
        self.handle_entries(peer, entries, now);
        match (upto.successor(), &part) {
            (Some(next), _) => self.pull(peer, part, next, now),
            (None, Part::Cluster) => self.note_caught_up(now),
            (None, Part::Networks(networks)) => {
                self.note_fetched_from(peer, networks);
                self.look_at_interest(now);
                self.fetch_networks(now);
            }
        }
    }
}
