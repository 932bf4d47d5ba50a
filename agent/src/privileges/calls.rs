//! Which system calls the agent has no use for (seccomp).
//!
//! A list of what is forbidden, not of what is allowed: what the libraries call changes with their versions, and an agent that dies of
//! a call nobody thought of is worse than one that could make another harmless one. What is here is what leads out of the agent: to
//! other namespaces, programs, processes and mounts, to the kernel's own memory and modules, and to parts of it with a long history
//! of faults. Each is refused with "operation not permitted".

use std::collections::BTreeMap;

use anyhow::Context as _;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use crate::options::DatapathChoice;

const FORBIDDEN: &[libc::c_long] = &[
    // Namespaces and mounts are the broker's.
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    // Programs are started by the broker.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The kernel and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_quotactl,
    // Other users, files past their names, devices.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    // Nothing here uses them, and faults in them were many.
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
];

/// What makes namespaces of `clone`.
const NEW: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWCGROUP,
];

/// From now on the calling thread, and what it starts, cannot make calls that the agent has no use for.
pub fn forbid_calls(datapath: DatapathChoice) -> anyhow::Result<()> {
    let failed = "system calls cannot be forbidden; `--no-sandbox` does without that";
    for filter in filters(datapath).context(failed)? {
        apply_filter(&filter).context(failed)?;
    }
    Ok(())
}

fn filters(datapath: DatapathChoice) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let mut forbidden: BTreeMap<i64, Vec<SeccompRule>> =
        FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    if datapath == DatapathChoice::Nft {
        forbidden.insert(libc::SYS_bpf, Vec::new());
    }
    let makes = |flag: libc::c_int| {
        let flag = u64::from(flag.cast_unsigned());
        let is_set = SeccompCmpOp::MaskedEq(flag);
        SeccompRule::new(vec![SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            is_set,
            flag,
        )?])
    };
    forbidden.insert(
        libc::SYS_clone,
        NEW.into_iter().map(makes).collect::<Result<_, _>>()?,
    );
    // Its flags are in memory, where no filter looks. The C library does with `clone` then.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([compile(forbidden, libc::EPERM)?, compile(unknown, libc::ENOSYS)?])
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: libc::c_int,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(errno.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use nix::sched::{CloneFlags, setns, unshare};

    use super::*;

    /// On a thread of its own: nothing else here is to lose anything.
    #[test]
    fn what_leads_out_of_the_agent_is_refused_and_its_work_goes_on() {
        let tried = thread::spawn(|| {
            // It would work, for root at least.
            let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            let before = setns(&own, CloneFlags::CLONE_NEWNET);
            forbid_calls(DatapathChoice::Nft).unwrap();
            // Threads are made, and are bound alike.
            let inner = thread::spawn(move || {
                [
                    setns(&own, CloneFlags::CLONE_NEWNET).err(),
                    unshare(CloneFlags::CLONE_NEWUSER).err(),
                    nix::mount::umount2("/nonexistent", nix::mount::MntFlags::empty()).err(),
                    nix::unistd::chroot("/").err(),
                    // If it were not, all tests would be over, and not well. `CommandExt::exec` would have SIGPIPE end them
                    // from then on.
                    nix::unistd::execv(c"/bin/false", &[c"false"]).err(),
                ]
            });
            (before, inner.join().unwrap())
        });
        let (before, refused) = tried.join().unwrap();
        if nix::unistd::geteuid().is_root() {
            assert_eq!(before, Ok(()));
        }
        assert_eq!(refused, [Some(nix::errno::Errno::EPERM); 5]);
        Command::new("/bin/true").status().unwrap();
    }

    #[test]
    fn bpf_is_for_the_datapath_that_uses_it() {
        let lengths =
            [DatapathChoice::Nft, DatapathChoice::Auto].map(|datapath| filters(datapath).unwrap()[0].len());
        assert!(lengths[0] > lengths[1]);
    }
}
