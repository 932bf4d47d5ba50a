//! How many connections were tried and how many failed.

use socket2::SockRef;
use weft_netlink::nft::{
    Chain, ChainType, Datum, Expr, Family, Hook, Load, Nft, Reject, Rule, Table, Transaction, Verdict,
    priority,
};
use weft_types::ServiceId;

use super::*;
use crate::Attempts;

scenarios! {
    attempts_and_failures_are_counted_for_each_backend
    who_gives_up_counts_once_the_backend_had_time_to_answer
    what_is_made_is_counted_while_a_service_is_watched
    who_gets_the_address_of_a_backend_that_is_gone_begins_with_nothing
}

/// What becomes of connections to ports that nobody listens at.
fn refuse_at(server: &Netns, ports: [(u16, Expr); 2]) {
    let table = Table::new(Family::Inet, "test");
    let mut change = Transaction::new();
    let input = Chain::base("in", ChainType::Filter, Hook::Input, priority::FILTER);
    change.add_table(&table).add_chain(&table, input);
    for (port, how) in ports {
        let rule = Rule::new().equal(Load::L4Proto, Datum::Proto(6));
        let rule = rule.equal(Load::Dport, Datum::Port(port)).then(how);
        change.add_rule(&table, "in", rule);
    }
    server
        .run(|| Nft::open().unwrap().commit(&change).unwrap())
        .unwrap();
}

/// What the client has tried with each of the three backends: all of it, and what failed.
fn attempts(datapath: &dyn Datapath, bed: &Bed, web: &Service) -> [(u64, u64); 3] {
    all(datapath, bed, web).map(|attempts| (attempts.total, attempts.failed))
}

/// The same of those over TCP: all of them, and what is known to have been made, and to have failed.
fn over_tcp(datapath: &dyn Datapath, bed: &Bed, web: &Service) -> [(u64, [u64; 2]); 3] {
    all(datapath, bed, web).map(|now| (now.tcp, [now.made, now.failed]))
}

fn all(datapath: &dyn Datapath, bed: &Bed, web: &Service) -> [Attempts; 3] {
    let counted = datapath
        .attempts(web.id)
        .unwrap_or_else(|| datapath.attempts_of("c", &bed.client, &[web]).unwrap());
    [1, 2, 3].map(|n| counted.get(&endpoint(n)).copied().unwrap_or_default())
}

