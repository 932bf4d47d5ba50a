//! What stands around a frame inside the tunnel: VXLAN (RFC 7348) in UDP in IPv4, from node to node.

use std::net::Ipv4Addr;

use weft_types::Vni;

use crate::headers::{Layout, UDP, fold, read16, sum, write16};

/// Bytes in front of each frame.
pub const ENVELOPE: usize = 20 + 8 + 8;
/// The port of VXLAN, inside the tunnel whatever the port of plain networks.
const PORT: u16 = 4789;
/// The I flag: the VNI is valid. All others have to be zero, as Linux wants them.
const VXLAN_FLAGS: u8 = 0x08;

/// Writes envelopes of one network from this node to another.
#[derive(Debug, Clone)]
pub struct Envelope {
    template: [u8; ENVELOPE],
    ip_sum: u64,
}

impl Envelope {
    pub fn new(from: Ipv4Addr, to: Ipv4Addr, vni: Vni) -> Self {
        let mut template = [0; ENVELOPE];
        // Version and length, and "don't fragment".
        (template[0], template[6], template[8], template[9]) = (0x45, 0x40, 64, UDP);
        template[12..16].copy_from_slice(&from.octets());
        template[16..20].copy_from_slice(&to.octets());
        write16(&mut template, 22, PORT);
        template[28] = VXLAN_FLAGS;
        template[32..36].copy_from_slice(&(vni.get() << 8).to_be_bytes());
        let ip_sum = sum(&template[..20]);
        Self { template, ip_sum }
    }

    /// Writes it in front of a frame of so many bytes. The port says to which flow it belongs, so that the nodes'
    /// kernels keep the flow on one processor.
    pub fn write(&self, out: &mut [u8], frame_len: usize, port: u16) {
        let length = (ENVELOPE + frame_len) as u16;
        out[..ENVELOPE].copy_from_slice(&self.template);
        write16(out, 2, length);
        write16(out, 10, !fold(self.ip_sum + u64::from(length)));
        write16(out, 20, port);
        write16(out, 24, length - 20);
    }
}

/// Which source port the flow of a frame has: one of the dynamic ones (RFC 6335), as RFC 7348 recommends.
pub fn flow_port(frame: &[u8]) -> u16 {
    let mix = |hash: u64, bytes: &[u8]| {
        bytes.chunks(4).fold(hash, |hash, chunk| {
            let mut number = [0; 4];
            number[..chunk.len()].copy_from_slice(chunk);
            (hash ^ u64::from(u32::from_le_bytes(number)))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
        })
    };
    let hash = match Layout::of(frame) {
        Some(layout) => {
            let ports = frame
                .get(layout.transport..layout.transport + 4)
                .unwrap_or_default();
            mix(mix(u64::from(layout.protocol), layout.addresses(frame)), ports)
        }
        None => mix(0, frame.get(..12).unwrap_or_default()),
    };
    0xc000 | (hash >> 40) as u16 & 0x3fff
}

/// Why a packet from a tunnel is not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    WrongSource,
    WrongDestination,
    NotVxlan,
}

