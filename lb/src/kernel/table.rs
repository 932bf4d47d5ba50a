//! One table: what is installed there for the services of a network, and the way from that to what should be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use weft_netlink::nft::{Chain, Nft, NftError, Table, Transaction};
use weft_types::{EndpointId, ServiceId};

use super::{
    adopt::{Contents, Found},
    attempts,
    batch::Batch,
    delta::Wanted,
    flows::AllLoads,
    program::{
        Key, Mark, Side, Slots, add_elements, add_target_map, add_vips, chains, delete_elements, delete_vips,
        elements, fingerprint, target_maps, timeouts, vips, write_rules,
    },
    sandbox::{Outcome, is_counted, living_addrs},
    shards::Shards,
};
use crate::{Backend, Loads, Service};

/// A table as we know it to stand in the kernel.
#[derive(Debug)]
pub(super) struct Installed {
    wanted: Wanted,
    services: BTreeMap<ServiceId, InstalledService>,
    vips: BTreeMap<IpAddr, IpAddr>,
    slots: Shards,
    /// Whether it was read back since it was last written: services and virtual addresses may be there that are nobody's.
    is_unread: bool,
    /// Backends behind virtual addresses that are there no more, and whose connections are still counted.
    lost: HashMap<(IpAddr, IpAddr), EndpointId>,
    has_lost: bool,
    /// Whether connections that are made are counted, if that is known.
    counts_made: Option<bool>,
}

#[derive(Debug, Default)]
struct InstalledService {
    found: Found,
    /// What it was made from; unknown after an agent's restart until the first sync.
    service: Option<Arc<Service>>,
    /// The slots that were written last, if by us.
    slots: Option<Slots>,
}

/// For whom slots are laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client<'a> {
    /// Differs between sandboxes.
    pub(super) seed: u64,
    pub(super) side: Side,
    pub(super) loads: &'a AllLoads,
}

impl Client<'_> {
    fn slots(&self, service: &Service) -> Slots {
        match self.loads.get(&service.id) {
            Some(loads) => Slots::of(service, loads, self.seed, self.side),
            None => Slots::of(service, &Loads::new(), self.seed, self.side),
        }
    }
}

impl Installed {
    /// An empty table.
    pub(super) fn new() -> Self {
        Self::found(Contents::default())
    }

    /// A table that was read back.
    pub(super) fn found(contents: Contents) -> Self {
        let mut slots = Shards::new();
        let mut services = BTreeMap::new();
        for (id, mut found) in contents.services {
            if !slots.claim(&found.mark) {
                found.mark = Mark::default();
            }
            let installed = InstalledService {
                found,
                ..InstalledService::default()
            };
            services.insert(id, installed);
        }
        for spare in contents.spare {
            slots.claim_spare(spare);
        }
        Self {
            services,
            vips: contents.vips,
            slots,
            wanted: Wanted::default(),
            is_unread: true,
            lost: HashMap::new(),
            has_lost: false,
            counts_made: contents.counts_made,
        }
    }

