//! One sandbox: what is installed there, and the way from that to what should be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry},
    net::IpAddr,
};

use weft_netlink::{
    conntrack::{Conntrack, ConntrackError, TcpState},
    netns::NetnsId,
    nft::{Chain, Family, Nft, NftError, Table, Transaction},
};
use weft_types::{EndpointId, ServiceId};

use super::{
    adopt::{self, Found, FoundTable},
    attempts,
    flows::AllLoads,
    program::{
        Key, Side, Slots, add_elements, add_target_map, chains, delete_elements, elements, fingerprint, fnv,
        table_of, target_maps, timeouts, write_rules, write_table,
    },
    watch::Watch,
};
use crate::{Backend, BackendState, ClientTable, Scheduler, Service, Written};

/// An unprivileged sender may send about 400 KiB at once; larger changes are cut between services.
const BATCH_BYTES: usize = 200 * 1024;

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) netns: NetnsId,
    side: Side,
    seed: u64,
    /// By name, with what stands in them.
    pub(super) tables: BTreeMap<String, BTreeMap<ServiceId, Installed>>,
    /// While it has services with least connection.
    pub(super) watch: Option<Watch>,
    /// What it was last synced to.
    pub(super) synced: Option<Vec<ClientTable>>,
    /// Whether somebody else may have changed `tables` since.
    pub(super) unread: bool,
}

#[derive(Debug, Default)]
pub(super) struct Installed {
    found: Found,
    /// What it was made from; unknown after an agent's restart until the first sync.
    pub(super) service: Option<Service>,
    /// The slots that were written last, if by us.
    slots: Option<Slots>,
}

/// What a sync did, and whether open connections may now lead nowhere.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) written: Written,
    pub(super) may_be_stale: bool,
    /// Addresses at which something led to a service that does not any more.
    pub(super) gone: HashSet<IpAddr>,
    /// Whether something may be counted for backends that are gone.
    pub(super) has_lost: bool,
}

impl Outcome {
    fn removed(&mut self, old: &Installed) {
        self.written.removed += 1;
        self.has_lost = true;
        self.gone.extend(old.found.elements.keys().map(|key| key.vip));
    }
}

impl Sandbox {
    /// Reads what an earlier agent left.
    pub(super) fn adopt(name: &str, netns: NetnsId, side: Side, nft: &Nft) -> Result<Self, NftError> {
        Ok(Self {
            netns,
            side,
            seed: fnv(name.as_bytes()),
            tables: Self::read(nft)?,
            watch: None,
            synced: None,
            unread: false,
        })
    }

    /// Reads back what is installed.
    pub(super) fn reread(&mut self, nft: &Nft) -> Result<(), NftError> {
        self.tables = Self::read(nft)?;
        self.unread = false;
        Ok(())
    }

    fn read(nft: &Nft) -> Result<BTreeMap<String, BTreeMap<ServiceId, Installed>>, NftError> {
        let installed = |found| Installed {
            found,
            ..Installed::default()
        };
        let mut tables = BTreeMap::new();
        for (name, table) in adopt::read(nft)? {
            match table {
                FoundTable::Known(services) => {
                    let services = services
                        .into_iter()
                        .map(|(id, found)| (id, installed(found)))
                        .collect();
                    tables.insert(name, services);
                }
                FoundTable::Foreign => {
                    let mut change = Transaction::new();
                    nft.commit(change.delete_table(&Table::new(Family::Inet, name)))?;
                }
            }
        }
        Ok(tables)
    }

