use clap::Args;
use serde::Serialize;

use super::{
    encryption::{add_encryption, tunnel_table},
    network::network_table,
    node::node_table,
    token::show_change,
};
use crate::{
    api::types::{NamesStatus, StatusResponse, VersionResponse},
    cli::{failure::Failure, format::FormatArgs, session::Session, table::Facts},
};

/// What `weft status` takes.
#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(in crate::cli) struct StatusArgs {
    #[command(flatten)]
    format: FormatArgs,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  weft status
  weft status --format json | jq -r '.problems[]'";

/// What `weft version` takes.
#[derive(Debug, Args)]
#[command(after_help = VERSION_EXAMPLES)]
pub(in crate::cli) struct VersionArgs {
    #[command(flatten)]
    format: FormatArgs,
}

const VERSION_EXAMPLES: &str = "\
Examples:
  weft version
  weft version --format json";

/// Both ends; the agent's is missing, not a failure, when it cannot be asked.
#[derive(Debug, Serialize)]
struct Versions {
    client: VersionResponse,
    agent: Option<VersionResponse>,
}

pub(in crate::cli) fn status(session: &Session, args: StatusArgs) -> Result<(), Failure> {
    let status = session.ask("asking the agent", async |client| client.status().await)?;
    args.format.print(&status, show)
}

pub(in crate::cli) fn version(session: &Session, args: VersionArgs) -> Result<(), Failure> {
    let agent = session.ask("asking the agent", async |client| client.version().await);
    let (agent, failure) = match agent {
        Ok(version) => (Some(version), None),
        Err(failure) => (None, Some(failure)),
    };
    args.format.print(
        &Versions {
            client: VersionResponse::this(),
            agent,
        },
        |versions| {
            let mut facts = Facts::default();
            facts.add("weft", show_version(&versions.client));
            facts.add(
                "agent",
                versions.agent.as_ref().map(show_version).unwrap_or_default(),
            );
            facts.render()
        },
    )?;
    if let Some(failure) = failure {
        eprintln!("note: {}", failure.sentence());
    }
    Ok(())
}

fn show_version(version: &VersionResponse) -> String {
    format!("{} (API {})", version.version, version.api)
}

/// What most hosts do not have is shown where it is.
fn add_names(facts: &mut Facts, names: &NamesStatus) {
    if let Some(address) = names.host {
        let networks = match &names.host_networks[..] {
            [] => "the networks on this host".to_owned(),
            some => some.join(", "),
        };
        facts.add("host names", format!("of {networks}, at {address}"));
    }
    for forward in &names.forward {
        let servers: Vec<_> = forward.servers.iter().map(ToString::to_string).collect();
        facts.add(
            "names",
            format!("{} asked of {} only", forward.domain, servers.join(", ")),
        );
    }
}

fn show(status: &StatusResponse) -> String {
    let node = &status.node;
    let mut facts = Facts::default();
    facts
        .add(
            "node",
            format!(
                "{} ({}), version {}, since {}",
                node.name,
                node.id.short(),
                node.version,
                status.started
            ),
        )
        .add(
            "underlay",
            format!("{}, vtep {}", node.underlay_address, node.vtep),
        )
        .add(
            "cluster",
            match &status.cluster {
                Some(cluster) => {
                    format!(
                        "{}, {} of {} nodes alive",
                        cluster.id.short(),
                        cluster.alive_count,
                        cluster.node_count
                    )
                }
                None => "none yet: `weft init` makes one, `weft join` joins one".to_owned(),
            },
        )
        .add(
            "datapath",
            format!("{}: {}", status.datapath.name, status.datapath.reason),
        );
    let key = status.cluster.as_ref().map(|cluster| &cluster.gossip_key);
    if let Some(change) = key.and_then(show_change) {
        facts.add("gossip key", change);
    }
    add_names(&mut facts, &status.names);
    add_encryption(&mut facts, status.encryption.as_ref());
    facts.add(
        "problems",
        if status.problems.is_empty() {
            "none".to_owned()
        } else {
            status.problems.len().to_string()
        },
    );
    let mut text = facts.render();
    for problem in &status.problems {
        text.push_str(&format!("  ! {problem}\n"));
    }
    if !status.peers.is_empty() {
        text.push_str(&format!("\npeers\n{}", node_table(&status.peers).render("  ")));
    }
    if !status.networks.is_empty() {
        text.push_str(&format!(
            "\nnetworks\n{}",
            network_table(&status.networks).render("  ")
        ));
    }
    if let Some(encryption) = &status.encryption {
        let tunnels = tunnel_table(&encryption.tunnels).render("  ");
        text.push_str(&format!("\ntunnels\n{tunnels}"));
    }
    text
}
