//! What only this datapath does.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use weft_netlink::{bpf::Map, route::RouteSocket};

use super::{layout::MapId, *};
use crate::{
    BackendState, PortMap, Scheduler,
    kernel::tests::bed::{table, *},
};

/// A folder for pins, which leaves nothing behind.
struct Place(tempfile::TempDir);

impl Place {
    /// None where BPF cannot be used.
    fn new() -> Option<(Self, Bed)> {
        let place = Self(tempfile::tempdir().unwrap());
        if let Err(error) = Map::create(MapId::Sockets.spec()) {
            weft_netlink::testing::skip(error);
            return None;
        }
        Some((place, Bed::new()?))
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("bpf")
    }

    fn datapath(&self) -> EbpfDatapath {
        EbpfDatapath::open(&self.dir()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = EbpfDatapath::clear(&self.dir());
    }
}

/// Everything in the maps but what the programs count.
fn contents(datapath: &EbpfDatapath) -> Vec<(Vec<u8>, Vec<u8>)> {
    let state = datapath.lock();
    let ids = [
        MapId::Sandboxes,
        MapId::Vips,
        MapId::Services,
        MapId::Ledger,
        MapId::Slots,
        MapId::Backends,
    ];
    let entries = |id: &MapId| -> Vec<(Vec<u8>, Vec<u8>)> {
        let map = state.maps.as_ref().unwrap().of(*id);
        match id {
            // The rest of these are zeros.
            MapId::Slots | MapId::Backends => (0..16u32)
                .map(|n| n.to_ne_bytes())
                .map(|key| (key.to_vec(), map.get(&key).unwrap().unwrap()))
                .collect(),
            _ => map.entries().unwrap(),
        }
    };
    let mut all: Vec<_> = ids.iter().flat_map(entries).collect();
    all.sort();
    all
}

fn local_routes(netns: &Netns) -> usize {
    RouteSocket::open(netns)
        .unwrap()
        .local_routes(ROUTE_PROTOCOL)
        .unwrap()
        .len()
}

#[test]
fn it_works_without_an_agent_and_the_next_one_adopts_it_unchanged() {
    let Some((place, bed)) = Place::new() else { return };
    let mut api = service(Scheduler::LeastConnections);
    api.id = ServiceId([9; 16]);
    api.vips = vec![ip("10.9.0.102")];
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::tcp(80, 8000), PortMap::tcp(81, 8000)];
    let first = place.datapath();
    let both = table(&[web.clone(), api.clone()]);
    assert_eq!(first.sync("c", &bed.client, &both).unwrap().changed, 2);
    assert!(first.sync("c", &bed.client, &both).unwrap().is_nothing());
    let (mut stream, _) = bed.open(VIP, 80).unwrap();
    let (held, _) = bed.open("10.9.0.102", PORT).unwrap();
    let before = contents(&first);
    drop(first);
    assert!(bed.call("10.9.0.102", PORT).is_ok(), "it works without an agent");

    let second = place.datapath();
    assert!(second.sync("c", &bed.client, &both).unwrap().is_nothing());
    let turns = |contents: &[(Vec<u8>, Vec<u8>)]| contents.len();
    assert_eq!(turns(&contents(&second)), turns(&before));
    let open = |id| second.connections(id).map(|open| open.values().sum::<u64>());
    assert_eq!((open(web.id), open(api.id)), (Some(1), Some(1)));
    drop(held);
    eventually(Some(0), || open(api.id));

