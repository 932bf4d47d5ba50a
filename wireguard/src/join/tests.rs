use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    envelope::ENVELOPE,
    split::Segments,
    testing::{Made, is_right},
};

/// Joins frames, and says for each that came out the device, its bytes and how many it was made of.
fn joined(frames: &[(usize, Vec<u8>)], with_udp: bool) -> Vec<(usize, Vec<u8>, usize)> {
    let mut arena = Vec::new();
    let mut joiner = Joiner::default();
    let ranges: Vec<_> = frames
        .iter()
        .map(|(device, frame)| {
            let start = arena.len();
            arena.extend(frame);
            (*device, start..arena.len())
        })
        .collect();
    for (device, range) in ranges {
        joiner.push(&arena, device, range, with_udp);
    }
    let mut out = Vec::new();
    joiner.flush(&arena, |device, pieces, count| {
        let bytes = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        out.push((device, bytes, count));
    });
    out
}

/// What a kernel makes of it again.
fn cut(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (vnet, frame) = Vnet::parse(bytes).unwrap();
    let mut segments = Segments::new(vnet, frame, 65_535).unwrap();
    let mut out = vec![0; ENVELOPE + segments.longest()];
    std::iter::from_fn(|| {
        let length = segments.write_next(&mut out)?;
        Some(out[ENVELOPE..ENVELOPE + length].to_vec())
    })
    .collect()
}

fn stream(made: &Made, sizes: &[usize]) -> Vec<(usize, Vec<u8>)> {
    let mut sequence = made.sequence;
    sizes
        .iter()
        .map(|size| {
            let one = Made {
                sequence,
                content: vec![*size as u8; *size],
                ..made.clone()
            };
            sequence = sequence.wrapping_add(*size as u32);
            (0, one.frame())
        })
        .collect()
}

#[test]
fn a_stream_becomes_one_frame_up_to_a_shorter_segment() {
    for v6 in [false, true] {
        for udp in [false, true] {
            let made = Made {
                v6,
                udp,
                options: vec![1; if udp { 0 } else { 12 }],
                ..Made::default()
            };
            let frames = stream(&made, &[500, 500, 500, 20, 500, 500]);
            let out = joined(&frames, true);
            let counts: Vec<_> = out.iter().map(|(_, _, count)| *count).collect();
            assert_eq!(counts, [4, 2]);
            let again: Vec<_> = out.iter().flat_map(|(_, bytes, _)| cut(bytes)).collect();
            // Ids of IPv4 aside, which cutting numbers anew.
            assert_eq!(again.len(), frames.len());
            for (one, (_, frame)) in again.iter().zip(&frames) {
                let from = made.transport();
                assert!(is_right(one));
                assert_eq!(one[from..], frame[from..]);
            }
        }
    }
}

#[test]
fn a_hole_another_flag_another_flow_or_another_device_begins_anew() {
    let base = Made {
        content: vec![0; 100],
        ..Made::default()
    };
    let next = Made {
        sequence: 101,
        ..base.clone()
    };
    let counts = |second: (usize, Vec<u8>)| joined(&[(0, base.frame()), second], true).len();
    assert_eq!(counts((0, next.frame())), 1);
    assert_eq!(counts((1, next.frame())), 2, "another device");
    let others = [
        (
            "a hole",
            Made {
                sequence: 102,
                ..next.clone()
            },
        ),
        (
            "FIN",
            Made {
                flags: 0x11,
                ..next.clone()
            },
        ),
        (
            "longer",
            Made {
                content: vec![0; 101],
                ..next.clone()
            },
        ),
        (
            "options",
            Made {
                options: vec![1; 4],
                ..next.clone()
            },
        ),
        (
            "another port",
            Made {
                port: 1,
                ..next.clone()
            },
        ),
        (
            "no content",
            Made {
                content: vec![],
                ..next.clone()
            },
        ),
        (
            "IPv6",
            Made {
                v6: true,
                ..next.clone()
            },
        ),
    ];
    for (what, other) in others {
        assert_eq!(counts((0, other.frame())), 2, "{what}");
    }
    for at in [0, 6, 15, 22, 34 + 11, 34 + 14] {
        let mut frame = next.frame();
        frame[at] ^= 1;
        assert_eq!(counts((0, frame)), 2, "byte {at}");
    }
    let udp = Made {
        udp: true,
        ..base.clone()
    };
    assert_eq!(
        joined(&[(0, udp.frame()), (0, udp.frame())], false).len(),
        2,
        "no joined UDP"
    );
    let mut without = udp.frame();
    without[40..42].copy_from_slice(&[0, 0]);
    assert_eq!(
        joined(&[(0, without.clone()), (0, without)], true).len(),
        2,
        "no checksum"
    );
}

#[test]
fn what_cannot_be_joined_is_not_overtaken_by_its_flow() {
    let base = Made {
        content: vec![0; 100],
        ..Made::default()
    };
    let ack = Made {
        content: vec![],
        sequence: 101,
        ..base.clone()
    };
    let next = Made {
        sequence: 101,
        ..base.clone()
    };
    let frames = [base, ack, next].map(|made| (0, made.frame()));
    let out: Vec<_> = joined(&frames, true)
        .into_iter()
        .map(|(_, bytes, _)| bytes[10..].to_vec())
        .collect();
    assert_eq!(out, frames.map(|(_, frame)| frame));
}

#[test]
fn flows_beside_each_other_are_joined_each_and_no_packet_grows_too_long() {
    let one = stream(&Made::default(), &[1400; 100]);
    let two = stream(
        &Made {
            port: 9,
            ..Made::default()
        },
        &[1400; 100],
    );
    let mixed: Vec<_> = one
        .into_iter()
        .zip(two)
        .flat_map(|(one, two)| [one, two])
        .collect();
    let out = joined(&mixed, true);
    assert_eq!(out.iter().map(|(_, _, count)| count).sum::<usize>(), 200);
    assert_eq!(out.len(), 6, "46 of 1400 bytes fit a packet");
    assert!(out.iter().all(|(_, bytes, _)| bytes.len() <= 10 + 14 + 65_535));
}

proptest! {
    #[test]
    fn any_frames_go_to_their_devices_in_order_and_whole(
        frames in vec((0..2_usize, 0..3_u16, 0..4_usize, any::<(u16, u8)>(), any::<bool>()), 1..60),
    ) {
        let mut sequences = [0_u32; 6];
        let frames: Vec<_> = frames
            .into_iter()
            .map(|(device, port, size, (at, byte), damage)| {
                let size = [0, 50, 100, 100][size];
                let sequence = &mut sequences[device * 3 + usize::from(port)];
                let udp = port == 2;
                let made = Made { port, udp, sequence: *sequence, content: vec![byte; size], ..Made::default() };
                *sequence += size as u32;
                let mut frame = made.frame();
                if damage {
                    let at = usize::from(at) % frame.len();
                    frame[at] = byte;
                }
                (device, frame)
            })
            .collect();
        let out = joined(&frames, true);
        for device in 0..2 {
            // Contents behind all headers, which damage does not reach in whole frames.
            let sent = frames.iter().filter(|(to, _)| *to == device).count();
            let got: usize = out.iter().filter(|(to, _, _)| *to == device).map(|(_, _, count)| count).sum();
            prop_assert_eq!(sent, got);
        }
        for (_, bytes, count) in &out {
            if *count == 1 {
                prop_assert!(frames.iter().any(|(_, frame)| frame[..] == bytes[10..]));
            } else {
                prop_assert_eq!(cut(bytes).len(), *count);
            }
        }
    }
}
