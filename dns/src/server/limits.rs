use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

#[cfg(test)]
mod tests {
    use super::*;

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
