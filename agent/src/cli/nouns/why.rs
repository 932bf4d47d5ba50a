use std::{fmt::Write as _, process::ExitCode};

use clap::Args;

use crate::{
    api::types::{DoctorVerdict, WhyRequest, WhyResponse},
    cli::{failure::Failure, format::FormatArgs, session::Session},
};

/// What `weft why` takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct WhyArgs {
    /// A service, an endpoint, an alias, a name in full, or an address
    name: String,
    /// The endpoint of this host that asks [default: one that can be answered]
    #[arg(value_name = "from ENDPOINT", num_args = 2)]
    from: Vec<String>,
    /// Only what this network knows
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
}

const EXAMPLES: &str = "\
Examples:
  weft why web
  weft why web from client-1
  weft why --network back db
  weft why 10.32.0.5

It follows the question through the system: who asks, which record there is, what the name server says, whether the
service's address takes a connection, which backends get one and why the others do not, and which neighbour and
forwarding entries lead there. What can be tried is tried: a DNS question, a TCP connection that is closed without a word,
an echo request.

Exit codes: 0 if nothing is wrong on the way, 1 if something is";

pub(in crate::cli) fn why(session: &Session, args: WhyArgs) -> Result<ExitCode, Failure> {
    let from = match &args.from[..] {
        [] => None,
        [word, endpoint] if word == "from" => Some(endpoint.clone()),
        _ => {
            return Err(Failure::usage("it is asked for one name")
                .with_help("say who asks like this: `weft why NAME from ENDPOINT`"));
        }
    };
    let request = WhyRequest {
        name: args.name,
        from,
        network: args.network,
    };
    let told = session.ask("following the question", async |client| {
        client.why(&request).await
    })?;
    args.format.print(&told, show)?;
    let wrong = told.steps.iter().any(|step| step.verdict == DoctorVerdict::Wrong);
    Ok(ExitCode::from(u8::from(wrong)))
}

fn show(told: &WhyResponse) -> String {
    let mut text = String::new();
    for step in &told.steps {
        let sign = match step.verdict {
            DoctorVerdict::Wrong => "!",
            DoctorVerdict::Unknown => "?",
            DoctorVerdict::Ok | DoctorVerdict::Fixed => " ",
        };
        // A String takes every write.
        let _ = writeln!(text, "{sign} {:<7}  {}", step.stage.to_string(), step.sentence);
        if let Some(help) = &step.help {
            let _ = writeln!(text, "{:11}help: {help}", "");
        }
    }
    text
}
