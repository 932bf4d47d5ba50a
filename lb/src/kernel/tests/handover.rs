//! One datapath takes over from the other.

use std::io::{Read, Write};

use weft_netlink::route::RouteSocket;

use super::{
    super::{Choice, EbpfDatapath, choose},
    bed::*,
    ruleset,
};
use crate::{Datapath, Scheduler};

fn echo(stream: &mut std::net::TcpStream) {
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_host_changes_its_datapath_and_back_without_losing_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("bpf");
    let open = |choice| -> Box<dyn Datapath> { choose(choice, &dir).unwrap().datapath };
    if let Err(error) = EbpfDatapath::open(&dir) {
        return weft_netlink::testing::skip(format_args!(
            "it needs root outside of user namespaces: {error}"
        ));
    }
    let Some(bed) = Bed::new() else { return };
    let tables = table(&[service(Scheduler::LeastConnections)]);
    let names = ["c".to_owned()].into();
    let begin = |choice| {
        let datapath = open(choice);
        datapath.sync("c", &bed.client, &tables).unwrap();
        datapath.retain(&names).unwrap();
        datapath
    };

    let nft = begin(Choice::Nft);
    assert!(!EbpfDatapath::is_at(&dir));
    let (mut first, _) = bed.open(VIP, PORT).unwrap();
    let (mut first6, _) = bed.open(VIP6, PORT).unwrap();
    drop(nft);

    let ebpf = begin(Choice::Ebpf);
    assert_eq!(ebpf.name(), "ebpf");
    assert!(EbpfDatapath::is_at(&dir) && ruleset(&bed.client).contains("weft-"));
    let (mut second, _) = bed.open(VIP, PORT).unwrap();
    echo(&mut first);
    echo(&mut first6);
    drop((first, first6));
    // Nothing needs the rules any more.
    eventually(false, || {
        ebpf.sync("c", &bed.client, &tables).unwrap();
        ruleset(&bed.client).contains("weft-")
    });
    assert!(bed.call(VIP, PORT).is_ok());
    echo(&mut second);
    drop(ebpf);

    let nft = begin(Choice::Nft);
    assert_eq!(nft.name(), "nft");
    assert!(!EbpfDatapath::is_at(&dir) && !dir.exists());
    let routes = RouteSocket::open(&bed.client).unwrap().local_routes(119).unwrap();
    assert_eq!(routes, []);
    echo(&mut second);
    assert!(bed.call(VIP, PORT).is_ok() && bed.call(VIP6, PORT).is_ok());
}

#[test]
fn the_choice_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("bpf");
    let nft = choose(Choice::Nft, &dir).unwrap();
    assert_eq!((nft.datapath.name(), &*nft.reason), ("nft", "it was asked for"));
    let works = EbpfDatapath::open(&dir);
    let auto = choose(Choice::Auto, &dir).unwrap();
    match works {
        Ok(_) => assert_eq!(auto.datapath.name(), "ebpf"),
        Err(_) => {
            assert_eq!(auto.datapath.name(), "nft");
            assert!(
                auto.reason.starts_with("eBPF cannot be used here: "),
                "{}",
                auto.reason
            );
            let error = choose(Choice::Ebpf, &dir).err().unwrap().to_string();
            assert_eq!(error, "eBPF was asked for and cannot be used");
        }
    }
    assert!(!dir.exists(), "asking changes nothing");
}
