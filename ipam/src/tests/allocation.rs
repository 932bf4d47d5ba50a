use std::time::{Duration, Instant};

use crate::{AllocateError, Block, ClaimError, Grant, Space, Want};

const ME: u8 = 1;
const YOU: u8 = 2;

fn block(first: u128, order: u8) -> Block {
    Block::new(first, order).unwrap()
}

/// A space of eight numbers from 16 on, owned by `ME`.
fn eight() -> Space<u8> {
    Space::new(ME, block(16, 3), ME, 0).with_rest(Duration::from_secs(10))
}

fn drain(space: &mut Space<u8>, now: Instant) -> Vec<u128> {
    std::iter::from_fn(|| space.allocate(None, now).ok()).collect()
}

#[test]
fn a_sole_owner_hands_out_every_number_but_the_reserved_once() {
    let (mut space, now) = (eight(), Instant::now());
    space.reserve(16..=16);
    space.reserve(23..=23);
    assert_eq!(space.free_owned(), 6);
    assert_eq!(drain(&mut space, now), [17, 18, 19, 20, 21, 22]);
    assert_eq!(
        space.allocate(None, now),
        Err(AllocateError::Exhausted { quarantined: 0 })
    );
    assert_eq!(space.in_use().collect::<Vec<_>>(), [17..=22]);
}

#[test]
fn never_used_numbers_come_first_and_then_the_longest_released() {
    let (mut space, start) = (eight(), Instant::now());
    let at = |secs| start + Duration::from_secs(secs);
    for _ in 0..6 {
        space.allocate(None, start).unwrap();
    }
    space.release(18, at(1));
    space.release(17, at(2));
    assert_eq!(space.allocate(None, at(3)), Ok(22));
    assert_eq!(space.allocate(None, at(3)), Ok(23));
    // Nothing has rested, but nobody else could have a free number either.
    assert_eq!(space.allocate(None, at(3)), Ok(18));
    space.release(16, at(4));
    assert_eq!(space.allocate(None, at(30)), Ok(17));
    assert_eq!(space.allocate(None, at(30)), Ok(16));
}

#[test]
fn a_number_released_just_now_waits_while_others_may_have_one() {
    let (mut space, now) = (eight(), Instant::now());
    assert_eq!(
        space.merge(Grant {
            block: block(0, 4),
            from: ME,
            to: YOU,
            version: 1
        }),
        {
            let bad = crate::BadGrant::OutsideSpace {
                block: block(0, 4),
                universe: block(16, 3),
            };
            crate::Merged::Refused(bad)
        }
    );
    let given = space
        .give(YOU, &Want::Any { within: None }, now)
        .unwrap()
        .stored();
    assert_eq!(
        given,
        [Grant {
            block: block(20, 2),
            from: ME,
            to: YOU,
            version: 1
        }]
    );
    assert_eq!(drain(&mut space, now), [16, 17, 18, 19]);
    space.release(17, now);
    let refused = AllocateError::NoFreeOwned {
        ask: vec![YOU],
        resting: true,
    };
    assert_eq!(space.allocate(None, now), Err(refused));
    assert_eq!(space.clone().allocate_resting(None), Some(17));
    assert_eq!(space.allocate(None, now + Duration::from_secs(10)), Ok(17));
}

#[test]
fn a_seed_moves_the_first_number_within_what_is_owned() {
    let now = Instant::now();
    let first = |seed| {
        Space::new(ME, block(16, 3), ME, seed)
            .allocate(None, now)
            .unwrap()
    };
    assert_eq!([0, 3, 7, 8, u64::MAX].map(first), [16, 19, 23, 16, 23]);
    let mut space = Space::new(ME, block(16, 3), ME, 6);
    assert_eq!(drain(&mut space, now), [22, 23, 16, 17, 18, 19, 20, 21]);
}

#[test]
fn a_seed_counts_what_is_owned_and_not_what_was_given() {
    let now = Instant::now();
    for (seed, first) in [(2, 18), (3, 19), (4, 22), (5, 23), (6, 16)] {
        let mut space = Space::new(ME, block(16, 3), ME, seed);
        let _ = space.give(YOU, &Want::Block(block(20, 1)), now).unwrap();
        assert_eq!(space.allocate(None, now), Ok(first), "seed {seed}");
    }
}

#[test]
fn a_range_is_kept_and_one_outside_is_an_error() {
    let (mut space, now) = (eight(), Instant::now());
    assert_eq!(space.allocate(Some(20..=21), now), Ok(20));
    assert_eq!(space.allocate(Some(20..=21), now), Ok(21));
    assert_eq!(
        space.allocate(Some(20..=21), now),
        Err(AllocateError::Exhausted { quarantined: 0 })
    );
    assert_eq!(space.allocate(Some(0..=15), now), Err(AllocateError::OutOfRange));
    assert_eq!(space.allocate(Some(0..=16), now), Ok(16));
}

#[test]
fn a_claim_says_why_it_cannot_be() {
    let (mut space, now) = (eight(), Instant::now());
    space.reserve(16..=16);
    let _ = space.give(YOU, &Want::Number(20), now).unwrap();
    assert_eq!(space.claim(15), Err(ClaimError::OutOfRange { number: 15 }));
    assert_eq!(space.claim(16), Err(ClaimError::Reserved { number: 16 }));
    assert_eq!(space.claim(17), Ok(()));
    assert_eq!(space.claim(17), Err(ClaimError::InUse { number: 17 }));
    space.release(17, now);
    assert_eq!(space.claim(17), Ok(()));
    assert_eq!(space.claim(20), Err(ClaimError::OwnedBy { owners: vec![YOU] }));
    assert_eq!(
        space.claim_block(block(20, 2)),
        Err(ClaimError::OwnedBy { owners: vec![YOU] })
    );
    assert_eq!(space.claim_block(block(18, 1)), Ok(()));
    assert_eq!(
        space.claim_block(block(16, 3)),
        Err(ClaimError::Reserved { number: 16 })
    );
    assert_eq!(
        space.claim_block(block(0, 5)),
        Err(ClaimError::OutOfRange { number: 0 })
    );
    space.release_block(block(16, 2), now);
    assert_eq!(space.in_use().count(), 0);
}

#[test]
fn what_is_restored_counts_as_in_use_even_where_it_should_not_be() {
    let (mut space, now) = (eight(), Instant::now());
    let given = space.give(YOU, &Want::Number(20), now).unwrap().stored();
    let mut again = Space::new(ME, block(16, 3), ME, 0);
    assert_eq!(again.load(given, []), []);
    assert_eq!(again.restore(block(16, 0)), Ok(()));
    assert_eq!(
        again.restore(block(20, 0)),
        Err(ClaimError::OwnedBy { owners: vec![YOU] })
    );
    assert_eq!(
        again.restore(block(0, 4)),
        Err(ClaimError::OutOfRange { number: 0 })
    );
    assert_eq!(again.in_use().collect::<Vec<_>>(), [16..=16, 20..=20]);
    assert_eq!(drain(&mut again, now), [17, 18, 19, 21, 22, 23]);
}
