use std::time::{Duration, Instant};

use crate::{Block, GiveError, Grant, Outcome, Refusal, Request, Space, Want};

const ME: u8 = 1;
const YOU: u8 = 2;
const THEM: u8 = 3;

fn block(first: u128, order: u8) -> Block {
    Block::new(first, order).unwrap()
}

fn grant(first: u128, order: u8, to: u8, version: u64) -> Grant<u8> {
    Grant {
        block: block(first, order),
        from: ME,
        to,
        version,
    }
}

/// An IPv4 /24 with the network address, the gateway and the broadcast address reserved.
fn slash_24() -> Space<u8> {
    let mut space = Space::new(ME, block(0, 8), ME, 0);
    space.reserve(0..=1);
    space.reserve(255..=255);
    space
}

fn any() -> Want {
    Want::Any { within: None }
}

#[test]
fn about_half_of_what_is_free_is_given_as_few_blocks() {
    let (mut space, now) = (slash_24(), Instant::now());
    let mut left = space.free_owned();
    while let Ok(given) = space.give(YOU, &any(), now) {
        let given = given.stored();
        let count: u128 = given.iter().map(|grant| grant.block.count()).sum();
        let half = left.div_ceil(2);
        assert!(given.len() <= 4 && count * 4 >= half * 3 && count <= half + half / 8);
        assert!(count < left || left == 1, "only the last number is given whole");
        left -= count;
        assert_eq!(space.free_owned(), left);
    }
    assert_eq!(left, 0);
    let none = GiveError::Elsewhere { owners: vec![YOU] };
    assert_eq!(space.give(THEM, &any(), now), Err(none));
    assert_eq!(
        space.give(YOU, &any(), now),
        Err(GiveError::Refused(Refusal::NoSpace))
    );
}

#[test]
fn fewer_blocks_are_worth_an_eighth_more_or_a_quarter_less() {
    let given = |order| {
        let mut space = Space::new(ME, block(0, order), ME, 0);
        space.reserve(0..=1);
        let given = space.give(YOU, &any(), Instant::now()).unwrap().stored();
        given
            .iter()
            .map(|grant| (grant.block.first(), grant.block.order()))
            .collect::<Vec<_>>()
    };
    // Of 30 half is 15, and 16 are a block. Of 14 it is 7: 8 are too many, 4 too few, and with 2 more enough.
    assert_eq!(given(5), [(16, 4)]);
    assert_eq!(given(4), [(12, 2), (6, 1)]);
}

#[test]
fn answers_are_kept_for_repetition_for_so_many_nodes() {
    let (mut space, now) = (Space::new(u16::MAX, block(0, 10), u16::MAX, 0), Instant::now());
    let mut ask = |node: u16| {
        let first = 2 * u128::from(node);
        let within = Some(first..=first + 1);
        let want = Want::Any { within };
        space.answer(node, &Request { id: 1, want }, now).stored()
    };
    let first: Vec<_> = (0..257).map(&mut ask).collect();
    // The oldest made room, and only it.
    for node in 1..257 {
        assert_eq!(ask(node), first[usize::from(node)], "{node}");
    }
    assert_ne!(ask(0), first[0]);
}

#[test]
fn what_is_used_or_reserved_is_not_given_and_what_rests_only_last() {
    let (mut space, now) = (Space::new(ME, block(0, 2), ME, 0), Instant::now());
    space.reserve(3..=3);
    assert_eq!([space.claim(0), space.claim(1)], [Ok(()), Ok(())]);
    space.release(1, now);
    let refused = |refusal| Err(GiveError::Refused(refusal));
    assert_eq!(space.give(YOU, &Want::Number(0), now), refused(Refusal::InUse(0)));
    assert_eq!(
        space.give(YOU, &Want::Number(3), now),
        refused(Refusal::Reserved(3))
    );
    assert_eq!(
        space.give(YOU, &Want::Number(4), now),
        refused(Refusal::OutOfRange)
    );
    assert_eq!(
        space.give(YOU, &Want::Block(block(0, 1)), now),
        refused(Refusal::InUse(0))
    );
    assert_eq!(space.give(ME, &Want::Number(2), now), refused(Refusal::NoSpace));
    assert_eq!(
        space.give(YOU, &any(), now).unwrap().stored(),
        [grant(2, 0, YOU, 1)]
    );
    assert_eq!(
        space.give(YOU, &any(), now).unwrap().stored(),
        [grant(1, 0, YOU, 1)]
    );
}

