//! The data plane does not need the agent.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use weft_tests::slower;

use super::{
    bed::{Bed, Endpoint, Node, alone, items, report, soon, text},
    traffic::{Caller, Stream, Streamed, all_go_on, answering, call, spread},
};

/// What must be the same before and after: everything but counts of connections.
fn state(node: &Node) -> Vec<String> {
    [
        "network inspect app",
        "service inspect web",
        "service inspect api",
        "network ls",
    ]
    .map(|line| {
        let mut said = node.json(line);
        if let Some(backends) = said.get_mut("backends").and_then(|list| list.as_array_mut()) {
            for backend in backends {
                let backend = backend.as_object_mut().unwrap();
                for count in ["open_connections", "total_connections", "failed_connections"] {
                    backend.remove(count);
                }
                backend.remove("clients");
            }
        }
        said.to_string()
    })
    .into()
}

/// Three hosts with a replica each of `web` (round robin) and `api` (least connection).
fn cluster_with_services() -> (Bed, Vec<Endpoint>) {
    let bed = Bed::cluster(&["h1", "h2", "h3"]);
    bed["h1"].weft("network create app");
    bed["h1"].weft("service create --network app --lb rr web");
    bed["h1"].weft("service create --network app --lb lc api");
    bed.everywhere("both services", |node| {
        match items(&node.json("service ls")).count() {
            2 => Ok(()),
            count => Err(count),
        }
    });
    let mut replicas = Vec::new();
    for n in 1..=3 {
        for service in ["web", "api"] {
            let host = &bed[&format!("h{n}")];
            replicas.push(host.replica(&format!("{service}-{n}"), "app", &format!("--service {service}")));
        }
    }
    (bed, replicas)
}

#[test]
fn a_killed_agent_takes_no_connection_along_and_adopts_what_it_left() {
    alone(|| {
        let (bed, replicas) = cluster_with_services();
        let started = Instant::now();
        let client = bed["h1"].connected("c", "app", "");
        let remote = bed["h2"].connected("d", "app", "");
        let (web, api) = (bed["h1"].vip("web"), bed["h1"].vip("api"));
        for from in [&client, &remote] {
            answering(&from.sandbox, web, 3);
            answering(&from.sandbox, api, 3);
        }

        bed.everywhere("all endpoints", |node| {
            match items(&node.json("network inspect app")["endpoints"]).count() {
                8 => Ok(()),
                count => Err(count),
            }
        });
        let before: Vec<_> = bed.nodes().map(state).collect();
        let open = |all: &[(&str, &Endpoint, IpAddr)]| -> Vec<Stream> {
            let each = all.iter();
            each.map(|(name, from, to)| Stream::open(name, &from.sandbox, *to))
                .collect()
        };
        let call_again = |all: &[(&Endpoint, IpAddr)]| -> Vec<Caller> {
            let each = all.iter();
            each.map(|(from, vip)| Caller::start(&from.sandbox, *vip))
                .collect()
        };
        let mut streams = open(&[
            ("across", &client, replicas[2].address()),
            ("across, from the other side", &remote, replicas[0].address()),
            ("on one host", &client, replicas[0].address()),
            ("through web", &client, web),
            ("through api", &client, api),
            ("through api again", &client, api),
            ("through api once more", &client, api),
            ("through api, from h2", &remote, api),
            ("through web, from h2", &remote, web),
            ("through web, from h2 again", &remote, web),
            ("through web, from h2 once more", &remote, web),
        ]);
        let callers = call_again(&[(&client, web), (&client, api), (&remote, web), (&remote, api)]);
        all_go_on(&streams, &callers, 20);

        for victims in [&["h1"][..], &["h1", "h2", "h3"]] {
            let killed = Instant::now();
            victims.iter().for_each(|name| bed[name].kill_agent());
            if victims.len() == 1 {
                // Longer than it takes to notice a crash: it is not one, since the host answers.
                soon("h1 to be away", || {
                    let nodes = bed["h2"].json("node ls");
                    let states = items(&nodes).map(|node| text(&node["state"]).to_owned());
                    let states: BTreeSet<_> = states.collect();
                    if states.contains("away") {
                        Ok(())
                    } else {
                        Err(format!("{states:?}"))
                    }
                });
                // Longer than one answer of the host counts.
                let away = Instant::now();
                while away.elapsed() < Duration::from_secs(3) {
                    all_go_on(&streams, &callers, 30);
                }
            }
            all_go_on(&streams, &callers, 30);
            // Round robin goes round all of them; whom least connection spares depends on the streams.
            assert_eq!(callers[0].last(12).len(), 3, "called while the agent is away");
            // A connection made while there is no agent lives on under the next one.
            streams.extend(open(&[("made without an agent", &client, api)]));
            let back = Instant::now();
            victims.iter().for_each(|name| bed[name].start_agent());
            victims.iter().for_each(|name| bed[name].await_agent());
            all_go_on(&streams, &callers, 30);
            bed.all_well();
            all_go_on(&streams, &callers, 30);
            report(
                &format!("without agents on {victims:?} and with them again"),
                killed,
            );
            report("of that with them", back);
        }
        for caller in callers {
            let (names, failures) = caller.stop();
            assert_eq!(failures, Vec::<String>::new(), "of {} calls", names.len());
        }
        for stream in streams {
            let name = stream.name.clone();
            let Streamed { rounds, slowest } = stream.close();
            println!("{name}: {rounds} numbers to and fro, the slowest in {slowest:.1?}");
        }
        soon("the state of before", || {
            let after: Vec<_> = bed.nodes().map(state).collect();
            if before == after {
                Ok(())
            } else {
                Err(format!("{after:?} instead of {before:?}"))
            }
        });
        // With no connection open, least connection has no reason to spare anybody.
        soon("no open connection", || {
            let open: Vec<_> = items(&bed["h1"].json("service inspect api")["backends"])
                .map(|backend| backend["open_connections"].as_u64())
                .collect();
            if open == [Some(0); 3] {
                Ok(())
            } else {
                Err(format!("{open:?}"))
            }
        });
        let spread = spread(&client.sandbox, api, 12);
        assert!(
            spread.len() == 3 && spread.values().all(|&n| n >= 2),
            "{spread:?}"
        );
        let call = call(&client.sandbox, api).unwrap();
        assert_eq!(call.answer.seen, call.stream.local_addr().unwrap());
        report("killed agents", started);
        drop((call, replicas));
        bed.close();
    });
}

