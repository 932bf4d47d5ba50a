//! Merging is a semilattice, whatever the grants: they need not even be honest.

use proptest::prelude::*;

use crate::{Block, Grant, Space, ledger::Ledger};

const UNIVERSE: u8 = 4;

pub(super) fn any_grant() -> impl Strategy<Value = Grant<u8>> {
    (0..1u128 << UNIVERSE, 0..=UNIVERSE, 0u8..4, 1u8..4, 1u64..6).prop_map(
        |(number, order, from, step, version)| {
            let first = number >> order << order;
            Grant {
                block: Block::new(first, order).unwrap(),
                from,
                to: (from + step) % 4,
                version,
            }
        },
    )
}

pub(super) fn any_grants() -> impl Strategy<Value = Vec<Grant<u8>>> {
    prop::collection::vec(any_grant(), 0..12)
}

fn painted(grants: impl IntoIterator<Item = Grant<u8>>, witness: Option<u8>) -> Ledger<u8> {
    let mut ledger = Ledger::new(universe(), 0);
    for grant in grants {
        ledger.paint(grant, witness);
    }
    ledger
}

fn universe() -> Block {
    Block::new(0, UNIVERSE).unwrap()
}

/// The newest grants of each number: all that nodes must agree on.
fn facts(ledger: &Ledger<u8>) -> Vec<Vec<Grant<u8>>> {
    (0..1 << UNIVERSE)
        .map(|n| ledger.at(n).unwrap().tips().to_vec())
        .collect()
}

/// The same merge, said number by number without any of the ledger's machinery.
fn facts_by_definition(grants: &[Grant<u8>]) -> Vec<Vec<Grant<u8>>> {
    let newest = |number| {
        let covering = grants.iter().filter(|grant| grant.block.contains(number));
        let version = covering.clone().map(|grant| grant.version).max();
        let mut tips: Vec<_> = covering
            .filter(|grant| Some(grant.version) == version)
            .copied()
            .collect();
        tips.sort_unstable();
        tips.dedup();
        tips
    };
    (0..1 << UNIVERSE).map(newest).collect()
}

/// Fails where the merge is not what it should be.
pub(super) fn check_merge(a: Vec<Grant<u8>>, b: Vec<Grant<u8>>, c: Vec<Grant<u8>>) -> Result<(), String> {
    let all = [a.clone(), b.clone(), c.clone()].concat();
    let expected = facts_by_definition(&all);
    let check = |what: &str, ledger: Ledger<u8>| match facts(&ledger) == expected {
        true => Ok(()),
        false => Err(format!("{what}: {:?} and not {expected:?}", facts(&ledger))),
    };
    check("in order", painted(all.clone(), None))?;
    check(
        "commuted",
        painted([c.clone(), b.clone(), a.clone()].concat(), Some(1)),
    )?;
    check("repeated", painted([all.clone(), all.clone()].concat(), Some(2)))?;
    // Merging what two nodes kept is merging what they were told.
    let (ab, bc) = (
        painted([a.clone(), b.clone()].concat(), None),
        painted([b, c.clone()].concat(), None),
    );
    check(
        "associated to the left",
        painted(ab.grants().into_iter().chain(c), None),
    )?;
    check(
        "associated to the right",
        painted(a.into_iter().chain(bc.grants()), None),
    )
}

proptest! {
    #[test]
    fn merge_is_commutative_associative_and_idempotent(
        a in any_grants(), b in any_grants(), c in any_grants(),
    ) {
        check_merge(a, b, c).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn what_is_kept_is_as_small_as_it_can_be(grants in any_grants()) {
        let ledger = painted(grants, None);
        let kept = ledger.grants();
        for grant in &kept {
            let without = painted(kept.iter().filter(|other| *other != grant).copied(), None);
            prop_assert_ne!(facts(&without), facts(&ledger), "{:?} is kept for nothing", grant);
        }
        let segments = ledger.over(universe().range()).count();
        let bound = 2 * (kept.len() + ledger.conflicts().len()) + 1;
        prop_assert!(segments <= bound, "{} segments for {:?}", segments, kept);
    }

    #[test]
    fn a_second_merge_changes_nothing(grants in any_grants()) {
        let mut space = Space::new(1, universe(), 0, 0);
        for grant in grants {
            let _ = space.merge(grant);
            let (before, own) = (space.grants(), space.own.clone());
            let again = space.merge(grant);
            prop_assert_eq!(again, crate::Merged::Unchanged);
            prop_assert_eq!((before, own), (space.grants(), space.own.clone()));
        }
    }

    #[test]
    fn a_bad_grant_touches_its_own_block_only(me in 0..4u8, grants in any_grants(), bad in any_grant()) {
        let mut space = Space::new(me, universe(), 0, 0);
        for grant in grants {
            let _ = space.merge(grant);
            check_own(&space);
        }
        let before = space.clone();
        let mut touched = vec![bad.block];
        if let crate::Merged::Quarantined(conflict) = space.merge(bad) {
            touched.push(conflict.block());
        }
        for n in (0..1 << UNIVERSE).filter(|n| !touched.iter().any(|block| block.contains(*n))) {
            prop_assert_eq!(space.owner_of(n), before.owner_of(n));
            prop_assert_eq!(space.is_quarantined(n), before.is_quarantined(n));
            prop_assert_eq!(space.own.contains(n), before.own.contains(n));
        }
        check_own(&space);
    }
}

/// What a node may hand out is what it owns and nobody disputes.
fn check_own(space: &Space<u8>) {
    for n in 0..1 << UNIVERSE {
        let mine = space.owner_of(n) == Some(space.me) && !space.is_quarantined(n);
        assert_eq!(space.own.contains(n), mine, "{n}");
    }
}

/// Found by the property above: the smaller of two blocks was quarantined, the larger one
/// could still be handed out from.
#[test]
fn late_evidence_against_two_grants_quarantines_the_larger_block_too() {
    let grant = |order, from, to, version| Grant {
        block: Block::new(0, order).unwrap(),
        from,
        to,
        version,
    };
    let mut space = Space::new(3, universe(), 2, 0);
    for grant in [grant(0, 2, 3, 5), grant(2, 2, 3, 5), grant(0, 1, 0, 4)] {
        let _ = space.merge(grant);
        check_own(&space);
    }
    assert!((0..4).all(|n| space.is_quarantined(n)));
}
