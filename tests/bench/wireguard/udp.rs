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

/// Connected to each other: of the first and of the second container.
fn sockets(path: &Path) -> Result<(UdpSocket, UdpSocket)> {
    let bind = |place: &netns_harness::Sandbox| place.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let (from, to) = (bind(&path.from)??, bind(&path.to)??);
    from.connect((path.address, to.local_addr()?.port()))?;
    Ok((from, to))
}

/// How many of a flood arrive in a second.
pub fn flood(path: &Path, seconds: u64) -> Result<f64> {
    let (from, to) = sockets(path)?;
    let target = from.peer_addr()?;
    to.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (received, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut inbox = Inbox::new(100);
            while !is_over.load(Relaxed) {
                // Waits for the first, and takes the rest with it.
                if to.peek(&mut [0]).is_ok()
                    && let Ok(count) = inbox.receive(&to)
                {
                    received.fetch_add(count as u64, Relaxed);
                }
            }
        });
        let mut outbox = Outbox::default();
        let begun = Instant::now();
        let length = Duration::from_secs(seconds);
        while begun.elapsed() < length {
            for _ in 0..BATCH {
                outbox.draft().extend_from_slice(&CONTENT);
                outbox.post(target);
            }
            while let Err(error) = outbox.send(&from) {
                if error.kind() == ErrorKind::WouldBlock {
                    thread::yield_now();
                }
            }
        }
        let rate = received.load(Relaxed) as f64 / begun.elapsed().as_secs_f64();
        is_over.store(true, Relaxed);
        Ok(rate)
    })
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
