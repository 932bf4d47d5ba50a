use std::time::Instant;

use crate::{
    AllocateError, Block, ClaimError, Conflict, GiveError, Grant, MAX_VERSION, Merged, Refusal, Space, Want,
};

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 3;

fn block(first: u128, order: u8) -> Block {
    Block::new(first, order).unwrap()
}

fn grant(first: u128, order: u8, from: u8, to: u8, version: u64) -> Grant<u8> {
    Grant {
        block: block(first, order),
        from,
        to,
        version,
    }
}

/// Sixteen numbers, all A's at genesis, as `me` sees them.
fn sixteen(me: u8) -> Space<u8> {
    Space::new(me, block(0, 4), A, 0)
}

fn drain(space: &mut Space<u8>) -> Vec<u128> {
    let now = Instant::now();
    std::iter::from_fn(|| space.allocate(None, now).ok()).collect()
}

#[test]
fn two_grants_of_one_version_quarantine_what_both_cover_and_nothing_else() {
    // A's disk was copied, and each copy gave a part of the same numbers away.
    let (to_b, to_c) = (grant(0, 3, A, B, 1), grant(0, 2, A, C, 1));
    for (me, usable) in [(B, vec![4, 5, 6, 7]), (C, vec![])] {
        let mut space = sixteen(me);
        assert_eq!(space.merge(to_b), Merged::Applied);
        let conflict = Conflict::Fork {
            known: to_b,
            found: to_c,
        };
        assert_eq!(space.merge(to_c), Merged::Quarantined(conflict));
        assert_eq!(conflict.block(), block(0, 2));
        assert_eq!(space.merge(to_c), Merged::Unchanged, "it is reported once");
        assert_eq!(space.claim(1), Err(ClaimError::Quarantined { number: 1 }));
        assert_eq!(drain(&mut space), usable);
        assert!(space.is_quarantined(3) && !space.is_quarantined(4));
        // A start later it is the same.
        let mut again = sixteen(me);
        assert_eq!(again.load(space.grants(), []), []);
        assert_eq!(again.conflicts(), space.conflicts());
        assert_eq!(drain(&mut again), usable);
    }
}

#[test]
fn a_foreign_grant_of_what_i_own_takes_it_but_not_what_is_in_use() {
    let mut b = sixteen(B);
    let mine = grant(0, 3, A, B, 1);
    assert_eq!(b.merge(mine), Merged::Applied);
    assert_eq!(b.claim(1), Ok(()));
    let bad = grant(0, 1, C, A, 7);
    assert_eq!(
        b.merge(bad),
        Merged::Quarantined(Conflict::NotOwner {
            block: bad.block,
            grant: bad,
            owner: B
        })
    );
    assert_eq!(b.in_use().collect::<Vec<_>>(), [1..=1]);
    assert_eq!(drain(&mut b), [2, 3, 4, 5, 6, 7]);
    // Whoever owns it of record can put it right.
    assert_eq!(b.merge(grant(0, 1, A, B, 8)), Merged::Applied);
    assert_eq!(drain(&mut b), [0]);
}

#[test]
fn a_grant_by_someone_who_never_owned_it_cannot_be_used_by_who_got_it() {
    // Version 1 can only be by the owner at genesis.
    let bad = grant(8, 3, B, C, 1);
    let mut c = sixteen(C);
    assert_eq!(
        c.merge(bad),
        Merged::Quarantined(Conflict::NotOwner {
            block: bad.block,
            grant: bad,
            owner: A
        })
    );
    assert_eq!(c.merge(grant(0, 2, A, C, 1)), Merged::Applied);
    assert_eq!(drain(&mut c), [0, 1, 2, 3]);
    let all_mine = AllocateError::Exhausted { quarantined: 8 };
    assert_eq!(c.allocate(Some(8..=15), Instant::now()), Err(all_mine));
}

