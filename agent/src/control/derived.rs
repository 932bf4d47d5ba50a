//! What the host should be like, kept from one moment to the next: a change costs what it touches, and the rest is the same in memory.
//!
//! A network is a [`Part`], and each of its services and names is derived from what the catalogue says of it and of nothing else; so
//! one can be derived anew without the others. Where that is not so, because something of the network is claimed twice and who has
//! it hangs on who owns it and who came first, the network is derived as a whole each time. Tests compare what is kept with what is
//! derived from nothing, after every change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_dns::{NetworkZone, Zone};
use weft_types::{EndpointId, NetworkId, ServiceId};

use super::{Control, catalogue::Trait, touched::Touched, views::Balanced, ways::Ways};

#[derive(Debug)]
pub(super) struct Derived {
    pub(super) touched: Touched,
    pub(super) zone: Zone,
    pub(super) ways: Ways,
    parts: BTreeMap<NetworkId, Part>,
}

/// What is kept of a network.
#[derive(Debug, Default)]
struct Part {
    /// Whether something of it was claimed twice.
    was_crowded: bool,
    /// Whether its names are told here, wherever its endpoints are.
    is_listed: bool,
    /// Whether its names are told here. Of others it is only said which addresses are theirs.
    is_shown: bool,
    /// What each service is called, in lower case.
    names: BTreeMap<ServiceId, String>,
    services: BTreeMap<ServiceId, Arc<weft_lb::Service>>,
    balanced: Balanced,
}

/// What is derived anew of a network.
#[derive(Debug, Default)]
struct Stale {
    endpoints: BTreeSet<EndpointId>,
    services: BTreeSet<ServiceId>,
    called: BTreeSet<String>,
}

impl Derived {
    pub(super) fn new(domain: &str) -> Self {
        Self {
            touched: Touched::everything(),
            zone: Zone::new(domain).expect("the domain was checked at the start"),
            ways: Ways::new(),
            parts: BTreeMap::new(),
        }
    }

    /// The services of a network, in order of their ids.
    pub(super) fn balanced(&self, network: NetworkId) -> Balanced {
        self.parts
            .get(&network)
            .map_or_else(Balanced::default, |part| Arc::clone(&part.balanced))
    }
}

impl Control {
    /// Whether programs of this host are told the names of a network, wherever its endpoints are.
    pub(super) fn is_shown_to_host(&self, id: NetworkId) -> bool {
        let name = self.catalogue.display_name(id).unwrap_or_default();
        let mut shown = self.settings.shown_networks.iter();
        shown.any(|shown| shown.eq_ignore_ascii_case(&name))
    }

    /// Follows what was touched since the last time.
    pub(super) fn derive(&mut self) {
        let new = Derived::new(&self.settings.domain);
        let mut derived = std::mem::replace(&mut self.derived, new);
        self.update(&mut derived);
        derived.touched = Touched::nothing();
        self.derived = derived;
    }

    /// The names of this moment, derived from nothing.
    pub(super) fn zone(&self) -> Zone {
        self.derived_from_nothing().zone
    }

    pub(super) fn derived_from_nothing(&self) -> Derived {
        let mut derived = Derived::new(&self.settings.domain);
        self.update(&mut derived);
        derived
    }

    fn update(&self, derived: &mut Derived) {
        let here = self.networks_here();
        let Derived {
            touched,
            zone,
            ways,
            parts,
        } = derived;
        let mut whole: BTreeSet<NetworkId> = if touched.everything {
            let there: BTreeSet<_> = self.catalogue.networks().map(|(id, _)| id).collect();
            parts.retain(|id, _| {
                let stays = there.contains(id);
                if !stays {
                    zone.remove_network(id);
                }
                stays
            });
            there
        } else {
            let claimed = self.catalogue.claims().crowded();
            touched.networks.iter().copied().chain(claimed).collect()
        };
        let is_other = |(id, part): &(&NetworkId, &Part)| {
            part.was_crowded || part.is_shown != (part.is_listed || here.contains(id))
        };
        whole.extend(parts.iter().filter(is_other).map(|(id, _)| *id));
        self.update_ways(ways, touched, &here, &whole);
        for id in &whole {
            self.derive_network(*id, here.contains(id), zone, parts);
        }
        for (id, stale) in self.stale(touched, &whole) {
            if let (Some(part), Some(names)) = (
                parts.get_mut(&id).filter(|part| part.is_shown),
                zone.network_mut(&id),
            ) {
                self.derive_stale(id, &stale, part, names);
            }
        }
    }

