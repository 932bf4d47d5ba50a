//! Draining: new connections stop on every host, open ones are counted down, what is left in the end is reset.
//!
//! That something is drained is a record, so that it does not hang on anybody's timer. Whoever was asked to drain
//! goes on from there, and says what came of it:
//!
//! ```text
//! Stopping ──in force everywhere──> Counting ──none is open──> drained
//!                                   ^  │  │
//!                                   └──┘  └──the grace period is over──> Cutting ──in force──> drained
//! ```
//!
//! Without resets there is no cutting: whoever asked is told how many are open, and it stays draining.
//!
//! Who had none open when new ones had stopped is not asked again. If the client that wants to know goes away, all
//! stays as it is: no new connections.
//!
//! An endpoint that is about to be detached is drained in the same way, but says so in its own record: that goes
//! with it, and nobody but its own node detaches it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use weft_types::{EndpointId, NetworkId, NodeId};

use super::{
    Control, Now, Responder,
    catalogue::Endpoint,
    names,
    polls::{Backends, Outcome, PATIENCE, Then},
    records::{DrainPhase, DrainSpec, Drainee, Register, encode, endpoint_key},
};
use crate::api::{ApiError, types::*};

/// Between two counts at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The longest grace period.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the record of a drain outlives what was drained: until nobody can have missed that it is gone.
const ORPHANED: Duration = Duration::from_secs(60);

/// What is drained, how far that is, and who wants to know.
pub(super) struct Draining {
    what: Drainee,
    stage: Stage,
    deadline: Instant,
    /// Whether what is open then is reset.
    resets: bool,
    pause: Duration,
    /// Who is still asked.
    on: BTreeSet<NodeId>,
    open: BTreeMap<NodeId, u64>,
    unconfirmed: Vec<Unconfirmed>,
    uncounted: Vec<Unconfirmed>,
    to: To,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Stopping,
    Counting,
    Cutting,
}

/// Who waits for what.
enum To {
    Endpoint(EndpointDrainResponse, Responder<EndpointDrainResponse>),
    Node(NodeDrainResponse, Responder<NodeDrainResponse>),
    Detach(
        NetworkId,
        EndpointId,
        DisconnectResponse,
        Responder<DisconnectResponse>,
    ),
    /// Docker takes a container that goes on running off a network.
    Leave(EndpointId, Responder<()>),
}

#[derive(Default)]
pub(super) struct Drains {
    /// Those that are to be counted again, and when.
    waiting: Vec<(Instant, Draining)>,
    /// Records of this node whose subject is gone, and since when.
    orphans: BTreeMap<Drainee, Instant>,
}

impl Drains {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.iter().map(|(at, _)| *at).min()
    }
}

impl Control {
    pub(super) fn drain_endpoint(
        &mut self,
        reference: &str,
        request: &EndpointDrainRequest,
        to: Responder<EndpointDrainResponse>,
        now: Now,
    ) {
        let found = checked_grace(request.grace_ms).and_then(|grace| {
            let (network, id) = names::backend(&self.catalogue, reference, request.network.as_deref())?;
            Ok((grace, network, id, self.backend_name(network, id)?))
        });
        match found {
            Ok((grace, network, id, backend)) => {
                let response = EndpointDrainResponse {
                    backend,
                    left: 0,
                    unconfirmed: Vec::new(),
                    uncounted: Vec::new(),
                };
                let what = Drainee::Endpoint(network, id);
                self.start_drain(what, grace, request.reset, To::Endpoint(response, to), now);
            }
            Err(error) => self.reply(to, Err(error)),
        }
    }

    pub(super) fn drain_node(
        &mut self,
        reference: &str,
        request: &NodeDrainRequest,
        to: Responder<NodeDrainResponse>,
        now: Now,
    ) {
        let found = checked_grace(request.grace_ms)
            .and_then(|grace| Ok((grace, names::node(&self.catalogue, reference)?)));
        match found {
            Ok((grace, node)) => {
                let serving = self
                    .catalogue
                    .all_endpoints()
                    .filter(|(_, _, endpoint)| endpoint.node == node && endpoint.spec.service.is_some());
                let response = NodeDrainResponse {
                    id: node,
                    name: self.catalogue.node_name(node),
                    backends: serving.count() as u32,
                    left: 0,
                    unconfirmed: Vec::new(),
                    uncounted: Vec::new(),
                };
                self.start_drain(Drainee::Node(node), grace, true, To::Node(response, to), now);
            }
            Err(error) => self.reply(to, Err(error)),
        }
    }

