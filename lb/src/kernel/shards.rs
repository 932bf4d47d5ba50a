//! The slots of a table's services, and which numbers are whose.
//!
//! Services share maps, as the kernel goes through all maps of a table whenever one is added. But it also goes through all
//! elements of a map whenever a rule names it, and through all rules that name a map for each element that is added. So a
//! map is for so many services and not for all.

use std::time::Instant;

use weft_netlink::nft::{NftError, Table, Transaction};

use super::{
    adopt::Spare,
    batch::Batch,
    program::{Mark, Range, Slots, add_slots, add_slots_map, delete_slots, sum},
    ranges::Ranges,
};

/// No more services have their slots in one map,
const SERVICES: usize = 64;
/// and no others when there are so many slots.
const SLOTS: u32 = 1024;

#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    /// Slots that no rule leads to any more. They stay until something else is written: a packet may be on its way there.
    spare: Vec<Spare>,
}

/// Two maps, for IPv4 and IPv6.
#[derive(Debug)]
struct Shard {
    free: [Ranges; 2],
    services: usize,
    slots: u32,
    is_there: bool,
}

impl Shard {
    fn new() -> Self {
        Self {
            free: [Ranges::new(u32::MAX), Ranges::new(u32::MAX)],
            services: 0,
            slots: 0,
            is_there: false,
        }
    }
}

