//! While hosts, agents, services and ports come and go.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use netns_harness::{Host, Inside};

use super::{
    super::{
        bed::{Bed, COMMAND, Node, alone, items, soon, text},
        traffic::{Call, Stream, all_go_on, ask, call_at, datagrams_at},
    },
    BOTH, HOSTS, PUBLISHED, PUBLISHED_UDP, addresses, answered_by, everybody, refused, shop, tcp, udp,
};

/// The rules of a host and of what Weft made there, with the numbers that a rewrite would change.
fn rulesets(node: &Node) -> String {
    let list = |prefix: &[&str]| {
        let words = [prefix, &["nft", "-a", "list", "ruleset"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        node.host
            .exec(&mut command, COMMAND)
            .unwrap()
            .success()
            .unwrap()
            .stdout
    };
    let mut all = list(&[]);
    let inner = |path: std::fs::DirEntry| format!("--net={}", path.path().display());
    let spaces: Vec<String> = node
        .host
        .run(|| {
            std::fs::read_dir("/run/weft/netns")
                .unwrap()
                .flatten()
                .map(inner)
                .collect()
        })
        .unwrap();
    spaces.iter().for_each(|space| all += &list(&["nsenter", space]));
    // Counters count on.
    let text = |line: &str| line.split(" packets ").next().unwrap_or_default().to_owned();
    all.lines().map(text).collect::<Vec<_>>().join("\n")
}

/// Sends more than any buffer holds and gets it back: packets of full size pass.
fn in_bulk(from: &impl Inside, to: IpAddr) {
    const SIZE: usize = 2 << 20;
    let Call { stream, .. } = call_at(from, to, PUBLISHED).unwrap();
    let mut back = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let sender = std::thread::spawn(move || {
        let mut stream = stream;
        stream
            .write_all(&sent)
            .and_then(|()| stream.shutdown(Shutdown::Write))
    });
    let mut got = Vec::new();
    back.read_to_end(&mut got).unwrap();
    sender.join().unwrap().unwrap();
    assert!(
        got == expected,
        "{} of {SIZE} bytes came back from {to}",
        got.len()
    );
}

#[test]
fn hosts_come_and_go_and_conversations_go_on_elsewhere() {
    alone(|| {
        let mut bed = Bed::dual_cluster(&["h1", "h2"]);
        let outside = bed.outsider("outside");
        let webs = shop(&bed, "--publish 8080:80 --publish 5353:53/udp");
        let all = ["on-h1", "on-h2"];
        bed.add_hosts(&["h3"]);
        let before = bed["h3"].traces();
        bed["h3"].weft(&bed["h1"].join_command(""));
        let h3 = addresses(&bed["h3"].host);
        for to in &h3 {
            answered_by("a new host", &|to| tcp(&outside, to), *to, &all);
            in_bulk(&outside, *to);
        }
        // A client's datagrams are one conversation, with one backend for as long as that is there.
        let sockets: Vec<_> = h3
            .iter()
            .map(|to| datagrams_at(&outside, *to, PUBLISHED_UDP))
            .collect();
        let first: Vec<String> = sockets.iter().map(|socket| ask(socket).unwrap().name).collect();
        for (socket, first) in sockets.iter().zip(&first) {
            (0..4).for_each(|_| assert_eq!(ask(socket).unwrap().name, *first));
        }
        bed["h1"].weft("network disconnect app on-h1");
        for socket in &sockets {
            soon("the other backend", || match ask(socket) {
                Ok(answer) if answer.name == "on-h2" => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
        bed["h3"].weft("leave");
        h3.iter().for_each(|to| refused(&outside, *to));
        back_to(&bed["h3"], &before);
        drop((webs, sockets));
        bed.close();
    });
}

/// Calls again and again until it is told to stop; returns how often, and what failed.
fn caller(from: &Host, to: IpAddr, stop: &Arc<AtomicBool>) -> JoinHandle<(usize, Vec<String>)> {
    let (from, stop) = (from.clone(), Arc::clone(stop));
    std::thread::spawn(move || {
        let (mut calls, mut failures) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = tcp(&from, to) {
                failures.push(format!("call {calls} of {to}: {error}"));
            }
            calls += 1;
        }
        (calls, failures)
    })
}

#[test]
fn what_changes_beside_them_disturbs_no_call() {
    alone(|| {
        let bed = Bed::dual_cluster(&HOSTS);
        let outside = bed.outsider("outside");
        let webs = shop(&bed, "--publish 8080:80");
        let entries = [addresses(&bed["h1"].host), addresses(&bed["h3"].host)].concat();
        for to in &entries {
            answered_by("before", &|to| tcp(&outside, to), *to, &["on-h1", "on-h2"]);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = entries.iter().map(|to| caller(&outside, *to, &stop)).collect();
        for round in 0..6 {
            // Another port, another endpoint that keeps the client's address, other choices, and all of it away again.
            bed["h2"].weft(&format!(
                "service create --network app --publish 900{round}:80 other"
            ));
            let beside = bed["h1"].connected("beside", "app", "--service other");
            bed["h3"].weft("service update --publish 9100:80 --lb maglev other");
            bed["h1"].weft("service update --lb wrr web");
            bed["h3"].weft("service rm other");
            bed["h1"].weft("service update --lb maglev web");
            bed["h1"].weft("network disconnect app beside");
            beside.sandbox.remove().unwrap();
            bed["h2"].weft("service update --lb rr web");
        }
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            let (calls, failures) = caller.join().unwrap();
            assert!(calls > 20 && failures.is_empty(), "{calls} calls: {failures:?}");
        }
        drop(webs);
        bed.close();
    });
}

#[test]
fn a_closed_port_leaves_nothing() {
    alone(|| {
        let bed = Bed::dual_cluster(&HOSTS);
        let outside = bed.outsider("outside");
        let before = HOSTS.map(|name| bed[name].traces());
        let webs = shop(&bed, BOTH);
        let h3 = addresses(&bed["h3"].host);
        let stream = |to: IpAddr| call_at(&outside, to, PUBLISHED).unwrap();
        for to in &h3 {
            answered_by("h3", &|to| tcp(&outside, to), *to, &["on-h1", "on-h2"]);
        }
        let open: Vec<_> = h3.iter().map(|to| stream(*to)).collect();
        bed["h2"].weft("service update --unpublish web");
        for (node, before) in bed.nodes().zip(&before) {
            for to in addresses(&node.host) {
                refused(&outside, to);
            }
            if node.host.name() == "h3" {
                back_to(node, before);
            }
        }
        // What was open is cut as soon as it is used.
        for call in open {
            let mut stream = call.stream;
            let ended = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        let shares = bed["h1"].json("network inspect app");
        let used: u64 = items(&shares["shares"])
            .filter(|share| text(&share["subnet"]).contains('.'))
            .map(|share| share["used"].as_u64().unwrap())
            .sum();
        assert_eq!(used, 3, "two endpoints and a virtual address");
        for (host, web) in ["h1", "h2"].iter().zip(webs) {
            // A backend is not told of the end of a client that was cut off.
            let mut kill = Command::new("ss");
            kill.args(["--kill", "--tcp", "state", "connected"]);
            web.sandbox.exec(&mut kill, COMMAND).unwrap();
            bed[host].weft(&format!("network disconnect app {}", web.sandbox.name()));
            drop(web.server);
            web.sandbox.remove().unwrap();
        }
        bed["h1"].weft("service rm web");
        bed["h1"].weft("network rm app");
        for (node, before) in bed.nodes().zip(&before) {
            back_to(node, before);
        }
        bed.close();
    });
}

fn back_to(node: &Node, before: &[String]) {
    soon(format!("{} as it was", node.host.name()), || {
        let now = node.traces();
        let more = now.iter().filter(|trace| !before.contains(trace));
        // The route of the underlay comes when duplicates of the host's address have been looked for.
        let more: Vec<_> = more
            .filter(|trace| !trace.starts_with("ipv6_route fd10"))
            .collect();
        if more.is_empty() {
            Ok(())
        } else {
            Err(format!("{more:?}"))
        }
    });
}

#[test]
fn connections_outlive_the_agent_and_its_restart_writes_nothing() {
    alone(|| {
        let bed = Bed::dual_cluster(&HOSTS);
        let outside = bed.outsider("outside");
        let webs = shop(&bed, BOTH);
        let all = ["on-h1", "on-h2"];
        let (h1, h3) = (addresses(&bed["h1"].host), addresses(&bed["h3"].host));
        let entries = [h1, h3].concat();
        let mut streams = Vec::new();
        for to in &entries {
            answered_by("before", &|to| tcp(&outside, to), *to, &all);
            // So that there is a counter for it already.
            answered_by("before", &|to| udp(&outside, to), *to, &all);
            for n in 0..2 {
                let call = call_at(&outside, *to, PUBLISHED).unwrap();
                streams.push(Stream::over(&format!("{to} {n}"), call));
            }
        }
        let before: Vec<_> = bed.nodes().map(rulesets).collect();
        assert!(
            before[0].contains("weft-ports") && before[0].contains("weft-ingress"),
            "{}",
            before[0]
        );
        bed.nodes().for_each(Node::kill_agent);
        all_go_on(&streams, &[], 20);
        for to in &entries {
            everybody(&|to| tcp(&outside, to), *to, &all);
            everybody(&|to| udp(&outside, to), *to, &all);
        }
        bed.nodes().for_each(Node::restart_agent);
        bed.all_well();
        all_go_on(&streams, &[], 20);
        for to in &entries {
            everybody(&|to| tcp(&outside, to), *to, &all);
        }
        let after: Vec<_> = bed.nodes().map(rulesets).collect();
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before, after, "not even handles changed");
        }
        streams.into_iter().for_each(|stream| {
            assert!(stream.close().rounds > 40);
        });
        drop(webs);
        bed.close();
    });
}