    fn start_drain(&mut self, what: Drainee, grace: Duration, resets: bool, to: To, now: Now) {
        if let Err(error) = self.set_drain(what, Some(DrainPhase::Draining), now) {
            return self.fail_drain(to, error);
        }
        let draining = Draining::new(what, now.instant + grace, resets, to);
        self.stop_and_count(what.key(), draining, now);
    }

    /// Detaches an endpoint of this node once nothing is open to it any more, or the grace period is over.
    pub(super) fn drain_and_detach(
        &mut self,
        network: NetworkId,
        id: EndpointId,
        response: DisconnectResponse,
        grace: Duration,
        to: Responder<DisconnectResponse>,
        now: Now,
    ) {
        self.drain_leaving(network, id, grace, To::Detach(network, id, response, to), now);
    }

    /// The same for a container's endpoint, which Docker deletes next.
    pub(super) fn drain_and_leave(
        &mut self,
        network: NetworkId,
        id: EndpointId,
        to: Responder<()>,
        now: Now,
    ) {
        self.drain_leaving(network, id, DETACH_GRACE, To::Leave(id, to), now);
    }

    fn drain_leaving(&mut self, network: NetworkId, id: EndpointId, grace: Duration, to: To, now: Now) {
        let Some(mut spec) = self.endpoint_spec(network, id).cloned() else {
            return self.fail_drain(to, gone());
        };
        spec.leaving = true;
        let key = endpoint_key(network, id);
        if let Err(error) = self.publish(key.clone(), encode(&spec), now) {
            return self.fail_drain(to, error);
        }
        let draining = Draining::new(Drainee::Endpoint(network, id), now.instant + grace, true, to);
        self.stop_and_count(key, draining, now);
    }

    fn stop_and_count(&mut self, key: weft_gossip::Key, draining: Draining, now: Now) {
        self.once_in_force(key, Then::Drain(Box::new(draining)), now);
    }

    /// Says that something is drained so far, or not any more.
    fn set_drain(&mut self, what: Drainee, phase: Option<DrainPhase>, now: Now) -> Result<(), ApiError> {
        let register = Register {
            lamport: self.catalogue.lamport_for(&what.key()),
            removed: phase.is_none(),
            value: DrainSpec {
                phase: phase.unwrap_or(DrainPhase::Draining),
                by: self.me,
            },
        };
        self.publish(what.key(), encode(&register), now)
    }

    fn fail_drain(&mut self, to: To, error: ApiError) {
        match to {
            To::Endpoint(_, to) => self.reply(to, Err(error)),
            To::Node(_, to) => self.reply(to, Err(error)),
            To::Detach(.., to) => self.reply(to, Err(error)),
            To::Leave(_, to) => self.reply(to, Err(error)),
        }
    }

    /// Goes on with what all have said.
    pub(super) fn drain_on(&mut self, mut draining: Draining, outcome: Outcome, now: Now) {
        match draining.stage {
            Stage::Stopping => {
                draining.unconfirmed = outcome.unconfirmed;
                draining.stage = Stage::Counting;
                draining.on = self.members();
                self.count_again(draining, now);
            }
            Stage::Counting => {
                draining.take(outcome);
                if draining.is_abandoned() {
                    tracing::info!("nobody waits for the end of a drain any more: it goes on without one");
                } else if draining.on.is_empty() {
                    self.end_drain(draining, DrainPhase::Drained, now);
                } else if draining.deadline <= now.instant {
                    self.end_drain(draining, DrainPhase::Cut, now);
                } else {
                    let at = (now.instant + draining.pause).min(draining.deadline);
                    draining.pause = (draining.pause * 2).min(LONGEST_PAUSE);
                    self.drains.waiting.push((at, draining));
                }
            }
            Stage::Cutting => {
                draining.unconfirmed.extend(outcome.unconfirmed);
                self.drained(draining);
            }
        }
    }

    fn count_again(&mut self, draining: Draining, now: Now) {
        let (of, on) = (Backends::Drained(draining.what), draining.on.clone());
        self.count_open(of, on, PATIENCE, Then::Drain(Box::new(draining)), now);
    }

