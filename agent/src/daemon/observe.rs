//! What monitoring asks over HTTP: `/metrics`, `/live` and `/ready`, on the API's socket and, if asked for, at an address.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};

use super::server::Request;
use crate::{
    api::ApiError,
    control::Responder,
    metrics,
    serve::{Bounds, SILENCE, serve},
};

/// A monitoring system waits ten seconds or so; an agent that takes longer than this is not well.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections to metrics at an address of their own, at one time.
pub(crate) const MAX_CONNECTIONS: usize = 64;

/// Requests to the owner of the state.
#[derive(Clone)]
pub(super) struct Monitoring {
    requests: mpsc::Sender<Request>,
}

/// The server at an address of its own; it ends when this is dropped.
pub(super) struct Exposed {
    task: JoinHandle<Infallible>,
}

impl Drop for Exposed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitoring {
    pub(super) fn new(requests: mpsc::Sender<Request>) -> Self {
        Self { requests }
    }

    /// What is served, whatever it is part of.
    pub(super) fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/live", get(live))
            .route("/ready", get(ready))
            .with_state(self)
    }

    /// Serves it to whoever reaches this address, with nothing else.
    pub(super) async fn expose(self, address: SocketAddr) -> anyhow::Result<Exposed> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot serve metrics at {address}"))?;
        tracing::info!(%address, "metrics are served");
        let bounds = Bounds {
            places: MAX_CONNECTIONS,
            silence: SILENCE,
        };
        let task = tokio::spawn(serve(listener, bounds, self.router(), |_| ()));
        Ok(Exposed { task })
    }

    async fn ask<T>(&self, request: impl FnOnce(Responder<T>) -> Request) -> Result<T, String> {
        let (responder, answer) = Responder::new();
        let asked = async {
            let stopping = || "the agent is stopping".to_owned();
            self.requests
                .send(request(responder))
                .await
                .map_err(|_| stopping())?;
            let answer = answer.await.map_err(|_| stopping())?;
            answer.map_err(|ApiError { message, .. }| message)
        };
        let busy = |_| format!("the agent has not answered within {} s", PATIENCE.as_secs());
        timeout(PATIENCE, asked).await.map_err(busy)?
    }
}

async fn metrics(State(monitoring): State<Monitoring>) -> Response {
    match monitoring.ask(Request::Measure).await {
        Ok(snapshot) => (
            [(CONTENT_TYPE, metrics::CONTENT_TYPE)],
            metrics::render(&snapshot),
        )
            .into_response(),
        Err(why) => said(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

/// The agent does its work, if perhaps not for a cluster.
async fn live(State(monitoring): State<Monitoring>) -> Response {
    match monitoring.ask(Request::Readiness).await {
        Ok(_) => said(StatusCode::OK, "live"),
        Err(why) => said(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

/// This host is as it should be.
async fn ready(State(monitoring): State<Monitoring>) -> Response {
    match monitoring.ask(Request::Readiness).await {
        Ok(Ok(())) => said(StatusCode::OK, "ready"),
        Ok(Err(why)) => said(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {why}")),
        Err(why) => said(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn said(status: StatusCode, sentence: &str) -> Response {
    (status, format!("{sentence}\n")).into_response()
}
