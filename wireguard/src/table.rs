//! What the threads look things up in: made anew by each `Apply`, never changed. Peers and devices that stay are the
//! same objects as before, with their sessions and counters.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use boringtun::{
    noise::rate_limiter::RateLimiter,
    x25519::{PublicKey, StaticSecret},
};
use weft_netlink::{
    netns::{Netns, NetnsId},
    tap::{self, Tap},
};
use weft_types::{Mac, Vni};

use crate::{
    Desired, KeyPair, Network, NetworkStatus, PeerStatus, Secret32, control,
    envelope::{self, Refusal},
    headers::ETHERNET,
    link::{Pair, Session},
    peer::{Clock, Peer},
};

/// Handshakes that nobody asked for are spread over so much time.
const GREET_WITHIN_MS: u64 = 1000;

type Key = [u8; 32];

/// One state of things.
pub struct Table {
    pub generation: u64,
    pub vtep: Ipv4Addr,
    /// The newest first.
    pub identities: Vec<Arc<Identity>>,
    pub peers: Vec<Arc<Peer>>,
    pub networks: HashMap<Vni, Attached>,
    by_index: HashMap<u32, Arc<Peer>>,
    /// By this node's key and the other's, with the number of their sessions.
    by_key: HashMap<(Key, Key), (Arc<Peer>, u32)>,
    sources: HashSet<IpAddr>,
    order: Vec<Vni>,
    /// The largest MTU of the networks.
    needed_mtu: u32,
}

/// A key of this node's, and what follows from it.
pub struct Identity {
    pub private: StaticSecret,
    pub public: PublicKey,
    secret: Secret32,
    /// Checks the first code of handshakes and nothing else.
    pub open: Arc<RateLimiter>,
    /// Wants a cookie from everybody.
    pub strict: RateLimiter,
}

/// A network with a part of it here.
pub struct Attached {
    /// None if it could not be opened.
    pub device: Option<Arc<Device>>,
    pub mtu: u32,
    members: HashSet<Ipv4Addr>,
    fdb: HashMap<Mac, Ipv4Addr>,
    routes: HashMap<Ipv4Addr, Arc<Peer>>,
}

/// A TAP device, and what went through it.
pub struct Device {
    pub tap: Tap,
    pub vni: Vni,
    /// It was taken away under us.
    pub is_gone: AtomicBool,
    pub sent: AtomicU64,
    pub received: AtomicU64,
    pub dropped_sending: AtomicU64,
    pub dropped_receiving: AtomicU64,
    name: String,
    netns: NetnsId,
}

/// Why a packet that came out of a tunnel goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    Envelope(Refusal),
    UnknownVni,
    NotAMember(Vni),
    WrongMac(Vni),
}

impl Identity {
    pub fn new(secret: Secret32) -> Self {
        let private = StaticSecret::from(*secret.expose());
        let public = PublicKey::from(&private);
        Self {
            open: Arc::new(RateLimiter::new(&public, u64::MAX)),
            strict: RateLimiter::new(&public, 0),
            private,
            public,
            secret,
        }
    }
}

