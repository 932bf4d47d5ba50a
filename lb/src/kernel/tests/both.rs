//! What every datapath does, on the real kernel, run on each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use weft_netlink::{
    conntrack::{Conntrack, Flow, TcpState},
    netns::Netns,
    testing::skip,
};

use super::{bed::*, even};
use crate::{
    BackendState, Datapath, PortMap, Scheduler, Service, Written,
    kernel::{EbpfDatapath, NftDatapath},
};

/// A datapath to test.
enum Kit {
    Nft,
    Ebpf(tempfile::TempDir),
}

impl Kit {
    fn ebpf() -> Self {
        Self::Ebpf(tempfile::tempdir().unwrap())
    }

    /// A new one, as an agent makes at its start.
    fn datapath(&self) -> Box<dyn Datapath> {
        match self {
            Self::Nft => Box::new(NftDatapath::new().unwrap()),
            Self::Ebpf(dir) => Box::new(EbpfDatapath::open(&dir.path().join("bpf")).unwrap()),
        }
    }

    fn is_ebpf(&self) -> bool {
        matches!(self, Self::Ebpf(_))
    }

    /// Whether it can be used here.
    fn works(&self) -> bool {
        match self {
            Self::Nft => true,
            Self::Ebpf(dir) => EbpfDatapath::open(&dir.path().join("bpf"))
                .inspect_err(|error| skip(error))
                .is_ok(),
        }
    }

    fn run(self, scenario: impl FnOnce(&Self, &Bed)) {
        if self.works()
            && let Some(bed) = Bed::new()
        {
            scenario(&self, &bed);
        }
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        if let Self::Ebpf(dir) = self {
            let _ = EbpfDatapath::clear(&dir.path().join("bpf"));
        }
    }
}

