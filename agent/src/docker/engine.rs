//! The part of Docker's own API that the agent uses, on the engine's Unix socket.
//!
//! Never called from within a request of dockerd's to its driver: dockerd may hold locks meanwhile that the
//! answer needs.

mod objects;

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    net::UnixStream,
    task::AbortHandle,
    time::{error::Elapsed, timeout},
};

pub use objects::{Attached, Container, EngineEvent, EngineNetwork, Members, NewNetwork};

/// The newest version of the API that this was written for: that of Docker 28.
const NEWEST: (u32, u32) = (1, 48);
/// For every request but the stream of events. Removing a network can take seconds.
const PATIENCE: Duration = Duration::from_secs(20);
const MAX_BODY: usize = 64 << 20;
/// A line of the stream of events.
const MAX_EVENT: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("Docker cannot be reached at {}", .socket.display())]
    Connect { socket: PathBuf, source: std::io::Error },
    #[error("Docker refuses {what}: {reason}")]
    Refused {
        what: String,
        status: StatusCode,
        reason: String,
    },
    #[error("Docker does not answer {what}: {reason}")]
    Broken { what: String, reason: String },
}

impl EngineError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// Docker, while its socket is there.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
    /// `/v1.41`, say.
    version: String,
}

impl Engine {
    /// Reaches Docker and settles on a version of its API.
    pub async fn connect(socket: &Path) -> Result<Self, EngineError> {
        let mut engine = Self {
            socket: socket.to_owned(),
            version: String::new(),
        };
        let answer = engine.send("GET", "/_ping", None).await?;
        let offered = answer.response.headers().get("api-version");
        let offered = offered
            .and_then(|version| version.to_str().ok())
            .and_then(|version| {
                let (major, minor) = version.split_once('.')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            });
        let (major, minor) = offered.map_or(NEWEST, |offered: (u32, u32)| offered.min(NEWEST));
        engine.version = format!("/v{major}.{minor}");
        Ok(engine)
    }

    pub async fn networks(&self) -> Result<Vec<EngineNetwork>, EngineError> {
        self.get("/networks").await
    }

    /// Waits for no container.
    pub async fn members(&self, network: &str) -> Result<Members, EngineError> {
        self.get(&format!("/networks/{network}")).await
    }

    /// Ids of the containers that run, or of all.
    pub async fn containers(&self, all: bool) -> Result<Vec<String>, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            id: String,
        }
        let listed: Vec<Listed> = self.get(&format!("/containers/json?all={all}")).await?;
        Ok(listed.into_iter().map(|listed| listed.id).collect())
    }

    /// Waits while dockerd starts or stops the container, or puts it on a network.
    pub async fn container(&self, id: &str) -> Result<Container, EngineError> {
        self.get(&format!("/containers/{id}/json")).await
    }

    pub async fn create_network(&self, new: &NewNetwork<'_>) -> Result<(), EngineError> {
        let config = new.subnets.iter().map(|net| json!({"Subnet": net}));
        let (option, value) = new.option;
        let body = json!({
            "Name": new.name,
            "CheckDuplicate": true,
            "Driver": new.driver,
            "Internal": new.internal,
            "EnableIPv6": new.subnets.iter().any(|net| matches!(net, IpNet::V6(_))),
            "IPAM": {"Driver": new.driver, "Options": {option: value}, "Config": config.collect::<Vec<_>>()},
            "Options": {option: value},
        });
        self.whole("POST", "/networks/create", Some(&body)).await?;
        Ok(())
    }

    pub async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        self.whole("DELETE", &format!("/networks/{id}"), None).await?;
        Ok(())
    }

    /// What has happened to containers and networks since then, as far as dockerd remembers, and what happens from now on.
    pub async fn events(&self, since: SystemTime) -> Result<Events, EngineError> {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // {"type":["container","network"]}
        let path =
            format!("/events?since={since}&filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D");
        let answer = self.send("GET", &format!("{}{path}", self.version), None).await?;
        Ok(Events {
            answer: answer.accepted("its events").await?,
            buffer: Vec::new(),
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, EngineError> {
        let bytes = self.whole("GET", path, None).await?;
        serde_json::from_slice(&bytes).map_err(|error| EngineError::Broken {
            what: format!("GET {path}"),
            reason: error.to_string(),
        })
    }

    async fn whole(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Bytes, EngineError> {
        let what = format!("{method} {path}");
        let work = async {
            let answer = self
                .send(method, &format!("{}{path}", self.version), body)
                .await?;
            answer.accepted(&what).await?.read().await
        };
        timeout(PATIENCE, work)
            .await
            .unwrap_or_else(|_: Elapsed| Err(broken(&what, format!("{} seconds passed", PATIENCE.as_secs()))))
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, EngineError> {
        let what = format!("{method} {path}");
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| EngineError::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&what, error))?;
        // Its own failure also fails the request, which is where it is reported.
        let connection = Connection(
            tokio::spawn(async move {
                let _ = connection.await;
            })
            .abort_handle(),
        );
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(&what, error))?;
        let response = timeout(PATIENCE, sender.send_request(request))
            .await
            .map_err(|error| broken(&what, error))?
            .map_err(|error| broken(&what, error))?;
        Ok(Answer {
            response,
            what,
            _connection: connection,
        })
    }
}

fn broken(what: &str, reason: impl ToString) -> EngineError {
    EngineError::Broken {
        what: what.to_owned(),
        reason: reason.to_string(),
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

#[derive(Debug)]
struct Answer {
    response: Response<Incoming>,
    what: String,
    _connection: Connection,
}

impl Answer {
    async fn accepted(self, what: &str) -> Result<Self, EngineError> {
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let status = self.response.status();
        if status.is_success() {
            return Ok(self);
        }
        let bytes = self.read().await?;
        let reason = serde_json::from_slice::<Message>(&bytes).map_or_else(
            |_| String::from_utf8_lossy(&bytes).into_owned(),
            |error| error.message,
        );
        Err(EngineError::Refused {
            what: what.to_owned(),
            status,
            reason,
        })
    }

    async fn read(self) -> Result<Bytes, EngineError> {
        let body = Limited::new(self.response.into_body(), MAX_BODY).collect().await;
        body.map(|body| body.to_bytes())
            .map_err(|error| broken(&self.what, error))
    }
}

/// The stream of events.
pub struct Events {
    answer: Answer,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; an error or the end of the stream means that Docker has stopped.
    ///
    /// Cancel-safe: what was read stays in the buffer.
    pub async fn next(&mut self) -> Result<EngineEvent, EngineError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(event) => return Ok(event),
                    Err(error) => tracing::debug!(%error, "an event of Docker's that cannot be read"),
                }
                continue;
            }
            if self.buffer.len() > MAX_EVENT {
                return Err(broken("its events", "a line without end"));
            }
            match self.answer.response.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.data_ref().into_iter().flatten()),
                Some(Err(error)) => return Err(broken("its events", error)),
                None => return Err(broken("its events", "the stream has ended")),
            }
        }
    }
}
