//! The keys of nodes: whose a key is, and this node's change of its own.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64_NOPAD;
use sha2::{Digest, Sha256};
use weft_types::NodeId;
use weft_wireguard::{PeerStatus, Secret32};

use super::{
    super::{
        Control, Now,
        catalogue::{Catalogue, Presence},
        claims::Thing,
        names,
        records::{NodeFact, TunnelFact},
        rotation::{LONGEST, Party},
    },
    ADDRESSES, PATIENCE, holders, peer,
};
use crate::api::{
    ApiError,
    types::{KeyChange, NodeRotateKeyResponse},
};

/// A node that tunnels can lead to.
pub(in crate::control) struct End<'c> {
    pub(in crate::control) fact: &'c NodeFact,
    /// The keys that it takes packets by, the newest first.
    pub(in crate::control) keys: Vec<[u8; 32]>,
}

/// The nodes that tunnels can lead to. An address that several say belongs to one of them, and so does a key: to whoever was
/// known to have it first. What one has is not what another is about to have.
pub(in crate::control) fn ends(catalogue: &Catalogue) -> BTreeMap<NodeId, End<'_>> {
    let holders = holders(members(catalogue).map(|(id, fact)| (id, fact.tunnel.address)));
    let mut keys = BTreeSet::new();
    let mut ends = BTreeMap::new();
    for (id, fact) in members(catalogue) {
        let TunnelFact { key, address, .. } = fact.tunnel;
        let has_key = catalogue.claims().is_first(id, Thing::Key(key)) && keys.insert(key);
        if has_key && holders.get(&address) == Some(&id) && ADDRESSES.contains(&address) {
            ends.insert(
                id,
                End {
                    fact,
                    keys: vec![key],
                },
            );
        }
    }
    for end in ends.values_mut() {
        let next = end.fact.tunnel.next.filter(|next| keys.insert(*next));
        end.keys.splice(..0, next);
    }
    ends
}

fn members(catalogue: &Catalogue) -> impl Iterator<Item = (NodeId, &NodeFact)> {
    let members = catalogue
        .nodes()
        .filter(|(_, node)| node.presence != Presence::Left);
    members.filter_map(|(id, node)| Some((id, node.fact.as_ref()?)))
}

/// What a person compares, written as `ssh-keygen -l` does.
pub(super) fn fingerprint(key: &[u8; 32]) -> String {
    format!("SHA256:{}", BASE64_NOPAD.encode(&Sha256::digest(key)))
}

impl Control {
    /// Begins to change this node's key. `fresh` is nobody's yet.
    pub(in crate::control) fn rotate_key(
        &mut self,
        reference: &str,
        fresh: Secret32,
        now: Now,
    ) -> Result<NodeRotateKeyResponse, ApiError> {
        let id = names::node(&self.catalogue, reference)?;
        let name = self.catalogue.node_name(id);
        if id != self.me {
            return Err(ApiError::invalid(format!(
                "`{name}` is another node, and only it can change its key"
            ))
            .with_help(format!("run `weft node rotate-key` on {name}")));
        }
        if let Some(change) = self.key_change(now) {
            let late = match &change.waiting_for[..] {
                [] => "all nodes have gone over to the new one".to_owned(),
                late => format!("it waits for {}", late.join(", ")),
            };
            let left = humantime::format_duration(std::time::Duration::from_secs(change.at_most_ms / 1000));
            return Err(ApiError::conflict(format!(
                "the key of `{name}` is being changed already: {late}; the old one is kept for {left} at most"
            ))
            .with_help("try again when `weft status` shows no change any more"));
        }
        self.begin_key_change(fresh, now);
        Ok(NodeRotateKeyResponse {
            id,
            name,
            fingerprint: fingerprint(&self.rotation.keys().current.public_key()),
            change: self.key_change(now).ok_or_else(|| {
                ApiError::internal("the change of the key is not under way; this is a fault of the agent")
            })?,
        })
    }

    /// Whether the key is to be changed by [`change_old_key`](Self::change_old_key).
    pub fn is_key_old(&self, now: Now) -> bool {
        let every = self.settings.rotate_keys;
        every.is_some_and(|every| self.rotation.is_due(every, now.unix_millis))
            && self.leaving.is_none()
            && !self.removed
    }

    /// Begins to change a key that is older than it may get.
    pub fn change_old_key(&mut self, fresh: Secret32, now: Now) {
        self.begin_key_change(fresh, now);
        self.settle(now);
    }

    fn begin_key_change(&mut self, fresh: Secret32, now: Now) {
        if self.rotation.begin(fresh, now) {
            tracing::info!(epoch = self.rotation.keys().epoch + 1, "this node gets a new key");
            self.tell_keys(now);
        }
    }

