//! What is kept is what would be derived from nothing, whatever happened before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use weft_lb::Attempts;
use weft_types::{EndpointId, Mac, NetworkId, NodeId, ServiceId};

use super::super::{
    Control, HostState,
    catalogue::Presence,
    finding::{EndpointHealth, Finding, HealthState},
    records::{
        Attachment, CLUSTER, DrainPhase, DrainSpec, Drainee, EndpointSpec, IngressSpec, Kind, NetworkSpec,
        Register, RemovalFact, ServiceSpec, encode, endpoint_key, ingress_key, network_key, service_key,
    },
    scale::{Large, endpoint_id, network_id, other, service_id},
    world::sandbox,
};
use crate::api::types::{EndpointMode, Protocol, PublishMode, PublishedPort, Scheduler, Tuning};

impl Control {
    /// Compares what the host is told with what is derived from nothing. The tests' world does so for every state of every node.
    pub(in crate::control) fn assert_derived(&self, state: &HostState) {
        let new = self.derived_from_nothing();
        assert_eq!(
            state.sandboxes,
            self.sandbox_tables(&new),
            "the services of sandboxes"
        );
        assert_eq!(state.overlay, self.overlay(&new.ways), "the overlay");
        let (is, should_be) = (state.zone.lines(), new.zone.lines());
        let gone: Vec<_> = should_be.difference(&is).collect();
        let stale: Vec<_> = is.difference(&should_be).collect();
        assert!(
            gone.is_empty() && stale.is_empty(),
            "names: {gone:#?} are not there, {stale:#?} are"
        );
        self.catalogue.assert_indexed();
        let ejecting = self.catalogue.all_services();
        let ejecting = ejecting.filter(|(_, spec)| spec.tuning.eject().is_some());
        let ejecting: BTreeSet<ServiceId> = ejecting.map(|(id, _)| id).collect();
        assert_eq!(state.watched, ejecting);
    }
}

const NETWORKS: usize = 3;

