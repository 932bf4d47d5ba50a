//! Who wants to know of which networks, and what follows for what is kept here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::seq::IndexedRandom;
use weft_types::NetworkId;

use super::Gossip;
use crate::{
    Event, INTEREST_KIND, Interest, MemberState,
    identity::Short,
    interest::{self, Said},
    store::{CLUSTER, Stream},
    wire::{EVERY, MAX_NETWORKS, Part},
};

/// The most networks that are fetched at a time.
const FETCHED: usize = 1_024;

/// How long it has to look as if nobody were left to hand a network over to: what others want is heard in no order.
const ALONE: Duration = Duration::from_secs(10);

/// Of what this node wants to be told.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    interest: Interest,
    /// Not wanted any more. But what is held of it, not least what this node has said there last, may be known to nobody else yet.
    leaving: BTreeMap<NetworkId, Leaving>,
    /// What is said of these was not fetched yet.
    lacking: BTreeSet<NetworkId>,
}

/// Which others that are to leave a network too had the same of it, and which sum that was.
#[derive(Debug, Default)]
struct Leaving {
    root: u64,
    same: BTreeSet<Short>,
    /// Since when there has been nobody to hand it over to.
    alone: Option<Instant>,
}

impl Gossip {
    /// Says of which networks this node wants to be told what is in their streams; until then of all. What it is not to be told
    /// any more is [dropped](Event::Dropped) once somebody who stays is known to have what this node said there; what it is told
    /// from now on comes as [records](Event::Record), and [`Event::Known`] says when that is as much as another knew.
    pub fn set_interest(&mut self, interest: Interest, now: Instant) {
        if self.phase == super::Phase::Loading {
            self.wanted.interest = interest;
            return;
        }
        let before = std::mem::replace(&mut self.wanted.interest, interest);
        if before == self.wanted.interest {
            return;
        }
        let left = networks_of(&before).filter(|network| !self.wanted.interest.covers(network));
        self.wanted
            .leaving
            .extend(left.map(|network| (network, Leaving::default())));
        self.announce_interest(false, now);
        self.settle(now);
    }

    /// A sum over what is held of a network: nodes that are told all of it, and agree, have the same.
    pub fn fingerprint_of(&self, network: NetworkId) -> u64 {
        self.digests.network(network).map_or(0, |buckets| buckets.root())
    }

    /// Whether what others say of a network is on its way, or can be asked for: a member that answers wants to know of it too, and
    /// this node was not told yet.
    pub fn is_fetching(&self, network: &NetworkId) -> bool {
        let mut live = self.live.iter();
        self.wanted.lacking.contains(network) && live.any(|peer| self.is_interested(*peer, network))
    }

    /// Whether this node was not told yet what others say of a network, and none of those who know it answers.
    pub fn is_out_of_reach(&self, network: &NetworkId) -> bool {
        self.wanted.lacking.contains(network)
            && !self.is_fetching(network)
            && self.is_wanted_by_others(network)
    }

    /// Whether what others say is on its way of any network, be it one that is to be left.
    pub fn is_fetching_any(&self) -> bool {
        self.wanted
            .lacking
            .iter()
            .any(|network| self.is_fetching(network))
    }

    /// Streams of this node's own that do not add up were written by a version that counted their records among those of the
    /// cluster. Their newest record, said once more, carries the sum over the stream as it is now.
    pub(super) fn renew_own_sums(&mut self, now: Instant) {
        let own = self.store.streams(Short::MIN, Short::MAX);
        let own = own.filter(|(_, stream)| stream.author() == self.node && !stream.is_complete());
        let newest: Vec<_> = own.filter_map(|(_, stream)| stream.newest().cloned()).collect();
        for previous in newest {
            let record = self.write(previous.key.clone(), previous.value.clone(), now);
            let previous = Some(previous);
            self.emit(Event::Record { record, previous });
        }
    }

    /// Whether records of this scope are taken.
    pub(super) fn wants(&self, scope: &NetworkId) -> bool {
        match *scope {
            CLUSTER => true,
            EVERY => self.wanted.interest == Interest::Every,
            _ => self.wanted.interest.covers(scope) || self.wanted.leaving.contains_key(scope),
        }
    }

