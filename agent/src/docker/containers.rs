//! What containers are called and what they serve: read from Docker, told the cluster.

use std::collections::{BTreeMap, BTreeSet};

use weft_types::{EndpointId, NetworkId};

use super::{
    engine::{Attached, Container, Engine, EngineEvent},
    owner::Owner,
    watcher::Trouble,
};
use crate::{
    api::{
        ErrorKind,
        types::{HealthCheck, Scheduler, ServiceChanged, ServiceCreateRequest, ServicePort, Tuning},
    },
    control::{
        HealthState,
        docker::{Description, DockerCommand},
        records::SandboxSpec,
    },
    daemon::target,
};

/// Signals that do not mean the end of a container: SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH.
const HARMLESS: [&str; 4] = ["1", "10", "12", "28"];

/// What is to be looked at.
pub struct Containers {
    all: bool,
    touched: BTreeSet<String>,
    /// Containers that were told to stop: they get no new connections.
    stopping: BTreeSet<String>,
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            all: true,
            touched: BTreeSet::new(),
            stopping: BTreeSet::new(),
        }
    }
}

impl Containers {
    pub fn look_again(&mut self) {
        self.all = true;
    }

    pub fn touch(&mut self, container: &str) {
        self.touched.insert(container.to_owned());
    }

    /// Takes note of what happened to a container.
    pub fn note(&mut self, event: &EngineEvent) {
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
            "rename" | "unpause" => {}
            health if health.starts_with("health_status") => {}
            _ => return,
        }
        self.touch(id);
    }

    /// Looks at what was touched, or at everything.
    pub async fn look(&mut self, engine: &Engine, owner: &Owner) -> Result<(), Trouble> {
        let mut touched = std::mem::take(&mut self.touched);
        let all = std::mem::take(&mut self.all);
        if all {
            touched.extend(engine.containers(false).await?);
        }
        if touched.is_empty() && !all {
            return Ok(());
        }
        // Read before the containers are: an endpoint that is made meanwhile is none that nobody has.
        let mut nobodys: BTreeSet<EndpointId> =
            owner.ask(DockerCommand::Endpoints).await?.into_iter().collect();
        let known = nobodys.clone();
        for id in &touched {
            let container = match engine.container(id).await {
                Ok(container) => container,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            for attached in container.network_settings.networks.values() {
                let Some(endpoint) = endpoint_of(attached) else {
                    continue;
                };
                if !container.state.running {
                    // Left over from before dockerd was killed.
                    continue;
                }
                nobodys.remove(&endpoint);
                if known.contains(&endpoint) {
                    self.describe(&container, attached, endpoint, owner).await?;
                }
            }
        }
        if all && !nobodys.is_empty() {
            collect(nobodys, &touched, engine, owner).await?;
        }
        Ok(())
    }

    async fn describe(
        &self,
        container: &Container,
        attached: &Attached,
        id: EndpointId,
        owner: &Owner,
    ) -> Result<(), Trouble> {
        let labels = &container.config.labels;
        let label = |name: &str| {
            labels
                .get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let compose = label("com.docker.compose.service");
        let name = container.name.trim_start_matches('/');
        let short = container.id.get(..12).unwrap_or(&container.id);
        let aliases = attached.aliases.iter().map(String::as_str);
        let aliases = aliases.chain(compose).chain([short, &container.config.hostname]);
        let weight = match label("weft.weight").map(str::parse::<u16>) {
            Some(Ok(weight)) => weight,
            Some(Err(_)) => {
                tracing::warn!(
                    container = name,
                    "its label weft.weight is not a number from 0 to 65535"
                );
                1
            }
            None => 1,
        };
        let service = label("weft.service").or(compose).map(str::to_owned);
        // A service of Compose with one container is a name; with several, it is a service.
        let number = label("com.docker.compose.container-number").and_then(|number| number.parse().ok());
        let is_service = label("weft.service").is_some() || number.is_some_and(|number: u32| number > 1);
        let description = Description {
            id,
            name: name.to_owned(),
            aliases: aliases.map(str::to_owned).collect(),
            service: service.clone(),
            weight,
            sandbox: sandbox_of(container),
            leaving: self.stopping.contains(&container.id),
            health: health_of(container),
        };
        if let Some(service) = service.filter(|_| is_service) {
            self.make_service(service, container, attached, owner).await?;
        }
        if let Err(error) = owner.ask(|to| DockerCommand::Describe(description, to)).await {
            tracing::warn!(container = name, reason = %error, "what it is called cannot be told the cluster");
        }
        Ok(())
    }

    /// A service that is there already stays as it is.
    async fn make_service(
        &self,
        name: String,
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
        let request = match service_request(name, network, container) {
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
}

/// Removes endpoints that no container has, of those that were there before the containers were looked at: dockerd was
/// killed, or the agent was away, before it could say so.
///
/// A container that is about to have one may not run yet. dockerd shows it when it runs, or has failed.
async fn collect(
    mut nobodys: BTreeSet<EndpointId>,
    seen: &BTreeSet<String>,
    engine: &Engine,
    owner: &Owner,
) -> Result<(), Trouble> {
    let all = engine.containers(true).await?;
    for id in all.iter().filter(|id| !seen.contains(*id)) {
        match engine.container(id).await {
            Ok(container) if container.state.running => {
                let attached = container.network_settings.networks.values();
                attached.filter_map(endpoint_of).for_each(|endpoint| {
                    nobodys.remove(&endpoint);
                });
            }
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    for id in nobodys {
        tracing::info!(endpoint = %id.short(), "no container has it any more: it is removed");
        owner.ask(|to| DockerCommand::Collect(id, to)).await?;
    }
    Ok(())
}

fn endpoint_of(attached: &Attached) -> Option<EndpointId> {
    attached.endpoint.get(..32)?.parse().ok()
}

/// What Docker's health check of a container says, if it has one.
fn health_of(container: &Container) -> Option<HealthState> {
    match container.state.health.as_ref()?.status.as_str() {
        "starting" => Some(HealthState::Starting),
        "healthy" => Some(HealthState::Healthy),
        "unhealthy" => Some(HealthState::Unhealthy),
        _ => None,
    }
}

/// How the label `weft.health` and those that begin with it want a service's containers to be checked.
fn health_check(labels: &BTreeMap<String, String>) -> Result<Option<HealthCheck>, String> {
    let Some(test) = labels.get("weft.health") else {
        return Ok(None);
    };
    let mut check = HealthCheck::new(test.parse().map_err(|error| format!("weft.health: {error}"))?);
    let HealthCheck {
        interval_ms,
        timeout_ms,
        start_period_ms,
        retries,
        ..
    } = &mut check;
    for (name, value) in [
        ("interval", interval_ms),
        ("timeout", timeout_ms),
        ("start-period", start_period_ms),
    ] {
        if let Some(text) = labels.get(&format!("weft.health.{name}")) {
            let time = humantime::parse_duration(text).ok();
            let ms = time.and_then(|time| u32::try_from(time.as_millis()).ok());
            *value = ms.ok_or_else(|| format!("weft.health.{name}=`{text}` is not a time such as 5s"))?;
        }
    }
    if let Some(text) = labels.get("weft.health.retries") {
        let number = text.parse();
        *retries = number.map_err(|_| format!("weft.health.retries=`{text}` is not a number"))?;
    }
    Ok(Some(check))
}

/// The container's namespace: where dockerd keeps it if that can be seen from here, else its process's.
fn sandbox_of(container: &Container) -> Option<SandboxSpec> {
    let kept = target::resolve(&container.network_settings.sandbox_key);
    kept.or_else(|_| target::resolve(&format!("pid:{}", container.state.pid)))
        .ok()
}

fn service_request(
    name: String,
    network: NetworkId,
    container: &Container,
) -> Result<ServiceCreateRequest, String> {
    let labels = &container.config.labels;
    let ports = labels.get("weft.port").map(String::as_str).unwrap_or_default();
    let ports = ports.split(',').map(str::trim).filter(|port| !port.is_empty());
    let ports = ports.map(|port| port.parse::<ServicePort>().map_err(|error| error.to_string()));
    let scheduler = match labels.get("weft.lb") {
        None => Scheduler::default(),
        Some(text) => Scheduler::ALL
            .into_iter()
            .find(|scheduler| scheduler.to_string() == *text)
            .ok_or_else(|| format!("weft.lb=`{text}` is none of rr, wrr and lc"))?,
    };
    Ok(ServiceCreateRequest {
        network: network.to_string(),
        name,
        scheduler,
        endpoint_mode: Default::default(),
        ports: ports.collect::<Result<_, _>>()?,
        health: health_check(labels)?,
        publish: Vec::new(),
        tuning: match labels.get("weft.eject") {
            None => Tuning::default(),
            Some(text) => Tuning::read_eject(text).map_err(|error| format!("weft.eject: {error}"))?,
        },
    })
}
