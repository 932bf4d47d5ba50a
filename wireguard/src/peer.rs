//! Another node as the data path knows it: its session, where it is, and what its path takes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    control,
    link::{Link, Pair, Session},
};

/// Room for any message of a handshake.
pub const HANDSHAKE_ROOM: usize = 256;
/// For how long packets go one by one after the kernel refused to cut a buffer.
const WITHOUT_SEGMENTS: Duration = Duration::from_secs(600);
/// What stands around an inner IP packet on the underlay: Ethernet, VXLAN, UDP and IPv4 inside the tunnel, and
/// WireGuard with UDP and IP around it.
const AROUND_V4: u32 = 14 + 8 + 8 + 20 + 32 + 8 + 20;
const AROUND_V6: u32 = AROUND_V4 + 20;
/// Senders are told that their packets are too big so often at most.
const TELL_EVERY_MS: u64 = 20;

/// Another node.
pub struct Peer {
    vtep: Ipv4Addr,
    pub received_bytes: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub lost: AtomicU64,
    /// In milliseconds of [`Clock`].
    without_segments_until: AtomicU64,
    told_at: AtomicU64,
    /// What the path takes as the kernel says, 0 if that is not known.
    path_mtu: AtomicU32,
    /// What it was found to take, 0 if nobody had to look.
    found_mtu: AtomicU32,
    /// The largest IP packet of a network that fits.
    limit: AtomicUsize,
    link: Mutex<Link>,
}

/// Milliseconds since the process began.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        // So that nothing happened at zero.
        Self(Instant::now() - Duration::from_secs(1))
    }
}

impl Clock {
    pub fn now_ms(self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}

impl Peer {
    pub fn new(vtep: Ipv4Addr, endpoint: SocketAddr) -> Self {
        Self {
            vtep,
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            without_segments_until: AtomicU64::new(0),
            told_at: AtomicU64::new(0),
            path_mtu: AtomicU32::new(0),
            found_mtu: AtomicU32::new(0),
            limit: AtomicUsize::new(usize::MAX),
            link: Mutex::new(Link::new(endpoint)),
        }
    }

    /// Has sessions of these pairs of keys, and no others. What is to be computed for new ones is computed while
    /// packets go on.
    pub fn set_pairs(&self, pairs: &[Pair], mut make: impl FnMut(&Pair) -> Session) {
        let missing = |pair: &&Pair| !self.link().pairs().any(|(have, _)| have == *pair);
        let fresh = pairs
            .iter()
            .filter(missing)
            .map(|pair| Box::new(make(pair)))
            .collect();
        self.link().set_pairs(pairs, fresh);
    }

    pub fn link(&self) -> MutexGuard<'_, Link> {
        // A thread that panics with it ends the process.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn vtep(&self) -> Ipv4Addr {
        self.vtep
    }

    pub fn may_segment(&self, clock: Clock) -> bool {
        let until = self.without_segments_until.load(Relaxed);
        until == 0 || clock.now_ms() >= until
    }

    /// The kernel does not cut buffers for this path.
    pub fn stop_segmenting(&self, clock: Clock) {
        let until = clock.now_ms() + WITHOUT_SEGMENTS.as_millis() as u64;
        self.without_segments_until.store(until, Relaxed);
    }

    /// The largest IP packet of a network that may be sent to it in one piece.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// What the kernel says that the path takes.
    fn told_mtu(&self) -> Option<u32> {
        Some(self.path_mtu.load(Relaxed)).filter(|mtu| *mtu > 0)
    }

    fn found_mtu(&self) -> Option<u32> {
        Some(self.found_mtu.load(Relaxed)).filter(|mtu| *mtu > 0)
    }

    /// What the path is known to take.
    fn path_mtu(&self) -> Option<u32> {
        self.told_mtu().into_iter().chain(self.found_mtu()).min()
    }

    /// The kernel says that the path takes so much.
    pub fn set_path_mtu(&self, mtu: u32, v6: bool) {
        self.path_mtu.store(mtu, Relaxed);
        self.set_limit(v6);
    }

    /// The longest packet on the underlay that is of use, for a network with this MTU, and that the kernel would send;
    /// 0 if that is not known.
    pub fn full_length(&self, needed_mtu: u32, v6: bool) -> u16 {
        let around = if v6 { AROUND_V6 } else { AROUND_V4 };
        let full = self.told_mtu().unwrap_or(0).min(needed_mtu + around);
        u16::try_from(full).unwrap_or(u16::MAX)
    }

    /// Longer packets than this are dropped without a word; `None` if none are.
    pub fn set_found_mtu(&self, mtu: Option<u16>, v6: bool) {
        let mtu = mtu.map_or(0, u32::from);
        if self.found_mtu.swap(mtu, Relaxed) != mtu {
            self.set_limit(v6);
        }
    }

    fn set_limit(&self, v6: bool) {
        let around = if v6 { AROUND_V6 } else { AROUND_V4 };
        let Some(mtu) = self.path_mtu() else { return };
        // RFC 791: every path takes 576 bytes; below, fragments of the underlay have to do.
        let limit = mtu.max(576) - around;
        self.limit.store(limit as usize, Relaxed);
    }

    /// Whether it is time to tell a sender again that packets are too big.
    pub fn may_tell(&self, clock: Clock) -> bool {
        let now = clock.now_ms();
        let due = now >= self.told_at.load(Relaxed) + TELL_EVERY_MS;
        if due {
            self.told_at.store(now, Relaxed);
        }
        due
    }

    pub fn lose(&self, packets: usize) {
        self.lost.fetch_add(packets as u64, Relaxed);
    }

    pub fn status(&self, needed_mtu: u32, clock: Clock) -> control::PeerStatus {
        let link = self.link();
        let around = if link.endpoint().is_ipv4() {
            AROUND_V4
        } else {
            AROUND_V6
        };
        control::PeerStatus {
            vtep: self.vtep,
            endpoint: link.endpoint(),
            pairs: link.status(Instant::now()),
            received_bytes: self.received_bytes.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            lost: self.lost.load(Relaxed),
            segmentation: self.may_segment(clock),
            path_mtu: self.path_mtu().filter(|mtu| *mtu < needed_mtu + around),
            is_path_silent: self
                .found_mtu()
                .is_some_and(|found| self.path_mtu() == Some(found)),
        }
    }
}