    fn end_drain(&mut self, mut draining: Draining, phase: DrainPhase, now: Now) {
        if let To::Detach(network, id, ..) = draining.to {
            // Whatever is open to an endpoint that is gone is reset.
            self.drop_endpoint(network, id, now);
            return self.drained(draining);
        }
        if let To::Leave(id, to) = draining.to {
            let result = self.leave_container(id, now);
            return self.reply(to, result);
        }
        if phase == DrainPhase::Cut && !draining.resets {
            return self.drained(draining);
        }
        if let Err(error) = self.set_drain(draining.what, Some(phase), now) {
            return self.fail_drain(draining.to, error);
        }
        if phase == DrainPhase::Drained {
            return self.drained(draining);
        }
        draining.stage = Stage::Cutting;
        self.once_in_force(draining.what.key(), Then::Drain(Box::new(draining)), now);
    }

    fn drained(&mut self, draining: Draining) {
        let left = draining.open.values().sum();
        let (unconfirmed, uncounted) = (draining.unconfirmed, draining.uncounted);
        match draining.to {
            To::Endpoint(response, to) => {
                let response = EndpointDrainResponse {
                    left,
                    unconfirmed,
                    uncounted,
                    ..response
                };
                self.reply(to, Ok(response));
            }
            To::Node(response, to) => {
                let response = NodeDrainResponse {
                    left,
                    unconfirmed,
                    uncounted,
                    ..response
                };
                self.reply(to, Ok(response));
            }
            To::Detach(_, _, response, to) => {
                let response = DisconnectResponse { left, ..response };
                self.detaching.push((self.generation, response, to));
            }
            To::Leave(_, to) => self.reply(to, Ok(())),
        }
    }

    /// Counts again what is due.
    pub(super) fn count_what_is_due(&mut self, now: Now) {
        let waiting = std::mem::take(&mut self.drains.waiting);
        let (due, waiting) = waiting.into_iter().partition(|(at, _)| *at <= now.instant);
        self.drains.waiting = waiting;
        for (_, draining) in due {
            self.count_again(draining, now);
        }
    }

    /// Withdraws what this node said of the draining of something that is gone. Not at once: whoever hears of this
    /// before he hears that it is gone would send new connections there.
    pub(super) fn forget_orphaned_drains(&mut self, now: Now) {
        let said: Vec<Drainee> = self.catalogue.drains_said_by(self.me).collect();
        let is_gone = |what: &Drainee| match *what {
            Drainee::Endpoint(network, id) => {
                let is_known = self.knows_network(network) || self.catalogue.network(network).is_none();
                is_known && self.catalogue.endpoint(network, id).is_none()
            }
            Drainee::Node(node) => self.catalogue.node(node).is_none(),
        };
        let gone: BTreeSet<Drainee> = said.into_iter().filter(is_gone).collect();
        self.drains.orphans.retain(|what, _| gone.contains(what));
        for what in gone {
            let since = *self.drains.orphans.entry(what).or_insert(now.instant);
            if now.instant.duration_since(since) >= ORPHANED {
                self.drains.orphans.remove(&what);
                self.withdraw(&what.key(), now);
            }
        }
    }

    pub(super) fn activate_endpoint(
        &mut self,
        reference: &str,
        request: &EndpointActivateRequest,
        to: Responder<EndpointActivateResponse>,
        now: Now,
    ) {
        let found = names::backend(&self.catalogue, reference, request.network.as_deref());
        let set = found.and_then(|(network, id)| {
            let what = Drainee::Endpoint(network, id);
            if self.catalogue.drain(what).is_some() {
                self.set_drain(what, None, now)?;
            }
            Ok((network, id))
        });
        match set {
            Ok((network, id)) => {
                let key = Drainee::Endpoint(network, id).key();
                self.once_in_force(key, Then::EndpointActivated(network, id, to), now);
            }
            Err(error) => self.reply(to, Err(error)),
        }
    }

    pub(super) fn activate_node(&mut self, reference: &str, to: Responder<NodeActivateResponse>, now: Now) {
        let set = names::node(&self.catalogue, reference).and_then(|node| {
            if self.catalogue.drain(Drainee::Node(node)).is_some() {
                self.set_drain(Drainee::Node(node), None, now)?;
            }
            Ok(node)
        });
        match set {
            Ok(node) => {
                let response = NodeActivateResponse {
                    id: node,
                    name: self.catalogue.node_name(node),
                    unconfirmed: Vec::new(),
                };
                let then = Then::NodeActivated(response, to);
                self.once_in_force(Drainee::Node(node).key(), then, now);
            }
            Err(error) => self.reply(to, Err(error)),
        }
    }

