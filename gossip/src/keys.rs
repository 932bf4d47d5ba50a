//! The keys of a cluster: which of them seals for whom, and who may still speak by an old one.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use sha2::{Digest, Sha256};
use weft_types::NodeId;

/// A secret that every node of a cluster has. Whoever has it can join.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey(pub [u8; 32]);

/// The name of a key, which says nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

impl GossipKey {
    /// What it is called.
    pub fn id(&self) -> KeyId {
        KeyId(self.derive(b"weft gossip key id 1", &[]))
    }

    /// What shows everybody who has this key that `node` has it too.
    pub fn proof(&self, node: &NodeId) -> [u8; 16] {
        self.derive(b"weft gossip key proof 1", &node.0)
    }

    fn hint(&self) -> u8 {
        self.derive(b"weft key hint 1", &[])[0]
    }

    fn derive(&self, what: &[u8], of: &[u8]) -> [u8; 16] {
        let digest = Sha256::new()
            .chain_update(what)
            .chain_update(self.0)
            .chain_update(of)
            .finalize();
        digest[..16].try_into().expect("16 of 32 bytes")
    }
}

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GossipKey(secret)")
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u128::from_be_bytes(self.0) >> 64)
    }
}

/// The keys of a cluster, the newest first, and which members have which. All keys open. To a member is sealed by the newest
/// that it has, to everybody else by the newest there is; so a key can be replaced while the cluster runs, and nobody waits for
/// anybody.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<Held>,
    /// With the place of the newest key that they are known to have.
    members: BTreeMap<NodeId, usize>,
}

#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) id: KeyId,
    /// The byte on the wire saves trying every key; it says nothing useful about the key.
    pub(crate) hint: u8,
    pub(crate) cipher: XChaCha20Poly1305,
}

impl KeyRing {
    /// A ring with one key.
    pub fn new(newest: GossipKey) -> Self {
        Self {
            keys: Vec::new(),
            members: BTreeMap::new(),
        }
        .and(newest)
    }

    /// The ring with one more key, which is older than the others.
    pub fn and(mut self, key: GossipKey) -> Self {
        self.keys.push(Held {
            id: key.id(),
            hint: key.hint(),
            cipher: XChaCha20Poly1305::new(&key.0.into()),
        });
        self
    }

    /// The ring with a member whose newest key is this one, as far as is known. Whoever is not named so is heard by the newest key
    /// alone: an old one proves nothing any more about a stranger.
    pub fn with_member(mut self, node: NodeId, newest: KeyId) -> Self {
        if let Some(place) = self.place(newest) {
            self.members.insert(node, place);
        }
        self
    }

    fn place(&self, key: KeyId) -> Option<usize> {
        self.keys.iter().position(|held| held.id == key)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", self.keys.len())
    }
}

/// A ring in use, with what was learnt from packets.
pub(crate) struct Keys {
    ring: KeyRing,
    /// The newest key that somebody was heard by, and so has, where its records do not say so yet.
    heard: HashMap<NodeId, usize>,
    limit: usize,
}

impl Keys {
    pub(crate) fn new(ring: KeyRing, limit: usize) -> Self {
        Self {
            ring,
            heard: HashMap::new(),
            limit,
        }
    }

    pub(crate) fn set(&mut self, ring: KeyRing) {
        let before = std::mem::replace(&mut self.ring, ring);
        self.heard.retain(|_, place| {
            let now = self.ring.place(before.keys[*place].id);
            now.inspect(|now| *place = *now).is_some()
        });
    }

    pub(crate) fn all(&self) -> &[Held] {
        &self.ring.keys
    }

    pub(crate) fn get(&self, id: KeyId) -> Option<&Held> {
        self.ring.keys.iter().find(|held| held.id == id)
    }

    /// What is sealed by for `to`.
    pub(crate) fn id_for(&self, to: Option<&NodeId>) -> KeyId {
        let said = to.and_then(|to| self.ring.members.get(to)).copied().unwrap_or(0);
        let heard = to.and_then(|to| self.heard.get(to)).copied();
        self.ring.keys[heard.map_or(said, |heard| heard.min(said))].id
    }