#[test]
fn a_request_that_comes_again_gets_the_same_grants() {
    let (mut space, now) = (slash_24(), Instant::now());
    let request = Request { id: 1, want: any() };
    let first = space.answer(YOU, &request, now).stored();
    let again = space.answer(YOU, &request, now + Duration::from_secs(1)).stored();
    assert_eq!(first, again);
    let other = space.answer(YOU, &Request { id: 2, want: any() }, now).stored();
    assert_ne!(first.outcome, other.outcome);
    // A number is the same for ever, even when the answers are forgotten.
    for id in 3..5 {
        let reply = space.answer(
            YOU,
            &Request {
                id,
                want: Want::Number(9),
            },
            now,
        );
        assert_eq!(reply.to_store(), [grant(9, 0, YOU, 1)]);
    }
    let elsewhere = space.answer(
        THEM,
        &Request {
            id: 1,
            want: Want::Number(9),
        },
        now,
    );
    assert_eq!(elsewhere.to_store(), []);
    assert_eq!(elsewhere.stored().outcome, Outcome::Elsewhere(vec![YOU]));
}

#[test]
fn of_a_block_each_owner_gives_its_part() {
    let (mut mine, now) = (Space::new(ME, block(0, 3), ME, 0), Instant::now());
    let _ = mine.give(YOU, &Want::Block(block(4, 1)), now).unwrap();
    let given = mine.give(THEM, &Want::Block(block(4, 2)), now).unwrap().stored();
    assert_eq!(given, [grant(6, 1, THEM, 1)]);
    let mut theirs = Space::new(THEM, block(0, 3), ME, 0);
    for grant in mine.grants() {
        let _ = theirs.merge(grant);
    }
    let ask = crate::ClaimError::OwnedBy { owners: vec![YOU] };
    assert_eq!(theirs.claim_block(block(4, 2)), Err(ask));
    assert_eq!(theirs.claim_block(block(6, 1)), Ok(()));
}

#[test]
fn hints_decide_who_is_asked_first_and_no_more() {
    let (mut space, now) = (Space::new(ME, block(0, 3), ME, 0), Instant::now());
    let _ = space.give(YOU, &Want::Block(block(4, 2)), now).unwrap();
    let _ = space.give(THEM, &Want::Block(block(2, 1)), now).unwrap();
    assert_eq!([space.claim(0), space.claim(1)], [Ok(()), Ok(())]);
    let asks = |space: &mut Space<u8>| match space.allocate(None, now) {
        Err(crate::AllocateError::NoFreeOwned { ask, .. }) => ask,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        asks(&mut space),
        [YOU, THEM],
        "who owns more is likelier to have one"
    );
    space.hint(YOU, 0);
    assert_eq!(asks(&mut space), [THEM, YOU]);
    space.hint(THEM, 0);
    space.hint(YOU, 1_000);
    assert_eq!(asks(&mut space), [YOU, THEM]);
}

#[test]
fn without_a_hint_half_of_what_a_node_owns_is_taken_for_free() {
    let (mut space, now) = (Space::new(ME, block(0, 4), ME, 0), Instant::now());
    let _ = space.give(YOU, &Want::Block(block(8, 3)), now).unwrap();
    let _ = space.give(THEM, &Want::Block(block(4, 2)), now).unwrap();
    space.claim_block(block(0, 2)).unwrap();
    let first = |space: &mut Space<u8>| match space.allocate(None, now) {
        Err(crate::AllocateError::NoFreeOwned { ask, .. }) => ask[0],
        other => panic!("{other:?}"),
    };
    space.hint(THEM, 3);
    assert_eq!(first(&mut space), YOU, "4 of 8");
    space.hint(YOU, 2);
    assert_eq!(first(&mut space), THEM);
    // Where all that another owns is reserved there is nothing to ask for.
    space.reserve(4..=7);
    assert_eq!(first(&mut space), YOU);
    space.reserve(8..=15);
    let none = crate::AllocateError::Exhausted { quarantined: 0 };
    assert_eq!(space.allocate(None, now), Err(none));
}

#[test]
fn the_hints_of_strangers_are_bounded_and_change_nothing_for_those_that_are_known() {
    let (mut space, now) = (Space::new(0u16, block(0, 3), 0, 0), Instant::now());
    let _ = space.give(1, &Want::Block(block(4, 2)), now).unwrap();
    let _ = space.give(2, &Want::Block(block(2, 1)), now).unwrap();
    space.claim_block(block(0, 1)).unwrap();
    let first = |space: &mut Space<u16>| match space.allocate(None, now) {
        Err(crate::AllocateError::NoFreeOwned { ask, .. }) => ask[0],
        other => panic!("{other:?}"),
    };
    space.hint(1, 4);
    for stranger in 3..4098 {
        space.hint(stranger, 1);
    }
    space.hint(1, 0);
    assert_eq!(first(&mut space), 2);
    // Full: of whom nothing is known nothing is kept.
    space.hint(2, 0);
    assert_eq!(first(&mut space), 2);
}

#[test]
fn who_leaves_hands_over_all_but_what_is_in_use() {
    let mut space = slash_24();
    space.claim(7).unwrap();
    let given = space.hand_over(YOU);
    let count: u128 = given.to_store().iter().map(|grant| grant.block.count()).sum();
    assert_eq!(count, 255);
    assert_eq!((space.shares()[&ME], space.shares()[&YOU]), (1, 255));
    assert_eq!(space.hand_over(YOU).to_store(), []);
    assert_eq!(space.hand_over(ME).to_store(), []);
}
