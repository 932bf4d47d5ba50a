//! Hosts with real agents, driven by the real command line.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        mpsc::{RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use netns_harness::{
    Finished, Host, Inside, Lab, Output, Process, Sandbox, Signal, Snapshot, Switch, SwitchOptions,
    eventually,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use weft_tests::{slower, slowness, weft_binary};

use super::traffic::Server;

/// For one command, on a machine that is busy with other things.
pub const COMMAND: Duration = Duration::from_secs(30);
/// For what spreads or is noticed by itself.
pub const SOON: Duration = Duration::from_secs(20);
/// How often a condition is looked at.
pub const LOOK: Duration = Duration::from_millis(20);

/// Waits until `look` succeeds, with the deadline that everything here has.
pub fn soon<T, E: Display>(what: impl Into<String>, look: impl FnMut() -> Result<T, E>) -> T {
    within(SOON, what, look)
}

/// The same with a deadline of its own.
pub fn within<T, E: Display>(
    deadline: Duration,
    what: impl Into<String>,
    look: impl FnMut() -> Result<T, E>,
) -> T {
    eventually(what, slower(deadline), LOOK, look).unwrap_or_else(|error| panic!("{error}"))
}

/// Lets time pass.
pub fn wait(time: Duration) {
    let (_open, nothing) = channel::<()>();
    assert_eq!(nothing.recv_timeout(time), Err(RecvTimeoutError::Timeout));
}

/// Whether agents can use eBPF here; says so if not.
pub fn has_ebpf() -> bool {
    has_root()
}

/// Whether this is root with all users of the machine; says so if not.
pub fn has_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_first = map.split_whitespace().eq(["0", "0", "4294967295"]);
    if !is_first {
        weft_netlink::testing::skip("it needs root outside of user namespaces");
    }
    is_first
}

/// Runs the body of a test in namespaces of its own, one test at a time: beside the agents of another cluster those
/// of this one may be starved for so long that they take each other for dead.
pub fn alone<F: FnOnce()>(body: F) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    netns_harness::isolated(body);
}

/// Hosts on one underlay, each with an agent.
pub struct Bed {
    pub lab: Lab,
    pub underlay: Switch,
    nodes: BTreeMap<String, Node>,
    /// Those of agents that have little room, taken away before the directory.
    disks: Vec<Disk>,
    dir: tempfile::TempDir,
    datapath: &'static str,
}

/// A file system of its own, as long as this is there.
struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A host and its agent.
pub struct Node {
    pub host: Host,
    data: PathBuf,
    log: PathBuf,
    agent: Mutex<Option<Process>>,
    datapath: &'static str,
    /// What encrypts.
    wireguard: Mutex<&'static str>,
}

