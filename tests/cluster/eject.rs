//! Backends to which the clients of a host cannot connect.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use netns_harness::Inside as _;
use serde_json::Value;
use weft_netlink::nft::{
    Chain, ChainType, Datum, Expr, Family, Hook, Load, Nft, Rule, Table, Transaction, Verdict, priority,
};

use super::{
    bed::{Bed, Endpoint, Node, alone, has_ebpf, items, soon, text},
    traffic::{Server, call_at},
};

/// What a node knows of a backend.
fn backend(node: &Node, name: &str) -> Value {
    let detail = node.json("service inspect web");
    let mut backends = items(&detail["backends"]);
    let found = backends.find(|backend| backend["endpoint_name"] == name);
    found.unwrap_or_else(|| panic!("{detail}")).clone()
}

/// The hosts that eject a backend, and what is said of its state.
fn ejected_by(node: &Node, name: &str) -> (Vec<String>, String) {
    let backend = backend(node, name);
    let clients = items(&backend["clients"]);
    let hosts = clients.filter(|client| !client["ejected"].is_null());
    let hosts = hosts
        .map(|client| text(&client["node_name"]).to_owned())
        .collect();
    (hosts, text(&backend["state"]).to_owned())
}

/// Calls until a host ejects a backend; only then do all calls from there arrive.
fn until_ejected(from: &Endpoint, at: &Node, name: &str, vip: IpAddr, patience: Duration) {
    let host = at.host.name();
    soon(format!("{host} ejects {name}"), || {
        let to = SocketAddr::new(vip, 80);
        for _ in 0..4 {
            let _ = from.sandbox.run(|| TcpStream::connect_timeout(&to, patience));
        }
        match ejected_by(at, name) {
            (hosts, state) if hosts.iter().any(|known| known == host) && state == "ejected" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn events(node: &Node, kind: &str) -> usize {
    let events = node.weft("events --since 1h --no-follow");
    events.lines().filter(|line| line.contains(kind)).count()
}

fn nobody_is_sent_to_a_backend_that_refuses(datapath: &'static str) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2", "h3"]);
    let outside = bed.outsider("outside");
    let [h1, h2, h3] = [&bed["h1"], &bed["h2"], &bed["h3"]];
    h1.weft("network create app");
    h1.weft("service create --network app --port 80:8000 --publish 8080:80 web");
    let good = h2.replica("web-1", "app", "--service web");
    let bad = h3.connected("web-2", "app", "--service web");
    let [one, two] = [("one", h1), ("two", h2)].map(|(name, node)| node.connected(name, "app", ""));
    let vip = h1.vip("web");
    let refused = |from: &Endpoint, calls: usize| {
        let to = SocketAddr::new(vip, 80);
        let calls = (0..calls).map(|_| from.sandbox.run(|| TcpStream::connect(to)).unwrap());
        calls
            .filter(|call| {
                call.as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
            })
            .count()
    };
    soon("two backends", || match refused(&one, 4) {
        2 => Ok(()),
        other => Err(format!("{other} of 4 were refused")),
    });
    // Nobody is ejected without being asked for.
    assert_eq!(refused(&one, 40), 20);
    h1.weft("service update --eject 4:6s web");
    until_ejected(&one, h1, "web-2", vip, Duration::from_secs(1));
    assert_eq!(refused(&one, 20), 0);
    // Others are asked, and decide for themselves.
    soon("h3 says so too", || match ejected_by(h3, "web-2") {
        (hosts, state) if hosts == ["h1"] && state == "ejected" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let reason = text(&backend(h2, "web-2")["reason"]).to_owned();
    assert!(
        reason.starts_with("by h1 until ") && reason.ends_with(" connections in a row failed"),
        "{reason}"
    );
    assert_eq!(refused(&two, 4), 2);
    assert_eq!(events(h1, "endpoint.ejected"), 1);
    assert_eq!(events(h2, "endpoint.ejected"), 0);
    let table = h2.weft("service ls");
    assert!(table.contains("2 ready"), "{table}");
    // Whoever comes in by a port of a host is a client of that host.
    soon("h3 ejects it for those outside", || {
        let to = SocketAddr::new(h3.address(), 8080);
        let calls = (0..6).map(|_| outside.run(|| TcpStream::connect(to)).unwrap());
        match calls.filter(Result::is_err).count() {
            0 => Ok(()),
            failed => Err(format!("{failed} of 6 failed")),
        }
    });

    // Its server starts, and it has its share again.
    let server = Server::start(&bad.sandbox, "web-2");
    soon("web-2 is back", || match try_spread_at(&one, vip, 4)? {
        2 => Ok(()),
        other => Err(format!("{other} of 4 went there")),
    });
    assert!(events(h1, "endpoint.readmitted") >= 1);
    soon("nobody ejects it", || match ejected_by(h1, "web-2") {
        (hosts, state) if hosts.is_empty() && state == "ready" => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // Switched off, it is back at once.
    drop(server);
    h1.weft("service update --eject 2:1h web");
    until_ejected(&one, h1, "web-2", vip, Duration::from_secs(1));
    h1.weft("service update --eject off web");
    soon("it is called again", || match refused(&one, 4) {
        2 => Ok(()),
        other => Err(format!("{other} of 4 were refused")),
    });
    let shown = h1.weft("service inspect web");
    assert!(!shown.contains("ejected"), "{shown}");
    drop((good, bad, one, two, outside));
    bed.close();
}

/// How many of these calls to port 80 web-2 has answered.
fn try_spread_at(from: &Endpoint, vip: IpAddr, calls: usize) -> Result<usize, String> {
    let mut there = 0;
    for _ in 0..calls {
        let call = call_at(&from.sandbox, vip, 80).map_err(|error| error.to_string())?;
        there += usize::from(call.answer.name == "web-2");
    }
    Ok(there)
}

/// Has a host swallow what comes from another one's tunnel, or take it again.
fn swallow(at: &Node, from: IpAddr, swallowed: bool) {
    let IpAddr::V4(from) = from else {
        panic!("{from} is of IPv6")
    };
    let table = Table::new(Family::Inet, "test");
    let mut change = Transaction::new();
    if swallowed {
        let input = Chain::base("in", ChainType::Filter, Hook::Input, priority::FILTER);
        let rule = Rule::new()
            .equal(Load::Ip4Saddr, Datum::Addr4(from))
            .equal(Load::L4Proto, Datum::Proto(17))
            .equal(Load::Dport, Datum::Port(4789))
            .then(Expr::Verdict(Verdict::Drop));
        change.add_table(&table).add_chain(&table, input);
        change.add_rule(&table, "in", rule);
    } else {
        change.delete_table(&table);
    }
    at.host
        .run(|| Nft::open().unwrap().commit(&change).unwrap())
        .unwrap();
}

fn a_broken_path_between_two_hosts_is_those_hosts_affair(datapath: &'static str) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2", "h3"]);
    let [h1, h2, h3] = [&bed["h1"], &bed["h2"], &bed["h3"]];
    h1.weft("network create app");
    h1.weft("service create --network app --port 80:8000 --eject 3:1h web");
    let replicas =
        [("web-1", h2), ("web-2", h3)].map(|(name, node)| node.replica(name, "app", "--service web"));
    let [one, two] = [("one", h1), ("two", h2)].map(|(name, node)| node.connected(name, "app", ""));
    let vip = h1.vip("web");
    for client in [&one, &two] {
        soon("both are called", || match try_spread_at(client, vip, 4)? {
            2 => Ok(()),
            other => Err(format!("{other} of 4")),
        });
    }
    swallow(h3, h1.address(), true);
    // Nobody answers, and the programs do not wait for long.
    until_ejected(&one, h1, "web-2", vip, Duration::from_millis(300));
    assert_eq!(try_spread_at(&one, vip, 10), Ok(0));
    assert_eq!(try_spread_at(&two, vip, 10), Ok(5));
    assert_eq!(events(h2, "endpoint.ejected"), 0);
    bed.on(&["h1", "h2", "h3"], "nobody takes it for dead", |node| {
        let nodes = node.json("node ls");
        match items(&nodes).all(|node| node["state"] == "alive") {
            true => Ok(()),
            false => Err(nodes.to_string()),
        }
    });
    // Namespaces stay for as long as their sockets wait for an answer.
    swallow(h3, h1.address(), false);
    drop((replicas, one, two));
    bed.close();
}

#[test]
fn nobody_is_sent_to_a_backend_that_refuses_by_rules() {
    alone(|| nobody_is_sent_to_a_backend_that_refuses("nft"));
}

#[test]
fn nobody_is_sent_to_a_backend_that_refuses_by_programs() {
    alone(|| {
        if has_ebpf() {
            nobody_is_sent_to_a_backend_that_refuses("ebpf");
        }
    });
}

#[test]
fn a_broken_path_between_two_hosts_is_those_hosts_affair_with_rules() {
    alone(|| a_broken_path_between_two_hosts_is_those_hosts_affair("nft"));
}

#[test]
fn a_broken_path_between_two_hosts_is_those_hosts_affair_with_programs() {
    alone(|| {
        if has_ebpf() {
            a_broken_path_between_two_hosts_is_those_hosts_affair("ebpf");
        }
    });
}
