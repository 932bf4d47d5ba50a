//! What somebody else breaks is made whole, long before everything is read back every half minute.

use std::{collections::BTreeSet, fs, process::Command};

use netns_harness::Inside as _;
use weft_netlink::netns::Netns;

use super::{
    bed::{Bed, Node, alone, soon},
    metrics::metrics,
    swarm::try_addresses,
    traffic::{call, call_at},
};

/// The namespace of the one network on a host; repair may just have taken it away to make it anew.
pub fn network(node: &Node) -> Result<Netns, String> {
    let find = || {
        let mut entries = fs::read_dir("/run/weft/netns").map_err(|error| error.to_string())?;
        let entry = entries.next().and_then(Result::ok).ok_or("there is none")?;
        Netns::open(entry.path()).map_err(|error| error.to_string())
    };
    node.host.run(find).unwrap()
}

/// Runs a command that must succeed, and returns what it printed.
pub fn run(netns: &Netns, line: &str) -> String {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    let output = netns.run(|| command.output()).unwrap().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The lines of a namespace's rules, in whatever order, without what counts.
pub fn rules(netns: &Netns) -> BTreeSet<String> {
    let line = |line: &str| {
        let counts = |word: &str| word.chars().all(|c| c.is_ascii_digit());
        let words: Vec<&str> = line.split_whitespace().filter(|word| !counts(word)).collect();
        words.join(" ")
    };
    run(netns, "nft list ruleset").lines().map(line).collect()
}

/// Breaks something, and waits until the rules are what they were and all works.
fn recovers(netns: &Netns, damage: &str, before: &BTreeSet<String>, works: impl Fn() -> Result<(), String>) {
    run(netns, damage);
    soon(format!("repair after `{damage}`"), || {
        let now = rules(netns);
        let differ: Vec<&String> = now.symmetric_difference(before).collect();
        if !differ.is_empty() {
            return Err(format!("{differ:#?}"));
        }
        works()
    });
}

#[test]
fn moby_26235_flushed_rules_are_written_again_at_once() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let outside = bed.outsider("outside");
        let h1 = &bed["h1"];
        h1.weft("network create app");
        h1.weft("service create --network app --port 80:8000 --publish 8080:80 web");
        let web = bed["h2"].replica("web-2", "app", "--service web");
        let client = h1.connected("client", "app", "");
        let works = || {
            let published = call_at(&outside, h1.address(), 8080).map(drop);
            published.map_err(|error| format!("published: {error}"))?;
            let called = call_at(&client.sandbox, h1.vip("web"), 80).map(drop);
            called.map_err(|error| format!("the address: {error}"))
        };
        soon("the service", works);
        let host = h1.host.run(Netns::current).unwrap().unwrap();
        // More often than everything is read back anyway, which could hide one.
        for _ in 0..3 {
            let on_host = rules(&host);
            recovers(&host, "nft flush ruleset", &on_host, works);
            // A firewall's reload may empty tables and leave them.
            recovers(&host, "nft flush table inet weft-ports", &on_host, works);
            run(&network(h1).unwrap(), "nft flush ruleset");
            soon("repair of the network's rules", works);
        }
        drop(host);
        bed.all_well();
        drop((web, client));
        bed.close();
    });
}

