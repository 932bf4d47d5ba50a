//! A change costs what it changes, whatever else there is: counted, not timed.

use super::{super::work::looks, measured::CHANGES, *};

/// What is looked at for each kind of change.
fn costs(large: &mut Large) -> Vec<(&'static str, u64)> {
    let mut costs = Vec::new();
    for (name, act) in CHANGES {
        for round in 0..2 {
            let before = looks();
            act(large, round);
            let state = large.state();
            costs.push((name, looks() - before));
            large.control.assert_derived(&state);
        }
    }
    costs
}

fn assert_same(mut few: Large, mut many: Large) {
    for ((name, of_few), (_, of_many)) in costs(&mut few).into_iter().zip(costs(&mut many)) {
        assert!(of_few > 0, "{name}: nothing is counted");
        assert!(
            of_many <= of_few + of_few / 10,
            "{name}: {of_few} looks where there is little, {of_many} where there is more"
        );
    }
}

#[test]
fn a_change_costs_the_same_whatever_other_services_there_are() {
    assert_same(Large::new(1, 1, 100, 3), Large::new(1, 1, 1_000, 3));
}

#[test]
fn a_change_costs_the_same_whatever_other_networks_there_are() {
    assert_same(Large::new(10, 2, 3, 3), Large::new(100, 2, 3, 3));
}
