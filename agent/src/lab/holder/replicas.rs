//! Replicas: a sandbox on a host, connected to its networks, with a program running in it.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use netns_harness::{Inside as _, Output, Process, Sandbox};

use super::{
    super::{live::EndpointLive, model::Workload, resolve::ReplicaPlan},
    build::{Broken, Site},
    running::{Running, RunningReplica},
};
use crate::api::types::{ConnectRequest, ConnectResponse};

/// Makes, connects and starts all replicas.
pub(super) async fn start_all(
    site: &Site<'_>,
    running: &Running,
) -> Result<BTreeMap<String, RunningReplica>, Broken> {
    let mut sandboxes = Vec::new();
    for plan in &site.topology.replicas {
        let host = running
            .hosts
            .get(&plan.host)
            .with_context(|| format!("the lab has no host {}", plan.host))?;
        sandboxes.push((plan, host.host.sandbox(&plan.name)?));
    }
    let connects = sandboxes.iter().map(async |(plan, sandbox)| {
        connect(site, plan, sandbox)
            .await
            .map_err(|error| Broken::on(&plan.host, error))
    });
    let connected = try_join_all(connects).await?;
    let mut replicas = BTreeMap::new();
    for ((plan, sandbox), responses) in sandboxes.into_iter().zip(connected) {
        furnish(plan, &sandbox, &responses)?;
        let process = start(site, plan, &sandbox).map_err(|error| Broken::on(&plan.name, error))?;
        let endpoints = responses
            .into_iter()
            .map(|response| EndpointLive {
                network: response.network_name,
                ifname: response.ifname,
                addresses: response.addresses.iter().map(ipnet::IpNet::addr).collect(),
            })
            .collect();
        replicas.insert(
            plan.name.clone(),
            RunningReplica {
                sandbox,
                process,
                endpoints,
            },
        );
    }
    Ok(replicas)
}

/// Connects a sandbox to its networks, one after the other: interfaces are made in this order.
async fn connect(site: &Site<'_>, plan: &ReplicaPlan, sandbox: &Sandbox) -> Result<Vec<ConnectResponse>> {
    let client = site.client(&plan.host);
    let mut responses = Vec::new();
    for attachment in &plan.attachments {
        // By path: for a bare name the agent would also write /etc/netns/NAME, which hosts share with the machine.
        let mut request = ConnectRequest::new(sandbox.path().to_string_lossy());
        request.name = Some(plan.name.clone());
        request.aliases = attachment.aliases.clone();
        request.ip = attachment.ipv4;
        request.ip6 = attachment.ipv6;
        request.mac = attachment.mac;
        request.service = Some(plan.service.clone());
        request.weight = Some(plan.weight);
        let response = client.network_connect(&attachment.network, &request).await;
        responses
            .push(response.with_context(|| {
                format!("cannot connect {} to network {}", plan.name, attachment.network)
            })?);
    }
    Ok(responses)
}

/// Lets the sandbox resolve names by its networks.
fn furnish(plan: &ReplicaPlan, sandbox: &Sandbox, responses: &[ConnectResponse]) -> Result<()> {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for dns in responses.iter().map(|response| &response.dns) {
        add_new(&mut servers, &dns.servers);
        add_new(&mut search, &dns.search);
    }
    let mut resolver: String = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    // Short names go through the search list; the server is next door, so a lost packet is asked again soon.
    resolver.push_str(&format!(
        "search {}\noptions ndots:1 timeout:1 attempts:3\n",
        search.join(" ")
    ));
    sandbox.set_resolv_conf(&resolver)?;
    let addresses = responses.iter().flat_map(|response| &response.addresses);
    let own: String = addresses
        .map(|address| format!("{}\t{}\n", address.addr(), plan.name))
        .collect();
    Ok(sandbox.set_hosts_file(&format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{own}"))?)
}

fn start(site: &Site<'_>, plan: &ReplicaPlan, sandbox: &Sandbox) -> Result<Option<Process>> {
    let mut command = match &plan.workload {
        Workload::Idle => return Ok(None),
        Workload::Whoami => {
            let mut command = Command::new("/proc/self/exe");
            command.args([
                "whoami",
                "--name",
                &plan.name,
                "--listen",
                &format!(":{}", plan.port),
            ]);
            command.args(["--delay", &plan.delay_ms.to_string()]);
            command
        }
        Workload::Command(words) => {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            command
        }
    };
    command.envs(&plan.environment);
    Ok(Some(
        sandbox.spawn(&mut command, Output::File(site.dir.log(&plan.name)))?,
    ))
}

fn add_new<T: PartialEq + Clone>(list: &mut Vec<T>, items: &[T]) {
    for item in items {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}