#[test]
fn names_of_programs_that_somebody_took_away_come_back_and_no_call_fails() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let h1 = &bed["h1"];
        h1.weft("network create app");
        h1.weft("service create --network app --port 80:8000 web");
        let web = bed["h2"].replica("web-2", "app", "--service web");
        let client = h1.connected("client", "app", "");
        let works = || call_at(&client.sandbox, h1.vip("web"), 80).map(drop);
        soon("the service", || works().map_err(|error| error.to_string()));
        let names = || -> BTreeSet<_> {
            let entries = || fs::read_dir("/run/weft/bpf").into_iter().flatten();
            let names = || entries().flatten().map(|entry| entry.file_name()).collect();
            h1.host.run(names).unwrap()
        };
        let before = names();
        assert!(!before.is_empty(), "no eBPF datapath");
        // What is held by the agent goes on.
        for damage in [
            "find /run/weft/bpf -type f ! -name *.debug -delete",
            "umount /run/weft/bpf",
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", damage]);
            assert!(h1.host.run(|| command.status()).unwrap().unwrap().success());
            soon(format!("repair after `{damage}`"), || {
                works().expect(damage);
                match names() {
                    now if now == before => Ok(()),
                    now => Err(format!("{now:?} is not {before:?}")),
                }
            });
        }
        bed.all_well();
        drop((web, client));
        bed.close();
    });
}

#[test]
fn links_that_somebody_deleted_or_took_down_come_back() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let h1 = &bed["h1"];
        h1.weft("network create app");
        let web = bed["h2"].replica("web-2", "app", "");
        let client = h1.connected("client", "app", "");
        let links = |network: &Netns| -> BTreeSet<String> {
            let listed = run(network, "ip -br link");
            // Without the other end, whose number says nothing.
            let link = |line: &str| -> String {
                let words: Vec<&str> = line.split_whitespace().collect();
                format!("{} {}", words[0].split('@').next().unwrap(), words[1])
            };
            listed.lines().map(link).collect()
        };
        let works = || {
            call(&client.sandbox, web.address()).map_err(|error| error.to_string())?;
            match try_addresses(&client.sandbox, "web-2")? {
                found if found == [web.address()].into() => Ok(()),
                found => Err(format!("{found:?}")),
            }
        };
        soon("the network", works);
        let before = links(&network(h1).unwrap());
        for damage in [
            "ip link set br0 down",
            "ip link set vx0 nomaster",
            "ip link delete vx0",
            "ip link delete br0",
        ] {
            run(&network(h1).unwrap(), damage);
            soon(format!("repair after `{damage}`"), || {
                let now = links(&network(h1)?);
                if now != before {
                    return Err(format!("{now:?} is not {before:?}"));
                }
                works()
            });
        }
        // Without its name and number. It may just have been taken away to be made anew.
        let flags = || -> Result<String, String> {
            let mut command = Command::new("bridge");
            command.args(["-d", "link", "show", "dev", "vx0"]);
            let shown = network(h1)?.run(|| command.output()).unwrap().unwrap();
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            let flags = shown.split_once("\n").map(|(_, flags)| flags.to_owned());
            flags.ok_or_else(|| format!("no flags: {shown}"))
        };
        let before = flags().unwrap();
        for damage in ["learning on", "flood on", "neigh_suppress off"] {
            run(
                &network(h1).unwrap(),
                &format!("bridge link set dev vx0 {damage}"),
            );
            soon(format!("repair after `{damage}`"), || match flags()? {
                now if now == before => Ok(()),
                now => Err(now),
            });
        }
        bed.all_well();
        drop((web, client));
        bed.close();
    });
}

/// What an agent does itself is no damage, and few of the things it does need a look at all the others.
#[test]
fn who_attaches_many_endpoints_does_not_look_at_each_of_them_with_each() {
    alone(|| {
        let bed = Bed::cluster(&["h1"]);
        let h1 = &bed["h1"];
        h1.weft("network create app");
        let clients: Vec<_> = (0..20)
            .map(|n| h1.connected(&format!("c{n}"), "app", ""))
            .collect();
        let metrics = metrics(h1);
        let count = |name: &str| -> u64 {
            let mut lines = metrics.values().flatten();
            let count = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            count.unwrap_or_else(|| panic!("no {name}: {metrics:?}"))
        };
        // One may be of the half minute.
        assert!(count("weft_kernel_read_backs_total") <= 1, "{metrics:?}");
        assert_eq!(count("weft_kernel_repairs_total"), 0, "{metrics:?}");
        drop(clients);
        bed.close();
    });
}