    /// Has the records say what is wanted: those that are missing are written, those that are too many taken back once the network
    /// was handed over. There may be intentions of a former life among them: of what this node said then is fetched what was lost.
    pub(super) fn announce_interest(&mut self, is_start: bool, now: Instant) {
        let said = self.said_by(self.short);
        let is_every = self.wanted.interest == Interest::Every;
        let before = Said::read(said.iter().map(|(name, value)| (&name[..], &value[..])));
        let mut lacking = BTreeSet::new();
        if !is_every {
            for network in networks_of(&before.interest).chain(before.leaving) {
                let is_new =
                    !self.wanted.interest.covers(&network) && !self.wanted.leaving.contains_key(&network);
                if is_new || is_start {
                    lacking.insert(network);
                }
                if is_new {
                    self.wanted.leaving.insert(network, Leaving::default());
                }
            }
            if before.interest == Interest::Every {
                // Who was told of all may be the only one to know something.
                let streams = self.store.streams(Short::MIN, Short::MAX);
                let held: BTreeSet<_> = streams.map(|(_, stream)| stream.scope()).collect();
                let held = held.into_iter().map(|network| (network, Leaving::default()));
                self.wanted.leaving.extend(held);
            }
        }
        let Wanted {
            interest, leaving, ..
        } = &mut self.wanted;
        leaving.retain(|network, _| *network != CLUSTER && !interest.covers(network));
        let is_anew = |network: &NetworkId| is_start || !before.interest.covers(network);
        lacking.extend(networks_of(&self.wanted.interest).filter(is_anew));
        if is_every && !self.config.network_kinds.is_empty() {
            lacking.insert(EVERY);
            lacking.extend(
                self.interests
                    .values()
                    .flat_map(|said| networks_of(&said.interest)),
            );
        }
        lacking.append(&mut self.wanted.lacking);
        lacking.retain(|network| self.wants(network));
        self.wanted.lacking = lacking;
        self.say_interest(now);
        self.forget_unwanted();
        self.look_at_interest(now);
        if !(self.wanted.lacking.is_empty() && self.wanted.leaving.is_empty()) {
            self.sync.busy(now, Duration::ZERO);
        }
        self.fetch_networks(now);
    }

    fn say_interest(&mut self, now: Instant) {
        let said = self.said_by(self.short);
        let to_say = Said {
            interest: self.wanted.interest.clone(),
            leaving: self.wanted.leaving.keys().copied().collect(),
        };
        let to_say = to_say.write();
        let taken_back = said.keys().filter(|name| !to_say.contains_key(*name));
        let taken_back: Vec<_> = taken_back.map(|name| (name.clone(), None)).collect();
        let changed = to_say
            .iter()
            .filter(|(name, value)| said.get(*name).map(Vec::as_slice) != Some(**value));
        let changed = changed.map(|(name, value)| (name.clone(), Some(Bytes::from_static(value))));
        for (name, value) in taken_back.into_iter().chain(changed) {
            let key = interest::key(name);
            let previous = self.get(&self.node, &key).cloned();
            let record = self.write(key, value, now);
            // As with the card, nobody returns it to the caller.
            self.emit(Event::Record { record, previous });
        }
    }

