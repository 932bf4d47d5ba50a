//! Which services differ between what was wanted last and what is wanted now, so that a change of one costs what that one does.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use weft_types::ServiceId;

use crate::Service;

/// What is wanted, and who claims which virtual address.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// In order of their ids.
    services: Vec<Arc<Service>>,
    /// The lowest id first.
    claimants: HashMap<IpAddr, Vec<ServiceId>>,
    /// How many of them are watched.
    watched: usize,
}

/// What has changed.
#[derive(Debug, Default)]
pub(super) struct Delta {
    /// Services that are new, or not as they were, in order of their ids, each with the virtual addresses that are its own.
    pub(super) changed: Vec<Arc<Service>>,
    /// Those that are gone.
    pub(super) gone: Vec<ServiceId>,
}

impl Wanted {
    /// Takes in what is wanted now. Services that are the same in memory are not looked into. Of several that claim one virtual
    /// address the one with the lowest id has it, on every host; with `shared` all of them do.
    pub(super) fn update<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Arc<Service>>,
        shared: bool,
    ) -> Delta {
        let mut services: Vec<Arc<Service>> = services.cloned().collect();
        if !services.is_sorted_by_key(|service| service.id) {
            services.sort_by_key(|service| service.id);
        }
        let before = std::mem::replace(&mut self.services, services);
        let mut delta = Delta::default();
        let mut dirty = BTreeSet::new();
        for (old, new) in differing(&before, &self.services) {
            match (&old, &new) {
                (_, Some(new)) => drop(dirty.insert(new.id)),
                (Some(old), None) => delta.gone.push(old.id),
                (None, None) => {}
            }
            for service in old.into_iter() {
                self.watched -= usize::from(service.is_watched);
                for vip in &service.vips {
                    if let Some(claimants) = self.claimants.get_mut(vip) {
                        claimants.retain(|id| *id != service.id);
                        dirty.extend(claimants.iter().copied());
                        if claimants.is_empty() {
                            self.claimants.remove(vip);
                        }
                    }
                }
            }
            for service in new.into_iter() {
                self.watched += usize::from(service.is_watched);
                for vip in &service.vips {
                    let claimants = self.claimants.entry(*vip).or_default();
                    dirty.extend(claimants.iter().copied());
                    if let Err(place) = claimants.binary_search(&service.id) {
                        claimants.insert(place, service.id);
                    }
                }
            }
        }
        if shared {
            // Whoever shares an address with a service that changed did not.
            dirty.retain(|id| !same(find(&before, *id), find(&self.services, *id)));
        }
        let changed = dirty.iter().filter_map(|id| find(&self.services, *id));
        delta.changed = changed
            .map(|service| self.with_its_own(service, shared))
            .collect();
        delta
    }

    pub(super) fn contains(&self, id: ServiceId) -> bool {
        find(&self.services, id).is_some()
    }

    /// Whether any of them is watched.
    pub(super) fn has_watched(&self) -> bool {
        self.watched > 0
    }

    /// The services that claim an address.
    pub(super) fn at(&self, vip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let claimants = self.claimants.get(&vip).into_iter().flatten();
        claimants.filter_map(|id| find(&self.services, *id))
    }

    fn with_its_own(&self, service: &Arc<Service>, shared: bool) -> Arc<Service> {
        let is_first = |vip: &IpAddr| {
            let claimants = self.claimants.get(vip);
            claimants.and_then(|claimants| claimants.first()) == Some(&service.id)
        };
        if shared || service.vips.iter().all(is_first) {
            return Arc::clone(service);
        }
        tracing::warn!(service = %service.id, "a virtual address is claimed twice; the lower service id keeps it");
        let mut with_its_own = Service::clone(service);
        with_its_own.vips.retain(is_first);
        Arc::new(with_its_own)
    }
}

fn find(services: &[Arc<Service>], id: ServiceId) -> Option<&Arc<Service>> {
    let found = services.binary_search_by_key(&id, |service| service.id);
    found.ok().and_then(|place| services.get(place))
}

