mod bounds;
mod zone;

use std::collections::BTreeSet;

use rand::{SeedableRng, rngs::SmallRng};
use weft_types::EndpointId;

use self::zone::*;
use super::*;
use crate::{EndpointMode, Service};

#[test]
fn names_resolve_in_all_their_forms() {
    check(
        &[FRONT],
        &[
            ("dual", "A", "10.32.0.13"),
            ("dual", "AAAA", "fd00:32::13"),
            ("dual.front", "A", "10.32.0.13"),
            ("dual.front.weft.internal", "A", "10.32.0.13"),
            ("DUAL.Front.WEFT.internal", "AAAA", "fd00:32::13"),
            ("web.1", "A", "10.32.0.11"),
            ("WEB.1.front", "A", "10.32.0.11"),
            ("web-a", "A", "10.32.0.11"),
            ("shared", "A", "10.32.0.11 10.32.0.12"),
            ("a1a1a1a1a1a1", "A", "10.32.0.11"),
            ("a6a6a6a6a6a6.front.weft.internal", "A", "10.32.0.16"),
        ],
    );
}

#[test]
fn services_hide_endpoints_and_tasks_are_their_healthy_backends() {
    check(
        &[FRONT],
        &[
            ("web", "A", "10.32.0.2"),
            ("web.front.weft.internal", "A", "10.32.0.2"),
            ("tasks.web", "A", "10.32.0.11 10.32.0.12"),
            ("Tasks.web.front", "A", "10.32.0.11 10.32.0.12"),
            ("tasks.web.front.weft.internal", "A", "10.32.0.11 10.32.0.12"),
            ("rr", "A", "10.32.0.11 10.32.0.13"),
            ("rr", "AAAA", "fd00:32::13"),
            ("tasks.rr", "A", "10.32.0.11 10.32.0.13"),
            ("down", "A", "10.32.0.3"),
            ("tasks.down", "A", "nodata in ."),
            ("sick", "A", "nodata in ."),
            ("tasks.dual", "A", "forward"),
            (
                "tasks.dual.front.weft.internal",
                "A",
                "nxdomain in weft.internal.",
            ),
            ("tasks", "A", "nxdomain in ."),
        ],
    );
}

#[test]
fn ports_of_services_are_found_by_name_and_number() {
    let api = "0 0 80 api.front.weft.internal., api.front.weft.internal. at 10.32.0.4";
    let tasks = "0 0 8080 a1a1a1a1a1a1.front.weft.internal., 0 0 8080 a2a2a2a2a2a2.front.weft.internal., \
                 a1a1a1a1a1a1.front.weft.internal. at 10.32.0.11, \
                 a2a2a2a2a2a2.front.weft.internal. at 10.32.0.12";
    let grpc = "0 0 50051 a1a1a1a1a1a1.front.weft.internal., 0 0 50051 a3a3a3a3a3a3.front.weft.internal., \
                a1a1a1a1a1a1.front.weft.internal. at 10.32.0.11, \
                a3a3a3a3a3a3.front.weft.internal. at 10.32.0.13, \
                a3a3a3a3a3a3.front.weft.internal. at fd00:32::13";
    check(
        &[FRONT],
        &[
            ("_http._tcp.api", "SRV", api),
            ("_HTTP._tcp.api.front", "SRV", api),
            ("_http._TCP.Api.front.weft.internal", "SRV", api),
            ("_80._tcp.api", "SRV", api),
            (
                "_443._tcp.api",
                "SRV",
                "0 0 443 api.front.weft.internal., api.front.weft.internal. at 10.32.0.4",
            ),
            (
                "_dns._udp.api",
                "SRV",
                "0 0 53 api.front.weft.internal., api.front.weft.internal. at 10.32.0.4",
            ),
            ("_http._tcp.tasks.api", "SRV", tasks),
            ("_http._tcp.tasks.api.front.weft.internal", "SRV", tasks),
            ("_grpc._tcp.grpc", "SRV", grpc),
            ("_grpc._tcp.tasks.grpc", "SRV", grpc),
            ("_http._tcp.api", "A", "nodata in ."),
            ("_http._tcp.api", "ANY", "RFC8482 "),
            ("_tcp.api.front.weft.internal", "SRV", "nodata in weft.internal."),
            ("_http._udp.api", "SRV", "forward"),
            (
                "_http._udp.api.front.weft.internal",
                "SRV",
                "nxdomain in weft.internal.",
            ),
            ("_sctp.api.front.weft.internal", "A", "nxdomain in weft.internal."),
            (
                "_http._tcp.dual.front.weft.internal",
                "SRV",
                "nxdomain in weft.internal.",
            ),
            (
                "_8080._tcp.api.front.weft.internal",
                "SRV",
                "nxdomain in weft.internal.",
            ),
            ("api", "SRV", "nodata in ."),
        ],
    );
    check(
        &[BACK],
        &[(
            "_http._tcp.api.front.weft.internal",
            "SRV",
            "nxdomain in weft.internal.",
        )],
    );
}

