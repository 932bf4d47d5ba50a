//! Of which networks this node is told everything, and what it has to ask for first.
//!
//! Every node knows which networks and services there are and who has endpoints where. The endpoints themselves, most of all that
//! is said, are told to those who have to do with their network: who has endpoints there, or lets connections in that lead there, or
//! answers names of it to its host. Whoever is asked about another network by a command wants to be told of it for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use weft_gossip::{INTEREST_KIND, Interest, Record};
use weft_types::{NetworkId, NodeId};

use super::{
    Command, Control, Now,
    catalogue::{Catalogue, Change},
    docker::DockerCommand,
    names,
    records::{Drainee, encode, id_of, use_key},
};
use crate::api::types::ServiceQuery;

/// How long a network stays of interest that this host has nothing to do with any more, or that somebody asked about. Whoever looks
/// again, or starts its container anew, finds everything known.
const KEPT: Duration = Duration::from_secs(60);
/// How long a command waits for what others know. What it shows then may be less than there is.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many networks are named in a sentence.
const NAMED: usize = 3;

#[derive(Default)]
pub(super) struct Interests {
    wanted: BTreeSet<NetworkId>,
    /// Wanted, and not everything is known yet: what arrives now happened some time ago.
    fresh: BTreeSet<NetworkId>,
    /// Those that this host has to do with.
    concerned: BTreeSet<NetworkId>,
    /// Those that connections are to be let into here.
    pub(super) entered: BTreeSet<NetworkId>,
    /// Until when others are wanted.
    kept: BTreeMap<NetworkId, Instant>,
    /// Until when all are.
    all_kept: Option<Instant>,
    /// Commands that wait for what they are about.
    waiting: Vec<Waiting>,
    /// Where this node has got its first endpoint, perhaps, or lost its last.
    touched: BTreeSet<NetworkId>,
    /// Whether something changed that the rest depends on.
    pub(super) to_look_at: bool,
}

struct Waiting {
    asked: Asked,
    about: About,
    until: Instant,
}

/// What was asked for.
pub(super) enum Asked {
    Command(Command),
    Docker(DockerCommand),
}

/// The networks of which all endpoints have to be known for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Nothing,
    One(NetworkId),
    Everything,
}

impl Interests {
    /// What was of interest before a start is so until more is known than what was on the disk.
    pub(super) fn restored(me: NodeId, records: &[Record], catalogue: &Catalogue) -> Self {
        let own = records.iter().filter(|record| record.author == me);
        let said = own.filter(|record| record.key.kind == INTEREST_KIND);
        let said = said.filter(|record| record.value.as_ref().is_some_and(|value| value.is_empty()));
        let said = said.filter_map(|record| id_of(&record.key).map(NetworkId));
        let used: BTreeSet<_> = { catalogue.endpoints_of(me) }
            .map(|(network, ..)| network)
            .collect();
        let concerned: BTreeSet<_> = said
            .chain(used.iter().copied())
            .chain(catalogue.ingresses_of(me))
            .collect();
        Self {
            wanted: concerned.clone(),
            concerned,
            touched: used.into_iter().chain(catalogue.used_by(me)).collect(),
            to_look_at: true,
            ..Self::default()
        }
    }

    pub(super) fn wanted(&self) -> Interest {
        Interest::These(self.wanted.clone())
    }

    /// Takes note of what else the rest depends on.
    pub(super) fn note(&mut self, change: &Change) {
        self.to_look_at |= matches!(
            change,
            Change::NetworkCreated(_)
                | Change::NetworkChanged(_)
                | Change::NetworkRemoved(..)
                | Change::IngressChanged(_)
                | Change::DrainChanged(_)
        );
    }

    /// This node has an endpoint more there, or less.
    pub(super) fn touch(&mut self, network: NetworkId) {
        self.touched.insert(network);
        self.to_look_at = true;
    }

    /// Everything that others knew of a network is known here.
    pub(super) fn note_known(&mut self, network: NetworkId) {
        self.fresh.remove(&network);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        let kept = self.kept.values().copied().chain(self.all_kept);
        waiting.chain(kept).min()
    }
}

