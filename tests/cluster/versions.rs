//! Agents beside a member of a later version: what they do not understand, they keep and pass on.

use std::net::SocketAddr;

use weft_gossip::Key;
use weft_types::NetworkId;

use super::{
    bed::{Bed, alone, items, soon, text},
    foreign::{Keys, Member},
    traffic::answering,
};

/// A kind of record that no version has yet.
const LATER: u8 = 99;

/// What a node says of itself, with another version, and with a field at the end that is not there yet.
fn of_version(fact: &[u8], version: &str, now: &str) -> Vec<u8> {
    let at = fact.windows(now.len()).position(|part| part == now.as_bytes());
    let at = at.expect("it names its version");
    let mut later = fact[..at - 1].to_vec();
    later.push(version.len() as u8);
    later.extend(version.as_bytes());
    later.extend(&fact[at + now.len()..]);
    later.extend(b"a field of later");
    later
}

fn key(kind: u8, name: &[u8]) -> Key {
    Key {
        kind,
        scope: NetworkId([0; 16]),
        name: name.to_vec(),
    }
}

#[test]
fn agents_keep_and_pass_on_what_a_later_version_says_and_read_what_they_know_of_it() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2", "h3", "h4"]);
        let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|name| &bed[name]);
        h1.weft("network create app");
        h1.weft("service create --network app web");
        let replicas =
            [("web-1", h1), ("web-2", h2)].map(|(name, node)| node.replica(name, "app", "--service web"));
        let vip = h1.vip("web");
        let works = || {
            replicas
                .iter()
                .for_each(|replica| answering(&replica.sandbox, vip, 2))
        };
        works();
        let seeds = [h1, h2].map(|node| SocketAddr::new(node.address(), 7946));
        // One that is away while all this is said.
        h4.kill_agent();
        let away = Keys::of(h4).without_records();

        h3.kill_agent();
        let later = Member::start(h3, Keys::of(h3), &seeds);
        let nodes = h1.json("node ls");
        let now = items(&nodes)
            .find(|node| node["name"] == "h3")
            .map(|node| text(&node["version"]).to_owned());
        let id = later.node;
        let fact = { later.records() }
            .into_iter()
            .find(|record| record.author == id && record.key.kind == 1)
            .unwrap();
        later.say(
            fact.key,
            of_version(&fact.value.unwrap(), "99.0.1", &now.unwrap()),
        );
        // A kind of record, and of packet, that nobody knows, and a known kind in another form.
        later.say(key(LATER, b"name"), b"not for these versions".to_vec());
        later.say(key(2, &[7; 16]), vec![2, 1, 2, 3]);
        let mut mouth = later.mouth(1);
        for node in [h1, h2] {
            let of = items(&node.json("node ls"))
                .find(|known| known["name"] == node.host.name())
                .unwrap()["id"]
                .clone();
            let to = text(&of).parse().unwrap();
            for body in [&[77_u8, 1, 2, 3][..], &[255; 400], &[]] {
                let packet = mouth.seal(weft_tests::speaker::Channel::Packet, &to, body);
                later.send(node, &packet);
            }
        }
        let names_it = |node: &super::bed::Node| {
            let nodes = node.json("node ls");
            let found = items(&nodes).find(|node| node["name"] == "h3");
            match found.is_some_and(|node| node["version"] == "99.0.1" && node["state"] == "alive") {
                true => Ok(()),
                false => Err(nodes.clone()),
            }
        };
        bed.on(&["h1", "h2"], "h3 of another version", names_it);
        assert!(h1.weft("node ls").contains("99.0.1"));
        let networks = h1.json("network ls");
        assert_eq!(
            items(&networks).count(),
            1,
            "what is not read is not there: {networks}"
        );
        works();

        // What others say is on the disk with the next that a node says itself.
        for (node, name) in [(h1, "one"), (h2, "two")] {
            node.weft(&format!("network create {name}"));
        }
        // It is gone, and the others begin anew from their disks.
        later.stop();
        for node in [h1, h2] {
            node.kill_agent();
            node.restart_agent();
        }
        let newcomer = Member::start(h4, away, &seeds);
        soon("what was said then, from those who did not understand it", || {
            let records = newcomer.records();
            let value = |wanted: &Key| {
                let mut said = records.iter().filter(|record| record.author == id);
                said.find(|record| record.key == *wanted)
                    .and_then(|record| record.value.clone())
            };
            let whole = value(&key(LATER, b"name"))
                .is_some_and(|value| value == b"not for these versions"[..])
                && value(&key(2, &[7; 16])).is_some_and(|value| value == [2, 1, 2, 3][..])
                && value(&key(1, b"")).is_some_and(|value| value.ends_with(b"a field of later"));
            whole.then_some(()).ok_or(records.len())
        });
        works();
        newcomer.stop();
        drop(replicas);
        bed.close();
    });
}
