//! Everything that is known of one name, in the order in which a question passes it: for `weft why`.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use weft_types::{Mac, NetworkId};

use super::{
    Control,
    catalogue::Endpoint,
    doctor::Local,
    records::{ServiceSpec, endpoint_key},
};
use crate::api::{
    ApiError,
    types::{BackendState, EndpointMode, NodeState, WhyRequest},
};

/// Names that are shown to somebody who may have meant another.
const MAX_SIMILAR: usize = 5;

/// What is known of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Story {
    pub node: String,
    /// Who asks; nobody on a host without endpoints on the networks in question.
    pub asker: Option<Local>,
    /// The networks that are looked through, in this order.
    pub networks: Vec<String>,
    /// Where the name was found.
    pub found: Option<Found>,
    /// Other networks that know the name.
    pub elsewhere: Vec<String>,
    /// Names that are spelled alike.
    pub similar: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub network: NetworkId,
    pub network_name: String,
    /// The name in full, and what it resolves to.
    pub question: String,
    pub expected: BTreeSet<IpAddr>,
    /// Whether what goes to other hosts is encrypted.
    pub encrypted: bool,
    pub dns: Vec<IpAddr>,
    pub service: Option<ServiceStory>,
    /// The endpoints behind it.
    pub ends: Vec<End>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStory {
    pub name: String,
    pub created_by: String,
    pub vips: Vec<IpAddr>,
    pub has_vip: bool,
    pub scheduler: String,
    pub ports: Vec<String>,
    /// The first port over TCP, and where it leads at a backend.
    pub tcp: Option<(u16, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub name: String,
    pub aliases: Vec<String>,
    pub node: String,
    pub node_state: NodeState,
    pub is_here: bool,
    pub vtep: Option<IpAddr>,
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
    pub state: BackendState,
    pub weight: u16,
    pub reason: Option<String>,
    /// The version of its record.
    pub version: u64,
}

/// What somebody asks for.
enum Sought {
    Address(IpAddr),
    /// In lower case, without domain and network.
    Name(String),
}

impl Control {
    pub(super) fn why(&self, request: &WhyRequest) -> Result<Story, ApiError> {
        let only = request.network.as_deref();
        let only = only
            .map(|name| super::names::network(&self.catalogue, name))
            .transpose()?;
        let (sought, named) = self.sought(&request.name);
        let only = only.or(named);
        let (asker, mut networks) = self.asker(request.from.as_deref(), &sought, only)?;
        networks.retain(|network| only.is_none_or(|only| only == *network));
        let display = |id: &NetworkId| self.catalogue.display_name(*id).unwrap_or_else(|| id.short());
        let found = networks
            .iter()
            .copied()
            .find(|network| self.knows(*network, &sought));
        let elsewhere = self.catalogue.networks().map(|(id, _)| id);
        let elsewhere = elsewhere.filter(|id| Some(*id) != found && self.knows(*id, &sought));
        let mut story = Story {
            node: self.settings.node_name.clone(),
            asker,
            networks: networks.iter().map(display).collect(),
            elsewhere: elsewhere.map(|id| display(&id)).collect(),
            ..Story::default()
        };
        match (found, &sought) {
            (Some(network), _) => story.found = self.found(network, &sought),
            (None, Sought::Name(name)) => story.similar = self.similar(&networks, name),
            (None, Sought::Address(_)) => {}
        }
        Ok(story)
    }

    /// Takes the domain and the network off a name.
    fn sought(&self, text: &str) -> (Sought, Option<NetworkId>) {
        if let Ok(address) = text.parse() {
            return (Sought::Address(address), None);
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let domain = format!(".{}", self.settings.domain);
        let name = name.strip_suffix(&domain).map(str::to_owned).unwrap_or(name);
        let networks = self.catalogue.networks();
        let named = networks.filter_map(|(id, _)| {
            let network = self.catalogue.display_name(id)?.to_ascii_lowercase();
            let rest = name.strip_suffix(&format!(".{network}"))?;
            Some((rest.to_owned(), id))
        });
        let (name, network) = match named.last() {
            Some((rest, id)) => (rest, Some(id)),
            None => (name, None),
        };
        let name = name.strip_prefix("tasks.").map(str::to_owned).unwrap_or(name);
        (Sought::Name(name), network)
    }

    /// The endpoint that asks, and the networks of its sandbox.
    fn asker(
        &self,
        from: Option<&str>,
        sought: &Sought,
        only: Option<NetworkId>,
    ) -> Result<(Option<Local>, Vec<NetworkId>), ApiError> {
        let local = |endpoint: &Endpoint| {
            Some(Local {
                name: endpoint.spec.name.clone(),
                mac: endpoint.spec.mac,
                addresses: endpoint.spec.addresses.iter().map(IpNet::addr).collect(),
                sandbox: endpoint.spec.sandbox()?.clone(),
            })
        };
        let is_wanted = |endpoint: &Endpoint| from.is_none_or(|from| endpoint.spec.name == from);
        let candidates = self.local_endpoints();
        let candidates = candidates.filter(|(_, _, endpoint)| is_wanted(endpoint));
        let mut candidates: Vec<_> = candidates
            .filter_map(|(network, _, endpoint)| Some((network, local(endpoint)?)))
            .collect();
        if let (Some(from), true) = (from, candidates.is_empty()) {
            return Err(self.no_asker(from));
        }
        // Without a word who asks it is somebody who can be answered.
        candidates.sort_by_key(|(network, _)| {
            !(self.knows(*network, sought) && only.is_none_or(|only| only == *network))
        });
        let Some((_, asker)) = candidates.into_iter().next() else {
            let all = self.catalogue.networks().map(|(id, _)| id).collect();
            return Ok((None, all));
        };
        let mut networks = Vec::new();
        let mut addresses = Vec::new();
        for (network, _, endpoint) in self.local_endpoints() {
            let same = endpoint.spec.sandbox().is_some_and(|sandbox| {
                (sandbox.device, sandbox.inode) == (asker.sandbox.device, asker.sandbox.inode)
            });
            if same {
                networks.push(network);
                addresses.extend(endpoint.spec.addresses.iter().map(IpNet::addr));
            }
        }
        Ok((Some(Local { addresses, ..asker }), networks))
    }

    fn no_asker(&self, from: &str) -> ApiError {
        let mut elsewhere = self.catalogue.all_endpoints();
        match elsewhere.find(|(_, _, endpoint)| endpoint.spec.name == from) {
            Some((_, _, endpoint)) if endpoint.node != self.me => {
                let node = self.catalogue.node_name(endpoint.node);
                ApiError::conflict(format!(
                    "endpoint `{from}` is on {node}, and only its own host can go its way"
                ))
                .with_help(format!("run the same on {node}"))
            }
            Some(_) => ApiError::conflict(format!("the namespace of endpoint `{from}` is not known"))
                .with_help("a container has one while it runs"),
            None => ApiError::not_found(format!("there is no endpoint `{from}` on this host"))
                .with_help("`weft network inspect NETWORK` lists endpoints and where they are"),
        }
    }

    fn knows(&self, network: NetworkId, sought: &Sought) -> bool {
        self.service_of(network, sought).is_some()
            || self
                .catalogue
                .endpoints(network)
                .any(|(_, endpoint)| is_meant(endpoint, sought))
    }

    fn service_of(&self, network: NetworkId, sought: &Sought) -> Option<&ServiceSpec> {
        let mut services = self.catalogue.services(network).map(|(_, service)| service);
        services.find(|service| match sought {
            Sought::Address(address) => service.vips.contains(address),
            Sought::Name(name) => service.name.eq_ignore_ascii_case(name),
        })
    }

    fn found(&self, network: NetworkId, sought: &Sought) -> Option<Found> {
        let spec = self.catalogue.network(network)?;
        let service = self.service_of(network, sought);
        let ends = self.catalogue.endpoints(network).filter(|(_, endpoint)| {
            let serves = service.is_some_and(|service| endpoint.spec.service.as_ref() == Some(&service.name));
            serves || is_meant(endpoint, sought)
        });
        let ends: Vec<End> = ends
            .map(|(id, endpoint)| {
                let (reason, _) = self.backend_reason(network, id, endpoint);
                let record = self.gossip.get(&endpoint.node, &endpoint_key(network, id));
                let node = self.catalogue.node(endpoint.node);
                End {
                    name: endpoint.spec.name.clone(),
                    aliases: endpoint.spec.aliases.clone(),
                    node: self.catalogue.node_name(endpoint.node),
                    node_state: self.node_state(endpoint.node),
                    is_here: endpoint.node == self.me,
                    vtep: node.and_then(|node| Some(self.vtep_for(spec, node.fact.as_ref()?))),
                    mac: endpoint.spec.mac,
                    addresses: endpoint.spec.addresses.iter().map(IpNet::addr).collect(),
                    state: self.backend_state(network, id, endpoint),
                    weight: endpoint.spec.weight,
                    reason,
                    version: record.map_or(0, |record| record.version),
                }
            })
            .collect();
        let name = match (sought, service) {
            (Sought::Name(name), _) => name.clone(),
            (Sought::Address(_), Some(service)) => service.name.clone(),
            (Sought::Address(_), None) => ends.first()?.name.clone(),
        };
        let question = format!("{name}.{}", self.search_domain(network)?);
        Some(Found {
            network,
            network_name: self.catalogue.display_name(network)?,
            expected: self.addresses_of(network, &question),
            encrypted: spec.encrypted,
            question,
            dns: self.dns_servers(spec),
            service: service.map(|service| ServiceStory {
                name: service.name.clone(),
                created_by: self.catalogue.node_name(service.creator),
                vips: service.vips.clone(),
                has_vip: service.mode == EndpointMode::Vip,
                scheduler: service.scheduler.to_string(),
                ports: service.ports.iter().map(ToString::to_string).collect(),
                tcp: super::doctor::first_tcp(service),
            }),
            ends,
        })
    }

    fn similar(&self, networks: &[NetworkId], name: &str) -> Vec<String> {
        let services = networks
            .iter()
            .flat_map(|network| self.catalogue.services(*network));
        let services = services.map(|(_, service)| service.name.clone());
        let endpoints = networks
            .iter()
            .flat_map(|network| self.catalogue.endpoints(*network));
        let endpoints = endpoints.flat_map(|(_, endpoint)| {
            std::iter::once(endpoint.spec.name.clone()).chain(endpoint.spec.aliases.clone())
        });
        let far = |known: &str| strsim::damerau_levenshtein(name, &known.to_ascii_lowercase());
        let close = services.chain(endpoints).map(|known| (far(&known), known));
        let close: BTreeSet<(usize, String)> = close
            .filter(|(far, known)| *far <= (known.len() / 3).max(1))
            .collect();
        close
            .into_iter()
            .take(MAX_SIMILAR)
            .map(|(_, known)| known)
            .collect()
    }
}

fn is_meant(endpoint: &Endpoint, sought: &Sought) -> bool {
    let spec = &endpoint.spec;
    match sought {
        Sought::Address(address) => spec.addresses.iter().any(|net| net.addr() == *address),
        Sought::Name(name) => {
            let mut called = std::iter::once(&spec.name).chain(&spec.aliases);
            called.any(|known| known.eq_ignore_ascii_case(name))
        }
    }
}
