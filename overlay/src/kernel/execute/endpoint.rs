//! Operations on an endpoint: its port on the bridge and its interface in the sandbox.

use std::{collections::hash_map::Entry, net::IpAddr, os::fd::AsFd, path::Path};

use weft_netlink::{
    netns::{Netns, NetnsError},
    route::{
        Address, Batch, BridgeFdb, Neighbour, NewLink, PortFlags, Request, Route, RouteSocket, SetLink,
        VethPeer, delete_link,
    },
};
use weft_types::{EndpointId, Mac, NetworkId};

use super::{LOOPBACK, Open, Run, Target, network::nft_of};
use crate::{
    kernel::{Cause, FarEnd, Handle, names, names::ROUTE_PROTOCOL, own},
    plan::{EndpointOp, EndpointRoute, Place, Sandbox},
};

/// An endpoint as a port: where it is is written, so it cannot pretend to be another.
pub(super) const ENDPOINT: PortFlags = PortFlags {
    learning: Some(false),
    neigh_suppress: None,
    flood: Some(false),
    mcast_flood: None,
    bcast_flood: None,
    hairpin: None,
};

impl Run<'_> {
    pub(super) fn endpoint(
        &mut self,
        id: NetworkId,
        endpoint: EndpointId,
        op: &EndpointOp,
    ) -> Result<(), Cause> {
        let target = Target::Space(id);
        match op {
            EndpointOp::Add {
                mac,
                mtu,
                place: Place::Sandbox(sandbox),
                ifname,
            } => {
                return self.add_endpoint(id, endpoint, (*mac, *mtu), sandbox, ifname.as_deref());
            }
            EndpointOp::Add {
                mac,
                mtu,
                place: Place::Host(sandbox),
                ..
            } => return self.add_host(id, endpoint, (*mac, *mtu), sandbox),
            EndpointOp::Add {
                mac,
                mtu,
                place: Place::Engine { ifname, .. },
                ..
            } => return self.hand_over(id, endpoint, (*mac, *mtu), ifname),
            EndpointOp::ForgetInside(address, path) => return self.forget_inside(endpoint, *address, path),
            EndpointOp::Delete => {
                let handle = self.space(id)?.endpoints.remove(&endpoint);
                let handle = handle.ok_or(Cause::Missing("the endpoint"))?;
                self.push(target, delete_link(handle.port));
                let host = self.kernel.host.id();
                if handle.far_end.is_some_and(|far_end| far_end.sandbox.id == host) {
                    nft_of(self.space(id)?)?.commit(&own::unmark())?;
                }
                return Ok(());
            }
            EndpointOp::SetMtu(mtu) => {
                let handle = self.handle(id, endpoint)?;
                self.push(target, SetLink::index(handle.port).mtu(*mtu));
                if handle.far_end.is_none() {
                    // The other end is the container engine's by now, which keeps its MTU.
                    return Ok(());
                }
            }
            _ => {}
        }
        let (sandbox, link) = self.bring_up(id, endpoint)?;
        let address = |net| Address {
            link,
            net,
            prefix_route: true,
        };
        let request = match op {
            EndpointOp::Add { .. } | EndpointOp::Delete | EndpointOp::ForgetInside(..) => return Ok(()),
            EndpointOp::SetMtu(mtu) => {
                self.push(sandbox, SetLink::index(link).mtu(*mtu));
                return Ok(());
            }
            EndpointOp::AddAddress(net) => address(*net).add(),
            EndpointOp::DeleteAddress(net) => address(*net).delete(),
            EndpointOp::AddRoute(route) => sandbox_route(route, link).add(),
            EndpointOp::DeleteRoute(route) => sandbox_route(route, link).delete(),
            EndpointOp::Forget(address) => Neighbour {
                link,
                address: *address,
                mac: Mac([0; 6]),
            }
            .delete(),
        };
        self.push(sandbox, request);
        Ok(())
    }

    /// The container may be on its way in or out: then there is nothing it could remember.
    fn forget_inside(&mut self, endpoint: EndpointId, address: IpAddr, path: &Path) -> Result<(), Cause> {
        let netns = match Netns::open(path) {
            Ok(netns) => netns,
            Err(NetnsError::NotFound { .. } | NetnsError::NotANetns { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut route = RouteSocket::open(&netns)?;
        let alias = names::endpoint_alias(endpoint);
        let links = route.links()?;
        if let Some(link) = links.iter().find(|link| link.alias.as_deref() == Some(&alias)) {
            let (link, mac) = (link.index, Mac([0; 6]));
            let mut batch = Batch::new();
            batch.add([Neighbour { link, address, mac }.delete()]);
            route.execute(batch).map_err(Cause::Batch)?;
        }
        Ok(())
    }

    fn handle(&mut self, id: NetworkId, endpoint: EndpointId) -> Result<Handle, Cause> {
        self.space(id)?
            .endpoints
            .get(&endpoint)
            .cloned()
            .ok_or(Cause::Missing("the endpoint"))
    }

    fn add_endpoint(
        &mut self,
        id: NetworkId,
        endpoint: EndpointId,
        (mac, mtu): (Mac, u32),
        sandbox: &Sandbox,
        ifname: Option<&str>,
    ) -> Result<(), Cause> {
        let space = self.space(id)?;
        let (port, bridge) = (space.next_port, space.links.bridge);
        space.next_port += 1;
        let open = self.open(sandbox)?;
        let name = match ifname {
            Some(name) => name.to_owned(),
            None => (0..)
                .map(|n: u32| format!("eth{n}"))
                .find(|name| !open.names.contains(name))
                .ok_or(Cause::Missing("a free interface name"))?,
        };
        open.names.insert(name.clone());
        let index = open.next_index;
        open.next_index += 1;
        // The sandbox stays open until the end of the plan, and so does the descriptor in this message.
        let peer = VethPeer::new(&name)
            .index(index)
            .mac(mac)
            .mtu(mtu)
            .netns(open.netns.as_fd());
        let pair = on_bridge(endpoint, port, bridge, mtu, peer);
        let handle = Handle {
            port,
            far_end: Some(FarEnd {
                sandbox: sandbox.clone(),
                index,
                name,
            }),
        };
        self.add_port(id, endpoint, handle, pair, mac)?;
        self.unborn.insert((id, endpoint), self.op);
        Ok(())
    }

    /// The link has its settings before it is up.
    fn add_host(
        &mut self,
        id: NetworkId,
        endpoint: EndpointId,
        ends: (Mac, u32),
        host: &Sandbox,
    ) -> Result<(), Cause> {
        let link = names::host_link(&id.short());
        self.add_endpoint(id, endpoint, ends, host, Some(&link))?;
        self.flush_checked()?;
        for (setting, value) in names::host_link_settings(&link) {
            match self.kernel.host.set_sysctls(&[(setting, value)]) {
                // A kernel without IPv6.
                Err(NetnsError::Os { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        let mark = own::mark(&names::port(endpoint));
        Ok(nft_of(self.space(id)?)?.commit(&mark)?)
    }

    /// The far end is born in the host's namespace and stays down: a container engine takes it from there.
    fn hand_over(
        &mut self,
        id: NetworkId,
        endpoint: EndpointId,
        (mac, mtu): (Mac, u32),
        ifname: &str,
    ) -> Result<(), Cause> {
        let host = self.kernel.host.try_clone()?;
        let space = self.space(id)?;
        let (port, bridge) = (space.next_port, space.links.bridge);
        space.next_port += 1;
        let peer = VethPeer::new(ifname).mac(mac).mtu(mtu).netns(host.as_fd());
        let pair = on_bridge(endpoint, port, bridge, mtu, peer);
        let handle = Handle { port, far_end: None };
        self.add_port(id, endpoint, handle, pair, mac)?;
        // The message names the host by a descriptor that must be open until it is sent.
        self.flush();
        if !self.failed.contains_key(&self.op) {
            let marked = SetLink::named(ifname).alias(names::endpoint_alias(endpoint));
            self.push(Target::Host, marked);
        }
        Ok(())
    }

    fn add_port(
        &mut self,
        id: NetworkId,
        endpoint: EndpointId,
        handle: Handle,
        pair: Vec<Request>,
        mac: Mac,
    ) -> Result<(), Cause> {
        let (target, port) = (Target::Space(id), handle.port);
        self.space(id)?.endpoints.insert(endpoint, handle);
        self.push(target, pair);
        self.push(target, SetLink::index(port).port(ENDPOINT));
        self.push(target, BridgeFdb { port, mac }.replace());
        Ok(())
    }

    /// The socket of an endpoint's sandbox and the link in it, which is up, or will be by the next message.
    pub(super) fn bring_up(&mut self, id: NetworkId, endpoint: EndpointId) -> Result<(Target, u32), Cause> {
        let handle = self.handle(id, endpoint)?;
        let far_end = handle
            .far_end
            .ok_or(Cause::Missing("the sandbox's end of the link"))?;
        let (sandbox, link) = (far_end.sandbox, far_end.index);
        let target = Target::Sandbox(sandbox.id);
        let loopback_up = std::mem::replace(&mut self.open(&sandbox)?.loopback_up, true);
        if let Some(made_by) = self.unborn.remove(&(id, endpoint)) {
            let op = std::mem::replace(&mut self.op, made_by);
            if self.target != target {
                self.flush();
            }
            if self.failed.contains_key(&made_by) {
                // Nothing was made, and this operation fails with the one that should have.
                self.op = op;
                self.space(id)?.endpoints.remove(&endpoint);
                return Err(Cause::Missing("the endpoint"));
            }
            if !loopback_up {
                self.push(target, SetLink::index(LOOPBACK).up());
            }
            self.push(
                target,
                SetLink::index(link).alias(names::endpoint_alias(endpoint)).up(),
            );
            self.op = op;
        }
        Ok((target, link))
    }

    fn open(&mut self, sandbox: &Sandbox) -> Result<&mut Open, Cause> {
        match self.sandboxes.entry(sandbox.id) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => {
                let mut open = Open::new(sandbox)?;
                if sandbox.id == self.kernel.host.id() {
                    open.next_index = open.next_index.max(names::FIRST_HOST_INDEX);
                }
                Ok(place.insert(open))
            }
        }
    }
}

impl Open {
    fn new(sandbox: &Sandbox) -> Result<Self, Cause> {
        let netns = Netns::open(&sandbox.path)?;
        if netns.id() != sandbox.id {
            let path = sandbox.path.display().to_string();
            return Err(Cause::OtherSandbox {
                path,
                now: netns.id(),
                before: sandbox.id,
            });
        }
        let mut route = RouteSocket::open(&netns)?;
        let links = route.links()?;
        Ok(Self {
            next_index: links.iter().map(|link| link.index).max().unwrap_or(LOOPBACK) + 1,
            loopback_up: links.iter().any(|link| link.loopback && link.up),
            names: links.into_iter().map(|link| link.name).collect(),
            netns,
            route,
        })
    }
}

/// A pair of which one end is a port of the network's bridge.
fn on_bridge(endpoint: EndpointId, port: u32, bridge: u32, mtu: u32, peer: VethPeer<'_>) -> Vec<Request> {
    NewLink::veth(names::port(endpoint), peer)
        .index(port)
        .mtu(mtu)
        .alias(names::endpoint_alias(endpoint))
        .master(bridge)
        .up()
        .into_iter()
        .collect()
}

fn sandbox_route(route: &EndpointRoute, link: u32) -> Route {
    Route {
        to: route.to,
        via: route.via,
        link,
        onlink: false,
        metric: route.metric,
        protocol: ROUTE_PROTOCOL,
    }
}
