//! Which tracked connections of a sandbox are open to which backend.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use weft_netlink::conntrack::{Event, Flow, Tuple};
use weft_types::{EndpointId, ServiceId};

use super::program::{Key, Side, elements, protocol_number};
use crate::{Loads, Protocol, Service};

/// The counted services of one sandbox, found by what a flow shows.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<(IpAddr, Option<(u8, u16)>), ServiceId>,
    backends: HashMap<(ServiceId, IpAddr), EndpointId>,
}

impl Index {
    pub(super) fn of<'a>(services: impl Iterator<Item = &'a Service>, side: Side) -> Self {
        let mut index = Self::default();
        for service in services {
            for Key { vip, port } in elements(service, side).into_keys() {
                index.keys.insert((vip, port), service.id);
            }
            for backend in &service.backends {
                for &addr in &backend.addrs {
                    index.backends.insert((service.id, addr), backend.endpoint);
                }
            }
        }
        index
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<(ServiceId, EndpointId)> {
        if ![protocol_number(Protocol::Tcp), protocol_number(Protocol::Udp)].contains(&flow.protocol) {
            return None;
        }
        let port = (flow.protocol, flow.original.dst_port);
        let of = |port| self.keys.get(&(flow.original.dst, port));
        let service = *of(Some(port)).or_else(|| of(None))?;
        Some((service, *self.backends.get(&(service, flow.reply.src))?))
    }
}

/// The loads of all services, over all sandboxes of this host.
pub(super) type AllLoads = HashMap<ServiceId, Loads>;

/// The open flows of one sandbox. Each counts once in the loads, whatever events are repeated or lost.
#[derive(Debug, Default)]
pub(super) struct OpenFlows {
    open: HashMap<(u8, Tuple), Counted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    id: u32,
    service: ServiceId,
    endpoint: EndpointId,
}

impl OpenFlows {
    /// Takes an event in; notes the service whose loads it changed.
    pub(super) fn handle(
        &mut self,
        event: &Event,
        index: &Index,
        loads: &mut AllLoads,
        touched: &mut BTreeSet<ServiceId>,
    ) {
        match event {
            Event::New(flow) | Event::Update(flow) if flow.is_open() => {
                // An update that does not say how far TCP is must not bring back a flow that is closing.
                if matches!(event, Event::Update(_)) && flow.tcp_state.is_none() {
                    return;
                }
                if let Some((service, endpoint)) = index.find(flow) {
                    self.open(
                        flow,
                        Counted {
                            id: flow.id,
                            service,
                            endpoint,
                        },
                        loads,
                        touched,
                    );
                }
            }
            Event::New(flow) | Event::Update(flow) | Event::Destroy(flow) => self.close(flow, loads, touched),
        }
    }

    /// Counts anew from a full listing.
    pub(super) fn recount(
        &mut self,
        flows: &[Flow],
        index: &Index,
        loads: &mut AllLoads,
        touched: &mut BTreeSet<ServiceId>,
    ) {
        let found: HashMap<(u8, Tuple), (&Flow, Counted)> = flows
            .iter()
            .filter(|flow| flow.is_open())
            .filter_map(|flow| {
                let (service, endpoint) = index.find(flow)?;
                Some((
                    (flow.protocol, flow.original),
                    (
                        flow,
                        Counted {
                            id: flow.id,
                            service,
                            endpoint,
                        },
                    ),
                ))
            })
            .collect();
        self.open.retain(|key, counted| {
            let stays = found.get(key).is_some_and(|(_, now)| now == counted);
            if !stays {
                forget(*counted, loads, touched);
            }
            stays
        });
        for (flow, counted) in found.into_values() {
            self.open(flow, counted, loads, touched);
        }
    }

    /// Takes all its flows out of the loads.
    pub(super) fn clear(&mut self, loads: &mut AllLoads) {
        self.open
            .drain()
            .for_each(|(_, counted)| forget(counted, loads, &mut BTreeSet::new()));
    }

    fn open(
        &mut self,
        flow: &Flow,
        counted: Counted,
        loads: &mut AllLoads,
        touched: &mut BTreeSet<ServiceId>,
    ) {
        let before = self.open.insert((flow.protocol, flow.original), counted);
        if before == Some(counted) {
            return;
        }
        if let Some(before) = before {
            forget(before, loads, touched);
        }
        loads.entry(counted.service).or_default().opened(counted.endpoint);
        touched.insert(counted.service);
    }

    fn close(&mut self, flow: &Flow, loads: &mut AllLoads, touched: &mut BTreeSet<ServiceId>) {
        let key = (flow.protocol, flow.original);
        // The end of an earlier flow with the same addresses and ports must not end this one.
        if self.open.get(&key).is_some_and(|counted| counted.id == flow.id) {
            self.open
                .remove(&key)
                .into_iter()
                .for_each(|counted| forget(counted, loads, touched));
        }
    }
}

fn forget(counted: Counted, loads: &mut AllLoads, touched: &mut BTreeSet<ServiceId>) {
    if let Some(loads) = loads.get_mut(&counted.service) {
        loads.closed(counted.endpoint);
        touched.insert(counted.service);
    }
}