#[test]
fn a_known_name_without_the_type_asked_for_has_no_data() {
    check(
        &[FRONT],
        &[
            ("web", "AAAA", "nodata in ."),
            ("web.front", "AAAA", "nodata in front."),
            ("web.front.weft.internal", "AAAA", "nodata in weft.internal."),
            ("six", "A", "nodata in ."),
            ("web", "MX", "nodata in ."),
            ("web", "HTTPS", "nodata in ."),
            ("web", "SOA", "nodata in ."),
            ("web", "ANY", "RFC8482 "),
            ("sick", "ANY", "nodata in ."),
        ],
    );
}

#[test]
fn names_between_existing_ones_and_the_root_exist() {
    check(
        &[FRONT, DOTTED],
        &[
            ("weft.internal", "A", "nodata in weft.internal."),
            (
                "weft.internal",
                "SOA",
                "ns.weft.internal. hostmaster.weft.internal. 1 1 1 1 1",
            ),
            ("weft.internal", "ANY", "RFC8482 "),
            ("front.weft.internal", "A", "nodata in weft.internal."),
            ("b.weft.internal", "A", "nodata in weft.internal."),
            ("a.b.weft.internal", "A", "nodata in weft.internal."),
            ("y.a.b.weft.internal", "A", "nodata in weft.internal."),
            ("x.y.a.b.weft.internal", "A", "10.34.0.11"),
            ("x.y.a.b", "A", "10.34.0.11"),
            ("x.y", "A", "10.34.0.11"),
            ("y", "A", "nodata in ."),
            ("x.y.a.b", "AAAA", "nodata in a.b."),
            ("internal", "A", "nodata in ."),
            ("front", "A", "nodata in ."),
            ("b", "A", "nodata in ."),
            ("1", "A", "nodata in ."),
        ],
    );
}

#[test]
fn unknown_names_of_ours_do_not_exist_and_single_labels_never_leave() {
    check(
        &[FRONT],
        &[
            ("nosuch.front.weft.internal", "A", "nxdomain in weft.internal."),
            ("nosuch.weft.internal", "A", "nxdomain in weft.internal."),
            ("web.weft.internal", "A", "nxdomain in weft.internal."),
            ("x.web.front.weft.internal", "A", "nxdomain in weft.internal."),
            ("Nosuch.WEFT.Internal", "ANY", "nxdomain in WEFT.Internal."),
            ("nosuch", "A", "nxdomain in ."),
            ("nosuch", "ANY", "nxdomain in ."),
        ],
    );
}

#[test]
fn what_is_not_ours_is_forwarded() {
    check(
        &[FRONT],
        &[
            ("example.com", "A", "forward"),
            ("example.com", "ANY", "forward"),
            ("nosuch.front", "A", "forward"),
            ("notweft.internal", "A", "forward"),
            ("xweft.internal", "A", "forward"),
            (".", "NS", "forward"),
            ("com", "DS", "forward"),
            ("com", "A", "nxdomain in ."),
        ],
    );
    check(&[BACK, FRONT], &[("example.com", "A", "forward")]);
}

#[test]
fn an_asker_on_internal_networks_only_asks_nobody_else() {
    check(
        &[BACK],
        &[
            ("db", "A", "10.33.0.11"),
            ("example.com", "A", "nxdomain in ."),
            ("com", "DS", "nxdomain in ."),
            (".", "NS", "refused"),
            ("8.8.8.8.in-addr.arpa", "PTR", "nxdomain in ."),
            ("nosuch", "A", "nxdomain in ."),
        ],
    );
}

