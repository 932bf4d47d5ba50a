use std::{path::PathBuf, str::FromStr};

use super::{failure::Failure, progress::announce};
use crate::api::client::{Client, ClientError};

/// Where the agent is: `unix:///PATH`, or a path alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host(PathBuf);

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Self(path.into()));
        }
        Err("it is a Unix socket: expected unix:///PATH".to_owned())
    }
}

impl Host {
    pub(super) fn into_path(self) -> PathBuf {
        self.0
    }
}

/// A runtime of one thread.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("the command cannot start its event loop: {error}")))
}

/// What a command needs in order to ask the agent something.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
}

impl Session {
    pub(super) fn new(host: Host) -> Self {
        Self {
            client: Client::new(host.0),
        }
    }

    /// What talks to the agent.
    pub(super) fn into_client(self) -> Client {
        self.client
    }

    /// Asks the agent one thing. `doing` is what a person is told who waits for longer than a second.
    pub(super) fn ask<T>(
        &self,
        doing: &str,
        question: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, Failure> {
        self.run(async |client| Ok(announce(doing, question(client)).await?))
    }

    /// Does `work` on a runtime of one thread.
    pub(super) fn run<T>(&self, work: impl AsyncFnOnce(&Client) -> Result<T, Failure>) -> Result<T, Failure> {
        runtime()?.block_on(work(&self.client))
    }

    /// Does the same to each of `references`, goes on after a failure, and fails with the first.
    pub(super) fn each(
        &self,
        references: &[String],
        mut act: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut first = None;
        for reference in references {
            match (act(reference), &first) {
                (Ok(()), _) => {}
                (Err(failure), None) => first = Some(failure),
                (Err(failure), Some(_)) => {
                    failure.report();
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}