/// Whatever can happen, by chance, to a few things that get into each other's way.
struct History {
    large: Large,
    rng: ChaCha8Rng,
    lamport: u64,
    removed: BTreeSet<NodeId>,
    /// How often somebody claims what is another's.
    quarrels: f64,
    /// What the networks were at first.
    specs: Vec<NetworkSpec>,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut large = Large::new(NETWORKS, 2, 2, 2);
        large.control.settings.shown_networks = vec!["NET2".to_owned()];
        large.control.host_changed();
        let specs = large.control.catalogue.networks();
        let specs = specs.map(|(_, spec)| spec.clone()).collect();
        Self {
            large,
            rng: ChaCha8Rng::seed_from_u64(seed),
            lamport: 1000,
            removed: BTreeSet::new(),
            quarrels: [0.0, 0.05, 0.0, 0.3][seed as usize % 4],
            specs,
        }
    }

    fn coin(&mut self) -> bool {
        self.rng.random()
    }

    fn seldom(&mut self) -> bool {
        self.rng.random_bool(0.1)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.rng).expect("there is something")
    }

    fn network(&mut self) -> NetworkId {
        network_id(self.rng.random_range(0..NETWORKS))
    }

    /// A few of the others, and this node.
    fn node(&mut self) -> NodeId {
        match self.rng.random_range(0..5) {
            0 => self.large.control.me,
            n => other(n),
        }
    }

    fn name(&mut self) -> String {
        self.one(&["service0", "service1", "Service1", "web"]).to_owned()
    }

    /// What is its own, or by chance another's.
    fn number(&mut self, own: u8) -> u8 {
        match self.rng.random_bool(self.quarrels) {
            true => self.rng.random_range(0..60),
            false => own,
        }
    }

    fn address(&mut self, network: NetworkId, own: u8) -> IpAddr {
        let n = self.number(own);
        let spec = self.large.control.catalogue.network(network);
        match spec.map(|spec| spec.subnets[0].net.addr()) {
            Some(IpAddr::V4(first)) => Ipv4Addr::from(u32::from(first) + 500 + u32::from(n)).into(),
            _ => IpAddr::from([10, 255, 0, n]),
        }
    }

    fn mac(&mut self, own: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, self.number(own)])
    }

    fn register<T: serde::Serialize>(&mut self, value: T, removed: bool) -> Vec<u8> {
        self.lamport += self.rng.random_range(0..2);
        encode(&Register {
            lamport: self.lamport,
            removed,
            value,
        })
        .to_vec()
    }

    fn say_endpoint(&mut self) {
        let (network, author) = (self.network(), self.node());
        let n = self.rng.random_range(1..12);
        let id = EndpointId([n; 16]);
        let key = endpoint_key(network, id);
        if self.rng.random_bool(0.2) {
            return self.large.say(author, &key, None);
        }
        let address = self.address(network, n);
        let inode = self.one(&["a", "b"]);
        let spec = EndpointSpec {
            name: self.one(&["x", "y", "web"]).to_owned(),
            aliases: if self.coin() {
                vec!["z".to_owned()]
            } else {
                Vec::new()
            },
            mac: self.mac(n),
            addresses: vec![IpNet::new(address, 22).expect("a prefix")],
            service: self.coin().then(|| self.name()),
            weight: self.one(&[0, 1, 3]),
            gives_default_route: self.coin(),
            attachment: Attachment::Sandbox(sandbox(0, inode)),
            health: EndpointHealth {
                check: Some(Finding::new(
                    self.one(&[HealthState::Healthy, HealthState::Healthy, HealthState::Unhealthy]),
                    "",
                    0,
                )),
                engine: None,
            },
            leaving: self.seldom(),
        };
        self.large.say(author, &key, Some(&encode(&spec)));
    }

    fn endpoints(&self) -> Vec<(NetworkId, EndpointId, NodeId)> {
        let all = self.large.control.catalogue.all_endpoints();
        all.map(|(network, id, endpoint)| (network, id, endpoint.node))
            .collect()
    }

    /// Something of one that is there already, and of nothing else.
    fn change_endpoint(&mut self) {
        let all = self.endpoints();
        if all.is_empty() {
            return;
        }
        let (network, id, author) = self.one(&all);
        let Some(mut spec) = self.large.control.endpoint_spec(network, id).cloned() else {
            return;
        };
        match self.rng.random_range(0..8) {
            7 => return self.large.say(author, &endpoint_key(network, id), None),
            0 => spec.service = self.coin().then(|| self.name()),
            1 => spec.leaving = !spec.leaving,
            2 => spec.weight = self.one(&[0, 1, 5]),
            3 => spec.name = self.one(&["x", "y", "v"]).to_owned(),
            4 => {
                let changed = spec.mac.0[4] ^ 1;
                spec.mac.0[4] = changed;
            }
            5 => spec.gives_default_route = !spec.gives_default_route,
            _ => {
                let state = self.one(&[
                    HealthState::Healthy,
                    HealthState::Starting,
                    HealthState::Unhealthy,
                ]);
                spec.health.check = Some(Finding::new(state, "", 0));
            }
        }
        self.large
            .say(author, &endpoint_key(network, id), Some(&encode(&spec)));
    }

    fn say_service(&mut self) {
        let (network, author) = (self.network(), self.node());
        let n = self.rng.random_range(0..4);
        let id = match n {
            0 | 1 => service_id(0, n),
            n => ServiceId([n as u8; 16]),
        };
        let port = PublishedPort {
            ip: None,
            host_port: self.one(&[80, 81]),
            port: 80,
            protocol: Protocol::Tcp,
            mode: self.one(&PublishMode::ALL),
        };
        let value = ServiceSpec {
            network,
            name: self.name(),
            created: u64::from(self.rng.random_range(1..4_u8)),
            creator: author,
            vips: if self.seldom() {
                Vec::new()
            } else {
                vec![self.address(network, 20 + n as u8)]
            },
            vips_from: if self.seldom() { self.node() } else { author },
            scheduler: self.one(&[Scheduler::Rr, Scheduler::Lc]),
            mode: self.one(&[EndpointMode::Vip, EndpointMode::Dnsrr]),
            ports: Vec::new(),
            health: None,
            publish: if self.coin() { vec![port] } else { Vec::new() },
            tuning: Tuning {
                slow_start_ms: self.coin().then_some(5_000),
                eject_failures: self.coin().then_some(2),
                eject_ms: Some(3_000),
                idle_timeout_secs: None,
            },
        };
        let removed = self.rng.random_bool(0.2);
        let bytes = self.register(value, removed);
        let is_said = !self.seldom();
        self.large
            .say(author, &service_key(network, id), is_said.then_some(&bytes[..]));
    }

    /// Something of a service that is there already, by whoever wants it so.
    fn change_service(&mut self) {
        let all = self.large.control.catalogue.all_services();
        let all: Vec<_> = all.map(|(id, spec)| (id, spec.clone())).collect();
        let Some((id, mut spec)) = all.choose(&mut self.rng).cloned() else {
            return;
        };
        match self.rng.random_range(0..4) {
            0 => spec.name = self.name(),
            1 => spec.tuning.slow_start_ms = self.coin().then_some(8_000),
            2 => spec.tuning.eject_failures = self.coin().then_some(1),
            _ => spec.scheduler = self.one(&[Scheduler::Lc, Scheduler::Wrr]),
        }
        let (author, key) = (self.node(), service_key(spec.network, id));
        self.lamport += 1;
        let bytes = self.register(spec, false);
        self.large.say(author, &key, Some(&bytes));
    }

    fn say_network(&mut self) {
        let (n, author) = (self.rng.random_range(0..NETWORKS), self.node());
        let (network, mut spec) = (network_id(n), self.specs[n].clone());
        if self.coin() {
            spec.name = self.one(&["net0", "net2", "other"]).to_owned();
        }
        let removed = self.seldom();
        let author = if self.coin() { spec.creator } else { author };
        let bytes = self.register::<NetworkSpec>(spec, removed);
        self.large.say(author, &network_key(network), Some(&bytes));
    }

    fn say_ingress(&mut self) {
        let (network, author) = (self.network(), self.node());
        let n = 30 + author.0[2] % 10;
        let address = self.address(network, n);
        let spec = IngressSpec {
            mac: self.mac(n),
            addresses: vec![IpNet::new(address, 22).expect("a prefix")],
        };
        let bytes = encode(&spec);
        let is_there = self.coin();
        self.large
            .say(author, &ingress_key(network), is_there.then_some(&bytes[..]));
    }

    fn say_drain(&mut self) {
        let author = self.node();
        let what = match self.coin() {
            true => Drainee::Node(self.node()),
            false => Drainee::Endpoint(self.network(), EndpointId([self.rng.random_range(1..12); 16])),
        };
        let value = DrainSpec {
            phase: self.one(&[DrainPhase::Draining, DrainPhase::Drained, DrainPhase::Cut]),
            by: author,
        };
        let removed = self.coin();
        let bytes = self.register(value, removed);
        self.large.say(author, &what.key(), Some(&bytes));
    }

    /// A node comes or goes, as gossip would say it.
    fn meet(&mut self) {
        let node = other(self.rng.random_range(1..5));
        let presence = self.one(&[
            Presence::Alive,
            Presence::Alive,
            Presence::Suspect,
            Presence::Down,
        ]);
        let member = weft_gossip::Member {
            node,
            state: match presence {
                Presence::Alive => weft_gossip::MemberState::Alive,
                Presence::Suspect => weft_gossip::MemberState::Suspect,
                _ => weft_gossip::MemberState::Down,
            },
            address: ([198, 18, 0, 1], 7946).into(),
            incarnation: 0,
            since: self.large.now.instant,
        };
        let now = self.large.now;
        self.large.control.on_member(&member, now);
        if self.coin() {
            let answers = self.coin();
            self.large.control.handle_probe(node, answers, now);
        }
    }

    fn remove_node(&mut self) {
        // Somebody has to be left to say something.
        if self.removed.len() < 2 && self.rng.random_bool(0.2) {
            let node = other(self.rng.random_range(1..5));
            self.removed.insert(node);
            let fact = encode(&RemovalFact { forced: true });
            self.large
                .say(other(9), &Kind::Removal.key(CLUSTER, node.0), Some(&fact));
        }
    }

    /// Clients of this host fail to connect, or do not.
    fn attempt(&mut self) {
        let counted: BTreeMap<EndpointId, Attempts> = self
            .endpoints()
            .into_iter()
            .map(|(_, id, _)| {
                let mut counted = Attempts::default();
                if self.coin() {
                    (counted.tcp, counted.failed) = (self.lamport, self.lamport);
                }
                (id, counted)
            })
            .collect();
        self.lamport += 5;
        let now = self.large.now;
        self.large.control.handle_attempts(&counted, now);
    }

    fn pass(&mut self) {
        let time = Duration::from_millis(self.rng.random_range(0..2_000));
        self.large.now.instant += time;
        let now = self.large.now;
        self.large.control.handle_timeout(now);
        self.large.control.take_turn();
    }

    fn step(&mut self) {
        match self.rng.random_range(0..24) {
            0..5 => self.say_endpoint(),
            5..9 => self.change_endpoint(),
            9..12 => self.say_service(),
            12..16 => self.change_service(),
            16 => self.say_network(),
            17 => self.say_ingress(),
            18 => self.say_drain(),
            19 => self.meet(),
            20 => self.remove_node(),
            21 => self.attempt(),
            _ => self.pass(),
        }
    }
}

