//! Draining: no new connections from any host, an end to the open ones, and what is said about it.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use netns_harness::{Inside as _, Output, Signal};
use serde_json::Value;
use weft_tests::{slower, weft_binary};

use super::{
    bed::{Bed, COMMAND, Endpoint, Node, alone, has_ebpf, items, soon, text},
    traffic::{Stream, call, spread},
};

/// The backend of `web` of this name, as `node` shows it.
fn backend(node: &Node, name: &str) -> Value {
    let detail = node.json("service inspect web");
    let mut backends = items(&detail["backends"]);
    let found = backends.find(|backend| backend["endpoint_name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {detail}")).clone()
}

fn clients(backend: &Value) -> Vec<(String, u64)> {
    let clients = items(&backend["clients"]).filter(|client| client["open"] != 0);
    let one = |client: &Value| {
        (
            text(&client["node_name"]).to_owned(),
            client["open"].as_u64().unwrap(),
        )
    };
    clients.map(one).collect()
}

/// Who answers from every host now; nobody fails to.
fn answering(clients: &[Endpoint], vip: std::net::IpAddr) -> Vec<BTreeSet<String>> {
    let names = |client: &Endpoint| spread(&client.sandbox, vip, 6).into_keys().collect();
    clients.iter().map(names).collect()
}

/// Streams to `name` from a client: as many as it takes to meet it.
fn stream_to(name: &str, client: &Endpoint, vip: std::net::IpAddr) -> Stream {
    soon(format!("a stream to {name}"), || {
        match call(&client.sandbox, vip).map_err(|error| error.to_string())? {
            call if call.answer.name == name => Ok(Stream::over(name, call)),
            call => Err(call.answer.name),
        }
    })
}

fn drains(datapath: &'static str) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2", "h3"]);
    let [h1, h2, h3] = [&bed["h1"], &bed["h2"], &bed["h3"]];
    h1.weft("network create app");
    h1.weft("service create --network app web");
    let replicas = [
        h1.replica("web-1", "app", "--service web"),
        h2.replica("web-2", "app", "--service web"),
    ];
    let from = ["h1", "h2", "h3"].map(|host| bed[host].connected(&format!("c-{host}"), "app", ""));
    let vip = h1.vip("web");
    let [one, both] = [vec!["web-2"], vec!["web-1", "web-2"]].map(|names| {
        let names: BTreeSet<String> = names.into_iter().map(str::to_owned).collect();
        vec![names; 3]
    });
    soon("both from everywhere", || match answering(&from, vip) {
        found if found == both => Ok(()),
        found => Err(format!("{found:?}")),
    });

    // What is open is shown, from where, on every host.
    let kept = stream_to("web-1", &from[2], vip);
    soon("one open connection from h3", || {
        let shown = backend(h2, "web-1");
        match clients(&shown) {
            found if found == [("h3".to_owned(), 1)] => Ok(()),
            found => Err(format!("{found:?}")),
        }
    });

    // It does not wait for long, says how to go on, and leaves it draining.
    let mut command = Command::new(weft_binary());
    command.args(["service", "drain", "web-1", "--grace", "10m"]);
    let waiting = h2.host.spawn(&mut command, Output::Keep).unwrap();
    let draining = |node: &Node| {
        let shown = backend(node, "web-1");
        match text(&shown["state"]) {
            "draining" => Ok(()),
            other => Err(other.to_owned()),
        }
    };
    bed.everywhere("draining", draining);
    waiting.signal(Signal::SIGINT).unwrap();
    assert_eq!(waiting.wait(COMMAND).unwrap().code(), Some(1));
    soon("a way on", || match waiting.stderr() {
        said if said.contains("stays draining") && said.contains("weft service activate web-1") => Ok(()),
        said => Err(said),
    });
    assert_eq!(answering(&from, vip), one, "no new connections, at once");
    let reason = backend(h3, "web-1");
    assert_eq!(reason["reason"], "asked for on h2");

    // When time is up, what is open is reset, and that is said.
    let rounds = kept.rounds();
    let ended = h3.try_weft("service drain web-1 --grace 1s");
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (0, "drained web-1 on app, node h1: 1 connection reset\n")
    );
    assert!(kept.rounds() > rounds, "it went on until then");
    let error = kept.broken();
    println!("{datapath}: what was open when time was up: {error}");
    assert_eq!(answering(&from, vip), one);
    assert_eq!(backend(h1, "web-1")["state"], "drained");
    h2.weft("service activate web-1");
    assert_eq!(answering(&from, vip), both);

    // What ends by itself ends well.
    let kept = stream_to("web-1", &from[0], vip);
    let mut command = Command::new(weft_binary());
    command.args(["service", "drain", "web-1", "--grace", "1m"]);
    let waiting = h2.host.spawn(&mut command, Output::Keep).unwrap();
    bed.everywhere("draining", draining);
    let rounds = kept.rounds();
    kept.reaches(rounds + 20);
    kept.close();
    assert!(waiting.wait(COMMAND).unwrap().success());
    soon("what it said", || match waiting.stdout() {
        said if said == "drained web-1 on app, node h1: no connection is open\n" => Ok(()),
        said => Err(said),
    });
    h1.weft("service activate web-1");

    // A node with all its backends.
    let said = h3.weft("node drain h1");
    assert!(said.contains("1 backend: no connection is open"), "{said}");
    assert_eq!(answering(&from, vip), one);
    let nodes = h2.json("node ls");
    let shown: Vec<&str> = items(&nodes).map(|node| text(&node["availability"])).collect();
    assert_eq!(shown, ["drained", "active", "active"]);
    h1.weft("node activate");
    assert_eq!(answering(&from, vip), both);

    // Detaching drains first, and takes no time where nothing is open.
    let begin = Instant::now();
    h1.weft("network disconnect app web-1");
    println!(
        "{datapath}: a backend without connections was detached in {:.1?}",
        begin.elapsed()
    );
    assert!(begin.elapsed() < slower(Duration::from_secs(1)));
    assert_eq!(answering(&from, vip), one);
    let kept = stream_to("web-2", &from[1], vip);
    let begin = Instant::now();
    let said = h2.weft("network disconnect --grace 1500ms app web-2");
    assert!(
        begin.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        begin.elapsed()
    );
    assert!(said.contains("1 still open and reset"), "{said}");
    let _ = kept.broken();
    assert!(call(&from[0].sandbox, vip).is_err(), "nobody is left");
    drop((replicas, from));
    bed.close();
}

#[test]
fn a_drained_backend_gets_no_new_connections_from_anywhere_on_nft() {
    alone(|| drains("nft"));
}

#[test]
fn a_drained_backend_gets_no_new_connections_from_anywhere_on_ebpf() {
    alone(|| {
        if has_ebpf() {
            drains("ebpf");
        }
    });
}