    pub(super) fn endpoint_activated(
        &mut self,
        network: NetworkId,
        id: EndpointId,
        unconfirmed: Vec<Unconfirmed>,
    ) -> Result<EndpointActivateResponse, ApiError> {
        Ok(EndpointActivateResponse {
            backend: self.backend_name(network, id)?,
            unconfirmed,
        })
    }

    fn backend_name(&self, network: NetworkId, id: EndpointId) -> Result<BackendName, ApiError> {
        let endpoint = self.catalogue.endpoint(network, id).ok_or_else(gone)?;
        Ok(BackendName {
            endpoint_id: id,
            endpoint_name: endpoint.spec.name.clone(),
            network_id: network,
            network_name: self.catalogue.display_name(network).unwrap_or_default(),
            node_id: endpoint.node,
            node_name: self.catalogue.node_name(endpoint.node),
        })
    }

    /// Whether a backend is drained, how far that is, and on whose word.
    pub(super) fn drain_of(
        &self,
        network: NetworkId,
        id: EndpointId,
        endpoint: &Endpoint,
    ) -> Option<(DrainPhase, String)> {
        if endpoint.spec.leaving {
            return Some((DrainPhase::Draining, "it is being stopped or detached".to_owned()));
        }
        let by = |drain: &DrainSpec| self.catalogue.node_name(drain.by);
        let own = self.catalogue.drain(Drainee::Endpoint(network, id));
        let own = own.map(|drain| (drain.phase, format!("asked for on {}", by(drain))));
        let node = self.catalogue.drain(Drainee::Node(endpoint.node));
        let node = node.map(|drain| {
            (
                drain.phase,
                format!("its node is drained, asked for on {}", by(drain)),
            )
        });
        own.into_iter().chain(node).max_by_key(|(phase, _)| *phase)
    }

    /// Whether what is open to a backend is to be reset.
    pub(super) fn is_cut(&self, network: NetworkId, id: EndpointId, endpoint: &Endpoint) -> bool {
        let drain = self.drain_of(network, id, endpoint);
        drain.is_some_and(|(phase, _)| phase == DrainPhase::Cut)
    }

    /// Whether a node is drained.
    pub(super) fn availability(&self, node: NodeId) -> Availability {
        match self.catalogue.drain(Drainee::Node(node)).map(|drain| drain.phase) {
            None => Availability::Active,
            Some(DrainPhase::Draining) => Availability::Draining,
            Some(DrainPhase::Drained | DrainPhase::Cut) => Availability::Drained,
        }
    }
}

impl Draining {
    fn new(what: Drainee, deadline: Instant, resets: bool, to: To) -> Self {
        Self {
            what,
            stage: Stage::Stopping,
            deadline,
            resets,
            pause: FIRST_PAUSE,
            on: BTreeSet::new(),
            open: BTreeMap::new(),
            unconfirmed: Vec::new(),
            uncounted: Vec::new(),
            to,
        }
    }

    /// Takes a count in: who has none left, or is believed dead, is not asked again.
    fn take(&mut self, outcome: Outcome) {
        for (node, counts) in &outcome.counts {
            self.open
                .insert(*node, counts.values().map(|count| count.open).sum());
        }
        let silent: BTreeSet<NodeId> = outcome.unconfirmed.iter().map(|node| node.node_id).collect();
        self.open
            .retain(|node, open| *open > 0 && (silent.contains(node) || outcome.counts.contains_key(node)));
        self.on = self.open.keys().copied().chain(silent).collect();
        self.uncounted = outcome.unconfirmed;
    }

    fn is_abandoned(&self) -> bool {
        match &self.to {
            To::Endpoint(_, to) => to.is_abandoned(),
            To::Node(_, to) => to.is_abandoned(),
            // What was begun is brought to its end, as the endpoint is of no use like this.
            To::Detach(..) | To::Leave(..) => false,
        }
    }
}

fn gone() -> ApiError {
    ApiError::not_found("the endpoint was removed meanwhile")
        .with_help("`weft service inspect` shows the backends that there are")
}

fn checked_grace(millis: u64) -> Result<Duration, ApiError> {
    let grace = Duration::from_millis(millis);
    if grace > LONGEST_GRACE {
        return Err(ApiError::invalid("a grace period is a day at most")
            .with_help("without an end: drain with a short one, and look at `weft service inspect`"));
    }
    Ok(grace)
}

#[cfg(test)]
mod tests;
