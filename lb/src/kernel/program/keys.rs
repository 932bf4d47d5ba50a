//! What leads to services: the maps of a table, and their elements.

use std::net::IpAddr;

use weft_netlink::nft::{Datum, Element, Kind, Set, SetData, Table, Transaction, Verdict};

use super::mark::Range;

/// The maps of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernel) enum Map {
    Vips { ipv6: bool },
    Ports { ipv6: bool },
    All { ipv6: bool },
}

impl Map {
    pub(in crate::kernel) const ALL: [Self; 6] = [
        Self::Vips { ipv6: false },
        Self::Vips { ipv6: true },
        Self::Ports { ipv6: false },
        Self::Ports { ipv6: true },
        Self::All { ipv6: false },
        Self::All { ipv6: true },
    ];

    pub(in crate::kernel) fn name(self) -> &'static str {
        match self {
            Self::Vips { ipv6: false } => "vips4",
            Self::Vips { ipv6: true } => "vips6",
            Self::Ports { ipv6: false } => "ports4",
            Self::Ports { ipv6: true } => "ports6",
            Self::All { ipv6: false } => "all4",
            Self::All { ipv6: true } => "all6",
        }
    }

    pub(super) fn key(self) -> Vec<Kind> {
        match self {
            Self::Vips { ipv6 } | Self::All { ipv6 } => vec![addr_of(ipv6)],
            Self::Ports { ipv6 } => vec![addr_of(ipv6), Kind::Proto, Kind::Port],
        }
    }

    pub(super) fn data(self) -> SetData {
        match self {
            Self::Vips { ipv6 } => SetData::Value(addr_of(ipv6)),
            Self::Ports { .. } | Self::All { .. } => SetData::Verdict,
        }
    }
}

fn addr_of(ipv6: bool) -> Kind {
    if ipv6 { Kind::Addr6 } else { Kind::Addr4 }
}

/// A key of one of the maps that lead to chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::kernel) struct Key {
    pub(in crate::kernel) vip: IpAddr,
    /// Protocol and port; none stands for all of the address.
    pub(in crate::kernel) port: Option<(u8, u16)>,
}

impl Key {
    pub(in crate::kernel) const MAPS: [Map; 4] = [
        Map::Ports { ipv6: false },
        Map::Ports { ipv6: true },
        Map::All { ipv6: false },
        Map::All { ipv6: true },
    ];

    pub(in crate::kernel) fn map(&self) -> Map {
        let ipv6 = self.vip.is_ipv6();
        match self.port {
            Some(_) => Map::Ports { ipv6 },
            None => Map::All { ipv6 },
        }
    }

    fn data(&self) -> Vec<Datum> {
        let mut data = vec![Datum::from(self.vip)];
        if let Some((protocol, port)) = self.port {
            data.extend([Datum::Proto(protocol), Datum::Port(port)]);
        }
        data
    }

    /// Reads back the bytes of a key: the address, and the rest in fields padded to four bytes.
    pub(in crate::kernel) fn from_bytes(map: Map, bytes: &[u8]) -> Option<Self> {
        let len = if matches!(map.key().first(), Some(Kind::Addr6)) {
            16
        } else {
            4
        };
        let (vip, rest) = bytes.split_at_checked(len)?;
        let vip = addr_from(vip)?;
        let port = match (map, rest) {
            (Map::Ports { .. }, [protocol, _, _, _, high, low, ..]) => {
                Some((*protocol, u16::from_be_bytes([*high, *low])))
            }
            (Map::All { .. }, []) => None,
            _ => return None,
        };
        Some(Self { vip, port })
    }
}

/// Reads back the bytes of an address.
pub(in crate::kernel) fn addr_from(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        _ => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
    }
}

/// Adds what leads to a service.
pub(in crate::kernel) fn add_elements<'a>(
    change: &mut Transaction,
    table: &Table,
    elements: impl Iterator<Item = (&'a Key, &'a String)> + Clone,
) {
    for map in Key::MAPS {
        let of_map = elements.clone().filter(|(key, _)| key.map() == map);
        let new = of_map
            .map(|(key, chain)| Element::verdict(key.data(), Verdict::Jump(chain.clone())))
            .collect();
        change.add_elements(table, map.name(), new);
    }
}

/// Deletes what leads to a service.
pub(in crate::kernel) fn delete_elements<'a>(
    change: &mut Transaction,
    table: &Table,
    keys: impl Iterator<Item = &'a Key> + Clone,
) {
    for map in Key::MAPS {
        let old = keys
            .clone()
            .filter(|key| key.map() == map)
            .map(|key| Element::key(key.data()))
            .collect();
        change.delete_elements(table, map.name(), old);
    }
}

/// The name of a map of slots.
pub(in crate::kernel) fn slots_map(shard: u16, ipv6: bool) -> String {
    format!("slots{}-{shard}", if ipv6 { 6 } else { 4 })
}

/// The map of slots that has this name.
pub(in crate::kernel) fn slots_map_of(name: &str) -> Option<(u16, bool)> {
    let (version, shard) = name.strip_prefix("slots")?.split_once('-')?;
    let ipv6 = match version {
        "4" => false,
        "6" => true,
        _ => return None,
    };
    Some((shard.parse().ok()?, ipv6))
}

/// Adds a pair of maps for slots.
pub(in crate::kernel) fn add_slots_map(change: &mut Transaction, table: &Table, shard: u16) {
    for ipv6 in [false, true] {
        let value = SetData::Value(addr_of(ipv6));
        change.add_set(table, Set::new(slots_map(shard, ipv6), [Kind::Number], value));
    }
}

/// Adds slots.
pub(in crate::kernel) fn add_slots(
    change: &mut Transaction,
    table: &Table,
    shard: u16,
    ipv6: bool,
    first: u32,
    slots: &[IpAddr],
) {
    let numbers = first..;
    let elements = numbers
        .zip(slots)
        .map(|(number, addr)| Element::value([Datum::Number(number)], (*addr).into()));
    change.add_elements(table, &*slots_map(shard, ipv6), elements.collect());
}

/// Deletes slots.
pub(in crate::kernel) fn delete_slots(
    change: &mut Transaction,
    table: &Table,
    shard: u16,
    ipv6: bool,
    range: Range,
) {
    let numbers = range.first..range.first + range.len;
    let elements = numbers.map(|number| Element::key([Datum::Number(number)]));
    change.delete_elements(table, &*slots_map(shard, ipv6), elements.collect());
}

/// Adds virtual addresses, each with where its pings go.
pub(in crate::kernel) fn add_vips(change: &mut Transaction, table: &Table, vips: &[(IpAddr, IpAddr)]) {
    for ipv6 in [false, true] {
        let of_version = vips.iter().filter(|(vip, _)| vip.is_ipv6() == ipv6);
        let elements = of_version.map(|(vip, to)| Element::value([Datum::from(*vip)], (*to).into()));
        change.add_elements(table, Map::Vips { ipv6 }.name(), elements.collect());
    }
}

/// Deletes virtual addresses.
pub(in crate::kernel) fn delete_vips(change: &mut Transaction, table: &Table, vips: &[IpAddr]) {
    for ipv6 in [false, true] {
        let of_version = vips.iter().filter(|vip| vip.is_ipv6() == ipv6);
        let elements = of_version.map(|vip| Element::key([Datum::from(*vip)]));
        change.delete_elements(table, Map::Vips { ipv6 }.name(), elements.collect());
    }
}
