//! Carries plans out: operations become batches, one per socket and stretch of the plan.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    fs,
    net::IpAddr,
    os::fd::AsFd,
    path::Path,
};

use weft_netlink::{
    netns::{Netns, NetnsError, NetnsId},
    nft::{Nft, NftError},
    route::{
        Address, Batch, BatchError, BridgeFdb, BridgeOptions, Neighbour, NewLink, PortFlags, Request, Route,
        RouteSocket, SetLink, VethPeer, VxlanFdb, VxlanOptions, delete_link,
    },
};
use weft_types::{EndpointId, Mac, NetworkId};

use super::{
    Cause, Handle, Kernel, Links, OpError, Space, names,
    names::{BRIDGE, BRIDGE_INDEX, ROUTE_PROTOCOL, UPLINK, UPLINK_ALIAS, UPLINK_INDEX, VXLAN, VXLAN_INDEX},
    observe::FORWARDING,
    rules,
};
use crate::plan::{Bridge, EndpointOp, HostOp, Link, NetworkOp, Op, Plan, Sandbox, Uplink, Vxlan};

/// The tunnel as a port: nothing is learned from it and nothing unknown goes out.
pub(super) const TUNNEL: PortFlags = PortFlags {
    learning: Some(false),
    neigh_suppress: Some(true),
    flood: Some(false),
    mcast_flood: Some(false),
    bcast_flood: Some(false),
    hairpin: Some(false),
};

/// An endpoint as a port: where it is is written, so it cannot pretend to be another.
const ENDPOINT: PortFlags = PortFlags {
    learning: Some(false),
    neigh_suppress: None,
    flood: Some(false),
    mcast_flood: None,
    bcast_flood: None,
    hairpin: None,
};

const LOOPBACK: u32 = 1;

/// Whose socket a batch goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Host,
    Space(NetworkId),
    Sandbox(NetnsId),
}

/// A sandbox, open for the length of one plan.
struct Open {
    netns: Netns,
    route: RouteSocket,
    names: BTreeSet<String>,
    next_index: u32,
    loopback_up: bool,
}

/// One run through a plan.
struct Run<'a> {
    kernel: &'a mut Kernel,
    op: usize,
    target: Target,
    batch: Batch,
    /// Per message of the batch, the operation it belongs to.
    owners: Vec<usize>,
    failed: BTreeMap<usize, Cause>,
    sandboxes: HashMap<NetnsId, Open>,
    /// New links in sandboxes that are still down.
    unborn: BTreeMap<(NetworkId, EndpointId), usize>,
}

impl Kernel {
    /// Carries the operations out, all that can be, and returns the others with their places in the plan.
    pub(super) fn apply(&mut self, plan: &Plan) -> Vec<(usize, OpError)> {
        let mut run = Run {
            kernel: self,
            op: 0,
            target: Target::Host,
            batch: Batch::new(),
            owners: Vec::new(),
            failed: BTreeMap::new(),
            sandboxes: HashMap::new(),
            unborn: BTreeMap::new(),
        };
        for (place, op) in plan.ops.iter().enumerate() {
            run.op = place;
            if let Err(cause) = run.step(op) {
                run.failed.insert(place, cause);
            }
        }
        for ((network, endpoint), place) in std::mem::take(&mut run.unborn) {
            run.op = place;
            if let Err(cause) = run.bring_up(network, endpoint) {
                run.failed.insert(place, cause);
            }
        }
        run.flush();
        run.failed
            .into_iter()
            .filter_map(|(place, cause)| {
                Some((
                    place,
                    OpError {
                        op: plan.ops.get(place)?.clone(),
                        cause,
                    },
                ))
            })
            .collect()
    }
}

