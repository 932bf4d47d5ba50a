//! The real kernel, in namespaces.

mod bed;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::IpAddr,
    process::Command,
    time::Instant,
};

use weft_netlink::{conntrack::Conntrack, netns::Netns, nft::Nft};

use self::bed::*;
use super::*;
use crate::{BackendState, Scheduler};

fn datapath() -> NftDatapath {
    NftDatapath::new().unwrap()
}

fn even(n: usize) -> BTreeMap<IpAddr, usize> {
    ["10.9.0.11", "10.9.0.12", "10.9.0.13"]
        .map(|addr| (ip(addr), n))
        .into()
}

/// All rules with the numbers that the kernel gave them, which a rewrite would change.
fn ruleset(netns: &Netns) -> String {
    let output = netns
        .run(|| Command::new("nft").args(["-a", "list", "ruleset"]).output())
        .unwrap()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn round_robin_spreads_calls_exactly_and_keeps_the_clients_address() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let tables = table(&[service(Scheduler::RoundRobin)]);
    assert_eq!(
        datapath.sync("c", &bed.client, &tables).unwrap(),
        Written {
            changed: 1,
            removed: 0,
            cut: 0
        }
    );
    assert_eq!(bed.spread(VIP, 12), even(4));
    let spread = bed.spread(VIP6, 12);
    assert!(
        spread.len() == 3 && spread.values().all(|&n| n == 4),
        "{spread:?}"
    );

    let (stream, answer) = bed.open(VIP, PORT).unwrap();
    assert_eq!(answer.client, stream.local_addr().unwrap());
    assert_eq!(answer.client.ip(), ip("10.9.0.1"));
    assert_eq!(
        stream.peer_addr().unwrap().ip(),
        ip(VIP),
        "the client sees the virtual address only"
    );
    let (stream, answer) = bed.open(VIP6, PORT).unwrap();
    assert_eq!(answer.client, stream.local_addr().unwrap());

    let mut udp = BTreeMap::new();
    for vip in [VIP, VIP, VIP, VIP6, VIP6, VIP6] {
        *udp.entry(ask(&bed.udp(vip)).unwrap().backend).or_insert(0) += 1;
    }
    assert!(udp.len() == 6 && udp.values().all(|&n| n == 1), "{udp:?}");
    assert_eq!(datapath.connections(service(Scheduler::RoundRobin).id), None);
}

#[test]
fn weights_are_kept() {
    let Some(bed) = Bed::new() else { return };
    let mut web = service(Scheduler::WeightedRoundRobin);
    web.backends[0].weight = 4.try_into().unwrap();
    datapath().sync("c", &bed.client, &table(&[web])).unwrap();
    let spread = bed.spread(VIP, 12);
    assert_eq!(
        spread,
        [(ip("10.9.0.11"), 8), (ip("10.9.0.12"), 2), (ip("10.9.0.13"), 2)].into()
    );
}