    /// Its services as last synced.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let installed = self.services.values();
        installed.filter_map(|installed| installed.service.as_ref())
    }

    /// It is deleted.
    pub(super) fn end(self, outcome: &mut Outcome) {
        self.services.values().for_each(|old| outcome.removed(&old.found));
    }

    /// Writes the difference to `wanted`.
    pub(super) fn sync(
        &mut self,
        batch: &mut Batch<'_>,
        table: &Table,
        wanted: &[Arc<Service>],
        client: Client<'_>,
        outcome: &mut Outcome,
    ) -> Result<(), NftError> {
        // At an entry, whoever gives services a port has seen to it that no two have the same.
        let delta = self.wanted.update(wanted.iter(), client.side == Side::Entry);
        let now = Instant::now();
        let spare = self.slots.take_spare();
        let before = batch.added;
        let counts_made = self.wanted.has_watched();
        if self.counts_made != Some(counts_made) {
            let mut change = Transaction::new();
            attempts::write_failed(&mut change, table, client.side, counts_made);
            batch.add(change)?;
            self.counts_made = Some(counts_made);
        }
        self.remove_gone(batch, table, delta.gone, outcome)?;
        let changed = self.remove_leaving(batch, table, delta.changed, client, outcome)?;
        outcome.written.changed += changed.len();
        for changed in &changed {
            self.write(batch, table, changed, client, now)?;
        }
        // Only now does anything lead to new chains. The kernel follows all that does whenever it is told of rules, so
        // a table that is filled from the start is filled behind its back.
        for changed in changed {
            self.link(batch, table, changed)?;
        }
        let is_written = batch.added > before;
        self.slots.clear(batch, table, spare, is_written, now)
    }

    /// Lays out the slots of some services anew, after their loads changed.
    pub(super) fn refresh(
        &mut self,
        batch: &mut Batch<'_>,
        table: &Table,
        touched: &BTreeSet<ServiceId>,
        client: Client<'_>,
    ) -> Result<(), NftError> {
        let now = Instant::now();
        let spare = self.slots.take_spare();
        let before = batch.added;
        for id in touched {
            let Some(installed) = self.services.get_mut(id) else {
                continue;
            };
            let Some(service) = installed.service.as_ref().filter(|service| is_counted(service)) else {
                continue;
            };
            let slots = client.slots(service);
            let is_same = installed.slots.as_ref() == Some(&slots);
            if !slots.has_choice() && is_same {
                continue;
            }
            let mut change = Transaction::new();
            // Even with the same slots the rules are written: the kernel has gone on in them and must start again.
            if !is_same {
                let mark = &mut installed.found.mark;
                self.slots.place(&mut change, table, &slots, mark, now);
            }
            write_rules(&mut change, table, service, &slots, &installed.found.mark);
            installed.slots = Some(slots);
            batch.add(change)?;
        }
        let is_written = batch.added > before;
        self.slots.clear(batch, table, spare, is_written, now)
    }

    /// Deletes the counters of backends that are gone: whoever gets the address of one begins with nothing.
    pub(super) fn forget_attempts(
        &mut self,
        nft: &Nft,
        table: &Table,
        change: &mut Transaction,
    ) -> Result<(), NftError> {
        let lost = std::mem::take(&mut self.lost);
        if !std::mem::take(&mut self.has_lost) {
            return Ok(());
        }
        let is_there = |vip: IpAddr, addr: IpAddr| {
            let backends = self.wanted.at(vip).flat_map(|service| &service.backends);
            let mut at = backends
                .filter(|backend| backend.addrs.contains(&addr))
                .peekable();
            let before = lost.get(&(vip, addr));
            let was_there = |backend: &Backend| before.is_none_or(|before| *before == backend.endpoint);
            at.peek().is_some() && at.all(was_there)
        };
        attempts::forget(nft, table, is_there, change)
    }

    /// Deletes the services that are gone.
    fn remove_gone(
        &mut self,
        batch: &mut Batch<'_>,
        table: &Table,
        mut gone: Vec<ServiceId>,
        outcome: &mut Outcome,
    ) -> Result<(), NftError> {
        if self.is_unread {
            let found = self.services.keys();
            gone.extend(found.filter(|id| !self.wanted.contains(**id)));
        }
        for id in gone {
            let Some(old) = self.services.remove(&id) else {
                continue;
            };
            self.has_lost = true;
            self.lost
                .extend(old.service.iter().flat_map(|service| pairs_of(service)));
            outcome.removed(&old.found);
            let mut change = Transaction::new();
            let found = old.found;
            let vips: BTreeSet<IpAddr> = found.elements.keys().map(|key| key.vip).collect();
            let vips: Vec<IpAddr> = vips
                .into_iter()
                .filter(|vip| self.vips.remove(vip).is_some())
                .collect();
            delete_vips(&mut change, table, &vips);
            delete_elements(&mut change, table, found.elements.keys());
            found.chains.iter().for_each(|chain| {
                change.flush_chain(table, chain).delete_chain(table, chain);
            });
            found.maps.iter().for_each(|name| {
                change.delete_set(table, name);
            });
            found.timeouts.iter().for_each(|name| {
                change.delete_timeout(table, name);
            });
            self.slots.give_up(&found.mark);
            batch.add(change)?;
        }
        Ok(())
    }

    /// Deletes all that leads to a service and should not any more, as it may go on to another. Returns the services that have to
    /// be written.
    fn remove_leaving(
        &mut self,
        batch: &mut Batch<'_>,
        table: &Table,
        wanted: Vec<Arc<Service>>,
        client: Client<'_>,
        outcome: &mut Outcome,
    ) -> Result<Vec<Changed>, NftError> {
        let mut strays: BTreeSet<IpAddr> = match std::mem::take(&mut self.is_unread) {
            true => self.vips.keys().copied().collect(),
            false => BTreeSet::new(),
        };
        let mut changed = Vec::new();
        for service in wanted {
            let old = self.services.entry(service.id).or_default();
            let elements = elements(&service, client.side);
            let vips = vips(&service, client.seed, client.side);
            outcome.may_be_stale |= may_be_stale(old, &service, elements.keys());
            outcome.changed.push(Arc::clone(&service));
            if let Some(before) = old.service.as_ref().filter(|old| has_lost(old, &service)) {
                self.has_lost = true;
                self.lost.extend(pairs_of(before));
            }
            let fingerprint = fingerprint(&service, client.seed, client.side);
            for vip in vips.keys() {
                strays.remove(vip);
            }
            // The fingerprint stands in a rule; who leads there somebody else may have taken away.
            let is_there = |(vip, to)| self.vips.get(vip) == Some(to);
            if old.found.mark.fingerprint == fingerprint
                && old.found.elements == elements
                && vips.iter().all(is_there)
            {
                old.service = Some(service);
                continue;
            }
            let leaving = old.found.elements.iter();
            let leaving = leaving.filter(|(key, chain)| elements.get(key) != Some(chain));
            let leaving: Vec<Key> = leaving.map(|(key, _)| *key).collect();
            let others: BTreeSet<IpAddr> = leaving.iter().map(|key| key.vip).collect();
            let others = others.into_iter().filter(|vip| !vips.contains_key(vip));
            let others: Vec<IpAddr> = others.filter(|vip| self.vips.remove(vip).is_some()).collect();
            outcome.gone.extend(leaving.iter().map(|key| key.vip));
            let mut change = Transaction::new();
            delete_elements(&mut change, table, leaving.iter());
            delete_vips(&mut change, table, &others);
            batch.add(change)?;
            old.found
                .elements
                .retain(|key, chain| elements.get(key) == Some(chain));
            changed.push(Changed {
                service,
                elements,
                vips,
                fingerprint,
            });
        }
        let strays: Vec<IpAddr> = strays
            .into_iter()
            .filter(|vip| self.vips.remove(vip).is_some())
            .collect();
        let mut change = Transaction::new();
        delete_vips(&mut change, table, &strays);
        batch.add(change)?;
        Ok(changed)
    }

    /// Writes all of a service but what leads there.
    fn write(
        &mut self,
        batch: &mut Batch<'_>,
        table: &Table,
        changed: &Changed,
        client: Client<'_>,
        now: Instant,
    ) -> Result<(), NftError> {
        let service = &changed.service;
        let Some(old) = self.services.get_mut(&service.id) else {
            return Ok(());
        };
        let before = &old.found;
        let mut change = Transaction::new();
        let chains: BTreeSet<String> = chains(service, client.side).into_iter().collect();
        for chain in chains.difference(&before.chains) {
            change.add_chain(table, Chain::regular(chain.clone()));
        }
        let timeouts = timeouts(service).into_iter().map(|timeout| {
            let name = timeout.name.clone();
            change.add_timeout(table, timeout);
            name
        });
        let timeouts: BTreeSet<String> = timeouts.collect();
        let maps = target_maps(service);
        for (name, port) in maps.iter().filter(|(name, _)| !before.maps.contains(*name)) {
            add_target_map(&mut change, table, name, port);
        }
        let maps: BTreeSet<String> = maps.into_keys().collect();
        let slots = client.slots(service);
        let mut mark = before.mark.clone();
        mark.fingerprint.clone_from(&changed.fingerprint);
        self.slots.place(&mut change, table, &slots, &mut mark, now);
        write_rules(&mut change, table, service, &slots, &mark);
        for chain in before.chains.difference(&chains) {
            change.flush_chain(table, chain).delete_chain(table, chain);
        }
        for name in before.maps.difference(&maps) {
            change.delete_set(table, name);
        }
        for name in before.timeouts.difference(&timeouts) {
            change.delete_timeout(table, name);
        }
        old.found = Found {
            mark,
            elements: std::mem::take(&mut old.found.elements),
            chains,
            maps,
            timeouts,
        };
        old.slots = Some(slots);
        batch.add(change)
    }

    /// Writes what leads to a service.
    fn link(&mut self, batch: &mut Batch<'_>, table: &Table, changed: Changed) -> Result<(), NftError> {
        let Some(old) = self.services.get_mut(&changed.service.id) else {
            return Ok(());
        };
        let new = |key: &Key| !old.found.elements.contains_key(key);
        let mut change = Transaction::new();
        add_elements(
            &mut change,
            table,
            changed.elements.iter().filter(|(key, _)| new(key)),
        );
        let vips = changed.vips.into_iter();
        let vips: Vec<_> = vips.filter(|(vip, to)| self.vips.get(vip) != Some(to)).collect();
        let others = vips.iter().filter(|(vip, _)| self.vips.contains_key(vip));
        let others: Vec<IpAddr> = others.map(|(vip, _)| *vip).collect();
        delete_vips(&mut change, table, &others);
        add_vips(&mut change, table, &vips);
        self.vips.extend(vips);
        old.found.elements = changed.elements;
        old.service = Some(changed.service);
        batch.add(change)
    }
}

