//! The bytes of version 1, which no later one may read otherwise: kept in `testdata`, one line for each form.
//!
//! A form that is missing there is added by `WEFT_GOLDEN=write cargo test -p weft-gossip golden`; one that is there is never changed.

use std::{collections::BTreeMap, fmt::Write as _};

use bytes::Bytes;
use foca::{Header, Member, Message, State};
use serde::{Serialize, de::DeserializeOwned};
use weft_types::{ClusterId, NetworkId, NodeId};

use crate::{
    CARD_KIND, GossipKey, Identity, Key, KeyRing, Record,
    hearsay::Said,
    identity::Short,
    membership::Id,
    record::StateSum,
    seal::{Channel, Sealer},
    wire::{
        AuthorSet, Body, Card, Chunk, Contact, Entry, Liveness, NetworkPull, Offer, Pull, Range, decode,
        encode,
    },
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/version-1.txt");
const CLUSTER: ClusterId = ClusterId([7; 16]);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn author() -> Identity {
    Identity::from_seed([1; 32])
}

fn record(kind: u8, value: Option<&[u8]>) -> Record {
    let key = Key {
        kind,
        scope: NetworkId([9; 16]),
        name: b"name".to_vec(),
    };
    let value = value.map(Bytes::copy_from_slice);
    Record::sign(&author(), &CLUSTER, key, 300, value, StateSum([3; 16]))
}

fn card() -> Record {
    let card = Card {
        address: "192.0.2.1:7946".parse().unwrap(),
        boot: 2,
        session: 0x1122_3344_5566_7788,
        replaces: Some(9),
        left: false,
    };
    record(CARD_KIND, Some(&encode(&card)))
}

const NETWORK: NetworkId = NetworkId([9; 16]);
const SHORT: Short = Short([1, 2, 3, 4, 5, 6, 7, 8]);

fn entry(liveness: Liveness) -> Entry {
    Entry {
        node: SHORT,
        highest: 300,
        complete: 299,
        live: u64::MAX,
        liveness,
    }
}

fn set() -> AuthorSet {
    AuthorSet {
        all: true,
        dropped: 7,
        records: vec![record(1, Some(b"value")), record(200, None)],
    }
}

fn range() -> Range {
    let entries = [
        Liveness::Unknown,
        Liveness::Active(1 << 16),
        Liveness::Down(u64::MAX),
    ];
    Range {
        from: Short::MIN,
        to: Short::MAX,
        entries: entries.map(entry).to_vec(),
    }
}

fn membership() -> Vec<u8> {
    let id = |n: u8| Id {
        node: Short([n; 8]),
        generation: u64::from(n) << 16,
    };
    let said = Said {
        header: Header {
            src: id(1),
            src_incarnation: 300,
            dst: id(2),
            message: Message::PingReq {
                target: id(3),
                probe_number: 9,
            },
        },
        updates: vec![
            Member::new(id(4), 1, State::Alive),
            Member::new(id(5), 2, State::Suspect),
            Member::new(id(6), 3, State::Down),
        ],
    };
    said.write()
}

/// Every body of a packet, by its name.
fn bodies() -> Vec<(&'static str, Body)> {
    let offers = vec![Offer {
        author: SHORT,
        version: 300,
    }];
    let contact = Contact {
        card: card(),
        generation: 1 << 16,
        yours: Some((5, true)),
        your_card: Some(record(CARD_KIND, None)),
        reply: true,
    };
    vec![
        ("foca", Body::Foca(membership())),
        (
            "rumour",
            Body::Rumour {
                records: vec![record(1, Some(b"value"))],
                offers: offers.clone(),
            },
        ),
        ("contact", Body::Contact(contact)),
        ("want", Body::Want(offers)),
        ("digest", Body::Digest { root: 5 }),
        ("in-sync", Body::InSync { root: 5 }),
        ("buckets", Body::Buckets(vec![1, 2, 3, 4])),
        ("vector", Body::Vector(vec![range()])),
        ("entries", Body::Entries(vec![entry(Liveness::Active(7))])),
        ("sets", Body::Sets(vec![set()])),
        ("invite", Body::Invite),
        ("renew", Body::Renew { above: u64::MAX }),
        (
            "message",
            Body::Message {
                session: 3,
                payload: b"hello".to_vec(),
            },
        ),
        ("roots", Body::Roots(vec![(NETWORK, 5)])),
        ("same-roots", Body::SameRoots(vec![(NETWORK, 5, true)])),
        (
            "network-buckets",
            Body::NetworkBuckets(vec![NETWORK], vec![1, 2, 3, 4]),
        ),
        (
            "network-vector",
            Body::NetworkVector(vec![NETWORK], vec![range()]),
        ),
        ("network-invite", Body::NetworkInvite(vec![NETWORK])),
    ]
}

/// What is there, by name.
fn forms() -> BTreeMap<&'static str, Vec<u8>> {
    let mut forms: BTreeMap<_, _> = bodies()
        .into_iter()
        .map(|(name, body)| (name, encode(&body)))
        .collect();
    forms.insert("record", encode(&record(1, Some(b"value"))));
    forms.insert("tombstone", encode(&record(1, None)));
    forms.insert("card", encode(&card()));
    forms.insert(
        "pull",
        encode(&Pull {
            id: 6,
            range: range(),
        }),
    );
    let pull = Pull {
        id: 6,
        range: range(),
    };
    let networks = vec![NETWORK];
    forms.insert("network-pull", encode(&NetworkPull { pull, networks }));
    let chunk = Chunk {
        id: 6,
        upto: SHORT,
        sets: vec![set()],
        entries: vec![entry(Liveness::Unknown)],
    };
    forms.insert("chunk", encode(&chunk));
    forms
}

