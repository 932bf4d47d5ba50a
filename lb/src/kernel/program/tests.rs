use std::net::IpAddr;
use std::time::Duration;

use weft_types::EndpointId;

use super::*;
use crate::{Backend, BackendState};

fn service() -> Service {
    let backend = |n: u8| Backend {
        endpoint: EndpointId([n; 16]),
        addrs: vec![IpAddr::from([10, 0, 0, n]), format!("fd00::{n}").parse().unwrap()],
        weight: 1.try_into().unwrap(),
        state: BackendState::Active,
    };
    Service {
        id: ServiceId([0xab; 16]),
        vips: vec![IpAddr::from([10, 0, 0, 100])],
        ports: vec![PortMap::tcp(80, 8080), PortMap::udp(53, 53)],
        scheduler: Scheduler::RoundRobin,
        backends: vec![backend(2), backend(1)],
        idle_timeout: None,
        is_watched: false,
    }
}

fn text(service: &Service) -> String {
    text_at(service, Side::Client)
}

fn text_at(service: &Service, side: Side) -> String {
    let table = table_of(NetworkId([0xcd; 16]));
    let mut change = Transaction::new();
    chains(service, side).into_iter().for_each(|chain| {
        change.add_chain(&table, Chain::regular(chain));
    });
    let slots = Slots::of(service, &Loads::new(), 0, side);
    let mark = Mark {
        fingerprint: "print".to_owned(),
        shard: 3,
        ranges: [Range { first: 20, len: 2 }, Range { first: 40, len: 0 }],
        sum: 1,
    };
    add_slots(&mut change, &table, 3, false, 20, slots.in_map(false));
    write_rules(&mut change, &table, service, &slots, &mark);
    add_elements(&mut change, &table, elements(service, side).iter());
    let vips: Vec<_> = vips(service, 0, side).into_iter().collect();
    add_vips(&mut change, &table, &vips);
    let long = service.id.to_string();
    change
        .to_string()
        .replace(&long, "ID")
        .replace(&table.to_string(), "TABLE")
        .replace(&mark.to_string(), "MARK")
}

#[test]
fn a_service_reads_as_text() {
    let wanted = "\
add chain TABLE svc-ID-tcp-80
add chain TABLE svc-ID-udp-53
add elements TABLE @slots4-3
  20 : 10.0.0.1
  21 : 10.0.0.2
flush chain TABLE svc-ID-udp-53
add rule TABLE svc-ID-udp-53 ip; r0 = numgen inc mod 2 offset 20; r4 = @slots4-3[r0]; dnat ip to r4 \
comment \"MARK\"
flush chain TABLE svc-ID-tcp-80
add rule TABLE svc-ID-tcp-80 ip; r0 = numgen inc mod 2 offset 20; r4 = @slots4-3[r0]; r8 = 8080; \
dnat ip to r4 port r8 comment \"MARK\"
add elements TABLE @ports4
  10.0.0.100 . tcp . 80 : jump svc-ID-tcp-80
  10.0.0.100 . udp . 53 : jump svc-ID-udp-53
add elements TABLE @vips4
  10.0.0.100 : 10.0.0.1
";
    assert_eq!(text(&service()), wanted);
}

#[test]
fn a_table_reads_as_text() {
    let table = Table::new(Family::Inet, "t");
    let text = |side| {
        let mut change = Transaction::new();
        write_table(&mut change, &table, side);
        let text = change.to_string().replace("inet t ", "");
        let rules = |line: &&str| line.starts_with("add rule vip") || line.starts_with("add set vips4");
        text.lines().filter(rules).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        text(Side::Client)[..8],
        [
            "add set vips4 { type ipv4_addr : ipv4_addr; }",
            "add rule vips r0 = ct state; r0 == 8 comment \"weft virtual addresses, layout 4\"",
            "add rule vips ip; r0 = ip daddr; r4 = @vips4[r0]; goto vip4",
            "add rule vip4 r0 = l4proto; r0 == tcp; r0 = tcp flags; r0 &= 0x17; r0 != 0x02; goto refuse",
            "add rule vip4 r0 = ip daddr; r1 = l4proto; r2 = dport; do @ports4[r0]",
            "add rule vip4 r0 = ip daddr; do @all4[r0]",
            "add rule vip4 r0 = l4proto; r0 == icmp; r0 = ip daddr; r4 = @vips4[r0]; r4 != 0.0.0.0; dnat ip to r4",
            "add rule vip4 goto refuse",
        ]
    );
    assert_eq!(
        text(Side::Entry)[2..],
        [
            "add rule vips ip; r0 = ip daddr; r1 = l4proto; r2 = dport; do @ports4[r0]",
            "add rule vips ip6; r0 = ip6 daddr; r4 = l4proto; r5 = dport; do @ports6[r0]",
        ]
    );
}

