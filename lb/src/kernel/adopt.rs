//! Reading back what an earlier agent left in a sandbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_netlink::nft::{Family, Nft, NftError, Table};
use weft_types::ServiceId;

use super::{
    attempts,
    program::{
        BASE_CHAIN, Key, LAYOUT, Map, Mark, Range, addr_from, is_table_name, service_of_chain, slots_map_of,
        sum,
    },
};

/// A service as it stands in the kernel.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// Without a fingerprint if the service cannot be recognised; it is then written anew.
    pub(super) mark: Mark,
    pub(super) elements: BTreeMap<Key, String>,
    pub(super) chains: BTreeSet<String>,
    pub(super) maps: BTreeSet<String>,
    pub(super) timeouts: BTreeSet<String>,
}

/// What stands in a table of ours.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) services: BTreeMap<ServiceId, Found>,
    /// Virtual addresses, and where their pings go.
    pub(super) vips: BTreeMap<IpAddr, IpAddr>,
    /// Slots that are no service's.
    pub(super) spare: Vec<Spare>,
    /// Whether connections that are made are counted, if that can be told.
    pub(super) counts_made: Option<bool>,
}

/// Slots that no rule leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spare {
    pub(super) shard: u16,
    pub(super) ipv6: bool,
    pub(super) range: Range,
}

/// All slots, by map and number.
type FoundSlots = BTreeMap<(u16, bool), BTreeMap<u32, IpAddr>>;

/// A table as it stands in the kernel.
#[derive(Debug)]
pub(super) enum FoundTable {
    /// Ours.
    Known(Contents),
    /// Ours, but of another layout.
    Foreign,
}

impl FoundTable {
    /// The virtual addresses that it knows.
    pub(super) fn vips(&self) -> impl Iterator<Item = IpAddr> {
        let contents = match self {
            Self::Known(contents) => Some(contents),
            Self::Foreign => None,
        };
        let found = contents
            .into_iter()
            .flat_map(|contents| contents.services.values());
        found.flat_map(|found| found.elements.keys().map(|key| key.vip))
    }
}

/// Whether there may be any of ours in the namespace of `nft`.
pub(super) fn has_tables(nft: &Nft) -> Result<bool, NftError> {
    let tables = nft.tables_of(Family::Inet, "weft-")?;
    Ok(tables.iter().any(|table| is_table_name(&table.name)))
}

/// All tables of ours in the namespace of `nft`.
pub(super) fn read(nft: &Nft) -> Result<BTreeMap<String, FoundTable>, NftError> {
    let mut found = BTreeMap::new();
    for table in nft.tables_of(Family::Inet, "weft-")? {
        if !is_table_name(&table.name) {
            continue;
        }
        let chains = nft.chains(&table)?;
        // Other parts of Weft have tables too; only ours has this chain.
        if chains.iter().any(|chain| chain == BASE_CHAIN) {
            let services = read_table(nft, &table, chains)?;
            found.insert(table.name, services);
        }
    }
    Ok(found)
}

fn read_table(nft: &Nft, table: &Table, chains: Vec<String>) -> Result<FoundTable, NftError> {
    let mut services: BTreeMap<ServiceId, Found> = BTreeMap::new();
    for chain in chains {
        if let Some(service) = service_of_chain(&chain) {
            services.entry(service).or_default().chains.insert(chain);
        }
    }
    let mut slots = FoundSlots::new();
    for map in nft.sets(table)? {
        if let Some(service) = service_of_chain(&map) {
            services.entry(service).or_default().maps.insert(map);
        } else if let Some(slots_map) = slots_map_of(&map) {
            slots.insert(slots_map, read_slots(nft, table, &map)?);
        }
    }
    for timeout in nft.timeouts(table)? {
        if let Some(service) = service_of_chain(&timeout) {
            services.entry(service).or_default().timeouts.insert(timeout);
        }
    }
    let mut layout = false;
    let mut contents = Contents::default();
    let mut marks: BTreeMap<ServiceId, BTreeMap<String, Mark>> = BTreeMap::new();
    for (chain, comment) in nft.rule_comments(table)? {
        layout |= chain == BASE_CHAIN && comment == LAYOUT;
        if let Some(counts_made) = attempts::counts_made(&chain, &comment) {
            contents.counts_made = Some(counts_made);
        }
        if let (Some(service), Some(mark)) = (service_of_chain(&chain), Mark::parse(&comment)) {
            marks.entry(service).or_default().insert(chain, mark);
        }
    }
    if !layout {
        return Ok(FoundTable::Foreign);
    }
    for map in Key::MAPS {
        for element in nft.elements(table, map.name())? {
            let key = Key::from_bytes(map, &element.key);
            let chain = element.chain;
            let (Some(key), Some((chain, service))) =
                (key, chain.and_then(|c| service_of_chain(&c).map(|s| (c, s))))
            else {
                return Ok(FoundTable::Foreign);
            };
            services.entry(service).or_default().elements.insert(key, chain);
        }
    }
    for ipv6 in [false, true] {
        for element in nft.elements(table, Map::Vips { ipv6 }.name())? {
            let pair = addr_from(&element.key).zip(element.value.as_deref().and_then(addr_from));
            contents.vips.extend(pair);
        }
    }
    for (id, found) in &mut services {
        if let Some(mark) = marks.remove(id).and_then(|marks| whole(found, marks, &mut slots)) {
            found.mark = mark;
        }
    }
    contents.services = services;
    for ((shard, ipv6), slots) in slots {
        let spare = slots.into_keys().map(|first| Spare {
            shard,
            ipv6,
            range: Range { first, len: 1 },
        });
        contents.spare.extend(spare);
    }
    Ok(FoundTable::Known(contents))
}

fn read_slots(nft: &Nft, table: &Table, map: &str) -> Result<BTreeMap<u32, IpAddr>, NftError> {
    let elements = nft.elements(table, map)?.into_iter();
    let slots = elements.filter_map(|element| {
        let number = u32::from_ne_bytes(element.key.try_into().ok()?);
        Some((number, addr_from(&element.value?)?))
    });
    Ok(slots.collect())
}

/// What all chains of a service say of it, if the slots are as they say. Takes those out.
fn whole(found: &Found, marks: BTreeMap<String, Mark>, slots: &mut FoundSlots) -> Option<Mark> {
    if !marks.keys().eq(&found.chains) {
        return None;
    }
    let mut marks = marks.into_values();
    let mark = marks.next()?;
    if marks.any(|other| other != mark) {
        return None;
    }
    let of_version = |ipv6: bool| {
        let Range { first, len } = mark.ranges[usize::from(ipv6)];
        let slots = slots.get(&(mark.shard, ipv6));
        let numbers = first..first.saturating_add(len);
        numbers.map_while(move |number| slots?.get(&number))
    };
    let found: Vec<IpAddr> = of_version(false).chain(of_version(true)).copied().collect();
    if found.len() != mark.slots() as usize || sum(found.iter()) != mark.sum {
        return None;
    }
    for ipv6 in [false, true] {
        let Range { first, len } = mark.ranges[usize::from(ipv6)];
        if let Some(slots) = slots.get_mut(&(mark.shard, ipv6)) {
            slots.retain(|number, _| *number < first || *number - first >= len);
        }
    }
    Some(mark)
}
