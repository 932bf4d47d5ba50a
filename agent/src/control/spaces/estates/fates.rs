//! Nodes come, leave, restart, die and are removed, in any order: whoever is there in the end knows who owns what, and gets its share.

use std::time::Duration;

use rand::{
    RngExt as _, SeedableRng as _,
    seq::{IndexedRandom as _, IteratorRandom as _},
};
use rand_chacha::ChaCha8Rng;
use weft_types::NodeId;

use super::tests::{FORCE, connect};
use crate::{
    api::types::NetworkCreateRequest,
    control::{Command, records::SpaceKey, world::World},
};

/// As many things happen.
const STEPS: usize = 25;
/// One node took the same block over from two others, and who joined later never learnt who owned it.
const FOUND: [u64; 2] = [6, 89];
/// As many others are tried each time.
const NEW: u64 = 10;

struct Fates {
    world: World,
    rng: ChaCha8Rng,
    here: Vec<usize>,
    log: Vec<String>,
}

impl Fates {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::of(4);
        let mut network = NetworkCreateRequest::new("app");
        network.subnets = vec!["10.9.0.0/24".parse().unwrap()];
        world.done(rng.random_range(0..4), |to| Command::NetworkCreate(network, to));
        world.pass(Duration::from_secs(3));
        Self {
            world,
            rng,
            here: (0..4).collect(),
            log: vec![format!("FATES_SEED={seed}")],
        }
    }

    fn pass(&mut self, at_most: Duration) {
        let millis = self.rng.random_range(0..at_most.as_millis() as u64);
        self.world.pass(Duration::from_millis(millis));
    }

    fn one(&mut self) -> usize {
        *self.here.choose(&mut self.rng).expect("there are always four")
    }

    fn goes(&mut self, node: usize) {
        self.world.stop(node);
        self.here.retain(|at| *at != node);
    }

    fn another_comes(&mut self) {
        let via = self.one();
        self.here.push(self.world.join(via, None).unwrap());
    }

    fn step(&mut self, number: usize) {
        let node = self.one();
        match self.rng.random_range(0..9) {
            0..5 => {
                self.log.push(format!("{node} takes an address"));
                connect(&mut self.world, node, &format!("e{number}"));
            }
            5 => {
                self.log.push(format!("{node} restarts"));
                self.world.restart(node);
            }
            6 => {
                self.log.push(format!("{node} leaves"));
                self.world.done(node, Command::Leave);
                self.pass(Duration::from_secs(3));
                self.goes(node);
                self.another_comes();
            }
            _ => {
                let others = self.here.iter().copied().filter(|other| *other != node);
                let other = others.choose(&mut self.rng).expect("there are always four");
                self.log.push(format!("{node} dies, and {other} removes it"));
                self.goes(node);
                self.pass(Duration::from_secs(20));
                let name = format!("h{}", node + 1);
                self.world.done(other, |to| Command::NodeRemove(name, FORCE, to));
                self.pass(Duration::from_secs(3));
                self.another_comes();
            }
        }
        self.pass(Duration::from_secs(6));
    }

    /// Who owns what, as a node sees it, however the blocks are cut.
    fn owners(&self, node: usize) -> Vec<(SpaceKey, u128, NodeId)> {
        let mut borders = Vec::new();
        for (key, space) in &self.world.nodes[node].control.spaces.spaces {
            for (range, owner) in space.owners() {
                match borders.last() {
                    Some((of, _, before)) if (of, before) == (key, &owner) => {}
                    _ => borders.push((*key, *range.start(), owner)),
                }
            }
        }
        borders
    }

    fn end(mut self) {
        self.world.pass(Duration::from_secs(60));
        let log = self.log.join("\n");
        let first = self.owners(self.here[0]);
        for node in &self.here {
            let control = &self.world.nodes[*node].control;
            let open: Vec<_> = control.estate_problems().collect();
            assert!(open.is_empty(), "{node}: {open:?}\n{log}");
            assert_eq!(self.owners(*node), first, "{node} and {}\n{log}", self.here[0]);
        }
        for node in self.here {
            let last = connect(&mut self.world, node, &format!("last{node}"));
            assert!(last.is_some(), "{node} gets no address\n{log}");
        }
    }
}

#[test]
fn whoever_comes_and_goes_all_know_who_owns_what() {
    let given = std::env::var("FATES_SEED").ok();
    let seeds: Vec<u64> = match given {
        Some(seed) => vec![seed.parse().expect("FATES_SEED is a number")],
        None => FOUND
            .into_iter()
            .chain((0..NEW).map(|_| rand::random()))
            .collect(),
    };
    for seed in seeds {
        let mut fates = Fates::new(seed);
        (0..STEPS).for_each(|number| fates.step(number));
        fates.end();
    }
}
