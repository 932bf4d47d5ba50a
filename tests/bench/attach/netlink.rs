//! The same steps by one process that speaks netlink: a batch for the host and one for the sandbox.

use std::{net::IpAddr, os::fd::AsFd as _, time::Instant};

use anyhow::{Context as _, Result};
use netns_harness::{Inside as _, Sandbox};
use weft_netlink::{
    netns::Netns,
    route::{
        Address, Batch, BridgeFdb, Neighbour, NewLink, PortFlags, Route, RouteSocket, SetLink, VethPeer,
    },
};
use weft_types::Mac;

use super::{BRIDGE, MAC, PORT, Way, delete};
use crate::cluster::Node;

const LOOPBACK: u32 = 1;
const PORT_INDEX: u32 = 5000;
const ETH0_INDEX: u32 = 100;
const MTU: u32 = 1450;

/// Keeps its socket on the host, and opens the sandbox anew for each attachment.
pub(super) struct InOneProcess<'c> {
    node: &'c Node,
    sandbox: Sandbox,
    route: RouteSocket,
    bridge: u32,
}

impl<'c> InOneProcess<'c> {
    pub(super) fn new(node: &'c Node, sandbox: Sandbox) -> Result<Self> {
        let mut route = RouteSocket::open(node.host.namespaces()?.net())?;
        let links = route.links()?;
        let bridge = links
            .iter()
            .find(|link| link.name == BRIDGE)
            .context("the bridge is missing")?
            .index;
        Ok(Self {
            node,
            sandbox,
            route,
            bridge,
        })
    }
}

impl Way for InOneProcess<'_> {
    fn attach(&mut self) -> Result<f64> {
        let Self {
            node,
            sandbox,
            route,
            bridge,
        } = self;
        let (path, bridge) = (sandbox.path(), *bridge);
        let mac: Mac = MAC.parse()?;
        let address = IpAddr::from([10, 97, 0, 2]);
        node.host.run(|| {
            let start = Instant::now();
            let netns = Netns::open(path)?;
            let mut batch = Batch::new();
            let peer = VethPeer::new("eth0")
                .index(ETH0_INDEX)
                .mac(mac)
                .mtu(MTU)
                .netns(netns.as_fd());
            let port = NewLink::veth(PORT, peer)
                .index(PORT_INDEX)
                .mtu(MTU)
                .alias("bench")
                .master(bridge)
                .up();
            let flags = PortFlags {
                learning: Some(false),
                flood: Some(false),
                ..PortFlags::default()
            };
            batch.add(port).add(SetLink::index(PORT_INDEX).port(flags));
            batch.add([
                BridgeFdb {
                    port: PORT_INDEX,
                    mac,
                }
                .replace(),
                Neighbour {
                    link: bridge,
                    address,
                    mac,
                }
                .replace(),
            ]);
            route.execute(batch)?;

            let mut inside = RouteSocket::open(&netns)?;
            let mut batch = Batch::new();
            batch
                .add(SetLink::index(LOOPBACK).up())
                .add(SetLink::index(ETH0_INDEX).alias("bench").up());
            batch.add([
                Address {
                    link: ETH0_INDEX,
                    net: "10.97.0.2/24".parse()?,
                    prefix_route: true,
                }
                .add(),
                Route::on_link("169.254.53.53/32".parse()?, ETH0_INDEX).add(),
                Route::default_via(IpAddr::from([10, 97, 0, 1]), ETH0_INDEX).add(),
            ]);
            inside.execute(batch)?;
            Ok(start.elapsed().as_secs_f64())
        })?
    }

    fn detach(&mut self) -> Result<f64> {
        delete(self.node)
    }
}
