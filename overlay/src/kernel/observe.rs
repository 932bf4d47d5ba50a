//! Reads back what of ours the kernel holds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
};

use ipnet::IpNet;
use weft_netlink::{
    look::Along,
    netns::{Netns, NetnsError},
    nft::Nft,
    route::{Address, Link, LocalRoute, Route, RouteSocket},
};
use weft_types::{EndpointId, Mac, NetworkId};

use super::{
    FarEnd, Handle, Kernel, KernelError, Links, Space,
    execute::loopback_route,
    gate, names,
    names::{BRIDGE, INGRESS, INGRESS_PORT, MARK, ROUTE_PROTOCOL, TUNNEL, UPLINK, UPLINK_ALIAS},
    own, ports, rules,
    sandboxes::{self, Sandboxes, Seen},
};
use crate::plan::{
    Bridge, Carrier, Desired, EndpointRoute, Far, Forwarding, Host, IngressLink, LocalEndpoint, Network,
    Observed, ObservedEndpoint, ObservedNetwork, Place, Sandbox, Tunnel, Uplink,
};

pub(super) const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Everything of one namespace that matters to us.
#[derive(Debug)]
pub(super) struct Dump {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

impl Dump {
    fn of(socket: &mut RouteSocket) -> Result<Self, KernelError> {
        Ok(Self {
            links: socket.links()?,
            addresses: socket.addresses()?,
            routes: socket.routes()?,
        })
    }

    /// Of a sandbox, where no routes matter but ours, and those of them that are local.
    pub(super) fn of_sandbox(socket: &mut RouteSocket) -> Result<(Self, Vec<LocalRoute>), KernelError> {
        let (routes, local) = socket.marked_routes(ROUTE_PROTOCOL)?;
        let dump = Self {
            links: socket.links()?,
            addresses: socket.addresses()?,
            routes,
        };
        Ok((dump, local))
    }

    fn named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    fn addresses_of(&self, link: u32) -> impl Iterator<Item = IpNet> {
        self.addresses
            .iter()
            .filter(move |address| address.link == link)
            .map(|address| address.net)
    }

    /// Those without the ones whose subnet has no route any more: nothing goes there before they are set anew.
    fn routed_addresses_of(&self, link: u32) -> impl Iterator<Item = IpNet> {
        let is_routed = move |net: &IpNet| {
            let is_single = net.prefix_len() == net.max_prefix_len();
            let leads = |route: &Route| route.link == link && route.via.is_none() && route.to == net.trunc();
            is_single || self.routes.iter().any(leads)
        };
        self.addresses_of(link).filter(is_routed)
    }

    fn has_default(&self, via: IpAddr, link: u32) -> bool {
        self.routes
            .iter()
            .any(|route| route.to.prefix_len() == 0 && route.via == Some(via) && route.link == link)
    }
}

impl Kernel {
    /// Looks at the kernel. What is desired tells where to look: into which sandboxes.
    ///
    /// Finds what an agent that died left, in any state. Somebody else may look along into the sandboxes.
    pub fn observe(&mut self, desired: &Desired, along: Option<&dyn Along>) -> Result<Observed, KernelError> {
        let host = Dump::of(&mut self.route)?;
        let mut observed = Observed {
            host: self.observe_host(&host)?,
            networks: BTreeMap::new(),
        };
        self.spaces.clear();
        let ids: HashMap<String, NetworkId> = desired.networks.keys().map(|id| (id.short(), *id)).collect();
        let id_of = |path: &Path| network_id(path.file_name()?.to_str()?, &ids);
        let there = self.netns_files()?.into_iter();
        let there: Vec<_> = there.filter_map(|path| Some((id_of(&path)?, path))).collect();
        let networks = there.iter().filter_map(|(id, _)| desired.networks.get(id));
        let paths = sandboxes::of(networks);
        let ahead = self.ahead.take();
        // Into sandboxes beside the namespaces of networks.
        thread::scope(|scope| {
            let sandboxes = Sandboxes::look(scope, &paths, along, ahead);
            self.observe_networks(desired, &host, there, sandboxes, &mut observed)
        })?;
        // The host's end of an uplink whose namespace lost its name.
        for alias in host.links.iter().filter_map(|link| link.alias.as_deref()) {
            let id = alias
                .strip_prefix(UPLINK_ALIAS)
                .and_then(|short| network_id(short.trim_start(), &ids));
            if let Some(id) = id {
                observed.networks.entry(id).or_default();
            }
        }
        Ok(observed)
    }

