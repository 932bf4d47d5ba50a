//! How many connections each service has, over all nodes: one round, for somebody who looks at the list.
//!
//! A node counts once and answers with as many datagrams as it takes. They are asked for again, all of them, while one is
//! missing; who has not told everything in time is named and not counted.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use weft_types::{EndpointId, NetworkId, NodeId, ServiceId};

use super::{
    Control, CountOrder, Now, Responder, names,
    polls::{Answer, Question, Then},
    traffic::Traffic,
};
use crate::api::types::*;

/// How long somebody who lists services waits for those who have not said what they count.
const PATIENCE: Duration = Duration::from_millis(500);
/// Sums that fit one message.
const IN_PART: usize = 30;
/// Messages at most; the services with the most open connections come first.
const MAX_PARTS: usize = 256;

/// One datagram of a node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    number: u16,
    of: u16,
    sums: Vec<Sum>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    service: ServiceId,
    open: u64,
    total: u64,
    failed: u64,
}

/// What nodes have answered so far.
#[derive(Debug, Default)]
pub(super) struct Sums(BTreeMap<NodeId, BTreeMap<u16, Part>>);

impl Sums {
    /// Whether that is all of a node's.
    pub(super) fn take(&mut self, from: NodeId, part: Part) -> bool {
        let parts = self.0.entry(from).or_default();
        // Asked again, it has counted again, and there may be more or fewer of them.
        parts.retain(|_, known| known.of == part.of);
        let of = part.of;
        parts.insert(part.number, part);
        parts.len() >= usize::from(of)
    }

    /// The services with what was counted; of whom something is missing, nothing counts.
    pub(super) fn add_to(
        self,
        mut services: Vec<ServiceSummary>,
        uncounted: &[Unconfirmed],
    ) -> Vec<ServiceSummary> {
        let mut sums: BTreeMap<ServiceId, ServiceCounts> = BTreeMap::new();
        let whole = self
            .0
            .into_iter()
            .filter(|(node, _)| !uncounted.iter().any(|silent| silent.node_id == *node));
        let parts = whole.flat_map(|(_, parts)| parts.into_values());
        for sum in parts.flat_map(|part| part.sums) {
            let counts = sums.entry(sum.service).or_default();
            counts.open = counts.open.saturating_add(sum.open);
            counts.total = counts.total.saturating_add(sum.total);
            counts.failed = counts.failed.saturating_add(sum.failed);
        }
        for service in &mut services {
            let mut counts = sums.remove(&service.id).unwrap_or_default();
            counts.uncounted = uncounted.to_vec();
            service.counts = Some(counts);
        }
        services
    }
}

impl Control {
    pub(super) fn start_list_services(
        &mut self,
        query: &ServiceListQuery,
        responder: Responder<Vec<ServiceSummary>>,
        now: Now,
    ) {
        let services = match self.list_services(query) {
            Ok(services) if query.counts && !services.is_empty() => services,
            result => return self.reply(responder, result),
        };
        let network = query.network.as_deref();
        let of = network.and_then(|name| names::network(&self.catalogue, name).ok());
        let then = Then::Listed(services, responder);
        self.ask(Question::Sums { of }, self.members(), PATIENCE, then, now);
    }

    /// Has the host count for somebody who asked.
    pub(super) fn order_sums(&mut self, from: NodeId, id: u64, of: Option<NetworkId>) {
        if !self.polls.counting.insert((from, id)) {
            return;
        }
        let services = self.catalogue.all_services();
        let meant = services.filter(|(_, spec)| of.is_none_or(|network| network == spec.network));
        self.turn.counts.push(CountOrder {
            asker: from,
            id,
            services: meant.map(|(service, _)| service).collect(),
            with_attempts: true,
            backends: Default::default(),
            summed: true,
        });
    }

    /// Answers with what the host has counted.
    pub(super) fn tell_sums(
        &mut self,
        order: &CountOrder,
        counted: &BTreeMap<EndpointId, Traffic>,
        now: Now,
    ) {
        for part in parts(self.sums(order, counted)) {
            self.give(order.asker, order.id, Answer::Sums(part), now);
        }
        self.settle(now);
    }

    fn sums(&self, order: &CountOrder, counted: &BTreeMap<EndpointId, Traffic>) -> Vec<Sum> {
        let named: BTreeMap<(NetworkId, &str), ServiceId> = self
            .catalogue
            .all_services()
            .filter(|(id, _)| order.services.contains(id))
            .map(|(id, spec)| ((spec.network, spec.name.as_str()), id))
            .collect();
        let mut sums: BTreeMap<ServiceId, Traffic> = BTreeMap::new();
        for (network, id, endpoint) in self.catalogue.all_endpoints() {
            let service = endpoint.spec.service.as_deref();
            let service = service.and_then(|name| named.get(&(network, name)));
            if let (Some(service), Some(count)) = (service, counted.get(&id)) {
                *sums.entry(*service).or_default() += *count;
            }
        }
        let sums = sums.into_iter().map(|(service, count)| Sum {
            service,
            open: count.open,
            total: count.total,
            failed: count.failed,
        });
        sums.filter(|sum| (sum.open, sum.total) != (0, 0)).collect()
    }
}

/// There is one, if only to say that there is nothing.
fn parts(mut sums: Vec<Sum>) -> Vec<Part> {
    sums.sort_by_key(|sum| std::cmp::Reverse((sum.open, sum.total)));
    sums.truncate(IN_PART * MAX_PARTS);
    let of = sums.len().div_ceil(IN_PART).max(1);
    let numbers = 0..u16::try_from(of).unwrap_or(u16::MAX);
    let mut chunks = sums.chunks(IN_PART);
    numbers
        .map(|number| Part {
            number,
            of: of as u16,
            sums: chunks.next().unwrap_or_default().to_vec(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(count: u8) -> Vec<Sum> {
        (0..count)
            .map(|n| Sum {
                service: ServiceId([n; 16]),
                open: u64::MAX - u64::from(n),
                total: u64::MAX,
                failed: u64::MAX,
            })
            .collect()
    }

    #[test]
    fn an_answer_is_whole_when_all_its_parts_are_there_in_any_order() {
        let node = NodeId([1; 32]);
        let mut taken = Sums::default();
        let mut all = parts(sums(100));
        assert_eq!(all.len(), 4);
        all.reverse();
        // One of an answer that was longer.
        let stale = Part {
            of: 5,
            ..all[0].clone()
        };
        assert!(!taken.take(node, stale));
        let whole: Vec<bool> = all.into_iter().map(|part| taken.take(node, part)).collect();
        assert_eq!(whole, [false, false, false, true]);
        assert_eq!(
            taken.0[&node].values().map(|part| part.sums.len()).sum::<usize>(),
            100
        );
        assert!(Sums::default().take(node, parts(Vec::new()).remove(0)));
    }

    #[test]
    fn a_part_fits_a_datagram_whatever_is_counted() {
        for part in parts(sums(100)) {
            assert!(postcard::to_allocvec(&part).unwrap().len() < 1_400);
        }
    }
}
