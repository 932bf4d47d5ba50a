//! What stands in the maps, mirrored, and the way from that to what should be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_netlink::bpf::{BpfError, Map};
use weft_types::{EndpointId, ServiceId};

use super::{
    super::{delta::Wanted, program::fnv, ranges::Ranges},
    layout::{
        BackendEntry, MAX_BACKENDS, MAX_SLOTS, MapId, ServiceEntry, VipEntry, VipKey, backend, ledger_key,
        ledger_key_of, load, number_at, protocol_number, sandbox_bytes, sandbox_of, scheduler_number,
        slot_bytes, view_of,
    },
};
use crate::{Attempts, BackendState, ClientTable, Loads, Scheduler, Service, Written, choices};

/// The maps, by [`MapId`].
#[derive(Debug)]
pub(super) struct Maps(pub(super) Vec<Map>);

impl Maps {
    pub(super) fn of(&self, id: MapId) -> &Map {
        &self.0[id as usize]
    }
}

/// What is to be written to one map.
#[derive(Debug, Default)]
struct Writes {
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Writes {
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.keys.extend(key);
        self.values.extend(value);
    }

    fn flush(&mut self, map: &Map) -> Result<(), TableError> {
        let Self { keys, values } = std::mem::take(self);
        Ok(map.set_all(&keys, &values)?)
    }
}

/// What is to be written for services, in this order: nothing leads anywhere before it is there, or after it is gone.
#[derive(Debug, Default)]
struct Change {
    loads: Writes,
    backends: Writes,
    ledger: Writes,
    slots: Writes,
    services: Writes,
    vips: Writes,
    gone_from_ledger: Vec<[u8; 32]>,
    gone_backends: Writes,
}

impl Change {
    fn flush(mut self, maps: &Maps) -> Result<(), TableError> {
        self.loads.flush(maps.of(MapId::Loads))?;
        self.backends.flush(maps.of(MapId::Backends))?;
        self.ledger.flush(maps.of(MapId::Ledger))?;
        self.slots.flush(maps.of(MapId::Slots))?;
        self.services.flush(maps.of(MapId::Services))?;
        self.vips.flush(maps.of(MapId::Vips))?;
        for key in self.gone_from_ledger {
            maps.of(MapId::Ledger).delete(&key)?;
        }
        self.gone_backends.flush(maps.of(MapId::Backends))
    }
}

/// What could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error("there is no room for more {0}")]
    Full(&'static str),
}

/// A mirror of the maps. After an error it may differ from them: read it again.
#[derive(Debug)]
pub(super) struct Table {
    /// View and hash of the name, by cookie.
    sandboxes: HashMap<u64, (u64, u64)>,
    vips: BTreeMap<VipKey, VipEntry>,
    /// What was last wanted under a view; unknown after an agent's restart.
    views: HashMap<u64, View>,
    services: HashMap<ServiceId, Installed>,
    slots: Ranges,
    backends: Ranges,
    next_tag: u64,
    /// Of living backends, by number.
    tags: HashMap<u32, u64>,
    /// Services that no virtual address leads to any more, perhaps.
    unnamed: Vec<ServiceId>,
    /// Grows whenever sockets may have lost their backend.
    pub(super) losses: u64,
}

#[derive(Debug, Default)]
struct View {
    wanted: Wanted,
    /// As it was last written, each with the virtual addresses that are its own.
    services: HashMap<ServiceId, Arc<Service>>,
    /// Grows whenever an address comes or goes.
    addresses: u64,
}

#[derive(Debug, Default)]
struct Installed {
    entry: ServiceEntry,
    /// Living backends.
    backends: BTreeMap<EndpointId, (u32, BackendEntry)>,
    /// In how many keys of `vips` it is named.
    named: usize,
    /// What it was made from; unknown after an agent's restart.
    service: Option<Arc<Service>>,
}

impl Installed {
    /// Of each living backend what is read from its place in `loads`.
    fn loads<T>(&self, maps: &Maps, read: impl Fn(&[u8]) -> T) -> impl Iterator<Item = (EndpointId, T)> {
        self.backends.iter().map(move |(endpoint, (number, _))| {
            let value = maps.of(MapId::Loads).get(&number.to_ne_bytes()).ok().flatten();
            (*endpoint, read(&value.unwrap_or_default()))
        })
    }
}

