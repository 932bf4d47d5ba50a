//! What users of Docker Swarm reported about names, virtual addresses and published ports, by the numbers of
//! <https://github.com/moby/moby/issues>. Other modules have more of them:
//!
//! | reports | tested by |
//! | --- | --- |
//! | 35548, 36797: backends of a dead host are called | `shop`: `the_replicas_of_a_killed_host_leave_…` |
//! | 25526, 27143: the caller's address is lost at a published port | `publish` |
//! | 39665: it is lost within a network | `scenarios`, and `shop`: `the_backend_sees_the_clients_own_address` |
//! | 24377, 24398: a backend does not reach its own service | `scenarios` |
//! | 38841, 26672, 30321: connections lost while replicas are replaced | `rolling`, `drain` |
//! | 24379: no IPv6 | `scenarios` |
//! | 26235, 34939: a reload of the firewall takes the rules along | `repair` |
//! | no choice of scheduler, weights or affinity (a wish in 25526) | `scenarios` |

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use netns_harness::{Inside as _, Sandbox};
use socket2::{Domain, Socket, Type};

use super::{
    bed::{Bed, COMMAND, Endpoint, Node, alone, has_ebpf, items, soon},
    traffic::{PATIENCE, PORT, ask, call, call_at, datagrams, spread},
};

/// What the network's resolver answers: address and TTL of each record, as often as it is there.
fn answers(from: &Sandbox, name: &str) -> Result<Vec<(IpAddr, u32)>, String> {
    let mut dig = Command::new("dig");
    dig.args(["+noall", "+answer", "+time=2", "+tries=3"])
        .args(["@169.254.53.53", name, "A"]);
    let ended = from.exec(&mut dig, COMMAND).unwrap();
    let lines = ended.success().map_err(|error| error.to_string())?.stdout;
    let record = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((fields.get(4)?.parse().ok()?, fields[1].parse().ok()?))
    };
    Ok(lines.lines().filter_map(record).collect())
}

/// Whom a name leads to.
pub fn try_addresses(from: &Sandbox, name: &str) -> Result<BTreeSet<IpAddr>, String> {
    Ok(answers(from, name)?
        .into_iter()
        .map(|(address, _)| address)
        .collect())
}

fn addresses(from: &Sandbox, name: &str) -> BTreeSet<IpAddr> {
    try_addresses(from, name).unwrap()
}

/// Two hosts with a backend of `web` each, and a client on the first.
fn shop(flags: &str) -> (Bed, [Endpoint; 2], Endpoint) {
    shop_with("auto", flags)
}

fn shop_with(datapath: &'static str, flags: &str) -> (Bed, [Endpoint; 2], Endpoint) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2"]);
    bed["h1"].weft("network create app");
    bed["h1"].weft(&format!("service create --network app {flags} web"));
    let webs = [("h1", "web-1"), ("h2", "web-2")]
        .map(|(host, name)| bed[host].replica(name, "app", "--service web --alias both --alias both"));
    let client = bed["h1"].connected("client", "app", "");
    soon("two backends", || match backends(&bed["h1"]) {
        2 => Ok(()),
        count => Err(count),
    });
    (bed, webs, client)
}

fn backends(node: &Node) -> usize {
    items(&node.json("service inspect web")["backends"]).count()
}

fn close(bed: Bed, webs: [Endpoint; 2], client: Endpoint) {
    bed.all_well();
    drop((webs, client));
    bed.close();
}

#[test]
fn moby_28836_an_answer_has_each_address_once_and_is_not_kept_for_long() {
    alone(|| {
        let (bed, webs, client) = shop("");
        // Attached again and again, under a name that is given twice.
        for _ in 0..3 {
            bed["h2"].weft("network disconnect --grace 0s app web-2");
            bed["h2"].weft("network connect app web-2 --service web --alias both --alias both");
        }
        for name in ["both", "tasks.web", "web", "web-2"] {
            let found = answers(&client.sandbox, name).unwrap();
            let once: BTreeSet<_> = found.iter().collect();
            assert_eq!(once.len(), found.len(), "{name}: {found:?}");
            assert!(
                !found.is_empty() && found.iter().all(|(_, ttl)| *ttl <= 1),
                "{name}: {found:?}"
            );
        }
        close(bed, webs, client);
    });
}

#[test]
fn moby_38575_a_change_of_the_mode_leaves_one_kind_of_answer() {
    alone(|| {
        let (bed, webs, client) = shop("");
        let own: BTreeSet<IpAddr> = webs.iter().map(Endpoint::address).collect();
        for mode in ["dnsrr", "vip", "dnsrr"] {
            bed["h2"].weft(&format!("service update --endpoint-mode {mode} web"));
            let wanted = match mode {
                "vip" => [bed["h1"].vip("web")].into(),
                _ => own.clone(),
            };
            assert_eq!(addresses(&client.sandbox, "web"), wanted, "{mode}");
        }
        close(bed, webs, client);
    });
}