    /// Whether what `node` says by this key is listened to.
    pub(crate) fn may_speak(&self, node: &NodeId, key: KeyId) -> bool {
        self.ring.place(key) == Some(0) || self.ring.members.contains_key(node)
    }

    /// `node` has proved that it has this key.
    pub(crate) fn note(&mut self, node: NodeId, key: KeyId) {
        let Some(place) = self.ring.place(key) else { return };
        if self.ring.members.get(&node).is_none_or(|said| *said <= place) {
            return;
        }
        if self.heard.len() >= self.limit && !self.heard.contains_key(&node) {
            // Only what records will say as well is lost.
            self.heard.clear();
        }
        let heard = self.heard.entry(node).or_insert(place);
        *heard = place.min(*heard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: NodeId = NodeId([1; 32]);
    const STRANGER: NodeId = NodeId([2; 32]);

    fn key(n: u8) -> GossipKey {
        GossipKey([n; 32])
    }

    fn keys(ring: KeyRing) -> Keys {
        Keys::new(ring, 2)
    }

    #[test]
    fn a_member_that_is_behind_is_spoken_to_by_what_it_has_until_it_is_heard_by_more() {
        let ring = KeyRing::new(key(3)).and(key(2)).and(key(1));
        let mut keys = keys(ring.clone().with_member(MEMBER, key(1).id()));
        assert_eq!(keys.id_for(Some(&MEMBER)), key(1).id());
        assert_eq!(keys.id_for(Some(&STRANGER)), key(3).id());
        assert_eq!(keys.id_for(None), key(3).id());
        keys.note(MEMBER, key(2).id());
        // Overtaken on the way.
        keys.note(MEMBER, key(1).id());
        assert_eq!(keys.id_for(Some(&MEMBER)), key(2).id());

        // What was heard stays known when there is another ring.
        keys.set(
            KeyRing::new(key(4))
                .and(key(3))
                .and(key(2))
                .and(key(1))
                .with_member(MEMBER, key(1).id()),
        );
        assert_eq!(keys.id_for(Some(&MEMBER)), key(2).id());
        keys.set(KeyRing::new(key(4)));
        assert_eq!(keys.id_for(Some(&MEMBER)), key(4).id());
    }

    #[test]
    fn by_an_old_key_only_members_are_heard() {
        let keys = keys(
            KeyRing::new(key(2))
                .and(key(1))
                .with_member(MEMBER, key(1).id())
                .with_member(STRANGER, key(9).id()),
        );
        assert!(keys.may_speak(&MEMBER, key(1).id()));
        assert!(keys.may_speak(&STRANGER, key(2).id()));
        assert!(!keys.may_speak(&STRANGER, key(1).id()));
    }

    #[test]
    fn what_is_learnt_from_packets_is_bounded() {
        let node = |n: u8| NodeId([n; 32]);
        let ring = (1..=5).fold(KeyRing::new(key(2)).and(key(1)), |ring, n| {
            ring.with_member(node(n), key(1).id())
        });
        let mut keys = keys(ring);
        for n in 1..=5 {
            keys.note(node(n), key(2).id());
            assert!(keys.heard.len() <= 2);
            assert_eq!(keys.id_for(Some(&node(n))), key(2).id());
        }
        // As many as there is room for stay known, and who is heard again takes no other's.
        keys.note(node(4), key(2).id());
        keys.note(node(4), key(2).id());
        keys.note(node(5), key(2).id());
        assert_eq!([4, 5].map(|n| keys.id_for(Some(&node(n)))), [key(2).id(); 2]);
    }

    #[test]
    fn a_proof_is_for_one_node_and_of_one_key() {
        assert_eq!(key(1).proof(&MEMBER), key(1).proof(&MEMBER));
        assert_ne!(key(1).proof(&MEMBER), key(1).proof(&STRANGER));
        assert_ne!(key(1).proof(&MEMBER), key(2).proof(&MEMBER));
        assert!(!format!("{:?} {:?}", key(1), KeyRing::new(key(1))).contains("1, 1"));
    }
}
