//! The control socket: one request, one answer, both a line of JSON.

use std::{
    convert::Infallible,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    super::{
        dir::LabDir,
        wire::{Reply, Request, send},
    },
    running::Running,
};
use crate::api::ApiError;

/// A request is short, and its sender is at hand.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_REQUEST: u64 = 4096;

pub(super) struct Control {
    listener: UnixListener,
}

impl Control {
    /// Makes the socket; the directory around it lets nobody else in.
    pub(super) fn bind(dir: &LabDir) -> Result<Self> {
        let path = dir.control_socket();
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Self { listener })
    }

    /// Answers one after the other, until the process is killed.
    pub(super) fn serve(self, mut running: Running) -> Result<Infallible> {
        loop {
            let (stream, _) = self.listener.accept().context("cannot accept a request")?;
            if let Err(error) = answer(&mut running, &stream) {
                // Whoever asked has gone away or says nonsense; others go on.
                eprintln!("a request had no answer: {error:#}");
            }
        }
    }
}

fn answer(running: &mut Running, stream: &UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Request::Status => reply(stream, Ok(running.status())),
        Request::Enter { target } => reply(stream, running.enter(&target)),
        Request::KillHost { host } => reply(stream, running.kill_host(&host)),
    }
}

fn reply(stream: &UnixStream, result: Result<impl Serialize>) -> Result<()> {
    let reply = match result {
        Ok(answer) => Reply::Ok(answer),
        Err(error) => Reply::Error(match error.downcast::<ApiError>() {
            Ok(error) => error,
            Err(error) => ApiError::internal(format!("{error:#}")),
        }),
    };
    Ok(send(stream, &reply)?)
}
