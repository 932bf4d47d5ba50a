//! Docker with Weft beside Docker with its own networks: a bridge, and the overlay of a Swarm of the same two hosts.

use std::{
    fs,
    net::UdpSocket,
    path::Path,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netns_harness::{Interface, eventually};
use serde_json::{Value, json};
use weft_netlink::netns::Netns;

mod engine;

use self::engine::Engine;
use crate::{
    Effort,
    cluster::{Cluster, LOOK_EVERY, PATIENCE},
    table::{Table, Unit},
    tools::number_after,
};

const WEFT: &str = "weft-net";
/// Without a way out, so that Docker has no bridge of its own to connect as well.
const INNER: &str = "weft-inner";
const BRIDGE: &str = "bridge-net";
const SWARM: &str = "swarm-net";
/// How long the names of a lost host are waited for to go.
const LOST: Duration = Duration::from_secs(60);
/// Between two questions for a name.
const ASK_EVERY: Duration = Duration::from_millis(2);

pub fn measure(cluster: &Cluster, dir: &Path, effort: Effort, table: &mut Table) -> Result<()> {
    let [one, two] = &cluster.nodes;
    let engines = [Engine::start(&one.host, dir)?, Engine::start(&two.host, dir)?];
    let [first, second] = &engines;
    cluster.network(WEFT)?;
    one.api()?
        .post("/v1/networks", &json!({ "name": INNER, "internal": true }))?;
    for (engine, network) in engines
        .iter()
        .flat_map(|engine| [(engine, WEFT), (engine, INNER)])
    {
        eventually("Weft's network in Docker", PATIENCE, LOOK_EVERY, || {
            let found = engine.ask("GET", &format!("/networks/{network}"), "");
            found.map_err(|error| format!("{error:#}"))
        })?;
    }
    first.post("/networks/create", &json!({"Name": BRIDGE, "Driver": "bridge"}))?;
    let swarm = swarm(cluster, &engines).inspect_err(|error| {
        eprintln!("docker: no figures of Docker's own overlay here: {error:#}");
    });
    let has_swarm = swarm.is_ok();

    first.create("box", BRIDGE, &[])?;
    first.start_container("box")?;
    // What is made with the first endpoint of a network is not measured, so each has one.
    let mut stay = others(has_swarm);
    stay.push(("inner", INNER));
    for (name, network) in &stay {
        // On no network of Weft's its server is not reached, and one that is waited for in vain would be measured.
        let servers: &[&str] = if *network == SWARM { &["127.0.0.1"] } else { &[] };
        first.create(&format!("stay-{name}"), network, servers)?;
        first.start_container(&format!("stay-{name}"))?;
    }
    let log = dir.join("h1.log");
    let (mut ours, mut inner, mut bridge, mut overlay) = (vec![], vec![], vec![], vec![]);
    let mut share = vec![];
    first.post(
        &format!("/networks/{BRIDGE}/disconnect"),
        &json!({"Container": "box"}),
    )?;
    for round in 0..effort.connections {
        if round % 10 == 0 {
            eprintln!(
                "docker network connect: round {} of {}",
                round + 1,
                effort.connections
            );
        }
        for (network, series) in [
            (WEFT, &mut ours),
            (INNER, &mut inner),
            (BRIDGE, &mut bridge),
            (SWARM, &mut overlay),
        ] {
            if network == SWARM && !has_swarm {
                continue;
            }
            let body = json!({"Container": "box"});
            let before = fs::metadata(&log)?.len();
            series.push(first.timed(&format!("/networks/{network}/connect"), &body)?);
            if network == WEFT {
                share.push(answering(&log, before)?);
            }
            first.post(&format!("/networks/{network}/disconnect"), &body)?;
        }
    }
    let mut beside: Vec<(&str, &[f64])> = vec![("Docker's bridge", &bridge)];
    if has_swarm {
        beside.push(("Docker's overlay", &overlay));
    }
    table.compare("docker network connect", Unit::Time, &ours, &beside);
    table.compare("the same, --internal", Unit::Time, &inner, &beside[..1]);
    table.compare(
        "of it, Weft's answers",
        Unit::Time,
        &share,
        &[("all of it", &ours)],
    );
    names(first, second, has_swarm, effort, table)?;
    lost(cluster, &engines, has_swarm, effort, table)?;

    for (name, _) in stay {
        first.remove(&format!("stay-{name}"))?;
    }
    first.remove("box")?;
    if has_swarm {
        for engine in [second, first] {
            engine.ask("POST", "/swarm/leave?force=1", "")?;
        }
    }
    Ok(())
}

fn others(has_swarm: bool) -> Vec<(&'static str, &'static str)> {
    let all = [("weft", WEFT), ("swarm", SWARM)];
    all.into_iter().take(1 + usize::from(has_swarm)).collect()
}

/// Makes a Swarm of both hosts with an overlay that containers can be on.
fn swarm(cluster: &Cluster, [first, second]: &[Engine; 2]) -> Result<()> {
    let [one, two] = &cluster.nodes;
    let listen = |address| format!("{address}:2377");
    let made =
        json!({"ListenAddr": listen(one.underlay), "AdvertiseAddr": one.underlay, "DataPathPort": 4799});
    first.post("/swarm/init", &made)?;
    let swarm: Value = serde_json::from_str(&first.ask("GET", "/swarm", "")?)?;
    let token = swarm["JoinTokens"]["Worker"].as_str().context("no token")?;
    let join = json!({
        "ListenAddr": listen(two.underlay), "AdvertiseAddr": two.underlay,
        "RemoteAddrs": [listen(one.underlay)], "JoinToken": token,
    });
    second.post("/swarm/join", &join)?;
    let network = json!({"Name": SWARM, "Driver": "overlay", "Attachable": true});
    first.post("/networks/create", &network)?;
    // The second host learns of the network with its first container there.
    for (number, engine) in [first, second].into_iter().enumerate() {
        engine.create(&format!("try-{number}"), SWARM, &[])?;
        engine.start_container(&format!("try-{number}"))?;
        engine.remove(&format!("try-{number}"))?;
    }
    Ok(())
}

/// How long the agent took to answer dockerd, by its log since then.
fn answering(log: &Path, since: u64) -> Result<f64> {
    let text = fs::read(log)?;
    let text = String::from_utf8_lossy(text.get(since as usize..).unwrap_or_default()).into_owned();
    let mut sum = 0.0;
    for line in text.lines().filter(|line| line.contains("answered dockerd")) {
        let took = line.rsplit_once("took=").context("no time")?.1;
        let number = number_after(line, "took=")?;
        sum += number
            * match took
                .trim_end_matches(|c: char| c.is_whitespace())
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
            {
                "ns" => 1e-9,
                "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                other => anyhow::bail!("`{other}` is no unit"),
            };
    }
    ensure!(sum > 0.0, "the agent has answered nothing");
    Ok(sum)
}

/// Asks for a name at Docker's server of a container, again and again, until it is content.
struct Asker(JoinHandle<Result<Instant>>);

impl Asker {
    /// Until the name is there, or is not there any more, for so long at most.
    fn start(engine: &Engine, container: &str, name: &str, wanted: bool, patience: Duration) -> Result<Self> {
        let netns = Netns::open(engine.namespace(container)?)?;
        let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.connect("127.0.0.11:53")?;
        socket.set_read_timeout(Some(ASK_EVERY))?;
        let name = name.to_owned();
        let mut id = 0u16;
        let thread = std::thread::spawn(move || {
            let what = format!("{name} {}", if wanted { "there" } else { "gone" });
            let found = eventually(what, patience, ASK_EVERY, || {
                id = id.wrapping_add(1);
                // A port that refuses for a moment is no answer.
                let _ = socket.send(&question(id, &name));
                let mut answer = [0; 512];
                match socket.recv(&mut answer) {
                    Ok(len) if len >= 12 && (answer[6..8] != [0, 0]) == wanted => Ok(Instant::now()),
                    other => Err(format!("{other:?}")),
                }
            });
            Ok(found?)
        });
        Ok(Self(thread))
    }

    fn wait(self) -> Result<Instant> {
        self.0.join().ok().context("the asker panicked")?
    }
}

/// A question for the IPv4 address of a name.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// From the request to start a container on the second host to the first answer with its name on the first one.
fn names(first: &Engine, second: &Engine, has_swarm: bool, effort: Effort, table: &mut Table) -> Result<()> {
    let mut found: [Vec<f64>; 2] = Default::default();
    let mut late = vec![];
    for round in 0..effort.connections.min(20) {
        for (at, (kind, network)) in others(has_swarm).into_iter().enumerate() {
            let name = format!("new-{kind}-{round}");
            second.create(&name, network, &[])?;
            let asker = Asker::start(first, &format!("stay-{kind}"), &name, true, 3 * PATIENCE)?;
            let begun = Instant::now();
            second.start_container(&name)?;
            let started = Instant::now();
            let answered = asker.wait()?;
            found[at].push((answered - begun).as_secs_f64());
            if at == 0 {
                late.push(answered.saturating_duration_since(started).as_secs_f64());
            }
            second.remove(&name)?;
        }
    }
    let [ours, theirs] = &found;
    if has_swarm {
        let beside: [(&str, &[f64]); 1] = [("Docker's overlay", theirs)];
        table.compare("start to name on the other host", Unit::Time, ours, &beside);
    }
    let late_of_all: [(&str, &[f64]); 1] = [("all of it", ours)];
    table.compare("of it, after the start was done", Unit::Time, &late, &late_of_all);
    Ok(())
}

/// From the moment that a host is cut off to the first answer without the name of its container.
fn lost(
    cluster: &Cluster,
    [first, second]: &[Engine; 2],
    mut has_swarm: bool,
    effort: Effort,
    table: &mut Table,
) -> Result<()> {
    let cable: Interface = cluster.nodes[1].host.interface("eth0")?;
    let mut gone: [Vec<f64>; 2] = Default::default();
    for round in 0..effort.losses {
        eprintln!("docker, a lost host: round {} of {}", round + 1, effort.losses);
        // A new container each time: a Swarm does not find the names of the ones before again.
        let kinds: Vec<_> = others(has_swarm)
            .into_iter()
            .map(|(kind, network)| (kind, network, format!("lost-{kind}-{round}")))
            .collect();
        for (_, network, name) in &kinds {
            second.create(name, network, &[])?;
            second.start_container(name)?;
        }
        let ask = |wanted, patience| -> Result<Vec<Asker>> {
            let askers = kinds
                .iter()
                .map(|(kind, _, name)| Asker::start(first, &format!("stay-{kind}"), name, wanted, patience));
            askers.collect()
        };
        for asker in ask(true, 9 * PATIENCE)? {
            asker.wait()?;
        }
        let askers = ask(false, LOST)?;
        let cut = Instant::now();
        cable.set_up(false)?;
        for ((series, asker), (kind, ..)) in gone.iter_mut().zip(askers).zip(&kinds) {
            match asker.wait() {
                Ok(at) => series.push((at - cut).as_secs_f64()),
                // It is said to take that long, and is not waited for again.
                Err(_) if *kind == "swarm" => {
                    series.push(LOST.as_secs_f64());
                    has_swarm = false;
                }
                Err(error) => return Err(error),
            }
        }
        cable.set_up(true)?;
        for (_, _, name) in &kinds {
            second.remove(name)?;
        }
    }
    let [ours, theirs] = &gone;
    let beside = if theirs.is_empty() {
        ("itself", ours)
    } else {
        ("Docker's overlay, 60 s at most", theirs)
    };
    table.compare(
        "names of a lost host gone",
        Unit::Time,
        ours,
        &[(beside.0, beside.1)],
    );
    Ok(())
}
