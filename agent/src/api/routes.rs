//! Which path takes and answers what. The paths are written as axum's router reads them.

macro_rules! paths {
    ($($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $path;)*
    };
}

paths! {
    /// Make a cluster.
    CLUSTER_INIT = "/v1/cluster/init";
    /// Join a cluster.
    CLUSTER_JOIN = "/v1/cluster/join";
    /// Leave the cluster.
    CLUSTER_LEAVE = "/v1/cluster/leave";
    /// Join tokens.
    TOKENS = "/v1/tokens";
    /// Change the key of gossip.
    TOKENS_ROTATE_KEY = "/v1/tokens/rotate-key";
    /// All nodes.
    NODES = "/v1/nodes";
    /// One node.
    NODE = "/v1/nodes/{ref}";
    /// Drain a node.
    NODE_DRAIN = "/v1/nodes/{ref}/drain";
    /// End the drain of a node.
    NODE_ACTIVATE = "/v1/nodes/{ref}/activate";
    /// Change the key of a node.
    NODE_ROTATE_KEY = "/v1/nodes/{ref}/rotate-key";
    /// Drain a backend.
    ENDPOINT_DRAIN = "/v1/endpoints/{ref}/drain";
    /// End the drain of a backend.
    ENDPOINT_ACTIVATE = "/v1/endpoints/{ref}/activate";
    /// All networks.
    NETWORKS = "/v1/networks";
    /// One network.
    NETWORK = "/v1/networks/{ref}";
    /// Attach a namespace to a network.
    NETWORK_CONNECT = "/v1/networks/{ref}/connect";
    /// Detach a namespace from a network.
    NETWORK_DISCONNECT = "/v1/networks/{ref}/disconnect";
    /// All services.
    SERVICES = "/v1/services";
    /// One service.
    SERVICE = "/v1/services/{ref}";
    /// One screen about this node.
    STATUS = "/v1/status";
    /// Compare what should be with what is.
    DOCTOR = "/v1/doctor";
    /// Follow one question through the system.
    WHY = "/v1/why";
    /// What happens, as JSON lines.
    EVENTS = "/v1/events";
    /// The version of the agent.
    VERSION = "/v1/version";
    /// The description of this API.
    OPENAPI = "/v1/openapi.json";
}

/// One operation of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The HTTP method.
    pub method: &'static str,
    /// The path.
    pub path: &'static str,
    /// The type of the request's body.
    pub request: Option<&'static str>,
    /// The type of the request's query.
    pub query: Option<&'static str>,
    /// The type of the answer's body; `[T]` is an array of it.
    pub response: &'static str,
}

const fn route(method: &'static str, path: &'static str, response: &'static str) -> Route {
    Route {
        method,
        path,
        request: None,
        query: None,
        response,
    }
}

impl Route {
    const fn body(mut self, request: &'static str) -> Self {
        self.request = Some(request);
        self
    }

    const fn query(mut self, query: &'static str) -> Self {
        self.query = Some(query);
        self
    }
}

/// Every operation there is. All answer 200 on success and an [`ErrorBody`](super::ErrorBody) otherwise.
pub const ROUTES: &[Route] = &[
    route("POST", CLUSTER_INIT, "ClusterInitResponse").body("ClusterInitRequest"),
    route("POST", CLUSTER_JOIN, "ClusterJoinResponse").body("ClusterJoinRequest"),
    route("POST", CLUSTER_LEAVE, "ClusterLeaveResponse").body("ClusterLeaveRequest"),
    route("POST", TOKENS, "TokenCreateResponse").body("TokenCreateRequest"),
    route("GET", TOKENS, "[TokenInfo]"),
    route("POST", TOKENS_ROTATE_KEY, "GossipKeyStatus").body("TokenRotateKeyRequest"),
    route("GET", NODES, "[NodeInfo]"),
    route("GET", NODE, "NodeDetail"),
    route("DELETE", NODE, "NodeRemoveResponse").query("NodeRemoveQuery"),
    route("POST", NODE_DRAIN, "NodeDrainResponse").body("NodeDrainRequest"),
    route("POST", NODE_ACTIVATE, "NodeActivateResponse").body("NodeActivateRequest"),
    route("POST", NODE_ROTATE_KEY, "NodeRotateKeyResponse").body("NodeRotateKeyRequest"),
    route("POST", ENDPOINT_DRAIN, "EndpointDrainResponse").body("EndpointDrainRequest"),
    route("POST", ENDPOINT_ACTIVATE, "EndpointActivateResponse").body("EndpointActivateRequest"),
    route("POST", NETWORKS, "NetworkSummary").body("NetworkCreateRequest"),
    route("GET", NETWORKS, "[NetworkSummary]"),
    route("GET", NETWORK, "NetworkDetail"),
    route("PATCH", NETWORK, "NetworkSummary").body("NetworkUpdateRequest"),
    route("DELETE", NETWORK, "NetworkRemoveResponse"),
    route("POST", NETWORK_CONNECT, "ConnectResponse").body("ConnectRequest"),
    route("POST", NETWORK_DISCONNECT, "DisconnectResponse").body("DisconnectRequest"),
    route("POST", SERVICES, "ServiceChanged").body("ServiceCreateRequest"),
    route("GET", SERVICES, "[ServiceSummary]").query("ServiceListQuery"),
    route("GET", SERVICE, "ServiceDetail").query("ServiceQuery"),
    route("PATCH", SERVICE, "ServiceChanged")
        .body("ServiceUpdateRequest")
        .query("ServiceQuery"),
    route("DELETE", SERVICE, "ServiceRemoveResponse").query("ServiceQuery"),
    route("GET", STATUS, "StatusResponse"),
    route("POST", DOCTOR, "DoctorResponse").body("DoctorRequest"),
    route("POST", WHY, "WhyResponse").body("WhyRequest"),
    route("GET", EVENTS, "Event").query("EventsQuery"),
    route("GET", VERSION, "VersionResponse"),
    route("GET", OPENAPI, "object"),
];