#[test]
fn an_asker_sees_its_own_networks_in_its_own_order() {
    check(
        &[FRONT],
        &[("db", "A", "nxdomain in ."), ("db.back", "A", "forward")],
    );
    check(
        &[FRONT],
        &[
            ("db.back.weft.internal", "A", "nxdomain in weft.internal."),
            ("back.weft.internal", "A", "nxdomain in weft.internal."),
            ("b1b1b1b1b1b1", "A", "nxdomain in ."),
            (
                "11.0.33.10.in-addr.arpa",
                "PTR",
                "nxdomain in 0.33.10.in-addr.arpa.",
            ),
        ],
    );
    check(
        &[FRONT, BACK],
        &[("both", "A", "10.32.0.15"), ("both.back", "A", "10.33.0.11")],
    );
    check(
        &[BACK, FRONT],
        &[("both", "A", "10.33.0.11"), ("both.front", "A", "10.32.0.15")],
    );
    check(&[], &[("web", "A", "refused"), ("example.com", "A", "refused")]);
    check(&[NetworkId([9; 16])], &[("web", "A", "refused")]);
}

#[test]
fn addresses_resolve_to_full_names_and_reverse_zones_are_never_forwarded() {
    check(
        &[FRONT],
        &[
            ("11.0.32.10.in-addr.arpa", "PTR", "web.1.front.weft.internal."),
            ("11.0.32.10.IN-ADDR.ARPA", "PTR", "web.1.front.weft.internal."),
            ("2.0.32.10.in-addr.arpa", "PTR", "web.front.weft.internal."),
            (
                "16.0.32.10.in-addr.arpa",
                "PTR",
                "a6a6a6a6a6a6.front.weft.internal.",
            ),
            ("11.0.32.10.in-addr.arpa", "A", "nodata in 0.32.10.in-addr.arpa."),
            ("11.0.32.10.in-addr.arpa", "ANY", "RFC8482 "),
            (
                "99.0.32.10.in-addr.arpa",
                "PTR",
                "nxdomain in 0.32.10.in-addr.arpa.",
            ),
            (
                "1.11.0.32.10.in-addr.arpa",
                "PTR",
                "nxdomain in 0.32.10.in-addr.arpa.",
            ),
            (
                "lb._dns-sd._udp.1.32.10.in-addr.arpa",
                "PTR",
                "nxdomain in 1.32.10.in-addr.arpa.",
            ),
            (
                "1.32.10.in-addr.arpa",
                "SOA",
                "ns.weft.internal. hostmaster.weft.internal. 1 1 1 1 1",
            ),
            ("1.32.10.in-addr.arpa", "NS", "nodata in 1.32.10.in-addr.arpa."),
            ("1.32.10.in-addr.arpa", "ANY", "RFC8482 "),
            ("32.10.in-addr.arpa", "SOA", "forward"),
            ("10.in-addr.arpa", "SOA", "forward"),
            ("1.16.32.10.in-addr.arpa", "PTR", "forward"),
            ("8.8.8.8.in-addr.arpa", "PTR", "forward"),
        ],
    );
    let zone = "0.0.0.0.0.0.0.0.2.3.0.0.0.0.d.f.ip6.arpa";
    check(
        &[FRONT],
        &[
            (
                &format!("3.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.{zone}"),
                "PTR",
                "dual.front.weft.internal.",
            ),
            (
                &format!("5.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.{zone}"),
                "PTR",
                &format!("nxdomain in {zone}."),
            ),
        ],
    );
}

#[test]
fn localhost_is_always_the_loopback() {
    let names = [
        ("localhost", "A", "127.0.0.1"),
        ("a.localhost", "AAAA", "::1"),
        ("localhost", "MX", "nodata in ."),
    ];
    check(&[FRONT], &names);
    check(&[BACK], &names);
}

#[test]
fn other_classes_and_questions_about_the_server_are_refused() {
    check(
        &[FRONT],
        &[
            ("web", "AXFR", "refused"),
            ("example.com", "AXFR", "refused"),
            ("web", "TSIG", "refused"),
        ],
    );
    let mut version = query("version.bind", "TXT");
    version.set_query_class(DNSClass::CH);
    let asker = Asker::on(vec![FRONT]);
    assert_eq!(
        answer(&version, &asker, &zone(), &mut SmallRng::seed_from_u64(1)),
        Answer::Refused
    );
}

