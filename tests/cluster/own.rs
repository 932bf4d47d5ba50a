//! The host itself on a network.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use netns_harness::{Host, Inside};

use super::{
    bed::{Bed, COMMAND, Node, alone, has_ebpf, items, soon, text},
    http::HttpServer,
    traffic::{ask, call_at, datagrams_at},
};

/// Where nobody listens but the sockets of [`heard`].
const QUIET: u16 = 9999;

fn ip(place: &impl Inside, words: &str) {
    let mut command = Command::new("ip");
    command.args(words.split_whitespace());
    place.exec(&mut command, COMMAND).unwrap().success().unwrap();
}

fn curl(from: &Host, url: &str) -> Result<String, String> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "3", url]);
    let ended = from.exec(&mut command, COMMAND).unwrap();
    ended
        .success()
        .map(|ended| ended.stdout)
        .map_err(|error| error.to_string())
}

/// The settings of a host that are not a link's own, and what it asks names of.
fn settings(node: &Node) -> Vec<String> {
    let files = [
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv4/conf/all/rp_filter",
        "/proc/sys/net/ipv4/conf/all/arp_ignore",
        "/proc/sys/net/ipv4/conf/eth0/arp_ignore",
        "/proc/sys/net/ipv6/conf/all/forwarding",
        "/proc/sys/net/ipv6/conf/all/accept_ra",
        "/proc/sys/net/netfilter/nf_conntrack_events",
        "/etc/resolv.conf",
    ];
    let read = || files.map(|file| format!("{file}: {:?}", std::fs::read_to_string(file).ok()));
    node.host.run(read).unwrap().into()
}

/// The names of backends that calls from the host reach.
fn reached(node: &Node, to: IpAddr, calls: usize) -> Result<BTreeSet<String>, io::Error> {
    let each = (0..calls).map(|_| Ok(call_at(&node.host, to, super::traffic::PORT)?.answer.name));
    each.collect()
}

