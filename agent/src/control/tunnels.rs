//! Encrypted networks: this node's place inside the tunnels, what the process that encrypts is told, and what it says.
//!
//! A tunnel leads to every node that has a part in an encrypted network of this one, and to no other. What is told follows
//! from the records alone, so who is removed from the cluster is out of it with the next state.

mod keys;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use ring::hkdf;
use sha2::{Digest, Sha256};
use weft_overlay::{
    kernel::{TUNNEL, namespace_path},
    plan::Encryption,
};
use weft_types::{Mac, NetworkId, NodeId};
use weft_wireguard::{Desired, Dropped, KeyPair, Network, Peer, PeerStatus, Secret32, Status};

use super::{
    Control, Now,
    catalogue::Presence,
    records::{NetworkSpec, NodeFact, TunnelFact},
};
use crate::api::types::{EncryptionStatus, TunnelStatus};
use keys::fingerprint;
pub(super) use keys::{End, ends};

/// The addresses inside tunnels, which nobody outside of them sees (RFC 6598 keeps them for such).
const ADDRESSES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// How long a tunnel may take to come up before that is a problem.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the process says is asked for this often, at least; later it is old.
const FRESH: Duration = Duration::from_secs(5);

/// What encrypts on this host, and why that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypter {
    pub kind: Encryption,
    pub reason: String,
}

/// What the process that encrypts, or the kernel, said last.
#[derive(Debug)]
pub struct TunnelReport {
    /// Else why it says nothing.
    pub status: Result<Status, String>,
    /// What of the last state could not be done, a sentence each.
    pub failed: Vec<String>,
}

/// What is known of the tunnels beside the records.
#[derive(Default)]
pub(super) struct Tunnels {
    /// Since when tunnels are wanted, by the other node's address in them.
    wanted: BTreeMap<Ipv4Addr, Instant>,
    /// Since when there is something to encrypt.
    needed_since: Option<Instant>,
    report: Option<(Instant, TunnelReport)>,
}

impl Tunnels {
    /// Takes note of what the process is told.
    pub(super) fn expect(&mut self, desired: Option<&Desired>, now: Now) {
        let Some(desired) = desired else {
            *self = Self::default();
            return;
        };
        self.needed_since.get_or_insert(now.instant);
        let before = std::mem::take(&mut self.wanted);
        let since = |vtep| before.get(&vtep).copied().unwrap_or(now.instant);
        let vteps = desired.peers.iter().map(|peer| peer.vtep);
        self.wanted = vteps.map(|vtep| (vtep, since(vtep))).collect();
    }

    /// What the process said, if that was not long ago.
    fn status(&self, now: Now) -> Option<(&Status, Duration)> {
        let (at, report) = self.report.as_ref()?;
        let age = now.instant.saturating_duration_since(*at);
        Some((report.status.as_ref().ok()?, age)).filter(|_| age < FRESH)
    }
}

impl Control {
    /// Takes what the process that encrypts said, or that it says nothing.
    pub fn handle_tunnels(&mut self, report: TunnelReport, now: Now) {
        if self.tunnels.needed_since.is_some() {
            self.tunnels.report = Some((now.instant, report));
        }
    }

    /// This node's address inside the tunnels: the one it has said, unless another node that says it too has it.
    pub(super) fn tunnel_address(&self) -> Ipv4Addr {
        let others = self.catalogue.nodes().filter(|(id, _)| *id != self.me);
        let taken = holders(others.filter_map(|(id, node)| Some((id, node.fact.as_ref()?.tunnel.address))));
        let own = self.catalogue.node(self.me).and_then(|node| node.fact.as_ref());
        own.map(|fact| fact.tunnel.address)
            .filter(|own| {
                let holder = taken.get(own);
                holder.is_none_or(|holder| first_to(*own, [self.me, *holder]) == self.me)
            })
            .unwrap_or_else(|| choose(self.me, |address| taken.contains_key(&address)))
    }

