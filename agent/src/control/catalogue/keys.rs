//! What records say of the keys of gossip: who has which, who offers which to whom, and who let whom in.

use std::collections::{BTreeMap, BTreeSet};

use weft_gossip::{Key, KeyId};
use weft_types::NodeId;

use super::super::records::{CLUSTER, KeysFact, Kind, OfferFact, decode, offer_of_key};

/// The record of one author with offers of one key: the key, the author, and which of its records.
type Place = (KeyId, NodeId, u16);

type TokenId = [u8; 8];

#[derive(Debug, Default)]
pub struct SaidOfKeys {
    held: BTreeMap<NodeId, KeysFact>,
    offers: BTreeMap<Place, OfferFact>,
    /// Who was let in, by whom and with which token.
    admissions: BTreeSet<(NodeId, NodeId, TokenId)>,
}

impl SaidOfKeys {
    pub(super) fn apply_held(&mut self, author: NodeId, value: Option<&[u8]>) {
        match value.and_then(decode) {
            Some(fact) => drop(self.held.insert(author, fact)),
            None => drop(self.held.remove(&author)),
        }
    }

    pub(super) fn apply_offer(&mut self, author: NodeId, key: &Key, value: Option<&[u8]>) -> Option<()> {
        let (id, number) = offer_of_key(key)?;
        match value.and_then(decode) {
            Some(fact) => drop(self.offers.insert((id, author, number), fact)),
            None => drop(self.offers.remove(&(id, author, number))),
        }
        Some(())
    }

    /// Returns whether it was not known.
    pub(super) fn apply_admission(&mut self, by: NodeId, key: &Key, value: Option<&[u8]>) -> Option<bool> {
        let (token, node) = key.name.split_first_chunk()?;
        Some(match value {
            Some(value) => self
                .admissions
                .insert((NodeId(value.try_into().ok()?), by, *token)),
            None => {
                let said = |(of, who, with): &(NodeId, NodeId, TokenId)| {
                    who == &by && with == token && of.0.starts_with(node)
                };
                let before = self.admissions.len();
                self.admissions.retain(|one| !said(one));
                self.admissions.len() < before
            }
        })
    }

    /// The keys of the records that end with their author.
    pub(super) fn of(&self, author: NodeId) -> impl Iterator<Item = Key> {
        let offers = self.offers.keys().filter(move |(_, by, _)| *by == author);
        let held = self.held.contains_key(&author);
        offers
            .map(|(id, _, number)| super::super::records::offer_key(*id, *number))
            .chain(held.then(|| Kind::Keys.key(CLUSTER, Vec::new())))
    }

    /// Which keys a node says to have.
    pub fn held_by(&self, node: NodeId) -> Option<&KeysFact> {
        self.held.get(&node)
    }

    /// All who say which keys they have.
    pub fn holders(&self) -> impl Iterator<Item = NodeId> {
        self.held.keys().copied()
    }

    /// Every record of offers, with its key, its author and its number.
    pub fn offers(&self) -> impl Iterator<Item = (KeyId, NodeId, u16, &OfferFact)> {
        let all = self.offers.iter();
        all.map(|((id, author, number), fact)| (*id, *author, *number, fact))
    }

    /// To whom a key is offered.
    pub fn offered(&self, key: KeyId) -> impl Iterator<Item = NodeId> {
        let offers = self.offers_of(key);
        offers.flat_map(|(_, fact)| fact.to.iter().map(|(node, _)| *node))
    }

    /// Whether all is known of whom a key is offered to by those who are known to offer it.
    pub fn is_offered_wholly(&self, key: KeyId) -> bool {
        let mut records: BTreeMap<NodeId, (u32, u32)> = BTreeMap::new();
        for (author, fact) in self.offers_of(key) {
            let (known, there_are) = records.entry(author).or_default();
            *known += 1;
            *there_are = u32::from(fact.records).max(*there_are);
        }
        records.values().all(|(known, there_are)| known >= there_are)
    }

    fn offers_of(&self, key: KeyId) -> impl Iterator<Item = (NodeId, &OfferFact)> {
        let first = (key, NodeId([0; 32]), 0);
        let last = (key, NodeId([0xff; 32]), u16::MAX);
        let offers = self.offers.range(first..=last);
        offers.map(|((_, author, _), fact)| (*author, fact))
    }

    /// All who were let in, by whom and with which token.
    pub fn admissions(&self) -> impl Iterator<Item = (NodeId, NodeId, TokenId)> {
        self.admissions.iter().copied()
    }
}
