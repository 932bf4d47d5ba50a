//! The health of this host's endpoints: which probes are due, and what their results mean.
//!
//! Each endpoint of a service with a check has a [`Monitor`]. Only changes are told the cluster, in the endpoint's
//! record; so the last word is on the disk, and the next agent goes on from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    time::{Duration, Instant},
};

use rand::RngExt;
use weft_lb::{Health, Monitor, Timing};
use weft_types::{EndpointId, NetworkId};

use super::{
    Control, HealthCounts, Now,
    catalogue::{Change, Endpoint},
    finding::{EndpointHealth, Finding, HealthState},
    records::{DrainPhase, EndpointSpec, SandboxSpec, encode, endpoint_key},
};
use crate::api::{
    ApiError, Timestamp,
    types::{BackendState, EventKind, HealthCheck, HealthTest, NodeState, ServicePort},
};

/// How long another reason for the same state is kept back.
const RETELL: Duration = Duration::from_secs(30);

/// Something to be tried on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthProbe {
    pub endpoint: EndpointId,
    /// Which monitor wants to know: the result of a probe for an earlier one says nothing.
    pub asked_by: u64,
    pub sandbox: SandboxSpec,
    pub try_: Try,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Try {
    Connect(IpAddr, u16),
    Get(IpAddr, u16, String),
    Run(String),
}

/// How a probe ended: if it failed, with a reason that completes "it is unhealthy: …".
#[derive(Debug)]
pub struct HealthResult {
    pub endpoint: EndpointId,
    pub asked_by: u64,
    pub outcome: Result<(), String>,
}

/// The monitors of this host.
pub(super) struct Checks {
    watched: BTreeMap<EndpointId, Watched>,
    due: BTreeSet<(Instant, EndpointId)>,
    /// Whether services or endpoints of this host have changed since it was last looked what is to be watched.
    stale: bool,
    next_id: u64,
    ended: HealthCounts,
}

struct Watched {
    id: u64,
    wanted: Wanted,
    monitor: Monitor,
    /// When the cluster was last told something of it.
    told: Option<Instant>,
}

/// What an endpoint is checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    network: NetworkId,
    sandbox: SandboxSpec,
    try_: Try,
    timing: Timing,
    timeout: Duration,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            watched: BTreeMap::new(),
            due: BTreeSet::new(),
            stale: true,
            next_id: 0,
            ended: HealthCounts::default(),
        }
    }
}

impl Checks {
    /// How checks have ended since the agent was started.
    pub(super) fn ended(&self) -> HealthCounts {
        self.ended
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn forget(&mut self, id: EndpointId) {
        if let Some(watched) = self.watched.remove(&id)
            && let Some(due) = watched.monitor.poll_timeout()
        {
            self.due.remove(&(due, id));
        }
    }
}

impl Control {
    /// The interface of an endpoint is there.
    pub(super) fn note_attached(&mut self) {
        self.checks.stale = true;
    }

    /// Takes note of what may change what is to be checked here.
    pub(super) fn note_for_checks(&mut self, change: &Change) {
        let is_local = |network, id| {
            let endpoint = self.catalogue.endpoint(network, id);
            endpoint.is_some_and(|endpoint| endpoint.node == self.me)
        };
        self.checks.stale |= match change {
            Change::ServiceCreated(..) | Change::ServiceChanged(..) | Change::ServiceRemoved(..) => true,
            Change::EndpointAdded(network, id) | Change::EndpointChanged(network, id, _) => {
                is_local(*network, *id)
            }
            Change::EndpointRemoved(_, _, endpoint) => endpoint.node == self.me,
            _ => false,
        };
    }

    /// Whether a service with these ports can have this check.
    pub(super) fn check_health(
        &self,
        service: &str,
        check: Option<&HealthCheck>,
        ports: &[ServicePort],
    ) -> Result<(), ApiError> {
        let Some(check) = check else { return Ok(()) };
        if matches!(check.test, HealthTest::Cmd(_)) && !self.settings.health_commands {
            return Err(ApiError::forbidden(format!(
                "service `{service}` asks for a command as its health check, and this host runs none"
            ))
            .with_help(
                "use tcp or http, or start the agents of all hosts with --health-commands, which lets every node \
                 of the cluster run commands on them",
            ));
        }
        check.check(service, ports)
    }

    /// What a new endpoint of a service begins with.
    pub(super) fn first_finding(
        &self,
        network: NetworkId,
        service: Option<&str>,
        now: Now,
    ) -> Option<Finding> {
        let service = service?;
        let mut services = self.catalogue.services_called(network, service);
        let is_checked = services.any(|(_, spec)| spec.name == service && spec.health.is_some());
        is_checked.then(|| Finding::new(HealthState::Starting, "not checked yet", now.unix_millis))
    }