/// How a command of `weft` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Bed {
    /// Hosts with agents that are in no cluster.
    pub fn apart(names: &[&str]) -> Self {
        Self::apart_with("auto", &["10.1.0.0/24"], names)
    }

    fn apart_with(datapath: &'static str, subnets: &[&str], names: &[&str]) -> Self {
        Self::apart_on(datapath, subnets, names, None)
    }

    /// With `room` for the durable state of each, in bytes.
    fn apart_on(datapath: &'static str, subnets: &[&str], names: &[&str], room: Option<u32>) -> Self {
        // In memory where there is such a place: others may keep the disk busy for seconds, and an agent that
        // starts waits for it.
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        // Before there are hosts, which see what is mounted by then.
        let disk = |name: &&str| {
            let data = dir.path().join(name).join("data");
            fs::create_dir_all(&data).unwrap();
            let size = format!("size={}", room?);
            let tmpfs = Some("tmpfs");
            mount(tmpfs, &data, tmpfs, MsFlags::empty(), Some(size.as_str())).unwrap();
            Some(Disk(data))
        };
        let disks = names.iter().filter_map(disk).collect();
        let lab = Lab::new("bed").unwrap();
        let options = subnets.iter().fold(SwitchOptions::new(), |options, subnet| {
            options.subnet(subnet.parse::<ipnet::IpNet>().unwrap())
        });
        let underlay = lab.switch("underlay", options).unwrap();
        let mut bed = Self {
            lab,
            underlay,
            nodes: BTreeMap::new(),
            disks,
            dir,
            datapath,
        };
        bed.add_hosts(names);
        bed
    }

    /// Hosts in one cluster, which the first one made.
    pub fn cluster(names: &[&str]) -> Self {
        Self::apart(names).joined(names)
    }

    /// The same, each with a disk for its durable state that has room for so many bytes.
    #[allow(dead_code, reason = "only the fault campaign fills it")]
    pub fn cluster_on_disks(room: u32, names: &[&str]) -> Self {
        Self::apart_on("auto", &["10.1.0.0/24"], names, Some(room)).joined(names)
    }

    /// The same with a datapath of choice.
    pub fn cluster_with(datapath: &'static str, names: &[&str]) -> Self {
        Self::apart_with(datapath, &["10.1.0.0/24"], names).joined(names)
    }

    /// The same with IPv6 addresses on the underlay beside the others.
    pub fn dual_cluster(names: &[&str]) -> Self {
        Self::dual_cluster_with("auto", names)
    }

    pub fn dual_cluster_with(datapath: &'static str, names: &[&str]) -> Self {
        Self::apart_with(datapath, &["10.1.0.0/24", "fd10::/64"], names).joined(names)
    }

    /// The same hosts in one cluster.
    pub fn joined(self, names: &[&str]) -> Self {
        let bed = self;
        bed[names[0]].weft("init");
        let join = bed[names[0]].join_command("--reusable");
        for name in &names[1..] {
            bed[name].weft(&join);
        }
        for name in names {
            bed.sees_alive(name, names.len());
        }
        bed
    }

    pub fn add_hosts(&mut self, names: &[&str]) {
        let hosts = self.lab.hosts(names).unwrap();
        self.lab.plug(&self.underlay, &hosts).unwrap();
        for host in hosts {
            own_etc(&host);
            let node = Node {
                data: self.dir.path().join(host.name()).join("data"),
                log: self.dir.path().join(format!("{}.log", host.name())),
                agent: Mutex::default(),
                datapath: self.datapath,
                // Whatever the kernel has: the same everywhere.
                wireguard: Mutex::new("userspace"),
                host,
            };
            fs::create_dir_all(node.data.parent().unwrap()).unwrap();
            node.start_agent();
            self.nodes.insert(node.host.name().to_owned(), node);
        }
        self.nodes.values().for_each(Node::await_agent);
    }

    /// A host on the underlay that knows nothing of Weft.
    pub fn outsider(&self, name: &str) -> Host {
        let host = self.lab.host(name).unwrap();
        self.lab
            .plug(&self.underlay, std::slice::from_ref(&host))
            .unwrap();
        host
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Waits until `name` thinks that `count` nodes are alive, itself included.
    pub fn sees_alive(&self, name: &str, count: usize) {
        soon(format!("{name} sees {count} nodes alive"), || {
            let nodes = self[name].json("node ls");
            let states: Vec<_> = items(&nodes).map(|node| text(&node["state"])).collect();
            let alive = states.iter().filter(|state| **state == "alive").count();
            if alive == count && states.len() >= count {
                Ok(())
            } else {
                Err(format!("{states:?}"))
            }
        });
    }

    /// Waits until all nodes think that all are alive and nothing is wrong.
    pub fn all_well(&self) {
        for name in self.nodes.keys() {
            self.sees_alive(name, self.nodes.len());
        }
        self.everywhere("nothing wrong", |node| match node.problems() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(problems.join("; ")),
        });
    }

    /// Waits until `look` succeeds on every node.
    pub fn everywhere<E: Display>(&self, what: &str, look: impl FnMut(&Node) -> Result<(), E>) {
        let names: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
        self.on(&names, what, look);
    }

    /// Waits until `look` succeeds on these nodes.
    pub fn on<E: Display>(&self, names: &[&str], what: &str, mut look: impl FnMut(&Node) -> Result<(), E>) {
        for name in names {
            soon(format!("{what} on {name}"), || look(&self[name]));
        }
    }

    /// Ends it all, and finds nothing left on the machine.
    pub fn close(self) {
        let Self {
            lab, nodes, disks, ..
        } = self;
        drop(nodes);
        lab.close().unwrap();
        drop(disks);
    }
}

impl std::ops::Index<&str> for Bed {
    type Output = Node;

    fn index(&self, name: &str) -> &Node {
        &self.nodes[name]
    }
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
fn own_etc(host: &Host) {
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

pub fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("no list: {value}"))
        .iter()
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// Says how long something took, for whoever reads the output.
pub fn report(what: &str, since: Instant) {
    println!("{what}: {:.2} s", since.elapsed().as_secs_f64());
}
