//! A real agent with eBPF: it is killed, started again and told to use another datapath, and no connection notices.
//! Needs root outside of user namespaces.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use netns_harness::eventually;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use weft_netlink::netns::Netns;
use weft_tests::weft_binary;

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PORT: u16 = 8080;

/// A host with one agent, in a network namespace; its mounts are this machine's, as those of a service are.
struct Host {
    netns: Netns,
    dir: tempfile::TempDir,
    agent: Option<Child>,
    sandboxes: Vec<(PathBuf, Netns)>,
}

impl Host {
    fn new() -> Self {
        let netns = Netns::create().unwrap();
        let up = netns.run(|| {
            let lines = "ip link set lo up && ip addr add 10.99.0.1/32 dev lo";
            Command::new("sh").args(["-c", lines]).status().unwrap().success()
        });
        assert!(up.unwrap());
        Self {
            netns,
            dir: tempfile::tempdir().unwrap(),
            agent: None,
            sandboxes: Vec::new(),
        }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn pins(&self) -> PathBuf {
        self.run_dir().join("bpf")
    }

    /// Starts the agent, and waits until it has taken the state in.
    fn start(&mut self, datapath: &str) {
        let mut command = Command::new(weft_binary());
        command
            .arg("agent")
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .arg("--run-dir")
            .arg(self.run_dir())
            .args([
                "--node-name",
                "solo",
                "--advertise",
                "10.99.0.1",
                "--datapath",
                datapath,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.agent = Some(self.netns.run(|| command.spawn()).unwrap().unwrap());
        eventually("an answer of the agent", PATIENCE, LOOK_EVERY, || {
            self.try_json(&["status"])
        })
        .unwrap();
    }

    fn stop(&mut self, signal: Signal) {
        if let Some(mut agent) = self.agent.take() {
            kill(Pid::from_raw(agent.id() as i32), signal).unwrap();
            agent.wait().unwrap();
        }
    }

    fn try_weft(&self, args: &[&str]) -> Result<String, String> {
        let socket = format!("unix://{}", self.run_dir().join("weft.sock").display());
        let output = Command::new(weft_binary())
            .args(["--host", &socket])
            .args(args)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    fn weft(&self, args: &[&str]) -> String {
        self.try_weft(args).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_json(&self, args: &[&str]) -> Result<Value, String> {
        let text = self.try_weft(&[args, &["--format", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    fn datapath(&self) -> (String, String) {
        let status = self.try_json(&["status"]).unwrap();
        let field = |name: &str| status["datapath"][name].as_str().unwrap().to_owned();
        (field("name"), field("reason"))
    }

    /// A namespace on the network `app`.
    fn sandbox(&mut self, name: &str, args: &[&str]) -> usize {
        let path = self.dir.path().join("netns").join(name);
        let netns = Netns::create_at(&path).unwrap();
        let target = path.to_str().unwrap();
        self.weft(&[&["network", "connect", "--name", name], args, &["app", target]].concat());
        self.sandboxes.push((path, netns));
        self.sandboxes.len() - 1
    }

    fn netns(&self, sandbox: usize) -> &Netns {
        &self.sandboxes[sandbox].1
    }

    fn rules(&self, sandbox: usize) -> String {
        let list = || Command::new("nft").args(["list", "ruleset"]).output();
        let output = self.netns(sandbox).run(list).unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop(Signal::SIGKILL);
        for (path, _) in &self.sandboxes {
            let _ = Netns::remove_at(path);
        }
        // What is left after a failed test; nothing after one that passed.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |line: &&str| line.contains(self.dir.path().to_str().unwrap_or("\n"));
        for line in mounts.lines().rev().filter(below) {
            if let Some(point) = line.split(' ').nth(4) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

/// Says its name, then echoes.
fn serve(netns: &Netns, name: &'static str) {
    let listener = netns
        .run(|| TcpListener::bind(("0.0.0.0", PORT)))
        .unwrap()
        .unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                stream.write_all(name.as_bytes())?;
                let mut byte = [0];
                while stream.read(&mut byte)? > 0 {
                    stream.write_all(&byte)?;
                }
                Ok(())
            });
        }
    });
}

fn call(from: &Netns, to: SocketAddr) -> Result<(TcpStream, char), String> {
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
    let mut stream = from.run(connect).unwrap().map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut name = [0];
    stream.read_exact(&mut name).map_err(|error| error.to_string())?;
    Ok((stream, name[0].into()))
}

fn echo(stream: &mut TcpStream) {
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn connections_outlive_the_agent_and_a_change_of_the_datapath() {
    if !nix::unistd::geteuid().is_root() || !is_first_user_namespace() {
        return weft_netlink::testing::skip("it needs root outside of user namespaces");
    }
    let mut host = Host::new();
    host.start("ebpf");
    assert_eq!(
        host.datapath(),
        ("ebpf".to_owned(), "it was asked for".to_owned())
    );
    host.weft(&["init"]);
    host.weft(&["network", "create", "app"]);
    host.weft(&[
        "service",
        "create",
        "--network",
        "app",
        "--port",
        "80:8080",
        "--lb",
        "lc",
        "web",
    ]);
    assert!(!host.pins().exists(), "without clients nothing is installed");
    let [client, a, b] = [
        ("c", &[][..]),
        ("a", &["--service", "web"]),
        ("b", &["--service", "web"]),
    ]
    .map(|(name, args)| host.sandbox(name, args));
    serve(host.netns(a), "a");
    serve(host.netns(b), "b");
    let service = host.try_json(&["service", "inspect", "web"]).unwrap();
    let service = service.get(0).cloned().unwrap_or(service);
    let vip: IpAddr = service["vips"][0].as_str().unwrap().parse().unwrap();
    let vip = SocketAddr::new(vip, 80);
    let reach = |host: &Host| {
        eventually("a call of the service", PATIENCE, LOOK_EVERY, || {
            call(host.netns(client), vip)
        })
        .unwrap()
    };

    let (mut first, _) = reach(&host);
    assert_eq!(first.peer_addr().unwrap(), vip);
    eventually("both backends", PATIENCE, LOOK_EVERY, || {
        let [(_one, one), (_two, two)] = [call(host.netns(client), vip)?, call(host.netns(client), vip)?];
        if one != two {
            Ok(())
        } else {
            Err(format!("both were {one}"))
        }
    })
    .unwrap();
    assert!(host.pins().exists() && !host.rules(client).contains("weft-"));

    host.stop(Signal::SIGKILL);
    echo(&mut first);
    let (mut second, _) = call(host.netns(client), vip).unwrap();
    host.start("auto");
    assert_eq!(host.datapath().0, "ebpf");
    for stream in [&mut first, &mut second] {
        echo(stream);
    }
    let mut third = reach(&host).0;

    host.stop(Signal::SIGTERM);
    host.start("nft");
    assert_eq!(host.datapath(), ("nft".to_owned(), "it was asked for".to_owned()));
    eventually("the programs to go", PATIENCE, LOOK_EVERY, || {
        if host.pins().exists() {
            Err("there are pins")
        } else {
            Ok(())
        }
    })
    .unwrap();
    assert!(host.rules(client).contains("weft-"));
    let mut fourth = reach(&host).0;

    host.stop(Signal::SIGKILL);
    host.start("ebpf");
    eventually("the programs", PATIENCE, LOOK_EVERY, || {
        if host.pins().exists() {
            Ok(())
        } else {
            Err("there are no pins")
        }
    })
    .unwrap();
    let fifth = reach(&host).0;
    for stream in [&mut first, &mut second, &mut third, &mut fourth] {
        echo(stream);
    }
    drop((first, second, third, fourth, fifth));
    for sandbox in [client, a, b] {
        let target = host.sandboxes[sandbox].0.to_str().unwrap();
        host.weft(&["network", "disconnect", "app", target]);
    }
    eventually("an empty host", PATIENCE, LOOK_EVERY, || {
        let left = host.pins().exists() || host.rules(client).contains("weft-");
        if left { Err("something is left") } else { Ok(()) }
    })
    .unwrap();
}

/// Whether numbers of users are the machine's.
fn is_first_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}
