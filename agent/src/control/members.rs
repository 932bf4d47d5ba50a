//! What gossip reports: members that come and go, records that arrive, messages between two nodes.

use std::time::Duration;

use weft_gossip::{Event as GossipEvent, Gossip, Key, Member, MemberState, Record};
use weft_types::{NetworkId, NodeId};

use super::{
    Control, Now,
    catalogue::{Catalogue, Change, Presence},
    records::{CLUSTER, Kind, NetworkSpec, NodeFact, Register, RemovalFact, TunnelFact, encode, network_key},
    spaces::Wire,
    touched::Place,
};
use crate::api::types::{ClusterJoinResponse, EventKind};

/// How long a record of another node may wait for company on its way to the disk.
const SAVE_AFTER: Duration = Duration::from_millis(500);

impl Control {
    /// Drains gossip until nothing follows any more.
    pub(super) fn settle(&mut self, now: Now) {
        loop {
            while let Some(output) = self.gossip.poll_output() {
                match output {
                    weft_gossip::Output::Event(event) => self.on_gossip(event, now),
                    send => self.turn.send.push(send),
                }
            }
            if self.caught_up && self.reading_back.is_some() && !self.gossip.is_fetching_any() {
                self.end_reading_back(now);
            }
            let again = self.keep_ingresses(now)
                | self.sync_checks(now)
                | self.look_at_keys(now)
                | self.say_what_is_used(now)
                | self.look_at_interest(now)
                | self.carry_out_the_waiting(now);
            if !(self.answer_kept(now) || again) {
                break;
            }
        }
    }

    /// Says what this node is, if that is not what its record says already.
    pub(super) fn introduce(&mut self, now: Now) {
        self.describe_itself(now);
        self.settle(now);
    }

    fn describe_itself(&mut self, now: Now) {
        let fact = NodeFact {
            name: self.settings.node_name.clone(),
            gossip: self.settings.gossip,
            vtep: self.settings.vtep,
            underlay_mtu: self.settings.underlay_mtu,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tunnel: TunnelFact {
                key: self.rotation.keys().current.public_key(),
                address: self.tunnel_address(),
                port: self.settings.wireguard_port,
                epoch: self.rotation.keys().epoch,
                next: self.rotation.keys().next_public(),
            },
        };
        let known = self.catalogue.node(self.me).and_then(|node| node.fact.as_ref());
        if known != Some(&fact) {
            let key = Kind::Node.key(CLUSTER, Vec::new());
            self.publish(key, encode(&fact), now)
                .expect("a node's name has a bounded length");
        }
    }

    /// Whoever joins knows what the others know, and has numbers to go on alone with.
    pub(super) fn joined_if_complete(&mut self) {
        if self.caught_up && !self.spaces.is_seeking_for_cluster() {
            self.joined();
        }
    }

    /// Answers whoever waits for this node to have joined.
    pub(super) fn joined(&mut self) {
        let Some((_, responder)) = self.joining.take() else {
            return;
        };
        // Whoever has joined finds the others again after a crash.
        self.turn.commit.append(&mut self.unsaved);
        let response = ClusterJoinResponse {
            cluster_id: self.facts.id,
            node_id: self.me,
            node_name: self.settings.node_name.clone(),
            node_count: self.catalogue.nodes().count() as u32,
        };
        self.reply(responder, Ok(response));
    }

    fn on_gossip(&mut self, event: GossipEvent, now: Now) {
        match event {
            GossipEvent::Record { record, .. } => {
                let grants_me = self.learn(&record, now);
                if grants_me {
                    self.turn.commit.push(record);
                    self.resume(now);
                } else {
                    self.save_at.get_or_insert(now.instant + SAVE_AFTER);
                    self.unsaved.push(record);
                }
            }
            GossipEvent::Dropped { author, key } => {
                self.apply(author, &key, None, now);
                self.turn.forget.push((author, key));
            }
            GossipEvent::Member(member) => self.on_member(&member, now),
            GossipEvent::Message { from, payload } => self.on_wire(from, &payload, now),
            GossipEvent::CaughtUp => {
                tracing::debug!("caught up with a peer");
                self.caught_up = true;
                self.keyring.look_soon(now.instant);
                self.remove_who_left(now);
                self.look_ahead(now);
                self.joined_if_complete();
            }
            GossipEvent::Known(network) => self.interests.note_known(network),
            GossipEvent::OwnRecordNewer(record) => {
                tracing::warn!(
                    version = record.version,
                    "a peer knows a newer record of this node: the disk was rolled back"
                );
                self.learn(&record, now);
                self.turn.commit.push(record);
            }
            GossipEvent::Cloned => {
                self.problem(
                    "another node runs with this node's identity (a copied data directory?); \
                     no new number is handed out here until one of them is given a data directory of its own"
                        .to_owned(),
                );
                self.spaces.stop_allocating();
            }
        }
    }

