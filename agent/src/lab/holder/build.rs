//! Building a lab: hosts, agents, one cluster, networks, services, replicas, and the proof that it works.

use std::{collections::BTreeMap, fmt::Display, io, time::Duration};

use anyhow::{Context as _, Result};
use netns_harness::{Lab, SwitchOptions};
use tokio::time::{Instant, sleep};

use super::{
    super::{
        dir::LabDir,
        live::{NetworkLive, ServiceLive},
        resolve::Topology,
        wire::{Progress, send},
    },
    check, cluster, replicas,
    running::{Running, RunningHost},
};

/// Why a lab could not be built, and whose log may say more.
pub(super) struct Broken {
    pub(super) error: anyhow::Error,
    pub(super) log: Option<String>,
}

impl Broken {
    pub(super) fn on(log: &str, error: impl Into<anyhow::Error>) -> Self {
        Self {
            error: error.into(),
            log: Some(log.to_owned()),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            log: None,
        }
    }
}

/// What every step of the building works on.
pub(super) struct Site<'s> {
    pub(super) dir: &'s LabDir,
    pub(super) topology: &'s Topology,
}

impl Site<'_> {
    /// Tells `weft lab up` that a step is done.
    fn done(&self, step: &str, result: String) -> Result<()> {
        let step = Progress::Step {
            step: step.to_owned(),
            result,
        };
        send(io::stdout(), &step).context("`weft lab up` is gone, so nobody wants this lab")
    }
}

/// Builds everything. On failure the process is to end, and everything with it.
pub(super) async fn build(dir: &LabDir, topology: &Topology) -> Result<Running, Broken> {
    let site = Site { dir, topology };

    let lab = Lab::new(&topology.name)?;
    let names: Vec<&str> = topology.hosts.iter().map(|host| host.name.as_str()).collect();
    let hosts = lab.hosts(&names)?;
    let mut options = SwitchOptions::new().mtu(topology.underlay.mtu.into());
    let mut subnets = Vec::new();
    if let Some(net) = topology.underlay.ipv4 {
        options = options.subnet(net);
        subnets.push(net.to_string());
    }
    if let Some(net) = topology.underlay.ipv6 {
        options = options.subnet(net);
        subnets.push(net.to_string());
    }
    let underlay = lab.switch("underlay", options)?;
    lab.plug(&underlay, &hosts)?;
    site.done("hosts", format!("{} on {}", few(&names), subnets.join(" and ")))?;

    let agents = cluster::start_agents(&site, &hosts).await?;
    site.done("agents", format!("{} running", agents.len()))?;
    let node_count = cluster::join_all_hosts(&site).await?;
    let made = format!("{} made it", names[0]);
    let cluster = match node_count {
        1 => made,
        _ => format!("{made}, all {node_count} nodes know each other"),
    };
    site.done("cluster", cluster)?;

    let hosts = hosts.into_iter().zip(agents).map(|(host, agent)| {
        (
            host.name().to_owned(),
            RunningHost {
                host,
                agent,
                killed: false,
            },
        )
    });
    let mut running = Running {
        topology: topology.clone(),
        hosts: hosts.collect(),
        replicas: BTreeMap::new(),
        networks: BTreeMap::new(),
        services: Vec::new(),
        lab,
    };
    for network in cluster::create_networks(&site).await? {
        let subnets = network.subnets.iter().map(|subnet| subnet.subnet).collect();
        let live = NetworkLive {
            vni: network.vni.into(),
            mtu: network.mtu,
            subnets,
        };
        running.networks.insert(network.name, live);
    }
    site.done("networks", describe_networks(&running))?;
    for service in cluster::create_services(&site).await? {
        running.services.push(ServiceLive {
            name: service.name,
            network: service.network_name,
            vips: service.vips,
        });
    }
    site.done("services", describe_services(&running))?;
    running.replicas = replicas::start_all(&site, &running).await?;
    site.done("replicas", describe_replicas(&running))?;
    check::everything(&site, &running).await?;
    site.done(
        "checked",
        "every name resolves, every service answers from every host".to_owned(),
    )?;
    Ok(running)
}

/// Names, or how many there are when they would fill the screen.
fn few(names: &[&str]) -> String {
    if names.len() <= 8 {
        names.join(" ")
    } else {
        format!("{} hosts", names.len())
    }
}

fn describe_networks(running: &Running) -> String {
    let networks = running.networks.iter().map(|(name, live)| {
        let subnets: Vec<_> = live.subnets.iter().map(ToString::to_string).collect();
        format!("{name} {}", subnets.join(" "))
    });
    networks.collect::<Vec<_>>().join(", ")
}

fn describe_services(running: &Running) -> String {
    let plans = running.topology.services.iter().map(|plan| {
        let address = running.vips(&plan.name, &plan.network).first();
        let address = address.map_or_else(|| plan.endpoint_mode.to_string(), ToString::to_string);
        format!("{} {address} on {}", plan.name, plan.network)
    });
    plans.collect::<Vec<_>>().join(", ")
}

fn describe_replicas(running: &Running) -> String {
    let hosts = running.topology.hosts.iter().map(|host| {
        let here = running
            .topology
            .replicas
            .iter()
            .filter(|replica| replica.host == host.name);
        let names: Vec<_> = here.map(|replica| replica.name.as_str()).collect();
        format!(
            "{}: {}",
            host.name,
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(" ")
            }
        )
    });
    hosts.collect::<Vec<_>>().join(", ")
}

/// Looks until `look` succeeds, at most for `timeout`. The error of the last look ends the sentence.
pub(super) async fn until<T, E: Display>(
    what: impl Display,
    timeout: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(5);
    loop {
        let late = Instant::now() >= deadline;
        match look().await {
            Ok(value) => return Ok(value),
            Err(error) if late => {
                anyhow::bail!("{what} did not happen within {} s: {error}", timeout.as_secs())
            }
            Err(_) => sleep(pause).await,
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}
