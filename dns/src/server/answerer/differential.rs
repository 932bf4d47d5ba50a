//! Generated questions to us and to hickory's in-memory zone with the same records, through the same seam:
//! both are a [`RequestHandler`] and get the same [`Request`]. Every difference has a row in [`DIFFERENCES`],
//! and every row is met.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hickory_proto::{
    op::Query,
    rr::{
        DNSClass, LowerName, RecordType,
        rdata::{PTR, SOA, SRV},
    },
};
use hickory_server::{
    net::{
        runtime::{TokioRuntimeProvider, TokioTime},
        xfer::Protocol,
    },
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, ZoneType},
};
use rand::{RngExt as _, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use weft_types::{EndpointId, NetworkId};

use super::*;
use crate::{
    Asker, Endpoint, EndpointMode, ForwarderConfig, NetworkZone, Port, Protocol as PortProtocol, Service,
    TTL_SECS, Upstreams,
    server::{reply::Reply, request::read},
};

const NETWORK: NetworkId = NetworkId([1; 16]);
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// Enough for every row; a longer run is a matter of `WEFT_DNS_QUESTIONS=100000`.
const QUESTIONS: usize = 4_000;

type Explains = fn(&Case) -> bool;

/// Why we differ, and when that is the reason. The first that applies is taken.
const DIFFERENCES: &[(&str, Explains)] = &[
    (
        "ANY gets one HINFO record (RFC 8482); the zone gives all it has",
        |case| case.qtype == RecordType::ANY && case.ours.answers == ["hinfo rfc8482 "],
    ),
    (
        "transfers and questions about the connection are refused; the zone has other codes for them",
        |case| is_meta(case.qtype) && case.ours.code == ResponseCode::Refused,
    ),
    (
        "the addresses of SRV targets come with them (RFC 2782); the zone leaves them out",
        |case| case.qtype == RecordType::SRV && case.ours.same_but_additionals(&case.theirs),
    ),
];

/// A reply, in an order of its own.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    code: ResponseCode,
    is_authoritative: bool,
    is_truncated: bool,
    answers: Vec<String>,
    authorities: Vec<String>,
    additionals: Vec<String>,
}

impl Shown {
    fn read(bytes: &[u8]) -> Self {
        let message = Message::from_vec(bytes).unwrap();
        let show = |records: &[Record], with_name: bool| {
            let mut shown: Vec<_> = records
                .iter()
                .map(|record| {
                    let name = record.name.to_lowercase();
                    let data = format!("{} {}", record.record_type(), record.data).to_lowercase();
                    if with_name { format!("{name} {data}") } else { data }
                })
                .collect();
            shown.sort_unstable();
            shown
        };
        let queried = message.queries[0].name();
        assert!(
            message.answers.iter().all(|record| record.name == *queried),
            "{message}"
        );
        Self {
            code: message.metadata.response_code,
            is_authoritative: message.metadata.authoritative,
            is_truncated: message.metadata.truncation,
            answers: show(&message.answers, false),
            authorities: show(&message.authorities, true),
            additionals: show(&message.additionals, true),
        }
    }

    fn same_but_additionals(&self, other: &Self) -> bool {
        (self.code, &self.answers, &self.authorities) == (other.code, &other.answers, &other.authorities)
    }
}

struct Case {
    name: Name,
    qtype: RecordType,
    ours: Shown,
    theirs: Shown,
}

fn is_meta(qtype: RecordType) -> bool {
    matches!(u16::from(qtype), 41 | 128..=254)
}

/// One network with everything that has a name, and the same as plain records.
struct World {
    zone: Zone,
    records: BTreeMap<Name, Vec<RData>>,
}