impl Control {
    /// Carries it out once this node knows the endpoints that it is about, or cannot come to know them.
    pub(super) fn carry_out_or_wait(&mut self, asked: Asked, now: Now) {
        let about = match &asked {
            Asked::Command(command) => self.subject(command),
            Asked::Docker(command) => self.subject_of_docker(command),
        };
        let kept = now.instant + KEPT;
        let is_known = match about {
            About::Nothing => true,
            About::One(network) => {
                self.interests.kept.insert(network, kept);
                self.interests.wanted.contains(&network)
            }
            About::Everything => self.interests.all_kept.replace(kept).is_some(),
        };
        if !is_known {
            self.interests.to_look_at = true;
            self.look_at_interest(now);
        }
        if self.is_coming(about) {
            let until = now.instant + PATIENCE;
            self.interests.waiting.push(Waiting { asked, about, until });
        } else {
            self.carry_out(asked, now);
        }
    }

    /// Carries out what has waited long enough. Says whether there was something.
    pub(super) fn carry_out_the_waiting(&mut self, now: Now) -> bool {
        if self.interests.waiting.is_empty() {
            return false;
        }
        let waiting = std::mem::take(&mut self.interests.waiting);
        let is_over = |waiting: &Waiting| waiting.until <= now.instant || !self.is_coming(waiting.about);
        let (over, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_over);
        self.interests.waiting = waiting;
        let is_any = !over.is_empty();
        for Waiting { asked, .. } in over {
            self.carry_out(asked, now);
        }
        is_any
    }

    fn carry_out(&mut self, asked: Asked, now: Now) {
        match asked {
            Asked::Command(command) => self.carry_out_command(command, now),
            Asked::Docker(command) => self.carry_out_docker(command, now),
        }
    }

    /// Whether more is about to be known.
    fn is_coming(&self, about: About) -> bool {
        match about {
            About::Nothing => false,
            About::One(network) => self.gossip.is_fetching(&network),
            About::Everything => self.gossip.is_fetching_any(),
        }
    }

    fn subject(&self, command: &Command) -> About {
        let network = |reference: &str| {
            let network = names::network(&self.catalogue, reference);
            network.map_or(About::Nothing, About::One)
        };
        let network_or_all =
            |reference: &Option<String>| reference.as_deref().map_or(About::Everything, network);
        let service = |reference: &str, query: &ServiceQuery| {
            let found = names::service(&self.catalogue, reference, query.network.as_deref());
            found.map_or(About::Nothing, |(_, spec)| About::One(spec.network))
        };
        match command {
            Command::NodeList(_)
            | Command::NodeInspect(..)
            | Command::NodeRemove(..)
            | Command::NodeDrain(..)
            | Command::NetworkList(_)
            | Command::Status(..)
            | Command::Why(..)
            | Command::Follow(_) => About::Everything,
            Command::NetworkInspect(reference, _)
            | Command::NetworkUpdate(reference, ..)
            | Command::NetworkRemove(reference, _)
            | Command::Connect(reference, ..)
            | Command::ConnectHost(reference, ..) => network(reference),
            Command::EndpointDrain(_, request, _) => network_or_all(&request.network),
            Command::EndpointActivate(_, request, _) => network_or_all(&request.network),
            Command::ServiceList(query, _) => network_or_all(&query.network),
            Command::ServiceCreate(request, _) => network(&request.network),
            Command::ServiceInspect(reference, query, _)
            | Command::ServiceUpdate(reference, _, query, _)
            | Command::ServiceRemove(reference, query, _) => service(reference, query),
            Command::Leave(_)
            | Command::TokenCreate(..)
            | Command::TokenList(_)
            | Command::TokenRotateKey(_)
            | Command::NodeActivate(..)
            | Command::NodeRotateKey(..)
            | Command::NetworkCreate(..)
            | Command::Disconnect(..)
            | Command::Examine(_) => About::Nothing,
        }
    }

    /// The networks that this host has to do with.
    fn concerned(&self) -> BTreeSet<NetworkId> {
        let drained = self.catalogue.drains_said_by(self.me);
        let drained = drained.filter_map(|drainee| match drainee {
            Drainee::Endpoint(network, _) => Some(network),
            Drainee::Node(_) => None,
        });
        let entered = self.interests.entered.iter().copied();
        let mut all = self.networks_here();
        all.extend(drained.chain(entered));
        if !self.settings.shown_networks.is_empty() {
            let networks = self.catalogue.networks().map(|(id, _)| id);
            all.extend(networks.filter(|id| self.is_shown_to_host(*id)));
        }
        all
    }

