use std::time::Duration;

use clap::{Args, Subcommand};

use crate::{
    api::types::{NodeDetail, NodeDrainRequest, NodeInfo, NodeRemoveResponse, NodeRotateKeyResponse},
    cli::{
        failure::Failure,
        format::{FormatArgs, ListArgs, count, print},
        nouns::{
            drain::{GraceArg, await_drain, ended},
            encryption::{add_tunnel, numbered},
            network::endpoint_table,
        },
        session::Session,
        table::{Facts, Table},
        warning::warn_unconfirmed,
    },
};

/// The verbs of `weft node`.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) enum NodeCommand {
    /// List the hosts of the cluster and what this one believes about them
    Ls(ListArgs),
    /// Show a host: its endpoints and the addresses it owns
    Inspect(InspectArgs),
    /// Give the backends on a host no new connections, and the open ones time to end
    Drain(DrainArgs),
    /// Give the backends on a host new connections again
    Activate(ActivateArgs),
    /// Change this host's key for encrypted networks; no packet is lost
    RotateKey(RotateKeyArgs),
    /// Remove a host that is gone, so that others may hand out what it owned
    Rm(RemoveArgs),
}

const EXAMPLES: &str = "\
Examples:
  weft node ls
  weft node inspect h2
  weft node drain h2 --grace 5m        (before an upgrade, say)
  weft node activate h2
  weft node rotate-key        (on the host whose key it is; `weft status` says how far it is)
  weft node rm h3
  weft node rm --force h3        (one of two hosts is left, and you know that h3 is dead)";

/// What `weft node inspect` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    /// Its name, id or the beginning of its id
    node: String,
    #[command(flatten)]
    format: FormatArgs,
}

/// What `weft node drain` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct DrainArgs {
    /// Its name, id or the beginning of its id [default: this host]
    node: Option<String>,
    #[command(flatten)]
    grace: GraceArg,
}

/// What `weft node activate` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct ActivateArgs {
    /// Its name, id or the beginning of its id [default: this host]
    node: Option<String>,
}

/// What `weft node rotate-key` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct RotateKeyArgs {
    /// This host's name, id or the beginning of its id: no other host can change its key [default: this host]
    node: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// What `weft node rm` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct RemoveArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Your word that it is dead, where no majority of nodes is left to agree: if it is alive, addresses
    /// may be given twice
    #[arg(long)]
    force: bool,
}

pub(in crate::cli) fn run(session: &Session, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::Ls(args) => {
            let nodes = session.ask("listing the nodes", async |client| client.nodes().await)?;
            args.print(
                &nodes,
                |node| node.id.to_string(),
                |nodes| node_table(nodes).render(""),
            )
        }
        NodeCommand::Inspect(args) => {
            let doing = format!("looking at node {}", args.node);
            let node = session.ask(&doing, async |client| client.node(&args.node).await)?;
            args.format.print(&node, show)
        }
        NodeCommand::Drain(args) => {
            let node = named_or_this(session, args.node)?;
            let request = NodeDrainRequest {
                grace_ms: args.grace.millis(),
            };
            let (what, undo) = (format!("node {node}"), format!("weft node activate {node}"));
            let answer = await_drain(session, &what, &undo, async |client| {
                client.node_drain(&node, &request).await
            })?;
            warn_unconfirmed(&answer.unconfirmed);
            print(&format!(
                "drained node {} ({}), {}: {}\n",
                answer.name,
                answer.id.short(),
                count(answer.backends, "backend"),
                ended(answer.left, &answer.uncounted)
            ))
        }
        NodeCommand::Activate(args) => {
            let node = named_or_this(session, args.node)?;
            let doing = format!("activating node {node}");
            let answer = session.ask(&doing, async |client| client.node_activate(&node).await)?;
            warn_unconfirmed(&answer.unconfirmed);
            print(&format!(
                "activated node {} ({})\n",
                answer.name,
                answer.id.short()
            ))
        }
        NodeCommand::RotateKey(args) => {
            let node = named_or_this(session, args.node)?;
            let doing = format!("changing the key of node {node}");
            let answer = session.ask(&doing, async |client| client.node_rotate_key(&node).await)?;
            args.format.print(&answer, show_rotated)
        }
        NodeCommand::Rm(args) => session.each(&args.nodes, |node| {
            let doing = format!("removing node {node}");
            let answer = session.ask(&doing, async |client| client.node_remove(node, args.force).await)?;
            print(&show_removed(&answer))
        }),
    }
}

