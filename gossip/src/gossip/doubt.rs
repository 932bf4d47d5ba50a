//! What is believed of members when others say that they are down.
//!
//! Who is alive is not signed: it is heard of from anybody. So what is heard never counts for more than the member's own word. It
//! is about a generation that the member's card, which is signed, has announced; and nobody is believed down who was not suspected
//! before for as long as it takes to refute that, or has not been asked.

use std::time::{Duration, Instant};

use foca::{Message, State};

use super::{Gossip, Peer, own::boot_of};
use crate::{
    Record,
    hearsay::{self, Said},
    identity::Short,
    wire::Body,
};

/// How long a member that a peer believes down has to show that it lives.
const DOUBT: Duration = Duration::from_secs(3);
/// How often it is asked meanwhile.
const ASK: Duration = Duration::from_millis(500);
/// The least time between two generations of this node, if others make it take one.
const RISE: Duration = Duration::from_millis(250);
/// The same if all of a boot are used up, and all others have to get a new card.
const RISE_BY_CARD: Duration = Duration::from_millis(500);

/// A member that a peer believes down, and this node does not.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) generation: u64,
    until: Instant,
    ask: Instant,
}

/// Generations that this node is to take.
#[derive(Debug, Default)]
pub(super) struct Rise {
    /// Not before then another one.
    next: Option<Instant>,
    /// Above this one, which somebody believes this node in.
    above: Option<u64>,
}

impl Rise {
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.above.and(self.next)
    }
}

impl Gossip {
    /// Membership, as `sender` tells it.
    pub(super) fn hear(&mut self, data: &[u8], sender: Short, now: Instant) {
        let Some(mut said) = Said::read(data) else {
            self.stats.malformed += 1;
            return;
        };
        if said.header.src.node != sender {
            self.stats.forged += 1;
            return;
        }
        let generation = said.header.src.generation;
        if !self.is_announced(sender, generation) {
            // The card that announces it is on its way, or was lost.
            if self.may_nudge(sender, now) {
                self.contact(sender, false);
            }
            return;
        }
        if let Some(seen) = self
            .membership
            .seen(sender)
            .filter(|seen| seen.generation > generation)
        {
            // Somebody said so; it is to know, and to speak in a later one.
            if self.may_nudge(sender, now) {
                let above = seen.generation;
                self.send_body(sender, &Body::Renew { above });
            }
            return;
        }
        self.note_spoken(sender, generation);
        self.membership.heard(&said, now);
        if said.header.dst.node == self.short {
            // A later one than this node has taken: somebody said so.
            let above = said.header.dst.generation;
            if above > self.membership.id().generation {
                self.rise(above, now);
            }
        }
        let me = self.membership.id();
        if said.header.message == Message::TurnUndead && said.header.dst == me {
            // Left to foca it would take another generation as often as anybody likes.
            said.header.message = Message::Gossip;
            self.rise(me.generation, now);
        }
        said.updates = std::mem::take(&mut said.updates)
            .into_iter()
            .filter(|update| self.weigh(update, sender, now))
            .collect();
        self.membership.handle(&said.write(), now);
    }

    /// Whether what a peer says of a member is for foca to believe.
    fn weigh(&mut self, update: &foca::Member<crate::membership::Id>, sender: Short, now: Instant) -> bool {
        let (node, generation) = (update.id().node, update.id().generation);
        let is_down = update.state() == State::Down;
        if node == self.short {
            let own = self.membership.id().generation;
            if generation > own || (generation == own && is_down) {
                self.rise(generation, now);
            }
            return generation == own && !is_down;
        }
        if !self.is_announced(node, generation) {
            return false;
        }
        let believed = self.membership.seen(node).filter(|seen| seen.is_active());
        match believed {
            Some(seen) if is_down && node != sender => {
                let is_settled = self.is_settled_that_down(node, generation, now);
                if generation >= seen.generation && !is_settled {
                    self.doubt(node, generation, now);
                }
                is_settled
            }
            _ => true,
        }
    }

    /// Whether a node can be in a generation, by what it has signed.
    pub(super) fn is_announced(&self, node: Short, generation: u64) -> bool {
        let peer = self.peers.get(&node);
        peer.is_some_and(|peer| generation <= hearsay::last_of(peer.boot))
    }