    /// Has gossip tell this node what it has to know, and no more. Says whether anything changed.
    pub(super) fn look_at_interest(&mut self, now: Now) -> bool {
        if self.removed {
            self.interests.kept.clear();
            self.interests.all_kept = None;
            return false;
        }
        let mut due = self.interests.kept.values().chain(&self.interests.all_kept);
        let is_due = due.any(|until| *until <= now.instant);
        if !(is_due || self.interests.to_look_at) {
            return false;
        }
        self.interests.to_look_at = false;
        let concerned = self.concerned();
        let interests = &mut self.interests;
        let before = std::mem::replace(&mut interests.concerned, concerned);
        if self.reading_back.is_some() {
            // What is not known now may be known in a moment.
            interests.concerned.extend(before);
        } else {
            let gone = before.difference(&interests.concerned);
            let kept = gone.map(|network| (*network, now.instant + KEPT));
            interests.kept.extend(kept);
        }
        interests.kept.retain(|_, until| *until > now.instant);
        interests.all_kept.take_if(|until| *until <= now.instant);
        let is_there = |network: &NetworkId| self.catalogue.network(*network).is_some();
        let kept = interests.kept.keys().copied().filter(is_there);
        let mut wanted: BTreeSet<_> = interests.concerned.iter().copied().chain(kept).collect();
        if interests.all_kept.is_some() {
            wanted.extend(self.catalogue.networks().map(|(id, _)| id));
        }
        if wanted == interests.wanted {
            return false;
        }
        interests.fresh.retain(|network| wanted.contains(network));
        let more = wanted.difference(&interests.wanted);
        interests.fresh.extend(more);
        interests.wanted = wanted;
        self.gossip.set_interest(self.interests.wanted(), now.instant);
        true
    }

    /// Has all nodes know on which networks this one has endpoints.
    pub(super) fn say_what_is_used(&mut self, now: Now) -> bool {
        if self.interests.touched.is_empty() || self.reading_back.is_some() || self.removed {
            return false;
        }
        for network in std::mem::take(&mut self.interests.touched) {
            let is_used = self.catalogue.endpoints_of_on(self.me, network).next().is_some();
            let is_said = self.catalogue.users(network).any(|node| node == self.me);
            if is_used && !is_said {
                if let Err(error) = self.publish(use_key(network), encode(&()), now) {
                    self.problem(error.message);
                }
            } else if is_said && !is_used {
                self.withdraw(&use_key(network), now);
            }
        }
        true
    }

    /// Whether everything is known of a network that is known of it at all. Where nobody else wants to know of it, that is so at once.
    pub(super) fn knows_network(&self, network: NetworkId) -> bool {
        let is_lacking = || self.gossip.is_fetching(&network) || self.gossip.is_out_of_reach(&network);
        let interests = &self.interests;
        interests.wanted.contains(&network) && !(interests.fresh.contains(&network) && is_lacking())
    }

    /// Whether what is heard of a network's endpoints is news: not what had happened before this node wanted to know.
    pub(super) fn is_news(&self, network: NetworkId, node: NodeId) -> bool {
        // Gossip has all that was fetched when the first of it is heard of here, and says so after the last.
        let is_up_to_date = !self.interests.fresh.contains(&network);
        node == self.me || (self.interests.wanted.contains(&network) && is_up_to_date)
    }

    /// A sentence if there are networks of which those who know about them do not answer.
    pub(super) fn interest_problem(&self) -> Option<String> {
        let out_of_reach = self.interests.fresh.iter();
        let out_of_reach = out_of_reach.filter(|network| self.gossip.is_out_of_reach(network));
        let names: Vec<_> = out_of_reach
            .filter_map(|network| self.catalogue.display_name(*network))
            .collect();
        let more = match names.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let shown: Vec<_> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
        (!names.is_empty()).then(|| {
            format!(
                "no node answers that knows the endpoints of network {}{more}: what is shown of them may be old, or nothing",
                shown.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests;
