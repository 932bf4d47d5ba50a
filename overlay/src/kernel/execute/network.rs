//! Operations on a network's namespace.

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsFd};

use weft_netlink::{
    netns::{Netns, NetnsError},
    nft::Nft,
    route::{
        Address, Batch, BatchError, BridgeFdb, BridgeOptions, Neighbour, NewLink, PortFlags, Route,
        RouteSocket, SetLink, VethPeer, VxlanFdb, VxlanOptions, delete_link,
    },
    tap,
};
use weft_types::{Mac, NetworkId};

use super::{LOOPBACK, Run, Target};
use crate::{
    kernel::{
        Cause, Links, Space, names,
        names::{
            BRIDGE, BRIDGE_INDEX, ROUTE_PROTOCOL, TUNNEL, TUNNEL_INDEX, UPLINK, UPLINK_ALIAS, UPLINK_INDEX,
        },
        observe::FORWARDING,
        rules,
    },
    plan::{Bridge, Carrier, Far, Link, NetworkOp, Tunnel, Uplink},
};

/// The tunnel as a port: nothing is learned from it and nothing unknown goes out.
pub(in crate::kernel) const TUNNEL_PORT: PortFlags = PortFlags {
    learning: Some(false),
    neigh_suppress: Some(true),
    flood: Some(false),
    mcast_flood: Some(false),
    bcast_flood: Some(false),
    hairpin: Some(false),
};

/// Where `br_netfilter` is loaded, as on every host with Docker, each frame between two ports would also be taken for a
/// routed packet, and its connection be tracked. The bridge of a network only forwards frames.
pub(in crate::kernel) const BRIDGE_ONLY: [(&str, &str); 3] = [
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
];

