use clap::Args;

use crate::{
    api::types::{ClusterInitResponse, ClusterJoinRequest, ClusterJoinResponse, ClusterLeaveResponse},
    cli::{
        failure::Failure,
        format::{FormatArgs, count},
        session::Session,
    },
};

/// What `weft init` takes.
#[derive(Debug, Args)]
#[command(after_help = INIT_EXAMPLES)]
pub(in crate::cli) struct InitArgs {
    #[command(flatten)]
    format: FormatArgs,
}

const INIT_EXAMPLES: &str = "\
Examples:
  weft init
  weft init --format json | jq -r .join.token

The command it prints lets one host join within 15 minutes; `weft token create` makes others.";

/// What `weft join` takes.
#[derive(Debug, Args)]
#[command(after_help = JOIN_EXAMPLES)]
pub(in crate::cli) struct JoinArgs {
    /// A token from `weft init` or `weft token create` on a host of the cluster
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// Any host of the cluster
    #[arg(value_name = "HOST:PORT", value_parser = host_port)]
    address: String,
    #[command(flatten)]
    format: FormatArgs,
}

const JOIN_EXAMPLES: &str = "\
Examples:
  weft join --token weft1-… 192.0.2.10:7946
  weft join --token weft1-… [2001:db8::10]:7946";

/// What `weft leave` takes.
#[derive(Debug, Args)]
#[command(after_help = LEAVE_EXAMPLES)]
pub(in crate::cli) struct LeaveArgs {
    #[command(flatten)]
    format: FormatArgs,
}

const LEAVE_EXAMPLES: &str = "\
Examples:
  weft leave

Removes every endpoint of this host, hands the addresses it owns to the other hosts and tells them.
A host that is gone without having left is removed by another: weft node rm NAME";

/// The agent resolves the host; here it is only seen that there are a host and a port.
fn host_port(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        !host.is_empty() && (bracketed || !host.contains(':'))
    });
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => Err("expected HOST:PORT, such as 192.0.2.10:7946, h1:7946 or [2001:db8::10]:7946".to_owned()),
    }
}

pub(in crate::cli) fn init(session: &Session, args: InitArgs) -> Result<(), Failure> {
    let answer = session.ask("making the cluster", async |client| client.cluster_init().await)?;
    args.format.print(&answer, show_init)
}

pub(in crate::cli) fn join(session: &Session, args: JoinArgs) -> Result<(), Failure> {
    let request = ClusterJoinRequest {
        token: args.token,
        address: args.address,
    };
    let doing = format!("joining the cluster through {}", request.address);
    let answer = session.ask(&doing, async |client| client.cluster_join(&request).await)?;
    args.format.print(&answer, show_join)
}

pub(in crate::cli) fn leave(session: &Session, args: LeaveArgs) -> Result<(), Failure> {
    let doing = "leaving the cluster and handing over what this node owns";
    let answer = session.ask(doing, async |client| client.cluster_leave().await)?;
    args.format.print(&answer, show_leave)
}

fn show_init(answer: &ClusterInitResponse) -> String {
    format!(
        "made cluster {}, this node is {} ({})\n\non the next host, before {}:\n\n  {}\n",
        answer.cluster_id,
        answer.node_name,
        answer.node_id.short(),
        answer.join.expires,
        answer.join.join_command,
    )
}

fn show_join(answer: &ClusterJoinResponse) -> String {
    format!(
        "joined cluster {} as {} ({}): {} known\n",
        answer.cluster_id,
        answer.node_name,
        answer.node_id.short(),
        count(answer.node_count, "node"),
    )
}

fn show_leave(answer: &ClusterLeaveResponse) -> String {
    format!(
        "{} ({}) left cluster {}: {} removed, {} of numbers handed over\n",
        answer.node_name,
        answer.node_id.short(),
        answer.cluster_id,
        count(answer.endpoints_removed, "endpoint"),
        count(answer.blocks_handed_over, "block"),
    )
}
