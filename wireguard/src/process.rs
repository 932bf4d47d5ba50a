//! The process that carries the packets of encrypted networks. Plain threads, as many whatever the number of networks
//! and peers: some take frames from TAP devices, some take datagrams from sockets (while there is little, one takes all),
//! one looks at the clock, one answers the agent.

mod receive;
mod send;
mod serve;
mod tally;
mod tick;
mod workers;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use arc_swap::ArcSwapOption;
use nix::sys::{
    signal::{SigSet, Signal},
    socket::{MsgFlags, SockaddrStorage, sendto},
};
use weft_netlink::segments::open_shared;
use weft_types::Vni;

use crate::{
    Desired, Status,
    budget::Budget,
    peer::{Clock, Peer},
    secret::scrub_stack,
    table::{Attached, Device, Table},
};
use receive::Receiving;
use send::Sending;
use tally::Tally;
use workers::{Source, Worker, Workers};

/// Why the process could not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another process is there.
    #[error("another process serves {}; stop that one first", .0.display())]
    Taken(PathBuf),
    /// Anything else.
    #[error("cannot {doing}")]
    Os {
        /// What was tried, a verb.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RunError {
    fn new(doing: &'static str, error: impl Into<io::Error>) -> Self {
        Self::Os {
            doing,
            source: error.into(),
        }
    }
}

/// Carries the packets of encrypted networks until SIGTERM or SIGINT, as told on the control socket.
///
/// To be called first thing, while the process has one thread: the others inherit that these signals are blocked.
pub fn run(socket: &Path) -> Result<(), RunError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
        .thread_block()
        .map_err(|error| RunError::new("block signals", error))?;
    // Whoever started this may end with its session and this goes on. Who leads one already has its own.
    let _ = nix::unistd::setsid();
    // Keys belong into no core file.
    nix::sys::prctl::set_dumpable(false).map_err(|error| RunError::new("forbid core files", error))?;
    let listener = serve::listen(socket)?;
    let shared = Arc::new(Shared::new().map_err(|error| RunError::new("make what threads wait on", error))?);
    for worker in shared.workers.all() {
        shared.spawn(worker.to_string(), move |shared| shared.take_packets(worker))?;
    }
    shared.spawn("clock".to_owned(), tick::run)?;
    shared.spawn("control".to_owned(), move |shared| {
        serve::run(shared, &listener, serve::SILENCE);
    })?;
    let signal = signals.wait();
    // What is left of the socket would make the next one ask whether somebody is there.
    let _ = std::fs::remove_file(socket);
    signal
        .map(drop)
        .map_err(|error| RunError::new("wait for signals", error))
}

/// What the threads have in common.
struct Shared {
    state: ArcSwapOption<State>,
    /// Changes are made one at a time.
    changes: Mutex<()>,
    budget: Mutex<Budget>,
    tally: Tally,
    clock: Clock,
    /// The threads that take packets.
    workers: Workers,
}

/// What is replaced as a whole.
struct State {
    table: Table,
    sockets: Arc<Sockets>,
}

/// The UDP sockets, all at one port.
struct Sockets {
    port: u16,
    pairs: Vec<Pair>,
}

/// The two of one thread. IPv6 may be switched off.
struct Pair {
    v4: OwnedFd,
    v6: Option<OwnedFd>,
}

impl Pair {
    fn open(port: u16) -> io::Result<Self> {
        let v4 = open_shared(port, false)?;
        match open_shared(port, true) {
            Ok(v6) => Ok(Self { v4, v6: Some(v6) }),
            Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => Ok(Self { v4, v6: None }),
            Err(error) => Err(error),
        }
    }

    fn of(&self, v6: bool) -> Option<BorrowedFd<'_>> {
        if v6 {
            self.v6.as_ref().map(AsFd::as_fd)
        } else {
            Some(self.v4.as_fd())
        }
    }

    /// Sends one message without waiting. What cannot go is lost, as on any path.
    fn post(&self, message: &[u8], to: std::net::SocketAddr) -> bool {
        use std::os::fd::AsRawFd as _;
        let socket = self.of(to.is_ipv6());
        socket.is_some_and(|socket| {
            let to = SockaddrStorage::from(to);
            sendto(socket.as_raw_fd(), message, &to, MsgFlags::MSG_DONTWAIT).is_ok()
        })
    }
}

