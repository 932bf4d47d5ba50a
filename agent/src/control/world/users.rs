//! What users ask of nodes in most tests.

use super::{World, sandbox};
use crate::{
    api::{
        ApiError,
        types::{ConnectRequest, ConnectResponse, DisconnectRequest},
    },
    control::Command,
};

impl World {
    /// A namespace of this name becomes an endpoint, of a service if one is named.
    pub(in crate::control) fn connect(
        &mut self,
        node: usize,
        network: &str,
        name: &str,
        service: Option<&str>,
    ) -> Result<ConnectResponse, ApiError> {
        let request = ConnectRequest {
            name: Some(name.to_owned()),
            service: service.map(str::to_owned),
            ..ConnectRequest::new(name)
        };
        let sandbox = sandbox(node, name);
        self.tried(node, |to| {
            Command::Connect(network.to_owned(), request, sandbox, to)
        })
    }

    /// What was connected by this name is not any more.
    pub(in crate::control) fn disconnect(&mut self, node: usize, network: &str, name: &str) {
        let what = DisconnectRequest {
            target: name.to_owned(),
            grace_ms: 0,
        };
        self.done(node, |to| Command::Disconnect(network.to_owned(), what, to));
    }
}