#[test]
fn what_is_kept_is_what_would_be_derived_from_nothing() {
    let seeds: Vec<u64> = match std::env::var("DERIVED_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(seed) => vec![seed],
        // Some that are always the same, and some that nobody has seen.
        None => (1..=6).chain([rand::random(), rand::random()]).collect(),
    };
    let (mut in_part, is_one) = (0, seeds.len() == 1);
    for seed in seeds {
        println!("DERIVED_SEED={seed}");
        let mut history = History::new(seed);
        for _ in 0..600 {
            for _ in 0..history.rng.random_range(1..4) {
                history.step();
            }
            let touched = &history.large.control.derived.touched;
            let claims = history.large.control.catalogue.claims();
            let mut networks = touched.called.iter().map(|(network, _)| *network);
            in_part +=
                usize::from(!touched.everything && networks.any(|network| !claims.is_crowded(network)));
            let state = history.large.state();
            history.large.control.assert_derived(&state);
        }
    }
    assert!(is_one || in_part > 200, "{in_part} states were derived in part");
}

#[test]
fn who_claims_what_another_has_changes_what_that_one_has() {
    let mut large = Large::new(1, 1, 2, 2);
    let (network, me) = (network_id(0), large.control.me);
    let theirs = large.control.endpoint_spec(network, endpoint_id(0, 0)).unwrap();
    let mine = EndpointSpec {
        attachment: Attachment::Sandbox(sandbox(0, "mine")),
        ..theirs.clone()
    };
    let key = endpoint_key(network, EndpointId([1; 16]));
    let has_it = |large: &mut Large| {
        let state = large.state();
        large.control.assert_derived(&state);
        let remotes = &state.overlay.networks[&network].remotes;
        remotes.get(&endpoint_id(0, 0)).is_some()
    };
    assert!(has_it(&mut large));
    large.say(me, &key, Some(&encode(&mine)));
    assert!(!has_it(&mut large), "what is in use here is in use");
    large.say(me, &key, None);
    assert!(has_it(&mut large));
}