    /// A card that a node shows itself announces its boot, although others may know a newer one: it may have lost its disk.
    pub(super) fn note_announced(&mut self, card: &Record) {
        let (Some(boot), node) = (boot_of(card), Short::from(&card.author)) else {
            return;
        };
        let known = self.peers.get_mut(&node).filter(|peer| peer.node == card.author);
        if let Some(peer) = known.filter(|peer| peer.boot < boot)
            && card.verify(&self.config.cluster)
        {
            peer.boot = boot;
        }
    }

    /// A member speaks in this generation.
    pub(super) fn note_spoken(&mut self, node: Short, generation: u64) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.spoke = peer.spoke.max(generation);
        }
    }

    /// Whether a member that somebody believes down can be believed down at once.
    pub(super) fn is_settled_that_down(&self, node: Short, generation: u64, now: Instant) -> bool {
        let has_left = self.peers.get(&node).is_some_and(|peer| peer.card.left);
        let seen = self.membership.seen(node);
        let is_same = seen.is_some_and(|seen| seen.generation == generation);
        // Who is not in a generation cannot refute what is said of it.
        let is_its_own = |peer: &Peer| peer.spoke >= generation || generation == hearsay::first_of(peer.boot);
        let is_same = is_same && self.peers.get(&node).is_some_and(is_its_own);
        has_left || (is_same && self.membership.had_its_time(node, now))
    }

    /// A peer believes `node` down in `generation`, this node believes it alive. It is told, so that it can
    /// rise above; if it does not, the peer was right.
    pub(super) fn doubt(&mut self, node: Short, generation: u64, now: Instant) {
        let doubt = self.doubts.entry(node).or_insert(Doubt {
            generation,
            until: now + DOUBT,
            ask: now,
        });
        if generation > doubt.generation {
            // What it was asked before does not answer this.
            (doubt.generation, doubt.until) = (generation, now + DOUBT);
        }
        if doubt.ask <= now {
            doubt.ask = now + ASK;
            self.ask_to_rise(node, generation);
        }
    }

    /// Tells a member which generation it is believed down in.
    pub(super) fn ask_to_rise(&mut self, node: Short, above: u64) {
        self.send_body(node, &Body::Renew { above });
    }

    pub(super) fn next_doubt(&self) -> Option<Instant> {
        self.doubts.values().map(|doubt| doubt.until.min(doubt.ask)).min()
    }

    pub(super) fn look_at_doubts(&mut self, now: Instant) {
        let due = self.doubts.extract_if(.., |_, doubt| doubt.until <= now);
        for (node, doubt) in due.collect::<Vec<_>>() {
            if self
                .membership
                .seen(node)
                .is_some_and(|seen| seen.is_active() && seen.generation <= doubt.generation)
            {
                self.membership.down(node, doubt.generation, true, now);
            }
        }
        let asked = self.doubts.iter_mut().filter(|(_, doubt)| doubt.ask <= now);
        let asked: Vec<(Short, u64)> = asked
            .map(|(node, doubt)| {
                doubt.ask = now + ASK;
                (*node, doubt.generation)
            })
            .collect();
        for (node, generation) in asked {
            self.ask_to_rise(node, generation);
        }
    }

    /// Takes a generation above `above`, in which somebody believes this node. Above those that this node has announced
    /// nobody believes it, and whoever says so lies.
    pub(super) fn rise(&mut self, above: u64, now: Instant) {
        let last = hearsay::last_of(self.boot);
        if above < self.membership.id().generation || above > last {
            return;
        }
        if self.rise.next.is_some_and(|next| now < next) {
            self.rise.above = self.rise.above.max(Some(above));
            return;
        }
        self.rise.next = Some(now + if above == last { RISE_BY_CARD } else { RISE });
        self.membership.renew(above, now);
        self.settle(now);
    }

    pub(super) fn rise_if_due(&mut self, now: Instant) {
        if self.rise.next.is_some_and(|next| next <= now)
            && let Some(above) = self.rise.above.take()
        {
            self.rise(above, now);
        }
    }

    /// A generation of a boot that is not announced yet is announced now.
    pub(super) fn answer_for_generation(&mut self, now: Instant) {
        let generation = self.membership.id().generation;
        if generation > hearsay::last_of(self.boot) {
            self.boot = hearsay::boot_of(generation);
            self.write_card(now);
        }
    }
}
