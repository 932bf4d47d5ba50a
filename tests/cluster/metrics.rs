//! What monitoring sees: every metric moves when something happens, and none is there that nothing moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    process::Command,
};

use netns_harness::Inside as _;
use nix::sys::signal::{Signal, kill};

use super::{
    bed::{Bed, Node, alone, soon},
    secret::{has_tap, process_of, tunnels},
    traffic::{PORT, answering, call_at},
};

fn get(mut stream: impl io::Read + io::Write, path: &str) -> io::Result<(u16, String)> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: weft\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// What the agent of a node answers on its socket.
fn ask(node: &Node, path: &str) -> (u16, String) {
    let stream = node
        .host
        .run(|| UnixStream::connect("/run/weft/weft.sock"))
        .unwrap();
    get(stream.unwrap(), path).unwrap()
}

/// The lines of each metric.
pub type Metrics = BTreeMap<String, BTreeSet<String>>;

pub fn metrics(node: &Node) -> Metrics {
    let (status, text) = ask(node, "/metrics");
    assert_eq!(status, 200, "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut metrics = Metrics::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["#", "TYPE", name, _] => drop(metrics.entry(name.to_owned()).or_default()),
            ["#", ..] => {}
            _ => {
                let name = words[0].split('{').next().unwrap();
                let name = name.strip_suffix("_total").unwrap_or(name);
                let known = metrics.get_mut(name).unwrap_or_else(|| panic!("no type: {line}"));
                known.insert(line.to_owned());
            }
        }
    }
    metrics
}

/// Those that have changed since.
fn moved(before: &Metrics, now: &Metrics) -> BTreeSet<String> {
    let has_moved = |(name, lines): &(&String, &BTreeSet<String>)| before.get(*name) != Some(lines);
    now.iter()
        .filter(has_moved)
        .map(|(name, _)| name.clone())
        .collect()
}

fn ip(node: &Node, line: &str) {
    let mut command = Command::new("ip");
    command.args(line.split(' '));
    assert!(node.host.run(|| command.status().unwrap().success()).unwrap());
}

