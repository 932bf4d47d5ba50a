//! What must be so whatever happened: nothing wrong after a fault, and meanwhile nothing lost that was promised.

use std::{
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    bed::{Node, items, text, within},
    calls::{Failure, Kind, Track},
    faults::Effect,
    flows::{Lost, Mark},
    world::World,
};

/// For a cluster to be as it should be again: a crash has to be noticed, and taken back. Every half minute agents read
/// back all that their kernels hold, which is to mend nothing here.
const SETTLED: Duration = Duration::from_secs(15);
/// After which it is worth a line what is still wrong.
const SLOW: Duration = Duration::from_secs(4);

/// What one host finds wrong.
fn found(node: &Node, flags: &str) -> Result<(), String> {
    let ended = node.try_weft(&format!("doctor --format json {flags}"));
    let said: Value = serde_json::from_str(&ended.stdout).map_err(|_| ended.stderr.clone())?;
    let wrong = items(&said["checks"]).filter(|check| check["verdict"] != "ok");
    let wrong: Vec<String> = wrong
        .map(|check| {
            format!(
                "{}: {}: {}",
                check["topic"],
                text(&check["subject"]),
                check["sentence"]
            )
        })
        .collect();
    match wrong.is_empty() && ended.code == 0 {
        true => Ok(()),
        false => Err(wrong.join("; ")),
    }
}

fn all_alive(node: &Node, hosts: usize) -> Result<(), String> {
    let nodes = node.json("node ls");
    let states = items(&nodes).map(|node| text(&node["state"]));
    let states: Vec<&str> = states.filter(|state| *state != "left").collect();
    match states.len() == hosts && states.iter().all(|state| *state == "alive") {
        true => Ok(()),
        false => Err(format!("nodes are {states:?}")),
    }
}

/// Waits until every host finds every other one, the same records everywhere and its kernel as these say. Tells what
/// took long.
pub fn settles(world: &World) -> Vec<String> {
    let slow = Mutex::new(Vec::new());
    let begin = Instant::now();
    thread::scope(|scope| {
        for node in world.bed.nodes() {
            let slow = &slow;
            scope.spawn(move || {
                let (name, mut is_told) = (node.host.name(), false);
                within(SETTLED, format!("nothing wrong on {name}"), || {
                    let seen = all_alive(node, world.hosts()).and_then(|()| found(node, "--passive"));
                    if let Err(wrong) = &seen
                        && begin.elapsed() > SLOW
                        && !std::mem::replace(&mut is_told, true)
                    {
                        let after = begin.elapsed().as_secs_f64();
                        slow.lock()
                            .unwrap()
                            .push(format!("after {after:.1} s on {name}: {wrong}"));
                    }
                    seen
                });
            });
        }
    });
    slow.into_inner().unwrap()
}

/// Waits until the doctor of a host finds nothing, by packets too.
pub fn is_well(node: &Node) {
    within(
        SETTLED,
        format!("nothing wrong for the doctor on {}", node.host.name()),
        || found(node, ""),
    );
}

/// Waits until all traffic goes on, and returns how far it is then.
pub fn goes_on(world: &World) -> Mark {
    let mark = world.ledger.mark();
    within(SETTLED, "all datagrams to go on", || world.ledger.is_past(&mark));
    let before: Vec<u64> = world.tracks.iter().map(|track| track.done()).collect();
    within(SETTLED, "all clients to go on", || {
        let stuck = world.tracks.iter().zip(&before);
        let stuck: Vec<String> = stuck
            .filter(|(track, before)| track.done() <= **before)
            .map(|(track, _)| format!("{} on h{}", track.kind.word(), track.host + 1))
            .collect();
        if stuck.is_empty() {
            Ok(())
        } else {
            Err(stuck.join(", "))
        }
    });
    mark
}

/// Whether a loss of datagrams is more than a fault explains.
pub fn explain_loss(world: &World, effect: &Effect, lost: &Lost) -> Option<String> {
    let allowed = effect.lossy.contains(&(lost.from, lost.to));
    if allowed && lost.longest <= effect.longest {
        return None;
    }
    let [from, to] = [lost.from, lost.to].map(|end| world.ledger.name(end));
    let bound = match allowed {
        true => format!("{:.0?} at most are promised", effect.longest),
        false => "none may be".into(),
    };
    Some(format!(
        "{} datagrams from {from} to {to} are lost, none arrived for {:.0?}; {bound}",
        lost.datagrams, lost.longest
    ))
}

/// The same for what a client did not get.
pub fn explain_failure(effect: &Effect, track: &Track, failure: &Failure) -> Option<String> {
    let host = track.host;
    let about_dead = failure.about.is_some_and(|about| effect.dead.contains(&about));
    let is_dead = effect.dead.contains(&host) || about_dead;
    let allowed = match track.kind {
        // A connection outlives every loss, for as long as both ends do.
        Kind::Stream => is_dead,
        // A backend that is taken for dead is called no more, and who talks to it is told so.
        Kind::StreamByVip | Kind::Request => !effect.lossy.is_empty(),
        // Of who is taken for dead, no name is known.
        Kind::Name => {
            is_dead
                || effect.mute.contains(&host)
                || effect.touches(host)
                || failure.about.is_some_and(|about| effect.touches(about))
        }
    };
    if allowed {
        return None;
    }
    let ago = Instant::now().saturating_duration_since(failure.began);
    Some(format!(
        "{} on h{}, begun {:.1} s ago: {}",
        track.kind.word(),
        host + 1,
        ago.as_secs_f64(),
        failure.what
    ))
}
