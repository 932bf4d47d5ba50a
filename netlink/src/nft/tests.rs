use std::{
    net::{IpAddr, UdpSocket},
    process::Command,
};

use super::*;
use crate::{netns::Netns, testing::netns as namespace};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What `nft` itself reads in the namespace, white space evened out; `None` without the program.
fn listing(netns: &Netns) -> Option<String> {
    let output = netns
        .run(|| Command::new("nft").args(["list", "ruleset"]).output())
        .unwrap()
        .ok()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn egress() -> Transaction {
    let table = Table::new(Family::Inet, "weft-egress");
    let mut change = Transaction::new();
    change
        .add_table(&table)
        .add_chain(
            &table,
            Chain::base("out", ChainType::Nat, Hook::Postrouting, priority::SNAT),
        )
        .add_rule(
            &table,
            "out",
            Rule::new()
                .from_subnet(ip("10.20.0.9"), 24)
                .differs(Load::Oifname, Datum::Ifname("br0".into()))
                .then(Expr::Counter)
                .then(Expr::Masquerade)
                .comment("egress of app"),
        )
        .add_rule(
            &table,
            "out",
            Rule::new()
                .from_subnet(ip("fd00:20::1"), 64)
                .then(Expr::Masquerade),
        )
        .add_chain(
            &table,
            Chain::base("raw", ChainType::Filter, Hook::Prerouting, priority::RAW),
        )
        .add_rule(
            &table,
            "raw",
            Rule::new()
                .equal(Load::Dport, Datum::Port(4789))
                .then(Expr::Notrack),
        );
    change
}

fn balance() -> Transaction {
    let table = Table::new(Family::Inet, "weft-lb");
    let mut change = Transaction::new();
    change
        .add_table(&table)
        .add_chain(
            &table,
            Chain::base("output", ChainType::Nat, Hook::Output, priority::DSTNAT),
        )
        .add_chain(&table, Chain::regular("web"))
        .add_set(
            &table,
            Set::new("ports", [Kind::Addr4, Kind::Proto, Kind::Port], SetData::Verdict),
        );
    let slots = (1..=3)
        .map(|n| Element::value([Datum::Number(n - 1)], ip(&format!("10.0.0.{n}")).into()))
        .collect();
    let map = change.add_anonymous_set(
        &table,
        Set::anonymous([Kind::Number], SetData::Value(Kind::Addr4)),
        slots,
    );
    change
        .add_rule(
            &table,
            "output",
            Rule::new()
                .then(Expr::Version { ipv6: false })
                .then(Expr::Load(Load::Ip4Daddr, Reg(0)))
                .then(Expr::Load(Load::L4Proto, Reg(1)))
                .then(Expr::Load(Load::Dport, Reg(2)))
                .then(Expr::Vmap {
                    set: "ports".into(),
                    key: Reg(0),
                }),
        )
        .add_rule(
            &table,
            "web",
            Rule::new()
                .then(Expr::Numgen {
                    modulus: 3,
                    first: 0,
                    to: Reg(0),
                })
                .then(Expr::Lookup {
                    set: map,
                    key: Reg(0),
                    to: Some(Reg(0)),
                    invert: false,
                })
                .then(Expr::Immediate {
                    value: Datum::Port(8080),
                    to: Reg(4),
                })
                .then(Expr::Dnat {
                    ipv6: false,
                    addr: Reg(0),
                    port: Some(Reg(4)),
                }),
        )
        .add_rule(
            &table,
            "web",
            Rule::new().then(Expr::Reject(Reject::PortUnreachable)),
        )
        .add_elements(
            &table,
            "ports",
            vec![Element::verdict(
                [ip("10.0.0.100").into(), Datum::Proto(6), Datum::Port(80)],
                Verdict::Goto("web".into()),
            )],
        );
    change
}

#[test]
fn a_transaction_reads_as_text() {
    let text = "\
add table inet weft-egress
add chain inet weft-egress out { type nat hook postrouting priority 100; }
add rule inet weft-egress out ip; r0 = ip saddr; r0 &= 255.255.255.0; r0 == 10.20.0.0; \
r0 = oifname; r0 != \"br0\"; counter; masquerade comment \"egress of app\"
add rule inet weft-egress out ip6; r0 = ip6 saddr; r0 &= ffff:ffff:ffff:ffff::; \
r0 == fd00:20::; masquerade
add chain inet weft-egress raw { type filter hook prerouting priority -300; }
add rule inet weft-egress raw r0 = dport; r0 == 4789; notrack
";
    assert_eq!(egress().to_string(), text);
    let text = balance().to_string();
    assert!(
        text.contains("add set inet weft-lb @#1 { type mark : ipv4_addr; }\n"),
        "{text}"
    );
    assert!(
        text.contains("add elements inet weft-lb @ports\n  10.0.0.100 . tcp . 80 : goto web\n"),
        "{text}"
    );
    assert!(
        text.contains("r0 = numgen inc mod 3 offset 0; r0 = @#1[r0]; r4 = 8080; dnat ip to r0 port r4\n"),
        "{text}"
    );
}

#[test]
fn the_kernel_understands_what_we_say() {
    let Some(netns) = namespace() else { return };
    let nft = netns.run(Nft::open).unwrap().unwrap();
    nft.commit(&egress()).unwrap();
    nft.commit(&balance()).unwrap();
    let Some(text) = listing(&netns) else { return };
    for part in [
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip saddr 10.20.0.0/24 oifname != \"br0\" counter packets 0 bytes 0 masquerade comment \"egress of app\"",
        "ip6 saddr fd00:20::/64 masquerade",
        "type filter hook prerouting priority raw; policy accept; th dport 4789 notrack",
        "map ports { type ipv4_addr . inet_proto . inet_service : verdict elements = { 10.0.0.100 . tcp . 80 : goto web } }",
        "ip daddr . meta l4proto . th dport vmap @ports",
        "numgen inc mod 3 map { 0x00000000 : 10.0.0.1, 0x00000001 : 10.0.0.2, 0x00000002 : 10.0.0.3 }:8080",
        "reject",
    ] {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

#[test]
fn what_is_installed_reads_back() {
    let Some(netns) = namespace() else { return };
    let nft = netns.run(Nft::open).unwrap().unwrap();
    nft.commit(&egress()).unwrap();
    nft.commit(&balance()).unwrap();
    let (egress_table, lb) = (
        Table::new(Family::Inet, "weft-egress"),
        Table::new(Family::Inet, "weft-lb"),
    );
    assert_eq!(nft.tables("weft").unwrap(), [egress_table.clone(), lb.clone()]);
    assert_eq!(nft.tables("other").unwrap(), []);
    assert_eq!(nft.chains(&lb).unwrap(), ["output", "web"]);
    assert_eq!(
        nft.rule_comments(&egress_table).unwrap(),
        [("out".to_owned(), "egress of app".to_owned())]
    );
    assert_eq!(nft.rule_comments(&lb).unwrap(), []);
    let key = vec![10, 0, 0, 100, 6, 0, 0, 0, 0, 80, 0, 0];
    assert_eq!(
        nft.elements(&lb, "ports").unwrap(),
        [Installed {
            key,
            value: None,
            chain: Some("web".to_owned())
        }]
    );
    assert_eq!(nft.elements(&lb, "absent").unwrap(), []);

    let mut change = Transaction::new();
    change.delete_table(&egress_table).delete_table(&lb);
    nft.commit(&change).unwrap();
    nft.commit(&change).unwrap();
    assert_eq!(nft.tables("").unwrap(), []);
}

#[test]
fn a_refused_transaction_changes_nothing_and_names_the_change() {
    let Some(netns) = namespace() else { return };
    let nft = netns.run(Nft::open).unwrap().unwrap();
    let table = Table::new(Family::Inet, "weft-x");
    let mut change = Transaction::new();
    change
        .add_table(&table)
        .add_rule(&table, "nowhere", Rule::new().then(Expr::Verdict(Verdict::Drop)))
        .add_chain(&table, Chain::regular("later"));
    let error = nft.commit(&change).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot add rule inet weft-x nowhere drop: the table, chain, set, element or kernel part it needs is missing"
    );
    assert_eq!(nft.tables("").unwrap(), []);
}

#[test]
fn many_elements_fit_and_joined_transactions_keep_their_sets_apart() {
    let Some(netns) = namespace() else { return };
    let nft = netns.run(Nft::open).unwrap().unwrap();
    let table = Table::new(Family::Inet, "weft-big");
    let mut change = Transaction::new();
    change
        .add_table(&table)
        .add_set(&table, Set::new("many", [Kind::Addr6, Kind::Port], SetData::None));
    let elements = (0..1000)
        .map(|n| Element::key([ip("fd00::1").into(), Datum::Port(n)]))
        .collect::<Vec<_>>();
    change.add_elements(&table, "many", elements.clone());
    for chain in ["a", "b"] {
        let mut part = Transaction::new();
        part.add_chain(&table, Chain::regular(chain));
        let set = part.add_anonymous_set(
            &table,
            Set::anonymous([Kind::Proto], SetData::None),
            vec![Element::key([Datum::Proto(if chain == "a" { 6 } else { 17 })])],
        );
        let lookup = Expr::Lookup {
            set,
            key: Reg(0),
            to: None,
            invert: false,
        };
        part.add_rule(
            &table,
            chain,
            Rule::new().then(Expr::Load(Load::L4Proto, Reg(0))).then(lookup),
        );
        change.append(part);
    }
    nft.commit(&change).unwrap();
    assert_eq!(nft.elements(&table, "many").unwrap().len(), 1000);
    let text = change.to_string();
    assert!(
        text.contains("@#1\n  tcp") && text.contains("@#2\n  udp"),
        "{text}"
    );

    let mut change = Transaction::new();
    change
        .delete_elements(&table, "many", elements[1..].to_vec())
        .flush_chain(&table, "a")
        .delete_chain(&table, "a");
    nft.commit(&change).unwrap();
    assert_eq!(nft.elements(&table, "many").unwrap().len(), 1);
    assert_eq!(nft.chains(&table).unwrap(), ["b"]);
}

#[test]
fn an_ingress_chain_drops_by_source_on_one_device() {
    let Some(netns) = namespace() else { return };
    let nft = netns.run(Nft::open).unwrap().unwrap();
    let socket = netns
        .run(|| {
            assert!(
                Command::new("ip")
                    .args(["link", "set", "lo", "up"])
                    .status()
                    .unwrap()
                    .success()
            );
            UdpSocket::bind("127.0.0.1:0").unwrap()
        })
        .unwrap();
    socket.set_nonblocking(true).unwrap();
    let here = socket.local_addr().unwrap();
    let mut buffer = [0; 8];
    socket.send_to(b"before", here).unwrap();
    assert_eq!(socket.recv(&mut buffer).unwrap(), 6);

    let table = Table::new(Family::Netdev, "weft-lab");
    let mut change = Transaction::new();
    change
        .add_table(&table)
        .add_chain(
            &table,
            Chain::base(
                "cut",
                ChainType::Filter,
                Hook::Ingress("lo".into()),
                priority::FILTER,
            ),
        )
        .add_rule(
            &table,
            "cut",
            Rule::new()
                .from_subnet(ip("127.0.0.1"), 32)
                .then(Expr::Counter)
                .then(Expr::Verdict(Verdict::Drop)),
        );
    nft.commit(&change).unwrap();
    socket.send_to(b"cut", here).unwrap();
    assert!(socket.recv(&mut buffer).is_err());

    let mut change = Transaction::new();
    change.delete_table(&table);
    nft.commit(&change).unwrap();
    socket.send_to(b"healed", here).unwrap();
    assert_eq!(socket.recv(&mut buffer).unwrap(), 6);
}

#[test]
fn rules_count_by_keys_of_their_own() {
    let Some(netns) = namespace() else { return };
    let nft = netns.run(Nft::open).unwrap().unwrap();
    let table = Table::new(Family::Inet, "weft-count");
    let mut change = Transaction::new();
    let mask = |rule: Rule, load, mask: Datum, equal, value| {
        rule.then(Expr::Load(load, Reg(0)))
            .then(Expr::Mask { reg: Reg(0), mask })
            .then(Expr::Compare {
                reg: Reg(0),
                equal,
                value,
            })
    };
    let made = Rule::new()
        .then(Expr::Load(Load::CtOriginalIp4Daddr, Reg(0)))
        .then(Expr::Load(Load::CtProtocol, Reg(1)))
        .then(Expr::Load(Load::CtReplyIp4Saddr, Reg(2)))
        .then(Expr::Count {
            set: "made".into(),
            key: Reg(0),
        });
    let reset = mask(
        mask(
            Rule::new().equal(Load::CtDirection, Datum::Bits(1)),
            Load::CtStatus,
            Datum::Number(CT_ASSURED | CT_DNAT),
            false,
            Datum::Number(CT_DNAT),
        ),
        Load::TcpFlags,
        Datum::Bits(TCP_RST),
        true,
        Datum::Bits(TCP_RST),
    );
    let reset = reset.then(Expr::Load(Load::CtReplyIp6Saddr, Reg(0)));
    change
        .add_table(&table)
        .add_set(
            &table,
            Set::counting("made", [Kind::Addr4, Kind::Proto, Kind::Addr4], 100),
        )
        .add_chain(
            &table,
            Chain::base("made", ChainType::Nat, Hook::Postrouting, priority::SNAT - 1),
        )
        .add_rule(&table, "made", made)
        .add_chain(
            &table,
            Chain::base("reset", ChainType::Filter, Hook::Input, priority::FILTER),
        )
        .add_rule(&table, "reset", reset.then(Expr::Counter));
    assert_eq!(
        change.to_string(),
        "\
add table inet weft-count
add set inet weft-count made { type ipv4_addr . inet_proto . ipv4_addr; size 100; counter; }
add chain inet weft-count made { type nat hook postrouting priority 99; }
add rule inet weft-count made r0 = ct original ip daddr; r1 = ct protocol; r2 = ct reply ip saddr; count @made[r0]
add chain inet weft-count reset { type filter hook input priority 0; }
add rule inet weft-count reset r0 = ct direction; r0 == 0x01; r0 = ct status; r0 &= 36; r0 != 32; \
r0 = tcp flags; r0 &= 0x04; r0 == 0x04; r0 = ct reply ip6 saddr; counter
"
    );
    nft.commit(&change).unwrap();
    assert_eq!(nft.counters(&table, "made").unwrap(), []);
    assert_eq!(nft.counters(&table, "absent").unwrap(), []);
    netns
        .run(|| {
            Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()
                .unwrap();
            for _ in 0..2 {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                for _ in 0..3 {
                    socket.send_to(b"?", "127.0.0.2:9").unwrap();
                }
            }
        })
        .unwrap();
    let key = vec![127, 0, 0, 2, 17, 0, 0, 0, 127, 0, 0, 2];
    // Once for each conversation, not for each packet.
    assert_eq!(nft.counters(&table, "made").unwrap(), [(key, 2)]);
    let Some(text) = listing(&netns) else { return };
    for part in [
        "set made { type ipv4_addr . inet_proto . ipv4_addr size 100 flags dynamic counter",
        // Some kernels say after it that the set counts.
        "add @made { ct original ip daddr . ct protocol . ct reply ip saddr",
        "ct direction reply ct status != dnat / assured,dnat",
    ] {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
    let mut change = Transaction::new();
    let element = [ip("127.0.0.2").into(), Datum::Proto(17), ip("127.0.0.2").into()];
    nft.commit(change.delete_elements(&table, "made", vec![Element::key(element)]))
        .unwrap();
    assert_eq!(nft.counters(&table, "made").unwrap(), []);
}

#[tokio::test]
async fn commits_are_told_with_what_they_gave_and_took() {
    let Some(netns) = namespace() else { return };
    let nft = netns.run(Nft::open).unwrap().unwrap();
    let mut monitor = Monitor::open(&netns).unwrap();
    let table = Table::new(Family::Inet, "weft-lb");
    nft.commit(&egress()).unwrap();
    nft.commit(&balance()).unwrap();
    let mut again = Transaction::new();
    again.delete_table(&table);
    again.append(balance());
    nft.commit(&again).unwrap();
    let mut flush = Transaction::new();
    flush
        .delete_table(&table)
        .delete_table(&Table::new(Family::Inet, "weft-egress"));
    nft.commit(&flush).unwrap();

    let (gained, lost) = (
        Change {
            gained: true,
            lost: false,
        },
        Change {
            gained: false,
            lost: true,
        },
    );
    let both = Change {
        gained: true,
        lost: true,
    };
    for expected in [
        vec![("weft-egress", gained)],
        vec![("weft-lb", gained)],
        vec![("weft-lb", both)],
        vec![("weft-egress", lost), ("weft-lb", lost)],
    ] {
        let expected = expected
            .into_iter()
            .map(|(name, change)| (name.to_owned(), change));
        let event = tokio::time::timeout(std::time::Duration::from_secs(10), monitor.next());
        assert_eq!(event.await.unwrap(), Some(Event::Commit(expected.collect())));
    }
}
