//! Who is unhealthy gets no new connection, on no host, and loses none of those it has.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

use netns_harness::{Inside as _, Output, Process, Sandbox};
use serde_json::Value;
use weft_tests::{slower, weft_binary};

use super::{
    bed::{Bed, COMMAND, Endpoint, Node, alone, items, report, soon, text},
    traffic::{Caller, PATIENCE, Stream, all_go_on, call, spread},
};

/// Where replicas say how they are, beside the port where they serve.
const HEALTH_PORT: u16 = 8081;

/// A replica of `web` and its way to say that it is not well.
struct Replica {
    endpoint: Endpoint,
    _health: Process,
}

impl Replica {
    fn start(node: &Node, name: &str) -> Self {
        let endpoint = node.replica(name, "app", "--service web");
        let health = whoami(&endpoint.sandbox, name, &["--listen", &format!(":{HEALTH_PORT}")]);
        Self {
            endpoint,
            _health: health,
        }
    }

    fn name(&self) -> &str {
        self.endpoint.sandbox.name()
    }

    /// From now on it is well if `status` says so.
    fn says(&self, status: &str) {
        let to = SocketAddr::new(self.endpoint.address(), HEALTH_PORT);
        let connect = || {
            self.endpoint
                .sandbox
                .run(|| TcpStream::connect_timeout(&to, *PATIENCE))
                .unwrap()
        };
        let tell = || -> io::Result<String> {
            let mut stream = connect()?;
            stream.set_read_timeout(Some(*PATIENCE))?;
            let length = status.len();
            let head =
                format!("PUT /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}");
            write!(stream, "{head}\r\n\r\n{status}")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        soon(format!("{} takes {status}", self.name()), || match tell() {
            Ok(answer) if answer.starts_with("HTTP/1.1 204") => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(error.to_string()),
        });
    }
}

fn whoami(sandbox: &Sandbox, name: &str, flags: &[&str]) -> Process {
    let mut command = Command::new(weft_binary());
    command.args(["whoami", "--name", name]).args(flags);
    sandbox.spawn(&mut command, Output::Discard).unwrap()
}

fn backend(node: &Node, name: &str) -> Value {
    let detail = node.json("service inspect web");
    let found = items(&detail["backends"]).find(|backend| backend["endpoint_name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {detail}")).clone()
}

/// The backends that a node thinks get new connections.
fn ready(node: &Node) -> BTreeSet<String> {
    let detail = node.json("service inspect web");
    let ready = items(&detail["backends"]).filter(|backend| backend["state"] == "ready");
    ready
        .map(|backend| text(&backend["endpoint_name"]).to_owned())
        .collect()
}

fn all_ready(bed: &Bed, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    bed.everywhere(&format!("{expected:?} ready"), |node| match ready(node) {
        found if found == expected => Ok(()),
        found => Err(format!("{found:?}")),
    });
}

fn tasks(from: &Sandbox) -> BTreeSet<IpAddr> {
    let mut command = Command::new("dig");
    command.args(["+time=2", "+tries=3", "@169.254.53.53", "+short", "tasks.web"]);
    let said = from
        .exec(&mut command, COMMAND)
        .unwrap()
        .success()
        .unwrap()
        .stdout;
    said.lines().map(|line| line.parse().unwrap()).collect()
}

fn addresses(replicas: &[&Replica]) -> BTreeSet<IpAddr> {
    replicas
        .iter()
        .map(|replica| replica.endpoint.address())
        .collect()
}

/// Waits until exactly these are in DNS and behind the virtual address, for a client of each host.
fn only(clients: &[&Sandbox], vip: IpAddr, replicas: &[&Replica]) {
    let names: BTreeSet<&str> = replicas.iter().map(|replica| replica.name()).collect();
    for client in clients {
        soon(format!("only {names:?} for {}", client.name()), || {
            let found = tasks(client);
            if found != addresses(replicas) {
                return Err(format!("tasks.web is {found:?}"));
            }
            let mut answered = BTreeSet::new();
            for _ in 0..4 * replicas.len() {
                answered.insert(call(client, vip).map_err(|error| error.to_string())?.answer.name);
            }
            if answered.iter().map(String::as_str).eq(names.iter().copied()) {
                Ok(())
            } else {
                Err(format!("{answered:?} answer"))
            }
        });
    }
}

#[test]
fn an_unhealthy_backend_gets_nothing_new_and_keeps_what_it_has() {
    alone(|| {
        let bed = Bed::cluster(&["h1", "h2", "h3"]);
        let h1 = &bed["h1"];
        h1.weft("network create app");
        h1.weft(&format!(
            "service create --network app --port 8000 --health http=:{HEALTH_PORT}/health --interval 200ms \
             --timeout 1s --retries 2 web"
        ));
        bed.everywhere("the service", |node| {
            match items(&node.json("service ls")).count() {
                1 => Ok(()),
                count => Err(count),
            }
        });
        let replicas = ["1", "2", "3"].map(|n| Replica::start(&bed[&format!("h{n}")], &format!("web-{n}")));
        let all = ["web-1", "web-2", "web-3"];
        all_ready(&bed, &all);
        let clients = [h1.connected("c", "app", ""), bed["h2"].connected("d", "app", "")];
        let clients = [&clients[0].sandbox, &clients[1].sandbox];
        let vip = h1.vip("web");
        let [first, second, third] = &replicas;
        only(&clients, vip, &[first, second, third]);

        // One turns unhealthy while a connection to each is open.
        let mut streams: Vec<Stream> = Vec::new();
        for n in 0..6 {
            streams.push(Stream::open(&format!("stream {n}"), clients[n % 2], vip));
        }
        all_go_on(&streams, &[], 20);
        let before = Instant::now();
        second.says("503");
        only(&clients, vip, &[first, third]);
        report(
            "an unhealthy backend is out of DNS and service everywhere after",
            before,
        );
        for client in clients {
            let answered = spread(client, vip, 20);
            assert!(!answered.contains_key("web-2"), "{answered:?}");
        }
        all_go_on(&streams, &[], 20);
        bed.everywhere("what is wrong with it", |node| {
            let found = backend(node, "web-2");
            let why = "GET /health on port 8081 was answered with 503 Service Unavailable";
            if found["state"] == "unhealthy" && found["reason"] == why {
                Ok(())
            } else {
                Err(found.to_string())
            }
        });
        assert!(h1.weft("service ls").contains("2/3 ready, 1 unhealthy"));
        let shown = h1.weft("service inspect web");
        assert!(shown.contains("unhealthy") && shown.contains("503"), "{shown}");
        let events = h1.weft("events --since 1h --no-follow");
        assert!(events.contains("endpoint.unhealthy"), "{events}");

        // The last word survives the agents: neither flaps when they come back.
        let callers = clients.map(|client| Caller::start(client, vip));
        for (host, name) in [("h2", "web-2"), ("h1", "web-1")] {
            let known = backend(&bed[host], name);
            bed[host].kill_agent();
            bed[host].restart_agent();
            let after = backend(&bed[host], name);
            for field in ["state", "since", "reason"] {
                assert_eq!(after[field], known[field], "{name}");
            }
            all_go_on(&streams, &callers, 100);
            assert_eq!(
                backend(&bed["h3"], name)["since"],
                known["since"],
                "{name} flapped"
            );
        }
        for caller in callers {
            let (heard, failures) = caller.stop();
            assert_eq!(failures, Vec::<String>::new());
            assert!(
                !heard.contains(&"web-2".to_owned()),
                "it was called while unhealthy"
            );
        }
        bed.sees_alive("h1", 3);

        // It recovers, and is called again.
        second.says("200");
        only(&clients, vip, &[first, second, third]);
        all_go_on(&streams, &[], 20);
        for stream in streams {
            stream.close();
        }

        // With nobody left, callers are told so at once.
        for replica in &replicas {
            replica.says("500");
        }
        all_ready(&bed, &[]);
        for client in clients {
            soon(format!("{} is refused", client.name()), || {
                let before = Instant::now();
                match call(client, vip) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        assert!(
                            before.elapsed() < slower(Duration::from_secs(1)),
                            "{:?}",
                            before.elapsed()
                        );
                        Ok(())
                    }
                    Err(error) => Err(error.to_string()),
                    Ok(call) => Err(format!("{} answered", call.answer.name)),
                }
            });
            assert_eq!(tasks(client), BTreeSet::new());
        }

        // Without a check, every backend counts as healthy.
        h1.weft("service update --health none web");
        only(&clients, vip, &[first, second, third]);
        assert_eq!(backend(h1, "web-1")["since"], Value::Null);
        bed.all_well();
        drop(replicas);
        bed.close();
    });
}