    /// What the process that encrypts is to be told; `None` if this host has no part in an encrypted network.
    pub(super) fn tunnels(&self) -> Option<Desired> {
        let mut networks = Vec::new();
        let mut wanted = BTreeSet::new();
        let ends = ends(&self.catalogue);
        for id in self.networks_here() {
            let Some(spec) = self.catalogue.network(id).filter(|spec| spec.encrypted) else {
                continue;
            };
            let mut fdb: BTreeMap<Mac, NodeId> = BTreeMap::new();
            let endpoints = self.catalogue.endpoints(id);
            let ingresses = self.catalogue.ingresses(id);
            let places = endpoints
                .map(|(_, endpoint)| (endpoint.spec.mac, endpoint.node))
                .chain(ingresses.map(|(node, ingress)| (ingress.mac, node)));
            fdb.extend(places.filter(|(mac, node)| self.has_mac(*node, id, *mac)));
            fdb.retain(|_, node| *node != self.me && ends.contains_key(node));
            let members: BTreeSet<NodeId> = fdb.values().copied().collect();
            networks.push(Network {
                vni: spec.vni,
                netns: namespace_path(&self.settings.run_dir, id),
                tap: TUNNEL.to_owned(),
                members: members
                    .iter()
                    .map(|node| ends[node].fact.tunnel.address)
                    .collect(),
                fdb: fdb
                    .into_iter()
                    .map(|(mac, node)| (mac, ends[&node].fact.tunnel.address))
                    .collect(),
            });
            wanted.extend(members);
        }
        if networks.is_empty() {
            return None;
        }
        let keys = self.rotation.keys();
        let own: Vec<_> = keys.newest_first().map(Secret32::public_key).collect();
        let peers = wanted.into_iter().map(|node| {
            let End { fact, keys } = &ends[&node];
            let pair = |(place, own): (usize, &[u8; 32]), theirs: &[u8; 32]| KeyPair {
                own: place as u8,
                public_key: *theirs,
                preshared_key: preshared_key(&self.facts.secret, own, theirs),
            };
            let pairs = own
                .iter()
                .enumerate()
                .flat_map(|own| keys.iter().map(move |theirs| pair(own, theirs)));
            Peer {
                vtep: fact.tunnel.address,
                endpoint: SocketAddr::new(fact.vtep, fact.tunnel.port),
                pairs: pairs.collect(),
            }
        });
        Some(Desired {
            generation: self.generation,
            private_keys: keys.newest_first().cloned().collect(),
            port: self.settings.wireguard_port,
            vtep: self.tunnel_address(),
            peers: peers.collect(),
            networks,
        })
    }

    /// The largest packet inside the tunnels: what VXLAN and IPv4 add comes with each of the networks.
    pub(super) fn tunnel_mtu(&self) -> u32 {
        let here = self.networks_here();
        let here = here.iter().filter_map(|id| self.catalogue.network(*id));
        let mtus = here.filter(|spec| spec.encrypted).map(|spec| spec.mtu);
        u32::from(mtus.max().unwrap_or(0)) + weft_overlay::overhead(ADDRESSES.network().into())
    }

    /// The address of a node that VXLAN of a network goes to, where the kernel has it.
    pub(super) fn vtep_for(&self, spec: &NetworkSpec, fact: &NodeFact) -> IpAddr {
        match self.settings.encrypter.kind {
            Encryption::Kernel if spec.encrypted => fact.tunnel.address.into(),
            _ => fact.vtep,
        }
    }