/// A service that is to be written.
struct Changed {
    service: Arc<Service>,
    elements: BTreeMap<Key, String>,
    vips: BTreeMap<IpAddr, IpAddr>,
    fingerprint: String,
}

/// The backends behind the virtual addresses of a service.
fn pairs_of(service: &Service) -> impl Iterator<Item = ((IpAddr, IpAddr), EndpointId)> {
    attempts::pairs_of(service).map(|(vip, addr, endpoint)| ((vip, addr), endpoint))
}

/// Whether a service has fewer backends or addresses than before, or others.
fn has_lost(old: &Service, new: &Service) -> bool {
    let is_there = |old: &Backend| {
        let mut backends = new.backends.iter();
        backends.any(|new| (new.endpoint, &new.addrs) == (old.endpoint, &old.addrs))
    };
    !old.backends.iter().all(is_there) || !old.vips.iter().all(|vip| new.vips.contains(vip))
}

/// Whether there may be connections that lead to no living backend.
fn may_be_stale<'a>(old: &InstalledService, new: &Service, mut keys: impl Iterator<Item = &'a Key>) -> bool {
    let Some(before) = &old.service else { return true };
    let living: HashSet<IpAddr> = living_addrs(new).collect();
    living_addrs(before).any(|addr| !living.contains(&addr))
        || keys.any(|key| !old.found.elements.contains_key(key))
}
