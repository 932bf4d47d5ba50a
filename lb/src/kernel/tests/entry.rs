//! What comes into a namespace: the server's, by an address that is its own.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, UdpSocket},
};

use weft_types::ServiceId;

use super::{super::NftDatapath, bed::*, ruleset};
use crate::{ClientTable, Datapath as _, PortMap, Scheduler, Service};

const DOOR: &str = "10.9.0.11";
const DOOR6: &str = "fd09::11";

/// A service that is entered at one port, with these backends.
fn entered(id: u8, port: u16, scheduler: Scheduler, backends: &[u8]) -> Service {
    Service {
        id: ServiceId([id; 16]),
        vips: vec![ip(DOOR), ip(DOOR6)],
        ports: vec![PortMap::tcp(port, PORT), PortMap::udp(port, PORT)],
        backends: backends.iter().map(|n| backend(*n)).collect(),
        ..service(scheduler)
    }
}

fn sync(datapath: &NftDatapath, bed: &Bed, tables: &[ClientTable]) -> crate::Written {
    datapath.sync("door", &bed.server, tables).unwrap()
}

fn asked_from(bed: &Bed, from: &str, port: u16) -> IpAddr {
    let from = ip(from);
    let to = ip(if from.is_ipv4() { DOOR } else { DOOR6 });
    let socket = bed
        .client
        .run(|| UdpSocket::bind((from, 0)).and_then(|socket| socket.connect((to, port)).map(|()| socket)))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(&socket).unwrap().backend
}

#[test]
fn services_share_an_address_and_a_closed_port_cuts_what_came_by_it() {
    let Some(bed) = Bed::new() else { return };
    let datapath = NftDatapath::entry().unwrap();
    let web = entered(1, 9001, Scheduler::RoundRobin, &[1, 2]);
    let api = entered(2, 9002, Scheduler::LeastConnections, &[2, 3]);
    assert_eq!(
        sync(&datapath, &bed, &table(&[web.clone(), api.clone()])).changed,
        2
    );
    for (door, backends) in [
        (DOOR, ["10.9.0.11", "10.9.0.12"]),
        (DOOR6, ["fd09::11", "fd09::12"]),
    ] {
        let met: BTreeSet<IpAddr> = (0..4).map(|_| bed.call(door, 9001).unwrap().backend).collect();
        assert_eq!(met, backends.map(ip).into());
    }
    let (mut to_web, _) = bed.open(DOOR, 9001).unwrap();
    let (mut to_api, answer) = bed.open(DOOR, 9002).unwrap();
    assert_eq!(answer.client.ip(), ip("10.9.0.1"), "the client's own address");
    eventually(Some(1), || {
        let open = datapath.connections(api.id)?;
        open.into_values().max()
    });
    // What is nobody's port is the namespace's own.
    assert_eq!(bed.call(DOOR, PORT).unwrap().backend, ip(DOOR));
    assert_eq!(
        bed.call(DOOR, 9003).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );

    let before = ruleset(&bed.server);
    let again = NftDatapath::entry().unwrap();
    assert!(sync(&again, &bed, &table(&[web.clone(), api.clone()])).is_nothing());
    assert_eq!(ruleset(&bed.server), before, "adopted as it is");
    drop(datapath);

    // One of two ports of a service, with the same backends behind both.
    let mut two = api.clone();
    two.ports.push(PortMap::tcp(9004, PORT));
    sync(&again, &bed, &table(&[web.clone(), two]));
    let (mut closed, _) = bed.open(DOOR, 9004).unwrap();
    sync(&again, &bed, &table(&[web, api.clone()]));
    closed.write_all(b"x").unwrap();
    assert_eq!(
        closed.read_exact(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );

    let written = sync(&again, &bed, &only(&api));
    assert!(written.removed == 1 && written.cut > 0, "{written:?}");
    assert_eq!(
        bed.call(DOOR, 9001).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    to_api.write_all(b"x").unwrap();
    to_api.read_exact(&mut [0]).unwrap();
    to_web.write_all(b"x").unwrap();
    assert_eq!(
        to_web.read_exact(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );

    assert!(sync(&again, &bed, &[]).cut > 0);
    to_api.write_all(b"x").unwrap();
    assert_eq!(
        to_api.read_exact(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(!ruleset(&bed.server).contains("table inet weft-"));
}

#[test]
fn maglev_goes_by_the_callers_address_whoever_lets_it_in() {
    let Some(bed) = Bed::new() else { return };
    let mut callers = Vec::new();
    let mut lines = String::new();
    for n in 1..=12 {
        lines += &format!("addr add 10.9.0.2{n:02}/24 dev c0\naddr add fd09::2{n:02}/64 dev c0 nodad\n");
        callers.extend([format!("10.9.0.2{n:02}"), format!("fd09::2{n:02}")]);
    }
    ip_batch(&bed.client, &lines);
    let web = entered(1, 9001, Scheduler::Maglev, &[1, 2, 3]);
    let mut chosen = Vec::new();
    // Another name is another host's namespace.
    for name in ["door", "other door"] {
        let datapath = NftDatapath::entry().unwrap();
        datapath.sync(name, &bed.server, &only(&web)).unwrap();
        for _ in 0..3 {
            let met: Vec<IpAddr> = callers
                .iter()
                .map(|caller| asked_from(&bed, caller, 9001))
                .collect();
            chosen.push(met);
        }
        datapath.remove(name, Some(&bed.server)).unwrap();
    }
    assert!(chosen.iter().all(|met| *met == chosen[0]), "{chosen:?}");
    let met: BTreeSet<IpAddr> = chosen[0].iter().copied().collect();
    assert_eq!(met.len(), 6, "all backends, by both versions: {met:?}");
}
