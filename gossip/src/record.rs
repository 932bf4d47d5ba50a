use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weft_types::{ClusterId, NetworkId, NodeId};

use crate::identity::{self, Identity};

/// The most bytes a key's name may have.
pub const MAX_NAME: usize = 64;
/// The most bytes a record's value may have.
pub const MAX_VALUE: usize = 1_000;
/// The kind of the records that this crate writes itself: where a node is and which start it is in.
///
/// They come out as events and go back in by [`Gossip::load`](crate::Gossip::load) like all others, which is how a
/// restarted node remembers where its peers were.
pub const CARD_KIND: u8 = 255;

/// What a record is about, within what its author says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The meaning of name and value; the application's to choose, but for [`CARD_KIND`].
    pub kind: u8,
    /// The network it belongs to; all zeros if it concerns the whole cluster.
    pub scope: NetworkId,
    /// Its name, at most [`MAX_NAME`] bytes.
    pub name: Vec<u8>,
}

impl Key {
    /// None is smaller.
    pub(crate) fn first() -> Self {
        Self {
            kind: 0,
            scope: NetworkId([0; 16]),
            name: Vec::new(),
        }
    }

    pub(crate) fn card() -> Self {
        Self {
            kind: CARD_KIND,
            scope: NetworkId([0; 16]),
            name: Vec::new(),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.kind,
            self.scope.short(),
            self.name.escape_ascii()
        )
    }
}

/// One versioned fact, written and signed by one node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The node that says so.
    pub author: NodeId,
    /// What it is about.
    pub key: Key,
    /// The author's counter: each record it writes, whatever the key, takes the next number.
    pub version: u64,
    /// What it says; none is a tombstone, the author's word that there is nothing under this key any more.
    #[serde(with = "optional_bytes")]
    pub value: Option<Bytes>,
    /// A sum over everything the author says as of this version. Whoever holds this record can tell by it
    /// whether he has the rest too, and nobody can leave something out unnoticed.
    pub state: StateSum,
    /// The author's Ed25519 signature over all of the above and the cluster's id.
    #[serde(with = "two_halves")]
    pub signature: [u8; 64],
}

impl Record {
    /// Whether the author signed exactly this, for this cluster.
    pub fn verify(&self, cluster: &ClusterId) -> bool {
        let message = signed_bytes(
            cluster,
            &self.author,
            &self.key,
            self.version,
            &self.value,
            &self.state,
        );
        identity::verify(&self.author, &message, &self.signature)
    }

    pub(crate) fn sign(
        identity: &Identity,
        cluster: &ClusterId,
        key: Key,
        version: u64,
        value: Option<Bytes>,
        state: StateSum,
    ) -> Self {
        let author = identity.node();
        let signature = identity.sign(&signed_bytes(cluster, &author, &key, version, &value, &state));
        Self {
            author,
            key,
            version,
            value,
            state,
            signature,
        }
    }

    /// Whether its parts are within their bounds.
    pub(crate) fn is_bounded(&self) -> bool {
        self.key.name.len() <= MAX_NAME && self.value.as_ref().is_none_or(|value| value.len() <= MAX_VALUE)
    }

    /// What this record adds to its author's [`StateSum`].
    pub(crate) fn sum(&self) -> StateSum {
        StateSum::of(&self.key, self.version, &self.value)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.value.is_some() { "" } else { " removed" };
        write!(f, "{}:{:?}@{}{what}", self.author.short(), self.key, self.version)
    }
}

fn signed_bytes(
    cluster: &ClusterId,
    author: &NodeId,
    key: &Key,
    version: u64,
    value: &Option<Bytes>,
    state: &StateSum,
) -> Vec<u8> {
    let mut bytes = b"weft record 1".to_vec();
    bytes.extend_from_slice(&cluster.0);
    bytes.extend_from_slice(&author.0);
    append_content(&mut bytes, key, version, value);
    bytes.extend_from_slice(&state.0);
    bytes
}

/// Unambiguous: every part of variable length has its length before it.
fn append_content(bytes: &mut Vec<u8>, key: &Key, version: u64, value: &Option<Bytes>) {
    bytes.push(key.kind);
    bytes.extend_from_slice(&key.scope.0);
    bytes.extend_from_slice(&(key.name.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&key.name);
    bytes.extend_from_slice(&version.to_be_bytes());
    match value {
        None => bytes.push(0),
        Some(value) => {
            bytes.push(1);
            bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
            bytes.extend_from_slice(value);
        }
    }
}

/// The sum, modulo 2^128, of the hashes of an author's records that are not tombstones.
///
/// Being a sum it does not depend on order and changes by one addition and one subtraction per record.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateSum(pub [u8; 16]);

impl StateSum {
    pub(crate) fn of(key: &Key, version: u64, value: &Option<Bytes>) -> Self {
        if value.is_none() {
            return Self::default();
        }
        let mut bytes = b"weft state 1".to_vec();
        append_content(&mut bytes, key, version, value);
        Self(Sha256::digest(&bytes)[..16].try_into().expect("16 of 32 bytes"))
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self(
            u128::from_be_bytes(self.0)
                .wrapping_add(u128::from_be_bytes(other.0))
                .to_be_bytes(),
        )
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self(
            u128::from_be_bytes(self.0)
                .wrapping_sub(u128::from_be_bytes(other.0))
                .to_be_bytes(),
        )
    }

    /// Half of it: enough to see a difference, which is then looked into with the whole.
    pub(crate) fn half(self) -> u64 {
        u128::from_be_bytes(self.0) as u64
    }
}

impl fmt::Debug for StateSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.half())
    }
}

mod optional_bytes {
    use std::fmt;

    use bytes::Bytes;
    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{SeqAccess, Visitor},
    };

    pub(super) fn serialize<S: Serializer>(value: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_deref().map(Borrowed).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<Owned>::deserialize(deserializer)?.map(|owned| owned.0))
    }

    struct Borrowed<'a>(&'a [u8]);

    impl Serialize for Borrowed<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    struct Owned(Bytes);

    impl<'de> Deserialize<'de> for Owned {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Reader;
            impl<'de> Visitor<'de> for Reader {
                type Value = Owned;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("bytes")
                }

                fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Owned, E> {
                    Ok(Owned(Bytes::copy_from_slice(bytes)))
                }

                // Formats without bytes, such as JSON, write a list of numbers.
                fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Owned, A::Error> {
                    let mut bytes = Vec::new();
                    while let Some(byte) = seq.next_element()? {
                        bytes.push(byte);
                    }
                    Ok(Owned(bytes.into()))
                }
            }
            deserializer.deserialize_bytes(Reader)
        }
    }
}

/// Serde's own arrays end at 32 elements.
mod two_halves {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 64], serializer: S) -> Result<S::Ok, S::Error> {
        let (left, right) = bytes.split_at(32);
        let halves: (&[u8; 32], &[u8; 32]) = (
            left.try_into().expect("32 of 64 bytes"),
            right.try_into().expect("32 of 64 bytes"),
        );
        halves.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 64], D::Error> {
        let (left, right) = <([u8; 32], [u8; 32])>::deserialize(deserializer)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&left);
        bytes[32..].copy_from_slice(&right);
        Ok(bytes)
    }
}
