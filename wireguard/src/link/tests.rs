use std::sync::Arc;

use super::*;

const ROOM: usize = 512;

fn secret(n: u8) -> Secret32 {
    Secret32::new([n; 32])
}

/// A node with keys, and what it knows of another's.
struct Side {
    link: Link,
    keys: Vec<(u8, Arc<Identity>)>,
    next: u32,
}

impl Side {
    fn new(own: &[u8], theirs: &[u8]) -> Self {
        let mut side = Self {
            link: Link::new("192.0.2.1:51820".parse().unwrap()),
            keys: Vec::new(),
            next: 0,
        };
        side.know(own, theirs);
        side
    }

    fn know(&mut self, own: &[u8], theirs: &[u8]) {
        self.keys = own
            .iter()
            .map(|n| (*n, Arc::new(Identity::new(secret(*n)))))
            .collect();
        let mut pairs = Vec::new();
        for own in own {
            for public in theirs {
                pairs.push(Pair {
                    own: secret(*own).public_key(),
                    public_key: secret(*public).public_key(),
                    preshared_key: secret(own.min(public) ^ (own.max(public) << 4)),
                });
            }
        }
        let mut fresh = Vec::new();
        for pair in &pairs {
            if self.link.pairs().all(|(have, _)| have != pair) {
                self.next += 1;
                let own = |identity: &&(u8, Arc<Identity>)| identity.1.public.to_bytes() == pair.own;
                let identity = &self.keys.iter().find(own).unwrap().1;
                fresh.push(Box::new(Session::new(pair.clone(), identity, self.next, None)));
            }
        }
        self.link.set_pairs(&pairs, fresh);
    }

    fn number(&self, own: u8, theirs: u8) -> Option<u32> {
        let (own, theirs) = (secret(own).public_key(), secret(theirs).public_key());
        let found = self
            .link
            .pairs()
            .find(|(pair, _)| pair.own == own && pair.public_key == theirs);
        found.map(|(_, index)| index)
    }

    /// The keys that packets go by.
    fn used(&self) -> Option<([u8; 32], [u8; 32])> {
        let status = self.link.status(Instant::now());
        let used = status.iter().find(|pair| pair.is_used)?;
        Some((used.own, used.public_key))
    }

    fn begin(&mut self, own: u8, theirs: u8) -> Vec<u8> {
        let index = self.number(own, theirs).unwrap();
        let mut out = [0; ROOM];
        let session = self
            .link
            .sessions
            .iter_mut()
            .find(|session| session.index == index);
        match session.unwrap().tunn.format_handshake_initiation(&mut out, true) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn take(&mut self, index: u32, message: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0; ROOM];
        match self.link.open(index, message, &mut out, Instant::now()) {
            TunnResult::WriteToNetwork(bytes) => Some(bytes.to_vec()),
            TunnResult::Err(error) => panic!("{error:?}"),
            _ => None,
        }
    }

    fn seal(&mut self) -> Sealed {
        let used = self.link.used();
        self.link.seal(&[0x45; 40], used, &mut [0; ROOM])
    }
}

fn keys(own: u8, theirs: u8) -> ([u8; 32], [u8; 32]) {
    (secret(own).public_key(), secret(theirs).public_key())
}

/// A handshake by a key of each, of which the last message arrives or not.
fn shake(one: &mut Side, other: &mut Side, (a, b): (u8, u8), whole: bool) {
    let initiation = one.begin(a, b);
    let response = other.take(other.number(b, a).unwrap(), &initiation).unwrap();
    let keepalive = one.take(one.number(a, b).unwrap(), &response).unwrap();
    if whole {
        assert_eq!(other.take(other.number(b, a).unwrap(), &keepalive), None);
    }
}

