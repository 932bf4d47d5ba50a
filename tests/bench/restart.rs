//! `bench-restart`: how long one more endpoint takes on a host with many, and how long an agent with many takes from its start until its
//! host was once compared with what it should be; if asked for, beside another program in the same run, such as one of before a change.
//!
//! One host in a lab. In each round each program is killed and started again on what the other one left. It fails if one writes
//! anything to the kernel. Needs root outside of user namespaces.

#[path = "api.rs"]
#[allow(dead_code, reason = "`bench` asks for more")]
mod api;
#[path = "table.rs"]
mod table;
#[path = "tools.rs"]
#[allow(dead_code, reason = "`bench` measures more kinds of things")]
mod tools;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use ipnet::IpNet;
use netns_harness::{Host, Inside as _, Isolate, Lab, Output, Process, SwitchOptions, eventually};
use serde_json::json;

use api::Api;
use table::{Table, Unit};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Whether it is ready is asked less often: each question takes the agent time that it would have for the answer.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// Restarts of an agent with many endpoints, as ratios
#[derive(Debug, Parser)]
struct Args {
    /// The program
    #[arg(long, value_name = "PATH")]
    weft: PathBuf,
    /// Another one to put it beside; without it, itself
    #[arg(long, value_name = "PATH")]
    beside: Option<PathBuf>,
    /// Endpoints of the host
    #[arg(long, default_value_t = 1_000)]
    endpoints: usize,
    /// Services of their network, on each of which some of them are
    #[arg(long, default_value_t = 0)]
    services: usize,
    /// Rounds
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// What translates the addresses of services
    #[arg(long, default_value = "auto")]
    datapath: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    netns_harness::isolate(&Isolate::new())?;
    let dir = tempfile::Builder::new().prefix("weft-restart-").tempdir()?;
    let lab = Lab::new("restart")?;
    let underlay = SwitchOptions::new().subnet("10.99.0.0/24".parse::<IpNet>()?);
    let underlay = lab.switch("underlay", underlay)?;
    let host = lab.host("h1")?;
    lab.plug(&underlay, std::slice::from_ref(&host))?;
    let interface = host.interface("eth0")?;
    let address = interface.addresses()?.first().context("no address")?.addr();
    let bed = Bed {
        host,
        address,
        dir: dir.path().to_owned(),
        datapath: args.datapath.clone(),
    };
    let other = args.beside.as_ref().unwrap_or(&args.weft);
    let mut agent = bed.start(&args.weft)?;
    bed.fill(args.endpoints, args.services)?;
    let mut found: [Vec<Restart>; 2] = Default::default();
    // The first of each fills caches.
    for round in 0..=args.rounds {
        for (program, found) in [&args.weft, other].into_iter().zip(&mut found) {
            let brokers = brokers_of(agent.pid());
            agent.kill()?;
            eventually("the end of the brokers", PATIENCE, LOOK_EVERY, || {
                let left = brokers
                    .iter()
                    .find(|pid| Path::new(&format!("/proc/{pid}")).exists());
                left.map_or(Ok(()), Err)
            })?;
            let begun = Instant::now();
            agent = bed.start(program)?;
            bed.await_ready()?;
            let ready = begun.elapsed();
            let restart = Restart::of(ready, &agent)?;
            let written = bed.changes()?;
            ensure!(written == 0, "{written} changes on an unchanged host");
            if round > 0 {
                found.push(restart);
            }
        }
    }
    drop(agent);
    let [ours, theirs] = &found;
    let mut table = Table::default();
    for (what, unit, of) in FIGURES {
        let of = |restarts: &[Restart]| -> Vec<f64> { restarts.iter().map(of).collect() };
        table.compare(what, unit, &of(ours), &[("the other", &of(theirs))]);
    }
    println!(
        "{} endpoints, {} services\n\n{table}",
        args.endpoints, args.services
    );
    lab.close()?;
    Ok(())
}

