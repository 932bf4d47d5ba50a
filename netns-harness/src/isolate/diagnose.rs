//! From "operation not permitted" to a sentence that says which switch is off and how to go on.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// What was being done when isolation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Making the user namespace.
    UserNamespace,
    /// Mapping the own user and group to root inside it.
    IdMap,
    /// Making the PID namespace.
    PidNamespace,
    /// Making the mount, network, UTS and IPC namespaces.
    Namespaces,
    /// Cutting mount propagation to the machine.
    PrivateMounts,
    /// Mounting a fresh `/proc`.
    Proc,
    /// Mounting a fresh `/run`.
    Run,
    /// Setting the host name.
    Hostname,
    /// Bringing the loopback interface up.
    Loopback,
    /// Starting the processes that stand between inside and outside.
    Fork,
}

const STEPS: [(Step, &str); 10] = [
    (Step::UserNamespace, "make a user namespace"),
    (Step::IdMap, "map this user to root in the new user namespace"),
    (Step::PidNamespace, "make a PID namespace"),
    (Step::Namespaces, "make mount, network, UTS and IPC namespaces"),
    (Step::PrivateMounts, "cut mount propagation to the machine"),
    (Step::Proc, "mount a fresh /proc"),
    (Step::Run, "mount a fresh /run"),
    (Step::Hostname, "set the host name"),
    (Step::Loopback, "bring the loopback interface up"),
    (Step::Fork, "start the processes of the isolation"),
];

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STEPS[*self as usize].1)
    }
}

/// A setting of the machine that forbids user namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Debian's and Arch's own switch.
    UnprivilegedClone,
    /// The kernel's limit is 0.
    MaxUserNamespaces,
    /// Ubuntu since 23.10: allowed only to programs with an AppArmor profile.
    AppArmor,
}

impl Switch {
    /// The sysctl, its value now, and the value that would allow user namespaces.
    #[must_use]
    pub fn sysctl(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::UnprivilegedClone => ("kernel.unprivileged_userns_clone", "0", "1"),
            Self::MaxUserNamespaces => ("user.max_user_namespaces", "0", "15000"),
            Self::AppArmor => ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, now, wanted) = self.sysctl();
        write!(
            f,
            "{name} is {now}; run this with sudo, or allow user namespaces with `sudo sysctl -w {name}={wanted}`"
        )
    }
}

/// Why a process could not be isolated.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// A user namespace can only be entered by a process with one thread.
    #[error(
        "cannot isolate a process with {count} threads; isolate before the first thread starts, or use spawn_isolated"
    )]
    ManyThreads {
        /// How many there are.
        count: usize,
    },
    /// A known switch of the machine is off.
    #[error("ordinary users may not make user namespaces on this machine: {switch}")]
    SwitchedOff {
        /// Which.
        switch: Switch,
    },
    /// Something else refuses.
    #[error(
        "this process may not {step} ({errno}), and no sysctl says why (a container's seccomp filter or a security module, \
         perhaps); run this with sudo, in a container started with --privileged, or on the machine itself"
    )]
    Refused {
        /// What was refused.
        step: Step,
        /// How.
        errno: Errno,
    },
    /// A per-user limit on namespaces is reached.
    #[error(
        "no more namespaces could be made: a limit under /proc/sys/user/ (max_user_namespaces, max_net_namespaces, …) is \
         reached; end other labs, or raise it, for example `sudo sysctl -w user.max_net_namespaces=15000`"
    )]
    Limit,
    /// Parts of /proc are hidden, as container engines do, and the kernel then forbids a fresh one.
    #[error(
        "cannot mount a fresh /proc because parts of the present one are masked, as in a container; start the container \
         with --privileged (or --security-opt systempaths=unconfined), or run this on the machine itself"
    )]
    MaskedProc,
    /// Anything else.
    #[error("cannot {step}: {errno}")]
    Failed {
        /// What failed.
        step: Step,
        /// How.
        errno: Errno,
    },
    /// The namespaces stand, but the command in them could not be executed.
    #[error("cannot execute {program} in its namespaces")]
    Execute {
        /// The command.
        program: String,
        /// Why.
        source: io::Error,
    },
}

