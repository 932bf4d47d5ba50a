//! The endpoints of a network on other hosts, of which there may be many: copies share what is the same, and two of them are
//! compared by what is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_types::{EndpointId, Mac};

/// A change copies one of so many pieces. Ids are random, so that pieces are of one size.
const PIECES: usize = 128;

/// An endpoint on another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteEndpoint {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The address of its host, of the kind that [`Network::vtep`](super::Network::vtep) is.
    pub vtep: IpAddr,
}

/// Endpoints on other hosts, in the order of their ids. Copies share them until one is changed, and then all but a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remotes(Arc<All>);

type Piece = BTreeMap<EndpointId, RemoteEndpoint>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct All {
    pieces: Vec<Arc<Piece>>,
    /// How many endpoints each host has.
    vteps: BTreeMap<IpAddr, usize>,
    endpoints: usize,
    addresses: usize,
}

impl Default for Remotes {
    fn default() -> Self {
        Self(Arc::new(All {
            pieces: vec![Arc::default(); PIECES],
            vteps: BTreeMap::new(),
            endpoints: 0,
            addresses: 0,
        }))
    }
}

impl From<BTreeMap<EndpointId, RemoteEndpoint>> for Remotes {
    fn from(remotes: BTreeMap<EndpointId, RemoteEndpoint>) -> Self {
        let mut all = Self::default();
        for (id, remote) in remotes {
            all.insert(id, remote);
        }
        all
    }
}

impl Remotes {
    /// Adds an endpoint in place of what there was of it.
    pub fn insert(&mut self, id: EndpointId, remote: RemoteEndpoint) {
        if self.get(&id) == Some(&remote) {
            return;
        }
        let all = Arc::make_mut(&mut self.0);
        *all.vteps.entry(remote.vtep).or_default() += 1;
        all.endpoints += 1;
        all.addresses += remote.addresses.len();
        let before = Arc::make_mut(&mut all.pieces[piece_of(&id)]).insert(id, remote);
        all.uncount(before);
    }

    /// Takes an endpoint out, if it is there.
    pub fn remove(&mut self, id: &EndpointId) {
        if self.get(id).is_none() {
            return;
        }
        let all = Arc::make_mut(&mut self.0);
        let before = Arc::make_mut(&mut all.pieces[piece_of(id)]).remove(id);
        all.uncount(before);
    }

    /// One of them.
    pub fn get(&self, id: &EndpointId) -> Option<&RemoteEndpoint> {
        self.0.pieces[piece_of(id)].get(id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&EndpointId, &RemoteEndpoint)> + Clone {
        self.0.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// All of them, without their ids.
    pub fn values(&self) -> impl Iterator<Item = &RemoteEndpoint> + Clone {
        self.iter().map(|(_, remote)| remote)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.endpoints
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many addresses they have, those included that more than one has.
    pub(super) fn addresses(&self) -> usize {
        self.0.addresses
    }

    /// The hosts that they are on.
    pub(super) fn vteps(&self) -> impl Iterator<Item = IpAddr> {
        self.0.vteps.keys().copied()
    }

    /// What is not the same as before: how it was, and how it is.
    pub(super) fn differing<'a>(
        &'a self,
        before: &'a Self,
    ) -> Vec<(Option<&'a RemoteEndpoint>, Option<&'a RemoteEndpoint>)> {
        let pieces = before.0.pieces.iter().zip(&self.0.pieces);
        let others = pieces.filter(|(before, now)| !Arc::ptr_eq(before, now));
        let mut differing = Vec::new();
        for (before, now) in others {
            let ids: BTreeSet<_> = before.keys().chain(now.keys()).collect();
            let pairs = ids.into_iter().map(|id| (before.get(id), now.get(id)));
            differing.extend(pairs.filter(|(before, now)| before != now));
        }
        differing
    }
}

impl All {
    fn uncount(&mut self, before: Option<RemoteEndpoint>) {
        let Some(before) = before else { return };
        self.endpoints -= 1;
        self.addresses -= before.addresses.len();
        if let Some(count) = self.vteps.get_mut(&before.vtep) {
            *count -= 1;
            if *count == 0 {
                self.vteps.remove(&before.vtep);
            }
        }
    }
}

/// By the first bits, so that pieces one after the other are in order.
fn piece_of(id: &EndpointId) -> usize {
    usize::from(id.0[0]) * PIECES / 256
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn remote() -> impl Strategy<Value = RemoteEndpoint> {
        (0..4_u8, 0..3_usize, 1..4_u8).prop_map(|(mac, addresses, vtep)| RemoteEndpoint {
            mac: Mac([2, 0, 0, 0, 0, mac]),
            addresses: vec![IpAddr::from([10, 0, 0, mac]); addresses],
            vtep: IpAddr::from([192, 0, 2, vtep]),
        })
    }

    #[test]
    fn a_change_copies_one_piece_of_many() {
        let remote = |vtep| RemoteEndpoint {
            mac: Mac([2; 6]),
            addresses: Vec::new(),
            vtep: IpAddr::from([192, 0, 2, vtep]),
        };
        let all: BTreeMap<_, _> = (0..=255).map(|n| (EndpointId([n; 16]), remote(1))).collect();
        let before = Remotes::from(all);
        assert!(before.0.pieces.iter().all(|piece| piece.len() == 256 / PIECES));
        let mut now = before.clone();
        now.insert(EndpointId([200; 16]), remote(2));
        let pieces = before.0.pieces.iter().zip(&now.0.pieces);
        assert_eq!(
            pieces.filter(|(before, now)| !Arc::ptr_eq(before, now)).count(),
            1
        );
    }

    proptest! {
        #[test]
        fn it_is_a_map_that_knows_its_sums_and_what_has_changed(
            steps in collection::vec((0..20_u8, prop::option::of(remote())), 0..40), cut in 0..40_usize
        ) {
            let (mut remotes, mut model) = (Remotes::default(), BTreeMap::new());
            let (mut then, mut model_then) = (remotes.clone(), model.clone());
            for (place, (id, remote)) in steps.into_iter().enumerate() {
                if place == cut {
                    (then, model_then) = (remotes.clone(), model.clone());
                }
                let id = EndpointId([id * 12; 16]);
                match remote {
                    Some(remote) => {
                        remotes.insert(id, remote.clone());
                        model.insert(id, remote);
                    }
                    None => {
                        remotes.remove(&id);
                        model.remove(&id);
                    }
                }
            }
            prop_assert!(remotes.iter().eq(&model));
            prop_assert_eq!(&remotes, &Remotes::from(model.clone()));
            prop_assert_eq!(remotes.len(), model.len());
            prop_assert_eq!(remotes.is_empty(), model.is_empty());
            prop_assert_eq!(remotes.addresses(), model.values().map(|remote| remote.addresses.len()).sum::<usize>());
            let vteps: BTreeSet<_> = model.values().map(|remote| remote.vtep).collect();
            prop_assert!(remotes.vteps().eq(vteps));
            let ids: BTreeSet<_> = model.keys().chain(model_then.keys()).collect();
            let differing: Vec<_> = ids
                .into_iter()
                .map(|id| (model_then.get(id), model.get(id)))
                .filter(|(before, now)| before != now)
                .collect();
            prop_assert_eq!(remotes.differing(&then), differing);
        }
    }
}
