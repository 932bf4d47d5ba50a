//! Telling a sender that its packet is larger than the path takes (RFC 1191, RFC 8201).

use crate::headers::{ETHERNET, fold, read16, sum, write16};

/// RFC 1812, section 4.3.2.3, and RFC 4443, section 2.4 c: so long is an error at most.
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The frame that answers one, as if its receiver had sent it. `None` where no answer may be given.
pub fn too_big(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    let mut answer = Vec::with_capacity(ETHERNET + LONGEST_V6);
    answer.extend_from_slice(&ethernet[6..12]);
    answer.extend_from_slice(&ethernet[..6]);
    answer.extend_from_slice(&ethernet[12..14]);
    match (read16(ethernet, 12), packet.first()? >> 4) {
        (0x0800, 4) => answer_v4(&mut answer, packet, mtu)?,
        (0x86dd, 6) => answer_v6(&mut answer, packet, mtu)?,
        _ => return None,
    }
    Some(answer)
}

fn answer_v4(answer: &mut Vec<u8>, packet: &[u8], mtu: u16) -> Option<()> {
    let header = packet.get(..20)?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let is_later_fragment = read16(header, 6) & 0x1fff != 0;
    // No errors about errors: only echo messages have these types among the common ones.
    let is_error = header[9] == ICMP && !matches!(packet.get(header_len)?, 0 | 8);
    let is_group = header[16] >= 224 || header[12] >= 224;
    if is_later_fragment || is_error || is_group {
        return None;
    }
    let quoted = &packet[..packet.len().min(LONGEST_V4 - 28)];
    let length = (28 + quoted.len()) as u16;
    let start = answer.len();
    answer.extend_from_slice(&[0x45, 0xc0]);
    answer.extend_from_slice(&length.to_be_bytes());
    answer.extend_from_slice(&[0, 0, 0x40, 0, 64, ICMP, 0, 0]);
    answer.extend_from_slice(&header[16..20]);
    answer.extend_from_slice(&header[12..16]);
    let checksum = !fold(sum(&answer[start..]));
    write16(answer, start + 10, checksum);
    // Destination unreachable, fragmentation needed.
    answer.extend_from_slice(&[3, 4, 0, 0, 0, 0]);
    answer.extend_from_slice(&mtu.to_be_bytes());
    answer.extend_from_slice(quoted);
    let checksum = !fold(sum(&answer[start + 20..]));
    write16(answer, start + 22, checksum);
    Some(())
}

fn answer_v6(answer: &mut Vec<u8>, packet: &[u8], mtu: u16) -> Option<()> {
    let header = packet.get(..40)?;
    let is_error = header[6] == ICMPV6 && *packet.get(40)? < 128;
    // RFC 4443, section 2.4 e lets this one error answer a group, but nothing of a group enters a tunnel.
    if is_error || header[24] == 0xff || header[8] == 0xff {
        return None;
    }
    let quoted = &packet[..packet.len().min(LONGEST_V6 - 48)];
    let length = 8 + quoted.len();
    let start = answer.len();
    answer.extend_from_slice(&[0x60, 0, 0, 0]);
    answer.extend_from_slice(&(length as u16).to_be_bytes());
    answer.extend_from_slice(&[ICMPV6, 64]);
    answer.extend_from_slice(&header[24..40]);
    answer.extend_from_slice(&header[8..24]);
    answer.extend_from_slice(&[2, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(&mtu.to_be_bytes());
    answer.extend_from_slice(quoted);
    let pseudo = sum(&answer[start + 8..start + 40]) + length as u64 + u64::from(ICMPV6);
    let checksum = !fold(pseudo + sum(&answer[start + 40..]));
    write16(answer, start + 42, checksum);
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::testing::Made;

    #[test]
    fn the_sender_learns_what_fits_from_the_receivers_address() {
        let made = Made {
            udp: true,
            content: vec![1; 1400],
            ..Made::default()
        };
        let answer = too_big(&made.frame(), 1290).unwrap();
        assert_eq!(answer[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        assert_eq!(answer[26..34], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(answer[34..36], [3, 4]);
        assert_eq!(read16(&answer, 40), 1290);
        assert_eq!(answer.len(), ETHERNET + LONGEST_V4);
        assert_eq!(fold(sum(&answer[14..34])), 0xffff);
        assert_eq!(fold(sum(&answer[34..])), 0xffff);
        let answer = too_big(&Made { v6: true, ..made }.frame(), 1290).unwrap();
        assert_eq!(answer[22..38], [0xfe; 16]);
        assert_eq!(
            (answer[54], read16(&answer, 60), answer.len()),
            (2, 1290, ETHERNET + LONGEST_V6)
        );
        let pseudo = sum(&answer[22..54]) + (answer.len() - 54) as u64 + u64::from(ICMPV6);
        assert_eq!(fold(pseudo + sum(&answer[54..])), 0xffff);
    }

    #[test]
    fn an_error_or_a_group_is_not_answered() {
        let mut frame = Made::default().frame();
        frame[30] = 224;
        assert_eq!(too_big(&frame, 1290), None);
        let mut frame = Made::default().frame();
        (frame[23], frame[34]) = (ICMP, 3);
        assert_eq!(too_big(&frame, 1290), None);
    }

    proptest! {
        #[test]
        fn any_frame_is_answered_or_not(frame in vec(any::<u8>(), 0..100), v6 in any::<bool>()) {
            let mut frame = frame;
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
            }
            let _ = too_big(&frame, 1290);
        }
    }
}
