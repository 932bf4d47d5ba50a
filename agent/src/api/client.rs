//! Speaks the API over its Unix socket: one connection per request, each within a deadline.

mod error;
mod events;
mod transport;

use std::{path::PathBuf, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

pub use error::ClientError;
pub use events::EventStream;

use super::{routes, types::*};

/// What a request may take, unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(30);
/// Joining and leaving talk to other hosts, and move blocks between them.
const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(90);
/// Every connection that is tried may be waited for.
const DOCTOR_DEADLINE: Duration = Duration::from_secs(600);

/// A client of the agent behind one socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    deadline: Option<Duration>,
}

impl Client {
    /// A client of the agent behind `socket`. Nothing is opened before the first request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            deadline: None,
        }
    }

    /// The same with another deadline for every request.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Makes a cluster of which this node is the first.
    pub async fn cluster_init(&self) -> Result<ClusterInitResponse, ClientError> {
        self.send(
            "POST",
            routes::CLUSTER_INIT,
            Some(&ClusterInitRequest {}),
            DEADLINE,
        )
        .await
    }

    /// Joins the cluster of another node.
    pub async fn cluster_join(
        &self,
        request: &ClusterJoinRequest,
    ) -> Result<ClusterJoinResponse, ClientError> {
        self.send("POST", routes::CLUSTER_JOIN, Some(request), MEMBERSHIP_DEADLINE)
            .await
    }

    /// Leaves the cluster.
    pub async fn cluster_leave(&self) -> Result<ClusterLeaveResponse, ClientError> {
        self.send(
            "POST",
            routes::CLUSTER_LEAVE,
            Some(&ClusterLeaveRequest {}),
            MEMBERSHIP_DEADLINE,
        )
        .await
    }

    /// Makes a join token.
    pub async fn token_create(
        &self,
        request: &TokenCreateRequest,
    ) -> Result<TokenCreateResponse, ClientError> {
        self.send("POST", routes::TOKENS, Some(request), DEADLINE).await
    }

    /// Lists the join tokens, without their secrets.
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, ClientError> {
        self.get(routes::TOKENS).await
    }

    /// Lists the nodes.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, ClientError> {
        self.get(routes::NODES).await
    }

    /// Everything about a node.
    pub async fn node(&self, node: &str) -> Result<NodeDetail, ClientError> {
        self.get(&fill(routes::NODE, node)).await
    }

    /// Removes a node that left or died.
    pub async fn node_remove(&self, node: &str, force: bool) -> Result<NodeRemoveResponse, ClientError> {
        let force = force.then_some("true");
        self.delete(&with_query(fill(routes::NODE, node), &[("force", force)]))
            .await
    }

    /// Drains the backends of a node.
    pub async fn node_drain(
        &self,
        node: &str,
        request: &NodeDrainRequest,
    ) -> Result<NodeDrainResponse, ClientError> {
        let deadline = beyond(request.grace_ms);
        self.send("POST", &fill(routes::NODE_DRAIN, node), Some(request), deadline)
            .await
    }

    /// Gives the backends of a node new connections again.
    pub async fn node_activate(&self, node: &str) -> Result<NodeActivateResponse, ClientError> {
        let path = fill(routes::NODE_ACTIVATE, node);
        self.send("POST", &path, Some(&NodeActivateRequest {}), DEADLINE)
            .await
    }

    /// Changes the key of gossip.
    pub async fn token_rotate_key(&self) -> Result<GossipKeyStatus, ClientError> {
        let request = TokenRotateKeyRequest {};
        self.send("POST", routes::TOKENS_ROTATE_KEY, Some(&request), DEADLINE)
            .await
    }

    /// Has a node change its key.
    pub async fn node_rotate_key(&self, node: &str) -> Result<NodeRotateKeyResponse, ClientError> {
        let path = fill(routes::NODE_ROTATE_KEY, node);
        self.send("POST", &path, Some(&NodeRotateKeyRequest {}), DEADLINE)
            .await
    }

    /// Drains a backend.
    pub async fn endpoint_drain(
        &self,
        endpoint: &str,
        request: &EndpointDrainRequest,
    ) -> Result<EndpointDrainResponse, ClientError> {
        let path = fill(routes::ENDPOINT_DRAIN, endpoint);
        self.send("POST", &path, Some(request), beyond(request.grace_ms))
            .await
    }

    /// Gives a backend new connections again.
    pub async fn endpoint_activate(
        &self,
        endpoint: &str,
        request: &EndpointActivateRequest,
    ) -> Result<EndpointActivateResponse, ClientError> {
        let path = fill(routes::ENDPOINT_ACTIVATE, endpoint);
        self.send("POST", &path, Some(request), DEADLINE).await
    }

    /// Makes a network.
    pub async fn network_create(
        &self,
        request: &NetworkCreateRequest,
    ) -> Result<NetworkSummary, ClientError> {
        self.send("POST", routes::NETWORKS, Some(request), DEADLINE).await
    }

    /// Lists the networks.
    pub async fn networks(&self) -> Result<Vec<NetworkSummary>, ClientError> {
        self.get(routes::NETWORKS).await
    }

    /// Everything about a network.
    pub async fn network(&self, network: &str) -> Result<NetworkDetail, ClientError> {
        self.get(&fill(routes::NETWORK, network)).await
    }

    /// Changes a network.
    pub async fn network_update(
        &self,
        network: &str,
        request: &NetworkUpdateRequest,
    ) -> Result<NetworkSummary, ClientError> {
        let path = fill(routes::NETWORK, network);
        self.send("PATCH", &path, Some(request), DEADLINE).await
    }

    /// Removes a network.
    pub async fn network_remove(&self, network: &str) -> Result<NetworkRemoveResponse, ClientError> {
        self.delete(&fill(routes::NETWORK, network)).await
    }

    /// Attaches a namespace of this host to a network.
    pub async fn network_connect(
        &self,
        network: &str,
        request: &ConnectRequest,
    ) -> Result<ConnectResponse, ClientError> {
        self.send(
            "POST",
            &fill(routes::NETWORK_CONNECT, network),
            Some(request),
            DEADLINE,
        )
        .await
    }

    /// Detaches a namespace of this host from a network.
    pub async fn network_disconnect(
        &self,
        network: &str,
        request: &DisconnectRequest,
    ) -> Result<DisconnectResponse, ClientError> {
        self.send(
            "POST",
            &fill(routes::NETWORK_DISCONNECT, network),
            Some(request),
            beyond(request.grace_ms),
        )
        .await
    }

    /// Makes a service.
    pub async fn service_create(
        &self,
        request: &ServiceCreateRequest,
    ) -> Result<ServiceChanged, ClientError> {
        self.send("POST", routes::SERVICES, Some(request), DEADLINE).await
    }

    /// Lists the services, of one network or of all, with how many connections each has.
    pub async fn services(&self, network: Option<&str>) -> Result<Vec<ServiceSummary>, ClientError> {
        let query = [("network", network), ("counts", Some("true"))];
        self.get(&with_query(routes::SERVICES.to_owned(), &query)).await
    }

    /// Everything about a service.
    pub async fn service(&self, service: &str, network: Option<&str>) -> Result<ServiceDetail, ClientError> {
        self.get(&with_query(
            fill(routes::SERVICE, service),
            &[("network", network)],
        ))
        .await
    }

    /// Changes a service.
    pub async fn service_update(
        &self,
        service: &str,
        network: Option<&str>,
        request: &ServiceUpdateRequest,
    ) -> Result<ServiceChanged, ClientError> {
        let path = with_query(fill(routes::SERVICE, service), &[("network", network)]);
        self.send("PATCH", &path, Some(request), DEADLINE).await
    }

    /// Removes a service.
    pub async fn service_remove(
        &self,
        service: &str,
        network: Option<&str>,
    ) -> Result<ServiceRemoveResponse, ClientError> {
        self.delete(&with_query(
            fill(routes::SERVICE, service),
            &[("network", network)],
        ))
        .await
    }

    /// One screen about the node.
    pub async fn status(&self) -> Result<StatusResponse, ClientError> {
        self.get(routes::STATUS).await
    }

    /// Compares what should be with what is.
    pub async fn doctor(&self, request: &DoctorRequest) -> Result<DoctorResponse, ClientError> {
        self.send("POST", routes::DOCTOR, Some(request), DOCTOR_DEADLINE)
            .await
    }

    /// Follows one question through the system.
    pub async fn why(&self, request: &WhyRequest) -> Result<WhyResponse, ClientError> {
        self.send("POST", routes::WHY, Some(request), DEADLINE).await
    }

    /// The version of the agent.
    pub async fn version(&self) -> Result<VersionResponse, ClientError> {
        self.get(routes::VERSION).await
    }

    /// What happened and, if `follow` is set, happens. Only the beginning of the answer has a deadline.
    pub async fn events(&self, query: &EventsQuery) -> Result<EventStream, ClientError> {
        let since = query.since.map(|moment| moment.to_string());
        let follow = query.follow.then_some("true");
        let path = with_query(
            routes::EVENTS.to_owned(),
            &[("since", since.as_deref()), ("follow", follow)],
        );
        let deadline = self.deadline.unwrap_or(DEADLINE);
        transport::open(&self.socket, "GET", &path, None, deadline)
            .await
            .map(EventStream::new)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send("GET", path, None::<&()>, DEADLINE).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send("DELETE", path, None::<&()>, DEADLINE).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: Option<&impl Serialize>,
        deadline: Duration,
    ) -> Result<T, ClientError> {
        let deadline = self.deadline.unwrap_or(deadline);
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| {
            ClientError::protocol(
                &self.socket,
                method,
                path,
                format!("the request cannot be written: {error}"),
            )
        })?;
        transport::request(&self.socket, method, path, body, deadline).await
    }
}

/// What a request may take that waits for connections to end.
fn beyond(grace_ms: u64) -> Duration {
    Duration::from_millis(grace_ms).saturating_add(DEADLINE)
}

/// Puts a name or id in the place of `{ref}`.
fn fill(path: &str, reference: &str) -> String {
    path.replace("{ref}", &encode(reference))
}

fn with_query(mut path: String, query: &[(&str, Option<&str>)]) -> String {
    let given = query.iter().filter_map(|(key, value)| Some((key, (*value)?)));
    for (index, (key, value)) in given.enumerate() {
        let separator = if index == 0 { '?' } else { '&' };
        path.push_str(&format!("{separator}{key}={}", encode(value)));
    }
    path
}

/// Everything but letters and digits is escaped: never wrong, in a path or a query.
fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests;