    /// How this host encrypts, with the tunnels of all networks or of one.
    pub(super) fn encryption(&self, network: Option<NetworkId>, now: Now) -> Option<EncryptionStatus> {
        self.tunnels.needed_since?;
        let of_network: Option<BTreeSet<NodeId>> = match network {
            Some(id) => {
                self.catalogue.network(id).filter(|spec| spec.encrypted)?;
                self.networks_here().contains(&id).then_some(())?;
                let endpoints = self.catalogue.endpoints(id).map(|(_, endpoint)| endpoint.node);
                let ingresses = self.catalogue.ingresses(id).map(|(node, _)| node);
                Some(endpoints.chain(ingresses).collect())
            }
            None => None,
        };
        let nodes = self.catalogue.nodes().map(|(id, _)| id);
        let nodes = nodes.filter(|id| of_network.as_ref().is_none_or(|nodes| nodes.contains(id)));
        let mut tunnels: Vec<_> = nodes.filter_map(|id| self.tunnel_to(id, now)).collect();
        tunnels.sort_by(|one, other| (&one.node_name, one.node_id).cmp(&(&other.node_name, other.node_id)));
        let status = self.tunnels.status(now);
        let refused = self.refused_in_tunnels(now).by_reason();
        Some(EncryptionStatus {
            datapath: match self.settings.encrypter.kind {
                Encryption::Process => "userspace",
                Encryption::Kernel => "kernel",
            }
            .to_owned(),
            reason: self.settings.encrypter.reason.clone(),
            running: status.is_some_and(|(status, _)| status.generation > 0),
            port: self.settings.wireguard_port,
            address: self.tunnel_address(),
            fingerprint: fingerprint(&self.rotation.keys().current.public_key()),
            epoch: self.rotation.keys().epoch,
            change: self.key_change(now),
            refused: refused.iter().map(|(_, count)| count).sum(),
            tunnels,
        })
    }

    /// Packets that came in by tunnels and were not delivered, by the first check that they failed.
    pub(super) fn refused_in_tunnels(&self, now: Now) -> Dropped {
        let status = self.tunnels.status(now);
        status.map_or_else(Dropped::default, |(status, _)| status.dropped)
    }

    /// The tunnel to a node, where there is to be one.
    pub(super) fn tunnel_to(&self, id: NodeId, now: Now) -> Option<TunnelStatus> {
        let fact = self.catalogue.node(id)?.fact.as_ref()?;
        self.tunnels.wanted.get(&fact.tunnel.address)?;
        let status = self.tunnels.status(now);
        let peer = status.and_then(|(status, age)| Some((peer(status, &fact.tunnel)?, age)));
        let (own_epoch, key, epoch) = self.keys_used(peer.map(|(peer, _)| peer), &fact.tunnel);
        Some(TunnelStatus {
            node_id: id,
            node_name: fact.name.clone(),
            address: fact.tunnel.address,
            underlay_address: peer.map_or(SocketAddr::new(fact.vtep, fact.tunnel.port), |(peer, _)| {
                peer.endpoint
            }),
            fingerprint: fingerprint(&key),
            epoch,
            own_epoch,
            handshake_ms_ago: peer
                .and_then(|(peer, age)| Some((peer.last_handshake()? + age).as_millis() as u64)),
            received_bytes: peer.map_or(0, |(peer, _)| peer.received_bytes),
            sent_bytes: peer.map_or(0, |(peer, _)| peer.sent_bytes),
            lost: peer.map_or(0, |(peer, _)| peer.lost),
            segmentation: peer.is_some_and(|(peer, _)| peer.segmentation),
            path_mtu: peer.and_then(|(peer, _)| peer.path_mtu),
            path_silent: peer.is_some_and(|(peer, _)| peer.path_mtu.is_some() && peer.is_path_silent),
        })
    }

