//! What a decoder of this crate is given by a fuzzer, see `fuzz/`. Everything is made anew for each input.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use weft_types::ClusterId;

use crate::{Config, Gossip, GossipKey, Identity, KeyRing, Output, seal::Channel};

const CLUSTER: ClusterId = ClusterId([1; 16]);
/// Packets that two nodes need to know each other, and more.
const TURNS: usize = 64;

fn node(number: u8, now: Instant) -> (SocketAddr, Gossip) {
    let address = SocketAddr::from(([192, 0, 2, number], 7946));
    let mut config = Config::new(CLUSTER, KeyRing::new(GossipKey([7; 32])), address);
    config.network_kinds = vec![2];
    let identity = Identity::from_seed([number; 32]);
    (address, Gossip::new(config, identity, 1, [number; 32], now))
}

/// Two nodes that know each other.
fn pair(now: Instant) -> ((SocketAddr, Gossip), (SocketAddr, Gossip)) {
    let (mut one, mut two) = (node(1, now), node(2, now));
    one.1.join([], now);
    two.1.join([one.0], now);
    let mut later = now;
    for _ in 0..TURNS {
        later += Duration::from_millis(20);
        for way in [true, false] {
            let (from, to) = if way {
                (&mut one, &mut two)
            } else {
                (&mut two, &mut one)
            };
            from.1.handle_timeout(later);
            while let Some(output) = from.1.poll_output() {
                match output {
                    Output::Packet { bytes, .. } => to.1.handle_packet(from.0, &bytes, later),
                    Output::Stream { request, .. } => {
                        if let Some(answer) = to.1.handle_stream_request(&request, later) {
                            from.1.handle_stream_response(&answer, later);
                        }
                    }
                    Output::Event(_) => {}
                }
            }
        }
    }
    (one, two)
}

/// What a member with the cluster's key sends: as a datagram to one or to all, as a request, as an answer. The first byte
/// says which; of those beyond, nothing is sealed.
pub fn packet(data: &[u8]) {
    let Some((way, body)) = data.split_first() else {
        return;
    };
    let now = Instant::now();
    let ((_, mut one), (from, mut two)) = pair(now);
    let now = now + Duration::from_secs(5);
    let me = one.node();
    let mut sealed = |channel, to| two.sealer().seal(channel, to, body);
    match way {
        0 => sealed(Channel::Packet, Some(&me))
            .into_iter()
            .for_each(|bytes| one.handle_packet(from, &bytes, now)),
        1 => sealed(Channel::Packet, None)
            .into_iter()
            .for_each(|bytes| one.handle_packet(from, &bytes, now)),
        2 => sealed(Channel::Request, Some(&me)).into_iter().for_each(|bytes| {
            one.handle_stream_request(&bytes, now);
        }),
        3 => sealed(Channel::Response, Some(&me))
            .into_iter()
            .for_each(|bytes| one.handle_stream_response(&bytes, now)),
        _ => {
            one.handle_packet(from, body, now);
            one.handle_stream_request(body, now);
            one.handle_stream_response(body, now);
        }
    }
    one.handle_timeout(now + Duration::from_secs(1));
    while one.poll_output().is_some() {}
    assert_eq!(one.node(), me);
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn the_two_know_each_other() {
        let ((_, one), (_, two)) = pair(Instant::now());
        assert_eq!(one.members().count(), 1);
        assert!(one.members().any(|member| member.node == two.node()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_bytes_do_harm(way in 0..5_u8, body in vec(any::<u8>(), 0..300)) {
            packet(&[&[way], &body[..]].concat());
        }
    }
}
