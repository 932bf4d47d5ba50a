use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{Dropped, envelope::Refusal, table::Denied};

/// What was dropped since the process began.
#[derive(Debug, Default)]
pub struct Tally {
    pub malformed: AtomicU64,
    pub unknown_index: AtomicU64,
    pub unknown_peer: AtomicU64,
    pub over_budget: AtomicU64,
    pub undecryptable: AtomicU64,
    pub replayed: AtomicU64,
    wrong_source: AtomicU64,
    wrong_destination: AtomicU64,
    not_vxlan: AtomicU64,
    unknown_vni: AtomicU64,
    not_a_member: AtomicU64,
    wrong_mac: AtomicU64,
}

/// One more.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Tally {
    pub fn deny(&self, denied: Denied) {
        count(match denied {
            Denied::Envelope(Refusal::WrongSource) => &self.wrong_source,
            Denied::Envelope(Refusal::WrongDestination) => &self.wrong_destination,
            Denied::Envelope(Refusal::NotVxlan) => &self.not_vxlan,
            Denied::UnknownVni => &self.unknown_vni,
            Denied::NotAMember(_) => &self.not_a_member,
            Denied::WrongMac(_) => &self.wrong_mac,
        });
    }

    /// Decrypted, but not IP.
    pub fn deny_contents(&self) {
        count(&self.wrong_source);
    }

    pub fn dropped(&self) -> Dropped {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        Dropped {
            malformed: get(&self.malformed),
            unknown_index: get(&self.unknown_index),
            unknown_peer: get(&self.unknown_peer),
            over_budget: get(&self.over_budget),
            undecryptable: get(&self.undecryptable),
            replayed: get(&self.replayed),
            wrong_source: get(&self.wrong_source),
            wrong_destination: get(&self.wrong_destination),
            not_vxlan: get(&self.not_vxlan),
            unknown_vni: get(&self.unknown_vni),
            not_a_member: get(&self.not_a_member),
            wrong_mac: get(&self.wrong_mac),
        }
    }
}
