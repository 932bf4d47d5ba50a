use std::collections::{BTreeMap, BTreeSet};

use weft_types::NetworkId;

use crate::{Key, store::CLUSTER, wire::EVERY};

/// The kind of the records that this crate writes itself to say of which networks a node wants to know everything.
pub const INTEREST_KIND: u8 = 254;

/// Of which networks a node is told what is in their streams. What concerns the whole cluster it is told anyway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Interest {
    /// Of all there are.
    #[default]
    Every,
    /// Of these.
    These(BTreeSet<NetworkId>),
}

impl Interest {
    /// Whether this network is one of them.
    pub fn covers(&self, network: &NetworkId) -> bool {
        match self {
            Self::Every => true,
            Self::These(networks) => networks.contains(network),
        }
    }
}

/// What records of interest say: none that all is wanted; otherwise one without a name, and one for each network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) interest: Interest,
    /// Those that are to be left: what is said of them is told until then.
    pub(crate) leaving: BTreeSet<NetworkId>,
}

impl Said {
    /// The value of the record of a network that is to be left; of others it is empty.
    const LEAVING: &[u8] = &[1];

    /// The records, by their names.
    pub(crate) fn write(&self) -> BTreeMap<Vec<u8>, &'static [u8]> {
        let Interest::These(networks) = &self.interest else {
            return BTreeMap::new();
        };
        let stays: &[u8] = &[];
        let wanted = networks.iter().map(|network| (network.0.to_vec(), stays));
        let leaving = self
            .leaving
            .iter()
            .map(|network| (network.0.to_vec(), Self::LEAVING));
        leaving.chain(wanted).chain([(Vec::new(), stays)]).collect()
    }

    /// Others than names of networks are nobody's interest.
    pub(crate) fn read<'a>(records: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let (mut is_every, mut wanted, mut leaving) = (true, BTreeSet::new(), BTreeSet::new());
        for (name, value) in records {
            is_every &= !name.is_empty();
            if let Some(network) = network_of(name) {
                let which = if value == Self::LEAVING {
                    &mut leaving
                } else {
                    &mut wanted
                };
                which.insert(network);
            }
        }
        if is_every {
            return Self::default();
        }
        let interest = Interest::These(wanted);
        Self { interest, leaving }
    }

    /// Whether what is new there is to be told.
    pub(crate) fn covers(&self, network: &NetworkId) -> bool {
        self.interest.covers(network) || self.leaving.contains(network)
    }
}

/// The network that a record of interest names.
pub(crate) fn network_of(name: &[u8]) -> Option<NetworkId> {
    let network = NetworkId(name.try_into().ok()?);
    (network != CLUSTER && network != EVERY).then_some(network)
}

pub(crate) fn key(name: Vec<u8>) -> Key {
    Key {
        kind: INTEREST_KIND,
        scope: CLUSTER,
        name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_records_say_is_read_as_it_was_meant() {
        let networks = |ids: &[u8]| ids.iter().map(|id| NetworkId([*id; 16])).collect::<BTreeSet<_>>();
        let these = |wanted: &[u8], leaving: &[u8]| Said {
            interest: Interest::These(networks(wanted)),
            leaving: networks(leaving),
        };
        let all = [
            Said::default(),
            these(&[], &[]),
            these(&[1, 9], &[]),
            these(&[1], &[2, 9]),
        ];
        for said in all {
            let records = said.write();
            let records = records.iter().map(|(name, value)| (&name[..], *value));
            assert_eq!(Said::read(records), said);
        }
        // Neither is a network, nor anything of another length.
        let odd: [&[u8]; 4] = [&[], &[0; 16], &[0xff; 16], b"short"];
        assert_eq!(
            Said::read(odd.into_iter().map(|name| (name, &[][..]))),
            these(&[], &[])
        );
    }
}
