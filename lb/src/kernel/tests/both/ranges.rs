//! Ranges of ports.

use super::*;
use crate::Service;

scenarios! {
    each_port_of_a_range_leads_to_its_own_target
    a_range_changes_while_connections_are_open
    the_longest_range_is_taken
    no_call_to_a_range_fails_while_the_service_changes
}

fn ranged(scheduler: Scheduler, ports: Vec<PortMap>) -> Service {
    Service {
        ports,
        ..service(scheduler)
    }
}

fn refuses(bed: &Bed, vip: &str, port: u16) {
    let kind = bed.call(vip, port).unwrap_err().kind();
    assert_eq!(kind, ErrorKind::ConnectionRefused, "{port}");
}

fn each_port_of_a_range_leads_to_its_own_target(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    for scheduler in Scheduler::ALL {
        // Backends listen at the third of the five targets.
        let shifted = [PortMap::tcp(5000, PORT - 2), PortMap::udp(5000, PORT - 2)];
        let same = PortMap::tcp(PORT - 2, PORT - 2);
        let ports = shifted.into_iter().chain([same]).map(|port| port.times(5));
        let web = ranged(scheduler, ports.collect());
        datapath.sync("c", &bed.client, &only(&web)).unwrap();
        assert!(datapath.sync("c", &bed.client, &only(&web)).unwrap().is_nothing());
        for vip in [VIP, VIP6] {
            let mut met = BTreeSet::new();
            // By rules, whoever had the fewest connections has them all until somebody has counted again.
            for n in 0..300 {
                met.insert(bed.call(vip, 5002).unwrap().backend);
                met.insert(bed.call(vip, PORT).unwrap().backend);
                if n >= 2 && (met.len() > 1 || scheduler == Scheduler::Maglev) {
                    break;
                }
            }
            assert!(
                scheduler == Scheduler::Maglev || met.len() > 1,
                "{scheduler}: {met:?}"
            );
            // A target where nobody listens, and ports beside the range.
            for port in [5001, PORT - 1, 4999, 5005, PORT + 3] {
                refuses(bed, vip, port);
            }
            let socket = loose(bed, if vip == VIP { "0.0.0.0" } else { "::" });
            let (from, _) = ask_at(&socket, (ip(vip), 5002));
            assert_eq!(from, SocketAddr::new(ip(vip), 5002), "not from its target");
        }
    }
}

fn a_range_changes_while_connections_are_open(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let range = |first, count| {
        ranged(
            Scheduler::RoundRobin,
            vec![PortMap::tcp(first, PORT).times(count)],
        )
    };
    datapath.sync("c", &bed.client, &only(&range(5000, 1))).unwrap();
    let (mut stream, _) = bed.open(VIP, 5000).unwrap();
    for (first, count) in [(5000, 10), (4990, 3), (6000, 1), (5000, 2)] {
        datapath
            .sync("c", &bed.client, &only(&range(first, count)))
            .unwrap();
        assert!(bed.call(VIP, first).is_ok());
        if first != 5000 {
            refuses(bed, VIP, 5000);
        }
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    let adopted = kit.datapath();
    assert!(
        adopted
            .sync("c", &bed.client, &only(&range(5000, 2)))
            .unwrap()
            .is_nothing()
    );
}

fn the_longest_range_is_taken(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let range = PortMap::tcp(5000, PORT - 1023).times(1024);
    let web = ranged(Scheduler::LeastConnections, vec![range]);
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let last = 5000 + 1023;
    let _held: Vec<_> = (0..6).map(|_| bed.open(VIP, last).unwrap()).collect();
    assert!(bed.call(VIP6, last).is_ok());
    refuses(bed, VIP, last + 1);
    datapath.sync("c", &bed.client, &table(&[])).unwrap();
}

fn no_call_to_a_range_fails_while_the_service_changes(kit: &Kit, bed: &Bed) {
    let datapath = kit.datapath();
    let range = PortMap::tcp(5000, PORT - 2).times(5);
    let tables = |scheduler| only(&ranged(scheduler, vec![range.clone()]));
    datapath
        .sync("c", &bed.client, &tables(Scheduler::RoundRobin))
        .unwrap();
    std::thread::scope(|scope| {
        let call = || (0..200).find_map(|_| bed.call(VIP, 5002).err());
        let callers = [scope.spawn(call), scope.spawn(call)];
        for turn in 0..40 {
            datapath
                .sync("c", &bed.client, &tables(Scheduler::ALL[turn % 4]))
                .unwrap();
        }
        // Every connection has its slots written anew.
        datapath
            .sync("c", &bed.client, &tables(Scheduler::LeastConnections))
            .unwrap();
        for caller in callers {
            let failed = caller.join().unwrap();
            assert!(failed.is_none(), "{failed:?}");
        }
    });
}
