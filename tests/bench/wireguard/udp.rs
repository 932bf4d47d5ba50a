//! Small datagrams: as many as go, and one at a time.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netns_harness::Inside;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use weft_netlink::datagrams::{BATCH, Inbox, Outbox};

use crate::ways::Path;

const CONTENT: [u8; 64] = [7; 64];
const ROUND_TRIPS: usize = 3000;
/// Of a receiver's buffer, in bytes. With the usual 208 KiB it is full of small datagrams when the receiver has had to wait for a
/// processor for a few milliseconds, and what is measured is the scheduler.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Rates that are tried, and how long each.
const TRIES: usize = 8;
const TRY: Duration = Duration::from_millis(400);
/// Of a sender that is ahead of its rate. One that looked at the clock all the time would take a processor from what it measures.
const PAUSE: Duration = Duration::from_micros(100);

/// Connected to each other: of the first and of the second container.
fn sockets(path: &Path) -> Result<(UdpSocket, UdpSocket)> {
    let bind = |place: &netns_harness::Sandbox| place.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let (from, to) = (bind(&path.from)??, bind(&path.to)??);
    from.connect((path.address, to.local_addr()?.port()))?;
    setsockopt(&to, RcvBufForce, &RECEIVE_BUFFER)?;
    Ok((from, to))
}

/// Datagrams that reached the far container and found no room at a socket, since its beginning.
fn missed(path: &Path) -> Result<u64> {
    let table = path
        .to
        .run(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = table.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = lines.next().zip(lines.next()).context("no line about UDP")?;
    let mut both = names.split(' ').zip(values.split(' '));
    let found = both.find(|(name, _)| *name == "RcvbufErrors");
    Ok(found.context("no RcvbufErrors")?.1.parse()?)
}

/// How many of a flood arrive in a second.
pub fn flood(path: &Path, seconds: u64) -> Result<f64> {
    let (_, received) = send(path, None, Duration::from_secs(seconds))?;
    Ok(received as f64 / seconds as f64)
}

/// The most that were sent in a second with at most one in a thousand of them lost. Looked for by halving what is between a rate
/// that went and one that did not; a sender that had no processor for its rate, or a loss, is given a second try. `flooded` is what
/// arrives of a flood. Fails if the receiver lost some by itself.
pub fn lossless(path: &Path, flooded: f64) -> Result<f64> {
    let (mut goes, mut fails, mut most) = (0.0, 1.5 * flooded, 0.0_f64);
    let missed_before = missed(path)?;
    for _ in 0..TRIES {
        let rate = (goes + fails) / 2.0;
        let mut went = false;
        for _ in 0..2 {
            let (sent, received) = send(path, Some(rate), TRY)?;
            let reached = sent as f64 / TRY.as_secs_f64();
            if received * 1000 >= sent * 999 {
                most = most.max(reached);
                went = reached >= 0.98 * rate;
            }
            if went {
                break;
            }
        }
        *(if went { &mut goes } else { &mut fails }) = rate;
    }
    ensure!(missed(path)? == missed_before, "the receiver did not keep up");
    Ok(most)
}

/// Sends at a rate, or as fast as it goes; says how many were sent and how many have arrived.
fn send(path: &Path, rate: Option<f64>, length: Duration) -> Result<(u64, u64)> {
    let (from, to) = sockets(path)?;
    let target = from.peer_addr()?;
    to.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (received, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let sent = thread::scope(|scope| {
        scope.spawn(|| {
            let mut inbox = Inbox::new(100);
            loop {
                // Waits for the first, and takes the rest with it; what is on its way comes before nothing does.
                if to.peek(&mut [0]).is_ok() {
                    if let Ok(count) = inbox.receive(&to) {
                        received.fetch_add(count as u64, Relaxed);
                    }
                } else if is_over.load(Relaxed) {
                    return;
                }
            }
        });
        let mut outbox = Outbox::default();
        let begun = Instant::now();
        let mut sent = 0_u64;
        while begun.elapsed() < length {
            let due = rate.map_or(BATCH, |rate| {
                let due = rate * begun.elapsed().as_secs_f64() - sent as f64;
                (due.max(0.0) as usize).min(BATCH)
            });
            if due == 0 {
                #[allow(
                    clippy::disallowed_methods,
                    reason = "it is the rate, there is nothing to wait for"
                )]
                thread::sleep(PAUSE);
                continue;
            }
            for _ in 0..due {
                outbox.draft().extend_from_slice(&CONTENT);
                outbox.post(target);
            }
            sent += due as u64;
            while let Err(error) = outbox.send(&from) {
                if error.kind() == ErrorKind::WouldBlock {
                    thread::yield_now();
                }
            }
        }
        is_over.store(true, Relaxed);
        sent
    });
    Ok((sent, received.into_inner()))
}

/// Seconds: the median, and what one in a hundred takes longer than.
pub fn round_trips(path: &Path) -> Result<[f64; 2]> {
    let (from, to) = sockets(path)?;
    from.set_read_timeout(Some(Duration::from_millis(200)))?;
    to.set_read_timeout(Some(Duration::from_millis(200)))?;
    let is_over = AtomicBool::new(false);
    let mut times = thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = [0; 100];
            while !is_over.load(Relaxed) {
                let received: Result<(usize, SocketAddr), _> = to.recv_from(&mut bytes);
                if let Ok((length, sender)) = received {
                    let _ = to.send_to(&bytes[..length], sender);
                }
            }
        });
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        let mut bytes = [0; 100];
        for _ in 0..ROUND_TRIPS {
            let begun = Instant::now();
            // One that was lost on the way counts for nothing.
            if from.send(&CONTENT).is_ok() && from.recv(&mut bytes).is_ok() {
                times.push(begun.elapsed().as_secs_f64());
            }
        }
        is_over.store(true, Relaxed);
        times
    });
    times.sort_by(f64::total_cmp);
    ensure!(times.len() > ROUND_TRIPS / 2, "half of the datagrams were lost");
    Ok([times[times.len() / 2], times[times.len() * 99 / 100]])
}
