//! Echo requests of ICMP (RFC 792) between the addresses inside a tunnel: what a path is asked with. Every kernel answers them, and so
//! do we, shortly: what comes back does not have to be as long.

use std::net::Ipv4Addr;

use crate::headers::{fold, read16, sum, write16};

const IP: usize = 20;
const HEADERS: usize = IP + 8;
const ICMP: u8 = 1;
const REQUEST: u8 = 8;
const REPLY: u8 = 0;
/// By this we know our own questions.
const ID: u16 = 0x77fe;

/// What a packet in the tunnel is.
#[derive(Debug, PartialEq, Eq)]
pub enum Echo {
    /// Somebody asks, and this is the answer.
    Question([u8; HEADERS]),
    /// The answer to our question with this number.
    Answer(u16),
}

/// Writes a question that fills the buffer.
pub fn ask(out: &mut [u8], from: Ipv4Addr, to: Ipv4Addr, number: u16) {
    out.fill(0);
    write(out, from, to, REQUEST, ID, number);
}

/// Whether a packet from one to the other is an echo request or the answer to ours. Its padding is off.
pub fn take(packet: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Option<Echo> {
    let header = packet.get(..HEADERS)?;
    let is_whole = header[0] == 0x45 && header[9] == ICMP && read16(header, 6) & 0x3fff == 0;
    let is_theirs = header[12..16] == from.octets() && header[16..20] == to.octets();
    if !is_whole || !is_theirs || header[IP + 1] != 0 {
        return None;
    }
    let (id, number) = (read16(header, IP + 4), read16(header, IP + 6));
    match header[IP] {
        REQUEST => {
            let mut answer = [0; HEADERS];
            write(&mut answer, to, from, REPLY, id, number);
            Some(Echo::Question(answer))
        }
        REPLY if id == ID => Some(Echo::Answer(number)),
        _ => None,
    }
}

fn write(out: &mut [u8], from: Ipv4Addr, to: Ipv4Addr, kind: u8, id: u16, number: u16) {
    // Version and length, and "don't fragment".
    (out[0], out[6], out[8], out[9]) = (0x45, 0x40, 64, ICMP);
    let length = out.len() as u16;
    write16(out, 2, length);
    out[12..16].copy_from_slice(&from.octets());
    out[16..20].copy_from_slice(&to.octets());
    let checksum = !fold(sum(&out[..IP]));
    write16(out, 10, checksum);
    out[IP] = kind;
    write16(out, IP + 4, id);
    write16(out, IP + 6, number);
    // All else is zero.
    let checksum = !fold(sum(&out[IP..HEADERS]));
    write16(out, IP + 2, checksum);
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ONE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
    const TWO: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

    #[test]
    fn a_question_is_answered_shortly_and_the_answer_has_its_number() {
        let mut question = [7; 1400];
        ask(&mut question, ONE, TWO, 1460);
        assert_eq!(fold(sum(&question[..IP])), 0xffff);
        assert_eq!(fold(sum(&question[IP..])), 0xffff);
        let Some(Echo::Question(answer)) = take(&question, ONE, TWO) else {
            panic!("no question");
        };
        assert_eq!((answer.len(), fold(sum(&answer[IP..]))), (28, 0xffff));
        assert_eq!(take(&answer, TWO, ONE), Some(Echo::Answer(1460)));
        assert_eq!(take(&answer, ONE, TWO), None, "from somebody else");
        let mut of_others = answer;
        of_others[IP + 4] ^= 1;
        assert_eq!(take(&of_others, TWO, ONE), None, "to somebody else's question");
    }

    proptest! {
        #[test]
        fn any_packet_is_taken_or_left(bytes in vec(any::<u8>(), 0..60), at in 0..28_usize) {
            let mut good = [0; 40];
            ask(&mut good, ONE, TWO, 3);
            good[at] = bytes.first().copied().unwrap_or_default();
            for packet in [&bytes[..], &good[..]] {
                let _ = take(packet, ONE, TWO);
            }
        }
    }
}
