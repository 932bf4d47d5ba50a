//! The API server: HTTP and JSON on a Unix socket, one request one message to the owner of the state.

use std::{convert::Infallible, path::PathBuf, time::Duration};

use axum::{
    Json, Router,
    body::Body as HttpBody,
    extract::{
        DefaultBodyLimit, FromRequest, Path, Query, Request as HttpRequest, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    task::JoinHandle,
};
use weft_overlay::plan::ObservedNetwork;
use weft_types::NetworkId;
use weft_wireguard::Secret32;

use super::{
    access::{Caller, Sockets},
    doctor,
    events::EventLog,
    host::KernelView,
    listeners,
    observe::Monitoring,
    resolv, target, why,
};
use crate::{
    api::{ApiError, OPENAPI, routes, types::*},
    control::{Command, HostFacts, Responder, own},
    metrics::Snapshot,
    serve::serve,
};

/// The largest request, in bytes.
pub(crate) const MAX_BODY: usize = 1 << 20;

pub(super) type Answer<T> = Result<Json<T>, ApiError>;
type PathText = Result<Path<String>, PathRejection>;
type Params<T> = Result<Query<T>, QueryRejection>;

/// What the owner of the state is asked.
pub(super) enum Request {
    Init(Responder<ClusterInitResponse>),
    Join(ClusterJoinRequest, Responder<ClusterJoinResponse>),
    Command(Command),
    Measure(Responder<Box<Snapshot>>),
    /// What differs in the kernel from what should be there, and whether it is to be made right.
    Examine(bool, Responder<KernelView>),
    /// What the kernel holds of a network; `None` if that is not on this host.
    Ways(NetworkId, Responder<Option<ObservedNetwork>>),
    /// Whether this host is as it should be, or what it waits for.
    Readiness(Responder<Result<(), &'static str>>),
}

/// How often somebody who follows what happens is heard to be there still: oftener than what they hear of is forgotten.
const FOLLOW_AGAIN: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(super) struct Context {
    requests: mpsc::Sender<Request>,
    events: EventLog,
    facts: HostFacts,
}

/// The servers; dropping this removes their sockets.
pub(super) struct Api(Vec<(JoinHandle<Infallible>, PathBuf)>);

impl Drop for Api {
    fn drop(&mut self) {
        for (task, socket) in &self.0 {
            task.abort();
            // Gone already is as good.
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Api {
    pub(super) fn serve(
        sockets: Sockets,
        requests: mpsc::Sender<Request>,
        events: EventLog,
        facts: HostFacts,
    ) -> anyhow::Result<Self> {
        let monitoring = Monitoring::new(requests.clone()).router();
        let router = router().merge(monitoring).with_state(Context {
            requests,
            events,
            facts,
        });
        let mut api = Self(Vec::new());
        for (bound, access) in sockets.open() {
            let socket = bound.path().to_owned();
            let (listener, bounds) = (bound.listen()?, access.bounds());
            let served = serve(listener, bounds, access.guard(router.clone()), Caller::of);
            api.0.push((tokio::spawn(served), socket));
        }
        Ok(api)
    }
}

fn router() -> Router<Context> {
    Router::new()
        .route(routes::CLUSTER_INIT, post(init))
        .route(routes::CLUSTER_JOIN, post(join))
        .route(routes::CLUSTER_LEAVE, post(leave))
        .route(routes::TOKENS, post(token_create).get(token_list))
        .route(routes::TOKENS_ROTATE_KEY, post(token_rotate_key))
        .route(routes::NODES, get(node_list))
        .route(routes::NODE, get(node_inspect).delete(node_remove))
        .route(routes::NODE_DRAIN, post(node_drain))
        .route(routes::NODE_ACTIVATE, post(node_activate))
        .route(routes::NODE_ROTATE_KEY, post(node_rotate_key))
        .route(routes::ENDPOINT_DRAIN, post(endpoint_drain))
        .route(routes::ENDPOINT_ACTIVATE, post(endpoint_activate))
        .route(routes::NETWORKS, post(network_create).get(network_list))
        .route(
            routes::NETWORK,
            get(network_inspect).patch(network_update).delete(network_remove),
        )
        .route(routes::NETWORK_CONNECT, post(connect))
        .route(routes::NETWORK_DISCONNECT, post(disconnect))
        .route(routes::SERVICES, post(service_create).get(service_list))
        .route(
            routes::SERVICE,
            get(service_inspect).patch(service_update).delete(service_remove),
        )
        .route(routes::STATUS, get(status))
        .route(routes::DOCTOR, post(doctor::doctor))
        .route(routes::WHY, post(why::why))
        .route(routes::EVENTS, get(events))
        .route(routes::VERSION, get(async || Json(VersionResponse::this())))
        .route(
            routes::OPENAPI,
            get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI)),
        )
        .fallback(async || {
            ApiError::not_found("the API has no such path")
                .with_help("GET /v1/openapi.json describes all of it")
        })
        .method_not_allowed_fallback(async || {
            ApiError::invalid("this path of the API is not used with that method")
                .with_help("GET /v1/openapi.json describes all of it")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

impl Context {
    pub(super) async fn ask<T>(&self, request: impl FnOnce(Responder<T>) -> Request) -> Result<T, ApiError> {
        let (responder, answer) = Responder::new();
        let stopping = || ApiError::unavailable("the agent is stopping; the request was not carried out");
        self.requests
            .send(request(responder))
            .await
            .map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| {
            Err(ApiError::unavailable("this node is in no cluster")
                .with_help("make one with `weft init`, or join one with `weft join --token TOKEN HOST:PORT`"))
        })
    }

    /// Who follows what happens is to hear of all networks. In no cluster there is nothing to hear.
    async fn keep_following(&self) {
        if let Err(error) = self.command(Command::Follow).await {
            tracing::debug!(%error, "somebody follows what happens outside of a cluster");
        }
    }

    async fn command<T: Serialize>(&self, command: impl FnOnce(Responder<T>) -> Command) -> Answer<T> {
        self.ask(|responder| Request::Command(command(responder)))
            .await
            .map(Json)
    }
}

/// A JSON body, whatever its content type says: clients of a Unix socket rarely set one.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: HttpRequest, state: &S) -> Result<Self, ApiError> {
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|error| {
                ApiError::invalid(format!("the body of the request cannot be read: {error}"))
                    .with_help(format!("a request has at most {MAX_BODY} bytes"))
            })?;
        Ok(Self(
            Json::<T>::from_bytes(&bytes)
                .map_err(|error: JsonRejection| ApiError::from(error))?
                .0,
        ))
    }
}

async fn init(
    State(context): State<Context>,
    Body(_): Body<ClusterInitRequest>,
) -> Answer<ClusterInitResponse> {
    context.ask(Request::Init).await.map(Json)
}

async fn join(
    State(context): State<Context>,
    Body(request): Body<ClusterJoinRequest>,
) -> Answer<ClusterJoinResponse> {
    context
        .ask(|responder| Request::Join(request, responder))
        .await
        .map(Json)
}

async fn leave(
    State(context): State<Context>,
    Body(_): Body<ClusterLeaveRequest>,
) -> Answer<ClusterLeaveResponse> {
    context.command(Command::Leave).await
}

async fn token_create(
    State(context): State<Context>,
    Body(request): Body<TokenCreateRequest>,
) -> Answer<TokenCreateResponse> {
    context.command(|to| Command::TokenCreate(request, to)).await
}

async fn token_list(State(context): State<Context>) -> Answer<Vec<TokenInfo>> {
    context.command(Command::TokenList).await
}

async fn node_list(State(context): State<Context>) -> Answer<Vec<NodeInfo>> {
    context.command(Command::NodeList).await
}

async fn node_inspect(State(context): State<Context>, node: PathText) -> Answer<NodeDetail> {
    let Path(node) = node?;
    context.command(|to| Command::NodeInspect(node, to)).await
}

async fn node_remove(
    State(context): State<Context>,
    node: PathText,
    query: Params<NodeRemoveQuery>,
) -> Answer<NodeRemoveResponse> {
    let (Path(node), Query(query)) = (node?, query?);
    context.command(|to| Command::NodeRemove(node, query, to)).await
}

async fn node_drain(
    State(context): State<Context>,
    node: PathText,
    Body(request): Body<NodeDrainRequest>,
) -> Answer<NodeDrainResponse> {
    let Path(node) = node?;
    context.command(|to| Command::NodeDrain(node, request, to)).await
}

async fn node_activate(
    State(context): State<Context>,
    node: PathText,
    Body(_): Body<NodeActivateRequest>,
) -> Answer<NodeActivateResponse> {
    let Path(node) = node?;
    context.command(|to| Command::NodeActivate(node, to)).await
}

async fn token_rotate_key(
    State(context): State<Context>,
    Body(_): Body<TokenRotateKeyRequest>,
) -> Answer<GossipKeyStatus> {
    context.command(Command::TokenRotateKey).await
}

async fn node_rotate_key(
    State(context): State<Context>,
    node: PathText,
    Body(_): Body<NodeRotateKeyRequest>,
) -> Answer<NodeRotateKeyResponse> {
    let Path(node) = node?;
    let fresh = Secret32::new(rand::random());
    context
        .command(|to| Command::NodeRotateKey(node, fresh, to))
        .await
}

async fn endpoint_drain(
    State(context): State<Context>,
    endpoint: PathText,
    Body(request): Body<EndpointDrainRequest>,
) -> Answer<EndpointDrainResponse> {
    let Path(endpoint) = endpoint?;
    context
        .command(|to| Command::EndpointDrain(endpoint, request, to))
        .await
}

async fn endpoint_activate(
    State(context): State<Context>,
    endpoint: PathText,
    Body(request): Body<EndpointActivateRequest>,
) -> Answer<EndpointActivateResponse> {
    let Path(endpoint) = endpoint?;
    context
        .command(|to| Command::EndpointActivate(endpoint, request, to))
        .await
}

async fn network_create(
    State(context): State<Context>,
    Body(request): Body<NetworkCreateRequest>,
) -> Answer<NetworkSummary> {
    context.command(|to| Command::NetworkCreate(request, to)).await
}

async fn network_list(State(context): State<Context>) -> Answer<Vec<NetworkSummary>> {
    context.command(Command::NetworkList).await
}

async fn network_inspect(State(context): State<Context>, network: PathText) -> Answer<NetworkDetail> {
    let Path(network) = network?;
    context.command(|to| Command::NetworkInspect(network, to)).await
}

async fn network_update(
    State(context): State<Context>,
    network: PathText,
    Body(request): Body<NetworkUpdateRequest>,
) -> Answer<NetworkSummary> {
    let Path(network) = network?;
    context
        .command(|to| Command::NetworkUpdate(network, request, to))
        .await
}

async fn network_remove(State(context): State<Context>, network: PathText) -> Answer<NetworkRemoveResponse> {
    let Path(network) = network?;
    context.command(|to| Command::NetworkRemove(network, to)).await
}

async fn connect(
    State(context): State<Context>,
    network: PathText,
    Body(request): Body<ConnectRequest>,
) -> Answer<ConnectResponse> {
    let Path(network) = network?;
    let name = request.target.clone();
    if name == own::TARGET {
        let routes = target::routes_of_host()?;
        return context
            .command(|to| Command::ConnectHost(network, request, routes, to))
            .await;
    }
    let sandbox = target::resolve_sandbox(&name)?;
    let Json(mut response) = context
        .command(|to| Command::Connect(network, request, sandbox, to))
        .await?;
    response.dns.resolv_conf = resolv::written(resolv::ROOT.as_ref(), &name);
    Ok(Json(response))
}

async fn disconnect(
    State(context): State<Context>,
    network: PathText,
    Body(request): Body<DisconnectRequest>,
) -> Answer<DisconnectResponse> {
    let Path(network) = network?;
    context
        .command(|to| Command::Disconnect(network, request, to))
        .await
}

async fn service_create(
    State(context): State<Context>,
    Body(request): Body<ServiceCreateRequest>,
) -> Answer<ServiceChanged> {
    listeners::check(&request.publish)?;
    context.command(|to| Command::ServiceCreate(request, to)).await
}

async fn service_list(
    State(context): State<Context>,
    query: Params<ServiceListQuery>,
) -> Answer<Vec<ServiceSummary>> {
    let Query(query) = query?;
    context.command(|to| Command::ServiceList(query, to)).await
}

async fn service_inspect(
    State(context): State<Context>,
    service: PathText,
    query: Params<ServiceQuery>,
) -> Answer<ServiceDetail> {
    let (Path(service), Query(query)) = (service?, query?);
    context
        .command(|to| Command::ServiceInspect(service, query, to))
        .await
}

async fn service_update(
    State(context): State<Context>,
    service: PathText,
    query: Params<ServiceQuery>,
    Body(request): Body<ServiceUpdateRequest>,
) -> Answer<ServiceChanged> {
    let (Path(service), Query(query)) = (service?, query?);
    if let Some(publish) = &request.publish {
        let (named, of) = (service.clone(), query.clone());
        let Json(known) = context
            .command(|to| Command::ServiceInspect(named, of, to))
            .await?;
        // What it has already it keeps.
        let new = |port: &&PublishedPort| !known.summary.published.contains(port);
        let new: Vec<_> = publish.iter().filter(new).cloned().collect();
        listeners::check(&new)?;
    }
    context
        .command(|to| Command::ServiceUpdate(service, request, query, to))
        .await
}

async fn service_remove(
    State(context): State<Context>,
    service: PathText,
    query: Params<ServiceQuery>,
) -> Answer<ServiceRemoveResponse> {
    let (Path(service), Query(query)) = (service?, query?);
    context
        .command(|to| Command::ServiceRemove(service, query, to))
        .await
}

async fn status(State(context): State<Context>) -> Answer<StatusResponse> {
    let facts = context.facts.clone();
    context.command(|to| Command::Status(facts, to)).await
}

/// JSON lines: what is remembered since a moment, and, if asked to follow, what happens from now on.
async fn events(State(context): State<Context>, query: Params<EventsQuery>) -> Result<Response, ApiError> {
    let Query(EventsQuery { since, follow }) = query?;
    let (past, live) = context.events.follow();
    if follow {
        context.keep_following().await;
    }
    let past = past
        .into_iter()
        .filter(move |event| since.is_some_and(|since| event.time >= since));
    let past = futures_util::stream::iter(past.collect::<Vec<_>>());
    let mut again = tokio::time::interval(FOLLOW_AGAIN);
    again.reset();
    let follower = follow.then_some((live, context, again));
    let live = futures_util::stream::unfold(follower, async |follower| {
        let (mut live, context, mut again) = follower?;
        loop {
            let event = tokio::select! {
                event = live.recv() => event,
                _ = again.tick() => {
                    context.keep_following().await;
                    continue;
                }
            };
            match event {
                Ok(event) => return Some((event, Some((live, context, again)))),
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "a follower of events is too slow"),
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let lines = futures_util::StreamExt::map(futures_util::StreamExt::chain(past, live), |event| {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(line)
    });
    Ok((
        [(CONTENT_TYPE, "application/x-ndjson")],
        HttpBody::from_stream(lines),
    )
        .into_response())
}

#[cfg(test)]
mod tests;
