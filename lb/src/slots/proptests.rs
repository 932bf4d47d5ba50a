use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn id(n: usize) -> EndpointId {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&(n as u64).to_be_bytes());
    EndpointId(id)
}

fn candidates(weights: &[u16]) -> Vec<Candidate> {
    let weight = |&weight| NonZeroU16::new(weight).unwrap();
    weights
        .iter()
        .map(weight)
        .enumerate()
        .map(|(n, weight)| Candidate {
            endpoint: id(n),
            weight,
        })
        .collect()
}

fn count(slots: &[EndpointId]) -> HashMap<EndpointId, usize> {
    let mut count = HashMap::new();
    slots
        .iter()
        .for_each(|&slot| *count.entry(slot).or_default() += 1);
    count
}

fn loaded(open: &[u8]) -> Loads {
    let mut loads = Loads::new();
    for (n, &open) in open.iter().enumerate() {
        (0..open).for_each(|_| loads.opened(id(n)));
    }
    loads
}

proptest! {
    #[test]
    fn round_robin_gives_each_one_slot(n in 0usize..300) {
        let slots = round_robin(&candidates(&vec![1; n]));
        prop_assert_eq!(slots.len(), n);
        prop_assert_eq!(count(&slots).len(), n);
    }

    #[test]
    fn weighted_shares_are_exact_up_to_the_limit(weights in prop::collection::vec(1u16..100, 1..10)) {
        let slots = weighted_round_robin(&candidates(&weights));
        let total: usize = weights.iter().map(|&w| usize::from(w)).sum();
        prop_assert_eq!(total % slots.len(), 0);
        let count = count(&slots);
        for (n, &weight) in weights.iter().enumerate() {
            prop_assert_eq!(count[&id(n)] * (total / slots.len()), usize::from(weight));
        }
    }

    #[test]
    fn weighted_slots_are_bounded_and_leave_nobody_out(weights in prop::collection::vec(1u16.., 1..200)) {
        let slots = weighted_round_robin(&candidates(&weights));
        prop_assert!(slots.len() <= LONGEST_WEIGHTED + weights.len());
        prop_assert_eq!(count(&slots).len(), weights.len());
    }

    #[test]
    fn least_connection_never_passes_over_a_less_loaded_one(
        backends in prop::collection::vec((0u8..20, 1u16..10), 1..40),
    ) {
        let (open, weights): (Vec<_>, Vec<_>) = backends.into_iter().unzip();
        let candidates = candidates(&weights);
        let mut loads = loaded(&open);
        for choice in loads.next_choices(&candidates) {
            let load = |c: &Candidate| (loads.open(c.endpoint) + 1) as f64 / f64::from(c.weight.get());
            let chosen = candidates.iter().find(|c| c.endpoint == choice).unwrap();
            prop_assert!(candidates.iter().all(|other| load(chosen) <= load(other) + 1e-9));
            loads.opened(choice);
        }
    }

    #[test]
    fn choices_laid_out_at_once_are_those_made_one_by_one(open in prop::collection::vec(0u8..20, 1..40)) {
        let candidates = candidates(&vec![1; open.len()]);
        let mut loads = loaded(&open);
        for choice in loads.next_choices(&candidates) {
            prop_assert_eq!(loads.next_choices(&candidates)[0], choice);
            loads.opened(choice);
        }
    }

    #[test]
    fn equal_loads_are_spread_as_by_round_robin(n in 1usize..=64, open in 0u8..20) {
        let slots = loaded(&vec![open; n]).next_choices(&candidates(&vec![1; n]));
        let count = count(&slots);
        prop_assert_eq!(count.len(), n);
        let (least, most) = (count.values().min().unwrap(), count.values().max().unwrap());
        prop_assert!(most - least <= 1, "{:?}", count);
    }

    #[test]
    fn an_idle_service_takes_turns(n in 1usize..20) {
        let candidates = candidates(&vec![1; n]);
        let mut loads = Loads::new();
        let mut chosen = Vec::new();
        for _ in 0..2 * n {
            let choice = loads.next_choices(&candidates)[0];
            loads.opened(choice);
            loads.closed(choice);
            chosen.push(choice);
        }
        prop_assert!(count(&chosen).values().all(|&count| count == 2), "{:?}", chosen);
    }

    #[test]
    fn the_same_history_gives_the_same_choices(history in prop::collection::vec((0usize..5, any::<bool>()), 0..100)) {
        let candidates = candidates(&[1, 2, 3, 4, 5]);
        let run = || {
            let mut loads = Loads::new();
            for &(n, opens) in &history {
                if opens { loads.opened(id(n)) } else { loads.closed(id(n)) }
            }
            loads.next_choices(&candidates)
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn weights_are_interleaved() {
    let slots = weighted_round_robin(&candidates(&[5, 1, 1]));
    let order: Vec<usize> = slots
        .iter()
        .map(|slot| (0..3).position(|n| id(n) == *slot).unwrap())
        .collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn weights_too_many_for_slots_keep_their_proportions() {
    for (weights, slots) in [
        ([3_000, 1_001], [767, 256]),
        ([60_000, 7], [1_023, 1]),
        ([1_000, 27], [997, 26]),
    ] {
        let count = count(&weighted_round_robin(&candidates(&weights)));
        assert_eq!([count[&id(0)], count[&id(1)]], slots, "{weights:?}");
    }
}

#[test]
fn least_connection_looks_ahead_by_whole_rounds_as_far_as_that_goes() {
    for (backends, slots) in [
        (0, 0),
        (1, 1),
        (2, 32),
        (3, 33),
        (20, 40),
        (33, 33),
        (64, 64),
        (65, 64),
    ] {
        let choices = Loads::new().next_choices(&candidates(&vec![1; backends]));
        assert_eq!(choices.len(), slots, "{backends}");
    }
}

#[test]
fn loads_of_those_that_are_gone_are_kept_while_something_is_open() {
    let mut loads = loaded(&[1, 1, 0, 0]);
    loads.opened(id(2));
    loads.closed(id(2));
    loads.opened(id(3));
    loads.closed(id(3));
    loads.retain(|endpoint| endpoint == id(0) || endpoint == id(2));
    let mut kept: Vec<_> = loads.loads.keys().copied().collect();
    kept.sort_unstable();
    assert_eq!(kept, [id(0), id(1), id(2)]);
    loads.closed(id(1));
    loads.retain(|endpoint| endpoint == id(0));
    assert_eq!((loads.loads.len(), loads.open(id(0))), (1, 1));
}

/// Hosts of several versions send a client to the same backend.
#[test]
fn maglev_is_the_same_on_every_host() {
    let table = maglev(&candidates(&[1, 1, 2]));
    let place = |slot: &EndpointId| (0..3).position(|n| id(n) == *slot).unwrap();
    let places: Vec<usize> = table.iter().map(place).collect();
    let first: Vec<usize> = places[..24].to_vec();
    let sum = places.iter().fold(0u64, |sum, place| {
        sum.wrapping_mul(1_000_003).wrapping_add(*place as u64 + 1)
    });
    assert_eq!(
        (first, sum),
        (
            vec![
                2, 2, 2, 0, 2, 2, 1, 1, 2, 2, 0, 1, 2, 0, 1, 1, 0, 2, 2, 1, 2, 2, 1, 0
            ],
            14_992_277_200_969_531_116
        )
    );
}

#[test]
fn maglev_shares_evenly_and_moves_few_when_a_backend_goes() {
    for n in [1usize, 2, 3, 10, 50] {
        let all = candidates(&vec![1; n]);
        let table = maglev(&all);
        assert_eq!(table.len(), MAGLEV_SHORT as usize);
        let fair = table.len() / n;
        for (_, share) in count(&table) {
            assert!((fair..=fair + 1).contains(&share), "{share} of {n}");
        }
        if n > 1 {
            let without: Vec<_> = all[1..].to_vec();
            let after = maglev(&without);
            let moved = table
                .iter()
                .zip(&after)
                .filter(|(before, after)| before != after)
                .count();
            // Those of the one that went, and few others.
            assert!(
                moved < fair + table.len() / 10,
                "{moved} of {} moved from {n}",
                table.len()
            );
        }
    }
    let weighted = count(&maglev(&candidates(&[3, 1])));
    assert!(
        weighted[&id(0)].abs_diff(3 * weighted[&id(1)]) <= 4,
        "{weighted:?}"
    );
    for (backends, slots) in [(100, MAGLEV_SHORT), (101, MAGLEV_LONG), (500, MAGLEV_LONG)] {
        let table = maglev(&candidates(&vec![1; backends]));
        assert_eq!((table.len(), count(&table).len()), (slots as usize, backends));
    }
}
