//! Who looks after whom, so that each is looked after at any time.
//!
//! The members form a ring, in the order of their ids. Each tells the one before it that it lives, and looks after the one that comes
//! after it: whoever is not heard for a while is asked, then asked through others, then accused. Of that there is one packet for each
//! member and [`BEAT`], and a crash is noticed within that and the time to answer, whoever it is.
//!
//! Nobody is accused because he says nothing: he is asked first, and an older version only answers.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    time::{Duration, Instant},
};

use foca::State;
use rand::{RngExt, seq::IteratorRandom};
use rand_chacha::ChaCha12Rng;

use super::Seen;
use crate::identity::Short;

/// How often a member says that it lives. The same for all, whatever they believe of the size of the cluster.
pub(super) const BEAT: Duration = Duration::from_millis(600);
/// How often a member at random is asked: the one that looks after it may be starved, or lie.
const GLANCE: Duration = Duration::from_secs(6);
/// How often somebody is asked before it is accused.
const ASKED: u8 = 3;
/// How many others are asked to ask it too.
const HELPERS: usize = 3;
/// The most that are looked after at a time.
const WINDOW: usize = 32;
/// Who has heard nobody for so long is cut off itself, as likely as not.
const DEAF: Duration = Duration::from_millis(1_200);

pub(super) type Ring = BTreeMap<Short, Seen>;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Tell it that this node lives.
    Beat(Short),
    /// Ask it whether it lives.
    Ask(Short, u8),
    /// Have `helper` ask it.
    AskThrough { helper: Short, of: Short, number: u8 },
    /// It does not answer.
    Accuse(Short),
}

/// Whom this node looks after.
#[derive(Debug)]
pub(super) struct Watch {
    me: Short,
    watched: BTreeMap<Short, Watched>,
    beat: Option<Instant>,
    glance: Option<Instant>,
    /// When anybody was last heard.
    heard: Option<Instant>,
    number: u8,
    rng: ChaCha12Rng,
}

#[derive(Debug)]
struct Watched {
    generation: u64,
    /// When it is asked, if it is not heard before.
    due: Instant,
    /// How often it was asked since it was last heard.
    asked: u8,
    /// By which number answers of others are known.
    number: u8,
    helpers: Vec<Short>,
    accused: bool,
    is_glance: bool,
}

impl Watched {
    fn new(generation: u64, now: Instant, is_glance: bool) -> Self {
        Self {
            generation,
            due: now,
            asked: 0,
            number: 0,
            helpers: Vec::new(),
            accused: false,
            is_glance,
        }
    }

    /// Whether a question was left without an answer.
    fn is_silent(&self) -> bool {
        self.asked >= 2 || self.accused
    }
}

