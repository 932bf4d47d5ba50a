//! A map that is cheap to copy and then change a little.
//!
//! The server reads a snapshot while the agent prepares the next one, so every change starts with a
//! copy. Copying this map copies one pointer per shard; a change then copies the one shard it touches.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Arc,
};

const SHARDS: usize = 128;

#[derive(Debug, Clone)]
pub(crate) struct Shards<K, V>([Option<Arc<HashMap<K, V>>>; SHARDS]);

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self([const { None }; SHARDS])
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(crate) fn entry_or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        self.shard_mut(&key).entry(key).or_default()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.shard_mut(&key).insert(key, value);
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        // A shard is copied only when there is something to remove.
        self.get(key)?;
        self.shard_mut(key).remove(key)
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0[shard(key)].as_ref()?.get(key)
    }

    pub(crate) fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(key)?;
        self.shard_mut(key).get_mut(key)
    }

    /// Everything, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().flatten().flat_map(|shard| shard.iter())
    }

    fn shard_mut<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut HashMap<K, V> {
        Arc::make_mut(self.0[shard(key)].get_or_insert_default())
    }
}

fn shard<Q: Hash + ?Sized>(key: &Q) -> usize {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    key.hash(&mut hasher);
    // FNV mixes short keys badly; a multiplication by 2^64 divided by the golden ratio makes up for it.
    let mixed = (hasher.finish() ^ (hasher.finish() >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 57) as usize % SHARDS
}

/// FNV-1a: the shard of a key has to be the same in every copy, which the seeded default is not.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_its_content_when_the_original_changes() {
        let mut map = Shards::<String, u32>::default();
        for n in 0..5000 {
            map.insert(format!("name{n}"), n);
        }
        let before = map.clone();
        map.insert("name1".into(), 0);
        map.remove("name2");
        *map.get_mut("name3").unwrap() = 0;
        assert_eq!(
            [1, 2, 3].map(|n| before.get(&format!("name{n}")).copied()),
            [Some(1), Some(2), Some(3)]
        );
        assert_eq!(
            [1, 2, 3].map(|n| map.get(&format!("name{n}")).copied()),
            [Some(0), None, Some(0)]
        );
        let copied =
            (0..SHARDS).filter(|&n| !Arc::ptr_eq(before.0[n].as_ref().unwrap(), map.0[n].as_ref().unwrap()));
        assert!(copied.count() <= 3);
    }

    #[test]
    fn keys_spread_over_the_shards() {
        let mut map = Shards::<String, ()>::default();
        for n in 0..12_800 {
            map.insert(format!("web.{n}"), ());
        }
        let largest = map.0.iter().flatten().map(|shard| shard.len()).max();
        assert!(largest < Some(160), "{largest:?}");
    }
}