#[test]
fn moby_41668_28564_a_name_is_its_virtual_address_and_that_works_after_every_agent_died_at_once() {
    alone(|| {
        let (bed, webs, client) = shop("--port 80:8000 --publish 8080:80");
        let outside = bed.outsider("outside");
        let vip = bed["h1"].vip("web");
        for _ in 0..2 {
            bed.nodes().for_each(Node::kill_agent);
            bed.nodes().for_each(Node::start_agent);
            bed.nodes().for_each(Node::await_agent);
            // From the first answer on.
            for node in bed.nodes() {
                assert_eq!(node.vip("web"), vip);
            }
            soon("a name", || match try_addresses(&client.sandbox, "web")? {
                found if found == [vip].into() => Ok(()),
                found => Err(format!("{found:?} is not {vip}")),
            });
            bed.all_well();
            for _ in 0..4 {
                call_at(&client.sandbox, vip, 80).unwrap();
                for node in bed.nodes() {
                    call_at(&outside, node.address(), 8080).unwrap();
                }
            }
        }
        close(bed, webs, client);
    });
}

#[test]
fn moby_34596_50129_what_changed_while_an_agent_was_away_is_in_names_and_behind_the_address() {
    alone(|| {
        let (bed, [first, second], client) = shop("");
        let vip = bed["h1"].vip("web");
        bed["h1"].kill_agent();
        let third = bed["h2"].replica("web-3", "app", "--service web");
        bed["h2"].weft("network disconnect --grace 0s app web-2");
        bed["h1"].restart_agent();
        let wanted: BTreeSet<IpAddr> = [first.address(), third.address()].into();
        soon("the names", || {
            match try_addresses(&client.sandbox, "tasks.web")? {
                found if found == wanted => Ok(()),
                found => Err(format!("{found:?}")),
            }
        });
        assert_eq!(addresses(&client.sandbox, "web-2"), BTreeSet::new());
        soon("the backends", || {
            let found = super::traffic::try_spread(&client.sandbox, vip, 6)?;
            if found.keys().eq(["web-1", "web-3"]) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
        drop(third);
        close(bed, [first, second], client);
    });
}

#[test]
fn moby_36752_42833_a_name_is_there_while_others_come_and_go() {
    alone(|| {
        let (bed, webs, client) = shop("");
        let vip = bed["h1"].vip("web");
        let (_stop, stopped) = std::sync::mpsc::channel::<()>();
        let from = client.sandbox.clone();
        let asking = std::thread::spawn(move || {
            let mut wrong = Vec::new();
            let mut asked = 0;
            while matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
                asked += 1;
                let found = addresses(&from, "web");
                if found != [vip].into() {
                    wrong.push(found);
                }
            }
            (asked, wrong)
        });
        for round in 0..6 {
            let name = format!("passing-{round}");
            let passing = bed["h2"].connected(&name, "app", "--service web");
            soon(format!("{name} on h1"), || {
                match addresses(&client.sandbox, &name) {
                    found if found == [passing.address()].into() => Ok(()),
                    found => Err(format!("{found:?}")),
                }
            });
            bed["h2"].weft(&format!("network disconnect --grace 0s app {name}"));
            soon(format!("no {name} on h1"), || {
                match addresses(&client.sandbox, &name) {
                    found if found.is_empty() => Ok(()),
                    found => Err(format!("{found:?}")),
                }
            });
        }
        drop(_stop);
        let (asked, wrong) = asking.join().unwrap();
        assert!(
            asked > 0 && wrong.is_empty(),
            "{} of {asked}: {wrong:?}",
            wrong.len()
        );
        close(bed, webs, client);
    });
}

/// A client that sends on and on from one port gets its answers elsewhere once its backend is gone.
fn datagrams_leave_a_backend_that_is_gone(datapath: &'static str) {
    let (bed, webs, client) = shop_with(datapath, "");
    let vip = bed["h1"].vip("web");
    let socket = datagrams(&client.sandbox, vip);
    let before = ask(&socket).unwrap().name;
    let (host, other) = if before == "web-1" {
        ("h1", "web-2")
    } else {
        ("h2", "web-1")
    };
    bed[host].weft(&format!("network disconnect --grace 0s app {before}"));
    // On eBPF a connected socket is told that its peer is gone; a program then connects again.
    let after = ask(&socket).or_else(|error| {
        assert_eq!(datapath, "ebpf", "{error}");
        ask(&datagrams(&client.sandbox, vip))
    });
    assert_eq!(after.unwrap().name, other);
    drop(socket);
    close(bed, webs, client);
}

#[test]
fn moby_36878_datagrams_leave_a_backend_that_is_gone_on_nft() {
    alone(|| datagrams_leave_a_backend_that_is_gone("nft"));
}

#[test]
fn moby_36878_datagrams_leave_a_backend_that_is_gone_on_ebpf() {
    alone(|| {
        if has_ebpf() {
            datagrams_leave_a_backend_that_is_gone("ebpf");
        }
    });
}

/// How often a namespace has sent a SYN again.
fn syn_retransmissions(of: &Sandbox) -> u64 {
    let text = of
        .run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))
        .unwrap()
        .unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let [names, values] = [lines.next().unwrap(), lines.next().unwrap()];
    let place = names.split(' ').position(|name| name == "TCPSynRetrans").unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
}