impl Shared {
    fn new() -> io::Result<Self> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            state: ArcSwapOption::empty(),
            changes: Mutex::default(),
            budget: Mutex::default(),
            tally: Tally::default(),
            clock: Clock::default(),
            workers: Workers::new(processors)?,
        })
    }

    fn spawn(
        self: &Arc<Self>,
        name: String,
        work: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> Result<(), RunError> {
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new().name(name).spawn(move || {
            // Without one of the threads nothing flows, and only a new process brings it back.
            let abort = AbortOnPanic;
            work(&shared);
            std::mem::forget(abort);
        });
        spawned
            .map(drop)
            .map_err(|error| RunError::new("start a thread", error))
    }

    /// Makes it so. Packets follow the new state when this returns.
    fn apply(self: &Arc<Self>, desired: Desired) -> Result<Vec<String>, String> {
        let _one_at_a_time = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.state.load_full();
        let port = desired.port;
        let kept = before.as_ref().filter(|state| state.sockets.port == port);
        let sockets = match kept {
            Some(state) => Arc::clone(&state.sockets),
            None => Arc::new(Sockets::open(port, self.workers.pairs())?),
        };
        let old_table = before.as_ref().map(|state| &state.table);
        let (table, failed) = Table::build(desired, old_table, Instant::now(), rand::random)?;
        let state = Arc::new(State { table, sockets });
        self.state.store(Some(Arc::clone(&state)));
        self.watch(before.as_deref(), &state)?;
        drop(before);
        scrub_stack();
        Ok(failed)
    }

    /// Has new sockets and devices waited on. Those that went away leave by themselves when they are closed.
    fn watch(&self, before: Option<&State>, now: &State) -> Result<(), String> {
        if !before.is_some_and(|before| Arc::ptr_eq(&before.sockets, &now.sockets)) {
            for (pair, sockets) in now.sockets.pairs.iter().enumerate() {
                for v6 in [false, true] {
                    if let Some(socket) = sockets.of(v6) {
                        self.workers
                            .watch(Source::Socket { pair, v6 }, socket)
                            .map_err(|error| format!("cannot wait for packets: {error}"))?;
                    }
                }
            }
        }
        for vni in now.table.networks.keys() {
            let Some((_, device)) = now.device(*vni) else {
                continue;
            };
            let old = before.and_then(|before| before.device(*vni));
            if !old.is_some_and(|(_, old)| Arc::ptr_eq(old, device)) {
                self.workers
                    .watch(Source::Device(*vni), &device.tap)
                    .map_err(|error| format!("cannot wait for frames of network {vni}: {error}"))?;
            }
        }
        Ok(())
    }

    /// What a worker does until the process ends. The first can do both.
    fn take_packets(&self, worker: Worker) {
        let (sends, receives) = match worker {
            Worker::FIRST => (Some(0), true),
            Worker::Sends(index) => (Some(index), false),
            Worker::Receives(_) => (None, true),
        };
        let mut sending = sends.map(|index| Sending::new(self, index));
        let mut receiving = receives.then(|| Receiving::new(self));
        self.workers.run(worker, self.clock, |source, is_alone| {
            let taken = self.state.load_full().and_then(|state| match source {
                Source::Device(vni) => {
                    let (network, device) = state.device(vni)?;
                    Some(sending.as_mut()?.take_turn(&state, network, device, is_alone))
                }
                Source::Socket { pair, v6 } => {
                    let pair = state.sockets.pairs.get(pair)?;
                    Some(receiving.as_mut()?.take_turn(&state, pair, pair.of(v6)?))
                }
            });
            taken.unwrap_or_default()
        });
    }

    fn status(&self) -> Status {
        let dropped = self.tally.dropped();
        match self.state.load_full() {
            None => Status {
                dropped,
                ..Status::default()
            },
            Some(state) => Status {
                generation: state.table.generation,
                port: state.sockets.port,
                networks: state.table.network_status(),
                peers: state.table.peer_status(self.clock),
                dropped,
            },
        }
    }

    /// Asks the kernel what the path to a peer takes.
    fn learn_path_mtu(&self, peer: &Peer) -> Option<u32> {
        let endpoint = peer.link().endpoint();
        let mtu = weft_netlink::segments::path_mtu(endpoint).ok()?;
        peer.set_path_mtu(mtu, endpoint.is_ipv6());
        Some(mtu)
    }
}

impl Sockets {
    fn open(port: u16, count: usize) -> Result<Self, String> {
        let opened = (0..count).map(|_| Pair::open(port)).collect::<io::Result<_>>();
        let pairs = opened.map_err(|error| {
            let hint = if error.kind() == io::ErrorKind::AddrInUse {
                ": another program has it"
            } else {
                ""
            };
            format!("cannot open UDP port {port}{hint}: {error}")
        })?;
        Ok(Self { port, pairs })
    }
}

impl State {
    /// A network's device, if the network has a part here and it is open.
    fn device(&self, vni: Vni) -> Option<(&Attached, &Arc<Device>)> {
        let network = self.table.networks.get(&vni)?;
        Some((network, network.device.as_ref()?))
    }
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}
