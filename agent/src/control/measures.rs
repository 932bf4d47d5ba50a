//! What is measured of the cluster as this node sees it.

use weft_gossip::Stats;
use weft_wireguard::Dropped;

use super::{Control, Now};
use crate::api::types::{AddressShare, Backend, EncryptionStatus, NetworkSummary, NodeInfo, ServiceSummary};

/// What a node knows when somebody measures.
#[derive(Debug, Clone, Default)]
pub struct Measures {
    pub nodes: Vec<NodeInfo>,
    /// How many networks there are.
    pub network_count: u64,
    /// Those whose endpoints are known here, with who owns which addresses.
    pub networks: Vec<(NetworkSummary, Vec<AddressShare>)>,
    pub services: Vec<(ServiceSummary, Vec<Backend>)>,
    pub gossip: Stats,
    pub records: u64,
    /// How many facts more this node can say.
    pub room: u64,
    pub health: HealthCounts,
    /// How often this host has ejected a backend.
    pub ejections: u64,
    /// Of a host with a part in an encrypted network; with what was not delivered.
    pub encryption: Option<(EncryptionStatus, Dropped)>,
}

/// How health checks ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthCounts {
    pub passed: u64,
    pub failed: u64,
}

impl Control {
    /// What there is to measure now.
    pub fn measures(&self, now: Now) -> Measures {
        let known = self.catalogue.networks();
        let known = known.filter(|(id, _)| self.knows_network(*id));
        let networks = known.map(|(id, spec)| {
            let summary = self.network_summary(id, spec);
            (summary, self.network_shares(id, spec))
        });
        let services = self.catalogue.all_services();
        let services = services.filter(|(_, spec)| self.knows_network(spec.network));
        let services = services.map(|(id, spec)| {
            let summary = self.service_summary(id, spec);
            (summary, self.backends(spec.network, &spec.name))
        });
        Measures {
            nodes: self.list_nodes(),
            network_count: self.catalogue.networks().count() as u64,
            networks: networks.collect(),
            services: services.collect(),
            gossip: *self.gossip.stats(),
            records: self.gossip.records().count() as u64,
            room: self.gossip.room() as u64,
            health: self.checks.ended(),
            ejections: self.ejected_so_far,
            encryption: self
                .encryption(None, now)
                .map(|status| (status, self.refused_in_tunnels(now))),
        }
    }

    /// Whether this host is what the records say; else what it waits for.
    pub fn readiness(&self) -> Result<(), &'static str> {
        if self.reading_back.is_some() {
            return Err("it asks the other nodes what it missed");
        }
        if !self.polls.has_applied() {
            return Err("it has not yet compared this host with what is wanted");
        }
        Ok(())
    }
}