    fn said_by(&self, author: Short) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let stream = self.store.stream(author);
        let said = stream
            .into_iter()
            .flat_map(|stream| stream.said_of(INTEREST_KIND));
        said.map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect()
    }

    /// A peer may want something else than before.
    pub(super) fn note_interest(&mut self, author: Short) {
        let Some(stream) = self.store.stream(author) else {
            return;
        };
        let said = Said::read(stream.said_of(INTEREST_KIND));
        if said == Said::default() {
            self.interests.remove(&author);
        } else {
            self.interests.insert(author, said);
        }
    }

    fn is_interested(&self, peer: Short, network: &NetworkId) -> bool {
        match self.interests.get(&peer) {
            None => true,
            Some(said) => said.covers(network),
        }
    }

    /// Whether a peer is interested, and was not about to leave when it was last heard of.
    fn stays(&self, peer: Short, network: &NetworkId) -> bool {
        match self.interests.get(&peer) {
            None => true,
            Some(said) => said.interest.covers(network),
        }
    }

    /// The live members that want to know of a network.
    pub(super) fn live_in(&self, network: &NetworkId) -> Vec<Short> {
        let live = self.live.iter().copied();
        live.filter(|peer| self.is_interested(*peer, network)).collect()
    }

    /// What to compare with a peer beside what concerns the cluster, with what is known of it; `first` is among it.
    pub(super) fn shared_with(&mut self, peer: Short, first: Option<NetworkId>) -> Vec<(NetworkId, u64)> {
        let is_every = self.wanted.interest == Interest::Every;
        let mut networks: Vec<NetworkId> = match (is_every, self.interests.get(&peer)) {
            (true, None) => {
                let root = self.fingerprint_of(EVERY);
                // Who knows something is the one to ask.
                return if root == 0 {
                    Vec::new()
                } else {
                    vec![(EVERY, root)]
                };
            }
            (true, Some(theirs)) => networks_of(&theirs.interest)
                .chain(theirs.leaving.iter().copied())
                .collect(),
            (false, None) => self.networks_wanted().collect(),
            (false, Some(theirs)) => self
                .networks_wanted()
                .filter(|network| theirs.covers(network))
                .collect(),
        };
        if networks.len() > MAX_NETWORKS {
            networks = networks.sample(&mut self.rng, MAX_NETWORKS).copied().collect();
            if let Some(first) = first.filter(|first| !networks.contains(first)) {
                networks[0] = first;
            }
        }
        let roots = networks.into_iter();
        roots
            .map(|network| (network, self.fingerprint_of(network)))
            .collect()
    }

    fn networks_wanted(&self) -> impl Iterator<Item = NetworkId> {
        networks_of(&self.wanted.interest).chain(self.wanted.leaving.keys().copied())
    }

    /// With whom to compare what is known of networks next: of one network, most urgently one that is to be left.
    pub(super) fn partner_in_networks(&mut self) -> Option<(Short, Option<NetworkId>)> {
        if self.config.network_kinds.is_empty() {
            return None;
        }
        let leaving: Vec<_> = self.wanted.leaving.keys().copied().collect();
        if let Some(network) = leaving.choose(&mut self.rng)
            && let Some(peer) = self.live_in(network).choose(&mut self.rng)
        {
            return Some((*peer, Some(*network)));
        }
        if self.wanted.interest == Interest::Every {
            return Some((*self.live.choose(&mut self.rng)?, None));
        }
        let networks: Vec<_> = self.networks_wanted().collect();
        let network = *networks.choose(&mut self.rng)?;
        Some((*self.live_in(&network).choose(&mut self.rng)?, Some(network)))
    }

    /// What is wanted and was not fetched yet: from whom, and of which networks. There is nothing to wait for where nobody else
    /// is interested.
    pub(super) fn next_to_fetch(&mut self) -> Option<(Short, Part)> {
        for network in self.wanted.lacking.clone() {
            if !self.is_wanted_by_others(&network) {
                self.note_fetched([network]);
                continue;
            }
            if let Some(peer) = self.live_in(&network).choose(&mut self.rng).copied() {
                let lacking = self.wanted.lacking.iter().copied();
                let same = lacking.filter(|other| self.is_interested(peer, other));
                return Some((peer, Part::Networks(same.take(FETCHED).collect())));
            }
        }
        None
    }

    /// Everything that `peer` knew of these networks is known here now.
    pub(super) fn note_fetched_from(&mut self, peer: Short, networks: &BTreeSet<NetworkId>) {
        let known = networks.iter().copied();
        let known: Vec<_> = known
            .filter(|network| self.is_interested(peer, network))
            .collect();
        self.note_fetched(known);
    }

    fn note_fetched(&mut self, networks: impl IntoIterator<Item = NetworkId>) {
        for network in networks {
            if self.wanted.lacking.remove(&network)
                && self.wanted.interest.covers(&network)
                && network != EVERY
            {
                self.emit(Event::Known(network));
            }
        }
    }

    /// Whether somebody else who is not evicted wants to know of a network, dead or alive.
    fn is_wanted_by_others(&self, network: &NetworkId) -> bool {
        self.others_in(network).next().is_some()
    }

    fn others_in(&self, network: &NetworkId) -> impl Iterator<Item = Short> {
        let peers = self.peers.iter();
        let peers = peers.filter(|(_, peer)| peer.state != MemberState::Left);
        let peers = peers.map(|(short, _)| *short);
        peers.filter(|peer| self.is_interested(*peer, network))
    }

    /// Whether this node is to go on being interested in a network.
    pub(super) fn stays_in(&self, network: &NetworkId) -> bool {
        self.wanted.interest.covers(network)
    }

    /// A peer says that it has the same of this network, and whether it stays.
    pub(super) fn note_same(
        &mut self,
        network: NetworkId,
        root: u64,
        peer: Short,
        stays: bool,
        now: Instant,
    ) {
        let Some(leaving) = self.wanted.leaving.get_mut(&network) else {
            return;
        };
        if stays {
            self.leave_network(network, now);
            return;
        }
        if leaving.root != root {
            *leaving = Leaving::default();
            leaving.root = root;
        }
        leaving.same.insert(peer);
        self.look_at_interest(now);
    }

    /// Leaves the networks that can be left, without a word from one who stays. There has to be none, alive or away, and all others
    /// who are to leave have to have the same: one of them may change its mind, and is not to go on with less.
    pub(super) fn look_at_interest(&mut self, now: Instant) {
        let is_heir = |peer, network: &NetworkId, leaving: &Leaving| {
            let is_same = leaving.root == self.fingerprint_of(*network) && leaving.same.contains(&peer);
            self.stays(peer, network) || !is_same
        };
        let leaving = self.wanted.leaving.iter();
        let alone: BTreeSet<_> = leaving
            .filter(|(network, leaving)| {
                !self
                    .others_in(network)
                    .any(|peer| is_heir(peer, network, leaving))
            })
            .map(|(network, _)| *network)
            .collect();
        // Who has just started has others' intentions of before.
        let is_up_to_date = self.sync.caught_up || self.live.is_empty();
        let holds_nothing = |network: &NetworkId| {
            self.fingerprint_of(*network) == 0 && !self.wanted.lacking.contains(network)
        };
        let empty: BTreeSet<_> = self
            .wanted
            .leaving
            .keys()
            .copied()
            .filter(holds_nothing)
            .collect();
        let mut done = Vec::new();
        for (network, leaving) in &mut self.wanted.leaving {
            let is_alone = is_up_to_date && alone.contains(network);
            let since = leaving.alone.filter(|_| is_alone).unwrap_or(now);
            leaving.alone = is_alone.then_some(since);
            let for_long = is_alone && now.saturating_duration_since(since) >= ALONE;
            if for_long || empty.contains(network) {
                done.push(*network);
            }
        }
        for network in done {
            self.leave_network(network, now);
        }
    }

    fn leave_network(&mut self, network: NetworkId, now: Instant) {
        self.wanted.leaving.remove(&network);
        self.say_interest(now);
        self.forget_unwanted();
    }

    /// Drops what others said of networks that are not wanted.
    fn forget_unwanted(&mut self) {
        let streams = self.store.streams(Short::MIN, Short::MAX);
        let unwanted = |stream: &Stream| stream.author() != self.node && !self.wants(&stream.scope());
        let unwanted: Vec<_> = streams
            .filter(|(_, stream)| unwanted(stream))
            .map(|(name, stream)| (name, stream.scope()))
            .collect();
        for (name, scope) in unwanted {
            for (author, key) in self.store.forget(name) {
                self.emit(Event::Dropped { author, key });
            }
            self.digests.set(scope, &crate::wire::Entry::nothing(name));
        }
    }

    /// Whether a stream is what this node says itself.
    pub(super) fn is_own_stream(&self, name: Short) -> bool {
        name == self.short
            || self
                .store
                .stream(name)
                .is_some_and(|stream| stream.author() == self.node)
    }
}

fn networks_of(interest: &Interest) -> impl Iterator<Item = NetworkId> {
    let networks = match interest {
        Interest::Every => None,
        Interest::These(networks) => Some(networks),
    };
    networks.into_iter().flatten().copied()
}
