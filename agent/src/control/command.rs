//! What the API asks of the control.

use tokio::sync::oneshot;
use weft_wireguard::Secret32;

use super::{
    Control, Now, doctor::Expected, interest::Asked, own::HostRoute, records::SandboxSpec, why::Story,
};
use crate::api::{ApiError, types::*};

/// Where the answer to one command goes.
pub struct Responder<T>(oneshot::Sender<Result<T, ApiError>>);

impl<T> Responder<T> {
    pub fn new() -> (Self, oneshot::Receiver<Result<T, ApiError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }

    /// A client that went away does not hear it; what was done stays done.
    pub fn send(self, result: Result<T, ApiError>) {
        let _ = self.0.send(result);
    }
}

/// What an agent knows of itself beside the cluster's state.
#[derive(Debug, Clone)]
pub struct HostFacts {
    pub datapath: DatapathStatus,
    pub names: NamesStatus,
}

pub enum Command {
    Leave(Responder<ClusterLeaveResponse>),
    TokenCreate(TokenCreateRequest, Responder<TokenCreateResponse>),
    TokenList(Responder<Vec<TokenInfo>>),
    TokenRotateKey(Responder<GossipKeyStatus>),
    NodeList(Responder<Vec<NodeInfo>>),
    NodeInspect(String, Responder<NodeDetail>),
    NodeRemove(String, NodeRemoveQuery, Responder<NodeRemoveResponse>),
    NodeDrain(String, NodeDrainRequest, Responder<NodeDrainResponse>),
    NodeActivate(String, Responder<NodeActivateResponse>),
    /// With the new key: chance comes from outside.
    NodeRotateKey(String, Secret32, Responder<NodeRotateKeyResponse>),
    EndpointDrain(String, EndpointDrainRequest, Responder<EndpointDrainResponse>),
    EndpointActivate(
        String,
        EndpointActivateRequest,
        Responder<EndpointActivateResponse>,
    ),
    NetworkCreate(NetworkCreateRequest, Responder<NetworkSummary>),
    NetworkList(Responder<Vec<NetworkSummary>>),
    NetworkInspect(String, Responder<NetworkDetail>),
    NetworkUpdate(String, NetworkUpdateRequest, Responder<NetworkSummary>),
    NetworkRemove(String, Responder<NetworkRemoveResponse>),
    /// The driver looked at the sandbox, which is I/O.
    Connect(String, ConnectRequest, SandboxSpec, Responder<ConnectResponse>),
    /// The host itself, which has these routes.
    ConnectHost(String, ConnectRequest, Vec<HostRoute>, Responder<ConnectResponse>),
    Disconnect(String, DisconnectRequest, Responder<DisconnectResponse>),
    ServiceCreate(ServiceCreateRequest, Responder<ServiceChanged>),
    ServiceList(ServiceListQuery, Responder<Vec<ServiceSummary>>),
    ServiceInspect(String, ServiceQuery, Responder<ServiceDetail>),
    ServiceUpdate(
        String,
        ServiceUpdateRequest,
        ServiceQuery,
        Responder<ServiceChanged>,
    ),
    ServiceRemove(String, ServiceQuery, Responder<ServiceRemoveResponse>),
    Status(HostFacts, Responder<StatusResponse>),
    Examine(Responder<Box<Expected>>),
    Why(WhyRequest, Responder<Box<Story>>),
    /// Somebody follows what happens, and says so every now and then.
    Follow(Responder<()>),
}

impl Control {
    pub fn handle_command(&mut self, command: Command, now: Now) {
        if self.leaving.is_some() {
            // It is about to be in no cluster, which is what a dropped responder says.
            return;
        }
        self.carry_out_or_wait(Asked::Command(command), now);
        self.settle(now);
    }

    /// Everything that it is about is known, as far as it can be.
    pub(super) fn carry_out_command(&mut self, command: Command, now: Now) {
        match command {
            Command::Leave(to) => self.leave(to, now),
            Command::TokenCreate(request, to) => {
                let result = self.create_token(&request, now);
                self.reply(to, result);
            }
            Command::TokenList(to) => {
                let tokens = self.list_tokens(now);
                self.reply(to, Ok(tokens));
            }
            Command::TokenRotateKey(to) => self.rotate_gossip_key(to, now),
            Command::NodeList(to) => {
                let nodes = self.list_nodes();
                self.reply(to, Ok(nodes));
            }
            Command::NodeInspect(reference, to) => {
                let result = self.node_detail(&reference, now);
                self.reply(to, result);
            }
            Command::NodeRemove(reference, query, to) => {
                self.start_remove_node(&reference, &query, to, now);
            }
            Command::NodeDrain(reference, request, to) => self.drain_node(&reference, &request, to, now),
            Command::NodeActivate(reference, to) => self.activate_node(&reference, to, now),
            Command::NodeRotateKey(reference, fresh, to) => {
                let result = self.rotate_key(&reference, fresh, now);
                self.reply(to, result);
            }
            Command::EndpointDrain(reference, request, to) => {
                self.drain_endpoint(&reference, &request, to, now);
            }
            Command::EndpointActivate(reference, request, to) => {
                self.activate_endpoint(&reference, &request, to, now);
            }
            Command::NetworkCreate(request, to) => self.start_create_network(request, to, now),
            Command::NetworkList(to) => {
                let networks = self.list_networks();
                self.reply(to, Ok(networks));
            }
            Command::NetworkInspect(reference, to) => {
                let result = self.network_detail(&reference, now);
                self.reply(to, result);
            }
            Command::NetworkUpdate(reference, request, to) => {
                self.start_update_network(&reference, request, to, now);
            }
            Command::NetworkRemove(reference, to) => {
                let result = self.remove_network(&reference, now);
                self.reply(to, result);
            }
            Command::Connect(reference, request, sandbox, to) => {
                self.start_connect(&reference, request, sandbox, to, now);
            }
            Command::ConnectHost(reference, request, routes, to) => {
                self.start_connect_host(&reference, request, &routes, to, now);
            }
            Command::Disconnect(reference, request, to) => self.disconnect(&reference, &request, to, now),
            Command::ServiceCreate(request, to) => self.start_create_service(request, to, now),
            Command::ServiceList(query, to) => self.start_list_services(&query, to, now),
            Command::ServiceInspect(reference, query, to) => {
                self.inspect_service(&reference, &query, to, now);
            }
            Command::ServiceUpdate(reference, request, query, to) => {
                self.start_update_service(&reference, request, &query, to, now);
            }
            Command::ServiceRemove(reference, query, to) => {
                self.remove_service(&reference, &query, to, now);
            }
            Command::Status(facts, to) => {
                let status = self.status(facts, now);
                self.reply(to, Ok(status));
            }
            Command::Examine(to) => self.examine(to, now),
            Command::Why(request, to) => {
                let story = self.why(&request).map(Box::new);
                self.reply(to, story);
            }
            Command::Follow(to) => self.reply(to, Ok(())),
        }
    }
}
