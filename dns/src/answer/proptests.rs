//! Random zones and questions.

use proptest::{collection::vec, prelude::*};
use rand::{SeedableRng, rngs::SmallRng};
use weft_types::EndpointId;

use super::*;
use crate::{Endpoint, EndpointMode, Port, Protocol, Service};

const LABELS: [&str; 10] = [
    "a", "b", "web", "tasks", "x.y", "weft", "internal", "app", "_a", "_tcp",
];

#[derive(Debug, Clone)]
enum Change {
    Endpoint { id: u8, names: Vec<usize>, address: u8 },
    RemoveEndpoint { id: u8 },
    Service { name: usize, is_rr: bool, address: u8 },
    RemoveService { name: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let name = 0..LABELS.len();
    prop_oneof![
        4 => (0..6u8, vec(name.clone(), 0..3), 0..30u8)
            .prop_map(|(id, names, address)| Change::Endpoint { id, names, address }),
        1 => (0..6u8).prop_map(|id| Change::RemoveEndpoint { id }),
        2 => (name.clone(), any::<bool>(), 0..30u8)
            .prop_map(|(name, is_rr, address)| Change::Service { name, is_rr, address }),
        1 => name.prop_map(|name| Change::RemoveService { name }),
    ]
}

/// Networks share names and subnets; the third byte of an address says which network it is of.
fn apply(network: &mut NetworkZone, of: u8, change: &Change) {
    let at = |address: u8| IpAddr::from([10, 0, of, address]);
    match change {
        Change::Endpoint { id, names, address } => network.set_endpoint(
            EndpointId([16 * of + id; 16]),
            Endpoint {
                names: names.iter().map(|name| LABELS[*name].into()).collect(),
                addresses: vec![at(*address)],
            },
        ),
        Change::RemoveEndpoint { id } => network.remove_endpoint(&EndpointId([16 * of + id; 16])),
        Change::Service { name, is_rr, address } => {
            let (mode, vips) = if *is_rr {
                (EndpointMode::DnsRr, vec![])
            } else {
                (EndpointMode::Vip, vec![at(100 + address)])
            };
            network.set_service(
                LABELS[*name],
                Service {
                    mode,
                    vips,
                    backends: vec![at(*address)],
                    ports: vec![Port {
                        name: Some("a".into()),
                        port: 80,
                        target: 8080,
                        protocol: Protocol::Tcp,
                    }],
                },
            );
        }
        Change::RemoveService { name } => network.remove_service(LABELS[*name]),
    }
}

fn build(changes: &[(u8, Change)], internal: &[bool], included: impl Fn(u8) -> bool) -> Zone {
    let mut zone = Zone::new("weft.internal").unwrap();
    for (of, internal) in (0..).zip(internal).filter(|(of, _)| included(*of)) {
        let subnet = "10.0.0.0/16".parse().unwrap();
        let mut network = NetworkZone::new(LABELS[usize::from(of) + 4], *internal, vec![subnet]);
        for (_, change) in changes.iter().filter(|(changed, _)| *changed == of) {
            apply(&mut network, of, change);
        }
        zone.set_network(NetworkId([of; 16]), network);
    }
    zone
}

fn question() -> impl Strategy<Value = Query> {
    let ours = vec(proptest::sample::select(&LABELS[..]), 1..6)
        .prop_map(|labels| Name::from_ascii(format!("{}.", labels.join("."))).unwrap());
    let full = vec(proptest::sample::select(&LABELS[..]), 0..4).prop_map(|mut labels| {
        labels.push("weft.internal.");
        Name::from_ascii(labels.join(".")).unwrap()
    });
    let reverse = (0..4u8, any::<u8>())
        .prop_map(|(of, last)| Name::from_ascii(format!("{last}.{of}.0.10.in-addr.arpa.")).unwrap());
    let arbitrary = vec(vec(any::<u8>(), 1..12), 0..12)
        .prop_map(|labels| Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap());
    let qtype = prop_oneof![
        4 => Just(RecordType::A),
        1 => Just(RecordType::AAAA),
        2 => Just(RecordType::PTR),
        1 => any::<u16>().prop_map(RecordType::from),
    ];
    (prop_oneof![ours, full, reverse, arbitrary], qtype).prop_map(|(name, qtype)| Query::query(name, qtype))
}

fn seeded() -> SmallRng {
    SmallRng::seed_from_u64(1)
}

proptest! {
    /// Whatever happens on networks the asker is not on, it gets the same answers, and none of their
    /// addresses or names. (Their subnets are its own here, so that reverse zones are alike.)
    #[test]
    fn networks_the_asker_is_not_on_change_nothing(
        changes in vec((0..3u8, change()), 0..30),
        internal: [bool; 3],
        mine in 0..3u8,
        questions in vec(question(), 1..40),
    ) {
        let all = build(&changes, &internal, |_| true);
        let own = build(&changes, &internal, |of| of == mine);
        let asker = Asker::on(vec![NetworkId([mine; 16])]);
        for query in &questions {
            let reply = answer(query, &asker, &all, &mut seeded());
            prop_assert_eq!(&reply, &answer(query, &asker, &own, &mut seeded()), "{}", query);
            let Answer::Records(records) = reply else { continue };
            prop_assert!(!records.is_empty() && records.len() <= MAX_TASKS);
            for record in records {
                prop_assert!(record.name.eq_case(query.name()));
                if let RData::A(address) = record.data && !address.is_loopback() {
                    prop_assert_eq!(address.octets()[2], mine);
                }
            }
        }
    }

    /// A zone that was changed step by step says what one says that was built from what is left.
    #[test]
    fn the_way_to_a_zone_does_not_matter(
        changes in vec(change(), 0..40),
        questions in vec(question(), 1..40),
    ) {
        let tagged: Vec<_> = changes.iter().cloned().map(|change| (0, change)).collect();
        let stepwise = build(&tagged, &[false], |_| true);
        let mut last = std::collections::BTreeMap::new();
        for change in &changes {
            let key = match change {
                Change::Endpoint { id, .. } | Change::RemoveEndpoint { id } => (0, usize::from(*id)),
                Change::Service { name, .. } | Change::RemoveService { name } => (1, *name),
            };
            last.insert(key, (0, change.clone()));
        }
        let direct: Vec<_> = last
            .into_values()
            .filter(|(_, change)| matches!(change, Change::Endpoint { .. } | Change::Service { .. }))
            .collect();
        let direct = build(&direct, &[false], |_| true);
        prop_assert_eq!(stepwise.lines(), direct.lines());
        let asker = Asker::on(vec![NetworkId([0; 16])]);
        for query in &questions {
            let sorted = |zone| match answer(query, &asker, zone, &mut seeded()) {
                Answer::Records(mut records) => {
                    records.sort_by_key(|record| record.data.to_string());
                    Answer::Records(records)
                }
                other => other,
            };
            prop_assert_eq!(sorted(&stepwise), sorted(&direct), "{}", query);
        }
    }

    /// Names under our domain, single labels and our reverse zones never reach another resolver.
    #[test]
    fn our_names_are_never_forwarded(changes in vec((0..3u8, change()), 0..10), query in question()) {
        let zone = build(&changes, &[false; 3], |_| true);
        let asker = Asker::on(vec![NetworkId([0; 16])]);
        let reply = answer(&query, &asker, &zone, &mut seeded());
        let name = query.name().to_lowercase();
        let is_ours = ["weft.internal.", "0.10.in-addr.arpa."]
            .iter()
            .any(|zone| Name::from_ascii(zone).unwrap().zone_of(&name));
        let is_address = matches!(query.query_type(), RecordType::A | RecordType::AAAA | RecordType::PTR);
        if is_ours || (name.num_labels() == 1 && is_address) {
            prop_assert_ne!(reply, Answer::Forward);
        }
    }
}
