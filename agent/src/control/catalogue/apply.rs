//! What the catalogue makes of a record.

use super::*;

impl Catalogue {
    /// Takes what `author` says under `key`: a value, or that there is none.
    pub fn apply(&mut self, author: NodeId, key: &Key, value: Option<&[u8]>) -> Option<Change> {
        let kind = Kind::of(key)?;
        let value = value.filter(|_| !(kind.ends_with_its_author() && self.is_removed(author)));
        let said = Said { author, key, value };
        let scope = key.scope;
        match kind {
            Kind::Node => self.apply_node(said),
            Kind::Network => {
                // The scope of what concerns the whole cluster is no network: its numbers would go with that.
                let id = Some(NetworkId(id_of(key)?)).filter(|id| *id != CLUSTER)?;
                let was = self.network(id).cloned();
                let names = self.names_of(id);
                self.apply_register(said, id, |this| &mut this.networks);
                self.note_names(id, &names);
                let change = self.network_change(id, was);
                change.or_else(|| self.is_contested(id).then_some(Change::NetworkContested(id)))
            }
            Kind::Service => {
                let id = ServiceId(id_of(key)?);
                let was = self.service(scope, id).cloned();
                let tags = Tags::of(self.services.get(&(scope, id)));
                self.apply_register(said, (scope, id), |this| &mut this.services);
                let now = Tags::of(self.services.get(&(scope, id)));
                self.index.note(scope, id, &tags, &now);
                self.service_change(scope, id, was)
            }
            Kind::Endpoint => self.apply_endpoint(said),
            Kind::Use => {
                let id = Some(NetworkId(id_of(key)?)).filter(|id| *id != CLUSTER)?;
                let was = self.network(id).cloned();
                let users = self.users.entry(id).or_default();
                match value {
                    Some(_) => users.insert(author),
                    None => users.remove(&author),
                };
                if users.is_empty() {
                    self.users.remove(&id);
                }
                self.network_change(id, was)
            }
            Kind::Ingress => {
                let place = (scope, author);
                let was = match value.and_then(decode) {
                    Some(spec) => self.ingresses.insert(place, spec),
                    None => self.ingresses.remove(&place),
                };
                // What stays keeps its place among the claims.
                if let Some(is) = self.ingresses.get(&place) {
                    self.claims.add(author, of_place(scope, is.mac, &is.addresses));
                }
                if let Some(was) = &was {
                    self.claims
                        .remove(author, of_place(scope, was.mac, &was.addresses));
                }
                (was.as_ref() != self.ingresses.get(&place)).then_some(Change::IngressChanged(scope))
            }
            Kind::Token => {
                let id = key.name.as_slice().try_into().ok()?;
                match value.and_then(decode) {
                    Some(fact) => self.tokens.insert(id, (author, fact)),
                    None => self.tokens.remove(&id),
                };
                Some(Change::TokensChanged)
            }
            Kind::TokenUse => {
                let is_news = self.keys.apply_admission(author, key, value)?;
                is_news.then_some(Change::TokensChanged)
            }
            Kind::Removal => {
                let node = NodeId(key.name.as_slice().try_into().ok()?);
                let fact = value.and_then(decode).unwrap_or(RemovalFact { forced: false });
                let is_first = !self.is_removed(node);
                let before = self.removals.entry(node).or_default().insert(author, fact);
                match is_first {
                    true => Some(Change::NodeRemoved(node)),
                    false => (before != Some(fact)).then_some(Change::EstatesChanged),
                }
            }
            Kind::Consent => {
                let node = NodeId(key.name.as_slice().try_into().ok()?);
                let consents = self.consents.entry(node).or_default();
                match value.and_then(decode) {
                    Some(consent) => drop(consents.insert(author, consent)),
                    None => drop(consents.remove(&author)),
                }
                if consents.is_empty() {
                    self.consents.remove(&node);
                }
                Some(Change::EstatesChanged)
            }
            Kind::Drain => {
                let drainee = Drainee::of(key)?;
                let was = self.drain(drainee).cloned();
                self.apply_register(said, drainee, |this| &mut this.drains);
                (was.as_ref() != self.drain(drainee)).then_some(Change::DrainChanged(drainee))
            }
            Kind::Keys => {
                self.keys.apply_held(author, value);
                Some(Change::KeysChanged)
            }
            Kind::KeyOffer => {
                self.keys.apply_offer(author, key, value)?;
                Some(Change::KeysChanged)
            }
            Kind::Grant | Kind::Holding => None,
        }
    }

