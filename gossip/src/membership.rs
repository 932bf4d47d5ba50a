use std::{
    collections::BTreeMap,
    num::{NonZeroU8, NonZeroUsize},
    time::{Duration, Instant},
};

use foca::{Foca, NoCustomBroadcast, Notification, PeriodicParams, PostcardCodec, Runtime, State, Timer};
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

use crate::{hearsay::Said, identity::Short, wire::Liveness};

/// Who is alive: the `foca` crate (SWIM with suspicion) with our own clock.
///
/// Foca sees twelve bytes or so per member; addresses and whole ids come from cards, which are records. Its
/// durations are set here, timer by timer, because they depend on the size of the cluster and on how
/// well this node itself is doing, and foca takes some of them only when it is made.
pub(crate) struct Membership {
    foca: Foca<Id, PostcardCodec, ChaCha12Rng, NoCustomBroadcast>,
    timers: Timers,
    packets: Vec<(Id, Vec<u8>)>,
    /// What foca believed when it was last looked at.
    seen: BTreeMap<Short, Seen>,
    /// The same in foca's own order, with foca's own counter of refutations, so that one pass side by side tells whether
    /// anything changed.
    looked_at: Vec<(Id, State, u16)>,
    /// Who is suspected: by which counts, and since when.
    suspects: BTreeMap<Short, (u64, u16, Instant)>,
    /// Whether foca was called since.
    touched: bool,
    transmissions: u8,
    /// How starved of time this node has been lately, 0 to 8 (Lifeguard's local health).
    starved: u32,
}

/// What foca believes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) generation: u64,
    pub(crate) state: State,
}

impl Seen {
    pub(crate) fn is_active(self) -> bool {
        self.state != State::Down
    }

    fn liveness(self) -> Liveness {
        if self.is_active() {
            Liveness::Active(self.generation)
        } else {
            Liveness::Down(self.generation)
        }
    }
}

/// A node as foca knows it. `Down` is final for a generation; to come back a node takes the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Id {
    pub(crate) node: Short,
    pub(crate) generation: u64,
}

impl foca::Identity for Id {
    type Addr = Short;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            generation: self.generation.checked_add(1)?,
            ..*self
        })
    }

    fn addr(&self) -> Short {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    period: Duration,
    round_trip: Duration,
    suspicion: Duration,
}

/// Small clusters notice a crash within two seconds or so, large ones within five: there, more packets are
/// lost somewhere at any time, and a suspect needs longer to hear of it.
fn pace(members: usize) -> Pace {
    let (period, round_trip, suspicion) = match members {
        0..=16 => (400, 150, 1_200),
        17..=64 => (600, 200, 2_000),
        65..=512 => (800, 250, 2_400),
        _ => (1_000, 300, 3_000),
    };
    Pace {
        period: Duration::from_millis(period),
        round_trip: Duration::from_millis(round_trip),
        suspicion: Duration::from_millis(suspicion),
    }
}

/// The most a foca packet may have. Above it come a body's tag and length and the seal.
const MAX_FOCA: usize = 1_200;
const MOST_STARVED: u32 = 8;

impl Membership {
    pub(crate) fn new(id: Id, rng: ChaCha12Rng) -> Self {
        let transmissions = transmissions(1);
        let config = config(transmissions);
        Self {
            foca: Foca::new(id, config, rng, PostcardCodec),
            timers: Timers {
                waiting: BTreeMap::new(),
                sequence: 0,
            },
            packets: Vec::new(),
            seen: BTreeMap::new(),
            looked_at: Vec::new(),
            suspects: BTreeMap::new(),
            touched: false,
            transmissions,
            starved: 0,
        }
    }

    pub(crate) fn id(&self) -> Id {
        *self.foca.identity()
    }

    /// What is believed of a node.
    pub(crate) fn seen(&self, node: Short) -> Option<Seen> {
        self.seen.get(&node).copied()
    }

