use proptest::{prelude::*, test_runner::Config};

use crate::Block;
use crate::Want;

use super::world::{Crash, FIRST, Op, World};

pub(super) const ORDER: u8 = 4;

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![6 => Just(Crash::Never), 1 => Just(Crash::BeforeStore), 1 => Just(Crash::AfterStore)]
}

fn number() -> impl Strategy<Value = u128> {
    FIRST - 1..=FIRST + (1 << ORDER)
}

fn want() -> impl Strategy<Value = Want> {
    let block = (0..1u128 << ORDER, 1..=2u8)
        .prop_map(|(number, order)| Block::new(FIRST + (number >> order << order), order).unwrap());
    prop_oneof![
        4 => Just(Want::Any { within: None }),
        1 => number().prop_map(|first| Want::Any { within: Some(first..=first + 5) }),
        2 => number().prop_map(Want::Number),
        1 => block.prop_map(Want::Block),
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let node = || any::<usize>();
    prop_oneof![
        6 => (node(), crash()).prop_map(|(node, crash)| Op::Allocate { node, crash }),
        2 => (node(), number(), crash()).prop_map(|(node, number, crash)| Op::Claim { node, number, crash }),
        3 => (node(), any::<usize>()).prop_map(|(node, pick)| Op::Release { node, pick }),
        6 => (node(), node(), want()).prop_map(|(node, owner, want)| Op::Ask { node, owner, want }),
        14 => (any::<usize>(), prop::bool::weighted(0.2), crash())
            .prop_map(|(pick, repeat, crash)| Op::Deliver { pick, repeat, crash }),
        2 => any::<usize>().prop_map(|pick| Op::Lose { pick }),
        4 => (node(), node()).prop_map(|(from, to)| Op::Records { from, to }),
        1 => (node(), node(), crash()).prop_map(|(node, heir, crash)| Op::HandOver { node, heir, crash }),
        1 => node().prop_map(|node| Op::Obtain { node }),
        2 => node().prop_map(|node| Op::Stop { node }),
        1 => node().prop_map(|node| Op::Compact { node }),
        1 => any::<u8>().prop_map(|groups| Op::Part { groups }),
        1 => Just(Op::Part { groups: 0 }),
        1 => (1u64..40).prop_map(|secs| Op::Pass { secs }),
    ]
}

pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 0..80)
}

proptest! {
    #![proptest_config(Config { cases: 8 * Config::default().cases, ..Config::default() })]

    #[test]
    fn no_number_has_two_owners_and_none_is_lost(nodes in 2usize..6, ops in ops()) {
        World::new(nodes, ORDER, None).run(&ops).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(Config { cases: Config::default().cases / 2, ..Config::default() })]

    #[test]
    fn a_disk_that_was_rolled_back_is_harmless_once_the_others_are_heard(
        nodes in 2usize..5, ops in ops(), lost in ops(), node in any::<usize>(), more in ops(),
    ) {
        let world = World::new(nodes, ORDER, None);
        world.run_with_rollback(&ops, &lost, node, &more).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(Config { cases: Config::default().cases / 32, ..Config::default() })]

    #[test]
    fn the_same_holds_in_a_larger_world(ops in prop::collection::vec(op(), 200..400)) {
        World::new(8, 6, None).run(&ops).map_err(TestCaseError::fail)?;
    }
}
