//! Names from the agent's server, beside dnsmasq with the same names and a responder that only sends questions back.
//!
//! All three listen on the same address in the network's namespace, and are asked by the same endpoint.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netns_harness::{Inside as _, Output, Process, Sandbox, eventually};
use serde_json::json;

use crate::{
    Effort,
    cluster::{Cluster, LOOK_EVERY, Node, PATIENCE},
    responder::{self, Kind},
    table::{Table, Unit},
    tools::{command, number_after},
};

/// The agent's address in every network.
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 53, 53));
const AGENT: u16 = 53;
const ECHO: u16 = 5301;
const DNSMASQ: u16 = 5302;

const ENDPOINTS: usize = 4;
const ALIASES: usize = 15;

pub fn measure(cluster: &Cluster, effort: Effort, table: &mut Table) -> Result<()> {
    let [h1, h2] = &cluster.nodes;
    let network = cluster.network("dns")?;
    let id = network["id"].as_str().context("the network has no id")?;
    let client = h1.endpoint("dns", "dns-c", json!({}))?.sandbox;
    let mut names = Vec::new();
    for endpoint in 0..ENDPOINTS {
        let aliases: Vec<_> = (0..ALIASES)
            .map(|alias| format!("name-{endpoint}-{alias}"))
            .collect();
        let made = h2.endpoint("dns", &format!("dns-{endpoint}"), json!({ "aliases": aliases }))?;
        names.extend(
            aliases
                .into_iter()
                .map(|alias| (format!("{alias}.dns.weft.internal"), made.address)),
        );
    }
    let dir = tempfile::tempdir()?;
    let (questions, hosts) = (dir.path().join("questions"), dir.path().join("hosts"));
    let [mut asked, mut known] = [String::new(), String::new()];
    for (name, address) in &names {
        writeln!(asked, "{name} A")?;
        writeln!(known, "{address} {name}")?;
    }
    std::fs::write(&questions, asked)?;
    std::fs::write(&hosts, known)?;

    let enter = |program: &OsStr| {
        let mut command = command(&format!("nsenter --net=/run/weft/netns/{}", &id[..12]));
        command.arg(program);
        command
    };
    let itself = enter(std::env::current_exe()?.as_os_str());
    let _echo = responder::start_by(&h1.host, itself, Kind::Udp, SocketAddr::new(SERVER, ECHO))?;
    let _dnsmasq = dnsmasq(h1, enter("dnsmasq".as_ref()), &hosts)?;
    for port in [AGENT, DNSMASQ] {
        eventually("an answer to every name", PATIENCE, LOOK_EVERY, || {
            dnsperf(&client, port, &questions, "-n 1").map_err(|error| error.to_string())
        })?;
    }

    let [mut ours, mut echo, mut dnsmasq] = [const { Vec::new() }; 3];
    let limit = format!("-l {}", effort.length.as_secs());
    for round in 0..effort.rounds {
        effort.progress("dns", round);
        ours.push(dnsperf(&client, AGENT, &questions, &limit)?);
        dnsmasq.push(dnsperf(&client, DNSMASQ, &questions, &limit)?);
        echo.push(dnsperf(&client, ECHO, &questions, &limit)?);
    }
    let others = [("dnsmasq", &dnsmasq[..]), ("UDP echo (floor)", &echo)];
    table.compare("DNS, names it knows", Unit::Rate, &ours, &others);
    Ok(())
}

fn dnsmasq(node: &Node, mut by: Command, hosts: &Path) -> Result<Process> {
    by.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--group=",
    ])
    .args([
        "--no-resolv",
        "--no-hosts",
        "--no-poll",
        "--bind-interfaces",
        "--local=/weft.internal/",
    ])
    .arg(format!("--listen-address={SERVER}"))
    .arg(format!("--port={DNSMASQ}"))
    .arg(format!("--addn-hosts={}", hosts.display()));
    Ok(node.host.spawn(&mut by, Output::Keep)?)
}

/// Questions answered, per second; all of them, and each with an address where it is not the echo that answers.
fn dnsperf(client: &Sandbox, port: u16, questions: &Path, limit: &str) -> Result<f64> {
    let line = format!(
        "dnsperf -s {SERVER} -p {port} {limit} -t 1 -d {}",
        questions.display()
    );
    let text = client
        .exec(&mut command(&line), Duration::from_secs(60))?
        .success()?
        .stdout;
    let answered = number_after(&text, "Queries completed:")?;
    let found = number_after(&text, "NOERROR").unwrap_or_default();
    ensure!(
        answered > 0.0 && found >= answered,
        "not every name was answered at port {port}: {text}"
    );
    number_after(&text, "Queries per second:")
}