    pub(crate) fn liveness(&self, node: Short) -> Liveness {
        if node == self.id().node {
            return Liveness::Active(self.id().generation);
        }
        self.seen(node).map_or(Liveness::Unknown, Seen::liveness)
    }

    pub(crate) fn known(&self, from: Short, to: Short) -> impl Iterator<Item = Short> {
        self.seen.range(from..=to).map(|(node, _)| *node)
    }

    pub(crate) fn active(&self) -> impl Iterator<Item = Short> {
        self.seen
            .iter()
            .filter(|(_, seen)| seen.is_active())
            .map(|(node, _)| *node)
    }

    /// Whether a member has been suspected, by its present counts, for most of the time that it has to refute it.
    pub(crate) fn had_its_time(&self, node: Short, now: Instant) -> bool {
        let patience = pace(self.foca.num_members() + 1).suspicion * 3 / 4;
        let since = self.suspects.get(&node).map(|(_, _, since)| *since);
        since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }

    pub(crate) fn handle(&mut self, data: &[u8], now: Instant) {
        self.call(now, |foca, calls| foca.handle_data(data, calls));
    }

    /// Tells a member that this node is there too, and asks for others.
    pub(crate) fn announce(&mut self, to: Short, generation: u64, now: Instant) {
        self.call(now, |foca, calls| {
            foca.announce(Id { node: to, generation }, calls)
        });
    }

    /// Shows a member the generation that this node is in.
    pub(crate) fn greet(&mut self, to: Short) {
        let generation = self.seen(to).map_or(0, |seen| seen.generation);
        let to = Id { node: to, generation };
        self.packets.push((to, Said::greeting(self.id(), to).write()));
    }

    /// Believes that a member is alive in `generation`.
    pub(crate) fn alive(&mut self, node: Short, generation: u64, now: Instant) {
        let member = foca::Member::new(Id { node, generation }, 0, State::Alive);
        self.call(now, |foca, calls| {
            foca.apply_many([member].into_iter(), true, calls)
        });
    }

    /// Believes that a member is down in `generation`; `tell` others if they may not know.
    pub(crate) fn down(&mut self, node: Short, generation: u64, tell: bool, now: Instant) {
        let member = foca::Member::down(Id { node, generation });
        self.call(now, |foca, calls| {
            foca.apply_many([member].into_iter(), tell, calls)
        });
    }

    /// Takes a generation above `above`, if this one is not.
    pub(crate) fn renew(&mut self, above: u64, now: Instant) -> bool {
        let id = self.id();
        if id.generation > above || above == u64::MAX {
            return false;
        }
        self.call(now, |foca, calls| {
            foca.change_identity(
                Id {
                    generation: above + 1,
                    ..id
                },
                calls,
            )
        });
        true
    }

    pub(crate) fn leave(&mut self, now: Instant) {
        self.call(now, |foca, calls| foca.leave_cluster(calls));
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.timers.waiting.keys().next().map(|(due, _, _)| *due)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.notice_starvation(now);
        while let Some(timer) = self.timers.pop_due(now) {
            if matches!(timer, Timer::ProbeRandomMember(_)) {
                self.starved = self.starved.saturating_sub(1);
            }
            if !self.is_stale_suspicion(&timer) {
                self.call(now, |foca, calls| foca.handle_timer(timer, calls));
            }
        }
    }

    /// The packets foca wants sent.
    pub(crate) fn take_packets(&mut self) -> Vec<(Id, Vec<u8>)> {
        std::mem::take(&mut self.packets)
    }

