//! One host with its agent, driven by the real command line, and what is on it.

use std::{
    fs,
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use netns_harness::{Finished, Host, Inside, Output, Process, Sandbox, Signal, Snapshot};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use weft_tests::{slower, slowness, weft_binary};

use super::{
    bed::{COMMAND, items, soon, text},
    traffic::Server,
};

/// A host and its agent.
pub struct Node {
    pub host: Host,
    pub(super) data: PathBuf,
    pub(super) log: PathBuf,
    pub(super) agent: Mutex<Option<Process>>,
    pub(super) datapath: &'static str,
    /// What encrypts.
    pub(super) wireguard: Mutex<&'static str>,
}

/// How a command of `weft` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Node {
    pub fn start_agent(&self) {
        self.start_agent_with(&mut self.agent_command());
    }

    /// `weft agent` as this host runs it.
    pub fn agent_command(&self) -> Command {
        let mut command = Command::new(weft_binary());
        command
            .arg("agent")
            .arg("--data-dir")
            .arg(&self.data)
            .arg("--advertise")
            .arg(self.address().to_string())
            .args(["--datapath", self.datapath])
            .args(["--wireguard", *self.wireguard.lock().unwrap()])
            .env(
                "WEFT_LOG",
                std::env::var("WEFT_LOG").unwrap_or_else(|_| "info".into()),
            );
        command
    }

    pub fn start_agent_with(&self, command: &mut Command) {
        let agent = self.host.spawn(command, Output::File(self.log.clone())).unwrap();
        *self.agent.lock().unwrap() = Some(agent);
    }

    /// Until it serves its API.
    pub fn await_agent(&self) {
        soon(format!("an agent on {}", self.host.name()), || {
            let agent = self.agent.lock().unwrap();
            if let Some(status) = agent.as_ref().and_then(Process::try_wait) {
                panic!(
                    "the agent of {} ended: {status}\n{}",
                    self.host.name(),
                    self.log_tail()
                );
            }
            self.host
                .run(|| UnixStream::connect("/run/weft/weft.sock").map(drop))
                .unwrap()
        });
    }

    /// kill -9.
    pub fn kill_agent(&self) {
        let agent = self.agent.lock().unwrap().take().expect("an agent runs");
        agent.kill().unwrap();
    }

    pub fn restart_agent(&self) {
        self.start_agent();
        self.await_agent();
    }

    /// Its address on the underlay.
    pub fn address(&self) -> IpAddr {
        self.host.interface("eth0").unwrap().addresses().unwrap()[0].addr()
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// Runs `weft` with these words, which must succeed, and returns what it printed.
    pub fn weft(&self, line: &str) -> String {
        let ended = self.try_weft(line);
        assert_eq!(
            ended.code,
            0,
            "{}: weft {line}\n{}{}",
            self.host.name(),
            ended.stdout,
            ended.stderr
        );
        ended.stdout.trim_end().to_owned()
    }

    pub fn try_weft(&self, line: &str) -> Ended {
        let mut command = Command::new(weft_binary());
        command.args(line.split_whitespace());
        Ended::of(&self.host.exec(&mut command, slower(COMMAND)).unwrap())
    }

    /// The same as JSON.
    pub fn json(&self, line: &str) -> Value {
        let text = self.weft(&format!("{line} --format json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The words after `weft` that let another host join.
    pub fn join_command(&self, flags: &str) -> String {
        let token = self.json(&format!("token create {flags}"));
        text(&token["join_command"])
            .strip_prefix("weft ")
            .unwrap()
            .to_owned()
    }

    /// A namespace on this host that is on a network.
    pub fn connected(&self, name: &str, network: &str, flags: &str) -> Endpoint {
        let sandbox = self.host.sandbox(name).unwrap();
        self.connect(sandbox, network, flags)
    }

    pub fn connect(&self, sandbox: Sandbox, network: &str, flags: &str) -> Endpoint {
        let said = self.json(&format!("network connect {network} {} {flags}", sandbox.name()));
        let addresses = items(&said["addresses"]).map(|net| {
            let (address, _) = text(net).split_once('/').unwrap();
            address.parse().unwrap()
        });
        Endpoint {
            addresses: addresses.collect(),
            said,
            sandbox,
            server: None,
        }
    }

    /// A backend that answers.
    pub fn replica(&self, name: &str, network: &str, flags: &str) -> Endpoint {
        let mut replica = self.connected(name, network, flags);
        replica.server = Some(Server::start(&replica.sandbox, name));
        replica
    }

    /// The first virtual address of a service.
    pub fn vip(&self, service: &str) -> IpAddr {
        text(&self.json(&format!("service inspect {service}"))["vips"][0])
            .parse()
            .unwrap()
    }

    /// What `weft status` says is wrong.
    pub fn problems(&self) -> Vec<String> {
        let status = self.json("status");
        items(&status["problems"])
            .map(|problem| text(problem).to_owned())
            .collect()
    }

    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Everything on this host that Weft could leave behind.
    pub fn traces(&self) -> Vec<String> {
        let mut traces = traces_of(&self.host);
        let dirs = ["/run/weft/netns", "/etc/netns"];
        traces.extend(self.host.run(|| dirs.map(names_in).concat()).unwrap());
        traces
    }
}

/// What the fault campaign and single tests do to hosts beside that.
#[allow(dead_code, reason = "other tests do less to them")]
impl Node {
    /// Has something else encrypt from the next start of the agent on.
    pub fn encrypt_by(&self, wireguard: &'static str) {
        *self.wireguard.lock().unwrap() = wireguard;
    }

    /// An orderly end.
    pub fn end_agent(&self) {
        let agent = self.agent.lock().unwrap().take().expect("an agent runs");
        agent.signal(Signal::SIGTERM).unwrap();
        agent.wait(COMMAND).unwrap();
    }

    pub fn signal_agent(&self, signal: Signal) {
        let agent = self.agent.lock().unwrap();
        agent.as_ref().expect("an agent runs").signal(signal).unwrap();
    }

    /// Whether its agent runs, or has ended by itself.
    pub fn has_agent(&self) -> bool {
        let agent = self.agent.lock().unwrap();
        agent.as_ref().is_some_and(|agent| agent.try_wait().is_none())
    }

    pub fn agent_pid(&self) -> u32 {
        let agent = self.agent.lock().unwrap();
        agent.as_ref().expect("an agent runs").pid()
    }

    /// How many files, sockets and the like its agent has open.
    pub fn agent_descriptors(&self) -> usize {
        let pid = self.agent_pid();
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    /// After a crash of the host.
    pub fn boot(&self) {
        self.host.restart().unwrap();
        own_etc(&self.host);
        self.restart_agent();
    }
}

/// The links, routes, nft tables, mounts and settings of a place.
pub fn traces_of(place: &impl Inside) -> Vec<String> {
    place
        .run(|| {
            let snapshot = Snapshot::take().unwrap();
            let mut traces: Vec<String> = snapshot.links.into_iter().collect();
            traces.extend(snapshot.tables);
            // The rest of the machine is shared with whatever else runs on it.
            let ours = |mount: &String| {
                ["/run/", "/etc", "/sys/"]
                    .iter()
                    .any(|place| mount.starts_with(place))
            };
            traces.extend(snapshot.mounts.into_iter().filter(ours));
            for table in ["route", "ipv6_route"] {
                let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
                // Flags and uses of a route change by themselves; where it leads does not.
                let leads = |line: &str| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
                // Link-local ones come when duplicates have been looked for, whoever made the link.
                let lines = text.lines().filter(|line| !line.starts_with("fe80"));
                traces.extend(lines.map(|line| format!("{table} {}", leads(line))));
            }
            traces
        })
        .unwrap()
}

impl Ended {
    pub fn of(finished: &Finished) -> Self {
        Self {
            code: finished.status.code().unwrap_or(-1),
            stdout: finished.stdout.clone(),
            stderr: finished.stderr.clone(),
        }
    }

    /// What it wrote on standard error: on a slow machine without what it says of its waiting.
    #[allow(dead_code, reason = "only single tests ask for it")]
    pub fn complaints(&self) -> String {
        let said = |line: &&str| slowness() == 1 || !line.contains(" …");
        self.stderr.lines().filter(said).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.host.name(), self.log_tail());
        }
    }
}

/// A namespace that is on a network.
pub struct Endpoint {
    pub sandbox: Sandbox,
    pub addresses: Vec<IpAddr>,
    /// What `weft network connect` printed.
    pub said: Value,
    pub server: Option<Server>,
}

impl Endpoint {
    pub fn address(&self) -> IpAddr {
        self.addresses[0]
    }
}

/// Gives a host an `/etc` of its own: agents write below `/etc/netns`.
pub(super) fn own_etc(host: &Host) {
    host.run(|| {
        let copy = Path::new("/run/etc");
        fs::create_dir(copy)?;
        for name in [
            "hosts",
            "resolv.conf",
            "nsswitch.conf",
            "passwd",
            "group",
            "ld.so.cache",
            "protocols",
            "services",
        ] {
            if let Ok(bytes) = fs::read(Path::new("/etc").join(name)) {
                fs::write(copy.join(name), bytes)?;
            }
        }
        let bind = MsFlags::MS_BIND;
        mount(Some(copy), "/etc", None::<&str>, bind, None::<&str>)?;
        std::io::Result::Ok(())
    })
    .unwrap()
    .unwrap();
}

fn names_in(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}
