//! The last events, and those to come, for whoever follows them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::sync::broadcast;

use crate::api::types::Event;

/// How many events are remembered.
const MEMORY: usize = 1_000;

#[derive(Clone)]
pub(super) struct EventLog(Arc<Shared>);

struct Shared {
    past: Mutex<VecDeque<Event>>,
    /// A follower that is more than [`MEMORY`] events behind loses the oldest, and is told so.
    live: broadcast::Sender<Event>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self(Arc::new(Shared {
            past: Mutex::default(),
            live: broadcast::channel(MEMORY).0,
        }))
    }
}

impl EventLog {
    pub(super) fn push(&self, event: Event) {
        let mut past = self.0.past.lock().expect("no holder panics");
        if past.len() == MEMORY {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Nobody following is fine. Sent under the lock, so that no event is missed or seen twice
        // by somebody who begins to follow now.
        let _ = self.0.live.send(event);
    }

    /// What is remembered, and a receiver of all that comes after it.
    pub(super) fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let past = self.0.past.lock().expect("no holder panics");
        (past.iter().cloned().collect(), self.0.live.subscribe())
    }
}
