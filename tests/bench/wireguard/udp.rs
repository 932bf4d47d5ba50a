//! Small datagrams: as many as go, and one at a time.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use netns_harness::Inside;
use weft_netlink::datagrams::{BATCH, Inbox, Outbox};

use crate::ways::Path;

const CONTENT: [u8; 64] = [7; 64];
const ROUND_TRIPS: usize = 3000;
/// Rates that are tried, and how long each.
const TRIES: usize = 8;
const TRY: Duration = Duration::from_millis(400);

/// Connected to each other: of the first and of the second container.
fn sockets(path: &Path) -> Result<(UdpSocket, UdpSocket)> {
    let bind = |place: &netns_harness::Sandbox| place.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let (from, to) = (bind(&path.from)??, bind(&path.to)??);
    from.connect((path.address, to.local_addr()?.port()))?;
    Ok((from, to))
}

/// How many of a flood arrive in a second.
pub fn flood(path: &Path, seconds: u64) -> Result<f64> {
    let (_, received) = send(path, None, Duration::from_secs(seconds))?;
    Ok(received as f64 / seconds as f64)
}

/// The most that can be sent in a second of which at most one in a thousand is lost, by halving what is between a rate that
/// went and one that did not. `flooded` is what arrives of a flood.
pub fn lossless(path: &Path, flooded: f64) -> Result<f64> {
    let (mut goes, mut fails) = (0.0, 1.5 * flooded);
    for _ in 0..TRIES {
        let rate = (goes + fails) / 2.0;
        let (sent, received) = send(path, Some(rate), TRY)?;
        let kept_up = sent as f64 >= 0.98 * rate * TRY.as_secs_f64();
        if kept_up && received * 1000 >= sent * 999 {
            goes = rate;
        } else {
            fails = rate;
        }
    }
    Ok(goes)
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
                thread::yield_now();
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
    anyhow::ensure!(times.len() > ROUND_TRIPS / 2, "half of the datagrams were lost");
    Ok([times[times.len() / 2], times[times.len() * 99 / 100]])
}
