//! `weft doctor` finds nothing where nothing is, and each thing that is broken, by its name.

use std::process::Command;

use netns_harness::Inside;
use serde_json::Value;

use super::{
    bed::{Bed, Node, alone, items, soon},
    repair::network,
    traffic::PORT,
};

/// What one run found: its exit code and what it says.
struct Found {
    code: i32,
    checks: Vec<Value>,
}

impl Found {
    fn of(node: &Node, flags: &str) -> Self {
        let ended = node.try_weft(&format!("doctor --format json {flags}"));
        let said: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        Self {
            code: ended.code,
            checks: items(&said["checks"]).cloned().collect(),
        }
    }

    /// Topics, subjects, sentences and causes of what was found to be so.
    fn all(&self, verdict: &str) -> Vec<String> {
        let so = self.checks.iter().filter(|check| check["verdict"] == verdict);
        so.map(|check| {
            let part = |name: &str| check[name].as_str().unwrap_or_default();
            format!(
                "{} | {} | {} | {}",
                part("topic"),
                part("subject"),
                part("sentence"),
                part("cause")
            )
        })
        .collect()
    }

    /// How many things of each topic are as they should be.
    fn fine(&self, topic: &str) -> usize {
        let fine = |check: &&Value| check["topic"] == topic && check["verdict"] == "ok";
        self.checks.iter().filter(fine).count()
    }
}

/// Runs a line of a shell in a place, which must succeed.
fn run(place: &impl Inside, line: &str) {
    place.run(|| shell(line)).unwrap();
}

fn shell(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {complaint}");
}

/// Waits until `weft doctor` on a node finds something that has all these words, exits accordingly, and says so of nothing
/// of another topic.
fn finds(node: &Node, flags: &str, topics: &[&str], words: &[&str]) {
    soon(format!("{words:?} found"), || {
        let found = Found::of(node, flags);
        let wrong = found.all("wrong");
        let named = wrong
            .iter()
            .any(|line| words.iter().all(|word| line.contains(word)));
        let strays: Vec<_> = wrong
            .iter()
            .filter(|line| !topics.iter().any(|topic| line.starts_with(topic)))
            .collect();
        match named && strays.is_empty() && found.code == 1 {
            true => Ok(()),
            false => Err(format!("exit code {}: {wrong:#?}", found.code)),
        }
    });
}

/// Waits until nothing is wrong.
fn finds_nothing(node: &Node) -> Found {
    soon("nothing wrong", || {
        let found = Found::of(node, "");
        match (found.code, found.all("wrong"), found.all("unknown")) {
            (0, wrong, unknown) if wrong.is_empty() && unknown.is_empty() => Ok(found),
            found => Err(format!("{found:#?}")),
        }
    })
}

#[test]
fn a_doctor_that_comes_too_early_touches_nothing() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let (h1, h2) = (&bed["h1"], &bed["h2"]);
        h1.weft("network create app");
        let [one, two] = ["one", "two"].map(|name| h1.connected(name, "app", ""));
        bed.all_well();
        let before = network(h1).unwrap().id();
        // Alone, an agent waits for a while to hear what has changed.
        h2.kill_agent();
        h1.kill_agent();
        h1.restart_agent();
        let found = Found::of(h1, "--passive --fix");
        assert_eq!(found.all("fixed"), Vec::<String>::new());
        let unknown = found.all("unknown");
        assert!(
            unknown.iter().any(|line| line.contains("not known yet")),
            "{unknown:#?}"
        );
        one.sandbox
            .ping(two.address(), std::time::Duration::from_secs(1))
            .unwrap();
        h2.restart_agent();
        finds_nothing(h1);
        assert_eq!(network(h1).unwrap().id(), before);
        bed.all_well();
        drop((one, two));
        bed.close();
    });
}

