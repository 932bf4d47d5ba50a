//! `bench-datapaths`: the datapaths for virtual addresses beside each other, beside what else translates or forwards
//! connections, and beside no virtual address at all.
//!
//! Clients and four backends are namespaces behind one bridge, so that little else than the translation is
//! measured. Rounds and ratios are as in `bench`. Needs root outside of user namespaces.

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
}

impl Args {
    fn wants(&self, measure: Measure) -> bool {
        self.only.is_empty() || self.only.contains(&measure)
    }
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