#[test]
fn a_link_that_comes_late_must_fit_the_chain() {
    let (first, bad) = (grant(0, 2, A, B, 1), grant(0, 3, A, C, 2));
    let conflict = Conflict::NotOwner {
        block: bad.block,
        grant: bad,
        owner: B,
    };
    let mut c = sixteen(C);
    assert_eq!(c.merge(bad), Merged::Applied, "nothing speaks against it yet");
    assert_eq!(c.merge(first), Merged::Quarantined(conflict));
    assert_eq!(drain(&mut c), []);
    // The evidence is covered by now and need not be stored, but the conflict is.
    let mut again = sixteen(C);
    assert_eq!(c.conflicts(), [conflict]);
    assert_eq!(again.load(c.grants(), c.conflicts()), []);
    assert_eq!(drain(&mut again), []);
    // It ends when the owner of record, made to by an operator, hands the block to who should have it.
    let _ = again.merge(grant(0, 3, C, B, 3));
    assert_eq!(again.merge(grant(0, 2, B, C, 4)), Merged::Applied);
    assert_eq!(drain(&mut again), [0, 1, 2, 3]);
}

#[test]
fn a_grant_of_disputed_numbers_does_not_launder_them() {
    const D: u8 = 4;
    let fork = [grant(0, 2, A, B, 1), grant(0, 2, A, C, 1)];
    // B did not know of the dispute, or does not care.
    let (passed_on, settled) = (grant(0, 2, B, D, 2), grant(0, 2, D, C, 3));
    let mut d = sixteen(D);
    for grant in fork.into_iter().chain([passed_on]) {
        let _ = d.merge(grant);
    }
    assert_eq!(d.owner_of(0), Some(D));
    assert_eq!(drain(&mut d), []);
    let suspicion = Conflict::NotOwner {
        block: block(0, 2),
        grant: passed_on,
        owner: C,
    };
    assert_eq!(d.conflicts(), [suspicion], "C may have some in use");

    let mut c = sixteen(C);
    for grant in fork.into_iter().chain([passed_on]) {
        let _ = c.merge(grant);
    }
    assert_eq!(drain(&mut c), []);
    assert_eq!(c.merge(settled), Merged::Applied);
    assert_eq!(drain(&mut c), [0, 1, 2, 3], "both claims have come to C");
}

#[test]
fn a_missing_link_is_no_conflict() {
    let mut c = sixteen(C);
    assert_eq!(c.merge(grant(0, 2, B, C, 3)), Merged::Applied);
    assert_eq!(c.merge(grant(0, 3, A, B, 2)), Merged::Applied);
    assert_eq!(drain(&mut c), [0, 1, 2, 3]);
}