impl World {
    fn new(rng: &mut SmallRng) -> Self {
        let subnets = vec!["10.32.0.0/16".parse().unwrap(), "fd00:32::/64".parse().unwrap()];
        let mut network = NetworkZone::new("app", false, subnets);
        let mut records: BTreeMap<Name, Vec<RData>> = BTreeMap::new();
        let mut put = |name: String, data: RData| {
            let of = records.entry(full(&name)).or_default();
            if !of.contains(&data) {
                of.push(data);
            }
        };
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => RData::A(address.into()),
            IpAddr::V6(address) => RData::AAAA(address.into()),
        };
        let mut reverse = Vec::new();
        for n in 0..60u16 {
            let id = EndpointId(std::array::from_fn(|_| rng.random()));
            let mut addresses = vec![IpAddr::from([10, 32, 1, n as u8])];
            if n % 3 == 0 {
                addresses.push(Ipv6Addr::new(0xfd00, 0x32, 0, 0, 0, 0, 1, n).into());
            }
            let names = vec![format!("web.{n}"), "shared".into(), format!("node{}", n % 7)];
            for name in names.iter().chain([&id.short()]) {
                addresses.iter().for_each(|of| put(name.clone(), address(*of)));
            }
            reverse.extend(addresses.iter().map(|of| (*of, names[0].clone())));
            // Each is the backend of one service: ten services of six.
            let service = format!("svc{}", n % 10);
            for of in &addresses {
                put(format!("tasks.{service}"), address(*of));
            }
            let target = full(&id.short());
            put(format!("_http._tcp.tasks.{service}"), srv(8080, &target));
            put(format!("_80._tcp.tasks.{service}"), srv(8080, &target));
            if n % 10 >= 5 {
                addresses.iter().for_each(|of| put(service.clone(), address(*of)));
                put(format!("_http._tcp.{service}"), srv(8080, &target));
                put(format!("_80._tcp.{service}"), srv(8080, &target));
            }
            network.set_endpoint(id, Endpoint { names, addresses });
        }
        for n in 0..10u8 {
            let (name, vip) = (format!("svc{n}"), IpAddr::from([10, 32, 0, n + 2]));
            let backends = backends(n);
            if n < 5 {
                put(name.clone(), address(vip));
                put(format!("_http._tcp.{name}"), srv(80, &full(&name)));
                put(format!("_80._tcp.{name}"), srv(80, &full(&name)));
                reverse.push((vip, name.clone()));
            }
            let service = Service {
                mode: if n < 5 {
                    EndpointMode::Vip
                } else {
                    EndpointMode::DnsRr
                },
                vips: if n < 5 { vec![vip] } else { vec![] },
                backends,
                ports: vec![Port {
                    name: Some("http".into()),
                    port: 80,
                    target: 8080,
                    protocol: PortProtocol::Tcp,
                }],
            };
            network.set_service(&name, service);
        }
        let mut zone = Zone::new("weft.internal").unwrap();
        zone.set_network(NETWORK, network);
        for (of, name) in reverse {
            records
                .entry(Name::from(of))
                .or_default()
                .push(RData::PTR(PTR(full(&name))));
        }
        Self { zone, records }
    }

    /// Hickory's server with the same records, one zone for the domain and one for each subnet.
    fn catalog(&self) -> Catalog {
        let mut catalog = Catalog::new();
        for origin in origins() {
            let mut zone = InMemoryZoneHandler::<TokioRuntimeProvider>::empty(
                origin.clone(),
                ZoneType::Primary,
                AxfrPolicy::Deny,
            );
            let below = |label: &str| Name::from_ascii(format!("{label}.weft.internal.")).unwrap();
            let soa = SOA::new(below("ns"), below("hostmaster"), 1, 1, 1, 1, 1);
            zone.upsert_mut(Record::from_rdata(origin.clone(), TTL_SECS, RData::SOA(soa)), 0);
            for (name, data) in self.records.iter().filter(|(name, _)| origin.zone_of(name)) {
                for data in data {
                    zone.upsert_mut(Record::from_rdata(name.clone(), TTL_SECS, data.clone()), 0);
                }
            }
            catalog.upsert(LowerName::new(&origin), vec![Arc::new(zone)]);
        }
        catalog
    }
}

fn backends(service: u8) -> Vec<IpAddr> {
    let of = (0..60u16).filter(|n| n % 10 == u16::from(service));
    of.flat_map(|n| {
        let v6 = (n % 3 == 0).then(|| Ipv6Addr::new(0xfd00, 0x32, 0, 0, 0, 0, 1, n).into());
        [Some(IpAddr::from([10, 32, 1, n as u8])), v6]
    })
    .flatten()
    .collect()
}

fn origins() -> [Name; 3] {
    [
        "weft.internal.",
        "32.10.in-addr.arpa.",
        "0.0.0.0.0.0.0.0.2.3.0.0.0.0.d.f.ip6.arpa.",
    ]
    .map(|origin| Name::from_ascii(origin).unwrap())
}

