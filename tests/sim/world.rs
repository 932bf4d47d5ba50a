//! Many nodes of the real gossip core, one queue of events, virtual time, and chance from one seed.
//!
//! Nothing here waits and nothing reads a clock: a second of a cluster's life takes as long as its packets
//! take to handle. The same seed gives the same life, packet by packet; `trace` is a hash over it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    hash::{DefaultHasher, Hash},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weft_gossip::{
    Config, Event, Gossip, GossipKey, Identity, Interest, Key, KeyRing, MemberState, Output, Record,
};
use weft_types::{ClusterId, NetworkId, NodeId};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
pub const SECRET: [u8; 32] = [5; 32];

/// The network between the nodes.
#[derive(Debug, Clone)]
pub struct Net {
    pub loss: f64,
    pub duplicate: f64,
    /// The part of packets that take up to 20 ms longer than others, and so are overtaken.
    pub late: f64,
    /// Nodes of different groups do not reach each other.
    pub groups: BTreeMap<usize, u8>,
    /// The numbers of single packets that are lost, whatever happens.
    pub lost: BTreeSet<u64>,
    /// Packets from these nodes are lost until that time.
    pub mute: BTreeMap<usize, Duration>,
    /// Packets from the first to the second are lost; not those the other way.
    pub one_way: BTreeSet<(usize, usize)>,
    /// These hosts stand still until that time; what arrives waits for them.
    pub still: BTreeMap<usize, Duration>,
}

pub struct Node {
    pub gossip: Option<Gossip>,
    pub identity: Identity,
    pub address: SocketAddr,
    pub boot: u64,
    /// Of which networks it wants to know when it starts.
    pub interest: Interest,
    pub disk: BTreeMap<(NodeId, Key), Record>,
    pub events: Vec<(Duration, Event)>,
    timer: Option<Instant>,
}

#[derive(Debug)]
enum Happening {
    Packet {
        to: usize,
        from: SocketAddr,
        bytes: Bytes,
    },
    Request {
        to: usize,
        from: usize,
        frame: Bytes,
    },
    Response {
        to: usize,
        frame: Vec<u8>,
    },
    Timer {
        node: usize,
    },
}

impl Happening {
    /// The host at which it happens.
    fn at(&self) -> usize {
        match self {
            Self::Packet { to, .. } | Self::Request { to, .. } | Self::Response { to, .. } => *to,
            Self::Timer { node } => *node,
        }
    }
}

pub struct World {
    pub nodes: Vec<Node>,
    pub net: Net,
    pub rng: ChaCha8Rng,
    pub trace: DefaultHasher,
    pub packets: u64,
    /// Whether events are kept in `Node::events`.
    pub keep_events: bool,
    /// Every packet on the wire, if it is watched.
    pub wire: Option<Vec<(SocketAddr, SocketAddr, Bytes)>>,
    start: Instant,
    now: Instant,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    sequence: u64,
    addresses: BTreeMap<SocketAddr, usize>,
}

/// The seed of this run: `SIM_SEED`, or the test's own.
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("SIM_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default);
    println!("SIM_SEED={seed}");
    seed
}

/// Whether there is time for larger clusters and more runs: `SIM_THOROUGH` is set.
pub fn thorough() -> bool {
    std::env::var_os("SIM_THOROUGH").is_some()
}

pub fn key(name: &str) -> Key {
    Key {
        kind: 1,
        scope: NetworkId([0; 16]),
        name: name.as_bytes().to_vec(),
    }
}

/// The kind of records that are in the stream of their network.
const NETWORK_KIND: u8 = 2;