#[test]
fn a_rolled_back_node_learns_what_it_gave() {
    let mut a = sixteen(A);
    let forgotten = grant(8, 3, A, B, 1);
    assert_eq!(a.merge(forgotten), Merged::Applied);
    assert_eq!(a.owner_of(8), Some(B));

    let mut a = sixteen(A);
    assert_eq!(a.claim(9), Ok(()));
    let conflict = Conflict::Forgotten {
        grant: forgotten,
        number: 9,
    };
    assert_eq!(a.merge(forgotten), Merged::Quarantined(conflict));
    assert_eq!(a.in_use().collect::<Vec<_>>(), [9..=9]);
    assert_eq!(drain(&mut a), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn quarantined_numbers_are_not_given_either() {
    let mut b = sixteen(B);
    let now = Instant::now();
    let _ = b.merge(grant(0, 3, A, B, 1));
    let _ = b.merge(grant(0, 2, A, C, 1));
    let quarantined = Err(GiveError::Refused(Refusal::Quarantined(1)));
    assert_eq!(b.give(A, &Want::Number(1), now), quarantined);
    let given = b.give(A, &Want::Any { within: None }, now).unwrap().stored();
    assert_eq!(given, [grant(6, 1, B, A, 2)]);
}

#[test]
fn what_was_quarantined_before_the_first_grant_is_not_given_after_a_start() {
    let mut a = sixteen(A);
    let conflict = Conflict::NotOwner {
        block: block(0, 2),
        grant: grant(0, 2, B, C, 1),
        owner: A,
    };
    assert_eq!(a.load([], [conflict]), []);
    let quarantined = Err(GiveError::Refused(Refusal::Quarantined(1)));
    assert_eq!(a.give(B, &Want::Number(1), Instant::now()), quarantined);
}

#[test]
fn who_has_no_part_in_a_dispute_neither_gives_nor_settles_it() {
    let mut a = sixteen(A);
    let now = Instant::now();
    let mine = a.give(C, &Want::Block(block(0, 1)), now).unwrap().stored();
    // B is the owner of record now, and C may have some in use.
    let bad = grant(0, 0, C, B, 1);
    assert!(matches!(a.merge(bad), Merged::Quarantined(_)));
    assert_eq!(a.owner_of(0), Some(B));
    let none = Err(GiveError::Refused(Refusal::NoSpace));
    assert_eq!(a.give(B, &Want::Number(0), now), none, "A gave B nothing");
    let owners = vec![B];
    assert_eq!(
        a.give(4, &Want::Number(0), now),
        Err(GiveError::Elsewhere { owners })
    );
    assert!(a.is_quarantined(0));
    // What A did give it gives again, whoever claims to have done so too.
    let also = grant(0, 1, 0, C, 1);
    assert!(matches!(a.merge(also), Merged::Quarantined(_)));
    let again = a.give(C, &Want::Number(1), now).unwrap().stored();
    assert_eq!(again, mine);
}

#[test]
fn a_version_beyond_the_last_of_an_epoch_is_never_made() {
    let mut a = sixteen(A);
    assert!(matches!(a.merge(grant(0, 2, B, A, 0)), Merged::Refused(_)));
    assert!(matches!(a.merge(grant(0, 2, B, B, 1)), Merged::Refused(_)));
    let _ = a.merge(grant(8, 2, A, B, 1));
    let _ = a.merge(grant(8, 2, B, A, MAX_VERSION));
    let spent = Err(GiveError::Refused(Refusal::Spent));
    assert_eq!(a.give(B, &Want::Number(8), Instant::now()), spent);
}

#[test]
fn a_grant_that_comes_late_is_by_the_owner_only_if_the_owner_of_then_made_it() {
    let mut space = sixteen(9);
    for grant in [grant(0, 2, A, B, 1), grant(0, 2, B, C, 2)] {
        assert!(space.is_by_owner(&grant));
        assert_eq!(space.merge(grant), Merged::Applied);
    }
    assert!(space.is_by_owner(&grant(0, 2, A, 4, 1)), "it contradicts itself");
    assert!(
        space.is_by_owner(&grant(0, 2, B, 4, 2)),
        "and so does who came next"
    );
    for liar in [C, 4, 9] {
        for to in [A, B, C, liar, 8] {
            assert!(!space.is_by_owner(&grant(0, 2, liar, to, 1)), "{liar} to {to}");
            assert!(!space.is_by_owner(&grant(0, 2, liar, to, 2)), "{liar} to {to}");
        }
    }
}

#[test]
fn who_gave_what_is_known_of_neighbours_as_long_as_it_was_the_same_node() {
    const D: u8 = 4;
    let by_two = [
        grant(0, 1, A, B, 1),
        grant(2, 1, A, C, 1),
        grant(0, 1, B, D, 2),
        grant(2, 1, C, D, 2),
        grant(0, 2, D, A, 3),
    ];
    let by_one = [
        grant(0, 2, A, B, 1),
        grant(0, 1, B, D, 2),
        grant(2, 1, B, D, 2),
        grant(0, 2, D, A, 3),
    ];
    let after = |grants: &[Grant<u8>]| {
        let mut space = sixteen(9);
        for grant in grants {
            assert!(space.is_by_owner(grant));
            assert_eq!(space.merge(*grant), Merged::Applied);
        }
        // Those that come late are by their owners still.
        for grant in grants {
            assert!(space.is_by_owner(grant), "{grant:?}");
        }
        space
    };
    after(&by_two);
    assert!(
        !after(&by_one).is_by_owner(&grant(2, 1, C, D, 2)),
        "C never owned it"
    );
}
