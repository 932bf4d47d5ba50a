//! The kernel's WireGuard as what encrypts: one device in a namespace of its own, with nothing else in it.
//!
//! ```text
//! container ─ veth ─ bridge ─ VXLAN vx0     the network's namespace
//!                               ┆ UDP 4789
//!                             wg0           the namespace of the tunnels
//!                               ┆ UDP 51820
//!                             underlay      the host
//! ```
//!
//! The VXLAN devices of encrypted networks have their sockets in the namespace of the tunnels, and the device has its own on
//! the host. So there is no way around the device: while it is not there or not up, what is sent has nowhere to go. All
//! of it outlives the agent, which finds it again and writes the difference.

mod plan;
mod rules;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use ipnet::{IpNet, Ipv4Net};
use nix::errno::Errno;
use weft_netlink::{
    netns::{Netns, NetnsError},
    nft::{Nft, NftError},
    route::{Address, Batch, BatchError, DumpError, NewLink, OpenError, Request, RouteSocket, SetLink},
    wireguard::{Device, DeviceChange, PeerChange, PeerSet, WireguardError, WireguardSocket},
};

use crate::{Desired, NetworkStatus, PairStatus, PeerStatus, Secret32, Status, secret::scrub_stack};

/// The device, in a namespace where nobody else makes any.
const DEVICE: &str = "wg0";
/// The length of the prefix that the addresses inside tunnels are of (RFC 6598).
const ADDRESSES: u8 = 10;
/// Seconds; any will do, see [`Kernel::greet`].
const KEEPALIVE: u16 = 25;

