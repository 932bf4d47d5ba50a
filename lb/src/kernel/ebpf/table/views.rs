//! Which virtual addresses are seen under a view, which all sandboxes on the same networks share.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use weft_types::ServiceId;

use super::{
    super::{
        super::delta::Wanted,
        layout::{MapId, VipEntry, VipKey, protocol_number},
    },
    Maps, Table,
    change::{Change, TableError},
};
use crate::{ClientTable, Service};

#[derive(Debug, Default)]
pub(super) struct View {
    wanted: Wanted,
    /// As it was last written, each with the virtual addresses that are its own.
    services: HashMap<ServiceId, Arc<Service>>,
    /// Grows whenever an address comes or goes.
    pub(super) addresses: u64,
}

impl Table {
    /// Makes whoever has this view see exactly these networks' services; says which were written, and which are seen no more.
    pub(super) fn sync_view(
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

    pub(super) fn keys_of(&self, view: u64) -> impl Iterator<Item = (&VipKey, &VipEntry)> {
        let first = VipKey {
            view,
            addr: IpAddr::from([0, 0, 0, 0]),
            port: None,
        };
        self.vips
            .range(first..)
            .take_while(move |(key, _)| key.view == view)
    }

    pub(super) fn seen(&self, view: u64) -> BTreeSet<ServiceId> {
        self.keys_of(view).map(|(_, entry)| entry.service).collect()
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
    pub(super) fn drop_view(&mut self, maps: &Maps, view: u64) -> Result<(), TableError> {
        if self.sandboxes.values().any(|(used, _)| *used == view) {
            return Ok(());
        }
        self.views.remove(&view);
        let keys: Vec<VipKey> = self.keys_of(view).map(|(key, _)| *key).collect();
        self.delete_keys(maps, &keys)
    }
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
