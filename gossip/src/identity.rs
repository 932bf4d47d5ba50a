use std::{collections::HashMap, fmt};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
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

    /// Signs a message, which begins with what it is for.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// Seals a text for `to` alone. `context` says what it is, and is never the same for two texts. None if `to` is not a public
    /// key.
    pub fn seal_for(&self, to: &NodeId, context: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        let (key, nonce, aad) = self.for_two(to, (&self.node(), to), context)?;
        let payload = Payload { msg: text, aad: &aad };
        key.encrypt(&nonce.into(), payload).ok()
    }

    /// Opens what `from` has sealed for this node.
    pub fn open_from(&self, from: &NodeId, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (key, nonce, aad) = self.for_two(from, (from, &self.node()), context)?;
        let payload = Payload {
            msg: sealed,
            aad: &aad,
        };
        key.decrypt(&nonce.into(), payload).ok()
    }

    fn for_two(
        &self,
        other: &NodeId,
        (from, to): (&NodeId, &NodeId),
        context: &[u8],
    ) -> Option<(XChaCha20Poly1305, [u8; 24], Vec<u8>)> {
        let shared = shared(self.key.to_scalar_bytes(), other)?;
        let key = Sha256::new()
            .chain_update(b"weft text for one 1")
            .chain_update(shared)
            .finalize();
        let aad = [&from.0, &to.0, context].concat();
        let nonce = Sha256::digest(&aad)[..24].try_into().expect("24 of 32 bytes");
        Some((XChaCha20Poly1305::new(&key), nonce, aad))
    }
}

/// What two nodes alone can compute (X25519, RFC 7748); none if the other's id is not the public key of anybody.
fn shared(secret: [u8; 32], other: &NodeId) -> Option<[u8; 32]> {
    // A key of small order would give everybody the same.
    let theirs = VerifyingKey::from_bytes(&other.0)
        .ok()
        .filter(|key| !key.is_weak())?;
    Some(theirs.to_montgomery().mul_clamped(secret).to_bytes())
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.node().short())
    }
}

/// Whether `signature` over `message` was made with the key that `author`'s id is.
pub fn verify(author: &NodeId, message: &[u8], signature: &[u8; 64]) -> bool {
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
            let key = Sha256::new()
                .chain_update(b"weft pair 1")
                .chain_update(shared(self.secret, peer)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_for_one_opens_there_alone_and_says_from_whom_and_what_it_is() {
        let [one, two, three] = [1, 2, 3].map(|n| Identity::from_seed([n; 32]));
        let sealed = one.seal_for(&two.node(), b"what", b"text").unwrap();
        assert_eq!(two.open_from(&one.node(), b"what", &sealed).unwrap(), b"text");
        assert!(two.open_from(&one.node(), b"else", &sealed).is_none());
        assert!(two.open_from(&three.node(), b"what", &sealed).is_none());
        assert!(three.open_from(&one.node(), b"what", &sealed).is_none());
        // Nor does it come back as if the other had said it.
        assert!(one.open_from(&two.node(), b"what", &sealed).is_none());
        let mut weak = [0; 32];
        weak[0] = 1;
        assert!(one.seal_for(&NodeId(weak), b"what", b"text").is_none());
    }
}
