//! What containers are called and what they serve: read from Docker, told the cluster.
//!
//! dockerd shows a container that it starts or stops only when it has done so, and says meanwhile which network it has
//! put it on. What a container is called is read while it rests, and told the cluster as soon as it has an endpoint: its
//! name is known before it runs.

mod inspections;

use std::collections::{BTreeMap, BTreeSet};

use weft_types::EndpointId;

pub use self::inspections::Inspected;
use self::inspections::Inspections;
use super::{
    engine::{Attached, Container, Engine, EngineEvent},
    labels,
    owner::Owner,
    watcher::Trouble,
};
use crate::{
    api::{ErrorKind, types::ServiceChanged},
    control::docker::{Description, DockerCommand},
};

/// Signals that do not mean the end of a container: SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH.
const HARMLESS: [&str; 4] = ["1", "10", "12", "28"];
/// Containers that do not run and are known nevertheless. The names of others are known when they run.
const MAX_RESTING: usize = 1024;

/// What is to be looked at, and what was seen.
#[derive(Default)]
pub struct Containers {
    /// Whether everything was looked at since the agent saw this Docker.
    looked: bool,
    is_compared: bool,
    touched: BTreeSet<String>,
    /// Containers that were told to stop: they get no new connections.
    stopping: BTreeSet<String>,
    /// Who was put on a network: the network's id and the container's.
    joined: Vec<(String, String)>,
    /// Containers that do not run.
    resting: BTreeMap<String, Container>,
    inspections: Inspections,
    collection: Option<Collection>,
}

/// Endpoints that no container may have, of those that there were before containers were looked at: dockerd was
/// killed, or the agent was away, before it could say so.
struct Collection {
    nobodys: BTreeSet<EndpointId>,
    /// Who could have them and is still to be seen.
    waiting: BTreeSet<String>,
    /// Those that run are looked at first, all others only if something is left. A container that is about to have an
    /// endpoint may not run yet; dockerd shows it when it runs, or has failed.
    seen: BTreeSet<String>,
    is_last: bool,
}

impl Containers {
    pub fn look_again(&mut self) {
        self.is_compared = false;
    }

    /// Takes note of what happened to the container on a network.
    pub fn note_network(&mut self, event: &EngineEvent) {
        let Some(container) = event.actor.attributes.get("container") else {
            return;
        };
        if event.action == "connect" {
            self.joined.push((event.actor.id.clone(), container.clone()));
        }
        self.touched.insert(container.clone());
    }

    /// Takes note of what happened to a container. One that was just made is looked at before it is started, if dockerd
    /// can be asked as quickly as that.
    pub fn note(&mut self, event: &EngineEvent, engine: &Engine) {
        let id = &event.actor.id;
        match event.action.as_str() {
            "kill" => {
                let signal = event.actor.attributes.get("signal");
                if signal.is_some_and(|signal| HARMLESS.contains(&signal.as_str())) {
                    return;
                }
                self.stopping.insert(id.clone());
            }
            "start" | "die" | "destroy" => {
                self.stopping.remove(id);
            }
            "create" if !self.inspections.is_full() => return self.inspections.start(id.clone(), engine),
            "create" | "rename" | "unpause" => {}
            health if health.starts_with("health_status") => {}
            _ => return,
        }
        self.touched.insert(id.clone());
    }

    /// Tells what can be told at once, and begins to look at what was touched, or at everything.
    pub async fn look(&mut self, engine: &Engine, owner: &Owner) -> Result<(), Trouble> {
        for (network, container) in std::mem::take(&mut self.joined) {
            self.announce(&network, &container, engine, owner).await?;
        }
        if !self.is_compared {
            self.is_compared = true;
            // Read before the containers are: an endpoint that is made meanwhile is none that nobody has.
            let nobodys = owner.ask(DockerCommand::Endpoints).await?.into_iter().collect();
            let is_first = !std::mem::replace(&mut self.looked, true);
            let waiting: BTreeSet<_> = engine.containers(is_first).await?.into_iter().collect();
            self.touched.extend(waiting.iter().cloned());
            self.collection = Some(Collection {
                nobodys,
                seen: waiting.clone(),
                waiting,
                is_last: is_first,
            });
            self.collect(engine, owner).await?;
        }
        for id in self.touched.clone() {
            if self.inspections.is_full() {
                break;
            }
            // One that is being looked at is looked at again after that.
            if !self.inspections.has(&id) {
                self.touched.remove(&id);
                self.inspections.start(id, engine);
            }
        }
        Ok(())
    }

    /// The next container that dockerd shows; `None` if none is being looked at. Cancel-safe.
    pub async fn inspected(&mut self) -> Option<Inspected> {
        self.inspections.next().await
    }

