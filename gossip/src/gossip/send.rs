//! What leaves a node: bodies, sealed for whom they are meant.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use weft_types::{NetworkId, NodeId};

use super::Gossip;
use crate::{
    KeyId, Output,
    identity::Short,
    rumours::Telling,
    seal::Channel,
    store::CLUSTER,
    wire::{self, Body},
};

/// Outputs waiting at most; packets beyond are lost. Events are not, but each is caused by an input.
const MAX_OUTPUTS: usize = 16_384;

impl Gossip {
    /// Sends to a node whose card is known.
    pub(super) fn send_body(&mut self, to: Short, body: &Body) {
        self.send_encoded(to, &wire::encode(body));
    }

    pub(super) fn send_encoded(&mut self, to: Short, body: &[u8]) {
        let Some(peer) = self.peers.get(&to) else { return };
        let (node, address) = (peer.node, peer.card.address);
        self.send_packet(Some(&node), address, body);
    }

    pub(super) fn send_packet(&mut self, to: Option<&NodeId>, address: SocketAddr, body: &[u8]) {
        self.send_packet_by(self.sealer.keys.id_for(to), to, address, body);
    }

    /// Answers go by the key that the question came by: who asks may have lost a newer one that it once said to have.
    pub(super) fn send_packet_by(
        &mut self,
        key: KeyId,
        to: Option<&NodeId>,
        address: SocketAddr,
        body: &[u8],
    ) {
        if self.outputs.len() >= MAX_OUTPUTS || body.len() > wire::MAX_BODY {
            self.stats.packets_lost += 1;
            return;
        }
        if let Some(bytes) = self.sealer.seal_by(key, Channel::Packet, to, body) {
            self.stats.packets_sent += 1;
            self.stats.bytes_sent += bytes.len() as u64;
            self.outputs.push_back(Output::Packet { to: address, bytes });
        }
    }

    pub(super) fn flush_rumours(&mut self, now: Instant) {
        let scopes = self.rumours.scopes_due(now);
        let networks = scopes.iter().filter(|scope| **scope != CLUSTER);
        let on: BTreeMap<_, _> = networks
            .map(|network| (*network, self.live_in(network)))
            .collect();
        let live = &self.live;
        let peers = |scope: &NetworkId| on.get(scope).unwrap_or(live).as_slice();
        let packets = self.rumours.flush(&scopes, peers, now, &mut self.rng);
        for (to, telling) in packets {
            self.tell(to, &telling);
        }
    }

    pub(super) fn tell(&mut self, to: Short, telling: &Telling) {
        self.stats.records_told += telling.records;
        self.send_encoded(to, &telling.body);
    }
}
