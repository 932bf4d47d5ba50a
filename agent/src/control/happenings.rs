//! Events for those who follow them, and the list of what is wrong.

use std::collections::{BTreeMap, BTreeSet};

use weft_types::{EndpointId, NetworkId, NodeId, ServiceId};

use super::Control;
use crate::api::{
    Timestamp,
    types::{Event, EventKind, EventObject},
};

impl Control {
    /// The driver stamps the time: nothing here reads a clock.
    pub(super) fn event<'a>(
        &mut self,
        kind: EventKind,
        id: String,
        name: String,
        attributes: impl IntoIterator<Item = (&'a str, String)>,
    ) {
        let attributes: BTreeMap<_, _> = attributes
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let time = Timestamp::from_unix_millis(0);
        self.turn.events.push(Event {
            time,
            kind,
            object: EventObject { id, name },
            attributes,
        });
    }

    pub(super) fn node_event(&mut self, kind: EventKind, node: NodeId) {
        if node != self.me {
            self.event(kind, node.to_string(), self.catalogue.node_name(node), []);
        }
    }

    pub(super) fn service_event(&mut self, kind: EventKind, network: NetworkId, id: ServiceId) {
        let Some(spec) = self.catalogue.service(network, id) else {
            return;
        };
        let (name, scheduler) = (spec.name.clone(), spec.scheduler.to_string());
        let network = self
            .catalogue
            .display_name(network)
            .unwrap_or_else(|| network.short());
        self.event(
            kind,
            id.to_string(),
            name,
            [("network", network), ("scheduler", scheduler)],
        );
    }

    pub(super) fn endpoint_event(&mut self, kind: EventKind, network: NetworkId, id: EndpointId) {
        self.endpoint_event_with(kind, network, id, Vec::new());
    }

    /// The same with more to say.
    pub(super) fn endpoint_event_with(
        &mut self,
        kind: EventKind,
        network: NetworkId,
        id: EndpointId,
        more: Vec<(&str, String)>,
    ) {
        let Some(endpoint) = self.catalogue.endpoint(network, id) else {
            return;
        };
        let name = endpoint.spec.name.clone();
        let node = self.catalogue.node_name(endpoint.node);
        let addresses: Vec<_> = endpoint
            .spec
            .addresses
            .iter()
            .map(|net| net.addr().to_string())
            .collect();
        let network = self
            .catalogue
            .display_name(network)
            .unwrap_or_else(|| network.short());
        let attributes = [
            ("network", network),
            ("node", node),
            ("addresses", addresses.join(",")),
        ];
        let attributes = attributes.into_iter().chain(more);
        self.event(kind, id.to_string(), name, attributes);
    }

    /// Notes what stays wrong until the agent is started again.
    pub(super) fn problem(&mut self, sentence: String) {
        if self.problems.insert(sentence.clone()) {
            tracing::warn!(problem = %sentence, "problem found");
            self.event(EventKind::ProblemFound, String::new(), sentence, []);
        }
    }

    /// Notes that it is not wrong any more.
    pub(super) fn solved(&mut self, sentence: String) {
        self.problems.remove(&sentence);
        self.event(EventKind::ProblemSolved, String::new(), sentence, []);
    }

    /// Replaces what the last report of the kernel said was wrong.
    pub(super) fn set_host_problems(&mut self, problems: Vec<String>) {
        let now: BTreeSet<String> = problems.into_iter().collect();
        let before = std::mem::take(&mut self.host_problems);
        for solved in before.difference(&now) {
            self.solved(solved.clone());
        }
        for found in &now {
            self.problem(found.clone());
        }
        self.host_problems = now;
    }
}