impl Table {
    /// From what is wanted and what was there before. What could not be done comes back, a sentence each.
    ///
    /// `random` chooses the numbers of new peers.
    pub fn build(
        desired: Desired,
        before: Option<&Self>,
        now: Instant,
        mut random: impl FnMut() -> u32,
    ) -> Result<(Self, Vec<String>), String> {
        check(&desired)?;
        let kept = |secret: &Secret32| {
            let known = before?
                .identities
                .iter()
                .find(|identity| identity.secret == *secret);
            known.cloned()
        };
        let identities: Vec<_> = desired
            .private_keys
            .iter()
            .map(|secret| kept(secret).unwrap_or_else(|| Arc::new(Identity::new(secret.clone()))))
            .collect();
        let greeted: HashSet<_> = desired
            .networks
            .iter()
            .flat_map(|network| &network.members)
            .collect();
        let known: HashMap<Ipv4Addr, &Arc<Peer>> = before
            .iter()
            .flat_map(|table| table.peers.iter().map(|peer| (peer.vtep(), peer)))
            .collect();
        let (mut by_index, mut by_key) = (HashMap::new(), HashMap::new());
        let mut peers = Vec::with_capacity(desired.peers.len());
        for wanted in &desired.peers {
            let pairs = pairs_of(wanted, &identities);
            if pairs.is_empty() {
                continue;
            }
            let same = |old: &&Arc<Peer>| old.link().pairs().any(|(pair, _)| pairs.contains(pair));
            let old = known.get(&wanted.vtep).copied().filter(same);
            let peer = old.map_or_else(|| Arc::new(Peer::new(wanted.vtep, wanted.endpoint)), Arc::clone);
            peer.link().announce(wanted.endpoint);
            peer.set_pairs(&pairs, |pair| {
                let mut index = random() >> 8;
                while by_index.contains_key(&index)
                    || before.is_some_and(|table| table.by_index.contains_key(&index))
                {
                    index = random() >> 8;
                }
                by_index.insert(index, Arc::clone(&peer));
                let wait = Duration::from_millis(u64::from(random()) % GREET_WITHIN_MS);
                let greet_at = greeted.contains(&wanted.vtep).then_some(now + wait);
                let own = identities
                    .iter()
                    .find(|identity| identity.public.as_bytes() == &pair.own);
                let own = own.expect("pairs are made of identities");
                Session::new(pair.clone(), own, index, greet_at)
            });
            for (pair, index) in peer.link().pairs() {
                by_index.insert(index, Arc::clone(&peer));
                by_key.insert((pair.own, pair.public_key), (Arc::clone(&peer), index));
            }
            peers.push(peer);
        }
        let by_vtep: HashMap<_, _> = peers.iter().map(|peer| (peer.vtep(), peer)).collect();
        let mut failed = Vec::new();
        let order: Vec<_> = desired.networks.iter().map(|network| network.vni).collect();
        let networks: HashMap<_, _> = desired
            .networks
            .into_iter()
            .map(|network| {
                let old = before.and_then(|table| table.networks.get(&network.vni));
                (network.vni, Attached::new(network, old, &by_vtep, &mut failed))
            })
            .collect();
        let needed_mtu = networks.values().map(|network| network.mtu).max().unwrap_or(0);
        let table = Self {
            generation: desired.generation,
            vtep: desired.vtep,
            identities,
            by_key,
            sources: peers.iter().map(|peer| peer.link().announced().ip()).collect(),
            peers,
            networks,
            by_index,
            order,
            needed_mtu,
        };
        Ok((table, failed))
    }

    /// Whose sessions have this receiver index.
    pub fn peer_of_index(&self, receiver: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&(receiver >> 8))
    }

    /// Whose key this is, and the number of its sessions with a key of this node's.
    pub fn peer_of_key(&self, own: &PublicKey, key: &[u8; 32]) -> Option<(&Arc<Peer>, u32)> {
        let (peer, index) = self.by_key.get(&(own.to_bytes(), *key))?;
        Some((peer, *index))
    }

    /// The longest packet on the underlay to a peer that is of use, 0 if that is not known.
    pub fn full_length(&self, peer: &Peer, v6: bool) -> u16 {
        if self.needed_mtu == 0 {
            return 0;
        }
        peer.full_length(self.needed_mtu, v6)
    }

    /// Whether a peer has published this address.
    pub fn is_known(&self, address: IpAddr) -> bool {
        self.sources.contains(&address)
    }

    /// The network and the frame of a packet that came out of the tunnel of a peer, if it may be delivered.
    pub fn admit<'a>(&self, peer: &Peer, packet: &'a [u8]) -> Result<(&Attached, &'a [u8]), Denied> {
        let (vni, frame) = envelope::open(packet, peer.vtep(), self.vtep).map_err(Denied::Envelope)?;
        let network = self.networks.get(&vni).ok_or(Denied::UnknownVni)?;
        if !network.members.contains(&peer.vtep()) {
            return Err(Denied::NotAMember(vni));
        }
        let source = mac(frame, 6);
        // What a member routes, from a published port or another subnet of the network, comes from its gateway.
        let is_routed = source == Some(vni.gateway_mac());
        let from = source.and_then(|source| network.fdb.get(&source));
        if !is_routed && from != Some(&peer.vtep()) {
            return Err(Denied::WrongMac(vni));
        }
        Ok((network, frame))
    }

    pub fn network_status(&self) -> Vec<NetworkStatus> {
        let status = |vni: &Vni| {
            let device = self.networks.get(vni).and_then(|network| network.device.as_ref());
            let count =
                |count: fn(&Device) -> &AtomicU64| device.map_or(0, |device| count(device).load(Relaxed));
            NetworkStatus {
                vni: *vni,
                attached: device.is_some_and(|device| !device.is_gone.load(Relaxed)),
                sent_frames: count(|device| &device.sent),
                received_frames: count(|device| &device.received),
                dropped_sending: count(|device| &device.dropped_sending),
                dropped_receiving: count(|device| &device.dropped_receiving),
            }
        };
        self.order.iter().map(status).collect()
    }

    pub fn peer_status(&self, clock: Clock) -> Vec<PeerStatus> {
        let status = |peer: &Arc<Peer>| peer.status(self.needed_mtu, clock);
        self.peers.iter().map(status).collect()
    }
}