impl Table {
    /// Reads what is there.
    pub(super) fn read(maps: &Maps) -> Result<Self, TableError> {
        let mut table = Self {
            sandboxes: HashMap::new(),
            vips: BTreeMap::new(),
            views: HashMap::new(),
            unnamed: Vec::new(),
            services: HashMap::new(),
            slots: Ranges::new(MAX_SLOTS),
            backends: Ranges::new(MAX_BACKENDS),
            // Not where an earlier agent was: its sockets may still carry tags that are in no map any more.
            next_tag: RandomState::new().hash_one(0) | 1 << 63,
            tags: HashMap::new(),
            losses: 1,
        };
        for (key, value) in maps.of(MapId::Sandboxes).entries()? {
            table.sandboxes.insert(number_at(&key, 0), sandbox_of(&value));
        }
        for (key, value) in maps.of(MapId::Services).entries()? {
            let entry = ServiceEntry::decode(&value);
            let (first, len) = range(&entry.ranges);
            table.slots.claim(first, len);
            let Ok(id) = key.try_into() else { continue };
            let installed = Installed {
                entry,
                ..Installed::default()
            };
            table.services.insert(ServiceId(id), installed);
        }
        for (key, value) in maps.of(MapId::Vips).entries()? {
            let (key, entry) = (VipKey::decode(&key), VipEntry::decode(&value));
            table.services.entry(entry.service).or_default().named += 1;
            table.vips.insert(key, entry);
        }
        for (key, value) in maps.of(MapId::Ledger).entries()? {
            let (service, endpoint) = ledger_key_of(&key);
            let Ok(number) = value.try_into().map(u32::from_ne_bytes) else {
                continue;
            };
            table.backends.claim(number, 1);
            let found = maps.of(MapId::Backends).get(&number.to_ne_bytes())?;
            let found = BackendEntry::decode(&found.unwrap_or_default());
            table.tags.insert(number, found.tag);
            let installed = table.services.entry(service).or_default();
            installed.backends.insert(endpoint, (number, found));
        }
        table.unnamed = table.services.keys().copied().collect();
        Ok(table)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sandboxes.is_empty()
    }

    /// Makes a sandbox see exactly these networks' services.
    pub(super) fn sync(
        &mut self,
        maps: &Maps,
        cookie: u64,
        name: u64,
        tables: &[ClientTable],
        now: Instant,
    ) -> Result<Written, TableError> {
        let view = view_of(tables.iter().map(|table| table.network));
        let before = self.sandboxes.get(&cookie).copied();
        let seen_before = match before {
            Some((before, _)) if before != view => self.seen(before),
            _ => BTreeSet::new(),
        };
        let is_new = before.is_none_or(|(before, _)| before != view);
        let (mut changed, removed) = self.sync_view(maps, view, tables, now)?;
        if before != Some((view, name)) {
            maps.of(MapId::Sandboxes)
                .set(&cookie.to_ne_bytes(), &sandbox_bytes(view, name))?;
            self.sandboxes.insert(cookie, (view, name));
        }
        if let Some((old, _)) = before.filter(|(old, _)| *old != view) {
            self.drop_view(maps, old)?;
        }
        self.drop_unnamed(maps, now)?;
        let mut removed = removed.len();
        if is_new {
            let seen = self.seen(view);
            removed = seen_before.difference(&seen).count();
            changed.extend(seen.difference(&seen_before));
        }
        Ok(Written {
            changed: changed.len(),
            removed,
            cut: 0,
        })
    }

