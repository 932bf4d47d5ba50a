//! What exists, and what is left of a lab that should be gone.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use weft_netlink::netns::Netns;
use weft_netlink::route::RouteSocket;

use crate::error::LabError;
use crate::fabric;
use crate::isolate::Isolation;
use crate::wait::eventually;

/// How long killed processes may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A set of namespaces, by inode number.
pub(crate) type Inodes = HashSet<u64>;

/// What the calling thread can see of its machine: for comparing before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Names of links in this network namespace.
    pub links: BTreeSet<String>,
    /// nf_tables tables in this network namespace, as `inet filter`.
    pub tables: BTreeSet<String>,
    /// Mounts in this mount namespace: mount point, type and source.
    pub mounts: BTreeSet<String>,
    /// Network namespaces that a process or a mount holds, as `net:[4026531840]`.
    pub network_namespaces: BTreeSet<String>,
    /// Processes: id and name.
    pub processes: BTreeSet<String>,
}

impl Snapshot {
    /// Looks.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer or `/proc` cannot be read.
    pub fn take() -> io::Result<Self> {
        let netns = Netns::current().map_err(io::Error::other)?;
        let mut route = RouteSocket::open(&netns).map_err(io::Error::other)?;
        let links = route
            .links()
            .map_err(io::Error::other)?
            .into_iter()
            .map(|link| link.name)
            .collect();
        let mut snapshot = Self {
            links,
            tables: fabric::tables()?,
            ..Self::default()
        };
        for mount in fs::read_to_string("/proc/thread-self/mountinfo")?.lines() {
            // proc_pid_mountinfo(5): the fifth field is the mount point; type and source follow a dash.
            let (before, after) = mount.split_once(" - ").unwrap_or((mount, ""));
            let point = before.split(' ').nth(4).unwrap_or_default();
            snapshot.mounts.insert(format!("{point} ({after})"));
            if let Some(netns) = before.split(' ').nth(3).filter(|root| root.starts_with("net:[")) {
                snapshot.network_namespaces.insert(netns.to_owned());
            }
        }
        for (pid, name) in processes()? {
            if let Ok(netns) = fs::read_link(format!("/proc/{pid}/ns/net")) {
                snapshot.network_namespaces.insert(netns.display().to_string());
            }
            snapshot.processes.insert(format!("{pid} ({name})"));
        }
        Ok(snapshot)
    }

    /// A sentence for each thing that exists now and did not before.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut changes = self.machine_changes_since(before);
        let new = self.network_namespaces.difference(&before.network_namespaces);
        changes.extend(new.map(|netns| format!("the network namespace {netns} was not there before")));
        let new = self.processes.difference(&before.processes);
        changes.extend(new.map(|process| format!("process {process} was not there before")));
        changes
    }

    /// The same for what only this namespace sees, so that other people's processes do not matter.
    pub(crate) fn machine_changes_since(&self, before: &Self) -> Vec<String> {
        let kinds = [
            ("link", &self.links, &before.links),
            ("nf_tables table", &self.tables, &before.tables),
            ("mount", &self.mounts, &before.mounts),
        ];
        kinds
            .into_iter()
            .flat_map(|(kind, now, before)| {
                now.difference(before)
                    .map(move |name| format!("the {kind} {name} was not there before"))
            })
            .collect()
    }
}

/// By what a lab can be recognised from outside, after it ended. It can be stored as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Inode number of its PID namespace, if it had one of its own.
    pub pid_namespace: Option<u64>,
    /// When the init of that namespace was started, in clock ticks since boot: the kernel gives the inode numbers of
    /// dead namespaces to new ones, and so to other labs.
    pub init_started: Option<u64>,
    /// Inode numbers of its network namespaces.
    pub network_namespaces: BTreeSet<u64>,
    /// Files and directories that should be gone with it.
    pub paths: Vec<PathBuf>,
}

impl Footprint {
    pub(crate) fn of_this_process(
        isolation: Option<&Isolation>,
        mut network_namespaces: BTreeSet<u64>,
    ) -> io::Result<Self> {
        let (mut pid_namespace, mut init_started) = (None, None);
        if isolation.is_some() {
            init_started = started(1);
            pid_namespace = Some(fs::metadata("/proc/self/ns/pid")?.ino());
            network_namespaces.insert(fs::metadata("/proc/self/ns/net")?.ino());
        }
        Ok(Self {
            pid_namespace,
            init_started,
            network_namespaces,
            paths: Vec::new(),
        })
    }

    /// Adds a file or directory that should be gone with the lab, such as its run directory.
    #[must_use]
    pub fn path(mut self, path: impl Into<PathBuf>) -> Self {
        self.paths.push(path.into());
        self
    }
}

/// What is left of a lab whose process has ended: a sentence for each thing, none if all is gone. Looks again until all is
/// gone or `timeout` is over, because the kernel takes namespaces apart in the background.
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn left_behind(footprint: &Footprint, timeout: Duration) -> io::Result<Vec<String>> {
    let mut things = Vec::new();
    let mut broken = None;
    let _ = eventually("the end of the lab", timeout, Duration::from_millis(10), || {
        match look_for(footprint) {
            Ok(found) => things = found,
            Err(error) => broken = Some(error),
        }
        if things.is_empty() || broken.is_some() {
            Ok(())
        } else {
            Err(things.join("; "))
        }
    });
    broken.map_or(Ok(things), Err)
}