/// The number of the network and the frame, if the packet has the right addresses around it. Nothing about the frame is
/// said but that it has an Ethernet header.
pub fn open(packet: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Result<(Vni, &[u8]), Refusal> {
    let header = packet.get(..20).filter(|header| header[0] >> 4 == 4);
    let header = header.ok_or(Refusal::WrongSource)?;
    if header[12..16] != from.octets() {
        return Err(Refusal::WrongSource);
    }
    if header[16..20] != to.octets() {
        return Err(Refusal::WrongDestination);
    }
    vxlan(packet).ok_or(Refusal::NotVxlan)
}

fn vxlan(packet: &[u8]) -> Option<(Vni, &[u8])> {
    let header_len = usize::from(packet[0] & 0xf) * 4;
    let length = usize::from(read16(packet, 2));
    let fragment = read16(packet, 6) & 0x3fff != 0;
    if header_len < 20 || fragment || packet[9] != UDP {
        return None;
    }
    let datagram = packet.get(header_len..length)?;
    let header = datagram.get(..16)?;
    if read16(header, 2) != PORT
        || usize::from(read16(header, 4)) != datagram.len()
        || header[8] != VXLAN_FLAGS
    {
        return None;
    }
    let vni = u32::from_be_bytes([0, header[12], header[13], header[14]]);
    let frame = &datagram[16..];
    (frame.len() >= crate::headers::ETHERNET).then_some((Vni::try_from(vni).ok()?, frame))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
    const TO: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

    fn packet(frame: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; ENVELOPE];
        packet.extend(frame);
        Envelope::new(FROM, TO, Vni::try_from(0x01_02_03).unwrap()).write(&mut packet, frame.len(), 50_000);
        packet
    }

    #[test]
    fn what_was_put_in_comes_out_with_a_right_header_around_it() {
        let packet = packet(&[7; 60]);
        assert_eq!(fold(sum(&packet[..20])), 0xffff);
        let (vni, frame) = open(&packet, FROM, TO).unwrap();
        assert_eq!((vni.get(), frame), (0x01_02_03, &[7; 60][..]));
    }

    #[test]
    fn each_lie_about_an_envelope_is_refused_for_what_it_is() {
        let good = packet(&[7; 60]);
        let with = |at: usize, byte: u8| {
            let mut packet = good.clone();
            packet[at] = byte;
            open(&packet, FROM, TO).map(|(vni, _)| vni.get())
        };
        assert_eq!(with(0, 0x65), Err(Refusal::WrongSource), "IPv6");
        assert_eq!(with(15, 9), Err(Refusal::WrongSource));
        assert_eq!(with(19, 9), Err(Refusal::WrongDestination));
        for (at, byte, what) in [
            (0, 0x44, "a header too short"),
            (0, 0x4f, "a header longer than it is"),
            (2, 0xff, "longer than it is"),
            (3, 40, "shorter than its headers"),
            (6, 0x20, "a fragment"),
            (7, 1, "a later fragment"),
            (9, 6, "TCP"),
            (23, 0, "another port"),
            (25, 77, "another length"),
            (28, 0, "no VNI"),
            (28, 0x0c, "an extension of VXLAN"),
        ] {
            assert_eq!(with(at, byte), Err(Refusal::NotVxlan), "{what}");
        }
        assert_eq!(with(34, 4), Ok(0x01_02_04));
        assert_eq!(
            open(&packet(&[7; 13]), FROM, TO),
            Err(Refusal::NotVxlan),
            "no Ethernet header"
        );
    }

    #[test]
    fn a_flow_keeps_its_port_and_flows_have_different_ones() {
        let mut frame = [0; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        (frame[14], frame[17], frame[23]) = (0x45, 46, UDP);
        let one = flow_port(&frame);
        frame[50] = 1;
        assert_eq!(flow_port(&frame), one, "its content does not matter");
        let ports: std::collections::HashSet<_> = (0..100)
            .map(|port| {
                frame[35] = port;
                flow_port(&frame)
            })
            .collect();
        assert!(
            ports.len() > 90 && ports.iter().all(|port| *port >= 0xc000),
            "{ports:?}"
        );
    }

    proptest! {
        #[test]
        fn any_packet_is_refused_or_has_a_frame_in_it(bytes in vec(any::<u8>(), 0..120), at in 0..40_usize) {
            let mut good = packet(&bytes);
            if let Some(byte) = bytes.first() {
                good[at.min(ENVELOPE - 1)] = *byte;
            }
            for packet in [&bytes, &good] {
                if let Ok((_, frame)) = open(packet, FROM, TO) {
                    prop_assert!(frame.len() >= 14 && frame.len() <= packet.len());
                }
            }
        }
    }
}