    /// Takes a record into the catalogue and the spaces. True if it is a grant to this node, which
    /// must be on the disk before it is used.
    pub(super) fn learn(&mut self, record: &Record, now: Now) -> bool {
        let grants_me = self.spaces.learn(record, &self.catalogue, now.instant);
        self.note_conflicts();
        if matches!(Kind::of(&record.key), Some(Kind::Grant | Kind::Holding)) {
            self.look_at_estates_later(now);
        }
        self.apply(record.author, &record.key, record.value.as_deref(), now);
        grants_me
    }

    pub(super) fn apply(&mut self, author: NodeId, key: &Key, value: Option<&[u8]>, now: Now) {
        if let Some(change) = self.catalogue.apply(author, key, value) {
            self.on_change(change, now);
        }
    }

    fn on_change(&mut self, change: Change, now: Now) {
        if change != Change::KeysChanged {
            self.note_touched(&change);
            self.note_for_checks(&change);
            self.interests.note(&change);
            self.ingresses_to_look_at |= !matches!(change, Change::IngressChanged(_) | Change::TokensChanged);
        }
        match change {
            Change::KeysChanged | Change::TokensChanged => self.keyring.look_soon(now.instant),
            Change::Node(node) => {
                self.keyring.look_soon(now.instant);
                if node != self.me {
                    // It may have this node's address inside the tunnels, and keep it.
                    self.describe_itself(now);
                }
            }
            Change::IngressChanged(_) | Change::DrainChanged(_) => {}
            Change::NodeRemoved(node) => {
                if node == self.me {
                    self.removed = true;
                } else {
                    let why = removal_of(node, &self.gossip, &self.catalogue);
                    self.gossip.evict(node, why, now.instant);
                    for change in self.catalogue.withdraw(node) {
                        self.on_change(change, now);
                    }
                    // What others have from it counts from now on.
                    for record in self.gossip.records() {
                        if Kind::of(&record.key) == Some(Kind::Holding) {
                            self.spaces.learn(record, &self.catalogue, now.instant);
                        }
                    }
                    self.look_at_estates(now);
                    self.keyring.look_now(now.instant);
                    // Those who said so may be the next to die.
                    self.save_at = Some(now.instant);
                    if !self.catalogue.has_left(node) {
                        self.node_event(EventKind::NodeLeft, node);
                    }
                }
            }
            Change::NetworkCreated(id) => {
                let spec = self.catalogue.network(id).expect("just created").clone();
                self.add_spaces(id, &spec, now);
                self.event(EventKind::NetworkCreated, id.to_string(), spec.name, []);
            }
            Change::NetworkChanged(id) => {
                if let Some(spec) = self.catalogue.network(id).cloned() {
                    self.add_spaces(id, &spec, now);
                    self.event(EventKind::NetworkUpdated, id.to_string(), spec.name, []);
                }
            }
            Change::NetworkContested(id) => {
                let is_mine = self.local_endpoints().any(|(network, ..)| network == id);
                if let (true, Some(spec)) = (is_mine, self.catalogue.network(id)) {
                    let spec = spec.clone();
                    self.assert_network(id, spec, now);
                }
            }
            Change::EstatesChanged => self.look_at_estates(now),
            Change::NetworkRemoved(id, was) => self.on_network_removed(id, *was, now),
            Change::ServiceCreated(network, id) => {
                self.spaces
                    .sync_service(network, id, &self.catalogue, now.instant);
                self.service_event(EventKind::ServiceCreated, network, id);
            }
            Change::ServiceChanged(network, id) => {
                self.spaces
                    .sync_service(network, id, &self.catalogue, now.instant);
                self.service_event(EventKind::ServiceUpdated, network, id);
            }
            Change::ServiceRemoved(network, id, name) => {
                self.spaces
                    .sync_service(network, id, &self.catalogue, now.instant);
                let network = self
                    .catalogue
                    .display_name(network)
                    .unwrap_or_else(|| network.short());
                self.event(
                    EventKind::ServiceRemoved,
                    id.to_string(),
                    name,
                    [("network", network)],
                );
            }
            Change::EndpointAdded(network, id) => {
                let endpoint = self.catalogue.endpoint(network, id);
                let node = endpoint.expect("just added").node;
                if node == self.me {
                    self.interests.touch(network);
                }
                if self.is_news(network, node) {
                    self.endpoint_event(EventKind::EndpointConnected, network, id);
                }
            }
            Change::EndpointChanged(network, id, was) => {
                if self.is_news(network, was.node) {
                    self.health_event(network, id, &was.spec.health);
                }
            }
            Change::EndpointRemoved(network, id, endpoint) => {
                if endpoint.node == self.me {
                    self.interests.touch(network);
                }
                if !self.is_news(network, endpoint.node) {
                    return;
                }
                let network = self
                    .catalogue
                    .display_name(network)
                    .unwrap_or_else(|| network.short());
                let node = self.catalogue.node_name(endpoint.node);
                let attributes = [("network", network), ("node", node)];
                self.event(
                    EventKind::EndpointDisconnected,
                    id.to_string(),
                    endpoint.spec.name,
                    attributes,
                );
            }
        }
    }

