//! The thread that follows connections, and lays out slots anew as they come and go.

use std::{
    collections::BTreeSet,
    io::{PipeReader, PipeWriter, Read, Write},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_netlink::{
    conntrack::{Conntrack, ConntrackError, Events},
    netns::Netns,
    nft::Nft,
};
use weft_types::ServiceId;

use super::{
    State,
    flows::{AllLoads, Index, OpenFlows},
};
use crate::Service;

/// Counting anew from time to time bounds what an unnoticed mistake can do.
const RECOUNT_EVERY: Duration = Duration::from_secs(60);

/// What is kept open into a sandbox whose connections are counted.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) nft: Nft,
    events: Arc<Events>,
    conntrack: Conntrack,
    pub(super) index: Index,
    /// What the index was made from.
    pub(super) counted: Vec<Arc<Service>>,
    pub(super) open: OpenFlows,
    recount_at: Instant,
    /// `nf_conntrack_events` as it was, if we changed it.
    pub(super) setting_before: Option<String>,
}

impl Watch {
    /// Listens in the sandbox's namespace from now on.
    pub(super) fn open(netns: &Netns, nft: Nft, conntrack: Conntrack) -> Result<Self, ConntrackError> {
        Ok(Self {
            nft,
            events: Arc::new(Events::open_in(netns)?),
            conntrack,
            index: Index::default(),
            counted: Vec::new(),
            open: OpenFlows::default(),
            recount_at: Instant::now() + RECOUNT_EVERY,
            setting_before: None,
        })
    }

    /// Counts anew what is open.
    pub(super) fn recount(
        &mut self,
        loads: &mut AllLoads,
        touched: &mut BTreeSet<ServiceId>,
    ) -> Result<(), ConntrackError> {
        // What happens from here on is in the listing or in the events, and being in both does no harm.
        let flows = self.conntrack.flows()?;
        self.open.recount(&flows, &self.index, loads, touched);
        self.recount_at = Instant::now() + RECOUNT_EVERY;
        Ok(())
    }

    fn drain(
        &mut self,
        loads: &mut AllLoads,
        touched: &mut BTreeSet<ServiceId>,
    ) -> Result<(), ConntrackError> {
        let (open, index) = (&mut self.open, &self.index);
        let lost = self
            .events
            .drain(|event| open.handle(&event, index, loads, touched))?;
        if lost.is_some() || self.recount_at <= Instant::now() {
            self.recount(loads, touched)?;
        }
        Ok(())
    }
}

/// The state, and a bell for the thread that waits outside its lock.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    bell: PipeWriter,
    rung: AtomicBool,
    stopping: AtomicBool,
}

impl Shared {
    pub(super) fn new(state: State, bell: PipeWriter) -> Self {
        Self {
            state: Mutex::new(state),
            bell,
            rung: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread look at the state again.
    pub(super) fn ring(&self) {
        // One byte at most is ever in the pipe, so this cannot block.
        if !self.rung.swap(true, Ordering::AcqRel) {
            let _ = (&self.bell).write(&[0]);
        }
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.ring();
    }
}

/// Follows the watched sandboxes until told to stop.
pub(super) fn run(shared: &Shared, mut bell: PipeReader) {
    while !shared.stopping.load(Ordering::Acquire) {
        let (watched, wait) = {
            let state = shared.lock();
            let watches = || {
                state
                    .sandboxes
                    .iter()
                    .filter_map(|(name, s)| Some((name, s.watch.as_ref()?)))
            };
            let watched: Vec<(String, Arc<Events>)> = watches()
                .map(|(name, watch)| (name.clone(), Arc::clone(&watch.events)))
                .collect();
            let next = watches().map(|(_, watch)| watch.recount_at).min();
            (
                watched,
                next.map(|at| at.saturating_duration_since(Instant::now())),
            )
        };
        let mut fds = vec![PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            watched
                .iter()
                .map(|(_, events)| PollFd::new(events.as_fd(), PollFlags::POLLIN)),
        );
        // Rounded up, so that a recount that is nearly due does not make this spin.
        let timeout = wait
            .and_then(|wait| PollTimeout::try_from(wait + Duration::from_millis(1)).ok())
            .unwrap_or(PollTimeout::NONE);
        // An interrupted poll leaves no answer; the next one gives it.
        let _ = poll(&mut fds, timeout);
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let rung = ready(&fds[0]);
        let now = Instant::now();
        let readable: BTreeSet<&str> = watched
            .iter()
            .zip(&fds[1..])
            .filter(|(_, fd)| ready(fd))
            .map(|((name, _), _)| name.as_str())
            .collect();
        let mut state = shared.lock();
        state.follow(|name, watch| readable.contains(name) || watch.recount_at <= now);
        drop(state);
        if rung {
            // Cleared before the state is looked at again, so no ring is lost.
            let _ = bell.read(&mut [0]);
            shared.rung.store(false, Ordering::Release);
        }
    }
}

impl State {
    /// Takes in what happened in some sandboxes, then lays out slots in all that it concerns.
    fn follow(&mut self, concerned: impl Fn(&str, &Watch) -> bool) {
        let mut touched = BTreeSet::new();
        let Self { sandboxes, loads, .. } = self;
        for (name, sandbox) in sandboxes.iter_mut() {
            let Some(watch) = sandbox.watch.as_mut().filter(|watch| concerned(name, watch)) else {
                continue;
            };
            if let Err(error) = watch.drain(loads, &mut touched) {
                tracing::warn!(sandbox = %name, %error, "connections are not counted until the next change");
                watch.open.clear(loads);
                sandbox.watch = None;
            }
        }
        self.refresh(&touched);
    }

    /// Lays out the slots of some services in every sandbox that has them.
    pub(super) fn refresh(&mut self, touched: &BTreeSet<ServiceId>) {
        if touched.is_empty() {
            return;
        }
        for (name, sandbox) in &mut self.sandboxes {
            if let Err(error) = sandbox.refresh(touched, &self.loads) {
                tracing::warn!(sandbox = %name, %error, "slots were not laid out; the next connection tries again");
            }
        }
    }
}
