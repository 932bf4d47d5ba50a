//! What foca wants done and when, with our durations.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use foca::{Header, Notification, Runtime, State, Timer, TimerToken};

use super::Id;

/// Durations that follow from the size of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// How long an answer may take.
    pub(super) answer: Duration,
    /// How long a suspect has to refute it.
    pub(super) suspicion: Duration,
}

/// Small clusters notice a crash within two seconds or so, large ones within five: there, more packets are
/// lost somewhere at any time, and a suspect needs longer to hear of it.
pub(super) fn pace(members: usize) -> Pace {
    let (answer, suspicion) = match members {
        0..=16 => (150, 1_200),
        17..=64 => (200, 2_000),
        65..=512 => (250, 2_400),
        _ => (300, 3_000),
    };
    Pace {
        answer: Duration::from_millis(answer),
        suspicion: Duration::from_millis(suspicion),
    }
}

/// Foca's timers, handed back in the order of their deadlines.
#[derive(Default)]
pub(super) struct Timers {
    waiting: BTreeMap<(Instant, u64), Timer<Id>>,
    sequence: u64,
    /// What foca knows its timers by, since it last began anew.
    token: TimerToken,
}

impl Timers {
    fn add(&mut self, timer: Timer<Id>, due: Instant) {
        self.sequence += 1;
        self.waiting.insert((due, self.sequence), timer);
    }

    /// Believes a suspect down at `due`, unless it refutes that before, as foca does after a probe of its own.
    pub(super) fn confirm(&mut self, member_id: Id, incarnation: u16, due: Instant) {
        let token = self.token;
        let timer = Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            token,
        };
        if !self.waiting.values().any(|waiting| *waiting == timer) {
            self.add(timer, due);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.keys().next().map(|(due, _)| *due)
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer<Id>> {
        let entry = self.waiting.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    pub(super) fn postpone(&mut self, by: Duration) {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting = waiting
            .into_iter()
            .map(|((due, n), timer)| ((due + by, n), timer))
            .collect();
    }
}

/// What foca calls.
pub(super) struct Calls<'a> {
    pub(super) timers: &'a mut Timers,
    pub(super) packets: &'a mut Vec<(Id, Vec<u8>)>,
    /// How often this node has refuted a suspicion, and in which generation. Foca says so in its packets and nowhere else.
    pub(super) refuted: &'a mut (u64, u16),
    pub(super) now: Instant,
}

impl Runtime<Id> for Calls<'_> {
    /// Changes are found by looking: a notification can be about a member whose card is not here yet.
    fn notify(&mut self, _: Notification<'_, Id>) {}

    fn send_to(&mut self, to: Id, data: &[u8]) {
        if let Ok((header, _)) = postcard::take_from_bytes::<Header<Id>>(data) {
            *self.refuted = (header.src.generation, header.src_incarnation);
        }
        self.packets.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, timer: Timer<Id>, after: Duration) {
        match timer {
            // Foca would ask members at random only, and wait for the next turn to see that nobody answered. Whom to ask and when
            // is for `Watch` to say; all the rest of foca does not care.
            Timer::ProbeRandomMember(token) => self.timers.token = token,
            timer => self.timers.add(timer, self.now + after),
        }
    }
}

/// Whether `member` is still suspected by these counts.
pub(super) fn is_suspected(member: &foca::Member<Id>, id: Id, incarnation: u16) -> bool {
    *member.id() == id && member.incarnation() == incarnation && member.state() == State::Suspect
}