impl Attached {
    fn new(
        network: Network,
        before: Option<&Self>,
        peers: &HashMap<Ipv4Addr, &Arc<Peer>>,
        failed: &mut Vec<String>,
    ) -> Self {
        let members: HashSet<_> = network.members.iter().copied().collect();
        let opened = Device::open(&network, before.and_then(|before| before.device.as_ref()));
        let (device, mtu) = match opened {
            Ok((device, mtu)) => (Some(device), mtu),
            Err(error) => {
                failed.push(format!("network {}: {error}", network.vni));
                (None, 0)
            }
        };
        let route = |vtep: &Ipv4Addr| peers.get(vtep).map(|peer| (*vtep, Arc::clone(peer)));
        Self {
            device,
            mtu,
            routes: members.iter().filter_map(route).collect(),
            members,
            fdb: network
                .fdb
                .into_iter()
                .filter(|(mac, _)| mac.is_unicast())
                .collect(),
        }
    }

    /// The peer that a frame goes to. None for groups and the unknown.
    pub fn route(&self, frame: &[u8]) -> Option<&Arc<Peer>> {
        self.fdb
            .get(&mac(frame, 0)?)
            .and_then(|vtep| self.routes.get(vtep))
    }
}

impl Device {
    fn open(network: &Network, before: Option<&Arc<Self>>) -> Result<(Arc<Self>, u32), String> {
        let sentence = |error: &dyn std::error::Error| match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let netns = Netns::open(&network.netns).map_err(|error| sentence(&error))?;
        let mtu = tap::mtu(&netns, &network.tap).map_err(|error| sentence(&error))?;
        let same = |old: &&Arc<Self>| {
            old.netns == netns.id() && old.name == network.tap && !old.is_gone.load(Relaxed)
        };
        if let Some(old) = before.filter(same) {
            return Ok((Arc::clone(old), mtu));
        }
        let device = Self {
            tap: Tap::open(&netns, &network.tap).map_err(|error| sentence(&error))?,
            vni: network.vni,
            is_gone: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            dropped_sending: AtomicU64::new(0),
            dropped_receiving: AtomicU64::new(0),
            name: network.tap.clone(),
            netns: netns.id(),
        };
        Ok((Arc::new(device), mtu))
    }
}

/// The pairs that sessions with a node are made of. With a key of its own a node has no session.
fn pairs_of(wanted: &control::Peer, identities: &[Arc<Identity>]) -> Vec<Pair> {
    let is_own = |key: &[u8; 32]| {
        identities
            .iter()
            .any(|identity| identity.public.as_bytes() == key)
    };
    let pairs = wanted.pairs.iter().filter(|pair| !is_own(&pair.public_key));
    let pair = |pair: &KeyPair| Pair {
        own: identities[usize::from(pair.own)].public.to_bytes(),
        public_key: pair.public_key,
        preshared_key: pair.preshared_key.clone(),
    };
    pairs.map(pair).collect()
}

/// What would make the state mean two things.
pub fn check(desired: &Desired) -> Result<(), String> {
    let own: Vec<_> = desired.private_keys.iter().map(Secret32::public_key).collect();
    let mut keys = BTreeMap::new();
    let mut vteps = HashSet::from([desired.vtep]);
    for peer in &desired.peers {
        for pair in &peer.pairs {
            if usize::from(pair.own) >= own.len() {
                return Err(format!("there is no key {} of this node", pair.own));
            }
            if *keys.entry(pair.public_key).or_insert(peer.vtep) != peer.vtep {
                return Err("two peers have one public key".to_owned());
            }
        }
        let is_self = peer.pairs.iter().all(|pair| own.contains(&pair.public_key));
        if !is_self && !vteps.insert(peer.vtep) {
            return Err(format!("two nodes have the address {}", peer.vtep));
        }
    }
    let mut vnis = HashSet::new();
    match desired.networks.iter().find(|network| !vnis.insert(network.vni)) {
        Some(network) => Err(format!("two networks have the number {}", network.vni)),
        None => Ok(()),
    }
}

fn mac(frame: &[u8], at: usize) -> Option<Mac> {
    let header = frame.get(..ETHERNET)?;
    header[at..at + 6].try_into().map(Mac).ok()
}

#[cfg(test)]
mod tests;