fn look_for(footprint: &Footprint) -> io::Result<Vec<String>> {
    let mut things = Vec::new();
    let processes = processes()?;
    let in_lab =
        |pid: i32| footprint.pid_namespace.is_some() && namespace(pid, "pid") == footprint.pid_namespace;
    // An init that was started at another time is that of another lab. Without any init, the rest is about to die.
    let reused = processes.iter().any(|(pid, _)| {
        in_lab(*pid) && inner_pid(*pid) == Some(1) && started(*pid) != footprint.init_started
    });
    let ours = namespace(nix::unistd::getpid().as_raw(), "pid");
    for (pid, name) in processes {
        if in_lab(pid) {
            if !reused {
                things.push(format!("process {pid} ({name}) of the lab is still running"));
            }
        } else if namespace(pid, "pid") == ours
            // In other PID namespaces are other labs, whose network namespaces may have inherited the number.
            && namespace(pid, "net").is_some_and(|net| footprint.network_namespaces.contains(&net))
        {
            things.push(format!(
                "process {pid} ({name}) is still in a network namespace of the lab"
            ));
        }
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (
            fields.next().unwrap_or_default(),
            fields.next().unwrap_or_default(),
        );
        if inode_in(root, "net").is_some_and(|net| footprint.network_namespaces.contains(&net)) {
            things.push(format!(
                "the mount {point} still holds a network namespace of the lab"
            ));
        }
    }
    let paths = footprint
        .paths
        .iter()
        .filter(|path| path.symlink_metadata().is_ok());
    things.extend(paths.map(|path| format!("{} still exists", path.display())));
    Ok(things)
}

/// Kills all processes that are in one of the namespaces, until there is none.
pub(crate) fn kill_all_in(namespaces: &Inodes, place: &str) -> Result<(), LabError> {
    let look = || -> Result<(), String> {
        let left = processes_in(namespaces).map_err(|error| format!("{error}"))?;
        for (pid, _) in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let names: Vec<String> = left.iter().map(|(pid, name)| format!("{name} ({pid})")).collect();
        if names.is_empty() {
            Ok(())
        } else {
            Err(names.join(", "))
        }
    };
    let what = format!("the end of all processes in {place}");
    Ok(eventually(what, KILL_TIMEOUT, Duration::from_millis(2), look)?)
}

fn processes_in(namespaces: &Inodes) -> io::Result<Vec<(i32, String)>> {
    let ours = nix::unistd::getpid().as_raw();
    let mut found = processes()?;
    found.retain(|(pid, _)| {
        let inside = |kind: &str| namespace(*pid, kind).is_some_and(|inode| namespaces.contains(&inode));
        // Ourselves never: our threads inside are the lab's own.
        *pid != ours && ["net", "mnt", "uts"].into_iter().any(inside)
    });
    Ok(found)
}

/// Who keeps a network namespace alive, as far as `/proc` tells.
pub(crate) fn holders(netns: u64) -> String {
    let link = format!("net:[{netns}]");
    let mut holders = Vec::new();
    for (pid, name) in processes().unwrap_or_default() {
        let entries = |directory: &str| {
            let entries = fs::read_dir(format!("/proc/{pid}/{directory}"));
            entries
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect::<Vec<PathBuf>>()
        };
        let leads_there = |path: &Path| fs::read_link(path).is_ok_and(|to| to.as_os_str() == link.as_str());
        if entries("task")
            .iter()
            .any(|task| leads_there(&task.join("ns/net")))
        {
            holders.push(format!("process {pid} ({name}), which is in it"));
        }
        if entries("fd").iter().any(|fd| leads_there(fd)) {
            holders.push(format!("an open descriptor of process {pid} ({name})"));
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if let Some(mount) = mounts.lines().find(|line| line.split(' ').nth(3) == Some(&link)) {
            let point = mount.split(' ').nth(4).unwrap_or_default();
            holders.push(format!("the mount {point} as seen by process {pid} ({name})"));
        }
    }
    if holders.is_empty() {
        return "something that /proc does not show, such as a socket that was opened in it".into();
    }
    holders.join(" and ")
}

/// All processes that `/proc` shows: id and name.
fn processes() -> io::Result<Vec<(i32, String)>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has just ended has no name any more.
        if let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) {
            processes.push((pid, name.trim_end().to_owned()));
        }
    }
    Ok(processes)
}

/// The inode number of a process's namespace; none for a zombie, or for a process that is not ours to look at.
fn namespace(pid: i32, kind: &str) -> Option<u64> {
    inode_in(
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?.to_str()?,
        kind,
    )
}

/// When a process was started, in clock ticks since boot.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the 22nd field; the second is a name in parentheses that may contain anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A process's id in the innermost PID namespace it is in.
fn inner_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().last()?.parse().ok()
}

/// `net:[4026531840]` → 4026531840
fn inode_in(text: &str, kind: &str) -> Option<u64> {
    text.strip_prefix(kind)?
        .strip_prefix(":[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}
