//! The threads that take packets, and what they wait on.

use std::{
    fmt, io,
    os::fd::AsFd,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
};
use weft_types::Vni;

use crate::{
    peer::Clock,
    spin::Spin,
    turns::{Load, Meter, Taken, Turns, is_calm},
};

/// More threads than this, of one kind, only wake each other up.
const MOST_PAIRS: usize = 4;
/// How often the first looks whether there is little by now, while each takes its own.
const LOOK_EVERY_MS: u16 = 25;
/// Beside these in the data of an event there is the number of a network or of a pair of sockets.
const SOCKET: u64 = 1 << 32;
const SOCKET_V6: u64 = 3 << 32;
const BELL: u64 = 4 << 32;

/// A thread. The first to send is the one that takes everything while there is little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    Sends(usize),
    Receives(usize),
}

impl Worker {
    pub const FIRST: Self = Self::Sends(0);
}

/// Where packets come from.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    Device(Vni),
    Socket { pair: usize, v6: bool },
}

pub struct Workers {
    pairs: usize,
    turns: Mutex<Turns>,
    changed: Condvar,
    /// Every source is in two of these: in that of the thread that it belongs to, and here. Whoever may take from it waits on one of
    /// them, nobody on the other. What is waited on anew says at once what is ready, so nothing is done at a change.
    together: Epoll,
    /// For each of [`Workers::all`].
    own: Vec<Epoll>,
    /// Readable while all but the first are asked to rest.
    bell: EventFd,
    /// When there last was more than little to do for one of them, in milliseconds of the clock.
    busy_at: AtomicU64,
}

impl Workers {
    pub fn new(processors: usize) -> io::Result<Self> {
        let pairs = (processors / 2).clamp(1, MOST_PAIRS);
        let epoll = || Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let workers = Self {
            pairs,
            turns: Mutex::new(Turns::new()),
            changed: Condvar::new(),
            together: epoll()?,
            own: (0..2 * pairs).map(|_| epoll()).collect::<io::Result<_>>()?,
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            busy_at: AtomicU64::new(0),
        };
        for own in &workers.own[1..] {
            own.add(&workers.bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        }
        Ok(workers)
    }

    /// How many pairs of sockets they need.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    pub fn all(&self) -> impl Iterator<Item = Worker> + use<> {
        let sends = (0..self.pairs).map(Worker::Sends);
        sends.chain((0..self.pairs).map(Worker::Receives))
    }

