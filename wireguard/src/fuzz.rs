//! What the packet path of this crate is given by a fuzzer, see `fuzz/`.

use std::net::Ipv4Addr;

use crate::{
    control::{Request, read_message},
    echo,
    envelope::{ENVELOPE, flow_port, open},
    headers::{Layout, Vnet},
    icmp::too_big,
    join::Joiner,
    split::Segments,
};

const HERE: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 2);
/// The longest frame that a TAP device gives.
const LONGEST: usize = 65_535 + 14;

/// What a TAP device gave: a header that says how to cut it, and a frame. Two bytes before say how large a packet may be.
pub fn frame(data: &[u8]) {
    let Some((limit, data)) = data.split_first_chunk() else {
        return;
    };
    let limit = usize::from(u16::from_le_bytes(*limit)).max(68);
    let Some((vnet, frame)) = Vnet::parse(data) else {
        return;
    };
    if frame.len() > LONGEST {
        return;
    }
    flow_port(frame);
    let Ok(mut segments) = Segments::new(vnet, frame, limit) else {
        return;
    };
    let mut out = vec![0; ENVELOPE + segments.longest()];
    let mut joiner = Joiner::default();
    let mut arena = Vec::new();
    let mut written = Vec::new();
    while let Some(length) = segments.write_next(&mut out) {
        assert!(length <= out.len() - ENVELOPE);
        written.push(arena.len()..arena.len() + length);
        arena.extend_from_slice(&out[ENVELOPE..ENVELOPE + length]);
        assert!(written.len() <= LONGEST, "it ends");
    }
    for frame in written {
        joiner.push(&arena, 0, frame, true);
    }
    joiner.flush(&arena, |_, pieces, _| assert!(!pieces.is_empty()));
}

/// What came out of a tunnel: several packets, each with its length before it.
pub fn packets(mut data: &[u8]) {
    let mut arena = Vec::new();
    let mut joiner = Joiner::default();
    while let Some((length, rest)) = data.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (packet, rest) = rest.split_at(length);
        data = rest;
        echo::take(packet, THERE, HERE);
        let Ok((_, frame)) = open(packet, THERE, HERE) else {
            continue;
        };
        too_big(frame, 1_280);
        if let Some(layout) = Layout::of(frame) {
            assert!(layout.end <= frame.len());
        }
        let start = arena.len();
        arena.extend_from_slice(frame);
        joiner.push(&arena, 0, start..arena.len(), length % 2 == 0);
    }
    joiner.flush(&arena, |_, pieces, frames| {
        assert!(frames >= 1 && pieces.iter().any(|piece| !piece.is_empty()));
    });
}

/// What the agent's end of the control socket sent.
pub fn control(data: &[u8]) {
    let mut data = data;
    let _ = read_message::<Request>(&mut data);
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::envelope::Envelope;

    /// A frame in its envelope, with one of its bytes changed.
    fn packet(frame: &[u8], flip: (usize, u8)) -> Vec<u8> {
        let mut out = vec![0; ENVELOPE + frame.len()];
        out[ENVELOPE..].copy_from_slice(frame);
        let envelope = Envelope::new(THERE, HERE, weft_types::Vni::try_from(42).unwrap());
        envelope.write(&mut out, frame.len(), flow_port(frame));
        let place = flip.0 % out.len();
        out[place] ^= flip.1;
        [&(out.len() as u16).to_le_bytes()[..], &out].concat()
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..400), flip in any::<(usize, u8)>()) {
            frame(&bytes);
            packets(&bytes);
            control(&bytes);
            let whole = crate::testing::Made::default().frame();
            packets(&[packet(&whole, (0, 0)), packet(&whole, flip)].concat());
        }
    }
}
