//! From TAP devices into tunnels.

use std::{
    io::{self, IoSlice},
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use nix::{libc, sys::socket::SockaddrStorage};
use weft_netlink::segments::{Burst, MOST_BYTES, MOST_SEGMENTS, Sender};

use super::{Shared, State, tally::count};
use crate::{
    envelope::{ENVELOPE, Envelope, flow_port},
    headers::{ETHERNET, Vnet},
    icmp,
    link::Sealed,
    peer::{HANDSHAKE_ROOM, Peer},
    secret::scrub_stack,
    split::{Segments, Unsendable},
    table::{Attached, Device},
    turns::Taken,
};

/// A frame with what is said in front of it: the longest IP packet, and a VLAN tag.
const LONGEST_FRAME: usize = Vnet::LEN + ETHERNET + 4 + 65_535;
/// Room for what is encrypted: the longest frame in segments of hundred bytes, and more.
const ARENA: usize = 512 * 1024;
/// So much goes out together: the other end then has work while we read on.
const ENOUGH: usize = 60_000;
/// Frames from one device before others have their turn.
const TURN: usize = 64;
const WIREGUARD: usize = 32;
/// WireGuard pads to a multiple of this.
const PADDING: usize = 16;

/// What a thread needs for it.
pub struct Sending<'a> {
    shared: &'a Shared,
    /// Which of the sockets it sends by.
    index: usize,
    frame: Vec<u8>,
    packet: Vec<u8>,
    out: Outgoing,
}

/// Encrypted packets in the order in which they go.
struct Outgoing {
    arena: Vec<u8>,
    used: usize,
    bursts: Vec<Burst>,
    /// To whom each burst goes.
    peers: Vec<Arc<Peer>>,
    /// Whether the last burst may grow.
    is_open: bool,
    sender: Sender,
    singles: Vec<Burst>,
}

impl<'a> Sending<'a> {
    pub fn new(shared: &'a Shared, index: usize) -> Self {
        Self {
            shared,
            index,
            frame: vec![0; LONGEST_FRAME],
            packet: vec![0; ENVELOPE + LONGEST_FRAME + PADDING],
            out: Outgoing {
                arena: vec![0; ARENA],
                used: 0,
                bursts: Vec::new(),
                peers: Vec::new(),
                is_open: false,
                sender: Sender::default(),
                singles: Vec::new(),
            },
        }
    }

    /// Takes what waits at a device: one frame if it is probably alone, otherwise all up to a number.
    pub fn take_turn(
        &mut self,
        state: &State,
        network: &Attached,
        device: &Arc<Device>,
        is_alone: bool,
    ) -> Taken {
        // Whoever waits for it has it sooner if nobody looks first whether there is another.
        let most = if is_alone { 1 } else { TURN };
        let mut frame = mem::take(&mut self.frame);
        let mut taken = Taken::default();
        while taken.packets < most {
            match device.tap.read(&mut frame) {
                Ok(length) => {
                    self.handle(state, network, device, &frame[..length]);
                    taken.packets += 1;
                    taken.bytes += length;
                }
                Err(error) => {
                    if error.raw_os_error() == Some(libc::EBADFD) {
                        // It was removed; it would be readable for ever.
                        device.is_gone.store(true, Relaxed);
                        self.shared.workers.forget(device.vni, &device.tap);
                    }
                    break;
                }
            }
        }
        self.frame = frame;
        self.send(state);
        taken
    }

    fn handle(&mut self, state: &State, network: &Attached, device: &Device, bytes: &[u8]) {
        let Some((vnet, frame)) = Vnet::parse(bytes) else {
            return count(&device.dropped_sending);
        };
        let Some(peer) = network.route(frame) else {
            return count(&device.dropped_sending);
        };
        let limit = peer.limit();
        let mut segments = match Segments::new(vnet, frame, limit) {
            Ok(segments) => segments,
            Err(Unsendable::Malformed) => return count(&device.dropped_sending),
            Err(Unsendable::TooBig) => {
                count(&device.dropped_sending);
                return self.tell_too_big(peer, device, frame, limit);
            }
        };
        let envelope = Envelope::new(state.table.vtep, peer.vtep(), device.vni);
        let port = flow_port(frame);
        let longest = ENVELOPE + segments.longest() + PADDING;
        // Padding does not make a packet larger than the largest there can be.
        let padded = ENVELOPE + ETHERNET + limit.min(network.mtu as usize);
        let may_segment = peer.may_segment(self.shared.clock);
        let mut link = peer.link();
        let mut used = link.used();
        let to = SockaddrStorage::from(link.endpoint());
        let mut sent = 0;
        while let Some(length) = segments.write_next(&mut self.packet[..longest]) {
            envelope.write(&mut self.packet, length, port);
            let length = ENVELOPE + length;
            let end = length.next_multiple_of(PADDING).min(padded).max(length);
            self.packet[length..end].fill(0);
            if !self.out.has_room(end) {
                drop(link);
                self.send(state);
                link = peer.link();
                used = link.used();
            }
            let room = &mut self.out.arena[self.out.used..];
            match link.seal(&self.packet[..end], used, room) {
                Sealed::Packet(length) => self.out.add(length, may_segment, to, peer),
                Sealed::Handshake(length) => {
                    scrub_stack();
                    self.out.add(length, false, to, peer);
                }
                Sealed::Waits => {}
                Sealed::Lost => {
                    peer.lose(1);
                    continue;
                }
            }
            sent += 1;
        }
        drop(link);
        device.sent.fetch_add(sent, Relaxed);
        if self.out.used >= ENOUGH {
            self.send(state);
        }
    }

