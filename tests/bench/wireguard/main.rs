//! `bench-wireguard`: encrypted networks beside a plain VXLAN and beside what others carry a VXLAN in, on one pair of
//! hosts in namespaces.
//!
//! Each way has a network of its own, all alike: a bridge with a container on each host, and a way between the bridges.
//! Rounds and ratios are as in `bench`. Needs root outside of user namespaces.

#[path = "../../wireguard/bed.rs"]
#[allow(dead_code, reason = "tests do more with it")]
mod bed;
#[path = "../table.rs"]
mod table;
#[path = "../tools.rs"]
#[allow(dead_code, reason = "`bench` measures more kinds of things")]
mod tools;
mod udp;
mod ways;

use std::fs;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use netns_harness::{Inside, Isolate};
use serde_json::Value;

use bed::{Bed, PATIENCE};
use table::{Matrix, Unit};
use ways::{Path, Way};

/// Encrypted networks beside others, as ratios
#[derive(Debug, Parser)]
struct Args {
    /// Rounds of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// As if the hosts' network cards could not cut segments
    #[arg(long)]
    no_offload: bool,
    /// Only these beside the plain VXLAN
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Way>,
    /// Only these
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Part::ALL)]
    measure: Vec<Part>,
}

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Throughput and processor time
    Tcp,
    /// Small datagrams, a flood and without loss
    Datagrams,
    /// One datagram at a time
    RoundTrips,
}

impl Part {
    const ALL: [Self; 3] = [Self::Tcp, Self::Datagrams, Self::RoundTrips];

    fn rows(self) -> &'static [(&'static str, Unit)] {
        match self {
            Self::Tcp => &[
                ("TCP, 1 stream", Unit::Bits),
                ("TCP, 4 streams", Unit::Bits),
                ("processor time of all, a megabyte of TCP", Unit::Work),
            ],
            Self::Datagrams => &[
                ("UDP, 64 bytes, received of a flood", Unit::Rate),
                ("UDP, 64 bytes, without loss", Unit::Rate),
            ],
            Self::RoundTrips => &[
                ("round trip, median", Unit::Time),
                ("round trip, 99th percentile", Unit::Time),
            ],
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |way: &Way| match args.only.is_empty() {
        true => *way == Way::Plain || is_there(*way),
        false => *way == Way::Plain || args.only.contains(way),
    };
    let ways: Vec<_> = Way::ALL.into_iter().filter(wanted).collect();
    let programs = ways.iter().flat_map(|way| way.programs()).copied();
    let missing = tools::missing(programs.chain(["ip", "iperf3", "ethtool"]));
    if !missing.is_empty() {
        bail!("{missing}");
    }
    netns_harness::isolate(&Isolate::new())?;
    let bed = Bed::new(2);
    bed.connect();
    if args.no_offload {
        for node in &bed.nodes {
            tools::output(
                &node.host,
                "ethtool -K eth0 tso off gso off tx-udp-segmentation off",
            )?;
        }
    }
    let paths: Vec<_> = ways
        .iter()
        .map(|way| Path::new(&bed, *way))
        .collect::<Result<_>>()?;
    let rows: Vec<_> = args.measure.iter().flat_map(|part| part.rows()).collect();
    let mut kept = vec![vec![Vec::new(); ways.len()]; rows.len()];
    for round in 0..args.rounds {
        for (way, path) in paths.iter().enumerate() {
            let figures = measure(&args, path)?;
            eprintln!("round {round}, {}: {figures:.3?}", ways[way].name());
            for (kept, figure) in kept.iter_mut().zip(figures) {
                kept[way].push(figure);
            }
        }
    }
    let mut table = Matrix::default();
    let names: Vec<_> = ways.iter().map(|way| way.name()).collect();
    for ((what, unit), series) in rows.into_iter().zip(&kept) {
        table.compare(what, *unit, &names, series);
    }
    drop(paths);
    bed.close();
    println!("{table}");
    Ok(())
}

/// Not all of them are packages of Debian's.
fn is_there(way: Way) -> bool {
    let missing = tools::missing(way.programs().iter().copied());
    if !missing.is_empty() {
        let programs = way.programs().join(" and ");
        eprintln!("{} is left out: it needs {programs} in the PATH", way.name());
    }
    missing.is_empty()
}

fn measure(args: &Args, path: &Path) -> Result<Vec<f64>> {
    let mut figures = Vec::new();
    for part in &args.measure {
        match part {
            Part::Tcp => {
                let busy = busy_seconds()?;
                let one = tcp(args, path, 1)?;
                let spent = busy_seconds()? - busy;
                let megabytes = one * args.seconds as f64 / 8e6;
                figures.extend([one, tcp(args, path, 4)?, spent / megabytes]);
            }
            Part::Datagrams => {
                let rate = udp::flood(path, args.seconds)?;
                figures.extend([rate, udp::lossless(path, rate)?]);
            }
            Part::RoundTrips => figures.extend(udp::round_trips(path)?),
        }
    }
    Ok(figures)
}

/// Bits per second that arrive.
fn tcp(args: &Args, path: &Path, streams: u32) -> Result<f64> {
    let server = path.to.spawn(
        &mut tools::command("iperf3 -s -1 --forceflush"),
        netns_harness::Output::Keep,
    )?;
    server.wait_for_line(*PATIENCE, |line| line.contains("Server listening"))?;
    let line = format!("iperf3 -J -c {} -t {} -P {streams}", path.address, args.seconds);
    let report: Value = serde_json::from_str(&tools::output(&path.from, &line)?)?;
    let rate = &report["end"]["sum_received"]["bits_per_second"];
    rate.as_f64().with_context(|| format!("no rate in {report}"))
}

/// Of all processors since the boot.
fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // All but idle, waiting for disks, and what guests are counted twice for.
    let busy: f64 = ticks
        .iter()
        .enumerate()
        .filter(|(i, _)| ![3, 4, 8, 9].contains(i))
        .map(|(_, ticks)| ticks)
        .sum();
    Ok(busy / 100.0)
}