impl Run<'_> {
    pub(super) fn network(&mut self, id: NetworkId, op: &NetworkOp) -> Result<(), Cause> {
        let target = Target::Space(id);
        let links = match op {
            NetworkOp::Add(bridge) => return self.add_network(id, bridge),
            NetworkOp::Delete => return self.delete_network(id),
            _ => self.space(id)?.links,
        };
        let tunnel = links.tunnel.ok_or(Cause::Missing("the tunnel"));
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
                    .alias(names::bridge_alias(&bridge.name))
                    .up();
                self.push(target, set);
            }
            NetworkOp::AddAddress(net) => {
                // One without the route to its subnet gets that only as it is made.
                let known = self.space(id)?.route.addresses()?;
                if known
                    .iter()
                    .any(|known| (known.link, known.net) == (links.bridge, *net))
                {
                    self.push(target, address(*net).delete());
                }
                self.push(target, address(*net).add());
            }
            NetworkOp::DeleteAddress(net) => self.push(target, address(*net).delete()),
            NetworkOp::AddTunnel(tunnel) => self.add_tunnel(id, tunnel)?,
            NetworkOp::DeleteTunnel => {
                self.push(target, delete_link(tunnel?));
                self.space(id)?.links.tunnel = None;
            }
            NetworkOp::AddUplink(uplink) => self.add_uplink(id, uplink)?,
            NetworkOp::DeleteUplink => self.delete_uplink(id)?,
            NetworkOp::AddIngress(ingress) => self.add_ingress(id, ingress)?,
            NetworkOp::DeleteIngress => self.delete_ingress(id)?,
            NetworkOp::SetSources(sources) => self.set_sources(id, sources)?,
            NetworkOp::DeleteSources => self.delete_sources(id)?,
            NetworkOp::SetMtu(Link::Bridge, mtu) => self.push(target, SetLink::index(links.bridge).mtu(*mtu)),
            NetworkOp::SetMtu(Link::Tunnel, mtu) => self.push(target, SetLink::index(tunnel?).mtu(*mtu)),
            NetworkOp::SetMtu(Link::Uplink, mtu) => {
                let missing = Cause::Missing("the uplink");
                let (Some(inside), Some(outside)) = (links.uplink, links.uplink_host) else {
                    return Err(missing);
                };
                self.push(target, SetLink::index(inside).mtu(*mtu));
                self.push(Target::Host, SetLink::index(outside).mtu(*mtu));
            }
            NetworkOp::SetMtu(Link::Ingress, mtu) => {
                for index in links.ingress.into_iter().chain(links.ingress_port) {
                    self.push(target, SetLink::index(index).mtu(*mtu));
                }
            }
            NetworkOp::SetNeighbour(address, mac) => self.push(target, neighbour(*address, *mac).replace()),
            NetworkOp::DeleteNeighbour(address) => {
                self.push(target, neighbour(*address, Mac([0; 6])).delete());
            }
            NetworkOp::SetFdb(mac, far) => {
                let (port, mac) = (tunnel?, *mac);
                if let Far::Vtep(vtep) = *far {
                    let link = port;
                    self.push(target, [VxlanFdb { link, mac, vtep }.replace()]);
                }
                self.push(target, [BridgeFdb { port, mac }.replace()]);
            }
            NetworkOp::DeleteFdb(mac) => {
                let (port, mac) = (tunnel?, *mac);
                self.push(target, [BridgeFdb { port, mac }.delete()]);
                if self.space(id)?.has_vxlan {
                    let (link, vtep) = (port, IpAddr::from([0, 0, 0, 0]));
                    self.push(target, [VxlanFdb { link, mac, vtep }.delete()]);
                }
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
        for setting in [(FORWARDING[1], "1")].into_iter().chain(BRIDGE_ONLY) {
            match netns.set_sysctls(&[setting]) {
                // A kernel without IPv6, or without netfilter for bridges.
                Err(NetnsError::Os { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                done => done?,
            }
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
                uplink: None,
                has_vxlan: false,
                endpoints,
                next_port,
                found: None,
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
                marked || [BRIDGE, TUNNEL, UPLINK].contains(&link.name.as_str())
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

    fn add_tunnel(&mut self, id: NetworkId, tunnel: &Tunnel) -> Result<(), Cause> {
        if let Some(index) = self.space(id)?.links.tunnel.take() {
            self.push(Target::Space(id), delete_link(index));
        }
        // The bridge must be there before it is named.
        self.flush();
        match tunnel.carrier {
            Carrier::Vxlan {
                vni,
                local,
                port,
                sealed,
            } => {
                let options = VxlanOptions { vni, local, port };
                self.add_vxlan(id, options, sealed, tunnel.mtu)
            }
            Carrier::Tap => self.add_tap(id, tunnel.mtu),
        }
    }

    fn add_vxlan(
        &mut self,
        id: NetworkId,
        options: VxlanOptions,
        sealed: bool,
        mtu: u32,
    ) -> Result<(), Cause> {
        // Where nothing leads out of until WireGuard is there, which has its own life.
        let mut tunnels = match sealed {
            true => Some(RouteSocket::open(&Netns::ensure_at(&self.kernel.wireguard)?)?),
            false => None,
        };
        let space = self.space(id)?;
        let bridge = space.links.bridge;
        // Made by a socket of the host or of the tunnels, and so with its UDP socket there, but born here.
        let link = NewLink::vxlan(TUNNEL, options)
            .index(TUNNEL_INDEX)
            .mtu(mtu)
            .master(bridge)
            .up()
            .netns(space.netns.as_fd());
        let mut batch = Batch::new();
        batch.add(link);
        let maker = tunnels.as_mut().unwrap_or(&mut self.kernel.route);
        if let Err(error) = maker.execute(batch) {
            return Err(match error {
                BatchError::Refused(mut refusals) if !refusals.is_empty() => {
                    Cause::Refused(refusals.swap_remove(0))
                }
                error => Cause::Batch(error),
            });
        }
        let space = self.space(id)?;
        space.links.tunnel = Some(TUNNEL_INDEX);
        space.has_vxlan = true;
        self.push(
            Target::Space(id),
            SetLink::index(TUNNEL_INDEX)
                .alias(match sealed {
                    true => names::SEALED_ALIAS,
                    false => names::VXLAN_ALIAS,
                })
                .port(TUNNEL_PORT),
        );
        Ok(())
    }

    /// It is up when all is as it should be: nothing flooded, nothing learned.
    fn add_tap(&mut self, id: NetworkId, mtu: u32) -> Result<(), Cause> {
        let space = self.space(id)?;
        tap::create_persistent(&space.netns, TUNNEL, TUNNEL_INDEX)?;
        space.links.tunnel = Some(TUNNEL_INDEX);
        space.has_vxlan = false;
        let link = SetLink::index(TUNNEL_INDEX);
        let port = link
            .clone()
            .mtu(mtu)
            .master(space.links.bridge)
            .alias(names::TAP_ALIAS)
            .port(TUNNEL_PORT);
        self.push(Target::Space(id), port);
        self.push(Target::Space(id), link.up());
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
        space.uplink = Some(*uplink);
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
        space.uplink = None;
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
}

pub(super) fn nft_of(space: &mut Space) -> Result<&Nft, Cause> {
    if space.nft.is_none() {
        space.nft = Some(Nft::open_in(&space.netns)?);
    }
    space.nft.as_ref().ok_or(Cause::Missing("the netfilter socket"))
}
