//! A node that a dockerd is plugged into, for tests: what it holds for Docker adds up.

use std::time::Duration;

use weft_ipam::Block;
use weft_types::EndpointId;

use super::{
    super::{Command, Control, HealthState, networks::subnets_space, records::SpaceKey, world::World},
    DockerCommand, LEASE,
};

pub(crate) struct Plugged(World);

impl Plugged {
    /// The only node of its cluster.
    pub(crate) fn new() -> Self {
        Self(World::of(1))
    }

    pub(crate) fn handle(&mut self, command: DockerCommand) {
        self.0.docker(0, command);
    }

    /// dockerd's firewall lets out what networks send.
    pub(crate) fn let_out(&mut self) {
        self.0.nodes[0].docker_lets_out = true;
    }

    /// So long that what was asked for and not used is taken back.
    pub(crate) fn forget(&mut self) {
        self.0.pass(LEASE + Duration::from_secs(10));
    }

    fn control(&self) -> &Control {
        &self.0.nodes[0].control
    }

    /// What the node has of Docker's: networks, endpoints, addresses and subnets on their way to one.
    pub(crate) fn held(&self) -> [usize; 4] {
        let control = self.control();
        [
            control.catalogue.networks().count(),
            control.local_endpoints().count(),
            control.docker.leases.len(),
            control.docker.set_aside.len(),
        ]
    }

    pub(crate) fn endpoints(&self) -> Vec<EndpointId> {
        self.control().docker_endpoints()
    }

    /// What it knows of its only endpoint: its names and aliases, its service, and what Docker's check of it says.
    pub(crate) fn described(&self) -> (Vec<String>, Option<String>, Option<HealthState>) {
        let (_, _, endpoint) = self.control().local_endpoints().next().expect("it has one");
        let names = [&endpoint.spec.name].into_iter().chain(&endpoint.spec.aliases);
        let health = endpoint.spec.health.engine.as_ref();
        (
            names.cloned().collect(),
            endpoint.spec.service.clone(),
            health.map(|finding| finding.state),
        )
    }

    /// The cluster keeps a network that Docker removed while something was on it.
    pub(crate) fn remove_networks(&mut self) {
        let all: Vec<_> = self.control().catalogue.networks().map(|(id, _)| id).collect();
        for network in all {
            self.0
                .done(0, |to| Command::NetworkRemove(network.to_string(), to));
        }
    }

    /// Fails if an endpoint is half made, or a number is in use by nothing or by two.
    pub(crate) fn check(&self) {
        let control = self.control();
        let mut in_use = Vec::new();
        for (network, id, endpoint) in control.local_endpoints() {
            let spec = control.catalogue.network(network);
            let spec = spec.unwrap_or_else(|| panic!("{id} is on a network that is gone"));
            assert!(!endpoint.spec.addresses.is_empty(), "{id} has no address");
            for net in &endpoint.spec.addresses {
                let subnet = spec.subnets.iter().find(|subnet| subnet.net == net.trunc());
                let subnet = subnet.unwrap_or_else(|| panic!("{net} of {id} is in no subnet"));
                assert_ne!(subnet.gateway, net.addr(), "{id} has the gateway's address");
                in_use.push((network, net.addr()));
            }
        }
        in_use.extend(control.docker.leases.keys());
        let count = in_use.len();
        in_use.sort();
        in_use.dedup();
        assert_eq!(in_use.len(), count, "an address is in use twice");
        let mut units = [0, 0];
        let of_family = |net: &ipnet::IpNet| usize::from(net.addr().is_ipv6());
        for (id, spec) in control.catalogue.networks() {
            for (index, subnet) in spec.subnets.iter().enumerate() {
                let used = in_use.iter();
                let used = used.filter(|(of, address)| *of == id && subnet.net.contains(address));
                let space = SpaceKey::Addresses(id, index as u8);
                assert_eq!(
                    control.spaces.in_use(space),
                    used.count() as u128,
                    "addresses of {} in use",
                    subnet.net
                );
                units[of_family(&subnet.net)] += subnet.pooled.as_ref().map_or(0, Block::count);
            }
        }
        for (net, set_aside) in &control.docker.set_aside {
            units[of_family(net)] += set_aside.units.as_ref().map_or(0, Block::count);
        }
        for (net, units) in [("10.0.0.0/8", units[0]), ("fd00::/8", units[1])] {
            let space = subnets_space(net.parse().expect("a prefix"));
            assert_eq!(control.spaces.in_use(space), units, "subnets like {net} in use");
        }
    }
}
