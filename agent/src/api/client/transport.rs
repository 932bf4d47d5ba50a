//! HTTP/1.1 on a Unix socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, task::AbortHandle, time::timeout};

use super::ClientError;
use crate::{api::ErrorBody, socket::for_reading};

/// A cluster of ten thousand endpoints fits; what is larger is not our agent.
const MAX_BODY_BYTES: usize = 64 << 20;

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) body: Incoming,
    pub(super) origin: Origin,
    _connection: Connection,
}

/// Names a request in errors.
#[derive(Debug)]
pub(super) struct Origin {
    socket: PathBuf,
    method: &'static str,
    path: String,
}

impl Origin {
    pub(super) fn error(&self, reason: impl ToString) -> ClientError {
        ClientError::protocol(&self.socket, self.method, &self.path, reason)
    }
}

/// The task that moves bytes for a request; it ends with the request.
#[derive(Debug)]
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request and reads the whole answer.
pub(super) async fn request<T: DeserializeOwned>(
    socket: &Path,
    method: &'static str,
    path: &str,
    body: Option<Vec<u8>>,
    deadline: Duration,
) -> Result<T, ClientError> {
    within(socket, method, path, deadline, async {
        let opened = exchange(socket, method, path, body).await?;
        let bytes = read_all(opened.body)
            .await
            .map_err(|reason| opened.origin.error(reason))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            opened.origin.error(format!(
                "it is not what version {} expects: {error}",
                env!("CARGO_PKG_VERSION")
            ))
        })
    })
    .await
}

/// Sends a request and leaves the body of the answer to the caller.
pub(super) async fn open(
    socket: &Path,
    method: &'static str,
    path: &str,
    body: Option<Vec<u8>>,
    deadline: Duration,
) -> Result<Opened, ClientError> {
    within(
        socket,
        method,
        path,
        deadline,
        exchange(socket, method, path, body),
    )
    .await
}

async fn within<T>(
    socket: &Path,
    method: &'static str,
    path: &str,
    deadline: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(deadline, work).await.unwrap_or_else(|_| {
        Err(ClientError::Deadline {
            socket: socket.to_owned(),
            method,
            path: path.to_owned(),
            deadline,
        })
    })
}

async fn exchange(
    socket: &Path,
    method: &'static str,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Opened, ClientError> {
    let (stream, socket) = connect(socket).await?;
    let origin = Origin {
        socket,
        method,
        path: path.to_owned(),
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| origin.error(error))?;
    // Its own failure also fails the request, which is where it is reported.
    let connection = Connection(
        tokio::spawn(async move {
            let _ = connection.await;
        })
        .abort_handle(),
    );

    let mut request = Request::builder().method(method).uri(path).header(HOST, "weft");
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let request = request
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|error| origin.error(error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| origin.error(error))?;

    let status = response.status();
    let body = response.into_body();
    if status == StatusCode::OK {
        return Ok(Opened {
            body,
            origin,
            _connection: connection,
        });
    }
    let bytes = read_all(body).await.map_err(|reason| origin.error(reason))?;
    Err(match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => body.error.into(),
        Err(_) => origin.error(format!("status {status} without an explanation")),
    })
}

/// Who may not use the socket that takes every command is perhaps let in by the one for reading.
async fn connect(socket: &Path) -> Result<(UnixStream, PathBuf), ClientError> {
    let error = match UnixStream::connect(socket).await {
        Ok(stream) => return Ok((stream, socket.to_owned())),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::PermissionDenied {
        let reading = for_reading(socket);
        if let Ok(stream) = UnixStream::connect(&reading).await {
            return Ok((stream, reading));
        }
    }
    Err(ClientError::connect(socket, error))
}

async fn read_all(body: Incoming) -> Result<Bytes, String> {
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
    body.map(|body| body.to_bytes())
        .map_err(|error| error.to_string())
}
