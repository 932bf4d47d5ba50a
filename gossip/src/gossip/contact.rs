//! Finding others: the first time, after being alone, and those believed down.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{RngExt, seq::IteratorRandom};
use weft_types::NodeId;

use super::Gossip;
use crate::{
    Key, MemberState, Record,
    identity::Short,
    seal::Opened,
    wire::{self, AuthorSet, Body, Contact, Liveness},
};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How many are asked at a time while this node is alone.
const ASKED: usize = 5;
/// How many of those believed down are tried at a time.
const REVIVED: usize = 2;
/// Longer than any suspicion takes that somebody looks after.
const LASTING: Duration = Duration::from_secs(6);
/// The least time between two nudges of one member.
const NUDGE: Duration = Duration::from_millis(500);
/// More seeds than this are of no use.
const MAX_SEEDS: usize = 64;

/// Attempts to find somebody.
#[derive(Debug)]
pub(super) struct Join {
    seeds: Vec<SocketAddr>,
    next: Option<Instant>,
    pause: Duration,
}

impl Default for Join {
    fn default() -> Self {
        Self {
            seeds: Vec::new(),
            next: None,
            pause: FIRST_PAUSE,
        }
    }
}

impl Join {
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next
    }

    /// This node is alone.
    pub(super) fn wake(&mut self, now: Instant) {
        self.next.get_or_insert(now);
    }

    /// It is not.
    pub(super) fn rest(&mut self) {
        (self.next, self.pause) = (None, FIRST_PAUSE);
    }
}

impl Gossip {
    pub(super) fn add_seeds(&mut self, seeds: impl IntoIterator<Item = SocketAddr>, now: Instant) {
        for seed in seeds {
            if seed != self.config.advertise
                && !self.join.seeds.contains(&seed)
                && self.join.seeds.len() < MAX_SEEDS
            {
                self.join.seeds.push(seed);
            }
        }
        (self.join.next, self.join.pause) = (Some(now), FIRST_PAUSE);
    }

