//! A second speaker of the protocol of gossip, which says whatever it is told to.
//!
//! It is written from `docs/algorithms/gossip.md` and shares no code with `weft-gossip`: what both understand is what agents of other
//! versions understand too.

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::Serialize;
use sha2::{Digest, Sha256};
use weft_types::{ClusterId, NodeId};

/// A member, by its keys.
#[derive(Debug)]
pub struct Speaker {
    cluster: ClusterId,
    key: [u8; 32],
    signing: SigningKey,
    /// A random number for this start.
    pub session: u64,
    counter: u64,
}

/// The first eight bytes of an id, which membership calls a node by.
pub type Short = [u8; 8];

/// What membership calls a node, and which of its lives.
pub type Life = (Short, u64);

/// What can be believed of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum State {
    /// It answers.
    Alive,
    /// It missed a probe.
    Suspect,
    /// It does not answer.
    Down,
}

/// What a node has of another's records, and believes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Liveness {
    /// It never heard of it.
    Unknown,
    /// It is alive in this generation.
    Active(u64),
    /// It is down in this one.
    Down(u64),
}

/// A datagram, or what is asked for or answered over a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// In one datagram.
    Packet = 1,
    /// A request over a stream.
    Request = 2,
    /// Its answer.
    Response = 3,
}

const MAGIC: [u8; 2] = [b'W', 1];

/// The short name of a node.
pub fn short(node: &NodeId) -> Short {
    *node.0.first_chunk().expect("8 of 32 bytes")
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes")
}

impl Speaker {
    /// Speaks as the node with this seed, by this key of gossip.
    pub fn new(cluster: ClusterId, key: [u8; 32], seed: [u8; 32], session: u64) -> Self {
        Self {
            cluster,
            key,
            signing: SigningKey::from_bytes(&seed),
            session,
            counter: 0,
        }
    }

    /// The node that speaks.
    pub fn node(&self) -> NodeId {
        NodeId(self.signing.verifying_key().to_bytes())
    }

    /// Signs, as the node.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }

    /// Seals a body for one node.
    ///
    /// # Panics
    ///
    /// If that is nobody's id.
    pub fn seal(&mut self, channel: Channel, to: &NodeId, body: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let salt = [0xA5; 8];
        let nonce: [u8; 24] = [self.session.to_be_bytes(), salt, self.counter.to_be_bytes()]
            .concat()
            .try_into()
            .expect("three times eight bytes");
        let theirs = VerifyingKey::from_bytes(&to.0).expect("a node's id is its key");
        let shared = theirs.to_montgomery().mul_clamped(self.signing.to_scalar_bytes());
        let pair = Sha256::new()
            .chain_update(b"weft pair 1")
            .chain_update(shared.to_bytes());
        let head = [&self.node().0[..], &[1]].concat();
        let said = [&[channel as u8][..], &to.0, &head, body].concat();
        let tag = XChaCha20Poly1305::new(&pair.finalize())
            .encrypt(&nonce.into(), Payload { msg: &[], aad: &said })
            .expect("the text is empty");
        let hint = Sha256::new()
            .chain_update(b"weft key hint 1")
            .chain_update(self.key)
            .finalize()[0];
        let aad = [&MAGIC[..], &[hint, channel as u8], &self.cluster.0].concat();
        let inner = [&head[..], &tag, body].concat();
        let sealed = XChaCha20Poly1305::new(&self.key.into())
            .encrypt(
                &nonce.into(),
                Payload {
                    msg: &inner,
                    aad: &aad,
                },
            )
            .expect("a packet is far below the cipher's limit");
        [&MAGIC[..], &[hint], &nonce, &sealed].concat()
    }

    /// A packet of membership: who says it, in which of its lives, to whom, and what of whom.
    pub fn membership(&mut self, to: &NodeId, src: Life, dst: Life, said: &[(Life, u16, State)]) -> Vec<u8> {
        const GOSSIP: u8 = 8;
        let mut data = encode(&(src, 0_u16, dst, GOSSIP));
        data.extend((said.len() as u16).to_be_bytes());
        said.iter().for_each(|update| data.extend(encode(update)));
        self.seal(Channel::Packet, to, &encode(&(0_u8, data)))
    }

    /// The word with which membership tells a node, in this life, that it is down.
    pub fn turn_undead(&mut self, to: &NodeId, src: Life, dst: Life) -> Vec<u8> {
        const TURN_UNDEAD: u8 = 10;
        let data = encode(&(src, 0_u16, dst, TURN_UNDEAD));
        self.seal(Channel::Packet, to, &encode(&(0_u8, data)))
    }

    /// What the speaker has of others, and believes of them: here that it has nothing.
    pub fn entries(&mut self, to: &NodeId, believed: &[(Short, Liveness)]) -> Vec<u8> {
        let nothing = believed
            .iter()
            .map(|(node, liveness)| (*node, 0_u64, 0_u64, 0_u64, *liveness));
        let entries: Vec<_> = nothing.collect();
        self.seal(Channel::Packet, to, &encode(&(8_u8, entries)))
    }

    /// Tells a node of records, whoever wrote them.
    pub fn rumour(&mut self, to: &NodeId, records: &[&impl Serialize]) -> Vec<u8> {
        self.seal(
            Channel::Packet,
            to,
            &encode(&(1_u8, records, [0_u8; 0].as_slice())),
        )
    }

    /// Tells a node that somebody believes it down in all generations up to this one.
    pub fn renew(&mut self, to: &NodeId, above: u64) -> Vec<u8> {
        self.seal(Channel::Packet, to, &encode(&(11_u8, above)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the tests of `weft-gossip` open.
    const SEALED: &str = include_str!("../../gossip/testdata/version-1-sealed.txt");

    #[test]
    fn a_packet_is_sealed_as_version_1_has_it() {
        let speaker = |seed: u8, session| Speaker::new(ClusterId([7; 16]), [5; 32], [seed; 32], session);
        let to = speaker(2, 0).node();
        let sealed = speaker(1, 0x1122_3344_5566_7788).renew(&to, 7);
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, SEALED.trim());
    }
}
