//! What happens by itself as time passes.

use std::time::{Duration, Instant};

use super::{Control, Now, catalogue::Presence, touched::Place};

/// How often this node looks whether it still owns free numbers of every kind.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Control {
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.gossip.poll_timeout(),
            self.reading_back,
            self.grace_until,
            self.away.poll_timeout(),
            self.joining.as_ref().map(|(until, _)| *until),
            self.leaving.as_ref().map(|(at, ..)| *at),
            self.save_at,
            Some(self.next_look),
            self.keyring.poll_timeout(),
            self.checks.poll_timeout(),
            self.spaces.poll_timeout(),
            // Whoever reads back looks when that is over.
            self.estates
                .poll_timeout()
                .filter(|_| self.reading_back.is_none() && !self.removed),
            self.polls.poll_timeout(),
            self.interests.poll_timeout(),
            self.drains.poll_timeout(),
            self.slow_start.poll_timeout(),
            self.ejections.poll_timeout(),
            self.parked.iter().map(|parked| parked.deadline).min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub fn handle_timeout(&mut self, now: Now) {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now.instant);
        if due(self.gossip.poll_timeout()) {
            self.gossip.handle_timeout(now.instant);
            self.settle(now);
        }
        if due(self.reading_back) {
            tracing::warn!("no peer could be asked what this node handed out before its restart");
            self.end_reading_back(now);
        }
        if due(self.joining.as_ref().map(|(until, _)| *until)) {
            tracing::warn!("let in, but no member has told its state yet");
            self.joined();
        }
        if due(self.leaving.as_ref().map(|(at, ..)| *at)) {
            self.finish_leaving(now);
        }
        if due(self.grace_until) {
            self.grace_until = None;
            self.give_up_the_unheard(now);
        }
        if due(self.save_at) {
            self.save_at = None;
            self.turn.commit.append(&mut self.unsaved);
        }
        if self.slow_start.handle_timeout(now.instant) {
            // Whose shares grow is looked at each time.
            self.host_changed_at(Place::Nothing);
        }
        self.readmit_who_is_due(now);
        if self.next_look <= now.instant {
            self.next_look = now.instant + LOOK_EVERY;
            self.look_ahead(now);
            self.expire_leases(now);
            self.retry_ingresses();
            self.forget_orphaned_drains(now);
            self.finish_key_change(now);
            self.rotate_old_gossip_key(now);
        }
        self.settle_estates(now);
        self.ask_hosts(now);
        self.check_what_is_due(now);
        self.seek_on(now);
        self.count_what_is_due(now);
        self.poll_on(now);
        self.expire_operations(now);
        self.settle(now);
    }

    fn give_up_the_unheard(&mut self, now: Now) {
        let unheard: Vec<_> = self
            .catalogue
            .nodes()
            .filter(|(_, node)| node.presence == Presence::Unheard)
            .map(|(id, node)| (id, node.incarnation))
            .collect();
        for (id, incarnation) in unheard {
            self.catalogue.set_presence(id, Presence::Down, incarnation);
            self.believe(id, Presence::Down, true, now);
            self.node_event(crate::api::types::EventKind::NodeDown, id);
            self.host_changed_at(Place::Node(id));
        }
    }
}
