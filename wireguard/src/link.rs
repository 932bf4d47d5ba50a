//! The sessions with another node, and which of them packets go by.
//!
//! There is one tunnel of boringtun's for each pair of a key of ours and a key of theirs: one pair mostly, more while
//! one of the two changes its key. Packets are taken from all of them, and go by the first that has a session which
//! the other side is known to have too. So nobody has to agree on a moment to change: each side goes over to the newer
//! keys when they carry, and comes back to the older ones if they do not.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError},
    x25519::PublicKey,
};

use crate::{Secret32, control::PairStatus, probing::Probing, table::Identity};

/// Packets that wait for a session.
const MOST_WAITING: usize = 16;
/// While there is more than one pair, so often the other side is shown which one is used.
const SHOW_EVERY: Duration = Duration::from_secs(1);
const RESPONSE: u8 = 2;
const DATA: u8 = 4;

/// A key of ours, one of theirs, and what both nodes know beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub own: [u8; 32],
    pub public_key: [u8; 32],
    pub preshared_key: Secret32,
}

/// All sessions with a node.
pub struct Link {
    /// In the order in which they are to be used. Boxed, so that there are no copies of keys where they once were.
    sessions: Vec<Box<Session>>,
    endpoint: SocketAddr,
    /// Where it said it is, when it last said so.
    announced: SocketAddr,
    waiting: VecDeque<Vec<u8>>,
    /// What the path takes, if nobody says so.
    pub probing: Probing,
    show_at: Option<Instant>,
}

/// Those of one pair.
pub struct Session {
    tunn: Tunn,
    pair: Pair,
    /// The upper 24 bits of the receiver indices that are used towards us.
    index: u32,
    /// The other side is known to have the session that `tunn` encrypts with.
    is_confirmed: bool,
    heard: Option<Instant>,
    /// When to begin a handshake without being asked.
    greet_at: Option<Instant>,
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

impl Session {
    /// `greet_at` is when a handshake is begun if there is none yet.
    pub fn new(pair: Pair, identity: &Identity, index: u32, greet_at: Option<Instant>) -> Self {
        let tunn = Tunn::new(
            identity.private.clone(),
            PublicKey::from(pair.public_key),
            Some(*pair.preshared_key.expose()),
            None,
            index,
            Some(std::sync::Arc::clone(&identity.open)),
        );
        Self {
            tunn,
            pair,
            index,
            is_confirmed: false,
            heard: None,
            greet_at,
        }
    }

    fn is_usable(&self) -> bool {
        self.is_confirmed && self.tunn.time_since_last_handshake().is_some()
    }
}

impl Link {
    pub fn new(endpoint: SocketAddr) -> Self {
        Self {
            sessions: Vec::new(),
            endpoint,
            announced: endpoint,
            waiting: VecDeque::new(),
            probing: Probing::default(),
            show_at: None,
        }
    }

    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    pub fn announced(&self) -> SocketAddr {
        self.announced
    }

    /// Where it says it is. Only a change moves it there: it may have been heard from elsewhere since.
    pub fn announce(&mut self, endpoint: SocketAddr) {
        if self.announced != endpoint {
            (self.announced, self.endpoint) = (endpoint, endpoint);
        }
    }

    /// Only for addresses that an authentic message came from.
    pub fn move_to(&mut self, endpoint: SocketAddr) {
        self.endpoint = endpoint;
    }

    /// Which pairs there are, and by which number.
    pub fn pairs(&self) -> impl Iterator<Item = (&Pair, u32)> {
        self.sessions.iter().map(|session| (&session.pair, session.index))
    }

    /// Has these pairs from now on, in this order. Those that were there before stay as they are.
    pub fn set_pairs(&mut self, pairs: &[Pair], mut fresh: Vec<Box<Session>>) {
        let mut before = std::mem::take(&mut self.sessions);
        for pair in pairs {
            let take = |from: &mut Vec<Box<Session>>| {
                let place = from.iter().position(|session| session.pair == *pair)?;
                Some(from.swap_remove(place))
            };
            self.sessions
                .extend(take(&mut before).or_else(|| take(&mut fresh)));
        }
    }

    /// The place of the session that packets go by.
    pub fn used(&self) -> Option<usize> {
        self.sessions.iter().position(|session| session.is_usable())
    }