    /// Watches what is to be watched from now on. True if something was published on the way.
    pub(super) fn sync_checks(&mut self, now: Now) -> bool {
        // Before it is known what others know of this node, nothing is published.
        if self.reading_back.is_some() || !std::mem::take(&mut self.checks.stale) {
            return false;
        }
        let (wanted, released) = self.wanted_checks();
        let known: Vec<EndpointId> = self.checks.watched.keys().copied().collect();
        for id in known {
            let kept = wanted.get(&id) == self.checks.watched.get(&id).map(|watched| &watched.wanted);
            if !kept {
                self.checks.forget(id);
            }
        }
        for (id, wanted) in wanted {
            if self.checks.watched.contains_key(&id) {
                continue;
            }
            let finding = self.check_finding(wanted.network, id);
            // One that served its clients before there was a check goes on until it fails.
            let health = finding.map_or(Health::Healthy, |finding| match finding.state {
                HealthState::Healthy => Health::Healthy,
                HealthState::Starting => Health::Starting,
                HealthState::Unhealthy => Health::Unhealthy,
            });
            let monitor = Monitor::new(wanted.timing, health, now.instant, self.rng.random());
            self.checks
                .due
                .extend(monitor.poll_timeout().map(|due| (due, id)));
            self.checks.next_id += 1;
            let watched = Watched {
                id: self.checks.next_id,
                wanted,
                monitor,
                told: None,
            };
            self.checks.watched.insert(id, watched);
        }
        for (network, id) in &released {
            self.set_check(*network, *id, None, now);
        }
        !released.is_empty()
    }

    /// The endpoints of this host that are to be checked, and those that are not any more.
    fn wanted_checks(&self) -> (BTreeMap<EndpointId, Wanted>, Vec<(NetworkId, EndpointId)>) {
        // Of several services of a name the last one that has a check.
        let check_of = |network, service: &str| {
            let called = self.catalogue.services_called(network, service);
            let called = called.filter(|(_, spec)| spec.name == service);
            let checks = called.filter_map(|(_, spec)| {
                let check = spec.health.as_ref()?;
                Some((check, check.port(&spec.ports)))
            });
            checks.last()
        };
        let (mut wanted, mut released) = (BTreeMap::new(), Vec::new());
        for (network, id, endpoint) in self.local_endpoints() {
            let spec = &endpoint.spec;
            let service = spec.service.as_deref();
            let check = service.and_then(|service| check_of(network, service));
            // Before its interface is there, a probe would only find that out.
            let sandbox = spec.sandbox().filter(|_| self.ifnames.contains_key(&id));
            match (check, sandbox) {
                (Some((check, port)), Some(sandbox)) => {
                    wanted.extend(want(network, spec, sandbox, check, port).map(|wanted| (id, wanted)));
                }
                (Some(_), None) => {}
                (None, _) if spec.health.check.is_some() => released.push((network, id)),
                (None, _) => {}
            }
        }
        (wanted, released)
    }

    /// Asks for the probes that are due.
    pub(super) fn check_what_is_due(&mut self, now: Now) {
        while let Some((at, id)) = self.checks.due.first().copied()
            && at <= now.instant
        {
            self.checks.due.pop_first();
            let Some(Watched {
                id: asked_by,
                wanted,
                monitor,
                ..
            }) = self.checks.watched.get_mut(&id)
            else {
                continue;
            };
            monitor.begin();
            self.turn.health_probes.push(HealthProbe {
                endpoint: id,
                asked_by: *asked_by,
                sandbox: wanted.sandbox.clone(),
                try_: wanted.try_.clone(),
                timeout: wanted.timeout,
            });
        }
    }

    pub fn handle_health(&mut self, result: HealthResult, now: Now) {
        let chance = self.rng.random();
        let watched = self.checks.watched.get_mut(&result.endpoint);
        let Some(watched) = watched.filter(|watched| watched.id == result.asked_by) else {
            return;
        };
        match result.outcome {
            Ok(()) => self.checks.ended.passed += 1,
            Err(_) => self.checks.ended.failed += 1,
        }
        let changed = watched
            .monitor
            .handle_result(result.outcome.is_ok(), now.instant, chance);
        let due = watched.monitor.poll_timeout();
        self.checks.due.extend(due.map(|due| (due, result.endpoint)));
        let state = match watched.monitor.health() {
            Health::Healthy => HealthState::Healthy,
            Health::Starting => HealthState::Starting,
            Health::Unhealthy => HealthState::Unhealthy,
        };
        let reason = match state {
            HealthState::Healthy => String::new(),
            HealthState::Starting | HealthState::Unhealthy => result.outcome.err().unwrap_or_default(),
        };
        let (network, told) = (watched.wanted.network, watched.told);
        let before = self.check_finding(network, result.endpoint);
        let since = before.filter(|before| before.state == state);
        let since = since.map_or(now.unix_millis, |before| before.since_millis);
        let finding = Finding::new(state, &reason, since);
        // Another reason for the same state can wait: a command may give another one each time.
        let is_old = told.is_none_or(|told| now.instant.duration_since(told) >= RETELL);
        if changed || (before != Some(&finding) && is_old) {
            self.set_check(network, result.endpoint, Some(finding), now);
            if let Some(watched) = self.checks.watched.get_mut(&result.endpoint) {
                watched.told = Some(now.instant);
            }
        }
        self.settle(now);
    }

