//! A datapath without a kernel.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use weft_netlink::netns::Netns;
use weft_types::{EndpointId, ServiceId};

use crate::{ClientTable, Datapath, DatapathError, Loads, Scheduler, Service, Written, choices};

/// Chooses backends for connections that tests pretend to make, with the real schedulers, and fails on demand.
#[derive(Debug, Default)]
pub struct FakeDatapath {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sandboxes: HashMap<String, Vec<ClientTable>>,
    loads: HashMap<ServiceId, Loads>,
    turns: HashMap<(String, ServiceId), usize>,
    refuse: Option<String>,
}

impl FakeDatapath {
    /// With no sandboxes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every later call fail with this reason, until called with `None`.
    pub fn fail_with(&self, reason: Option<&str>) {
        self.lock().refuse = reason.map(str::to_owned);
    }

    /// What a sandbox was last told.
    pub fn tables(&self, sandbox: &str) -> Option<Vec<ClientTable>> {
        self.lock().sandboxes.get(sandbox).cloned()
    }

    /// Pretends that a sandbox connects to a virtual address: the backend it reaches, or `None` if it is refused.
    pub fn connect(&self, sandbox: &str, vip: IpAddr) -> Option<EndpointId> {
        let mut state = self.lock();
        let service = state.service(sandbox, |service| service.vips.contains(&vip))?;
        let loads = state.loads.entry(service.id).or_default();
        let slots = choices(&service, vip.is_ipv6(), loads);
        let turn = state.turns.entry((sandbox.to_owned(), service.id)).or_default();
        // Least connection lays out its slots anew after every connection, so it is always at the first.
        let slot = match service.scheduler {
            Scheduler::LeastConnections => 0,
            Scheduler::Maglev => sandbox
                .bytes()
                .fold(0, |hash, byte| 31 * hash % 65_521 + usize::from(byte)),
            Scheduler::RoundRobin | Scheduler::WeightedRoundRobin => *turn,
        };
        let chosen = slots.get(slot % slots.len().max(1)).copied();
        *turn += 1;
        if let Some(endpoint) = chosen {
            state.loads.entry(service.id).or_default().opened(endpoint);
        }
        chosen
    }

    /// Pretends that a connection to a backend ends.
    pub fn close(&self, service: ServiceId, endpoint: EndpointId) {
        self.lock().loads.entry(service).or_default().closed(endpoint);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn service(&self, sandbox: &str, wanted: impl Fn(&Service) -> bool) -> Option<Service> {
        self.sandboxes
            .get(sandbox)?
            .iter()
            .flat_map(|table| table.services.iter())
            .find(|service| wanted(service))
            .map(|service| Service::clone(service))
    }

    fn may(&self, doing: &str, sandbox: &str) -> Result<(), DatapathError> {
        match &self.refuse {
            Some(reason) => Err(DatapathError::of(doing, sandbox)(reason.clone().into())),
            None => Ok(()),
        }
    }
}

impl Datapath for FakeDatapath {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn sync(&self, sandbox: &str, _: &Netns, tables: &[ClientTable]) -> Result<Written, DatapathError> {
        let mut state = self.lock();
        state.may("translate virtual addresses", sandbox)?;
        let before = state
            .sandboxes
            .insert(sandbox.to_owned(), tables.to_vec())
            .unwrap_or_default();
        let services = |tables: &[ClientTable]| -> BTreeMap<(_, ServiceId), Arc<Service>> {
            tables
                .iter()
                .flat_map(|table| {
                    table
                        .services
                        .iter()
                        .map(move |s| ((table.network, s.id), s.clone()))
                })
                .collect()
        };
        let (before, after) = (services(&before), services(tables));
        Ok(Written {
            changed: after
                .iter()
                .filter(|(key, service)| before.get(key) != Some(service))
                .count(),
            removed: before.keys().filter(|key| !after.contains_key(key)).count(),
            cut: 0,
        })
    }

    fn remove(&self, sandbox: &str, _: Option<&Netns>) -> Result<(), DatapathError> {
        let mut state = self.lock();
        state.may("remove the translation", sandbox)?;
        state.sandboxes.remove(sandbox);
        Ok(())
    }

    fn connections(&self, service: ServiceId) -> Option<BTreeMap<EndpointId, u64>> {
        let state = self.lock();
        let known = state
            .sandboxes
            .keys()
            .find_map(|sandbox| state.service(sandbox, |s| s.id == service))
            .filter(|service| service.scheduler == Scheduler::LeastConnections)?;
        let loads = state.loads.get(&service);
        let open = |endpoint| loads.map_or(0, |loads| loads.open(endpoint));
        Some(
            known
                .backends
                .iter()
                .map(|backend| (backend.endpoint, open(backend.endpoint)))
                .collect(),
        )
    }
}
