//! What nodes say to each other, as postcard encodes it, inside the seal.

use std::{collections::BTreeSet, net::SocketAddr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use weft_types::NetworkId;

use crate::{
    MAX_NAME, MAX_PACKET, MAX_VALUE, Record, identity::Short, record::StateSum, seal::OVERHEAD,
    store::CLUSTER,
};

/// The most bytes a frame on a stream may have.
pub(crate) const MAX_FRAME: usize = 8 * 1024 * 1024;
/// The most bytes a body in a packet may have.
pub(crate) const MAX_BODY: usize = MAX_PACKET - OVERHEAD;

/// The body of a packet.
// One is made per packet and goes at once; boxing it would cost more than it saves.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Body {
    /// Membership: opaque to everything but `foca`.
    Foca(Vec<u8>),
    /// What somebody wrote or learnt a moment ago: some records in full, of others only which they are.
    /// [`rumour`] writes it by hand and depends on its place here.
    Rumour {
        records: Vec<Record>,
        offers: Vec<Offer>,
    },
    /// Who the sender is and what it thinks of the receiver; the only body a stranger may send.
    Contact(Contact),
    /// Of the offered records those that the sender lacks.
    Want(Vec<Offer>),
    /// Anti-entropy, step 1: everything in eight bytes.
    Digest { root: u64 },
    /// Step 2, the roots are equal.
    InSync { root: u64 },
    /// Step 2, they are not: 256 times four bytes, one for each first byte of a node's id.
    Buckets(Vec<u8>),
    /// Step 3: what the sender has of every author in the buckets that differ.
    Vector(Vec<Range>),
    /// Step 4: what the replier has of those authors of whom the other knows more.
    Entries(Vec<Entry>),
    /// Steps 4 and 5: what the other lacks.
    Sets(Vec<AuthorSet>),
    /// Instead of sets too large for packets: come and fetch them over a stream.
    Invite,
    /// Somebody believes the receiver down in all generations up to this one. It is to take a later one.
    Renew { above: u64 },
    /// A datagram between applications, for one start of the receiver alone.
    Message { session: u64, payload: Vec<u8> },
    /// Anti-entropy of networks, step 1: all that both want to know of these, in eight bytes each.
    Roots(Vec<(NetworkId, u64)>),
    /// Step 2: of these the receiver had the same, and whether it is to go on wanting to know of them.
    SameRoots(Vec<(NetworkId, u64, bool)>),
    /// Step 2, of the others: 256 times four bytes, over all of them.
    NetworkBuckets(Vec<NetworkId>, Vec<u8>),
    /// Step 3, after which it goes on as for the cluster.
    NetworkVector(Vec<NetworkId>, Vec<Range>),
    /// Instead of sets of these networks too large for packets.
    NetworkInvite(Vec<NetworkId>),
}

/// In place of a network: every one there is, for those who want to know of all.
pub(crate) const EVERY: NetworkId = NetworkId([0xff; 16]);
/// The most networks that packets of one comparison are about.
pub(crate) const MAX_NETWORKS: usize = 16;

/// What of all streams is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Those that concern everybody.
    Cluster,
    /// Those of these networks.
    Networks(BTreeSet<NetworkId>),
}

impl Part {
    pub(crate) fn covers(&self, scope: &NetworkId) -> bool {
        match self {
            Self::Cluster => *scope == CLUSTER,
            Self::Networks(networks) => {
                *scope != CLUSTER && (networks.contains(scope) || networks.contains(&EVERY))
            }
        }
    }
}

/// The name of a record: an author gives each number once. `author` is the name of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) author: Short,
    pub(crate) version: u64,
}

impl Offer {
    /// No offer takes more bytes.
    pub(crate) const MOST: usize = 8 + 10;
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Contact {
    /// The sender's card. It is signed, so it can be believed whoever brings it.
    pub(crate) card: Record,
    pub(crate) generation: u64,
    /// What the sender believes of the receiver: its generation, and whether it is down.
    pub(crate) yours: Option<(u64, bool)>,
    /// The card of the receiver that the sender has. One the receiver did not write tells it of another life.
    pub(crate) your_card: Option<Record>,
    /// Whether this is the reply.
    pub(crate) reply: bool,
}

/// What a node has of the streams `from..=to`, all of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) from: Short,
    pub(crate) to: Short,
    pub(crate) entries: Vec<Entry>,
}

/// What a node has of one stream, and what it believes of its author as a member, if the stream is the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) node: Short,
    /// The highest version it has.
    pub(crate) highest: u64,
    /// It has everything up to this version: where others should start from.
    pub(crate) complete: u64,
    pub(crate) live: u64,
    pub(crate) liveness: Liveness,
}

impl Entry {
    pub(crate) fn nothing(node: Short) -> Self {
        Self {
            node,
            highest: 0,
            complete: 0,
            live: 0,
            liveness: Liveness::Unknown,
        }
    }
}

/// What a node believes of another, by generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Liveness {
    Unknown,
    Active(u64),
    Down(u64),
}

/// Records of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuthorSet {
    /// Whether this is everything the sender has of the stream, tombstones it has dropped excepted.
    pub(crate) all: bool,
    /// The highest version among tombstones that the sender has dropped.
    pub(crate) dropped: u64,
    pub(crate) records: Vec<Record>,
}

