//! Agents, the cluster they form, and its networks and services: all through the agents' own API.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use futures_util::future::{join_all, try_join_all};
use netns_harness::{Host, Inside as _, Output, Process};

use super::{
    super::{model::NetworkSpec, resolve::HostPlan},
    build::{Broken, Site, until},
};
use crate::{
    api::{
        client::Client,
        types::{
            ClusterJoinRequest, NetworkCreateRequest, NetworkSummary, NodeState, ServiceCreateRequest,
            ServiceSummary, TokenCreateRequest,
        },
    },
    options::DEFAULT_GOSSIP_PORT,
};

/// An agent starts in well under a second; many of them share the cores.
const AGENT_TIMEOUT: Duration = Duration::from_secs(30);
/// What one node knows, all learn within a second or so.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Nobody but this lab's hosts can reach its cluster.
const TOKEN_TTL_SECS: u64 = 3600;

impl Site<'_> {
    /// A client of a host's agent. The socket is found by its path, from any network namespace.
    pub(super) fn client(&self, host: &str) -> Client {
        Client::new(self.dir.agent_socket(host))
    }

    fn first(&self) -> &HostPlan {
        &self.topology.hosts[0]
    }
}

/// Starts an agent on every host and waits until each answers.
pub(super) async fn start_agents(site: &Site<'_>, hosts: &[Host]) -> Result<Vec<Process>, Broken> {
    let mut agents = Vec::new();
    for (host, plan) in hosts.iter().zip(&site.topology.hosts) {
        agents.push(start_agent(site, host, plan).map_err(|error| Broken::on(host.name(), error))?);
    }
    let waits = agents
        .iter()
        .zip(&site.topology.hosts)
        .map(async |(agent, plan)| {
            let client = site.client(&plan.name);
            let what = format!("an answer from the agent of host {}", plan.name);
            let answered = until(what, AGENT_TIMEOUT, async || {
                if let Some(status) = agent.try_wait() {
                    return Ok(Err(anyhow!(
                        "the agent of host {} ended at its start: {status}",
                        plan.name
                    )));
                }
                client.version().await.map(Ok)
            });
            match answered.await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) | Err(error) => Err(Broken::on(&plan.name, error)),
            }
        });
    first_failure(join_all(waits).await)?;
    Ok(agents)
}

fn start_agent(site: &Site<'_>, host: &Host, plan: &HostPlan) -> Result<Process> {
    let advertise = SocketAddr::new(plan.advertise(), DEFAULT_GOSSIP_PORT);
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("agent")
        .arg("--data-dir")
        .arg(site.dir.data_dir(&plan.name))
        // In the host's own `/run`, which ends with the host.
        .args(["--run-dir", "/run/weft", "--docker-plugin", "off"])
        // Programs would be at the root of this machine's control groups, once for every host of the lab.
        .args(["--datapath", "nft"])
        // Nobody but this lab is in its cluster.
        .arg("--health-commands")
        .arg("--socket")
        .arg(site.dir.agent_socket(&plan.name))
        .args(["--node-name", &plan.name, "--advertise", &advertise.to_string()]);
    Ok(host.spawn(&mut command, Output::File(site.dir.log(&plan.name)))?)
}

/// Makes the cluster on the first host, lets the others join, and waits until all know all.
pub(super) async fn join_all_hosts(site: &Site<'_>) -> Result<usize, Broken> {
    let first = site.first();
    let client = site.client(&first.name);
    let on_first = |error: anyhow::Error| Broken::on(&first.name, error);
    client
        .cluster_init()
        .await
        .with_context(|| format!("host {} cannot make a cluster", first.name))
        .map_err(on_first)?;
    let token = TokenCreateRequest {
        ttl_secs: TOKEN_TTL_SECS,
        reusable: true,
    };
    let token = client
        .token_create(&token)
        .await
        .context("cannot make a join token")
        .map_err(on_first)?
        .token;
    let address = SocketAddr::new(first.advertise(), DEFAULT_GOSSIP_PORT).to_string();

    let joins = site.topology.hosts.iter().skip(1).map(async |host| {
        let request = ClusterJoinRequest {
            token: token.clone(),
            address: address.clone(),
        };
        let joined = site.client(&host.name).cluster_join(&request).await;
        joined
            .with_context(|| format!("host {} cannot join", host.name))
            .map_err(|error| Broken::on(&host.name, error))
    });
    first_failure(join_all(joins).await)?;

    let wanted = site.topology.hosts.len();
    on_all(site, "knowledge of all nodes", async |client| {
        let nodes = client.nodes().await.map_err(|error| error.to_string())?;
        let alive = nodes.iter().filter(|node| node.state == NodeState::Alive).count();
        if alive == wanted {
            Ok(())
        } else {
            Err(format!("it knows {alive} of {wanted}"))
        }
    })
    .await?;
    Ok(wanted)
}