#[test]
fn ports_are_translated_to_their_targets_and_others_refuse() {
    let Some(bed) = Bed::new() else { return };
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![
        format!("http=80:{PORT}").parse().unwrap(),
        format!("{PORT}/udp").parse().unwrap(),
    ];
    datapath().sync("c", &bed.client, &table(&[web])).unwrap();
    for vip in [VIP, VIP6] {
        assert!(bed.call(vip, 80).is_ok());
        let started = Instant::now();
        assert_eq!(
            bed.call(vip, PORT).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        assert!(started.elapsed() < PATIENCE / 10);
        assert!(ask(&bed.udp(vip)).is_ok());
    }
    let ping = bed
        .client
        .run(|| Command::new("ping").args(["-c1", "-W5", VIP]).output())
        .unwrap();
    if let Ok(output) = ping {
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn without_a_backend_a_call_is_refused_at_once() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let mut web = service(Scheduler::RoundRobin);
    for scheduler in Scheduler::ALL {
        web.scheduler = scheduler;
        for backend in &mut web.backends {
            backend.state = BackendState::Draining;
        }
        datapath.sync("c", &bed.client, &only(&web)).unwrap();
        for vip in [VIP, VIP6] {
            let started = Instant::now();
            assert_eq!(
                bed.call(vip, PORT).unwrap_err().kind(),
                ErrorKind::ConnectionRefused
            );
            assert!(ask(&bed.udp(vip)).is_err());
            assert!(started.elapsed() < PATIENCE / 10);
        }
    }
}

#[test]
fn a_client_that_is_a_backend_reaches_itself() {
    let Some(bed) = Bed::new() else { return };
    bed.serve_at_client("10.9.0.1");
    bed.serve_at_client("fd09::1");
    let mut web = service(Scheduler::RoundRobin);
    web.backends.truncate(2);
    web.backends[0].addrs = vec![ip("10.9.0.1"), ip("fd09::1")];
    datapath().sync("c", &bed.client, &table(&[web])).unwrap();
    for (vip, own) in [(VIP, ip("10.9.0.1")), (VIP6, ip("fd09::1"))] {
        let spread = bed.spread(vip, 6);
        assert_eq!(spread.get(&own), Some(&3), "{spread:?}");
        assert!((0..2).any(|_| ask(&bed.udp(vip)).unwrap().backend == own));
    }
}

#[test]
fn least_connection_avoids_the_one_that_holds_connections() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let web = service(Scheduler::LeastConnections);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    // Idle, it spreads as evenly as round robin.
    let open = |n: [u64; 3]| Some([1, 2, 3].map(|i| (endpoint(i), n[usize::from(i) - 1])).into());
    let mut spread = BTreeMap::new();
    for _ in 0..12 {
        *spread.entry(bed.call(VIP, PORT).unwrap().backend).or_insert(0) += 1;
        eventually(open([0, 0, 0]), || datapath.connections(web.id));
    }
    assert_eq!(spread, even(4));

    // One backend holds six connections, made while it was alone.
    let mut alone = web.clone();
    alone.backends.truncate(1);
    datapath.sync("c", &bed.client, &table(&[alone])).unwrap();
    let held: Vec<_> = (0..6).map(|_| bed.open(VIP, PORT).unwrap()).collect();
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    eventually(open([6, 0, 0]), || datapath.connections(web.id));
    let more: Vec<_> = (0..12).map(|_| bed.open(VIP, PORT).unwrap()).collect();
    eventually(open([6, 6, 6]), || datapath.connections(web.id));
    let busy = more
        .iter()
        .filter(|(_, answer)| answer.backend == ip("10.9.0.11"))
        .count();
    assert_eq!(busy, 0, "the others had fewer throughout");
    drop(more);
    eventually(open([6, 0, 0]), || datapath.connections(web.id));
    drop(held);
    eventually(open([0, 0, 0]), || datapath.connections(web.id));
}

#[test]
fn counts_are_summed_over_the_sandboxes_of_a_host_and_found_again_after_a_restart() {
    let Some(bed) = Bed::new() else { return };
    let other = Netns::create().unwrap();
    let web = service(Scheduler::LeastConnections);
    let first = datapath();
    first.sync("c", &bed.client, &only(&web)).unwrap();
    first.sync("other", &other, &only(&web)).unwrap();
    let sum = |datapath: &NftDatapath| {
        datapath
            .connections(web.id)
            .map(|open| open.values().sum::<u64>())
    };
    let held: Vec<_> = (0..5).map(|_| bed.open(VIP, PORT).unwrap()).collect();
    eventually(Some(5), || sum(&first));
    drop(first);
    // Made and ended while no agent runs.
    let meanwhile = bed.open(VIP, PORT).unwrap();

    let second = datapath();
    assert!(second.sync("other", &other, &only(&web)).unwrap().is_nothing());
    assert_eq!(sum(&second), Some(0));
    assert!(second.sync("c", &bed.client, &only(&web)).unwrap().is_nothing());
    assert_eq!(sum(&second), Some(6));
    drop(meanwhile);
    eventually(Some(5), || sum(&second));
    drop(held);
    eventually(Some(0), || sum(&second));
    second.remove("c", Some(&bed.client)).unwrap();
    second.remove("other", Some(&other)).unwrap();
    assert_eq!(second.connections(web.id), None);
}

#[test]
fn the_scheduler_changes_while_calls_go_on_and_open_connections_stay() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let tables = |scheduler| table(&[service(scheduler)]);
    datapath
        .sync("c", &bed.client, &tables(Scheduler::RoundRobin))
        .unwrap();
    let (mut stream, _) = bed.open(VIP, PORT).unwrap();
    let (calls, changes) = (60, 12);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| (0..calls).filter(|_| bed.call(VIP, PORT).is_err()).count());
        for turn in 0..changes {
            datapath
                .sync("c", &bed.client, &tables(Scheduler::ALL[turn % 3]))
                .unwrap();
        }
        assert_eq!(caller.join().unwrap(), 0, "no call failed");
    });
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_drained_backend_keeps_its_connections_and_a_dead_one_loses_them() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let mut web = service(Scheduler::RoundRobin);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let mut streams: Vec<_> = (0..3).map(|_| bed.open(VIP, PORT).unwrap()).collect();
    let sockets: Vec<_> = (0..3).map(|_| bed.udp(VIP)).collect();
    let first: Vec<_> = sockets
        .iter()
        .map(|socket| ask(socket).unwrap().backend)
        .collect();

    web.backends[0].state = BackendState::Draining;
    assert_eq!(datapath.sync("c", &bed.client, &only(&web)).unwrap().cut, 0);
    for ((stream, _), (socket, before)) in streams.iter_mut().zip(sockets.iter().zip(&first)) {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        assert_eq!(ask(socket).unwrap().backend, *before);
    }
    assert_eq!(
        bed.spread(VIP, 4),
        [(ip("10.9.0.12"), 2), (ip("10.9.0.13"), 2)].into()
    );

    web.backends[0].state = BackendState::Down;
    assert!(datapath.sync("c", &bed.client, &only(&web)).unwrap().cut >= 2);
    let dead = ip("10.9.0.11");
    for ((stream, answer), (socket, before)) in streams.iter_mut().zip(sockets.iter().zip(&first)) {
        let result = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
        if answer.backend == dead {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionReset);
        } else {
            result.unwrap();
        }
        let now = ask(socket).unwrap().backend;
        assert!(if *before == dead {
            now != dead
        } else {
            now == *before
        });
    }
}

