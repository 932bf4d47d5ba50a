//! What others sign is held up to its bounds, whichever way it comes. An honest node does not write more, so this is not seen from
//! outside.

use bytes::Bytes;
use weft_types::{ClusterId, NetworkId};

use super::*;
use crate::{
    Config, GossipKey, Identity, KeyRing, MAX_NAME, MAX_VALUE, Output,
    record::{Record, StateSum},
};

const CLUSTER: ClusterId = ClusterId([2; 16]);

fn gossip(now: Instant) -> Gossip {
    gossip_of(1, now)
}

fn gossip_of(number: u8, now: Instant) -> Gossip {
    let address = SocketAddr::from(([192, 0, 2, 1], 7946));
    let mut config = Config::new(CLUSTER, KeyRing::new(GossipKey([3; 32])), address);
    config.max_records_per_author = 4;
    config.max_bytes_per_author = 3 * crate::wire::MAX_RECORD;
    config.max_authors = 3;
    Gossip::new(config, Identity::from_seed([number; 32]), 1, [4; 32], now)
}

/// A record that its author has signed.
fn signed(author: u8, version: u64, name: &[u8], size: usize) -> Record {
    let key = Key {
        kind: 1,
        scope: NetworkId([9; 16]),
        name: name.to_vec(),
    };
    let value = Some(Bytes::from(vec![b'x'; size]));
    let state = StateSum::of(&key, version, &value);
    Record::sign(
        &Identity::from_seed([author; 32]),
        &CLUSTER,
        key,
        version,
        value,
        state,
    )
}

#[test]
fn names_and_values_are_taken_up_to_their_limits_and_none_beyond() {
    let now = Instant::now();
    let sizes = [
        (MAX_NAME, MAX_VALUE, true),
        (MAX_NAME, MAX_VALUE + 1, false),
        (MAX_NAME, 10 * MAX_VALUE, false),
        (MAX_NAME + 1, MAX_VALUE, false),
        (10 * MAX_NAME, 1, false),
    ];
    for (name, value, fits) in sizes {
        let record = signed(5, 1, &vec![7; name], value);
        let mut told = gossip(now);
        assert_eq!(told.take_record(record.clone(), None, ROUNDS, now), fits);
        let mut compared = gossip(now);
        let set = AuthorSet {
            all: true,
            dropped: 0,
            records: vec![record.clone()],
        };
        compared.take_set(set, None, 0, now);
        for gossip in [told, compared] {
            let held = gossip.get(&record.author, &record.key);
            assert_eq!(held.is_some(), fits, "a name of {name} bytes, a value of {value}");
            assert_eq!(gossip.stats().malformed, u64::from(!fits));
        }
    }
}

#[test]
fn an_author_is_heard_up_to_its_number_of_records_and_no_other_pays_for_it() {
    let now = Instant::now();
    let mut gossip = gossip(now);
    let mut take = |record: Record| gossip.take_record(record, None, ROUNDS, now);
    for n in 0..40 {
        assert_eq!(take(signed(5, n + 1, &[n as u8], 1)), n < 4);
    }
    assert!(take(signed(5, 99, &[0], 2)), "what is held can be replaced");
    assert!(take(signed(6, 1, &[0], 1)), "another author has its own number");
    assert_eq!(gossip.stats().records_refused, 36);
}

#[test]
fn an_author_is_heard_up_to_its_number_of_bytes() {
    let now = Instant::now();
    let mut gossip = gossip(now);
    let name = |n: u8| vec![n; MAX_NAME];
    let mut take = |record: Record| gossip.take_record(record, None, ROUNDS, now);
    for n in 0..3 {
        assert!(take(signed(5, u64::from(n) + 1, &name(n), MAX_VALUE)), "{n}");
    }
    for (version, over) in [(4, 1), (5, 10)] {
        assert!(!take(signed(5, version, b"a", over)), "{over}");
    }
    assert!(take(signed(5, 6, &name(0), 1)), "what becomes shorter makes room");
    assert!(take(signed(5, 7, b"a", 1)));
    assert!(
        !take(signed(5, 8, &name(0), MAX_VALUE)),
        "what is held may grow no further"
    );
}

