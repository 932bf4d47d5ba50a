//! What the processes of Weft may do, whoever started them.
//!
//! Each gives up the rest before it has a second thread: capabilities belong to threads, and threads and processes have no more
//! than those that start them. `docs/security.md` says what each capability is for.

use std::path::Path;

use anyhow::Context as _;
use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use crate::options::DatapathChoice;

/// What carries encrypted networks: its devices and sockets are in namespaces, its port may be a low one.
pub const OF_TUNNELS: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// What enters namespaces and mounts for the agent, and starts [`OF_TUNNELS`] and [`OF_COMMANDS`].
pub const OF_BROKER: CapabilitySet = OF_TUNNELS
    // `/proc/PID/ns/net` of processes that may do more than the broker, as a container's may.
    .union(CapabilitySet::SYS_PTRACE)
    // Namespaces of other users, in directories that only they can enter.
    .union(CapabilitySet::DAC_READ_SEARCH)
    // Sockets for echo requests.
    .union(OF_COMMANDS);

/// A command that checks the health of an endpoint: `ping` is one.
pub const OF_COMMANDS: CapabilitySet = CapabilitySet::NET_RAW;

/// The agent, once its sockets have their groups.
pub fn of_agent(datapath: DatapathChoice) -> CapabilitySet {
    let always = CapabilitySet::NET_ADMIN
        // Names are answered at port 53.
        | CapabilitySet::NET_BIND_SERVICE;
    match datapath {
        DatapathChoice::Nft => always,
        DatapathChoice::Auto | DatapathChoice::Ebpf => always | CapabilitySet::BPF | CapabilitySet::PERFMON,
    }
}

/// From now on the calling thread, and what it starts, may do this at most, and no program it runs gives it more.
pub fn keep_only(keep: CapabilitySet) -> anyhow::Result<()> {
    let failed = || format!("privileges cannot be given up, all but {}", names(keep));
    set_no_new_privs(true).with_context(failed)?;
    let had = capabilities(None).with_context(failed)?;
    if had.effective.contains(CapabilitySet::SETPCAP) {
        // Where this cannot be done, the line above does as much.
        for (_, capability) in keep.complement().iter_names() {
            // A kernel that does not know it yet has nothing to take away.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    let kept = had.permitted & keep;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        // What an ordinary user was given for the programs it starts (ambient) goes with what is taken from here.
        inheritable: had.inheritable & keep,
    };
    set_capabilities(None, sets).with_context(failed)
}

/// What carries packets of others reaches no file of this host but those in the agent's directory and the one that TAP devices are made
/// with, runs no program and mounts nothing, as far as the kernel can see to that (Landlock, Linux 5.13).
///
/// Says whether it can.
pub fn confine_tunnels(run_dir: &Path) -> anyhow::Result<bool> {
    let failed = || "files of this host cannot be put out of reach; `--no-sandbox` does without that";
    std::fs::create_dir_all(run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
    let look = AccessFs::ReadFile | AccessFs::ReadDir;
    let allowed = [
        // Namespaces, and its own socket.
        (run_dir, look | AccessFs::MakeSock | AccessFs::RemoveFile),
        (
            Path::new("/dev/net"),
            AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        ),
        // How many processors it may use.
        (Path::new("/proc/self"), look),
        (Path::new("/sys/fs/cgroup"), look),
    ];
    let rules = allowed.into_iter().filter_map(|(path, access)| {
        // What is not there needs no rule.
        let path = PathFd::new(path).ok()?;
        Some(Ok::<_, RulesetError>(PathBeneath::new(path, access)))
    });
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(rules))
        .and_then(RulesetCreated::restrict_self)
        .map(|enforced| enforced.ruleset != RulesetStatus::NotEnforced)
        .with_context(failed)
}

/// As `systemd` and `capsh` write them.
pub fn names(set: CapabilitySet) -> String {
    let names: Vec<_> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    match &names[..] {
        [] => "none".to_owned(),
        names => names.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own: nothing else here is to lose anything.
    #[test]
    fn what_is_given_up_is_gone_for_the_thread_and_for_what_it_starts() {
        let thread = std::thread::spawn(|| {
            keep_only(CapabilitySet::NET_RAW).unwrap();
            let left = capabilities(None).unwrap();
            assert_eq!(left.permitted - CapabilitySet::NET_RAW, CapabilitySet::empty());
            assert_eq!(left.effective, left.permitted);
            let shown = std::process::Command::new("grep")
                .args(["-E", "^(CapPrm|CapEff|NoNewPrivs)", "/proc/self/status"])
                .output()
                .unwrap();
            let shown = String::from_utf8(shown.stdout).unwrap();
            let raw = left.permitted.bits();
            assert_eq!(
                shown,
                format!("CapPrm:\t{raw:016x}\nCapEff:\t{raw:016x}\nNoNewPrivs:\t1\n")
            );
        });
        thread.join().unwrap();
    }

    #[test]
    fn tunnels_reach_their_directory_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (run_dir, other) = (dir.path().join("run"), dir.path().join("other"));
        std::fs::write(&other, "").unwrap();
        let inside = run_dir.join("tunnels.sock");
        // It binds one thread, which ends.
        let thread = std::thread::spawn(move || {
            keep_only(OF_TUNNELS).unwrap();
            if !confine_tunnels(&run_dir).unwrap() {
                weft_netlink::testing::skip("it needs a kernel with Landlock");
                return None;
            }
            drop(std::os::unix::net::UnixListener::bind(&inside).unwrap());
            std::fs::remove_file(&inside).unwrap();
            let denied = [
                std::fs::read(&other).map(drop),
                std::fs::write(&other, "x"),
                std::fs::write(run_dir.join("x"), "x"),
                std::process::Command::new("/bin/true").status().map(drop),
            ];
            Some(denied.map(|tried| tried.map_err(|error| error.kind())))
        });
        let refused = Err(std::io::ErrorKind::PermissionDenied);
        if let Some(tried) = thread.join().unwrap() {
            assert_eq!(tried, [refused; 4]);
        }
    }

    #[test]
    fn nft_needs_no_bpf() {
        assert_eq!(
            names(of_agent(DatapathChoice::Ebpf) - of_agent(DatapathChoice::Nft)),
            "CAP_PERFMON CAP_BPF"
        );
    }
}