    fn add_spaces(&mut self, id: NetworkId, spec: &NetworkSpec, now: Now) {
        self.look_at_estates_later(now);
        self.spaces
            .add_network(id, spec, &self.catalogue, self.gossip.records(), now.instant);
    }

    /// A network somebody removed while this node has endpoints on it (which only a split allows)
    /// is asserted again: its endpoints are in use.
    fn on_network_removed(&mut self, id: NetworkId, was: NetworkSpec, now: Now) {
        let in_use = self
            .catalogue
            .endpoints(id)
            .any(|(_, endpoint)| endpoint.node == self.me);
        if in_use {
            self.assert_network(id, was, now);
            return;
        }
        self.spaces.remove_network(id, &was, &self.catalogue, now.instant);
        self.event(EventKind::NetworkRemoved, id.to_string(), was.name, []);
    }

    /// Says that a network is there, after somebody said that it is not.
    fn assert_network(&mut self, id: NetworkId, value: NetworkSpec, now: Now) {
        let asserted = Register {
            lamport: self.catalogue.lamport_for(&network_key(id)),
            removed: false,
            value,
        };
        let bytes = encode(&asserted);
        let said = self.gossip.get(&self.me, &network_key(id));
        // Later than the last time there is none; it is in use all the same.
        if said.is_some_and(|said| said.value.as_ref() == Some(&bytes)) {
            return;
        }
        if let Err(error) = self.publish(network_key(id), bytes, now) {
            self.problem(error.message);
        }
    }

    pub(super) fn on_member(&mut self, member: &Member, now: Now) {
        let (presence, kind) = match member.state {
            MemberState::Alive => (Presence::Alive, EventKind::NodeAlive),
            MemberState::Suspect => (Presence::Suspect, EventKind::NodeSuspect),
            MemberState::Down => (Presence::Down, EventKind::NodeDown),
            MemberState::Left => (Presence::Left, EventKind::NodeLeft),
        };
        let before = self.catalogue.node(member.node).map(|node| node.presence);
        if self
            .catalogue
            .set_presence(member.node, presence, member.incarnation)
        {
            let served = before.is_some_and(|before| before != Presence::Unheard);
            self.believe(member.node, presence, served, now);
            self.host_changed_at(Place::Node(member.node));
            self.keyring.look_soon(now.instant);
            self.look_at_estates(now);
            self.node_event(kind, member.node);
            if presence == Presence::Left {
                // It never says so again.
                self.save_at = Some(now.instant);
            }
            self.remove_who_left(now);
        }
    }

    /// Who said good-bye never comes back as the same node. The first of those who answer writes that down, so that nothing
    /// of it stays: not its name, nor the numbers that it could not give away because they were in use.
    fn remove_who_left(&mut self, now: Now) {
        let is_first = !self
            .catalogue
            .nodes()
            .any(|(id, node)| id < self.me && matches!(node.presence, Presence::Alive | Presence::Suspect));
        if !is_first || self.removed || self.leaving.is_some() || self.reading_back.is_some() {
            return;
        }
        let left = self.catalogue.nodes();
        let left: Vec<NodeId> = left
            .filter(|(_, node)| node.presence == Presence::Left)
            .map(|(id, _)| id)
            .collect();
        for node in left {
            // By its own word, which nobody else can say.
            let fact = RemovalFact { forced: true };
            if let Err(error) = self.publish(Kind::Removal.key(CLUSTER, node.0), encode(&fact), now) {
                tracing::warn!(%error, "that a node has left cannot be told to the others");
            }
        }
    }

    fn on_wire(&mut self, from: NodeId, payload: &[u8], now: Now) {
        match postcard::from_bytes(payload) {
            Ok(Wire::Request { space, request }) => self.on_space_request(from, space, request, now),
            Ok(Wire::Reply { space, reply }) => self.on_space_reply(from, space, reply, now),
            Ok(Wire::Question { id, question }) => self.on_question(from, id, question, now),
            Ok(Wire::Answer { id, answer }) => self.on_answer(from, id, answer, now),
            Err(error) => tracing::debug!(%from, %error, "a message that this version does not know"),
        }
    }
}

/// The record that says that a node was removed.
pub(super) fn removal_of(node: NodeId, gossip: &Gossip, catalogue: &Catalogue) -> Option<Record> {
    let key = Kind::Removal.key(CLUSTER, node.0);
    let mut by = catalogue.removers_of(node);
    by.find_map(|by| gossip.get(&by, &key).cloned())
}

#[cfg(test)]
mod tests;