#[test]
fn who_says_as_much_as_is_kept_of_it_can_still_say_where_it_is() {
    let now = Instant::now();
    let mut author = gossip_of(2, now);
    let mut say = |n: u8, size: usize| {
        let key = Key {
            kind: 1,
            scope: NetworkId([9; 16]),
            name: vec![n; MAX_NAME],
        };
        author.put(key, Bytes::from(vec![b'x'; size]), now).is_ok()
    };
    assert!(say(0, MAX_VALUE));
    assert!(!say(1, MAX_VALUE));
    assert!(say(0, 1) && say(1, MAX_VALUE), "what becomes shorter makes room");
    let left = (1..=MAX_VALUE).take_while(|size| say(0, *size)).count();
    assert!(left < MAX_VALUE);
    assert_eq!(author.room(), 0);

    let mut other = gossip_of(1, now);
    let said: Vec<Record> = author.records().cloned().collect();
    for record in &said {
        assert!(take(&mut other, record, now));
    }
    let (key, value) = (Key::card(), Some(Bytes::from(vec![b'x'; MAX_VALUE])));
    let state = StateSum::of(&key, 10_000, &value);
    let identity = Identity::from_seed([2; 32]);
    let longest = Record::sign(&identity, &CLUSTER, key, 10_000, value, state);
    assert!(take(&mut other, &longest, now));
}

#[test]
fn what_was_taken_back_makes_room_for_what_is_new() {
    let now = Instant::now();
    let (mut author, mut other) = (gossip_of(2, now), gossip_of(1, now));
    let kept = Key {
        kind: 1,
        scope: NetworkId([9; 16]),
        name: b"kept".to_vec(),
    };
    let said = author.put(kept.clone(), Bytes::from_static(b"x"), now).unwrap();
    assert!(take(&mut other, &said, now));
    for n in 0..100_u8 {
        let key = Key {
            name: vec![n],
            ..kept.clone()
        };
        let said = author.put(key.clone(), Bytes::from_static(b"x"), now).unwrap();
        assert!(take(&mut other, &said, now), "{n}");
        let said = author.remove(&key, now).unwrap();
        assert!(take(&mut other, &said, now), "{n}");
    }
    for gossip in [&mut author, &mut other] {
        let node = said.author;
        assert_eq!(gossip.get(&node, &kept), Some(&said), "what is said stays");
        let held = gossip.records().filter(|record| record.author == node).count();
        assert!(held <= 4, "{held}");
        let outputs = std::iter::from_fn(|| gossip.poll_output());
        let dropped = outputs.filter(|output| matches!(output, Output::Event(Event::Dropped { .. })));
        assert!(dropped.count() > 90);
    }
    for n in 0..3_u8 {
        let key = Key {
            name: vec![200 + n],
            ..kept.clone()
        };
        let put = author.put(key, Bytes::from_static(b"x"), now);
        // With the card and what is kept there are four.
        assert_eq!(put.is_ok(), n < 2, "{n}: {put:?}");
    }
}

fn take(gossip: &mut Gossip, record: &Record, now: Instant) -> bool {
    gossip.take_record(record.clone(), None, ROUNDS, now) && {
        gossip.settle(now);
        true
    }
}

#[test]
fn so_many_authors_are_heard_and_no_more() {
    let now = Instant::now();
    let mut gossip = gossip(now);
    for author in 0..30 {
        let taken = gossip.take_record(signed(10 + author, 1, &[0], 1), None, ROUNDS, now);
        assert_eq!(taken, author < 3, "{author}");
    }
}

#[test]
fn nobody_is_believed_in_the_name_of_another_whichever_way_it_comes() {
    let now = Instant::now();
    let truth = signed(5, 1, b"a", 1);
    let mut lie = Record {
        value: Some(Bytes::from_static(b"a lie")),
        version: 2,
        ..truth.clone()
    };
    for is_copied in [true, false] {
        if !is_copied {
            // Signed, and by somebody else.
            lie.signature = signed(6, 2, b"a", 1).signature;
        }
        let mut told = gossip(now);
        assert!(take(&mut told, &truth, now) && !take(&mut told, &lie, now));
        let mut compared = gossip(now);
        assert!(take(&mut compared, &truth, now));
        for all in [true, false] {
            let records = vec![lie.clone()];
            let set = AuthorSet {
                all,
                dropped: 0,
                records,
            };
            compared.take_set(set, None, 0, now);
        }
        for gossip in [told, compared] {
            assert_eq!(gossip.get(&truth.author, &truth.key), Some(&truth));
            assert!(gossip.stats().forged > 0);
        }
    }
}