    /// What does not fit is dropped, and its sender learns what would have.
    fn tell_too_big(&self, peer: &Peer, device: &Device, frame: &[u8], limit: usize) {
        if !peer.may_tell(self.shared.clock) {
            return;
        }
        let mtu = u16::try_from(limit).unwrap_or(u16::MAX);
        if let Some(answer) = icmp::too_big(frame, mtu) {
            let vnet = Vnet::default().bytes();
            // A device that takes no more loses this as it loses others.
            let _ = device.tap.write(&[IoSlice::new(&vnet), IoSlice::new(&answer)]);
        }
    }

    fn send(&mut self, state: &State) {
        let pair = &state.sockets.pairs[self.index % state.sockets.pairs.len()];
        let mut next = 0;
        while let Some(first) = self.out.bursts.get(next) {
            let v6 = first.to.as_sockaddr_in6().is_some();
            let same = |burst: &&Burst| burst.to.as_sockaddr_in6().is_some() == v6;
            let run = self.out.bursts[next..].iter().take_while(same).count();
            let Some(socket) = pair.of(v6) else {
                let lost = self.out.bursts[next..next + run]
                    .iter()
                    .zip(&self.out.peers[next..]);
                lost.for_each(|(burst, peer)| peer.lose(burst.count.into()));
                next += run;
                continue;
            };
            let bursts = &self.out.bursts[next..next + run];
            let (sent, result) = self.out.sender.send(&socket, &self.out.arena, bursts, true);
            let done = bursts[..sent].iter().zip(&self.out.peers[next..]);
            done.for_each(|(burst, peer)| {
                peer.sent_bytes.fetch_add(burst.range.len() as u64, Relaxed);
            });
            next += sent;
            if let Err(error) = result {
                self.recover(&socket, next, &error);
                next += 1;
            }
        }
        self.out.clear();
    }

    /// A burst could not go. If that is because it is one, its packets go by themselves, now and from now on; if they
    /// are too large for the path, the next ones are cut smaller.
    fn recover(&mut self, socket: &impl std::os::fd::AsFd, at: usize, error: &io::Error) {
        let peer = Arc::clone(&self.out.peers[at]);
        let burst = self.out.bursts[at].clone();
        let refused = matches!(
            error.raw_os_error(),
            Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO)
        );
        if !refused || burst.count < 2 {
            return peer.lose(burst.count.into());
        }
        // IPv4 and UDP, or IPv6 and UDP.
        let headers = if burst.to.as_sockaddr_in6().is_some() {
            48
        } else {
            28
        };
        let needed = u32::from(burst.segment) + headers;
        let explains = self.shared.learn_path_mtu(&peer).is_some_and(|mtu| mtu < needed);
        if !explains {
            peer.stop_segmenting(self.shared.clock);
        }
        let Outgoing {
            arena,
            sender,
            singles,
            ..
        } = &mut self.out;
        singles.clear();
        let mut start = burst.range.start;
        while start < burst.range.end {
            let end = (start + usize::from(burst.segment)).min(burst.range.end);
            singles.push(Burst {
                range: start..end,
                segment: burst.segment,
                count: 1,
                to: burst.to,
            });
            start = end;
        }
        let mut next = 0;
        while next < singles.len() {
            let (sent, result) = sender.send(socket, arena, &singles[next..], true);
            let bytes: usize = singles[next..next + sent].iter().map(|one| one.range.len()).sum();
            peer.sent_bytes.fetch_add(bytes as u64, Relaxed);
            next += sent;
            if result.is_err() {
                peer.lose(1);
                next += 1;
            }
        }
    }
}

impl Outgoing {
    /// Whether a packet of so many bytes can be encrypted into what is left.
    fn has_room(&self, length: usize) -> bool {
        self.used + (length + WIREGUARD).max(HANDSHAKE_ROOM) <= self.arena.len()
    }

    /// Takes what was just written behind the rest.
    fn add(&mut self, length: usize, may_segment: bool, to: SockaddrStorage, peer: &Arc<Peer>) {
        let range = self.used..self.used + length;
        self.used = range.end;
        if let Some(last) = self.bursts.last_mut().filter(|_| self.is_open && may_segment)
            && last.to == to
            && length <= usize::from(last.segment)
            && usize::from(last.count) < MOST_SEGMENTS
            && last.range.len() + length <= MOST_BYTES
        {
            last.range.end = range.end;
            last.count += 1;
            // Only the last may be shorter.
            self.is_open = length == usize::from(last.segment);
            return;
        }
        self.bursts.push(Burst {
            range,
            segment: length as u16,
            count: 1,
            to,
        });
        self.peers.push(Arc::clone(peer));
        self.is_open = may_segment;
    }

    fn clear(&mut self) {
        self.used = 0;
        self.bursts.clear();
        self.peers.clear();
        self.is_open = false;
    }
}
