use std::time::{Duration, Instant};

use crate::{Block, Space, Want};

/// An IPv6 subnet's worth of numbers, with the network address and the gateway reserved.
fn slash_64() -> Space<u8> {
    let mut space = Space::new(1, Block::new(0xfd00 << 112, 64).unwrap(), 1, 12345);
    space.reserve(0xfd00 << 112..=(0xfd00 << 112) + 1);
    space
}

#[test]
fn a_vast_space_costs_what_is_in_it() {
    let (mut space, now) = (slash_64(), Instant::now());
    assert_eq!(space.free_owned(), (1 << 64) - 2);
    for node in 2..40 {
        let given = space.give(node, &Want::Any { within: None }, now).unwrap();
        assert_eq!(given.to_store().len(), 1, "one block is half of it");
    }
    assert_eq!(space.shares()[&2], 1 << 63);
    for _ in 0..10_000 {
        space.allocate(None, now).unwrap();
    }
    assert_eq!(space.in_use().count(), 1);
    // Containers come and go: what is remembered of those that went has a bound.
    for step in 0..20_000 {
        let now = now + Duration::from_millis(step);
        let number = space.allocate(None, now).unwrap();
        if step % 2 == 0 {
            space.release(number, now);
        }
    }
    assert_eq!(space.released.oldest_first().count(), 4096);
}

/// Run in release mode with `--ignored --nocapture` for the figures in docs/algorithms/addresses.md.
#[test]
#[ignore = "prints figures rather than checking them"]
fn figures_of_a_million_allocations() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
    };
    for (what, every) in [("one after another", 0), ("every second released", 2)] {
        let (mut space, start, before) = (slash_64(), Instant::now(), resident());
        for step in 1..=1_000_000u64 {
            let number = space.allocate(None, start).unwrap();
            if every != 0 && step % every == 0 {
                space.release(number, start);
            }
        }
        let (each, runs) = (start.elapsed() / 1_000_000, space.in_use().count());
        println!(
            "{what}: {each:?} each, {runs} runs, {} kB",
            resident().saturating_sub(before)
        );
        let start = Instant::now();
        space
            .give(2, &Want::Any { within: None }, start)
            .unwrap()
            .stored();
        println!("then giving half away: {:?}", start.elapsed());
    }
}
