//! Reading back what an earlier agent left in a sandbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_netlink::nft::{Family, Nft, NftError, Table};
use weft_types::ServiceId;

use super::program::{BASE_CHAIN, Key, LAYOUT, Map, is_table_name, main_chain, service_of_chain};

/// A service as it stands in the kernel.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// Empty if the service cannot be recognised; it is then written anew.
    pub(super) fingerprint: String,
    pub(super) elements: BTreeMap<Key, String>,
    pub(super) chains: BTreeSet<String>,
    pub(super) maps: BTreeSet<String>,
    pub(super) timeouts: BTreeSet<String>,
}

/// A table as it stands in the kernel.
#[derive(Debug)]
pub(super) enum FoundTable {
    /// Ours, with its services.
    Known(BTreeMap<ServiceId, Found>),
    /// Ours, but of another layout.
    Foreign,
}

impl FoundTable {
    /// The virtual addresses that it knows.
    pub(super) fn vips(&self) -> impl Iterator<Item = IpAddr> {
        let services = match self {
            Self::Known(services) => Some(services),
            Self::Foreign => None,
        };
        let found = services.into_iter().flat_map(BTreeMap::values);
        found.flat_map(|found| found.elements.keys().map(|key| key.vip))
    }
}

/// All tables of ours in the namespace of `nft`.
pub(super) fn read(nft: &Nft) -> Result<BTreeMap<String, FoundTable>, NftError> {
    let mut found = BTreeMap::new();
    for table in nft.tables("weft-")? {
        if table.family != Family::Inet || !is_table_name(&table.name) {
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
    for map in nft.sets(table)? {
        if let Some(service) = service_of_chain(&map) {
            services.entry(service).or_default().maps.insert(map);
        }
    }
    for timeout in nft.timeouts(table)? {
        if let Some(service) = service_of_chain(&timeout) {
            services.entry(service).or_default().timeouts.insert(timeout);
        }
    }
    let mut layout = false;
    for (chain, comment) in nft.rule_comments(table)? {
        layout |= chain == BASE_CHAIN && comment == LAYOUT;
        if let Some(service) = service_of_chain(&chain).filter(|&service| main_chain(service) == chain) {
            services.entry(service).or_default().fingerprint = comment;
        }
    }
    if !layout {
        return Ok(FoundTable::Foreign);
    }
    for map in Map::ALL {
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
    Ok(FoundTable::Known(services))
}
