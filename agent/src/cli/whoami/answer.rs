use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Query, Request, State, connect_info::Connected},
    http::{HeaderMap, StatusCode, header::ACCEPT},
    response::{IntoResponse, Response},
    routing::get,
    serve::IncomingStream,
};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UdpSocket};

use crate::api::ApiError;

/// Nobody means to wait for longer than this.
const MAX_DELAY: Duration = Duration::from_secs(600);
/// The largest datagram there is.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// Who answers, and when.
pub(super) struct Identity {
    pub(super) name: String,
    hostname: String,
    /// How long an answer takes; none is for ever.
    delay: Option<Duration>,
    served: AtomicU64,
    /// The status that `/health` is answered with.
    health: AtomicU16,
}

impl Identity {
    pub(super) fn new(name: String, delay: Option<Duration>) -> Self {
        Self {
            name,
            hostname: hostname(),
            delay: delay.map(|delay| delay.min(MAX_DELAY)),
            served: AtomicU64::new(0),
            health: AtomicU16::new(StatusCode::OK.as_u16()),
        }
    }

    fn whoami(&self, ends: Ends, path: Option<String>) -> Whoami {
        let served = self.served.fetch_add(1, Ordering::Relaxed) + 1;
        Whoami {
            name: self.name.clone(),
            hostname: self.hostname.clone(),
            local: ends.local,
            client: ends.client,
            path,
            served,
        }
    }
}

/// The name of the host, as its UTS namespace has it.
pub(super) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() {
        "localhost".to_owned()
    } else {
        name.trim().to_owned()
    }
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Whoami {
    pub(super) name: String,
    pub(super) hostname: String,
    pub(super) local: SocketAddr,
    pub(super) client: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    /// How many requests this process has answered, this one among them.
    pub(super) served: u64,
}

/// Both ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    local: SocketAddr,
    client: SocketAddr,
}

impl Connected<IncomingStream<'_, TcpListener>> for Ends {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        let client = *stream.remote_addr();
        // A connection that was accepted has a local address, even when it is over already.
        Self {
            local: stream.io().local_addr().unwrap_or(client),
            client,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wish {
    format: Option<String>,
    ms: u64,
}

/// Answers HTTP on every path.
pub(super) fn router(identity: Arc<Identity>) -> Router {
    let slow = get(
        async |identity, ends, headers, Query(wish): Query<Wish>, request| {
            tokio::time::sleep(Duration::from_millis(wish.ms).min(MAX_DELAY)).await;
            reply(identity, ends, headers, Query(wish), request).await
        },
    );
    Router::new()
        .route("/slow", slow)
        .route("/health", get(health).put(set_health))
        .fallback(reply)
        .with_state(identity)
}

/// As any other path while all is well.
async fn health(
    State(identity): State<Arc<Identity>>,
    ends: ConnectInfo<Ends>,
    headers: HeaderMap,
    wish: Query<Wish>,
    request: Request,
) -> Response {
    let status = StatusCode::from_u16(identity.health.load(Ordering::Relaxed)).unwrap_or_default();
    let mut answer = reply(State(identity), ends, headers, wish, request).await;
    *answer.status_mut() = status;
    answer
}

async fn set_health(State(identity): State<Arc<Identity>>, body: String) -> Response {
    let status = body
        .trim()
        .parse()
        .ok()
        .filter(|status| (200..600).contains(status));
    let Some(status) = status else {
        return ApiError::invalid("the body is not a status from 200 to 599").into_response();
    };
    identity.health.store(status, Ordering::Relaxed);
    StatusCode::NO_CONTENT.into_response()
}

async fn reply(
    State(identity): State<Arc<Identity>>,
    ConnectInfo(ends): ConnectInfo<Ends>,
    headers: HeaderMap,
    Query(wish): Query<Wish>,
    request: Request,
) -> Response {
    match identity.delay {
        Some(delay) => tokio::time::sleep(delay).await,
        // Until the client gives up.
        None => std::future::pending().await,
    }
    let accepts_json = headers.get(ACCEPT).is_some_and(|accept| {
        accept
            .to_str()
            .is_ok_and(|accept| accept.contains("application/json"))
    });
    let path = request.uri().path().to_owned();
    match wish.format.as_deref() {
        Some("json") => Json(identity.whoami(ends, Some(path))).into_response(),
        None if accepts_json => Json(identity.whoami(ends, Some(path))).into_response(),
        None | Some("text") => {
            let me = identity.whoami(ends, Some(path));
            format!(
                "name: {}\nhostname: {}\nlocal: {}\nclient: {}\n",
                me.name, me.hostname, me.local, me.client
            )
            .into_response()
        }
        Some(other) => ApiError::invalid(format!("there is no format `{other}`"))
            .with_help("the formats are text and json")
            .into_response(),
    }
}

/// Answers datagrams until the socket fails.
pub(super) async fn datagrams(socket: UdpSocket, identity: Arc<Identity>) {
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    let Ok(local) = socket.local_addr() else { return };
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier answer is reported here, and is the client's trouble. The pause is
            // for an error that stays.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let datagram = &buffer[..length];
        let sent = if datagram.trim_ascii() == b"whoami" {
            let me = identity.whoami(Ends { local, client }, None);
            match serde_json::to_vec(&me) {
                Ok(json) => socket.send_to(&json, client).await,
                Err(error) => Err(error.into()),
            }
        } else {
            socket.send_to(datagram, client).await
        };
        // A client that is gone does not get its answer; others do.
        let _ = sent;
    }
}
