//! Published ports: from outside, from the hosts themselves and from sandboxes, through every host.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    bed::{Bed, COMMAND, Endpoint, Node, alone, items, soon, text},
    traffic::{Answer, Call, Server, Stream, ask, call_at, datagrams_at},
};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
const PUBLISHED: u16 = 8080;
const PUBLISHED_UDP: u16 = 5353;

/// The addresses of a host on the underlay, of both IP versions.
fn addresses(host: &Host) -> Vec<IpAddr> {
    let nets = host.interface("eth0").unwrap().addresses().unwrap();
    let addresses: Vec<IpAddr> = nets.iter().map(ipnet::IpNet::addr).collect();
    let global = |address: &&IpAddr| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    addresses.iter().filter(global).copied().collect()
}

fn tcp(from: &impl Inside, to: IpAddr) -> io::Result<Answer> {
    Ok(call_at(from, to, PUBLISHED)?.answer)
}

/// Each time from another port: what is asked from one port is one conversation.
fn udp(from: &impl Inside, to: IpAddr) -> io::Result<Answer> {
    ask(&datagrams_at(from, to, PUBLISHED_UDP))
}

type Ask<'a> = &'a dyn Fn(IpAddr) -> io::Result<Answer>;

/// Who answers eight times in a row, with the addresses they saw.
fn eight(ask: Ask<'_>, to: IpAddr) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, String> {
    let mut answered: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for n in 0..8 {
        let answer = ask(to).map_err(|error| format!("call {n} of {to}: {error}"))?;
        answered
            .entry(answer.name)
            .or_default()
            .insert(answer.seen.ip().to_canonical());
    }
    Ok(answered)
}

fn everybody(ask: Ask<'_>, to: IpAddr, names: &[&str]) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let answered = eight(ask, to).unwrap_or_else(|error| panic!("{error}"));
    assert!(answered.keys().eq(names), "{to}: {answered:?}");
    answered
}

/// Waits until so many calls in a row are answered by these.
fn answered_by(what: &str, ask: Ask<'_>, to: IpAddr, names: &[&str]) {
    soon(format!("{what}: answers of {names:?}"), || {
        match eight(ask, to)? {
            answered if answered.keys().eq(names) => Ok(()),
            answered => Err(format!("{answered:?}")),
        }
    });
}

