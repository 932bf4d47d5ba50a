//! A node of a large cluster, for tests and measurements of what one change costs it.
//!
//! Nobody says anything but the records: the other nodes are names under which they are said.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

use ipnet::{IpNet, Ipv4Net};
use weft_gossip::Key;
use weft_types::{EndpointId, Mac, NetworkId, NodeId, ServiceId, Vni};

use super::{
    Control, HostState, Now,
    catalogue::Presence,
    finding::{EndpointHealth, Finding, HealthState},
    records::{
        Attachment, CLUSTER, EndpointSpec, Kind, NetworkSpec, NodeFact, Register, ServiceSpec, SubnetSpec,
        TunnelFact, encode, endpoint_key, network_key, service_key,
    },
    world::{Node, facts, first_ring, sandbox},
};
use crate::api::types::{EndpointMode, Protocol, Scheduler, ServicePort, Tuning};

mod costs;
mod measured;

/// So many others share the backends.
const OTHERS: u16 = 50;

pub(super) struct Large {
    pub(super) control: Control,
    pub(super) now: Now,
    lamport: u64,
}

/// One of the others.
pub(super) fn other(n: usize) -> NodeId {
    let mut id = [0x80; 32];
    id[1..3].copy_from_slice(&(n as u16 % OTHERS).to_be_bytes());
    NodeId(id)
}

pub(super) fn network_id(n: usize) -> NetworkId {
    let mut id = [0x10; 16];
    id[..4].copy_from_slice(&(n as u32 + 1).to_be_bytes());
    NetworkId(id)
}

pub(super) fn service_id(network: usize, n: usize) -> ServiceId {
    let mut id = [0x20; 16];
    id[..4].copy_from_slice(&(n as u32).to_be_bytes());
    id[4..8].copy_from_slice(&(network as u32).to_be_bytes());
    ServiceId(id)
}

pub(super) fn endpoint_id(network: usize, n: usize) -> EndpointId {
    let mut id = [0x30; 16];
    // In the whole range, as random ones are: what is kept is cut by their first bits.
    id[..4].copy_from_slice(&(n as u32).wrapping_mul(0x9e37_79b1).to_be_bytes());
    id[4..8].copy_from_slice(&(network as u32).to_be_bytes());
    EndpointId(id)
}

fn subnet(network: usize) -> Ipv4Net {
    // One network may have many more endpoints than the others.
    match network {
        0 => Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 12),
        n => Ipv4Net::new(Ipv4Addr::from(0x0a10_0000 + (n as u32) * 1024), 22),
    }
    .expect("a prefix length")
}

fn address(network: usize, n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet(network).network()) + n as u32)
}

impl Large {
    /// A node that has one endpoint on each of the first `here` of `networks` networks, which have so many services with so many
    /// backends each.
    pub(super) fn new(networks: usize, here: usize, services: usize, backends: usize) -> Self {
        let now = Now {
            instant: Instant::now(),
            unix_millis: 0,
        };
        let Node { control, .. } = Node::new(1, facts(), first_ring(), now);
        let mut large = Self {
            control,
            now,
            lamport: 1,
        };
        for n in 0..usize::from(OTHERS) {
            large.add_node(n);
        }
        for network in 0..networks {
            large.add_network(network);
            for service in 0..services {
                large.set_service(network, service, true);
                for backend in 0..backends {
                    let n = service * backends + backend;
                    large.set_endpoint(network, n, Some(service), HealthState::Healthy);
                }
            }
            if network < here {
                large.add_client(network, services, backends);
            }
        }
        large.state();
        large
    }

    /// Takes a record in, and does what follows.
    pub(super) fn say(&mut self, author: NodeId, key: &Key, value: Option<&[u8]>) {
        self.control.apply(author, key, value, self.now);
        self.control.settle(self.now);
        self.control.take_turn();
    }

    pub(super) fn state(&mut self) -> HostState {
        self.control.host_state(self.now)
    }

