//! A backend that has just come gets a share that grows.
//!
//! Whoever has no connections is the first choice of least connection until it has as many as the others: a backend that
//! has just been started would get every new connection, with empty caches. So its weight begins with a tenth of
//! what it is to be and grows by a tenth at a time.
//!
//! Each host decides for its own clients, from when it saw the backend become active. Datapaths see weights only.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use weft_types::{EndpointId, ServiceId};

use crate::{BackendState, Scheduler, Service};

#[cfg(test)]
mod proptests;

/// In so many steps a share grows to the whole.
const STEPS: u16 = 10;

/// Since when the backends of services are active.
///
/// [Observe](Round::observe) every service whenever something may have changed and when [`poll_timeout`](Self::poll_timeout)
/// says so, then [`apply`](Self::apply) it to what datapaths are given.
#[derive(Debug, Default)]
pub struct SlowStart {
    services: HashMap<ServiceId, BTreeMap<EndpointId, Growth>>,
    due: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Growth {
    /// None if it was there before anybody looked.
    since: Option<Instant>,
    step: u16,
}

impl SlowStart {
    /// Begins a look at all services: those that are not observed before the next one are forgotten.
    pub fn begin(&mut self) -> Round<'_> {
        let before = std::mem::take(&mut self.services);
        self.due = None;
        Round { to: self, before }
    }

    /// Whether a share grows now: then all services are to be looked at.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// When the next share grows.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// What a backend has of its share, in tenths, while that is not all.
    pub fn tenths(&self, service: ServiceId, endpoint: EndpointId) -> Option<u16> {
        let growth = self.services.get(&service)?.get(&endpoint)?;
        (growth.step < STEPS).then_some(growth.step)
    }

    /// Gives the backends of a service the weights that they have by now.
    pub fn apply(&self, service: &mut Service) {
        let is_weighted = matches!(
            service.scheduler,
            Scheduler::LeastConnections | Scheduler::WeightedRoundRobin
        );
        let steps = |endpoint| self.tenths(service.id, endpoint).unwrap_or(STEPS);
        let mut active = service
            .backends
            .iter()
            .filter(|backend| backend.state == BackendState::Active);
        let first = active.next().map(|backend| steps(backend.endpoint));
        // All of them together are as each of them whole.
        if !is_weighted || active.all(|backend| Some(steps(backend.endpoint)) == first) {
            return;
        }
        let heaviest = service.backends.iter().map(|backend| backend.weight.get()).max();
        // Weights that are large already have room for tenths.
        let scale = (u16::MAX / heaviest.unwrap_or(1)).min(STEPS);
        let weights: Vec<_> = service
            .backends
            .iter()
            .map(|backend| {
                let whole = u32::from(backend.weight.get()) * u32::from(scale);
                let now = whole * u32::from(steps(backend.endpoint)) / u32::from(STEPS);
                u16::try_from(now)
                    .ok()
                    .and_then(NonZeroU16::new)
                    .unwrap_or(NonZeroU16::MIN)
            })
            .collect();
        for (backend, weight) in service.backends.iter_mut().zip(weights) {
            backend.weight = weight;
        }
    }
}

/// One look at all services.
#[derive(Debug)]
pub struct Round<'a> {
    to: &'a mut SlowStart,
    before: HashMap<ServiceId, BTreeMap<EndpointId, Growth>>,
}

impl Round<'_> {
    /// Takes note of who is active at a service whose backends take `time` to grow. At the first look all have grown:
    /// after a restart nobody knows since when they are there.
    pub fn observe(&mut self, service: &Service, time: Duration, now: Instant) {
        let before = self.before.remove(&service.id);
        let active = service
            .backends
            .iter()
            .filter(|backend| backend.state == BackendState::Active);
        let pause = (time / u32::from(STEPS - 1)).max(Duration::from_nanos(1));
        let growths = active.map(|backend| {
            let since = match before.as_ref().map(|before| before.get(&backend.endpoint)) {
                None => None,
                Some(None) => Some(now),
                Some(Some(growth)) => growth.since,
            };
            let pauses =
                since.map(|since| now.saturating_duration_since(since).as_nanos() / pause.as_nanos());
            let step = pauses.map_or(STEPS, |pauses| pauses.min(u128::from(STEPS - 1)) as u16 + 1);
            // Who has grown has, whatever the time is changed to.
            let since = since.filter(|_| step < STEPS);
            if let Some(since) = since {
                let next = since + pause * u32::from(step);
                self.to.due = Some(self.to.due.map_or(next, |due| due.min(next)));
            }
            (backend.endpoint, Growth { since, step })
        });
        let growths = growths.collect();
        self.to.services.insert(service.id, growths);
    }
}
