//! Why a number could not be had, in the words of whoever asked for it.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_gossip::PutError;
use weft_ipam::{AllocateError, ClaimError, NegotiationError, Refusal, Want, Why};
use weft_types::{NetworkId, NodeId};

use super::{
    Control, Now,
    operations::Stop,
    pools::{address, block_of},
    records::{SpaceKey, SubnetSpec},
};
use crate::api::ApiError;

/// What this node cannot say to the others.
pub(super) fn untold(error: PutError) -> ApiError {
    match error {
        PutError::NoRoom { .. } => full(),
        PutError::NameTooLong(_) | PutError::ValueTooLong(_) | PutError::ReservedKind(_) => {
            ApiError::invalid(format!("this cannot be told to the other nodes: {error}"))
                .with_help("use shorter names, or fewer aliases, labels, ports or subnets")
        }
    }
}

/// This node says as much as others keep of it.
pub(super) fn full() -> ApiError {
    ApiError::exhausted("this node says as much as the other nodes keep of one; nothing was changed").with_help(
        "endpoints of this node, and networks and services that were made or changed here, count: make more of them on another \
         node, or remove some",
    )
}

impl Control {
    /// What a failed allocation means: another node has to give, or nobody can.
    pub(super) fn stopped(
        &self,
        (space, within, error): (SpaceKey, Option<IpNet>, AllocateError<NodeId>),
    ) -> Stop {
        if self.spaces.is_stopped() {
            return Stop::Fail(self.cloned());
        }
        match error {
            AllocateError::NoFreeOwned { ask, .. } => Stop::Ask {
                space,
                want: Want::Any {
                    within: within.map(|net| block_of(net).range()),
                },
                ask,
            },
            AllocateError::Exhausted { quarantined } => {
                Stop::Fail(self.exhausted(space, within, quarantined))
            }
            AllocateError::OutOfRange => Stop::Fail(ApiError::invalid(format!(
                "{} has no such range",
                self.space_name(space)
            ))),
        }
    }

    /// Which of two subnets of a network to ask for, when neither has an address here: one whose owners can be asked, have not
    /// been asked for this in vain, and have not just said that they have none.
    pub(super) fn better_stop(
        &self,
        earlier: Option<Stop>,
        cause: (SpaceKey, Option<IpNet>, AllocateError<NodeId>),
        now: Now,
    ) -> Stop {
        let later = self.stopped(cause);
        let worth = |stop: &Stop| match stop {
            Stop::Fail(_) => 0,
            Stop::Ask { space, .. } if self.in_vain.contains(space) => 0,
            Stop::Ask { space, .. } if self.spaces.is_lean(*space, now.instant) => 1,
            Stop::Ask { .. } => 2,
        };
        match earlier {
            Some(earlier) if worth(&earlier) >= worth(&later) => earlier,
            _ => later,
        }
    }

    /// What a failed claim of a subnet means.
    pub(super) fn stopped_claim(
        &self,
        (space, want, error): (SpaceKey, Want, ClaimError<NodeId>),
        subnet: IpNet,
    ) -> Stop {
        match error {
            ClaimError::OwnedBy { owners } => Stop::Ask {
                space,
                want,
                ask: owners,
            },
            _ => Stop::Fail(
                ApiError::conflict(format!(
                    "subnet {subnet} is not free: a network has it, or a part of it"
                ))
                .with_help(
                    "choose another subnet, or none for a free one; `weft network ls` shows those in use",
                ),
            ),
        }
    }

    /// What a failed claim of an endpoint's address means.
    pub(super) fn stopped_claim_address(
        &self,
        (space, want, error): (SpaceKey, Want, ClaimError<NodeId>),
        asked: IpAddr,
        network: NetworkId,
        subnet: &SubnetSpec,
    ) -> Stop {
        let name = self.catalogue.display_name(network).unwrap_or_default();
        let error = match error {
            ClaimError::OwnedBy { owners } => {
                return Stop::Ask {
                    space,
                    want,
                    ask: owners,
                };
            }
            ClaimError::InUse { .. } => return Stop::Fail(self.address_in_use(network, asked)),
            ClaimError::Reserved { .. } => {
                let aux = subnet.aux.iter().find(|(_, address)| *address == asked);
                let what = match aux {
                    Some((name, _)) => format!("set aside for `{name}`"),
                    None if asked == subnet.gateway => "the gateway".to_owned(),
                    None => "the network or broadcast address".to_owned(),
                };
                ApiError::conflict(format!("{asked} of network `{name}` is {what}"))
            }
            ClaimError::Quarantined { .. } => ApiError::unavailable(format!(
                "{asked} of network `{name}` is quarantined: two nodes claim to have granted it"
            )),
            ClaimError::OutOfRange { .. } => {
                ApiError::invalid(format!("{asked} is not an address of network `{name}`"))
            }
        };
        Stop::Fail(error.with_help("choose another address, or none for a free one"))
    }