fn refused(from: &impl Inside, to: IpAddr) {
    soon(format!("{to} refuses"), || match tcp(from, to) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// A service with a backend on h1 and one on h2, published.
fn shop(bed: &Bed, publish: &str) -> [Endpoint; 2] {
    bed["h1"].weft("network create --ipv6 app");
    bed["h1"].weft(&format!(
        "service create --network app --port 80:8000 --port 53:8000/udp {publish} web"
    ));
    bed.everywhere("the service", |node| {
        match items(&node.json("service ls")).count() {
            1 => Ok(()),
            count => Err(count),
        }
    });
    ["h1", "h2"].map(|host| bed[host].replica(&format!("on-{host}"), "app", "--service web"))
}

const BOTH: &str = "--publish 8080:80 --publish 5353:53/udp";

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

#[test]
fn a_published_port_is_open_on_every_host_and_leads_to_every_backend() {
    alone(|| {
        let bed = Bed::dual_cluster(&HOSTS);
        let outside = bed.outsider("outside");
        let webs = shop(&bed, BOTH);
        let all = ["on-h1", "on-h2"];
        let from_outside = |to| tcp(&outside, to);
        for node in bed.nodes() {
            for to in addresses(&node.host) {
                answered_by(node.host.name(), &from_outside, to, &all);
                answered_by(node.host.name(), &|to| udp(&outside, to), to, &all);
            }
        }
        let listed = bed["h2"].json("service inspect web");
        assert_eq!(
            items(&listed["published"])
                .map(|port| port["host_port"].as_u64().unwrap())
                .collect::<Vec<_>>(),
            [8080, 5353]
        );
        let table = bed["h3"].weft("service ls");
        assert!(
            table.contains("8080:80/tcp") && table.contains("5353:53/udp"),
            "{table}"
        );

        // On its own host a backend sees who called; on another one, the host that let the call in.
        let own: BTreeSet<IpAddr> = addresses(&outside).into_iter().collect();
        for (host, other) in [("h1", "on-h2"), ("h2", "on-h1"), ("h3", "on-h1")] {
            for to in addresses(&bed[host].host) {
                let of_version = |address: &&IpAddr| address.is_ipv4() == to.is_ipv4();
                let client: BTreeSet<IpAddr> = own.iter().filter(of_version).copied().collect();
                for ask in [&from_outside as Ask<'_>, &|to| udp(&outside, to)] {
                    let mut seen = everybody(ask, to, &all);
                    assert_ne!(seen.remove(other).unwrap(), client, "{host} {to}");
                    if host != "h3" {
                        assert_eq!(
                            seen.into_values().collect::<Vec<_>>(),
                            std::slice::from_ref(&client),
                            "{to}"
                        );
                    }
                }
            }
        }
        // From the hosts themselves, by every address that they have.
        for node in bed.nodes() {
            let loopback = ["127.0.0.1", "::1"].map(|text| text.parse().unwrap());
            for to in addresses(&node.host).into_iter().chain(loopback) {
                everybody(&|to| tcp(&node.host, to), to, &all);
                everybody(&|to| udp(&node.host, to), to, &all);
            }
        }
        // From sandboxes: a client, and a backend that may get its own call.
        let client = bed["h3"].connected("client", "app", "");
        bed["h3"].weft("network create --ipv6 other");
        let stranger = bed["h3"].connected("stranger", "other", "");
        for place in [&client, &webs[0], &webs[1], &stranger] {
            for host in ["h1", "h3"] {
                for to in addresses(&bed[host].host) {
                    everybody(&|to| tcp(&place.sandbox, to), to, &all);
                    everybody(&|to| udp(&place.sandbox, to), to, &all);
                }
            }
        }
        // What is not published is closed, and the host's own loopback is not open to others.
        let closed = addresses(&bed["h1"].host)[0];
        let ended = call_at(&outside, closed, 8081).map(drop);
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

        // A backend that goes gets no calls any more, and none fails; without backends a call is refused at once.
        let [first, second] = webs;
        let h3 = addresses(&bed["h3"].host);
        bed["h1"].weft("network disconnect app on-h1");
        drop(first);
        for to in &h3 {
            answered_by("one left", &from_outside, *to, &["on-h2"]);
            answered_by("one left", &|to| udp(&outside, to), *to, &["on-h2"]);
        }
        bed["h2"].weft("network disconnect app on-h2");
        h3.iter().for_each(|to| refused(&outside, *to));
        bed.all_well();
        drop((second, client, stranger));
        bed.close();
    });
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
fn a_port_at_one_address_is_closed_at_all_others() {
    alone(|| {
        let bed = Bed::dual_cluster(&HOSTS);
        let outside = bed.outsider("outside");
        let webs = shop(&bed, "--publish 127.0.0.1:8080:80");
        let h1 = &bed["h1"].host;
        let all = ["on-h1", "on-h2"];
        answered_by(
            "the loopback",
            &|to| tcp(h1, to),
            "127.0.0.1".parse().unwrap(),
            &all,
        );
        refused(h1, "::1".parse().unwrap());
        for to in addresses(h1) {
            refused(&outside, to);
            refused(h1, to);
        }
        // Nor is it reached by naming where it leads to, or the loopback, and sending that to the host.
        let gateway = addresses(h1)[0];
        for net in ["169.254.64.0/18", "127.0.0.8/32"] {
            let mut route = Command::new("ip");
            route.args(["route", "add", net, "via", &gateway.to_string()]);
            outside.exec(&mut route, COMMAND).unwrap().success().unwrap();
        }
        for to in ["169.254.64.1", "127.0.0.8"] {
            let called = tcp(&outside, to.parse().unwrap());
            assert!(called.is_err(), "{to}: {called:?}");
        }
        let stranger = bed["h1"].connected("stranger", "app", "");
        let called = tcp(&stranger.sandbox, "169.254.64.1".parse().unwrap());
        assert!(called.is_err(), "{called:?}");
        drop((webs, stranger));
        bed.close();
    });
}

#[test]
fn a_port_in_mode_host_is_open_where_a_backend_runs() {
    alone(|| {
        let bed = Bed::dual_cluster(&HOSTS);
        let outside = bed.outsider("outside");
        let client: BTreeSet<IpAddr> = addresses(&outside).into_iter().collect();
        let webs = shop(&bed, "--publish 8080:80,mode=host");
        for (host, name) in [("h1", "on-h1"), ("h2", "on-h2")] {
            for to in addresses(&bed[host].host) {
                answered_by(host, &|to| tcp(&outside, to), to, &[name]);
                let seen = everybody(&|to| tcp(&outside, to), to, &[name]);
                assert!(seen[name].is_subset(&client), "{seen:?}");
            }
        }
        for to in addresses(&bed["h3"].host) {
            refused(&outside, to);
        }
        bed["h2"].weft("network disconnect app on-h2");
        for to in addresses(&bed["h2"].host) {
            refused(&outside, to);
        }
        drop(webs);
        bed.close();
    });
}

#[test]
fn a_port_that_is_taken_is_refused_or_left_alone() {
    alone(|| {
        let bed = Bed::dual_cluster(&HOSTS);
        let outside = bed.outsider("outside");
        let h2 = addresses(&bed["h2"].host)[0];
        let webs = shop(&bed, "");
        let refusal = |line: &str, code: i32, words: &str| {
            let ended = bed["h1"].try_weft(line);
            assert_eq!(ended.code, code, "{line}: {ended:?}");
            assert!(ended.stderr.contains(words), "{line}: {}", ended.stderr);
        };
        // Something else waits on it where the command runs.
        let foreign = Server::start(&bed["h1"].host, "foreign");
        refusal(
            "service update --publish 8000:80 web",
            4,
            "port 8000/tcp of this host is in use",
        );
        refusal(
            "service create --network app --publish 8000:53/udp other",
            4,
            "port 8000/udp of this host is in use",
        );
        drop(foreign);
        // What cannot be.
        refusal("service update --publish 8080:81 web", 2, "has no port 81/tcp");
        refusal(
            "service update --publish 8080:80 --publish 127.0.0.1:8080:80 web",
            4,
            "publishes port 8080/tcp twice",
        );
        refusal("service update --publish 4789:53/udp web", 4, "port 4789/udp");
        bed["h1"].weft("network create --internal inner");
        refusal(
            "service create --network inner --publish 8080:80 secret",
            2,
            "is internal",
        );
        // On another host it keeps the port, and the others have it published.
        let foreign = Server::start(&bed["h2"].host, "foreign");
        bed["h1"].weft("service update --publish 8000:80 web");
        refusal(
            "service create --network app --publish 8000:80 other",
            4,
            "is published by service `web`",
        );
        let problem = "port 8000/tcp is in use on this host";
        soon("a problem on h2", || match bed["h2"].problems() {
            problems if problems.len() == 1 && problems[0].contains(problem) => Ok(()),
            problems => Err(problems.join("; ")),
        });
        let at = |to| Ok(call_at(&outside, to, 8000)?.answer);
        let [h1, h3] = ["h1", "h3"].map(|host| addresses(&bed[host].host)[0]);
        answered_by("h1", &at, h1, &["on-h1", "on-h2"]);
        answered_by("h3", &at, h3, &["on-h1", "on-h2"]);
        everybody(&at, h2, &["foreign"]);
        // Once it is gone the port opens with the next change on that host.
        drop(foreign);
        bed["h2"].weft("network create more");
        answered_by("h2", &at, h2, &["on-h1", "on-h2"]);
        bed.all_well();
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
        super::traffic::all_go_on(&streams, &[], 20);
        for to in &entries {
            everybody(&|to| tcp(&outside, to), *to, &all);
            everybody(&|to| udp(&outside, to), *to, &all);
        }
        bed.nodes().for_each(Node::restart_agent);
        bed.all_well();
        super::traffic::all_go_on(&streams, &[], 20);
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