#[test]
fn a_restarted_agent_neither_calls_the_dead_nor_forgets_the_newest() {
    alone(|| {
        let (bed, mut replicas) = cluster_with_services();
        let client = bed["h1"].connected("c", "app", "");
        let (web, api) = (bed["h1"].vip("web"), bed["h1"].vip("api"));
        answering(&client.sandbox, web, 3);

        // What was learned a moment before the end is not on the disk, but it is in the kernel.
        for round in 0..5 {
            let name = format!("late-{round}");
            let late = bed["h2"].replica(&name, "app", "");
            let stream = soon(format!("a way to {name}"), || {
                call(&client.sandbox, late.address()).map_err(|error| error.to_string())
            });
            drop(stream);
            let stream = Stream::open(&name, &client.sandbox, late.address());
            bed["h1"].kill_agent();
            bed["h1"].restart_agent();
            bed.all_well();
            all_go_on(std::slice::from_ref(&stream), &[], 10);
            let slowest = stream.close().slowest;
            assert!(
                slowest < slower(Duration::from_millis(900)),
                "{name} was cut off for {slowest:?}"
            );
            replicas.push(late);
        }

        bed["h3"].host.crash().unwrap();
        let died = Instant::now();
        answering(&client.sandbox, web, 2);
        answering(&client.sandbox, api, 2);
        report("a dead host's replicas are called no more", died);
        for _ in 0..3 {
            bed["h1"].kill_agent();
            bed["h1"].start_agent();
            let callers = [web, api].map(|vip| Caller::start(&client.sandbox, vip));
            bed["h1"].await_agent();
            bed.sees_alive("h1", 2);
            all_go_on(&[], &callers, 40);
            for caller in callers {
                let (names, failures) = caller.stop();
                assert_eq!(failures, Vec::<String>::new());
                let names: BTreeSet<_> = names.into_iter().collect();
                assert_eq!(names.len(), 2, "{names:?}");
            }
        }
        drop(replicas);
        bed.close();
    });
}
