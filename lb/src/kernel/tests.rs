//! The real kernel, in namespaces.

pub(super) mod bed;
mod both;
mod entry;
mod handover;
mod sctp;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::IpAddr,
    process::Command,
};

use weft_netlink::{netns::Netns, nft::Nft};

use self::bed::*;
use super::*;
use crate::{PortMap, Scheduler};

fn datapath() -> NftDatapath {
    NftDatapath::new().unwrap()
}

fn even(n: usize) -> BTreeMap<IpAddr, usize> {
    ["10.9.0.11", "10.9.0.12", "10.9.0.13"]
        .map(|addr| (ip(addr), n))
        .into()
}

/// Has the program `nft` do something; false if there is none.
fn nft(netns: &Netns, text: &str) -> bool {
    let status = netns.run(|| Command::new("nft").arg(text).status()).unwrap();
    match &status {
        Ok(status) => assert!(status.success(), "{text}"),
        Err(error) => weft_netlink::testing::skip(format_args!("it needs the program `nft`: {error}")),
    }
    status.is_ok()
}

/// All rules with the numbers that the kernel gave them, which a rewrite would change.
fn ruleset(netns: &Netns) -> String {
    let output = netns
        .run(|| Command::new("nft").args(["-a", "list", "ruleset"]).output())
        .unwrap()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn table_name(netns: &Netns) -> String {
    let text = ruleset(netns);
    let mut words = text.split_whitespace();
    words.find(|word| word.starts_with("weft-")).unwrap().to_owned()
}

#[test]
fn a_restarted_agent_adopts_what_is_there_and_writes_only_the_difference() {
    let Some(bed) = Bed::new() else { return };
    let mut api = service(Scheduler::LeastConnections);
    api.id = weft_types::ServiceId([9; 16]);
    api.vips = vec![ip("10.9.0.102")];
    api.ports = vec![PortMap::tcp(80, 8000)];
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::tcp(80, 8000), PortMap::tcp(81, 8000)];
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
    web.ports.push(PortMap::tcp(82, 8000));
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
fn what_others_broke_is_found_when_it_is_read_back_and_written_again() {
    let Some(bed) = Bed::new() else { return };
    let mut api = service(Scheduler::LeastConnections);
    api.id = weft_types::ServiceId([9; 16]);
    api.vips = vec![ip("10.9.0.102")];
    let web = service(Scheduler::RoundRobin);
    let services = table(&[web.clone(), api.clone()]);
    let datapath = datapath();
    datapath.sync("c", &bed.client, &services).unwrap();
    let (mut stream, _) = bed.open("10.9.0.102", PORT).unwrap();
    let name = table_name(&bed.client);
    for damage in [
        "flush ruleset".to_owned(),
        format!("delete table inet {name}"),
        format!("flush table inet {name}"),
        format!("flush map inet {name} vips4"),
        format!("flush map inet {name} all4"),
        format!("flush map inet {name} slots4-0"),
        format!("flush chain inet {name} svc-{}", web.id),
        format!(
            "delete element inet {name} vips4 {{ {VIP} }}; add element inet {name} vips4 {{ {VIP} : 10.9.0.77 }}"
        ),
    ] {
        if !nft(&bed.client, &damage) {
            return;
        }
        datapath.resync();
        assert!(!datapath.sync("c", &bed.client, &services).unwrap().is_nothing());
        assert_eq!(bed.spread(VIP, 6), even(2), "{damage}");
        // The one with the open stream is spared, the others are not.
        assert!(bed.spread("10.9.0.102", 4).len() >= 2, "{damage}");
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    let before = ruleset(&bed.client);
    datapath.resync();
    assert!(datapath.sync("c", &bed.client, &services).unwrap().is_nothing());
    // Where connections are counted the choices are laid out anew all the time.
    let of_web = |text: &str| -> String {
        let (_, chain) = text.split_once("chain svc-0707").unwrap();
        chain.split_once("\n\t}").unwrap().0.to_owned()
    };
    assert_eq!(
        of_web(&ruleset(&bed.client)),
        of_web(&before),
        "what is right is left alone"
    );
    let open = datapath.connections(api.id).unwrap();
    assert_eq!(open.values().sum::<u64>(), 1, "{open:?}");
}

#[test]
fn addresses_and_slots_that_are_nobodys_are_taken_out() {
    let Some(bed) = Bed::new() else { return };
    let mut web = service(Scheduler::RoundRobin);
    let datapath = datapath();
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let name = table_name(&bed.client);
    let others = format!(
        "add element inet {name} vips4 {{ 10.9.0.78 : 10.9.0.79 }}; \
         add element inet {name} slots4-0 {{ 4000000000 : 10.9.0.79 }}"
    );
    if !nft(&bed.client, &others) {
        return;
    }
    datapath.resync();
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    assert!(!ruleset(&bed.client).contains("10.9.0.78"));
    // What leads nowhere waits until there is something to write.
    web.backends.pop();
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let text = ruleset(&bed.client);
    assert!(!text.contains("10.9.0.79"), "{text}");
}

#[test]
fn a_table_of_another_layout_is_replaced() {
    let Some(bed) = Bed::new() else { return };
    let services = only(&service(Scheduler::RoundRobin));
    let first = datapath();
    first.sync("c", &bed.client, &services).unwrap();
    let name = table_name(&bed.client);
    first.remove("c", Some(&bed.client)).unwrap();
    let earlier = format!(
        "table inet {name} {{
            map vips4 {{ type ipv4_addr : verdict; elements = {{ {VIP} : goto svc-{id} }}; }}
            chain vips {{
                type nat hook output priority -100;
                ct state new comment \"weft virtual addresses, layout 3\"
                ip daddr vmap @vips4
            }}
            chain svc-{id} {{ dnat ip to numgen inc mod 2 map {{ 0 : 10.9.0.11, 1 : 10.9.0.12 }}; }}
        }}",
        id = "07".repeat(16)
    );
    if !nft(&bed.client, &earlier) {
        return;
    }
    let (mut stream, _) = bed.open(VIP, PORT).unwrap();
    let written = datapath().sync("c", &bed.client, &services).unwrap();
    assert_eq!((written.changed, written.cut), (1, 0));
    assert!(!ruleset(&bed.client).contains("layout 3"));
    assert_eq!(bed.spread(VIP, 6), even(2));
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn what_is_open_is_counted_for_who_asks_where_no_scheduler_needs_it() {
    let Some(bed) = Bed::new() else { return };
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::tcp(80, 8000)];
    let datapath = datapath();
    datapath.sync("c", &bed.client, &table(&[web.clone()])).unwrap();
    assert_eq!(datapath.connections(web.id), None);
    let count = || datapath.count("c", &bed.client, &[&web]).unwrap();
    assert_eq!(count(), BTreeMap::new());
    let streams: Vec<_> = (0..4).map(|_| bed.open(VIP, 80).unwrap()).collect();
    let open = count();
    assert_eq!(
        (open.len(), open.values().sum::<u64>()),
        (web.backends.len().min(4), 4),
        "{open:?}"
    );
    drop(streams);
    eventually(BTreeMap::new(), count);
}

