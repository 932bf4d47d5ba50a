//! From tunnels into TAP devices.

use std::{
    io::IoSlice,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Instant,
};

use boringtun::noise::{Packet, Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon};
use weft_netlink::segments::Inbox;

use super::{Pair, Shared, State, tally::count};
use crate::{
    budget::Verdict,
    echo::{self, Echo},
    join::Joiner,
    link::{Link, Sealed},
    peer::{HANDSHAKE_ROOM, Peer},
    secret::scrub_stack,
    table::{Denied, Device, Identity, Table},
    turns::Taken,
};

/// Room for what is decrypted, until it is handed over.
const ARENA: usize = 1024 * 1024;
/// The longest datagram.
const ROOM: usize = 65_536;
const DATA: [u8; 4] = [4, 0, 0, 0];
const DATA_LEN: usize = 32;

/// What a thread needs for it.
pub struct Receiving<'a> {
    shared: &'a Shared,
    inbox: Inbox,
    room: Room,
}

struct Room {
    arena: Vec<u8>,
    used: usize,
    joiner: Joiner,
    /// Of the frames that wait to be handed over.
    devices: Vec<Arc<Device>>,
    out: Vec<u8>,
}

/// A turn with a socket.
struct Turn<'a> {
    shared: &'a Shared,
    pair: &'a Pair,
    room: &'a mut Room,
}

/// What a datagram is for, and when it came.
#[derive(Clone, Copy)]
struct Session<'a> {
    peer: &'a Peer,
    index: u32,
    now: Instant,
}

impl<'a> Receiving<'a> {
    pub fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            inbox: Inbox::default(),
            room: Room {
                arena: vec![0; ARENA],
                used: 0,
                joiner: Joiner::default(),
                devices: Vec::new(),
                out: vec![0; ROOM + DATA_LEN],
            },
        }
    }

    /// Takes what waits at a socket, up to a number of datagrams.
    pub fn take_turn(&mut self, state: &State, pair: &Pair, socket: impl AsFd) -> Taken {
        if self.inbox.receive(&socket).is_err() {
            return Taken::default();
        }
        let mut turn = Turn {
            shared: self.shared,
            pair,
            room: &mut self.room,
        };
        turn.take(state, &self.inbox)
    }
}