#[test]
fn every_metric_moves_when_something_happens() {
    alone(|| {
        let bed = Bed::apart(&["h1", "h2"]);
        let [h1, h2] = [&bed["h1"], &bed["h2"]];
        let before = metrics(h1);
        for path in ["/live", "/ready"] {
            assert_eq!(ask(h1, path).0, 200, "{path}");
        }
        h1.weft("init");
        h2.weft(&h1.join_command(""));
        bed.sees_alive("h1", 2);
        bed.sees_alive("h2", 2);

        // Networks, endpoints, services, health, names.
        h1.weft("network create app");
        h1.weft(&format!(
            "service create --network app --health tcp={PORT} --interval 1s --eject 1 web"
        ));
        let replicas = [
            h1.replica("web-1", "app", "--service web"),
            h2.replica("web-2", "app", "--service web"),
        ];
        let client = h1.connected("client", "app", "");
        let vip = h1.vip("web");
        answering(&client.sandbox, vip, 2);
        let kept = call_at(&client.sandbox, vip, PORT).unwrap();
        assert!(call_at(&client.sandbox, vip, PORT + 1).is_err());
        let dns: SocketAddr = "169.254.53.53:53".parse().unwrap();
        let question = |bytes: &[u8]| {
            let socket = client
                .sandbox
                .run(|| UdpSocket::bind("0.0.0.0:0"))
                .unwrap()
                .unwrap();
            socket.send_to(bytes, dns).unwrap();
        };
        question(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\x03app\x04weft\x08internal\0\0\x01\0\x01");
        // An answer, as which nobody asked for it, and what is no packet of this cluster.
        question(b"\x12\x34\x81\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01");
        let stranger = h2.host.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        stranger.send_to(&[7; 200], (h1.address(), 7946)).unwrap();
        // A host to which there is no way, for a moment.
        let way = format!("route add prohibit {}/32", h2.address());
        ip(h1, &way);
        let sender = client
            .sandbox
            .run(|| UdpSocket::bind("0.0.0.0:0"))
            .unwrap()
            .unwrap();
        sender.send_to(&[0; 100], (replicas[1].address(), 9)).unwrap();
        ip(h1, &way.replace("add", "del"));
        // A port that something else has, and a link that somebody takes away.
        let taken = h1
            .host
            .run(|| TcpListener::bind("0.0.0.0:8080"))
            .unwrap()
            .unwrap();
        h2.weft(&format!("service update --publish 8080:{PORT} web"));
        let namespaces = h1
            .host
            .run(|| std::fs::read_dir("/run/weft/netns").unwrap())
            .unwrap();
        for namespace in namespaces {
            let path = namespace.unwrap().path();
            let mut nsenter = Command::new("nsenter");
            nsenter.arg(format!("--net={}", path.display()));
            nsenter.args(["ip", "link", "del", "vx0"]);
            assert!(h1.host.run(|| nsenter.status().unwrap().success()).unwrap());
        }

        let constant: BTreeSet<String> = ["weft_agent_info", "weft_agent_start_time_seconds"]
            .map(str::to_owned)
            .into();
        let all: BTreeSet<String> = metrics(h1).into_keys().collect();
        assert_eq!(all.iter().find(|name| name.starts_with("weft_tunnel")), None);
        let wanted: BTreeSet<String> = all.difference(&constant).cloned().collect();
        soon("every metric to have moved", || {
            // In vain, one after the other.
            let _ = call_at(&client.sandbox, vip, PORT + 1);
            let now = metrics(h1);
            let moved = moved(&before, &now);
            if moved == wanted {
                return Ok(());
            }
            let missing: Vec<_> = wanted.difference(&moved).collect();
            let more: Vec<_> = moved.difference(&wanted).collect();
            Err(format!("still {missing:?}, and {more:?} should not have"))
        });
        // The network was not there before, so its lines are new whatever they say.
        let none_sent = "weft_network_lost_frames_total{network=\"app\",direction=\"sent\"} 0";
        assert!(!metrics(h1)["weft_network_lost_frames"].contains(none_sent));
        // What is the same however it is looked at.
        let opened = "weft_service_connections_open{network=\"app\",service=\"web\",backend=";
        let open = metrics(h1)["weft_service_connections_open"]
            .iter()
            .filter(|line| line.starts_with(opened) && line.ends_with(" 1"))
            .count();
        assert_eq!(open, 1);
        drop((kept, client, replicas, stranger, taken, sender));
        bed.close();
    });
}

#[test]
fn metrics_are_served_at_an_address_only_if_asked_for_and_nothing_else_is() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let h1 = &bed["h1"];
        let at = SocketAddr::new(h1.address(), 9105);
        let connect = || bed["h2"].host.run(|| TcpStream::connect(at)).unwrap();
        assert!(connect().is_err());
        h1.kill_agent();
        h1.start_agent_with(h1.agent_command().args(["--metrics", &at.to_string()]));
        h1.await_agent();
        soon("a node that is ready", || {
            match get(connect().map_err(|error| error.to_string())?, "/ready") {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let (status, text) = get(connect().unwrap(), "/metrics").unwrap();
        assert!(
            status == 200 && text.contains("weft_nodes{state=\"alive\"} 2"),
            "{text}"
        );
        assert_eq!(get(connect().unwrap(), "/live").unwrap().0, 200);
        assert_eq!(get(connect().unwrap(), "/v1/status").unwrap().0, 404);
        bed.close();
    });
}

#[test]
fn every_metric_of_tunnels_moves_when_something_happens() {
    if !has_tap() {
        return;
    }
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let [h1, h2] = [&bed["h1"], &bed["h2"]];
        let of_tunnels = || {
            let all = metrics(h1).into_iter();
            all.filter(|(name, _)| name.starts_with("weft_tunnel"))
                .collect::<Metrics>()
        };
        assert_eq!(of_tunnels(), Metrics::new(), "nothing is encrypted");
        h1.weft("network create --opt encrypted secret");
        let one = h1.connected("one", "secret", "");
        let two = h2.connected("two", "secret", "");
        tunnels(h1, 1);
        let before = of_tunnels();
        let has = |line: &str| before.values().any(|lines| lines.contains(line));
        assert!(has("weft_tunnels_running 1") && has("weft_tunnels{state=\"open\"} 1"));

        // What is no WireGuard; what the underlay does not take; and a path that takes less than it did.
        let stranger = bed.outsider("stranger");
        let noise = stranger.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        noise.send_to(&[7; 200], (h1.address(), 51820)).unwrap();
        let socket = one.sandbox.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect((two.address(), 9)).unwrap();
        let lost = |lines: &Metrics| lines["weft_tunnel_lost_frames"].clone();
        let way = format!("prohibit {}/32", h2.address());
        ip(h1, &format!("route add {way}"));
        soon("frames to be lost", || {
            // The one before may have been refused, which the next call says.
            let _ = socket.send(&[0; 100]);
            match of_tunnels() {
                now if lost(&now) != lost(&before) => Ok(()),
                _ => Err("none was"),
            }
        });
        ip(h1, &format!("route del {way}"));
        ip(h1, &format!("route add {}/32 dev eth0 mtu 1400", h2.address()));
        soon("the path to be known", || {
            let _ = socket.send(&[0; 1300]);
            let path = of_tunnels().remove("weft_tunnel_path_mtu_bytes");
            match path.unwrap_or_default().into_iter().next().as_deref() {
                Some("weft_tunnel_path_mtu_bytes{node=\"h2\"} 1400") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        // And nothing encrypts for a moment.
        kill(process_of(h1).unwrap(), Signal::SIGSTOP).unwrap();
        let runs = |count: u8| {
            let wanted = format!("weft_tunnels_running {count}");
            soon(&wanted, || {
                let running = of_tunnels().remove("weft_tunnels_running").unwrap_or_default();
                let as_wanted = running.contains(&wanted);
                as_wanted.then_some(()).ok_or(format!("{running:?}"))
            });
        };
        runs(0);
        // What nobody takes waits, a thousand frames of it.
        let overflow = || metrics(h1)["weft_network_lost_frames"].clone();
        let at_first = overflow();
        soon("a full queue", || {
            for _ in 0..500 {
                let _ = socket.send(&[0; 100]);
            }
            let now = overflow();
            (now != at_first).then_some(()).ok_or(format!("{now:?}"))
        });
        kill(process_of(h1).unwrap(), Signal::SIGCONT).unwrap();
        runs(1);
        let moved = moved(&before, &of_tunnels());
        let there: BTreeSet<String> = before.keys().cloned().collect();
        // Both were seen above, and one of them is as it was again.
        let rest: Vec<_> = there.difference(&moved).collect();
        assert_eq!(rest, ["weft_tunnels", "weft_tunnels_running"]);
        drop((one, two, socket, noise));
        bed.close();
    });
}
