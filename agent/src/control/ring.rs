//! The keys that this node seals and opens gossip with, as they are on the disk, and what they show of other nodes.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};
use weft_gossip::{GossipKey, KeyId, KeyRing};
use weft_types::NodeId;
use weft_wireguard::Secret32;

use super::records::KeysFact;

/// The number of the key that a cluster is made with.
pub(super) const FIRST: u32 = 1;
/// So many changes may be under way at a time.
pub(super) const MOST: usize = 16;

/// One of the keys of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingKey {
    /// Which of them it is: 1 for the first. Two that were made on two sides of a split have the same.
    pub epoch: u32,
    pub key: Secret32,
    /// When it was made, in milliseconds since the Unix epoch.
    pub made_millis: u64,
}

impl RingKey {
    fn gossip_key(&self) -> GossipKey {
        GossipKey(*self.key.expose())
    }

    pub(super) fn id(&self) -> KeyId {
        self.gossip_key().id()
    }

    /// What a node that has it says to show that.
    pub(super) fn proof(&self, node: &NodeId) -> (u32, [u8; 16]) {
        (self.epoch, self.gossip_key().proof(node))
    }

    /// All nodes have the same order of keys, whenever and from whom they heard of them.
    fn order(&self) -> (u32, KeyId) {
        (self.epoch, self.id())
    }
}

/// Keys of a cluster, the newest first, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<RingKey>", into = "Vec<RingKey>")]
pub struct Ring(Vec<RingKey>);

#[derive(Debug, thiserror::Error)]
#[error("a ring has from one to {MOST} keys")]
pub struct WrongSize;

impl TryFrom<Vec<RingKey>> for Ring {
    type Error = WrongSize;

    fn try_from(mut keys: Vec<RingKey>) -> Result<Self, WrongSize> {
        if keys.is_empty() || keys.len() > MOST {
            return Err(WrongSize);
        }
        keys.sort_by_key(|key| Reverse(key.order()));
        keys.dedup_by_key(|key| key.id());
        Ok(Self(keys))
    }
}

impl From<Ring> for Vec<RingKey> {
    fn from(ring: Ring) -> Self {
        ring.0
    }
}

impl Ring {
    /// That of a cluster that has just been made.
    pub fn first(key: Secret32, made_millis: u64) -> Self {
        Self(vec![RingKey {
            epoch: FIRST,
            key,
            made_millis,
        }])
    }

    /// For [`Gossip`](weft_gossip::Gossip), before it is known who has which.
    pub fn to_seal(&self) -> KeyRing {
        let mut keys = self.0.iter().map(RingKey::gossip_key);
        let newest = keys.next().expect("there is at least one");
        keys.fold(KeyRing::new(newest), KeyRing::and)
    }

    pub(super) fn newest(&self) -> &RingKey {
        &self.0[0]
    }

    pub(super) fn newest_first(&self) -> &[RingKey] {
        &self.0
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MOST
    }

    /// Whether it is the one or the other: one that this node has had, or is too old to have.
    pub(super) fn is_past(&self, epoch: u32, id: KeyId) -> bool {
        let oldest = self.0.last().expect("there is at least one");
        (epoch, id) <= oldest.order() || self.0.iter().any(|key| key.id() == id)
    }

    /// Takes one more key; false if there is no room.
    pub(super) fn insert(&mut self, key: RingKey) -> bool {
        if self.is_full() {
            return false;
        }
        let place = self.0.partition_point(|held| held.order() > key.order());
        self.0.insert(place, key);
        true
    }

    /// Forgets the keys that are older than this place; true if there were any.
    pub(super) fn forget_beyond(&mut self, place: usize) -> bool {
        let before = self.0.len();
        self.0.truncate(place + 1);
        self.0.len() < before
    }

    /// What `node` says that has all of these and no others.
    pub(super) fn proofs(&self, node: &NodeId) -> KeysFact {
        KeysFact {
            proofs: self.0.iter().map(|key| key.proof(node)).collect(),
        }
    }

    /// The place of the newest of these keys that a node has shown to have. Who says nothing has the first, as versions without
    /// this have.
    pub(super) fn place_of(&self, node: &NodeId, said: Option<&KeysFact>) -> Option<usize> {
        match said {
            Some(said) => self
                .0
                .iter()
                .position(|key| said.proofs.contains(&key.proof(node))),
            None => self.0.iter().position(|key| key.epoch == FIRST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([9; 32]);

    fn key(epoch: u32, n: u8) -> RingKey {
        RingKey {
            epoch,
            key: Secret32::new([n; 32]),
            made_millis: 0,
        }
    }

    fn ring(keys: impl IntoIterator<Item = RingKey>) -> Ring {
        keys.into_iter().collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn the_order_of_keys_does_not_depend_on_when_they_came() {
        // Two of one epoch, made on two sides of a split.
        let keys = [key(1, 1), key(2, 2), key(2, 3), key(3, 4)];
        let expected = ring(keys.clone());
        assert_eq!(expected.newest(), &keys[3]);
        assert_eq!(expected.newest_first()[3], keys[0]);
        for start in 0..keys.len() {
            let mut grown = ring([keys[start].clone()]);
            for step in 1..keys.len() {
                assert!(grown.insert(keys[(start + step) % keys.len()].clone()));
            }
            assert_eq!(grown, expected);
        }
        let bytes = postcard::to_allocvec(&expected).unwrap();
        assert_eq!(postcard::from_bytes::<Ring>(&bytes).unwrap(), expected);
        assert!(postcard::from_bytes::<Ring>(&[0]).is_err());
    }

    #[test]
    fn a_ring_is_bounded_and_what_it_forgot_is_past() {
        let mut ring = ring([key(1, 1)]);
        for n in 2..=MOST as u8 {
            assert!(ring.insert(key(u32::from(n), n)));
        }
        assert!(ring.is_full() && !ring.insert(key(99, 99)));
        assert!(ring.forget_beyond(1));
        assert!(!ring.forget_beyond(1));
        assert_eq!(ring.newest_first().len(), 2);
        assert!(ring.is_past(14, key(14, 14).id()));
        assert!(ring.is_past(16, key(16, 16).id()));
        assert!(!ring.is_past(17, key(17, 17).id()));
    }

    #[test]
    fn who_says_to_have_a_key_has_to_show_it_and_who_says_nothing_has_the_first() {
        let ring = ring([key(1, 1), key(2, 2)]);
        let newer = self::ring([key(2, 2), key(3, 3)]);
        assert_eq!(ring.place_of(&NODE, Some(&newer.proofs(&NODE))), Some(0));
        assert_eq!(newer.place_of(&NODE, Some(&ring.proofs(&NODE))), Some(1));
        let of_another = ring.proofs(&NodeId([8; 32]));
        assert_eq!(ring.place_of(&NODE, Some(&of_another)), None);
        assert_eq!(ring.place_of(&NODE, None), Some(1));
        assert_eq!(newer.place_of(&NODE, None), None);
    }
}