    web.ports.pop();
    web.backends[1].state = BackendState::Draining;
    let written = second.sync("c", &bed.client, &only(&web)).unwrap();
    assert_eq!((written.changed, written.removed), (1, 1));
    assert!(bed.call(VIP, 81).is_err() && bed.call("10.9.0.102", PORT).is_err());
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn the_same_agent_again_writes_nothing() {
    let Some((place, bed)) = Place::new() else { return };
    let tables = table(&[service(Scheduler::WeightedRoundRobin)]);
    let first = place.datapath();
    first.sync("c", &bed.client, &tables).unwrap();
    let before = contents(&first);
    drop(first);
    let second = place.datapath();
    second.sync("c", &bed.client, &tables).unwrap();
    assert_eq!(contents(&second), before);
}

#[test]
fn what_the_kernel_took_since_it_was_booted_is_loaded_when_it_is_needed() {
    let Some((place, bed)) = Place::new() else { return };
    let has_loaded = |datapath: &EbpfDatapath| datapath.lock().programs.are_loaded();
    let tables = table(&[service(Scheduler::RoundRobin)]);
    assert!(has_loaded(&place.datapath()), "nothing is known of this kernel");
    let second = place.datapath();
    second.sync("c", &bed.client, &[]).unwrap();
    assert!(!has_loaded(&second), "nobody needs them");
    let has_maps = |datapath: &EbpfDatapath| datapath.lock().maps.is_some();
    assert!(!has_maps(&second), "nor what they would look into");
    assert_eq!(second.connections(service(Scheduler::RoundRobin).id), None);
    second.sync("c", &bed.client, &tables).unwrap();
    assert!(has_loaded(&second) && bed.call(VIP, PORT).is_ok());
    drop(second);
    let third = place.datapath();
    assert!(third.sync("c", &bed.client, &tables).unwrap().is_nothing());
    assert!(!has_loaded(&third), "they are where they are needed");
    assert!(bed.call(VIP, PORT).is_ok());
    third.remove("c", Some(&bed.client)).unwrap();
    drop(third);
    // Of another boot, or of other programs.
    fs::write(place.dir().with_extension("taken"), "another\n").unwrap();
    assert!(has_loaded(&place.datapath()));
}

#[test]
fn what_was_seen_of_many_sandboxes_is_what_each_sync_finds() {
    let Some((place, bed)) = Place::new() else { return };
    let tables = table(&[service(Scheduler::RoundRobin)]);
    let first = place.datapath();
    first.sync("c", &bed.client, &tables).unwrap();
    drop(first);
    let look = |datapath: &EbpfDatapath, name: &str, netns: &Netns| {
        let mut socket = RouteSocket::open(netns).unwrap();
        let (_, local) = socket.marked_routes(ROUTE_PROTOCOL).unwrap();
        datapath.expect(name, EbpfDatapath::look(netns, &socket, &local).unwrap());
    };
    let second = place.datapath();
    look(&second, "c", &bed.client);
    assert!(second.sync("c", &bed.client, &tables).unwrap().is_nothing());
    // It had rules of an earlier agent when it was seen; they are taken out with what is not wanted any more.
    assert_eq!(second.sync("c", &bed.client, &[]).unwrap().removed, 1);
    assert_eq!(local_routes(&bed.client), 0);
    // What was seen of another namespace by that name is of no use.
    let other = Netns::create().unwrap();
    let third = place.datapath();
    look(&third, "c", &other);
    third.sync("c", &bed.client, &tables).unwrap();
    assert!(bed.call(VIP, PORT).is_ok());
}

#[test]
fn a_sandbox_in_which_nothing_was_seen_needs_no_sync_without_services() {
    let Some((place, bed)) = Place::new() else { return };
    let look = |datapath: &EbpfDatapath| {
        let mut socket = RouteSocket::open(&bed.client).unwrap();
        let (_, local) = socket.marked_routes(ROUTE_PROTOCOL).unwrap();
        datapath.expect("c", EbpfDatapath::look(&bed.client, &socket, &local).unwrap());
    };
    let tables = table(&[service(Scheduler::RoundRobin)]);
    let first = place.datapath();
    assert!(!first.is_synced("c", &[]), "nobody has looked");
    look(&first);
    assert!(!first.is_synced("c", &tables), "a service is not there");
    assert!(first.is_synced("c", &[]));
    assert!(first.is_synced("c", &[]), "as long as nothing else is wanted");
    first.sync("c", &bed.client, &tables).unwrap();
    drop(first);

    // What an earlier agent left is taken out, be it in the maps or in the sandbox.
    let second = place.datapath();
    look(&second);
    assert!(!second.is_synced("c", &[]));
    drop(second);
    EbpfDatapath::clear(&place.dir()).unwrap();
    let third = place.datapath();
    look(&third);
    assert!(!third.is_synced("c", &[]), "its routes are still there");
    third.sync("c", &bed.client, &[]).unwrap();
    assert_eq!(local_routes(&bed.client), 0);
}

#[test]
fn what_somebody_else_takes_away_is_missed_and_put_back() {
    let Some((place, bed)) = Place::new() else { return };
    let datapath = place.datapath();
    let tables = table(&[service(Scheduler::RoundRobin)]);
    datapath.sync("c", &bed.client, &tables).unwrap();
    let (mut stream, _) = bed.open(VIP, PORT).unwrap();
    let names = || Pins::find(&place.dir()).unwrap().names().unwrap();
    let all = names().len();
    let forget_names = || {
        let pins = Pins::find(&place.dir()).unwrap();
        names().iter().for_each(|name| pins.remove(name).unwrap());
    };
    let unmount = || Pins::find(&place.dir()).unwrap().unmount().unwrap();
    let detach = || {
        let state = datapath.lock();
        state.links.values().for_each(|link| link.detach().unwrap());
    };
    let damages: [(&str, &dyn Fn(), bool); 3] = [
        ("the names", &forget_names, true),
        ("the mount", &unmount, true),
        ("the programs", &detach, false),
    ];
    for (what, damage, still_works) in damages {
        assert!(datapath.is_whole(), "before {what}");
        damage();
        assert!(!datapath.is_whole(), "{what}");
        assert_eq!(bed.call(VIP, PORT).is_ok(), still_works, "{what}");
        datapath.resync();
        let written = datapath.sync("c", &bed.client, &tables).unwrap();
        assert!(
            written.is_nothing(),
            "what is in the maps is as it was: {written:?}"
        );
        assert!(datapath.is_whole() && names().len() == all, "{what}");
        assert!(bed.call(VIP, PORT).is_ok(), "{what}");
    }
    // What no look tells is found by reading it back.
    {
        let state = datapath.lock();
        let vips = state.maps.as_ref().unwrap().of(MapId::Vips);
        let keys = vips.entries().unwrap().into_iter().map(|(key, _)| key);
        keys.for_each(|key| vips.delete(&key).unwrap());
    }
    EbpfDatapath::leave(&bed.client).unwrap();
    assert!(bed.call(VIP, PORT).is_err() && local_routes(&bed.client) == 0);
    datapath.resync();
    assert_eq!(datapath.sync("c", &bed.client, &tables).unwrap().changed, 1);
    assert!(bed.call(VIP, PORT).is_ok() && local_routes(&bed.client) == 2);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    // The next agent finds all of it.
    drop(datapath);
    let next = place.datapath();
    assert!(next.sync("c", &bed.client, &tables).unwrap().is_nothing());
    assert!(next.is_whole() && bed.call(VIP, PORT).is_ok());
}

#[test]
fn removal_leaves_nothing() {
    let Some((place, bed)) = Place::new() else { return };
    let other = Netns::create().unwrap();
    let tables = table(&[service(Scheduler::LeastConnections)]);
    let first = place.datapath();
    first.sync("c", &bed.client, &tables).unwrap();
    first.sync("other", &other, &tables).unwrap();
    assert!(place.dir().exists() && local_routes(&bed.client) == 2);
    first.remove("other", Some(&other)).unwrap();
    assert!(bed.call(VIP, PORT).is_ok());
    first.remove("c", Some(&bed.client)).unwrap();
    assert!(
        contents(&first)
            .iter()
            .all(|(_, value)| value.iter().all(|byte| *byte == 0) || value.len() == layout::slot::LEN)
    );
    assert!(!place.dir().exists() && local_routes(&bed.client) == 0);
    assert!(
        bed.client
            .run(|| std::net::TcpStream::connect_timeout(&(ip(VIP), PORT).into(), Duration::from_millis(200)))
            .unwrap()
            .is_err()
    );

    // By an empty sync, by an agent that did not put it there, and when the sandbox is long gone.
    assert_eq!(first.sync("c", &bed.client, &tables).unwrap().changed, 1);
    assert_eq!(first.sync("c", &bed.client, &[]).unwrap().removed, 1);
    assert!(!place.dir().exists());
    first.sync("c", &bed.client, &tables).unwrap();
    drop(first);
    place.datapath().remove("c", Some(&bed.client)).unwrap();
    assert!(!place.dir().exists());
    place.datapath().sync("other", &other, &tables).unwrap();
    drop(other);
    let next = place.datapath();
    next.sync("c", &bed.client, &tables).unwrap();
    assert_eq!(
        contents(&next).iter().filter(|(key, _)| key.len() == 8).count(),
        2
    );
    next.retain(&["c".to_owned()].into()).unwrap();
    assert_eq!(
        contents(&next).iter().filter(|(key, _)| key.len() == 8).count(),
        1
    );
    assert!(bed.call(VIP, PORT).is_ok());
    next.retain(&BTreeSet::new()).unwrap();
    assert!(!place.dir().exists());
}

#[test]
fn the_same_address_on_two_networks_is_two_services() {
    let (Some((place, bed)), Some(other)) = (Place::new(), Bed::new()) else {
        return;
    };
    let datapath = place.datapath();
    let mut one = service(Scheduler::RoundRobin);
    one.backends.truncate(1);
    let mut two = service(Scheduler::RoundRobin);
    two.id = ServiceId([8; 16]);
    two.backends = vec![backend(2)];
    let mut second = only(&two);
    second[0].network = weft_types::NetworkId([0xbb; 16]);
    datapath.sync("c", &bed.client, &only(&one)).unwrap();
    datapath.sync("other", &other.client, &second).unwrap();
    assert_eq!(bed.call(VIP, PORT).unwrap().backend, ip("10.9.0.11"));
    assert_eq!(other.call(VIP, PORT).unwrap().backend, ip("10.9.0.12"));
    // A sandbox joins the other network and leaves the first.
    datapath.sync("c", &bed.client, &second).unwrap();
    assert_eq!(bed.call(VIP, PORT).unwrap().backend, ip("10.9.0.12"));
    assert_eq!(datapath.connections(one.id), None);
}

#[test]
fn a_killed_client_and_a_connection_that_was_never_made_are_not_counted() {
    let Some((place, bed)) = Place::new() else { return };
    let datapath = place.datapath();
    let mut web = service(Scheduler::LeastConnections);
    // Nobody listens at the target.
    web.ports = vec![PortMap::tcp(80, PORT), PortMap::tcp(81, 9999)];
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let open = || {
        datapath
            .connections(web.id)
            .map(|open| open.values().sum::<u64>())
    };
    let spawned = bed.client.run(|| {
        Command::new("bash")
            .args([
                "-c",
                &format!("exec 3<>/dev/tcp/{VIP}/80; read -u 3 line; echo ready; exec sleep 1000"),
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()
    });
    let mut client = spawned.unwrap().unwrap();
    client.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    assert_eq!(open(), Some(1));
    client.kill().unwrap();
    client.wait().unwrap();
    eventually(Some(0), open);

    let refused = bed.client.run(|| {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        );
        let socket = socket.unwrap();
        let addr =
            nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new([10, 9, 0, 100].into(), 81));
        let error = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &addr).unwrap_err();
        (socket, error)
    });
    let (socket, error) = refused.unwrap();
    assert_eq!(error, nix::errno::Errno::ECONNREFUSED);
    eventually(Some(0), open);
    drop(socket);
    assert_eq!(open(), Some(0));
}

