//! Hosts, switches, partitions and crashes in real namespaces. Each test runs as root or as an ordinary user.

use std::io::Write as _;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netns_harness::{Host, Inside, Lab, LabError, Plug, Switch, SwitchOptions, isolated};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a reply that comes, short enough to wait for one that must not.
const MOMENT: Duration = Duration::from_millis(250);

fn lan(lab: &Lab) -> Switch {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let options = SwitchOptions::new()
        .subnet(net("10.1.0.0/16"))
        .subnet(net("fd00:1::/64"));
    lab.switch("lan", options).unwrap()
}

fn plugged(lab: &Lab, names: &[&str]) -> Vec<Host> {
    let hosts = lab.hosts(names).unwrap();
    lab.plug(&lan(lab), &hosts).unwrap();
    hosts
}

fn v4(host: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, host])
}

fn v6(host: u16) -> IpAddr {
    IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, host])
}

#[test]
fn two_hosts_reach_each_other_over_a_switch_by_both_versions() {
    isolated(|| {
        let lab = Lab::new("pair").unwrap();
        let hosts = plugged(&lab, &["h1", "h2"]);
        hosts[0].ping(v4(2), SOON).unwrap();
        hosts[0].ping(v6(2), SOON).unwrap();
        hosts[1].ping(v4(1), SOON).unwrap();
        hosts[1].ping(v6(1), SOON).unwrap();
        lab.close().unwrap();
    });
}

#[test]
fn a_partition_is_silent_to_the_sender_and_heals() {
    isolated(|| {
        let lab = Lab::new("split").unwrap();
        let hosts = plugged(&lab, &["h1", "h2", "h3"]);
        let [h1, h2, h3] = &hosts[..] else { unreachable!() };
        h1.ping(v4(3), SOON).unwrap();
        lab.partition(&[&[h1, h2], &[h3]]).unwrap();
        // A thousand datagrams leave without any error, and none arrives.
        let receiver = h3
            .run(|| std::net::UdpSocket::bind("0.0.0.0:9").unwrap())
            .unwrap();
        receiver.set_nonblocking(true).unwrap();
        let sender = h1
            .run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap())
            .unwrap();
        for _ in 0..1000 {
            sender.send_to(b"lost", (v4(3), 9)).unwrap();
        }
        assert!(matches!(h1.ping(v4(3), MOMENT), Err(LabError::TimedOut(_))));
        assert!(matches!(h3.ping(v6(2), MOMENT), Err(LabError::TimedOut(_))));
        h1.ping(v4(2), SOON).unwrap();
        assert!(receiver.recv(&mut [0; 8]).is_err());
        lab.heal().unwrap();
        h1.ping(v4(3), SOON).unwrap();
        h3.ping(v6(2), SOON).unwrap();
        drop((sender, receiver));
        lab.close().unwrap();
    });
}

#[test]
fn a_one_way_block_lets_the_other_way_pass() {
    isolated(|| {
        let lab = Lab::new("oneway").unwrap();
        let hosts = plugged(&lab, &["h1", "h2"]);
        let [h1, h2] = &hosts[..] else { unreachable!() };
        // Both know each other's Ethernet address before.
        h1.ping(v4(2), SOON).unwrap();
        lab.block(h1, h2).unwrap();
        let receive = |host: &Host| {
            let socket = host
                .run(|| std::net::UdpSocket::bind("0.0.0.0:9").unwrap())
                .unwrap();
            socket.set_read_timeout(Some(MOMENT)).unwrap();
            socket
        };
        let (at1, at2) = (receive(h1), receive(h2));
        at1.send_to(b"blocked", (v4(2), 9)).unwrap();
        at2.send_to(b"passes", (v4(1), 9)).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(at1.recv(&mut buffer).unwrap(), 6);
        at2.recv(&mut buffer).unwrap_err();
        // A crash and a restart do not open what is blocked.
        h1.crash().unwrap();
        h1.restart().unwrap();
        h2.ping(v4(1), MOMENT).unwrap_err();
        lab.heal().unwrap();
        h2.ping(v4(1), SOON).unwrap();
        drop((at1, at2));
        lab.close().unwrap();
    });
}

#[test]
fn a_crashed_host_says_no_goodbye_and_comes_back_with_its_addresses() {
    isolated(|| {
        let lab = Lab::new("crash").unwrap();
        let hosts = plugged(&lab, &["h1", "h2"]);
        let [h1, h2] = &hosts[..] else { unreachable!() };
        let sandbox = h2.sandbox("box").unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "echo up; exec sleep 1000"]);
        let process = h2.spawn(&mut command, netns_harness::Output::Keep).unwrap();
        process.wait_for_line(SOON, |line| line == "up").unwrap();
        let boxed = sandbox.spawn(
            std::process::Command::new("sleep").arg("1000"),
            netns_harness::Output::Discard,
        );
        let boxed = boxed.unwrap();
        let capture = h1.capture("eth0", netns_harness::CaptureOptions::new()).unwrap();
        let old_mac = h2.interface("eth0").unwrap().mac().unwrap();
        h2.crash().unwrap();
        assert!(!process.wait(SOON).unwrap().success());
        assert!(!boxed.wait(SOON).unwrap().success());
        assert!(!h2.is_up());
        assert_eq!(
            h2.ping(v4(1), SOON).unwrap_err().to_string(),
            "host h2 is down; restart it first"
        );
        assert_eq!(
            sandbox.set_resolv_conf("").unwrap_err().to_string(),
            "sandbox box on host h2 is gone: it was removed, or its host has crashed"
        );
        assert_eq!(capture.stop().unwrap().missed, 0);
        assert!(matches!(h1.ping(v4(2), MOMENT), Err(LabError::TimedOut(_))));
        h2.restart().unwrap();
        h1.ping(v4(2), SOON).unwrap();
        h1.ping(v6(2), SOON).unwrap();
        assert_eq!(h2.interface("eth0").unwrap().mac().unwrap(), old_mac);
        assert!(h2.sandboxes().is_empty(), "a crash takes sandboxes with it");
        lab.close().unwrap();
    });
}

