//! Containers that dockerd was asked to show. It shows one when it has started or stopped it, and nobody else waits for that.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use crate::docker::engine::{Container, Engine, EngineError};

/// Asked for at once. More wait for their turn.
const MAX: usize = 32;

/// What dockerd answered.
pub struct Inspected {
    pub id: String,
    pub answer: Result<Container, EngineError>,
}

#[derive(Default)]
pub struct Inspections {
    tasks: JoinSet<Inspected>,
    running: BTreeSet<String>,
}

impl Inspections {
    pub fn is_full(&self) -> bool {
        self.tasks.len() >= MAX
    }

    /// Whether it is being looked at.
    pub fn has(&self, id: &str) -> bool {
        self.running.contains(id)
    }

    pub fn start(&mut self, id: String, engine: &Engine) {
        self.running.insert(id.clone());
        let engine = engine.clone();
        self.tasks.spawn(async move {
            let answer = engine.container(&id).await;
            Inspected { id, answer }
        });
    }

    /// The next answer; `None` if none is waited for. Cancel-safe.
    pub async fn next(&mut self) -> Option<Inspected> {
        let inspected = self.tasks.join_next().await?.expect("no task is aborted");
        self.running.remove(&inspected.id);
        Some(inspected)
    }
}
