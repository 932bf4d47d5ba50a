//! What is remembered of released numbers, held against a map of every number.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use crate::released::Released;

const NUMBERS: u128 = 24;

#[derive(Debug, Clone)]
enum Op {
    Release(u128, u128),
    Use(u128, u128),
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..NUMBERS, 0..8u128).prop_map(|(first, more)| (first, (first + more).min(NUMBERS - 1)));
    prop_oneof![
        2 => range.clone().prop_map(|(first, last)| Op::Release(first, last)),
        1 => range.prop_map(|(first, last)| Op::Use(first, last)),
    ]
}

proptest! {
    #[test]
    fn what_was_released_is_known_number_by_number(ops in prop::collection::vec(op(), 0..24)) {
        let start = Instant::now();
        let at = |step: u64| start + Duration::from_secs(step);
        let (mut released, mut model) = (Released::default(), BTreeMap::new());
        for (step, op) in (0..).zip(ops) {
            match op {
                Op::Release(first, last) => {
                    released.insert(first, last, at(step));
                    model.extend((first..=last).map(|number| (number, at(step))));
                }
                Op::Use(first, last) => {
                    released.remove(first, last);
                    model.retain(|number, _| *number < first || *number > last);
                }
            }
            let runs: Vec<_> = released.oldest_first().collect();
            prop_assert!(runs.is_sorted_by_key(|(.., at)| *at), "{:?}", runs);
            let known: Vec<_> = runs
                .iter()
                .flat_map(|(first, last, at)| (*first..=*last).map(|number| (number, *at)))
                .collect();
            prop_assert_eq!(known.len(), model.len(), "no number is in two runs");
            prop_assert_eq!(known.into_iter().collect::<BTreeMap<_, _>>(), model.clone());
            for number in 0..NUMBERS {
                let next = released.next(number).map(|(first, last)| (first.max(number), last));
                let expected = model.range(number..).next().map(|(number, _)| *number);
                prop_assert_eq!(next.map(|(first, _)| first), expected);
                prop_assert!(next.is_none_or(|(first, last)| (first..=last).all(|n| model.contains_key(&n))));
                let resting = released.resting(Duration::from_secs(3), at(step));
                let rests = |at_least: &Instant| at(step).duration_since(*at_least) < Duration::from_secs(3);
                prop_assert_eq!(resting.contains(number), model.get(&number).is_some_and(rests));
            }
        }
    }
}