/// Each scenario once for each datapath.
macro_rules! scenarios {
    ($($name:ident)*) => {
        mod nft {
            $(#[test] fn $name() { super::Kit::Nft.run(super::$name); })*
        }
        mod ebpf {
            $(#[test] fn $name() { super::Kit::ebpf().run(super::$name); })*
        }
    };
}

mod counts;
mod idle;
mod ranges;
mod tricks;

scenarios! {
    round_robin_spreads_calls_exactly_and_keeps_the_clients_address
    weights_are_kept
    ports_are_translated_to_their_targets_and_others_refuse
    without_a_backend_a_call_is_refused_at_once
    a_client_that_is_a_backend_reaches_itself
    least_connection_avoids_the_one_that_holds_connections
    counts_are_summed_over_the_sandboxes_of_a_host_and_found_again_after_a_restart
    the_scheduler_changes_while_calls_go_on_and_open_connections_stay
    a_drained_backend_keeps_its_connections_and_a_dead_one_loses_them
    a_udp_flow_from_before_the_service_finds_its_backend_once_there_is_one
    a_sandbox_made_anew_under_its_old_name_is_filled_again
    a_virtual_address_moves_between_services_and_belongs_to_one
    sockets_that_are_not_connected_get_answers_from_the_address_they_asked
    sockets_of_ipv6_may_talk_to_ipv4
    maglev_keeps_a_client_at_its_backend
    a_backends_end_of_a_connection_is_counted_at_once
}

fn round_robin_spreads_calls_exactly_and_keeps_the_clients_address(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
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
    assert_eq!(
        datapath.connections(service(Scheduler::RoundRobin).id).is_some(),
        kit.is_ebpf()
    );
}

fn weights_are_kept(kit: &Kit, bed: &Bed) {
    let mut web = service(Scheduler::WeightedRoundRobin);
    web.backends[0].weight = 4.try_into().unwrap();
    kit.datapath().sync("c", &bed.client, &table(&[web])).unwrap();
    let spread = bed.spread(VIP, 12);
    assert_eq!(
        spread,
        [(ip("10.9.0.11"), 8), (ip("10.9.0.12"), 2), (ip("10.9.0.13"), 2)].into()
    );
}

fn ports_are_translated_to_their_targets_and_others_refuse(kit: &Kit, bed: &Bed) {
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::tcp(80, PORT), PortMap::udp(PORT, PORT)];
    kit.datapath().sync("c", &bed.client, &table(&[web])).unwrap();
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

fn without_a_backend_a_call_is_refused_at_once(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
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

fn a_client_that_is_a_backend_reaches_itself(kit: &Kit, bed: &Bed) {
    bed.serve_at_client("10.9.0.1");
    bed.serve_at_client("fd09::1");
    let mut web = service(Scheduler::RoundRobin);
    web.backends.truncate(2);
    web.backends[0].addrs = vec![ip("10.9.0.1"), ip("fd09::1")];
    kit.datapath().sync("c", &bed.client, &table(&[web])).unwrap();
    for (vip, own) in [(VIP, ip("10.9.0.1")), (VIP6, ip("fd09::1"))] {
        let spread = bed.spread(vip, 6);
        assert_eq!(spread.get(&own), Some(&3), "{spread:?}");
        assert!((0..2).any(|_| ask(&bed.udp(vip)).unwrap().backend == own));
    }
}

fn least_connection_avoids_the_one_that_holds_connections(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let web = service(Scheduler::LeastConnections);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    // nf_tables places by counts that are a moment old, so two connections in a row may go to one backend.
    let slack = if kit.is_ebpf() { 0 } else { 1 };
    // Idle, it spreads as evenly as round robin.
    let open = |n: [u64; 3]| Some([1, 2, 3].map(|i| (endpoint(i), n[usize::from(i) - 1])).into());
    let mut spread = BTreeMap::new();
    for _ in 0..12 {
        *spread.entry(bed.call(VIP, PORT).unwrap().backend).or_insert(0) += 1;
        eventually(open([0, 0, 0]), || datapath.connections(web.id));
    }
    let uneven = spread.values().map(|calls: &u64| calls.abs_diff(4)).max();
    assert!(spread.len() == 3 && uneven <= Some(slack), "{spread:?}");

    // One backend holds six connections, made while it was alone.
    let mut alone = web.clone();
    alone.backends.truncate(1);
    datapath.sync("c", &bed.client, &table(&[alone])).unwrap();
    let held: Vec<_> = (0..6).map(|_| bed.open(VIP, PORT).unwrap()).collect();
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    eventually(open([6, 0, 0]), || datapath.connections(web.id));
    let mut more = Vec::new();
    for i in 1..=12 {
        more.push(bed.open(VIP, PORT).unwrap());
        eventually(Some(6 + i), || {
            datapath
                .connections(web.id)
                .map(|open| open.values().sum::<u64>())
        });
    }
    let now = datapath.connections(web.id).unwrap();
    assert_eq!(now[&endpoint(1)], 6, "{now:?}");
    assert!(
        [2, 3].iter().all(|i| now[&endpoint(*i)].abs_diff(6) <= slack),
        "{now:?}"
    );
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

fn counts_are_summed_over_the_sandboxes_of_a_host_and_found_again_after_a_restart(kit: &Kit, bed: &Bed) {
    let other = Netns::create().unwrap();
    let web = service(Scheduler::LeastConnections);
    let first = kit.datapath();
    first.sync("c", &bed.client, &only(&web)).unwrap();
    first.sync("other", &other, &only(&web)).unwrap();
    let sum = |datapath: &dyn Datapath| {
        datapath
            .connections(web.id)
            .map(|open| open.values().sum::<u64>())
    };
    let held: Vec<_> = (0..5).map(|_| bed.open(VIP, PORT).unwrap()).collect();
    eventually(Some(5), || sum(&*first));
    drop(first);
    // Made and ended while no agent runs.
    let meanwhile = bed.open(VIP, PORT).unwrap();

    let second = kit.datapath();
    assert!(second.sync("other", &other, &only(&web)).unwrap().is_nothing());
    // With eBPF they are counted where they are made, not where an agent finds them.
    assert_eq!(sum(&*second), Some(if kit.is_ebpf() { 6 } else { 0 }));
    assert!(second.sync("c", &bed.client, &only(&web)).unwrap().is_nothing());
    assert_eq!(sum(&*second), Some(6));
    drop(meanwhile);
    eventually(Some(5), || sum(&*second));
    drop(held);
    eventually(Some(0), || sum(&*second));
    second.remove("c", Some(&bed.client)).unwrap();
    second.remove("other", Some(&other)).unwrap();
    assert_eq!(second.connections(web.id), None);
}

fn the_scheduler_changes_while_calls_go_on_and_open_connections_stay(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
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
                .sync("c", &bed.client, &tables(Scheduler::ALL[turn % 4]))
                .unwrap();
        }
        assert_eq!(caller.join().unwrap(), 0, "no call failed");
    });
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

fn a_drained_backend_keeps_its_connections_and_a_dead_one_loses_them(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
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
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
            assert!(kinds.contains(&result.unwrap_err().kind()));
        } else {
            result.unwrap();
        }
        if kit.is_ebpf() && *before == dead {
            assert!(ask(socket).is_err(), "it was disconnected");
            assert_ne!(ask(&bed.udp(VIP)).unwrap().backend, dead);
            continue;
        }
        let now = ask(socket).unwrap().backend;
        assert!(if *before == dead {
            now != dead
        } else {
            now == *before
        });
    }
}

fn a_udp_flow_from_before_the_service_finds_its_backend_once_there_is_one(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
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
    if kit.is_ebpf() {
        assert!(ask(&socket).is_err(), "it was disconnected");
        assert!(ask(&bed.udp(VIP)).is_ok());
    } else {
        assert!(ask(&socket).is_ok());
    }
}

fn a_sandbox_made_anew_under_its_old_name_is_filled_again(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let tables = table(&[service(Scheduler::LeastConnections)]);
    datapath.sync("c", &Netns::create().unwrap(), &tables).unwrap();
    assert_eq!(datapath.sync("c", &bed.client, &tables).unwrap().changed, 1);
    assert!(bed.call(VIP, PORT).is_ok());
}