#[test]
fn who_says_that_it_is_done_is_open_until_it_is_answered_and_its_socket_counts_again() {
    let Some((place, bed)) = Place::new() else { return };
    let datapath = place.datapath();
    let mut web = service(Scheduler::LeastConnections);
    web.backends.truncate(1);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    // Answers only to what has an end.
    let listener = bed.server.run(|| TcpListener::bind(("10.9.0.11", 8500)).unwrap());
    let listener = listener.unwrap();
    let open = || datapath.connections(web.id).unwrap()[&endpoint(1)];
    let tried = || {
        let tried = datapath.attempts(web.id).unwrap()[&endpoint(1)];
        (tried.tcp, tried.made, tried.failed)
    };
    let mut socket = bed
        .client
        .run(|| TcpStream::connect((ip(VIP), 8500)).unwrap())
        .unwrap();
    let (mut answering, _) = listener.accept().unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    answering.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(open(), 1);
    answering.write_all(b"all").unwrap();
    drop(answering);
    socket.read_to_end(&mut Vec::new()).unwrap();
    eventually(0, open);
    drop(socket);
    assert_eq!(tried(), (1, 1, 0));

    // A socket that was refused may be connected again, and the other side ends that first.
    let mut socket = bed
        .client
        .run(|| Socket::new(Domain::IPV4, Type::STREAM, None))
        .unwrap()
        .unwrap();
    let connect = |socket: &Socket, port| socket.connect(&SocketAddr::new(ip(VIP), port).into());
    let error = connect(&socket, 9999).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!((open(), tried()), (0, (2, 1, 1)));
    connect(&socket, 8500).unwrap();
    assert_eq!((open(), tried()), (1, (3, 2, 1)));
    drop(listener.accept().unwrap());
    socket.read_to_end(&mut Vec::new()).unwrap();
    eventually(0, open);
}

