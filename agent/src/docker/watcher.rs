//! Keeps Docker's networks and the cluster's the same, and learns what containers are called.
//!
//! A task beside the driver, never part of answering it: dockerd may hold locks during a request that the
//! answer of its API needs. What it knows it reads again whenever Docker or the cluster says that something
//! changed, and now and then; so it does not matter what it missed.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    containers::Containers,
    engine::{Engine, EngineError, EngineEvent, Events},
    networks::Networks,
    owner::Owner,
};
use crate::{api::ApiError, control::docker::DockerCommand};

/// What a container may take to stop after it was told to; who takes longer gets new connections again if the agent was away.
const LONGEST_STOP: Duration = Duration::from_secs(600);
/// How often it is looked whether Docker is there.
const RETRY: Duration = Duration::from_secs(1);
/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(30);
/// How often everything is compared when nothing happens.
const COMPARE: Duration = Duration::from_secs(30);

/// What stops the watcher until Docker is there again.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Owner(#[from] ApiError),
}

/// The task; it ends when this is dropped.
pub struct Watcher(JoinHandle<()>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watcher {
    /// Watches the Docker at `socket`, whose name for our driver is `driver`. `changes` tells that the
    /// cluster has changed.
    pub fn start(
        socket: PathBuf,
        driver: String,
        commands: mpsc::Sender<DockerCommand>,
        changes: watch::Receiver<u64>,
    ) -> Self {
        let owner = Owner::new(commands);
        Self(tokio::spawn(run(socket, driver, owner, changes)))
    }
}

async fn run(socket: PathBuf, driver: String, owner: Owner, mut changes: watch::Receiver<u64>) {
    loop {
        if socket.exists() {
            let Err(trouble) = follow(&socket, &driver, &owner, &mut changes).await;
            tracing::info!(reason = %trouble, "Docker's API cannot be used; it is tried again");
            // A cluster that is gone needs to be told nothing.
            let _ = owner.ask_if_member(|to| DockerCommand::Watched(false, to)).await;
        }
        sleep(RETRY).await;
    }
}

async fn follow(
    socket: &Path,
    driver: &str,
    owner: &Owner,
    changes: &mut watch::Receiver<u64>,
) -> Result<Infallible, Trouble> {
    let engine = Engine::connect(socket).await?;
    // Before the first look, so that nothing falls between the two. That a container was told to stop shows nowhere else.
    let mut events = engine.events(SystemTime::now() - LONGEST_STOP).await?;
    tracing::info!("Docker's networks and containers are followed");
    let mut networks = Networks::new(driver);
    let mut containers = Containers::default();
    let mut compare_at = Instant::now() + COMPARE;
    note_all(&mut events, &mut networks, &mut containers, &engine).await?;
    loop {
        changes.mark_unchanged();
        // Asked each time: the node may have joined its cluster since.
        let member = owner.ask_if_member(|to| DockerCommand::Watched(true, to)).await?;
        if member.is_some() {
            let cluster = owner.ask(DockerCommand::Networks).await?;
            networks.compare(cluster, &engine, owner).await?;
            containers.look(&engine, owner).await?;
        }
        // Every arm takes one whole thing, or waits for a moment.
        tokio::select! {
            event = events.next() => note(&event?, &mut networks, &mut containers, &engine),
            Some(inspected) = containers.inspected() => {
                containers.take_in(inspected, &engine, owner).await?;
                continue;
            }
            changed = changes.changed() => {
                changed.map_err(|_| ApiError::unavailable("the agent is stopping"))?;
            }
            () = sleep_until(compare_at) => {
                compare_at = Instant::now() + COMPARE;
                networks.look_again();
                containers.look_again();
            }
        }
        note_all(&mut events, &mut networks, &mut containers, &engine).await?;
    }
}

/// What comes within a moment.
async fn note_all(
    events: &mut Events,
    networks: &mut Networks,
    containers: &mut Containers,
    engine: &Engine,
) -> Result<(), EngineError> {
    let gathered = Instant::now() + GATHER;
    while let Ok(event) = timeout_at(gathered, events.next()).await {
        note(&event?, networks, containers, engine);
    }
    Ok(())
}

fn note(event: &EngineEvent, networks: &mut Networks, containers: &mut Containers, engine: &Engine) {
    if event.r#type == "network" {
        if ["create", "destroy", "remove"].contains(&event.action.as_str()) {
            networks.look_again();
        }
        containers.note_network(event);
    } else {
        containers.note(event, engine);
    }
}
