//! An agent that is away is not yet a dead host: the kernel there goes on forwarding, so what runs there is served for
//! a while, as long as the host itself answers.
//!
//! From the moment a node is suspected its host is asked for a connection to the gossip port. A refusal is an answer: there is
//! a kernel, and no agent. Silence is not.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use weft_types::NodeId;

use super::{Control, Now, Probe, catalogue::Presence, touched::Place};

/// How often the host is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long an answer counts, and how long one is waited for.
const ANSWER_COUNTS: Duration = Duration::from_secs(2);
/// A host without an agent learns nothing new: endpoints made meanwhile are unknown there.
const LONGEST: Duration = Duration::from_secs(30);

/// The hosts whose agents do not answer.
#[derive(Debug, Default)]
pub(super) struct Away(BTreeMap<NodeId, Host>);

#[derive(Debug)]
struct Host {
    /// When it is asked next.
    ask: Instant,
    /// Whether it answered last time.
    heard: Option<bool>,
    /// Whether it was served until now; one that is only heard of as dead is not, before it answers.
    served: bool,
    /// Set once the node is believed dead.
    down: Option<Down>,
}

#[derive(Debug, Clone, Copy)]
struct Down {
    since: Instant,
    /// When it is given up, unless it answers before.
    until: Instant,
}

impl Away {
    /// Whether a node that is believed dead is only an agent that is away.
    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.0
            .get(&node)
            .is_some_and(|host| host.down.is_some() && host.served)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next = |host: &Host| host.down.map_or(host.ask, |down| down.until.min(host.ask));
        self.0.values().map(next).min()
    }

    /// What is believed about a node from now on, and whether it was served until now.
    fn believe(&mut self, node: NodeId, presence: Presence, served: bool, now: Instant) {
        let answers = match presence {
            Presence::Suspect | Presence::Down => self.0.get(&node).and_then(|host| host.heard),
            Presence::Alive | Presence::Left | Presence::Unheard => Some(false),
        };
        let is_over = answers == Some(false) && presence != Presence::Suspect;
        if is_over {
            self.0.remove(&node);
            return;
        }
        let host = self.0.entry(node).or_insert(Host {
            ask: now,
            heard: None,
            served,
            down: None,
        });
        if presence == Presence::Down {
            host.down = Some(Down {
                since: now,
                until: now + ANSWER_COUNTS,
            });
        }
    }

    /// True if a host is served again, or no more.
    fn hear(&mut self, node: NodeId, answers: bool, now: Instant) -> bool {
        let Some(host) = self.0.get_mut(&node) else {
            return false;
        };
        host.heard = Some(answers);
        match &mut host.down {
            Some(down) if answers => {
                down.until = (now + ANSWER_COUNTS).min(down.since + LONGEST);
                !std::mem::replace(&mut host.served, true)
            }
            Some(_) => self.0.remove(&node).is_some_and(|host| host.served),
            None => false,
        }
    }

    /// The hosts that are to be asked now, and whether one was given up.
    fn expire(&mut self, now: Instant) -> (Vec<NodeId>, bool) {
        let known = self.0.len();
        self.0
            .retain(|_, host| host.down.is_none_or(|down| now < down.until));
        let mut ask = Vec::new();
        for (node, host) in self.0.iter_mut().filter(|(_, host)| host.ask <= now) {
            host.ask = now + ASK_EVERY;
            ask.push(*node);
        }
        (ask, self.0.len() < known)
    }
}

impl Control {
    pub(super) fn believe(&mut self, node: NodeId, presence: Presence, served: bool, now: Now) {
        self.away.believe(node, presence, served, now.instant);
        self.ask_hosts(now);
    }

    /// What came of a [`Probe`].
    pub fn handle_probe(&mut self, node: NodeId, answers: bool, now: Now) {
        if self.away.hear(node, answers, now.instant) {
            self.host_changed_at(Place::Node(node));
        }
    }

    pub(super) fn ask_hosts(&mut self, now: Now) {
        let (ask, given_up) = self.away.expire(now.instant);
        let facts = ask
            .into_iter()
            .filter_map(|node| Some((node, self.catalogue.node(node)?.fact.as_ref()?)));
        self.turn.probe.extend(facts.map(|(node, fact)| Probe {
            node,
            address: fact.gossip,
        }));
        if given_up {
            self.host_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([1; 32]);

    /// Lets time pass until nobody is asked any more, a host answering as told, and says how many seconds it was
    /// served after it was believed dead.
    fn served(presences: &[Presence], answer: impl Fn(u64) -> Option<bool>) -> u64 {
        let begin = Instant::now();
        let mut away = Away::default();
        let mut presences = presences.iter();
        for second in 0..100 {
            let now = begin + Duration::from_secs(second);
            if let Some(presence) = presences.next() {
                away.believe(NODE, *presence, true, now);
            }
            let (ask, _) = away.expire(now);
            if presences.len() == 0 && !away.contains(NODE) {
                return second - 1;
            }
            for node in ask {
                if let Some(answers) = answer(second) {
                    away.hear(node, answers, now + Duration::from_millis(500));
                }
            }
        }
        panic!("never given up");
    }

    #[test]
    fn a_host_is_served_as_long_as_it_answers_and_not_for_ever() {
        let dies = [Presence::Suspect, Presence::Down];
        let at_once = [Presence::Alive, Presence::Down];
        // It is asked while it is suspected, so a dead one is known as such when the time has come.
        assert_eq!(served(&dies, |_| Some(false)), 0);
        assert_eq!(served(&at_once, |_| Some(false)), 1);
        assert_eq!(served(&dies, |_| None), 2);
        assert_eq!(served(&dies, |_| Some(true)), LONGEST.as_secs());
        assert_eq!(served(&dies, |second| Some(second < 10)), 10);
    }

    #[test]
    fn who_is_back_or_has_left_is_not_away() {
        for end in [Presence::Alive, Presence::Left] {
            let now = Instant::now();
            let mut away = Away::default();
            away.believe(NODE, Presence::Down, true, now);
            assert!(away.contains(NODE));
            away.believe(NODE, end, true, now);
            assert!(!away.contains(NODE));
            assert!(!away.hear(NODE, true, now));
            assert_eq!(away.poll_timeout(), None);
        }
    }

    #[test]
    fn who_was_dead_from_the_beginning_is_served_only_once_it_answers() {
        let now = Instant::now();
        let mut away = Away::default();
        away.believe(NODE, Presence::Down, false, now);
        assert_eq!(away.expire(now), (vec![NODE], false));
        assert!(!away.contains(NODE));
        assert!(away.hear(NODE, true, now));
        assert!(away.contains(NODE));
        assert!(away.hear(NODE, false, now));
        assert!(!away.contains(NODE));
    }
}
