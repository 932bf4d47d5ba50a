//! Services with their backends and slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Instant,
};

use weft_types::{EndpointId, ServiceId};

use super::{
    super::{
        super::{program::fnv, ranges::Ranges},
        layout::{
            BackendEntry, MapId, ServiceEntry, backend, ledger_key, load, scheduler_number, slot_bytes,
        },
    },
    Maps, Table,
    change::{Change, TableError, Writes},
};
use crate::{BackendState, Loads, Scheduler, Service, choices};

/// Backends with their numbers.
type Backends = BTreeMap<EndpointId, (u32, BackendEntry)>;

#[derive(Debug, Default)]
pub(super) struct Installed {
    pub(super) entry: ServiceEntry,
    /// Living backends.
    pub(super) backends: Backends,
    /// In how many keys of `vips` it is named.
    pub(super) named: usize,
    /// What it was made from; unknown after an agent's restart.
    pub(super) service: Option<Arc<Service>>,
}

impl Installed {
    /// Of each living backend what is read from its place in `loads`.
    pub(super) fn loads<T>(
        &self,
        maps: &Maps,
        read: impl Fn(&[u8]) -> T,
    ) -> impl Iterator<Item = (EndpointId, T)> {
        self.backends.iter().map(move |(endpoint, (number, _))| {
            let value = maps.of(MapId::Loads).get(&number.to_ne_bytes()).ok().flatten();
            (*endpoint, read(&value.unwrap_or_default()))
        })
    }
}

impl Table {
    /// Writes a service and its backends if they are not as they should be.
    pub(super) fn set_service(
        &mut self,
        maps: &Maps,
        change: &mut Change,
        service: &Arc<Service>,
        now: Instant,
    ) -> Result<bool, TableError> {
        let installed = self.services.entry(service.id).or_default();
        let same =
            |old: &Arc<Service>| old.scheduler == service.scheduler && old.backends == service.backends;
        if installed.service.as_ref().is_some_and(same) {
            return Ok(false);
        }
        let mark = mark(service);
        if installed.entry.mark == mark {
            installed.service = Some(Arc::clone(service));
            return Ok(false);
        }
        let mut kept = BTreeMap::new();
        let mut given_up = std::mem::take(&mut installed.backends);
        for wanted in service
            .backends
            .iter()
            .filter(|backend| backend.state != BackendState::Down)
        {
            let (v4, v6) = (wanted.addr(false), wanted.addr(true));
            let found = given_up
                .get(&wanted.endpoint)
                .filter(|(_, old)| (old.v4, old.v6) == (v4, v6));
            if let Some(found) = found {
                kept.insert(wanted.endpoint, *found);
                given_up.remove(&wanted.endpoint);
                continue;
            }
            let number = self.backends.take(1, now).ok_or(TableError::Full("backends"))?;
            let entry = BackendEntry {
                v4,
                v6,
                tag: self.next_tag,
            };
            self.next_tag += 1;
            let key = number.to_ne_bytes();
            change.loads.set(&key, &[0; load::LEN]);
            change.backends.set(&key, &entry.encode());
            change.ledger.set(&ledger_key(service.id, wanted.endpoint), &key);
            self.tags.insert(number, entry.tag);
            kept.insert(wanted.endpoint, (number, entry));
        }
        let entry = write_slots(&mut change.slots, &mut self.slots, service, &kept, now)?;
        let there = match installed.entry.mark {
            0 => None,
            _ => maps.of(MapId::Services).get(&service.id.0)?,
        };
        let turn = match there {
            Some(value) => ServiceEntry::decode(&value).turn,
            // Hosts do not all begin with the same backend.
            None => RandomState::new().hash_one(1) >> 33,
        };
        let entry = ServiceEntry { turn, mark, ..entry };
        change.services.set(&service.id.0, &entry.encode());
        let (first, len) = range(&installed.entry.ranges);
        self.slots.give(first, len, now);
        // Where an endpoint has another address now, the ledger already has its new number.
        let gone = given_up.keys().filter(|endpoint| !kept.contains_key(endpoint));
        change
            .gone_from_ledger
            .extend(gone.map(|endpoint| ledger_key(service.id, *endpoint)));
        installed.entry = entry;
        installed.backends = kept;
        installed.service = Some(Arc::clone(service));
        self.give_up(change, given_up, now);
        Ok(true)
    }

