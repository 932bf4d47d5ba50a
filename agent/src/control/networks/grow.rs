//! More subnets for a network that is in use.

use ipnet::IpNet;
use weft_ipam::Block;
use weft_types::NetworkId;

use super::{MAX_SUBNETS, first_usable};
use crate::{
    api::{
        ApiError,
        types::{NetworkSummary, NetworkUpdateRequest},
    },
    control::{
        Control, Now, Responder, names,
        operations::{Operation, Stop},
        records::{Register, SubnetSpec, encode, network_key},
    },
};

pub(in crate::control) struct GrowNetwork {
    network: NetworkId,
    request: NetworkUpdateRequest,
    /// Subnets that are settled, with what they took from the pool.
    taken: Vec<(IpNet, Option<Block>)>,
}

impl Control {
    pub(in crate::control) fn start_update_network(
        &mut self,
        reference: &str,
        request: NetworkUpdateRequest,
        responder: Responder<NetworkSummary>,
        now: Now,
    ) {
        let network = names::network(&self.catalogue, reference);
        let checked = network.and_then(|id| self.check_growth(id, &request).map(|()| id));
        match checked {
            Ok(network) => {
                let grow = GrowNetwork {
                    network,
                    request,
                    taken: Vec::new(),
                };
                self.start(Operation::GrowNetwork(grow, responder), now);
            }
            Err(error) => self.reply(responder, Err(error)),
        }
    }

    /// What can be refused before anything is taken.
    fn check_growth(&self, id: NetworkId, request: &NetworkUpdateRequest) -> Result<(), ApiError> {
        let gone = || ApiError::not_found("the network was removed meanwhile");
        let spec = self.catalogue.network(id).ok_or_else(gone)?;
        let name = self
            .catalogue
            .display_name(id)
            .unwrap_or_else(|| spec.name.clone());
        let more = &request.subnets_add;
        if more.is_empty() {
            return Err(
                ApiError::invalid(format!("nothing to change of network `{name}` was given"))
                    .with_help("`--subnet-add CIDR` gives it more addresses"),
            );
        }
        if spec.creator != self.me {
            let maker = self.catalogue.node_name(spec.creator);
            let error = ApiError::conflict(format!(
                "network `{name}` was made on node `{maker}`, which alone can add subnets to it: so nobody else adds \
                 the same ones"
            ));
            let is_gone = self.catalogue.is_removed(spec.creator) || !self.serves(spec.creator);
            return Err(match is_gone {
                false => error.with_help("run the same command there"),
                true => error.with_help(
                    "run the same command there when it is back; if it will not come back, make a larger network and \
                     connect the endpoints to that",
                ),
            });
        }
        if spec.subnets.len() + more.len() > MAX_SUBNETS {
            return Err(ApiError::exhausted(format!(
                "network `{name}` would have more than {MAX_SUBNETS} subnets"
            ))
            .with_help("add one large subnet rather than many small ones"));
        }
        let mut all: Vec<IpNet> = spec.subnets.iter().map(|subnet| subnet.net).collect();
        for subnet in more {
            let is_v4 = subnet.addr().is_ipv4();
            if !all.iter().any(|net| net.addr().is_ipv4() == is_v4) {
                let version = if is_v4 { "IPv4" } else { "IPv6" };
                return Err(ApiError::invalid(format!(
                    "network `{name}` has no {version} addresses, so {subnet} cannot be added to it"
                ))
                .with_help("which it has is decided when it is made: `weft network create --ipv6 …`"));
            }
            self.check_subnet(&name, request.allow_overlap, *subnet, &all)?;
            all.push(*subnet);
        }
        Ok(())
    }

    pub(in crate::control) fn grow_network(
        &mut self,
        grow: &mut GrowNetwork,
        now: Now,
    ) -> Result<NetworkSummary, Stop> {
        // Others may have been faster while this one was parked.
        self.check_growth(grow.network, &grow.request)?;
        for subnet in &grow.request.subnets_add[grow.taken.len()..] {
            let units = self.claim_subnet(*subnet, grow.request.allow_overlap)?;
            grow.taken.push((*subnet, units));
        }
        let key = network_key(grow.network);
        let mut spec = self
            .catalogue
            .network(grow.network)
            .expect("it was looked at")
            .clone();
        let more = grow.taken.iter().map(|(net, pooled)| SubnetSpec {
            net: *net,
            gateway: first_usable(*net),
            range: None,
            aux: Vec::new(),
            pooled: *pooled,
        });
        spec.subnets.extend(more);
        let register = Register {
            lamport: self.catalogue.lamport_for(&key),
            removed: false,
            value: spec,
        };
        self.publish(key, encode(&register), now)?;
        Ok(self.network_summary(grow.network, &register.value))
    }

    pub(in crate::control) fn abandon_growth(&mut self, grow: GrowNetwork, now: Now) {
        self.release_subnets(grow.taken, now);
    }
}

#[cfg(test)]
mod tests;