/// What concerns a network alone.
pub fn key_in(network: u8, name: &str) -> Key {
    Key {
        kind: NETWORK_KIND,
        scope: NetworkId([network; 16]),
        name: name.as_bytes().to_vec(),
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            nodes: Vec::new(),
            net: Net {
                loss: 0.0,
                duplicate: 0.0,
                late: 0.0,
                groups: BTreeMap::new(),
                lost: BTreeSet::new(),
                mute: BTreeMap::new(),
                one_way: BTreeSet::new(),
                still: BTreeMap::new(),
            },
            rng: ChaCha8Rng::seed_from_u64(seed),
            trace: DefaultHasher::new(),
            packets: 0,
            keep_events: true,
            wire: None,
            start,
            now: start,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            sequence: 0,
            addresses: BTreeMap::new(),
        }
    }

    /// A world of `count` nodes that have found each other.
    pub fn cluster(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed);
        for index in 0..count {
            world.add();
            world.start(index);
            if index > 0 {
                // Each joins through somebody who is there already.
                let seed = world.nodes[world.rng.random_range(0..index)].address;
                world.with(index, |gossip, now| gossip.join([seed], now));
            }
            world.run_for(Duration::from_millis(10));
        }
        let took = world.run_until(
            "all nodes know each other",
            Duration::from_secs(30),
            World::is_settled,
        );
        println!("{count} nodes have found each other {took:.2?} after the last one started");
        world
    }

    /// Adds a host that is not running yet.
    pub fn add(&mut self) -> usize {
        let index = self.nodes.len();
        let host = Ipv4Addr::from(0x0a00_0001 + index as u32);
        let address = SocketAddr::new(IpAddr::V4(host), 7946);
        let mut secret = [0; 32];
        self.rng.fill_bytes(&mut secret);
        self.addresses.insert(address, index);
        self.nodes.push(Node {
            gossip: None,
            identity: Identity::from_seed(secret),
            address,
            boot: 0,
            interest: Interest::Every,
            disk: BTreeMap::new(),
            events: Vec::new(),
            timer: None,
        });
        index
    }

    pub fn start(&mut self, index: usize) {
        self.start_with(index, CLUSTER, SECRET);
    }

    /// Starts a node from what is on its disk.
    pub fn start_with(&mut self, index: usize, cluster: ClusterId, secret: [u8; 32]) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let now = self.now;
        let node = &mut self.nodes[index];
        node.boot += 1;
        let mut config = Config::new(cluster, KeyRing::new(GossipKey(secret)), node.address);
        // Fewer than there can be, so that a test gets there.
        config.max_records_per_author = 4_096;
        config.network_kinds = vec![NETWORK_KIND];
        let mut gossip = Gossip::new(config, node.identity.clone(), node.boot, seed, now);
        gossip.load(node.disk.values().cloned());
        gossip.set_interest(node.interest.clone(), now);
        gossip.join([], now);
        node.gossip = Some(gossip);
        self.drain(index);
    }

    pub fn kill(&mut self, index: usize) {
        self.nodes[index].gossip = None;
        self.nodes[index].timer = None;
    }

    pub fn id(&self, index: usize) -> NodeId {
        self.nodes[index].identity.node()
    }

    pub fn gossip(&self, index: usize) -> &Gossip {
        self.nodes[index].gossip.as_ref().expect("the node runs")
    }

    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].gossip.is_some())
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Does something with a running node, then carries out what it wants done.
    pub fn with<T>(&mut self, index: usize, act: impl FnOnce(&mut Gossip, Instant) -> T) -> Option<T> {
        let now = self.now;
        let result = act(self.nodes[index].gossip.as_mut()?, now);
        self.drain(index);
        Some(result)
    }

    pub fn put(&mut self, index: usize, name: &str, value: &str) {
        self.put_key(index, key(name), value);
    }

    pub fn put_key(&mut self, index: usize, key: Key, value: &str) {
        let now = self.now;
        let node = &mut self.nodes[index];
        let gossip = node.gossip.as_mut().expect("the node runs");
        let record = gossip
            .put(key, Bytes::copy_from_slice(value.as_bytes()), now)
            .expect("within bounds");
        // On disk first, then on the wire.
        node.disk.insert((record.author, record.key.clone()), record);
        self.drain(index);
    }

    pub fn remove(&mut self, index: usize, name: &str) {
        self.remove_key(index, &key(name));
    }

    pub fn remove_key(&mut self, index: usize, key: &Key) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if let Some(record) = node.gossip.as_mut().expect("the node runs").remove(key, now) {
            node.disk.insert((record.author, record.key.clone()), record);
        }
        self.drain(index);
    }

    /// Has a node want to know of these networks from now on, and after each start.
    pub fn want(&mut self, index: usize, networks: impl IntoIterator<Item = u8>) {
        let networks = networks.into_iter().map(|network| NetworkId([network; 16]));
        let interest = Interest::These(networks.collect());
        self.nodes[index].interest = interest.clone();
        self.with(index, |gossip, now| gossip.set_interest(interest, now));
    }

    pub fn value(&self, at: usize, author: usize, name: &str) -> Option<String> {
        self.value_of(at, author, &key(name))
    }

    pub fn value_of(&self, at: usize, author: usize, key: &Key) -> Option<String> {
        let record = self.gossip(at).get(&self.id(author), key)?;
        Some(String::from_utf8_lossy(record.value.as_deref()?).into_owned())
    }

    /// Whether every running node believes every other alive and all hold the same.
    pub fn is_settled(&self) -> bool {
        let running: Vec<usize> = self.running().collect();
        self.agree()
            && running
                .iter()
                .all(|index| self.alive_at(*index) + 1 == running.len())
    }

    /// Whether all running nodes hold the same records and believe the same.
    pub fn agree(&self) -> bool {
        let mut sums = self.running().map(|index| self.gossip(index).fingerprint());
        sums.next().is_none_or(|first| sums.all(|sum| sum == first))
    }

    fn alive_at(&self, index: usize) -> usize {
        self.gossip(index)
            .members()
            .filter(|member| member.state == MemberState::Alive)
            .count()
    }

    pub fn state_at(&self, at: usize, of: usize) -> Option<MemberState> {
        let id = self.id(of);
        self.gossip(at)
            .members()
            .find(|member| member.node == id)
            .map(|member| member.state)
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `condition` holds, and says how long that took; fails the test if it takes longer than `limit`.
    pub fn run_until(&mut self, what: &str, limit: Duration, condition: impl Fn(&Self) -> bool) -> Duration {
        let begin = self.now;
        loop {
            if condition(self) {
                return self.now - begin;
            }
            assert!(
                self.now - begin < limit,
                "not within {limit:?}: {what}\n{}",
                self.describe()
            );
            self.run_for(Duration::from_millis(20));
        }
    }

    /// A few lines on where the nodes differ, for a failed test.
    fn describe(&self) -> String {
        let mut sums: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for index in self.running() {
            sums.entry(self.gossip(index).fingerprint())
                .or_default()
                .push(index);
        }
        let mut text = format!("at {:?}, {} packets\n", self.elapsed(), self.packets);
        for (sum, nodes) in sums.iter().take(5) {
            let first = nodes[0];
            let records = self.gossip(first).records().count();
            text += &format!(
                "{sum:016x}: {} nodes, the first is {first} with {records} records, {} alive, {:?}\n",
                nodes.len(),
                self.alive_at(first),
                self.gossip(first).stats()
            );
        }
        // What the first two views that differ differ in.
        let mut views = sums.values().map(|nodes| (nodes[0], self.view(nodes[0])));
        if let (Some((a, ours)), Some((b, theirs))) = (views.next(), views.next()) {
            for difference in ours.symmetric_difference(&theirs).take(10) {
                let holder = if ours.contains(difference) { a } else { b };
                text += &format!("only {holder} believes {difference}\n");
            }
        }
        text
    }

    /// Everything a node holds and believes, line by line.
    fn view(&self, index: usize) -> BTreeSet<String> {
        let gossip = self.gossip(index);
        let members = gossip.members().map(|member| {
            format!(
                "{} is {:?} in generation {:#x}",
                member.node.short(),
                member.state,
                member.incarnation
            )
        });
        gossip
            .records()
            .map(|record| format!("{record:?}"))
            .chain(members)
            .collect()
    }

    /// Puts a packet on the wire as if `from` had sent it.
    pub fn inject(&mut self, to: usize, from: SocketAddr, bytes: Bytes) {
        let due = self.now + Duration::from_millis(1);
        self.schedule(due, Happening::Packet { to, from, bytes });
    }

    fn schedule(&mut self, due: Instant, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((due, self.sequence)));
        self.happenings.insert(self.sequence, happening);
    }

    fn step(&mut self, end: Instant) -> bool {
        let Some(&Reverse((due, sequence))) = self.queue.peek() else {
            return false;
        };
        if due > end {
            return false;
        }
        self.queue.pop();
        let happening = self.happenings.remove(&sequence).expect("each is queued once");
        self.now = self.now.max(due);
        let now = self.now;
        let at = happening.at();
        if let Some(until) = self.net.still.get(&at).filter(|until| self.elapsed() < **until) {
            let later = self.start + *until;
            if matches!(happening, Happening::Timer { .. }) && self.nodes[at].timer == Some(due) {
                self.nodes[at].timer = Some(later);
            }
            self.schedule(later, happening);
            return true;
        }
        match happening {
            Happening::Packet { to, from, bytes } => {
                (now - self.start, to, from, &bytes).hash(&mut self.trace);
                self.with(to, |gossip, now| gossip.handle_packet(from, &bytes, now));
            }
            Happening::Request { to, from, frame } => {
                let answer = self.with(to, |gossip, now| gossip.handle_stream_request(&frame, now));
                if let Some(Some(frame)) = answer
                    && self.reaches(to, from)
                {
                    (now - self.start, from, &frame).hash(&mut self.trace);
                    let delay = self.delay() * 2;
                    self.schedule(now + delay, Happening::Response { to: from, frame });
                }
            }
            Happening::Response { to, frame } => {
                self.with(to, |gossip, now| gossip.handle_stream_response(&frame, now));
            }
            Happening::Timer { node } => {
                if self.nodes[node].timer == Some(due) {
                    self.nodes[node].timer = None;
                    self.with(node, |gossip, now| gossip.handle_timeout(now));
                }
            }
        }
        true
    }

    /// Does what a node wants done, as the agent does it: in order, the disk before the wire.
    fn drain(&mut self, index: usize) {
        let at = self.now - self.start;
        while let Some(output) = self.nodes[index].gossip.as_mut().and_then(Gossip::poll_output) {
            match output {
                Output::Packet { to, bytes } => self.transmit(index, to, bytes),
                Output::Stream { to, request } => {
                    if let Some(to) = self
                        .addresses
                        .get(&to)
                        .copied()
                        .filter(|to| self.reaches(index, *to))
                    {
                        let due = self.now + self.delay() * 2;
                        self.schedule(
                            due,
                            Happening::Request {
                                to,
                                from: index,
                                frame: request,
                            },
                        );
                    }
                }
                Output::Event(event) => {
                    let node = &mut self.nodes[index];
                    match &event {
                        Event::Record { record, .. } | Event::OwnRecordNewer(record) => {
                            node.disk
                                .insert((record.author, record.key.clone()), record.clone());
                        }
                        Event::Dropped { author, key } => {
                            node.disk.remove(&(*author, key.clone()));
                        }
                        _ => {}
                    }
                    if self.keep_events {
                        node.events.push((at, event));
                    }
                }
            }
        }
        let next = self.nodes[index].gossip.as_ref().and_then(Gossip::poll_timeout);
        if let Some(next) = next.filter(|next| self.nodes[index].timer != Some(*next)) {
            let due = next.max(self.now);
            self.nodes[index].timer = Some(due);
            self.schedule(due, Happening::Timer { node: index });
        }
    }

    fn transmit(&mut self, from: usize, to: SocketAddr, bytes: Bytes) {
        assert!(bytes.len() < 1400, "a packet of {} bytes", bytes.len());
        self.packets += 1;
        let source = self.nodes[from].address;
        if let Some(wire) = &mut self.wire {
            wire.push((source, to, bytes.clone()));
        }
        let Some(&to) = self.addresses.get(&to) else {
            return;
        };
        let muted = self
            .net
            .mute
            .get(&from)
            .is_some_and(|until| self.elapsed() < *until);
        let lost = self.rng.random_bool(self.net.loss) || self.net.lost.contains(&self.packets);
        let copies = if self.rng.random_bool(self.net.duplicate) {
            2
        } else {
            1
        };
        let one_way = self.net.one_way.contains(&(from, to));
        if muted || lost || one_way || !self.reaches(from, to) {
            return;
        }
        for _ in 0..copies {
            let due = self.now + self.delay();
            self.schedule(
                due,
                Happening::Packet {
                    to,
                    from: source,
                    bytes: bytes.clone(),
                },
            );
        }
    }

    fn delay(&mut self) -> Duration {
        let most = if self.rng.random_bool(self.net.late) {
            20_000
        } else {
            1_000
        };
        Duration::from_micros(self.rng.random_range(200..most))
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.net.groups.get(&a) == self.net.groups.get(&b)
    }
}
