//! Measurements as text: the OpenMetrics format, which Prometheus and its kin read.
//!
//! Everything is looked up when somebody asks, and nothing is kept in between: what counts, counts where it happens.

mod families;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use weft_dns::Counts;
use weft_netlink::route::Losses;
use weft_types::{EndpointId, NetworkId};
use weft_wireguard::Dropped;

use crate::{
    api::types::{BackendState, DatapathStatus, EncryptionStatus, NodeState},
    control::{Measures, Traffic},
};
use families::{Family, Kind};

/// What the answer is called in a `Content-Type`.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Backends that have lines of their own; those beyond are added up under the name `others`. A service's states are counted
/// whatever its size.
const MOST_BACKENDS: usize = 2000;

/// All that is measured.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) node_name: String,
    pub(crate) datapath: DatapathStatus,
    pub(crate) started_unix_millis: u64,
    /// Empty on a node that is in no cluster.
    pub(crate) cluster: Measures,
    pub(crate) dns: Counts,
    pub(crate) work: Work,
    pub(crate) traffic: BTreeMap<EndpointId, Traffic>,
    pub(crate) losses: BTreeMap<NetworkId, Losses>,
}

/// What keeping the kernel right took since the agent was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Times that the kernel was compared with what is wanted.
    pub(crate) applies: u64,
    /// Times that all of the kernel's state was forgotten, to be read back.
    pub(crate) read_backs: u64,
    /// How long all of them took.
    pub(crate) apply_time: Duration,
    /// Operations and services that were written.
    pub(crate) changes: u64,
    /// Of these, those that nobody had asked for: somebody else had changed what is ours.
    pub(crate) repairs: u64,
    /// What could not be done.
    pub(crate) errors: u64,
}

/// The answer to `GET /metrics`.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Samples::of(snapshot)));
    let mut answer = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut answer, &registry);
    answer
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Whole(u64),
    Seconds(f64),
}

impl From<u64> for Value {
    fn from(whole: u64) -> Self {
        Self::Whole(whole)
    }
}

