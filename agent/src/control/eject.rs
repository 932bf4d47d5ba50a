//! Backends to which this host's clients cannot connect: who gets no connections from here for a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use weft_lb::{Attempts, EjectRule};
use weft_types::{EndpointId, NetworkId, ServiceId};

use super::{Control, Now, catalogue::Trait, touched::Place};
use crate::api::{Timestamp, types::EventKind};

/// That a host ejects a backend, as it tells others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectedUntil {
    /// Failures in a row that led to it.
    pub failures: u32,
    /// Until when, by that host's clock; only ever shown.
    pub until_millis: u64,
}

impl Control {
    /// The services whose clients are watched for what fails.
    pub(super) fn ejecting(&self) -> BTreeSet<ServiceId> {
        let services = self.catalogue.services_having(Trait::Ejects);
        let ejecting = services.filter(|(_, spec)| spec.tuning.eject().is_some());
        ejecting.map(|(id, _)| id).collect()
    }

    /// What the clients of this host have tried so far with the backends of [`ejecting`](Self::ejecting) services.
    pub fn handle_attempts(&mut self, counted: &BTreeMap<EndpointId, Attempts>, now: Now) {
        let services = self.catalogue.services_having(Trait::Ejects);
        let rules = services.filter_map(|(id, spec)| Some((id, spec, spec.tuning.eject()?)));
        let ruled: Vec<_> = rules
            .map(|(id, spec, (failures, time))| {
                let service = self.service_with_all(id, spec);
                (service, EjectRule { failures, time })
            })
            .collect();
        for (service, rule) in ruled {
            self.ejections
                .handle_attempts(&service, rule, counted, now.instant);
        }
        self.forget_ejections();
        self.tell_ejections(now);
        self.settle(now);
    }

    /// Readmits those whose time is over.
    pub(super) fn readmit_who_is_due(&mut self, now: Now) {
        self.ejections.handle_timeout(now.instant);
        if !self.ejections.is_empty() {
            self.forget_ejections();
        }
        self.tell_ejections(now);
    }

    /// Forgets the backends of services that do not eject (any more).
    fn forget_ejections(&mut self) {
        let services = self.catalogue.services_having(Trait::Ejects);
        let ejecting = services.filter(|(_, spec)| spec.tuning.eject().is_some());
        let backends = ejecting.flat_map(|(_, spec)| self.serving(spec.network, &spec.name));
        let backends: BTreeSet<EndpointId> = backends.map(|(id, _)| id).collect();
        self.ejections.retain(|endpoint| backends.contains(&endpoint));
    }

    fn tell_ejections(&mut self, now: Now) {
        while let Some(change) = self.ejections.poll_change() {
            self.host_changed_at(Place::Nothing);
            let Some(network) = self.catalogue.network_of(change.endpoint) else {
                continue;
            };
            self.host_changed_at(Place::Endpoint(network, change.endpoint));
            let kind = match change.ejected {
                Some(_) => EventKind::EndpointEjected,
                None => EventKind::EndpointReadmitted,
            };
            if change.ejected.is_some() {
                self.ejected_so_far += 1;
            }
            self.ejection_event(kind, network, change.endpoint, now);
        }
    }

    fn ejection_event(&mut self, kind: EventKind, network: NetworkId, id: EndpointId, now: Now) {
        let mut more = vec![("by", self.settings.node_name.clone())];
        if let Some(ejected) = self.ejected_until(id, now) {
            let until = Timestamp::from_unix_millis(ejected.until_millis).to_string();
            more.extend([("failures", ejected.failures.to_string()), ("until", until)]);
        }
        self.endpoint_event_with(kind, network, id, more);
    }

    /// Whether this host ejects a backend, and until when.
    pub(super) fn ejected_until(&self, endpoint: EndpointId, now: Now) -> Option<EjectedUntil> {
        let ejected = self.ejections.ejected(endpoint)?;
        let left = ejected.until.saturating_duration_since(now.instant);
        Some(EjectedUntil {
            failures: u32::try_from(ejected.failures).unwrap_or(u32::MAX),
            until_millis: now.unix_millis + rounded(left),
        })
    }
}

fn rounded(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}
