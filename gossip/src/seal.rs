use std::fmt;

use bytes::Bytes;
use chacha20poly1305::{
    XChaCha20Poly1305,
    aead::{Aead, AeadInOut, Payload},
};
use rand::Rng;
use weft_types::{ClusterId, NodeId};

use crate::{
    identity::{Identity, PairKeys},
    keys::{KeyId, KeyRing, Keys},
};

/// What a sealed box is for. Bound into the seal, so that none can be taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Packet = 1,
    Request = 2,
    Response = 3,
}

/// Why a box was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// Too short, or another protocol.
    Malformed,
    /// Sealed for another cluster, with a key not on the ring, or not at all.
    Foreign,
    /// Sealed by a node of this cluster that is not the one it claims to be, or not for us.
    Forged,
}

/// An opened box.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) from: NodeId,
    /// Which start of `from` sealed it.
    pub(crate) session: u64,
    pub(crate) counter: u64,
    /// The key it was sealed by.
    pub(crate) key: KeyId,
    /// Whether it was sealed for this very node, and therefore certainly by `from`.
    pub(crate) authentic: bool,
    pub(crate) body: Vec<u8>,
}

const MAGIC: [u8; 2] = [b'W', 1];
const CLEAR: usize = MAGIC.len() + 1 + NONCE;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Sender, whether addressed, pair tag.
const INNER: usize = 32 + 1 + TAG;
/// What sealing adds to a body.
pub(crate) const OVERHEAD: usize = CLEAR + INNER + TAG;

/// Seals and opens everything this node sends and receives.
///
/// A nonce is 16 random bytes chosen at start, of which eight are the session, and a counter; so both need
/// not be sent a second time, and the seal vouches for them as for everything else. 24 bytes, and so XChaCha20, because all nodes
/// of a cluster seal under one key and restart often: with the 12 bytes of plain ChaCha20-Poly1305 (RFC
/// 8439) two of them would sooner or later use a nonce twice, which gives the key stream away.
pub(crate) struct Sealer {
    cluster: ClusterId,
    pub(crate) keys: Keys,
    node: NodeId,
    pub(crate) session: u64,
    counter: u64,
    salt: [u8; 8],
    pairs: PairKeys,
}

impl Sealer {
    pub(crate) fn new(
        cluster: ClusterId,
        ring: KeyRing,
        identity: &Identity,
        limit: usize,
        rng: &mut impl Rng,
    ) -> Self {
        let mut salt = [0; 8];
        rng.fill_bytes(&mut salt);
        let session = rng.next_u64();
        Self {
            cluster,
            keys: Keys::new(ring, limit),
            node: identity.node(),
            session,
            counter: 0,
            salt,
            pairs: PairKeys::new(identity, limit),
        }
    }

    /// Seals `body` for `to`, or for whoever opens it, by the newest key that it has. None if `to` is not a public key.
    pub(crate) fn seal(&mut self, channel: Channel, to: Option<&NodeId>, body: &[u8]) -> Option<Bytes> {
        self.seal_by(self.keys.id_for(to), channel, to, body)
    }

    /// The same by a key that is on the ring.
    pub(crate) fn seal_by(
        &mut self,
        key: KeyId,
        channel: Channel,
        to: Option<&NodeId>,
        body: &[u8],
    ) -> Option<Bytes> {
        self.counter += 1;
        let mut nonce = [0; NONCE];
        nonce[..8].copy_from_slice(&self.session.to_be_bytes());
        nonce[8..16].copy_from_slice(&self.salt);
        nonce[16..].copy_from_slice(&self.counter.to_be_bytes());
        let mut inner = Vec::with_capacity(INNER + body.len() + TAG);
        inner.extend_from_slice(&self.node.0);
        inner.push(u8::from(to.is_some()));
        let tag = match to {
            Some(to) => pair_tag(self.pairs.with(to)?, &nonce, channel, to, &inner, body),
            None => [0; TAG],
        };
        inner.extend_from_slice(&tag);
        inner.extend_from_slice(body);

        let key = self.keys.get(key)?;
        let mut sealed = Vec::with_capacity(CLEAR + inner.len() + TAG);
        sealed.extend_from_slice(&MAGIC);
        sealed.push(key.hint);
        sealed.extend_from_slice(&nonce);
        let aad = associated(&self.cluster, channel, key.hint);
        key.cipher
            .encrypt_in_place(&nonce.into(), &aad, &mut inner)
            .ok()?;
        sealed.extend_from_slice(&inner);
        Some(sealed.into())
    }