    fn check_finding(&self, network: NetworkId, id: EndpointId) -> Option<&Finding> {
        self.endpoint_spec(network, id)?.health.check.as_ref()
    }

    fn set_check(&mut self, network: NetworkId, id: EndpointId, check: Option<Finding>, now: Now) {
        let Some(mut spec) = self.endpoint_spec(network, id).cloned() else {
            return;
        };
        spec.health.check = check;
        if let Err(error) = self.publish(endpoint_key(network, id), encode(&spec), now) {
            self.problem(error.message);
        }
    }

    /// Whether a backend gets new connections, and if not, what keeps them from it.
    pub(super) fn backend_state(
        &self,
        network: NetworkId,
        id: EndpointId,
        backend: &Endpoint,
    ) -> BackendState {
        let drain = self.drain_of(network, id, backend);
        match (drain.map(|(phase, _)| phase), backend.spec.health.state()) {
            _ if !self.serves(backend.node) => BackendState::Down,
            (Some(DrainPhase::Draining), _) => BackendState::Draining,
            (Some(DrainPhase::Drained | DrainPhase::Cut), _) => BackendState::Drained,
            (None, HealthState::Healthy) => BackendState::Ready,
            (None, HealthState::Starting) => BackendState::Starting,
            (None, HealthState::Unhealthy) => BackendState::Unhealthy,
        }
    }

    /// Why a backend is in its state, and since when, as far as there is something to say.
    pub(super) fn backend_reason(
        &self,
        network: NetworkId,
        id: EndpointId,
        backend: &Endpoint,
    ) -> (Option<String>, Option<Timestamp>) {
        if let (true, Some((_, reason))) = (self.serves(backend.node), self.drain_of(network, id, backend)) {
            return (Some(reason), None);
        }
        let node = self.catalogue.node_name(backend.node);
        match (self.node_state(backend.node), backend.spec.health.worst()) {
            (NodeState::Down, _) => (Some(format!("node {node} does not answer")), None),
            (NodeState::Left, _) => (Some(format!("node {node} has left")), None),
            (_, None) => (None, None),
            (_, Some(finding)) => (
                Some(finding.reason.clone()).filter(|reason| !reason.is_empty()),
                Some(Timestamp::from_unix_millis(finding.since_millis)),
            ),
        }
    }

    /// Tells those who follow events that an endpoint's health is another than `before`.
    pub(super) fn health_event(&mut self, network: NetworkId, id: EndpointId, before: &EndpointHealth) {
        let Some(spec) = self.endpoint_spec(network, id) else {
            return;
        };
        let kind = match (before.state(), spec.health.state()) {
            (before, after) if before == after => return,
            (_, HealthState::Healthy) => EventKind::EndpointHealthy,
            (_, HealthState::Unhealthy) => EventKind::EndpointUnhealthy,
            (_, HealthState::Starting) => return,
        };
        self.endpoint_event(kind, network, id);
    }
}

/// Nothing for an endpoint without an address, which a record of another version may have.
fn want(
    network: NetworkId,
    spec: &EndpointSpec,
    sandbox: &SandboxSpec,
    check: &HealthCheck,
    port: Option<u16>,
) -> Option<Wanted> {
    let address = spec.addresses.first()?.addr();
    let millis = |ms: u32| Duration::from_millis(ms.into());
    Some(Wanted {
        network,
        sandbox: sandbox.clone(),
        try_: match &check.test {
            HealthTest::Tcp { .. } => Try::Connect(address, port?),
            HealthTest::Http { path, .. } => Try::Get(address, port?, path.clone()),
            HealthTest::Cmd(command) => Try::Run(command.clone()),
        },
        timing: Timing {
            interval: millis(check.interval_ms),
            retries: NonZeroU16::new(check.retries).unwrap_or(NonZeroU16::MIN),
            start_period: millis(check.start_period_ms),
        },
        timeout: millis(check.timeout_ms),
    })
}

#[cfg(test)]
mod tests;
