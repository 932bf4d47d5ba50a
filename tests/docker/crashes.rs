//! dockerds and agents that die and are started again, in any order.
//!
//! The long form: `NETNS_HARNESS_TIMEOUT_SECS=1200 WEFT_DOCKER_ORDERINGS=50 cargo test -p weft-tests --test docker orderings --
//! --nocapture`.
//! `WEFT_DOCKER_SEED` repeats one.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use netns_harness::{Inside as _, Process, eventually};
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    door::Door,
    site::{DockerHost, IMAGE, Site, with_dockerds},
};

/// How many there are if nobody says.
const FEW: usize = 2;
const SOON: Duration = Duration::from_secs(90);
const OFTEN: Duration = Duration::from_millis(5);

#[test]
fn orderings_of_crashes_and_starts_end_well() {
    with_dockerds(&[], orderings);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    EndDockerd {
        killed: bool,
    },
    EndAgent {
        killed: bool,
    },
    StartDockerd,
    StartAgent,
    /// A container is removed, whoever is away.
    Remove,
}

/// How long dockerd took to answer, with Weft and without, and how much of that it waited for Weft.
#[derive(Default)]
struct Starts {
    with: Vec<Duration>,
    without: Vec<Duration>,
    waits: Vec<Duration>,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn orderings() {
    let seed = number("WEFT_DOCKER_SEED").unwrap_or_else(rand::random);
    let count = number("WEFT_DOCKER_ORDERINGS").map_or(FEW, |count| count as usize);
    eprintln!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut site = Site::held("crash", 3, &settings(false));
    // The third has no Weft: what its dockerd takes to start is what the others are compared with.
    site.hosts[2].weft("leave");
    site.hosts[2].stop_agent();
    site.hosts[2].docker("network create app");
    site.hosts[0].weft("network create app");
    site.hosts[1].eventually_docker("network inspect app");
    for host in &site.hosts {
        run(host, "stay", "--restart always");
        run(host, "plain", "");
    }
    let mut starts = Starts::default();
    let mut live_restore = [false; 3];
    for number in 1..=count {
        ordering(&mut site.hosts, &mut live_restore, &mut starts, number, &mut rng);
    }
    starts.report();
    for host in &site.hosts {
        host.docker("rm -f stay plain");
    }
    for host in &site.hosts[..2] {
        host.eventually("no endpoint left", || {
            let network = host.try_weft("network inspect --format json app")?;
            let network: serde_json::Value = serde_json::from_str(&network).unwrap();
            Ok(network["endpoints"]
                .as_array()
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect())
        });
    }
    site.hosts[0].weft("network rm app");
    for host in &site.hosts[..2] {
        host.eventually("no link of ours", || Ok(host.links().join(" ")));
    }
    site.close();
}

fn settings(live_restore: bool) -> String {
    format!(r#"{{"dns": ["169.254.53.53"], "live-restore": {live_restore}}}"#)
}

/// A container that ends at once when it is told to.
fn run(host: &DockerHost, name: &str, flags: &str) {
    host.docker(&format!(
        "run -d --name {name} --hostname {name}-{} --network app --stop-signal KILL {flags} {IMAGE} sleep 100000",
        host.host.name()
    ));
}

fn pid(host: &DockerHost) -> String {
    host.inspect("stay", "{{.State.Pid}}")
}

fn ordering(
    hosts: &mut [DockerHost],
    live_restore: &mut [bool; 3],
    starts: &mut Starts,
    number: usize,
    rng: &mut ChaCha8Rng,
) {
    let mut steps: Vec<(usize, Vec<Step>)> = Vec::new();
    let was: Vec<_> = hosts.iter().map(pid).collect();
    for of in 0..hosts.len() {
        if of == 2 || rng.random_bool(0.8) {
            let killed = rng.random_bool(0.6);
            steps.push((of, vec![Step::EndDockerd { killed }, Step::StartDockerd]));
        }
        if of != 2 && rng.random_bool(0.8) {
            let killed = rng.random_bool(0.6);
            steps.push((of, vec![Step::EndAgent { killed }, Step::StartAgent]));
        }
        if of != 2 && rng.random_bool(0.5) {
            steps.push((of, vec![Step::Remove]));
        }
    }
    // Each sequence keeps its order, and they are mixed with each other.
    let mut turns: Vec<usize> = steps
        .iter()
        .enumerate()
        .flat_map(|(at, (_, all))| vec![at; all.len()])
        .collect();
    turns.shuffle(rng);
    let kept = live_restore.map(|_| rng.random_bool(0.5));
    let restarted: Vec<_> = (0..3)
        .map(|of| {
            steps
                .iter()
                .any(|(at, all)| *at == of && all.len() == 2 && all[1] == Step::StartDockerd)
        })
        .collect();
    let mut removals: Vec<Process> = Vec::new();
    let mut starting = Vec::new();
    let mut said = Vec::new();
    let mut next = vec![0; steps.len()];
    for turn in turns {
        let (of, all) = &steps[turn];
        let step = all[next[turn]];
        next[turn] += 1;
        said.push(format!("h{} {step:?}", of + 1));
        let host = &mut hosts[*of];
        match step {
            Step::EndDockerd { killed: true } => host.kill_dockerd(),
            Step::EndDockerd { killed: false } => end(hosts, *of),
            Step::EndAgent { killed: true } if host.has_agent() => host.kill_agent(),
            Step::EndAgent { .. } if host.has_agent() => host.stop_agent(),
            // dockerd may have had it started meanwhile.
            Step::StartAgent if !host.has_agent() => host.start_agent(),
            Step::EndAgent { .. } | Step::StartAgent => {}
            Step::StartDockerd => {
                host.set_up_docker(&settings(kept[*of]));
                starting.push((*of, Instant::now(), answer(host)));
                host.start_dockerd();
            }
            Step::Remove => removals.push(host.spawn_docker("rm -f plain")),
        }
        open(hosts);
    }
    let what = format!("ordering {number}, {}", said.join(", "));
    eprintln!("{what}");
    let mut answers: Vec<(usize, Instant, Instant)> = Vec::new();
    let waited = eventually(what, SOON, OFTEN, || {
        open(hosts);
        starting.retain(|(of, begun, answered)| match answered.try_recv() {
            Ok(at) => {
                answers.push((*of, *begun, at));
                false
            }
            Err(_) => true,
        });
        let unfinished = removals
            .iter()
            .filter(|removal| removal.try_wait().is_none())
            .count();
        match (starting.len(), unfinished) {
            (0, 0) => Ok(()),
            (dockerds, removals) => Err(format!(
                "{dockerds} dockerds do not answer, {removals} removals have not ended"
            )),
        }
    });
    waited.unwrap_or_else(|error| panic!("{error}\n{}\n{}", hosts[0].log("agent"), hosts[1].log("agent")));
    for (of, begun, answered) in answers {
        let took = answered - begun;
        if of == 2 {
            starts.without.push(took);
            continue;
        }
        let waited = hosts[of].door.as_ref().unwrap().waits.within(begun, answered);
        eprintln!(
            "h{}: dockerd answered after {took:.2?}, of which it waited {waited:.2?} for Weft",
            of + 1
        );
        starts.with.push(took);
        starts.waits.push(waited);
    }
    for (of, host) in hosts.iter_mut().enumerate() {
        if of != 2 && !host.has_agent() {
            host.start_agent();
        }
        if of != 2 {
            host.wait_for_agent();
        }
        if steps.contains(&(of, vec![Step::Remove])) {
            // A removal that dockerd did not survive is still to be done.
            let _ = host.try_docker("rm -f plain");
            run(host, "plain", "");
        }
        host.docker("start stay plain");
        if restarted[of] && live_restore[of] && kept[of] {
            assert_eq!(
                pid(host),
                was[of],
                "live-restore keeps the container on h{}",
                of + 1
            );
        }
        if restarted[of] {
            live_restore[of] = kept[of];
        }
    }
    whole(&hosts[..2]);
}

/// Starts the agents that dockerds ask for.
fn open(hosts: &mut [DockerHost]) {
    for host in hosts.iter_mut().take(2) {
        let is_asked_for = host.door.as_ref().is_some_and(Door::is_knocked_at);
        if is_asked_for && !host.has_agent() {
            host.start_agent();
        }
    }
}

/// Stops a dockerd, which says good-bye to its driver.
fn end(hosts: &mut [DockerHost], of: usize) {
    let dockerd = hosts[of].take_dockerd();
    dockerd.signal(netns_harness::Signal::SIGTERM).unwrap();
    let ended = eventually("the end of a dockerd", SOON, OFTEN, || {
        open(hosts);
        dockerd.try_wait().ok_or("it runs")
    });
    ended.unwrap();
}

/// When dockerd answers the first time.
fn answer(host: &DockerHost) -> mpsc::Receiver<Instant> {
    let (sender, receiver) = mpsc::channel();
    let host = host.host.clone();
    thread::spawn(move || {
        let ping = || {
            let mut stream = UnixStream::connect("/run/docker.sock")?;
            stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            match answer.starts_with("HTTP/1.0 200") {
                true => Ok(Instant::now()),
                false => Err(std::io::Error::other(answer)),
            }
        };
        let answered = host.run(|| eventually("an answer of dockerd", SOON, OFTEN, ping));
        if let Ok(Ok(at)) = answered {
            // Nobody may wait for it any more.
            let _ = sender.send(at);
        }
    });
    receiver
}

/// No address twice, and everyone reaches everyone by name.
fn whole(hosts: &[DockerHost]) {
    let mut addresses = BTreeSet::new();
    for host in hosts {
        for name in ["stay", "plain"] {
            let address = host.address(name, "app");
            assert!(addresses.insert(address.clone()), "{address} is there twice");
        }
    }
    for (from, to) in [(0, 1), (1, 0)] {
        for name in ["stay", "plain"] {
            let to = hosts[to].host.name();
            hosts[from].eventually_in(name, &format!("ping -c 1 -W 1 {name}-{to}"));
        }
    }
    let network = hosts[0].weft("network inspect --format json app");
    let network: serde_json::Value = serde_json::from_str(&network).unwrap();
    let endpoints = network["endpoints"].as_array().unwrap();
    let known: Vec<_> = endpoints
        .iter()
        .map(|endpoint| endpoint["addresses"][0].to_string())
        .collect();
    let distinct: BTreeSet<_> = known.iter().collect();
    assert_eq!(distinct.len(), known.len(), "{known:?}");
}

impl Starts {
    fn report(&mut self) {
        for (name, all) in [
            ("dockerd's start with Weft", &mut self.with),
            ("of that it waited for Weft", &mut self.waits),
            ("dockerd's start without", &mut self.without),
        ] {
            all.sort();
            if let (Some(least), Some(most)) = (all.first(), all.last()) {
                let median = middle(all).unwrap_or_default();
                eprintln!(
                    "{name}: {} of them, least {least:.2?}, median {median:.2?}, most {most:.2?}",
                    all.len()
                );
            }
        }
        // Each of the two has been sorted.
        if let (Some(with), Some(without)) = (middle(&self.with), middle(&self.without)) {
            let more = 1e3 * (with.as_secs_f64() - without.as_secs_f64());
            eprintln!("dockerd's start, median with Weft minus median without: {more:+.0} ms");
        }
    }
}

/// The median of what is sorted.
fn middle(sorted: &[Duration]) -> Option<Duration> {
    sorted.get(sorted.len() / 2).copied()
}
