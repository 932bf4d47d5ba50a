//! Asking members whether they live, in foca's words, and what follows if they do not answer.

use std::time::{Duration, Instant};

use foca::{Header, Member, Message, State};

use super::{
    Id, Membership,
    timers::pace,
    watch::{Act, BEAT},
};
use crate::{hearsay::Said, identity::Short};

const MOST_STARVED: u32 = 8;

impl Membership {
    /// A member has spoken itself. That it hears, too, is shown by an answer, and by its telling that it lives, which is a packet
    /// without any news; all else may come from one to whom nothing gets through.
    pub(crate) fn heard(&mut self, said: &Said, now: Instant) {
        let (from, answer) = (said.header.src.node, self.answer());
        self.watch.note_heard(now);
        let returned = match &said.header.message {
            Message::Ack(_) => self.watch.hear(from, answer, now),
            Message::Gossip if said.updates.is_empty() => self.watch.hear(from, answer, now),
            Message::ForwardedAck { origin, probe_number } => {
                let (of, number) = (origin.node, *probe_number);
                self.watch.hear_through(from, of, number, answer, now)
            }
            _ => false,
        };
        if returned {
            self.watch.look(&self.seen, now);
        }
    }

    pub(super) fn carry_out(&mut self, act: Act, now: Instant) {
        let id = |node| {
            let generation = self.seen(node).map_or(0, |seen| seen.generation);
            Id { node, generation }
        };
        match act {
            Act::Beat(to) => self.greet(to),
            Act::Ask(of, number) => self.say(id(of), Message::Ping(number), self.suspicion_of(of)),
            Act::AskThrough { helper, of, number } => {
                let (target, probe_number) = (id(of), number);
                let message = Message::PingReq { target, probe_number };
                self.say(id(helper), message, Vec::new());
            }
            Act::Accuse(of) => self.accuse(of, now),
        }
    }

    /// Suspects a member, which has its time to refute that.
    fn accuse(&mut self, node: Short, now: Instant) {
        let accused = self.foca.iter_members().find(|member| member.id().node == node);
        let Some((id, incarnation)) = accused.map(|member| (*member.id(), member.incarnation())) else {
            return;
        };
        let suspect = Member::new(id, incarnation, State::Suspect);
        self.call(now, |foca, calls| {
            foca.apply_many([suspect].into_iter(), true, calls)
        });
        // What others have suspected for a while it has had the time to refute.
        let suspected = self.suspects.get(&node).copied();
        let suspected =
            suspected.filter(|suspected| (suspected.0, suspected.1) == (id.generation, incarnation));
        let (.., since) = suspected.unwrap_or((id.generation, incarnation, now));
        self.suspects.insert(node, (id.generation, incarnation, since));
        let suspicion = pace(self.foca.num_members() + 1).suspicion * (1 + self.starved);
        self.timers.confirm(id, incarnation, now.max(since + suspicion));
    }

    /// What a suspect has to refute.
    fn suspicion_of(&self, node: Short) -> Vec<Member<Id>> {
        let suspected = self.suspects.get(&node);
        let suspicion = suspected.map(|(generation, refuted, _)| {
            let generation = *generation;
            Member::new(Id { node, generation }, *refuted, State::Suspect)
        });
        suspicion.into_iter().collect()
    }

    /// Says something to a member in foca's place.
    pub(super) fn say(&mut self, to: Id, message: Message<Id>, updates: Vec<Member<Id>>) {
        let src = self.id();
        let (generation, refuted) = self.refuted;
        let header = Header {
            src,
            src_incarnation: if generation == src.generation { refuted } else { 0 },
            dst: to,
            message,
        };
        self.packets.push((to, Said { header, updates }.write()));
    }

    /// How long an answer may take.
    pub(super) fn answer(&self) -> Duration {
        pace(self.foca.num_members() + 1).answer
    }

    /// If this is called much later than asked for, the node was stopped or starved. Answers to its probes
    /// may lie unread in the socket, so nobody is to be judged by timers that ran out meanwhile.
    pub(super) fn notice_starvation(&mut self, now: Instant) {
        let Some(due) = self.next_due() else { return };
        let late = now.saturating_duration_since(due);
        let answer = self.answer();
        if late > answer {
            let beats = late.as_millis() / BEAT.as_millis() + 1;
            self.starved = MOST_STARVED.min(self.starved + u32::try_from(beats).unwrap_or(MOST_STARVED));
            self.timers.postpone(late + answer);
            self.watch.postpone(late + answer);
        } else if self.recovers.is_some_and(|recovers| recovers <= now) {
            self.starved = self.starved.saturating_sub(1);
        } else {
            return;
        }
        self.recovers = (self.starved > 0).then(|| now + BEAT * (1 + self.starved));
    }
}