/// Connections from one source port, one right after the other: a table that remembers the last one must not delay the next.
fn a_source_port_that_is_used_again_connects_at_once(datapath: &'static str) {
    let (bed, webs, client) = shop_with(datapath, "");
    let to = SocketAddr::new(bed["h1"].vip("web"), PORT);
    let from = &client.sandbox;
    let before = syn_retransmissions(from);
    for round in 0..40 {
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            // Half of them end with a reset, half in TIME_WAIT at the other end.
            socket.set_linger((round % 2 == 0).then_some(Duration::ZERO))?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], 34567)).into())?;
            socket.connect_timeout(&to.into(), *PATIENCE)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(*PATIENCE))?;
            let mut line = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(&stream), &mut line)?;
            std::io::Result::Ok(line)
        };
        match from.run(connect).unwrap() {
            Ok(line) => assert!(line.starts_with("web-"), "{line}"),
            // Its own last connection to that backend is in TIME_WAIT: so without a virtual address too.
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {}
            Err(error) => panic!("{datapath}, round {round}: {error}"),
        }
    }
    assert_eq!(
        syn_retransmissions(from),
        before,
        "{datapath}: somebody had to wait"
    );
    close(bed, webs, client);
}

#[test]
fn moby_35082_a_source_port_that_is_used_again_connects_at_once_on_nft() {
    alone(|| a_source_port_that_is_used_again_connects_at_once("nft"));
}

#[test]
fn moby_35082_a_source_port_that_is_used_again_connects_at_once_on_ebpf() {
    alone(|| {
        if has_ebpf() {
            a_source_port_that_is_used_again_connects_at_once("ebpf");
        }
    });
}

#[test]
fn moby_46636_30820_rules_are_in_tables_of_our_own_and_do_not_grow_with_the_endpoints() {
    alone(|| {
        let (bed, webs, client) = shop_with("nft", "--port 80:8000 --publish 8080:80");
        let rules = |node: &Node| {
            let mut nft = Command::new("nft");
            nft.args(["list", "ruleset"]);
            node.host
                .exec(&mut nft, COMMAND)
                .unwrap()
                .success()
                .unwrap()
                .stdout
        };
        let tables = |ruleset: &str| -> BTreeSet<String> {
            ruleset
                .lines()
                .filter(|line| line.starts_with("table "))
                .map(str::to_owned)
                .collect()
        };
        let before = rules(&bed["h1"]);
        let foreign = |table: &String| !table.starts_with("table inet weft");
        assert!(!tables(&before).iter().any(foreign), "{:?}", tables(&before));
        let more: Vec<Endpoint> = (0..5)
            .map(|n| bed["h1"].connected(&format!("more-{n}"), "app", ""))
            .collect();
        assert_eq!(rules(&bed["h1"]).lines().count(), before.lines().count());
        drop(more);
        close(bed, webs, client);
    });
}

#[test]
fn moby_32195_a_service_that_is_made_anew_under_its_name_serves_at_once() {
    alone(|| {
        let (bed, webs, client) = shop("");
        for _ in 0..3 {
            bed["h1"].weft("service rm web");
            bed["h2"].weft("service create --network app web");
            // The endpoints have stayed, and so has the service that they are of.
            let found = spread(&client.sandbox, bed["h1"].vip("web"), 6);
            assert_eq!(found.len(), 2, "{found:?}");
            assert_eq!(addresses(&client.sandbox, "web"), [bed["h2"].vip("web")].into());
        }
        assert!(call(&client.sandbox, bed["h1"].vip("web")).is_ok());
        close(bed, webs, client);
    });
}