#[test]
fn a_mark_is_read_back() {
    let mark = Mark {
        fingerprint: "0123456789abcdef".to_owned(),
        shard: 7,
        ranges: [
            Range { first: 0, len: 0 },
            Range {
                first: u32::MAX - 3,
                len: 3,
            },
        ],
        sum: sum([IpAddr::from([10, 0, 0, 1])].iter()),
    };
    assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    for no_mark in [
        "",
        "0123456789abcdef",
        "a 0 1+2 3 0",
        "a 1+2 3+4 0",
        "a 0 1+2 3+4 x",
    ] {
        assert_eq!(Mark::parse(no_mark), None, "{no_mark}");
    }
}

#[test]
fn one_backend_needs_no_slots_and_none_refuses() {
    let mut service = service();
    service.ports.clear();
    service.backends.pop();
    let last = |text: &str| -> Vec<String> {
        let (_, text) = text.split_once("flush chain TABLE svc-ID\n").unwrap();
        text.lines().map(str::to_owned).collect()
    };
    assert_eq!(
        last(&text(&service)),
        [
            "add rule TABLE svc-ID ip; r4 = 10.0.0.2; dnat ip to r4 comment \"MARK\"",
            "add elements TABLE @all4",
            "  10.0.0.100 : jump svc-ID",
            "add elements TABLE @vips4",
            "  10.0.0.100 : 0.0.0.0",
        ]
    );
    service.backends.clear();
    assert_eq!(
        last(&text(&service))[0],
        "add rule TABLE svc-ID goto refuse comment \"MARK\""
    );
    service.ports.push(PortMap::tcp(80, 80));
    assert!(text(&service).ends_with("@vips4\n  10.0.0.100 : 0.0.0.0\n"));
}

#[test]
fn idle_time_is_said_of_each_protocol_before_a_backend_is_chosen() {
    let mut service = service();
    service.backends.pop();
    service.idle_timeout = Some(Duration::from_millis(90_700));
    let rules = |text: &str| -> Vec<String> {
        let rules = text.lines().filter(|line| line.contains("timeout"));
        rules.map(str::to_owned).collect()
    };
    assert_eq!(
        rules(&text(&service)),
        [
            "add rule TABLE svc-ID-udp-53 ct timeout svc-ID-udp-90",
            "add rule TABLE svc-ID-tcp-80 ct timeout svc-ID-tcp-90",
        ]
    );
    service.ports.truncate(1);
    let names = |service: &Service| {
        timeouts(service)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&service),
        [format!("svc-{}-tcp-90 {{ protocol tcp; idle 90s; }}", service.id)]
    );
    service.ports.clear();
    assert_eq!(names(&service).len(), 2);
    let text = text(&service);
    let at = |what: &str| text.find(what).unwrap();
    assert!(at("ct timeout svc-ID-udp-90") < at("dnat"));
}

#[test]
fn the_fingerprint_changes_with_what_is_written_and_with_nothing_else() {
    let base = service();
    let print = fingerprint(&base, 0, Side::Client);
    let mut same = base.clone();
    same.backends.reverse();
    same.backends.push(Backend {
        state: BackendState::Down,
        ..base.backends[0].clone()
    });
    same.ports.reverse();
    assert_eq!(fingerprint(&same, 0, Side::Client), print);
    let changes: [fn(&mut Service); 7] = [
        |s| s.idle_timeout = Some(Duration::from_secs(60)),
        |s| s.vips.push(IpAddr::from([10, 0, 0, 101])),
        |s| s.vips = vec!["fd00::100".parse().unwrap()],
        |s| s.ports[0].target = s.ports[0].port,
        |s| s.backends[0].state = BackendState::Draining,
        |s| s.backends[0].addrs[0] = IpAddr::from([10, 0, 0, 9]),
        |s| s.scheduler = Scheduler::LeastConnections,
    ];
    for change in changes {
        let mut changed = base.clone();
        change(&mut changed);
        assert_ne!(fingerprint(&changed, 0, Side::Client), print, "{changed:?}");
    }
}

