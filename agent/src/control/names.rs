//! Finding what a user means: a name, a whole id, or the beginning of one id only.

use std::fmt::Display;

use weft_types::{EndpointId, NetworkId, NodeId, ServiceId};

use super::catalogue::Catalogue;
use super::records::ServiceSpec;
use crate::api::{ApiError, ErrorKind};

/// Digits of an id that are enough to mean it.
const SHORTEST_PREFIX: usize = 4;

/// Picks the one of `all` that `reference` means: an exact name first, then the beginning of an id.
fn find<Id: Copy + Display>(
    what: &str,
    reference: &str,
    all: impl Iterator<Item = (Id, String)> + Clone,
) -> Result<Id, ApiError> {
    let mut named = all.clone().filter(|(_, name)| name == reference);
    match (named.next(), named.next()) {
        (Some((id, _)), None) => return Ok(id),
        (Some((first, _)), Some((second, _))) => {
            return Err(
                ApiError::conflict(format!("several {what}s are called `{reference}`"))
                    .with_help(format!("say which by its id: {first} or {second}")),
            );
        }
        _ => {}
    }
    let is_prefix =
        reference.len() >= SHORTEST_PREFIX && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
    let lower = reference.to_ascii_lowercase();
    let mut found = all.filter(|(id, _)| is_prefix && id.to_string().starts_with(&lower));
    match (found.next(), found.next()) {
        (Some((id, _)), None) => Ok(id),
        (Some(_), Some(_)) => Err(ApiError::conflict(format!(
            "`{reference}` begins the id of more than one {what}"
        ))
        .with_help("give more digits of the id")),
        (None, _) => Err(ApiError::not_found(format!("there is no {what} `{reference}`"))
            .with_help(format!("`weft {what} ls` lists them"))),
    }
}

pub fn network(catalogue: &Catalogue, reference: &str) -> Result<NetworkId, ApiError> {
    let names: Vec<_> = catalogue
        .networks()
        .filter_map(|(id, _)| Some((id, catalogue.display_name(id)?)))
        .collect();
    find("network", reference, names.into_iter())
}

pub fn node(catalogue: &Catalogue, reference: &str) -> Result<NodeId, ApiError> {
    let names: Vec<_> = catalogue
        .nodes()
        .map(|(id, _)| (id, catalogue.node_name(id)))
        .collect();
    find("node", reference, names.into_iter())
}

/// A node that was removed.
pub fn removed_node(catalogue: &Catalogue, reference: &str) -> Result<NodeId, ApiError> {
    let removed = catalogue.removed_nodes();
    let names: Vec<_> = removed.map(|id| (id, catalogue.node_name(id))).collect();
    find("node", reference, names.into_iter())
}

/// An endpoint that serves a service.
pub fn backend(
    catalogue: &Catalogue,
    reference: &str,
    network_reference: Option<&str>,
) -> Result<(NetworkId, EndpointId), ApiError> {
    let only = network_reference
        .map(|reference| network(catalogue, reference))
        .transpose()?;
    let serving: Vec<_> = catalogue
        .all_endpoints()
        .filter(|(network, _, endpoint)| {
            only.is_none_or(|only| only == *network) && endpoint.spec.service.is_some()
        })
        .map(|(network, id, endpoint)| (network, id, endpoint.spec.name.clone()))
        .collect();
    let on: Vec<_> = serving
        .iter()
        .filter(|(_, _, name)| name == reference)
        .filter_map(|(network, ..)| catalogue.display_name(*network))
        .collect();
    if on.len() > 1 {
        return Err(ApiError::conflict(format!(
            "backend `{reference}` exists on several networks: {}",
            on.join(", ")
        ))
        .with_help(format!("say which with `--network {}`", on[0])));
    }
    let names = serving.iter().map(|(_, id, name)| (*id, name.clone()));
    let found = find("backend", reference, names).map_err(|error| match error.kind {
        ErrorKind::NotFound => {
            error.with_help("`weft service inspect SERVICE` lists the backends of a service")
        }
        _ => error,
    })?;
    let network = serving.iter().find(|(_, id, _)| *id == found);
    let (network, ..) = network.expect("found among them");
    Ok((*network, found))
}

pub fn service(
    catalogue: &Catalogue,
    reference: &str,
    network_reference: Option<&str>,
) -> Result<(ServiceId, ServiceSpec), ApiError> {
    let only = network_reference
        .map(|reference| network(catalogue, reference))
        .transpose()?;
    let called = catalogue.all_services_called(reference);
    let called: Vec<_> = called
        .filter(|(_, spec)| only.is_none_or(|network| network == spec.network))
        .collect();
    if let [(id, spec)] = called[..] {
        return Ok((id, spec.clone()));
    }
    let candidates: Vec<_> = catalogue
        .all_services()
        .filter(|(_, spec)| only.is_none_or(|network| network == spec.network))
        .collect();
    let names = candidates.iter().map(|(id, spec)| (*id, spec.name.clone()));
    let found = find("service", reference, names).map_err(|error| {
        let ambiguous = candidates
            .iter()
            .filter(|(_, spec)| spec.name == reference)
            .count()
            > 1;
        if !ambiguous {
            return error;
        }
        let networks: Vec<_> = candidates
            .iter()
            .filter(|(_, spec)| spec.name == reference)
            .filter_map(|(_, spec)| catalogue.display_name(spec.network))
            .collect();
        ApiError::conflict(format!(
            "service `{reference}` exists on several networks: {}",
            networks.join(", ")
        ))
        .with_help(format!("say which with `--network {}`", networks[0]))
    })?;
    let spec = candidates
        .into_iter()
        .find(|(id, _)| *id == found)
        .map(|(_, spec)| spec.clone());
    Ok((found, spec.expect("found among the candidates")))
}
