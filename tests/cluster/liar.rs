//! A member that lies, among real agents: docs/security.md with sockets, kernels and commands.

use std::{collections::BTreeSet, net::SocketAddr, process::Command};

use netns_harness::Inside;
use weft_gossip::{Key, Record};
use weft_tests::speaker::{Liveness, State, short};
use weft_types::NodeId;

use super::{
    bed::{Bed, COMMAND, Endpoint, Node, alone, items, soon, text},
    foreign::{Keys, Member},
    metrics::metrics,
    names::dig,
    repair::{network, rules, run},
    traffic::{Caller, Stream, all_go_on, answering},
};

const HONEST: [&str; 3] = ["h1", "h2", "h3"];

/// What the kernel of a host holds for a network, and what those on it are told.
fn holds(node: &Node, endpoint: &Endpoint) -> BTreeSet<String> {
    let of_network = network(node).unwrap();
    let mut all: BTreeSet<String> = rules(&of_network);
    for line in [
        "bridge fdb show dev vx0",
        "ip neigh show nud permanent",
        "ip -o -br addr",
    ] {
        all.extend(
            run(&of_network, line)
                .lines()
                .map(|said| format!("{line}: {said}")),
        );
    }
    let mut inside = |words: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", words]);
        let said = endpoint.sandbox.exec(&mut command, COMMAND).unwrap().stdout;
        all.extend(said.lines().map(|said| format!("inside: {said}")));
    };
    inside("ip -o -br addr; ip route; ip neigh show nud permanent");
    // Without what counts.
    inside("nft -n list ruleset | sed -E 's/packets [0-9]+ bytes [0-9]+//'");
    for name in ["web", "web-1", "web-2", "web-3", "tasks.web", "nobody"] {
        let told = dig(&endpoint.sandbox, "169.254.53.53", &format!("+short {name}"));
        let told: BTreeSet<&str> = told.lines().collect();
        all.insert(format!("{name} is {told:?}"));
    }
    all
}

fn same(what: &str, bed: &Bed, before: &[(&Endpoint, BTreeSet<String>)]) {
    for (name, (endpoint, was)) in HONEST.iter().zip(before) {
        soon(format!("{what}: {name} as it was"), || {
            let is = holds(&bed[name], endpoint);
            let (gone, new): (Vec<_>, Vec<_>) = (was.difference(&is).collect(), is.difference(was).collect());
            match gone.is_empty() && new.is_empty() {
                true => Ok(()),
                false => Err(format!("not {gone:#?} but {new:#?}")),
            }
        });
    }
}

/// The value of a register, removed at a time far ahead.
fn removed(register: &[u8]) -> Vec<u8> {
    let (_, rest) = postcard::take_from_bytes::<u64>(&register[1..]).unwrap();
    let at = postcard::to_stdvec(&(1_u64 << 61, true)).unwrap();
    [&register[..1], &at, &rest[1..]].concat()
}

/// What a node says of itself, with the name of another one.
fn named(fact: &[u8], own: &[u8]) -> Vec<u8> {
    let after = |fact: &[u8]| 2 + usize::from(fact[1]);
    [&own[..after(own)], &fact[after(fact)..]].concat()
}

/// Under the liar's name, what others have said under theirs: their endpoints, hardware addresses, tunnels, numbers, and that
/// their networks are gone.
fn claim_all(liar: &Member, victim: NodeId) {
    let records = liar.records();
    let others: Vec<&Record> = records
        .iter()
        .filter(|record| record.author != liar.node)
        .collect();
    let own = |kind: u8| {
        let mut own = records.iter().filter(|record| record.author == liar.node);
        own.find(|record| record.key.kind == kind)
            .and_then(|record| record.value.clone())
    };
    let fact = own(1).expect("its agent has said who it is");
    let mut number = 0;
    for record in others {
        let Some(value) = record.value.as_deref() else {
            continue;
        };
        let kind = record.key.kind;
        let key = record.key.clone();
        match kind {
            // Of a node.
            1 if record.author == victim => liar.say(key, named(value, &fact)),
            // A network.
            2 => liar.say(key, removed(value)),
            // An endpoint, under its own id and under another.
            4 => {
                number += 1;
                liar.say(key.clone(), value.to_vec());
                liar.say(
                    Key {
                        name: vec![number; 16],
                        ..key
                    },
                    value.to_vec(),
                );
            }
            // Numbers given away, a place for published ports, numbers of the removed, that it is on a network.
            5 | 11 | 12 | 16 => liar.say(key, value.to_vec()),
            _ => {}
        }
    }
    assert!(number >= 3, "there are endpoints");
}

/// That the victim is dead, in every generation.
fn slander(liar: &Member, bed: &Bed, ids: &[NodeId], victim: NodeId, round: u64) {
    let mut mouth = liar.mouth(round);
    let now = liar.incarnation(victim);
    let numbers = [
        now,
        now + 1,
        now | 0xffff,
        (now | 0xffff) + 1,
        u64::MAX - 1,
        u64::MAX,
    ];
    for (name, id) in HONEST.iter().zip(ids) {
        let src = (short(&liar.node), liar.generation + 1_000 * round);
        let dst = (short(id), liar.incarnation(*id));
        for number in numbers {
            let life = (short(&victim), number);
            let mut packets = vec![
                mouth.entries(id, &[(life.0, Liveness::Down(number))]),
                mouth.entries(id, &[(life.0, Liveness::Active(number))]),
                mouth.renew(id, number),
                mouth.turn_undead(id, src, dst),
            ];
            for state in [State::Suspect, State::Down, State::Alive] {
                packets.push(mouth.membership(id, src, dst, &[(life, u16::MAX, state)]));
            }
            packets.push(mouth.membership(id, life, dst, &[(life, 0, State::Down)]));
            packets.iter().for_each(|packet| liar.send(&bed[name], packet));
        }
    }
}