    /// Makes whoever has this view see exactly these networks' services; says which were written, and which are seen no more.
    fn sync_view(
        &mut self,
        maps: &Maps,
        view: u64,
        tables: &[ClientTable],
        now: Instant,
    ) -> Result<(HashSet<ServiceId>, BTreeSet<ServiceId>), TableError> {
        // What an earlier agent left is compared with all that is wanted.
        let unread = (!self.views.contains_key(&view)).then(|| self.seen(view));
        let mut known = self.views.remove(&view).unwrap_or_else(|| View {
            // Not what it was for those who read the table before this one.
            addresses: RandomState::new().hash_one(view),
            ..View::default()
        });
        let delta = known
            .wanted
            .update(tables.iter().flat_map(|table| table.services.iter()), false);
        let mut changed = HashSet::new();
        let mut change = Change::default();
        let mut wanted = Vec::new();
        let mut leaving: BTreeSet<VipKey> = BTreeSet::new();
        let mut removed: BTreeSet<ServiceId> = BTreeSet::new();
        for id in delta.gone {
            let old = known.services.remove(&id);
            leaving.extend(old.iter().flat_map(|old| keys(view, old)).map(|(key, _)| key));
            removed.extend(old.map(|_| id));
        }
        for service in delta.changed {
            if service.vips.is_empty() {
                let old = known.services.remove(&service.id);
                leaving.extend(old.iter().flat_map(|old| keys(view, old)).map(|(key, _)| key));
                removed.extend(old.map(|_| service.id));
                continue;
            }
            if self.set_service(maps, &mut change, &service, now)? {
                changed.insert(service.id);
            }
            wanted.extend(keys(view, &service));
            if let Some(old) = known.services.insert(service.id, Arc::clone(&service)) {
                leaving.extend(keys(view, &old).map(|(key, _)| key));
            }
        }
        if let Some(seen) = unread {
            leaving.extend(self.keys_of(view).map(|(key, _)| *key));
            removed.extend(seen.into_iter().filter(|id| !known.services.contains_key(id)));
        }
        for (key, entry) in &wanted {
            leaving.remove(key);
            if self.vips.get(key) != Some(entry) {
                change.vips.set(&key.encode(), &entry.encode());
                if let Some(old) = self.vips.insert(*key, *entry) {
                    self.unname(old.service);
                } else {
                    known.addresses = known.addresses.wrapping_add(1);
                }
                self.services.entry(entry.service).or_default().named += 1;
                changed.insert(entry.service);
                self.losses += 1;
            }
        }
        change.flush(maps)?;
        for key in &leaving {
            let entry = self.vips.get(key);
            changed.extend(
                entry
                    .map(|entry| entry.service)
                    .filter(|id| known.services.contains_key(id)),
            );
        }
        if !leaving.is_empty() {
            known.addresses = known.addresses.wrapping_add(1);
        }
        let leaving: Vec<VipKey> = leaving.into_iter().collect();
        self.delete_keys(maps, &leaving)?;
        self.views.insert(view, known);
        Ok((changed, removed))
    }

    /// Forgets a sandbox.
    pub(super) fn remove(&mut self, maps: &Maps, cookie: u64, now: Instant) -> Result<(), TableError> {
        maps.of(MapId::Sandboxes).delete(&cookie.to_ne_bytes())?;
        if let Some((view, _)) = self.sandboxes.remove(&cookie) {
            self.drop_view(maps, view)?;
            self.drop_unnamed(maps, now)?;
        }
        Ok(())
    }

    /// The cookies of sandboxes by the hash of their names.
    pub(super) fn cookies(&self, of: impl Fn(u64) -> bool) -> Vec<u64> {
        let cookies = self.sandboxes.iter().filter(|(_, (_, name))| of(*name));
        cookies.map(|(cookie, _)| *cookie).collect()
    }

    /// Something that changes whenever the virtual addresses do that a sandbox sees.
    pub(super) fn addresses(&self, cookie: u64) -> Option<(u64, u64)> {
        let (view, _) = self.sandboxes.get(&cookie)?;
        Some((*view, self.views.get(view)?.addresses))
    }

    /// The virtual addresses that a sandbox sees.
    pub(super) fn vips_of(&self, cookie: u64) -> BTreeSet<IpAddr> {
        let Some((view, _)) = self.sandboxes.get(&cookie) else {
            return BTreeSet::new();
        };
        self.keys_of(*view).map(|(key, _)| key.addr).collect()
    }

    /// How many services a sandbox sees.
    pub(super) fn services_of(&self, cookie: u64) -> usize {
        let view = self.sandboxes.get(&cookie).map(|(view, _)| self.seen(*view));
        view.map_or(0, |seen| seen.len())
    }

    /// The tags of all living backends, by number.
    pub(super) fn living(&self) -> &HashMap<u32, u64> {
        &self.tags
    }

    /// How long a connection may be idle, by the number of its backend, as far as services say so.
    pub(super) fn idle_limits(&self) -> HashMap<u32, Duration> {
        let limited = self.services.values().filter_map(|installed| {
            let idle = installed.service.as_ref()?.idle_secs()?;
            let numbers = installed.backends.values().map(|(number, _)| *number);
            Some(numbers.map(move |number| (number, Duration::from_secs(idle.into()))))
        });
        limited.flatten().collect()
    }

    /// Open connections by backend.
    pub(super) fn open(&self, maps: &Maps, service: ServiceId) -> Option<BTreeMap<EndpointId, u64>> {
        let installed = self.services.get(&service)?;
        let open = |load: &[u8]| number_at(load, load::OPEN);
        let mut counts: BTreeMap<EndpointId, u64> = installed.loads(maps, open).collect();
        for backend in installed.service.iter().flat_map(|service| &service.backends) {
            counts.entry(backend.endpoint).or_default();
        }
        Some(counts)
    }