    /// Writes the difference to `wanted`. After an error what is installed is unknown: adopt again.
    pub(super) fn sync(
        &mut self,
        nft: &Nft,
        wanted: &[ClientTable],
        loads: &AllLoads,
    ) -> Result<Outcome, NftError> {
        let mut outcome = Outcome::default();
        let known = self.known();
        let mut batch = Batch {
            nft,
            change: Transaction::new(),
            bytes: 0,
        };
        // A network without services gets no table: its hook alone would make the kernel track every connection.
        let wanted: BTreeMap<String, (Table, Vec<Service>)> = wanted
            .iter()
            .filter(|client| !client.services.is_empty())
            .map(|client| {
                let table = table_of(client.network);
                (table.name.clone(), (table, distinct(&client.services, self.side)))
            })
            .collect();
        let gone: Vec<String> = self
            .tables
            .keys()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            let mut change = Transaction::new();
            change.delete_table(&Table::new(Family::Inet, name.clone()));
            batch.add(change)?;
            let services = self.tables.remove(&name).unwrap_or_default();
            services.values().for_each(|old| outcome.removed(old));
        }
        for (name, (table, services)) in wanted {
            let installed = match self.tables.entry(name) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let mut change = Transaction::new();
                    write_table(&mut change, &table, self.side);
                    batch.add(change)?;
                    entry.insert(BTreeMap::new())
                }
            };
            sync_table(
                &mut batch,
                &table,
                installed,
                services,
                (self.seed, self.side),
                loads,
                &mut outcome,
            )?;
        }
        batch.flush()?;
        if outcome.has_lost {
            self.forget_attempts(nft, &known)?;
        }
        Ok(outcome)
    }

    /// Whoever gets the address of a backend that is gone begins with nothing.
    fn forget_attempts(&self, nft: &Nft, before: &HashSet<(EndpointId, IpAddr)>) -> Result<(), NftError> {
        let mut change = Transaction::new();
        for (name, services) in &self.tables {
            let services = services
                .values()
                .filter_map(|installed| installed.service.as_ref());
            let stays = attempts::pairs(services, |backend| before.contains(backend));
            attempts::forget(nft, &Table::new(Family::Inet, name.clone()), &stays, &mut change)?;
        }
        nft.commit(&change)
    }

    /// The addresses of all backends that are known, and of whom they are.
    fn known(&self) -> HashSet<(EndpointId, IpAddr)> {
        let backends = self.services().flat_map(|service| &service.backends);
        let addrs = backends.flat_map(|backend| backend.addrs.iter().map(|addr| (backend.endpoint, *addr)));
        addrs.collect()
    }

    /// Lays out the slots of services with least connection anew, after their loads changed.
    pub(super) fn refresh(
        &mut self,
        touched: &BTreeSet<ServiceId>,
        loads: &AllLoads,
    ) -> Result<(), NftError> {
        let Some(watch) = &self.watch else { return Ok(()) };
        let mut batch = Batch {
            nft: &watch.nft,
            change: Transaction::new(),
            bytes: 0,
        };
        for (name, services) in &mut self.tables {
            let table = Table::new(Family::Inet, name.clone());
            for id in touched {
                let Some(installed) = services.get_mut(id) else {
                    continue;
                };
                let Some(service) = installed.service.as_ref().filter(|service| is_counted(service)) else {
                    continue;
                };
                let slots = slots(service, loads, (self.seed, self.side));
                if !slots.has_choice() && installed.slots.as_ref() == Some(&slots) {
                    continue;
                }
                // Even the same slots are written: the kernel has gone on in them and must start again.
                let mut change = Transaction::new();
                write_rules(&mut change, &table, service, &slots, &installed.found.fingerprint);
                installed.slots = Some(slots);
                batch.add(change)?;
            }
        }
        batch.flush()
    }

    /// Its services as last synced.
    pub(super) fn services(&self) -> impl Iterator<Item = &Service> {
        self.tables
            .values()
            .flat_map(|services| services.values())
            .filter_map(|installed| installed.service.as_ref())
    }
}

/// Whether the open connections of a service matter to its scheduler.
pub(super) fn is_counted(service: &Service) -> bool {
    service.scheduler == Scheduler::LeastConnections
}

