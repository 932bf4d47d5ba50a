//! Names from the agent's server, beside dnsmasq and aardvark-dns with the same names and a responder that only sends
//! questions back.
//!
//! All listen on the same address in the network's namespace, and are asked by the same endpoint.

mod perf;
mod servers;

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use netns_harness::{Host, Inside as _, Output, Sandbox, eventually};
use serde_json::json;

use crate::{
    Effort,
    cluster::{Cluster, LOOK_EVERY, PATIENCE},
    responder::{self, Kind},
    table::{Table, Unit},
    tools::command,
};
use perf::{answered, dnsperf, p99, rate};
pub use servers::serve_many;
use servers::{Names, Namespace};

/// The agent's address in every network.
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 53, 53));
const AGENT: u16 = 53;
const ECHO: u16 = 5301;

const ENDPOINTS: usize = 4;
const ALIASES: usize = 15;
const MANY: u32 = 10_000;

/// Ours first.
type Servers = Vec<(&'static str, u16)>;

/// Who asks, and how.
struct Asking<'a> {
    client: &'a Sandbox,
    effort: Effort,
    dir: &'a Path,
}

pub fn measure(cluster: &Cluster, effort: Effort, table: &mut Table) -> Result<()> {
    let [h1, h2] = &cluster.nodes;
    let network = cluster.network("dns")?;
    let id = network["id"].as_str().context("the network has no id")?;
    let client = h1.endpoint("dns", "dns-c", json!({}))?.sandbox;
    let flooder = h1.endpoint("dns", "dns-f", json!({}))?.sandbox;
    let mut names = Names::new();
    for endpoint in 0..ENDPOINTS {
        let aliases: Vec<_> = (0..ALIASES)
            .map(|alias| format!("name-{endpoint}-{alias}"))
            .collect();
        let made = h2.endpoint("dns", &format!("dns-{endpoint}"), json!({ "aliases": aliases }))?;
        let named = aliases
            .into_iter()
            .map(|alias| (format!("{alias}.{}", servers::DOMAIN), made.address));
        names.extend(named);
    }
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let inside = Namespace {
        node: h1,
        network: id,
    };
    let itself = || Ok::<_, anyhow::Error>(inside.command(std::env::current_exe()?.as_os_str()));
    let _echo = responder::start_by(&h1.host, itself()?, Kind::Udp, SocketAddr::new(SERVER, ECHO))?;
    // Sends questions back without an answer, which nobody keeps.
    let upstream = h2.underlay;
    for node in [h1, h2] {
        remember_shortly(&node.host)?;
    }
    let _upstream = responder::start(&h2.host, Kind::Udp, SocketAddr::new(upstream, 53))?;
    h1.host.set_resolv_conf(&format!("nameserver {upstream}\n"))?;
    let _dnsmasq = inside.dnsmasq(5302, &names, upstream, dir)?;
    let mut few: Servers = vec![("", AGENT), ("dnsmasq", 5302)];
    let many = servers::many(MANY);
    let ours = responder::start_by(
        &h1.host,
        itself()?,
        Kind::Names(MANY),
        SocketAddr::new(SERVER, 5304),
    )?;
    let dnsmasq = inside.dnsmasq(5305, &many, upstream, dir)?;
    let mut with_many: Servers = vec![("", 5304), ("dnsmasq", 5305)];
    match servers::find_aardvark() {
        Some(program) => {
            inside.aardvark(&program, 5303, &names, upstream, dir)?;
            inside.aardvark(&program, 5306, &many, upstream, dir)?;
            few.push(("aardvark-dns", 5303));
            with_many.push(("aardvark-dns", 5306));
        }
        None => eprintln!(
            "aardvark-dns is not here (Debian's package of that name, or AARDVARK_DNS=PATH): left out"
        ),
    }
    let echo = ("UDP echo (floor)", ECHO);
    let asking = Asking {
        client: &client,
        effort,
        dir,
    };

    let hits = asking.questions("hits", names.iter().map(|(name, _)| name.clone()))?;
    let floor: Servers = few.iter().copied().chain([echo]).collect();
    asking.await_all(&few, &hits)?;
    asking.compare("DNS, names it knows", Unit::Rate, &floor, table, |port| {
        let seconds = effort.length.as_secs();
        rate(&dnsperf(&client, port, &hits, &format!("-l {seconds}"))?)
    })?;
    asking.compare("DNS, p99 at 5,000/s", Unit::Time, &floor, table, |port| {
        p99(&dnsperf(&client, port, &hits, "-l 1 -v -Q 5000")?)
    })?;
    let flood = format!("dnsperf -s {SERVER} -Q 50000 -l 3 -t 1 -d {}", hits.display());
    asking.compare(
        "DNS, p99 in a flood of 50,000/s",
        Unit::Time,
        &few,
        table,
        |port| {
            let flooding = flooder.spawn(&mut command(&format!("{flood} -p {port}")), Output::Keep)?;
            let asked = dnsperf(&client, port, &hits, "-l 2 -v -Q 500");
            flooding.kill()?;
            p99(&asked?)
        },
    )?;
    let misses = asking.questions("misses", (0..50_000).map(|n| format!("miss-{n}.example.net")))?;
    asking.await_all(&few, &asking.questions("miss", ["miss.example.net".to_owned()])?)?;
    asking.compare("DNS, forwarded", Unit::Rate, &few, table, |port| {
        let seconds = effort.length.as_secs();
        let asked = dnsperf(&client, port, &misses, &format!("-l {seconds} -q 50"))?;
        answered(&asked, port)
    })?;
    let hits = asking.questions("many", many.iter().map(|(name, _)| name.clone()))?;
    let floor: Servers = with_many.iter().copied().chain([echo]).collect();
    asking.await_all(&with_many, &hits)?;
    asking.compare(
        "DNS, 10,000 names (server alone)",
        Unit::Rate,
        &floor,
        table,
        |port| {
            let seconds = effort.length.as_secs();
            rate(&dnsperf(&client, port, &hits, &format!("-l {seconds}"))?)
        },
    )?;
    drop((ours, dnsmasq));
    Ok(())
}