#[test]
fn packets_wait_for_a_session_that_both_sides_have() {
    let (mut one, mut other) = (Side::new(&[1], &[2]), Side::new(&[2], &[1]));
    assert!(matches!(one.seal(), Sealed::Handshake(148)));
    assert_eq!(one.seal(), Sealed::Waits);
    for _ in 2..MOST_WAITING {
        one.seal();
    }
    assert_eq!(one.seal(), Sealed::Lost);
    shake(&mut one, &mut other, (1, 2), false);
    assert_eq!(one.used(), Some(keys(1, 2)));
    let waited: Vec<_> = std::iter::from_fn(|| one.link.next_waiting(&mut [0; ROOM])).collect();
    assert_eq!(waited, [72; MOST_WAITING]);
    // Who answered does not know yet that the answer came.
    assert_eq!(other.used(), None);
    assert!(matches!(other.seal(), Sealed::Handshake(_)));
    shake(&mut one, &mut other, (1, 2), true);
    assert_eq!(other.used(), Some(keys(2, 1)));
    assert_eq!(other.link.next_waiting(&mut [0; ROOM]), Some(72));
}

#[test]
fn packets_that_have_waited_for_nothing_are_counted() {
    let mut one = Side::new(&[1], &[2]);
    one.seal();
    one.seal();
    let ticked = |one: &mut Side| one.link.tick(Instant::now(), &mut [0; ROOM], |_| {});
    assert_eq!(ticked(&mut one), 0, "the handshake may be answered yet");
    one.know(&[], &[]);
    assert_eq!([ticked(&mut one), ticked(&mut one)], [2, 0]);
}

#[test]
fn newer_keys_are_used_when_they_carry_and_not_before() {
    let (mut one, mut other) = (Side::new(&[1], &[2]), Side::new(&[2], &[1]));
    shake(&mut one, &mut other, (1, 2), true);
    one.know(&[11, 1], &[2]);
    assert_eq!(one.used(), Some(keys(1, 2)), "nobody has heard of the new key");
    other.know(&[2], &[11, 1]);
    assert_eq!(other.used(), Some(keys(2, 1)), "there is no session of it");
    shake(&mut other, &mut one, (2, 11), false);
    assert_eq!(other.used(), Some(keys(2, 11)));
    assert_eq!(one.used(), Some(keys(1, 2)), "what it said may be lost");
    // The other side shows what it uses, again and again.
    let mut shown = Vec::new();
    other.link.tick(Instant::now(), &mut [0; ROOM], |message| {
        shown.push(message.to_vec())
    });
    assert_eq!(shown.iter().map(Vec::len).collect::<Vec<_>>(), [32]);
    one.take(one.number(11, 2).unwrap(), &shown[0]);
    assert_eq!(one.used(), Some(keys(11, 2)));
    let heard: Vec<_> = one
        .link
        .status(Instant::now())
        .iter()
        .map(|pair| pair.last_heard.is_some())
        .collect();
    assert_eq!(heard, [true, false], "the first handshake was its own");
    // Packets that are still on their way by the old one are taken.
    let mut late = vec![0; ROOM];
    let place = other
        .link
        .sessions
        .iter()
        .position(|session| session.pair.public_key == secret(1).public_key());
    let Sealed::Packet(length) = other.link.seal(&[], place, &mut late) else {
        panic!("no session");
    };
    one.take(one.number(1, 2).unwrap(), &late[..length]);
    // And when the old one is gone, nothing changes for the new one.
    one.know(&[11], &[2]);
    other.know(&[2], &[11]);
    assert_eq!((one.used(), other.used()), (Some(keys(11, 2)), Some(keys(2, 11))));
    assert_eq!(one.number(1, 2), None);
    let mut out = [0; ROOM];
    let old = one.link.open(1, &late[..length], &mut out, Instant::now());
    assert!(matches!(old, TunnResult::Err(WireGuardError::WrongIndex)));
}

#[test]
fn nothing_more_is_said_than_before_when_no_key_changes() {
    let (mut one, mut other) = (Side::new(&[1], &[2]), Side::new(&[2], &[1]));
    shake(&mut one, &mut other, (1, 2), true);
    for seconds in 0..5 {
        let now = Instant::now() + Duration::from_secs(seconds);
        one.link
            .tick(now, &mut [0; ROOM], |message| panic!("{}", message.len()));
    }
}
