//! The thread that looks after the process which encrypts: starts it when there is something to encrypt, tells it what
//! follows from the records, and asks it how things are.
//!
//! The process is nobody's child for long: it goes on when the agent ends, and the next agent finds it by its socket. What
//! it was told stays in force until it is told something else, so nothing here is in the way of a packet.

use std::{
    io::ErrorKind,
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::Pid,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use weft_netlink::broker::{self, Ended, Started};
use weft_overlay::{kernel::wireguard_path, plan::Encryption};
use weft_wireguard::{Client, ClientError, Desired, Kernel, Status, probe_kernel, remove_kernel};

use super::host::sentence;
use crate::{
    control::{Encrypter, TunnelReport},
    options::{AgentOptions, TunnelsStart, WireguardChoice},
};

/// How often the process is asked how things are; so soon it is noticed that it is gone.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// For one answer of the process, which only computes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the process usually takes, at most, until it serves its socket; for so long its absence is not worth a word.
const MOMENT: Duration = Duration::from_secs(2);
/// How soon it is started again when it does not stay.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long one that runs is waited for before another is started beside it: on a slow machine it needs more than a moment, and the
/// other one would find the socket taken.
const LONGEST: Duration = Duration::from_secs(30);
/// How often one looks for a socket that is on its way.
const GLANCE: Duration = Duration::from_millis(5);

/// Where the process listens, in the run directory.
const SOCKET: &str = "tunnels.sock";
/// How often the kernel is while a key changes: an address goes over to the newer key when that has carried a handshake.
const OFTEN: Duration = Duration::from_millis(20);

enum Order {
    /// `None`: there is nothing to encrypt.
    Apply(Option<Box<Desired>>, u32),
    /// What could not be done before may be possible now.
    LookAgain,
}

/// What encrypts on this host.
pub(super) fn choose(options: &AgentOptions) -> anyhow::Result<Encrypter> {
    let choice = options.wireguard;
    let is_at_work = UnixStream::connect(options.run_dir.join(SOCKET)).is_ok();
    let probed = match choice {
        WireguardChoice::Userspace => Ok(()),
        WireguardChoice::Kernel | WireguardChoice::Auto => probe_kernel().map_err(|error| sentence(&error)),
    };
    let mut encrypter = decide(choice, probed, is_at_work)?;
    let starts = encrypter.kind == Encryption::Process && options.tunnels == TunnelsStart::Agent;
    if starts && !options.sandbox {
        encrypter.reason.push_str("; started without its sandbox");
    }
    tracing::info!(kind = ?encrypter.kind, reason = encrypter.reason, "encrypted networks");
    Ok(encrypter)
}

/// An upgrade changes nothing over while packets flow: peers may take no handshake of the kernel's for as long as 27 s, as
/// its times are that much before those of the process.
fn decide(
    choice: WireguardChoice,
    probed: Result<(), String>,
    is_at_work: bool,
) -> anyhow::Result<Encrypter> {
    let asked = || "it was asked for".to_owned();
    let (kind, reason) = match (choice, probed) {
        (WireguardChoice::Userspace, _) => (Encryption::Process, asked()),
        (WireguardChoice::Kernel, Ok(())) => (Encryption::Kernel, asked()),
        (WireguardChoice::Kernel, Err(why)) => anyhow::bail!(
            "the kernel's WireGuard was asked for and cannot be used: {why}; without `--wireguard kernel` the process \
             `weft tunnels` encrypts"
        ),
        (WireguardChoice::Auto, Err(why)) => (Encryption::Process, why),
        (WireguardChoice::Auto, Ok(())) if is_at_work => (
            Encryption::Process,
            "the kernel has WireGuard, but the process carries packets already".to_owned(),
        ),
        (WireguardChoice::Auto, Ok(())) => (Encryption::Kernel, "this kernel has WireGuard".to_owned()),
    };
    Ok(Encrypter { kind, reason })
}

/// Whether to start the process, so long after it was started before, while that one runs or not.
fn is_due(since: Option<Duration>, runs: bool) -> bool {
    since.is_none_or(|since| since >= if runs { LONGEST } else { AGAIN_AFTER })
}

/// The owner's end. The thread ends when this is dropped; the process goes on.
pub(super) struct TunnelsThread {
    orders: Sender<Order>,
    said: UnboundedReceiver<TunnelReport>,
}

impl TunnelsThread {
    pub(super) fn start(options: &AgentOptions, kind: Encryption) -> anyhow::Result<Self> {
        let (orders, receiver) = channel();
        let (sender, said) = unbounded_channel();
        let path = wireguard_path(&options.run_dir);
        let kernel = match kind {
            Encryption::Process => None,
            Encryption::Kernel => Some(Kernel::new(path, options.vxlan_port)?),
        };
        let keeper = Keeper {
            run_dir: options.run_dir.clone(),
            start: options.tunnels,
            port: options.wireguard_port,
            wanted: None,
            mtu: 0,
            is_told: true,
            kernel,
            is_alone: false,
            client: None,
            child: None,
            started: None,
            failed: Vec::new(),
            said: sender,
        };
        std::thread::Builder::new()
            .name("tunnels".to_owned())
            .spawn(move || keeper.run(&receiver))?;
        Ok(Self { orders, said })
    }

    /// `mtu` is the largest packet inside the tunnels.
    pub(super) fn apply(&self, desired: Option<Box<Desired>>, mtu: u32) {
        self.order(Order::Apply(desired, mtu));
    }

    pub(super) fn look_again(&self) {
        self.order(Order::LookAgain);
    }

    fn order(&self, order: Order) {
        // The thread ends only by a panic, which its log has; what is asked for then cannot be done.
        if self.orders.send(order).is_err() {
            tracing::error!(
                "the thread of the tunnels is gone: encrypted networks do not follow changes any more"
            );
        }
    }

    /// The next thing the process said. Cancel-safe.
    pub(super) async fn says(&mut self) -> TunnelReport {
        match self.said.recv().await {
            Some(said) => said,
            None => std::future::pending().await,
        }
    }
}

struct Keeper {
    run_dir: PathBuf,
    start: TunnelsStart,
    port: u16,
    /// What the process is to do; `None` for nothing, be it that nobody has said anything yet.
    wanted: Option<Box<Desired>>,
    /// The largest packet inside the tunnels.
    mtu: u32,
    /// Whether it was told, if there is one.
    is_told: bool,
    /// What encrypts, if that is not the process.
    kernel: Option<Kernel>,
    /// Whether the other of the two, which an agent before this one may have used, is known to be gone.
    is_alone: bool,
    client: Option<Client>,
    /// The process, if it was started for this agent.
    child: Option<Started>,
    started: Option<Instant>,
    /// What of `wanted` could not be done.
    failed: Vec<String>,
    said: UnboundedSender<TunnelReport>,
}

impl Keeper {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let next = match self.patience() {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(patience) => orders.recv_timeout(patience),
            };
            let mut again = matches!(next, Ok(Order::LookAgain));
            match next {
                Ok(first) => {
                    for order in std::iter::once(first).chain(orders.try_iter()) {
                        match order {
                            Order::Apply(wanted, mtu) => {
                                self.is_told = false;
                                (self.wanted, self.mtu) = (wanted, mtu);
                            }
                            Order::LookAgain => again = true,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if again && (!self.failed.is_empty() || self.kernel.is_some()) {
                self.is_told = false;
            }
            self.reap();
            if self.wanted.is_none() {
                self.rest();
                continue;
            }
            let status = self.be_alone().and_then(|()| match self.kernel {
                Some(_) => self.look_after_kernel(),
                None => self.look_after(),
            });
            if let Err(reason) = &status {
                self.client = None;
                self.is_told = false;
                if self.is_starting() {
                    continue;
                }
                tracing::debug!(reason, "the process of the tunnels does not answer");
            }
            // The owner is gone only when the process ends.
            let _ = self.said.send(TunnelReport {
                status,
                failed: self.failed.clone(),
            });
        }
    }

    /// Has the process do what is wanted, and asks it how things are.
    fn look_after(&mut self) -> Result<Status, String> {
        let wanted = self.wanted.clone().ok_or("nothing is wanted")?;
        if self.client.is_none() {
            self.client = Some(self.find()?);
            self.is_told = false;
        }
        let client = self.client.as_mut().ok_or("not connected")?;
        let words = |error: ClientError| sentence(&error);
        if !self.is_told {
            self.failed = client.apply(*wanted.clone(), PATIENCE).map_err(words)?;
            self.is_told = true;
        }
        let status = client.status(PATIENCE).map_err(words)?;
        let attached = status.networks.iter().filter(|network| network.attached).count();
        // A device that was made anew is opened anew.
        if attached < wanted.networks.len() && self.failed.is_empty() {
            self.is_told = false;
        }
        Ok(status)
    }

    /// Has the kernel do what is wanted, and asks it how things are.
    fn look_after_kernel(&mut self) -> Result<Status, String> {
        let (Some(kernel), Some(wanted)) = (&mut self.kernel, &self.wanted) else {
            return Err("nothing is wanted".to_owned());
        };
        if !self.is_told || Kernel::is_changing(wanted) {
            kernel.apply(wanted, self.mtu).map_err(|error| sentence(&error))?;
            self.is_told = true;
        }
        kernel.status(wanted).map_err(|error| sentence(&error))
    }

    /// Ends what encrypted before, if that was the other of the two: they want the same UDP port.
    fn be_alone(&mut self) -> Result<(), String> {
        if self.is_alone {
            return Ok(());
        }
        match (&self.kernel, self.start) {
            (None, _) => {
                remove_kernel(&wireguard_path(&self.run_dir)).map_err(|error| sentence(&error))?;
            }
            (Some(_), TunnelsStart::Agent) => {
                self.end();
                if UnixStream::connect(self.socket()).is_ok() {
                    return Err("the process `weft tunnels` of before has not ended yet".to_owned());
                }
            }
            // It goes on without a part in anything, at any port.
            (Some(_), TunnelsStart::Service) => self.tell_nothing(0),
        }
        self.is_alone = true;
        Ok(())
    }

    /// Connects to the process, and starts it first where that is ours to do.
    fn find(&mut self) -> Result<Client, String> {
        let socket = self.socket();
        let absent = match Client::connect(&socket) {
            Ok(client) => return Ok(client),
            Err(error) => sentence(&error),
        };
        match self.start {
            TunnelsStart::Service => {
                return Err(format!(
                    "{absent}; its service is to be started: weft-tunnels.service"
                ));
            }
            TunnelsStart::Agent => {}
        }
        let runs = self.child.is_some();
        if !is_due(self.started.map(|at| at.elapsed()), runs) {
            return Err(match runs {
                true => absent,
                false => format!("{absent}; it was started and did not stay, its log says why"),
            });
        }
        self.started = Some(Instant::now());
        tracing::info!("starting `weft tunnels`");
        let child = broker::start_encrypter().map_err(|error| sentence(&error))?;
        self.child = Some(child);
        Err(absent)
    }

    /// Whether the process was started just now and has not come to its socket yet.
    fn is_starting(&self) -> bool {
        let recent = self.started.is_some_and(|at| at.elapsed() < MOMENT);
        recent && self.child.is_some() && self.client.is_none()
    }

    /// When to look next if nobody asks for anything; with nothing to look after, not at all.
    fn patience(&self) -> Option<Duration> {
        if self.is_starting() {
            return Some(GLANCE);
        }
        let is_changing = |wanted: &Desired| self.kernel.is_some() && Kernel::is_changing(wanted);
        if self.wanted.as_deref().is_some_and(is_changing) {
            return Some(OFTEN);
        }
        let idle = self.is_told && self.wanted.is_none() && self.child.is_none();
        (!idle).then_some(LOOK_EVERY)
    }

    /// There is nothing to encrypt: no process, or one that carries nothing.
    fn rest(&mut self) {
        self.failed.clear();
        self.client = None;
        if self.is_told {
            return;
        }
        self.is_told = true;
        let removed = match &mut self.kernel {
            Some(kernel) => kernel.remove(),
            None => remove_kernel(&wireguard_path(&self.run_dir)),
        };
        if let Err(error) = removed {
            tracing::warn!(
                error = sentence(&error),
                "the WireGuard device of the kernel stays"
            );
        }
        match self.start {
            TunnelsStart::Agent => self.end(),
            TunnelsStart::Service => self.tell_nothing(self.port),
        }
    }

    /// Has a process that is not ours to end do nothing.
    fn tell_nothing(&self, port: u16) {
        let nothing = Desired {
            generation: 0,
            private_keys: Vec::new(),
            port,
            vtep: Ipv4Addr::UNSPECIFIED,
            peers: Vec::new(),
            networks: Vec::new(),
        };
        // Whoever is not there does nothing already.
        if let Ok(mut client) = Client::connect(&self.socket())
            && let Err(error) = client.apply(nothing, PATIENCE)
        {
            tracing::warn!(
                error = sentence(&error),
                "the process of the tunnels keeps what it had"
            );
        }
    }

    /// Ends the process, whoever started it.
    fn end(&mut self) {
        self.started = None;
        let Some(pid) = self.pid() else { return };
        tracing::info!("ending `weft tunnels`: there is nothing to encrypt");
        if let Err(error) = kill(pid, Signal::SIGTERM) {
            tracing::warn!(%error, "`weft tunnels` cannot be ended");
        }
    }

    /// The process that serves the socket, or is about to.
    fn pid(&self) -> Option<Pid> {
        if let Some(child) = &self.child {
            return Some(Pid::from_raw(child.pid().try_into().ok()?));
        }
        let stream = UnixStream::connect(self.socket()).ok()?;
        let peer = getsockopt(&stream, PeerCredentials).ok()?;
        // Of a process that cannot be seen from here it is 0.
        (peer.pid() > 1).then(|| Pid::from_raw(peer.pid()))
    }

    /// Lets go of a child that has ended.
    fn reap(&mut self) {
        match self.child.as_ref().map(Started::try_wait) {
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
            Some(Ok(Ended { code, signal })) => {
                tracing::info!(code, signal, "`weft tunnels` has ended");
                self.child = None;
            }
            // The broker that started it is gone: it is found by its socket from now on.
            Some(Err(_)) => self.child = None,
            None => {}
        }
    }

    fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET)
    }
}

#[cfg(test)]
mod tests;