/// Has a host of the lab forget conversations of datagrams after a second. Each name that is forwarded is asked from a port of its own,
/// and for as long as one is remembered that port leads to no other conversation with the same server: after half a minute at some
/// thousands a second there would be none left, and what is measured would be the ports.
fn remember_shortly(host: &Host) -> Result<()> {
    let set = || {
        for setting in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            let path = Path::new("/proc/sys/net/netfilter").join(setting);
            // A kernel that tracks nothing has none.
            if path.exists() {
                std::fs::write(&path, "1").with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    };
    host.run(set)?
}

impl Asking<'_> {
    /// A file of questions as dnsperf reads it.
    fn questions(&self, name: &str, names: impl IntoIterator<Item = String>) -> Result<PathBuf> {
        let path = self.dir.join(name);
        let mut text = String::new();
        for name in names {
            writeln!(text, "{name} A")?;
        }
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Until each server knows everything.
    fn await_all(&self, servers: &Servers, questions: &Path) -> Result<()> {
        for (name, port) in servers {
            eventually(
                format!("answers of {name} at port {port}"),
                PATIENCE,
                LOOK_EVERY,
                || {
                    let asked = dnsperf(self.client, *port, questions, "-n 1");
                    asked
                        .and_then(|text| rate(&text))
                        .map_err(|error| error.to_string())
                },
            )?;
        }
        Ok(())
    }

    fn compare(
        &self,
        what: &str,
        unit: Unit,
        servers: &Servers,
        table: &mut Table,
        mut one: impl FnMut(u16) -> Result<f64>,
    ) -> Result<()> {
        let mut series: Vec<(&str, Vec<f64>)> = servers.iter().map(|(name, _)| (*name, Vec::new())).collect();
        for round in 0..self.effort.rounds {
            self.effort.progress(what, round);
            for ((_, port), (_, values)) in servers.iter().zip(&mut series) {
                values.push(one(*port).with_context(|| format!("{what}, port {port}"))?);
            }
        }
        let (ours, others) = series.split_first().context("nobody was asked")?;
        let others: Vec<_> = others.iter().map(|(name, values)| (*name, &values[..])).collect();
        table.compare(what, unit, &ours.1, &others);
        Ok(())
    }
}
