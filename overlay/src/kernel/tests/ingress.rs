//! The way into a network, on a host without an endpoint of it.

use std::process::Command;

use super::bed::*;
use crate::plan::{HostPort, Ingress, RemoteEndpoint, Transport};

fn ingress() -> Ingress {
    let port = |transport, at: Option<&str>| HostPort {
        port: 8080,
        transport,
        at: at.map(ip),
    };
    Ingress {
        mac: mac(90),
        addresses: vec![ip("10.9.0.9"), ip("fd00:9::9")],
        ports: [
            port(Transport::Tcp, None),
            port(Transport::Udp, Some("192.0.2.1")),
            port(Transport::Udp, Some("::")),
        ]
        .into(),
    }
}

/// The first host lets in, the second one has an endpoint.
fn entered() -> Option<Lab> {
    let mut lab = Lab::new(2)?;
    lab.attach(1, APP, 21, 21, false);
    let place = RemoteEndpoint {
        mac: mac(90),
        addresses: ingress().addresses,
        vtep: vtep(1, false),
    };
    let network = lab.hosts[1].desired.networks.get_mut(&APP).unwrap();
    network.remotes.insert(endpoint(90), place);
    lab.hosts[0].desired.networks.get_mut(&APP).unwrap().ingress = Some(ingress());
    Some(lab)
}

#[test]
fn a_host_that_lets_in_has_a_place_on_the_network_and_leaves_nothing_of_it() {
    let Some(mut lab) = entered() else { return };
    let before = lab.hosts[0].objects();
    lab.reconcile();
    let space = lab.hosts[0].kernel.namespace(APP).unwrap().unwrap();
    for address in ingress().addresses {
        assert!(reaches(lab.netns(21), &space, address), "{address}");
    }
    drop(space);
    let host = &mut lab.hosts[0];
    let open = host.kernel.open_ports().unwrap().open;
    assert_eq!(open.len(), 4);
    assert!(open.values().all(|to| host.kernel.entry(APP).contains(to)));
    // An agent that comes after finds all of it as it should be.
    host.restart();
    assert_eq!(host.kernel.reconcile(&host.desired).unwrap().ops_done, 0);
    host.desired.networks.get_mut(&APP).unwrap().ingress = None;
    host.reconcile();
    assert_eq!(host.objects(), before);
}

#[test]
fn what_others_break_of_it_is_made_good() {
    let Some(mut lab) = entered() else { return };
    lab.reconcile();
    let host = &mut lab.hosts[0];
    let space = host.kernel.namespace(APP).unwrap().unwrap();
    let uplink = format!("weft-{}", &APP.short()[..10]);
    let in_space = [
        "ip link delete in0",
        "ip link set in0-port nomaster",
        "ip address delete 10.9.0.9/32 dev in0",
        "nft delete table inet weft-ingress",
        "nft flush ruleset",
    ];
    let outside = [
        "nft flush table inet weft-ports".to_owned(),
        "nft delete table inet weft-ports".to_owned(),
        format!("ip -6 route delete local ::1 dev {uplink} table local"),
        format!("ip link delete {uplink}"),
    ];
    let inside = in_space.iter().map(|line| (&space, (*line).to_owned()));
    let outside = outside.into_iter().map(|line| (&host.netns, line));
    let damages: Vec<_> = inside
        .chain(outside)
        .map(|(place, line)| (place.try_clone().unwrap(), line))
        .collect();
    drop(space);
    for (place, line) in damages {
        let words: Vec<&str> = line.split(' ').collect();
        let run = || Command::new(words[0]).args(&words[1..]).status();
        match place.run(run).unwrap() {
            Ok(status) => assert!(status.success(), "{line}"),
            Err(error) => return weft_netlink::testing::skip(format_args!("{}: {error}", words[0])),
        }
        host.kernel.resync();
        let report = host.kernel.reconcile(&host.desired).unwrap();
        assert!(report.ops_done > 0, "{line} was not noticed");
        assert!(report.errors.is_empty(), "{line}: {}", errors(&report));
        host.assert_unchanged();
    }
}
