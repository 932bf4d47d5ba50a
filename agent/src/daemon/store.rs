//! What survives a crash: identity, cluster, and every record this node knows.
//!
//! One redb file. A commit that holds a record of this node's own, or a grant to it, is on the disk
//! before anything that follows from it is sent or answered; records of others are a cache of what
//! peers would tell again, and ride along with the next such commit.

use std::path::{Path, PathBuf};

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
};
use serde::{Serialize, de::DeserializeOwned};
use weft_gossip::{Key, Record};
use weft_types::{NetworkId, NodeId};

use crate::control::{ClusterFacts, Kept, records::SpaceKey};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// (author, kind, scope, name) → record
const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");

/// (space, [`Kept`]), as keys.
const KEPT: TableDefinition<&[u8], ()> = TableDefinition::new("kept");

/// Docker's id of a network on this host → the network of the cluster that it is
const BINDINGS: TableDefinition<&str, &[u8]> = TableDefinition::new("bindings");

const IDENTITY: &str = "identity";
const BOOT: &str = "boot";
const CLUSTER: &str = "cluster";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot make the data directory {}", .dir.display())]
    Directory { dir: PathBuf, source: std::io::Error },
    #[error("cannot keep others from reading the state file {}", .file.display())]
    Mode { file: PathBuf, source: std::io::Error },
    #[error("{} is in use: another weft agent runs with this data directory; stop that one, or give this one its own --data-dir", .file.display())]
    InUse { file: PathBuf },
    #[error("cannot open the state file {}", .file.display())]
    Open {
        file: PathBuf,
        source: Box<DatabaseError>,
    },
    #[error("cannot {what} in the state file {}", .file.display())]
    Access {
        what: &'static str,
        file: PathBuf,
        source: AnyError,
    },
    #[error("the {what} in {} is not readable; it was written by another version or damaged", .file.display())]
    Malformed { what: &'static str, file: PathBuf },
}

/// Each table operation of redb has an error type of its own, and they are large.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

pub struct Store {
    db: Database,
    file: PathBuf,
}