/// Creates the networks, in order, and waits until every node knows them.
pub(super) async fn create_networks(site: &Site<'_>) -> Result<Vec<NetworkSummary>, Broken> {
    let host = &site.first().name;
    let client = site.client(host);
    let mut made = Vec::new();
    for network in &site.topology.networks {
        let created = client.network_create(&create_request(network)).await;
        let created = created.with_context(|| format!("cannot create network {}", network.name));
        made.push(created.map_err(|error| Broken::on(host, error))?);
    }
    on_all(site, "knowledge of all networks", async |client| {
        let known = client.networks().await.map_err(|error| error.to_string())?;
        match made
            .iter()
            .find(|network| known.iter().all(|other| other.id != network.id))
        {
            None => Ok(()),
            Some(network) => Err(format!("it does not know {}", network.name)),
        }
    })
    .await?;
    Ok(made)
}

fn create_request(network: &NetworkSpec) -> NetworkCreateRequest {
    let mut request = NetworkCreateRequest::new(&network.name);
    for subnet in &network.subnets {
        request.subnets.push(subnet.subnet);
        request.ip_ranges.extend(subnet.ip_range);
        request.gateways.extend(subnet.gateway);
        request.aux_addresses.extend(subnet.aux_addresses.clone());
    }
    request.ipv6 = network.ipv6;
    request.internal = network.internal;
    if let Some(mtu) = network.mtu {
        request.options.insert("mtu".to_owned(), mtu.to_string());
    }
    if let Some(encrypted) = network.encrypted {
        request
            .options
            .insert("encrypted".to_owned(), encrypted.to_string());
    }
    request.labels = network.labels.clone();
    request.allow_overlap = network.overlaps;
    request
}

/// Creates the services and waits until every node knows them.
pub(super) async fn create_services(site: &Site<'_>) -> Result<Vec<ServiceSummary>, Broken> {
    let host = &site.first().name;
    let client = site.client(host);
    let mut made = Vec::new();
    for service in &site.topology.services {
        let request = ServiceCreateRequest {
            network: service.network.clone(),
            name: service.name.clone(),
            scheduler: service.lb,
            endpoint_mode: service.endpoint_mode,
            ports: Vec::new(),
            health: service.health.clone(),
            publish: service.publish.clone(),
            tuning: service.tuning,
        };
        let created = client.service_create(&request).await;
        let created =
            created.with_context(|| format!("cannot create service {} on {}", service.name, service.network));
        made.push(created.map_err(|error| Broken::on(host, error))?.summary);
    }
    on_all(site, "knowledge of all services", async |client| {
        let known = client.services(None).await.map_err(|error| error.to_string())?;
        match made
            .iter()
            .find(|service| known.iter().all(|other| other.id != service.id))
        {
            None => Ok(()),
            Some(service) => Err(format!("it does not know {}", service.name)),
        }
    })
    .await?;
    Ok(made)
}

/// Waits until `look` succeeds on every host.
async fn on_all(
    site: &Site<'_>,
    what: &str,
    look: impl AsyncFn(&Client) -> Result<(), String>,
) -> Result<(), Broken> {
    let looks = site.topology.hosts.iter().map(async |host| {
        let client = site.client(&host.name);
        let what = format!("{what} on host {}", host.name);
        let seen = until(what, CONVERGENCE_TIMEOUT, async || look(&client).await).await;
        seen.map_err(|error| Broken::on(&host.name, error))
    });
    try_join_all(looks).await?;
    Ok(())
}

fn first_failure<T>(results: Vec<Result<T, Broken>>) -> Result<(), Broken> {
    results.into_iter().find_map(Result::err).map_or(Ok(()), Err)
}
