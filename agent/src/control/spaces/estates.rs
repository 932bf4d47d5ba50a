//! What removed nodes owned, and who takes it over.
//!
//! Every node says in a record what it believes a removed node to own, once it hears nothing from that one any more. When all
//! say the same, none of them has been given any of it, and none can be any more: then the heir, on whom all agree too,
//! takes it over. `docs/algorithms/addresses.md` says why that is safe.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use weft_ipam::Grant;
use weft_types::NodeId;

use super::Spaces;
use crate::{
    api::{ApiError, types::NodeRemoveResponse},
    control::{
        Control, Now, Responder,
        catalogue::Catalogue,
        records::{
            CLUSTER, ConsentFact, GrantFact, HoldingFact, Kind, SpaceKey, decode, encode, grant_key,
            holding_key,
        },
    },
};

/// What members say is taken in together,
const SOON: Duration = Duration::from_millis(50);
/// and what moves between them, which happens all the time and seldom matters here.
const LATER: Duration = Duration::from_secs(1);
/// How long whoever removes a node is kept waiting for what it owned.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a removed node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Estate {
    digest: [u8; 16],
    numbers: u128,
}

/// Removed nodes that own something, and who waits for that to change.
#[derive(Default)]
pub(in crate::control) struct Estates {
    due: Option<Instant>,
    known: BTreeMap<NodeId, Estate>,
    waiting: Vec<(Instant, NodeRemoveResponse, Responder<NodeRemoveResponse>)>,
}

impl Estates {
    pub(in crate::control) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|(until, ..)| *until);
        waiting.chain(self.due).min()
    }
}

impl Spaces {
    /// What each of these nodes owns; who owns nothing is left out.
    fn estates(&self, removed: &BTreeSet<NodeId>) -> BTreeMap<NodeId, Estate> {
        let mut estates: BTreeMap<NodeId, (Sha256, u128)> = BTreeMap::new();
        for (key, space) in &self.spaces {
            let mut runs = space.owners().peekable();
            while let Some((range, owner)) = runs.next() {
                let (first, mut last) = range.into_inner();
                // However the blocks are cut.
                while let Some((next, _)) =
                    runs.next_if(|(next, of)| *of == owner && last.checked_add(1) == Some(*next.start()))
                {
                    last = *next.end();
                }
                if removed.contains(&owner) {
                    let (digest, numbers) = estates.entry(owner).or_default();
                    digest.update(encode(&(*key, first, last)));
                    *numbers = numbers.saturating_add(last - first + 1);
                }
            }
        }
        let estates = estates.into_iter().map(|(node, (digest, numbers))| {
            let digest: [u8; 32] = digest.finalize().into();
            let digest = digest[..16].try_into().expect("half of it");
            (node, Estate { digest, numbers })
        });
        estates.collect()
    }

    /// Takes over what a removed node owns. Returns what to tell the others.
    fn take_over(
        &mut self,
        removed: NodeId,
        catalogue: &Catalogue,
        now: Now,
    ) -> Vec<(SpaceKey, Grant<NodeId>)> {
        let mut taken = Vec::new();
        for (key, space) in &mut self.spaces {
            let grants = space.take_over(removed, now.instant).stored();
            taken.extend(grants.into_iter().map(|grant| (*key, grant)));
        }
        // Networks and services that it gave numbers to go on having them.
        for (id, spec) in catalogue.networks() {
            self.restore_network(id, spec, catalogue);
        }
        self.restore_vips(catalogue);
        taken
    }
}

impl Control {
    /// Something became known of what members say, or of who is one.
    pub(in crate::control) fn look_at_estates(&mut self, now: Now) {
        self.look_at_estates_at(now.instant + SOON);
    }

    /// Numbers have another owner.
    pub(in crate::control) fn look_at_estates_later(&mut self, now: Now) {
        self.look_at_estates_at(now.instant + LATER);
    }

    fn look_at_estates_at(&mut self, at: Instant) {
        if self.catalogue.removed_nodes().next().is_some() {
            let due = self.estates.due.get_or_insert(at);
            *due = (*due).min(at);
        }
    }

    /// Answers when what a removed node owned has been taken over, or after a while.
    pub(in crate::control) fn once_taken_over(
        &mut self,
        response: NodeRemoveResponse,
        responder: Responder<NodeRemoveResponse>,
        now: Now,
    ) {
        self.estates.due = Some(now.instant);
        self.estates
            .waiting
            .push((now.instant + PATIENCE, response, responder));
    }

    pub(in crate::control) fn settle_estates(&mut self, now: Now) {
        if self.estates.due.is_some_and(|due| due <= now.instant)
            && self.reading_back.is_none()
            && !self.removed
        {
            self.estates.due = None;
            let removed: BTreeSet<NodeId> = self
                .catalogue
                .removed_nodes()
                .filter(|node| *node != self.me)
                .collect();
            self.show_gifts_of(&removed, now);
            self.estates.known = self.spaces.estates(&removed);
            for node in &removed {
                self.consent_to(*node, now);
            }
            for node in removed {
                if self.may_take_over(node) {
                    self.take_over(node, now);
                }
            }
        }
        let known = &self.estates.known;
        // Not before it was looked at, which has to wait where this node reads back what it had.
        let is_known = self.estates.due.is_none();
        let is_over = |(until, response, _): &mut (Instant, NodeRemoveResponse, _)| {
            *until <= now.instant || (is_known && !known.contains_key(&response.id))
        };
        let over: Vec<_> = self.estates.waiting.extract_if(.., is_over).collect();
        for (_, mut response, responder) in over {
            response.still_owned = self.why_still_owned(response.id);
            self.reply(responder, Ok(response));
        }
    }