impl Turn<'_> {
    fn take(&mut self, state: &State, inbox: &Inbox) -> Taken {
        let now = Instant::now();
        let mut taken = Taken::default();
        let mut datagrams = inbox
            .iter()
            .inspect(|(datagram, _)| {
                taken.packets += 1;
                taken.bytes += datagram.len();
            })
            .peekable();
        while let Some((datagram, from)) = datagrams.next() {
            let Some(receiver) = data_receiver(datagram) else {
                self.handshake(&state.table, datagram, from);
                continue;
            };
            let Some(peer) = state.table.peer_of_index(receiver) else {
                count(&self.shared.tally.unknown_index);
                continue;
            };
            // One lock for all that come from a peer at a time.
            let mut link = peer.link();
            let session = Session {
                peer,
                index: receiver >> 8,
                now,
            };
            self.data(&state.table, session, &mut link, datagram, from);
            let next = |(datagram, _): &(&[u8], SocketAddr)| {
                data_receiver(datagram).is_some_and(|other| other >> 8 == receiver >> 8)
            };
            while let Some((datagram, from)) = datagrams.next_if(next) {
                self.data(&state.table, session, &mut link, datagram, from);
            }
            self.send_waiting(peer, &mut link);
        }
        self.hand_over();
        taken
    }

    fn data(
        &mut self,
        table: &Table,
        session: Session<'_>,
        link: &mut Link,
        datagram: &[u8],
        from: SocketAddr,
    ) {
        let Session { peer, index, now } = session;
        if self.room.used + datagram.len() > self.room.arena.len() {
            self.hand_over();
        }
        let tally = &self.shared.tally;
        let length = match link.open(index, datagram, &mut self.room.arena[self.room.used..], now) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => packet.len(),
            // A keepalive.
            TunnResult::Done => 0,
            TunnResult::WriteToNetwork(_) => return,
            TunnResult::Err(error) => {
                return match error {
                    WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => {
                        count(&tally.unknown_index)
                    }
                    WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => {
                        count(&tally.replayed)
                    }
                    // It was authentic, but no IP packet.
                    WireGuardError::InvalidPacket => tally.deny_contents(),
                    _ => count(&tally.undecryptable),
                };
            }
        };
        peer.received_bytes.fetch_add(datagram.len() as u64, Relaxed);
        if link.endpoint() != from {
            link.move_to(from);
        }
        if length == 0 {
            return;
        }
        let packet = self.room.used..self.room.used + length;
        match echo::take(&self.room.arena[packet.clone()], peer.vtep(), table.vtep) {
            Some(Echo::Question(answer)) => return self.answer(peer, link, &answer),
            Some(Echo::Answer(length)) => return link.probing.answered(length),
            None => {}
        }
        let (network, frame) = match table.admit(peer, &self.room.arena[packet.clone()]) {
            Ok(admitted) => admitted,
            Err(denied) => {
                tally.deny(denied);
                if let Denied::NotAMember(vni) | Denied::WrongMac(vni) = denied
                    && let Some(device) = table
                        .networks
                        .get(&vni)
                        .and_then(|network| network.device.as_ref())
                {
                    count(&device.dropped_receiving);
                }
                return;
            }
        };
        let Some(device) = &network.device else {
            // It could not be opened: there is no part of the network here.
            return tally.deny(Denied::UnknownVni);
        };
        let place = self
            .room
            .devices
            .iter()
            .position(|other| Arc::ptr_eq(other, device));
        let place = place.unwrap_or_else(|| {
            self.room.devices.push(Arc::clone(device));
            self.room.devices.len() - 1
        });
        let frame = packet.end - frame.len()..packet.end;
        self.room
            .joiner
            .push(&self.room.arena, place, frame, device.tap.has_udp_segments());
        self.room.used = packet.end;
    }

    /// Who asks what the path takes is told that it takes this.
    fn answer(&mut self, peer: &Peer, link: &mut Link, answer: &[u8]) {
        let used = link.used();
        if used.is_some()
            && let Sealed::Packet(length) = link.seal(answer, used, &mut self.room.out)
        {
            // Not among the bytes sent: a path is not in use because it is asked about.
            if !self.pair.post(&self.room.out[..length], link.endpoint()) {
                peer.lose(1);
            }
        }
    }

    fn hand_over(&mut self) {
        let devices = &self.room.devices;
        self.room
            .joiner
            .flush(&self.room.arena, |device, pieces: &[IoSlice<'_>], frames| {
                let device = &devices[device];
                let counter = match device.tap.write(pieces) {
                    Ok(_) => &device.received,
                    Err(_) => &device.dropped_receiving,
                };
                counter.fetch_add(frames as u64, Relaxed);
            });
        self.room.devices.clear();
        self.room.used = 0;
    }

    /// Sends what waited for the session that there is now.
    fn send_waiting(&mut self, peer: &Peer, link: &mut Link) {
        while let Some(length) = link.next_waiting(&mut self.room.out) {
            self.post(peer, length, link.endpoint());
        }
    }

    fn post(&self, peer: &Peer, length: usize, to: SocketAddr) {
        if self.pair.post(&self.room.out[..length], to) {
            peer.sent_bytes.fetch_add(length as u64, Relaxed);
        } else {
            peer.lose(1);
        }
    }

    /// A message of a handshake, or nothing of WireGuard.
    fn handshake(&mut self, table: &Table, message: &[u8], from: SocketAddr) {
        let tally = &self.shared.tally;
        // The first code is the cheap one: it takes our public key to make it, and says which of ours is meant.
        let verify = |identity: &&Arc<Identity>| {
            let mut cookie = [0; HANDSHAKE_ROOM];
            let verified = identity.open.verify_packet(Some(from.ip()), message, &mut cookie);
            verified.is_ok()
        };
        let (Some(identity), Ok(parsed)) = (
            table.identities.iter().find(verify),
            Tunn::parse_incoming_packet(message),
        ) else {
            return count(&tally.malformed);
        };
        let of_index = |receiver: u32| Some((table.peer_of_index(receiver)?, receiver >> 8));
        let found = match &parsed {
            Packet::PacketCookieReply(reply) => of_index(reply.receiver_idx),
            Packet::HandshakeResponse(response) => {
                let found = of_index(response.receiver_idx);
                if found.is_some() && !self.is_within_budget(table, identity, message, from) {
                    return;
                }
                found
            }
            Packet::HandshakeInit(initiation) => {
                if !self.is_within_budget(table, identity, message, from) {
                    return;
                }
                let half = parse_handshake_anon(&identity.private, &identity.public, initiation);
                scrub_stack();
                half.ok()
                    .and_then(|half| table.peer_of_key(&identity.public, &half.peer_static_public))
            }
            Packet::PacketData(_) => None,
        };
        let Some((peer, index)) = found else {
            return count(&tally.unknown_peer);
        };
        let mut link = peer.link();
        match link.open(index, message, &mut self.room.out, Instant::now()) {
            // An answer is given to what was authentic alone.
            TunnResult::WriteToNetwork(answer) => {
                let length = answer.len();
                link.move_to(from);
                peer.received_bytes.fetch_add(message.len() as u64, Relaxed);
                self.post(peer, length, from);
                self.send_waiting(peer, &mut link);
            }
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => count(&tally.replayed),
            TunnResult::Err(_) => count(&tally.undecryptable),
            _ => {}
        }
        scrub_stack();
    }

    /// Whether to spend time on a handshake. Who is asked for a cookie gets one here.
    fn is_within_budget(&self, table: &Table, identity: &Identity, message: &[u8], from: SocketAddr) -> bool {
        let now = Instant::now();
        let mut budget = self.shared.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let mut verdict = budget.judge(from.ip(), table.is_known(from.ip()), now);
        if verdict == Verdict::AskForCookie {
            let mut cookie = [0; HANDSHAKE_ROOM];
            verdict = match identity
                .strict
                .verify_packet(Some(from.ip()), message, &mut cookie)
            {
                Ok(_) => budget.judge_proven(from.ip(), now),
                Err(TunnResult::WriteToNetwork(cookie)) => {
                    self.pair.post(cookie, from);
                    Verdict::Ignore
                }
                Err(_) => Verdict::Ignore,
            };
        }
        if verdict != Verdict::Answer {
            count(&self.shared.tally.over_budget);
        }
        verdict == Verdict::Answer
    }
}

/// The receiver index of a data message.
fn data_receiver(datagram: &[u8]) -> Option<u32> {
    let (kind, rest) = datagram.split_first_chunk::<4>()?;
    let index = rest.first_chunk::<4>()?;
    let is_data = *kind == DATA && datagram.len() >= DATA_LEN;
    is_data.then(|| u32::from_le_bytes(*index))
}