    /// What is wrong with the tunnels, a sentence each.
    pub(super) fn tunnel_problems(&self, now: Now) -> Vec<String> {
        let long_ago = |since: Instant| now.instant.saturating_duration_since(since) >= PATIENCE;
        let Some(needed_since) = self.tunnels.needed_since else {
            return Vec::new();
        };
        let Some((status, _)) = self.tunnels.status(now) else {
            let why = match &self.tunnels.report {
                Some((_, report)) => report.status.as_ref().err().cloned(),
                None => None,
            };
            if why.is_none() && !long_ago(needed_since) {
                return Vec::new();
            }
            let why = why.unwrap_or_else(|| "it has not answered".to_owned());
            let what = match self.settings.encrypter.kind {
                Encryption::Process => "the process `weft tunnels` does not run",
                Encryption::Kernel => "the kernel's WireGuard does not do what it is told",
            };
            return vec![format!(
                "nothing leaves this host on encrypted networks, because {what}: {why}"
            )];
        };
        let mut problems: Vec<_> = match &self.tunnels.report {
            Some((_, report)) => report.failed.clone(),
            None => Vec::new(),
        };
        problems.extend(self.key_problems(now));
        for (id, node) in self.catalogue.nodes() {
            let Some(fact) = &node.fact else { continue };
            let Some(since) = self.tunnels.wanted.get(&fact.tunnel.address) else {
                continue;
            };
            let Some(peer) = peer(status, &fact.tunnel) else {
                continue;
            };
            let alive = node.presence == Presence::Alive;
            if peer.last_handshake().is_none() && alive && long_ago(*since) {
                let name = self.catalogue.node_name(id);
                problems.push(format!(
                    "there is no tunnel to node `{name}`, which answers: encrypted networks do not reach it. Is UDP port \
                     {} open between the hosts?",
                    peer.endpoint.port()
                ));
            }
            if let Some(mtu) = peer.path_mtu {
                let name = self.catalogue.node_name(id);
                let silently = match peer.is_path_silent {
                    true => ", and drops longer ones without telling anybody (is ICMP filtered on the way?)",
                    false => "",
                };
                problems.push(format!(
                    "the path to node `{name}` takes packets of {mtu} bytes{silently}, less than full packets of encrypted \
                     networks need: they are slower"
                ));
            }
        }
        problems
    }
}

fn peer<'s>(status: &'s Status, fact: &TunnelFact) -> Option<&'s PeerStatus> {
    status.peers.iter().find(|peer| peer.vtep == fact.address)
}

/// Who has each of the addresses that nodes say to have.
fn holders(said: impl Iterator<Item = (NodeId, Ipv4Addr)>) -> BTreeMap<Ipv4Addr, NodeId> {
    let mut holders = BTreeMap::new();
    for (id, address) in said {
        holders
            .entry(address)
            .and_modify(|holder| *holder = first_to(address, [*holder, id]))
            .or_insert(id);
    }
    holders
}

/// Which of those who say that they have an address has it: the one whose id points to it, which cannot be chosen freely, and
/// else the one with the lowest id.
fn first_to(address: Ipv4Addr, nodes: [NodeId; 2]) -> NodeId {
    let [one, other] = nodes;
    let rank = |node: NodeId| (choose(node, |_| false) != address, node);
    if rank(one) <= rank(other) { one } else { other }
}

/// The first free address, from where the node's id points on.
fn choose(node: NodeId, is_taken: impl Fn(Ipv4Addr) -> bool) -> Ipv4Addr {
    // Without the first and the last, which programs take for a network's own and its broadcast address.
    let count = (1 << (32 - ADDRESSES.prefix_len())) - 2;
    let digest = Sha256::new()
        .chain_update(b"weft tunnel address 1")
        .chain_update(node.0)
        .finalize();
    let start = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let address = |offset: u32| {
        let number = start.wrapping_add(offset) % count;
        Ipv4Addr::from_bits(ADDRESSES.network().to_bits() + 1 + number)
    };
    (0..count)
        .map(address)
        .find(|address| !is_taken(*address))
        .unwrap_or_else(|| address(0))
}

/// HKDF-SHA256 (RFC 5869) of what all nodes of the cluster know and of both keys, the lower one first.
fn preshared_key(secret: &Secret32, one: &[u8; 32], other: &[u8; 32]) -> Secret32 {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]);
    let info: [&[u8]; 3] = [b"weft wireguard psk 1", one.min(other), one.max(other)];
    let mut key = [0; 32];
    salt.extract(secret.expose())
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut key))
        .expect("32 bytes are one block of SHA-256");
    Secret32::new(key)
}

#[cfg(test)]
mod tests;