/// The node that was named, or the one that answers.
fn named_or_this(session: &Session, node: Option<String>) -> Result<String, Failure> {
    if let Some(node) = node {
        return Ok(node);
    }
    let nodes = session.ask("listing the nodes", async |client| client.nodes().await)?;
    let this = nodes.into_iter().find(|node| node.is_self);
    this.map(|node| node.id.to_string())
        .ok_or_else(|| Failure::new("the agent does not know itself"))
}

/// The columns of every list of nodes; `*` marks the one that answers.
pub(in crate::cli) fn node_table(nodes: &[NodeInfo]) -> Table<8> {
    let mut table = Table::new([
        "ID",
        "NAME",
        "STATE",
        "AVAILABILITY",
        "UNDERLAY ADDRESS",
        "VTEP",
        "ENDPOINTS",
        "VERSION",
    ]);
    for node in nodes {
        table.row([
            node.id.short(),
            if node.is_self {
                format!("{} *", node.name)
            } else {
                node.name.clone()
            },
            node.state.to_string(),
            node.availability.to_string(),
            node.underlay_address.to_string(),
            node.vtep.to_string(),
            node.endpoint_count.to_string(),
            node.version.clone(),
        ]);
    }
    table
}

fn show(node: &NodeDetail) -> String {
    let mut facts = Facts::default();
    facts
        .add("id", node.info.id)
        .add("name", &node.info.name)
        .add("state", node.info.state)
        .add("availability", node.info.availability)
        .add("underlay address", node.info.underlay_address)
        .add("vtep", node.info.vtep)
        .add("version", &node.info.version)
        .add("key", numbered(node.key_fingerprint.as_deref(), node.key_epoch));
    add_tunnel(&mut facts, node.tunnel.as_ref());
    let mut shares = Table::new(["NETWORK", "SUBNET", "OWNED", "USED"]);
    for share in &node.shares {
        shares.row([
            share.network_name.clone(),
            share.subnet.to_string(),
            share.owned.to_string(),
            share.used.to_string(),
        ]);
    }
    let endpoints = endpoint_table(&node.endpoints).render("  ");
    format!(
        "{}\nendpoints\n{endpoints}\naddresses\n{}",
        facts.render(),
        shares.render("  ")
    )
}

fn show_rotated(answer: &NodeRotateKeyResponse) -> String {
    let most = humantime::format_duration(Duration::from_secs(answer.change.at_most_ms / 1000));
    format!(
        "node {} ({}) changes its key: {} (number {}) follows {}\n\
         packets go by both until all nodes use the new one, {most} at most; `weft status` says how far it is\n",
        answer.name,
        answer.id.short(),
        answer.change.fingerprint,
        answer.change.epoch,
        answer.fingerprint,
    )
}

fn show_removed(answer: &NodeRemoveResponse) -> String {
    let still_owned = answer.still_owned.iter();
    let still_owned: String = still_owned.map(|why| format!("{why}\n")).collect();
    format!(
        "removed node {} ({}){}: {} forgotten, {} of numbers reclaimed\n{still_owned}",
        answer.name,
        answer.id.short(),
        if answer.forced {
            " on your word that it is dead"
        } else {
            ""
        },
        count(answer.endpoints_removed, "endpoint"),
        count(answer.blocks_reclaimed, "block"),
    )
}
