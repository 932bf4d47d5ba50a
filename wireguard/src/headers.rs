//! Where things stand in the headers of Ethernet, IP, TCP and UDP, and their checksum (RFC 1071).

/// Bytes of an Ethernet header without VLAN tag.
pub const ETHERNET: usize = 14;
/// Protocol numbers of IP.
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// What is said in front of each frame of a TAP device (`struct virtio_net_hdr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vnet {
    pub flags: u8,
    pub kind: u8,
    pub header_len: u16,
    pub segment: u16,
    pub checksum_start: u16,
    pub checksum_offset: u16,
}

/// The checksum from `checksum_start` on is still to be computed.
pub const NEEDS_CHECKSUM: u8 = 1;
pub const GSO_NONE: u8 = 0;
pub const GSO_TCP4: u8 = 1;
pub const GSO_TCP6: u8 = 4;
pub const GSO_UDP: u8 = 5;
/// Beside TCP's: the first segment alone carries CWR.
pub const GSO_ECN: u8 = 0x80;

impl Vnet {
    pub const LEN: usize = weft_netlink::tap::VNET_HEADER_LEN;

    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, frame) = bytes.split_first_chunk::<{ Self::LEN }>()?;
        let number = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let vnet = Self {
            flags: header[0],
            kind: header[1],
            header_len: number(2),
            segment: number(4),
            checksum_start: number(6),
            checksum_offset: number(8),
        };
        Some((vnet, frame))
    }

    pub fn bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        (bytes[0], bytes[1]) = (self.flags, self.kind);
        let numbers = [
            self.header_len,
            self.segment,
            self.checksum_start,
            self.checksum_offset,
        ];
        for (to, number) in bytes[2..].chunks_exact_mut(2).zip(numbers) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

/// Where the headers of a frame with TCP or UDP end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where the IP header begins.
    pub ip: usize,
    /// Where the header of TCP or UDP begins.
    pub transport: usize,
    pub v6: bool,
    pub protocol: u8,
    /// Where the IP packet ends; behind may be padding.
    pub end: usize,
}

/// Reads a two-byte number. The caller knows that it is there.
pub fn read16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn write16(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

impl Layout {
    /// Of a whole IP packet, neither a fragment nor with extension headers; `None` for anything else.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let ip = match read16(frame.get(..ETHERNET)?, 12) {
            0x0800 | 0x86dd => ETHERNET,
            0x8100 if matches!(read16(frame.get(..18)?, 16), 0x0800 | 0x86dd) => 18,
            _ => return None,
        };
        let packet = &frame[ip..];
        let (transport, v6, protocol, length) = match packet.first()? >> 4 {
            4 => {
                let header = packet.get(..20)?;
                let header_len = usize::from(header[0] & 0xf) * 4;
                let fragment = read16(header, 6) & 0x3fff != 0;
                if header_len < 20 || fragment {
                    return None;
                }
                (header_len, false, header[9], usize::from(read16(header, 2)))
            }
            6 => {
                let header = packet.get(..40)?;
                (40, true, header[6], 40 + usize::from(read16(header, 4)))
            }
            _ => return None,
        };
        (length >= transport && length <= packet.len()).then_some(Self {
            ip,
            transport: ip + transport,
            v6,
            protocol,
            end: ip + length,
        })
    }

    /// The header of TCP, with its options. `None` if this is not TCP or not whole.
    pub fn tcp_header_len(&self, frame: &[u8]) -> Option<usize> {
        let header = frame.get(self.transport..self.end)?.get(..20)?;
        let length = usize::from(header[12] >> 4) * 4;
        (self.protocol == TCP && length >= 20 && self.transport + length <= self.end).then_some(length)
    }

    /// The two addresses, side by side.
    pub fn addresses<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        if self.v6 {
            &frame[self.ip + 8..self.ip + 40]
        } else {
            &frame[self.ip + 12..self.ip + 20]
        }
    }

    /// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) for so many bytes behind IP.
    pub fn pseudo_sum(&self, frame: &[u8], length: usize) -> u64 {
        sum(self.addresses(frame)) + u64::from(self.protocol) + length as u64
    }

    /// Writes how long the IP packet is, and the checksum of its header if it has one.
    pub fn set_length(&self, headers: &mut [u8], end: usize) {
        let length = (end - self.ip) as u16;
        if self.v6 {
            write16(headers, self.ip + 4, length - 40);
        } else {
            write16(headers, self.ip + 2, length);
            write16(headers, self.ip + 10, 0);
            let checksum = !fold(sum(&headers[self.ip..self.transport]));
            write16(headers, self.ip + 10, checksum);
        }
    }
}

/// The sum of two-byte numbers, not folded. Only the last of several pieces may have an odd length.
pub fn sum(bytes: &[u8]) -> u64 {
    // Sums of the numbers as this machine reads them have the same bytes as the sum in network order.
    let mut chunks = bytes.chunks_exact(16);
    let (mut one, mut two, mut three, mut four) = (0_u64, 0_u64, 0_u64, 0_u64);
    for chunk in &mut chunks {
        let number = |at: usize| {
            u64::from(u32::from_ne_bytes([
                chunk[at],
                chunk[at + 1],
                chunk[at + 2],
                chunk[at + 3],
            ]))
        };
        one += number(0);
        two += number(4);
        three += number(8);
        four += number(12);
    }
    let mut total = fold_native(one + two + three + four);
    let mut rest = chunks.remainder().chunks_exact(2);
    for pair in &mut rest {
        total += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = rest.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u64::from(u16::from_be(fold(total)))
}

fn fold_native(sum: u64) -> u64 {
    u64::from(fold(sum))
}

/// The sum in two bytes.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn plain_sum(bytes: &[u8]) -> u16 {
        let mut total = 0;
        for pair in bytes.chunks(2) {
            total += u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from);
        }
        fold(total)
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        assert_eq!(fold(sum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn what_is_said_before_a_frame_comes_back() {
        let vnet = Vnet {
            flags: 1,
            kind: 5,
            header_len: 42,
            segment: 1300,
            checksum_start: 34,
            checksum_offset: 6,
        };
        assert_eq!(Vnet::parse(&vnet.bytes()), Some((vnet, &[] as &[u8])));
        assert_eq!(Vnet::parse(&[0; 9]), None);
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_plain_one(bytes in vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(fold(sum(&bytes)), plain_sum(&bytes));
        }

        #[test]
        fn no_bytes_make_a_layout_beyond_them(bytes in vec(any::<u8>(), 0..100), ethertype in 0..3_usize) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                let types = [[8, 0], [0x86, 0xdd], [0x81, 0]];
                bytes[12..14].copy_from_slice(&types[ethertype]);
            }
            if let Some(layout) = Layout::of(&bytes) {
                prop_assert!(layout.ip < layout.transport && layout.transport <= layout.end);
                prop_assert!(layout.end <= bytes.len());
                if let Some(length) = layout.tcp_header_len(&bytes) {
                    prop_assert!(layout.transport + length <= layout.end);
                }
            }
        }
    }
}