/// What comes first at a place when a stranger sends first, and then somebody who may.
fn first_heard(at: &impl Inside, address: IpAddr, stranger: &impl Inside, friend: &impl Inside) -> String {
    let bound = |place: &dyn Fn() -> io::Result<UdpSocket>| place().unwrap();
    let listener = at
        .run(|| bound(&|| UdpSocket::bind(SocketAddr::new(address, QUIET))))
        .unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let send = |place: &dyn Fn() -> io::Result<UdpSocket>, word: &str| {
        // A route that is refused is as good as a packet that is dropped.
        let _ = place().and_then(|socket| socket.send_to(word.as_bytes(), (address, QUIET)));
    };
    stranger
        .run(|| (0..3).for_each(|_| send(&|| UdpSocket::bind("0.0.0.0:0"), "stranger")))
        .unwrap();
    friend
        .run(|| send(&|| UdpSocket::bind("0.0.0.0:0"), "friend"))
        .unwrap();
    let mut buffer = [0; 64];
    let (length, _) = listener.recv_from(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn the_host_is_a_client(datapath: &'static str) {
    let bed = Bed::cluster_with(datapath, &["h1", "h2"]);
    let outside = bed.outsider("outside");
    let [h1, h2] = [&bed["h1"], &bed["h2"]];
    h1.weft("network create --ipv6 --subnet 10.60.0.0/24 app");
    for service in ["--lb rr web", "--lb lc api", "--port 80:8000 site"] {
        h1.weft(&format!("service create --network app {service}"));
    }
    let web = [
        h1.replica("web-1", "app", "--service web"),
        h2.replica("web-2", "app", "--service web"),
    ];
    let api_1 = h2.replica("api-1", "app", "--service api");
    let site = h2.connected("site-1", "app", "--service site");
    let http = HttpServer::start(&site.sandbox, "site-1");
    let client = h2.connected("c", "app", "");
    let vips: Vec<IpAddr> = items(&h1.json("service inspect web")["vips"])
        .map(|vip| text(vip).parse().unwrap())
        .collect();
    let (api, published) = (h1.vip("api"), h1.vip("site"));
    let before = (h1.traces(), settings(h1));
    assert!(call_at(&h1.host, vips[0], super::traffic::PORT).is_err());

    let said = h1.json("network connect app host");
    assert_eq!(text(&said["name"]), "h1");
    let own: Vec<IpAddr> = items(&said["addresses"])
        .map(|net| text(net).split_once('/').unwrap().0.parse().unwrap())
        .collect();
    let shown = h1.json("network inspect app");
    let shown = items(&shown["endpoints"]).find(|endpoint| endpoint["name"] == "h1");
    let shown = shown.expect("the host is shown");
    assert_eq!(shown["target"], "host");
    let link = text(&shown["ifname"]).to_owned();
    assert!(link.starts_with("wefth"), "{link}");

    let both = BTreeSet::from(["web-1".to_owned(), "web-2".to_owned()]);
    let all_work = |what: &str| {
        for vip in &vips {
            soon(format!("{what}: {vip} from the host"), || {
                match reached(h1, *vip, 8) {
                    Ok(names) if names == both => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
            assert!(ask(&datagrams_at(&h1.host, *vip, super::traffic::PORT)).is_ok());
        }
        assert!(reached(h1, api, 4).is_ok(), "{what}");
        let call = call_at(&h1.host, web[1].address(), super::traffic::PORT).unwrap();
        assert_eq!(call.answer.seen.ip(), own[0], "{what}");
        let page = soon("a page", || curl(&h1.host, &format!("http://{published}/")));
        assert!(page.contains("site-1"), "{page}");
        h1.host.ping(published, Duration::from_secs(2)).unwrap();
        client.sandbox.ping(own[0], Duration::from_secs(2)).unwrap();
    };
    all_work("connected");
    assert_eq!(settings(h1), before.1);
    let link_says = |setting: &str| {
        let file = format!("/proc/sys/net/{setting}").replace("LINK", &link);
        h1.host.run(|| std::fs::read_to_string(file).unwrap()).unwrap()
    };
    assert_eq!(link_says("ipv6/conf/LINK/accept_ra").trim(), "0");

    // The host is no router into the network, nor out of it, and has no other addresses there.
    let (there, of_h1) = (outside.interface("eth0").unwrap(), h1.address());
    let outer = there.addresses().unwrap()[0].addr();
    ip(&outside, &format!("route add 10.60.0.0/24 via {of_h1}"));
    assert_eq!(
        first_heard(&web[0].sandbox, web[0].address(), &outside, &h1.host),
        "friend"
    );
    for address in [outer, of_h1] {
        ip(&client.sandbox, &format!("route add {address} via {}", own[0]));
    }
    assert_eq!(first_heard(&outside, outer, &client.sandbox, &h1.host), "friend");
    assert_eq!(first_heard(&h1.host, of_h1, &client.sandbox, &outside), "friend");

    let connected = h1.traces();
    h1.kill_agent();
    assert_eq!(reached(h1, vips[0], 8).unwrap(), both);
    h1.restart_agent();
    bed.all_well();
    all_work("after a restart");
    assert_eq!(h1.traces(), connected);
    // It has no server for IPv6, which the doctor would tell.
    h2.weft("network disconnect app site-1");
    h2.weft("service rm site");
    let doctor = h1.try_weft("doctor");
    assert_eq!(doctor.code, 0, "{}", doctor.stdout);

    h1.weft("network disconnect app host");
    assert_eq!(h1.traces(), before.0);
    assert_eq!(settings(h1), before.1);
    assert!(call_at(&h1.host, vips[0], super::traffic::PORT).is_err());

    // Where nothing else of the host is on the network.
    h1.weft("network create solo");
    h1.weft("network connect solo host --name gate");
    h1.weft("network disconnect solo host");
    assert_eq!(h1.traces(), before.0);
    drop((http, web, api_1, site, client, outside));
    bed.close();
}

#[test]
fn the_host_is_a_client_with_rules() {
    alone(|| the_host_is_a_client("nft"));
}

#[test]
fn the_host_is_a_client_with_programs() {
    alone(|| {
        if has_ebpf() {
            the_host_is_a_client("ebpf");
        }
    });
}

#[test]
fn the_host_keeps_the_ways_it_has() {
    alone(|| {
        let bed = Bed::cluster(&["h1"]);
        let h1 = &bed["h1"];
        ip(&h1.host, "route add 10.61.128.0/17 dev eth0");
        h1.weft("network create --subnet 10.61.0.0/16 wide");
        h1.weft("network create --subnet 10.62.0.0/16 app");
        let before = h1.traces();
        let refused = |line: &str, code: i32, sentence: &str| {
            let ended = h1.try_weft(line);
            assert_eq!(ended.code, code, "{line}: {}", ended.stderr);
            assert!(ended.stderr.contains(sentence), "{line}: {}", ended.stderr);
        };
        refused(
            "network connect wide host",
            4,
            "network `wide` has the subnet 10.61.0.0/16, and this host has a route to 10.61.128.0/17 by eth0",
        );
        refused(
            "network connect app /proc/self/ns/net",
            2,
            "network connect NETWORK host",
        );
        assert_eq!(h1.traces(), before);
        h1.weft("network connect app host");
        refused("network connect app host", 4, "already");
        h1.weft("network disconnect app host");
        bed.close();
    });
}