    fn address_in_use(&self, network: NetworkId, asked: IpAddr) -> ApiError {
        let name = self.catalogue.display_name(network).unwrap_or_default();
        let endpoint = self.catalogue.endpoints(network).find(|(_, endpoint)| {
            endpoint
                .spec
                .addresses
                .iter()
                .any(|address| address.addr() == asked)
        });
        let service = self
            .catalogue
            .services(network)
            .find(|(_, service)| service.vips.contains(&asked));
        let by = match (endpoint, service) {
            (Some((_, endpoint)), _) => {
                format!(
                    "by endpoint `{}` on node `{}`",
                    endpoint.spec.name,
                    self.catalogue.node_name(endpoint.node)
                )
            }
            (None, Some((_, service))) => format!("as the virtual address of service `{}`", service.name),
            (None, None) => match self.ingress_at(network, asked) {
                Some(node) => format!("by node `{node}`, for published ports"),
                None => "by an endpoint that is being made".to_owned(),
            },
        };
        ApiError::conflict(format!("{asked} of network `{name}` is in use {by}"))
            .with_help("choose another address, or none for a free one")
    }

    fn ingress_at(&self, network: NetworkId, asked: IpAddr) -> Option<String> {
        let has = |address: &IpNet| address.addr() == asked;
        let mut ingresses = self.catalogue.ingresses(network);
        let (node, _) = ingresses.find(|(_, ingress)| ingress.addresses.iter().any(has))?;
        Some(self.catalogue.node_name(node))
    }

    fn exhausted(&self, space: SpaceKey, within: Option<IpNet>, quarantined: u128) -> ApiError {
        let range = within.map(|net| format!(" in {net}")).unwrap_or_default();
        let note = match quarantined {
            0 => String::new(),
            count => format!(" ({count} are quarantined, see `weft status`)"),
        };
        let name = self.space_name(space);
        let what = match space {
            SpaceKey::Addresses(..) => "address",
            SpaceKey::Subnets4 | SpaceKey::Subnets6 => "subnet",
            SpaceKey::Vnis => "number",
        };
        let error = ApiError::exhausted(format!("{name} has no free {what} left{range}{note}"));
        error.with_help(match space {
            SpaceKey::Addresses(network, _) => {
                let spec = self.catalogue.network(network);
                let maker = spec.map(|spec| self.catalogue.node_name(spec.creator));
                let name = self.catalogue.display_name(network).unwrap_or_default();
                format!(
                    "disconnect endpoints that are not needed, or give it more addresses on node `{}`, which made it: \
                     `weft network update --subnet-add CIDR {name}`",
                    maker.unwrap_or_default()
                )
            }
            SpaceKey::Subnets4 | SpaceKey::Subnets6 => {
                "remove networks that are not needed, or give --subnet".to_owned()
            }
            SpaceKey::Vnis => "remove networks that are not needed".to_owned(),
        })
    }

    /// Nobody gave: says who was asked and why each did not.
    pub(super) fn negotiation_failed(
        &self,
        space: SpaceKey,
        want: &Want,
        error: &NegotiationError<NodeId>,
    ) -> ApiError {
        let name = self.space_name(space);
        let refused = |test: fn(&Refusal) -> bool| {
            !error.owners.is_empty()
                && error.owners.iter().all(|(_, why)| {
                    matches!(why, Why::Elsewhere) || matches!(why, Why::Refused(refusal) if test(refusal))
                })
        };
        if let (Want::Number(number), SpaceKey::Addresses(network, index)) = (want, space) {
            let taken = error
                .owners
                .iter()
                .any(|(_, why)| matches!(why, Why::Refused(Refusal::InUse(_))));
            let subnet = self
                .catalogue
                .network(network)
                .and_then(|spec| spec.subnets.get(usize::from(index)));
            if let (true, Some(subnet)) = (taken, subnet) {
                return self.address_in_use(network, address(*number, subnet.net));
            }
        }
        if let (Want::Block(_), true) = (want, refused(|_| true)) {
            return ApiError::conflict("the subnet is not free: a network has it, or a part of it")
                .with_help(
                    "choose another subnet, or none for a free one; `weft network ls` shows those in use",
                );
        }
        if refused(|refusal| matches!(refusal, Refusal::NoSpace)) {
            return self.exhausted(space, None, 0);
        }
        let owners: Vec<_> = error
            .owners
            .iter()
            .map(|(node, why)| format!("node `{}` {why}", self.catalogue.node_name(*node)))
            .collect();
        ApiError::unavailable(format!(
            "this node owns no free number of {name}, and nobody gave one: {}; nothing was changed",
            owners.join(", ")
        ))
        .with_help(
            "try again when one of these nodes can be reached (`weft node ls`); \
             a node that owns free numbers can do it now, without asking anybody",
        )
    }

    pub(super) fn space_name(&self, space: SpaceKey) -> String {
        match space {
            SpaceKey::Subnets4 => format!("the pool of subnets {}", self.facts.pools.v4),
            SpaceKey::Subnets6 => format!("the pool of subnets {}", self.facts.pools.v6),
            SpaceKey::Vnis => "the space of VNIs".to_owned(),
            SpaceKey::Addresses(network, index) => {
                let name = self
                    .catalogue
                    .display_name(network)
                    .unwrap_or_else(|| network.short());
                let subnet = self
                    .catalogue
                    .network(network)
                    .and_then(|spec| spec.subnets.get(usize::from(index)));
                let net = subnet.map(|subnet| subnet.net.to_string()).unwrap_or_default();
                format!("subnet {net} of network `{name}`")
            }
        }
    }

    fn cloned(&self) -> ApiError {
        ApiError::forbidden("another node runs with this node's identity, so nothing is handed out here")
            .with_help("stop one of the two, give it an empty --data-dir, and let it join as a new node")
    }
}