#[test]
fn the_host_is_told_what_is_under_our_domain_and_of_our_addresses_and_nothing_else() {
    let ask = |networks: &[NetworkId], name: &str, qtype: &str| {
        let asker = Asker::host(networks.to_vec());
        show(&answer(
            &query(name, qtype),
            &asker,
            &zone(),
            &mut SmallRng::seed_from_u64(1),
        ))
    };
    for (name, qtype, expected) in [
        ("web.front.weft.internal", "A", "10.32.0.2"),
        (
            "_http._tcp.api.front.weft.internal",
            "SRV",
            "0 0 80 api.front.weft.internal., api.front.weft.internal. at 10.32.0.4",
        ),
        ("nosuch.front.weft.internal", "A", "nxdomain in weft.internal."),
        ("db.back.weft.internal", "A", "nxdomain in weft.internal."),
        ("weft.internal", "A", "nodata in weft.internal."),
        ("2.0.32.10.in-addr.arpa", "PTR", "web.front.weft.internal."),
        (
            "11.0.33.10.in-addr.arpa",
            "PTR",
            "nxdomain in 0.33.10.in-addr.arpa.",
        ),
        ("8.8.8.8.in-addr.arpa", "PTR", "refused"),
        // The host's own resolver knows what these are; ours has no say outside our networks.
        ("web", "A", "refused"),
        ("web.front", "A", "refused"),
        ("nosuch", "A", "refused"),
        ("localhost", "A", "refused"),
        ("example.com", "A", "refused"),
        ("example.com", "NS", "refused"),
        ("com", "DS", "refused"),
        (".", "NS", "refused"),
        ("pri\\.nter", "A", "refused"),
        ("web.front.weft.internal", "AXFR", "refused"),
    ] {
        assert_eq!(ask(&[FRONT], name, qtype), expected, "{name} {qtype}");
    }
    assert_eq!(
        ask(&[], "web.front.weft.internal", "A"),
        "nxdomain in weft.internal."
    );
    assert_eq!(ask(&[BACK], "db.back.weft.internal", "A"), "10.33.0.11");
}

#[test]
fn a_dot_inside_a_label_does_not_make_it_one_of_ours() {
    let labels = |labels: &[&str]| {
        Query::query(
            Name::from_labels(labels.iter().map(|l| l.as_bytes())).unwrap(),
            RecordType::A,
        )
    };
    let asker = Asker::on(vec![FRONT]);
    for (query, expected) in [
        (labels(&["web.front"]), "nxdomain in ."),
        (
            labels(&["web.front", "weft", "internal"]),
            "nxdomain in weft.internal.",
        ),
        (labels(&["web", "front.weft.internal"]), "forward"),
        (labels(&["web\0", "front"]), "forward"),
    ] {
        assert_eq!(
            show(&answer(&query, &asker, &zone(), &mut SmallRng::seed_from_u64(1))),
            expected,
            "{query}"
        );
    }
}

#[test]
fn the_spelling_of_the_question_is_kept() {
    let Answer::Records(records) = answer(
        &query("wEb.FrOnT", "A"),
        &Asker::on(vec![FRONT]),
        &zone(),
        &mut SmallRng::seed_from_u64(1),
    ) else {
        panic!("no records")
    };
    assert_eq!(records[0].name.to_string(), "wEb.FrOnT.");
}

