use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Instant,
};

use bytes::Bytes;
use weft_types::NodeId;

use crate::{
    CARD_KIND, Config, Identity, Key, MAX_MESSAGE, MAX_NAME, MAX_VALUE, Member, Output, PutError, Record,
    SendError, StateSum,
};

/// One node's view of its cluster, and the protocol that keeps it true.
#[derive(Debug)]
pub struct Gossip {
    config: Config,
    identity: Identity,
    records: BTreeMap<(NodeId, Key), Record>,
    outputs: VecDeque<Output>,
}

impl Gossip {
    /// A node that knows nobody yet.
    pub fn new(config: Config, identity: Identity, boot: u64, seed: [u8; 32], now: Instant) -> Self {
        let _ = (boot, seed, now);
        Self {
            config,
            identity,
            records: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes back what was written to disk.
    pub fn load(&mut self, records: impl IntoIterator<Item = Record>) {
        self.records.extend(
            records
                .into_iter()
                .map(|record| ((record.author, record.key.clone()), record)),
        );
    }

    /// Asks these addresses to let this node in, again and again until a member answers.
    pub fn join(&mut self, seeds: impl IntoIterator<Item = SocketAddr>, now: Instant) {
        let _ = (seeds.into_iter(), now);
    }

    /// Says `value` under `key`.
    pub fn put(&mut self, key: Key, value: Bytes, now: Instant) -> Result<Record, PutError> {
        let _ = now;
        if key.kind == CARD_KIND {
            return Err(PutError::ReservedKind(key.kind));
        }
        if key.name.len() > MAX_NAME {
            return Err(PutError::NameTooLong(key.name.len()));
        }
        if value.len() > MAX_VALUE {
            return Err(PutError::ValueTooLong(value.len()));
        }
        Ok(self.write(key, Some(value)))
    }

    /// Says that there is nothing under `key` any more.
    pub fn remove(&mut self, key: &Key, now: Instant) -> Option<Record> {
        let _ = now;
        self.get(&self.identity.node(), key)?.value.as_ref()?;
        Some(self.write(key.clone(), None))
    }

    fn write(&mut self, key: Key, value: Option<Bytes>) -> Record {
        let version = self
            .records
            .values()
            .map(|record| record.version)
            .max()
            .unwrap_or(0)
            + 1;
        let record = Record::sign(
            &self.identity,
            &self.config.cluster,
            key.clone(),
            version,
            value,
            StateSum::default(),
        );
        self.records.insert((record.author, key), record.clone());
        record
    }

    /// What `author` says under `key`; a tombstone has no value.
    pub fn get(&self, author: &NodeId, key: &Key) -> Option<&Record> {
        self.records.get(&(*author, key.clone()))
    }

    /// Everything anybody says, tombstones included.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Every node ever heard of, but this one and those evicted.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        std::iter::empty()
    }

    /// Sends a datagram to another node's application: it arrives once or not at all.
    pub fn send(&mut self, to: NodeId, payload: Bytes, now: Instant) -> Result<(), SendError> {
        let _ = now;
        if payload.len() > MAX_MESSAGE {
            return Err(SendError::TooLong(payload.len()));
        }
        Err(SendError::Unknown(to))
    }

    /// Takes a datagram that arrived.
    pub fn handle_packet(&mut self, from: SocketAddr, packet: &[u8], now: Instant) {
        let _ = (from, packet, now);
    }

    /// Takes a frame that a peer sent over a stream; the answer is to be sent back.
    pub fn handle_stream_request(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let _ = (frame, now);
        None
    }

    /// Takes the answer to an [`Output::Stream`].
    pub fn handle_stream_response(&mut self, frame: &[u8], now: Instant) {
        let _ = (frame, now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Says good-bye. Carry out the outputs, then drop this.
    pub fn leave(&mut self, now: Instant) {
        let _ = now;
    }

    /// Never talks to `node` again and forgets what it said.
    pub fn evict(&mut self, node: NodeId, now: Instant) {
        let _ = (node, now);
    }
}
