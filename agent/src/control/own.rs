//! The host itself on a network: its own namespace as an endpoint, so that its processes reach addresses there.

use ipnet::IpNet;
use weft_types::{EndpointId, NetworkId};

use super::{
    Control, Now, Responder,
    endpoints::Connect,
    names,
    networks::overlap,
    operations::Operation,
    records::{Attachment, SandboxSpec, encode, endpoint_key},
};
use crate::api::{ApiError, types::*};

/// What a user calls the host's own namespace.
pub const TARGET: &str = "host";
/// Where the agent finds it: its own.
const PATH: &str = "/proc/self/ns/net";

/// A route that the host has without us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    pub to: IpNet,
    /// The device, if it leads to one.
    pub device: Option<String>,
}

impl SandboxSpec {
    /// The host's own namespace, which has this device and inode.
    pub fn of_host(device: u64, inode: u64) -> Self {
        Self {
            target: TARGET.to_owned(),
            path: PATH.to_owned(),
            device,
            inode,
        }
    }

    pub fn is_host(&self) -> bool {
        self.path == PATH
    }
}

impl Control {
    pub(super) fn start_connect_host(
        &mut self,
        reference: &str,
        mut request: ConnectRequest,
        routes: &[HostRoute],
        responder: Responder<ConnectResponse>,
        now: Now,
    ) {
        let network = names::network(&self.catalogue, reference);
        let checked = network.and_then(|id| self.check_ways(id, routes).map(|()| id));
        match checked {
            Ok(network) => {
                let name = self.settings.node_name.clone();
                request.name.get_or_insert(name);
                let connect = Connect::new(network, request, self.settings.host.clone());
                self.start(Operation::Connect(connect, responder), now);
            }
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    /// The host keeps the ways it has: none of them may lead into what the network would take for its own.
    fn check_ways(&self, id: NetworkId, routes: &[HostRoute]) -> Result<(), ApiError> {
        let network = self.catalogue.display_name(id).unwrap_or_default();
        let subnets = self
            .catalogue
            .network(id)
            .map_or(&[][..], |spec| &spec.subnets[..]);
        let help = "the host cannot be on this network: make another with `weft network create --subnet`, or have a namespace \
                    of its own reach it";
        for subnet in subnets {
            if let Some(route) = routes.iter().find(|route| overlap(route.to, subnet.net)) {
                let device = route.device.as_ref();
                let by = device.map_or_else(String::new, |device| format!(" by {device}"));
                return Err(ApiError::conflict(format!(
                    "network `{network}` has the subnet {}, and this host has a route to {}{by}, which overlaps it",
                    subnet.net, route.to
                ))
                .with_help(help));
            }
            let facts = self.catalogue.nodes();
            let mut vteps = facts.filter_map(|(id, node)| Some((id, node.fact.as_ref()?.vtep)));
            if let Some((node, vtep)) = vteps.find(|(_, vtep)| subnet.net.contains(vtep)) {
                return Err(ApiError::conflict(format!(
                    "network `{network}` has the subnet {}, in which is {vtep}, where node `{}` is reached",
                    subnet.net,
                    self.catalogue.node_name(node)
                ))
                .with_help(help));
            }
        }
        Ok(())
    }

    /// The host's namespace is another after it was started anew, and the endpoint is in that one now. Says whether it
    /// could have been in another.
    pub(super) fn follow_host(&mut self, network: NetworkId, id: EndpointId, now: Now) -> bool {
        let host = self.settings.host.clone();
        let Some(mut spec) = self.endpoint_spec(network, id).cloned() else {
            return false;
        };
        match &mut spec.attachment {
            Attachment::Sandbox(sandbox) if sandbox.is_host() && *sandbox != host => *sandbox = host,
            _ => return false,
        }
        if let Err(error) = self.publish(endpoint_key(network, id), encode(&spec), now) {
            self.problem(error.message);
        }
        true
    }
}

#[cfg(test)]
mod tests;
