//! `bench`: Weft beside what one would use without it, in one run on one machine.
//!
//! Two hosts (namespaces of a lab) with a real agent each. Every measurement is taken in rounds, ours and the others'
//! next to each other within a round, because a shared machine is never twice the same; the table shows medians, and ratios
//! of one round with the middle half of them. See `docs/benchmarks.md`.

mod api;
mod attach;
mod cluster;
mod dns;
mod docker;
mod handmade;
mod responder;
mod table;
mod tcp;
mod tools;
mod vip;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use cluster::Cluster;
use table::Table;

/// Weft beside what one would use without it, as ratios
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = AFTER)]
struct Args {
    /// A smoke run: one short round of each, whose figures mean little
    #[arg(long)]
    quick: bool,
    /// Only these
    #[arg(long, value_delimiter = ',', value_enum, value_name = "WHAT")]
    only: Vec<What>,
    /// Measure this program instead of building the release one
    #[arg(long, value_name = "PATH")]
    weft: Option<PathBuf>,
}

const AFTER: &str = "Ratios are ours divided by theirs, so for times less is better and for rates more.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Throughput between endpoints on two hosts
    Tcp,
    /// Requests to a service's virtual address
    Vip,
    /// Attaching a namespace to a network
    Attach,
    /// Names from the agent's server
    Dns,
    /// Docker with Weft, a bridge, and a Swarm of its own; only if it is named
    Docker,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Whether this is a smoke run.
    pub quick: bool,
    /// Rounds of traffic.
    pub rounds: usize,
    /// Of one measurement of traffic.
    pub length: Duration,
    /// Rounds of attaching.
    pub attachments: usize,
    /// Rounds of connecting containers.
    pub connections: usize,
    /// Rounds of losing a host.
    pub losses: usize,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick {
            let length = Duration::from_secs(1);
            Self {
                quick,
                rounds: 1,
                length,
                attachments: 5,
                connections: 3,
                losses: 1,
            }
        } else {
            let length = Duration::from_secs(2);
            Self {
                quick,
                rounds: 7,
                length,
                attachments: 60,
                connections: 30,
                losses: 3,
            }
        }
    }

    /// Tells whoever waits how far we are.
    pub fn progress(&self, what: &str, round: usize) {
        eprintln!("{what}: round {} of {}", round + 1, self.rounds);
    }
}

fn main() -> ExitCode {
    let result = match responder::asked_for() {
        Some(asked) => asked.and_then(responder::run),
        None => run(Args::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    // dockerd needs real root and changes its hosts, so it is not among those that run unasked.
    let with_docker = args.only.contains(&What::Docker);
    let chosen = |what| (args.only.is_empty() && what != What::Docker) || args.only.contains(&what);
    let missing = tools::missing(
        [What::Tcp, What::Vip, What::Attach, What::Dns, What::Docker]
            .into_iter()
            .filter(|what| chosen(*what))
            .flat_map(|what| what.programs().iter().copied()),
    );
    if !missing.is_empty() {
        bail!("{missing}");
    }
    let weft = match args.weft {
        Some(path) => path
            .canonicalize()
            .with_context(|| format!("there is no {}", path.display()))?,
        None => build()?,
    };
    // Everything from here on is in namespaces of its own, which end with this process.
    netns_harness::isolate(&netns_harness::Isolate::new())?;
    let dir = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
    clean_up_when_interrupted(dir.path().to_owned())?;

    let effort = Effort::new(args.quick);
    let cluster = Cluster::start(&weft, dir.path(), with_docker)?;
    let datapath = cluster.datapath()?;
    let mut table = Table::default();
    if chosen(What::Tcp) {
        tcp::measure(&cluster, effort, &mut table)?;
    }
    if chosen(What::Vip) {
        vip::measure(&cluster, effort, &mut table)?;
    }
    if chosen(What::Attach) {
        attach::measure(&cluster, effort, &mut table)?;
    }
    if chosen(What::Dns) {
        dns::measure(&cluster, effort, &mut table)?;
    }
    if with_docker {
        docker::measure(&cluster, dir.path(), effort, &mut table)?;
    }
    cluster.stop()?;
    println!("{}services: {datapath}\n\n{table}", tools::machine(&weft));
    if effort.quick {
        println!("A smoke run: one short round of each, so these figures mean little.");
    }
    Ok(())
}

impl What {
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Tcp => &["ip", "bridge", "iperf3"],
            Self::Vip => &["wrk", "dnsperf"],
            Self::Attach => &["ip", "bridge"],
            Self::Dns => &["dnsperf", "dnsmasq"],
            Self::Docker => &["dockerd", "docker", "busybox"],
        }
    }
}

/// Builds the agent that is measured, with the profile that is shipped, and says where it is.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("building the release weft");
    let built = Command::new(cargo)
        .args(["build", "--release", "--package", "weft", "--bin", "weft"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo; give the program to measure with --weft PATH")?;
    if !built.status.success() {
        bail!("the release weft could not be built");
    }
    let messages = String::from_utf8_lossy(&built.stdout);
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.context("cargo did not say where it put weft")
}

/// Namespaces and processes end with us however we end; files do not.
fn clean_up_when_interrupted(dir: PathBuf) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    // Threads to come inherit this, and leave the signals to the one that waits for them.
    signals.thread_block()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let _ = signals.wait();
            eprintln!("interrupted");
            let _ = std::fs::remove_dir_all(Path::new(&dir));
            std::process::exit(130);
        })?;
    Ok(())
}