    /// Forgets the old key when all have gone over to the new one.
    pub(in crate::control) fn finish_key_change(&mut self, now: Now) {
        let parties = self.parties(now);
        if self.rotation.finish(&parties, now.instant) {
            let late = parties.iter().filter(|party| !party.heard_by_newest).count();
            tracing::info!(
                epoch = self.rotation.keys().epoch,
                late,
                "the old key is forgotten"
            );
            self.tell_keys(now);
        }
    }

    /// The disk first, then the others, then the process that encrypts: the order in which a turn is carried out.
    fn tell_keys(&mut self, now: Now) {
        self.turn.tunnel_keys = Some(self.rotation.keys().clone());
        self.introduce(now);
        self.host_changed();
    }

    /// The nodes that there are to be tunnels to, as they take this node's change of its key.
    fn parties(&self, now: Now) -> Vec<Party> {
        if !self.rotation.is_changing() {
            return Vec::new();
        }
        let old = self.rotation.keys().current.public_key();
        let new = self.rotation.keys().next_public();
        let status = self.tunnels.status(now);
        let ends = ends(&self.catalogue);
        let wanted = ends
            .iter()
            .filter(|(_, end)| self.tunnels.wanted.contains_key(&end.fact.tunnel.address));
        let party = |(id, end): (&NodeId, &End<'_>)| {
            let pairs = status.and_then(|(status, _)| Some(&peer(status, &end.fact.tunnel)?.pairs));
            let pairs = || pairs.into_iter().flatten();
            let newest = (new, end.keys.first().copied());
            Party {
                node: *id,
                answers: self.catalogue.lives(*id),
                heard_by_newest: pairs().any(|pair| {
                    (Some(pair.own), Some(pair.public_key)) == newest && pair.last_heard.is_some()
                }),
                heard_by_old: pairs()
                    .filter(|pair| pair.own == old)
                    .filter_map(|pair| pair.last_heard)
                    .min(),
            }
        };
        wanted.map(party).collect()
    }

    /// How far the change of this node's key is, if there is one.
    pub(super) fn key_change(&self, now: Now) -> Option<KeyChange> {
        let left = self.rotation.left(now.instant)?;
        let late = self.rotation.waits_for(&self.parties(now), now.instant);
        Some(KeyChange {
            fingerprint: fingerprint(&self.rotation.keys().next_public()?),
            epoch: self.rotation.keys().epoch.saturating_add(1),
            waiting_for: late.iter().map(|id| self.catalogue.node_name(*id)).collect(),
            at_most_ms: left.as_millis() as u64,
        })
    }

    pub(in crate::control) fn key_fingerprint(&self, id: NodeId) -> Option<String> {
        let fact = self.catalogue.node(id)?.fact.as_ref()?;
        Some(fingerprint(&fact.tunnel.key))
    }

    pub(in crate::control) fn key_epoch(&self, id: NodeId) -> Option<u32> {
        Some(self.catalogue.node(id)?.fact.as_ref()?.tunnel.epoch)
    }

    /// Which of this node's keys packets go by, and which of the other's.
    pub(super) fn keys_used(&self, peer: Option<&PeerStatus>, fact: &TunnelFact) -> (u32, [u8; 32], u32) {
        let keys = self.rotation.keys();
        let used = peer.and_then(PeerStatus::used);
        let by_next = used.is_some_and(|pair| Some(pair.own) == keys.next_public());
        let theirs = used.and_then(|pair| fact.keys().find(|(key, _)| *key == pair.public_key));
        let (key, epoch) = theirs.unwrap_or((fact.key, fact.epoch));
        (keys.epoch + u32::from(by_next), key, epoch)
    }

    /// What is wrong with keys, a sentence each.
    pub(super) fn key_problems(&self, now: Now) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(change) = self.key_change(now) {
            let waited = LONGEST.as_millis() as u64 - change.at_most_ms;
            if u128::from(waited) >= 2 * PATIENCE.as_millis() && !change.waiting_for.is_empty() {
                problems.push(format!(
                    "this node changes its key, and {} does not use the new one yet; in {} s the old one goes all the same",
                    change.waiting_for.join(", "),
                    change.at_most_ms / 1000
                ));
            }
        }
        let mut holders: BTreeMap<[u8; 32], NodeId> = BTreeMap::new();
        for (id, fact) in members(&self.catalogue) {
            for (key, _) in fact.tunnel.keys() {
                let holder = *holders.entry(key).or_insert(id);
                if holder != id {
                    problems.push(format!(
                        "nodes `{}` and `{}` say that they have the same key for encrypted networks ({}), and tunnels lead to \
                         one of them at most. Was a disk copied? `weft node rotate-key` on one of them gives it another key",
                        self.catalogue.node_name(holder),
                        self.catalogue.node_name(id),
                        fingerprint(&key)
                    ));
                }
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests;
