//! Numbered datagrams that go from container to container all the time, and are all waited for.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use netns_harness::eventually;
use nix::sys::socket::{setsockopt, sockopt};

use crate::slower;

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(4);
/// Datagrams wait in it for a receiver that gets no processor.
const BUFFER: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);
/// Who has nothing more to hear waits so long for it, on a machine that is busy with other things.
const LATEST: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Datagrams in one direction, until it is stopped.
pub struct Flow {
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<BTreeSet<u64>>,
}

impl Flow {
    /// From one socket to another; each datagram has its number in it, and these words.
    ///
    /// # Panics
    ///
    /// If it cannot be sent, which includes that a neighbour is unknown.
    pub fn start(mouth: UdpSocket, ears: UdpSocket, words: &'static [u8]) -> Self {
        mouth.connect(ears.local_addr().unwrap()).unwrap();
        ears.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // Who is not root has to do with less.
        if setsockopt(&ears, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&ears, sockopt::RcvBuf, &BUFFER).unwrap();
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (Arc::clone(&is_over), Arc::clone(&sent));
        let sender = thread::spawn(move || {
            while !over.load(Relaxed) {
                let number = count.fetch_add(1, Relaxed);
                let datagram = [&number.to_le_bytes()[..], words].concat();
                mouth.send(&datagram).unwrap();
                thread::park_timeout(PACE);
            }
        });
        let (over, count, all) = (Arc::clone(&is_over), Arc::clone(&received), Arc::clone(&sent));
        let receiver = thread::spawn(move || {
            let (mut seen, mut bytes) = (BTreeSet::new(), [0; 200]);
            let mut last = Instant::now();
            while !over.load(Relaxed) || (seen.len() as u64) < all.load(Relaxed) {
                match ears.recv(&mut bytes) {
                    Ok(_) => {
                        let fresh = seen.insert(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
                        assert!(fresh, "a datagram came twice");
                        count.fetch_add(1, Relaxed);
                        last = Instant::now();
                    }
                    // Nothing more is on its way.
                    Err(_) if over.load(Relaxed) && last.elapsed() > slower(LATEST) => break,
                    Err(_) => {}
                }
            }
            seen
        });
        Self {
            is_over,
            sent,
            received,
            sender,
            receiver,
        }
    }

    /// Waits until so many more have arrived.
    ///
    /// # Panics
    ///
    /// If they do not.
    pub fn goes_on(&self, more: u64) {
        let until = self.received.load(Relaxed) + more;
        let look = || match self.received.load(Relaxed) {
            received if received >= until => Ok(()),
            received => Err(received),
        };
        eventually("datagrams to go on", slower(PATIENCE), LOOK_EVERY, look).unwrap();
    }

    /// How many were sent, and which of them never arrived.
    ///
    /// # Panics
    ///
    /// If one of them arrived twice.
    pub fn stop(self) -> (u64, Vec<u64>) {
        self.is_over.store(true, Relaxed);
        self.sender.join().unwrap();
        let seen = self.receiver.join().unwrap();
        let sent = self.sent.load(Relaxed);
        (sent, (0..sent).filter(|number| !seen.contains(number)).collect())
    }
}