fn full(name: &str) -> Name {
    Name::from_ascii(format!("{name}.app.weft.internal.")).unwrap()
}

fn srv(port: u16, target: &Name) -> RData {
    RData::SRV(SRV::new(0, 0, port, target.clone()))
}

/// A name of the zone, one close to it, or one that has nothing to do with it but its origin.
fn question(rng: &mut SmallRng, known: &[Name]) -> Query {
    let mut name = known.choose(rng).unwrap().clone();
    match rng.random_range(0..10) {
        0 => name = name.base_name(),
        1 => name = name.prepend_label("x").unwrap_or(name),
        2 => name = name.base_name().prepend_label("nosuch").unwrap(),
        3 => name = origins().choose(rng).unwrap().clone(),
        4 => name = name.base_name().base_name(),
        _ => {}
    }
    if !origins().iter().any(|origin| origin.zone_of(&name)) {
        name = origins()[0].prepend_label("other").unwrap();
    }
    if rng.random() {
        name.randomize_label_case();
    }
    let qtype = match rng.random_range(0..20) {
        0..6 => RecordType::A,
        6..9 => RecordType::AAAA,
        9..12 => RecordType::SRV,
        12..14 => RecordType::PTR,
        14 => RecordType::ANY,
        15 => RecordType::SOA,
        16 => RecordType::NS,
        17 => RecordType::TXT,
        18 => RecordType::MX,
        // OPT and TSIG cannot be asked for without being taken for something else.
        _ => match RecordType::from(rng.random_range(1..300u16)) {
            RecordType::OPT | RecordType::TSIG => RecordType::HTTPS,
            other => other,
        },
    };
    Query::query(name, qtype)
}

async fn ask(handler: &impl RequestHandler, query: &Query) -> Shown {
    let mut message = Message::query();
    message.add_query(query.clone());
    let request = read(&message.to_vec().unwrap(), CLIENT, Protocol::Tcp).unwrap();
    let reply = Reply::new(&request);
    handler
        .handle_request::<_, TokioTime>(&request, reply.clone())
        .await;
    Shown::read(&reply.take())
}

#[tokio::test]
async fn every_difference_from_another_server_with_the_same_zone_is_explained() {
    let mut rng = SmallRng::seed_from_u64(8906);
    let world = World::new(&mut rng);
    let theirs = world.catalog();
    let ours = Answerer {
        zone: Arc::new(ArcSwap::from_pointee(world.zone.clone())),
        asker: Arc::new(|_| Asker::on(vec![NETWORK])),
        forwarder: Forwarder::new(ForwarderConfig {
            upstreams: Upstreams::List(vec![]),
            ..ForwarderConfig::default()
        }),
        counters: Arc::default(),
    };
    let known: Vec<_> = world.records.keys().cloned().collect();
    let count = std::env::var("WEFT_DNS_QUESTIONS")
        .ok()
        .and_then(|text| text.parse().ok());
    let (mut met, mut same, mut unexplained) = (BTreeMap::new(), 0, BTreeSet::new());
    for _ in 0..count.unwrap_or(QUESTIONS) {
        let query = question(&mut rng, &known);
        assert_eq!(query.query_class(), DNSClass::IN);
        let case = Case {
            qtype: query.query_type(),
            ours: ask(&ours, &query).await,
            theirs: ask(&theirs, &query).await,
            name: query.name().clone(),
        };
        if case.ours == case.theirs {
            same += 1;
            continue;
        }
        let Some((why, _)) = DIFFERENCES.iter().find(|(_, explains)| explains(&case)) else {
            unexplained.insert(format!(
                "{} {}: we say\n{:#?}\nthe zone says\n{:#?}",
                case.name, case.qtype, case.ours, case.theirs
            ));
            continue;
        };
        *met.entry(*why).or_insert(0) += 1;
    }
    println!("{same} the same, {met:#?}");
    let few = unexplained.iter().take(5).cloned().collect::<Vec<_>>();
    assert!(
        unexplained.is_empty(),
        "{} differences, for example\n{}",
        unexplained.len(),
        few.join("\n")
    );
    for (why, _) in DIFFERENCES {
        assert!(met.contains_key(why), "nothing differs any more because {why}");
    }
}
