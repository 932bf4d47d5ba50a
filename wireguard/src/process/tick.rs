//! What happens by the clock.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::Shared;
use crate::{echo, link::Sealed, peer::HANDSHAKE_ROOM, secret::scrub_stack};

/// boringtun counts in these: a handshake that is due comes so much later at most.
const EVERY: Duration = Duration::from_millis(100);
/// How often the kernel is asked what paths take, for peers that anything was sent to in between.
const PATHS_EVERY: Duration = Duration::from_secs(5);

/// What stands around a packet in the tunnel: IP, UDP and WireGuard.
const UNDERLAY_V4: u16 = 20 + 8 + 32;
const UNDERLAY_V6: u16 = UNDERLAY_V4 + 20;
/// Room for the longest question about a path.
const LONGEST: usize = 65_536;

pub fn run(shared: &Arc<Shared>) {
    let mut out = [0; HANDSHAKE_ROOM];
    let (mut question, mut sealed) = (vec![0; LONGEST], vec![0; LONGEST + HANDSHAKE_ROOM]);
    let mut paths_at = Instant::now();
    let mut sent_before = HashMap::new();
    loop {
        std::thread::park_timeout(EVERY);
        let Some(state) = shared.state.load_full() else {
            continue;
        };
        let (now, mut has_said) = (Instant::now(), false);
        for peer in &state.table.peers {
            let mut link = peer.link();
            let to = link.endpoint();
            let given_up = link.tick(now, &mut out, |message| {
                state.sockets.pairs[0].post(message, to);
                peer.sent_bytes.fetch_add(message.len() as u64, Relaxed);
                has_said = true;
            });
            peer.lose(given_up);
            let v6 = to.is_ipv6();
            let sent = peer.sent_bytes.load(Relaxed);
            let full = state.table.full_length(peer, v6);
            for length in link.probing.poll(now, sent, full) {
                let inner = length.saturating_sub(if v6 { UNDERLAY_V6 } else { UNDERLAY_V4 });
                let question = &mut question[..inner.into()];
                echo::ask(question, state.table.vtep, peer.vtep(), length);
                let used = link.used();
                if used.is_some()
                    && let Sealed::Packet(length) = link.seal(question, used, &mut sealed)
                {
                    state.sockets.pairs[0].post(&sealed[..length], to);
                }
            }
            peer.set_found_mtu(link.probing.limit(), v6);
        }
        if has_said {
            scrub_stack();
        }
        if now.duration_since(paths_at) >= PATHS_EVERY {
            paths_at = now;
            let peers: HashSet<_> = state.table.peers.iter().map(|peer| peer.vtep()).collect();
            sent_before.retain(|vtep, _| peers.contains(vtep));
            for peer in &state.table.peers {
                let sent = peer.sent_bytes.load(Relaxed);
                if sent_before.insert(peer.vtep(), sent) != Some(sent) {
                    shared.learn_path_mtu(peer);
                }
            }
        }
    }
}
