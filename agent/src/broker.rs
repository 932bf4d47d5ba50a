//! The process that keeps the privileges which the agent gives up, `weft broker`, and a second one that stands by.
//!
//! The agent starts the first before it gives anything up, as nothing could be started with more afterwards. That one starts the
//! second, which does nothing while it is there and takes its place when it is gone, with a new one beside it: what was asked
//! meanwhile waits in the socket that they share. Both end with the agent. `docs/security.md` says what the broker does for it.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigSet, Signal},
};
use weft_netlink::broker::{self, Policy};
use weft_overlay::kernel::netns_dir;

use crate::{
    daemon::resolv,
    options::{AgentOptions, DatapathChoice, TunnelsStart},
    privileges,
};

/// One that stands by is replaced at once if it lived for longer than this, and else not before.
const SHORT: Duration = Duration::from_millis(500);

/// What `weft broker` is told by whoever starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerOptions {
    pub run_dir: PathBuf,
    /// Whether it may mount what the eBPF datapath needs.
    pub bpf: bool,
    pub commands: bool,
    /// Whether it starts what encrypts, and with its sandbox.
    pub encrypter: Option<bool>,
    /// Whether another one is at work.
    pub stands_by: bool,
}

impl BrokerOptions {
    fn of(agent: &AgentOptions) -> Self {
        Self {
            run_dir: agent.run_dir.clone(),
            bpf: agent.datapath != DatapathChoice::Nft,
            commands: agent.health_commands,
            encrypter: (agent.tunnels == TunnelsStart::Agent).then_some(agent.sandbox),
            stands_by: false,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg("broker").arg("--run-dir").arg(&self.run_dir);
        let flags = [
            ("--bpf", self.bpf),
            ("--commands", self.commands),
            ("--encrypter", self.encrypter.is_some()),
            ("--no-sandbox", self.encrypter == Some(false)),
            ("--stand-by", self.stands_by),
        ];
        command.args(
            flags
                .into_iter()
                .filter_map(|(flag, is_set)| is_set.then_some(flag)),
        );
        command
    }

    fn policy(&self) -> Policy {
        let encrypter = self.encrypter.map(|sandbox| {
            let mut words = ["/proc/self/exe", "tunnels", "--run-dir"]
                .map(PathBuf::from)
                .to_vec();
            words.push(self.run_dir.clone());
            words.extend((!sandbox).then(|| "--no-sandbox".into()));
            words
        });
        Policy {
            run_dir: self.run_dir.clone(),
            networks: netns_dir(&self.run_dir),
            bpf: bpf_dir(&self.run_dir),
            may_mount_bpf: self.bpf,
            commands: self.commands,
            give_up: || privileges::keep_only(privileges::OF_COMMANDS).map_err(io::Error::other),
            resolver: resolv::change_checked,
            encrypter,
        }
    }
}

/// Where the eBPF datapath keeps its maps.
pub fn bpf_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("bpf")
}

/// What an agent knows of its broker.
#[derive(Debug)]
pub struct Broker {
    gone: OwnedFd,
    child: Child,
}

/// Starts the broker of this process.
pub fn start(agent: &AgentOptions) -> anyhow::Result<Broker> {
    let failed = "the broker, which keeps the privileges of the agent, cannot be started";
    broker::keep_descriptors().context(failed)?;
    let (mine, its) = broker::pair().context(failed)?;
    let gone = mine.try_clone().context(failed)?;
    let child = BrokerOptions::of(agent)
        .command()
        .stdin(its)
        .stdout(Stdio::null())
        .spawn()
        .context(failed)?;
    broker::install(mine).context(failed)?;
    Ok(Broker { gone, child })
}

impl Broker {
    /// Becomes readable when neither a broker is there any more nor one that stands by. To be called when the process has given up
    /// what it gives up: from then on it has a second thread.
    pub fn watch(self) -> io::Result<OwnedFd> {
        let Self { gone, mut child } = self;
        thread::Builder::new().name("broker".to_owned()).spawn(move || {
            if let Ok(status) = child.wait() {
                tracing::warn!(%status, "the broker has ended; the one that stood by takes its place");
            }
        })?;
        Ok(gone)
    }
}

/// What `weft broker` does.
pub fn run(options: BrokerOptions) -> anyhow::Result<()> {
    // Whoever ends the agent ends its group and its control group: what it does until it has ended still needs this one, which ends
    // with it. Programs that are started from here get them again.
    let ignored: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    ignored.thread_block()?;
    privileges::keep_only(privileges::OF_BROKER)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    if options.stands_by && !is_to_take_over(&socket)? {
        return Ok(());
    }
    stand_by(&socket, &options)?;
    broker::serve(&socket, options.policy()).context("the broker ended")
}

/// Waits until whoever is at work is gone, and says whether the agent is still there then.
fn is_to_take_over(socket: &OwnedFd) -> anyhow::Result<bool> {
    let stdout = io::stdout();
    loop {
        let mut gone = [stdout.as_fd(), socket.as_fd()].map(|fd| PollFd::new(fd, PollFlags::empty()));
        match poll(&mut gone, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            polled => polled?,
        };
        let [at_work, agent] = gone.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        if agent {
            return Ok(false);
        }
        if at_work {
            return Ok(true);
        }
    }
}

/// Sees to it that another one stands by, for as long as this process lives.
fn stand_by(socket: &OwnedFd, options: &BrokerOptions) -> anyhow::Result<()> {
    let socket = socket.try_clone()?;
    let options = BrokerOptions {
        stands_by: true,
        ..options.clone()
    };
    thread::Builder::new()
        .name("stand-by".to_owned())
        .spawn(move || {
            loop {
                let begun = Instant::now();
                // The pipe ends with this process, and says so.
                match start_another(&socket, &options) {
                    Ok((mut child, _alive)) => drop(child.wait()),
                    Err(error) => eprintln!("no second broker stands by: {error}"),
                }
                // Until the agent is gone, or a while after one that did not stay.
                if is_gone(&socket, SHORT.saturating_sub(begun.elapsed())) {
                    return;
                }
            }
        })?;
    Ok(())
}

fn start_another(socket: &OwnedFd, options: &BrokerOptions) -> io::Result<(Child, io::PipeWriter)> {
    let (gone, alive) = io::pipe()?;
    let child = options
        .command()
        .stdin(socket.try_clone()?)
        .stdout(OwnedFd::from(gone))
        .spawn()?;
    Ok((child, alive))
}

fn is_gone(socket: &OwnedFd, patience: Duration) -> bool {
    let mut gone = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    poll(&mut gone, patience).is_ok_and(|count| count > 0)
}