#[test]
fn connections_that_are_over_are_left_alone_when_their_backend_goes() {
    let Some(bed) = Bed::new() else { return };
    let mut web = service(Scheduler::RoundRobin);
    web.ports = vec![PortMap::tcp(80, 8000)];
    let datapath = datapath();
    datapath.sync("c", &bed.client, &table(&[web.clone()])).unwrap();
    drop((0..6).map(|_| bed.open(VIP, 80).unwrap()).collect::<Vec<_>>());
    eventually(BTreeMap::new(), || {
        datapath.count("c", &bed.client, &[&web]).unwrap()
    });
    let mut fewer = web.clone();
    fewer.backends.pop();
    let written = datapath.sync("c", &bed.client, &table(&[fewer])).unwrap();
    assert_eq!((written.changed, written.cut), (1, 0));
}

#[test]
fn removal_leaves_nothing_of_ours_and_all_of_others() {
    let Some(bed) = Bed::new() else { return };
    let foreign = "add table inet weft-other\nadd table inet weft-0123456789ab\nadd table ip theirs\n";
    if !nft(&bed.client, foreign) {
        return;
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
fn a_thousand_services_are_installed_in_parts_and_changed_one_by_one() {
    let Some(bed) = Bed::new() else { return };
    let services: Vec<_> = (0..1000u16)
        .map(|n| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            let mut service = service(Scheduler::RoundRobin);
            service.id = weft_types::ServiceId(id);
            service.vips = vec![IpAddr::from([10, 9, 1 + (n >> 8) as u8, n as u8])];
            service.ports = vec![PortMap::tcp(80, 8000)];
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