#[test]
fn keys_are_read_back() {
    for (vip, port) in [
        ("10.0.0.1", None),
        ("10.0.0.1", Some((6, 8080))),
        ("fd00::1", None),
        ("fd00::1", Some((17, 53))),
    ] {
        let key = Key {
            vip: vip.parse().unwrap(),
            port,
        };
        let mut bytes = match key.vip {
            IpAddr::V4(addr) => addr.octets().to_vec(),
            IpAddr::V6(addr) => addr.octets().to_vec(),
        };
        if let Some((protocol, port)) = port {
            bytes.extend([protocol, 0, 0, 0, (port >> 8) as u8, port as u8, 0, 0]);
        }
        assert_eq!(Key::from_bytes(key.map(), &bytes), Some(key));
    }
    assert_eq!(Key::from_bytes(Map::Ports { ipv6: false }, &[1, 2, 3, 4]), None);
    assert!(is_table_name(&table_of(NetworkId([1; 16])).name) && !is_table_name("weft-egress"));
}

#[test]
fn who_comes_in_finds_ports_only_and_under_maglev_a_backend_by_its_own_address() {
    let mut service = service();
    service.ports.pop();
    service.scheduler = Scheduler::Maglev;
    let text = text_at(&service, Side::Entry);
    let (rules, elements) = text.split_once("add elements TABLE @ports4").unwrap();
    assert_eq!(elements, "\n  10.0.0.100 . tcp . 80 : jump svc-ID-tcp-80\n");
    let rules: Vec<&str> = rules
        .lines()
        .filter(|line| line.starts_with("add rule"))
        .collect();
    assert_eq!(
        rules,
        [
            "add rule TABLE svc-ID-tcp-80 r0 = tcp flags; r0 &= 0x17; r0 != 0x02; goto refuse",
            "add rule TABLE svc-ID-tcp-80 ip; r4 = ip saddr; r0 = hash r4 mod 1021 offset 20; r4 = @slots4-3[r0]; \
             r8 = 8080; dnat ip to r4 port r8",
            "add rule TABLE svc-ID-tcp-80 goto refuse comment \"MARK\"",
        ]
    );
    assert_ne!(
        fingerprint(&service, 0, Side::Entry),
        fingerprint(&service, 0, Side::Client)
    );
}

#[test]
fn a_range_has_a_chain_an_element_for_each_port_and_a_map_where_targets_differ() {
    let mut service = service();
    service.backends.pop();
    service.ports = vec![PortMap::tcp(80, 8080).times(3), PortMap::udp(53, 53).times(2)];
    let text = text(&service);
    for line in [
        "add rule TABLE svc-ID-tcp-80-82 ip; r4 = 10.0.0.2; r0 = dport; r8 = @svc-ID-tcp-80-82-to-8080[r0]; dnat ip to r4 port r8 comment \"MARK\"",
        "add rule TABLE svc-ID-udp-53-54 ip; r4 = 10.0.0.2; dnat ip to r4 comment \"MARK\"",
        "  10.0.0.100 . tcp . 82 : jump svc-ID-tcp-80-82",
        "  10.0.0.100 . udp . 54 : jump svc-ID-udp-53-54",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let maps = target_maps(&service);
    assert_eq!(maps.len(), 1);
    let mut change = Transaction::new();
    for (name, port) in maps {
        add_target_map(&mut change, &Table::new(Family::Inet, "t"), &name, port);
    }
    let long = service.id.to_string();
    assert_eq!(
        change.to_string().replace(&long, "ID"),
        "add set inet t svc-ID-tcp-80-82-to-8080 { type inet_service : inet_service; }\n\
         add elements inet t @svc-ID-tcp-80-82-to-8080\n  80 : 8080\n  81 : 8081\n  82 : 8082\n"
    );
}