    /// What a removed node was and had is there no more. What it said of the cluster, as that there is a network, holds on:
    /// others rely on it.
    pub fn withdraw(&mut self, node: NodeId) -> Vec<Change> {
        let endpoints = self
            .all_endpoints()
            .filter(|(_, _, endpoint)| endpoint.node == node);
        let endpoints = endpoints.map(|(network, id, _)| endpoint_key(network, id));
        let ingresses = self.ingresses_of(node);
        let ingresses = ingresses.map(ingress_key);
        let used = self.used_by(node).map(use_key);
        let tokens = self.tokens.iter().filter(|(_, (author, _))| *author == node);
        let tokens = tokens.map(|(id, _)| Kind::Token.key(CLUSTER, *id));
        let consents = self.consents.iter().filter(|(_, by)| by.contains_key(&node));
        let consents = consents.map(|(removed, _)| Kind::Consent.key(CLUSTER, removed.0));
        let gossip = self.keys.of(node);
        let all = endpoints
            .chain(ingresses)
            .chain(used)
            .chain(tokens)
            .chain(consents);
        let keys: Vec<Key> = all.chain(gossip).collect();
        let mut changes = Vec::new();
        for key in keys {
            changes.extend(self.apply(node, &key, None));
        }
        changes
    }

    /// Takes note of what a service is now.
    fn service_change(
        &mut self,
        network: NetworkId,
        id: ServiceId,
        was: Option<ServiceSpec>,
    ) -> Option<Change> {
        let is = self.service(network, id).cloned();
        let taken = is
            .as_ref()
            .map(|is| (is.vips_from, self.taken_vips(network, id, is)));
        let before = match taken.clone() {
            Some(taken) => self.taken.insert((network, id), taken),
            None => self.taken.remove(&(network, id)),
        };
        if was == is && before == taken {
            return None;
        }
        if let Some((node, vips)) = &taken {
            self.claims.add(*node, of_service(network, vips));
        }
        if let Some((node, vips)) = &before {
            self.claims.remove(*node, of_service(network, vips));
        }
        Some(match (was, is) {
            (None, _) => Change::ServiceCreated(network, id),
            (Some(_), Some(_)) => Change::ServiceChanged(network, id),
            (Some(was), None) => Change::ServiceRemoved(network, id, was.name),
        })
    }

    /// What anybody calls a network.
    fn names_of(&self, id: NetworkId) -> BTreeSet<String> {
        let contest = self.networks.get(&id).into_iter();
        contest
            .flat_map(Contest::values)
            .map(|spec| spec.name.clone())
            .collect()
    }

    /// Takes note of what a network is called, and was.
    fn note_names(&mut self, id: NetworkId, before: &BTreeSet<String>) {
        let now = self.names_of(id);
        for gone in before.difference(&now) {
            if let Some(networks) = self.called.get_mut(gone) {
                networks.remove(&id);
                if networks.is_empty() {
                    self.called.remove(gone);
                }
            }
        }
        for name in now {
            self.called.entry(name).or_default().insert(id);
        }
    }

    fn network_change(&self, id: NetworkId, was: Option<NetworkSpec>) -> Option<Change> {
        match (was, self.network(id)) {
            (was, is) if was.as_ref() == is => None,
            (None, _) => Some(Change::NetworkCreated(id)),
            (Some(_), Some(_)) => Some(Change::NetworkChanged(id)),
            (Some(was), None) => Some(Change::NetworkRemoved(id, Box::new(was))),
        }
    }

    fn apply_node(&mut self, said: Said<'_>) -> Option<Change> {
        let fact: Option<NodeFact> = said.value.and_then(decode);
        let node = self.nodes.entry(said.author).or_default();
        let was = std::mem::replace(&mut node.fact, fact.filter(NodeFact::is_plausible));
        let keys = |fact: &NodeFact| {
            fact.tunnel
                .keys()
                .map(|(key, _)| Thing::Key(key))
                .collect::<Vec<_>>()
        };
        if let Some(fact) = &node.fact {
            self.claims.add(said.author, keys(fact).into_iter());
        }
        if let Some(was) = &was {
            self.claims.remove(said.author, keys(was).into_iter());
        }
        Some(Change::Node(said.author))
    }

