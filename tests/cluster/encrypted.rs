//! Encrypted networks beside plain ones: they carry what plain ones do, and nobody on the underlay reads it, whatever
//! comes or goes.

use std::{
    net::{IpAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use netns_harness::{Inside, Sandbox};
use nix::sys::signal::{Signal, kill};
use weft_tests::slower;

use super::{
    bed::{Bed, COMMAND, Endpoint, Node, alone, items, report, soon, text},
    http::{HttpServer, Requests},
    secret::{
        CANARY, HOSTS, OPEN, delete_links, encryption, end, has_tap, process_of, tunnels, unseen, watched,
    },
    traffic::{Caller, PORT, Server, Stream, all_go_on, answering, call},
};

fn dig(from: &Sandbox, name: &str) -> Vec<IpAddr> {
    let mut dig = Command::new("dig");
    dig.args(["+short", "@169.254.53.53", name]);
    let said = from.exec(&mut dig, COMMAND).unwrap();
    said.stdout.lines().filter_map(|line| line.parse().ok()).collect()
}

fn replica(node: &Node, name: &str, network: &str) -> Endpoint {
    let mut replica = node.connected(name, network, &format!("--service {network}-web"));
    let canary = if network == "secret" { CANARY } else { OPEN };
    replica.server = Some(Server::start(&replica.sandbox, &format!("{canary}-{name}")));
    replica
}

#[test]
fn an_encrypted_network_carries_everything_and_shows_nothing_in_any_phase() {
    if !has_tap() {
        return;
    }
    alone(|| {
        let mut bed = Bed::cluster(&HOSTS);
        let started = Instant::now();
        let (mut replicas, client, plain_client) = unseen(&bed, "create", || {
            bed["h1"].weft("network create --opt encrypted secret");
            bed["h2"].weft("network create plain");
            for network in ["secret", "plain"] {
                bed["h3"].weft(&format!(
                    "service create --network {network} --lb rr {network}-web"
                ));
            }
            bed.everywhere("both services", |node| {
                match items(&node.json("service ls")).count() {
                    2 => Ok(()),
                    count => Err(count),
                }
            });
            let mut replicas = Vec::new();
            for name in HOSTS {
                for network in ["secret", "plain"] {
                    replicas.push(replica(&bed[name], &format!("{network}-{name}"), network));
                }
            }
            let client = bed["h1"].connected("client", "secret", "");
            (replicas, client, bed["h1"].connected("plain-client", "plain", ""))
        });
        let secret = bed["h1"].vip("secret-web");
        let plain = bed["h1"].vip("plain-web");
        unseen(&bed, "first packets", || {
            answering(&client.sandbox, secret, 3);
            assert_eq!(dig(&client.sandbox, "secret-web.secret.weft.internal"), [secret]);
            assert_eq!(
                dig(&client.sandbox, "secret-h3.secret.weft.internal"),
                [replicas[4].address()]
            );
            for replica in replicas.iter().step_by(2) {
                let answer = call(&client.sandbox, replica.address()).unwrap().answer;
                assert!(answer.name.starts_with(CANARY));
                assert_eq!(answer.seen.ip(), client.address());
            }
        });
        let ((), [_, open]) = watched(&bed, "a plain network beside it", || {
            answering(&plain_client.sandbox, plain, 3);
        });
        assert!(open > 0, "a canary in clear is seen");
        for name in HOSTS {
            tunnels(&bed[name], 2);
        }
        let inspect = bed["h2"].weft("network inspect secret");
        assert!(
            inspect.contains("encrypted:   yes") && inspect.contains("userspace"),
            "{inspect}"
        );
        let detail = bed["h1"].json("node inspect h2");
        assert!(detail["tunnel"]["received_bytes"].as_u64() > Some(0), "{detail}");
        assert_eq!(detail["key_fingerprint"], encryption(&bed["h2"])["fingerprint"]);

        unseen(&bed, "HTTP", || {
            let web = bed["h2"].connected("http", "secret", "");
            let body = format!("{CANARY} ").repeat(400);
            let server = HttpServer::start(&web.sandbox, &body);
            let requests = Requests::start(&client.sandbox, web.address(), 10);
            soon("200 answers", || match requests.answered() {
                200.. => Ok(()),
                count => Err(count),
            });
            assert_eq!(requests.stop().1, Vec::<String>::new());
            drop(server);
            bed["h2"].weft("network disconnect secret http");
        });

        // Agents go and come: no stream notices.
        let streams: Vec<_> = [2, 4]
            .map(|index: usize| Stream::open(HOSTS[index / 2], &client.sandbox, replicas[index].address()))
            .into();
        let callers = [Caller::start(&client.sandbox, secret)];
        let processes = HOSTS.map(|name| process_of(&bed[name]).unwrap());
        unseen(&bed, "kill -9 of all agents", || {
            HOSTS.iter().for_each(|name| bed[name].kill_agent());
            all_go_on(&streams, &callers, 100);
        });
        unseen(&bed, "agents again", || {
            HOSTS.iter().for_each(|name| bed[name].start_agent());
            HOSTS.iter().for_each(|name| bed[name].await_agent());
            all_go_on(&streams, &callers, 50);
            bed.all_well();
            all_go_on(&streams, &callers, 50);
        });
        assert_eq!(HOSTS.map(|name| process_of(&bed[name]).unwrap()), processes);
        let [caller] = callers;
        let (names, failures) = caller.stop();
        assert_eq!(failures, Vec::<String>::new(), "of {} calls", names.len());
        for stream in streams {
            let name = stream.name.clone();
            let slowest = stream.close().slowest;
            println!("a stream to {name}, the agents away and back: the slowest in {slowest:.1?}");
        }

        // The process goes, and no agent is there to bring it back: nothing gets through, least of all in clear.
        unseen(&bed, "kill -9 of the datapath, without an agent", || {
            bed["h1"].kill_agent();
            kill(process_of(&bed["h1"]).unwrap(), Signal::SIGKILL).unwrap();
            for address in [replicas[2].address(), replicas[4].address()] {
                let answer = client.sandbox.ping(address, Duration::from_secs(1));
                assert!(answer.is_err(), "{address} is reached without the datapath");
            }
            // What goes the other way goes nowhere either.
            let far = bed["h2"].connected("far", "secret", "");
            assert!(
                far.sandbox
                    .ping(client.address(), Duration::from_secs(1))
                    .is_err()
            );
            bed["h2"].weft("network disconnect secret far");
        });
        unseen(&bed, "the datapath again", || {
            bed["h1"].restart_agent();
            answering(&client.sandbox, secret, 3);
        });
        let killed = Instant::now();
        unseen(&bed, "kill -9 of the datapath, with an agent", || {
            let gone = process_of(&bed["h1"]).unwrap();
            kill(gone, Signal::SIGKILL).unwrap();
            soon("another process", || match process_of(&bed["h1"]) {
                Some(pid) if pid != gone => Ok(()),
                other => Err(format!("{other:?}")),
            });
            soon("h2 again", || {
                client.sandbox.ping(replicas[2].address(), Duration::from_secs(1))
            });
        });
        report("the datapath killed, started, and the other host reached", killed);
        answering(&client.sandbox, secret, 3);

        unseen(&bed, "the device deleted under the datapath", || {
            let before = process_of(&bed["h1"]);
            let spaces = bed["h1"].host.run(|| {
                let entries = std::fs::read_dir("/run/weft/netns").unwrap();
                entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
            });
            delete_links(&bed["h1"], &spaces.unwrap(), |link| link.kind == "tun");
            soon("h2 again", || {
                client.sandbox.ping(replicas[2].address(), Duration::from_secs(1))
            });
            answering(&client.sandbox, secret, 3);
            assert_eq!(process_of(&bed["h1"]), before);
        });

        unseen(&bed, "partition and heal", || {
            let [h1, h2, h3] = HOSTS.map(|name| &bed[name].host);
            bed.lab.partition(&[&[h1, h2], &[h3]]).unwrap();
            bed.sees_alive("h1", 2);
            answering(&client.sandbox, secret, 2);
            bed.lab.heal().unwrap();
            answering(&client.sandbox, secret, 3);
        });

        let join = bed["h1"].join_command("");
        bed.add_hosts(&["h4"]);
        unseen(&bed, "join", || {
            bed["h4"].weft(&join);
            soon("the network on h4", || {
                match bed["h4"].try_weft("network inspect secret").code {
                    0 => Ok(()),
                    code => Err(code),
                }
            });
            replicas.push(replica(&bed["h4"], "secret-h4", "secret"));
            answering(&client.sandbox, secret, 4);
            tunnels(&bed["h1"], 3);
        });
        unseen(&bed, "leave", || {
            bed["h4"].weft("leave");
            answering(&client.sandbox, secret, 3);
            tunnels(&bed["h1"], 2);
            soon("no process on h4", || match process_of(&bed["h4"]) {
                None => Ok(()),
                Some(pid) => Err(pid),
            });
        });

        // A host dies, and is removed: nobody keeps its key.
        unseen(&bed, "peer loss", || {
            bed["h3"].host.crash().unwrap();
            answering(&client.sandbox, secret, 2);
        });
        let removed = Instant::now();
        bed["h1"].weft("node rm --force h3");
        for name in ["h1", "h2"] {
            tunnels_without(&bed[name], "h3");
        }
        assert!(removed.elapsed() < slower(Duration::from_secs(5)));
        report("a removed host's key is out of all tunnels", removed);
        report("all phases", started);

        // Nothing to encrypt, no process.
        bed["h2"].weft("network disconnect secret secret-h2");
        soon("no process on h2", || match process_of(&bed["h2"]) {
            None => Ok(()),
            Some(pid) => Err(pid),
        });
        drop((replicas, client, plain_client));
        end(bed);
    });
}

fn tunnels_without(node: &Node, gone: &str) {
    soon(format!("no tunnel from {} to {gone}", node.host.name()), || {
        let encryption = encryption(node);
        let mut names = items(&encryption["tunnels"]).map(|tunnel| text(&tunnel["node_name"]));
        match names.any(|name| name == gone) {
            false => Ok(()),
            true => Err(encryption.to_string()),
        }
    });
}

/// A VXLAN packet with a UDP datagram for an endpoint.
fn forged(vni: u64, to: &Endpoint) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(&(vni as u32).to_be_bytes()[1..]);
    packet.push(0);
    let mac = text(&to.said["mac"]).split(':');
    packet.extend(mac.map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    packet.extend([2, 0, 0, 0, 0, 99, 8, 0]);
    let IpAddr::V4(address) = to.address() else {
        panic!("no IPv4")
    };
    let mut source = address.octets();
    source[3] = 251;
    let payload = b"forged";
    let mut header = vec![0x45, 0, 0, 28 + payload.len() as u8, 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend(source);
    header.extend(address.octets());
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(header);
    packet.extend([0x1f, 0x90]);
    packet.extend(PORT.to_be_bytes());
    packet.extend([0, 8 + payload.len() as u8, 0, 0]);
    packet.extend(payload);
    packet
}

#[test]
fn forged_vxlan_reaches_nobody_of_a_plain_or_an_encrypted_network() {
    if !has_tap() {
        return;
    }
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2"]);
        let stranger = bed.outsider("stranger");
        bed["h1"].weft("network create --opt encrypted secret");
        bed["h1"].weft("network create plain");
        bed.everywhere("both networks", |node| {
            match items(&node.json("network ls")).count() {
                2 => Ok(()),
                count => Err(count),
            }
        });
        let mut victims = Vec::new();
        for network in ["secret", "plain"] {
            let vni = bed["h1"].json(&format!("network inspect {network}"))["vni"]
                .as_u64()
                .unwrap();
            for host in ["h1", "h2"] {
                let victim = bed[host].connected(&format!("{network}-{host}"), network, "");
                let ears = victim
                    .sandbox
                    .run(|| UdpSocket::bind(("0.0.0.0", PORT)))
                    .unwrap()
                    .unwrap();
                ears.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                victims.push((vni, victim, ears));
            }
        }
        soon("h2 from h1", || {
            victims[0]
                .1
                .sandbox
                .ping(victims[1].1.address(), Duration::from_secs(1))
        });
        soon("h2 from h1, plain", || {
            victims[2]
                .1
                .sandbox
                .ping(victims[3].1.address(), Duration::from_secs(1))
        });
        let targets = [
            IpAddr::from([127, 0, 0, 1]),
            bed["h1"].address(),
            bed["h2"].address(),
        ];
        let mut sent = 0;
        for place in [&bed["h1"].host, &bed["h2"].host, &stranger] {
            let socket = place.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
            for (vni, victim, _) in &victims {
                let packet = forged(*vni, victim);
                for target in targets {
                    for _ in 0..50 {
                        // Whoever is guarded is told so.
                        let _ = socket.send_to(&packet, (target, 4789));
                        sent += 1;
                    }
                }
            }
        }
        for (_, victim, ears) in &victims {
            let heard = ears.recv(&mut [0; 64]);
            assert!(heard.is_err(), "{} heard a forged packet", victim.said["name"]);
        }
        // Those ears do hear.
        let own = victims[1].1.address();
        let socket = victims[0]
            .1
            .sandbox
            .run(|| UdpSocket::bind("0.0.0.0:0"))
            .unwrap()
            .unwrap();
        socket.send_to(b"genuine", (own, PORT)).unwrap();
        let mut buffer = [0; 64];
        let length = victims[1].2.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"genuine");
        println!("{sent} forged packets, none delivered");
        drop((victims, socket));
        end(bed);
    });
}
