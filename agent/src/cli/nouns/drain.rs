//! What draining a backend and draining a node have in common.

use std::time::Duration;

use clap::Args;

use crate::{
    api::{
        client::{Client, ClientError},
        types::{DEFAULT_GRACE, Unconfirmed},
    },
    cli::{failure::Failure, format::count, progress::announce, session::Session},
};

/// How long connections have to end.
#[derive(Debug, Clone, Args)]
pub(super) struct GraceArg {
    /// What open connections may take to end; those that are open then are reset [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = grace)]
    grace: Option<Duration>,
}

impl GraceArg {
    pub(super) fn millis(&self) -> u64 {
        millis(self.grace.unwrap_or(DEFAULT_GRACE))
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

pub(super) fn grace(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text);
    time.map_err(|_| "expected a time such as 30s, 5m or 0s".to_owned())
}

/// Waits for the end of a drain. Who does not want to wait for it leaves things as they are: draining.
pub(super) fn await_drain<T>(
    session: &Session,
    what: &str,
    undo: &str,
    question: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
) -> Result<T, Failure> {
    session.run(async |client| {
        let doing = format!("draining {what}");
        tokio::select! {
            // Whichever ends first ends the command.
            answer = announce(&doing, question(client)) => Ok(answer?),
            _ = tokio::signal::ctrl_c() => Err(Failure::new(format!(
                "{what} gets no new connections and keeps the open ones: it stays draining"
            ))
            .with_help(format!("run the command again to go on, or `{undo}` to end it"))),
        }
    })
}

/// What became of the connections, for people.
pub(super) fn ended(left: u64, uncounted: &[Unconfirmed]) -> String {
    let silent: Vec<&str> = uncounted.iter().map(|node| node.node_name.as_str()).collect();
    let unknown = match &silent[..] {
        [] => String::new(),
        silent => format!(", not counted on {}", silent.join(", ")),
    };
    match left {
        0 => format!("no connection is open{unknown}"),
        left => format!(
            "{} reset{unknown}",
            count(u32::try_from(left).unwrap_or(u32::MAX), "connection")
        ),
    }
}
