//! Connections, requests and bytes per second, latency, and processor time.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use weft_lb::Scheduler;
use weft_netlink::netns::Netns;

use crate::{
    Args,
    bed::{Bed, PORT, Running, Way, backend},
    table::{Matrix, Unit},
    tools::number_after,
};

/// Where `iperf3` listens.
pub const BULK: u16 = 5201;

/// What one run of HTTP showed.
struct Http {
    rate: f64,
    median: f64,
    p99: f64,
    /// Seconds of processor time of the whole machine for one request.
    work: f64,
}

/// Instructions, where the clock counts them.
const PER_SECOND: f64 = 1e9;

type Figure = fn(&Http) -> f64;

pub fn measure(args: &Args, table: &mut Matrix) -> Result<()> {
    let all = args.ways();
    let mut bed = Bed::new(&all)?;
    let _nginx = nginx(&bed.server, bed.dir())?;
    for scheduler in args.schedulers.iter().copied() {
        bed.balance(scheduler)?;
        let ways: Vec<Way> = all.iter().copied().filter(|way| way.knows(scheduler)).collect();
        for keep_alive in [false, true] {
            let kind = if keep_alive {
                "keep-alive"
            } else {
                "new connections"
            };
            let what = format!("{kind}, {scheduler}");
            let mut runs: Vec<Vec<Http>> = ways.iter().map(|_| Vec::new()).collect();
            for round in 0..args.rounds {
                eprintln!("{what}: round {} of {}", round + 1, args.rounds);
                for (way, runs) in ways.iter().zip(&mut runs) {
                    // The others have hosts without them.
                    match way {
                        Way::Ebpf => bed.hook(scheduler)?,
                        _ => bed.unhook()?,
                    }
                    let run = http(bed.client(*way)?, Bed::target(*way), args, keep_alive)?;
                    eprintln!("  {}: {:.0} /s", way.name(), run.rate);
                    runs.push(run);
                }
            }
            for (name, unit, figure) in figures(args, keep_alive) {
                let series = runs.iter().map(|runs| runs.iter().map(figure).collect());
                let series: Vec<Vec<f64>> = series.collect();
                table.compare(&format!("{what}{name}"), unit, &names(&ways), &series);
            }
        }
    }
    bulk(args, &all, &mut bed, table)
}

/// What is said of runs.
fn figures(args: &Args, keep_alive: bool) -> Vec<(&'static str, Unit, Figure)> {
    let mut figures: Vec<(&str, Unit, Figure)> = vec![("", Unit::Rate, |run| run.rate)];
    if args.instructions {
        figures.push((", instructions", Unit::Instructions, |run| PER_SECOND / run.rate));
        return figures;
    }
    if keep_alive {
        figures.push((", p50", Unit::Time, |run| run.median));
        figures.push((", p99", Unit::Time, |run| run.p99));
    }
    figures.push((", processor time", Unit::Work, |run| run.work));
    figures
}

fn bulk(args: &Args, ways: &[Way], bed: &mut Bed, table: &mut Matrix) -> Result<()> {
    bed.balance(Scheduler::RoundRobin)?;
    let mut server = Command::new("iperf3");
    server
        .args(["--server", "--port", &BULK.to_string()])
        .stdout(Stdio::null());
    let listens = SocketAddr::from((backend(0), BULK));
    let _server = Running::start(&bed.server, server, listens)?;
    let mut series: Vec<Vec<f64>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..args.rounds {
        eprintln!("bulk TCP: round {} of {}", round + 1, args.rounds);
        for (way, series) in ways.iter().zip(&mut series) {
            let bits = throughput(bed.client(*way)?, Bed::target(*way), args)?;
            eprintln!("  {}: {:.3} Gbit/s", way.name(), bits / 1e9);
            series.push(bits);
        }
    }
    table.compare("bulk TCP", Unit::Bits, &names(ways), &series);
    if args.instructions {
        let a_kilobyte = |bits: &f64| PER_SECOND / (bits / 8.0 / 1024.0);
        let series = series.iter().map(|bits| bits.iter().map(a_kilobyte).collect());
        let series: Vec<Vec<f64>> = series.collect();
        let what = "bulk TCP, instructions for a kilobyte";
        table.compare(what, Unit::Instructions, &names(ways), &series);
    }
    Ok(())
}

/// Bits that arrived, per second.
fn throughput(from: &Netns, to: Ipv4Addr, args: &Args) -> Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut client = Command::new("iperf3");
        client
            .args([
                "--json",
                "--port",
                &BULK.to_string(),
                "--time",
                &args.seconds.to_string(),
            ])
            .args(["--client", &to.to_string()]);
        let output = from.run(|| client.output())?.context("iperf3")?;
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        if let Some(bits) = said["end"]["sum_received"]["bits_per_second"].as_f64() {
            return Ok(bits);
        }
        // It has one client at a time, and may not have noticed yet that the last one is gone.
        let busy = said["error"].as_str().is_some_and(|error| error.contains("busy"));
        if !busy || Instant::now() > deadline {
            bail!("{to}: {said}");
        }
    }
}

fn names(ways: &[Way]) -> Vec<&'static str> {
    ways.iter().map(|way| way.name()).collect()
}

fn nginx(netns: &Netns, dir: &Path) -> Result<Running> {
    let config = dir.join("nginx.conf");
    let workers = std::thread::available_parallelism()?;
    let text = format!(
        "daemon off; worker_processes {workers}; error_log /dev/null; pid {0}/pid;
         events {{ worker_connections 4096; }}
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {0}/b; proxy_temp_path {0}/p;
           fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
           server {{ listen {PORT} backlog=4096; location / {{ return 200 ok; }} }} }}",
        dir.display()
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&config).stderr(Stdio::null());
    Running::start(netns, command, SocketAddr::from((backend(0), PORT)))
}

/// One run of `wrk`.
fn http(from: &Netns, to: Ipv4Addr, args: &Args, keep_alive: bool) -> Result<Http> {
    let mut command = Command::new("wrk");
    command.args([
        "-t1",
        "--latency",
        &format!("-c{}", args.connections),
        &format!("-d{}", args.seconds),
    ]);
    if !keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{to}:{PORT}/"));
    let before = busy()?;
    let output = from.run(|| command.output())?.context("wrk is missing")?;
    let work = busy()? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(errors) = text.lines().find(|line| line.contains("Socket errors")) {
        eprintln!("  {to}: {}", errors.trim());
    }
    let requests = text.lines().find(|line| line.contains(" requests in "));
    let requests = requests.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(Http {
        rate: number_after(&text, "Requests/sec:")?,
        median: duration_after(&text, "50%")?,
        p99: duration_after(&text, "99%")?,
        work: work / requests.with_context(|| format!("wrk did not say how many: {text}"))?,
    })
}

/// What stands behind a label at the beginning of a line, as wrk writes it.
fn duration_after(text: &str, label: &str) -> Result<f64> {
    let mut lines = text.lines().map(str::trim_start);
    let value = lines.find_map(|line| line.strip_prefix(label)).map(str::trim);
    let value = value.with_context(|| format!("there is no `{label}` in: {text}"))?;
    let digits = value.trim_end_matches(char::is_alphabetic);
    let unit = match &value[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        unit => bail!("`{unit}` is no unit of wrk"),
    };
    Ok(digits.parse::<f64>()? * unit)
}

/// Seconds that the machine's processors have worked since it was started.
fn busy() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq
    let idle = ticks.iter().skip(3).take(2).sum::<f64>();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok((ticks.iter().take(7).sum::<f64>() - idle) / per_second as f64)
}
