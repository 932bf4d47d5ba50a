//! What comes in by published ports: which of them are free on this host, and where they lead.

use std::collections::{BTreeMap, BTreeSet};

use weft_lb::{ClientTable, Datapath as _, DatapathError, Service, kernel::NftDatapath};
use weft_netlink::netns::Netns;
use weft_overlay::{
    kernel::Kernel,
    plan::{Desired, HostPort},
};
use weft_types::{EndpointId, NetworkId, ServiceId};

use super::{host::sentence, listeners, tally::Shown};
use crate::control::{Entered, EntryTable, HostReport};

pub(super) struct Entry {
    datapath: NftDatapath,
    /// Ports that this agent opened or found open.
    open: Option<BTreeSet<HostPort>>,
    /// Networks with tables in their namespaces, or perhaps with some that an earlier agent left.
    balanced: BTreeMap<NetworkId, Vec<Entered>>,
}

impl Entry {
    pub(super) fn new(datapath: NftDatapath) -> Self {
        Self {
            datapath,
            open: None,
            balanced: BTreeMap::new(),
        }
    }

    /// Somebody else may have changed what is in the kernel.
    pub(super) fn resync(&self) {
        self.datapath.resync();
    }

    /// Leaves ports alone that something else on this host waits on, and says so. What is open stays so: whoever came later
    /// could see that.
    pub(super) fn step_aside(&mut self, kernel: &Kernel, desired: &mut Desired, report: &mut HostReport) {
        let ingresses = |desired: &Desired| {
            let networks = desired.networks.values();
            networks
                .filter_map(|network| network.ingress.as_ref())
                .flat_map(|ingress| ingress.ports.iter().copied())
                .collect::<BTreeSet<HostPort>>()
        };
        let wanted = ingresses(desired);
        let open = match self.open.take() {
            Some(open) => open,
            // From the agent before this one.
            None => match kernel.open_ports() {
                Ok(ports) => ports.open.into_keys().map(|(port, _)| port).collect(),
                Err(error) => {
                    report.problems.push(sentence(&error));
                    BTreeSet::new()
                }
            },
        };
        match listeners::in_use(wanted) {
            Ok(found) => {
                for (port, address) in found {
                    let is_open = open.contains(&port);
                    report.problems.push(listeners::sentence(port, address, is_open));
                    if !is_open {
                        for network in desired.networks.values_mut() {
                            if let Some(ingress) = &mut network.ingress {
                                ingress.ports.remove(&port);
                            }
                        }
                    }
                }
            }
            Err(error) => report.problems.push(format!(
                "whether published ports are free on this host cannot be found out: {}",
                sentence(&error)
            )),
        }
        self.open = Some(ingresses(desired));
    }

    /// Counts what has come in and is open to the backends of some services.
    pub(super) fn count(
        &self,
        kernel: &Kernel,
        wanted: &BTreeSet<ServiceId>,
    ) -> Result<Vec<BTreeMap<EndpointId, u64>>, String> {
        let mut counts = Vec::new();
        self.each_network(kernel, wanted, |name, netns, services| {
            let followed = services
                .iter()
                .map(|service| self.datapath.connections(service.id));
            counts.extend(followed.flatten());
            counts.push(self.datapath.count(name, netns, services)?);
            Ok(())
        })?;
        Ok(counts)
    }

    /// What came in so far to the backends of some services, and by what it is known.
    pub(super) fn attempts(
        &self,
        kernel: &Kernel,
        wanted: &BTreeSet<ServiceId>,
    ) -> Result<Vec<(String, Shown)>, String> {
        let mut attempts = Vec::new();
        self.each_network(kernel, wanted, |name, netns, services| {
            let shown = self.datapath.attempts_of(name, netns, services)?;
            attempts.push((format!("entry {name}"), shown));
            Ok(())
        })?;
        Ok(attempts)
    }

    /// All services that something leads to.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.balanced.values().flatten().map(|entered| entered.of)
    }

    /// All backends that something leads to.
    pub(super) fn backends(&self) -> impl Iterator<Item = EndpointId> {
        let entered = self.balanced.values().flatten();
        let backends = entered.flat_map(|entered| &entered.balanced.backends);
        backends.map(|backend| backend.endpoint)
    }

    /// Every network into whose namespace something leads to some of these services, and to which.
    fn each_network(
        &self,
        kernel: &Kernel,
        wanted: &BTreeSet<ServiceId>,
        mut each: impl FnMut(&str, &Netns, &[&Service]) -> Result<(), DatapathError>,
    ) -> Result<(), String> {
        for (id, entered) in &self.balanced {
            let entered = entered.iter().filter(|entered| wanted.contains(&entered.of));
            let services: Vec<_> = entered.map(|entered| &entered.balanced).collect();
            if services.is_empty() {
                continue;
            }
            if let Some(netns) = kernel.namespace(*id).map_err(|error| sentence(&error))? {
                each(&id.short(), &netns, &services).map_err(|error| sentence(&error))?;
            }
        }
        Ok(())
    }

    /// Brings the tables of all networks up to date, and takes out those of networks that nothing leads into any more.
    pub(super) fn balance(
        &mut self,
        kernel: &Kernel,
        entries: &[EntryTable],
        desired: &Desired,
        report: &mut HostReport,
    ) {
        let known: BTreeSet<NetworkId> = desired.networks.keys().copied().collect();
        for gone in self.balanced.keys().filter(|network| !known.contains(network)) {
            // Its namespace is gone, and with it what was there.
            let _ = self.datapath.remove(&gone.short(), None);
        }
        self.balanced.retain(|network, _| known.contains(network));
        for (id, network) in &desired.networks {
            let table = entries.iter().find(|table| table.network == *id);
            let table = table.filter(|table| network.ingress.is_some() && !table.services.is_empty());
            let Ok(Some(netns)) = kernel.namespace(*id) else {
                continue;
            };
            // A namespace that this agent has not looked into may have the tables of the one before.
            if table.is_none() && network.internal {
                continue;
            }
            let vips = kernel.entry(*id);
            let mut entered = table.map(|table| table.services.clone()).unwrap_or_default();
            for entered in &mut entered {
                entered.balanced.vips.clone_from(&vips);
            }
            let services = entered.iter().map(|entered| entered.balanced.clone());
            let tables: Vec<_> = (!entered.is_empty())
                .then(|| ClientTable::new(*id, services))
                .into_iter()
                .collect();
            if let Err(error) = self.datapath.sync(&id.short(), &netns, &tables) {
                let sentence = sentence(&error);
                report.unbalanced.get_or_insert(sentence.clone());
                report.problems.push(sentence);
            }
            self.balanced.insert(*id, entered);
        }
    }
}
