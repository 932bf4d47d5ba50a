use std::time::SystemTime;

use clap::Args;

use crate::{
    api::{Timestamp, types::EventsQuery},
    cli::{failure::Failure, format::try_print, progress::announce, session::Session},
};

/// What `weft events` takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct EventsArgs {
    /// Begin with what the agent still remembers from then on: 10m, 2h or 2026-11-21T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// End after the events that --since asks for, instead of waiting for more
    #[arg(long, requires = "since")]
    no_follow: bool,
}

const EXAMPLES: &str = "\
Examples:
  weft events
  weft events --since 10m --no-follow
  weft events | jq -r 'select(.kind == \"node.down\") | .object.name'";

/// A moment, or a time before now.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let past = humantime::parse_duration(text)
        .ok()
        .and_then(|time| SystemTime::now().checked_sub(time));
    past.map(Timestamp::from)
        .ok_or_else(|| "expected a time such as 10m or 2026-11-21T12:00:00Z".to_owned())
}

pub(in crate::cli) fn run(session: &Session, args: EventsArgs) -> Result<(), Failure> {
    let query = EventsQuery {
        since: args.since,
        follow: !args.no_follow,
    };
    session.run(async |client| {
        let mut events = announce("asking the agent for events", client.events(&query)).await?;
        while let Some(event) = events.next().await {
            let line = serde_json::to_string(&event?)
                .map_err(|error| Failure::new(format!("an event cannot be written as JSON: {error}")))?;
            if !try_print(&(line + "\n"))? {
                return Ok(());
            }
        }
        if query.follow {
            // The agent ends an endless answer only when it stops.
            return Err(Failure::new("the agent ended the stream of events")
                .with_help("`weft status` says whether it is running again"));
        }
        Ok(())
    })
}