    /// What this node was given in a message by one that was removed before it could tell others, nobody else can tell them.
    fn show_gifts_of(&mut self, removed: &BTreeSet<NodeId>, now: Now) {
        let me = self.me;
        let is_untold = |(key, grant): &(SpaceKey, Grant<NodeId>)| {
            let record = self.gossip.get(&grant.from, &grant_key(*key, grant.block));
            let told: Option<GrantFact> = record.and_then(|record| decode(record.value.as_deref()?));
            let shown = self.gossip.get(&me, &holding_key(*key, grant.block, grant.from));
            let shown: Option<HoldingFact> = shown.and_then(|record| decode(record.value.as_deref()?));
            told.is_none_or(|told| told.version != grant.version)
                && shown.is_none_or(|shown| shown.version != grant.version)
        };
        let gifts = self.spaces.grants();
        let gifts = gifts.filter(|(_, grant)| grant.to == me && removed.contains(&grant.from));
        let untold: Vec<_> = gifts.filter(is_untold).collect();
        for (key, grant) in untold {
            if let Err(error) = self.publish_holding(key, grant, now) {
                tracing::warn!(%error, "a block cannot be told to the others");
            }
        }
    }

    fn publish_holding(&mut self, key: SpaceKey, grant: Grant<NodeId>, now: Now) -> Result<(), ApiError> {
        let fact = HoldingFact {
            space: key,
            from: grant.from,
            version: grant.version,
        };
        self.publish(holding_key(key, grant.block, grant.from), encode(&fact), now)
    }

    /// Says what this node believes a removed one to own, if it has not yet.
    fn consent_to(&mut self, node: NodeId, now: Now) {
        let key = Kind::Consent.key(CLUSTER, node.0);
        let said = self.catalogue.consent(node, self.me).copied();
        let wanted = self.my_consent(node);
        match wanted {
            Some(consent) if said != Some(consent) => {
                if let Err(error) = self.publish(key, encode(&consent), now) {
                    tracing::warn!(%error, "what a removed node owns cannot be told to the others");
                }
            }
            None if said.is_some() => self.withdraw(&key, now),
            _ => {}
        }
    }

    fn my_consent(&self, node: NodeId) -> Option<ConsentFact> {
        let estate = self.estates.known.get(&node)?.digest;
        let heir = self.catalogue.heir_of(node)?;
        Some(ConsentFact { heir, estate })
    }

    /// The nodes whose word for it is missing.
    fn silent_on(&self, node: NodeId) -> Vec<NodeId> {
        let mine = self.my_consent(node);
        let agrees = |member: &NodeId| self.catalogue.consent(node, *member).copied() == mine;
        self.catalogue
            .members()
            .filter(|member| !agrees(member))
            .collect()
    }

    /// Whether those who are left are more than those who are gone, or an operator has said that these are dead.
    fn is_certain(&self, node: NodeId) -> bool {
        let left = self.catalogue.members().count();
        left > self.estates.known.len() || self.catalogue.is_forced_out(node)
    }

    fn may_take_over(&self, node: NodeId) -> bool {
        let is_mine = self
            .my_consent(node)
            .is_some_and(|consent| consent.heir == self.me);
        is_mine && !self.spaces.is_stopped() && self.is_certain(node) && self.silent_on(node).is_empty()
    }

    fn take_over(&mut self, node: NodeId, now: Now) {
        let taken = self.spaces.take_over(node, &self.catalogue, now);
        tracing::info!(node = %self.catalogue.node_name(node), blocks = taken.len(), "what a removed node owned is this node's now");
        let mut blocks = 0;
        for (key, grant) in taken {
            match self.publish_holding(key, grant, now) {
                Ok(()) => blocks += 1,
                // This node has it and the others do not know: they go on waiting, and nobody has it twice.
                Err(error) => self.problem(format!(
                    "a block that was taken over cannot be told: {}",
                    error.message
                )),
            }
        }
        for (_, response, _) in self
            .estates
            .waiting
            .iter_mut()
            .filter(|(_, response, _)| response.id == node)
        {
            response.blocks_reclaimed = blocks;
        }
        self.estates.known.remove(&node);
        self.consent_to(node, now);
        self.note_conflicts();
        self.resume(now);
    }

    /// Why the numbers of a removed node are not taken over, if it had any and they are not.
    fn why_still_owned(&self, node: NodeId) -> Option<String> {
        let numbers = self.estates.known.get(&node)?.numbers;
        let name = self.catalogue.node_name(node);
        let begin = format!("{numbers} numbers of the removed node `{name}` are not taken over");
        if !self.is_certain(node) {
            return Some(format!(
                "{begin}: too few nodes are left to be sure that it is dead; if you are, `weft node rm --force {name}` says so"
            ));
        }
        let silent: Vec<NodeId> = self.silent_on(node);
        let away = |node: &&NodeId| !self.catalogue.lives(**node);
        let away: Vec<String> = silent
            .iter()
            .filter(away)
            .map(|node| self.catalogue.node_name(*node))
            .collect();
        match away.first() {
            Some(first) => Some(format!(
                "{begin} before {} can say that it has none of them: start it, or `weft node rm {first}` if it is dead",
                away.join(" and ")
            )),
            None => Some(format!(
                "{begin} yet: not all nodes have said that they have none of them"
            )),
        }
    }

    /// What an operator has to do about them.
    pub(in crate::control) fn estate_problems(&self) -> impl Iterator<Item = String> {
        self.estates
            .known
            .keys()
            .filter_map(|node| self.why_still_owned(*node))
    }
}

#[cfg(test)]
mod fates;
#[cfg(test)]
mod tests;