    /// What of which network is derived anew, besides those that are as a whole.
    fn stale(&self, touched: &Touched, whole: &BTreeSet<NetworkId>) -> BTreeMap<NetworkId, Stale> {
        let mut all: BTreeMap<NetworkId, Stale> = BTreeMap::new();
        for (network, id) in &touched.endpoints {
            all.entry(*network).or_default().endpoints.insert(*id);
        }
        // Those whose shares grow do so by themselves.
        let growing = self.catalogue.services_having(Trait::Grows);
        let growing = growing.map(|(id, spec)| (spec.network, id));
        for (network, id) in touched.services.iter().copied().chain(growing) {
            all.entry(network).or_default().services.insert(id);
        }
        for (network, name) in &touched.called {
            all.entry(*network).or_default().called.insert(name.clone());
        }
        all.retain(|network, _| !whole.contains(network));
        all
    }

    fn derive_network(
        &self,
        id: NetworkId,
        is_here: bool,
        zone: &mut Zone,
        parts: &mut BTreeMap<NetworkId, Part>,
    ) {
        let before = parts.remove(&id).unwrap_or_default();
        let Some(spec) = self.catalogue.network(id) else {
            zone.remove_network(&id);
            return;
        };
        let name = self
            .catalogue
            .display_name(id)
            .unwrap_or_else(|| spec.name.clone());
        let subnets = spec.subnets.iter().map(|subnet| subnet.net).collect();
        let mut names = NetworkZone::new(&name, spec.internal, subnets);
        let is_listed = self.is_shown_to_host(id);
        let mut part = Part {
            was_crowded: self.catalogue.claims().is_crowded(id),
            is_listed,
            is_shown: is_listed || is_here,
            names: BTreeMap::new(),
            // What is the same again stays the same in memory.
            services: before.services,
            balanced: before.balanced,
        };
        if part.is_shown {
            let there = self.catalogue.services(id).map(|(id, _)| id);
            let stale = Stale {
                endpoints: self.catalogue.endpoints(id).map(|(id, _)| id).collect(),
                services: there.chain(part.services.keys().copied()).collect(),
                called: BTreeSet::new(),
            };
            self.derive_stale(id, &stale, &mut part, &mut names);
        } else {
            (part.services, part.balanced) = Default::default();
        }
        zone.set_network(id, names);
        parts.insert(id, part);
    }

    fn derive_stale(&self, network: NetworkId, stale: &Stale, part: &mut Part, names: &mut NetworkZone) {
        for id in &stale.endpoints {
            match self.named_endpoint(network, *id) {
                Some(endpoint) => names.set_endpoint(*id, endpoint),
                None => names.remove_endpoint(id),
            }
        }
        let mut called = stale.called.clone();
        for id in &stale.services {
            let is = self.catalogue.service(network, *id);
            let name = is.map(|spec| spec.name.to_ascii_lowercase());
            let was = match name.clone() {
                Some(name) => part.names.insert(*id, name),
                None => part.names.remove(id),
            };
            called.extend(was.into_iter().chain(name));
        }
        let mut services = stale.services.clone();
        for name in &called {
            let there = self.catalogue.services_called(network, name);
            // Of several of one name, whatever its case, the last has it.
            let mut last = None;
            for (id, spec) in there {
                services.insert(id);
                last = Some((id, spec));
            }
            match last {
                Some((id, spec)) => names.set_service(&spec.name, self.named_service(id, spec)),
                None => names.remove_service(name),
            }
        }
        self.balance(network, &services, part);
    }

    fn balance(&self, network: NetworkId, stale: &BTreeSet<ServiceId>, part: &mut Part) {
        let mut seen = BTreeSet::new();
        let mut is_same = true;
        for id in stale {
            let spec = self.catalogue.service(network, *id);
            let mut service = spec.map(|spec| self.balanced_service(*id, spec));
            if let Some(service) = service.as_mut().filter(|_| part.was_crowded) {
                // A datapath has room for one service at an address, even of a node that says otherwise of its own.
                service.vips.retain(|vip| seen.insert(*vip));
            }
            match service.filter(|service| !service.vips.is_empty()) {
                Some(service) if part.services.get(id).is_some_and(|before| **before == service) => {}
                Some(service) => {
                    is_same = false;
                    part.services.insert(*id, Arc::new(service));
                }
                None => is_same &= part.services.remove(id).is_none(),
            }
        }
        if !is_same {
            part.balanced = part.services.values().cloned().collect();
        }
    }
}

#[cfg(test)]
mod tests;