    /// Takes out services that no virtual address leads to.
    pub(super) fn drop_unnamed(&mut self, maps: &Maps, now: Instant) -> Result<(), TableError> {
        let is_unnamed = |id: &ServiceId| {
            self.services
                .get(id)
                .is_some_and(|installed| installed.named == 0)
        };
        let unnamed: BTreeSet<ServiceId> = std::mem::take(&mut self.unnamed).into_iter().collect();
        let unnamed: Vec<ServiceId> = unnamed.into_iter().filter(is_unnamed).collect();
        let mut change = Change::default();
        for id in unnamed {
            maps.of(MapId::Services).delete(&id.0)?;
            let Some(installed) = self.services.remove(&id) else {
                continue;
            };
            let (first, len) = range(&installed.entry.ranges);
            self.slots.give(first, len, now);
            let gone = installed.backends.keys();
            change
                .gone_from_ledger
                .extend(gone.map(|endpoint| ledger_key(id, *endpoint)));
            self.give_up(&mut change, installed.backends, now);
        }
        change.flush(maps)
    }

    /// Gives the numbers of backends back: what is open to them is to end.
    fn give_up(&mut self, change: &mut Change, backends: Backends, now: Instant) {
        for (number, _) in backends.into_values() {
            change
                .gone_backends
                .set(&number.to_ne_bytes(), &[0; backend::LEN]);
            self.backends.give(number, 1, now);
            self.tags.remove(&number);
            self.losses += 1;
        }
    }
}

/// Lays out the slots of a service in a new range.
fn write_slots(
    writes: &mut Writes,
    ranges: &mut Ranges,
    service: &Service,
    backends: &Backends,
    now: Instant,
) -> Result<ServiceEntry, TableError> {
    let of_family = |ipv6| -> Vec<(u32, u32)> {
        let active: BTreeMap<EndpointId, u32> = service
            .active(ipv6)
            .into_iter()
            .map(|(backend, _)| (backend.endpoint, u32::from(backend.weight.get())))
            .collect();
        let chosen = match service.scheduler {
            // The programs look at the loads themselves.
            Scheduler::LeastConnections => active.keys().copied().collect(),
            _ => choices(service, ipv6, &Loads::new()),
        };
        let slot = |endpoint| Some((backends.get(&endpoint)?.0, *active.get(&endpoint)?));
        chosen.into_iter().filter_map(slot).collect()
    };
    let (v4, v6) = (of_family(false), of_family(true));
    let together = v4 == v6;
    let mut slots = v4.clone();
    if !together {
        slots.extend(&v6);
    }
    let first = ranges
        .take(slots.len() as u32, now)
        .ok_or(TableError::Full("slots"))?;
    for (place, (number, weight)) in slots.iter().enumerate() {
        let key = (first + place as u32).to_ne_bytes();
        writes.set(&key, &slot_bytes(*number, *weight));
    }
    let first_v6 = if together { first } else { first + v4.len() as u32 };
    Ok(ServiceEntry {
        ranges: [(first, v4.len() as u32), (first_v6, v6.len() as u32)],
        scheduler: scheduler_number(service.scheduler),
        ..ServiceEntry::default()
    })
}

/// The slots that both families together take.
pub(super) fn range(ranges: &[(u32, u32); 2]) -> (u32, u32) {
    let [(first, v4), (first_v6, v6)] = *ranges;
    (first, (first + v4).max(first_v6 + v6) - first)
}

/// What the backends of a service and the choice among them are known by; never 0.
fn mark(service: &Service) -> u64 {
    let mut text = service.scheduler.to_string();
    let mut backends: Vec<_> = service.backends.iter().collect();
    backends.sort_by_key(|backend| backend.endpoint);
    for backend in backends {
        let _ = write!(
            text,
            " {} {:?} {:?} {} {}",
            backend.endpoint,
            backend.addr(false),
            backend.addr(true),
            backend.weight,
            backend.state
        );
    }
    fnv(text.as_bytes()) | 1
}