/// The same bytes when they are read and written again.
fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(encode(&decode::<T>(bytes)?))
}

fn kept() -> BTreeMap<String, Vec<u8>> {
    let text = std::fs::read_to_string(FILE).unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| line.split_once(' ').expect("a name and its bytes"));
    lines.map(|(name, hex)| (name.to_owned(), bytes(hex))).collect()
}

#[test]
fn every_form_of_version_1_is_read_and_written_as_ever() {
    let (forms, mut kept) = (forms(), kept());
    if std::env::var_os("WEFT_GOLDEN").is_some() {
        for (name, bytes) in &forms {
            kept.entry((*name).to_owned()).or_insert_with(|| bytes.clone());
        }
        let lines = kept
            .iter()
            .map(|(name, bytes)| format!("{name} {}\n", hex(bytes)));
        std::fs::write(FILE, lines.collect::<String>()).unwrap();
    }
    assert_eq!(kept.len(), forms.len());
    for (name, bytes) in forms {
        let kept = &kept[name];
        assert_eq!(hex(kept), hex(&bytes), "{name} is written otherwise");
        let read = match name {
            "record" | "tombstone" | "card" => {
                assert!(decode::<Record>(kept).unwrap().verify(&CLUSTER), "{name}");
                again::<Record>(kept)
            }
            "pull" => {
                assert!(decode::<NetworkPull>(kept).is_none());
                again::<Pull>(kept)
            }
            "network-pull" => {
                assert!(decode::<Pull>(kept).is_none());
                again::<NetworkPull>(kept)
            }
            "chunk" => again::<Chunk>(kept),
            _ => again::<Body>(kept),
        };
        assert_eq!(read.as_ref(), Some(kept), "{name} is read otherwise");
    }
}

/// A packet that version 1 has sealed.
const SEALED: &str = include_str!("../testdata/version-1-sealed.txt");

#[test]
fn a_packet_that_version_1_sealed_is_opened() {
    let mut rng = rand::rng();
    let mut opener = Sealer::new(
        CLUSTER,
        KeyRing::new(GossipKey([5; 32])),
        &Identity::from_seed([2; 32]),
        8,
        &mut rng,
    );
    let opened = opener.open(Channel::Packet, &bytes(SEALED.trim())).unwrap();
    assert_eq!(opened.from, NodeId(author().node().0));
    assert!(opened.authentic);
    assert_eq!((opened.session, opened.counter), (0x1122_3344_5566_7788, 1));
    assert_eq!(opened.body, encode(&Body::Renew { above: 7 }));
}