#[test]
fn every_address_comes_first_about_equally_often_and_large_answers_are_samples() {
    let mut zone = zone();
    let backends: Vec<IpAddr> = (0..3000u32)
        .map(|n| Ipv4Addr::from_bits(0x0a20_0000 + n).into())
        .collect();
    let network = zone.network_mut(&FRONT).unwrap();
    network.set_service(
        "few",
        Service {
            mode: EndpointMode::DnsRr,
            vips: vec![],
            backends: backends[..4].into(),
            ports: vec![],
        },
    );
    network.set_service(
        "many",
        Service {
            mode: EndpointMode::DnsRr,
            vips: vec![],
            backends,
            ports: vec![],
        },
    );
    let asker = Asker::on(vec![FRONT]);
    let mut rng = SmallRng::seed_from_u64(7);
    let mut records = |name: &str| match answer(&query(name, "A"), &asker, &zone, &mut rng) {
        Answer::Records(records) => records,
        other => panic!("{other:?}"),
    };
    let mut firsts = std::collections::HashMap::<String, u32>::new();
    for _ in 0..4000 {
        *firsts.entry(records("few")[0].data.to_string()).or_default() += 1;
    }
    assert!(
        firsts.len() == 4 && firsts.values().all(|count| (850..1150).contains(count)),
        "{firsts:?}"
    );
    let distinct = |records: Vec<Record>| {
        records
            .iter()
            .map(|r| r.data.to_string())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(distinct(records("many")).len(), MAX_RECORDS);
    assert_eq!(distinct(records("tasks.many")).len(), MAX_TASKS);
    assert_ne!(distinct(records("many")), distinct(records("many")));
}

#[test]
fn a_change_is_seen_in_the_changed_zone_and_not_in_its_copy() {
    let mut zone = zone();
    let before = zone.clone();
    let network = zone.network_mut(&FRONT).unwrap();
    network.remove_endpoint(&EndpointId([0xa1; 16]));
    network.remove_service("WEB");
    network.set_endpoint(EndpointId([0xa3; 16]), endpoint(&["renamed"], &["10.32.0.13"]));
    let asker = Asker::on(vec![FRONT]);
    let ask = |zone: &Zone, name: &str, qtype: &str| {
        show(&answer(
            &query(name, qtype),
            &asker,
            zone,
            &mut SmallRng::seed_from_u64(1),
        ))
    };
    for (name, qtype, old, new) in [
        ("shared", "A", "10.32.0.11 10.32.0.12", "10.32.0.12"),
        ("web", "A", "10.32.0.2", "10.32.0.15"),
        ("tasks.web", "A", "10.32.0.11 10.32.0.12", "forward"),
        (
            "web.1.front.weft.internal",
            "A",
            "10.32.0.11",
            "nxdomain in weft.internal.",
        ),
        (
            "1.front.weft.internal",
            "A",
            "nodata in weft.internal.",
            "nxdomain in weft.internal.",
        ),
        ("dual", "A", "10.32.0.13", "nxdomain in ."),
        ("a1a1a1a1a1a1", "A", "10.32.0.11", "nxdomain in ."),
        (
            "2.0.32.10.in-addr.arpa",
            "PTR",
            "web.front.weft.internal.",
            "nxdomain in 0.32.10.in-addr.arpa.",
        ),
        (
            "13.0.32.10.in-addr.arpa",
            "PTR",
            "dual.front.weft.internal.",
            "renamed.front.weft.internal.",
        ),
    ] {
        assert_eq!(ask(&before, name, qtype), old, "{name} before");
        assert_eq!(ask(&zone, name, qtype), new, "{name} after");
    }
}

#[test]
fn a_domain_is_checked() {
    for bad in ["", ".", "a..b", "a b", &"x".repeat(64)] {
        assert!(Zone::new(bad).is_err(), "{bad}");
    }
    assert_eq!(
        Zone::new("a b").unwrap_err().to_string(),
        "`a b` cannot be the domain of the cluster: it is not a domain name"
    );
}

#[test]
fn a_name_is_there_as_long_as_somebody_has_it_be_it_without_an_address() {
    let endpoint = |address: Option<&str>| crate::Endpoint {
        names: vec!["shared".to_owned()],
        addresses: address
            .into_iter()
            .map(|address| address.parse().unwrap())
            .collect(),
    };
    let [with, without] = [1, 2].map(|n| EndpointId([n; 16]));
    let zone = |endpoints: &[(EndpointId, Option<&str>)], gone: &[EndpointId]| {
        let mut network = NetworkZone::new("app", false, vec!["10.32.0.0/24".parse().unwrap()]);
        for (id, address) in endpoints {
            network.set_endpoint(*id, endpoint(*address));
        }
        gone.iter().for_each(|id| network.remove_endpoint(id));
        let mut zone = Zone::new("weft.internal").unwrap();
        zone.set_network(FRONT, network);
        zone.lines()
    };
    let both = [(with, Some("10.32.0.7")), (without, None)];
    assert_eq!(zone(&both, &[with]), zone(&[(without, None)], &[]));
    assert_eq!(zone(&both, &[without]), zone(&both[..1], &[]));
    assert_eq!(zone(&both, &[with, without]), zone(&[], &[]));
}
