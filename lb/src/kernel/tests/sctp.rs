//! SCTP, word by word, as the kernels that tests run on need not speak it.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use weft_netlink::testing::skip;

use super::{bed::*, datapath};
use crate::{Datapath as _, Scheduler};

const SCTP: i32 = 132;
const FROM: u16 = 40_000;

/// RFC 9260, section 6.8: CRC32c.
fn checksum(packet: &[u8]) -> u32 {
    let crc = packet.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    });
    !crc
}

/// The first packet of an association (section 3.3.2), to port 5060.
fn init(from: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    for port in [from, 5060] {
        packet.extend(port.to_be_bytes());
    }
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend(0xcafe_u32.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = checksum(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

#[test]
fn a_service_with_all_ports_leads_sctp_to_its_backends() {
    let Some(bed) = Bed::new() else { return };
    let web = service(Scheduler::RoundRobin);
    let datapath = datapath();
    datapath.sync("c", &bed.client, &only(&web)).unwrap();
    let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(SCTP)));
    let (client, server) = (bed.client.run(raw).unwrap(), bed.server.run(raw).unwrap());
    let (client, mut server) = match (client, server) {
        (Ok(client), Ok(server)) => (client, server),
        (Err(error), _) | (_, Err(error)) => return skip(format_args!("it needs raw sockets: {error}")),
    };
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut met = std::collections::BTreeSet::new();
    for n in 0..3 {
        let sent = init(FROM + n);
        let to = SocketAddr::new(ip(VIP), 0).into();
        client.send_to(&sent, &to).unwrap();
        let mut buffer = [0; 256];
        let len = server.read(&mut buffer).unwrap();
        let header = usize::from(buffer[0] & 15) * 4;
        let (before, packet) = buffer[..len].split_at(header);
        assert_eq!(packet[..8], sent[..8]);
        assert_eq!(packet[12..], sent[12..]);
        assert_eq!(
            packet[8..12],
            sent[8..12],
            "ports did not change, so its sum did not"
        );
        met.insert(IpAddr::from([before[16], before[17], before[18], before[19]]));
    }
    assert_eq!(met, ["10.9.0.11", "10.9.0.12", "10.9.0.13"].map(ip).into());
}
