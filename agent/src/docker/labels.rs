//! What a container's labels and its state at Docker make of it in the cluster.

use std::collections::BTreeMap;

use weft_types::{EndpointId, NetworkId};

use super::engine::{Attached, Container};
use crate::{
    api::types::{HealthCheck, Scheduler, ServiceCreateRequest, ServicePort, Tuning},
    control::{HealthState, docker::Description, records::SandboxSpec},
    daemon::target,
};

/// What Compose calls the service that a container belongs to.
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// What the cluster is to know of a container on one of its networks.
pub fn description(container: &Container, attached: &Attached, id: EndpointId) -> Description {
    let name = container.name.trim_start_matches('/');
    let short = container.id.get(..12).unwrap_or(&container.id);
    let aliases = attached.aliases.iter().map(String::as_str);
    let aliases = aliases
        .chain(label(container, COMPOSE_SERVICE))
        .chain([short, &container.config.hostname]);
    let weight = label(container, "weft.weight").map_or(Ok(1), str::parse);
    if weight.is_err() {
        tracing::warn!(
            container = name,
            "its label weft.weight is not a number from 0 to 65535"
        );
    }
    let running = container.state.running;
    Description {
        id,
        name: name.to_owned(),
        aliases: aliases.map(str::to_owned).collect(),
        // Nothing listens yet in one that does not run.
        service: service_of(container).filter(|_| running).map(str::to_owned),
        weight: weight.unwrap_or(1),
        sandbox: if running { sandbox_of(container) } else { None },
        leaving: false,
        health: health_of(container),
        is_early: !running,
    }
}

/// The service that a container serves.
fn service_of(container: &Container) -> Option<&str> {
    label(container, "weft.service").or(label(container, COMPOSE_SERVICE))
}

/// The service to make if there is none: a service of Compose with one container is a name; with several, it is a
/// service.
pub fn service_to_make(container: &Container) -> Option<&str> {
    let number = label(container, "com.docker.compose.container-number");
    let is_one_of_many = number
        .and_then(|number| number.parse().ok())
        .is_some_and(|number: u32| number > 1);
    let is_service = label(container, "weft.service").is_some() || is_one_of_many;
    service_of(container).filter(|_| is_service)
}

/// A label that says something.
fn label<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let value = container.config.labels.get(name)?;
    (!value.is_empty()).then_some(value)
}

/// What Docker's health check of a container says, if it has one.
///
/// One that does not run yet will have to pass its check first.
fn health_of(container: &Container) -> Option<HealthState> {
    if !container.state.running {
        let check = container.config.healthcheck.as_ref()?;
        let is_off = check.test.first().is_none_or(|word| word == "NONE");
        return (!is_off).then_some(HealthState::Starting);
    }
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

/// The service that a container's labels ask for.
pub fn service_request(
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
