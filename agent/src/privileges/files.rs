//! Which files of this host a process reaches (Landlock, Linux 5.13).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};

use crate::{
    docker::default_socket,
    options::{AgentOptions, DockerPlugin},
};

const FAILED: &str = "files of this host cannot be put out of reach; `--no-sandbox` does without that";

/// What carries packets of others reaches no file of this host but those in the agent's directory and the one that TAP devices are made
/// with, runs no program and mounts nothing, as far as the kernel can see to that (Landlock, Linux 5.13).
///
/// Says whether it can.
pub fn confine_tunnels(run_dir: &Path) -> anyhow::Result<bool> {
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
    restrict(allowed)
}

/// The agent reads what tells of this host, writes where its state and sockets are, and runs no program.
///
/// Says whether the kernel can see to that.
pub fn confine_agent(options: &AgentOptions) -> anyhow::Result<bool> {
    let look = AccessFs::ReadFile | AccessFs::ReadDir;
    let keep = look
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let plugin = match &options.docker_plugin {
        DockerPlugin::Off => None,
        DockerPlugin::At(socket) => Some(socket.clone()),
        DockerPlugin::Auto => default_socket(),
    };
    let sockets = [Some(options.socket.clone()), plugin];
    let mut own = vec![options.data_dir.clone(), options.run_dir.clone()];
    own.extend(
        sockets
            .iter()
            .flatten()
            .filter_map(|socket| Some(socket.parent()?.to_owned())),
    );
    for dir in &own {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    // Users and groups, resolvers, time zones and libraries; processes, settings and devices of the network; sockets of others.
    let others = ["/etc", "/usr", "/lib", "/lib64", "/proc", "/sys", "/run"].map(PathBuf::from);
    let own = own.into_iter().map(|dir| (dir, keep));
    restrict(own.chain(others.into_iter().map(|dir| (dir, look))))
}

fn restrict(
    allowed: impl IntoIterator<Item = (impl AsRef<Path>, BitFlags<AccessFs>)>,
) -> anyhow::Result<bool> {
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
        .context(FAILED)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{OF_TUNNELS, keep_only, of_agent},
        *,
    };
    use crate::options::DatapathChoice;

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
    fn an_agent_writes_its_own_files_and_runs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [data_dir, run_dir, other] = ["data", "run", "other"].map(|name| dir.path().join(name));
        std::fs::write(&other, "").unwrap();
        let options = AgentOptions {
            socket: run_dir.join("weft.sock"),
            docker_plugin: DockerPlugin::Off,
            data_dir,
            run_dir,
            ..AgentOptions::default()
        };
        // It binds one thread, which ends.
        let thread = std::thread::spawn(move || {
            keep_only(of_agent(DatapathChoice::Nft)).unwrap();
            if !confine_agent(&options).unwrap() {
                weft_netlink::testing::skip("it needs a kernel with Landlock");
                return None;
            }
            drop(std::os::unix::net::UnixListener::bind(&options.socket).unwrap());
            std::fs::write(options.data_dir.join("x"), "x").unwrap();
            std::fs::rename(options.data_dir.join("x"), options.data_dir.join("y")).unwrap();
            std::fs::read("/etc/passwd").unwrap();
            let denied = [
                std::fs::read(&other).map(drop),
                std::fs::write(&other, "x"),
                std::fs::write("/etc/ld.so.preload", "x"),
                std::fs::write("/proc/sys/kernel/core_pattern", "x"),
                std::os::unix::fs::symlink("/etc", options.run_dir.join("link")),
                std::process::Command::new("/bin/true").status().map(drop),
            ];
            Some(denied.map(|tried| tried.map_err(|error| error.kind())))
        });
        let refused = Err(std::io::ErrorKind::PermissionDenied);
        if let Some(tried) = thread.join().unwrap() {
            assert_eq!(tried, [refused; 6]);
        }
    }
}
