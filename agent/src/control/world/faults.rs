//! What goes wrong in a [`World`]: agents that stop at any step and start from their disks, splits, and loss.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weft_gossip::{Identity, Key, Record};
use weft_types::NodeId;
use weft_wireguard::Secret32;

use super::{
    super::{
        Kept, Responder, Ring, Stored, TunnelKeys, Turn,
        admission::{self, JoinError},
        records::SpaceKey,
        token::Token,
    },
    Answer, Node, World, address,
};
use crate::api::types::TokenCreateRequest;

/// What is durable of a node.
#[derive(Clone)]
pub(in crate::control) struct Disk {
    pub(in crate::control) boot: u64,
    pub(in crate::control) ring: Ring,
    tunnel_keys: TunnelKeys,
    records: BTreeMap<(NodeId, Key), Record>,
    kept: Vec<(SpaceKey, Kept)>,
}

/// How far an agent gets with a turn that changes its keys of gossip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum Crash {
    AtOnce,
    KeysSaved,
    Committed,
}

#[derive(Default)]
pub(in crate::control) struct Faults {
    /// Those of different groups do not reach each other.
    pub(in crate::control) groups: BTreeMap<usize, u8>,
    /// How many of a hundred packets are lost, and the chance that decides which.
    pub(in crate::control) loss: Option<(u32, ChaCha8Rng)>,
    pub(in crate::control) crash: Option<(usize, Crash)>,
    /// Every packet, where they are captured.
    pub(in crate::control) wire: Option<Vec<(SocketAddr, SocketAddr, Bytes)>>,
}

impl Disk {
    pub(super) fn new(n: u8, ring: Ring) -> Self {
        Self {
            boot: 1,
            ring,
            tunnel_keys: TunnelKeys::first(Secret32::new([n; 32]), 0),
            records: BTreeMap::new(),
            kept: Vec::new(),
        }
    }

    pub(super) fn stored(&self) -> Stored {
        Stored {
            tunnel_keys: self.tunnel_keys.clone(),
            ring: self.ring.clone(),
            records: self.records.values().cloned().collect(),
            kept: self.kept.clone(),
            bindings: Vec::new(),
        }
    }

    pub(in crate::control) fn write(&mut self, record: Record) {
        self.records.insert((record.author, record.key.clone()), record);
    }

    pub(in crate::control) fn remove(&mut self, record: &Record) {
        self.records.remove(&(record.author, record.key.clone()));
    }

    fn save_keys(&mut self, turn: &Turn) {
        self.ring = turn.gossip_keys.clone().unwrap_or_else(|| self.ring.clone());
        let keys = turn.tunnel_keys.clone();
        self.tunnel_keys = keys.unwrap_or_else(|| self.tunnel_keys.clone());
    }

    fn commit(&mut self, turn: &Turn) {
        let records = turn.commit.iter().cloned();
        self.records
            .extend(records.map(|record| ((record.author, record.key.clone()), record)));
        self.kept.extend(turn.kept.iter().cloned());
        for place in &turn.forget {
            self.records.remove(place);
        }
    }
}

impl Faults {
    pub(super) fn is_path(&self, from: usize, to: usize) -> bool {
        self.groups.get(&from) == self.groups.get(&to)
    }

    pub(super) fn loses(&mut self) -> bool {
        let loss = self.loss.as_mut();
        loss.is_some_and(|(of_hundred, chance)| chance.random_range(0..100) < *of_hundred)
    }

    pub(super) fn note(&mut self, from: SocketAddr, to: SocketAddr, packet: &Bytes) {
        if let Some(wire) = &mut self.wire {
            wire.push((from, to, packet.clone()));
        }
    }

    /// Has the disk take what a turn brings for it, or as much of that as a crash lets it. True if there was one.
    pub(super) fn crashes(&mut self, node: usize, turn: &Turn, disk: &mut Disk) -> bool {
        let crash = self
            .crash
            .take_if(|(of, _)| *of == node && turn.gossip_keys.is_some());
        let crash = crash.map(|(_, crash)| crash);
        if crash != Some(Crash::AtOnce) {
            disk.save_keys(turn);
            if crash != Some(Crash::KeysSaved) {
                disk.commit(turn);
            }
        }
        crash.is_some()
    }
}

impl World {
    pub(in crate::control) fn stop(&mut self, node: usize) {
        self.nodes[node].is_off = true;
    }

    /// Starts an agent from its disk, whether it runs or not.
    pub(in crate::control) fn restart(&mut self, node: usize) {
        let now = self.now;
        let n = node as u8 + 1;
        let node = &mut self.nodes[node];
        node.disk.boot += 1;
        let facts = node.control.facts().clone();
        node.control = Node::start(n, facts, &node.disk, now);
        node.is_off = false;
        self.carry_out();
    }

    /// Who is named is apart from the others.
    pub(in crate::control) fn split(&mut self, apart: &[usize]) {
        self.faults.groups = apart.iter().map(|node| (*node, 1)).collect();
    }

    pub(in crate::control) fn heal(&mut self) {
        self.faults.groups.clear();
    }

    pub(in crate::control) fn lose(&mut self, of_hundred: u32, seed: u64) {
        self.faults.loss = Some((of_hundred, ChaCha8Rng::seed_from_u64(seed)));
    }

    /// One more node joins by asking `via`, with a token made there or another.
    pub(in crate::control) fn join(&mut self, via: usize, token: Option<&Token>) -> Result<usize, JoinError> {
        let n = self.nodes.len() as u8 + 1;
        let identity = Identity::from_seed([n; 32]);
        let now = self.now;
        let control = &mut self.nodes[via].control;
        let token = token.cloned().unwrap_or_else(|| {
            let made = control.create_token(&TokenCreateRequest::default(), now);
            made.unwrap().token.parse().unwrap()
        });
        let frame = admission::request(&token, identity.node(), &format!("h{n}"), [n; 24]);
        let answer = control.handle_join_request(&frame, now).unwrap();
        self.carry_out();
        let welcome = admission::read_answer(&token, &identity, &answer)?;
        let node = Node::new(n, welcome.facts, welcome.ring, now);
        Ok(self.add(node, via, welcome.members))
    }

    /// Somebody with an identity of his own, whom nobody let in, speaks to `via` by these keys.
    pub(in crate::control) fn intrude(&mut self, via: usize, ring: Ring) -> usize {
        let node = Node::new(self.nodes.len() as u8 + 1, super::facts(), ring, self.now);
        let members = vec![self.address(via)];
        self.add(node, via, members)
    }

    /// On the side of a split that `via` is on.
    fn add(&mut self, mut node: Node, via: usize, members: Vec<SocketAddr>) -> usize {
        let (responder, joined) = Responder::new();
        node.control.join(members, responder, self.now);
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        if let Some(group) = self.faults.groups.get(&via).copied() {
            self.faults.groups.insert(index, group);
        }
        let mut joined = Answer(joined);
        self.until(Duration::from_secs(10), |_| joined.get().is_some());
        index
    }

    /// Where a node listens.
    pub(in crate::control) fn address(&self, node: usize) -> SocketAddr {
        address(node as u8 + 1)
    }
}
