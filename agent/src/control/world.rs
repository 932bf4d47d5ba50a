//! Several nodes without a machine, for tests: packets arrive at once, time passes when told, kernels do as told.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;
use weft_gossip::{Config, Gossip, Identity, Output};
use weft_types::{ClusterId, EndpointId};
use weft_wireguard::Secret32;

use super::{
    ClusterFacts, Command, Control, CountOrder, HealthProbe, HealthResult, HostReport, Now, Pools, Responder,
    Ring, Settings, Traffic,
    docker::DockerCommand,
    records::{NETWORK_KINDS, SandboxSpec},
};
use crate::api::{ApiError, types::Event};
use faults::{Disk, Faults};

pub(super) mod faults;
mod users;

/// Fewer than there can be, so that tests get there.
pub(super) const MAX_AUTHORS: usize = 64;

/// What a node's kernel makes of what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kernel {
    Obeys,
    Hangs,
    Refuses(String),
}

/// What becomes of health probes.
pub(super) enum Probes {
    /// They end at once, and so.
    End(Box<dyn FnMut() -> Result<(), String>>),
    /// These have not ended.
    Hang(Vec<HealthProbe>),
}

pub(super) struct Node {
    pub(super) control: Control,
    pub(super) kernel: Kernel,
    pub(super) probes: Probes,
    /// How many there were.
    pub(super) probed: usize,
    /// Connections that its clients have open.
    pub(super) traffic: BTreeMap<EndpointId, Traffic>,
    /// Counts that a kernel that hangs was asked for.
    pub(super) uncounted: Vec<CountOrder>,
    /// Whether there is a dockerd whose firewall lets out what networks send.
    pub(super) docker_lets_out: bool,
    /// Nothing reaches it and it says nothing.
    pub(super) is_cut_off: bool,
    /// Its agent does not run.
    pub(super) is_off: bool,
    pub(super) disk: Disk,
    address: SocketAddr,
    /// A host state that the kernel has not taken yet.
    pending: Option<HostReport>,
}

pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    /// The moment that the nodes live in.
    pub(super) now: Now,
    packets: VecDeque<(SocketAddr, SocketAddr, Bytes)>,
    /// So many packets to others are lost from now on.
    pub(super) losses: usize,
    pub(super) faults: Faults,
    /// Whether hosts are there even if their agents are not.
    pub(super) hosts_answer: bool,
    /// How many answers were given.
    answered: usize,
    /// What happened, and which node said so.
    pub(super) events: Vec<(usize, Event)>,
}

/// The address of the node with this number.
pub(super) fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 7946))
}

pub(super) fn facts() -> ClusterFacts {
    let cluster = ClusterId([7; 16]);
    ClusterFacts {
        id: cluster,
        founder: Identity::from_seed([1; 32]).node(),
        keys: Vec::new(),
        pools: Pools::of_cluster(cluster),
        secret: Secret32::new([8; 32]),
    }
}

pub(super) fn first_ring() -> Ring {
    Ring::first(Secret32::new([9; 32]), 0)
}

/// The sandbox of this name on a node.
pub(super) fn sandbox(node: usize, name: &str) -> SandboxSpec {
    SandboxSpec {
        target: name.to_owned(),
        path: format!("/run/netns/{name}"),
        device: 1,
        inode: name
            .bytes()
            .fold(node as u64, |all, byte| all * 31 + u64::from(byte)),
    }
}

impl Node {
    /// One that was never in the cluster before.
    pub(super) fn new(n: u8, facts: ClusterFacts, ring: Ring, now: Now) -> Self {
        let disk = Disk::new(n, ring);
        Self {
            control: Self::start(n, facts, &disk, now),
            disk,
            kernel: Kernel::Obeys,
            probes: Probes::Hang(Vec::new()),
            probed: 0,
            traffic: BTreeMap::new(),
            uncounted: Vec::new(),
            docker_lets_out: false,
            is_cut_off: false,
            is_off: false,
            address: address(n),
            pending: None,
        }
    }

