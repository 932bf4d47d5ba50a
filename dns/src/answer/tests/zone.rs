//! A zone with everything in it, and questions about it.

use std::collections::BTreeSet;

use rand::{SeedableRng, rngs::SmallRng};
use weft_types::EndpointId;

use super::super::*;
use crate::{Endpoint, EndpointMode, Port, Protocol, Service};

pub(super) const FRONT: NetworkId = NetworkId([1; 16]);
pub(super) const BACK: NetworkId = NetworkId([2; 16]);
pub(super) const DOTTED: NetworkId = NetworkId([3; 16]);

pub(super) fn endpoint(names: &[&str], addresses: &[&str]) -> Endpoint {
    Endpoint {
        names: names.iter().map(|name| (*name).into()).collect(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

pub(super) fn service(mode: EndpointMode, vips: &[&str], backends: &[&str]) -> Service {
    let parse = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
    Service {
        mode,
        vips: parse(vips),
        backends: parse(backends),
        ports: vec![],
    }
}

pub(super) fn port(name: Option<&str>, port: u16, target: u16, protocol: Protocol) -> Port {
    Port {
        name: name.map(str::to_owned),
        port,
        target,
        protocol,
    }
}

pub(super) fn zone() -> Zone {
    let subnets = |list: &[&str]| list.iter().map(|subnet| subnet.parse().unwrap()).collect();
    let mut front = NetworkZone::new("Front", false, subnets(&["10.32.0.0/20", "fd00:32::/64"]));
    front.set_endpoint(
        EndpointId([0xa1; 16]),
        endpoint(&["Web.1", "web-a", "shared"], &["10.32.0.11"]),
    );
    front.set_endpoint(
        EndpointId([0xa2; 16]),
        endpoint(&["web.2", "shared"], &["10.32.0.12"]),
    );
    front.set_endpoint(
        EndpointId([0xa3; 16]),
        endpoint(&["dual"], &["10.32.0.13", "fd00:32::13"]),
    );
    front.set_endpoint(EndpointId([0xa4; 16]), endpoint(&["six"], &["fd00:32::14"]));
    front.set_endpoint(
        EndpointId([0xa5; 16]),
        endpoint(&["web", "both"], &["10.32.0.15"]),
    );
    front.set_endpoint(EndpointId([0xa6; 16]), endpoint(&[], &["10.32.0.16"]));
    front.set_service(
        "Web",
        service(EndpointMode::Vip, &["10.32.0.2"], &["10.32.0.11", "10.32.0.12"]),
    );
    front.set_service(
        "rr",
        service(
            EndpointMode::DnsRr,
            &[],
            &["10.32.0.11", "10.32.0.13", "fd00:32::13"],
        ),
    );
    front.set_service(
        "Api",
        Service {
            ports: vec![
                port(Some("Http"), 80, 8080, Protocol::Tcp),
                port(None, 443, 8443, Protocol::Tcp),
                port(Some("dns"), 53, 5353, Protocol::Udp),
            ],
            ..service(EndpointMode::Vip, &["10.32.0.4"], &["10.32.0.11", "10.32.0.12"])
        },
    );
    front.set_service(
        "grpc",
        Service {
            ports: vec![port(Some("grpc"), 50051, 50051, Protocol::Tcp)],
            ..service(
                EndpointMode::DnsRr,
                &[],
                &["10.32.0.11", "10.32.0.13", "fd00:32::13"],
            )
        },
    );
    front.set_service("sick", service(EndpointMode::DnsRr, &[], &[]));
    front.set_service("down", service(EndpointMode::Vip, &["10.32.0.3"], &[]));

    let mut back = NetworkZone::new("back", true, subnets(&["10.33.0.0/24"]));
    back.set_endpoint(EndpointId([0xb1; 16]), endpoint(&["db", "both"], &["10.33.0.11"]));

    let mut dotted = NetworkZone::new("a.b", false, subnets(&["10.34.0.0/24"]));
    dotted.set_endpoint(EndpointId([0xc1; 16]), endpoint(&["x.y"], &["10.34.0.11"]));

    let mut zone = Zone::new("Weft.Internal.").unwrap();
    zone.set_network(FRONT, front);
    zone.set_network(BACK, back);
    zone.set_network(DOTTED, dotted);
    zone
}

pub(super) fn show(answer: &Answer) -> String {
    let soa = |soa: &Record| {
        assert_eq!((soa.ttl, soa.record_type()), (TTL_SECS, RecordType::SOA));
        format!("{}", soa.name)
    };
    match answer {
        Answer::Records(records) => {
            assert!(!records.is_empty());
            assert!(records.iter().all(|record| record.ttl == TTL_SECS));
            let data: BTreeSet<_> = records.iter().map(|record| record.data.to_string()).collect();
            data.into_iter().collect::<Vec<_>>().join(" ")
        }
        Answer::Located { records, addresses } => {
            assert!(!records.is_empty());
            let all = records.iter().chain(addresses).map(|record| match &record.data {
                RData::SRV(_) => record.data.to_string(),
                data => format!("{} at {data}", record.name),
            });
            let all: BTreeSet<_> = all.collect();
            all.into_iter().collect::<Vec<_>>().join(", ")
        }
        Answer::NoData { soa: record } => format!("nodata in {}", soa(record)),
        Answer::NxDomain { soa: record } => format!("nxdomain in {}", soa(record)),
        Answer::Forward => "forward".into(),
        Answer::Refused => "refused".into(),
    }
}

pub(super) fn query(name: &str, qtype: &str) -> Query {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    Query::query(name, qtype.parse().unwrap())
}

pub(super) fn ask(networks: &[NetworkId], name: &str, qtype: &str) -> String {
    let asker = Asker::on(networks.to_vec());
    show(&answer(
        &query(name, qtype),
        &asker,
        &zone(),
        &mut SmallRng::seed_from_u64(1),
    ))
}

#[track_caller]
pub(super) fn check(networks: &[NetworkId], table: &[(&str, &str, &str)]) {
    for (name, qtype, expected) in table {
        assert_eq!(ask(networks, name, qtype), *expected, "{name} {qtype}");
    }
}