/// Cuts the connections to a virtual address that lead to none of its living backends, and says how many. Among
/// them are flows that began before the address was translated at all. At an entry it is ports that lead somewhere, and what came
/// by one that is closed now, at an address of `vips` too, is cut as well.
pub(super) fn cut_stale(
    conntrack: &Conntrack,
    tables: &[ClientTable],
    side: Side,
    mut vips: HashSet<IpAddr>,
) -> Result<usize, ConntrackError> {
    let mut living: HashMap<Key, HashSet<IpAddr>> = HashMap::new();
    for service in tables.iter().flat_map(|table| &table.services) {
        vips.extend(&service.vips);
        for key in elements(service, side).into_keys() {
            living.entry(key).or_default().extend(living_addrs(service));
        }
    }
    let mut cut = 0;
    for flow in conntrack.flows()? {
        // What is over needs no end. A new connection may have taken its place by now, and even its number: the kernel
        // makes it of the place in memory.
        if flow.tcp_state == Some(TcpState::Closed) {
            continue;
        }
        let key = Key {
            vip: flow.original.dst,
            port: (side == Side::Entry).then_some((flow.protocol, flow.original.dst_port)),
        };
        let stale = match living.get(&key) {
            Some(addrs) => !addrs.contains(&flow.reply.src),
            // What was never translated is the namespace's own.
            None => vips.contains(&key.vip) && flow.reply.src != key.vip,
        };
        if stale && conntrack.delete(&flow)? {
            cut += 1;
        }
    }
    Ok(cut)
}

fn living_addrs(service: &Service) -> impl Iterator<Item = IpAddr> {
    let living = service
        .backends
        .iter()
        .filter(|backend| backend.state != BackendState::Down);
    living.flat_map(|backend| backend.addrs.iter().copied())
}

fn slots(service: &Service, loads: &AllLoads, (seed, side): (u64, Side)) -> Slots {
    match loads.get(&service.id) {
        Some(loads) => Slots::of(service, loads, seed, side),
        None => Slots::of(service, &crate::Loads::new(), seed, side),
    }
}

/// The services in order of their ids, no two of which claim the same.
fn distinct(services: &[Service], side: Side) -> Vec<Service> {
    match side {
        Side::Client => without_double_claims(services),
        // Here they share addresses, and whoever gives them a port has seen to it that no two have the same.
        Side::Entry => services.to_vec(),
    }
}

/// Of two services that claim one virtual address the one with the lower id keeps it, on every host.
fn without_double_claims(services: &[Service]) -> Vec<Service> {
    let mut services = services.to_vec();
    services.sort_by_key(|service| service.id);
    let mut taken = HashSet::new();
    for service in &mut services {
        let claims = service.vips.len();
        service.vips.sort();
        service.vips.dedup();
        service.vips.retain(|&vip| taken.insert(vip));
        if service.vips.len() < claims {
            tracing::warn!(service = %service.id, "a virtual address is claimed twice; the lower service id keeps it");
        }
    }
    services
}

