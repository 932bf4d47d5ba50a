//! How a cluster goes from one key of gossip to the next, while nodes come and go and none waits for another.
//!
//! Who makes a key offers it to all members in records, sealed for each alone. Who takes it has it on the disk before it shows
//! that it has it. The keys before it are kept until all members have shown that. All of this follows from the records and
//! the ring, so it does not matter in which order things are heard, or what was lost in a crash: see
//! `docs/algorithms/gossip.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use weft_gossip::{GossipKey, KeyId, KeyRing};
use weft_types::NodeId;
use weft_wireguard::Secret32;

use super::{
    Control, Now,
    catalogue::Catalogue,
    records::{CLUSTER, Kind, OFFERS_PER_RECORD, OfferFact, encode, offer_key},
    ring::{FIRST, Ring, RingKey},
};

mod command;

/// How soon records are looked at: while a key changes, and else.
const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(1);
/// Who was let in here counts for so long before anything is heard of it.
const ARRIVES: Duration = Duration::from_secs(60);

/// This node's keys, and what is known beside the records of who is to have them.
pub(super) struct Keyring {
    ring: Ring,
    /// The members that are to have the newest key, as far as this run has found. That the one who made it was removed
    /// changes nothing for them.
    entitled: BTreeSet<NodeId>,
    /// Who was let in by this node, when, and the newest key it got then.
    admitted: BTreeMap<NodeId, (Instant, KeyId)>,
    look_at: Option<Instant>,
    /// Since when this run has known that the key changes.
    changing_since: Option<Instant>,
    waiting: Vec<command::Waiting>,
}

/// What the records say, to one node.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) catalogue: &'a Catalogue,
    pub(super) me: NodeId,
    pub(super) founder: NodeId,
}

