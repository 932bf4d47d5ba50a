//! Tests of the tests: each mistake, planted on purpose, must be found.

use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner},
};

use crate::faults::{self, Fault};

use super::{
    merge, model,
    world::{Slip, World},
};

/// The same cases each time, so that what is found once is found always.
fn runner() -> TestRunner {
    let config = Config {
        cases: 3000,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[5; 32]))
}

fn found_by_the_model(slip: Option<Slip>) -> String {
    let found = runner().run(&(2usize..6, model::ops()), |(nodes, ops)| {
        World::new(nodes, model::ORDER, slip)
            .run(&ops)
            .map_err(TestCaseError::fail)
    });
    match found {
        Err(TestError::Fail(reason, _)) => reason.to_string(),
        other => panic!("not found: {other:?}"),
    }
}

#[test]
fn the_model_finds_a_planted_mistake_of_the_space() {
    for fault in [
        Fault::LastMergeWins,
        Fault::GiveUnowned,
        Fault::GiveInUse,
        Fault::KeepGiven,
        Fault::VersionOfBlockOnly,
    ] {
        println!("{fault:?}: {}", faults::with(fault, || found_by_the_model(None)));
    }
}

#[test]
fn the_model_finds_a_mistake_of_the_caller() {
    for slip in [
        Slip::GiveUnstored,
        Slip::SendThenStore,
        Slip::MergeUnstored,
        Slip::UseThenStore,
        Slip::NoRestore,
    ] {
        println!("{slip:?}: {}", found_by_the_model(Some(slip)));
    }
}

#[test]
fn the_merge_properties_find_a_planted_mistake() {
    for fault in [Fault::EqualVersionWins, Fault::LastMergeWins] {
        let grants = || merge::any_grants();
        let found = faults::with(fault, || {
            runner().run(&(grants(), grants(), grants()), |(a, b, c)| {
                merge::check_merge(a, b, c).map_err(TestCaseError::fail)
            })
        });
        assert!(
            matches!(found, Err(TestError::Fail(..))),
            "{fault:?} was not found"
        );
    }
}
