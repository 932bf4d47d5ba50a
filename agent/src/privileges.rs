//! What the processes of Weft may do, whoever started them.
//!
//! Each gives up the rest before it has a second thread: capabilities belong to threads, and threads and processes have no more
//! than those that start them. `docs/security.md` says what each capability is for.

mod calls;
mod files;

use anyhow::Context as _;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

pub use calls::forbid_calls;
pub use files::{confine_agent, confine_tunnels};

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
    fn nft_needs_no_bpf() {
        assert_eq!(
            names(of_agent(DatapathChoice::Ebpf) - of_agent(DatapathChoice::Nft)),
            "CAP_PERFMON CAP_BPF"
        );
    }
}
