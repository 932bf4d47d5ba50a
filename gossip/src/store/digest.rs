//! Everything in a few bytes, for others to compare with.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use weft_types::NetworkId;

use super::CLUSTER;
use crate::{
    identity::Short,
    wire::{EVERY, Entry, Liveness, Part},
};

/// Fingerprints of everything: of what concerns the cluster, of each network, and of all networks together.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    cluster: Digest,
    networks: BTreeMap<NetworkId, Digest>,
    every: Digest,
}

impl Digests {
    /// Takes note of what is held and believed of one stream now.
    pub(crate) fn set(&mut self, scope: NetworkId, entry: &Entry) {
        let part = fingerprint(entry);
        if scope == CLUSTER {
            self.cluster.set(entry.node, part);
            return;
        }
        self.every.set(entry.node, part);
        let of_network = self.networks.entry(scope).or_default();
        of_network.set(entry.node, part);
        if of_network.parts.is_empty() {
            self.networks.remove(&scope);
        }
    }

    /// What concerns the cluster, in 256 buckets.
    pub(crate) fn cluster(&self) -> &Buckets {
        &self.cluster.buckets
    }

    pub(crate) fn network(&self, network: NetworkId) -> Option<&Buckets> {
        match network {
            EVERY => Some(&self.every.buckets),
            network => Some(&self.networks.get(&network)?.buckets),
        }
    }

    /// What concerns these streams, in 256 buckets.
    pub(crate) fn of(&self, part: &Part) -> Buckets {
        match part {
            Part::Cluster => self.cluster.buckets.clone(),
            Part::Networks(networks) if networks.contains(&EVERY) => self.every.buckets.clone(),
            Part::Networks(networks) => {
                let mut all = Buckets::default();
                for of_one in networks.iter().filter_map(|network| self.network(*network)) {
                    all.add(of_one);
                }
                all
            }
        }
    }
}

/// A fingerprint of some streams, in 256 buckets by the first byte of their names.
#[derive(Debug, Default)]
struct Digest {
    buckets: Buckets,
    parts: BTreeMap<Short, u64>,
}

impl Digest {
    fn set(&mut self, name: Short, part: u64) {
        let previous = if part == 0 {
            self.parts.remove(&name).unwrap_or(0)
        } else {
            self.parts.insert(name, part).unwrap_or(0)
        };
        self.buckets.0[usize::from(name.0[0])] ^= previous ^ part;
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Buckets([u64; 256]);

impl Default for Buckets {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl Buckets {
    fn add(&mut self, other: &Self) {
        for (bucket, more) in self.0.iter_mut().zip(&other.0) {
            *bucket ^= more;
        }
    }

    pub(crate) fn root(&self) -> u64 {
        let turned = self.0.iter().zip(1..);
        turned.fold(0, |root, (bucket, by)| root ^ bucket.rotate_left(by))
    }

    /// Four bytes of each bucket.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|bucket| (*bucket as u32).to_be_bytes())
            .collect()
    }

    /// The buckets that differ from a peer's.
    pub(crate) fn differing(&self, theirs: &[u8]) -> Vec<u8> {
        let ours = self.bytes();
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
            let mut digest = Buckets::default();
            for (index, bucket) in buckets {
                digest.0[*index] = *bucket;
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