impl Keyring {
    pub(super) fn new(ring: Ring, now: Instant) -> Self {
        Self {
            ring,
            entitled: BTreeSet::new(),
            admitted: BTreeMap::new(),
            look_at: Some(now),
            changing_since: None,
            waiting: Vec::new(),
        }
    }

    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        self.look_at.into_iter().chain(waiting).min()
    }

    /// Something changed that keys depend on.
    pub(super) fn look_soon(&mut self, now: Instant) {
        let pause = match self.is_changing() || !self.waiting.is_empty() {
            true => SOON,
            false => LATER,
        };
        let at = now + pause;
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// The same, where somebody's next packet depends on it.
    pub(super) fn look_now(&mut self, now: Instant) {
        self.look_at = Some(now);
    }

    pub(super) fn note_admitted(&mut self, node: NodeId, now: Instant) {
        self.admitted.insert(node, (now, self.ring.newest().id()));
        self.look_soon(now);
    }

    fn is_changing(&self) -> bool {
        self.ring.newest_first().len() > 1
    }

    /// The keys with all that is known of who has which.
    pub(super) fn to_seal(&self, ground: Ground<'_>) -> KeyRing {
        if !self.is_changing() {
            return self.ring.to_seal();
        }
        let keys = self.ring.newest_first();
        let members = self.entitled(ground).into_iter();
        members
            .filter(|node| *node != ground.me)
            .fold(self.ring.to_seal(), |ring, node| {
                ring.with_member(node, keys[self.place_of(&node, ground)].id())
            })
    }

    /// The place of the newest key that a member is known to have: the oldest if nothing is known.
    fn place_of(&self, node: &NodeId, ground: Ground<'_>) -> usize {
        if *node == ground.me {
            return 0;
        }
        let said = ground.catalogue.gossip_keys().held_by(*node);
        let oldest = self.ring.newest_first().len() - 1;
        self.ring.place_of(node, said).unwrap_or(oldest)
    }

    /// Those who have shown that they have a key.
    fn provers(&self, key: &RingKey, ground: Ground<'_>) -> impl Iterator<Item = NodeId> {
        let said = ground.catalogue.gossip_keys();
        said.holders().filter(move |node| {
            let held = said.held_by(*node);
            held.is_some_and(|held| held.proofs.contains(&key.proof(node)))
        })
    }

    /// The members that are to have the newest key.
    fn entitled(&self, ground: Ground<'_>) -> BTreeSet<NodeId> {
        let catalogue = ground.catalogue;
        let mut members: BTreeSet<NodeId> = catalogue.members().collect();
        members.insert(ground.me);
        let arriving = self
            .admitted
            .keys()
            .filter(|node| catalogue.node(**node).is_none());
        members.extend(arriving.copied().filter(|node| !catalogue.is_removed(*node)));
        if let Some(trusted) = self.trusted(ground) {
            members.retain(|node| trusted.contains(node));
        }
        members
    }

    /// Those who may have the newest key and give it on, be they members or have left: of the first key all, `None`, for nobody
    /// was ever heard without it. Of a later one those who have it, those it is offered to, and who was let in by one of them.
    /// Others may have come with an older key that a removed node has kept.
    fn trusted(&self, ground: Ground<'_>) -> Option<BTreeSet<NodeId>> {
        let said = ground.catalogue.gossip_keys();
        let is_out = |node: &NodeId| ground.catalogue.is_removed(*node);
        let keys = self.ring.newest_first();
        for (place, key) in keys.iter().enumerate() {
            if key.epoch == FIRST {
                return None;
            }
            let offered: BTreeSet<NodeId> = said.offered(key.id()).collect();
            let found = match place {
                0 => self.entitled.clone(),
                _ => BTreeSet::new(),
            };
            // A start came between the key and the offers of it, and it is to be found out from the key before.
            if offered.is_empty() && found.is_empty() && place + 1 < keys.len() {
                continue;
            }
            let mut trusted: BTreeSet<NodeId> = found.into_iter().chain(offered).collect();
            trusted.extend(self.provers(key, ground).chain([ground.me, ground.founder]));
            trusted.extend(self.admitted.keys());
            trusted.retain(|node| !is_out(node));
            loop {
                let more: Vec<NodeId> = said
                    .admissions()
                    .filter(|(node, by, _)| !trusted.contains(node) && trusted.contains(by) && !is_out(node))
                    .map(|(node, ..)| node)
                    .collect();
                if more.is_empty() {
                    return Some(trusted);
                }
                trusted.extend(more);
            }
        }
        None
    }

    /// Those who are to have the newest key and are not known to.
    fn lacking(&self, ground: Ground<'_>) -> BTreeSet<NodeId> {
        let mut lacking = self.entitled(ground);
        let newest = self.ring.newest();
        for node in self.provers(newest, ground).chain([ground.me]) {
            lacking.remove(&node);
        }
        if newest.epoch == FIRST {
            // Versions without this have it too.
            lacking.retain(|node| self.place_of(node, ground) > 0);
        }
        lacking
    }

    /// Whether two keys were made at a time, on two sides of a split, and the one that won is known to somebody who was
    /// kept from the other because it was removed.
    fn is_known_to_the_removed(&self, ground: Ground<'_>) -> bool {
        let said = ground.catalogue.gossip_keys();
        let is_removed = |node: &NodeId| ground.catalogue.is_removed(*node);
        let mut known = said.offered(self.ring.newest().id()).filter(is_removed);
        let older = self.ring.newest_first().iter().skip(1);
        let older: Vec<BTreeSet<NodeId>> = older
            .map(|key| said.offered(key.id()).collect::<BTreeSet<_>>())
            .filter(|offered| !offered.is_empty())
            .collect();
        known.any(|node| older.iter().any(|offered| !offered.contains(&node)))
    }
}

