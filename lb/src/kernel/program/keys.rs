//! What leads to services: the maps of a table, and their elements.

use std::net::IpAddr;

use weft_netlink::nft::{Datum, Element, Kind, Table, Transaction, Verdict};

/// The maps of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernel) enum Map {
    Ports { ipv6: bool },
    Vips { ipv6: bool },
}

impl Map {
    pub(in crate::kernel) const ALL: [Self; 4] = [
        Self::Ports { ipv6: false },
        Self::Ports { ipv6: true },
        Self::Vips { ipv6: false },
        Self::Vips { ipv6: true },
    ];

    pub(in crate::kernel) fn name(self) -> &'static str {
        match self {
            Self::Ports { ipv6: false } => "ports4",
            Self::Ports { ipv6: true } => "ports6",
            Self::Vips { ipv6: false } => "vips4",
            Self::Vips { ipv6: true } => "vips6",
        }
    }

    pub(super) fn key(self) -> Vec<Kind> {
        match self {
            Self::Ports { ipv6: false } => vec![Kind::Addr4, Kind::Proto, Kind::Port],
            Self::Ports { ipv6: true } => vec![Kind::Addr6, Kind::Proto, Kind::Port],
            Self::Vips { ipv6: false } => vec![Kind::Addr4],
            Self::Vips { ipv6: true } => vec![Kind::Addr6],
        }
    }
}

/// A key of one of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::kernel) struct Key {
    pub(in crate::kernel) vip: IpAddr,
    /// Protocol and port; none stands for the rest of the address.
    pub(in crate::kernel) port: Option<(u8, u16)>,
}

impl Key {
    pub(in crate::kernel) fn map(&self) -> Map {
        match self.port {
            Some(_) => Map::Ports {
                ipv6: self.vip.is_ipv6(),
            },
            None => Map::Vips {
                ipv6: self.vip.is_ipv6(),
            },
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
        let (Map::Ports { ipv6 } | Map::Vips { ipv6 }) = map;
        let (vip, rest) = if ipv6 {
            let (addr, rest) = bytes.split_first_chunk::<16>()?;
            (IpAddr::from(*addr), rest)
        } else {
            let (addr, rest) = bytes.split_first_chunk::<4>()?;
            (IpAddr::from(*addr), rest)
        };
        let port = match (map, rest) {
            (Map::Ports { .. }, [protocol, _, _, _, high, low, ..]) => {
                Some((*protocol, u16::from_be_bytes([*high, *low])))
            }
            (Map::Ports { .. }, _) => return None,
            (Map::Vips { .. }, _) => None,
        };
        Some(Self { vip, port })
    }
}

/// Adds what leads to a service.
pub(in crate::kernel) fn add_elements<'a>(
    change: &mut Transaction,
    table: &Table,
    elements: impl Iterator<Item = (&'a Key, &'a String)> + Clone,
) {
    for map in Map::ALL {
        let of_map = elements.clone().filter(|(key, _)| key.map() == map);
        let new = of_map
            .map(|(key, chain)| Element::verdict(key.data(), Verdict::Goto(chain.clone())))
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
    for map in Map::ALL {
        let old = keys
            .clone()
            .filter(|key| key.map() == map)
            .map(|key| Element::key(key.data()))
            .collect();
        change.delete_elements(table, map.name(), old);
    }
}
