//! Nodes: showing and removing them, leaving, and the one screen about this one.

use std::{collections::BTreeSet, time::Duration};

use weft_types::NodeId;

use super::{
    Control, HostFacts, Now, Responder,
    catalogue::Presence,
    names,
    records::{CLUSTER, Kind, RemovalFact, SpaceKey, encode},
};
use crate::api::{ApiError, Timestamp, types::*};

/// How long a node that leaves stays to be asked for what it said last: three rounds of rumours and some.
const LINGER: Duration = Duration::from_millis(400);

impl Control {
    pub(super) fn node_info(&self, id: NodeId) -> NodeInfo {
        let node = self.catalogue.node(id);
        let fact = node.and_then(|node| node.fact.as_ref());
        NodeInfo {
            id,
            name: self.catalogue.node_name(id),
            state: self.node_state(id),
            underlay_address: fact.map_or(([0, 0, 0, 0], 0).into(), |fact| fact.gossip),
            vtep: fact.map_or([0, 0, 0, 0].into(), |fact| fact.vtep),
            version: fact.map(|fact| fact.version.clone()).unwrap_or_default(),
            endpoint_count: self
                .catalogue
                .all_endpoints()
                .filter(|(_, _, endpoint)| endpoint.node == id)
                .count() as u32,
            availability: self.availability(id),
            is_self: id == self.me,
        }
    }

    pub(super) fn list_nodes(&self) -> Vec<NodeInfo> {
        let mut nodes: Vec<_> = self.catalogue.nodes().map(|(id, _)| self.node_info(id)).collect();
        nodes.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        nodes
    }

    pub(super) fn node_detail(&self, reference: &str, now: Now) -> Result<NodeDetail, ApiError> {
        let id = names::node(&self.catalogue, reference)?;
        let endpoints = self
            .catalogue
            .all_endpoints()
            .filter(|(_, _, endpoint)| endpoint.node == id)
            .map(|(network, endpoint_id, endpoint)| self.show_endpoint(network, endpoint_id, endpoint))
            .collect();
        let mut shares = Vec::new();
        for (network_id, spec) in self.catalogue.networks() {
            let used = self.used_addresses(network_id).remove(&id).unwrap_or_default();
            for (index, subnet) in spec.subnets.iter().enumerate() {
                let owned = self
                    .spaces
                    .shares(SpaceKey::Addresses(network_id, index as u8))
                    .remove(&id);
                shares.push(NodeShare {
                    network_id,
                    network_name: self.catalogue.display_name(network_id).unwrap_or_default(),
                    subnet: subnet.net,
                    owned: owned.unwrap_or(0).try_into().unwrap_or(u64::MAX),
                    used: used
                        .iter()
                        .filter(|address| subnet.net.contains(*address))
                        .count() as u64,
                });
            }
        }
        Ok(NodeDetail {
            info: self.node_info(id),
            endpoints,
            shares,
            key_fingerprint: self.key_fingerprint(id),
            key_epoch: self.key_epoch(id),
            tunnel: self.tunnel_to(id, now),
        })
    }

