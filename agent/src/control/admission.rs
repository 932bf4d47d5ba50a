//! How a node is let in, before it takes part in gossip: one frame each way over the gossip port.
//!
//! ```text
//! request   "weftjoin" cluster(16) nonce(24) seal( node, name, token id, proof )
//! answer    "weftjoin" 0                            this host is of another cluster
//!           "weftjoin" 1                            the seal does not open: the token's key is not ours
//!           "weftjoin" 2 nonce(24) seal( member, seal for the joiner( facts, keys, members ) | refusal )
//! ```
//!
//! The seal is XChaCha20-Poly1305 under SHA-256("weft join key 1" ‖ the token's join key), with everything before
//! it as associated data. Whoever ever was in the cluster can open it. So the joiner signs with the token's secret, which
//! is never sent, and what it is told is sealed once more, for it alone.

use std::net::SocketAddr;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weft_gossip::Identity;
use weft_types::{ClusterId, NodeId};
use zeroize::Zeroizing;

pub use super::tokens::Refused;
use super::{
    ClusterFacts, Control, Now, Ring,
    token::{self, Token},
};

const MAGIC: &[u8; 8] = b"weftjoin";
const OTHER_CLUSTER: u8 = 0;
const OTHER_KEY: u8 = 1;
const SEALED: u8 = 2;
const HEADER: usize = 8 + 16 + 24;

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    node: NodeId,
    name: String,
    token: [u8; 8],
    proof: Proof,
}

/// The two halves of a signature.
type Proof = ([u8; 32], [u8; 32]);

/// What only the joiner can open.
#[derive(Debug, Serialize, Deserialize)]
struct ForOne {
    by: NodeId,
    sealed: Vec<u8>,
}

/// What a node that was let in is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Welcome {
    pub facts: ClusterFacts,
    /// The keys of gossip, all of them: some member may have the oldest alone.
    pub ring: Ring,
    /// Where members listen for gossip.
    pub members: Vec<SocketAddr>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("that host belongs to another cluster than the token")]
    OtherCluster,
    #[error("the token's key is not one that the cluster uses any more")]
    OtherKey,
    #[error("{}", refusal(.0))]
    Refused(Refused),
    #[error("what answered there is not a weft agent of this version")]
    Malformed,
}

fn refusal(refused: &Refused) -> String {
    match refused {
        Refused::UnknownToken => "the cluster does not know this token; it expired or was revoked".to_owned(),
        Refused::Expired => "this token has expired".to_owned(),
        Refused::Used { by } => format!("this token lets one node in, and `{by}` has joined with it"),
        Refused::Removed => "this node was removed from the cluster".to_owned(),
        Refused::NameTaken { name } => format!("the cluster has a node called `{name}` already"),
        Refused::NoRoom => {
            "the cluster has as many nodes as it can have, with those that were removed".to_owned()
        }
        Refused::Untold { by } => {
            format!("`{by}`, which was asked, says as much as others keep of one node and lets nobody in")
        }
    }
}

/// Whether a frame that arrived at the gossip port is a request to join.
pub fn is_request(frame: &[u8]) -> bool {
    frame.starts_with(MAGIC)
}

fn cipher(key: &[u8; 32]) -> XChaCha20Poly1305 {
    let key = Sha256::new()
        .chain_update(b"weft join key 1")
        .chain_update(key)
        .finalize();
    XChaCha20Poly1305::new(&key)
}

fn seal(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], content: &[u8]) -> Vec<u8> {
    let payload = Payload { msg: content, aad };
    cipher(key)
        .encrypt(&XNonce::from(*nonce), payload)
        .expect("a frame is far below the cipher's limit")
}

fn open(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    cipher(key)
        .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad })
        .ok()
}

/// The frame with which `node` asks to be let in.
pub fn request(token: &Token, node: NodeId, name: &str, nonce: [u8; 24]) -> Vec<u8> {
    let mut frame = MAGIC.to_vec();
    frame.extend(token.cluster.0);
    frame.extend(nonce);
    let proof = token.proof(&nonce, node);
    let (first, second) = proof.split_at(32);
    let request = Request {
        node,
        name: name.to_owned(),
        token: token.id,
        proof: (
            first.try_into().expect("half of 64 bytes"),
            second.try_into().expect("half of 64 bytes"),
        ),
    };
    let content = postcard::to_allocvec(&request).expect("plain data always encodes");
    let sealed = seal(&token.join_key, &nonce, &frame, &content);
    frame.extend(sealed);
    frame
}

/// What a welcome is sealed for the joiner with: the nonce of an answer is never the same twice.
fn context(cluster: &ClusterId, nonce: &[u8; 24]) -> Vec<u8> {
    [b"weft welcome 1".as_slice(), &cluster.0, nonce].concat()
}