    /// Starts from what is on the disk.
    fn start(n: u8, facts: ClusterFacts, disk: &Disk, now: Now) -> Control {
        let mut config = Config::new(facts.id, disk.ring.to_seal(), address(n));
        config.max_authors = MAX_AUTHORS;
        config.network_kinds = NETWORK_KINDS.map(|kind| kind as u8).to_vec();
        let mut seed = [n; 32];
        seed[31] = disk.boot as u8;
        let gossip = Gossip::new(config, Identity::from_seed([n; 32]), disk.boot, seed, now.instant);
        let settings = Settings {
            node_name: format!("h{n}"),
            gossip: address(n),
            vtep: address(n).ip(),
            underlay_mtu: 1500,
            vxlan_port: 4789,
            domain: "weft.internal".to_owned(),
            health_commands: false,
            wireguard_port: 51820,
            encrypter: crate::control::Encrypter {
                kind: weft_overlay::plan::Encryption::Process,
                reason: "it was asked for".to_owned(),
            },
            encrypt: false,
            rotate_keys: None,
            rotate_gossip_key: None,
            shown_networks: Vec::new(),
            run_dir: "/run/weft".into(),
            host: SandboxSpec::of_host(4, u64::from(n)),
        };
        Control::new(facts, settings, gossip, disk.stored(), disk.boot == 1, seed, now)
    }
}

/// An answer that may have come.
pub(super) struct Answer<T>(oneshot::Receiver<Result<T, ApiError>>);

impl<T> Answer<T> {
    pub(super) fn get(&mut self) -> Option<T> {
        self.0
            .try_recv()
            .ok()
            .map(|result| result.expect("it is carried out"))
    }
}

impl World {
    /// A cluster of nodes called `h1`, `h2`, … that all know each other.
    pub(super) fn of(count: u8) -> Self {
        let now = Now {
            instant: Instant::now(),
            unix_millis: 0,
        };
        let nodes = (1..=count).map(|n| Node::new(n, facts(), first_ring(), now));
        let mut world = Self {
            nodes: nodes.collect(),
            now,
            packets: VecDeque::new(),
            losses: 0,
            faults: Faults::default(),
            hosts_answer: false,
            answered: 0,
            events: Vec::new(),
        };
        for node in 1..usize::from(count) {
            let (responder, joined) = Responder::new();
            world.nodes[node].control.join(vec![address(1)], responder, now);
            let mut joined = Answer(joined);
            world.until(Duration::from_secs(10), |_| joined.get().is_some());
        }
        world.pass(Duration::from_secs(3));
        world
    }

    pub(super) fn ask<T>(&mut self, node: usize, command: impl FnOnce(Responder<T>) -> Command) -> Answer<T> {
        let (responder, answer) = Responder::new();
        self.nodes[node]
            .control
            .handle_command(command(responder), self.now);
        self.carry_out();
        Answer(answer)
    }

    /// Asks, and lets time pass until the answer is there.
    pub(super) fn done<T>(&mut self, node: usize, command: impl FnOnce(Responder<T>) -> Command) -> T {
        self.tried(node, command).expect("it is carried out")
    }

    /// The same where it may fail.
    pub(super) fn tried<T>(
        &mut self,
        node: usize,
        command: impl FnOnce(Responder<T>) -> Command,
    ) -> Result<T, ApiError> {
        let Answer(mut answer) = self.ask(node, command);
        let mut result = None;
        self.until(Duration::from_secs(60), |_| {
            result = answer.try_recv().ok();
            result.is_some()
        });
        result.expect("until it was there")
    }

    /// Asks what Docker asks, and lets time pass until it is answered.
    pub(super) fn docker(&mut self, node: usize, command: DockerCommand) {
        let answered = self.answered;
        self.nodes[node].control.handle_docker(command, self.now);
        self.carry_out();
        self.until(Duration::from_secs(60), |world| world.answered > answered);
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now.instant + time;
        while self.step(end) {}
    }

    /// Lets time pass until something is so, and says how much passed.
    pub(super) fn until(&mut self, at_most: Duration, mut is_so: impl FnMut(&mut Self) -> bool) -> Duration {
        let begin = self.now.instant;
        self.carry_out();
        while !is_so(self) {
            assert!(self.step(begin + at_most), "it is not so after {at_most:?}");
        }
        self.now.instant - begin
    }

    /// Goes to the next moment at which something happens; false if that is `end`.
    fn step(&mut self, end: Instant) -> bool {
        self.carry_out();
        let due = self
            .nodes
            .iter()
            .filter(|node| !node.is_off)
            .filter_map(|node| node.control.poll_timeout())
            .min();
        let next = due.unwrap_or(end).max(self.now.instant);
        let is_end = next >= end;
        let next = next.min(end);
        self.now.unix_millis += (next - self.now.instant).as_millis() as u64;
        self.now.instant = next;
        for node in self.nodes.iter_mut().filter(|node| !node.is_off) {
            if node.control.poll_timeout().is_some_and(|at| at <= next) {
                node.control.handle_timeout(self.now);
            }
        }
        self.carry_out();
        !is_end
    }