    fn add_node(&mut self, n: usize) {
        let id = other(n);
        let vtep = Ipv4Addr::new(198, 18, 0, n as u8 + 1);
        let fact = NodeFact {
            name: format!("o{n}"),
            gossip: (vtep, 7946).into(),
            vtep: vtep.into(),
            underlay_mtu: 1500,
            version: String::new(),
            tunnel: TunnelFact {
                key: id.0,
                address: Ipv4Addr::new(100, 64, 0, n as u8 + 1),
                port: 51820,
                epoch: 0,
                next: None,
            },
        };
        let key = Kind::Node.key(CLUSTER, Vec::new());
        self.say(id, &key, Some(&encode(&fact)));
        self.control.catalogue.set_presence(id, Presence::Alive, 0);
    }

    fn add_network(&mut self, network: usize) {
        let net = subnet(network);
        let value = NetworkSpec {
            name: format!("net{network}"),
            created: 1,
            created_millis: 0,
            creator: other(0),
            vni: Vni::try_from(0x10_0000 + network as u32).expect("24 bits"),
            mtu: 1450,
            subnets: vec![SubnetSpec {
                net: net.into(),
                gateway: address(network, 1).into(),
                range: None,
                aux: Vec::new(),
                pooled: None,
            }],
            internal: false,
            labels: Vec::new(),
            options: Vec::new(),
            encrypted: false,
        };
        let register = self.register(value, false);
        self.say(
            other(0),
            &network_key(network_id(network)),
            Some(&encode(&register)),
        );
    }

    fn register<T>(&mut self, value: T, removed: bool) -> Register<T> {
        self.lamport += 1;
        Register {
            lamport: self.lamport,
            removed,
            value,
        }
    }

    pub(super) fn set_service(&mut self, network: usize, n: usize, is_there: bool) {
        let port = ServicePort {
            name: None,
            port: 80,
            target: 8080,
            protocol: Protocol::Tcp,
            count: 1,
        };
        let value = ServiceSpec {
            network: network_id(network),
            name: format!("service{n}"),
            created: 1,
            creator: other(n),
            vips: vec![address(network, 10 + n).into()],
            vips_from: other(n),
            scheduler: Scheduler::Rr,
            mode: EndpointMode::Vip,
            ports: vec![port],
            health: None,
            publish: Vec::new(),
            tuning: Tuning::default(),
        };
        let register = self.register(value, !is_there);
        let key = service_key(network_id(network), service_id(network, n));
        self.say(other(n), &key, Some(&encode(&register)));
    }

    pub(super) fn set_endpoint(
        &mut self,
        network: usize,
        n: usize,
        service: Option<usize>,
        state: HealthState,
    ) {
        let spec = self.endpoint(network, n, service, state);
        let key = endpoint_key(network_id(network), endpoint_id(network, n));
        self.say(other(n), &key, Some(&encode(&spec)));
    }

    pub(super) fn remove_endpoint(&mut self, network: usize, n: usize) {
        let key = endpoint_key(network_id(network), endpoint_id(network, n));
        self.say(other(n), &key, None);
    }

    fn endpoint(&self, network: usize, n: usize, service: Option<usize>, state: HealthState) -> EndpointSpec {
        // Services have the first ten thousand addresses.
        let address = address(network, if network == 0 { 11_000 } else { 100 } + n);
        let mut mac = [2, 0, 0, 0, 0, 0];
        mac[2..].copy_from_slice(&address.octets());
        EndpointSpec {
            name: format!("e{n}"),
            aliases: Vec::new(),
            mac: Mac(mac),
            addresses: vec![IpNet::new(address.into(), subnet(network).prefix_len()).expect("a prefix")],
            service: service.map(|service| format!("service{service}")),
            weight: 1,
            gives_default_route: false,
            attachment: Attachment::Sandbox(sandbox(2, "x")),
            health: EndpointHealth {
                check: Some(Finding::new(state, "", 0)),
                engine: None,
            },
            leaving: false,
        }
    }

    /// An endpoint of this node, which uses the services.
    fn add_client(&mut self, network: usize, services: usize, backends: usize) {
        let n = services * backends + 1;
        let mut spec = self.endpoint(network, n, None, HealthState::Healthy);
        spec.attachment = Attachment::Sandbox(sandbox(0, &format!("client{network}")));
        let key = endpoint_key(network_id(network), endpoint_id(network, n));
        let me = self.control.me;
        self.say(me, &key, Some(&encode(&spec)));
    }
}
