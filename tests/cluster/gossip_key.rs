//! The key of gossip changes: under load, while a host is down, and so that a removed one is shut out.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    bed::{Bed, Node, alone, items, report, soon, text},
    metrics::metrics,
    rotation::files_with,
    traffic::answering,
};

/// So many keys there are in the end.
const LAST: u64 = 12;

/// The first key of the cluster, as it is in its file: after the version, how many there are, and its number.
pub fn first_key(node: &Node) -> [u8; 32] {
    let bytes = std::fs::read(node.data_dir().join("gossip.keys")).unwrap();
    assert_eq!(bytes[..3], [1, 1, 1], "it is the first and the only one");
    bytes[3..35].try_into().unwrap()
}

fn key(node: &Node) -> Value {
    node.json("status")["cluster"]["gossip_key"].clone()
}

fn waits_for(node: &Node) -> Vec<String> {
    let key = key(node);
    items(&key["waiting_for"])
        .map(|name| text(name).to_owned())
        .collect()
}

/// Waits until these have this key of the cluster's and no other.
fn has_only(bed: &Bed, names: &[&str], epoch: u64) {
    bed.on(names, "one key", |node| {
        let key = key(node);
        match key["epoch"] == epoch && key["kept"] == 1 && key["waiting_for"] == Value::Array(Vec::new()) {
            true => Ok(()),
            false => Err(key),
        }
    });
}

fn knows(node: &Node, network: &str) -> bool {
    items(&node.json("network ls")).any(|known| known["name"] == network)
}

fn sees(node: &Node, network: &str) {
    soon(format!("{network} on {}", node.host.name()), || {
        knows(node, network).then_some(()).ok_or("not yet")
    });
}

/// Packets that came in sealed by a key that a node does not have, and by one that it does not hear the sender by.
fn refused(node: &Node) -> [u64; 2] {
    let metrics = metrics(node);
    let lines = &metrics["weft_gossip_refused"];
    ["foreign", "outdated_key"].map(|reason| {
        let line = lines.iter().find(|line| line.contains(&format!("\"{reason}\"")));
        let count = line.and_then(|line| line.rsplit(' ').next()).unwrap();
        count.parse().unwrap()
    })
}

#[test]
fn the_key_changes_under_load_with_a_host_down_that_comes_back_after() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2", "h3"]);
        let [h1, h2, h3] = ["h1", "h2", "h3"].map(|name| &bed[name]);
        let old = first_key(h1);
        assert_eq!(old, first_key(h3));
        h1.weft("network create app");
        h1.weft("service create --network app web");
        let replicas =
            ["h1", "h2", "h3"].map(|name| bed[name].replica(&format!("web-{name}"), "app", "--service web"));
        let vip = h1.vip("web");
        answering(&replicas[1].sandbox, vip, 3);

        h3.host.crash().unwrap();
        bed.sees_alive("h1", 2);
        bed.sees_alive("h2", 2);
        let before = [h1, h2].map(refused);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            // Networks and endpoints with names come and go all the while, and each is known on the other host.
            let churn = scope.spawn(|| {
                let mut slowest = Duration::ZERO;
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) || count < 5 {
                    count += 1;
                    let [from, to] = if count % 2 == 0 { [h1, h2] } else { [h2, h1] };
                    let begun = Instant::now();
                    from.weft(&format!("network create n{count}"));
                    let endpoint = from.connected(&format!("e{count}"), "app", "");
                    sees(to, &format!("n{count}"));
                    soon("the endpoint on the other host", || {
                        let network = to.json("network inspect app");
                        let name = endpoint.sandbox.name();
                        let there = items(&network["endpoints"]).any(|known| known["name"] == name);
                        there.then_some(()).ok_or(network)
                    });
                    slowest = slowest.max(begun.elapsed());
                    to.weft(&format!("network rm n{count}"));
                    from.weft(&format!("network disconnect app e{count}"));
                }
                (count, slowest)
            });
            for epoch in 2..=LAST {
                let begun = Instant::now();
                let said = [h1, h2][(epoch % 2) as usize].weft("token rotate-key");
                report("the key changed for those who live", begun);
                let expected = format!("gossip key {epoch} (");
                assert!(
                    said.starts_with(&expected) && said.contains("h3 does not have it yet"),
                    "{said}"
                );
            }
            is_over.store(true, Ordering::Relaxed);
            let (count, slowest) = churn.join().unwrap();
            println!("{count} networks and endpoints came and went, {slowest:.2?} at most each");
        });
        assert_eq!(
            [h1, h2].map(refused),
            before,
            "not one packet was lost on the way"
        );
        assert_eq!(waits_for(h2), ["h3"]);
        let status = h1.weft("status");
        assert!(
            status.contains("gossip key:") && status.contains("h3 does not have it"),
            "{status}"
        );
        assert_eq!(key(h1)["kept"], LAST);
        // An agent that starts meanwhile finds all its keys.
        h2.kill_agent();
        h2.restart_agent();
        bed.sees_alive("h1", 2);

        let begun = Instant::now();
        h3.boot();
        has_only(&bed, &["h1", "h2", "h3"], LAST);
        report(
            "the host that was down has the newest key, and no other is left",
            begun,
        );
        for node in [h1, h2, h3] {
            assert_eq!(files_with(node.data_dir(), &old), [""; 0]);
        }
        bed.everywhere("all nodes", |node| {
            let alive = items(&node.json("node ls"))
                .filter(|node| node["state"] == "alive")
                .count();
            if alive == 3 { Ok(()) } else { Err(alive) }
        });
        h3.weft("network create later");
        sees(h1, "later");
        answering(&replicas[0].sandbox, vip, 2);
        let events = h1.weft("events --since 10m --no-follow");
        assert!(
            events.contains("key.rotated") && events.contains("key.settled"),
            "{events}"
        );
        drop(replicas);
        bed.close();
    });
}

#[test]
fn a_removed_host_that_kept_the_old_key_is_shut_out() {
    alone(|| {
        let bed = Bed::apart(&["h1", "h2", "h3", "h4"]).joined(&["h1", "h2", "h3"]);
        let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|name| &bed[name]);
        let token = h1.join_command("--reusable");
        // It is out of reach, goes on, and never hears that it was removed.
        bed.lab
            .partition(&[&[&h1.host, &h2.host, &h4.host], &[&h3.host]])
            .unwrap();
        bed.sees_alive("h1", 2);
        h1.weft("node rm --force h3");
        assert_eq!(waits_for(h1), [""; 0]);
        let said = h1.weft("token rotate-key");
        assert!(
            said.starts_with("gossip key 2 (") && said.lines().count() == 1,
            "{said}"
        );
        has_only(&bed, &["h1", "h2"], 2);

        bed.lab.heal().unwrap();
        h3.weft("network create forged");
        h1.weft("network create secret");
        sees(h2, "secret");
        // It speaks, to both of them, for as long as others need to find each other again.
        let [before, _] = refused(h1);
        soon("h3 to have tried", || match refused(h1) {
            [foreign, 0] if foreign >= before + 20 => Ok(()),
            counts => Err(format!("{counts:?}")),
        });
        assert!(!knows(h1, "forged") && !knows(h2, "forged"));
        assert!(!knows(h3, "secret"));
        assert_eq!(key(h3)["epoch"], 1);

        // A token from before lets in who has it, and one made by the removed does not.
        h4.weft(&token);
        sees(h4, "secret");
        has_only(&bed, &["h1", "h2", "h4"], 2);
        bed.close();
    });
}