    /// Until nothing follows any more at this moment.
    fn carry_out(&mut self) {
        loop {
            let mut is_quiet = true;
            for index in 0..self.nodes.len() {
                is_quiet &= self.carry_out_of(index);
            }
            while let Some((from, to, packet)) = self.packets.pop_front() {
                is_quiet = false;
                if let Some(node) = self.reachable(from, to) {
                    let now = self.now;
                    self.nodes[node].control.handle_packet(from, &packet, now);
                }
            }
            if is_quiet {
                return;
            }
        }
    }

    /// A probe that hung has ended.
    pub(super) fn end(&mut self, node: usize, probe: &HealthProbe, outcome: Result<(), String>) {
        let result = result_of(probe, outcome);
        self.nodes[node].control.handle_health(result, self.now);
        self.carry_out();
    }

    fn reachable(&self, from: SocketAddr, to: SocketAddr) -> Option<usize> {
        let is_there = |node: &Node| node.address == to && !node.is_cut_off && !node.is_off;
        let to = self.nodes.iter().position(is_there)?;
        let from = self.nodes.iter().position(|node| node.address == from);
        from.is_none_or(|from| self.faults.is_path(from, to))
            .then_some(to)
    }

    fn carry_out_of(&mut self, index: usize) -> bool {
        let node = &mut self.nodes[index];
        if node.is_off {
            return true;
        }
        let turn = node.control.take_turn();
        if self.faults.crashes(index, &turn, &mut node.disk) {
            node.is_off = true;
            return true;
        }
        let mut is_quiet = !turn.host_changed && turn.send.is_empty() && turn.replies.is_empty();
        for probe in turn.probe {
            node.control.handle_probe(probe.node, self.hosts_answer, self.now);
            is_quiet = false;
        }
        self.events
            .extend(turn.events.into_iter().map(|event| (index, event)));
        node.uncounted.extend(turn.counts);
        let counts = match node.kernel {
            Kernel::Hangs => Vec::new(),
            _ => std::mem::take(&mut node.uncounted),
        };
        for order in counts {
            node.control.handle_counted(order, Some(&node.traffic), self.now);
            is_quiet = false;
        }
        if turn.host_changed {
            let state = node.control.host_state(self.now);
            node.control.assert_derived(&state);
            let locals = state
                .overlay
                .networks
                .values()
                .flat_map(|network| network.endpoints.keys());
            node.pending = Some(HostReport {
                generation: state.generation,
                attached: locals.map(|id| (*id, "eth0".to_owned())).collect(),
                docker_lets_out: node.docker_lets_out,
                ..HostReport::default()
            });
        }
        if node.kernel != Kernel::Hangs
            && let Some(mut report) = node.pending.take()
        {
            if let Kernel::Refuses(reason) = &node.kernel {
                report.unbalanced = Some(reason.clone());
            }
            node.control.handle_report(report, self.now);
            is_quiet = false;
        }
        for probe in turn.health_probes {
            is_quiet = false;
            node.probed += 1;
            match &mut node.probes {
                Probes::Hang(hanging) => hanging.push(probe),
                Probes::End(how) => {
                    let result = result_of(&probe, how());
                    node.control.handle_health(result, self.now);
                }
            }
        }
        let (from, is_cut_off) = (node.address, node.is_cut_off);
        self.answered += turn.replies.len();
        turn.replies.into_iter().for_each(|reply| reply());
        for output in turn.send.into_iter().filter(|_| !is_cut_off) {
            match output {
                Output::Packet { .. } if self.losses > 0 => self.losses -= 1,
                Output::Packet { to, bytes } => {
                    self.faults.note(from, to, &bytes);
                    if !self.faults.loses() {
                        self.packets.push_back((from, to, bytes));
                    }
                }
                Output::Stream { to, request } => {
                    let Some(to) = self.reachable(from, to) else {
                        continue;
                    };
                    let answer = self.nodes[to].control.handle_stream_request(&request, self.now);
                    if let Some(answer) = answer {
                        self.nodes[index]
                            .control
                            .handle_stream_response(&answer, self.now);
                    }
                }
                Output::Event(_) => unreachable!("the control handles events itself"),
            }
        }
        is_quiet
    }
}

fn result_of(probe: &HealthProbe, outcome: Result<(), String>) -> HealthResult {
    HealthResult {
        endpoint: probe.endpoint,
        asked_by: probe.asked_by,
        outcome,
    }
}
