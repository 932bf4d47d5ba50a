//! Changes that users make, many at once.

use std::time::{Duration, Instant};

use crate::{
    bed::soon,
    world::{NETWORK, World},
};

/// From when a command has attached the new owner of an address until everybody reaches it.
const REUSE: Duration = Duration::from_millis(300);

/// Makes endpoints, networks and services on one host, and takes them away again.
pub fn churn(world: &World, host: usize, detail: u32) {
    let node = world.node(host);
    let (count, own) = (3 + detail % 4, detail.is_multiple_of(2));
    let network = if own { "passing" } else { NETWORK };
    if own {
        node.weft(&format!("network create {network}"));
    }
    node.weft(&format!("service create --network {network} briefly"));
    let sandboxes: Vec<_> = (0..count)
        .map(|n| world.connect(host, &format!("c-{n}"), network, "--service briefly"))
        .collect();
    for sandbox in sandboxes {
        node.weft(&format!(
            "network disconnect --grace 0s {network} {}",
            sandbox.name()
        ));
        sandbox.remove().unwrap();
    }
    node.weft("service rm briefly");
    if own {
        node.weft("network rm passing");
    }
}

/// Detaches the endpoint that moves and attaches another with its address elsewhere, while a third takes the
/// place of the first. Returns for how long the new one may be unheard.
pub fn reuse(world: &mut World, host: usize) -> Duration {
    let before = world.mover.host;
    let (left, speaker) = world.lift_mover();
    world.place_mover(host);
    let node = world.node(before);
    let decoy = format!("network connect {NETWORK} {} --name decoy", left.name());
    let begin = Instant::now();
    soon("a decoy", || match node.try_weft(&decoy) {
        ended if ended.code == 0 => Ok(()),
        ended => Err(ended.stderr),
    });
    let made = begin.elapsed();
    node.weft(&format!("network disconnect {NETWORK} decoy"));
    drop(speaker);
    left.remove().unwrap();
    // The others may wait for the processor as long as this host did.
    REUSE + made
}
