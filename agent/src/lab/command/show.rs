//! `weft lab ls`, `inspect` and `graph`.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    super::{
        dir::LabDir,
        graph::Drawing,
        live::{HostState, ReplicaState},
        resolve::resolve,
        wire::{Request, Status, ask},
    },
    Format, GraphArgs, load,
};

/// A lab in a listing.
#[derive(Serialize)]
struct Listed {
    name: String,
    state: LabState,
    hosts: usize,
    replicas: usize,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum LabState {
    Up,
    Building,
    Dead,
}

pub(super) fn ls(format: Format) -> Result<ExitCode> {
    let labs: Vec<_> = LabDir::all()?
        .into_iter()
        .map(|dir| {
            let record = dir.read().ok();
            let state = match (dir.is_held(), &record) {
                (true, Some(record)) if record.footprint.is_some() => LabState::Up,
                (true, _) => LabState::Building,
                (false, _) => LabState::Dead,
            };
            let topology = record.map(|record| record.topology);
            Listed {
                name: dir.name().to_owned(),
                state,
                hosts: topology.as_ref().map_or(0, |topology| topology.hosts.len()),
                replicas: topology.as_ref().map_or(0, |topology| topology.replicas.len()),
            }
        })
        .collect();
    match format {
        Format::Json => say(&json(&labs)?)?,
        Format::Table => {
            let mut rows = vec![["NAME", "STATE", "HOSTS", "REPLICAS"].map(str::to_owned).to_vec()];
            for lab in &labs {
                let state = match lab.state {
                    LabState::Up => "up",
                    LabState::Building => "building",
                    LabState::Dead => "dead",
                };
                rows.push(vec![
                    lab.name.clone(),
                    state.to_owned(),
                    lab.hosts.to_string(),
                    lab.replicas.to_string(),
                ]);
            }
            say(&table(&rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn inspect(dir: &LabDir, format: Format) -> Result<ExitCode> {
    let status: Status = ask(dir, &Request::Status)?;
    match format {
        Format::Json => say(&json(&status)?)?,
        Format::Table => say(&describe(dir, &status))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(dir: &LabDir, Status { topology, live }: &Status) -> String {
    let words = |items: &[std::net::IpAddr]| {
        items
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut rows = vec![["HOST", "STATE", "UNDERLAY", "AGENT"].map(str::to_owned).to_vec()];
    for host in &topology.hosts {
        let state = match live.hosts.get(&host.name) {
            Some(HostState::Up) => "up",
            Some(HostState::AgentDown) => "agent down",
            Some(HostState::Killed) | None => "killed",
        };
        let addresses: Vec<_> = [host.ipv4.map(Into::into), host.ipv6.map(Into::into)]
            .into_iter()
            .flatten()
            .collect();
        let socket = format!("unix://{}", dir.agent_socket(&host.name).display());
        rows.push(vec![
            host.name.clone(),
            state.to_owned(),
            words(&addresses),
            socket,
        ]);
    }
    let mut text = table(&rows);
    rows = vec![
        ["NETWORK", "SUBNETS", "VNI", "MTU", "INTERNAL"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for network in &topology.networks {
        let Some(found) = live.networks.get(&network.name) else {
            continue;
        };
        let subnets = found
            .subnets
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ");
        let internal = if network.internal { "yes" } else { "no" };
        rows.push(vec![
            network.name.clone(),
            subnets,
            found.vni.to_string(),
            found.mtu.to_string(),
            internal.to_owned(),
        ]);
    }
    text.push_str(&format!("\n{}", table(&rows)));
    rows = vec![
        ["SERVICE", "NETWORK", "MODE", "LB", "ADDRESSES", "REPLICAS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for service in &topology.services {
        rows.push(vec![
            service.name.clone(),
            service.network.clone(),
            service.endpoint_mode.to_string(),
            service.lb.to_string(),
            words(live.vips(&service.name, &service.network)),
            service.replicas.join(" "),
        ]);
    }
    text.push_str(&format!("\n{}", table(&rows)));
    rows = vec![
        ["REPLICA", "STATE", "HOST", "NETWORK", "INTERFACE", "ADDRESSES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for replica in &topology.replicas {
        let Some(found) = live.replicas.get(&replica.name) else {
            continue;
        };
        let state = match found.state {
            ReplicaState::Running => "running".to_owned(),
            ReplicaState::Exited(code) => format!("exited ({code})"),
            ReplicaState::Killed => "killed".to_owned(),
        };
        for endpoint in &found.endpoints {
            rows.push(vec![
                replica.name.clone(),
                state.clone(),
                replica.host.clone(),
                endpoint.network.clone(),
                endpoint.ifname.clone(),
                words(&endpoint.addresses),
            ]);
        }
    }
    text.push_str(&format!(
        "\n{}\nlogs: {}\n",
        table(&rows),
        dir.path().join("logs").display()
    ));
    text
}

pub(super) fn graph(args: &GraphArgs) -> Result<ExitCode> {
    let picture = if looks_like_a_file(&args.what) {
        let lab = load(&args.what)?;
        let stem = args.what.file_stem().unwrap_or_default().to_string_lossy();
        let topology = resolve(&lab, lab.name.as_deref().unwrap_or(&stem));
        Drawing {
            topology: &topology,
            live: None,
        }
        .render(args.format)
    } else {
        let status: Status = ask(&LabDir::of(&args.what.to_string_lossy())?, &Request::Status)?;
        Drawing {
            topology: &status.topology,
            live: Some(&status.live),
        }
        .render(args.format)
    };
    match &args.output {
        Some(path) => fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))?,
        None => say(&picture)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A lab's name has neither a slash nor a dot.
fn looks_like_a_file(what: &Path) -> bool {
    let text = what.to_string_lossy();
    text.contains('/') || text.contains('.')
}

/// Writes to standard output; a reader that has gone away, as in `weft lab ls | head -1`, is no failure.
pub(super) fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Columns as wide as their widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0);
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
