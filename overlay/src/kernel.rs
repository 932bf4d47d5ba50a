//! Reads back what the kernel holds and carries plans out. Blocking: for a thread of its own.
//!
//! Decisions are [`plan`](crate::plan)'s. What is here knows names, interface indexes and sockets. All objects carry
//! a mark: links an alias `weft:…`, nft tables the name `weft-overlay`, routes in sandboxes a protocol number of
//! their own, and rules in the chain that dockerd has for others (`DOCKER-USER`) a comment. Nothing without the mark
//! is changed, but for two things that endpoints need and that are never taken back: the loopback of a sandbox is
//! brought up, and a host with a network that has a way out forwards packets.
//!
//! No handle on a sandbox is kept: its namespace goes when its last process does.

mod addresses;
mod error;
mod execute;
mod gate;
mod names;
mod observe;
mod own;
mod ports;
mod rules;
mod sandboxes;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use weft_netlink::{
    look::Along,
    netns::{Netns, NetnsError, NetnsId},
    nft::Nft,
    route::{Link, Losses, RouteSocket},
};
use weft_types::{EndpointId, NetworkId};

use self::sandboxes::Ahead;
pub use self::{
    error::{Cause, KernelError, OpError},
    names::{TUNNEL, namespace_path, netns_dir, wireguard_path},
};
use crate::plan::{
    Desired, Gate, HostPorts, Observed, ObservedNetwork, Plan, Sandbox, Uplink, plan, plan_since,
};

/// Where the kernel part keeps things.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder for what lives as long as the host is up; namespaces are named in `netns` below it.
    pub run_dir: PathBuf,
}

/// The overlay networks of this host, as kernel objects. The host is the namespace it was made in.
#[derive(Debug)]
pub struct Kernel {
    netns_dir: PathBuf,
    /// Keeps the namespace of the kernel's WireGuard.
    wireguard: PathBuf,
    host: Netns,
    route: RouteSocket,
    nft: Nft,
    spaces: BTreeMap<NetworkId, Space>,
    /// dockerd's firewall for IPv4 and for IPv6, as it was last seen or set.
    docker: [Option<Gate>; 2],
    /// What the kernel holds, if nothing else than we changed it.
    observed: Option<Observed>,
    /// What that is the same as.
    settled: Option<Desired>,
    /// Sandboxes that are looked into already, for the next who looks.
    ahead: Option<Ahead>,
}

/// An open overlay namespace.
#[derive(Debug)]
struct Space {
    netns: Netns,
    route: RouteSocket,
    nft: Option<Nft>,
    links: Links,
    uplink: Option<Uplink>,
    /// Whether its tunnel has forwarding entries of its own.
    has_vxlan: bool,
    endpoints: BTreeMap<EndpointId, Handle>,
    next_port: u32,
    /// The links that were found by the last [`Kernel::reconcile`], if it looked.
    found: Option<Vec<Link>>,
}

/// Interface indexes; `None` for what is not there.
#[derive(Debug, Default, Clone, Copy)]
struct Links {
    bridge: u32,
    tunnel: Option<u32>,
    uplink: Option<u32>,
    /// In the host's namespace.
    uplink_host: Option<u32>,
    ingress: Option<u32>,
    ingress_port: Option<u32>,
}

/// How to reach an endpoint's two ends.
#[derive(Debug, Clone)]
struct Handle {
    port: u32,
    far_end: Option<FarEnd>,
}

/// An endpoint's interface in its sandbox.
#[derive(Debug, Clone)]
struct FarEnd {
    sandbox: Sandbox,
    index: u32,
    name: String,
}

/// What a [`Kernel::reconcile`] did.
#[derive(Debug, Default)]
pub struct Report {
    /// How many operations were carried out.
    pub ops_done: usize,
    /// Those that were not. They are tried again the next time.
    pub errors: Vec<OpError>,
}

/// The device that has an underlay address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Its name.
    pub device: String,
    /// Its largest packet.
    pub mtu: u32,
}

impl Kernel {
    /// Opens sockets in the calling thread's namespace, which is the host from now on. Changes nothing.
    pub fn new(options: Options) -> Result<Self, KernelError> {
        let host = Netns::current()?;
        let route = RouteSocket::open(&host)?;
        let nft = Nft::open_in(&host)?;
        let netns_dir = names::netns_dir(&options.run_dir);
        Ok(Self {
            netns_dir,
            wireguard: names::wireguard_path(&options.run_dir),
            host,
            route,
            nft,
            spaces: BTreeMap::new(),
            docker: [None; 2],
            observed: None,
            settled: None,
            ahead: None,
        })
    }

    /// Begins to look into sandboxes, for a [`reconcile`](Self::reconcile) that comes in a moment: what it is to be told takes time to find
    /// out. It looks into others that it needs, and into those that could not be opened.
    pub fn look_ahead(&mut self, sandboxes: Vec<PathBuf>, along: Arc<dyn Along + Send>) {
        self.ahead = Ahead::look(sandboxes, along);
    }

    /// Makes the kernel hold what is desired: the difference from what it held when last looked at.
    pub fn reconcile(&mut self, desired: &Desired) -> Result<Report, KernelError> {
        self.reconcile_with(desired, None)
    }

