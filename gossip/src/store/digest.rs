//! Everything in a few bytes, for others to compare with.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::{
    identity::Short,
    wire::{Entry, Liveness},
};

/// A fingerprint of everything, in 256 buckets by the first byte of the author's id.
#[derive(Debug)]
pub(crate) struct Digest {
    buckets: [u64; 256],
    parts: BTreeMap<Short, u64>,
}

impl Digest {
    pub(crate) fn new() -> Self {
        Self {
            buckets: [0; 256],
            parts: BTreeMap::new(),
        }
    }

    /// Takes note of what is held and believed of one node now.
    pub(crate) fn set(&mut self, entry: &Entry) {
        let part = fingerprint(entry);
        let previous = if part == 0 {
            self.parts.remove(&entry.node).unwrap_or(0)
        } else {
            self.parts.insert(entry.node, part).unwrap_or(0)
        };
        self.buckets[usize::from(entry.node.0[0])] ^= previous ^ part;
    }

    pub(crate) fn root(&self) -> u64 {
        let turned = self.buckets.iter().zip(1..);
        turned.fold(0, |root, (bucket, by)| root ^ bucket.rotate_left(by))
    }

    /// Four bytes of each bucket.
    pub(crate) fn buckets(&self) -> Vec<u8> {
        self.buckets
            .iter()
            .flat_map(|bucket| (*bucket as u32).to_be_bytes())
            .collect()
    }

    /// The buckets that differ from a peer's.
    pub(crate) fn differing(&self, theirs: &[u8]) -> Vec<u8> {
        let ours = self.buckets();
        ours.chunks(4)
            .zip(theirs.chunks(4))
            .zip(0..=255)
            .filter(|((a, b), _)| a != b)
            .map(|(_, index)| index)
            .collect()
    }
}

fn fingerprint(entry: &Entry) -> u64 {
    if entry.highest == 0 && entry.liveness == Liveness::Unknown {
        return 0;
    }
    let (state, generation) = match entry.liveness {
        Liveness::Unknown => (0_u8, 0),
        Liveness::Active(generation) => (1, generation),
        Liveness::Down(generation) => (2, generation),
    };
    let hash = Sha256::new()
        .chain_update(entry.node.0)
        .chain_update(entry.highest.to_be_bytes())
        .chain_update(entry.live.to_be_bytes())
        .chain_update([state])
        .chain_update(generation.to_be_bytes())
        .finalize();
    u64::from_be_bytes(hash[..8].try_into().expect("8 of 32 bytes")).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_of_all_buckets_and_of_their_places() {
        let of = |buckets: &[(usize, u64)]| {
            let mut digest = Digest::new();
            for (index, bucket) in buckets {
                digest.buckets[*index] = *bucket;
            }
            digest.root()
        };
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[(0, 1)]), 2, "as all versions have it");
        assert_eq!(of(&[(63, 7)]), 7);
        assert_eq!(of(&[(255, 1)]), 1);
        // Equal changes in two places are not none, and each is seen beside the other.
        for (a, b) in [(0, 1), (1, 2), (5, 60), (100, 150)] {
            let (one, other) = (of(&[(a, 0x0101)]), of(&[(b, 0x0101)]));
            assert_ne!(one, other);
            assert_eq!(of(&[(a, 0x0101), (b, 0x0101)]), one ^ other);
            assert_ne!(of(&[(a, 0x0101), (b, 0x0101)]), 0);
        }
    }
}
