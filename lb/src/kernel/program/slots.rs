//! Which backend comes next.

use std::{collections::BTreeMap, net::IpAddr};

use super::Side;
use crate::{Loads, Scheduler, Service, choices};

/// The addresses to translate to, one after the other, for IPv4 and IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::kernel) struct Slots {
    pub(super) side: Side,
    /// Whether it is the client's address that finds its slot, instead of each connection taking the next one.
    pub(super) by_client: bool,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

impl Slots {
    /// `seed` differs between sandboxes, so that they do not all begin with the same backend.
    pub(in crate::kernel) fn of(service: &Service, loads: &Loads, seed: u64, side: Side) -> Self {
        let by_client = service.scheduler == Scheduler::Maglev && side == Side::Entry;
        let slots = |ipv6| {
            if !service.vips.iter().any(|vip| vip.is_ipv6() == ipv6) {
                return Vec::new();
            }
            let mut chosen = choices(service, ipv6, loads);
            if service.scheduler != Scheduler::LeastConnections && !by_client && !chosen.is_empty() {
                let len = chosen.len();
                chosen.rotate_left((seed % len as u64) as usize);
            }
            if service.scheduler == Scheduler::Maglev && !by_client {
                // The sandbox is the client, so its place in the table is all it needs.
                chosen.truncate(1);
            }
            let addrs: BTreeMap<_, _> = service
                .active(ipv6)
                .into_iter()
                .map(|(backend, addr)| (backend.endpoint, addr))
                .collect();
            chosen
                .iter()
                .filter_map(|endpoint| addrs.get(endpoint).copied())
                .collect()
        };
        Self {
            side,
            by_client,
            v4: slots(false),
            v6: slots(true),
        }
    }

    /// Those that stand in a map: where there is one alone, the rule says it.
    pub(in crate::kernel) fn in_map(&self, ipv6: bool) -> &[IpAddr] {
        match self.of_version(ipv6) {
            [_] => &[],
            slots => slots,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(super) fn of_version(&self, ipv6: bool) -> &[IpAddr] {
        if ipv6 { &self.v6 } else { &self.v4 }
    }

    /// Whether the order can make a difference.
    pub(in crate::kernel) fn has_choice(&self) -> bool {
        self.v4.len() > 1 || self.v6.len() > 1
    }
}
