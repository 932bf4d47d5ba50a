use std::{
    collections::BTreeMap,
    num::{NonZeroU8, NonZeroUsize},
    time::{Duration, Instant},
};

use foca::{Foca, Message, NoCustomBroadcast, PeriodicParams, PostcardCodec, State, Timer};
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

use crate::{identity::Short, wire::Liveness};

mod probe;
mod timers;
mod watch;

use timers::{Calls, Timers, is_suspected, pace};
use watch::{Ring, Watch};

/// Who is alive: the `foca` crate (SWIM with suspicion) with our own clock, and our own choice of whom to ask.
///
/// Foca sees twelve bytes or so per member; addresses and whole ids come from cards, which are records. It keeps what is
/// believed, passes it on, answers questions and refutes suspicions; the questions are [`Watch`]'s, in foca's own words.
pub(crate) struct Membership {
    foca: Foca<Id, PostcardCodec, ChaCha12Rng, NoCustomBroadcast>,
    timers: Timers,
    watch: Watch,
    packets: Vec<(Id, Vec<u8>)>,
    /// What foca believed when it was last looked at.
    seen: Ring,
    /// The same in foca's own order, with foca's own counter of refutations, so that one pass side by side tells whether
    /// anything changed.
    looked_at: Vec<(Id, State, u16)>,
    /// Who is suspected: by which counts, and since when.
    suspects: BTreeMap<Short, (u64, u16, Instant)>,
    /// Whether foca was called since.
    touched: bool,
    transmissions: u8,
    /// The generation in which this node last spoke, and how many suspicions it has refuted in that.
    refuted: (u64, u16),
    /// Not before then others are told at once of what changes.
    news: Option<Instant>,
    /// How starved of time this node has been lately, 0 to 8 (Lifeguard's local health).
    starved: u32,
    /// When it counts as one less starved.
    recovers: Option<Instant>,
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

/// The most a foca packet may have. Above it come a body's tag and length and the seal.
const MAX_FOCA: usize = 1_200;
/// How many are told at once of what has changed, or of a refutation.
const TOLD: usize = 6;
/// The least time between two changes of which others are told at once. All others go out together every 200 ms.
const NEWS: Duration = Duration::from_millis(100);

impl Membership {
    pub(crate) fn new(id: Id, mut rng: ChaCha12Rng) -> Self {
        let transmissions = transmissions(1);
        let config = config(transmissions);
        Self {
            watch: Watch::new(id.node, ChaCha12Rng::from_rng(&mut rng)),
            foca: Foca::new(id, config, rng, PostcardCodec),
            timers: Timers::default(),
            packets: Vec::new(),
            seen: Ring::new(),
            looked_at: Vec::new(),
            suspects: BTreeMap::new(),
            touched: false,
            transmissions,
            refuted: (0, 0),
            news: None,
            starved: 0,
            recovers: None,
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
        self.say(Id { node: to, generation }, Message::Gossip, Vec::new());
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
        self.timers
            .next_due()
            .into_iter()
            .chain(self.watch.next_due())
            .min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.notice_starvation(now);
        while let Some(timer) = self.timers.pop_due(now) {
            if !self.is_stale_suspicion(&timer) {
                self.call(now, |foca, calls| foca.handle_timer(timer, calls));
            }
        }
        let answer = self.answer() * (1 + self.starved);
        for act in self.watch.act(&self.seen, answer, now) {
            self.carry_out(act, now);
        }
        self.watch.look(&self.seen, now);
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
        if !changed.is_empty() {
            self.watch.look(&self.seen, now);
            self.tell_news(now);
        }
        let wanted = transmissions(self.foca.num_members() + 1);
        if wanted != self.transmissions && self.foca.set_config(config(wanted)).is_ok() {
            self.transmissions = wanted;
        }
        changed
    }

    /// What has changed is passed on at once, so that all know it within milliseconds.
    fn tell_news(&mut self, now: Instant) {
        if self.foca.updates_backlog() > 0 && self.news.is_none_or(|news| news <= now) {
            self.news = Some(now + NEWS);
            self.call(now, |foca, calls| foca.gossip(calls));
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
        !self
            .foca
            .iter_members()
            .any(|member| is_suspected(member, *member_id, *incarnation))
    }

    fn call<F>(&mut self, now: Instant, run: F)
    where
        F: FnOnce(
            &mut Foca<Id, PostcardCodec, ChaCha12Rng, NoCustomBroadcast>,
            &mut Calls<'_>,
        ) -> Result<(), foca::Error>,
    {
        self.touched = true;
        let generation = self.id().generation;
        let mut calls = Calls {
            timers: &mut self.timers,
            packets: &mut self.packets,
            refuted: &mut self.refuted,
            now,
        };
        let result = run(&mut self.foca, &mut calls);
        // A node that took another generation takes up nothing until foca looks whether there is anybody. It does
        // so at the next packet, but one may never come.
        let looked = self.foca.apply_many(std::iter::empty(), false, &mut calls);
        if let Err(error) = result.and(looked) {
            tracing::debug!(%error, "membership refused an input");
        }
        if self.id().generation != generation {
            // Suspicions that foca was to confirm for the former one end with it.
            self.watch.clear();
            self.watch.look(&self.seen, now);
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

/// How often each change is passed on. Enough for nobody to miss one while a third of the members are dead: who has not heard a
/// suspicion doubts what it leads to for some seconds.
fn transmissions(members: usize) -> u8 {
    (10 + 3 * members.ilog10()) as u8
}

fn config(transmissions: u8) -> foca::Config {
    let nonzero = |number| NonZeroUsize::new(number).expect("not zero");
    foca::Config {
        max_transmissions: NonZeroU8::new(transmissions).expect("not zero"),
        // Never: a node that is down keeps its generation, so that an old rumour cannot revive it.
        remove_down_after: None,
        max_packet_size: nonzero(MAX_FOCA),
        // Foca probes nobody; so many it tells what is urgent.
        num_indirect_probes: nonzero(TOLD),
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

#[cfg(test)]
mod tests;
