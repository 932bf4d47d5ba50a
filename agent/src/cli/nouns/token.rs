use std::time::Duration;

use clap::{Args, Subcommand};

use crate::{
    api::types::{TokenCreateRequest, TokenCreateResponse, TokenInfo},
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
}

const EXAMPLES: &str = "\
Examples:
  weft token create
  weft token create --ttl 1h --reusable
  weft token ls";

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
