//! A crash at any instant loses nothing that was answered with success, and leaves nothing half made.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use netns_harness::{Inside as _, Sandbox};
use rand::{RngExt, SeedableRng, seq::IteratorRandom};
use rand_chacha::ChaCha8Rng;
use weft_tests::setting;

use super::{
    bed::{Bed, Node, alone, items, report, soon, text},
    node::Ended,
    state::{agreed, numbers},
};

/// By network: its services, and the sandboxes that are on it.
type Objects = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

const SANDBOXES: [&str; 4] = ["s1", "s2", "s3", "s4"];
const MOST_NETWORKS: usize = 4;
/// A command takes some of these, so that the end comes anywhere in it.
const LONGEST: Duration = Duration::from_millis(120);

/// A command, and what there is once it is done.
fn next_command(now: &Objects, serial: &mut u64, rng: &mut ChaCha8Rng) -> (String, Objects) {
    loop {
        let mut after = now.clone();
        let network = now.keys().choose(rng).cloned();
        *serial += 1;
        let command = match (rng.random_range(0..7), network) {
            (0 | 1, _) | (_, None) if now.len() < MOST_NETWORKS => {
                let name = format!("n{serial}");
                after.insert(name.clone(), Default::default());
                format!("network create --ipv6 {name}")
            }
            (2, Some(network)) => {
                if now[&network].0.len() + now[&network].1.len() > 0 {
                    continue;
                }
                after.remove(&network);
                format!("network rm {network}")
            }
            (3, Some(network)) => {
                let name = format!("v{serial}");
                after.get_mut(&network).unwrap().0.insert(name.clone());
                format!("service create --network {network} {name}")
            }
            (4, Some(network)) => {
                let Some(name) = now[&network].0.iter().choose(rng) else {
                    continue;
                };
                after.get_mut(&network).unwrap().0.remove(name);
                format!("service rm {name}")
            }
            (5, Some(network)) => {
                let Some(name) = now[&network].1.iter().choose(rng) else {
                    continue;
                };
                after.get_mut(&network).unwrap().1.remove(name);
                format!("network disconnect {network} {name}")
            }
            (_, Some(network)) => {
                let free = SANDBOXES.iter().filter(|name| !now[&network].1.contains(**name));
                let Some(name) = free.choose(rng) else { continue };
                after.get_mut(&network).unwrap().1.insert((*name).to_owned());
                format!("network connect {network} {name}")
            }
            _ => continue,
        };
        return (command, after);
    }
}

/// What a node says there is.
fn objects(node: &Node) -> Objects {
    items(&node.json("network ls"))
        .map(|network| {
            let name = text(&network["name"]);
            let detail = node.json(&format!("network inspect {name}"));
            let names = |list: &str| -> Vec<String> {
                items(&detail[list])
                    .map(|item| text(&item["name"]).to_owned())
                    .collect()
            };
            let (services, endpoints) = (names("services"), names("endpoints"));
            let sets: (BTreeSet<_>, BTreeSet<_>) = (
                services.iter().cloned().collect(),
                endpoints.iter().cloned().collect(),
            );
            assert_eq!(
                (sets.0.len(), sets.1.len()),
                (services.len(), endpoints.len()),
                "twice: {detail}"
            );
            (name.to_owned(), sets)
        })
        .collect()
}

