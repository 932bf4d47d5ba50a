use proptest::{collection::vec, prelude::*};

use super::*;
use crate::testing::{Made, is_right};

/// As a kernel hands it out that has put off the checksum and, if it is larger, the cutting.
fn put_off(made: &Made, segment: u16) -> (Vnet, Vec<u8>) {
    let mut frame = made.frame();
    let layout = Layout::of(&frame).unwrap();
    let pseudo = fold(layout.pseudo_sum(&frame, layout.end - layout.transport));
    write16(&mut frame, made.transport() + made.checksum_at(), pseudo);
    let kind = match (made.udp, made.v6) {
        _ if made.content.len() <= usize::from(segment) => GSO_NONE,
        (true, _) => GSO_UDP,
        (false, true) => GSO_TCP6,
        (false, false) => GSO_TCP4,
    };
    let vnet = Vnet {
        flags: NEEDS_CHECKSUM,
        kind,
        header_len: 0,
        segment,
        checksum_start: made.transport() as u16,
        checksum_offset: made.checksum_at() as u16,
    };
    (vnet, frame)
}

fn all(mut segments: Segments<'_>) -> Vec<Vec<u8>> {
    let mut out = vec![0; ENVELOPE + segments.longest()];
    std::iter::from_fn(|| {
        let length = segments.write_next(&mut out)?;
        Some(out[ENVELOPE..ENVELOPE + length].to_vec())
    })
    .collect()
}

fn made() -> impl Strategy<Value = Made> {
    let options = prop_oneof![Just(0_usize), Just(12), Just(40)];
    (
        any::<bool>(),
        any::<bool>(),
        any::<u32>(),
        any::<u8>(),
        options,
        vec(any::<u8>(), 1..9000),
    )
        .prop_map(|(v6, udp, sequence, flags, options, content)| Made {
            v6,
            udp,
            sequence,
            flags,
            options: vec![1; if udp { 0 } else { options }],
            content,
            ..Made::default()
        })
}

proptest! {
    #[test]
    fn segments_are_right_and_together_what_they_were(made in made(), segment in 100_u16..2000) {
        let (vnet, frame) = put_off(&made, segment);
        let segments = all(Segments::new(vnet, &frame, 65_535).unwrap());
        let headers = frame.len() - made.content.len();
        prop_assert_eq!(segments.len(), made.content.len().div_ceil(usize::from(segment)));
        let mut content: Vec<u8> = Vec::new();
        for (i, one) in segments.iter().enumerate() {
            prop_assert!(is_right(one), "segment {}", i);
            prop_assert!(one.len() <= headers + usize::from(segment));
            prop_assert_eq!(&one[..14], &frame[..14]);
            if !made.udp {
                let sequence = u32::from_be_bytes(one[made.transport() + 4..][..4].try_into().unwrap());
                prop_assert_eq!(sequence, made.sequence.wrapping_add(content.len() as u32));
                let flags = one[made.transport() + 13];
                let mut expected = made.flags;
                if i > 0 { expected &= !CWR; }
                if i + 1 < segments.len() { expected &= !FIN_PSH; }
                prop_assert_eq!(flags, expected);
            }
            content.extend(&one[headers..]);
        }
        prop_assert_eq!(content, made.content);
    }

    #[test]
    fn tcp_is_cut_to_what_the_path_takes(made in made(), limit in 500_usize..1300, put in any::<bool>()) {
        let made = Made { udp: false, ..made };
        let (vnet, frame) = if put { put_off(&made, 1400) } else { (Vnet::default(), made.frame()) };
        let segments = all(Segments::new(vnet, &frame, limit).unwrap());
        let headers = frame.len() - made.content.len();
        let content: Vec<u8> = segments.iter().flat_map(|one| one[headers..].to_vec()).collect();
        prop_assert_eq!(content, made.content);
        for one in &segments {
            prop_assert!(is_right(one) && one.len() - 14 <= limit);
        }
    }

    #[test]
    fn no_frame_and_nothing_said_about_it_is_more_than_refused(
        frame in vec(any::<u8>(), 0..200),
        made in made(),
        flip in any::<(u16, u8)>(),
        kind in prop_oneof![Just(0), Just(1), Just(4), Just(5), any::<u8>()],
        numbers in any::<[u16; 3]>(),
        near in any::<bool>(),
        limit in 0_usize..70_000,
    ) {
        let mut good = made.frame();
        let at = usize::from(flip.0) % good.len().min(80);
        good[at] = flip.1;
        let near = |number: u16| if near { number % 80 } else { number };
        let vnet = Vnet {
            flags: NEEDS_CHECKSUM,
            kind,
            header_len: numbers[0],
            segment: numbers[0],
            checksum_start: near(numbers[1]),
            checksum_offset: near(numbers[2]),
        };
        for frame in [frame, good] {
            if let Ok(mut segments) = Segments::new(vnet, &frame, limit) {
                let mut out = vec![0; ENVELOPE + segments.longest()];
                let mut count = 0;
                while segments.write_next(&mut out).is_some() {
                    count += 1;
                    prop_assert!(count <= frame.len());
                }
            }
        }
    }
}

#[test]
fn a_datagram_too_big_for_the_path_is_told_about_unless_it_may_be_fragmented() {
    let made = Made {
        udp: true,
        content: vec![1; 1300],
        ..Made::default()
    };
    let mut frame = made.frame();
    let try_it = |frame: &[u8], limit| Segments::new(Vnet::default(), frame, limit).map(all);
    assert_eq!(try_it(&frame, 1328), Ok(vec![frame.clone()]));
    assert_eq!(try_it(&frame, 1327), Err(Unsendable::TooBig));
    frame[20] = 0;
    assert_eq!(try_it(&frame, 1327), Ok(vec![frame.clone()]), "may be fragmented");
    let v6 = Made { v6: true, ..made };
    assert_eq!(try_it(&v6.frame(), 1327), Err(Unsendable::TooBig));
}

#[test]
fn damage_is_not_given_a_right_checksum() {
    let made = Made {
        content: vec![1; 1300],
        ..Made::default()
    };
    let mut frame = made.frame();
    frame[100] ^= 1;
    let refused = Segments::new(Vnet::default(), &frame, 1000).map(all);
    assert_eq!(refused, Err(Unsendable::TooBig));
}
