//! Another node as the data path knows it: its session, where it is, and what its path takes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};

use crate::{Secret32, control};

/// Room for any message of a handshake.
pub const HANDSHAKE_ROOM: usize = 256;
/// Packets that wait for a session, of each peer. boringtun would keep 256.
const MOST_WAITING: usize = 16;
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
    pub wanted: control::Peer,
    /// The upper 24 bits of the receiver indices it uses towards us.
    pub index: u32,
    pub received_bytes: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub lost: AtomicU64,
    /// In milliseconds of [`Clock`].
    without_segments_until: AtomicU64,
    told_at: AtomicU64,
    /// What the path takes, 0 if that is not known.
    path_mtu: AtomicU32,
    /// The largest IP packet of a network that fits.
    limit: AtomicUsize,
    link: Mutex<Link>,
}

/// What a lock is needed for.
pub struct Link {
    tunn: Tunn,
    endpoint: SocketAddr,
    /// Where it said it is, when it last said so.
    announced: SocketAddr,
    waiting: usize,
    /// When to begin a handshake without being asked.
    greet_at: Option<Instant>,
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
    /// `greet_at` is when a handshake is begun if there is none yet.
    pub fn new(
        wanted: control::Peer,
        private_key: &Secret32,
        limiter: Arc<RateLimiter>,
        index: u32,
        greet_at: Option<Instant>,
    ) -> Self {
        let tunn = Tunn::new(
            StaticSecret::from(*private_key.expose()),
            PublicKey::from(wanted.public_key),
            Some(*wanted.preshared_key.expose()),
            None,
            index,
            Some(limiter),
        );
        let link = Link {
            tunn,
            endpoint: wanted.endpoint,
            announced: wanted.endpoint,
            waiting: 0,
            greet_at,
        };
        Self {
            wanted,
            index,
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            without_segments_until: AtomicU64::new(0),
            told_at: AtomicU64::new(0),
            path_mtu: AtomicU32::new(0),
            limit: AtomicUsize::new(usize::MAX),
            link: Mutex::new(link),
        }
    }

    pub fn link(&self) -> MutexGuard<'_, Link> {
        // A thread that panics with it ends the process.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn vtep(&self) -> Ipv4Addr {
        self.wanted.vtep
    }

    /// Where it says it is. Only a change moves it there: it may have been heard from elsewhere since.
    pub fn announce(&self, endpoint: SocketAddr) {
        let mut link = self.link();
        if link.announced != endpoint {
            (link.announced, link.endpoint) = (endpoint, endpoint);
        }
    }

    pub fn announced(&self) -> SocketAddr {
        self.link().announced
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

    /// What the path is known to take.
    pub fn path_mtu(&self) -> Option<u32> {
        Some(self.path_mtu.load(Relaxed)).filter(|mtu| *mtu > 0)
    }

    /// The kernel says that the path takes so much.
    pub fn set_path_mtu(&self, mtu: u32, v6: bool) {
        let around = if v6 { AROUND_V6 } else { AROUND_V4 };
        self.path_mtu.store(mtu, Relaxed);
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
        let around = if link.endpoint.is_ipv4() {
            AROUND_V4
        } else {
            AROUND_V6
        };
        control::PeerStatus {
            public_key: self.wanted.public_key,
            endpoint: link.endpoint,
            last_handshake: link.tunn.time_since_last_handshake(),
            received_bytes: self.received_bytes.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            lost: self.lost.load(Relaxed),
            segmentation: self.may_segment(clock),
            path_mtu: self.path_mtu().filter(|mtu| *mtu < needed_mtu + around),
        }
    }
}

/// What came of a packet that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// So many bytes are to be sent.
    Packet(usize),
    /// So many bytes of a handshake are to be sent first; the packet waits.
    Handshake(usize),
    /// It waits for a session.
    Waits,
    /// There are enough that wait.
    Lost,
}

impl Link {
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// Only for addresses that an authentic message came from, or that the node itself published.
    pub fn move_to(&mut self, endpoint: SocketAddr) {
        self.endpoint = endpoint;
    }

    pub fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Encrypts a packet. `out` has room for 32 bytes more than it, and for a handshake.
    pub fn seal(&mut self, packet: &[u8], has_session: bool, out: &mut [u8]) -> Sealed {
        if !has_session {
            if self.waiting >= MOST_WAITING {
                return Sealed::Lost;
            }
            self.waiting += 1;
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(bytes) if has_session => Sealed::Packet(bytes.len()),
            TunnResult::WriteToNetwork(bytes) => Sealed::Handshake(bytes.len()),
            _ => Sealed::Waits,
        }
    }

    /// The next of the packets that waited for a session, if there is one now.
    pub fn next_waiting(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.waiting == 0 || !self.has_session() {
            return None;
        }
        self.waiting -= 1;
        match self.tunn.decapsulate(None, &[], out) {
            TunnResult::WriteToNetwork(bytes) => Some(bytes.len()),
            _ => {
                self.waiting = 0;
                None
            }
        }
    }

    /// Takes a message of the peer. The limiter of the tunnel lets everything pass: the budget has been asked before.
    pub fn open<'a>(&mut self, message: &[u8], out: &'a mut [u8]) -> TunnResult<'a> {
        self.tunn.decapsulate(None, message, out)
    }

    /// What has to be done by the clock, to be called several times a second for every peer, whether it is in use or
    /// not: boringtun knows the time from these calls alone, and a session begins at the time it knows.
    pub fn tick(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(bytes) => return Some(bytes.len()),
            // It gave up, and what waited is gone; the next packet begins anew.
            TunnResult::Err(_) => self.waiting = 0,
            _ => {}
        }
        if self.greet_at.is_some_and(|at| now >= at) {
            self.greet_at = None;
            if !self.has_session()
                && let TunnResult::WriteToNetwork(bytes) = self.tunn.format_handshake_initiation(out, false)
            {
                return Some(bytes.len());
            }
        }
        None
    }
}
