//! The same overlay by hand: what the manual pages of `ip` and `bridge` lead to.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use netns_harness::Sandbox;

use crate::{cluster::Node, tools::output};

/// A bridge, a VXLAN device on it and one veth into a sandbox, on each of two hosts, with static entries.
#[derive(Debug)]
pub struct HandMade {
    pub client: Sandbox,
    pub server: Sandbox,
    pub address: IpAddr,
}

/// The MTU that agents compute for an underlay of 1,500.
const MTU: u32 = 1450;

impl HandMade {
    pub fn build(nodes: &[Node; 2]) -> Result<Self> {
        let [client, server] = &nodes;
        let client_side = Self::side(client, "hand-c", [1, 2], server.underlay)?;
        let server_side = Self::side(server, "hand-s", [2, 1], client.underlay)?;
        Ok(Self {
            client: client_side,
            server: server_side,
            address: Ipv4Addr::new(10, 98, 0, 2).into(),
        })
    }

    fn side(node: &Node, name: &str, [me, peer]: [u8; 2], remote: IpAddr) -> Result<Sandbox> {
        let sandbox = node.host.sandbox(name)?;
        let local = node.underlay;
        let mac = |number: u8| format!("02:98:00:00:00:{number:02x}");
        let (mine, theirs) = (mac(me), mac(peer));
        let lines = [
            format!("ip link add hand-br mtu {MTU} type bridge mcast_snooping 0"),
            "ip link set hand-br up".to_owned(),
            // Another port than the agent's, whose firewall is for its own.
            format!("ip link add hand-vx mtu {MTU} type vxlan id 9998 local {local} dstport 4790 nolearning"),
            "ip link set hand-vx master hand-br up".to_owned(),
            "bridge link set dev hand-vx learning off flood off neigh_suppress on".to_owned(),
            format!(
                "ip link add hand-p mtu {MTU} type veth peer name eth0 address {mine} mtu {MTU} netns {name}"
            ),
            "ip link set hand-p master hand-br up".to_owned(),
            "bridge link set dev hand-p learning off flood off".to_owned(),
            format!("bridge fdb replace {mine} dev hand-p master static"),
            format!("bridge fdb replace {theirs} dev hand-vx master static"),
            format!("bridge fdb replace {theirs} dev hand-vx dst {remote} self permanent"),
            format!("ip neigh replace 10.98.0.{peer} lladdr {theirs} dev hand-br nud permanent"),
            format!("ip -n {name} addr add 10.98.0.{me}/24 dev eth0"),
            format!("ip -n {name} link set eth0 up"),
        ];
        for line in lines {
            output(&node.host, &line)?;
        }
        Ok(sandbox)
    }
}
