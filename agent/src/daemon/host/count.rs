//! What the clients of this host have open and have tried, and what keeping its kernel right took.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use weft_lb::Service;
use weft_netlink::{netns::Netns, route::Losses};
use weft_types::{EndpointId, NetworkId, ServiceId};

use super::{Host, LOOK_EVERY, Said, sandbox_name, sentence, target};
use crate::{
    control::{CountOrder, SandboxTables, Traffic},
    metrics::Work,
};

/// What is known of a host when somebody looks.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct Measured {
    pub(in crate::daemon) work: Work,
    /// Of the clients of this host, by backend.
    pub(in crate::daemon) traffic: BTreeMap<EndpointId, Traffic>,
    /// Of the devices that carry networks to other hosts.
    pub(in crate::daemon) losses: BTreeMap<NetworkId, Losses>,
}

impl Host {
    pub(super) fn measure(&mut self) -> Measured {
        let tables = self.balanced.values().flat_map(|sandbox| &sandbox.tables);
        let seen = tables
            .flat_map(|table| table.services.iter())
            .map(|service| service.id);
        let wanted = seen.chain(self.entry.services()).collect();
        let traffic = self.traffic(&wanted, true);
        let traffic = traffic.inspect_err(|error| tracing::warn!(%error, "connections cannot be counted"));
        Measured {
            work: self.work,
            traffic: traffic.unwrap_or_default(),
            losses: self.kernel.losses().collect(),
        }
    }

    /// Forgets what was counted for backends that nobody here sees any more. It goes through all of them: for somebody who asks,
    /// not for every change.
    pub(super) fn forget_gone(&mut self) {
        let mut tally = std::mem::take(&mut self.tally);
        tally.retain(self.backends());
        self.tally = tally;
    }

    /// All backends of all services that clients on this host see.
    fn backends(&self) -> impl Iterator<Item = EndpointId> {
        let tables = self.balanced.values().flat_map(|sandbox| &sandbox.tables);
        let services = tables.flat_map(|table| table.services.iter());
        let seen = services.flat_map(|service| &service.backends);
        let seen = seen.map(|backend| backend.endpoint);
        seen.chain(self.entry.backends())
    }

    /// Says what clients have tried with services that want to know.
    pub(super) fn tell(&mut self) {
        let watched = self.state.as_ref().map(|state| &state.watched);
        let Some(watched) = watched.filter(|watched| !watched.is_empty()) else {
            return;
        };
        if self.told.elapsed() < LOOK_EVERY {
            return;
        }
        self.told = Instant::now();
        let watched = watched.clone();
        match self.tally_up(&watched) {
            Ok(()) => drop(self.said.send(Said::Tried(self.tally.sums().clone()))),
            Err(error) => tracing::warn!(%error, "it is not known which connections fail"),
        }
    }

    pub(super) fn count(&mut self, order: CountOrder) {
        let counted = self.traffic(&order.services, order.with_attempts);
        let counted = counted.inspect_err(|error| tracing::warn!(%error, "connections cannot be counted"));
        let _ = self.said.send(Said::Counted(order, counted.ok()));
    }

    fn traffic(
        &mut self,
        wanted: &BTreeSet<ServiceId>,
        with_attempts: bool,
    ) -> Result<BTreeMap<EndpointId, Traffic>, String> {
        let open = self.open_to(wanted)?.into_iter();
        let mut traffic: BTreeMap<_, _> = open.map(|(id, open)| (id, Traffic::open(open))).collect();
        if with_attempts {
            self.tally_up(wanted)?;
            for (endpoint, attempts) in self.tally.sums() {
                *traffic.entry(*endpoint).or_default() += *attempts;
            }
        }
        Ok(traffic)
    }

    /// The open connections to the backends of some services, of all sandboxes that have them and from outside.
    fn open_to(&self, wanted: &BTreeSet<ServiceId>) -> Result<BTreeMap<EndpointId, u64>, String> {
        let datapath = &self.datapath;
        let counts = wanted.iter().filter_map(|service| datapath.connections(*service));
        let mut counts: Vec<_> = counts.collect();
        self.each_client(wanted, |name, netns, services| {
            let counted = datapath.count(name, netns, services);
            counts.push(counted.map_err(|error| sentence(&error))?);
            Ok(())
        })?;
        counts.extend(self.entry.count(&self.kernel, wanted)?);
        let mut open = BTreeMap::new();
        for (endpoint, count) in counts.into_iter().flatten() {
            *open.entry(endpoint).or_default() += count;
        }
        Ok(open)
    }

    /// Takes in what clients here have tried so far with the backends of some services.
    fn tally_up(&mut self, wanted: &BTreeSet<ServiceId>) -> Result<(), String> {
        self.forget_gone();
        let datapath = &self.datapath;
        let mut shown = Vec::new();
        for service in wanted {
            shown.extend(
                datapath
                    .attempts(*service)
                    .map(|shows| (format!("host {service}"), shows)),
            );
        }
        self.each_client(wanted, |name, netns, services| {
            let shows = datapath.attempts_of(name, netns, services);
            shown.push((name.to_owned(), shows.map_err(|error| sentence(&error))?));
            Ok(())
        })?;
        shown.extend(self.entry.attempts(&self.kernel, wanted)?);
        for (source, shows) in shown {
            self.tally.take(&source, shows);
        }
        Ok(())
    }

    /// Every sandbox that has some of these services, and which.
    fn each_client(
        &self,
        wanted: &BTreeSet<ServiceId>,
        mut each: impl FnMut(&str, &Netns, &[&Service]) -> Result<(), String>,
    ) -> Result<(), String> {
        for SandboxTables { sandbox, tables } in self.state.iter().flat_map(|state| &state.sandboxes) {
            let services = tables.iter().flat_map(|table| table.services.iter());
            let services = services.filter(|service| wanted.contains(&service.id));
            let services: Vec<_> = services.map(|service| &**service).collect();
            if services.is_empty() || !target::still_there(sandbox) {
                continue;
            }
            let netns = Netns::open(&sandbox.path).map_err(|error| sentence(&error))?;
            each(&sandbox_name(sandbox), &netns, &services)?;
        }
        Ok(())
    }
}