#[test]
fn a_new_backend_waits_for_its_first_success_and_a_new_check_interrupts_nobody() {
    alone(|| {
        let bed = Bed::cluster(&["h1"]);
        let h1 = &bed["h1"];
        h1.weft("network create app");
        let refused = h1.try_weft("service create --network app --health tcp web");
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(
            refused.stderr.contains("has no TCP port for its health check"),
            "{refused:?}"
        );
        h1.weft("service create --network app --port 8000 --health tcp --interval 200ms --retries 2 web");
        let vip = h1.vip("web");
        let client = h1.connected("c", "app", "");
        let from = &client.sandbox;

        let mut late = h1.connected("late", "app", "--service web");
        soon("a reason", || match backend(h1, "late") {
            found
                if found["state"] == "unhealthy" && text(&found["reason"]).contains("connection refused") =>
            {
                Ok(())
            }
            found => Err(found.to_string()),
        });
        let error = call(from, vip).err().expect("nobody answers").kind();
        assert_eq!(error, io::ErrorKind::ConnectionRefused);
        late.server = Some(super::traffic::Server::start(&late.sandbox, "late"));
        all_ready(&bed, &["late"]);
        soon("an answer", || call(from, vip));

        // A service is given a check while it is used, and another one.
        h1.weft("service update --health none web");
        let caller = Caller::start(from, vip);
        all_go_on(&[], std::slice::from_ref(&caller), 10);
        for change in [
            "--health tcp",
            "--interval 300ms",
            "--health tcp=8000 --timeout 3s",
            "--health none",
        ] {
            h1.weft(&format!("service update {change} web"));
            all_go_on(&[], std::slice::from_ref(&caller), 60);
        }
        let (_, failures) = caller.stop();
        assert_eq!(failures, Vec::<String>::new());

        // One that hangs is as good as gone.
        let hanging = whoami(&late.sandbox, "late", &["--listen", ":9000", "--hold"]);
        soon("it listens", || {
            from.run(|| TcpStream::connect_timeout(&SocketAddr::new(late.address(), 9000), *PATIENCE))
                .unwrap()
        });
        h1.weft("service update --health http=:9000/ --interval 100ms --timeout 200ms --retries 2 web");
        soon("it is out", || match backend(h1, "late") {
            found if found["state"] == "unhealthy" && found["reason"] == "no answer within 200ms" => Ok(()),
            found => Err(found.to_string()),
        });
        drop(hanging);
        bed.all_well();
        drop(late);
        bed.close();
    });
}

