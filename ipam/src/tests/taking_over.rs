//! What a removed node owned is taken over by one of the others.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use crate::{Block, DEFAULT_REST, Grant, Merged, Space, Want};

const NODES: u8 = 4;
const REMOVED: u8 = NODES;

fn universe() -> Block {
    Block::new(0, 5).unwrap()
}

/// What a node knows, on its disk and in memory.
struct Node {
    space: Space<u8>,
    grants: BTreeSet<Grant<u8>>,
}

impl Node {
    fn new(me: u8) -> Self {
        Self {
            space: Space::new(me, universe(), REMOVED, u64::from(me)),
            grants: BTreeSet::new(),
        }
    }

    fn learn(&mut self, grants: impl IntoIterator<Item = Grant<u8>>) {
        for grant in grants {
            self.grants.insert(grant);
            assert!(!matches!(self.space.merge(grant), Merged::Quarantined(_)));
        }
    }

    /// What it says of the removed node.
    fn says(&self) -> Vec<u128> {
        let estate = self.space.owners().filter(|(_, owner)| *owner == REMOVED);
        estate.flat_map(|(range, _)| range).collect()
    }

    fn owns(&self) -> Vec<u128> {
        let me = self.space.me;
        let own = self.space.owners().filter(|(_, owner)| *owner == me);
        own.flat_map(|(range, _)| range).collect()
    }
}

/// Node `from` gives some to `to`, and those in `told` hear of it.
#[derive(Debug, Clone)]
struct Gift {
    from: u8,
    to: u8,
    told: u8,
}

fn gifts() -> impl Strategy<Value = Vec<Gift>> {
    let gift = (0..=NODES, 1..=NODES, any::<u8>()).prop_map(|(from, step, told)| Gift {
        from,
        to: (from + step) % (NODES + 1),
        told,
    });
    prop::collection::vec(gift, 0..12)
}

/// Whether somebody else owned what the first node took over when it had the word of `careful` others.
fn takes_what_is_anothers(gifts: &[Gift], meetings: &[(u8, u8)], careful: u8) -> bool {
    let now = Instant::now();
    let mut nodes: Vec<Node> = (0..=NODES).map(Node::new).collect();
    for gift in gifts {
        let Ok(given) = nodes[usize::from(gift.from)]
            .space
            .give(gift.to, &Want::Any { within: None }, now)
        else {
            continue;
        };
        let given = given.stored();
        // Who gives and who receives know of it; of the others some.
        for node in 0..=NODES {
            if [gift.from, gift.to].contains(&node) || gift.told >> node & 1 == 1 {
                nodes[usize::from(node)].learn(given.iter().copied());
            }
        }
    }
    nodes.pop();
    // From here on nobody hears the removed node, and the others tell each other what they know.
    let all = (0..NODES).flat_map(|one| (0..NODES).map(move |other| (one, other)));
    for (one, other) in meetings.iter().copied().chain(all.clone()).chain(all) {
        let agree = (1..=careful).all(|node| nodes[usize::from(node)].says() == nodes[0].says());
        if agree {
            let taken = nodes[0].space.take_over(REMOVED, now).stored();
            let is_anothers = |number| nodes[1..].iter().any(|node| node.owns().contains(&number));
            let taken = taken.iter().flat_map(|grant| grant.block.range());
            return taken.into_iter().any(is_anothers);
        }
        let known = nodes[usize::from(one)].grants.clone();
        nodes[usize::from(other)].learn(known);
    }
    panic!("they never agreed");
}

fn meetings() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0..NODES, 0..NODES), 0..6)
}

proptest! {
    #[test]
    fn with_the_word_of_all_nothing_is_taken_that_is_anothers(gifts in gifts(), meetings in meetings()) {
        prop_assert!(!takes_what_is_anothers(&gifts, &meetings, NODES - 1));
    }
}

#[test]
fn with_the_word_of_all_but_one_something_may_be_anothers() {
    // The third node was given half, and told nobody.
    let gift = Gift {
        from: REMOVED,
        to: NODES - 1,
        told: 0,
    };
    assert!(takes_what_is_anothers(&[gift], &[], NODES - 2));
}

#[test]
fn what_is_taken_over_outranks_what_the_removed_node_gave_unseen_and_rests_first() {
    let begin = Instant::now();
    let mut heir = Node::new(0);
    heir.space.reserve(0..=0);
    let taken = heir.space.take_over(REMOVED, begin).stored();
    assert!(taken.iter().all(Grant::is_taken_over));
    assert_eq!(heir.owns().len(), 32);
    let late = Grant {
        block: Block::new(8, 2).unwrap(),
        from: REMOVED,
        to: 1,
        version: 7,
    };
    assert_eq!(heir.space.merge(late), Merged::Unchanged);
    // All of it may have been in use a moment ago; nobody else has any, so it is handed out all the same.
    assert!(heir.space.allocate(None, begin).is_ok());
    let mut other = Node::new(1);
    other.learn(taken);
    assert_eq!(other.space.owner_of(9), Some(0));
    // The rest of the epoch is the new owner's.
    let given = heir.space.give(1, &Want::Number(20), begin).unwrap().stored();
    assert!(given.iter().all(|grant| grant.version == (1 << 48) + 1));
    assert!(!given.iter().any(Grant::is_taken_over));
    assert!(
        heir.space
            .allocate(None, begin + DEFAULT_REST + Duration::from_secs(1))
            .is_ok()
    );
    assert_eq!(heir.space.take_over(REMOVED, begin).stored(), []);
    assert_eq!(
        heir.space.take_over(0, begin).stored(),
        [],
        "nobody is its own heir"
    );
    // Taken over once more, from who had taken it over.
    let again = other.space.take_over(0, begin).stored();
    assert!(again.iter().all(|grant| grant.version == 2 << 48));
}
