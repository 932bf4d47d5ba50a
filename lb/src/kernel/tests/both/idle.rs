//! Connections that nobody speaks on.

use std::time::Duration;

use super::*;
use crate::Service;

scenarios! {
    an_idle_connection_is_reset_when_it_next_speaks_and_a_busy_one_goes_on
    an_idle_conversation_of_datagrams_may_go_on_elsewhere
    an_idle_timeout_changes_while_connections_are_open
}

fn limited(secs: u64, ports: Vec<PortMap>) -> Service {
    Service {
        idle_timeout: Some(Duration::from_secs(secs)),
        ports,
        ..service(Scheduler::RoundRobin)
    }
}

/// Waits until the datapath has forgotten all but so many connections; `meanwhile` the others speak.
fn await_idle(datapath: &dyn Datapath, bed: &Bed, kit: &Kit, left: usize, mut meanwhile: impl FnMut()) {
    let mut closed = 0;
    let conntrack = bed.client.run(|| Conntrack::open().unwrap()).unwrap();
    let tracked = || {
        let flows = conntrack.flows().unwrap();
        let to_vip = |flow: &&Flow| {
            [ip(VIP), ip(VIP6)].contains(&flow.original.dst) && flow.tcp_state == Some(TcpState::Established)
        };
        flows.iter().filter(to_vip).count()
    };
    eventually(true, || {
        meanwhile();
        closed += datapath.expire("c", &bed.client, Instant::now()).unwrap();
        if kit.is_ebpf() {
            closed > 0
        } else {
            tracked() <= left
        }
    });
}

fn an_idle_connection_is_reset_when_it_next_speaks_and_a_busy_one_goes_on(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    for (ports, vip, port) in [
        (vec![PortMap::tcp(80, PORT), PortMap::udp(80, PORT)], VIP, 80),
        (vec![], VIP6, PORT),
    ] {
        let mut web = limited(1, ports);
        // With others it would be one of them that answers what it knows nothing of.
        web.backends.truncate(1);
        datapath.sync("c", &bed.client, &only(&web)).unwrap();
        assert!(datapath.sync("c", &bed.client, &only(&web)).unwrap().is_nothing());
        let (mut idle, _) = bed.open(vip, port).unwrap();
        let (mut busy, _) = bed.open(vip, port).unwrap();
        let mut speak = || {
            busy.write_all(b"x").unwrap();
            busy.read_exact(&mut [0]).unwrap();
        };
        await_idle(&*datapath, bed, kit, 1, &mut speak);
        let started = Instant::now();
        let error = idle
            .write_all(b"x")
            .and_then(|()| idle.read_exact(&mut [0]))
            .unwrap_err();
        let expected = if kit.is_ebpf() {
            [ErrorKind::ConnectionAborted, ErrorKind::BrokenPipe]
        } else {
            [ErrorKind::ConnectionReset; 2]
        };
        assert!(expected.contains(&error.kind()), "{error}");
        assert!(started.elapsed() < PATIENCE / 10, "not in silence");
        speak();
    }
}

fn an_idle_conversation_of_datagrams_may_go_on_elsewhere(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let web = limited(2, vec![PortMap::udp(53, PORT)]);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let socket = loose(bed, "0.0.0.0");
    let (_, first) = ask_at(&socket, (ip(VIP), 53));
    assert_eq!(ask_at(&socket, (ip(VIP), 53)).1, first);
    let spoke = Instant::now();
    eventually(true, || spoke.elapsed() > Duration::from_millis(2_200));
    assert_ne!(ask_at(&socket, (ip(VIP), 53)).1, first, "the next one's turn");

    let web = limited(3_600, vec![PortMap::udp(53, PORT)]);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let socket = loose(bed, "0.0.0.0");
    let (_, first) = ask_at(&socket, (ip(VIP), 53));
    let spoke = Instant::now();
    eventually(true, || spoke.elapsed() > Duration::from_millis(2_200));
    assert_eq!(ask_at(&socket, (ip(VIP), 53)).1, first);
}

fn an_idle_timeout_changes_while_connections_are_open(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let mut web = limited(3_600, vec![PortMap::tcp(80, PORT)]);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let mut streams = vec![bed.open(VIP, 80).unwrap().0];
    for idle in [Some(1_800), None, Some(60)] {
        web.idle_timeout = idle.map(Duration::from_secs);
        assert_eq!(datapath.sync("c", &bed.client, &only(&web)).unwrap().cut, 0);
        streams.push(bed.open(VIP, 80).unwrap().0);
        for stream in &mut streams {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
    }
    if !kit.is_ebpf() {
        assert_eq!(
            super::super::ruleset(&bed.client)
                .matches("ct timeout svc-")
                .count(),
            1
        );
        // The next agent finds it as it is.
        let again = kit.datapath();
        assert!(again.sync("c", &bed.client, &only(&web)).unwrap().is_nothing());
        again.sync("c", &bed.client, &table(&[])).unwrap();
        assert!(!super::super::ruleset(&bed.client).contains("svc-"));
    }
}