impl Shards {
    pub(super) fn new() -> Self {
        Self {
            shards: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Takes the slots of a service for its own that was read back. Not if they are another's too.
    pub(super) fn claim(&mut self, mark: &Mark) -> bool {
        if mark.slots() == 0 {
            return true;
        }
        let shard = self.found(mark.shard);
        let ranges = shard.free.iter_mut().zip(&mark.ranges);
        let claimed = ranges.fold(true, |all, (free, range)| {
            free.claim(range.first, range.len) && all
        });
        shard.services += 1;
        shard.slots += mark.slots();
        claimed
    }

    /// Takes note of slots that are nobody's.
    pub(super) fn claim_spare(&mut self, spare: Spare) {
        let shard = self.found(spare.shard);
        if shard.free[usize::from(spare.ipv6)].claim(spare.range.first, spare.range.len) {
            self.spare.push(spare);
        }
    }

    /// Adds slots at numbers of their own, which `mark` then says. Those that it said before are spare.
    pub(super) fn place(
        &mut self,
        change: &mut Transaction,
        table: &Table,
        slots: &Slots,
        mark: &mut Mark,
        now: Instant,
    ) {
        let had_slots = mark.slots() > 0;
        let earlier = mark.shard;
        self.give_up(mark);
        let both = [slots.in_map(false), slots.in_map(true)];
        mark.sum = sum(both.iter().copied().flatten());
        mark.ranges = [Range::default(); 2];
        if both.iter().all(|slots| slots.is_empty()) {
            return;
        }
        // It stays where it was, if it can.
        mark.shard = match had_slots {
            true => earlier,
            false => self.with_room(),
        };
        let shard = self.shard(mark.shard);
        if !std::mem::replace(&mut shard.is_there, true) {
            add_slots_map(change, table, mark.shard);
        }
        for ((ipv6, slots), range) in [false, true].into_iter().zip(both).zip(&mut mark.ranges) {
            let len = slots.len() as u32;
            let first = shard.free[usize::from(ipv6)].take(len, now);
            let first = first.expect("a number for each slot, of four thousand million");
            *range = Range { first, len };
            add_slots(change, table, mark.shard, ipv6, first, slots);
        }
        shard.services += 1;
        shard.slots += mark.slots();
    }

    /// The slots of a service that has others now, or is gone, are spare.
    pub(super) fn give_up(&mut self, mark: &Mark) {
        if mark.slots() == 0 {
            return;
        }
        let shard = self.shard(mark.shard);
        shard.services = shard.services.saturating_sub(1);
        shard.slots = shard.slots.saturating_sub(mark.slots());
        let ranges = [false, true].into_iter().zip(mark.ranges);
        self.spare.extend(
            ranges
                .filter(|(_, range)| range.len > 0)
                .map(|(ipv6, range)| Spare {
                    shard: mark.shard,
                    ipv6,
                    range,
                }),
        );
    }

    /// What is spare before a change begins.
    pub(super) fn take_spare(&mut self) -> Vec<Spare> {
        std::mem::take(&mut self.spare)
    }

    /// Deletes what was spare before a change, or keeps it if nothing is to be written.
    pub(super) fn clear(
        &mut self,
        batch: &mut Batch<'_>,
        table: &Table,
        spare: Vec<Spare>,
        is_written: bool,
        now: Instant,
    ) -> Result<(), NftError> {
        if !is_written {
            self.spare.extend(spare);
            return Ok(());
        }
        for Spare { shard, ipv6, range } in spare {
            let mut change = Transaction::new();
            delete_slots(&mut change, table, shard, ipv6, range);
            batch.add(change)?;
            self.shard(shard).free[usize::from(ipv6)].give(range.first, range.len, now);
        }
        Ok(())
    }

    fn with_room(&self) -> u16 {
        let has_room = |shard: &Shard| shard.services < SERVICES && shard.slots < SLOTS;
        let found = self.shards.iter().position(has_room);
        found.unwrap_or(self.shards.len()) as u16
    }

    /// One that was read back.
    fn found(&mut self, number: u16) -> &mut Shard {
        let shard = self.shard(number);
        shard.is_there = true;
        shard
    }

    fn shard(&mut self, number: u16) -> &mut Shard {
        let number = usize::from(number);
        while self.shards.len() <= number {
            self.shards.push(Shard::new());
        }
        &mut self.shards[number]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weft_netlink::nft::Family;

    use super::{super::program::Side, *};
    use crate::{Loads, PortMap, Scheduler, Service, kernel::tests::bed};

    fn slots(backends: u8) -> Slots {
        let mut service: Service = bed::service(Scheduler::RoundRobin);
        service.ports.push(PortMap::tcp(80, 80));
        service.backends = (0..backends).map(bed::backend).collect();
        Slots::of(&service, &Loads::new(), 0, Side::Client)
    }

    fn placed(shards: &mut Shards, slots: &Slots, mark: &mut Mark) -> String {
        let (mut change, table) = (Transaction::new(), Table::new(Family::Inet, "t"));
        shards.place(&mut change, &table, slots, mark, Instant::now());
        change.to_string()
    }

    #[test]
    fn services_share_maps_and_no_number() {
        let (mut shards, slots) = (Shards::new(), slots(3));
        let mut used = BTreeSet::new();
        for n in 0..SERVICES + 1 {
            let mut mark = Mark::default();
            let text = placed(&mut shards, &slots, &mut mark);
            assert_eq!(text.contains("add set"), n % SERVICES == 0, "{text}");
            assert_eq!(usize::from(mark.shard), n / SERVICES);
            for (ipv6, Range { first, len }) in [false, true].into_iter().zip(mark.ranges) {
                assert_eq!(len, 3);
                assert!((first..first + len).all(|number| used.insert((mark.shard, ipv6, number))));
            }
        }
    }

    #[test]
    fn new_slots_get_other_numbers_and_the_old_ones_are_spare() {
        let mut shards = Shards::new();
        let mut mark = Mark::default();
        placed(&mut shards, &slots(2), &mut mark);
        let before = mark.clone();
        assert!(shards.take_spare().is_empty());
        placed(&mut shards, &slots(3), &mut mark);
        assert_eq!(mark.ranges[0], Range { first: 2, len: 3 });
        let spare: Vec<Range> = shards.take_spare().into_iter().map(|spare| spare.range).collect();
        assert_eq!(spare, before.ranges);
        // One backend is said by the rule.
        let text = placed(&mut shards, &slots(1), &mut mark);
        assert_eq!((text.as_str(), mark.slots()), ("", 0));
        assert_eq!(shards.take_spare().len(), 2);
    }

    #[test]
    fn what_two_services_say_is_theirs_is_one_of_thems() {
        let mut shards = Shards::new();
        let mark = Mark {
            ranges: [Range { first: 5, len: 3 }, Range::default()],
            ..Mark::default()
        };
        assert!(shards.claim(&mark));
        assert!(!shards.claim(&mark));
        let mut other = Mark::default();
        assert_eq!(
            placed(&mut shards, &slots(9), &mut other)
                .matches("add set")
                .count(),
            0
        );
        assert_eq!(other.ranges[0].first, 8);
    }
}
