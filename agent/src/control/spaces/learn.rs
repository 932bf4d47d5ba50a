//! Who owns which numbers, and which are in use, by what nodes say.

use super::*;

impl Spaces {
    /// After a start: takes in what was durable, and then everything this node has in use.
    pub(in crate::control) fn restore<'a>(
        &mut self,
        catalogue: &Catalogue,
        records: impl Iterator<Item = &'a Record> + Clone,
        kept: Vec<(SpaceKey, Kept)>,
        now: Instant,
    ) {
        for (id, spec) in catalogue.networks() {
            self.make_spaces(id, spec);
        }
        let mut durable: BTreeMap<SpaceKey, (Vec<_>, Vec<_>)> = BTreeMap::new();
        for (key, kept) in kept {
            let (grants, conflicts) = durable.entry(key).or_default();
            match kept {
                Kept::Grant(grant) => grants.push(grant),
                Kept::Conflict(conflict) => conflicts.push(conflict),
            }
        }
        for record in records {
            if let Some((key, grant)) = grant_of(record, catalogue) {
                self.unowned
                    .add((record.author, record.key.clone()), key, grant, now);
            }
        }
        for key in self.spaces.keys() {
            durable.entry(*key).or_default();
        }
        for (key, (mut grants, conflicts)) in durable {
            let Some(space) = self.spaces.get_mut(&key) else {
                continue;
            };
            // What was kept was believed when it came.
            let mut believed = space.clone();
            for grant in &grants {
                drop(believed.merge(*grant));
            }
            while let Some(grant) = self.unowned.take(key, &believed) {
                drop(believed.merge(grant));
                grants.push(grant);
            }
            self.complaints
                .extend(conflicts.iter().map(|conflict| complain(key, conflict)));
            for reason in space.load(grants, conflicts) {
                tracing::warn!(?key, %reason, "a stored grant that no node can have written");
            }
        }
        for (id, spec) in catalogue.networks() {
            self.restore_network(id, spec, catalogue);
        }
        self.restore_vips(catalogue);
    }

    pub(super) fn restore_vips(&mut self, catalogue: &Catalogue) {
        for (id, service) in catalogue.all_services() {
            let held = self.kept_vips(id, service, catalogue);
            if !held.is_empty() {
                self.vips.insert(id, (service.network, held));
            }
        }
    }

    /// Whether a number that `by` took into use is this node's to keep so. What a removed node took is its who owns it now.
    pub(super) fn keeps(&self, key: SpaceKey, number: u128, by: NodeId, catalogue: &Catalogue) -> bool {
        let owner = || self.spaces.get(&key)?.owner_of(number);
        by == self.me || (catalogue.is_removed(by) && owner() == Some(self.me))
    }

    /// The virtual addresses of a service that are this node's to keep in use.
    pub(super) fn kept_vips(
        &self,
        id: ServiceId,
        service: &ServiceSpec,
        catalogue: &Catalogue,
    ) -> Vec<IpAddr> {
        let network = service.network;
        let taken = catalogue.taken(network, id);
        let (Some(spec), Some((node, vips))) = (catalogue.network(network), taken) else {
            return Vec::new();
        };
        let is_held = |vip: &IpAddr| {
            let key = address_space(network, spec, *vip);
            key.is_some_and(|key| self.keeps(key, number(*vip), node, catalogue))
        };
        vips.iter().copied().filter(is_held).collect()
    }

    pub(super) fn restore_network(&mut self, id: NetworkId, spec: &NetworkSpec, catalogue: &Catalogue) {
        let mut used = self.made_of(id, spec, catalogue);
        let endpoints = catalogue
            .endpoints(id)
            .filter(|(_, endpoint)| endpoint.node == self.me);
        let addresses = endpoints.flat_map(|(_, endpoint)| endpoint.spec.addresses.iter().map(IpNet::addr));
        let services = catalogue.services(id);
        let vips = services.flat_map(|(service_id, service)| self.kept_vips(service_id, service, catalogue));
        let ingress = catalogue.ingress(id, self.me).into_iter();
        let ingress = ingress.flat_map(|ingress| ingress.addresses.iter().map(IpNet::addr));
        let addresses: Vec<IpAddr> = addresses.chain(vips).chain(ingress).collect();
        for address in addresses {
            if let Some(key) = address_space(id, spec, address) {
                used.push((key, Block::single(number(address))));
            }
        }
        for (key, block) in used {
            let Some(space) = self.spaces.get_mut(&key) else {
                continue;
            };
            match space.restore(block) {
                // What this node has just taken for a network of its own making.
                Ok(()) | Err(ClaimError::InUse { .. }) => {}
                Err(error) => self.complaints.push(format!(
                    "{} is in use on this node, but {error}",
                    show(key, block.first(), spec)
                )),
            }
        }
    }

    /// Takes a record that may be a grant. True if it gave this node something.
    pub(in crate::control) fn learn(&mut self, record: &Record, catalogue: &Catalogue, now: Instant) -> bool {
        let place = (record.author, record.key.clone());
        match grant_of(record, catalogue) {
            Some((key, grant)) => self.believe(place, key, grant, now),
            None => {
                self.unowned.forget(&place);
                false
            }
        }
    }

    /// Takes a grant if it is by the owner, and else when it turns out to be. True if this node has been given something.
    pub(super) fn believe(
        &mut self,
        place: unowned::Place,
        key: SpaceKey,
        grant: Grant<NodeId>,
        now: Instant,
    ) -> bool {
        self.unowned.add(place, key, grant, now);
        let mut given = false;
        while let Some(grant) = self
            .spaces
            .get(&key)
            .and_then(|space| self.unowned.take(key, space))
        {
            if self.merge(key, grant) {
                given = true;
                self.gained.push((key, grant));
            }
        }
        given
    }

    pub(super) fn merge(&mut self, key: SpaceKey, grant: Grant<NodeId>) -> bool {
        let Some(space) = self.spaces.get_mut(&key) else {
            return false;
        };
        let merged = space.merge(grant);
        match merged {
            Merged::Applied => return grant.to == self.me,
            Merged::Unchanged => {}
            Merged::Quarantined(conflict) => {
                self.complaints.push(complain(key, &conflict));
                self.conflicts.push((key, conflict));
            }
            Merged::Refused(reason) => tracing::warn!(?key, %reason, "a grant that no node can have written"),
        }
        false
    }
}

/// What a record says of who owns what. What somebody has from a node that was removed counts when that is known.
pub(super) fn grant_of(record: &Record, catalogue: &Catalogue) -> Option<(SpaceKey, Grant<NodeId>)> {
    let value = record.value.as_deref()?;
    let block = block_of_key(&record.key);
    match Kind::of(&record.key)? {
        Kind::Grant => {
            let GrantFact { space, to, version } = decode(value)?;
            let grant = Grant {
                block: block?,
                from: record.author,
                to,
                version,
            };
            // Nobody takes anything over from itself.
            let is_real = grant_key(space, grant.block) == record.key && !grant.is_taken_over();
            is_real.then_some((space, grant))
        }
        Kind::Holding => {
            let HoldingFact { space, from, version } = decode(value)?;
            let grant = Grant {
                block: block?,
                from,
                to: record.author,
                version,
            };
            let is_real = holding_key(space, grant.block, from) == record.key && catalogue.is_removed(from);
            is_real.then_some((space, grant))
        }
        _ => None,
    }
}
