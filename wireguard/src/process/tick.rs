//! What happens by the clock.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::Shared;
use crate::peer::HANDSHAKE_ROOM;

/// boringtun counts in these: a handshake that is due comes so much later at most.
const EVERY: Duration = Duration::from_millis(100);
/// How often the kernel is asked what paths take, for peers that anything was sent to in between.
const PATHS_EVERY: Duration = Duration::from_secs(5);

pub fn run(shared: &Arc<Shared>) {
    let mut out = [0; HANDSHAKE_ROOM];
    let mut paths_at = Instant::now();
    let mut sent_before = std::collections::HashMap::new();
    loop {
        std::thread::park_timeout(EVERY);
        let Some(state) = shared.state.load_full() else {
            continue;
        };
        let now = Instant::now();
        for peer in &state.table.peers {
            let mut link = peer.link();
            if let Some(length) = link.tick(now, &mut out) {
                let to = link.endpoint();
                drop(link);
                state.sockets.pairs[0].post(&out[..length], to);
                peer.sent_bytes.fetch_add(length as u64, Relaxed);
            }
        }
        if now.duration_since(paths_at) >= PATHS_EVERY {
            paths_at = now;
            sent_before.retain(|index, _| state.table.peer_of_index(index << 8).is_some());
            for peer in &state.table.peers {
                let sent = peer.sent_bytes.load(Relaxed);
                if sent_before.insert(peer.index, sent) != Some(sent) {
                    shared.learn_path_mtu(peer);
                }
            }
        }
    }
}
