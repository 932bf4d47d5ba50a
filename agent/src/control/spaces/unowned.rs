//! Grants of numbers that their author does not own, as far as this node knows.
//!
//! Either the grant that made it the owner has not come yet, or it never will: then somebody gives what is another's, and
//! that changes nothing. What is known of the owners decides, so it does not matter in which order grants come.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use weft_gossip::Key;
use weft_ipam::{Grant, Space};
use weft_types::{NetworkId, NodeId};

use crate::control::{Control, Now, records::SpaceKey};

/// The record that says so. One that replaces it replaces this too, so there are never more than gossip holds records.
pub(super) type Place = (NodeId, Key);

/// After this time the missing grant is not on its way.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(in crate::control) struct Unowned {
    /// By version, because the next one to be believed is most often the lowest.
    spaces: BTreeMap<SpaceKey, BTreeMap<(u64, Place), Waiting>>,
    places: BTreeMap<Place, (SpaceKey, u64)>,
}

struct Waiting {
    grant: Grant<NodeId>,
    since: Instant,
}

impl Unowned {
    pub(super) fn add(&mut self, place: Place, space: SpaceKey, grant: Grant<NodeId>, since: Instant) {
        self.forget(&place);
        self.places.insert(place.clone(), (space, grant.version));
        let of_space = self.spaces.entry(space).or_default();
        of_space.insert((grant.version, place), Waiting { grant, since });
    }

    pub(super) fn forget(&mut self, place: &Place) {
        let Some((space, version)) = self.places.remove(place) else {
            return;
        };
        if let Some(of_space) = self.spaces.get_mut(&space) {
            of_space.remove(&(version, place.clone()));
            if of_space.is_empty() {
                self.spaces.remove(&space);
            }
        }
    }

    pub(super) fn forget_network(&mut self, network: NetworkId) {
        self.spaces.retain(|space, _| space.scope() != network);
        self.places.retain(|_, (space, _)| space.scope() != network);
    }

    /// The one of the lowest version that turns out to be by the owner.
    pub(super) fn take(&mut self, key: SpaceKey, space: &Space<NodeId>) -> Option<Grant<NodeId>> {
        let mut waiting = self.spaces.get(&key)?.iter();
        let by_owner = waiting.find(|(_, waiting)| space.is_by_owner(&waiting.grant));
        let ((_, place), waiting) = by_owner?;
        let (place, grant) = (place.clone(), waiting.grant);
        self.forget(&place);
        Some(grant)
    }

    /// Who gives what is not its own, with the space.
    fn givers(&self, now: Instant) -> impl Iterator<Item = (NodeId, SpaceKey)> {
        let all = self
            .spaces
            .iter()
            .flat_map(|(space, waiting)| waiting.iter().map(|entry| (*space, entry)));
        all.filter(move |(_, (_, waiting))| now.saturating_duration_since(waiting.since) >= PATIENCE)
            .map(|(space, ((_, (author, _)), _))| (*author, space))
    }
}

impl Control {
    /// Who gives numbers that are not its own, with the space.
    pub(in crate::control) fn givers_of_others(&self, now: Now) -> impl Iterator<Item = (NodeId, SpaceKey)> {
        self.spaces.unowned.givers(now.instant)
    }
}