impl Run<'_> {
    fn step(&mut self, op: &Op) -> Result<(), Cause> {
        match op {
            Op::Host(op) => self.host(op),
            Op::Network(id, op) => self.network(*id, op),
            Op::Endpoint(id, endpoint, op) => self.endpoint(*id, *endpoint, op),
        }
    }

    /// Puts messages into the batch for a socket, after sending what is for another.
    fn push(&mut self, target: Target, requests: impl IntoIterator<Item = Request>) {
        if self.target != target {
            self.flush();
            self.target = target;
        }
        self.batch.add(requests);
        self.owners.resize(self.batch.len(), self.op);
    }

    fn flush(&mut self) {
        let (batch, owners) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.owners));
        if batch.is_empty() {
            return;
        }
        let socket = match self.target {
            Target::Host => Some(&mut self.kernel.route),
            Target::Space(id) => self.kernel.spaces.get_mut(&id).map(|space| &mut space.route),
            Target::Sandbox(id) => self.sandboxes.get_mut(&id).map(|sandbox| &mut sandbox.route),
        };
        let Some(socket) = socket else {
            owners.into_iter().for_each(|op| {
                self.failed.entry(op).or_insert(Cause::Missing("the namespace"));
            });
            return;
        };
        match socket.execute(batch) {
            Ok(()) => {}
            Err(BatchError::Refused(refusals)) => {
                for refusal in refusals {
                    if let Some(op) = owners.get(refusal.index) {
                        // The first refusal is the cause, later ones its consequences.
                        self.failed.entry(*op).or_insert(Cause::Refused(refusal));
                    }
                }
            }
            Err(error @ BatchError::Interrupted { .. }) => {
                if let Some(op) = owners.last() {
                    self.failed.entry(*op).or_insert(Cause::Batch(error));
                }
            }
        }
    }

    /// Sends what is waiting; fails if anything of the current operation was refused.
    fn flush_checked(&mut self) -> Result<(), Cause> {
        self.flush();
        self.failed.remove(&self.op).map_or(Ok(()), Err)
    }

    fn space(&mut self, id: NetworkId) -> Result<&mut Space, Cause> {
        self.kernel
            .spaces
            .get_mut(&id)
            .ok_or(Cause::Missing("the network's namespace"))
    }

    fn host(&mut self, op: &HostOp) -> Result<(), Cause> {
        match op {
            HostOp::EnableForwarding { ipv6: false } => {
                self.kernel.host.set_sysctls(&[(FORWARDING[0], "1")])?;
            }
            HostOp::EnableForwarding { ipv6: true } => {
                keep_router_advertisements(&self.kernel.host)?;
                self.kernel.host.set_sysctls(&[(FORWARDING[1], "1")])?;
            }
            HostOp::SetRules(wanted) => self.kernel.nft.commit(&rules::host(wanted))?,
            HostOp::DeleteRules => self.kernel.nft.commit(&rules::delete())?,
        }
        Ok(())
    }

    fn network(&mut self, id: NetworkId, op: &NetworkOp) -> Result<(), Cause> {
        let target = Target::Space(id);
        let links = match op {
            NetworkOp::Add(bridge) => return self.add_network(id, bridge),
            NetworkOp::Delete => return self.delete_network(id),
            _ => self.space(id)?.links,
        };
        let vxlan = links.vxlan.ok_or(Cause::Missing("the VXLAN device"));
        let address = |net| Address {
            link: links.bridge,
            net,
            prefix_route: true,
        };
        let neighbour = |address, mac| Neighbour {
            link: links.bridge,
            address,
            mac,
        };
        match op {
            NetworkOp::Add(_) | NetworkOp::Delete => {}
            NetworkOp::SetBridge(bridge) => {
                let set = SetLink::index(links.bridge)
                    .mac(bridge.mac)
                    .alias(names::bridge_alias(&bridge.name));
                self.push(target, set);
            }
            NetworkOp::AddAddress(net) => self.push(target, address(*net).add()),
            NetworkOp::DeleteAddress(net) => self.push(target, address(*net).delete()),
            NetworkOp::AddVxlan(vxlan) => self.add_vxlan(id, vxlan)?,
            NetworkOp::DeleteVxlan => {
                self.push(target, delete_link(vxlan?));
                self.space(id)?.links.vxlan = None;
            }
            NetworkOp::AddUplink(uplink) => self.add_uplink(id, uplink)?,
            NetworkOp::DeleteUplink => self.delete_uplink(id)?,
            NetworkOp::SetMtu(Link::Bridge, mtu) => self.push(target, SetLink::index(links.bridge).mtu(*mtu)),
            NetworkOp::SetMtu(Link::Vxlan, mtu) => self.push(target, SetLink::index(vxlan?).mtu(*mtu)),
            NetworkOp::SetMtu(Link::Uplink, mtu) => {
                let missing = Cause::Missing("the uplink");
                let (Some(inside), Some(outside)) = (links.uplink, links.uplink_host) else {
                    return Err(missing);
                };
                self.push(target, SetLink::index(inside).mtu(*mtu));
                self.push(Target::Host, SetLink::index(outside).mtu(*mtu));
            }
            NetworkOp::SetNeighbour(address, mac) => self.push(target, neighbour(*address, *mac).replace()),
            NetworkOp::DeleteNeighbour(address) => {
                self.push(target, neighbour(*address, Mac([0; 6])).delete());
            }
            NetworkOp::SetFdb(mac, vtep) => {
                let (port, mac) = (vxlan?, *mac);
                let entries = [
                    VxlanFdb {
                        link: port,
                        mac,
                        vtep: *vtep,
                    }
                    .replace(),
                    BridgeFdb { port, mac }.replace(),
                ];
                self.push(target, entries);
            }
            NetworkOp::DeleteFdb(mac) => {
                let (port, mac) = (vxlan?, *mac);
                let unspecified = IpAddr::from([0, 0, 0, 0]);
                let entries = [
                    BridgeFdb { port, mac }.delete(),
                    VxlanFdb {
                        link: port,
                        mac,
                        vtep: unspecified,
                    }
                    .delete(),
                ];
                self.push(target, entries);
            }
        }
        Ok(())
    }

    fn add_network(&mut self, id: NetworkId, bridge: &Bridge) -> Result<(), Cause> {
        let netns = Netns::create_at(self.kernel.netns_path(id))?;
        // A router between bridge and uplink. It sends no redirects: to an endpoint that talks to another subnet
        // of its network, the gateway is the only way there.
        let settings = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ];
        netns.set_sysctls(&settings)?;
        if let Err(error) = netns.set_sysctls(&[(FORWARDING[1], "1")])
            && !matches!(&error, NetnsError::Os { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
        {
            return Err(error.into());
        }
        let route = RouteSocket::open(&netns)?;
        let links = Links {
            bridge: BRIDGE_INDEX,
            ..Links::default()
        };
        let (endpoints, next_port) = (BTreeMap::new(), names::FIRST_PORT_INDEX);
        self.kernel.spaces.insert(
            id,
            Space {
                netns,
                route,
                nft: None,
                links,
                endpoints,
                next_port,
            },
        );
        let link = NewLink::bridge(BRIDGE, BridgeOptions::default())
            .index(BRIDGE_INDEX)
            .mac(bridge.mac)
            .mtu(bridge.mtu)
            .alias(names::bridge_alias(&bridge.name))
            .up();
        self.push(Target::Space(id), SetLink::index(LOOPBACK).up());
        self.push(Target::Space(id), link);
        Ok(())
    }

    /// Links are deleted one by one: a mount namespace elsewhere may keep the namespace itself.
    fn delete_network(&mut self, id: NetworkId) -> Result<(), Cause> {
        self.flush();
        if let Some(space) = self.kernel.spaces.get_mut(&id) {
            let ours = |link: &weft_netlink::route::Link| {
                let marked = link
                    .alias
                    .as_deref()
                    .is_some_and(|alias| alias.starts_with(names::MARK));
                marked || [BRIDGE, VXLAN, UPLINK].contains(&link.name.as_str())
            };
            let links = space.route.links()?;
            let deletions: Vec<_> = links
                .iter()
                .filter(|link| ours(link))
                .map(|link| delete_link(link.index))
                .collect();
            self.push(Target::Space(id), deletions);
            self.flush_checked()?;
        }
        self.kernel.spaces.remove(&id);
        let (name, alias) = (names::uplink_host(id), names::uplink_host_alias(id));
        let orphans: Vec<_> = (self.kernel.route.links()?.into_iter())
            .filter(|link| link.name == name && link.alias.as_deref() == Some(&alias))
            .map(|link| delete_link(link.index))
            .collect();
        self.push(Target::Host, orphans);
        Netns::remove_at(self.kernel.netns_path(id))?;
        Ok(())
    }

    fn add_vxlan(&mut self, id: NetworkId, vxlan: &Vxlan) -> Result<(), Cause> {
        let target = Target::Space(id);
        if let Some(index) = self.space(id)?.links.vxlan.take() {
            self.push(target, delete_link(index));
        }
        // The bridge must be there before it is named.
        self.flush();
        let space = self.space(id)?;
        let options = VxlanOptions {
            vni: vxlan.vni,
            local: vxlan.local,
            port: vxlan.port,
        };
        let bridge = space.links.bridge;
        // Made by the host's socket, and so with its UDP socket on the underlay, but born here.
        let link = NewLink::vxlan(VXLAN, options)
            .index(VXLAN_INDEX)
            .mtu(vxlan.mtu)
            .master(bridge)
            .up()
            .netns(space.netns.as_fd());
        let mut batch = Batch::new();
        batch.add(link);
        if let Err(error) = self.kernel.route.execute(batch) {
            return Err(match error {
                BatchError::Refused(mut refusals) if !refusals.is_empty() => {
                    Cause::Refused(refusals.swap_remove(0))
                }
                error => Cause::Batch(error),
            });
        }
        self.space(id)?.links.vxlan = Some(VXLAN_INDEX);
        self.push(
            target,
            SetLink::index(VXLAN_INDEX).alias(names::VXLAN_ALIAS).port(TUNNEL),
        );
        Ok(())
    }

    fn add_uplink(&mut self, id: NetworkId, uplink: &Uplink) -> Result<(), Cause> {
        self.delete_uplink(id)?;
        let target = Target::Space(id);
        let name = names::uplink_host(id);
        let host = self.kernel.host.try_clone()?;
        let peer = VethPeer::new(&name).mtu(uplink.mtu).netns(host.as_fd());
        let pair = NewLink::veth(UPLINK, peer)
            .index(UPLINK_INDEX)
            .mtu(uplink.mtu)
            .alias(UPLINK_ALIAS)
            .up();
        let ends = uplink.ends();
        self.push(target, pair);
        for (_, net) in &ends {
            self.push(
                target,
                Address {
                    link: UPLINK_INDEX,
                    net: *net,
                    prefix_route: true,
                }
                .add(),
            );
        }
        self.flush_checked()?;
        let outside = self
            .kernel
            .route
            .links()?
            .into_iter()
            .find(|link| link.name == name);
        let outside = outside
            .ok_or(Cause::Missing("the host's end of the uplink"))?
            .index;
        let space = self.space(id)?;
        space.links.uplink = Some(UPLINK_INDEX);
        space.links.uplink_host = Some(outside);
        self.push(
            Target::Host,
            SetLink::index(outside).alias(names::uplink_host_alias(id)).up(),
        );
        for (net, _) in &ends {
            self.push(
                Target::Host,
                Address {
                    link: outside,
                    net: *net,
                    prefix_route: true,
                }
                .add(),
            );
        }
        for (net, _) in &ends {
            let default = Route {
                protocol: ROUTE_PROTOCOL,
                ..Route::default_via(net.addr(), UPLINK_INDEX)
            };
            self.push(target, default.add());
        }
        self.flush_checked()?;
        nft_of(self.space(id)?)?.commit(&rules::network())?;
        Ok(())
    }

    /// Either end takes the other along.
    fn delete_uplink(&mut self, id: NetworkId) -> Result<(), Cause> {
        let space = self.space(id)?;
        let (inside, outside) = (space.links.uplink.take(), space.links.uplink_host.take());
        if inside.is_some() || outside.is_some() {
            nft_of(space)?.commit(&rules::delete())?;
        }
        match (inside, outside) {
            (Some(inside), _) => self.push(Target::Space(id), delete_link(inside)),
            (None, Some(outside)) => self.push(Target::Host, delete_link(outside)),
            (None, None) => {}
        }
        Ok(())
    }

    fn endpoint(&mut self, id: NetworkId, endpoint: EndpointId, op: &EndpointOp) -> Result<(), Cause> {
        let target = Target::Space(id);
        match op {
            EndpointOp::Add {
                mac,
                mtu,
                sandbox,
                ifname,
            } => {
                return self.add_endpoint(id, endpoint, (*mac, *mtu), sandbox, ifname.as_deref());
            }
            EndpointOp::Delete => {
                let handle = self.space(id)?.endpoints.remove(&endpoint);
                let port = handle.ok_or(Cause::Missing("the endpoint"))?.port;
                self.push(target, delete_link(port));
                return Ok(());
            }
            EndpointOp::SetMtu(mtu) => {
                let port = self.handle(id, endpoint)?.port;
                self.push(target, SetLink::index(port).mtu(*mtu));
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
            EndpointOp::Add { .. } | EndpointOp::Delete => return Ok(()),
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
        let peer = VethPeer::new(name)
            .index(index)
            .mac(mac)
            .mtu(mtu)
            .netns(open.netns.as_fd());
        let pair: Vec<Request> = NewLink::veth(names::port(endpoint), peer)
            .index(port)
            .mtu(mtu)
            .alias(names::endpoint_alias(endpoint))
            .master(bridge)
            .up()
            .into_iter()
            .collect();
        let handle = Handle {
            port,
            far_end: Some((sandbox.clone(), index)),
        };
        self.space(id)?.endpoints.insert(endpoint, handle);
        let target = Target::Space(id);
        self.push(target, pair);
        self.push(target, SetLink::index(port).port(ENDPOINT));
        self.push(target, BridgeFdb { port, mac }.replace());
        self.unborn.insert((id, endpoint), self.op);
        Ok(())
    }

    /// The socket of an endpoint's sandbox and the link in it, which is up, or will be by the next message.
    fn bring_up(&mut self, id: NetworkId, endpoint: EndpointId) -> Result<(Target, u32), Cause> {
        let handle = self.handle(id, endpoint)?;
        let (sandbox, link) = handle
            .far_end
            .ok_or(Cause::Missing("the sandbox's end of the link"))?;
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
            Entry::Vacant(place) => Ok(place.insert(Open::new(sandbox)?)),
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

fn nft_of(space: &mut Space) -> Result<&Nft, Cause> {
    if space.nft.is_none() {
        let opened: Result<Nft, NftError> = space.netns.run(Nft::open)?;
        space.nft = Some(opened?);
    }
    space.nft.as_ref().ok_or(Cause::Missing("the netfilter socket"))
}

fn sandbox_route(route: &crate::plan::EndpointRoute, link: u32) -> Route {
    Route {
        to: route.to,
        via: route.via,
        link,
        onlink: false,
        metric: route.metric,
        protocol: ROUTE_PROTOCOL,
    }
}

/// A host that forwards takes no router advertisements any more unless `accept_ra` is 2: it would lose its
/// own address and default route.
fn keep_router_advertisements(host: &Netns) -> Result<(), Cause> {
    const DEVICES: &str = "net/ipv6/conf";
    let devices: Vec<String> = host.run(|| {
        let entries = fs::read_dir(Path::new("/proc/sys").join(DEVICES))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    })?;
    for device in devices {
        let setting = format!("{DEVICES}/{device}/accept_ra");
        // A device may go between the two steps.
        if host.sysctls(&[&setting]).is_ok_and(|value| value == ["1"]) {
            host.set_sysctls(&[(&setting, "2")])?;
        }
    }
    Ok(())
}