    fn observe_networks(
        &mut self,
        desired: &Desired,
        host: &Dump,
        there: Vec<(NetworkId, PathBuf)>,
        mut sandboxes: Sandboxes<'_>,
        observed: &mut Observed,
    ) -> Result<(), KernelError> {
        for (id, path) in there {
            let netns = match Netns::open(&path) {
                Ok(netns) => netns,
                // A crash between making the file and the mount, or between unmounting and removing.
                Err(NetnsError::NotANetns { .. } | NetnsError::NotFound { .. }) => {
                    observed.networks.insert(id, ObservedNetwork::default());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let uplink_host = host.named(&names::uplink_host(id));
            let uplink_host =
                uplink_host.filter(|link| link.alias.as_deref() == Some(&names::uplink_host_alias(id)));
            let (mut space, mut network) = observe_network(
                netns,
                desired.networks.get(&id),
                uplink_host,
                host,
                &mut sandboxes,
            )?;
            space.uplink = network.uplink.filter(|uplink| uplink.intact);
            if let Some(ingress) = &mut network.ingress {
                ingress.intact = ingress.intact && self.lets_loopback_in(id, &space)?;
            }
            self.spaces.insert(id, space);
            observed.networks.insert(id, network);
        }
        Ok(())
    }

    fn observe_host(&mut self, dump: &Dump) -> Result<Host, KernelError> {
        let ours: BTreeSet<u32> = dump
            .links
            .iter()
            .filter(|link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(MARK)))
            .map(|link| link.index)
            .collect();
        let link_local = dump
            .addresses
            .iter()
            .filter(|address| !ours.contains(&address.link));
        let on = |name: &str| match self.host.sysctls(&[name]) {
            Ok(values) => Ok(values == ["1"]),
            // A kernel without IPv6 has nothing to be switched on.
            Err(NetnsError::Os { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        };
        self.docker = [gate::observe(&self.nft, false)?, gate::observe(&self.nft, true)?];
        Ok(Host {
            rules: rules::observe_host(&self.nft)?,
            ports: ports::observe_host(&self.nft)?,
            forwarding: Forwarding {
                ipv4: on(FORWARDING[0])?,
                ipv6: on(FORWARDING[1])?,
            },
            docker: self.docker,
            link_local: link_local
                .filter_map(|address| match address.net {
                    IpNet::V4(net) if net.addr().is_link_local() => Some(net.trunc()),
                    _ => None,
                })
                .collect(),
        })
    }

    /// Whether the host's end of an uplink takes answers to the host's own calls of published ports.
    fn lets_loopback_in(&mut self, id: NetworkId, space: &Space) -> Result<bool, KernelError> {
        let (Some(uplink), Some(outside)) = (&space.uplink, space.links.uplink_host) else {
            return Ok(false);
        };
        let localnet = self.host.sysctls(&[names::route_localnet(id)])?;
        let route = loopback_route(uplink, outside);
        let routed = !uplink.ipv6 || self.route.local_routes(ROUTE_PROTOCOL)?.contains(&route);
        Ok(localnet == ["1"] && routed)
    }

    fn netns_files(&self) -> Result<Vec<PathBuf>, KernelError> {
        let error = |source| KernelError::List {
            path: self.netns_dir.clone(),
            source,
        };
        match fs::read_dir(&self.netns_dir) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(error(source)),
            Ok(entries) => entries.map(|entry| Ok(entry.map_err(error)?.path())).collect(),
        }
    }
}

/// The network that a short id belongs to. One that is not desired gets the rest of its id made up: it is there
/// to be deleted, and for that the short id is enough.
fn network_id(short: &str, desired: &HashMap<String, NetworkId>) -> Option<NetworkId> {
    if short.len() != NetworkId([0; 16]).short().len() {
        return None;
    }
    desired
        .get(short)
        .copied()
        .or_else(|| format!("{short:0<32}").parse().ok())
}

fn observe_network(
    netns: Netns,
    desired: Option<&Network>,
    uplink_host: Option<&Link>,
    host: &Dump,
    sandboxes: &mut Sandboxes<'_>,
) -> Result<(Space, ObservedNetwork), KernelError> {
    let mut route = RouteSocket::open(&netns)?;
    let nft = Nft::open_in(&netns)?;
    let dump = Dump::of(&mut route)?;
    let bridge = dump.named(BRIDGE).filter(|link| link.kind == "bridge");
    let index = bridge.map_or(0, |link| link.index);
    let tunnel = dump.named(TUNNEL);
    let uplink = dump.named(UPLINK);
    let links = Links {
        bridge: index,
        tunnel: tunnel.map(|link| link.index),
        uplink: uplink.map(|link| link.index),
        uplink_host: uplink_host.map(|link| link.index),
        ingress: dump.named(INGRESS).map(|link| link.index),
        ingress_port: dump.named(INGRESS_PORT).map(|link| link.index),
    };
    // Of ports only what should be there matters, and of the tunnel all there is.
    let locals = desired.into_iter().flat_map(|network| network.endpoints.values());
    let macs = locals.map(|endpoint| endpoint.mac);
    let macs: Vec<Mac> = macs
        .chain(dump.named(INGRESS).and_then(|link| link.mac))
        .collect();
    let of_ports = match bridge {
        Some(_) => route.fdb_of_bridge(index, &macs)?,
        None => HashMap::new(),
    };
    let has_entry = |port: u32, mac| {
        of_ports
            .get(&mac)
            .is_some_and(|entry| entry.link == port && entry.is_static)
    };
    let fdb = match links.tunnel {
        Some(tunnel) => route.fdb(Some(tunnel))?,
        None => Vec::new(),
    };
    let neighbours = route.neighbours()?;
    let mut network = ObservedNetwork {
        bridge: bridge.and_then(|link| {
            let name = link.alias.as_deref()?.strip_prefix(MARK)?.to_owned();
            Some(Bridge {
                mac: link.mac?,
                mtu: link.mtu,
                name,
                up: link.up,
            })
        }),
        addresses: dump
            .routed_addresses_of(index)
            .filter(|net| !is_ipv6_link_local(net))
            .collect(),
        tunnel: tunnel.and_then(|link| {
            let carrier = match link.detail.vxlan {
                Some(options) => Carrier::Vxlan {
                    vni: options.vni,
                    local: options.local,
                    port: options.port,
                    sealed: link.alias.as_deref() == Some(names::SEALED_ALIAS),
                },
                None if link.kind == "tun" => Carrier::Tap,
                None => return None,
            };
            let as_made = link.up
                && link.master == Some(index)
                && link.detail.port == Some(super::execute::TUNNEL_PORT);
            let mtu = link.mtu;
            as_made.then_some(Tunnel { carrier, mtu })
        }),
        uplink: None,
        ingress: None,
        sources: ports::observe_network(&nft)?,
        endpoints: BTreeMap::new(),
        fdb: BTreeMap::new(),
        neighbours: neighbours
            .iter()
            .filter(|entry| entry.link == index && entry.permanent)
            .filter_map(|entry| Some((entry.address, entry.mac?)))
            .collect(),
    };
    if uplink.is_some() || uplink_host.is_some() {
        network.uplink = Some(observe_uplink(
            &dump,
            uplink,
            host,
            uplink_host,
            rules::observe_network(&nft)?,
        ));
    }
    if links.ingress.is_some() || links.ingress_port.is_some() {
        let (far, port) = (dump.named(INGRESS), dump.named(INGRESS_PORT));
        let intact = far.zip(port).is_some_and(|(far, port)| {
            far.up
                && far.mtu == port.mtu
                && is_as_made(port, index)
                && far.mac.is_some_and(|mac| has_entry(port.index, mac))
        });
        network.ingress = Some(IngressLink {
            mac: far.and_then(|link| link.mac).unwrap_or(Mac([0; 6])),
            mtu: far.map_or(0, |link| link.mtu),
            addresses: dump
                .addresses_of(links.ingress.unwrap_or(0))
                .filter(|net| !is_ipv6_link_local(net))
                .map(|net| net.addr())
                .collect(),
            intact,
        });
    }
    let has_vxlan = matches!(
        network.tunnel,
        Some(Tunnel {
            carrier: Carrier::Vxlan { .. },
            ..
        })
    );
    if let (Some(tunnel), Some(_)) = (links.tunnel, network.tunnel) {
        let of_tunnel = |of_bridge: bool| {
            fdb.iter()
                .filter(move |e| e.link == tunnel && e.is_static && e.vtep.is_none() == of_bridge)
        };
        let bridged: BTreeSet<Mac> = of_tunnel(true).map(|entry| entry.mac).collect();
        if !has_vxlan {
            let known = bridged.iter().map(|mac| (*mac, Some(Far::Process)));
            network.fdb.extend(known);
        }
        let macs = of_tunnel(true).chain(of_tunnel(false)).map(|entry| entry.mac);
        for mac in macs.filter(|_| has_vxlan) {
            let mut vteps = of_tunnel(false)
                .filter(|entry| entry.mac == mac)
                .filter_map(|entry| entry.vtep);
            let vtep = vteps
                .next()
                .filter(|_| vteps.next().is_none() && bridged.contains(&mac));
            network.fdb.insert(mac, vtep.map(Far::Vtep));
        }
    }
    let mut endpoints = BTreeMap::new();
    for port in &dump.links {
        let id = port
            .alias
            .as_deref()
            .and_then(|alias| alias.strip_prefix(MARK)?.parse::<EndpointId>().ok());
        let Some(id) = id else { continue };
        let local = desired.and_then(|network| network.endpoints.get(&id));
        let seen = local.and_then(|local| {
            let sandbox = local.place.sandbox()?;
            Some((sandbox, sandboxes.seen(&sandbox.path)?)).filter(|(_, seen)| seen.id == sandbox.id)
        });
        let has_entry = |mac| has_entry(port.index, mac);
        let (endpoint, far_end) = match local {
            Some(LocalEndpoint {
                mac,
                place: Place::Engine { .. },
                ..
            }) => {
                let intact = is_as_made(port, index) && has_entry(*mac);
                let endpoint = ObservedEndpoint::handed_over(*mac, port.mtu);
                (ObservedEndpoint { intact, ..endpoint }, None)
            }
            _ => {
                let (mut endpoint, far_end) = observe_endpoint(id, port, index, seen, has_entry);
                if local.is_some_and(|local| matches!(local.place, Place::Host(_))) {
                    endpoint.intact = endpoint.intact && own::is_marked(&nft, &port.name)?;
                }
                (endpoint, far_end)
            }
        };
        network.endpoints.insert(id, endpoint);
        endpoints.insert(
            id,
            Handle {
                port: port.index,
                far_end,
            },
        );
    }
    let next_port = dump
        .links
        .iter()
        .map(|link| link.index + 1)
        .max()
        .unwrap_or(0)
        .max(names::FIRST_PORT_INDEX);
    Ok((
        Space {
            netns,
            route,
            nft: Some(nft),
            links,
            uplink: None,
            has_vxlan,
            endpoints,
            next_port,
            found: Some(dump.links),
        },
        network,
    ))
}

fn observe_uplink(
    dump: &Dump,
    inside: Option<&Link>,
    host: &Dump,
    outside: Option<&Link>,
    masquerade: bool,
) -> Uplink {
    let mut uplink = Uplink {
        slot: 0,
        ipv6: false,
        mtu: 0,
        intact: false,
    };
    let (Some(inside), Some(outside)) = (inside, outside) else {
        return uplink;
    };
    let outer: BTreeSet<IpNet> = host.routed_addresses_of(outside.index).collect();
    let inner: BTreeSet<IpNet> = dump.routed_addresses_of(inside.index).collect();
    let slot = outer.iter().find_map(|net| match net {
        IpNet::V4(net) if Uplink::IPV4.contains(&net.addr()) => {
            u16::try_from((net.addr().to_bits() - Uplink::IPV4.network().to_bits()) / 2).ok()
        }
        _ => None,
    });
    let Some(slot) = slot else { return uplink };
    uplink = Uplink {
        slot,
        mtu: inside.mtu,
        ..uplink
    };
    uplink.ipv6 = inner.iter().any(|net| net.addr() == IpAddr::V6(uplink.ipv6().1));
    let ends = uplink.ends();
    uplink.intact = masquerade
        && inside.up
        && outside.up
        && inside.mtu == outside.mtu
        && ends.iter().all(|(host_end, network_end)| {
            outer.contains(host_end)
                && inner.contains(network_end)
                && dump.has_default(host_end.addr(), inside.index)
        });
    uplink
}

fn observe_endpoint(
    id: EndpointId,
    port: &Link,
    bridge: u32,
    seen: Option<(&Sandbox, &Seen)>,
    has_entry: impl Fn(Mac) -> bool,
) -> (ObservedEndpoint, Option<FarEnd>) {
    let mut endpoint = ObservedEndpoint {
        mac: Mac([0; 6]),
        mtu: port.mtu,
        sandbox: None,
        intact: false,
        addresses: BTreeSet::new(),
        routes: BTreeSet::new(),
    };
    let Some((sandbox, seen)) = seen else {
        return (endpoint, None);
    };
    let alias = names::endpoint_alias(id);
    let far_end = seen
        .dump
        .links
        .iter()
        .find(|link| link.alias.as_deref() == Some(&alias));
    let Some(link) = far_end.filter(|link| port.peer == Some(link.index) && link.peer == Some(port.index))
    else {
        return (endpoint, None);
    };
    endpoint.sandbox = Some(seen.id);
    endpoint.mac = link.mac.unwrap_or(endpoint.mac);
    // Whichever end differs from what is desired is put right with both.
    endpoint.mtu = if link.mtu == port.mtu { port.mtu } else { 0 };
    endpoint.intact = link.up && is_as_made(port, bridge) && has_entry(endpoint.mac);
    endpoint.addresses = seen
        .dump
        .addresses_of(link.index)
        .filter(|net| !is_ipv6_link_local(net))
        .collect();
    let ours = seen
        .dump
        .routes
        .iter()
        .filter(|r| r.link == link.index && r.protocol == ROUTE_PROTOCOL);
    endpoint.routes = ours
        .map(|r| EndpointRoute {
            to: r.to,
            via: r.via,
            metric: r.metric,
        })
        .collect();
    let far_end = FarEnd {
        sandbox: sandbox.clone(),
        index: link.index,
        name: link.name.clone(),
    };
    (endpoint, Some(far_end))
}

/// Whether a port is up and on the bridge, with the flags it should have.
fn is_as_made(port: &Link, bridge: u32) -> bool {
    port.up
        && port.master == Some(bridge)
        && port
            .detail
            .port
            .is_some_and(|flags| (flags.learning, flags.flood) == (Some(false), Some(false)))
}

/// The kernel gives these by itself.
fn is_ipv6_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}
