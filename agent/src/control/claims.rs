//! Who says that it has what only one can have: an address or a hardware address of a network, a key.
//!
//! Each member says so of itself, and is believed where no other does. Of several the owner of the number is right; of what
//! has no owner, whoever was known to have it first.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_types::{Mac, NetworkId, NodeId, ServiceId};

use super::{Control, Now, contest::is_usable, records::NetworkSpec, work::looked};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    Mac(NetworkId, Mac),
    Address(NetworkId, IpAddr),
    /// What a node's tunnels are encrypted with.
    Key([u8; 32]),
}

#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By what is claimed: the claimants, the earliest first; one for each of its claims.
    all: BTreeMap<Thing, Vec<NodeId>>,
    /// How many things of a network are claimed more than once.
    crowded: BTreeMap<NetworkId, usize>,
}

impl Thing {
    fn network(self) -> Option<NetworkId> {
        match self {
            Self::Mac(network, _) | Self::Address(network, _) => Some(network),
            Self::Key(_) => None,
        }
    }
}

impl Claims {
    pub(super) fn add(&mut self, node: NodeId, things: impl Iterator<Item = Thing>) {
        for thing in things {
            let claimants = self.all.entry(thing).or_default();
            claimants.push(node);
            if let (2, Some(network)) = (claimants.len(), thing.network()) {
                *self.crowded.entry(network).or_default() += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, node: NodeId, things: impl Iterator<Item = Thing>) {
        for thing in things {
            let Some(claimants) = self.all.get_mut(&thing) else {
                continue;
            };
            // The last one: whoever claims the same once more and takes that back has not lost its place.
            if let Some(last) = claimants.iter().rposition(|claimant| *claimant == node) {
                claimants.remove(last);
                if let (1, Some(network)) = (claimants.len(), thing.network())
                    && let Some(crowded) = self.crowded.get_mut(&network)
                {
                    *crowded -= 1;
                    if *crowded == 0 {
                        self.crowded.remove(&network);
                    }
                }
            }
            if claimants.is_empty() {
                self.all.remove(&thing);
            }
        }
    }

    pub(super) fn of(&self, thing: Thing) -> &[NodeId] {
        looked();
        self.all.get(&thing).map_or(&[], Vec::as_slice)
    }

    /// Whether anything of a network is claimed more than once, so that who has it hangs on more than what says so itself.
    pub(super) fn is_crowded(&self, network: NetworkId) -> bool {
        self.crowded.contains_key(&network)
    }

    /// The networks of which that is so.
    pub(super) fn crowded(&self) -> impl Iterator<Item = NetworkId> {
        self.crowded.keys().copied()
    }

    /// Whether `node` claimed it before all others.
    pub(super) fn is_first(&self, node: NodeId, thing: Thing) -> bool {
        self.of(thing).first() == Some(&node)
    }

    /// What several nodes claim, with all of them.
    pub(super) fn disputed(&self) -> impl Iterator<Item = (Thing, &[NodeId])> {
        let all = self.all.iter().map(|(thing, nodes)| (*thing, nodes.as_slice()));
        all.filter(|(_, nodes)| nodes.iter().any(|node| *node != nodes[0]))
    }
}

#[cfg(test)]
impl Claims {
    pub(super) fn assert_crowded(&self) {
        let mut crowded = BTreeMap::new();
        for (thing, _) in self.all.iter().filter(|(_, claimants)| claimants.len() > 1) {
            if let Some(network) = thing.network() {
                *crowded.entry(network).or_default() += 1;
            }
        }
        assert_eq!(self.crowded, crowded);
    }
}

/// What a place on a network claims.
pub(super) fn of_place<'a>(
    network: NetworkId,
    mac: Mac,
    addresses: &'a [IpNet],
) -> impl Iterator<Item = Thing> + use<'a> {
    let addresses = addresses
        .iter()
        .map(move |address| Thing::Address(network, address.addr()));
    [Thing::Mac(network, mac)].into_iter().chain(addresses)
}

/// What a service claims.
pub(super) fn of_service(network: NetworkId, vips: &[IpAddr]) -> impl Iterator<Item = Thing> {
    vips.iter().map(move |vip| Thing::Address(network, *vip))
}

