//! Replicas are replaced one after the other, and nobody who uses the service notices.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use netns_harness::{Inside as _, Sandbox};

use super::{
    bed::{Bed, Endpoint, alone},
    http::{HttpServer, Requests},
};

/// What connections have to end. None of these clients keeps one for as long.
const GRACE: &str = "30s";
/// On one connection, where it is kept.
const KEPT: u32 = 50;

struct Size {
    hosts: usize,
    replicas: usize,
    rounds: usize,
    requests: u64,
}

/// `WEFT_ROLLING=full` takes some minutes; `NETNS_HARNESS_TIMEOUT_SECS` has to allow for them.
fn size() -> Size {
    match std::env::var("WEFT_ROLLING").as_deref() {
        Ok("full") => Size {
            hosts: 8,
            replicas: 32,
            rounds: 10,
            requests: 1_000_000,
        },
        _ => Size {
            hosts: 3,
            replicas: 6,
            rounds: 2,
            requests: 10_000,
        },
    }
}

struct Replica {
    endpoint: Endpoint,
    server: HttpServer,
}

/// How long a tracked connection is remembered that has ended, in seconds; 120 unless told. The kernel has one table for all
/// namespaces, and whoever counts walks all of it: here that of eight hosts, which would be too long by as much.
const REMEMBERED: &str = "15";

fn sandbox(bed: &Bed, host: &str, name: &str) -> Sandbox {
    let sandbox = bed[host].host.sandbox(name).unwrap();
    let setting = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";
    let set = || match Path::new(setting).exists() {
        true => fs::write(setting, REMEMBERED),
        // A kernel that tracks nothing yet.
        false => Ok(()),
    };
    sandbox.run(set).unwrap().unwrap();
    sandbox
}

fn start(bed: &Bed, host: &str, name: &str) -> Replica {
    let sandbox = sandbox(bed, host, name);
    // It listens before anybody hears of it.
    let server = HttpServer::start(&sandbox, name);
    Replica {
        endpoint: bed[host].connect(sandbox, "app", "--service web"),
        server,
    }
}

fn replace_all(datapath: &'static str) {
    let size = size();
    let hosts: Vec<String> = (1..=size.hosts).map(|n| format!("h{n}")).collect();
    let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let bed = Bed::cluster_with(datapath, &names);
    bed["h1"].weft("network create --subnet 10.7.0.0/16 app");
    bed["h1"].weft("service create --network app web");
    let host_of = |n: usize| names[n % names.len()];
    let mut replicas: Vec<Replica> = (0..size.replicas)
        .map(|n| start(&bed, host_of(n), &format!("web-{n}-0")))
        .collect();
    let vip = bed["h1"].vip("web");
    let clients: Vec<Endpoint> = names
        .iter()
        .map(|host| bed[host].connect(sandbox(&bed, host, &format!("c-{host}")), "app", ""))
        .collect();
    let loads = clients
        .iter()
        .flat_map(|client| [1, KEPT].map(|kept| Requests::start(&client.sandbox, vip, kept)));
    let loads: Vec<Requests> = loads.collect();
    let begin = Instant::now();
    let (mut drains, mut cut) = (Vec::new(), 0);
    for round in 1..=size.rounds {
        for n in 0..size.replicas {
            let host = host_of(n);
            let new = start(&bed, host, &format!("web-{n}-{round}"));
            let Replica { endpoint, server } = std::mem::replace(&mut replicas[n], new);
            let name = endpoint.sandbox.name().to_owned();
            let drained = Instant::now();
            // From whichever host.
            let said = bed[host_of(n + round)].try_weft(&format!("service drain {name} --grace {GRACE}"));
            drains.push(drained.elapsed());
            assert!(said.code == 0 && !said.stderr.contains("warning"), "{said:?}");
            cut += usize::from(!said.stdout.contains("no connection is open"));
            drop(server);
            bed[host].weft(&format!("network disconnect app {name}"));
            endpoint.sandbox.remove().unwrap();
        }
    }
    let replaced = begin.elapsed();
    super::bed::within(Duration::from_secs(900), "requests enough", || {
        match loads.iter().map(Requests::answered).sum::<u64>() {
            enough if enough >= size.requests => Ok(()),
            few => Err(few),
        }
    });
    let took = begin.elapsed();
    let (mut answered, mut failures) = (0, Vec::new());
    for load in loads {
        let (count, failed) = load.stop();
        answered += count;
        failures.extend(failed);
    }
    drains.sort();
    println!(
        "{datapath}: {} replacements in {replaced:.1?} under {answered} requests ({:.0}/s), {} failed; \
         a drain took {:.1?}, the slowest {:.1?}; {cut} with connections reset",
        drains.len(),
        answered as f64 / took.as_secs_f64(),
        failures.len(),
        drains[drains.len() / 2],
        drains[drains.len() - 1],
    );
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(cut, 0);
    bed.all_well();
    drop((replicas, clients));
    bed.close();
}

#[test]
fn replicas_are_replaced_without_a_lost_request_on_nft() {
    alone(|| replace_all("nft"));
}

#[test]
fn replicas_are_replaced_without_a_lost_request_on_ebpf() {
    alone(|| {
        if super::bed::has_ebpf() {
            replace_all("ebpf");
        }
    });
}
