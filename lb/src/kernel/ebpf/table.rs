//! What stands in the maps, mirrored, and the way from that to what should be.

mod change;
mod services;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    time::{Duration, Instant},
};

use weft_netlink::bpf::{BpfError, Map};
use weft_types::{EndpointId, ServiceId};

pub(super) use self::change::TableError;
use self::{
    services::{Installed, range},
    views::View,
};
use super::{
    super::ranges::Ranges,
    layout::{
        BackendEntry, MAX_BACKENDS, MAX_SLOTS, MapId, ServiceEntry, VipEntry, VipKey, ledger_key_of, load,
        number_at, sandbox_bytes, sandbox_of, view_of,
    },
};
use crate::{Attempts, ClientTable, Written};

/// The maps, by [`MapId`].
#[derive(Debug)]
pub(super) struct Maps(pub(super) Vec<Map>);

impl Maps {
    pub(super) fn create() -> Result<Self, BpfError> {
        let maps = MapId::ALL.map(|id| Map::create(id.spec()));
        Ok(Self(maps.into_iter().collect::<Result<_, _>>()?))
    }

    pub(super) fn of(&self, id: MapId) -> &Map {
        &self.0[id as usize]
    }
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

impl Default for Table {
    /// Of maps in which there is nothing.
    fn default() -> Self {
        Self {
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
        }
    }
}

impl Table {
    /// Reads what is there.
    pub(super) fn read(maps: &Maps) -> Result<Self, TableError> {
        let mut table = Self::default();
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

    /// Forgets a sandbox.
    pub(super) fn remove(&mut self, maps: &Maps, cookie: u64, now: Instant) -> Result<(), TableError> {
        maps.of(MapId::Sandboxes).delete(&cookie.to_ne_bytes())?;
        if let Some((view, _)) = self.sandboxes.remove(&cookie) {
            self.drop_view(maps, view)?;
            self.drop_unnamed(maps, now)?;
        }
        Ok(())
    }

    /// Whether anything is there for a sandbox.
    pub(super) fn has(&self, cookie: u64) -> bool {
        self.sandboxes.contains_key(&cookie)
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
}