#[test]
fn each_thing_that_is_broken_is_named_and_nothing_else() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let (h1, h2) = (&bed["h1"], &bed["h2"]);
        h1.weft("network create app");
        h1.weft(&format!("service create --network app --port 80:{PORT} web"));
        let client = h1.connected("client", "app", "");
        let web = h2.replica("web-2", "app", "--service web");
        let healthy = finds_nothing(h1);
        for topic in [
            "records",
            "peers",
            "clock",
            "kernel",
            "underlay",
            "tunnel",
            "addresses",
            "names",
            "services",
        ] {
            assert!(healthy.fine(topic) > 0, "{topic}: {:#?}", healthy.all("ok"));
        }
        let passive = Found::of(h1, "--passive");
        assert_eq!(
            (passive.code, passive.fine("tunnel"), passive.fine("kernel")),
            (0, 0, 1)
        );

        // An entry of the tunnel's forwarding table that somebody takes out, which no notification tells of.
        let netns = network(h1).unwrap();
        let flush = "bridge fdb show dev vx0 | awk '$2 == \"dst\" { print $1 }' | \
                     xargs -I MAC bridge fdb del MAC dev vx0 self";
        netns.run(|| shell(flush)).unwrap();
        finds(
            h1,
            "--passive",
            &["kernel"],
            &["network `app`", "set fdb", "changed or removed"],
        );
        let fixed = Found::of(h1, "--fix");
        let done = fixed.all("fixed");
        assert_eq!(fixed.code, 0, "{:#?}", fixed.all("wrong"));
        assert!(done.len() == 1 && done[0].contains("set fdb"), "{done:#?}");
        finds_nothing(h1);

        // The tunnel's packets are dropped on their way, others are not.
        run(
            &h2.host,
            "nft add table inet theirs && nft add chain inet theirs in '{ type filter hook prerouting priority -400; }' \
             && nft add rule inet theirs in udp dport 4789 drop",
        );
        finds(
            h1,
            "",
            &["tunnel", "services"],
            &["tunnel", "`web-2`", "on h2", "UDP port 4789 is blocked"],
        );
        run(&h2.host, "nft delete table inet theirs");
        finds_nothing(h1);

        // Long packets are dropped on their way without a word.
        run(&h2.host, "ip link set eth0 mtu 1400");
        finds(
            h1,
            "",
            &["underlay", "tunnel"],
            &["underlay", "h2", "1400 bytes do"],
        );
        finds(
            h1,
            "",
            &["underlay", "tunnel"],
            &["tunnel", "in short packets and not in those of 1450 bytes"],
        );
        run(&h2.host, "ip link set eth0 mtu 1500");
        finds_nothing(h1);

        // An address that somebody took by hand, of an endpoint on another host and of one here. (On the link itself it would not
        // stay.)
        let other = h1.connected("other", "app", "");
        for (taken, of) in [(web.address(), "`web-2` on h2"), (client.address(), "`client`")] {
            run(&other.sandbox, &format!("ip address add {taken}/32 dev lo"));
            finds(
                h1,
                "",
                &["addresses", "tunnel", "services"],
                &["addresses", "`other` answers for", of],
            );
            run(&other.sandbox, &format!("ip address del {taken}/32 dev lo"));
            finds_nothing(h1);
        }
        h1.weft("network disconnect app other");
        drop(other);

        // A backend that nobody listens for.
        let idle = h2.connected("web-3", "app", "--service web");
        finds(
            h1,
            "",
            &["services"],
            &["backend `web-3` on h2 counts as ready", "refused"],
        );
        h2.weft("network disconnect app web-3");
        drop(idle);
        finds_nothing(h1);

        // Answers to names that never come.
        run(
            &client.sandbox,
            "nft add table inet theirs && nft add chain inet theirs out '{ type filter hook output priority 0; }' \
             && nft add rule inet theirs out udp dport 53 drop",
        );
        finds(h1, "", &["names"], &["169.254.53.53 answers no question"]);
        run(&client.sandbox, "nft delete table inet theirs");
        finds_nothing(h1);

        h2.kill_agent();
        finds(
            h1,
            "",
            &["peers", "records"],
            &["peers", "the agent of h2 is away"],
        );
        h2.restart_agent();
        finds_nothing(h1);
        drop((web, client));
        bed.close();
    });
}

#[test]
fn without_a_cluster_the_way_to_one_is_told() {
    alone(|| {
        let bed = Bed::apart(&["h1"]);
        let ended = bed["h1"].try_weft("doctor");
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.stderr.contains("this node is in no cluster"), "{ended:?}");
        bed.close();
    });
}

#[test]
fn why_follows_a_question_and_stops_where_it_goes_wrong() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let (h1, h2) = (&bed["h1"], &bed["h2"]);
        h1.weft("network create app");
        h1.weft("network create back");
        h1.weft(&format!("service create --network app --port 80:{PORT} web"));
        let client = h1.connected("client", "app", "");
        let web = h2.replica("web-2", "app", "--service web --alias shop");
        let db = h2.connected("db", "back", "");

        // Every way to ask for it leads to the same.
        let vip = h1.vip("web");
        for name in ["web", "WEB.app", "web.app.weft.internal.", &vip.to_string()] {
            soon(format!("{name} is all right"), || {
                let ended = h1.try_weft(&format!("why {name} from client"));
                let wanted = [
                    "`client` on h1 asks",
                    "service `web` on `app`",
                    &format!("web.app.weft.internal is {vip}, as the records do"),
                    &format!("{vip}:80 takes a connection; 1 of 1 backend(s)"),
                    "`web-2` on h2 gets connections",
                    "is behind h2 (10.1.0.2)",
                ];
                let all = wanted.iter().all(|words| ended.stdout.contains(words));
                if all && ended.code == 0 {
                    Ok(())
                } else {
                    Err(format!("{ended:?}"))
                }
            });
        }
        let alias = h1.weft("why shop");
        assert!(alias.contains("endpoint `web-2` on `app`, said by h2"), "{alias}");

        // Names that lead nowhere say where they would.
        for (line, code, words) in [
            ("why wbe from client", 1, "there is `web`"),
            (
                "why db from client",
                1,
                "there is one on `back`: connect the asker there too",
            ),
            ("why web from web-2", 4, "endpoint `web-2` is on h2"),
            (
                "why web from nobody",
                3,
                "there is no endpoint `nobody` on this host",
            ),
            ("why web as client", 2, "weft why NAME from ENDPOINT"),
        ] {
            let ended = h1.try_weft(line);
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(ended.code == code && said.contains(words), "{line}: {ended:?}");
        }

        // What is wrong is said at its step.
        let wrong = |words: &str| {
            soon(words, || {
                let ended = h1.try_weft("why web from client");
                let named = ended
                    .stdout
                    .lines()
                    .any(|line| line.starts_with('!') && line.contains(words));
                if named && ended.code == 1 {
                    Ok(())
                } else {
                    Err(format!("{ended:?}"))
                }
            });
        };
        h1.weft("service drain --grace 0s web-2");
        wrong("`web-2` on h2 gets no new connections, it is drained");
        h1.weft("service activate web-2");
        let astray = "for mac in $(bridge fdb show dev vx0 | awk '$2 == \"dst\" { print $1 }'); \
                      do bridge fdb replace $mac dev vx0 dst 10.1.0.9 self; done";
        network(h1).unwrap().run(|| shell(astray)).unwrap();
        wrong("its forwarding entry leads 10.1.0.9 and not to h2 (10.1.0.2)");
        h1.weft("doctor --fix");
        assert_eq!(h1.try_weft("why web from client").code, 0);
        drop((web, client, db));
        bed.close();
    });
}
