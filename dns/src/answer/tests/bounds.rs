//! How much is said, what can be a name, and what a zone says of itself.

use rand::{SeedableRng, rngs::SmallRng};
use weft_types::EndpointId;

use super::*;
use crate::{Port, Protocol};

#[test]
fn targets_are_given_as_far_as_a_message_goes() {
    let mut zone = Zone::new("weft.internal").unwrap();
    let mut network = NetworkZone::new("app", false, vec!["10.32.0.0/16".parse().unwrap()]);
    let backends: Vec<IpAddr> = (1..=2_000u32)
        .map(|n| Ipv4Addr::from_bits(0x0a20_0000 + n).into())
        .collect();
    for (n, address) in (1u128..).zip(&backends) {
        let endpoint = crate::Endpoint {
            names: Vec::new(),
            addresses: vec![*address],
        };
        // The short name of an endpoint is made of the first six bytes.
        network.set_endpoint(EndpointId((n << 80).to_be_bytes()), endpoint);
    }
    let service = |backends: &[IpAddr]| Service {
        mode: EndpointMode::DnsRr,
        vips: vec![],
        backends: backends.to_vec(),
        ports: vec![port(Some("http"), 80, 8080, Protocol::Tcp)],
    };
    network.set_service("many", service(&backends));
    network.set_service("few", service(&backends[..300]));
    zone.set_network(FRONT, network);
    let located = |name: &str| {
        let rng = &mut SmallRng::seed_from_u64(1);
        match answer(&query(name, "SRV"), &Asker::on(vec![FRONT]), &zone, rng) {
            Answer::Located { records, addresses } => (records, addresses.len()),
            other => panic!("{other:?}"),
        }
    };
    let (records, addresses) = located("_http._tcp.few");
    assert_eq!((records.len(), addresses), (300, 300));
    // An owner that is compressed, type, class, TTL, length, priority, weight and port come before the name.
    let RData::SRV(first) = &records[0].data else {
        panic!("{:?}", records[0])
    };
    let each = 2 + 2 + 2 + 4 + 2 + 6 + first.target.len();
    let (records, addresses) = located("_http._tcp.many");
    assert_eq!((records.len(), addresses), (60_000 / each, 60_000 / each));
}

#[test]
fn names_are_of_labels_that_can_be_written() {
    let zone = |domain: &str| Zone::new(domain).is_ok();
    assert!(zone("weft.internal") && zone("weft.internal.") && zone(&"x".repeat(63)));
    let long = format!("{0}.{0}.{0}.{0}", "x".repeat(49));
    assert!(zone(&format!("{long}x")), "of 200 bytes");
    assert!(!zone(&format!("{long}xx")));
    assert!(!zone("x\u{7f}") && !zone("x\n") && !zone("ä"));
    // Whoever has such a name is found by the others that it has.
    let mut network = NetworkZone::new("app", false, vec!["10.32.0.0/24".parse().unwrap()]);
    let names = ["a b", &"x".repeat(64), "good"];
    network.set_endpoint(EndpointId([1; 16]), endpoint(&names, &["10.32.0.7"]));
    network.set_service("a b", service(EndpointMode::Vip, &["10.32.0.8"], &[]));
    assert_eq!(
        network
            .pointers(&"10.32.0.7".parse().unwrap())
            .collect::<Vec<_>>(),
        ["good"]
    );
    assert_eq!(network.pointers(&"10.32.0.8".parse().unwrap()).count(), 0);
}

#[test]
fn a_zone_says_which_networks_it_has_and_all_that_is_in_them() {
    let mut zone = zone();
    let names = |zone: &Zone| {
        let names = zone.network_names().map(|(id, name)| (id, name.to_owned()));
        names.collect::<Vec<_>>()
    };
    let all = names(&zone);
    assert!(
        all.contains(&(FRONT, "front".to_owned())) && all.len() == 3,
        "{all:?}"
    );
    let lines = zone.lines();
    for part in [
        "endpoint a1a1a1a1a1a1",
        "name shared",
        "service web",
        "address 10.32.0.11",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(part)),
            "{part} in {lines:#?}"
        );
    }
    let inside: IpAddr = "10.32.0.200".parse().unwrap();
    assert!(zone.covers(inside) && !zone.covers("203.0.113.1".parse().unwrap()));
    zone.remove_network(&FRONT);
    assert!(!names(&zone).contains(&(FRONT, "front".to_owned())));
    assert!(zone.lines().is_subset(&lines) && zone.lines() != lines);
}

#[test]
fn a_service_is_of_the_mode_it_has_and_a_port_of_its_protocol() {
    let mut network = NetworkZone::new("app", false, vec!["10.32.0.0/24".parse().unwrap()]);
    let ports = vec![
        Port {
            name: Some("dns".to_owned()),
            port: 53,
            target: 5353,
            protocol: Protocol::Udp,
        },
        port(Some("dns"), 54, 5354, Protocol::Sctp),
    ];
    let of = service(EndpointMode::Vip, &["10.32.0.8"], &["10.32.0.7"]);
    network.set_service("ns", Service { ports, ..of });
    let mut zone = Zone::new("weft.internal").unwrap();
    zone.set_network(FRONT, network);
    let ask = |name: &str, qtype: &str| {
        let rng = &mut SmallRng::seed_from_u64(1);
        show(&answer(&query(name, qtype), &Asker::on(vec![FRONT]), &zone, rng))
    };
    assert!(ask("_dns._udp.ns", "SRV").starts_with("0 0 53 ns.app"));
    assert!(ask("_dns._sctp.ns", "SRV").starts_with("0 0 54 ns.app"));
    assert_eq!(ask("_dns._tcp.ns", "SRV"), "forward");
    assert_eq!(ask("_sctp.ns", "A"), "nodata in .");
}

#[test]
fn a_reverse_zone_starts_once() {
    let start = "0.0.0.0.0.0.0.0.2.3.0.0.0.0.d.f.ip6.arpa";
    let soa = ask(&[FRONT], start, "SOA");
    assert!(!soa.starts_with("nodata"), "{soa}");
    // What lies between the start and the addresses has names below it, and nothing of its own.
    for below in ["7", "1.7"] {
        let name = format!("{below}.{start}");
        assert_eq!(ask(&[FRONT], &name, "SOA"), format!("nodata in {start}."));
    }
}
