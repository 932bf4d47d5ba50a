use std::collections::BTreeSet;

use weft_gossip::Stats;

use super::*;
use crate::api::{contract, types::NetworkSummary};

fn snapshot() -> Snapshot {
    let service: crate::api::types::ServiceDetail = contract::sample("ServiceDetail");
    let dropped = Dropped {
        replayed: 4,
        ..Dropped::default()
    };
    let network: NetworkSummary = contract::sample("NetworkSummary");
    let lossy = network.id;
    let cluster = Measures {
        nodes: vec![contract::sample("NodeInfo")],
        network_count: 1,
        networks: vec![(network, vec![contract::sample("AddressShare")])],
        services: vec![(service.summary, service.backends.clone())],
        gossip: Stats::default(),
        records: 7,
        room: 300,
        health: crate::control::HealthCounts { passed: 5, failed: 1 },
        ejections: 2,
        encryption: Some((contract::sample("EncryptionStatus"), dropped)),
    };
    let traffic = Traffic {
        open: 3,
        total: 40,
        failed: 2,
        ejected: None,
    };
    Snapshot {
        node_name: "h1".to_owned(),
        datapath: contract::sample("DatapathStatus"),
        started_unix_millis: 1_763_000_000_250,
        cluster,
        dns: Counts::default(),
        work: Work {
            apply_time: Duration::from_millis(1500),
            ..Work::default()
        },
        traffic: [(service.backends[0].endpoint_id, traffic)].into(),
        losses: [(lossy, Losses { sent: 6, received: 0 })].into(),
    }
}

#[test]
fn metrics_read_as_text() {
    let text = render(&snapshot());
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in [
        "# TYPE weft_service_connections counter",
        "weft_service_connections_total{network=\"app\",service=\"web\",backend=\"web-1\"} 40",
        "weft_service_connections_total{network=\"app\",service=\"web\",backend=\"web-2\"} 0",
        "weft_service_connection_failures_total{network=\"app\",service=\"web\",backend=\"web-1\"} 2",
        "weft_service_connections_open{network=\"app\",service=\"web\",backend=\"web-1\"} 3",
        "weft_service_backend_ready{network=\"app\",service=\"web\",backend=\"web-2\"} 0",
        "weft_kernel_apply_seconds_total 1.5",
        "weft_agent_start_time_seconds 1763000000.25",
        "weft_health_checks_total{result=\"passed\"} 5",
        "weft_network_lost_frames_total{network=\"app\",direction=\"sent\"} 6",
        "weft_network_lost_frames_total{network=\"app\",direction=\"received\"} 0",
        "weft_gossip_records 7",
        "weft_gossip_room 300",
        "weft_service_ejections_total 2",
        "weft_nodes{state=\"down\"} 0",
        "weft_tunnels{state=\"open\"} 1",
        "weft_tunnel_bytes_total{node=\"h2\",direction=\"received\"} 1234567",
        "weft_tunnel_handshake_age_seconds{node=\"h2\"} 61.25",
        "weft_tunnels_refused_total{reason=\"replayed\"} 4",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "`{line}` is missing in:\n{text}"
        );
    }
}

#[test]
fn every_family_has_a_value_and_every_value_a_family() {
    let samples = Samples::of(&snapshot());
    let named: Vec<&str> = families::ALL.iter().map(|family| family.name).collect();
    let distinct: BTreeSet<&str> = named.iter().copied().collect();
    assert_eq!(distinct.len(), named.len(), "two families of one name");
    assert_eq!(samples.0.keys().copied().collect::<BTreeSet<_>>(), distinct);
}

#[test]
fn the_documentation_has_every_metric_as_it_is() {
    let documentation = include_str!("../../../docs/metrics.md");
    let shown: Vec<&str> = documentation
        .lines()
        .filter(|line| line.starts_with("| `weft_"))
        .collect();
    let wanted: Vec<String> = families::ALL
        .iter()
        .map(|family| {
            let total = if family.kind == Kind::Counter {
                "_total"
            } else {
                ""
            };
            let labels = if family.labels.is_empty() {
                "-".to_owned()
            } else {
                family.labels.join(", ")
            };
            let kind = format!("{:?}", family.kind).to_lowercase();
            format!(
                "| `{}{total}` | {kind} | {labels} | {} |",
                family.name, family.help
            )
        })
        .collect();
    assert_eq!(
        shown,
        wanted,
        "docs/metrics.md should have this:\n{}",
        wanted.join("\n")
    );
}

#[test]
fn backends_beyond_the_limit_are_added_up() {
    let mut snapshot = snapshot();
    let (_, backends) = &mut snapshot.cluster.services[0];
    let one = backends[0].clone();
    backends.extend(std::iter::repeat_n(one, MOST_BACKENDS));
    let samples = Samples::of(&snapshot);
    let tried = &samples.0[families::TRIED.name];
    assert_eq!(tried.len(), MOST_BACKENDS + 1);
    let others = (
        vec!["app".to_owned(), "web".to_owned(), "others".to_owned()],
        Value::Whole(80),
    );
    assert_eq!(tried.last(), Some(&others));
}
