use std::time::Duration;

use clap::{Args, Subcommand};

use crate::{
    api::types::{GossipKeyStatus, TokenCreateRequest, TokenCreateResponse, TokenInfo},
    cli::{
        failure::Failure,
        format::{FormatArgs, ListArgs, yes},
        session::Session,
        table::Table,
    },
};

/// The verbs of `weft token`.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) enum TokenCommand {
    /// Make a token and print the command for the host that is to join
    Create(CreateArgs),
    /// List the tokens, without their secrets
    Ls(ListArgs),
    /// Give the cluster another key for what agents say to each other; who was removed and has kept the old one is shut out
    RotateKey(RotateKeyArgs),
}

const EXAMPLES: &str = "\
Examples:
  weft token create
  weft token create --ttl 1h --reusable
  weft token ls
  weft token rotate-key       (after `weft node rm` of a host that others may have; tokens stay valid)";

/// What `weft token create` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct CreateArgs {
    /// How long it is valid: 90s, 15m, 2h, 1day
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = ttl)]
    ttl: Duration,
    /// Let more than one host join with it
    #[arg(long)]
    reusable: bool,
    #[command(flatten)]
    format: FormatArgs,
}

/// What `weft token rotate-key` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct RotateKeyArgs {
    #[command(flatten)]
    format: FormatArgs,
}

fn ttl(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(ttl) if ttl.as_secs() > 0 => Ok(ttl),
        Ok(_) => Err("a token has to be valid for a second at least".to_owned()),
        Err(_) => Err("expected a time such as 90s, 15m or 2h".to_owned()),
    }
}

pub(in crate::cli) fn run(session: &Session, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => {
            let request = TokenCreateRequest {
                ttl_secs: args.ttl.as_secs(),
                reusable: args.reusable,
            };
            let answer = session.ask("making a token", async |client| {
                client.token_create(&request).await
            })?;
            args.format.print(&answer, show_created)
        }
        TokenCommand::Ls(args) => {
            let tokens = session.ask("listing the tokens", async |client| client.tokens().await)?;
            args.print(&tokens, |token| token.id.clone(), show_list)
        }
        TokenCommand::RotateKey(args) => {
            let doing = "changing the gossip key";
            let answer = session.ask(doing, async |client| client.token_rotate_key().await)?;
            args.format.print(&answer, show_rotated)
        }
    }
}

fn show_created(answer: &TokenCreateResponse) -> String {
    let hosts = if answer.reusable {
        "any number of hosts"
    } else {
        "one host"
    };
    format!(
        "lets {hosts} join until {}:\n\n  {}\n",
        answer.expires, answer.join_command
    )
}

fn show_rotated(key: &GossipKeyStatus) -> String {
    let mut text = format!("gossip key {} ({}) is in use\n", key.epoch, key.id);
    if !key.waiting_for.is_empty() {
        text.push_str(&format!(
            "{} not have it yet, and get it when they are heard of; until then the one before is kept for them\n",
            have_not(&key.waiting_for)
        ));
    }
    text
}

/// The names, and the verb that follows them.
fn have_not(names: &[String]) -> String {
    let verb = if names.len() == 1 { "does" } else { "do" };
    format!("{} {verb}", names.join(", "))
}

/// How far a change of the key is, in a line of `weft status`.
pub(super) fn show_change(key: &GossipKeyStatus) -> Option<String> {
    if key.waiting_for.is_empty() {
        return (key.kept > 1).then(|| {
            format!(
                "number {} is in use, older ones are about to be forgotten",
                key.epoch
            )
        });
    }
    Some(format!(
        "number {} is in use; {} not have it, and older ones are kept for that",
        key.epoch,
        have_not(&key.waiting_for)
    ))
}

fn show_list(tokens: &Vec<TokenInfo>) -> String {
    let mut table = Table::new(["ID", "MADE BY", "EXPIRES", "REUSABLE", "USES"]);
    for token in tokens {
        table.row([
            token.id.clone(),
            token.created_by_name.clone(),
            token.expires.to_string(),
            yes(token.reusable).to_owned(),
            token.uses.to_string(),
        ]);
    }
    table.render("")
}