/// Reads the answer to [`request`].
pub fn read_answer(token: &Token, joiner: &Identity, frame: &[u8]) -> Result<Welcome, JoinError> {
    let body = frame.strip_prefix(MAGIC).ok_or(JoinError::Malformed)?;
    match body.split_first() {
        Some((&OTHER_CLUSTER, _)) => Err(JoinError::OtherCluster),
        Some((&OTHER_KEY, _)) => Err(JoinError::OtherKey),
        Some((&SEALED, rest)) => {
            let (nonce, sealed) = rest.split_first_chunk::<24>().ok_or(JoinError::Malformed)?;
            let content = open(&token.join_key, nonce, &frame[..9], sealed).ok_or(JoinError::Malformed)?;
            let answer: Result<ForOne, Refused> =
                postcard::from_bytes(&content).map_err(|_| JoinError::Malformed)?;
            let ForOne { by, sealed } = answer.map_err(JoinError::Refused)?;
            let welcome = joiner.open_from(&by, &context(&token.cluster, nonce), &sealed);
            let welcome = welcome.and_then(|welcome| postcard::from_bytes(&welcome).ok());
            welcome.ok_or(JoinError::Malformed)
        }
        _ => Err(JoinError::Malformed),
    }
}

impl Control {
    /// Answers a request to join; what is not one gets no answer.
    pub fn handle_join_request(&mut self, frame: &[u8], now: Now) -> Option<Vec<u8>> {
        let mut answer = MAGIC.to_vec();
        let (header, sealed) = frame.split_at_checked(HEADER)?;
        let cluster = ClusterId(header[8..24].try_into().expect("16 bytes"));
        if cluster != self.facts.id {
            answer.push(OTHER_CLUSTER);
            return Some(answer);
        }
        let nonce: [u8; 24] = header[24..].try_into().expect("24 bytes");
        let key = token::join_key(&self.facts.secret);
        let Some(content) = open(&key, &nonce, header, sealed) else {
            answer.push(OTHER_KEY);
            return Some(answer);
        };
        let request: Request = postcard::from_bytes(&content).ok()?;
        let proof: [u8; 64] = std::array::from_fn(|place| match place.checked_sub(32) {
            None => request.proof.0[place],
            Some(place) => request.proof.1[place],
        });
        let proves = |public| token::is_proof(public, &cluster, &nonce, request.node, &proof);
        let judged = self.judge(request.node, &request.name, request.token, proves, now);
        self.settle(now);
        let nonce: [u8; 24] = self.rng.random();
        let told = match judged {
            Ok(()) => Ok(self.welcome(request.node, &nonce)?),
            Err(refused) => Err(refused),
        };
        answer.push(SEALED);
        let content = postcard::to_allocvec(&told).expect("plain data always encodes");
        let sealed = seal(&key, &nonce, &answer, &content);
        answer.extend(nonce);
        answer.extend(sealed);
        Some(answer)
    }

    /// `None` if the joiner's id is nobody's public key.
    fn welcome(&self, joiner: NodeId, nonce: &[u8; 24]) -> Option<ForOne> {
        let welcome = Welcome {
            facts: self.facts.clone(),
            ring: self.keyring.ring().clone(),
            members: self.some_members(),
        };
        let welcome = Zeroizing::new(postcard::to_allocvec(&welcome).expect("plain data always encodes"));
        Some(ForOne {
            by: self.me,
            sealed: self
                .gossip
                .seal_for(&joiner, &context(&self.facts.id, nonce), &welcome)?,
        })
    }

    /// This node and a few others that answer.
    fn some_members(&self) -> Vec<SocketAddr> {
        let others = self
            .catalogue
            .nodes()
            .filter(|(id, _)| *id != self.me && self.serves(*id));
        let addresses = others.filter_map(|(_, node)| Some(node.fact.as_ref()?.gossip));
        [self.settings.gossip]
            .into_iter()
            .chain(addresses.take(7))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joiner() -> Identity {
        Identity::from_seed([5; 32])
    }

    #[test]
    fn an_answer_of_another_cluster_or_key_is_told_apart() {
        let frame = |byte| [MAGIC.as_slice(), &[byte]].concat();
        assert_eq!(
            read_answer(&Token::sample(), &joiner(), &frame(OTHER_CLUSTER)).unwrap_err(),
            JoinError::OtherCluster
        );
        assert_eq!(
            read_answer(&Token::sample(), &joiner(), &frame(OTHER_KEY)).unwrap_err(),
            JoinError::OtherKey
        );
        for garbage in [&b"HTTP/1.1 400"[..], b"", &frame(SEALED), &frame(9)] {
            assert_eq!(
                read_answer(&Token::sample(), &joiner(), garbage).unwrap_err(),
                JoinError::Malformed
            );
        }
    }

    #[test]
    fn a_request_does_not_show_the_secret_and_does_not_open_under_another_key() {
        let frame = request(&Token::sample(), NodeId([5; 32]), "h1", [6; 24]);
        assert!(is_request(&frame));
        assert!(!frame.windows(16).any(|window| window == [4; 16]));
        let (header, sealed) = frame.split_at(HEADER);
        assert!(open(&[2; 32], &[6; 24], header, sealed).is_some());
        assert!(open(&[7; 32], &[6; 24], header, sealed).is_none());
    }
}