fn sync_table(
    batch: &mut Batch<'_>,
    table: &Table,
    installed: &mut BTreeMap<ServiceId, Installed>,
    services: Vec<Service>,
    (seed, side): (u64, Side),
    loads: &AllLoads,
    outcome: &mut Outcome,
) -> Result<(), NftError> {
    let wanted: HashSet<ServiceId> = services.iter().map(|service| service.id).collect();
    let gone: Vec<ServiceId> = installed
        .keys()
        .filter(|id| !wanted.contains(id))
        .copied()
        .collect();
    for id in gone {
        let mut change = Transaction::new();
        if let Some(old) = installed.remove(&id) {
            outcome.removed(&old);
            delete_elements(&mut change, table, old.found.elements.keys());
            old.found.chains.iter().for_each(|chain| {
                change.flush_chain(table, chain).delete_chain(table, chain);
            });
            old.found.maps.iter().for_each(|name| {
                change.delete_set(table, name);
            });
            old.found.timeouts.iter().for_each(|name| {
                change.delete_timeout(table, name);
            });
        }
        batch.add(change)?;
    }

    // All keys that leave their service go before any is added, as one may go from one service to another.
    let mut additions = Vec::new();
    for service in services {
        let old = installed.entry(service.id).or_default();
        let new_elements = elements(&service, side);
        outcome.may_be_stale |= may_be_stale(old, &service, new_elements.keys());
        outcome.has_lost |= old.service.as_ref().is_some_and(|old| has_lost(old, &service));
        let mark = fingerprint(&service, seed, side);
        // The fingerprint stands in a rule; who leads there somebody else may have taken away.
        if old.found.fingerprint == mark && old.found.elements == new_elements {
            old.service = Some(service);
            continue;
        }
        let leaving = old
            .found
            .elements
            .iter()
            .filter(|(key, chain)| new_elements.get(key) != Some(chain));
        let leaving: Vec<_> = leaving.map(|(key, _)| *key).collect();
        let mut removal = Transaction::new();
        outcome.gone.extend(leaving.iter().map(|key| key.vip));
        delete_elements(&mut removal, table, leaving.iter());
        batch.add(removal)?;
        additions.push((service, new_elements, mark));
    }
    for (service, new_elements, mark) in additions {
        let Some(old) = installed.get_mut(&service.id) else {
            continue;
        };
        let new_chains: BTreeSet<String> = chains(&service).into_iter().collect();
        let mut change = Transaction::new();
        for chain in new_chains.difference(&old.found.chains) {
            change.add_chain(table, Chain::regular(chain.clone()));
        }
        let new_timeouts = timeouts(&service).into_iter().map(|timeout| {
            let name = timeout.name.clone();
            change.add_timeout(table, timeout);
            name
        });
        let new_timeouts: BTreeSet<String> = new_timeouts.collect();
        let new_maps = target_maps(&service);
        for (name, port) in new_maps
            .iter()
            .filter(|(name, _)| !old.found.maps.contains(*name))
        {
            add_target_map(&mut change, table, name, port);
        }
        let new_maps: BTreeSet<String> = new_maps.into_keys().collect();
        let slots = slots(&service, loads, (seed, side));
        write_rules(&mut change, table, &service, &slots, &mark);
        let before = std::mem::take(&mut old.found);
        add_elements(
            &mut change,
            table,
            new_elements
                .iter()
                .filter(|(key, c)| before.elements.get(key) != Some(c)),
        );
        for chain in before.chains.difference(&new_chains) {
            change.flush_chain(table, chain).delete_chain(table, chain);
        }
        for name in before.maps.difference(&new_maps) {
            change.delete_set(table, name);
        }
        for name in before.timeouts.difference(&new_timeouts) {
            change.delete_timeout(table, name);
        }
        batch.add(change)?;
        outcome.written.changed += 1;
        *old = Installed {
            found: Found {
                fingerprint: mark,
                elements: new_elements,
                chains: new_chains,
                maps: new_maps,
                timeouts: new_timeouts,
            },
            service: Some(service),
            slots: Some(slots),
        };
    }
    Ok(())
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
fn may_be_stale<'a>(old: &Installed, new: &Service, mut keys: impl Iterator<Item = &'a Key>) -> bool {
    let Some(before) = &old.service else { return true };
    let living: HashSet<IpAddr> = living_addrs(new).collect();
    living_addrs(before).any(|addr| !living.contains(&addr))
        || keys.any(|key| !old.found.elements.contains_key(key))
}

/// Changes that are sent together as long as they fit.
struct Batch<'a> {
    nft: &'a Nft,
    change: Transaction,
    bytes: usize,
}

impl Batch<'_> {
    fn add(&mut self, change: Transaction) -> Result<(), NftError> {
        if change.is_empty() {
            return Ok(());
        }
        let bytes = change.encoded_len();
        if self.bytes + bytes > BATCH_BYTES {
            self.flush()?;
        }
        self.change.append(change);
        self.bytes += bytes;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), NftError> {
        self.bytes = 0;
        self.nft.commit(&std::mem::take(&mut self.change))
    }
}
