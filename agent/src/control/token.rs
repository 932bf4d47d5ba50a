//! Join tokens: what a new node must be told, in one word that can be pasted.
//!
//! `weft1-` and base64url of: cluster id (16 bytes), join key (32), token id (8), secret (16), and
//! four bytes of SHA-256 over these, so that a token cut short by a terminal is told from a wrong one.
//!
//! The join key hides from passers-by who joins. It is the same for the life of a cluster, and every node that ever was in it
//! knows it. Who may join is shown with the secret alone, which signs; nodes know only what such a signature is checked with.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};
use weft_gossip::Identity;
use weft_types::{ClusterId, NodeId};
use weft_wireguard::Secret32;

const PREFIX: &str = "weft1-";
const BODY: usize = 16 + 32 + 8 + 16;

#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub cluster: ClusterId,
    pub join_key: [u8; 32],
    pub id: [u8; 8],
    pub secret: [u8; 16],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    #[error("this is not a join token: a token begins with `{PREFIX}`")]
    Prefix,
    #[error("this join token is incomplete or mistyped")]
    Damaged,
}

impl Token {
    /// What is stored of the secret.
    pub fn public(&self) -> [u8; 32] {
        self.key().node().0
    }

    /// What `node` shows instead of the secret.
    pub(super) fn proof(&self, nonce: &[u8; 24], node: NodeId) -> [u8; 64] {
        self.key().sign(&proven(&self.cluster, nonce, node))
    }

    fn key(&self) -> Identity {
        let seed = Sha256::new()
            .chain_update(b"weft token key 1")
            .chain_update(self.secret);
        Identity::from_seed(seed.finalize().into())
    }
}

/// Whether `proof` was made with the secret of the token that is stored as `public`.
pub(super) fn is_proof(
    public: [u8; 32],
    cluster: &ClusterId,
    nonce: &[u8; 24],
    node: NodeId,
    proof: &[u8; 64],
) -> bool {
    weft_gossip::verify(&NodeId(public), &proven(cluster, nonce, node), proof)
}

fn proven(cluster: &ClusterId, nonce: &[u8; 24], node: NodeId) -> Vec<u8> {
    [b"weft join proof 2".as_slice(), &cluster.0, nonce, &node.0].concat()
}

/// The key in the tokens of a cluster.
pub(super) fn join_key(secret: &Secret32) -> [u8; 32] {
    let key = Sha256::new()
        .chain_update(b"weft join key 2")
        .chain_update(secret.expose());
    key.finalize().into()
}

fn checksum(body: &[u8]) -> [u8; 4] {
    let hash = Sha256::digest(body);
    [hash[0], hash[1], hash[2], hash[3]]
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BODY + 4);
        bytes.extend(self.cluster.0);
        bytes.extend(self.join_key);
        bytes.extend(self.id);
        bytes.extend(self.secret);
        bytes.extend(checksum(&bytes));
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

/// A token is a secret: it does not belong in a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?}, …)", self.cluster)
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(ParseTokenError::Prefix)?;
        let bytes = BASE64URL_NOPAD
            .decode(encoded.as_bytes())
            .map_err(|_| ParseTokenError::Damaged)?;
        if bytes.len() != BODY + 4 || checksum(&bytes[..BODY]) != bytes[BODY..] {
            return Err(ParseTokenError::Damaged);
        }
        let (cluster, rest) = bytes.split_at(16);
        let (join_key, rest) = rest.split_at(32);
        let (id, rest) = rest.split_at(8);
        Ok(Self {
            cluster: ClusterId(cluster.try_into().expect("16 bytes")),
            join_key: join_key.try_into().expect("32 bytes"),
            id: id.try_into().expect("8 bytes"),
            secret: rest[..16].try_into().expect("16 bytes"),
        })
    }
}

#[cfg(test)]
impl Token {
    /// One to test with.
    pub(super) fn sample() -> Self {
        Self {
            cluster: ClusterId([1; 16]),
            join_key: [2; 32],
            id: [3; 8],
            secret: [4; 16],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trips_as_text() {
        assert_eq!(Token::sample().to_string().parse(), Ok(Token::sample()));
    }

    #[test]
    fn a_damaged_token_is_told_from_other_text() {
        let text = Token::sample().to_string();
        assert_eq!(
            text[..text.len() - 1].parse::<Token>(),
            Err(ParseTokenError::Damaged)
        );
        let mut swapped = text.into_bytes();
        swapped[12] = if swapped[12] == b'A' { b'B' } else { b'A' };
        assert_eq!(
            String::from_utf8(swapped).unwrap().parse::<Token>(),
            Err(ParseTokenError::Damaged)
        );
        assert_eq!("SWMTKN-1-x".parse::<Token>(), Err(ParseTokenError::Prefix));
    }

    #[test]
    fn who_knows_what_is_stored_of_a_token_cannot_make_a_proof() {
        let token = Token::sample();
        let (nonce, node) = ([6; 24], NodeId([5; 32]));
        let proof = token.proof(&nonce, node);
        let holds = |public, nonce, node| is_proof(public, &token.cluster, nonce, node, &proof);
        assert!(holds(token.public(), &nonce, node));
        assert!(!holds(token.public(), &[7; 24], node));
        assert!(!holds(token.public(), &nonce, NodeId([6; 32])));
        assert!(!holds([1; 32], &nonce, node));
        assert_ne!(token.public()[..16], token.secret);
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        assert!(!format!("{:?}", Token::sample()).contains("4, 4"));
    }
}