impl Watch {
    pub(super) fn new(me: Short, rng: ChaCha12Rng) -> Self {
        Self {
            me,
            watched: BTreeMap::new(),
            beat: None,
            glance: None,
            heard: None,
            number: 0,
            rng,
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let watched = self.watched.values().map(|watched| watched.due);
        watched.chain(self.beat).chain(self.glance).min()
    }

    /// Begins anew: what was found so far was found by a node that is not believed any more.
    pub(super) fn clear(&mut self) {
        self.watched.clear();
    }

    /// Nobody is judged by what was not heard meanwhile. Others are to hear of this node at once, though.
    pub(super) fn postpone(&mut self, by: Duration) {
        for watched in self.watched.values_mut() {
            watched.due += by;
        }
    }

    /// Chooses whom to look after: the next on the ring, and those behind it for as long as it does not answer. As many that answer as do
    /// not, so that a rack that goes out is found in the time of a few.
    pub(super) fn look(&mut self, ring: &Ring, now: Instant) {
        let mut window: Vec<(Short, Seen)> = Vec::new();
        let (mut silent, mut answering) = (0, 0);
        for (node, seen) in after(ring, self.me).take(WINDOW) {
            window.push((node, seen));
            let watched = self.watched.get(&node);
            let watched = watched.filter(|watched| watched.generation == seen.generation);
            if seen.state == State::Suspect || watched.is_some_and(Watched::is_silent) {
                silent += 1;
            } else {
                answering += 1;
            }
            if answering >= silent.max(1) {
                break;
            }
        }
        self.watched.retain(|node, watched| {
            let glanced_at = || {
                ring.get(node)
                    .copied()
                    .filter(|_| watched.is_glance && !watched.accused)
            };
            let chosen = window.iter().find(|(chosen, _)| chosen == node);
            let seen = chosen.map(|(_, seen)| *seen).or_else(glanced_at);
            seen.is_some_and(|seen| seen.is_active() && seen.generation == watched.generation)
        });
        let is_deaf = self.is_deaf(now);
        for (node, seen) in &window {
            if let Some(watched) = self.watched.get_mut(node) {
                watched.is_glance = false;
                watched.accused &= seen.state == State::Suspect;
            } else if !is_deaf || self.watched.values().all(|watched| watched.accused) {
                // Who is cut off would accuse all, and goes from one to the next.
                let watched = Watched::new(seen.generation, now, false);
                self.watched.insert(*node, watched);
            }
        }
        if window.is_empty() {
            (self.beat, self.glance) = (None, None);
        } else {
            self.beat.get_or_insert(now);
            let first = GLANCE.mul_f64(self.rng.random());
            self.glance.get_or_insert(now + first);
        }
    }

    /// Somebody was heard.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// A member was heard that hears, too; `answer` is how long an answer may take. Says whether it was not heard before.
    pub(super) fn hear(&mut self, node: Short, answer: Duration, now: Instant) -> bool {
        let Some(watched) = self.watched.get_mut(&node) else {
            return false;
        };
        let was_silent = watched.is_silent();
        watched.asked = 0;
        watched.helpers.clear();
        if watched.is_glance {
            self.watched.remove(&node);
        } else if !watched.accused {
            watched.due = now + BEAT + answer / 6;
        }
        was_silent
    }

    /// A member says that it has heard another. It counts if it was asked for that.
    pub(super) fn hear_through(
        &mut self,
        helper: Short,
        of: Short,
        number: u8,
        answer: Duration,
        now: Instant,
    ) -> bool {
        let watched = self.watched.get(&of);
        watched.is_some_and(|watched| watched.number == number && watched.helpers.contains(&helper))
            && self.hear(of, answer, now)
    }

    /// What is due. The time to answer is `answer`.
    pub(super) fn act(&mut self, ring: &Ring, answer: Duration, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        if let Some(beat) = self.beat.filter(|beat| *beat <= now) {
            self.beat = Some((beat + BEAT).max(now + BEAT / 2));
            // Who says that it lives says that it hears, too: of no use to anybody is who does not.
            let before = before(ring, self.me).find(|(_, seen)| seen.state == State::Alive);
            acts.extend(
                before
                    .filter(|_| !self.is_deaf(now))
                    .map(|(node, _)| Act::Beat(node)),
            );
        }
        if let Some(glance) = self.glance.filter(|glance| *glance <= now) {
            self.glance = Some((glance + GLANCE).max(now + GLANCE / 2));
            let active = ring
                .iter()
                .filter(|(node, seen)| **node != self.me && seen.is_active());
            if let Some((node, seen)) = active.choose(&mut self.rng) {
                let watched = self.watched.entry(*node);
                watched.or_insert_with(|| Watched::new(seen.generation, now, true));
            }
        }
        for (node, watched) in &mut self.watched {
            if watched.due > now {
                continue;
            }
            if watched.asked == 0 {
                self.number = self.number.wrapping_add(1);
                watched.number = self.number;
            }
            if watched.asked == ASKED {
                acts.push(Act::Accuse(*node));
                watched.accused = true;
            }
            acts.push(Act::Ask(*node, watched.number));
            if watched.accused {
                // It is asked on, because each question tells it what it has to refute.
                watched.due = now + BEAT;
            } else {
                // A little longer after the last one, so that nobody who stands still has less time than foca's own probes left it.
                let is_last = watched.asked + 1 == ASKED;
                watched.due = now + if is_last { answer * 4 / 3 } else { answer };
                if watched.asked == 1 {
                    let alive = |(other, seen): &(&Short, &Seen)| {
                        *other != node && **other != self.me && seen.state == State::Alive
                    };
                    let helpers = ring.iter().filter(alive).map(|(other, _)| *other);
                    watched.helpers = helpers.sample(&mut self.rng, HELPERS);
                    acts.extend(watched.helpers.iter().map(|helper| Act::AskThrough {
                        helper: *helper,
                        of: *node,
                        number: watched.number,
                    }));
                }
                // One that has no other neighbour left hears nobody, and is to know that it is not cut off itself.
                let is_alone = self.heard.is_none_or(|heard| heard + BEAT < now);
                if watched.asked == 2 && is_alone {
                    let helpers = watched.helpers.iter();
                    acts.extend(helpers.map(|helper| Act::Ask(*helper, watched.number)));
                }
            }
            watched.asked = ASKED.min(watched.asked + 1);
        }
        acts
    }

    fn is_deaf(&self, now: Instant) -> bool {
        self.heard
            .is_none_or(|heard| now.saturating_duration_since(heard) > DEAF)
    }
}

/// Those that are active, in the order of the ring.
fn after(ring: &Ring, me: Short) -> impl Iterator<Item = (Short, Seen)> {
    let later = ring.range((Excluded(me), Unbounded));
    let around = later.chain(ring.range(..me));
    around
        .map(|(node, seen)| (*node, *seen))
        .filter(|(_, seen)| seen.is_active())
}

/// The same, the other way round.
fn before(ring: &Ring, me: Short) -> impl Iterator<Item = (Short, Seen)> {
    let earlier = ring.range(..me).rev();
    let around = earlier.chain(ring.range((Excluded(me), Unbounded)).rev());
    around
        .map(|(node, seen)| (*node, *seen))
        .filter(|(_, seen)| seen.is_active())
}

#[cfg(test)]
mod tests;