/// A request over a stream: "this is what I have of the authors from `from` on; send what I lack".
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pull {
    pub(crate) id: u64,
    pub(crate) range: Range,
}

/// The same, of the streams of these networks and no others.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NetworkPull {
    pub(crate) pull: Pull,
    pub(crate) networks: Vec<NetworkId>,
}

/// The answer: what was lacking of the authors up to `upto`. If that is not all that was asked for, the rest
/// is to be asked for anew.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) id: u64,
    pub(crate) upto: Short,
    pub(crate) sets: Vec<AuthorSet>,
    /// What the replier has of those of whom the other knows more.
    pub(crate) entries: Vec<Entry>,
}

/// What a member's card says. The record it is in is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Card {
    pub(crate) address: SocketAddr,
    pub(crate) boot: u64,
    /// A random number for this start.
    pub(crate) session: u64,
    /// The session of the card this one replaced, if another start of this node wrote that. If that start
    /// sees this, it knows that two starts live at once.
    pub(crate) replaces: Option<u64>,
    pub(crate) left: bool,
}

pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("nothing here refuses to be encoded")
}

/// Decodes all of `bytes`, or nothing.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// A [`Body::Rumour`] of records that are encoded already.
pub(crate) fn rumour<R: AsRef<[u8]>>(records: &[R], offers: &[Offer]) -> Vec<u8> {
    let mut bytes = vec![1, records.len() as u8];
    records
        .iter()
        .for_each(|record| bytes.extend_from_slice(record.as_ref()));
    bytes.extend_from_slice(&encode(offers));
    bytes
}

/// As many of each as a rumour can say with one byte of count.
pub(crate) const MAX_RUMOURS: usize = 127;
/// The bytes of a rumour beside its records and offers.
pub(crate) const RUMOUR_HEAD: usize = 3;

/// No fewer bytes than `record` takes once encoded.
pub(crate) fn size_bound(record: &Record) -> usize {
    let value = record.value.as_ref().map_or(0, |value| value.len());
    size_of_record(record.key.name.len(), value)
}

/// No fewer bytes than a record takes whose name and value have so many.
pub(crate) const fn size_of_record(name: usize, value: usize) -> usize {
    const REST: usize = 32 + 1 + 16 + 1 + 10 + 3 + size_of::<StateSum>() + 64;
    REST + name + value
}

/// Nor than any record takes.
pub(crate) const MAX_RECORD: usize = size_of_record(MAX_NAME, MAX_VALUE);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weft_types::{ClusterId, NetworkId};

    use super::*;
    use crate::{Identity, Key, MAX_MESSAGE};

    fn largest() -> Record {
        let key = Key {
            kind: 1,
            scope: NetworkId([9; 16]),
            name: vec![7; MAX_NAME],
        };
        let value = Some(Bytes::from(vec![8; MAX_VALUE]));
        Record::sign(
            &Identity::from_seed([1; 32]),
            &ClusterId([2; 16]),
            key,
            u64::MAX,
            value,
            StateSum([3; 16]),
        )
    }

    #[test]
    fn a_rumour_written_by_hand_reads_like_one_written_by_postcard() {
        let record = largest();
        let encoded = encode(&record);
        let offer = Offer {
            author: Short::MAX,
            version: u64::MAX,
        };
        assert_eq!(encode(&offer).len(), Offer::MOST);
        let by_hand = rumour(&[&encoded, &encoded], &[offer]);
        let body = Body::Rumour {
            records: vec![record.clone(), record],
            offers: vec![offer],
        };
        assert_eq!(by_hand, encode(&body));
    }

    #[test]
    fn the_largest_record_and_message_fit_a_packet() {
        let record = largest();
        assert!(encode(&record).len() <= size_bound(&record));
        let set = AuthorSet {
            all: true,
            dropped: u64::MAX,
            records: vec![record],
        };
        assert!(encode(&Body::Sets(vec![set])).len() <= MAX_BODY);
        assert!(
            encode(&Body::Message {
                session: u64::MAX,
                payload: vec![0; MAX_MESSAGE]
            })
            .len()
                <= MAX_BODY
        );
        assert!(encode(&Body::Buckets(vec![0; 1024])).len() <= MAX_BODY);
        let networks = vec![NetworkId([9; 16]); MAX_NETWORKS];
        assert!(encode(&Body::NetworkBuckets(networks.clone(), vec![0; 1024])).len() <= MAX_BODY);
        let roots = networks
            .into_iter()
            .map(|network| (network, u64::MAX, true))
            .collect();
        assert!(encode(&Body::SameRoots(roots)).len() <= MAX_BODY);
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut bytes = encode(&Body::Digest { root: 1 });
        assert!(decode::<Body>(&bytes).is_some());
        bytes.push(0);
        assert!(decode::<Body>(&bytes).is_none());
    }

    #[test]
    fn records_survive_json() {
        // Only postcard is used here, but records are public and have serde.
        let record = largest();
        let bytes = encode(&record);
        assert_eq!(decode::<Record>(&bytes), Some(record));
    }
}