    pub(super) fn rejoin_if_due(&mut self, now: Instant) {
        if self.join.next.is_none_or(|next| next > now) {
            return;
        }
        let known = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.state != MemberState::Left);
        let known: Vec<Short> = known.map(|(node, _)| *node).sample(&mut self.rng, ASKED);
        for node in known {
            self.contact(node, false);
        }
        self.contact_seeds(ASKED);
        self.join.next = Some(now + self.join.pause.mul_f64(self.rng.random_range(0.75..1.25)));
        self.join.pause = (self.join.pause * 3 / 2).min(LONGEST_PAUSE);
    }

    /// Tries again those believed down, and seeds that nobody known answers at: the way two halves of a
    /// cluster find each other again.
    pub(super) fn revive_if_due(&mut self, now: Instant) {
        if self.revive_at > now {
            return;
        }
        self.revive_at = now + self.config.revive.mul_f64(self.rng.random_range(0.75..1.25));
        // A suspicion that nobody refutes and nobody confirms: whoever had it is gone, or was itself cut off.
        let lasting = self.peers.iter().filter(|(_, peer)| {
            peer.state == MemberState::Suspect && now.saturating_duration_since(peer.since) > LASTING
        });
        let lasting: Vec<(Short, u64)> = lasting.map(|(node, peer)| (*node, peer.incarnation)).collect();
        for (node, generation) in lasting {
            self.doubt(node, generation, now);
        }
        let down = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.state == MemberState::Down);
        let down: Vec<Short> = down.map(|(node, _)| *node).sample(&mut self.rng, REVIVED);
        for node in down {
            self.contact(node, false);
        }
        if self.join.next.is_none() {
            self.contact_seeds(1);
        }
    }

    fn contact_seeds(&mut self, count: usize) {
        let known = |seed: &SocketAddr| self.peers.values().any(|peer| peer.card.address == *seed);
        let seeds: Vec<SocketAddr> = self
            .join
            .seeds
            .iter()
            .copied()
            .filter(|seed| !known(seed))
            .sample(&mut self.rng, count);
        for seed in seeds {
            self.contact_stranger(seed);
        }
    }

    /// Shows our card to whoever is at `address`.
    fn contact_stranger(&mut self, address: SocketAddr) {
        if let Some(card) = self.own_card() {
            let generation = self.membership.id().generation;
            let contact = Contact {
                card,
                generation,
                yours: None,
                your_card: None,
                reply: false,
            };
            let body = wire::encode(&Body::Contact(contact));
            // Nobody knows which keys a stranger has.
            let keys: Vec<_> = self.sealer.keys.all().iter().map(|key| key.id).collect();
            for key in keys {
                self.send_packet_by(key, None, address, &body);
            }
        }
    }

    /// Shows our card to a member and tells it what we believe of it.
    pub(super) fn contact(&mut self, to: Short, reply: bool) {
        if let Some((body, node, address)) = self.contact_for(to, reply) {
            self.send_packet(Some(&node), address, &wire::encode(&body));
        }
    }

    /// The same, sent to where it was heard of rather than to where its card says it is.
    pub(super) fn contact_at(&mut self, to: Short, address: SocketAddr) {
        if let Some((body, node, _)) = self.contact_for(to, false) {
            self.send_packet(Some(&node), address, &wire::encode(&body));
        }
    }

    fn contact_for(&self, to: Short, reply: bool) -> Option<(Body, NodeId, SocketAddr)> {
        let card = self.own_card()?;
        let peer = self.peers.get(&to)?;
        let yours = match self.membership.liveness(to) {
            Liveness::Unknown => None,
            Liveness::Active(generation) => Some((generation, false)),
            Liveness::Down(generation) => Some((generation, true)),
        };
        let generation = self.membership.id().generation;
        let your_card = self.get(&peer.node, &Key::card()).cloned();
        let contact = Contact {
            card,
            generation,
            yours,
            your_card,
            reply,
        };
        Some((Body::Contact(contact), peer.node, peer.card.address))
    }

    /// Somebody shows their card.
    pub(super) fn handle_contact(
        &mut self,
        opened: &Opened,
        source: SocketAddr,
        contact: Contact,
        now: Instant,
    ) {
        let from = opened.from;
        let is_ours = |card: &Record| card.author == self.node;
        if contact.card.author != from || !contact.your_card.as_ref().is_none_or(is_ours) {
            self.stats.malformed += 1;
            return;
        }
        let node = Short::from(&from);
        let card = contact.card.clone();
        self.take_record(contact.card, Some(node), crate::rumours::ROUNDS, now);
        self.note_announced(&card);
        let Some(peer) = self.peers.get(&node).filter(|peer| peer.node == from) else {
            return;
        };
        // Known by another card: it is one of two lives with one id, and each is to hear of the other.
        let address = if peer.card.session == opened.session {
            peer.card.address
        } else {
            source
        };
        if opened.authentic {
            if let Some(card) = contact.your_card {
                self.take_set(
                    AuthorSet {
                        all: false,
                        dropped: 0,
                        records: vec![card],
                    },
                    Some(node),
                    0,
                    now,
                );
            }
            match contact.yours {
                Some((generation, true)) => self.rise(generation, now),
                // Somebody remembers a later start than this one: the disk was rolled back.
                Some((generation, false)) if generation > self.membership.id().generation => {
                    self.rise(generation, now);
                }
                _ => {}
            }
            if self.is_announced(node, contact.generation) {
                self.note_spoken(node, contact.generation);
                self.membership.alive(node, contact.generation, now);
            }
            self.settle(now);
            if contact.reply && self.membership.seen(node).is_some_and(|seen| seen.is_active()) {
                // Now it is to know us as well, in the generation we have now.
                self.membership.announce(node, contact.generation, now);
                self.catch_up_with(node, now);
            }
        }
        if !contact.reply
            && let Some((body, node, _)) = self.contact_for(node, true)
        {
            self.send_packet_by(opened.key, Some(&node), address, &wire::encode(&body));
        }
    }

    /// At most one nudge in a while for each member.
    pub(super) fn may_nudge(&mut self, node: Short, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else {
            return false;
        };
        let may = peer
            .nudged
            .is_none_or(|last| now.saturating_duration_since(last) >= NUDGE);
        if may {
            peer.nudged = Some(now);
        }
        may
    }
}