/// The kernel holds exactly what the records say.
fn kernel_matches(node: &Node, sandboxes: &[Sandbox], objects: &Objects) -> Result<(), String> {
    for sandbox in sandboxes {
        let networks = objects
            .values()
            .filter(|(_, on)| on.contains(sandbox.name()))
            .count();
        let links = sandbox
            .run(|| nix::net::if_::if_nameindex().unwrap().iter().count() - 1)
            .unwrap();
        if links != networks {
            return Err(format!(
                "{} has {links} links and is on {networks} networks",
                sandbox.name()
            ));
        }
        let resolver = format!("/etc/netns/{}/resolv.conf", sandbox.name());
        let has_file = node.host.run(|| std::fs::exists(resolver).unwrap()).unwrap();
        if has_file != (networks > 0) {
            return Err(format!(
                "{} has a resolver: {has_file}, on {networks} networks",
                sandbox.name()
            ));
        }
    }
    let used = objects.values().filter(|(_, on)| !on.is_empty()).count();
    let made = node
        .host
        .run(|| std::fs::read_dir("/run/weft/netns").map_or(0, Iterator::count))
        .unwrap();
    if made != used {
        return Err(format!("{made} namespaces for {used} networks in use"));
    }
    match node.problems() {
        problems if problems.is_empty() => Ok(()),
        problems => Err(format!("{problems:?}")),
    }
}

/// Whether a command ended because its agent did.
fn was_cut_off(ended: &Ended) -> bool {
    ended.code == 5 || ended.stderr.contains("cannot be used")
}

#[test]
fn a_crash_at_any_instant_loses_nothing_that_was_promised() {
    alone(|| {
        let (rounds, seed) = (
            setting("WEFT_CRASH_ROUNDS", 15),
            setting("WEFT_CRASH_SEED", rand::random()),
        );
        println!("WEFT_CRASH_SEED={seed}, WEFT_CRASH_ROUNDS={rounds}");
        let started = Instant::now();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bed = Bed::cluster(&["h1", "h2"]);
        let node = &bed["h1"];
        let sandboxes = SANDBOXES.map(|name| node.host.sandbox(name).unwrap());
        let (mut known, mut serial, mut done, mut cut_off) = (Objects::new(), 0, 0, Vec::new());
        for round in 0..rounds {
            let patience = rng.random_range(Duration::from_millis(20)..3 * LONGEST);
            let mut worker = ChaCha8Rng::from_rng(&mut rng);
            let killed = AtomicBool::new(false);
            let possible = std::thread::scope(|scope| {
                let (_stop, stopped) = channel::<()>();
                let killed = &killed;
                scope.spawn(move || {
                    assert_eq!(stopped.recv_timeout(patience), Err(RecvTimeoutError::Timeout));
                    killed.store(true, Ordering::Relaxed);
                    node.kill_agent();
                });
                loop {
                    let (command, after) = next_command(&known, &mut serial, &mut worker);
                    let ended = node.try_weft(&command);
                    if ended.code != 0 {
                        assert!(
                            killed.load(Ordering::Relaxed) && was_cut_off(&ended),
                            "{command}: {ended:?}"
                        );
                        cut_off.push(command);
                        return [known.clone(), after];
                    }
                    done += 1;
                    known = after;
                }
            });
            if round % 3 == 2 {
                // And once more while the next one starts.
                node.start_agent();
                let (_stop, stopped) = channel::<()>();
                let _ = stopped.recv_timeout(rng.random_range(Duration::ZERO..LONGEST));
                node.kill_agent();
            }
            node.restart_agent();
            known = objects(node);
            assert!(
                possible.contains(&known),
                "round {round}, cut off in `{}`: {known:?} is neither {:?} nor {:?}",
                cut_off.last().unwrap(),
                possible[0],
                possible[1]
            );
            soon(
                format!("a kernel to match after `{}`", cut_off.last().unwrap()),
                || kernel_matches(node, &sandboxes, &known),
            );
            numbers(node);
        }
        agreed(&bed);
        println!("{done} commands done, and cut off: {cut_off:?}");
        for (network, (services, endpoints)) in known {
            services
                .iter()
                .for_each(|name| drop(node.weft(&format!("service rm {name}"))));
            endpoints
                .iter()
                .for_each(|name| drop(node.weft(&format!("network disconnect {network} {name}"))));
            node.weft(&format!("network rm {network}"));
        }
        soon("an empty kernel", || {
            kernel_matches(node, &sandboxes, &Objects::new())
        });
        report(&format!("{rounds} crashes"), started);
        bed.close();
    });
}
