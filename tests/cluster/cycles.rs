//! Networks, services and endpoints come and go while an agent is killed at any moment, again and again: nothing is left.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use netns_harness::{Inside as _, Sandbox};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use weft_tests::setting;

use super::{
    bed::{Bed, Node, alone, soon, wait},
    leftovers::back_to,
};

const HOSTS: [&str; 2] = ["h1", "h2"];

/// What the kernel has for itself, in KiB, of the whole machine.
fn kernel_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let of = |word: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(word)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    ["SUnreclaim:", "Percpu:", "KernelStack:", "PageTables:"]
        .map(of)
        .iter()
        .sum()
}

/// What a user does, on this host and the other. An agent that is killed meanwhile leaves any of it undone.
fn come_and_go(bed: &Bed, host: &str, sandbox: &Sandbox) {
    let node = &bed[host];
    let name = sandbox.name();
    for line in [
        "network create passing".to_owned(),
        "service create --network passing --port 80 web".to_owned(),
        format!("network connect passing {name} --service web"),
        format!("network disconnect --grace 0s passing {name}"),
        "service rm web".to_owned(),
        "network rm passing".to_owned(),
    ] {
        let ended = node.try_weft(&line);
        assert!(
            ended.code == 0 || !ended.stderr.is_empty(),
            "weft {line}: {ended:?}"
        );
    }
}

/// Removes what may have been made, whatever was said about it.
fn remove(node: &Node, sandbox: &Sandbox) {
    let name = sandbox.name();
    for line in [
        format!("network disconnect --grace 0s passing {name}"),
        "service rm --network passing web".to_owned(),
        "network rm passing".to_owned(),
    ] {
        soon(&line, || match node.try_weft(&line) {
            // Three: there is none.
            ended if [0, 3].contains(&ended.code) => Ok(()),
            ended => Err(ended.stderr),
        });
    }
}

/// The names of files in the agent's directories, and how many descriptors it has.
fn holds(node: &Node) -> (Vec<String>, usize) {
    let in_dir = |dir: &std::path::Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect()
    };
    let mut files = in_dir(node.data_dir());
    files.extend(node.host.run(|| in_dir("/run/weft".as_ref())).unwrap());
    // An agent that was killed as it made the folder leaves it empty; what is in it is among the traces.
    files.retain(|file| file != "/run/weft/netns");
    files.sort();
    (files, node.agent_descriptors())
}

/// `WEFT_CYCLES=10000` takes an hour or so; `NETNS_HARNESS_TIMEOUT_SECS` has to allow for it.
#[test]
fn nothing_is_left_of_what_came_and_went_while_agents_were_killed() {
    alone(|| {
        let cycles = setting("WEFT_CYCLES", 12);
        let seed = setting("WEFT_CYCLES_SEED", rand::random());
        println!("WEFT_CYCLES_SEED={seed} WEFT_CYCLES={cycles}");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bed = Bed::cluster(&HOSTS);
        bed.all_well();
        let sandboxes = HOSTS.map(|name| bed[name].host.sandbox("box").unwrap());
        // Once without anybody killed: what is made for the first network may stay.
        let mut longest = Duration::ZERO;
        for (name, sandbox) in HOSTS.iter().zip(&sandboxes) {
            let begun = Instant::now();
            come_and_go(&bed, name, sandbox);
            longest = longest.max(begun.elapsed());
            bed[name].kill_agent();
            bed[name].restart_agent();
        }
        bed.all_well();
        let before = HOSTS.map(|name| bed[name].traces());
        let held = HOSTS.map(|name| holds(&bed[name]));
        let memory = kernel_memory();
        let begun = Instant::now();
        for cycle in 0..cycles {
            let at = rng.random_range(0..HOSTS.len());
            let killed = &bed[HOSTS[rng.random_range(0..HOSTS.len())]];
            let after = longest.mul_f64(rng.random_range(0.0..1.0));
            thread::scope(|scope| {
                scope.spawn(|| {
                    wait(after);
                    killed.kill_agent();
                    killed.restart_agent();
                });
                come_and_go(&bed, HOSTS[at], &sandboxes[at]);
            });
            remove(&bed[HOSTS[at]], &sandboxes[at]);
            for (name, before) in HOSTS.iter().zip(&before) {
                back_to(&bed, name, before);
            }
            if (cycle + 1).is_multiple_of(1000) {
                println!("{} cycles in {:.0?}", cycle + 1, begun.elapsed());
            }
        }
        let took = begun.elapsed();
        bed.all_well();
        for (name, held) in HOSTS.iter().zip(&held) {
            // What was started anew has what it had when it was started anew before.
            bed[name].kill_agent();
            bed[name].restart_agent();
            soon(
                format!("no files and descriptors more on {name}"),
                || match &holds(&bed[name]) {
                    now if now == held => Ok(()),
                    now => Err(format!("{now:?}, and not {held:?}")),
                },
            );
        }
        println!(
            "{cycles} cycles in {took:.1?}; kernel memory of the machine {memory} KiB before, {} KiB after",
            kernel_memory()
        );
        bed.close();
    });
}