impl Control {
    pub(super) fn ground(&self) -> Ground<'_> {
        Ground {
            catalogue: &self.catalogue,
            me: self.me,
            founder: self.facts.founder,
        }
    }

    /// Does what follows from the records for the keys, if that is due. True if it was.
    pub(super) fn look_at_keys(&mut self, now: Now) -> bool {
        let is_due = self.keyring.poll_timeout().is_some_and(|at| at <= now.instant);
        if !is_due {
            return false;
        }
        self.keyring.look_at = None;
        if self.removed {
            self.keyring.waiting.clear();
            return false;
        }
        let arrives = |since: Instant| now.instant.saturating_duration_since(since) < ARRIVES;
        self.keyring.admitted.retain(|_, (since, _)| arrives(*since));
        let before = self.keyring.ring.clone();
        while self.take_an_offered_key() {}
        if self.keyring.ring.newest() != before.newest() {
            self.keyring.entitled.clear();
        }
        self.keyring.entitled = self.keyring.entitled(self.ground());
        if self.is_to_offer() {
            self.offer_newest_key(now);
            if self.keyring.is_known_to_the_removed(self.ground()) && !self.keyring.ring.is_full() {
                tracing::info!("the newest key was made beside the removal of a node that it is offered to");
                self.make_key(now);
            }
        }
        self.forget_keys();
        self.note_ring(&before, now);
        self.say_which_keys(now);
        self.withdraw_offers(now);
        let ring = self.keyring.to_seal(self.ground());
        self.gossip.set_keys(ring);
        self.answer_who_waits(now);
        if self.keyring.is_changing() && self.keyring.look_at.is_none() {
            // For what no record tells: who lives, and who was let in long ago.
            self.keyring.look_at = Some(now.instant + 5 * LATER);
        }
        true
    }

    /// Takes one key that this node is offered by somebody who may.
    fn take_an_offered_key(&mut self) -> bool {
        let trusted = self.keyring.trusted(self.ground());
        let may_offer = |author: &NodeId| trusted.as_ref().is_none_or(|trusted| trusted.contains(author));
        let said = self.catalogue.gossip_keys();
        let found = said.offers().find_map(|(id, author, _, offer)| {
            let is_news = !self.keyring.ring.is_past(offer.epoch, id);
            if author == self.me || !is_news || !may_offer(&author) {
                return None;
            }
            let (_, (key, tag)) = offer.to.iter().find(|(to, _)| *to == self.me)?;
            let sealed = [key.as_slice(), tag].concat();
            let text = self.gossip.open_from(&author, &self.offer_context(id), &sealed)?;
            let key: [u8; 32] = text.try_into().ok()?;
            (GossipKey(key).id() == id).then(|| RingKey {
                epoch: offer.epoch,
                key: Secret32::new(key),
                made_millis: offer.made_millis,
            })
        });
        let Some(key) = found else { return false };
        tracing::info!(epoch = key.epoch, "this node has a new key of gossip");
        self.keyring.ring.insert(key)
    }

    fn offer_context(&self, id: KeyId) -> Vec<u8> {
        [b"weft gossip key 1".as_slice(), &self.facts.id.0, &id.0].concat()
    }

    /// Of those who have the newest key the lowest that lives offers it to whom nobody has.
    fn is_to_offer(&self) -> bool {
        let newest = self.keyring.ring.newest();
        let mut holders = self.keyring.provers(newest, self.ground());
        holders.all(|node| node >= self.me || !self.catalogue.lives(node))
    }

    fn offer_newest_key(&mut self, now: Now) {
        let id = self.keyring.ring.newest().id();
        let mut lacking = self.keyring.lacking(self.ground());
        for node in self.catalogue.gossip_keys().offered(id) {
            lacking.remove(&node);
        }
        // It got them with the answer.
        lacking.retain(|node| {
            self.keyring
                .admitted
                .get(node)
                .is_none_or(|(_, newest)| *newest != id)
        });
        let lacking: Vec<NodeId> = lacking.into_iter().collect();
        let said = self.catalogue.gossip_keys().offers();
        let own = said.filter(|(key, author, ..)| *key == id && *author == self.me);
        let first = own.map(|(_, _, number, _)| number + 1).max().unwrap_or(0);
        let lacking = lacking.chunks(OFFERS_PER_RECORD);
        let records = first + lacking.len() as u16;
        for (number, to) in (first..).zip(lacking) {
            self.offer_key_to(to, number, records, now);
        }
    }

    fn offer_key_to(&mut self, to: &[NodeId], number: u16, records: u16, now: Now) {
        let newest = self.keyring.ring.newest().clone();
        let (id, context) = (newest.id(), self.offer_context(newest.id()));
        let sealed = |node: &NodeId| {
            let sealed = self.gossip.seal_for(node, &context, newest.key.expose())?;
            let (key, tag) = sealed.split_first_chunk::<32>()?;
            Some((*node, (*key, tag.try_into().ok()?)))
        };
        let offer = OfferFact {
            epoch: newest.epoch,
            made_millis: newest.made_millis,
            records,
            // Who has an id that is nobody's public key is not heard either.
            to: to.iter().filter_map(sealed).collect(),
        };
        if let Err(error) = self.publish(offer_key(id, number), encode(&offer), now) {
            self.problem(error.message);
        }
    }

    /// Makes a key and offers it to all who are to have it.
    fn make_key(&mut self, now: Now) {
        let entitled = self.keyring.entitled(self.ground());
        let key = RingKey {
            epoch: self.keyring.ring.newest().epoch.saturating_add(1),
            key: Secret32::new(rand::RngExt::random(&mut self.rng)),
            made_millis: now.unix_millis,
        };
        tracing::info!(
            epoch = key.epoch,
            members = entitled.len(),
            "the cluster gets a new key of gossip"
        );
        if self.keyring.ring.insert(key) {
            self.keyring.entitled = entitled;
            self.offer_newest_key(now);
        }
    }

    /// Forgets the keys that nobody needs any more: all who are to have the newest have a newer one.
    fn forget_keys(&mut self) {
        let ground = self.ground();
        let newest = self.keyring.ring.newest().id();
        if !self.knows_who_is_there() || !ground.catalogue.gossip_keys().is_offered_wholly(newest) {
            return;
        }
        let entitled = self.keyring.entitled.iter();
        let furthest = entitled.map(|node| self.keyring.place_of(node, ground)).max();
        if self.keyring.ring.forget_beyond(furthest.unwrap_or(0)) {
            tracing::info!(
                kept = self.keyring.ring.newest_first().len(),
                "old keys of gossip are forgotten"
            );
        }
    }

    /// Who has just joined knows nobody, and who has just started may not know who has joined meanwhile.
    fn knows_who_is_there(&self) -> bool {
        let is_alone = || self.catalogue.members().all(|node| node == self.me);
        self.caught_up || (!self.is_newcomer && is_alone())
    }

    /// Says which keys this node has. It has them on the disk by then: that is the first thing of a turn.
    fn say_which_keys(&mut self, now: Now) {
        let fact = self.keyring.ring.proofs(&self.me);
        if self.catalogue.gossip_keys().held_by(self.me) != Some(&fact) {
            let key = Kind::Keys.key(CLUSTER, Vec::new());
            self.publish(key, encode(&fact), now)
                .expect("the proofs of a ring have a bounded length");
        }
    }

    /// Withdraws this node's offers of keys that are of no use to anybody: it has forgotten them, or all have forgotten
    /// those before.
    fn withdraw_offers(&mut self, now: Now) {
        let ring = &self.keyring.ring;
        let said = self.catalogue.gossip_keys();
        let is_on_ring = |id: KeyId| ring.newest_first().iter().any(|key| key.id() == id);
        let has_no_older = |node: &NodeId| {
            let last = said.held_by(*node).and_then(|held| held.proofs.last());
            last == Some(&ring.newest().proof(node))
        };
        let is_over = || {
            let others = self.keyring.entitled.iter();
            !self.keyring.is_changing() && others.filter(|node| **node != self.me).all(has_no_older)
        };
        let own = said.offers().filter(|(_, author, ..)| *author == self.me);
        let over: Vec<_> = own
            .filter(|(id, ..)| !is_on_ring(*id) || is_over())
            .map(|(id, _, number, _)| offer_key(id, number))
            .collect();
        for key in over {
            self.withdraw(&key, now);
        }
    }
}

#[cfg(test)]
mod tests;
