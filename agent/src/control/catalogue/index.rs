//! Who is called what, where and why, kept as records come in, so that nobody looks through all services for a few.
//!
//! A service is found by whatever anybody says of it, also where another's word holds: whose word that is changes with who is a
//! member, and no index has to follow that. Whoever looks asks for the word that holds, and leaves out what does not fit.

use std::collections::{BTreeMap, BTreeSet};

use weft_types::{NetworkId, ServiceId};

use super::super::{contest::Contest, records::ServiceSpec};

/// What services are found by besides their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trait {
    /// It has published ports.
    Publishes,
    /// Its backends are taken out where clients cannot connect.
    Ejects,
    /// Its backends' shares grow.
    Grows,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ServiceIndex {
    /// By names in lower case, as names are asked for.
    called: BTreeMap<NetworkId, BTreeMap<String, BTreeSet<ServiceId>>>,
    having: BTreeMap<Trait, BTreeSet<(NetworkId, ServiceId)>>,
}

/// What one service is found by.
#[derive(Debug, Default)]
pub(super) struct Tags {
    names: BTreeSet<String>,
    traits: BTreeSet<Trait>,
}

impl Tags {
    pub(super) fn of(contest: Option<&Contest<ServiceSpec>>) -> Self {
        let mut tags = Self::default();
        for spec in contest.into_iter().flat_map(Contest::values) {
            tags.names.insert(spec.name.to_ascii_lowercase());
            let traits = [
                (Trait::Publishes, !spec.publish.is_empty()),
                (Trait::Ejects, spec.tuning.eject().is_some()),
                (Trait::Grows, spec.tuning.slow_start().is_some()),
            ];
            let traits = traits.into_iter().filter(|(_, has)| *has);
            tags.traits.extend(traits.map(|(has, _)| has));
        }
        tags
    }
}

impl ServiceIndex {
    /// A service is found by other things than before.
    pub(super) fn note(&mut self, network: NetworkId, id: ServiceId, before: &Tags, now: &Tags) {
        if before.names != now.names {
            let called = self.called.entry(network).or_default();
            for gone in before.names.difference(&now.names) {
                if let Some(ids) = called.get_mut(gone) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        called.remove(gone);
                    }
                }
            }
            for new in now.names.difference(&before.names) {
                called.entry(new.clone()).or_default().insert(id);
            }
            if called.is_empty() {
                self.called.remove(&network);
            }
        }
        for gone in before.traits.difference(&now.traits) {
            if let Some(having) = self.having.get_mut(gone) {
                having.remove(&(network, id));
                if having.is_empty() {
                    self.having.remove(gone);
                }
            }
        }
        for new in now.traits.difference(&before.traits) {
            self.having.entry(*new).or_default().insert((network, id));
        }
    }

    /// The services of a network that anybody calls so, in whatever case.
    pub(super) fn called(&self, network: NetworkId, name: &str) -> impl Iterator<Item = ServiceId> {
        let called = self.called.get(&network);
        let ids = called.and_then(|called| called.get(&name.to_ascii_lowercase()));
        ids.into_iter().flatten().copied()
    }

    /// The same on all networks.
    pub(super) fn called_anywhere(&self, name: &str) -> impl Iterator<Item = (NetworkId, ServiceId)> {
        let name = name.to_ascii_lowercase();
        let called = self.called.iter();
        called.flat_map(move |(network, called)| {
            let ids = called.get(&name).into_iter().flatten();
            ids.map(|id| (*network, *id))
        })
    }

    pub(super) fn having(&self, what: Trait) -> impl Iterator<Item = (NetworkId, ServiceId)> {
        self.having.get(&what).into_iter().flatten().copied()
    }
}

#[cfg(test)]
impl super::Catalogue {
    /// Whether everything is found by what it is, and nothing by what it is not.
    pub fn assert_indexed(&self) {
        let mut index = ServiceIndex::default();
        for ((network, id), contest) in &self.services {
            index.note(*network, *id, &Tags::default(), &Tags::of(Some(contest)));
        }
        assert_eq!(self.index, index);
        let mut of_node: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (network, id, endpoint) in self.all_endpoints() {
            of_node.entry(endpoint.node).or_default().insert((network, id));
        }
        assert_eq!(self.of_node, of_node);
        self.claims.assert_crowded();
    }
}
