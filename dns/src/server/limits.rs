use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use weft_netlink::datagrams::BATCH;

/// Counts what each address has open, so that one greedy client leaves room for the others.
#[derive(Debug)]
pub(crate) struct PerAddress {
    open: Mutex<HashMap<IpAddr, usize>>,
    limit: usize,
}

impl PerAddress {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            limit,
        })
    }

    /// `None` when the address has as much open as it may.
    pub(crate) fn acquire(self: &Arc<Self>, address: IpAddr) -> Option<Permit> {
        let mut open = self.lock();
        let count = open.entry(address).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Permit {
            of: Arc::clone(self),
            address,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // A count is whole after every step, whoever panicked.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing that is open; closed when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    of: Arc<PerAddress>,
    address: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.of.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Datagrams of one address that are answered in a turn. A client that asks a hundred questions at once
/// gets them all answered, which is as many as load generators do.
pub(crate) const MAX_PER_TURN: usize = 128;
/// A turn has at most so many datagrams, or a flood would keep the first one going.
const MAX_TURN: usize = 1_024;

/// What each address sent while a socket was never empty. The share of one address is limited, and the
/// rest of what it sent is taken and dropped, many times faster than answered: so the queue in the kernel,
/// which all clients have together, is emptied faster than one client can fill it.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    of_address: HashMap<IpAddr, usize>,
    length: usize,
}

impl Turn {
    /// Whether this datagram is within its sender's share.
    pub(crate) fn admits(&mut self, address: IpAddr) -> bool {
        let count = self.of_address.entry(address).or_default();
        *count += 1;
        *count <= MAX_PER_TURN
    }

    /// So many were taken at once: when there was room for more, the socket is empty.
    pub(crate) fn took(&mut self, count: usize) {
        self.length += count;
        if count < BATCH || self.length >= MAX_TURN {
            self.of_address.clear();
            self.length = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_flood_ends_and_another_clients_does_not() {
        let [flood, quiet] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let mut turn = Turn::default();
        let mut answered = 0;
        for _ in 0..MAX_TURN / BATCH {
            answered += (1..BATCH).filter(|_| turn.admits(flood)).count();
            assert!(turn.admits(quiet));
            turn.took(BATCH);
        }
        assert_eq!(answered, MAX_PER_TURN);
        assert!(turn.admits(flood), "a turn ends, however much there is");
        turn.took(1);
        for _ in 0..2 {
            assert!(
                (0..BATCH).all(|_| turn.admits(quiet)),
                "the queue was empty in between"
            );
            turn.took(BATCH);
            assert!((0..BATCH).all(|_| turn.admits(quiet)), "128 at once are answered");
            turn.took(BATCH);
            turn.took(0);
        }
    }

    #[test]
    fn an_address_has_its_own_limit_and_leaves_no_trace() {
        let limits = PerAddress::new(2);
        let [one, two] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let first = limits.acquire(one);
        let second = limits.acquire(one);
        assert!(first.is_some() && second.is_some() && limits.acquire(one).is_none());
        assert!(limits.acquire(two).is_some());
        drop(first);
        assert!(limits.acquire(one).is_some());
        drop(second);
        assert!(limits.lock().is_empty());
    }
}
