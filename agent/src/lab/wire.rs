//! What the processes of a lab tell each other, as lines of JSON: the holder its progress to `weft lab up`,
//! and everybody requests to the holder's control socket.

use std::{
    io::{self, BufRead as _, BufReader},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{dir::LabDir, live::Live, resolve::Topology};
use crate::api::ApiError;

/// Killing a host with all its processes takes the longest.
const DEADLINE: Duration = Duration::from_secs(30);

/// How the building of a lab goes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Progress {
    /// A step is done.
    Step {
        /// One word.
        step: String,
        /// What it came to.
        result: String,
    },
    /// The lab can be used.
    Ready,
    /// It cannot be built; everything is on its way down.
    Failed {
        /// Why.
        error: ApiError,
        /// What lay beneath.
        causes: Vec<String>,
        /// Whose log may say more: a host's or a replica's.
        log: Option<String>,
    },
}

/// What the holder is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub(super) enum Request {
    /// How the lab is.
    Status,
    /// How to get into a host or a replica's sandbox.
    Enter {
        /// A host's or a replica's name.
        target: String,
    },
    /// Crash a host.
    KillHost {
        /// Its name.
        host: String,
    },
}

/// The answer to [`Request::Status`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Status {
    /// What was to be built.
    pub(super) topology: Topology,
    /// What became of it.
    pub(super) live: Live,
}

/// The answer to [`Request::KillHost`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Killed {
    /// The replicas that went with the host.
    pub(super) replicas: Vec<String>,
}

/// The envelope of every answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply<T> {
    /// It was done.
    Ok(T),
    /// It was not.
    Error(ApiError),
}

/// Asks the holder of a lab.
pub(super) fn ask<T: DeserializeOwned>(dir: &LabDir, request: &Request) -> Result<T> {
    if !dir.exists() {
        return Err(dir.not_found().into());
    }
    let name = dir.name();
    let exchange = || -> io::Result<String> {
        let stream = UnixStream::connect(dir.control_socket())?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        send(&stream, request)?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        Ok(line)
    };
    let line = exchange().map_err(|error| {
        if dir.is_held() {
            let what = match error.kind() {
                // It makes the socket at the end.
                io::ErrorKind::NotFound => "it is still being built".to_owned(),
                _ => error.to_string(),
            };
            ApiError::unavailable(format!("the lab `{name}` does not answer: {what}"))
        } else {
            ApiError::unavailable(format!(
                "the lab `{name}` is dead: the process that held it was killed"
            ))
            .with_help(format!(
                "nothing of it is left but files; `weft lab down {name}` removes them"
            ))
        }
    })?;
    match serde_json::from_str(&line)
        .with_context(|| format!("the answer of the lab `{name}` cannot be used"))?
    {
        Reply::Ok(answer) => Ok(answer),
        Reply::Error(error) => Err(error.into()),
    }
}

/// Writes one line.
pub(super) fn send(mut to: impl io::Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}
