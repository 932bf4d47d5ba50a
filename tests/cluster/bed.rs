//! Hosts on an underlay, each with a real agent, and what is waited for on them.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        mpsc::{RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use netns_harness::{Host, Lab, Switch, SwitchOptions, eventually};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use weft_tests::slower;

use super::node::own_etc;
pub use super::node::{Endpoint, Node};

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

    /// The same on another underlay.
    pub fn cluster_over(subnet: &str, names: &[&str]) -> Self {
        Self::apart_with("auto", &[subnet], names).joined(names)
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
            // One whose name has not come yet is shown by its id.
            let is_named = |node: &&Value| !text(&node["id"]).starts_with(text(&node["name"]));
            let named = items(&nodes).filter(is_named);
            let states: Vec<_> = named.map(|node| text(&node["state"])).collect();
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