#[test]
fn a_udp_flow_from_before_the_service_finds_its_backend_once_there_is_one() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let mut other = service(Scheduler::RoundRobin);
    other.id = weft_types::ServiceId([8; 16]);
    other.vips = vec![ip("10.9.0.101")];
    // Another service already has connections tracked in the sandbox.
    datapath.sync("c", &bed.client, &only(&other)).unwrap();
    let socket = bed.udp(VIP);
    socket.send(b"?").unwrap();
    datapath
        .sync("c", &bed.client, &table(&[other, service(Scheduler::RoundRobin)]))
        .unwrap();
    assert!(ask(&socket).is_ok());
}

#[test]
fn a_restarted_agent_adopts_what_is_there_and_writes_only_the_difference() {
    let Some(bed) = Bed::new() else { return };
    let mut api = service(Scheduler::LeastConnections);
    api.id = weft_types::ServiceId([9; 16]);
    api.vips = vec![ip("10.9.0.102")];
    api.ports = vec!["80:8000".parse().unwrap()];
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec!["80:8000".parse().unwrap(), "81:8000".parse().unwrap()];
    let first = datapath();
    assert_eq!(
        first
            .sync("c", &bed.client, &table(&[web.clone(), api.clone()]))
            .unwrap()
            .changed,
        2
    );
    assert!(
        first
            .sync("c", &bed.client, &table(&[api.clone(), web.clone()]))
            .unwrap()
            .is_nothing()
    );
    let (mut stream, _) = bed.open(VIP, 80).unwrap();
    drop(first);
    assert!(bed.call(VIP, 80).is_ok(), "it works without an agent");

    let before = ruleset(&bed.client);
    let second = datapath();
    assert!(
        second
            .sync("c", &bed.client, &table(&[web.clone(), api.clone()]))
            .unwrap()
            .is_nothing()
    );
    assert_eq!(ruleset(&bed.client), before, "not even handles changed");
    drop(second);

    let third = datapath();
    web.ports.pop();
    web.ports.push("82:8000".parse().unwrap());
    let written = third.sync("c", &bed.client, &only(&web)).unwrap();
    assert_eq!((written.changed, written.removed), (1, 1));
    assert!(bed.call(VIP, 82).is_ok());
    assert_eq!(
        bed.call(VIP, 81).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    let text = ruleset(&bed.client);
    assert!(!text.contains("10.9.0.102") && !text.contains("tcp-81"), "{text}");
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn removal_leaves_nothing_of_ours_and_all_of_others() {
    let Some(bed) = Bed::new() else { return };
    let foreign = "add table inet weft-other\nadd table inet weft-0123456789ab\nadd table ip theirs\n";
    let status = bed
        .client
        .run(|| Command::new("nft").arg(foreign).status())
        .unwrap();
    if !status.is_ok_and(|status| status.success()) {
        return eprintln!("skipped, needs the nft program");
    }
    let before = ruleset(&bed.client);
    let events = || bed.client.sysctls(&[EVENTS_SETTING]).unwrap();
    let setting = events();
    let first = datapath();
    let web = service(Scheduler::LeastConnections);
    first.sync("c", &bed.client, &only(&web)).unwrap();
    assert_ne!(ruleset(&bed.client), before);
    first.remove("c", Some(&bed.client)).unwrap();
    assert_eq!(ruleset(&bed.client), before);
    assert_eq!(events(), setting);

    // Also without having put it there, and by an empty sync.
    first.sync("c", &bed.client, &only(&web)).unwrap();
    drop(first);
    datapath().remove("c", Some(&bed.client)).unwrap();
    assert_eq!(ruleset(&bed.client), before);
    let second = datapath();
    second.sync("c", &bed.client, &table(&[web])).unwrap();
    assert_eq!(second.sync("c", &bed.client, &[]).unwrap().removed, 1);
    assert_eq!(ruleset(&bed.client), before);
}

#[test]
fn a_network_without_services_has_no_table() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let before = ruleset(&bed.client);
    assert_eq!(
        datapath.sync("c", &bed.client, &table(&[])).unwrap(),
        Written::default()
    );
    assert_eq!(ruleset(&bed.client), before);
    let with = table(&[service(Scheduler::RoundRobin)]);
    assert_eq!(datapath.sync("c", &bed.client, &with).unwrap().changed, 1);
    let filled = ruleset(&bed.client);
    assert_eq!(
        datapath.sync("c", &bed.client, &with).unwrap(),
        Written::default()
    );
    assert_eq!(ruleset(&bed.client), filled);
    assert_eq!(datapath.sync("c", &bed.client, &table(&[])).unwrap().removed, 1);
    assert_eq!(ruleset(&bed.client), before);
}

#[test]
fn a_sandbox_made_anew_under_its_old_name_is_filled_again() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let tables = table(&[service(Scheduler::LeastConnections)]);
    datapath.sync("c", &Netns::create().unwrap(), &tables).unwrap();
    assert_eq!(datapath.sync("c", &bed.client, &tables).unwrap().changed, 1);
    assert!(bed.call(VIP, PORT).is_ok());
}