impl Control {
    /// Who has an address of a network, if it is one that somebody can have.
    pub(super) fn holder(&self, network: NetworkId, spec: &NetworkSpec, address: IpAddr) -> Option<NodeId> {
        let claimants = self.catalogue.claims().of(Thing::Address(network, address));
        let first = claimants.first().copied();
        if !is_usable(address, &spec.subnets) {
            return None;
        }
        if claimants.iter().all(|node| Some(*node) == first) {
            return first;
        }
        // What is in use here is in use, whoever it should belong to.
        let is_claimant = |node: &NodeId| claimants.contains(node);
        let owner = || self.spaces.owner(network, spec, address).filter(is_claimant);
        Some(self.me).filter(is_claimant).or_else(owner).or(first)
    }

    /// Those of the addresses that are really the node's.
    pub(super) fn held_by(&self, node: NodeId, network: NetworkId, addresses: &[IpNet]) -> Vec<IpAddr> {
        let addresses = addresses.iter().map(IpNet::addr);
        let Some(spec) = self.catalogue.network(network) else {
            return Vec::new();
        };
        addresses
            .filter(|address| node == self.me || self.holder(network, spec, *address) == Some(node))
            .collect()
    }

    /// Whether a hardware address on a network is really the node's.
    pub(super) fn has_mac(&self, node: NodeId, network: NetworkId, mac: Mac) -> bool {
        let claims = self.catalogue.claims();
        let thing = Thing::Mac(network, mac);
        let is_mine = claims.of(thing).contains(&self.me);
        let is_unicast = mac.0[0] & 1 == 0 && mac.0 != [0; 6];
        node == self.me || (is_unicast && !is_mine && claims.is_first(node, thing))
    }

    /// Those of a service's virtual addresses that really lead to it.
    pub(super) fn held_vips(&self, network: NetworkId, id: ServiceId) -> Vec<IpAddr> {
        let taken = self.catalogue.taken(network, id);
        let (Some(spec), Some((node, vips))) = (self.catalogue.network(network), taken) else {
            return Vec::new();
        };
        let is_held = |vip: &IpAddr| self.holder(network, spec, *vip) == Some(node);
        vips.iter().copied().filter(is_held).collect()
    }
}

impl super::Spaces {
    /// The owner of an address of a network.
    pub(super) fn owner(&self, network: NetworkId, spec: &NetworkSpec, address: IpAddr) -> Option<NodeId> {
        let key = self.space_of(network, spec, address)?;
        self.owner_of(key, super::pools::number(address))
    }
}

impl Control {
    /// Who says that it has what is another's, or gives it away: a sentence for each of them.
    pub(super) fn untruths(&self, now: Now) -> Vec<String> {
        let mut said: BTreeMap<NodeId, BTreeSet<String>> = BTreeMap::new();
        for (node, network) in self.catalogue.pretenders() {
            let name = self.catalogue.display_name(network).unwrap_or_default();
            said.entry(node)
                .or_default()
                .insert(format!("that it has made network `{name}`"));
        }
        for (node, space) in self.givers_of_others(now) {
            let what = format!("whose {} is", self.space_name(space));
            said.entry(node).or_default().insert(what);
        }
        for (thing, claimants) in self.catalogue.claims().disputed() {
            let (holder, what) = self.judge_claims(thing, claimants);
            for loser in claimants.iter().filter(|node| Some(**node) != holder) {
                said.entry(*loser).or_default().insert(what.clone());
            }
        }
        let sentence = |(node, said): (NodeId, BTreeSet<String>)| {
            let name = self.catalogue.node_name(node);
            let first = said.first().cloned().unwrap_or_default();
            let more = match said.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!(
                "node `{name}` says what others know better: {first}{more}. None of it is heeded; if that node is not to be \
                 trusted, `weft node rm --force {name}` locks it out"
            )
        };
        let members = said
            .into_iter()
            .filter(|(node, _)| !self.catalogue.is_removed(*node));
        members.map(sentence).collect()
    }

    /// Who has what several claim, and what that is.
    fn judge_claims(&self, thing: Thing, claimants: &[NodeId]) -> (Option<NodeId>, String) {
        let first = claimants.first().copied();
        let mine = Some(self.me).filter(|me| claimants.contains(me));
        match thing {
            Thing::Mac(_, mac) => (mine.or(first), format!("that it has the hardware address {mac}")),
            Thing::Key(_) => (first, "that it has another node's WireGuard key".to_owned()),
            Thing::Address(network, address) => {
                let spec = self.catalogue.network(network);
                let holder = spec.and_then(|spec| self.holder(network, spec, address));
                (holder, format!("that it has the address {address}"))
            }
        }
    }
}