fn same(old: Option<&Arc<Service>>, new: Option<&Arc<Service>>) -> bool {
    old.zip(new).is_some_and(|(old, new)| old == new)
}

type Pair = (Option<Arc<Service>>, Option<Arc<Service>>);

/// The services of two lists in order that are not in both.
fn differing(old: &[Arc<Service>], new: &[Arc<Service>]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return pairs,
            (Some(before), Some(now)) if before.id == now.id => {
                if !same(Some(before), Some(now)) {
                    pairs.push((Some(Arc::clone(before)), Some(Arc::clone(now))));
                }
                old.next();
                new.next();
            }
            (Some(before), now) if now.is_none_or(|now| before.id < now.id) => {
                pairs.push((Some(Arc::clone(before)), None));
                old.next();
            }
            (_, Some(now)) => {
                pairs.push((None, Some(Arc::clone(now))));
                new.next();
            }
            (Some(_), None) => return pairs,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::Scheduler;

    fn service(id: u8, vips: &[u8]) -> Arc<Service> {
        Arc::new(Service {
            id: ServiceId([id; 16]),
            vips: vips.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect(),
            ports: Vec::new(),
            scheduler: Scheduler::RoundRobin,
            backends: Vec::new(),
            idle_timeout: None,
            is_watched: false,
        })
    }

    /// What is there after all deltas so far.
    type Mirror = BTreeMap<ServiceId, Arc<Service>>;

    fn apply(wanted: &mut Wanted, mirror: &mut Mirror, services: &[Arc<Service>], shared: bool) -> usize {
        let delta = wanted.update(services.iter(), shared);
        for id in &delta.gone {
            mirror.remove(id).unwrap();
        }
        let changed = delta.changed.len();
        mirror.extend(delta.changed.into_iter().map(|service| (service.id, service)));
        changed
    }

    proptest! {
        #[test]
        fn deltas_lead_to_what_is_wanted(
            steps in prop::collection::vec(prop::collection::btree_map(0u8..6, prop::collection::vec(0u8..5, 0..3), 0..6), 1..12),
            shared: bool,
        ) {
            let (mut wanted, mut mirror) = (Wanted::default(), Mirror::new());
            for step in steps {
                let services: Vec<_> = step.iter().rev().map(|(id, vips)| service(*id, vips)).collect();
                apply(&mut wanted, &mut mirror, &services, shared);
                let mut taken = BTreeMap::new();
                for (id, vips) in &step {
                    for vip in vips {
                        taken.entry(*vip).or_insert(*id);
                    }
                }
                let should_be: Mirror = step
                    .iter()
                    .map(|(id, vips)| {
                        let mut own = vips.clone();
                        own.retain(|vip| shared || taken[vip] == *id);
                        (ServiceId([*id; 16]), service(*id, &own))
                    })
                    .collect();
                prop_assert_eq!(&mirror, &should_be);
                prop_assert_eq!(apply(&mut wanted, &mut mirror, &services, shared), 0);
            }
        }
    }

    #[test]
    fn one_that_changes_is_the_only_one_that_is_looked_at() {
        let mut services: Vec<_> = (0..100).map(|n| service(n, &[n])).collect();
        let (mut wanted, mut mirror) = (Wanted::default(), Mirror::new());
        assert_eq!(apply(&mut wanted, &mut mirror, &services, false), 100);
        services[50] = service(50, &[50, 150]);
        assert_eq!(apply(&mut wanted, &mut mirror, &services, false), 1);
        services.remove(7);
        assert_eq!(apply(&mut wanted, &mut mirror, &services, false), 0);
        assert!(!wanted.contains(ServiceId([7; 16])) && wanted.contains(ServiceId([8; 16])));
        assert_eq!(wanted.at([10, 0, 0, 150].into()).next(), Some(&services[49]));
    }
}
