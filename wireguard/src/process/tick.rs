//! What happens by the clock.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::Shared;
use crate::{peer::HANDSHAKE_ROOM, secret::scrub_stack};

/// boringtun counts in these: a handshake that is due comes so much later at most.
const EVERY: Duration = Duration::from_millis(100);
/// How often the kernel is asked what paths take, for peers that anything was sent to in between.
const PATHS_EVERY: Duration = Duration::from_secs(5);

pub fn run(shared: &Arc<Shared>) {
    let mut out = [0; HANDSHAKE_ROOM];
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
            link.tick(now, &mut out, |message| {
                state.sockets.pairs[0].post(message, to);
                peer.sent_bytes.fetch_add(message.len() as u64, Relaxed);
                has_said = true;
            });
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