    /// Who changed since this was last asked.
    pub(crate) fn take_changes(&mut self, now: Instant) -> Vec<Short> {
        if !std::mem::take(&mut self.touched) {
            return Vec::new();
        }
        // Almost always nothing has; then one pass over small numbers is all there is to do. Every member is
        // compared: a sum over them could stay the same when two changed at once, and what is overlooked here
        // is overlooked until the next change.
        let state = || {
            let members = self.foca.iter_membership_state();
            members.map(|member| (*member.id(), member.state(), member.incarnation()))
        };
        if state().eq(self.looked_at.iter().copied()) {
            return Vec::new();
        }
        self.looked_at = state().collect();
        let mut changed = Vec::new();
        for (id, state, refutations) in &self.looked_at {
            let is = Seen {
                generation: id.generation,
                state: *state,
            };
            if self.seen.insert(id.node, is) != Some(is) {
                changed.push(id.node);
            }
            let counts = (id.generation, *refutations);
            if *state != State::Suspect {
                self.suspects.remove(&id.node);
            } else if self
                .suspects
                .get(&id.node)
                .is_none_or(|(generation, refutations, _)| (*generation, *refutations) != counts)
            {
                self.suspects.insert(id.node, (counts.0, counts.1, now));
            }
        }
        changed.sort();
        let wanted = transmissions(self.foca.num_members() + 1);
        if wanted != self.transmissions && self.foca.set_config(config(wanted)).is_ok() {
            self.transmissions = wanted;
        }
        changed
    }

    /// If this is called much later than asked for, the node was stopped or starved. Answers to its probes
    /// may lie unread in the socket, so nobody is to be judged by timers that ran out meanwhile.
    fn notice_starvation(&mut self, now: Instant) {
        let Some(due) = self.next_due() else { return };
        let late = now.saturating_duration_since(due);
        let pace = pace(self.foca.num_members() + 1);
        if late > pace.round_trip {
            let periods = late.as_millis() / pace.period.as_millis() + 1;
            self.starved = MOST_STARVED.min(self.starved + u32::try_from(periods).unwrap_or(MOST_STARVED));
            self.timers.postpone(late + pace.round_trip);
        }
    }

    /// Foca 2.0.0 tells a member that it is down when the timer of a suspicion runs out, even if the
    /// suspicion was refuted in time. So such a timer is not given to it.
    fn is_stale_suspicion(&self, timer: &Timer<Id>) -> bool {
        let Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            ..
        } = timer
        else {
            return false;
        };
        !self.foca.iter_members().any(|member| {
            member.id() == member_id
                && member.incarnation() == *incarnation
                && member.state() == State::Suspect
        })
    }

    fn call<F>(&mut self, now: Instant, run: F)
    where
        F: FnOnce(
            &mut Foca<Id, PostcardCodec, ChaCha12Rng, NoCustomBroadcast>,
            &mut Calls<'_>,
        ) -> Result<(), foca::Error>,
    {
        self.touched = true;
        let pace = pace(self.foca.num_members() + 1);
        let stretch = 1 + self.starved;
        let mut calls = Calls {
            timers: &mut self.timers,
            packets: &mut self.packets,
            pace,
            stretch,
            now,
        };
        let result = run(&mut self.foca, &mut calls);
        // A node that took another generation probes nobody until foca looks whether there is anybody. It does
        // so at the next packet, but one may never come.
        let looked = self.foca.apply_many(std::iter::empty(), false, &mut calls);
        if let Err(error) = result.and(looked) {
            tracing::debug!(%error, "membership refused an input");
        }
    }
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Membership({:?}, {} active)",
            self.id(),
            self.foca.num_members()
        )
    }
}

/// How often each change is passed on.
fn transmissions(members: usize) -> u8 {
    (7 + 3 * members.ilog10()) as u8
}

fn config(transmissions: u8) -> foca::Config {
    let nonzero = |number| NonZeroUsize::new(number).expect("not zero");
    foca::Config {
        max_transmissions: NonZeroU8::new(transmissions).expect("not zero"),
        // Never: a node that is down keeps its generation, so that an old rumour cannot revive it.
        remove_down_after: None,
        max_packet_size: nonzero(MAX_FOCA),
        notify_down_members: true,
        // Comparing digests finds unknown members, and contacts with members believed down are ours too,
        // because a member has to be told which generation to rise above.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams {
            frequency: Duration::from_millis(200),
            num_members: nonzero(3),
        }),
        ..foca::Config::simple()
    }
}