    /// Has a new source waited on.
    pub fn watch(&self, source: Source, fd: impl AsFd) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, source.data());
        self.own(self.owner(source)).add(&fd, event)?;
        Ok(self.together.add(&fd, event)?)
    }

    /// Waits no more for frames of a device.
    pub fn forget(&self, vni: Vni, device: impl AsFd) {
        let _ = self.own(self.owner(Source::Device(vni))).delete(&device);
        let _ = self.together.delete(&device);
    }

    /// What a thread does until the process ends: waits, and takes from what is ready whenever that is its turn. `take` is told from
    /// which source, and whether the first packet there is probably alone.
    pub fn run(&self, worker: Worker, clock: Clock, mut take: impl FnMut(Source, bool) -> Taken) {
        let own = self.own(worker);
        let mut meter = Meter::new(Instant::now());
        let is_busy = || self.busy_at.store(clock.now_ms(), Relaxed);
        if worker != Worker::FIRST {
            loop {
                self.begin();
                while let Some(load) = once(own, EpollTimeout::NONE, &mut meter, None, &mut take) {
                    if load > Load::Little {
                        is_busy();
                    }
                }
                self.rest();
            }
        }
        let mut spin = Spin::new(Instant::now());
        loop {
            let mut all = || {
                let spin = Some(&mut spin);
                once(&self.together, EpollTimeout::NONE, &mut meter, spin, &mut take)
            };
            while all() < Some(Load::Much) {}
            is_busy();
            self.spread();
            while !is_calm(self.busy_at.load(Relaxed), clock.now_ms()) {
                if once(own, LOOK_EVERY_MS.into(), &mut meter, None, &mut take) > Some(Load::Little) {
                    is_busy();
                }
            }
            self.gather();
        }
    }

    fn owner(&self, source: Source) -> Worker {
        match source {
            Source::Device(vni) => Worker::Sends(vni.get() as usize % self.pairs),
            Source::Socket { pair, .. } => Worker::Receives(pair % self.pairs),
        }
    }

    fn own(&self, worker: Worker) -> &Epoll {
        match worker {
            Worker::Sends(index) => &self.own[index],
            Worker::Receives(index) => &self.own[self.pairs + index],
        }
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        // A thread that panics with it ends the process.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on each takes its own.
    fn spread(&self) {
        self.turns().spread();
        self.changed.notify_all();
    }

    /// Comes back when nobody else takes packets any more.
    fn gather(&self) {
        let mut turns = self.turns();
        turns.gather();
        if !turns.are_together() {
            let _ = self.bell.write(1);
            while !turns.are_together() {
                turns = self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner);
            }
            let _ = self.bell.read();
        }
    }

    /// Comes back when it may take its own.
    fn begin(&self) {
        let mut turns = self.turns();
        while !turns.begin() {
            turns = self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn rest(&self) {
        self.turns().rest();
        self.changed.notify_all();
    }
}

/// Waits once, and takes from what is ready. Says how much there was, or nothing if the bell rings. Whoever takes everything may look
/// for a while before it sleeps.
fn once(
    epoll: &Epoll,
    timeout: EpollTimeout,
    meter: &mut Meter,
    mut spin: Option<&mut Spin>,
    mut take: impl FnMut(Source, bool) -> Taken,
) -> Option<Load> {
    let mut events = [EpollEvent::empty(); 64];
    let found = spin
        .as_deref_mut()
        .map_or(0, |spin| look(epoll, &mut events, spin));
    let ready = match found {
        0 => epoll.wait(&mut events, timeout).unwrap_or(0),
        found => found,
    };
    let waited = meter.wake(Instant::now());
    let is_alone = spin.is_some() && meter.has_leisure();
    let (mut load, mut is_ringing, mut sum) = (Load::Little, false, Taken::default());
    for event in &events[..ready] {
        if let Some(source) = Source::of(event.data()) {
            let taken = take(source, is_alone);
            load = load.max(meter.note(taken, Instant::now()));
            sum.packets += taken.packets;
            sum.bytes += taken.bytes;
        } else {
            is_ringing = true;
        }
    }
    if let Some(spin) = spin {
        spin.note(waited, sum);
    }
    (!is_ringing).then_some(load)
}

/// Looks what is ready again and again, as long as that is worth it.
fn look(epoll: &Epoll, events: &mut [EpollEvent], spin: &mut Spin) -> usize {
    let begun = Instant::now();
    let mut may_look = spin.may_begin(begun);
    while may_look {
        let ready = epoll.wait(events, EpollTimeout::ZERO).unwrap_or(0);
        if ready > 0 {
            return ready;
        }
        let yielded = Instant::now();
        thread::yield_now();
        may_look = spin.may_go_on(begun, yielded, Instant::now());
    }
    0
}

impl Source {
    fn data(self) -> u64 {
        match self {
            Self::Device(vni) => vni.get().into(),
            Self::Socket { pair, v6 } => pair as u64 | if v6 { SOCKET_V6 } else { SOCKET },
        }
    }

    /// What stands in an event, unless that is the bell.
    fn of(data: u64) -> Option<Self> {
        let pair = data as u32 as usize;
        match data & !u64::from(u32::MAX) {
            0 => Vni::try_from(data as u32).ok().map(Self::Device),
            SOCKET => Some(Self::Socket { pair, v6: false }),
            SOCKET_V6 => Some(Self::Socket { pair, v6: true }),
            _ => None,
        }
    }
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sends(index) => write!(f, "send-{index}"),
            Self::Receives(index) => write!(f, "receive-{index}"),
        }
    }
}

#[cfg(test)]
mod tests;
