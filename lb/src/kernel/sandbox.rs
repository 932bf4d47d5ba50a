//! One sandbox: what is installed there, and the way from that to what should be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use weft_netlink::{
    conntrack::{Conntrack, ConntrackError, TcpState},
    netns::NetnsId,
    nft::{Family, Nft, NftError, Table, Transaction},
};
use weft_types::ServiceId;

use super::{
    adopt::{self, Found, FoundTable},
    batch::Batch,
    flows::AllLoads,
    program::{Key, Side, elements, fnv, table_of, write_table},
    table::{Client, Installed},
    watch::Watch,
};
use crate::{BackendState, ClientTable, Scheduler, Service, Written};

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) netns: NetnsId,
    side: Side,
    seed: u64,
    /// By name, with what stands in them.
    tables: BTreeMap<String, Installed>,
    /// While it has services with least connection.
    pub(super) watch: Option<Watch>,
    /// What it was last synced to.
    pub(super) synced: Option<Vec<ClientTable>>,
    /// Whether somebody else may have changed `tables` since.
    pub(super) unread: bool,
}

/// What a sync did, and whether open connections may now lead nowhere.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) written: Written,
    pub(super) may_be_stale: bool,
    /// The services that were looked at.
    pub(super) changed: Vec<Arc<Service>>,
    /// Addresses at which something led to a service that does not any more.
    pub(super) gone: HashSet<IpAddr>,
}

impl Outcome {
    pub(super) fn removed(&mut self, old: &Found) {
        self.written.removed += 1;
        self.gone.extend(old.elements.keys().map(|key| key.vip));
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

    fn read(nft: &Nft) -> Result<BTreeMap<String, Installed>, NftError> {
        let mut tables = BTreeMap::new();
        for (name, table) in adopt::read(nft)? {
            match table {
                FoundTable::Known(contents) => drop(tables.insert(name, Installed::found(contents))),
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
        let mut batch = Batch::new(nft);
        // A network without services gets no table: its hook alone would make the kernel track every connection.
        let wanted: BTreeMap<String, (Table, &ClientTable)> = wanted
            .iter()
            .filter(|client| !client.services.is_empty())
            .map(|client| {
                let table = table_of(client.network);
                (table.name.clone(), (table, client))
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
            if let Some(table) = self.tables.remove(&name) {
                table.end(&mut outcome);
            }
        }
        let client = Client {
            seed: self.seed,
            side: self.side,
            loads,
        };
        for (name, (table, wanted)) in wanted {
            let installed = match self.tables.entry(name) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let mut change = Transaction::new();
                    write_table(&mut change, &table, self.side);
                    batch.add(change)?;
                    entry.insert(Installed::new())
                }
            };
            installed.sync(&mut batch, &table, &wanted.services, client, &mut outcome)?;
        }
        batch.flush()?;
        let mut change = Transaction::new();
        for (name, installed) in &mut self.tables {
            let table = Table::new(Family::Inet, name.clone());
            installed.forget_attempts(nft, &table, &mut change)?;
        }
        nft.commit(&change)?;
        Ok(outcome)
    }

    /// Whether connections of it matter to a scheduler.
    pub(super) fn is_counting(&self) -> bool {
        self.services().any(|service| is_counted(service))
    }

    /// Lays out the slots of services with least connection anew, after their loads changed.
    pub(super) fn refresh(
        &mut self,
        touched: &BTreeSet<ServiceId>,
        loads: &AllLoads,
    ) -> Result<(), NftError> {
        let Some(watch) = &self.watch else { return Ok(()) };
        let client = Client {
            seed: self.seed,
            side: self.side,
            loads,
        };
        let mut batch = Batch::new(&watch.nft);
        for (name, installed) in &mut self.tables {
            let table = Table::new(Family::Inet, name.clone());
            installed.refresh(&mut batch, &table, touched, client)?;
        }
        batch.flush()
    }

    /// Its services as last synced.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.tables.values().flat_map(Installed::services)
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
    services: &[Arc<Service>],
    side: Side,
    mut vips: HashSet<IpAddr>,
) -> Result<usize, ConntrackError> {
    let flows = conntrack.flows()?;
    if flows.is_empty() {
        return Ok(0);
    }
    let mut living: HashMap<Key, HashSet<IpAddr>> = HashMap::new();
    for service in services {
        vips.extend(&service.vips);
        let keys: BTreeSet<Key> = match side {
            Side::Client => service
                .vips
                .iter()
                .map(|vip| Key {
                    vip: *vip,
                    port: None,
                })
                .collect(),
            Side::Entry => elements(service, side).into_keys().collect(),
        };
        for key in keys {
            living.entry(key).or_default().extend(living_addrs(service));
        }
    }
    let mut cut = 0;
    for flow in flows {
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

pub(super) fn living_addrs(service: &Service) -> impl Iterator<Item = IpAddr> {
    let living = service
        .backends
        .iter()
        .filter(|backend| backend.state != BackendState::Down);
    living.flat_map(|backend| backend.addrs.iter().copied())
}