    pub(crate) fn open(&mut self, channel: Channel, sealed: &[u8]) -> Result<Opened, Rejected> {
        if sealed.len() < OVERHEAD || sealed[..2] != MAGIC {
            return Err(Rejected::Malformed);
        }
        let hint = sealed[2];
        let nonce: [u8; NONCE] = sealed[3..CLEAR].try_into().expect("24 bytes");
        let aad = associated(&self.cluster, channel, hint);
        let payload = Payload {
            msg: &sealed[CLEAR..],
            aad: &aad,
        };
        let candidates = self.keys.all().iter().filter(|key| key.hint == hint);
        let (key, mut inner) = candidates
            .filter_map(|key| {
                let inner = key.cipher.decrypt(&nonce.into(), payload_again(&payload)).ok()?;
                Some((key.id, inner))
            })
            .next()
            .ok_or(Rejected::Foreign)?;
        let body = inner.split_off(INNER);
        let (head, tag) = inner.split_at(INNER - TAG);
        let from = NodeId(head[..32].try_into().expect("32 bytes"));
        let session = u64::from_be_bytes(nonce[..8].try_into().expect("8 bytes"));
        let counter = u64::from_be_bytes(nonce[16..].try_into().expect("8 bytes"));
        let authentic = head[32] != 0;
        if authentic {
            let key = self.pairs.with(&from).ok_or(Rejected::Forged)?;
            let expected = pair_tag(key, &nonce, channel, &self.node, head, &body);
            // Who can try often enough to learn from the time this takes has the cluster key already,
            // but it costs nothing to give him no time to look at.
            if expected
                .iter()
                .zip(tag)
                .fold(0, |differ, (a, b)| differ | (a ^ b))
                != 0
            {
                return Err(Rejected::Forged);
            }
        }
        Ok(Opened {
            from,
            session,
            counter,
            key,
            authentic,
            body,
        })
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({})", self.node.short())
    }
}

fn payload_again<'msg, 'aad>(payload: &Payload<'msg, 'aad>) -> Payload<'msg, 'aad> {
    Payload {
        msg: payload.msg,
        aad: payload.aad,
    }
}

fn associated(cluster: &ClusterId, channel: Channel, hint: u8) -> [u8; 20] {
    let mut aad = [0; 20];
    aad[..2].copy_from_slice(&MAGIC);
    aad[2] = hint;
    aad[3] = channel as u8;
    aad[4..].copy_from_slice(&cluster.0);
    aad
}

