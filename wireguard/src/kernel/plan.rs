//! What the kernel's device is told so that it becomes what is wanted. No I/O.
//!
//! A device has one private key, and an address inside the tunnels belongs to one peer of a device. So of a node that changes
//! its key both keys are peers, and its address goes to the newer one when that has carried a handshake; and this node's
//! own key is changed in place, when the others have had the time to hear of the new one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use weft_netlink::wireguard::{Device, DeviceChange, PeerChange, PeerSet, Secret};

use crate::{Desired, Peer, Secret32};

type Key = [u8; 32];

/// So long a new key is known to others before packets go by it.
pub const SETTLE: Duration = Duration::from_secs(3);

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub change: DeviceChange,
    /// Peers to begin a handshake with.
    pub greet: Vec<Key>,
}

/// The place of the key of this node's that the device is to have.
///
/// `known_for` says since when there is a newest one.
pub fn own_key(desired: &Desired, held: &Device, known_for: Duration) -> Option<usize> {
    let last = desired.private_keys.len().checked_sub(1)?;
    let has_newest = held.public_key == Some(desired.private_keys[0].public_key());
    Some(if has_newest || known_for >= SETTLE {
        0
    } else {
        last
    })
}

/// The keys of a peer and what is shared with each, the newest first. With a key of its own a node has no session.
fn keys<'d>(
    peer: &'d Peer,
    own: usize,
    own_keys: &'d BTreeSet<Key>,
) -> impl Iterator<Item = (Key, &'d Secret32)> {
    let pairs = peer.pairs.iter().filter(move |pair| usize::from(pair.own) == own);
    pairs
        .filter(|pair| !own_keys.contains(&pair.public_key))
        .map(|pair| (pair.public_key, &pair.preshared_key))
}

/// Which of a peer's keys has its address: the newest that carried a handshake, else the one that has it now, else the
/// oldest, which everybody knows.
fn holder(keys: &[Key], address: IpNet, held: &HashMap<Key, &weft_netlink::wireguard::Peer>) -> Option<Key> {
    let carries = |key: &&Key| held.get(*key).is_some_and(|peer| peer.last_handshake.is_some());
    let has = |key: &&Key| held.get(*key).is_some_and(|peer| peer.allowed.contains(&address));
    let found = keys.iter().find(carries).or_else(|| keys.iter().find(has));
    found.or(keys.last()).copied()
}

/// The difference. `announced` is where peers were said to be when the device was told last: where they are really is
/// for the device to know.
pub fn plan(
    desired: &Desired,
    own: usize,
    held: &Device,
    announced: &BTreeMap<Ipv4Addr, SocketAddr>,
) -> Plan {
    let own_keys: BTreeSet<Key> = desired.private_keys.iter().map(Secret32::public_key).collect();
    let secret = |secret: &Secret32| Secret::new(*secret.expose());
    let by_key: HashMap<Key, _> = held.peers.iter().map(|peer| (peer.public_key, peer)).collect();
    let private_key = desired.private_keys.get(own);
    let is_other_key = private_key.is_some_and(|key| held.public_key != Some(key.public_key()));
    let mut plan = Plan {
        change: DeviceChange {
            private_key: private_key.filter(|_| is_other_key).map(secret),
            port: (held.port != desired.port).then_some(desired.port),
            peers: Vec::new(),
        },
        greet: Vec::new(),
    };
    let (mut given, mut other, mut wanted) = (Vec::new(), Vec::new(), BTreeSet::new());
    for peer in &desired.peers {
        let address = IpNet::from(std::net::IpAddr::from(peer.vtep));
        let keys: Vec<_> = keys(peer, own, &own_keys).collect();
        let names: Vec<Key> = keys.iter().map(|(key, _)| *key).collect();
        let holder = holder(&names, address, &by_key);
        let has_moved = announced.get(&peer.vtep).is_some_and(|at| *at != peer.endpoint);
        for (key, shared) in keys {
            wanted.insert(key);
            let current = by_key.get(&key);
            let is_shared = current.is_some_and(|peer| *peer.preshared_key == *shared.expose());
            let allowed: Vec<IpNet> = (holder == Some(key)).then_some(address).into_iter().collect();
            let set = PeerSet {
                is_new: current.is_none(),
                preshared_key: (!is_shared).then(|| secret(shared)),
                endpoint: (current.is_none_or(|peer| peer.endpoint.is_none()) || has_moved)
                    .then_some(peer.endpoint),
                allowed: current
                    .is_none_or(|peer| peer.allowed != allowed)
                    .then_some(allowed),
                ..PeerSet::of(key)
            };
            if set.is_new || is_other_key {
                plan.greet.push(key);
            }
            if set == PeerSet::of(key) {
                continue;
            }
            // Whoever is given an address takes it from who has it: at no moment is it nobody's.
            match set.allowed.as_deref() {
                Some([_, ..]) => given.push(PeerChange::Set(set)),
                _ => other.push(PeerChange::Set(set)),
            }
        }
    }
    let gone = held.peers.iter().map(|peer| peer.public_key);
    let gone = gone.filter(|key| !wanted.contains(key));
    plan.change.peers.extend(gone.map(PeerChange::Remove));
    plan.change.peers.append(&mut given);
    plan.change.peers.append(&mut other);
    plan
}

#[cfg(test)]
mod tests;