    /// Encrypts a packet by the session at a place, or keeps it until there is one. `out` has room for 32 bytes more
    /// than it, and for a handshake.
    pub fn seal(&mut self, packet: &[u8], used: Option<usize>, out: &mut [u8]) -> Sealed {
        if let Some(session) = used.and_then(|place| self.sessions.get_mut(place)) {
            return match session.tunn.encapsulate(packet, out) {
                TunnResult::WriteToNetwork(bytes) => Sealed::Packet(bytes.len()),
                _ => Sealed::Lost,
            };
        }
        if self.waiting.len() >= MOST_WAITING || self.sessions.is_empty() {
            return Sealed::Lost;
        }
        self.waiting.push_back(packet.to_vec());
        let mut begun = None;
        for session in &mut self.sessions {
            if begun.is_some() {
                // The clock's thread sends it.
                session.greet_at.get_or_insert_with(Instant::now);
            } else if let TunnResult::WriteToNetwork(bytes) =
                session.tunn.format_handshake_initiation(out, false)
            {
                begun = Some(bytes.len());
            }
        }
        begun.map_or(Sealed::Waits, Sealed::Handshake)
    }

    /// The next of the packets that waited for a session, if there is one now.
    pub fn next_waiting(&mut self, out: &mut [u8]) -> Option<usize> {
        let used = self.used()?;
        let packet = self.waiting.pop_front()?;
        match self.sessions[used].tunn.encapsulate(&packet, out) {
            TunnResult::WriteToNetwork(bytes) => Some(bytes.len()),
            _ => None,
        }
    }

    /// Takes a message of the peer, to the session with this number. The limiter of the tunnel lets everything pass:
    /// the budget has been asked before.
    pub fn open<'a>(
        &mut self,
        index: u32,
        message: &[u8],
        out: &'a mut [u8],
        now: Instant,
    ) -> TunnResult<'a> {
        let Some(session) = self.sessions.iter_mut().find(|session| session.index == index) else {
            return TunnResult::Err(WireGuardError::WrongIndex);
        };
        let result = session.tunn.decapsulate(None, message, out);
        let kind = message.first().copied().unwrap_or_default();
        let is_authentic = match &result {
            // It was decrypted, and is not IP.
            TunnResult::Err(WireGuardError::InvalidPacket) => kind == DATA,
            TunnResult::Err(_) => false,
            _ => true,
        };
        if is_authentic && kind == DATA {
            session.heard = Some(now);
        }
        session.is_confirmed |= is_authentic && (kind == DATA || kind == RESPONSE);
        result
    }

    /// What has to be done by the clock, to be called several times a second for every peer, whether it is in use or
    /// not: boringtun knows the time from these calls alone, and a session begins at the time it knows. Says how many packets
    /// have waited for a session that does not come.
    pub fn tick(&mut self, now: Instant, out: &mut [u8], mut send: impl FnMut(&[u8])) -> usize {
        let used = self.used();
        let is_changing = self.sessions.len() > 1;
        for (place, session) in self.sessions.iter_mut().enumerate() {
            if let TunnResult::WriteToNetwork(bytes) = session.tunn.update_timers(out) {
                send(bytes);
            }
            session.is_confirmed &= session.tunn.time_since_last_handshake().is_some();
            // boringtun gives up after a minute and a half. While keys change that may be too early.
            let is_missing = is_changing && used.is_none_or(|used| place < used) && session.tunn.is_expired();
            if is_missing || session.greet_at.is_some_and(|at| now >= at) {
                session.greet_at = None;
                if !session.is_usable()
                    && let TunnResult::WriteToNetwork(bytes) =
                        session.tunn.format_handshake_initiation(out, false)
                {
                    send(bytes);
                }
            }
        }
        let given_up = if self.sessions.iter().all(|session| session.tunn.is_expired()) {
            self.waiting.drain(..).count()
        } else {
            0
        };
        if is_changing
            && self.show_at.is_none_or(|at| now >= at)
            && let Some(used) = used
        {
            self.show_at = Some(now + SHOW_EVERY);
            if let TunnResult::WriteToNetwork(bytes) = self.sessions[used].tunn.encapsulate(&[], out) {
                send(bytes);
            }
        }
        given_up
    }

    pub fn status(&self, now: Instant) -> Vec<PairStatus> {
        let used = self.used();
        let status = |(place, session): (usize, &Session)| PairStatus {
            own: session.pair.own,
            public_key: session.pair.public_key,
            is_used: used == Some(place),
            last_handshake: session.tunn.time_since_last_handshake(),
            last_heard: session.heard.map(|at| now.saturating_duration_since(at)),
        };
        self.sessions
            .iter()
            .map(Box::as_ref)
            .enumerate()
            .map(status)
            .collect()
    }
}

#[cfg(test)]
mod tests;