/// A message authentication code: the tag of an empty text with everything as associated data.
fn pair_tag(
    key: &XChaCha20Poly1305,
    nonce: &[u8; NONCE],
    channel: Channel,
    to: &NodeId,
    head: &[u8],
    body: &[u8],
) -> [u8; TAG] {
    let aad = [&[channel as u8], to.0.as_slice(), head, body].concat();
    let mut tag = Vec::new();
    key.encrypt_in_place(nonce.into(), &aad, &mut tag)
        .expect("the text is empty");
    tag.try_into().expect("16 bytes of tag")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha12Rng;

    use super::*;
    use crate::GossipKey;

    fn sealer(seed: u8, cluster: u8, ring: KeyRing) -> Sealer {
        let identity = Identity::from_seed([seed; 32]);
        Sealer::new(
            ClusterId([cluster; 16]),
            ring,
            &identity,
            16,
            &mut ChaCha12Rng::from_seed([seed; 32]),
        )
    }

    fn ring(key: u8) -> KeyRing {
        KeyRing::new(GossipKey([key; 32]))
    }

    #[test]
    fn what_is_sealed_for_a_node_opens_there_and_names_its_sender() {
        let (mut a, mut b) = (sealer(1, 7, ring(3)), sealer(2, 7, ring(3)));
        let packet = a.seal(Channel::Packet, Some(&b.node), b"hello").unwrap();
        assert_eq!(packet.len(), OVERHEAD + 5);
        let opened = b.open(Channel::Packet, &packet).unwrap();
        assert_eq!(
            (opened.from, opened.session, opened.counter),
            (a.node, a.session, 1)
        );
        assert!(opened.authentic);
        assert_eq!(opened.body, b"hello");
        let empty = a.seal(Channel::Packet, Some(&b.node), b"").unwrap();
        let opened = b.open(Channel::Packet, &empty).unwrap();
        assert_eq!((opened.counter, opened.body.len()), (2, 0));
    }

    #[test]
    fn nothing_else_opens_it() {
        let (mut a, mut b) = (sealer(1, 7, ring(3)), sealer(2, 7, ring(3)));
        let packet = a.seal(Channel::Packet, Some(&b.node), b"hello").unwrap();
        assert_eq!(b.open(Channel::Request, &packet).unwrap_err(), Rejected::Foreign);
        assert_eq!(
            sealer(2, 8, ring(3)).open(Channel::Packet, &packet).unwrap_err(),
            Rejected::Foreign
        );
        assert_eq!(
            sealer(2, 7, ring(4)).open(Channel::Packet, &packet).unwrap_err(),
            Rejected::Foreign
        );
        assert_eq!(
            sealer(3, 7, ring(3)).open(Channel::Packet, &packet).unwrap_err(),
            Rejected::Forged
        );
        for index in 0..packet.len() {
            let mut changed = packet.to_vec();
            changed[index] ^= 1;
            assert!(b.open(Channel::Packet, &changed).is_err(), "byte {index}");
            assert!(
                b.open(Channel::Packet, &packet[..index]).is_err(),
                "cut at {index}"
            );
        }
    }

    #[test]
    fn a_tag_that_is_wrong_in_two_places_alike_is_wrong() {
        let (mut a, mut b) = (sealer(1, 7, ring(3)), sealer(2, 7, ring(3)));
        let packet = a.seal(Channel::Packet, Some(&b.node), b"hello").unwrap();
        // Any member has the cluster's key, and so can open what is sealed by it and seal it again.
        let key = &a.keys.all()[0];
        let nonce: [u8; NONCE] = packet[3..CLEAR].try_into().unwrap();
        let aad = associated(&a.cluster, Channel::Packet, key.hint);
        let sealed = Payload {
            msg: &packet[CLEAR..],
            aad: &aad,
        };
        let inner = key.cipher.decrypt(&nonce.into(), sealed).unwrap();
        let again = |inner: &[u8]| {
            let payload = Payload {
                msg: inner,
                aad: &aad,
            };
            let inner = key.cipher.encrypt(&nonce.into(), payload).unwrap();
            [&packet[..CLEAR], &inner].concat()
        };
        assert!(b.open(Channel::Packet, &again(&inner)).is_ok());
        for (one, other) in [(0, 1), (3, 15)] {
            let mut forged = inner.clone();
            forged[INNER - TAG + one] ^= 0x55;
            forged[INNER - TAG + other] ^= 0x55;
            let opened = b.open(Channel::Packet, &again(&forged));
            assert_eq!(opened.unwrap_err(), Rejected::Forged);
        }
    }

    #[test]
    fn a_member_cannot_seal_in_the_name_of_another() {
        let (mut a, mut b, mut c) = (
            sealer(1, 7, ring(3)),
            sealer(2, 7, ring(3)),
            sealer(3, 7, ring(3)),
        );
        c.node = a.node;
        let packet = c.seal(Channel::Packet, Some(&b.node), b"hello").unwrap();
        assert_eq!(b.open(Channel::Packet, &packet).unwrap_err(), Rejected::Forged);
        // Not addressed, it opens, and says that nothing proves who sent it.
        let packet = a.seal(Channel::Packet, None, b"hello").unwrap();
        assert!(!b.open(Channel::Packet, &packet).unwrap().authentic);
    }

    #[test]
    fn the_second_key_opens_but_does_not_seal() {
        let mut old = sealer(1, 7, ring(3));
        let mut both = sealer(2, 7, ring(4).and(GossipKey([3; 32])));
        let packet = old.seal(Channel::Packet, Some(&both.node), b"hello").unwrap();
        assert!(both.open(Channel::Packet, &packet).is_ok());
        let packet = both.seal(Channel::Packet, Some(&old.node), b"hello").unwrap();
        assert_eq!(old.open(Channel::Packet, &packet).unwrap_err(), Rejected::Foreign);

        // For a member that has only that one, it does.
        let old_key = GossipKey([3; 32]).id();
        both.keys
            .set(ring(4).and(GossipKey([3; 32])).with_member(old.node, old_key));
        let packet = both.seal(Channel::Packet, Some(&old.node), b"hello").unwrap();
        assert_eq!(old.open(Channel::Packet, &packet).unwrap().key, old_key);
        let packet = both.seal(Channel::Packet, None, b"hello").unwrap();
        assert_eq!(old.open(Channel::Packet, &packet).unwrap_err(), Rejected::Foreign);
    }

    #[test]
    fn an_id_that_anybody_could_hold_has_no_key() {
        let mut a = sealer(1, 7, ring(3));
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        assert!(
            a.seal(Channel::Packet, Some(&NodeId(identity_point)), b"hello")
                .is_none()
        );
    }
}
