use std::{collections::HashMap, fmt};

use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use weft_types::NodeId;

/// A node's key pair. Its public half *is* the node's id.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// The identity that grows from 32 secret random bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self {
            key: SigningKey::from_bytes(&seed),
        }
    }

    /// The secret bytes, to be kept on disk where only root can read them.
    pub fn seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The id others know this node by.
    pub fn node(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.node().short())
    }
}

/// Whether `signature` over `message` was made with the key that `author`'s id is.
pub(crate) fn verify(author: &NodeId, message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(&author.0).is_ok_and(|key| {
        key.verify_strict(message, &Signature::from_bytes(signature))
            .is_ok()
    })
}

/// The first eight bytes of a node's id: what membership and digests carry in place of all 32.
///
/// To make a second key that collides with a given node's takes 2^64 tries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Short(pub(crate) [u8; 8]);

impl Short {
    pub(crate) const MIN: Self = Self([0; 8]);
    pub(crate) const MAX: Self = Self([0xff; 8]);

    pub(crate) fn successor(self) -> Option<Self> {
        u64::from_be_bytes(self.0)
            .checked_add(1)
            .map(|next| Self(next.to_be_bytes()))
    }
}

impl From<&NodeId> for Short {
    fn from(node: &NodeId) -> Self {
        Self(node.0[..8].try_into().expect("eight of 32 bytes"))
    }
}

impl fmt::Debug for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// One symmetric key per pair of nodes, by Diffie-Hellman between their identities.
///
/// The cluster key says that a packet comes from the cluster, this key which node it comes from: only
/// the two ends can compute it, so no third node can speak for either.
pub(crate) struct PairKeys {
    secret: [u8; 32],
    known: HashMap<NodeId, XChaCha20Poly1305>,
    limit: usize,
}

impl PairKeys {
    pub(crate) fn new(identity: &Identity, limit: usize) -> Self {
        Self {
            secret: identity.key.to_scalar_bytes(),
            known: HashMap::new(),
            limit,
        }
    }

    /// The key shared with `peer`; none if its id is not the public key of anybody.
    pub(crate) fn with(&mut self, peer: &NodeId) -> Option<&XChaCha20Poly1305> {
        if !self.known.contains_key(peer) {
            // A key of small order would give everybody the same secret.
            let theirs = VerifyingKey::from_bytes(&peer.0)
                .ok()
                .filter(|key| !key.is_weak())?;
            let shared = theirs.to_montgomery().mul_clamped(self.secret);
            let key = Sha256::new()
                .chain_update(b"weft pair 1")
                .chain_update(shared.as_bytes())
                .finalize();
            if self.known.len() >= self.limit {
                // Only time is lost: every key can be computed again.
                self.known.clear();
            }
            self.known.insert(*peer, XChaCha20Poly1305::new(&key));
        }
        self.known.get(peer)
    }
}