#[test]
fn ten_thousand_services_are_written_at_once_and_changed_one_by_one() {
    let Some((place, bed)) = Place::new() else { return };
    let backends: Vec<_> = (0..10u8)
        .map(|n| crate::Backend {
            endpoint: EndpointId([n + 1; 16]),
            addrs: vec![IpAddr::from([10, 9, 0, 11 + n])],
            ..backend(1)
        })
        .collect();
    let services: Vec<_> = (0..10_000u16)
        .map(|n| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            crate::Service {
                id: ServiceId(id),
                vips: vec![IpAddr::from([10, 10, (n >> 8) as u8, n as u8])],
                ports: vec![PortMap::tcp(80, 8000)],
                backends: backends.clone(),
                ..service(Scheduler::RoundRobin)
            }
        })
        .collect();
    let datapath = place.datapath();
    let started = Instant::now();
    assert_eq!(
        datapath
            .sync("c", &bed.client, &table(&services))
            .unwrap()
            .changed,
        10_000
    );
    let all = started.elapsed();
    let mut changed = services.clone();
    changed[500].backends.truncate(1);
    let started = Instant::now();
    assert_eq!(
        datapath.sync("c", &bed.client, &table(&changed)).unwrap().changed,
        1
    );
    eprintln!(
        "10,000 services in {all:?}, one change in {:?}",
        started.elapsed()
    );
    assert_eq!(bed.call("10.10.1.244", 80).unwrap().backend, ip("10.9.0.11"));
    let adopted = place.datapath();
    assert!(
        adopted
            .sync("c", &bed.client, &table(&changed))
            .unwrap()
            .is_nothing()
    );
}

