//! Members that no agent runs: the test speaks with the keys that an agent got when it joined.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Instant,
};

use bytes::Bytes;
use netns_harness::Inside as _;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::mpsc;
use weft_gossip::{
    Config, Gossip, GossipKey, Identity, Key, KeyRing, Output, Record,
    transport::{Input, Transport},
};
use weft_tests::speaker::Speaker;
use weft_types::{ClusterId, NodeId};

use super::{
    bed::{Node, soon},
    gossip_key::first_key,
};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");

/// What an agent has on its disk.
pub struct Keys {
    cluster: ClusterId,
    key: [u8; 32],
    seed: [u8; 32],
    boot: u64,
    records: Vec<Record>,
}

impl Keys {
    /// Those of an agent that does not run any more.
    pub fn of(node: &Node) -> Self {
        let db = soon("the state of an agent that has ended", || {
            Database::open(node.data_dir().join("state.redb"))
        });
        let read = db.begin_read().unwrap();
        let meta = read.open_table(META).unwrap();
        let meta = |name: &str| meta.get(name).unwrap().expect(name).value().to_vec();
        let records = read.open_table(RECORDS).unwrap();
        let records = records.iter().unwrap().map(|entry| {
            let entry = entry.unwrap();
            postcard::from_bytes(entry.1.value()).unwrap()
        });
        Self {
            cluster: ClusterId(*meta("cluster").first_chunk().unwrap()),
            key: first_key(node),
            seed: meta("identity").try_into().unwrap(),
            boot: postcard::from_bytes::<u64>(&meta("boot")).unwrap() + 1,
            records: records.collect(),
        }
    }

    /// As after the loss of the records.
    pub fn without_records(mut self) -> Self {
        self.records.clear();
        self
    }
}

type Deed = Box<dyn FnOnce(&mut Gossip, Instant) + Send>;

/// A member: the core of gossip, with sockets on a host, which does what the test wants.
pub struct Member {
    pub node: NodeId,
    /// The first of its generations.
    pub generation: u64,
    deeds: mpsc::Sender<Deed>,
    thread: Option<std::thread::JoinHandle<()>>,
    socket: UdpSocket,
    keys: (ClusterId, [u8; 32], [u8; 32]),
}

impl Member {
    /// Takes the place of the agent of a host, and finds the others by what they said.
    pub fn start(at: &Node, keys: Keys, seeds: &[SocketAddr]) -> Self {
        let address = SocketAddr::new(at.address(), 7946);
        let (deeds, waiting) = mpsc::channel(64);
        let (host, identity) = (at.host.clone(), Identity::from_seed(keys.seed));
        let (node, seeds) = (identity.node(), seeds.to_vec());
        let (all, generation) = ((keys.cluster, keys.key, keys.seed), keys.boot << 16);
        let thread = std::thread::spawn(move || {
            let mut config = Config::new(keys.cluster, KeyRing::new(GossipKey(keys.key)), address);
            // As agents have it: it is to be told of endpoints.
            config.network_kinds = vec![4, 11];
            let now = Instant::now();
            // It is nobody else's, and never starts twice in one boot.
            let mut gossip = Gossip::new(config, identity, keys.boot, [keys.boot as u8; 32], now);
            gossip.load(keys.records);
            gossip.join(seeds, now);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            host.run(|| runtime.block_on(live(gossip, address, waiting)))
                .unwrap();
        });
        let bind = || UdpSocket::bind(SocketAddr::new(address.ip(), 0));
        Self {
            node,
            generation,
            deeds,
            thread: Some(thread),
            socket: at.host.run(bind).unwrap().unwrap(),
            keys: all,
        }
    }

    /// Does something with it.
    pub fn with<T: Send + 'static>(&self, act: impl FnOnce(&mut Gossip, Instant) -> T + Send + 'static) -> T {
        let (answer, result) = std::sync::mpsc::channel();
        let deed: Deed = Box::new(move |gossip, now| {
            // Whoever asked waits for it.
            let _ = answer.send(act(gossip, now));
        });
        self.deeds.blocking_send(deed).expect("it lives");
        result.recv().expect("it lives")
    }

    pub fn records(&self) -> Vec<Record> {
        self.with(|gossip, _| gossip.records().cloned().collect())
    }

    pub fn say(&self, key: Key, value: Vec<u8>) {
        self.with(move |gossip, now| gossip.put(key, Bytes::from(value), now).map(drop))
            .unwrap();
    }

    /// The generation in which it believes another.
    pub fn incarnation(&self, of: NodeId) -> u64 {
        let incarnation = move |gossip: &mut Gossip, _| {
            let member = gossip.members().find(|member| member.node == of);
            member.map(|member| member.incarnation)
        };
        self.with(incarnation).expect("it is known")
    }

    /// A second mouth, that says what the core would not.
    pub fn mouth(&self, session: u64) -> Speaker {
        Speaker::new(self.keys.0, self.keys.1, self.keys.2, session)
    }

    pub fn send(&self, to: &Node, packet: &[u8]) {
        let to = SocketAddr::new(to.address(), 7946);
        self.socket.send_to(packet, to).unwrap();
    }

    /// It is gone without a word.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let (closed, _) = mpsc::channel(1);
        // Its loop ends when nobody can ask it for anything any more.
        drop(std::mem::replace(&mut self.deeds, closed));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.end();
    }
}

async fn live(mut gossip: Gossip, address: SocketAddr, mut deeds: mpsc::Receiver<Deed>) {
    let mut transport = Transport::bind(address).await.unwrap();
    loop {
        while let Some(output) = gossip.poll_output() {
            match output {
                Output::Packet { to, bytes } => transport.send_packet(to, &bytes),
                Output::Stream { to, request } => drop(transport.open_stream(to, request)),
                // It has no disk.
                Output::Event(_) => {}
            }
        }
        let due = gossip.poll_timeout().expect("it has begun").into();
        tokio::select! {
            deed = deeds.recv() => match deed {
                Some(deed) => deed(&mut gossip, Instant::now()),
                None => return,
            },
            input = transport.recv() => match input {
                Input::Packet { from, bytes } => gossip.handle_packet(from, &bytes, Instant::now()),
                Input::StreamRequest { frame, responder } => {
                    responder.respond(gossip.handle_stream_request(&frame, Instant::now()));
                }
                Input::StreamResponse { frame } => gossip.handle_stream_response(&frame, Instant::now()),
            },
            () = tokio::time::sleep_until(due) => gossip.handle_timeout(Instant::now()),
        }
    }
}
