//! Ranges of ports, of services and published.

use std::io;

use super::{
    bed::{Bed, alone, has_ebpf, soon},
    traffic::{ask, call_at, datagrams_at},
};

fn a_range_leads_port_by_port(datapath: &'static str) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2"]);
    let outside = bed.outsider("outside");
    let h1 = &bed["h1"];
    h1.weft("network create app");
    // Servers listen at 8000, the sixth of the targets.
    let ports = "--port 5000-5010:7995-8005 --port 5000-5010:7995-8005/udp";
    h1.weft(&format!(
        "service create --network app {ports} --publish 9000-9010:5000-5010 --publish 9005:5005/udp web"
    ));
    let web = bed["h2"].replica("web-1", "app", "--service web");
    let client = h1.connected("c", "app", "");
    let (vip, host) = (h1.vip("web"), h1.address());
    soon("a backend", || call_at(&client.sandbox, vip, 5005));
    soon("a backend from outside", || call_at(&outside, host, 9005));
    assert!(ask(&datagrams_at(&client.sandbox, vip, 5005)).is_ok());
    assert!(ask(&datagrams_at(&outside, host, 9005)).is_ok());
    for port in [5004, 5011] {
        let error = call_at(&client.sandbox, vip, port).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{port}");
    }
    assert!(h1.weft("service ls").contains("5000-5010:7995-8005/tcp"));

    for (flags, code, sentence) in [
        (
            "--port 80-90 --port 90-95",
            4,
            "gives port 90 twice, in 80-90/tcp and in 90-95/tcp",
        ),
        ("--port 80-90 --port 85", 4, "gives port 85 twice"),
        ("--port 1-1025", 2, "asks for 1025 ports; 1024 is the most"),
        ("--port 80-90:81", 2, "one of the same length"),
        (
            "--port 80-90 --publish 9010-9011:80-81",
            4,
            "port 9010/tcp is published by service `web`",
        ),
        ("--port 80-90 --publish 9020-9021:90-91", 2, "has no port 91/tcp"),
    ] {
        let ended = h1.try_weft(&format!("service create --network app {flags} api"));
        assert_eq!(ended.code, code, "{flags}: {}", ended.stderr);
        assert!(ended.stderr.contains(sentence), "{flags}: {}", ended.stderr);
    }
    drop((web, client, outside));
    bed.close();
}

#[test]
fn a_range_leads_port_by_port_with_rules() {
    alone(|| a_range_leads_port_by_port("nft"));
}

#[test]
fn a_range_leads_port_by_port_with_programs() {
    alone(|| {
        if has_ebpf() {
            a_range_leads_port_by_port("ebpf");
        }
    });
}