fn attempts_and_failures_are_counted_for_each_backend(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    web.is_watched = true;
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    assert_eq!(attempts(&*datapath, bed, &web), [(0, 0); 3]);
    for vip in [VIP, VIP6] {
        bed.spread(vip, 6);
    }
    assert_eq!(attempts(&*datapath, bed, &web), [(4, 0); 3]);
    // A connection that was made and is reset later has not failed.
    for _ in 0..3 {
        let (stream, _) = bed.open(VIP, PORT).unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(attempts(&*datapath, bed, &web), [(5, 0); 3]);
    for vip in [VIP, VIP6] {
        for _ in 0..3 {
            let error = bed.call(vip, PORT + 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    }
    assert_eq!(attempts(&*datapath, bed, &web), [(7, 2); 3]);
    for _ in 0..3 {
        let socket = bed.udp(VIP);
        for _ in 0..3 {
            ask(&socket).unwrap();
        }
    }
    assert_eq!(attempts(&*datapath, bed, &web), [(8, 2); 3]);
    assert_eq!(over_tcp(&*datapath, bed, &web), [(7, [5, 2]); 3]);

    // Drained or down, and over a restart of the agent, it is the same backend.
    let mut changed = web.clone();
    changed.backends[0].state = BackendState::Draining;
    datapath.sync("c", &bed.client, &only(&changed)).unwrap();
    drop(datapath);
    let datapath = kit.datapath();
    assert!(
        datapath
            .sync("c", &bed.client, &only(&changed))
            .unwrap()
            .is_nothing()
    );
    assert_eq!(attempts(&*datapath, bed, &web), [(8, 2); 3]);
    // Whoever is refused because there is no backend has tried none.
    changed
        .backends
        .iter_mut()
        .for_each(|backend| backend.state = BackendState::Draining);
    datapath.sync("c", &bed.client, &only(&changed)).unwrap();
    assert!(bed.call(VIP, PORT).is_err());
    assert_eq!(attempts(&*datapath, bed, &web), [(8, 2); 3]);
}

fn what_is_made_is_counted_while_a_service_is_watched(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    web.backends.truncate(1);
    let mut other = Service {
        id: ServiceId([8; 16]),
        vips: vec![ip("10.9.0.101")],
        ..web.clone()
    };
    let sync = |datapath: &dyn Datapath, web: &Service, other: &Service| {
        let both = table(&[web.clone(), other.clone()]);
        datapath.sync("c", &bed.client, &both).unwrap()
    };
    // One that is made, and one that fails, over each IP version.
    let try_all = || {
        for vip in [VIP, VIP6] {
            bed.call(vip, PORT).unwrap();
            bed.call(vip, PORT + 1).unwrap_err();
        }
    };
    // Programs look at every connection anyway.
    let made = |by_rules: u64, by_programs| if kit.is_ebpf() { by_programs } else { by_rules };
    sync(&*datapath, &web, &other);
    try_all();
    assert_eq!(over_tcp(&*datapath, bed, &web)[0], (4, [made(0, 2), 2]));
    other.is_watched = true;
    sync(&*datapath, &web, &other);
    try_all();
    assert_eq!(over_tcp(&*datapath, bed, &web)[0], (8, [made(2, 4), 4]));
    drop(datapath);
    let datapath = kit.datapath();
    assert!(sync(&*datapath, &web, &other).is_nothing());
    (web.is_watched, other.is_watched) = (true, false);
    sync(&*datapath, &web, &other);
    try_all();
    assert_eq!(over_tcp(&*datapath, bed, &web)[0], (12, [made(4, 6), 6]));
    // An agent that starts again, and nobody watches any more.
    drop(datapath);
    let datapath = kit.datapath();
    web.is_watched = false;
    sync(&*datapath, &web, &other);
    try_all();
    assert_eq!(over_tcp(&*datapath, bed, &web)[0], (16, [made(4, 8), 8]));
    web.is_watched = true;
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    try_all();
    datapath.sync("c", &bed.client, &only(&other)).unwrap();
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    assert_eq!(
        over_tcp(&*datapath, bed, &web)[0],
        (0, [0, 0]),
        "what is gone begins anew"
    );
}

fn who_gives_up_counts_once_the_backend_had_time_to_answer(kit: &Kit, bed: &Bed) {
    const SILENT: u16 = PORT + 2;
    const UNREACHABLE: u16 = PORT + 3;
    refuse_at(
        &bed.server,
        [
            (SILENT, Expr::Verdict(Verdict::Drop)),
            (UNREACHABLE, Expr::Reject(Reject::PortUnreachable)),
        ],
    );
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    web.backends.truncate(1);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let tried = || {
        let [first, ..] = attempts(&*datapath, bed, &web);
        first
    };
    let give_up_after = |patience| {
        let to = SocketAddr::new(ip(VIP), SILENT);
        let made = bed.client.run(|| TcpStream::connect_timeout(&to, patience));
        assert_eq!(made.unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
    };
    give_up_after(Duration::from_millis(50));
    assert_eq!(tried(), (1, 0));
    assert_eq!(over_tcp(&*datapath, bed, &web)[0], (1, [0, 0]));
    // Rules see packets, and here they see no answer.
    let failed = |n| if kit.is_ebpf() { n } else { 0 };
    give_up_after(Duration::from_millis(1500));
    assert_eq!(tried(), (2, failed(1)));
    let made = bed.client.run(|| TcpStream::connect((ip(VIP), UNREACHABLE)));
    assert_eq!(made.unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(tried(), (3, failed(2)));
}

fn who_gets_the_address_of_a_backend_that_is_gone_begins_with_nothing(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let mut web = service(Scheduler::RoundRobin);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    bed.spread(VIP, 6);
    let heir = backend(1).addrs;
    web.backends[0] = crate::Backend {
        endpoint: endpoint(3),
        ..backend(1)
    };
    web.backends[2] = crate::Backend {
        endpoint: endpoint(1),
        ..backend(3)
    };
    assert_eq!(web.backends[0].addrs, heir);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    assert_eq!(attempts(&*datapath, bed, &web), [(0, 0), (2, 0), (0, 0)]);
    bed.spread(VIP, 3);
    assert_eq!(attempts(&*datapath, bed, &web), [(1, 0), (3, 0), (1, 0)]);
}