    fn apply_register<K: Ord + Copy, T: Shared + serde::de::DeserializeOwned>(
        &mut self,
        said: Said<'_>,
        id: K,
        table: impl Fn(&mut Self) -> &mut BTreeMap<K, Contest<T>>,
    ) {
        let register: Option<Register<T>> = said.value.and_then(decode);
        if let Some(register) = register
            .as_ref()
            .filter(|register| register.lamport <= MAX_LAMPORT)
        {
            let clock = self.clocks.entry(said.author).or_default();
            *clock = register.lamport.max(*clock);
        }
        let contest = table(self).entry(id).or_default();
        contest.set(said.author, said.key.scope, register);
        if contest.is_empty() {
            table(self).remove(&id);
        }
    }

    fn apply_endpoint(&mut self, said: Said<'_>) -> Option<Change> {
        let network = said.key.scope;
        let id = EndpointId(id_of(said.key)?);
        // An endpoint belongs to the node that made it; another author under its id is a forgery or
        // a collision, and changes nothing. So is the same id on another network.
        let place = *self.places.get(&id).unwrap_or(&(network, said.author));
        if place != (network, said.author) {
            return None;
        }
        let endpoints = self.endpoints.entry(network).or_default();
        let serves = endpoints.get(&id).and_then(|known| known.spec.service.clone());
        let decoded: Option<EndpointSpec> = said.value.and_then(decode);
        let will_serve = decoded.as_ref().and_then(|spec| spec.service.clone());
        if serves != will_serve {
            index(&mut self.serving, network, id, serves, will_serve);
        }
        if let Some(spec) = &decoded {
            self.claims
                .add(said.author, of_place(network, spec.mac, &spec.addresses));
        }
        if let Some(was) = endpoints.get(&id) {
            let spec = &was.spec;
            self.claims
                .remove(said.author, of_place(network, spec.mac, &spec.addresses));
        }
        match decoded {
            Some(_) => {
                self.places.insert(id, place);
                self.of_node.entry(said.author).or_default().insert((network, id));
            }
            None => {
                self.places.remove(&id);
                if let Some(of_node) = self.of_node.get_mut(&said.author) {
                    of_node.remove(&(network, id));
                    if of_node.is_empty() {
                        self.of_node.remove(&said.author);
                    }
                }
            }
        }
        match decoded {
            Some(spec) => {
                let endpoint = Endpoint {
                    node: said.author,
                    spec,
                };
                match endpoints.insert(id, endpoint) {
                    None => Some(Change::EndpointAdded(network, id)),
                    Some(was) => Some(Change::EndpointChanged(network, id, Box::new(was))),
                }
            }
            None => {
                let endpoint = endpoints.remove(&id)?;
                if endpoints.is_empty() {
                    self.endpoints.remove(&network);
                }
                Some(Change::EndpointRemoved(network, id, Box::new(endpoint)))
            }
        }
    }

    pub fn set_presence(&mut self, id: NodeId, presence: Presence, incarnation: u64) -> bool {
        let node = self.nodes.entry(id).or_default();
        node.incarnation = incarnation;
        std::mem::replace(&mut node.presence, presence) != presence
    }
}

/// Has an endpoint serve another service than before.
fn index(
    serving: &mut BTreeMap<NetworkId, BTreeMap<String, BTreeSet<EndpointId>>>,
    network: NetworkId,
    id: EndpointId,
    before: Option<String>,
    now: Option<String>,
) {
    let by_name = serving.entry(network).or_default();
    if let Some(name) = before
        && let Some(ids) = by_name.get_mut(&name)
    {
        ids.remove(&id);
        if ids.is_empty() {
            by_name.remove(&name);
        }
    }
    if let Some(name) = now {
        by_name.entry(name).or_default().insert(id);
    }
    if by_name.is_empty() {
        serving.remove(&network);
    }
}