/// A failure in a form that fits through a pipe from a half-made process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
}

impl Failure {
    pub(crate) const LEN: usize = 5;

    pub(crate) fn encode(self) -> [u8; Self::LEN] {
        let [a, b, c, d] = (self.errno as i32).to_le_bytes();
        [self.step as u8, a, b, c, d]
    }

    pub(crate) fn decode([step, a, b, c, d]: [u8; Self::LEN]) -> Option<Self> {
        let (step, _) = *STEPS.get(usize::from(step))?;
        Some(Self {
            step,
            errno: Errno::from_raw(i32::from_le_bytes([a, b, c, d])),
        })
    }
}

/// Finds the cause behind an errno. `sysctl` reads a setting of the machine.
pub(crate) fn diagnose(
    failure: Failure,
    user_namespace: bool,
    sysctl: &dyn Fn(&str) -> Option<String>,
) -> IsolateError {
    let Failure { step, errno } = failure;
    let off = || {
        [
            Switch::UnprivilegedClone,
            Switch::MaxUserNamespaces,
            Switch::AppArmor,
        ]
        .into_iter()
        .find(|switch| sysctl(switch.sysctl().0).as_deref() == Some(switch.sysctl().1))
    };
    match errno {
        Errno::EPERM | Errno::EACCES | Errno::ENOSPC | Errno::EUSERS if user_namespace && off().is_some() => {
            IsolateError::SwitchedOff {
                switch: off().unwrap_or(Switch::MaxUserNamespaces),
            }
        }
        Errno::ENOSPC | Errno::EUSERS if (step as u8) <= Step::Namespaces as u8 => IsolateError::Limit,
        Errno::EPERM if step == Step::Proc => IsolateError::MaskedProc,
        Errno::EPERM | Errno::EACCES => IsolateError::Refused { step, errno },
        _ => IsolateError::Failed { step, errno },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(step: Step, errno: Errno, user: bool, sysctls: &[(&str, &str)]) -> String {
        let read = |name: &str| {
            sysctls
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        diagnose(Failure { step, errno }, user, &read).to_string()
    }

    #[test]
    fn each_switch_is_named_with_the_command_that_turns_it() {
        let cases = [
            (
                Step::UserNamespace,
                Errno::EPERM,
                "kernel.unprivileged_userns_clone",
                "0",
                "1",
            ),
            (
                Step::UserNamespace,
                Errno::ENOSPC,
                "user.max_user_namespaces",
                "0",
                "15000",
            ),
            // AppArmor lets the namespace be made and takes the capabilities in it.
            (
                Step::IdMap,
                Errno::EPERM,
                "kernel.apparmor_restrict_unprivileged_userns",
                "1",
                "0",
            ),
            (
                Step::PrivateMounts,
                Errno::EACCES,
                "kernel.apparmor_restrict_unprivileged_userns",
                "1",
                "0",
            ),
        ];
        for (step, errno, name, now, wanted) in cases {
            let text = text(step, errno, true, &[(name, now)]);
            assert!(
                text.contains(&format!("{name} is {now}; run this with sudo")),
                "{text}"
            );
            assert!(
                text.ends_with(&format!("`sudo sysctl -w {name}={wanted}`")),
                "{text}"
            );
        }
    }

    #[test]
    fn refusals_without_a_switch_offer_other_ways() {
        assert!(text(Step::UserNamespace, Errno::EPERM, true, &[]).contains("with sudo"));
        assert!(
            text(Step::UserNamespace, Errno::ENOSPC, true, &[]).contains("a limit under /proc/sys/user/")
        );
        assert!(text(Step::Proc, Errno::EPERM, true, &[]).contains("systempaths=unconfined"));
        assert_eq!(
            text(Step::Run, Errno::ENOENT, false, &[]),
            "cannot mount a fresh /run: ENOENT: No such file or directory"
        );
    }

    #[test]
    fn a_failure_survives_the_pipe() {
        for (step, _) in STEPS {
            let failure = Failure {
                step,
                errno: Errno::ENOSPC,
            };
            assert_eq!(Failure::decode(failure.encode()), Some(failure));
        }
        assert_eq!(Failure::decode([10, 0, 0, 0, 0]), None);
    }
}