/// Why the kernel's WireGuard cannot do what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel has none.
    #[error("this kernel has no WireGuard")]
    Missing,
    /// Somebody took the device away, or the kernel does not show what it has made.
    #[error("the WireGuard device {DEVICE} is not there")]
    Gone,
    /// Nothing can be encrypted.
    #[error("this node has no key")]
    NoKey,
    /// What is wanted contradicts itself.
    #[error("{0}")]
    Impossible(String),
    /// The namespace of the tunnels could not be made or entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No socket for links and addresses.
    #[error(transparent)]
    Route(#[from] OpenError),
    /// Links or addresses could not be read.
    #[error(transparent)]
    Read(#[from] DumpError),
    /// Links or addresses could not be changed.
    #[error(transparent)]
    Change(#[from] BatchError),
    /// The rules could not be read or written.
    #[error(transparent)]
    Rules(#[from] NftError),
    /// The device could not be asked or told.
    #[error(transparent)]
    Device(#[from] WireguardError),
}

/// The tunnels of this host as a WireGuard device of the kernel's. Blocking. The host is the namespace it was made in.
pub struct Kernel {
    host: Netns,
    path: PathBuf,
    vxlan_port: u16,
    inside: Option<Inside>,
    /// Where peers were said to be.
    announced: BTreeMap<Ipv4Addr, SocketAddr>,
    /// The newest key, and since when it is that.
    newest: Option<([u8; 32], Instant)>,
    /// When this run gave the device a key.
    key_set: Option<SystemTime>,
}

/// Sockets of the namespace of the tunnels.
struct Inside {
    netns: Netns,
    route: RouteSocket,
    nft: Nft,
    wireguard: WireguardSocket,
}

/// Why the kernel's WireGuard cannot be used here, a sentence; `Ok` if it can.
pub fn probe() -> Result<(), KernelError> {
    // Where nobody sees it.
    let netns = Netns::create()?;
    let mut route = RouteSocket::open(&netns)?;
    let mut batch = Batch::new();
    batch.add(NewLink::wireguard(DEVICE));
    route.execute(batch).map_err(|error| match error {
        // There is no such kind of link, and no module of the name.
        BatchError::Refused(refusals) if refusals.iter().any(|one| one.errno == Errno::EOPNOTSUPP as i32) => {
            KernelError::Missing
        }
        error => error.into(),
    })?;
    match WireguardSocket::open(&netns)?.device(DEVICE)? {
        Some(_) => Ok(()),
        None => Err(KernelError::Gone),
    }
}

impl Kernel {
    /// With the namespace of the tunnels kept at this path, and VXLAN inside them at this port. Changes nothing.
    pub fn new(path: PathBuf, vxlan_port: u16) -> Result<Self, KernelError> {
        Ok(Self {
            host: Netns::current()?,
            path,
            vxlan_port,
            inside: None,
            announced: BTreeMap::new(),
            newest: None,
            key_set: None,
        })
    }

    /// Makes it so, or says why that cannot be; the next call tries it again.
    ///
    /// `mtu` is the largest packet inside the tunnels.
    pub fn apply(&mut self, desired: &Desired, mtu: u32) -> Result<(), KernelError> {
        crate::table::check(desired).map_err(KernelError::Impossible)?;
        let done = self.try_apply(desired, mtu);
        scrub_stack();
        if done.is_err() {
            // Whatever it was, the next one begins anew.
            self.inside = None;
        }
        done
    }

    fn try_apply(&mut self, desired: &Desired, mtu: u32) -> Result<(), KernelError> {
        let known_for = self.known_for(desired);
        // A namespace that lost its name is found by nobody else.
        let is_named =
            |inside: &Inside| Netns::open(&self.path).is_ok_and(|netns| netns.id() == inside.netns.id());
        if !self.inside.as_ref().is_some_and(is_named) {
            self.inside = None;
        }
        let inside = match &mut self.inside {
            Some(inside) => inside,
            None => self.inside.insert(Inside::open(&self.path)?),
        };
        // Nothing is let in before it is said from whom.
        rules::ensure(&inside.nft, self.vxlan_port, &desired.networks)?;
        inside.ensure_device(&self.host)?;
        let held = inside.held()?;
        let own = plan::own_key(desired, &held, known_for).ok_or(KernelError::NoKey)?;
        let mut plan = plan::plan(desired, own, &held, &self.announced);
        // With another key a device that sends all the time begins handshakes at once: what they need is there by then.
        let other_key = plan.change.private_key.take_if(|_| held.public_key.is_some());
        if other_key.is_some() || plan.change.private_key.is_some() {
            self.key_set = Some(SystemTime::now());
        }
        if !plan.change.is_empty() {
            inside.change(&plan.change)?;
        }
        if other_key.is_some() {
            inside.change(&DeviceChange {
                private_key: other_key,
                ..DeviceChange::default()
            })?;
        }
        self.announced = desired
            .peers
            .iter()
            .map(|peer| (peer.vtep, peer.endpoint))
            .collect();
        // It has its key: it may be up.
        inside.ensure_up(desired.vtep, mtu)?;
        inside.greet(&plan.greet)
    }

    /// For how long the newest key of this node is that.
    fn known_for(&mut self, desired: &Desired) -> Duration {
        let Some(newest) = desired.private_keys.first().map(Secret32::public_key) else {
            return Duration::ZERO;
        };
        let now = Instant::now();
        match self.newest {
            Some((key, since)) if key == newest => now.duration_since(since),
            _ => {
                self.newest = Some((newest, now));
                Duration::ZERO
            }
        }
    }

    /// How things are.
    pub fn status(&mut self, desired: &Desired) -> Result<Status, KernelError> {
        let inside = self.inside.as_mut().ok_or(KernelError::Gone)?;
        let held = inside.held()?;
        let now = SystemTime::now();
        let peers = desired.peers.iter();
        Ok(Status {
            generation: desired.generation,
            port: held.port,
            networks: desired.networks.iter().map(network_status).collect(),
            peers: peers
                .map(|peer| peer_status(peer, &held, self.key_set, now))
                .collect(),
            dropped: crate::Dropped {
                not_a_member: rules::refused(&inside.nft)?,
                ..Default::default()
            },
        })
    }

    /// Whether somebody changes a key, so that the device is to be looked at often.
    pub fn is_changing(desired: &Desired) -> bool {
        desired.private_keys.len() > 1 || desired.peers.iter().any(|peer| peer.pairs.len() > 1)
    }

    /// Leaves nothing.
    pub fn remove(&mut self) -> Result<(), KernelError> {
        self.inside = None;
        (self.newest, self.key_set) = (None, None);
        self.announced.clear();
        remove(&self.path)
    }
}

/// Takes the namespace of the tunnels away, and all that is in it; that there is none is no error.
pub fn remove(path: &Path) -> Result<(), KernelError> {
    let netns = match Netns::open(path) {
        Ok(netns) => netns,
        Err(NetnsError::NotFound { .. }) => return Ok(()),
        Err(_) => return Ok(Netns::remove_at(path)?),
    };
    // One by one: a mount namespace elsewhere may keep the namespace itself.
    let mut route = RouteSocket::open(&netns)?;
    let links = route.links()?;
    let mut batch = Batch::new();
    for link in links.iter().filter(|link| link.name == DEVICE) {
        batch.add([weft_netlink::route::delete_link(link.index)]);
    }
    route.execute(batch)?;
    Ok(Netns::remove_at(path)?)
}

impl Inside {
    fn open(path: &Path) -> Result<Self, KernelError> {
        let netns = Netns::ensure_at(path)?;
        // Nothing goes through it from one tunnel to another.
        netns.set_sysctls(&[("net/ipv4/ip_forward", "0")])?;
        Ok(Self {
            route: RouteSocket::open(&netns)?,
            nft: Nft::open_in(&netns)?,
            wireguard: WireguardSocket::open(&netns)?,
            netns,
        })
    }

    /// Made by a socket of the host, and so with its UDP socket on the underlay, but born here.
    fn ensure_device(&mut self, host: &Netns) -> Result<(), KernelError> {
        use std::os::fd::AsFd as _;
        let links = self.route.links()?;
        if links.iter().any(|link| link.name == DEVICE) {
            return Ok(());
        }
        let mut outside = RouteSocket::open(host)?;
        let mut batch = Batch::new();
        batch.add(NewLink::wireguard(DEVICE).netns(self.netns.as_fd()));
        Ok(outside.execute(batch)?)
    }

    fn held(&mut self) -> Result<Device, KernelError> {
        let held = self.wireguard.device(DEVICE)?;
        held.ok_or(KernelError::Gone)
    }

    fn change(&mut self, change: &DeviceChange) -> Result<(), KernelError> {
        Ok(self.wireguard.change(DEVICE, change)?)
    }

    /// The address, the largest packet, and up.
    fn ensure_up(&mut self, vtep: Ipv4Addr, mtu: u32) -> Result<(), KernelError> {
        let links = self.route.links()?;
        let link = links.iter().find(|link| link.name == DEVICE);
        let link = link.ok_or(KernelError::Gone)?;
        let index = link.index;
        // With the route to all the others.
        let net = Ipv4Net::new(vtep, ADDRESSES).expect("ten of 32 bits");
        let (mut requests, mut has_address): (Vec<Request>, bool) = (Vec::new(), false);
        for address in self.route.addresses()? {
            if address.link != index {
                continue;
            }
            match address.net {
                IpNet::V4(other) if other == net => has_address = true,
                IpNet::V4(_) => requests.push(address.delete()),
                IpNet::V6(_) => {}
            }
        }
        if link.mtu != mtu {
            requests.extend(SetLink::index(index).mtu(mtu));
        }
        if !has_address {
            let address = Address {
                link: index,
                net: net.into(),
                prefix_route: true,
            };
            requests.push(address.add());
        }
        if !link.up {
            requests.extend(SetLink::index(index).up());
        }
        if requests.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.add(requests);
        Ok(self.route.execute(batch)?)
    }

    /// Begins handshakes: an empty packet goes to who is to be kept alive and was not before.
    fn greet(&mut self, peers: &[[u8; 32]]) -> Result<(), KernelError> {
        if peers.is_empty() {
            return Ok(());
        }
        for seconds in [KEEPALIVE, 0] {
            let set = |key: &[u8; 32]| {
                PeerChange::Set(PeerSet {
                    keepalive: Some(seconds),
                    ..PeerSet::of(*key)
                })
            };
            self.change(&DeviceChange {
                peers: peers.iter().map(set).collect(),
                ..DeviceChange::default()
            })?;
        }
        Ok(())
    }
}

/// The kernel's devices have no process to wait for.
fn network_status(network: &crate::Network) -> NetworkStatus {
    NetworkStatus {
        vni: network.vni,
        attached: true,
        sent_frames: 0,
        received_frames: 0,
        dropped_sending: 0,
        dropped_receiving: 0,
    }
}

fn peer_status(
    peer: &crate::Peer,
    held: &Device,
    key_set: Option<SystemTime>,
    now: SystemTime,
) -> PeerStatus {
    let address = IpNet::from(IpAddr::from(peer.vtep));
    let mut status = PeerStatus::new(peer.vtep, peer.endpoint);
    let keys: std::collections::BTreeSet<_> = peer.pairs.iter().map(|pair| pair.public_key).collect();
    for found in held.peers.iter().filter(|found| keys.contains(&found.public_key)) {
        let is_used = found.allowed.contains(&address);
        if let Some(endpoint) = found.endpoint.filter(|_| is_used) {
            status.endpoint = endpoint;
        }
        status.received_bytes += found.received_bytes;
        status.sent_bytes += found.sent_bytes;
        let ago = |at: SystemTime| now.duration_since(at).unwrap_or_default();
        // A handshake by the key before is no word about this one.
        let current = found
            .last_handshake
            .filter(|at| key_set.is_none_or(|since| *at >= since));
        status.pairs.push(PairStatus {
            own: held.public_key.unwrap_or_default(),
            public_key: found.public_key,
            is_used,
            last_handshake: found.last_handshake.map(ago),
            last_heard: current.map(ago),
        });
    }
    status
}

#[cfg(test)]
mod tests {
    use weft_netlink::testing::skip;

    use super::*;

    #[test]
    fn a_kernel_without_wireguard_says_so_in_a_sentence() {
        if let Err(error) = Netns::create() {
            return skip(error);
        }
        if let Err(why) = probe() {
            assert_eq!(why.to_string(), "this kernel has no WireGuard");
        }
    }

    #[test]
    fn nothing_is_taken_away_where_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("netns/wireguard")).unwrap();
    }
}
