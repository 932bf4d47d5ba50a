//! Sockets that a change was made with, kept for as long as another may follow.
//!
//! A change of nf_tables leaves things behind that the kernel takes away once nobody reads them any more, milliseconds later.
//! Closing a netfilter socket waits for that, and whoever changes something in the same namespace meanwhile waits too. A moment
//! later there is nothing to wait for. A socket keeps its namespace alive, so that moment is short.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use weft_netlink::{conntrack::Conntrack, netns::NetnsId, nft::Nft};

/// For so long after they were last used.
const FOR: Duration = Duration::from_secs(1);
/// Of no more sandboxes: a process may have so many descriptors.
const MOST: usize = 64;

pub(super) type Sockets = (Nft, Conntrack);

/// By sandbox.
#[derive(Debug, Default)]
pub(super) struct Lingering(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    sooner: Condvar,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<String, Kept>,
    /// Whether a thread is there that closes what is kept.
    is_closed_in_time: bool,
    is_over: bool,
}

#[derive(Debug)]
struct Kept {
    netns: NetnsId,
    sockets: Sockets,
    until: Instant,
}

impl Lingering {
    /// The sockets of a sandbox, if it is the same namespace.
    pub(super) fn take(&self, sandbox: &str, netns: NetnsId) -> Option<Sockets> {
        let kept = self.0.lock().kept.remove(sandbox)?;
        (kept.netns == netns).then_some(kept.sockets)
    }

    /// Keeps them for a moment.
    pub(super) fn keep(&self, sandbox: &str, netns: NetnsId, sockets: Sockets) {
        self.keep_until(Instant::now() + FOR, sandbox, netns, sockets);
    }

    /// Closes them, without having the caller wait for that.
    pub(super) fn close(&self, sandbox: &str, netns: NetnsId, sockets: Sockets) {
        self.keep_until(Instant::now(), sandbox, netns, sockets);
        self.0.sooner.notify_all();
    }

    /// Closes those of a sandbox that is gone.
    pub(super) fn forget(&self, sandbox: &str) {
        if let Some(kept) = self.0.lock().kept.get_mut(sandbox) {
            kept.until = Instant::now();
        }
        self.0.sooner.notify_all();
    }

    fn keep_until(&self, until: Instant, sandbox: &str, netns: NetnsId, sockets: Sockets) {
        let mut state = self.0.lock();
        let kept = Kept {
            netns,
            sockets,
            until,
        };
        let now = Instant::now();
        let waiting = || state.kept.values().filter(|kept| kept.until > now);
        if waiting().count() >= MOST {
            let oldest = waiting().map(|kept| kept.until).min();
            let oldest = state.kept.values_mut().find(|kept| Some(kept.until) == oldest);
            oldest.into_iter().for_each(|kept| kept.until = now);
            self.0.sooner.notify_all();
        }
        let replaced = state.kept.insert(sandbox.to_owned(), kept);
        if !state.is_closed_in_time {
            state.is_closed_in_time = self.close_in_time().is_ok();
        }
        // Without a thread they are closed right here.
        let too_long = match state.is_closed_in_time {
            true => HashMap::new(),
            false => std::mem::take(&mut state.kept),
        };
        drop(state);
        drop((replaced, too_long));
    }

    fn close_in_time(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("weft-lb-close".to_owned());
        thread.spawn(move || shared.close_in_time()).map(drop)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.sooner.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what was kept for long enough, until there is nothing more.
    fn close_in_time(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let is_over = state.is_over;
            let closed: Vec<Kept> = {
                let kept = state.kept.extract_if(|_, kept| is_over || kept.until <= now);
                kept.map(|(_, kept)| kept).collect()
            };
            if !closed.is_empty() {
                drop(state);
                drop(closed);
                state = self.lock();
                continue;
            }
            let Some(next) = state.kept.values().map(|kept| kept.until).min() else {
                state.is_closed_in_time = false;
                return;
            };
            let wait = self
                .sooner
                .wait_timeout(state, next.saturating_duration_since(now));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_netlink::netns::Netns;

    use super::{
        super::tests::bed::{eventually, only, service},
        *,
    };
    use crate::{Datapath as _, PortMap, Scheduler, kernel::NftDatapath};

    fn count(lingering: &Lingering) -> usize {
        lingering.0.lock().kept.len()
    }

    #[test]
    fn a_change_is_made_with_the_sockets_of_the_one_before_which_are_closed_soon() {
        let Some(client) = weft_netlink::testing::netns() else {
            return;
        };
        let datapath = NftDatapath::new().unwrap();
        let kept = &datapath.lingering;
        let mut service = service(Scheduler::RoundRobin);
        let until = |lingering: &Lingering| lingering.0.lock().kept.get("client").map(|kept| kept.until);
        // One that is opened beside another has another number.
        let which = |lingering: &Lingering| {
            let state = lingering.0.lock();
            state.kept.get("client").map(|kept| format!("{:?}", kept.sockets))
        };
        let mut first = None;
        for port in [80, 81] {
            let begun = Instant::now();
            service.ports.push(PortMap::tcp(port, port));
            datapath.sync("client", &client, &only(&service)).unwrap();
            assert_eq!(count(kept), 1);
            assert!(until(kept) >= Some(begun + FOR));
            let now = which(kept);
            assert_eq!(first.get_or_insert_with(|| now.clone()), &now);
        }
        // Nothing is written, and nothing is opened for that.
        datapath.sync("client", &client, &only(&service)).unwrap();
        eventually(0, || count(kept));
        eventually(false, || kept.0.lock().is_closed_in_time);
        datapath.sync("client", &client, &only(&service)).unwrap();
        assert_eq!(count(kept), 0);
        service.ports.clear();
        datapath.sync("client", &client, &only(&service)).unwrap();
        assert_eq!(count(kept), 1);
        datapath.remove("client", Some(&client)).unwrap();
        eventually(0, || count(kept));
    }

    #[test]
    fn of_many_sandboxes_only_the_last_have_sockets() {
        let Some(netns) = weft_netlink::testing::netns() else {
            return;
        };
        let lingering = Lingering::default();
        let name = |n| format!("s{n}");
        let until = |n| {
            let state = lingering.0.lock();
            state.kept.get(&name(n)).map(|kept| kept.until)
        };
        for n in 0..MOST + 1 {
            let begun = Instant::now();
            lingering.keep(&name(n), netns.id(), super::super::open(&netns).unwrap());
            assert!(until(n) >= Some(begun + FOR));
        }
        assert!(until(0).is_none_or(|until| until <= Instant::now()));
        eventually(None, || until(0));
    }

    #[test]
    fn another_namespace_of_the_same_name_has_sockets_of_its_own() {
        let Some(first) = weft_netlink::testing::netns() else {
            return;
        };
        let second = Netns::create().unwrap();
        let lingering = Lingering::default();
        lingering.keep("s", first.id(), super::super::open(&first).unwrap());
        assert!(lingering.take("s", second.id()).is_none());
        lingering.keep("s", second.id(), super::super::open(&second).unwrap());
        assert!(lingering.take("s", second.id()).is_some());
        assert!(lingering.take("s", second.id()).is_none());
    }
}