fn a_virtual_address_moves_between_services_and_belongs_to_one(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
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
    if !kit.is_ebpf() {
        let flows = bed
            .client
            .run(|| Conntrack::open().unwrap().flows().unwrap())
            .unwrap();
        let leads_there = |flow: &Flow| flow.original.dst == ip(VIP) && flow.reply.src == ip("10.9.0.11");
        assert!(
            flows
                .iter()
                .all(|flow| flow.tcp_state == Some(TcpState::Closed) || !leads_there(flow))
        );
    }
}

/// A datagram socket of the client that is not connected.
fn loose(bed: &Bed, any: &str) -> UdpSocket {
    let socket = bed.client.run(|| UdpSocket::bind((ip(any), 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a question to an address: who the answer is said to be from, and which backend gave it.
fn ask_at(socket: &UdpSocket, to: (IpAddr, u16)) -> (SocketAddr, IpAddr) {
    socket.send_to(b"?", to).unwrap();
    let mut buffer = [0; 256];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    let line = std::str::from_utf8(&buffer[..len]).unwrap();
    (from, ip(line.split(' ').next().unwrap()))
}

fn sockets_that_are_not_connected_get_answers_from_the_address_they_asked(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::udp(53, PORT)];
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    for (any, vip) in [("0.0.0.0", VIP), ("::", VIP6)] {
        let mut backends = BTreeSet::new();
        for _ in 0..3 {
            let socket = loose(bed, any);
            let (from, first) = ask_at(&socket, (ip(vip), 53));
            assert_eq!(from, SocketAddr::new(ip(vip), 53));
            // The conversation stays where it began, also when the socket talks to others in between.
            let others = [ip("10.9.0.11"), ip("10.9.0.12"), ip("fd09::11"), ip("fd09::12")];
            let other = others
                .into_iter()
                .find(|other| *other != first && other.is_ipv4() == first.is_ipv4())
                .unwrap();
            let (direct, backend) = ask_at(&socket, (other, PORT));
            assert_eq!(backend, other);
            assert_eq!((direct.ip(), direct.port()), (other, PORT));
            assert_eq!(ask_at(&socket, (ip(vip), 53)), (from, first));
            backends.insert(first);
        }
        assert_eq!(backends.len(), 3, "each socket has its turn");
    }

    let socket = loose(bed, "0.0.0.0");
    let (_, first) = ask_at(&socket, (ip(VIP), 53));
    let dead = web
        .backends
        .iter_mut()
        .find(|backend| backend.addrs.contains(&first))
        .unwrap();
    dead.state = BackendState::Down;
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let (from, second) = ask_at(&socket, (ip(VIP), 53));
    assert!(
        from.ip() == ip(VIP) && second != first,
        "a conversation with a dead backend goes on elsewhere"
    );
}

fn maglev_keeps_a_client_at_its_backend(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let mut web = service(Scheduler::Maglev);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let spread = bed.spread(VIP, 6);
    let (&own, 6) = spread.first_key_value().unwrap() else {
        panic!("{spread:?}");
    };
    // Both datapaths find the same one, and it stays when another goes.
    let seed = crate::kernel::program::fnv(b"c");
    let table = crate::choices(&web, false, &crate::Loads::new());
    let expected = table[(seed % table.len() as u64) as usize];
    let is_own = |backend: &crate::Backend| backend.addrs.contains(&own);
    let at = web.backends.iter().position(is_own).unwrap();
    assert_eq!(web.backends[at].endpoint, expected);
    web.backends[(at + 1) % 3].state = BackendState::Down;
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    assert_eq!(bed.spread(VIP, 3), [(own, 3)].into());
    web.backends[at].state = BackendState::Draining;
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    assert!(!bed.spread(VIP, 3).contains_key(&own));
}

fn sockets_of_ipv6_may_talk_to_ipv4(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    datapath
        .sync("c", &bed.client, &table(&[service(Scheduler::LeastConnections)]))
        .unwrap();
    let mapped = IpAddr::from(Ipv4Addr::new(10, 9, 0, 100).to_ipv6_mapped());
    let (stream, answer) = bed.open(&mapped.to_string(), PORT).unwrap();
    assert!(answer.backend.is_ipv4());
    assert_eq!(stream.peer_addr().unwrap().ip(), mapped);
    let (from, backend) = ask_at(&loose(bed, "::"), (mapped, PORT));
    assert!(from.ip() == mapped && backend.is_ipv4());
    assert!(ask(&bed.udp(&mapped.to_string())).unwrap().backend.is_ipv4());
}

fn a_backends_end_of_a_connection_is_counted_at_once(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let web = service(Scheduler::LeastConnections);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let open = || {
        datapath
            .connections(web.id)
            .map(|open| open.values().sum::<u64>())
    };
    let (mut stream, _) = bed.open(VIP, PORT).unwrap();
    eventually(Some(1), open);
    // The backend takes this for the end, and ends its side too; the client still has its socket.
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    eventually(Some(0), open);
    // Nobody listens there: it never was a connection.
    let socket = bed
        .client
        .run(|| TcpStream::connect((ip(VIP), PORT + 1)))
        .unwrap();
    assert_eq!(socket.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    eventually(Some(0), open);
}
