//! Who speaks WireGuard by hand, to say what no honest node would.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use netns_harness::{Host, Inside};
use weft_tests::slower;

use crate::bed::{key, mac, peer, underlay, vtep};

/// The node of a number, towards one other, without any of the checks that ours has.
pub struct Stranger<'a> {
    tunn: Tunn,
    socket: UdpSocket,
    since: Instant,
    host: &'a Host,
    number: u8,
    with: u8,
}

/// A session ends after three minutes, whoever has it.
const RENEW_AFTER: Duration = Duration::from_secs(60);

impl<'a> Stranger<'a> {
    /// Shakes hands from a host with the node of a number.
    pub fn new(host: &'a Host, number: u8, with: u8) -> Self {
        let socket = host.run(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
        socket.connect((underlay(with), crate::bed::PORT)).unwrap();
        socket
            .set_read_timeout(Some(slower(Duration::from_secs(5))))
            .unwrap();
        let mut tunn = Tunn::new(
            StaticSecret::from(*key(number).expose()),
            PublicKey::from(key(with).public_key()),
            Some(*peer(with).pairs[0].preshared_key.expose()),
            None,
            7,
            None,
        );
        let mut out = [0; 2048];
        let TunnResult::WriteToNetwork(initiation) = tunn.format_handshake_initiation(&mut out, false) else {
            panic!("no initiation");
        };
        socket.send(initiation).unwrap();
        let mut response = [0; 2048];
        let length = socket.recv(&mut response).expect("a response to the handshake");
        let TunnResult::WriteToNetwork(keepalive) = tunn.decapsulate(None, &response[..length], &mut out)
        else {
            panic!("no session");
        };
        socket.send(keepalive).unwrap();
        Self {
            tunn,
            socket,
            since: Instant::now(),
            host,
            number,
            with,
        }
    }

    /// Shakes hands again before the session is too old.
    pub fn renew(&mut self) {
        if self.since.elapsed() > RENEW_AFTER {
            *self = Self::new(self.host, self.number, self.with);
        }
    }

    /// A message that is authentic, whatever is in it.
    pub fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0; packet.len() + 200];
        match self.tunn.encapsulate(packet, &mut out) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Sends any bytes.
    pub fn say(&self, message: &[u8]) {
        // What the kernel refuses now and then for want of room is one forgery less.
        let _ = self.socket.send(message);
    }
}

/// What a packet in the tunnel says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub vni: u32,
    pub port: u16,
    pub flags: u8,
    pub source: u8,
}

impl Claim {
    /// As the node of a number would rightly say it to the first.
    pub fn of(number: u8) -> Self {
        Self {
            from: vtep(number),
            to: vtep(1),
            vni: crate::bed::vni().get(),
            port: 4789,
            flags: 8,
            source: number,
        }
    }

    /// The packet, with a frame of a kind that no bridge answers.
    pub fn packet(self) -> Vec<u8> {
        let frame_len = 64_usize;
        let length = 20 + 8 + 8 + frame_len;
        let mut packet = vec![0; length];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        (packet[8], packet[9]) = (64, 17);
        packet[12..16].copy_from_slice(&self.from.octets());
        packet[16..20].copy_from_slice(&self.to.octets());
        packet[22..24].copy_from_slice(&self.port.to_be_bytes());
        packet[24..26].copy_from_slice(&((length - 20) as u16).to_be_bytes());
        packet[28] = self.flags;
        packet[32..36].copy_from_slice(&(self.vni << 8).to_be_bytes());
        packet[36..42].copy_from_slice(&mac(1).0);
        packet[42..48].copy_from_slice(&mac(self.source).0);
        packet[48..50].copy_from_slice(&[0x88, 0xb5]);
        packet
    }
}