    /// Tells the cluster what was seen.
    pub async fn take_in(
        &mut self,
        Inspected { id, answer }: Inspected,
        engine: &Engine,
        owner: &Owner,
    ) -> Result<(), Trouble> {
        if self.touched.contains(&id) {
            // It has changed since.
            return Ok(());
        }
        self.resting.remove(&id);
        match answer {
            Ok(container) if container.state.running => {
                let known: BTreeSet<_> = owner.ask(DockerCommand::Endpoints).await?.into_iter().collect();
                for attached in container.network_settings.networks.values() {
                    let Some(endpoint) = endpoint_of(&attached.endpoint) else {
                        continue;
                    };
                    if let Some(collection) = &mut self.collection {
                        collection.nobodys.remove(&endpoint);
                    }
                    if known.contains(&endpoint) {
                        self.describe(&container, attached, endpoint, owner).await?;
                    }
                }
            }
            // The endpoints that it shows are left over from before it stopped, or dockerd was killed.
            Ok(container) => {
                if self.resting.len() < MAX_RESTING {
                    self.resting.insert(id.clone(), container);
                }
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                // Nobody knows what it has. Everything is looked at again before long.
                tracing::debug!(container = %id, reason = %error, "a container cannot be looked at");
                self.collection = None;
            }
        }
        if let Some(collection) = &mut self.collection {
            collection.waiting.remove(&id);
            self.collect(engine, owner).await?;
        }
        Ok(())
    }

    /// Tells what a container is called that is on a network and does not run yet.
    async fn announce(&self, network: &str, id: &str, engine: &Engine, owner: &Owner) -> Result<(), Trouble> {
        let Some(container) = self.resting.get(id) else {
            return Ok(());
        };
        let members = match engine.members(network).await {
            Ok(members) => members,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let endpoint = members.containers.get(id);
        let Some(endpoint) = endpoint.and_then(|member| endpoint_of(&member.endpoint)) else {
            return Ok(());
        };
        // Until it runs, its networks are called what whoever made it called them.
        let mut attached = container.network_settings.networks.iter();
        let attached = attached.find(|(called, _)| members.network.is_called(called));
        let attached = attached.map(|(_, attached)| attached.clone()).unwrap_or_default();
        self.describe(container, &attached, endpoint, owner).await
    }

    async fn describe(
        &self,
        container: &Container,
        attached: &Attached,
        id: EndpointId,
        owner: &Owner,
    ) -> Result<(), Trouble> {
        if let Some(service) = labels::service_to_make(container) {
            self.make_service(service, container, attached, owner).await?;
        }
        let description = Description {
            leaving: self.stopping.contains(&container.id),
            ..labels::description(container, attached, id)
        };
        if let Err(error) = owner.ask(|to| DockerCommand::Describe(description, to)).await {
            tracing::warn!(container = %container.name, reason = %error, "what it is called cannot be told the cluster");
        }
        Ok(())
    }

    /// A service that is there already stays as it is.
    async fn make_service(
        &self,
        name: &str,
        container: &Container,
        attached: &Attached,
        owner: &Owner,
    ) -> Result<(), Trouble> {
        let networks = owner.ask(DockerCommand::Networks).await?;
        let network = networks
            .iter()
            .find(|network| network.docker.contains(&attached.network));
        let Some(network) = network.map(|network| network.id) else {
            return Ok(());
        };
        let request = match labels::service_request(name.to_owned(), network, container) {
            Ok(request) => request,
            Err(reason) => {
                tracing::warn!(container = %container.name, %reason, "its labels make no service");
                return Ok(());
            }
        };
        match owner.ask(|to| DockerCommand::MakeService(request, to)).await {
            Ok(ServiceChanged { summary: made, .. }) => {
                tracing::info!(service = %made.name, network = %made.network_name, "service made")
            }
            Err(error) if error.kind == ErrorKind::Conflict => {}
            Err(error) => {
                tracing::warn!(container = %container.name, reason = %error, "its service cannot be made")
            }
        }
        Ok(())
    }

    /// Removes what nobody has, when all are seen who could have it.
    async fn collect(&mut self, engine: &Engine, owner: &Owner) -> Result<(), Trouble> {
        let done = self
            .collection
            .take_if(|collection| collection.waiting.is_empty());
        let Some(mut collection) = done.filter(|collection| !collection.nobodys.is_empty()) else {
            return Ok(());
        };
        if !collection.is_last {
            collection.is_last = true;
            collection.waiting = engine.containers(true).await?.into_iter().collect();
            collection.waiting.retain(|id| !collection.seen.contains(id));
            self.touched.extend(collection.waiting.iter().cloned());
            if !collection.waiting.is_empty() {
                self.collection = Some(collection);
                return Ok(());
            }
        }
        for id in collection.nobodys {
            tracing::info!(endpoint = %id.short(), "no container has it any more: it is removed");
            owner.ask(|to| DockerCommand::Collect(id, to)).await?;
        }
        Ok(())
    }
}

/// Of ours, by what Docker calls it.
pub(super) fn endpoint_of(docker: &str) -> Option<EndpointId> {
    docker.get(..32)?.parse().ok()
}