fn refused(node: &Node, reason: &str) -> u64 {
    let metrics = metrics(node);
    let lines = &metrics["weft_gossip_refused"];
    let line = lines.iter().find(|line| line.contains(&format!("\"{reason}\"")));
    let count = line.and_then(|line| line.rsplit(' ').next()).unwrap();
    count.parse().unwrap()
}

fn id_of(node: &Node, name: &str) -> NodeId {
    let nodes = node.json("node ls");
    let found = items(&nodes).find(|node| node["name"] == name);
    text(&found.unwrap()["id"]).parse().unwrap()
}

#[test]
fn a_member_that_lies_changes_nothing_and_one_command_shuts_it_out() {
    alone(|| {
        let bed = Bed::cluster_with("nft", &["h1", "h2", "h3", "h4"]);
        let [h1, h4] = [&bed["h1"], &bed["h4"]];
        h1.weft("network create app");
        h1.weft("service create --network app web");
        let replicas: Vec<Endpoint> = (1..=3)
            .map(|n| bed[&*format!("h{n}")].replica(&format!("web-{n}"), "app", "--service web"))
            .collect();
        let vip = h1.vip("web");
        replicas
            .iter()
            .for_each(|replica| answering(&replica.sandbox, vip, 3));
        let ids = HONEST.map(|name| id_of(h1, name));
        let victim = ids[1];

        // It has joined with a token as all have, and now somebody else has its keys.
        h4.kill_agent();
        let liar = Member::start(h4, Keys::of(h4), &[SocketAddr::new(h1.address(), 7946)]);
        bed.on(&HONEST, "h4 is alive", |node| {
            let nodes = node.json("node ls");
            let alive = items(&nodes).filter(|node| node["state"] == "alive").count();
            if alive == 4 { Ok(()) } else { Err(nodes) }
        });
        let before: Vec<_> = HONEST
            .iter()
            .zip(&replicas)
            .map(|(name, endpoint)| (endpoint, holds(&bed[name], endpoint)))
            .collect();
        for (_, held) in &before {
            assert!(held.len() > 20, "{held:#?}");
        }
        let stream = [Stream::open("held", &replicas[0].sandbox, vip)];
        let callers = [
            Caller::start(&replicas[0].sandbox, vip),
            Caller::start(&replicas[2].sandbox, vip),
        ];

        claim_all(&liar, victim);
        for round in 1..=20 {
            slander(&liar, &bed, &ids, victim, round);
            all_go_on(&stream, &callers, 10);
            for (at, name) in HONEST.iter().enumerate().filter(|(at, _)| *at != 1) {
                let state = bed[name].json("node inspect h2")["state"].clone();
                assert!(
                    state == "alive" || state == "suspect",
                    "round {round}: {state} at {at}"
                );
            }
        }
        // And so much of it that nobody could keep up.
        for n in 0..1_500_u32 {
            let key = Key {
                kind: 200,
                scope: weft_types::NetworkId([0; 16]),
                name: n.to_be_bytes().to_vec(),
            };
            liar.say(key, vec![1; 200]);
        }
        bed.on(&HONEST, "the liar is named", |node| {
            let problems = node.problems();
            let named = "node `h4` says what others know better";
            let is_named = problems.iter().any(|problem| problem.contains(named));
            is_named.then_some(()).ok_or(problems.join("; "))
        });
        same("after the lies", &bed, &before);
        all_go_on(&stream, &callers, 100);
        // Nobody has ever counted as dead, but for the liar while it had no agent.
        for name in ["h1", "h3"] {
            let events = bed[name].weft("events --since 1h --no-follow");
            let of_victim = |line: &&str| line.contains("node.down") && line.contains("h2");
            assert_eq!(events.lines().filter(of_victim).count(), 0, "{events}");
        }

        h1.weft("node rm --force h4");
        bed.on(&HONEST, "h4 is nobody", |node| {
            let nodes = node.json("node ls");
            if items(&nodes).count() == 3 {
                Ok(())
            } else {
                Err(nodes)
            }
        });
        let counts = HONEST.map(|name| refused(&bed[name], "evicted"));
        let network = liar.records();
        let network = network.iter().find(|record| record.key.kind == 2).unwrap();
        let (key, value) = (network.key.clone(), network.value.clone().unwrap());
        liar.say(
            Key {
                name: vec![9; 16],
                ..key
            },
            value.to_vec(),
        );
        for round in 21..=25 {
            slander(&liar, &bed, &ids, victim, round);
            all_go_on(&stream, &callers, 10);
        }
        for (name, before) in HONEST.iter().zip(counts) {
            soon(format!("{name} refuses it"), || {
                match refused(&bed[name], "evicted") {
                    now if now > before + 20 => Ok(()),
                    now => Err(format!("{now} and {before}")),
                }
            });
            let networks = bed[name].json("network ls");
            assert_eq!(items(&networks).count(), 1, "{networks}");
        }
        same("after its removal", &bed, &before);
        bed.on(&HONEST, "nothing wrong", |node| match node.problems() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(problems.join("; ")),
        });
        drop(before);
        for held in stream {
            held.close();
        }
        for caller in callers {
            let (_, failures) = caller.stop();
            assert!(failures.is_empty(), "{failures:#?}");
        }
        liar.stop();
        drop(replicas);
        bed.close();
    });
}
