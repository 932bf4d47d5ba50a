//! `bench-datapaths`: the datapaths for virtual addresses beside each other, beside what else translates or forwards
//! connections, and beside no virtual address at all.
//!
//! Clients and four backends are namespaces behind one bridge, so that little else than the translation is
//! measured. Rounds and ratios are as in `bench`. Needs root outside of user namespaces.
//!
//! `.ci/guest 6.12 bench-datapaths` runs it in an emulated machine with one processor, of which each instruction takes a
//! nanosecond. There a request's part of a second is the number of instructions that it took, on both ends and in all between, and
//! comes out the same every time. It is not time: what waits for memory costs no more than what does not.

mod bed;
mod mixed;
mod programming;
mod rates;
#[path = "../table.rs"]
mod table;
#[path = "../tools.rs"]
#[allow(dead_code, reason = "`bench` measures more kinds of things")]
mod tools;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use weft_lb::Scheduler;

use bed::Way;
use table::Matrix;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// New connections, requests, latency and processor time of HTTP, and bulk TCP
    Rates,
    /// How long short requests take among long ones, by scheduler
    Mixed,
    /// How long it takes to install up to 10,000 services of 10 backends, and to change one, beside what the kernel takes at least
    Programming,
}

const SCHEDULERS: [Scheduler; 2] = [Scheduler::RoundRobin, Scheduler::LeastConnections];

/// Ways to a service beside each other, as ratios
#[derive(Debug, Parser)]
struct Args {
    /// Rounds of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Connections that wrk keeps busy
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Only these
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Measure>,
    /// Rates only of these, beside the first
    #[arg(long, value_delimiter = ',', value_enum)]
    ways: Vec<Way>,
    /// Rates only with these
    #[arg(long, value_delimiter = ',', value_parser = scheduler, default_values_t = SCHEDULERS)]
    schedulers: Vec<Scheduler>,
    /// The clock counts instructions, one a nanosecond: say so, and measure rates only
    #[arg(long)]
    instructions: bool,
}

impl Args {
    fn wants(&self, measure: Measure) -> bool {
        match self.only.is_empty() {
            true => measure == Measure::Rates || !self.instructions,
            false => self.only.contains(&measure),
        }
    }

    /// The ways that are wanted and that this machine has.
    fn ways(&self) -> Vec<Way> {
        let wanted = Way::ALL
            .into_iter()
            .filter(|way| self.ways.is_empty() || self.ways.contains(way));
        let here = wanted.filter(|way| match way.hindrance() {
            Some(why) => {
                eprintln!("{} is left out: {why}", way.name());
                false
            }
            None => true,
        });
        here.collect()
    }
}

fn scheduler(word: &str) -> Result<Scheduler, String> {
    let mut all = SCHEDULERS.into_iter();
    let found = all.find(|scheduler| scheduler.to_string() == word);
    found.ok_or_else(|| {
        format!(
            "rates are measured with {}",
            SCHEDULERS.map(|one| one.to_string()).join(" and ")
        )
    })
}

fn main() -> Result<()> {
    let args = Args::parse();
    let missing = tools::missing(["ip", "nginx", "wrk", "iperf3", "haproxy", "iptables"].into_iter());
    if !missing.is_empty() {
        bail!("{missing}");
    }
    let mut table = Matrix::default();
    if args.wants(Measure::Rates) {
        rates::measure(&args, &mut table)?;
    }
    if args.wants(Measure::Mixed) {
        mixed::measure(&args, &mut table)?;
    }
    if args.wants(Measure::Programming) {
        programming::measure(&args, &mut table)?;
    }
    println!("{table}");
    Ok(())
}