    /// The same, with somebody who looks along should sandboxes be looked into.
    pub fn reconcile_with(
        &mut self,
        desired: &Desired,
        along: Option<&dyn Along>,
    ) -> Result<Report, KernelError> {
        let before = self.settled.take();
        self.spaces.values_mut().for_each(|space| space.found = None);
        let (observed, plan) = match self.observed.take() {
            Some(observed) => {
                let plan = match &before {
                    Some(before) => plan_since(before, desired, &observed),
                    None => plan(desired, &observed),
                };
                (observed, plan)
            }
            None => {
                let observed = self.observe(desired, along)?;
                let plan = plan(desired, &observed);
                (observed, plan)
            }
        };
        if plan.ops.is_empty() {
            self.observed = Some(observed);
            self.settled = Some(desired.clone());
            return Ok(Report::default());
        }
        let errors = self.apply(&plan);
        let failed: BTreeSet<usize> = errors.iter().map(|(op, _)| *op).collect();
        let report = Report {
            ops_done: plan.ops.len() - failed.len(),
            errors: errors.into_iter().map(|(_, error)| error).collect(),
        };
        if report.errors.is_empty() {
            let mut observed = observed;
            let possible = plan.ops.iter().all(|op| observed.record(op));
            self.observed = possible.then_some(observed);
            self.settled = possible.then(|| desired.clone());
        }
        // After an error nobody knows how much of an operation was done: look again the next time.
        Ok(report)
    }

    /// What a [`reconcile`](Self::reconcile) would do now that the kernel has been looked at anew. Changes nothing.
    pub fn examine(&mut self, desired: &Desired) -> Result<Plan, KernelError> {
        self.resync();
        let observed = self.observe(desired, None)?;
        let plan = plan(desired, &observed);
        self.observed = Some(observed);
        Ok(plan)
    }

    /// What dockerd's firewall does with what goes in and out of networks over IPv4, if there is one.
    pub fn docker(&self) -> Option<Gate> {
        self.docker[0]
    }

    /// What the kernel held of a network when it was last looked at, and was given since.
    pub fn observed(&self, network: NetworkId) -> Option<&ObservedNetwork> {
        self.observed.as_ref()?.networks.get(&network)
    }

    /// Forgets what is known about the kernel: the next [`reconcile`](Self::reconcile) looks at it.
    pub fn resync(&mut self) {
        self.observed = None;
        self.settled = None;
    }

    /// Which namespace a network that has a local endpoint is in now: damage may have made it anew.
    pub fn namespace_id(&self, network: NetworkId) -> Option<NetnsId> {
        Some(self.spaces.get(&network)?.netns.id())
    }

    /// The namespace that a network has, whoever made it and whatever is in it.
    pub fn find_namespace(&self, network: NetworkId) -> Result<Netns, NetnsError> {
        Netns::open(self.netns_dir.join(network.short()))
    }

    /// The namespace of a network that has a local endpoint, for sockets in it.
    pub fn namespace(&self, network: NetworkId) -> Result<Option<Netns>, NetnsError> {
        self.spaces
            .get(&network)
            .map(|space| space.netns.try_clone())
            .transpose()
    }

    /// The links of a network's namespace as the last [`reconcile`](Self::reconcile) found them, before it changed any; `None` if it did not
    /// look at them. Told once.
    pub fn take_links(&mut self, network: NetworkId) -> Option<Vec<Link>> {
        self.spaces.get_mut(&network)?.found.take()
    }

    /// What the devices have lost that carry networks to other hosts, of those networks that have one.
    pub fn losses(&mut self) -> impl Iterator<Item = (NetworkId, Losses)> {
        self.spaces.iter_mut().filter_map(|(network, space)| {
            // One that somebody has just taken away is about to be made anew.
            let losses = space.route.losses(space.links.tunnel?).ok()??;
            Some((*network, losses))
        })
    }

    /// The addresses at which published ports lead into a network: of its end of the uplink.
    pub fn entry(&self, network: NetworkId) -> Vec<IpAddr> {
        let uplink = self.spaces.get(&network).and_then(|space| space.uplink);
        let ends = uplink.iter().flat_map(Uplink::ends);
        ends.map(|(_, network)| network.addr()).collect()
    }

    /// The ports that are open in the kernel now, whoever opened them.
    pub fn open_ports(&self) -> Result<HostPorts, KernelError> {
        Ok(ports::observe_host(&self.nft)?.unwrap_or_default())
    }

    /// Whether a link, by its index in a network's namespace or else in the host's, is one that this made, or found
    /// when it last looked, and did not delete since.
    pub fn has_link(&self, network: Option<NetworkId>, link: u32) -> bool {
        let link = Some(link);
        let Some(network) = network else {
            return self.spaces.values().any(|space| space.links.uplink_host == link);
        };
        self.spaces.get(&network).is_some_and(|space| {
            let Links {
                bridge,
                tunnel,
                uplink,
                ingress,
                ingress_port,
                ..
            } = space.links;
            [Some(bridge), tunnel, uplink, ingress, ingress_port].contains(&link)
                || space
                    .endpoints
                    .values()
                    .any(|endpoint| Some(endpoint.port) == link)
        })
    }

    /// The name of an endpoint's interface in its sandbox, if it has one.
    pub fn ifname(&self, network: NetworkId, endpoint: EndpointId) -> Option<&str> {
        let handle = self.spaces.get(&network)?.endpoints.get(&endpoint)?;
        Some(&handle.far_end.as_ref()?.name)
    }

    /// The device that has this address; `None` if no device of the host has it.
    pub fn underlay(&mut self, address: IpAddr) -> Result<Option<Underlay>, KernelError> {
        let addresses = self.route.addresses()?;
        let Some(found) = addresses.iter().find(|found| found.net.addr() == address) else {
            return Ok(None);
        };
        let link = self
            .route
            .links()?
            .into_iter()
            .find(|link| link.index == found.link);
        Ok(link.map(|link| Underlay {
            device: link.name,
            mtu: link.mtu,
        }))
    }
}
