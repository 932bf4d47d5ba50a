//! What is to be written, in an order that leads nobody astray.

use weft_netlink::bpf::{BpfError, Map};

use super::{super::layout::MapId, Maps};

/// What is to be written to one map.
#[derive(Debug, Default)]
pub(super) struct Writes {
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Writes {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) {
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
pub(super) struct Change {
    pub(super) loads: Writes,
    pub(super) backends: Writes,
    pub(super) ledger: Writes,
    pub(super) slots: Writes,
    pub(super) services: Writes,
    pub(super) vips: Writes,
    pub(super) gone_from_ledger: Vec<[u8; 32]>,
    pub(super) gone_backends: Writes,
}

impl Change {
    pub(super) fn flush(mut self, maps: &Maps) -> Result<(), TableError> {
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
pub(in super::super) enum TableError {
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error("there is no room for more {0}")]
    Full(&'static str),
}