    /// Answers once what it owned has been taken over, or it is clear that this has to wait.
    pub(super) fn start_remove_node(
        &mut self,
        reference: &str,
        query: &NodeRemoveQuery,
        responder: Responder<NodeRemoveResponse>,
        now: Now,
    ) {
        match self.remove_node(reference, query, now) {
            Ok(response) => self.once_taken_over(response, responder, now),
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    fn remove_node(
        &mut self,
        reference: &str,
        query: &NodeRemoveQuery,
        now: Now,
    ) -> Result<NodeRemoveResponse, ApiError> {
        // Of one that was removed before, the operator may still say that it is dead.
        let id = match names::node(&self.catalogue, reference) {
            Err(_) if query.force => names::removed_node(&self.catalogue, reference),
            found => found,
        }?;
        let name = self.catalogue.node_name(id);
        if id == self.me {
            return Err(ApiError::invalid(format!("`{name}` is this node"))
                .with_help("`weft leave` makes this node leave its cluster"));
        }
        if self.serves(id) && !query.force {
            return Err(
                ApiError::conflict(format!("node `{name}` is alive; it was not removed"))
                    .with_help("run `weft leave` on it, or lock it out with --force"),
            );
        }
        let endpoints_removed = self
            .catalogue
            .all_endpoints()
            .filter(|(_, _, endpoint)| endpoint.node == id)
            .count() as u32;
        let fact = RemovalFact { forced: query.force };
        self.publish(Kind::Removal.key(CLUSTER, id.0), encode(&fact), now)?;
        self.settle(now);
        Ok(NodeRemoveResponse {
            id,
            name,
            forced: query.force,
            endpoints_removed,
            blocks_reclaimed: 0,
            still_owned: None,
        })
    }

    /// Withdraws this node's endpoints, gives what it owns to a node that answers, and says good-bye.
    pub(super) fn leave(&mut self, responder: Responder<ClusterLeaveResponse>, now: Now) {
        let endpoints: Vec<_> = self
            .local_endpoints()
            .map(|(network, id, _)| (network, id))
            .collect();
        for (network, id) in &endpoints {
            self.drop_endpoint(*network, *id, now);
        }
        let entered: Vec<_> = self.catalogue.ingresses_of(self.me).collect();
        for network in entered {
            self.leave_ingress(network, now);
        }
        let heir = self
            .catalogue
            .nodes()
            .find(|(id, node)| *id != self.me && node.presence == Presence::Alive)
            .map(|(id, _)| id);
        let mut blocks = 0;
        if let Some(heir) = heir {
            for (space, grant) in self.spaces.hand_over(heir, now.instant) {
                match self.publish_grant(space, grant, now) {
                    Ok(()) => blocks += 1,
                    Err(error) => tracing::warn!(%error, "a block could not be handed over"),
                }
            }
        }
        self.settle(now);
        let response = ClusterLeaveResponse {
            cluster_id: self.facts.id,
            node_id: self.me,
            node_name: self.settings.node_name.clone(),
            endpoints_removed: endpoints.len() as u32,
            blocks_handed_over: blocks,
        };
        // Nobody else can tell what is said now: what it gave away would be lost with it.
        let linger = if heir.is_some() { LINGER } else { Duration::ZERO };
        self.leaving = Some((now.instant + linger, response, responder));
    }

    /// Says good-bye; what was said before has been told by now.
    pub(super) fn finish_leaving(&mut self, now: Now) {
        let Some((_, response, responder)) = self.leaving.take() else {
            return;
        };
        self.gossip.leave(now.instant);
        self.settle(now);
        self.removed = true;
        self.reply(responder, Ok(response));
    }

    /// Whether this node is no member any more: it left, or was removed.
    pub fn is_out(&self) -> bool {
        self.removed
    }

    pub(super) fn status(&self, facts: HostFacts, now: Now) -> StatusResponse {
        let nodes = self.list_nodes();
        let present: Vec<_> = nodes
            .iter()
            .filter(|node| node.state != NodeState::Left)
            .collect();
        let alive = present
            .iter()
            .filter(|node| matches!(node.state, NodeState::Alive | NodeState::Suspect))
            .count();
        StatusResponse {
            node: self.node_info(self.me),
            started: Timestamp::from_unix_millis(self.started.unix_millis),
            cluster: Some(ClusterStatus {
                id: self.facts.id,
                node_count: present.len() as u32,
                alive_count: alive as u32,
                gossip_key: self.gossip_key_status(),
            }),
            peers: nodes.iter().filter(|node| !node.is_self).cloned().collect(),
            networks: self.list_networks(),
            datapath: facts.datapath,
            names: facts.names,
            encryption: self.encryption(None, now),
            problems: self.all_problems(now),
        }
    }

    pub(super) fn list_networks(&self) -> Vec<NetworkSummary> {
        let mut networks: Vec<_> = self
            .catalogue
            .networks()
            .map(|(id, spec)| self.network_summary(id, spec))
            .collect();
        networks.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        networks
    }

    pub(super) fn list_services(&self, query: &ServiceListQuery) -> Result<Vec<ServiceSummary>, ApiError> {
        let only = query
            .network
            .as_deref()
            .map(|name| names::network(&self.catalogue, name))
            .transpose()?;
        let mut services: Vec<_> = self
            .catalogue
            .all_services()
            .filter(|(_, spec)| only.is_none_or(|network| network == spec.network))
            .map(|(id, spec)| self.service_summary(id, spec))
            .collect();
        services
            .sort_by(|one, other| (&one.network_name, &one.name).cmp(&(&other.network_name, &other.name)));
        Ok(services)
    }

    pub(super) fn all_problems(&self, now: Now) -> Vec<String> {
        let mut problems: Vec<String> = self.problems.iter().cloned().collect();
        problems.extend(self.tunnel_problems(now));
        problems.extend(self.estate_problems());
        problems.extend(self.untruths(now));
        problems.extend(self.gossip_key_problems(now));
        problems.extend(self.interest_problem());
        let names: Vec<_> = self
            .catalogue
            .nodes()
            .map(|(id, _)| self.catalogue.node_name(id))
            .collect();
        let twice: BTreeSet<_> = names
            .iter()
            .filter(|name| names.iter().filter(|other| other == name).count() > 1)
            .collect();
        problems.extend(
            twice
                .into_iter()
                .map(|name| format!("more than one node is called `{name}`")),
        );
        for node in self.list_nodes() {
            match node.state {
                NodeState::Down => problems.push(format!(
                    "node `{}` does not answer: its {} endpoint(s) are out of names and services",
                    node.name, node.endpoint_count
                )),
                NodeState::Away => problems.push(format!(
                    "the agent of node `{}` does not answer, its host does: its {} endpoint(s) are served for half a \
                     minute at most; start the agent there",
                    node.name, node.endpoint_count
                )),
                NodeState::Suspect => problems.push(format!("node `{}` missed a probe", node.name)),
                NodeState::Alive | NodeState::Left => {}
            }
        }
        problems
    }
}
