//! Requests to a service's virtual address, beside the same requests to its backend itself.
//!
//! One backend, so that the path and the work behind it are the same. The backend is asked directly from the client itself,
//! in whose namespace packets meet the service's rules, and from a client on a network without services, where they meet none.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use netns_harness::{Inside as _, Sandbox, eventually};
use serde_json::json;

use crate::{
    Effort,
    cluster::{Cluster, LOOK_EVERY, PATIENCE, await_ping},
    responder::{self, Kind},
    table::{Table, Unit},
    tools::{command, number_after},
};

const HTTP: u16 = 8080;
const UDP: u16 = 8053;
const CONNECTIONS: usize = 16;

type Load = fn(&Sandbox, IpAddr, Effort) -> Result<f64>;

pub fn measure(cluster: &Cluster, effort: Effort, table: &mut Table) -> Result<()> {
    let [h1, h2] = &cluster.nodes;
    cluster.network("vip")?;
    cluster.network("plain")?;
    let service = json!({ "network": "vip", "name": "web" });
    let service = h1.api()?.post("/v1/services", &service)?;
    let vip: IpAddr = service["vips"][0]
        .as_str()
        .context("the service has no address")?
        .parse()?;
    await_service(cluster)?;
    let backend = h2.endpoint("vip", "vip-b", json!({ "service": "web" }))?;
    let on_plain = h2.connect("plain", &backend.sandbox, json!({}))?;
    let client = h1.endpoint("vip", "vip-c", json!({}))?;
    let outsider = h1.endpoint("plain", "vip-o", json!({}))?;
    let everywhere = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let _responders = [
        responder::start(&backend.sandbox, Kind::Http, everywhere(HTTP))?,
        responder::start(&backend.sandbox, Kind::Udp, everywhere(UDP))?,
    ];
    await_ping(&client.sandbox, backend.address)?;
    await_ping(&outsider.sandbox, on_plain)?;
    await_http(&client.sandbox, vip)?;

    let loads: [(&str, Load); 3] = [
        ("VIP, keep-alive HTTP", |from, to, effort| {
            wrk(from, to, effort, true)
        }),
        ("VIP, new connection each", |from, to, effort| {
            wrk(from, to, effort, false)
        }),
        ("VIP, UDP", datagrams),
    ];
    for (what, load) in loads {
        let [mut through_vip, mut direct, mut untouched] = [const { Vec::new() }; 3];
        for round in 0..effort.rounds {
            effort.progress(what, round);
            through_vip.push(load(&client.sandbox, vip, effort)?);
            direct.push(load(&client.sandbox, backend.address, effort)?);
            untouched.push(load(&outsider.sandbox, on_plain, effort)?);
        }
        let others = [("direct", &direct[..]), ("direct, no services", &untouched)];
        table.compare(what, Unit::Rate, &through_vip, &others);
    }
    Ok(())
}

fn await_service(cluster: &Cluster) -> Result<()> {
    let mut api = cluster.nodes[1].api()?;
    eventually("knowledge of the service", PATIENCE, LOOK_EVERY, || {
        api.get("/v1/services/web").map_err(|error| error.to_string())
    })?;
    Ok(())
}

fn await_http(from: &Sandbox, to: IpAddr) -> Result<()> {
    let connect = || TcpStream::connect_timeout(&(to, HTTP).into(), Duration::from_secs(1));
    eventually("a connection to the service", PATIENCE, LOOK_EVERY, || {
        let tried = from.run(connect).map_err(|error| error.to_string())?;
        tried.map_err(|error| error.to_string())
    })?;
    Ok(())
}

/// HTTP requests answered, per second.
fn wrk(from: &Sandbox, to: IpAddr, effort: Effort, keep_alive: bool) -> Result<f64> {
    let seconds = effort.length.as_secs();
    let mut command = command(&format!(
        "wrk --threads 1 --connections {CONNECTIONS} --duration {seconds}"
    ));
    if !keep_alive {
        command.args(["--header", "Connection: close"]);
    }
    command.arg(format!("http://{to}:{HTTP}/"));
    let text = from
        .exec(&mut command, Duration::from_secs(60))?
        .success()?
        .stdout;
    if let Some(errors) = text.lines().find(|line| line.contains("Socket errors")) {
        eprintln!("  {to}: {}", errors.trim());
    }
    number_after(&text, "Requests/sec:")
}

/// Datagrams answered, per second: DNS questions, as far as their sender knows.
fn datagrams(from: &Sandbox, to: IpAddr, effort: Effort) -> Result<f64> {
    let names = tempfile::NamedTempFile::new()?;
    std::fs::write(names.path(), "name A\n")?;
    let seconds = effort.length.as_secs();
    let line = format!(
        "dnsperf -s {to} -p {UDP} -l {seconds} -d {}",
        names.path().display()
    );
    let finished = from
        .exec(&mut command(&line), Duration::from_secs(60))?
        .success()?;
    number_after(&finished.stdout, "Queries per second:")
}
