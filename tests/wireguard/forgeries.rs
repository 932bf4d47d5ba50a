//! What strangers and members with bad intentions send.

use std::net::Ipv4Addr;

use netns_harness::{eventually, isolated};
use weft_wireguard::Dropped;

use crate::{
    bed::{Bed, LOOK_EVERY, Node, PATIENCE, has_tap, peer},
    stranger::{Claim, Stranger},
};

/// Of each kind.
fn count() -> u64 {
    let told = std::env::var("WEFT_FORGERIES").ok();
    told.map_or(10_000, |text| text.parse().expect("WEFT_FORGERIES is a number"))
}

/// What the process has counted, once it has counted so many; the underlay may lose some of a flood.
fn counted(node: &Node, sent: u64, before: Dropped, of: fn(&Dropped) -> u64) -> u64 {
    let look = || {
        let counted = of(&node.status().dropped) - of(&before);
        if counted >= sent {
            Ok(counted)
        } else {
            Err(counted)
        }
    };
    eventually("all forgeries to be counted", *PATIENCE, LOOK_EVERY, look).unwrap()
}

/// Kilobytes of memory that the process has.
pub fn memory(node: &Node) -> u64 {
    let path = format!("/proc/{}/statm", node.process().pid());
    let text = std::fs::read_to_string(path).unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
}

/// Says so many things, and waits now and then until they are counted, so that none is lost on the way.
fn flood(
    node: &Node,
    stranger: &mut Stranger<'_>,
    of: fn(&Dropped) -> u64,
    mut next: impl FnMut(&mut Stranger<'_>, u64) -> Vec<u8>,
) {
    const AT_ONCE: u64 = 500;
    let mut said = 0;
    while said < count() {
        stranger.renew();
        let before = node.status().dropped;
        let until = (said + AT_ONCE).min(count());
        for n in said..until {
            let message = next(stranger, n);
            stranger.say(&message);
        }
        counted(node, until - said, before, of);
        said = until;
    }
}

type Counter = fn(&Dropped) -> u64;

#[test]
fn nothing_forged_is_delivered() {
    isolated(|| {
        if !has_tap() {
            return;
        }
        // The second is a member; the third has a key and no part in the network.
        let bed = Bed::new(3);
        let one = &bed.nodes[0];
        let mut desired = bed.desired(1);
        desired.networks = vec![one.wanted_network(&[2])];
        desired.peers = vec![peer(2), peer(3)];
        assert_eq!(one.apply(desired), [] as [&str; 0]);
        let mut member = Stranger::new(&bed.nodes[1].host, 2, 1);
        let mut other = Stranger::new(&bed.nodes[2].host, 3, 1);
        let before = one.delivered();
        let memory_before = memory(one);

        let honest = Claim::of(2);
        let from = Ipv4Addr::new(100, 64, 0, 3);
        let to = Ipv4Addr::new(10, 9, 0, 1);
        let claims: [(Claim, Counter); 7] = [
            (Claim { from, ..honest }, |dropped| dropped.wrong_source),
            (Claim { to, ..honest }, |dropped| dropped.wrong_destination),
            (Claim { port: 4790, ..honest }, |dropped| dropped.not_vxlan),
            (Claim { flags: 0, ..honest }, |dropped| dropped.not_vxlan),
            (Claim { vni: 4098, ..honest }, |dropped| dropped.unknown_vni),
            (Claim { source: 3, ..honest }, |dropped| dropped.wrong_mac),
            (Claim { source: 1, ..honest }, |dropped| dropped.wrong_mac),
        ];
        for (claim, of) in claims {
            flood(one, &mut member, of, |member, _| member.seal(&claim.packet()));
        }
        // Right in everything but the network.
        flood(
            one,
            &mut other,
            |dropped| dropped.not_a_member,
            |other, _| other.seal(&Claim::of(3).packet()),
        );
        // Cut short after it was made up, before and behind its headers.
        flood(
            one,
            &mut member,
            |dropped| dropped.not_vxlan + dropped.wrong_source,
            |member, n| {
                let packet = honest.packet();
                let kept = 1 + n as usize % 49;
                member.seal(&packet[..kept])
            },
        );
        // Cut short or changed on the way.
        flood(
            one,
            &mut member,
            |dropped| dropped.undecryptable,
            |member, n| {
                let mut message = member.seal(&honest.packet());
                if n % 2 == 0 {
                    message.truncate(32 + n as usize % 64);
                } else {
                    let at = 16 + n as usize % (message.len() - 16);
                    message[at] ^= 1;
                }
                message
            },
        );
        // Of sessions that nobody has.
        flood(
            one,
            &mut member,
            |dropped| dropped.unknown_index,
            |member, n| {
                let mut message = member.seal(&honest.packet());
                message[7] ^= 1 + n as u8 % 255;
                message
            },
        );
        // Nothing of WireGuard: plain VXLAN, noise, messages of handshakes with a wrong code.
        flood(
            one,
            &mut member,
            |dropped| dropped.malformed,
            |_, n| match n % 3 {
                0 => honest.packet()[28..].to_vec(),
                1 => vec![n as u8; 1 + n as usize % 1400],
                _ => [&[1, 0, 0, 0][..], &[n as u8; 144]].concat(),
            },
        );
        assert_eq!(one.delivered(), before, "a forgery was delivered");

        // Once is right, and once is all.
        let message = member.seal(&honest.packet());
        member.say(&message);
        let arrived = || {
            if one.delivered() == before + 1 {
                Ok(())
            } else {
                Err(one.delivered())
            }
        };
        eventually("what is honest", *PATIENCE, LOOK_EVERY, arrived).unwrap();
        flood(
            one,
            &mut member,
            |dropped| dropped.replayed,
            |_, _| message.clone(),
        );
        assert_eq!(one.delivered(), before + 1, "a replay was delivered");

        let status = one.status();
        assert_eq!(status.networks[0].received_frames, 1, "{status:?}");
        let grown = memory(one).saturating_sub(memory_before);
        assert!(grown < 4096, "{grown} KiB more memory");
        drop((member, other));
        bed.close();
    });
}