#[test]
fn a_pulled_cable_a_link_that_is_down_and_a_small_mtu_are_felt() {
    isolated(|| {
        let lab = Lab::new("links").unwrap();
        let hosts = plugged(&lab, &["h1", "h2"]);
        let [h1, h2] = &hosts[..] else { unreachable!() };
        let eth0 = h2.interface("eth0").unwrap();
        h1.ping(v4(2), SOON).unwrap();
        eth0.set_carrier(false).unwrap();
        let carrier = || {
            h2.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap())
                .unwrap()
        };
        assert!(
            carrier().contains("eth0"),
            "routes stay where only the carrier is gone"
        );
        h1.ping(v4(2), MOMENT).unwrap_err();
        eth0.set_carrier(true).unwrap();
        h1.ping(v4(2), SOON).unwrap();
        eth0.set_up(false).unwrap();
        h1.ping(v6(2), MOMENT).unwrap_err();
        eth0.set_up(true).unwrap();
        h1.ping(v6(2), SOON).unwrap();
        h1.ping(v4(2), SOON).unwrap();
        h1.interface("eth0").unwrap().set_mtu(1000).unwrap();
        let sender = h1
            .run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap())
            .unwrap();
        sender.connect((v4(2), 9)).unwrap();
        let mtu = nix::sys::socket::getsockopt(&sender, nix::sys::socket::sockopt::IpMtu).unwrap();
        assert_eq!(mtu, 1000);
        drop(sender);
        lab.close().unwrap();
    });
}

#[test]
fn connections_that_no_process_has_any_more_do_not_outlive_a_lab() {
    isolated(|| {
        let lab = Lab::new("orphans").unwrap();
        let hosts = plugged(&lab, &["h1", "h2"]);
        let [h1, h2] = &hosts[..] else { unreachable!() };
        let listener = h2.run(|| TcpListener::bind((v4(2), 0)).unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        let mut client = h1.run(|| TcpStream::connect(to).unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        lab.partition(&[&[h1], &[h2]]).unwrap();
        client.write_all(b"never acknowledged").unwrap();
        drop((client, server, listener));
        lab.close().unwrap();
    });
}

#[test]
fn a_cable_connects_two_hosts_with_the_addresses_asked_for() {
    isolated(|| {
        let lab = Lab::new("cable").unwrap();
        let hosts = lab.hosts(&["h1", "h2"]).unwrap();
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let (a, b) = lab
            .cable(
                (&hosts[0], Plug::new().name("wan").address(net("192.0.2.1/30"))),
                (
                    &hosts[1],
                    Plug::new()
                        .address(net("192.0.2.2/30"))
                        .address(net("fd00:9::2/64")),
                ),
                SwitchOptions::new().mtu(9000),
            )
            .unwrap();
        assert_eq!((a.name(), b.name()), ("wan", "eth0"));
        hosts[0].ping(IpAddr::from([192, 0, 2, 2]), SOON).unwrap();
        lab.partition(&[&[&hosts[0]], &[&hosts[1]]]).unwrap();
        hosts[0].ping(IpAddr::from([192, 0, 2, 2]), MOMENT).unwrap_err();
        lab.close().unwrap();
    });
}

#[test]
fn a_hundred_hosts_come_up_and_go_in_seconds() {
    isolated(|| {
        let start = Instant::now();
        let lab = Lab::new("hundred").unwrap();
        let names: Vec<String> = (1..=100).map(|n| format!("h{n}")).collect();
        let hosts = lab.hosts(&names).unwrap();
        lab.plug(&lan(&lab), &hosts).unwrap();
        let up = start.elapsed();
        hosts[0].ping(v4(100), SOON).unwrap();
        hosts[99].ping(v6(1), SOON).unwrap();
        lab.close().unwrap();
        println!("100 hosts up after {up:?}, gone after {:?}", start.elapsed());
    });
}

#[test]
fn names_and_addresses_are_refused_with_a_reason() {
    isolated(|| {
        let lab = Lab::new("names").unwrap();
        lab.host("h1").unwrap();
        let text = |error: LabError| error.to_string();
        assert_eq!(
            text(lab.host("h1").unwrap_err()),
            "there is a host named h1 already"
        );
        assert!(
            text(lab.host("../h2").unwrap_err()).starts_with("\"../h2\" cannot name a host: use 1 to 63")
        );
        let tiny = SwitchOptions::new().subnet("10.0.0.0/30".parse::<IpNet>().unwrap());
        let tiny = lab.switch("tiny", tiny).unwrap();
        let three = lab.hosts(&["a", "b", "c"]).unwrap();
        let error = lab.plug(&tiny, &three).unwrap_err();
        assert_eq!(
            text(error),
            "the subnet 10.0.0.0/30 of switch tiny has no address left for another interface"
        );
        let error = lab
            .find("h1")
            .unwrap()
            .capture("eth7", netns_harness::CaptureOptions::new())
            .unwrap_err();
        assert_eq!(text(error), "host h1 has no interface named eth7");
        lab.close().unwrap();
    });
}