impl Store {
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        // The directory holds the node's private key.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| StoreError::Directory {
                dir: dir.to_owned(),
                source,
            })?;
        let file = dir.join("state.redb");
        let db = Database::create(&file).map_err(|source| match source {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { file: file.clone() },
            source => StoreError::Open {
                file: file.clone(),
                source: Box::new(source),
            },
        })?;
        // In a directory that was made by somebody else, with another mode, the keys in it are nobody else's either.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).map_err(|source| {
            StoreError::Mode {
                file: file.clone(),
                source,
            }
        })?;
        let store = Self { db, file };
        store.access("make its tables", |db| {
            // Where they are there is nothing to wait for the disk for.
            let read = db.begin_read()?;
            let there: Vec<String> = read.list_tables()?.map(|table| table.name().to_owned()).collect();
            let wanted = [META.name(), RECORDS.name(), KEPT.name(), BINDINGS.name()];
            if wanted.iter().all(|name| there.iter().any(|there| there == name)) {
                return Ok(());
            }
            let write = db.begin_write()?;
            write.open_table(META)?;
            write.open_table(RECORDS)?;
            write.open_table(KEPT)?;
            write.open_table(BINDINGS)?;
            write.commit()?;
            Ok(())
        })?;
        Ok(store)
    }

    /// The seed of the node's key, made at the first start from `fresh`.
    pub fn identity(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        if let Some(seed) = self.get_meta(IDENTITY)? {
            return Ok(seed);
        }
        self.put_meta(IDENTITY, &fresh)?;
        Ok(fresh)
    }

    /// Counts this start, durably, and returns its number: never the same twice for one identity.
    pub fn next_boot(&self) -> Result<u64, StoreError> {
        let boot = self.get_meta::<u64>(BOOT)?.unwrap_or(0) + 1;
        self.put_meta(BOOT, &boot)?;
        Ok(boot)
    }

    pub fn cluster(&self) -> Result<Option<ClusterFacts>, StoreError> {
        self.get_meta(CLUSTER)
    }

    pub fn set_cluster(&self, facts: &ClusterFacts) -> Result<(), StoreError> {
        self.put_meta(CLUSTER, facts)
    }

    pub fn records(&self) -> Result<Vec<Record>, StoreError> {
        let encoded = self.access("read the records", |db| {
            let table = db.begin_read()?.open_table(RECORDS)?;
            let mut all = Vec::new();
            for entry in table.iter()? {
                all.push(entry?.1.value().to_vec());
            }
            Ok(all)
        })?;
        encoded.iter().map(|bytes| self.decode("record", bytes)).collect()
    }

    pub fn kept(&self) -> Result<Vec<(SpaceKey, Kept)>, StoreError> {
        let encoded = self.access("read what was kept", |db| {
            let table = db.begin_read()?.open_table(KEPT)?;
            let mut all = Vec::new();
            for entry in table.iter()? {
                all.push(entry?.0.value().to_vec());
            }
            Ok(all)
        })?;
        encoded
            .iter()
            .map(|bytes| self.decode("grant or conflict", bytes))
            .collect()
    }

    pub fn bindings(&self) -> Result<Vec<(String, NetworkId)>, StoreError> {
        let stored = self.access("read the bindings of Docker's networks", |db| {
            let table = db.begin_read()?.open_table(BINDINGS)?;
            let mut all = Vec::new();
            for entry in table.iter()? {
                let (docker, network) = entry?;
                all.push((docker.value().to_owned(), network.value().to_vec()));
            }
            Ok(all)
        })?;
        let read = |(docker, network): (String, Vec<u8>)| {
            let network = network.try_into().map_err(|_| StoreError::Malformed {
                what: "binding of a network of Docker's",
                file: self.file.clone(),
            })?;
            Ok((docker, NetworkId(network)))
        };
        stored.into_iter().map(read).collect()
    }

    /// Writes all of it or nothing; when it returns, it is on the disk.
    pub fn commit(
        &self,
        records: &[Record],
        kept: &[(SpaceKey, Kept)],
        bindings: &[(String, Option<NetworkId>)],
        forget: &[(NodeId, Key)],
    ) -> Result<(), StoreError> {
        self.access("write records", |db| {
            let mut write = db.begin_write()?;
            write
                .set_durability(Durability::Immediate)
                .expect("a fresh transaction takes any durability");
            {
                let mut table = write.open_table(RECORDS)?;
                for record in records {
                    let value = postcard::to_allocvec(record).expect("a record always encodes");
                    table.insert(
                        record_key(&record.author, &record.key).as_slice(),
                        value.as_slice(),
                    )?;
                }
                for (author, key) in forget {
                    table.remove(record_key(author, key).as_slice())?;
                }
                let mut table = write.open_table(KEPT)?;
                for fact in kept {
                    let key = postcard::to_allocvec(fact).expect("plain data always encodes");
                    table.insert(key.as_slice(), ())?;
                }
                let mut table = write.open_table(BINDINGS)?;
                for (docker, network) in bindings {
                    match network {
                        Some(network) => table.insert(docker.as_str(), network.0.as_slice())?,
                        None => table.remove(docker.as_str())?,
                    };
                }
            }
            write.commit()?;
            Ok(())
        })
    }

    /// Forgets cluster, records and identity: the node that starts next is a new one.
    pub fn reset(&self) -> Result<(), StoreError> {
        self.access("forget the cluster", |db| {
            let write = db.begin_write()?;
            write.delete_table(META)?;
            write.delete_table(RECORDS)?;
            write.delete_table(KEPT)?;
            write.delete_table(BINDINGS)?;
            write.open_table(META)?;
            write.open_table(RECORDS)?;
            write.open_table(KEPT)?;
            write.open_table(BINDINGS)?;
            write.commit()?;
            Ok(())
        })
    }

    fn get_meta<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, StoreError> {
        let bytes = self.access("read", |db| {
            Ok(db
                .begin_read()?
                .open_table(META)?
                .get(name)?
                .map(|value| value.value().to_vec()))
        })?;
        bytes.map(|bytes| self.decode(name, &bytes)).transpose()
    }

    fn put_meta<T: Serialize>(&self, name: &'static str, value: &T) -> Result<(), StoreError> {
        let bytes = postcard::to_allocvec(value).expect("plain data always encodes");
        self.access("write", |db| {
            let write = db.begin_write()?;
            write.open_table(META)?.insert(name, bytes.as_slice())?;
            write.commit()?;
            Ok(())
        })
    }

    fn decode<T: DeserializeOwned>(&self, what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
        postcard::from_bytes(bytes).map_err(|_| StoreError::Malformed {
            what,
            file: self.file.clone(),
        })
    }

    fn access<T>(
        &self,
        what: &'static str,
        run: impl FnOnce(&Database) -> Result<T, AnyError>,
    ) -> Result<T, StoreError> {
        run(&self.db).map_err(|source| StoreError::Access {
            what,
            file: self.file.clone(),
            source,
        })
    }
}

fn record_key(author: &NodeId, key: &Key) -> Vec<u8> {
    let mut bytes = author.0.to_vec();
    bytes.push(key.kind);
    bytes.extend(key.scope.0);
    bytes.extend(&key.name);
    bytes
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, time::Instant};

    use weft_gossip::{Config, Gossip, GossipKey, Identity, KeyRing};
    use weft_types::ClusterId;

    use super::*;
    use crate::control::records::{CLUSTER as SCOPE, Kind};

    #[test]
    fn identity_boot_and_records_survive_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join("state.redb")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let seed = store.identity([1; 32]).unwrap();
        assert_eq!(store.next_boot().unwrap(), 1);
        let config = Config::new(
            ClusterId([9; 16]),
            KeyRing::new(GossipKey([2; 32])),
            "127.0.0.1:1".parse().unwrap(),
        );
        let mut gossip = Gossip::new(config, Identity::from_seed(seed), 1, [3; 32], Instant::now());
        let record = gossip
            .put(Kind::Node.key(SCOPE, *b"a"), vec![1, 2].into(), Instant::now())
            .unwrap();
        let network = NetworkId([7; 16]);
        let bound = [
            ("abc".to_owned(), Some(network)),
            ("def".to_owned(), Some(network)),
        ];
        store
            .commit(std::slice::from_ref(&record), &[], &bound, &[])
            .unwrap();
        store.commit(&[], &[], &[("def".to_owned(), None)], &[]).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })));
        drop(store);

        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.identity([8; 32]).unwrap(), seed);
        assert_eq!(store.next_boot().unwrap(), 2);
        assert_eq!(store.records().unwrap(), vec![record]);
        assert_eq!(store.bindings().unwrap(), [("abc".to_owned(), network)]);
        store.reset().unwrap();
        assert!(store.records().unwrap().is_empty());
        assert_eq!(store.identity([8; 32]).unwrap(), [8; 32]);
    }
}