#[test]
fn a_virtual_address_moves_between_services_and_belongs_to_one() {
    let Some(bed) = Bed::new() else { return };
    let datapath = datapath();
    let mut one = service(Scheduler::RoundRobin);
    one.backends.truncate(1);
    let mut two = service(Scheduler::RoundRobin);
    two.id = weft_types::ServiceId([8; 16]);
    two.backends = vec![backend(2)];
    datapath
        .sync("c", &bed.client, &table(&[two.clone(), one.clone()]))
        .unwrap();
    assert_eq!(
        bed.call(VIP, PORT).unwrap().backend,
        ip("10.9.0.11"),
        "the lower id keeps it"
    );
    one.vips.clear();
    datapath
        .sync("c", &bed.client, &table(&[two.clone(), one.clone()]))
        .unwrap();
    assert_eq!(bed.call(VIP, PORT).unwrap().backend, ip("10.9.0.12"));
    let flows = bed
        .client
        .run(|| Conntrack::open().unwrap().flows().unwrap())
        .unwrap();
    assert!(
        flows
            .iter()
            .all(|flow| flow.original.dst != ip(VIP) || flow.reply.src != ip("10.9.0.11"))
    );
}

#[test]
fn a_thousand_services_are_installed_in_parts_and_changed_one_by_one() {
    let Some(bed) = Bed::new() else { return };
    let services: Vec<_> = (0..1000u16)
        .map(|n| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            let mut service = service(Scheduler::RoundRobin);
            service.id = weft_types::ServiceId(id);
            service.vips = vec![IpAddr::from([10, 9, 1 + (n >> 8) as u8, n as u8])];
            service.ports = vec!["80:8000".parse().unwrap()];
            service
        })
        .collect();
    let first = datapath();
    assert_eq!(
        first.sync("c", &bed.client, &table(&services)).unwrap().changed,
        1000
    );
    let mut changed = services.clone();
    changed[500].backends.pop();
    assert_eq!(first.sync("c", &bed.client, &table(&changed)).unwrap().changed, 1);
    assert!(
        datapath()
            .sync("c", &bed.client, &table(&changed))
            .unwrap()
            .is_nothing()
    );
    let nft = bed.client.run(Nft::open).unwrap().unwrap();
    assert_eq!(nft.tables("weft-").unwrap().len(), 1);
}