/// Foca's timers, handed back in the order of their deadlines; foca depends on it.
struct Timers {
    waiting: BTreeMap<(Instant, u8, u64), Timer<Id>>,
    sequence: u64,
}

impl Timers {
    fn add(&mut self, timer: Timer<Id>, due: Instant) {
        // Of those due at once the check of an indirect probe goes first, then the next probe.
        let rank = match timer {
            Timer::SendIndirectProbe { .. } => 0,
            Timer::ProbeRandomMember(_) => 1,
            _ => 2,
        };
        self.sequence += 1;
        self.waiting.insert((due, rank, self.sequence), timer);
    }

    fn pop_due(&mut self, now: Instant) -> Option<Timer<Id>> {
        let entry = self.waiting.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    fn postpone(&mut self, by: Duration) {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting = waiting
            .into_iter()
            .map(|((due, rank, n), timer)| ((due + by, rank, n), timer))
            .collect();
    }
}

struct Calls<'a> {
    timers: &'a mut Timers,
    packets: &'a mut Vec<(Id, Vec<u8>)>,
    pace: Pace,
    stretch: u32,
    now: Instant,
}

impl Runtime<Id> for Calls<'_> {
    /// Changes are found by looking: a notification can be about a member whose card is not here yet.
    fn notify(&mut self, _: Notification<'_, Id>) {}

    fn send_to(&mut self, to: Id, data: &[u8]) {
        self.packets.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, timer: Timer<Id>, after: Duration) {
        let after = match timer {
            Timer::ProbeRandomMember(_) => self.pace.period * self.stretch,
            Timer::SendIndirectProbe { .. } => self.pace.round_trip * self.stretch,
            Timer::ChangeSuspectToDown { .. } => self.pace.suspicion * self.stretch,
            _ => after,
        };
        self.timers.add(timer, self.now + after);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn id(node: u64, generation: u64) -> Id {
        Id {
            node: Short(node.to_be_bytes()),
            generation,
        }
    }

    #[test]
    fn a_node_with_a_new_generation_goes_on_probing_although_nobody_talks_to_it() {
        let begin = Instant::now();
        let mut membership = Membership::new(id(1, 1 << 16), ChaCha12Rng::from_seed([0; 32]));
        membership.alive(id(2, 0).node, 1 << 16, begin);
        assert!(membership.renew(1 << 16, begin));
        while let Some(due) = membership
            .next_due()
            .filter(|due| *due < begin + Duration::from_secs(10))
        {
            membership.handle_timeout(due);
        }
        let down = membership.take_changes(begin);
        assert_eq!(down, [id(2, 0).node]);
        assert_eq!(membership.liveness(down[0]), Liveness::Down(1 << 16));
    }

    #[test]
    fn members_that_change_together_are_all_noticed() {
        let now = Instant::now();
        let mut membership = Membership::new(id(1, 1 << 16), ChaCha12Rng::from_seed([0; 32]));
        let nodes: Vec<Short> = (2..66).map(|bit| id(1 << (bit - 2) | 1, 0).node).collect();
        for generation in [1 << 16, (1 << 16) + 1, (1 << 16) + 2] {
            for pair in nodes[1..].chunks(2) {
                for node in pair {
                    membership.alive(*node, generation, now);
                }
                let changed = membership.take_changes(now);
                assert!(pair.iter().all(|node| changed.contains(node)), "{changed:?}");
                for node in pair {
                    assert_eq!(membership.liveness(*node), Liveness::Active(generation));
                }
            }
        }
        assert_eq!(membership.take_changes(now), Vec::new());
    }
}
