//! What `service inspect` says was tried and failed, for each backend and each host of clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::IpAddr,
    time::{Duration, Instant},
};

use netns_harness::Inside;
use weft_tests::slower;

use super::{
    bed::{Bed, Endpoint, Node, alone, has_ebpf, items, soon, text},
    traffic::{PORT, answering, call_at, spread},
};

/// By backend and host of clients: tried, and failed.
type Counts = BTreeMap<(String, String), (u64, u64)>;

fn counts(node: &Node) -> Result<Counts, String> {
    let detail = node.json("service inspect web");
    if items(&detail["uncounted"]).count() > 0 {
        return Err(detail["uncounted"].to_string());
    }
    let mut found = Counts::new();
    for backend in items(&detail["backends"]) {
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        let mut sums = (0, 0);
        for client in items(&backend["clients"]) {
            let count = (number(&client["total"]), number(&client["failed"]));
            sums = (sums.0 + count.0, sums.1 + count.1);
            let of = [&backend["endpoint_name"], &client["node_name"]].map(|name| text(name).to_owned());
            found.insert(of.into(), count);
        }
        let shown = ["total_connections", "failed_connections"].map(|sum| number(&backend[sum]));
        assert_eq!(sums, shown.into(), "{backend}");
    }
    // The list has the same in one number for all of them.
    let listed = &node.json("service ls")[0]["counts"];
    let sums = (found.values()).fold((0, 0), |sums, count| (sums.0 + count.0, sums.1 + count.1));
    let shown = ["total", "failed"].map(|sum| listed[sum].as_u64().unwrap());
    match items(&listed["uncounted"]).count() {
        0 if sums == shown.into() => Ok(found),
        _ => Err(format!("{sums:?}, and {listed} in the list")),
    }
}

fn refused(from: &impl Inside, to: IpAddr, port: u16) {
    let error = call_at(from, to, port).err().expect("nobody listens there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

fn every_host_says_what_its_clients_tried(datapath: &'static str) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2", "h3"]);
    let [h1, h2, h3] = [&bed["h1"], &bed["h2"], &bed["h3"]];
    h1.weft("network create app");
    h1.weft("service create --network app web");
    let outside = bed.outsider("outside");
    let replicas = ["web-1", "web-2"].map(|name| h1.replica(name, "app", "--service web"));
    let [one, two] = [("one", h1), ("two", h3)].map(|(name, node)| node.connected(name, "app", ""));
    let vip = h1.vip("web");
    let shown = |wanted: &Counts| {
        soon("what was tried", || match counts(h2)? {
            found if found == *wanted => Ok(()),
            found => Err(format!("{found:?} instead of {wanted:?}")),
        });
    };
    // Round robin shares an even number evenly, whichever backend is first.
    let even = |from: &Endpoint, calls| {
        let answered = spread(&from.sandbox, vip, calls);
        assert!(
            answered.len() == 2 && answered.values().all(|n| 2 * n == calls),
            "{answered:?}"
        );
    };
    answering(&one.sandbox, vip, 2);
    answering(&two.sandbox, vip, 2);
    // What was tried until both had answered is not known; from here on it is.
    let mut expected = soon("what was tried so far", || counts(h2));
    let hosts: BTreeSet<&str> = expected.keys().map(|(_, host)| host.as_str()).collect();
    assert_eq!(hosts, ["h1", "h3"].into());
    let mut tried = |node: &str, total: u64, failed: u64| {
        for backend in ["web-1", "web-2"] {
            let of = (backend.to_owned(), node.to_owned());
            let count = expected.entry(of).or_default();
            *count = (count.0 + total, count.1 + failed);
        }
        expected.clone()
    };
    even(&one, 6);
    even(&two, 4);
    tried("h1", 3, 0);
    shown(&tried("h3", 2, 0));
    (0..4).for_each(|_| refused(&two.sandbox, vip, PORT + 1));
    shown(&tried("h3", 2, 2));

    // What comes in by a published port counts on the host that let it in.
    h1.weft(&format!(
        "service update --publish 8080:{PORT} --publish 8081:{} web",
        PORT + 1
    ));
    for _ in 0..4 {
        call_at(&outside, h2.address(), 8080).unwrap();
    }
    (0..2).for_each(|_| refused(&outside, h2.address(), 8081));
    shown(&tried("h2", 3, 1));

    // The counters are the kernel's, and those of a sandbox that goes are kept by its agent.
    h3.kill_agent();
    h3.restart_agent();
    shown(&tried("h3", 0, 0));
    even(&two, 2);
    let last = tried("h3", 1, 0);
    shown(&last);
    h3.weft("network disconnect app two");
    shown(&last);
    let table = h2.weft("service inspect web");
    assert!(table.contains("connections by the clients' hosts"), "{table}");

    // Who does not answer is named, and holds nobody up for long.
    h3.kill_agent();
    let begun = Instant::now();
    let ended = h2.try_weft("service ls");
    assert!(
        begun.elapsed() < slower(Duration::from_secs(5)),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let named = ended.stderr.contains("warning: not counted on node h3");
    assert!(named, "{}{}", ended.stdout, ended.stderr);
    h3.restart_agent();
    drop((replicas, one, two));
    bed.close();
}

#[test]
fn every_host_says_what_its_clients_tried_on_nft() {
    alone(|| every_host_says_what_its_clients_tried("nft"));
}

#[test]
fn every_host_says_what_its_clients_tried_on_ebpf() {
    alone(|| {
        if has_ebpf() {
            every_host_says_what_its_clients_tried("ebpf");
        }
    });
}