/// The values of all families.
#[derive(Debug, Default)]
struct Samples(BTreeMap<&'static str, Vec<(Vec<String>, Value)>>);

impl Samples {
    fn of(snapshot: &Snapshot) -> Self {
        let mut samples = Self::default();
        samples.add_agent(snapshot);
        samples.add_cluster(&snapshot.cluster);
        samples.add_services(snapshot);
        samples.add_gossip(&snapshot.cluster);
        samples.add_losses(snapshot);
        samples.add_dns(&snapshot.dns);
        if let Some((encryption, refused)) = &snapshot.cluster.encryption {
            samples.add_tunnels(encryption, refused);
        }
        samples
    }

    /// `labels` are the values of the family's labels, in its order.
    fn add<const N: usize>(&mut self, family: Family, labels: [&str; N], value: impl Into<Value>) {
        debug_assert_eq!(family.labels.len(), N, "{}", family.name);
        let labels = labels.map(str::to_owned).into();
        self.0
            .entry(family.name)
            .or_default()
            .push((labels, value.into()));
    }

    fn add_agent(&mut self, snapshot: &Snapshot) {
        let labels = [
            env!("CARGO_PKG_VERSION"),
            &snapshot.datapath.name,
            &snapshot.node_name,
        ];
        self.add(families::AGENT, labels, 1);
        let started = Value::Seconds(snapshot.started_unix_millis as f64 / 1e3);
        self.add(families::STARTED, [], started);
        let work = &snapshot.work;
        self.add(families::KERNEL_APPLIES, [], work.applies);
        self.add(families::KERNEL_READ_BACKS, [], work.read_backs);
        self.add(
            families::KERNEL_SECONDS,
            [],
            Value::Seconds(work.apply_time.as_secs_f64()),
        );
        self.add(families::KERNEL_CHANGES, [], work.changes);
        self.add(families::KERNEL_REPAIRS, [], work.repairs);
        self.add(families::KERNEL_ERRORS, [], work.errors);
    }

    fn add_cluster(&mut self, cluster: &Measures) {
        for state in NodeState::ALL {
            let in_state = cluster.nodes.iter().filter(|node| node.state == state).count();
            self.add(families::NODES, [&state.to_string()], in_state as u64);
        }
        let own = cluster.nodes.iter().find(|node| node.is_self);
        self.add(
            families::LOCAL_ENDPOINTS,
            [],
            own.map_or(0, |node| u64::from(node.endpoint_count)),
        );
        self.add(families::NETWORKS, [], cluster.network_count);
        for (network, shares) in &cluster.networks {
            let name = network.name.as_str();
            self.add(families::ENDPOINTS, [name], u64::from(network.endpoint_count));
            // A network may have several subnets.
            let mut addresses: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
            for share in shares {
                let (used, free) = addresses.entry(&share.node_name).or_default();
                *used = used.saturating_add(share.used);
                *free = free.saturating_add(share.owned.saturating_sub(share.used));
            }
            for (node, (used, free)) in addresses {
                self.add(families::ADDRESSES_USED, [name, node], used);
                self.add(families::ADDRESSES_FREE, [name, node], free);
            }
        }
        self.add(families::EJECTIONS, [], cluster.ejections);
        let health = &cluster.health;
        for (result, count) in [("passed", health.passed), ("failed", health.failed)] {
            self.add(families::HEALTH_CHECKS, [result], count);
        }
    }

    fn add_services(&mut self, snapshot: &Snapshot) {
        let mut shown = 0;
        for (service, backends) in &snapshot.cluster.services {
            let (network, name) = (service.network_name.as_str(), service.name.as_str());
            for state in BackendState::ALL {
                let count = service.backend_states.get(&state).copied().unwrap_or(0);
                self.add(
                    families::BACKENDS,
                    [network, name, &state.to_string()],
                    u64::from(count),
                );
            }
            let mut others = (0, Traffic::default());
            for backend in backends {
                let ready = u64::from(backend.state == BackendState::Ready);
                let traffic = snapshot
                    .traffic
                    .get(&backend.endpoint_id)
                    .copied()
                    .unwrap_or_default();
                if shown == MOST_BACKENDS {
                    others.0 += ready;
                    others.1 += traffic;
                } else {
                    shown += 1;
                    self.add_backend([network, name, &backend.endpoint_name], ready, traffic);
                }
            }
            if others != Default::default() {
                self.add_backend([network, name, "others"], others.0, others.1);
            }
        }
    }

    fn add_losses(&mut self, snapshot: &Snapshot) {
        for (network, _) in &snapshot.cluster.networks {
            if let Some(losses) = snapshot.losses.get(&network.id) {
                for (direction, count) in [("sent", losses.sent), ("received", losses.received)] {
                    self.add(families::LOST, [network.name.as_str(), direction], count);
                }
            }
        }
    }

    fn add_backend(&mut self, labels: [&str; 3], ready: u64, traffic: Traffic) {
        self.add(families::BACKEND_READY, labels, ready);
        self.add(families::OPEN, labels, traffic.open);
        self.add(families::TRIED, labels, traffic.total);
        self.add(families::FAILED, labels, traffic.failed);
    }

    fn add_gossip(&mut self, cluster: &Measures) {
        let stats = &cluster.gossip;
        for (direction, messages, bytes) in [
            ("sent", stats.packets_sent, stats.bytes_sent),
            ("received", stats.packets_received, stats.bytes_received),
        ] {
            self.add(families::GOSSIP_MESSAGES, [direction], messages);
            self.add(families::GOSSIP_BYTES, [direction], bytes);
        }
        for (reason, count) in [
            ("foreign", stats.foreign),
            ("outdated_key", stats.outdated),
            ("malformed", stats.malformed),
            ("forged", stats.forged),
            ("replayed", stats.replayed),
            ("flooded", stats.flooded),
            ("evicted", stats.evicted),
            ("no_room_for_record", stats.records_refused),
            ("too_many_rumours", stats.rumours_dropped),
            ("too_many_packets", stats.packets_lost),
        ] {
            self.add(families::GOSSIP_REFUSED, [reason], count);
        }
        self.add(families::GOSSIP_RECORDS, [], cluster.records);
        self.add(families::GOSSIP_ROOM, [], cluster.room);
        self.add(families::GOSSIP_RECORDS_TOLD, [], stats.records_told);
    }

    fn add_tunnels(&mut self, encryption: &EncryptionStatus, refused: &Dropped) {
        let tunnels = &encryption.tunnels;
        let open = tunnels.iter().filter(|tunnel| tunnel.handshake_ms_ago.is_some());
        let open = open.count();
        for (state, count) in [("open", open), ("waiting", tunnels.len() - open)] {
            self.add(families::TUNNELS, [state], count as u64);
        }
        self.add(families::TUNNELS_RUNNING, [], u64::from(encryption.running));
        for tunnel in tunnels {
            let node = tunnel.node_name.as_str();
            for (direction, bytes) in [("sent", tunnel.sent_bytes), ("received", tunnel.received_bytes)] {
                self.add(families::TUNNEL_BYTES, [node, direction], bytes);
            }
            self.add(families::TUNNEL_LOST, [node], tunnel.lost);
            if let Some(millis) = tunnel.handshake_ms_ago {
                self.add(
                    families::TUNNEL_HANDSHAKE,
                    [node],
                    Value::Seconds(millis as f64 / 1e3),
                );
            }
            if let Some(mtu) = tunnel.path_mtu {
                self.add(families::TUNNEL_PATH, [node], u64::from(mtu));
            }
        }
        for (reason, count) in refused.by_reason() {
            self.add(families::TUNNELS_REFUSED, [reason], count);
        }
    }

    fn add_dns(&mut self, dns: &Counts) {
        for (outcome, count) in [
            ("answered", dns.answered),
            ("negative", dns.negative),
            ("forwarded", dns.forwarded),
            ("refused", dns.refused),
        ] {
            self.add(families::DNS_QUESTIONS, [outcome], count);
        }
        for (reason, count) in [
            ("malformed", dns.malformed),
            ("too_many_connections", dns.connections_refused),
            ("no_resolver_answered", dns.forward_failed),
            ("rebinding", dns.rebinding),
        ] {
            self.add(families::DNS_FAILURES, [reason], count);
        }
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in families::ALL {
            let Some(samples) = self.0.get(family.name) else {
                continue;
            };
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge | Kind::Constant => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (values, value) in samples {
                // Without labels there is one value only.
                if values.is_empty() {
                    encode(*value, family.kind, metric)?;
                    break;
                }
                let labels: Vec<_> = family
                    .labels
                    .iter()
                    .copied()
                    .zip(values.iter().map(String::as_str))
                    .collect();
                encode(*value, family.kind, metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode(value: Value, kind: Kind, encoder: MetricEncoder<'_>) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Whole(count)) => ConstCounter::new(count).encode(encoder),
        (Kind::Counter, Value::Seconds(sum)) => ConstCounter::new(sum).encode(encoder),
        (Kind::Gauge | Kind::Constant, Value::Whole(is)) => ConstGauge::new(is).encode(encoder),
        (Kind::Gauge | Kind::Constant, Value::Seconds(is)) => ConstGauge::new(is).encode(encoder),
    }
}