    /// What was tried so far, by backend.
    pub(super) fn attempts(&self, maps: &Maps, service: ServiceId) -> Option<BTreeMap<EndpointId, Attempts>> {
        let attempts = |load: &[u8]| Attempts {
            total: number_at(load, load::TOTAL),
            failed: number_at(load, load::FAILED),
            tcp: number_at(load, load::TCP),
            made: number_at(load, load::MADE),
            unknown: 0,
        };
        Some(self.services.get(&service)?.loads(maps, attempts).collect())
    }

    fn keys_of(&self, view: u64) -> impl Iterator<Item = (&VipKey, &VipEntry)> {
        let first = VipKey {
            view,
            addr: IpAddr::from([0, 0, 0, 0]),
            port: None,
        };
        self.vips
            .range(first..)
            .take_while(move |(key, _)| key.view == view)
    }

    fn seen(&self, view: u64) -> BTreeSet<ServiceId> {
        self.keys_of(view).map(|(_, entry)| entry.service).collect()
    }

    /// Writes a service and its backends if they are not as they should be.
    fn set_service(
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
        for (endpoint, (number, _)) in given_up {
            if !kept.contains_key(&endpoint) {
                change.gone_from_ledger.push(ledger_key(service.id, endpoint));
            }
            change
                .gone_backends
                .set(&number.to_ne_bytes(), &[0; backend::LEN]);
            self.backends.give(number, 1, now);
            self.tags.remove(&number);
            self.losses += 1;
        }
        installed.entry = entry;
        installed.backends = kept;
        installed.service = Some(Arc::clone(service));
        Ok(true)
    }

    fn unname(&mut self, service: ServiceId) {
        if let Some(installed) = self.services.get_mut(&service) {
            installed.named = installed.named.saturating_sub(1);
            if installed.named == 0 {
                self.unnamed.push(service);
            }
        }
    }

    fn delete_keys(&mut self, maps: &Maps, keys: &[VipKey]) -> Result<(), TableError> {
        for key in keys {
            maps.of(MapId::Vips).delete(&key.encode())?;
            if let Some(old) = self.vips.remove(key) {
                self.unname(old.service);
            }
        }
        Ok(())
    }

    /// Takes out what is seen under a view, if no sandbox is left there.
    fn drop_view(&mut self, maps: &Maps, view: u64) -> Result<(), TableError> {
        if self.sandboxes.values().any(|(used, _)| *used == view) {
            return Ok(());
        }
        self.views.remove(&view);
        let keys: Vec<VipKey> = self.keys_of(view).map(|(key, _)| *key).collect();
        self.delete_keys(maps, &keys)
    }

    /// Takes out services that no virtual address leads to.
    fn drop_unnamed(&mut self, maps: &Maps, now: Instant) -> Result<(), TableError> {
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
            for (endpoint, (number, _)) in installed.backends {
                change.gone_from_ledger.push(ledger_key(id, endpoint));
                change
                    .gone_backends
                    .set(&number.to_ne_bytes(), &[0; backend::LEN]);
                self.backends.give(number, 1, now);
                self.tags.remove(&number);
                self.losses += 1;
            }
        }
        change.flush(maps)
    }
}

/// Lays out the slots of a service in a new range.
fn write_slots(
    writes: &mut Writes,
    ranges: &mut Ranges,
    service: &Service,
    backends: &BTreeMap<EndpointId, (u32, BackendEntry)>,
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
fn range(ranges: &[(u32, u32); 2]) -> (u32, u32) {
    let [(first, v4), (first_v6, v6)] = *ranges;
    (first, (first + v4).max(first_v6 + v6) - first)
}

/// Everything that leads to a service.
fn keys(view: u64, service: &Service) -> impl Iterator<Item = (VipKey, VipEntry)> {
    service.vips.iter().flat_map(move |&addr| {
        let rest = VipEntry {
            service: service.id,
            target: None,
            // With ports of its own a service refuses the others.
            refuse: !service.ports.is_empty(),
            idle: service.idle_secs().unwrap_or(0),
        };
        let ports = service.ports.iter();
        let ports = ports.flat_map(|port| port.pairs().map(move |pair| (port.protocol, pair)));
        let ports = ports.map(move |(protocol, (number, target))| {
            let key = Some((protocol_number(protocol), number));
            let target = (target != number).then_some(target);
            (
                key,
                VipEntry {
                    target,
                    refuse: false,
                    ..rest
                },
            )
        });
        let all = [(None, rest)].into_iter().chain(ports);
        all.map(move |(port, entry)| (VipKey { view, addr, port }, entry))
    })
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
