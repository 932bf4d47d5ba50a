//! How long dockerd waits for its driver: who stands between the two sees every request and every answer.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use netns_harness::{Host, Inside as _};
use nix::sys::socket::{Shutdown as Way, shutdown};

/// Relays what dockerd and the driver say to each other, and takes the time between.
pub struct Waits {
    seen: Arc<Mutex<Seen>>,
    listener: Arc<UnixListener>,
    relay: Option<JoinHandle<()>>,
}

/// dockerd waits while a request has no answer. One whose connection ended is tried again after a while that is
/// dockerd's own, and waited for all that time.
#[derive(Default)]
struct Seen {
    unanswered: u32,
    has_failed: bool,
    since: Option<Instant>,
    waits: Vec<(Instant, Instant)>,
}

impl Waits {
    /// Takes the driver's place at `listener`; the driver itself is at `behind` on the host.
    pub fn between(listener: UnixListener, host: &Host, behind: &'static str) -> Self {
        let (seen, listener) = (Arc::<Mutex<Seen>>::default(), Arc::new(listener));
        let (host, theirs, door) = (host.clone(), seen.clone(), listener.clone());
        let relay = thread::spawn(move || {
            host.run(|| {
                while let Ok((dockerd, _)) = door.accept() {
                    let driver = UnixStream::connect(behind).unwrap();
                    let seen = theirs.clone();
                    thread::spawn(move || relay(dockerd, driver, &seen));
                }
            })
            .unwrap();
        });
        Self {
            seen,
            listener,
            relay: Some(relay),
        }
    }

    /// How much of that time was spent so.
    pub fn within(&self, from: Instant, to: Instant) -> Duration {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = seen.since.map(|since| (since, Instant::now()));
        let all = seen.waits.iter().copied().chain(now);
        all.map(|(begun, ended)| ended.min(to).saturating_duration_since(begun.max(from)))
            .sum()
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        // Whoever waits in `accept` is woken by it.
        let _ = shutdown(self.listener.as_raw_fd(), Way::Both);
        if let Some(relay) = self.relay.take() {
            let _ = relay.join();
        }
    }
}

impl Seen {
    fn note(&mut self, change: impl FnOnce(&mut Self)) {
        change(self);
        let waits = self.unanswered > 0 || self.has_failed;
        match (waits, self.since) {
            (true, None) => self.since = Some(Instant::now()),
            (false, Some(since)) => {
                self.waits.push((since, Instant::now()));
                self.since = None;
            }
            _ => {}
        }
    }
}

fn relay(dockerd: UnixStream, driver: UnixStream, seen: &Mutex<Seen>) {
    // Of this connection, which has one request at a time.
    let asked = Mutex::new(false);
    let set = |asks: bool, has_failed: bool| {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let was = std::mem::replace(&mut *asked, asks);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match (was, asks) {
            (false, true) => seen.note(|seen| seen.unanswered += 1),
            (true, false) => seen.note(|seen| {
                seen.unanswered -= 1;
                seen.has_failed = has_failed;
            }),
            _ => {}
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            carry(&dockerd, &driver, || set(true, false));
            // Nobody waits for the answer any more.
            set(false, false);
            close(&dockerd, &driver);
        });
        carry(&driver, &dockerd, || set(false, false));
        set(false, true);
        close(&dockerd, &driver);
    });
}

/// Until one of both has ended.
fn carry(mut from: &UnixStream, mut to: &UnixStream, mut carried: impl FnMut()) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        carried();
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

fn close(one: &UnixStream, other: &UnixStream) {
    // Closed already is as good.
    let _ = one.shutdown(Shutdown::Both);
    let _ = other.shutdown(Shutdown::Both);
}