#[test]
fn no_call_fails_and_every_count_comes_back_to_nothing_while_backends_come_and_go() {
    let Some((place, bed)) = Place::new() else { return };
    let datapath = place.datapath();
    let mut web = service(Scheduler::LeastConnections);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let (callers, calls) = (4, 150);
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let call = |caller: usize| {
            let mut held = Vec::new();
            for n in 0..calls {
                let vip = if (n + caller).is_multiple_of(2) { VIP } else { VIP6 };
                held.push(bed.open(vip, PORT).unwrap());
                made.fetch_add(1, Ordering::Relaxed);
                if n % 5 == caller {
                    held.clear();
                }
            }
        };
        let running: Vec<_> = (0..callers)
            .map(|caller| scope.spawn(move || call(caller)))
            .collect();
        let (mut turn, mut seen) = (0, 0);
        while !running.iter().all(|thread| thread.is_finished()) {
            // One at a time drains; the table changes between any two calls, but no faster: what it no longer needs
            // rests for a second.
            let now = made.load(Ordering::Relaxed);
            if std::mem::replace(&mut seen, now) == now {
                std::thread::yield_now();
                continue;
            }
            for (n, backend) in web.backends.iter_mut().enumerate() {
                let drains = n == turn % 3;
                backend.state = if drains {
                    BackendState::Draining
                } else {
                    BackendState::Active
                };
            }
            web.scheduler = Scheduler::ALL[turn % 4];
            turn += 1;
            datapath.sync("c", &bed.client, &only(&web)).unwrap();
        }
        assert!(turn > 3);
    });
    let open = || datapath.connections(web.id).unwrap();
    eventually([1, 2, 3].map(|n| (endpoint(n), 0)).into(), open);
}
