//! Published ports: from outside, from the hosts themselves and from sandboxes, through every host.

mod changes;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    process::Command,
};

use netns_harness::{Host, Inside};

use super::{
    bed::{Bed, COMMAND, Endpoint, Node, alone, items, soon},
    traffic::{Answer, Server, ask, call_at, datagrams_at},
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

/// Whether a node says that so many connections are open to a backend.
fn open_to(name: &str, node: &Node, wanted: u64) -> Result<(), String> {
    let detail = node.json("service inspect web");
    let mut backends = items(&detail["backends"]).filter(|backend| backend["endpoint_name"] == name);
    match backends
        .next()
        .and_then(|backend| backend["open_connections"].as_u64())
    {
        Some(open) if open == wanted => Ok(()),
        _ => Err(detail["backends"].to_string()),
    }
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
        // What came in by it is open to the backend like anything else.
        let kept = call_at(&outside, addresses(&bed["h1"].host)[0], PUBLISHED).unwrap();
        for node in bed.nodes() {
            soon("one open connection", || open_to("on-h1", node, 1));
        }
        let said = bed["h3"].weft("service drain --grace 0s on-h1");
        assert!(said.contains("1 connection reset"), "{said}");
        drop(kept);
        bed["h3"].weft("service activate on-h1");
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
        // In force when the command returned, also where the host had no address of the network yet.
        let at = |to| Ok(call_at(&outside, to, 8000)?.answer);
        let [h1, h3] = ["h1", "h3"].map(|host| addresses(&bed[host].host)[0]);
        for to in [h1, h3] {
            everybody(&at, to, &["on-h1", "on-h2"]);
        }
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
