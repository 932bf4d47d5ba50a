//! The plugin's socket.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{Method, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::{net::UnixListener, task::JoinHandle};

use super::{
    driver::{Driver, Failure},
    owner::Owner,
    protocol::MEDIA_TYPE,
};
use crate::{
    serve::{Bounds, DOCKERS_SILENCE, serve},
    socket::Bound,
};

/// Where dockerd looks for the driver `weft`.
const SOCKET: &str = "/run/docker/plugins/weft.sock";
/// What says that this host has, or will have, a dockerd.
const TRACES: [&str; 3] = ["/run/docker", "/var/lib/docker", "/etc/docker"];
/// The largest request, in bytes. dockerd's largest name a few hundred ports.
pub(crate) const MAX_BODY: usize = 1 << 20;
/// Connections of dockerd at one time, which has one for each request that waits for its answer.
pub(crate) const MAX_CONNECTIONS: usize = 1_024;

/// Where the plugin is served when nobody says where: nowhere on a host without Docker.
pub fn default_socket() -> Option<PathBuf> {
    let has_docker = TRACES.iter().any(|trace| Path::new(trace).exists());
    has_docker.then(|| SOCKET.into())
}

/// Where dockerd finds the driver.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    socket: PathBuf,
    /// Whether a service manager has opened it, and keeps it open while no agent runs.
    is_held: bool,
}

impl Door {
    /// Opens it.
    pub fn open(socket: PathBuf) -> anyhow::Result<Self> {
        // dockerd is root: no group is let in.
        let listener = Bound::new(&socket, None).and_then(|bound| Ok(bound.listen()?));
        let listener =
            listener.with_context(|| format!("Docker's driver cannot be served at {}", socket.display()))?;
        Ok(Self {
            listener,
            socket,
            is_held: false,
        })
    }

    /// The one that a service manager has opened.
    pub fn passed(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let socket = listener.local_addr()?;
        let socket = socket.as_pathname().map(Path::to_owned);
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            socket: socket.ok_or_else(|| io::Error::other("the socket that was passed has no path"))?,
            is_held: true,
        })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// The server; dropping it removes the socket, if it is not another's.
pub struct Plugin {
    task: JoinHandle<Infallible>,
    socket: PathBuf,
    is_held: bool,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.task.abort();
        if !self.is_held {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

impl Plugin {
    pub fn serve(door: Door, owner: Owner) -> Self {
        let Door {
            listener,
            socket,
            is_held,
        } = door;
        let bounds = Bounds {
            places: MAX_CONNECTIONS,
            silence: DOCKERS_SILENCE,
        };
        let router = router(Driver::new(owner));
        Self {
            task: tokio::spawn(serve(listener, bounds, router, |_| ())),
            socket,
            is_held,
        }
    }

    /// The name by which Docker knows the driver: that of the socket.
    pub fn driver(&self) -> String {
        let name = self.socket.file_stem().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

fn router(driver: Driver) -> Router {
    Router::new()
        .fallback(answer)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(driver)
}

/// dockerd sends no content type: a request is its path and the bytes of its body.
async fn answer(
    State(driver): State<Driver>,
    method: Method,
    uri: Uri,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let name = uri.path().trim_start_matches('/');
    if method != Method::POST {
        return failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "every request to a plugin is a POST",
        );
    }
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return failure(rejection.status(), &rejection.body_text()),
    };
    let started = std::time::Instant::now();
    let answer = driver.handle(name, &body).await;
    let took = started.elapsed();
    match answer {
        Ok(answer) => {
            tracing::debug!(request = name, ?took, "answered dockerd");
            ([(CONTENT_TYPE, MEDIA_TYPE)], answer.to_string()).into_response()
        }
        Err(Failure::Unknown) => failure(
            StatusCode::NOT_FOUND,
            &format!("the driver `weft` has no `{name}`"),
        ),
        Err(Failure::Malformed(reason)) => {
            tracing::warn!(request = name, %reason, "a request of dockerd cannot be read");
            failure(StatusCode::BAD_REQUEST, &reason)
        }
        Err(Failure::Refused(error)) => {
            // Some dockerds show their users nothing of it.
            tracing::warn!(request = name, ?took, reason = %error, "a request of dockerd was refused");
            let text = match &error.help {
                Some(help) => format!("{}; {help}", error.message),
                None => error.message,
            };
            failure(StatusCode::OK, &text)
        }
    }
}

/// The network driver's client reads `Err`, the IPAM driver's `Error`.
fn failure(status: StatusCode, text: &str) -> Response {
    let body = json!({"Err": text, "Error": text}).to_string();
    (status, [(CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
}
