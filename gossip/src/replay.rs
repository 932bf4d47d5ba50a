use std::collections::BTreeMap;

use weft_types::NodeId;

/// Refuses a packet that was taken before.
///
/// Each sender numbers its packets from one at each start (its session). Of the latest sessions the last 1,024
/// numbers are remembered: enough for a sender that talks to many others between two packets to us that
/// overtake one another.
#[derive(Debug)]
pub(crate) struct ReplayGuard {
    senders: BTreeMap<NodeId, [Option<Window>; 2]>,
    limit: usize,
}

const WORDS: usize = 16;
const SIZE: u64 = 64 * WORDS as u64;

#[derive(Debug)]
struct Window {
    session: u64,
    highest: u64,
    /// One bit for each number in `highest - SIZE + 1 ..= highest`, at the number modulo `SIZE`.
    seen: [u64; WORDS],
}

impl ReplayGuard {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            senders: BTreeMap::new(),
            limit,
        }
    }

    /// Whether this is the first time; `current` is the session the sender is known to be in. Its window is
    /// never given up for another's, else two old recordings would make room for a third.
    pub(crate) fn accept(&mut self, from: NodeId, session: u64, counter: u64, current: Option<u64>) -> bool {
        if !self.senders.contains_key(&from) && self.senders.len() >= self.limit {
            return false;
        }
        let windows = self.senders.entry(from).or_default();
        let known = windows
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|window| window.session == session));
        let index = known.unwrap_or_else(|| {
            let kept = |slot: &Option<Window>| {
                slot.as_ref()
                    .is_some_and(|window| Some(window.session) == current)
            };
            let index = windows
                .iter()
                .position(Option::is_none)
                .unwrap_or(usize::from(kept(&windows[0])));
            windows[index] = Some(Window {
                session,
                highest: 0,
                seen: [0; WORDS],
            });
            index
        });
        windows[index]
            .as_mut()
            .is_some_and(|window| window.accept(counter))
    }

    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.senders.remove(node);
    }
}

impl Window {
    fn accept(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            if counter - self.highest >= SIZE {
                self.seen = [0; WORDS];
            } else {
                for number in self.highest + 1..counter {
                    self.clear(number);
                }
            }
            self.highest = counter;
        } else if self.highest - counter >= SIZE || self.is_set(counter) {
            return false;
        }
        self.set(counter);
        true
    }

    fn set(&mut self, number: u64) {
        self.seen[(number % SIZE / 64) as usize] |= 1 << (number % 64);
    }

    fn clear(&mut self, number: u64) {
        self.seen[(number % SIZE / 64) as usize] &= !(1 << (number % 64));
    }

    fn is_set(&self, number: u64) -> bool {
        self.seen[(number % SIZE / 64) as usize] & (1 << (number % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId([1; 32]);

    #[test]
    fn two_old_recordings_do_not_make_room_for_a_third() {
        let mut guard = ReplayGuard::new(4);
        assert!(guard.accept(A, 30, 1, Some(30)));
        assert!(guard.accept(A, 10, 1, Some(30)));
        assert!(guard.accept(A, 20, 1, Some(30)));
        assert!(!guard.accept(A, 30, 1, Some(30)));
        assert!(guard.accept(A, 30, 2, Some(30)));
    }

    #[test]
    fn a_packet_may_be_a_thousand_late() {
        let mut guard = ReplayGuard::new(1);
        assert!(guard.accept(A, 1, 5_000, None));
        assert!(guard.accept(A, 1, 5_000 - 1_023, None));
        assert!(!guard.accept(A, 1, 5_000 - 1_024, None));
    }

    #[test]
    fn senders_are_bounded() {
        let mut guard = ReplayGuard::new(1);
        assert!(guard.accept(A, 1, 1, None));
        assert!(!guard.accept(NodeId([2; 32]), 1, 1, None));
        guard.forget(&A);
        assert!(guard.accept(NodeId([2; 32]), 1, 1, None));
    }

    proptest! {
        #[test]
        fn every_number_is_taken_at_most_once(numbers in prop::collection::vec(1_u64..3_000, 1..400)) {
            let mut guard = ReplayGuard::new(1);
            let mut taken = std::collections::BTreeSet::new();
            let mut highest = 0;
            for number in numbers {
                let accepted = guard.accept(A, 9, number, None);
                prop_assert!(!(accepted && taken.contains(&number)));
                // And nothing new is refused that is not too old.
                prop_assert!(accepted || taken.contains(&number) || number + SIZE <= highest);
                if accepted {
                    taken.insert(number);
                    highest = highest.max(number);
                }
            }
        }
    }
}
