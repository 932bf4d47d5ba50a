//! One request to Docker and its answer back.

use std::{convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Incoming},
    client::conn::http1,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, UPGRADE},
    upgrade::{OnUpgrade, on},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{io::copy_bidirectional, net::UnixStream, sync::OwnedSemaphorePermit, time::timeout};

use super::rewrite::{self, Kind};
use super::stop::{Stopping, stopped};
use crate::{api::client::Client, docker::engine::Engine, serve::Bounds};

/// Of a body that is read as a whole. Docker's own bound on such requests is about as large.
pub const MAX_BODY: usize = 8 << 20;

type Body = BoxBody<Bytes, hyper::Error>;
/// Kept as long as the connection is used.
type Permit = Arc<OwnedSemaphorePermit>;

#[derive(Debug, Clone)]
pub struct Forward {
    pub docker: PathBuf,
    pub driver: String,
    pub agent: Client,
    pub grace: Duration,
    /// Of the connections to this.
    pub bounds: Bounds,
}

/// An answer that is the proxy's own.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl Forward {
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        permit: Permit,
    ) -> Result<Response<Body>, Infallible> {
        let answered = self.pass(request, permit).await;
        Ok(answered.unwrap_or_else(|Refusal(status, message)| {
            let body = Bytes::from(json!({"message": message}).to_string());
            let mut response = Response::new(whole(body));
            *response.status_mut() = status;
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        }))
    }

    async fn pass(&self, mut request: Request<Incoming>, permit: Permit) -> Result<Response<Body>, Refusal> {
        let kind = rewrite::kind(request.method(), request.uri().path());
        // Asked for here, because the connection is not to be had any more once the request is sent on.
        let client = request.headers().contains_key(UPGRADE).then(|| on(&mut request));
        let request = match kind {
            Some(kind) => self.rewritten(kind, request).await?,
            None => request.map(BodyExt::boxed),
        };
        let stopping = match stopped(request.method(), request.uri().path()) {
            Some(container) => Some(Stopping::begin(&self.docker, container, &self.agent, self.grace).await),
            None => None,
        };
        let mut response = self
            .send(request)
            .await
            .map_err(|error| Refusal(StatusCode::BAD_GATEWAY, format!("{error:#}")))?;
        if let Some(stopping) = stopping {
            stopping.end(response.status());
        }
        if let (Some(client), StatusCode::SWITCHING_PROTOCOLS) = (client, response.status()) {
            tokio::spawn(tunnel(client, on(&mut response), permit));
        }
        Ok(response.map(BodyExt::boxed))
    }

    async fn send(&self, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        let reached = UnixStream::connect(&self.docker).await;
        let stream =
            reached.with_context(|| format!("Docker cannot be reached at {}", self.docker.display()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .context("Docker does not speak HTTP")?;
        // It ends with the answer, or with whoever reads it; its failure is that of the request.
        tokio::spawn(connection.with_upgrades());
        sender
            .send_request(request)
            .await
            .context("Docker does not answer")
    }

    async fn rewritten(&self, kind: Kind, request: Request<Incoming>) -> Result<Request<Body>, Refusal> {
        let (mut head, body) = request.into_parts();
        let too_large = || {
            let text = format!("the request has more than {} MiB", MAX_BODY >> 20);
            Refusal(StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        // One that says so is refused before it comes.
        if body.size_hint().lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        let silence = self.bounds.silence;
        let read = timeout(silence, Limited::new(body, MAX_BODY).collect());
        let read = read.await.map_err(|_| {
            let text = format!("the rest of the request did not come within {silence:?}");
            Refusal(StatusCode::REQUEST_TIMEOUT, text)
        })?;
        let bytes = read.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return too_large();
            }
            Refusal(
                StatusCode::BAD_REQUEST,
                format!("the request cannot be read: {error}"),
            )
        })?;
        let bytes = bytes.to_bytes();
        // What cannot be read here cannot be there either, and Docker says why.
        let changed = match serde_json::from_slice(&bytes) {
            Ok(body) => self.change(kind, body).await?,
            Err(_) => None,
        };
        let bytes = changed.map_or(bytes, |body| Bytes::from(body.to_string()));
        head.headers.remove(TRANSFER_ENCODING);
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        Ok(Request::from_parts(head, whole(bytes)))
    }

    /// The body as Docker is to have it, if that is not as it is.
    async fn change(&self, kind: Kind, mut body: Value) -> Result<Option<Value>, Refusal> {
        let is_changed = match kind {
            Kind::Network => rewrite::network(&mut body, &self.driver),
            Kind::Container => {
                let named = rewrite::networks_of(&body);
                if named.is_empty() {
                    return Ok(None);
                }
                let networks = async { Engine::connect(&self.docker).await?.networks().await };
                let networks = networks
                    .await
                    .map_err(|error| Refusal(StatusCode::BAD_GATEWAY, error.to_string()))?;
                let ours = networks.iter().filter(|network| network.driver == self.driver);
                let mut joined = ours.filter(|network| named.iter().any(|name| network.is_called(name)));
                let server = joined.find_map(rewrite::dns_of);
                server.is_some_and(|server| rewrite::container(&mut body, server))
            }
        };
        Ok(is_changed.then_some(body))
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// Carries bytes both ways until both ends have said that no more come. One end that has, as an `exec` whose input is
/// at its end, still gets what the other says.
async fn tunnel(client: OnUpgrade, docker: OnUpgrade, _permit: Permit) {
    let carried = async {
        let (client, docker) = (client.await?, docker.await?);
        copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(docker)).await?;
        anyhow::Ok(())
    };
    if let Err(error) = carried.await {
        tracing::debug!(%error, "a stream of Docker's was cut off");
    }
}
