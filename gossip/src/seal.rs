use std::fmt;

use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use sha2::{Digest, Sha256};

/// A secret that every node of a cluster has. Whoever has it can join.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey(pub [u8; 32]);

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GossipKey(secret)")
    }
}

/// The keys of a cluster: the first seals, all of them open, so that a key can be replaced while the
/// cluster runs.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<(u8, XChaCha20Poly1305)>,
}

impl KeyRing {
    /// A ring with one key.
    pub fn new(first: GossipKey) -> Self {
        Self { keys: Vec::new() }.and(first)
    }

    /// The ring with one more key, which opens but does not seal.
    pub fn and(mut self, key: GossipKey) -> Self {
        // The byte on the wire saves trying every key; it says nothing useful about the key.
        let hint = Sha256::new()
            .chain_update(b"weft key hint 1")
            .chain_update(key.0)
            .finalize()[0];
        self.keys.push((hint, XChaCha20Poly1305::new(&key.0.into())));
        self
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", self.keys.len())
    }
}