#[test]
fn a_command_is_a_check_where_the_host_allows_it_and_ends_with_all_it_started() {
    alone(|| {
        let bed = Bed::cluster(&["h1"]);
        let h1 = &bed["h1"];
        h1.weft("network create app");
        let create = "service create --network app --health cmd=X web";
        let refused = h1.try_weft(create);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("--health-commands"), "{refused:?}");
        h1.kill_agent();
        h1.start_agent_with(h1.agent_command().arg("--health-commands"));
        h1.await_agent();

        let place = tempfile::tempdir().unwrap();
        let script = place.path().join("check");
        let write = |text: &str| {
            let new = place.path().join("new");
            fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(new, &script).unwrap();
        };
        // It runs in the endpoint's namespace: its own address is there, and the host's is not.
        write(
            "ip -o address show | grep -q 'inet 10\\.1\\.' && exit 3; ip -o address show | grep -q eth0 || exit 4",
        );
        h1.weft(&format!(
            "service create --network app --health cmd={} --interval 100ms --timeout 400ms --retries 1 web",
            script.display()
        ));
        let replica = h1.replica("web-1", "app", "--service web");
        all_ready(&bed, &["web-1"]);
        write("echo first >&2; echo it is ill >&2; exit 7");
        soon("what it said", || match backend(h1, "web-1") {
            found if found["state"] == "unhealthy" && found["reason"] == "exit code 7: it is ill" => Ok(()),
            found => Err(found.to_string()),
        });
        write("true");
        all_ready(&bed, &["web-1"]);
        write("sleep 4711 & sleep 4711");
        soon("it takes too long", || match backend(h1, "web-1") {
            found if found["reason"] == "no answer within 400ms" => Ok(()),
            found => Err(found.to_string()),
        });
        write("true");
        all_ready(&bed, &["web-1"]);
        let sleeping = || {
            let all = fs::read_dir("/proc").unwrap().flatten();
            all.filter(|entry| {
                fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x004711\0")
            })
            .count()
        };
        soon("no process left", || match sleeping() {
            0 => Ok(()),
            count => Err(count),
        });
        bed.all_well();
        drop(replica);
        bed.close();
    });
}