type Figure = (&'static str, Unit, fn(&Restart) -> f64);

/// What is told of a restart.
const FIGURES: [Figure; 6] = [
    ("from the start until ready", Unit::Time, |restart| restart.ready),
    ("processor time of the agent", Unit::Time, |restart| {
        restart.agent.time
    }),
    ("of its brokers", Unit::Time, |restart| restart.brokers.time),
    ("memory of the agent", Unit::Bytes, |restart| restart.agent.memory),
    ("of its brokers", Unit::Bytes, |restart| restart.brokers.memory),
    ("all processor time", Unit::Time, |restart| {
        restart.agent.time + restart.brokers.time
    }),
];

/// One start, in seconds and bytes.
#[derive(Debug)]
struct Restart {
    ready: f64,
    agent: Taken,
    brokers: Taken,
}

/// What processes have taken so far.
#[derive(Debug, Default)]
struct Taken {
    time: f64,
    /// Shared pages by the share.
    memory: f64,
}

impl Restart {
    fn of(ready: Duration, agent: &Process) -> Result<Self> {
        // The second one comes last.
        eventually("its brokers", PATIENCE, LOOK_EVERY, || {
            match brokers_of(agent.pid()).len() {
                1 => Err("one"),
                _ => Ok(()),
            }
        })?;
        let mut brokers = Taken::default();
        for broker in brokers_of(agent.pid()) {
            let taken = Taken::by(broker)?;
            brokers.time += taken.time;
            brokers.memory += taken.memory;
        }
        Ok(Self {
            ready: ready.as_secs_f64(),
            agent: Taken::by(agent.pid())?,
            brokers,
        })
    }
}

impl Taken {
    fn by(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("a line of another form")?;
        // From the third on: proc(5) counts from one, with 14 and 15 for what was spent as user and as system.
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
        let ticks: f64 = ticks.sum::<Result<f64, _>>()?;
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let mut lines = memory.lines().filter_map(|line| line.strip_prefix("Pss:"));
        let kilobytes = lines.next().and_then(|line| line.trim().strip_suffix(" kB"));
        let kilobytes: f64 = kilobytes.context("no Pss")?.parse()?;
        Ok(Self {
            // What the kernel counts in, on all architectures of today.
            time: ticks / 100.0,
            memory: kilobytes * 1024.0,
        })
    }
}

/// The one at work and the one that stands by, of which the second is a child of the first.
fn brokers_of(agent: u32) -> Vec<u32> {
    let children = |pid: u32| -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        lists
            .flat_map(|list| {
                list.split_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    let first = children(agent);
    let second = first.iter().flat_map(|pid| children(*pid));
    let all: Vec<u32> = first.iter().copied().chain(second).collect();
    let is_broker = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"broker"))
    };
    all.into_iter().filter(is_broker).collect()
}

struct Bed {
    host: Host,
    address: IpAddr,
    dir: PathBuf,
    datapath: String,
}

impl Bed {
    fn socket(&self) -> PathBuf {
        self.dir.join("weft.sock")
    }

    fn start(&self, program: &Path) -> Result<Process> {
        let mut command = Command::new(program);
        command
            .args(["agent", "--run-dir", "/run/weft", "--node-name", "h1"])
            .arg("--advertise")
            .arg(format!("{}:7947", self.address))
            .args([
                "--wireguard",
                "userspace",
                "--docker-plugin",
                "off",
                "--datapath",
                &self.datapath,
            ])
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .arg("--socket")
            .arg(self.socket());
        Ok(self
            .host
            .spawn(&mut command, Output::File(self.dir.join("log")))?)
    }

    /// Makes a cluster of one with so many endpoints, and says how long each of a hundred took.
    fn fill(&self, endpoints: usize, services: usize) -> Result<()> {
        let mut api = eventually("the agent", PATIENCE, LOOK_EVERY, || {
            Api::connect(&self.socket()).map_err(|error| format!("{error:#}"))
        })?;
        api.post("/v1/cluster/init", &json!({}))?;
        let network = json!({ "name": "app", "subnets": ["10.64.0.0/16"] });
        api.post("/v1/networks", &network)?;
        for n in 0..services {
            let service = json!({ "network": "app", "name": format!("s{n}") });
            api.post("/v1/services", &service)?;
        }
        let mut begun = Instant::now();
        for n in 0..endpoints {
            let sandbox = self.host.sandbox(&format!("e{n}"))?;
            let mut request = json!({ "target": sandbox.path().to_string_lossy() });
            if services > 0 {
                request["service"] = format!("s{}", n % services).into();
            }
            api.post("/v1/networks/app/connect", &request)?;
            if n % 100 == 99 {
                let each = begun.elapsed() / 100;
                eprintln!("{} endpoints; each of the last hundred took {each:.1?}", n + 1);
                begun = Instant::now();
            }
        }
        Ok(())
    }

    fn await_ready(&self) -> Result<()> {
        let ready = || match self.get("/ready") {
            Ok((200, _)) => Ok(()),
            Ok((_, why)) => Err(why),
            Err(error) => Err(format!("{error:#}")),
        };
        eventually("a host that is ready", PATIENCE, ASK_EVERY, ready)?;
        Ok(())
    }

    /// What the agent has written to the kernel since it was started.
    fn changes(&self) -> Result<u64> {
        let (_, metrics) = self.get("/metrics")?;
        let mut lines = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("weft_kernel_changes_total "));
        Ok(lines.next().context("no such metric")?.parse()?)
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n"
        )?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut rest = String::new();
        reader.read_to_string(&mut rest)?;
        let (_, body) = rest.split_once("\r\n\r\n").unwrap_or_default();
        Ok((status.context("no status")?, body.to_owned()))
    }
}
