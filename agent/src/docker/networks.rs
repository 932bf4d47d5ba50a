//! Each network of the cluster is a network of Docker's on this host, under the same name.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};

use super::{
    driver::{ADDRESS_SPACE, NETWORK_OPTION},
    engine::{Engine, EngineNetwork, NewNetwork},
    owner::Owner,
    watcher::Trouble,
};
use crate::{
    api::{ErrorKind, types::NetworkCreateRequest},
    control::docker::{ClusterNetwork, DockerCommand},
};

/// Where Docker takes the subnets of its own networks from, when nobody says which. A network of the
/// cluster cannot have such a one: every host uses them for something of its own.
const DOCKERS_OWN: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// What was compared last.
pub struct Networks {
    /// The name of our driver.
    driver: String,
    compared: Option<Vec<ClusterNetwork>>,
}

impl Networks {
    pub fn new(driver: &str) -> Self {
        Self {
            driver: driver.to_owned(),
            compared: None,
        }
    }

    /// Docker's side may have changed.
    pub fn look_again(&mut self) {
        self.compared = None;
    }

    /// Makes on each side what is missing, and takes from Docker what the cluster has not.
    pub async fn compare(
        &mut self,
        cluster: Vec<ClusterNetwork>,
        engine: &Engine,
        owner: &Owner,
    ) -> Result<(), Trouble> {
        if self.compared.as_ref() == Some(&cluster) {
            return Ok(());
        }
        let docker = engine.networks().await?;
        // Read after Docker's, so that what Docker has is known here.
        let cluster = owner.ask(DockerCommand::Networks).await?;
        let mut problems = Vec::new();
        for network in docker.iter().filter(|network| network.driver == self.driver) {
            let ours = cluster.iter().find(|ours| ours.docker.contains(&network.id));
            self.adopt(network, ours, &cluster, engine, owner, &mut problems)
                .await?;
        }
        // Once more: names and networks may have been made just now.
        let cluster = owner.ask(DockerCommand::Networks).await?;
        for ours in cluster
            .iter()
            .filter(|ours| ours.docker.is_empty() && !ours.unnamed)
        {
            if let Some(other) = docker.iter().find(|other| other.name == ours.name)
                && other.driver != self.driver
            {
                problems.push(format!(
                    "Docker on this host has a network `{}` of its own (driver `{}`), so containers here cannot \
                     be on the cluster's network of that name",
                    ours.name, other.driver
                ));
                continue;
            }
            let id = ours.id.to_string();
            let new = NewNetwork {
                name: &ours.name,
                driver: &self.driver,
                subnets: ours.subnets.clone(),
                internal: ours.internal,
                option: (NETWORK_OPTION, &id),
            };
            match engine.create_network(&new).await {
                Ok(()) => {
                    tracing::info!(network = %ours.name, "a network of the cluster is one of Docker's now")
                }
                Err(error) => problems.push(format!(
                    "containers of this host cannot be on network `{}`: {error}",
                    ours.name
                )),
            }
        }
        owner.ask(|to| DockerCommand::Problems(problems, to)).await?;
        // With what was done here, there is nothing to do again.
        self.compared = Some(owner.ask(DockerCommand::Networks).await?);
        Ok(())
    }

    /// What becomes of a network of Docker's that has our driver.
    async fn adopt(
        &self,
        network: &EngineNetwork,
        ours: Option<&ClusterNetwork>,
        cluster: &[ClusterNetwork],
        engine: &Engine,
        owner: &Owner,
        problems: &mut Vec<String>,
    ) -> Result<(), Trouble> {
        let name = &network.name;
        match ours {
            Some(ours) if ours.unnamed => {
                let (id, wanted) = (ours.id, name.clone());
                match owner.ask(|to| DockerCommand::NameNetwork(id, wanted, to)).await {
                    Ok(()) => return Ok(()),
                    // The cluster's network of that name takes its place, if nothing uses it yet.
                    Err(error) if error.kind == ErrorKind::Conflict && !ours.in_use => {}
                    Err(error) => {
                        problems.push(format!(
                            "Docker's network `{name}` is `{}` in the cluster: {error}",
                            ours.name
                        ));
                        return Ok(());
                    }
                }
            }
            Some(_) => return Ok(()),
            None if network.ipam.driver != ADDRESS_SPACE && network.ipam.driver != self.driver => {
                let known = cluster.iter().any(|ours| ours.name == *name);
                if !known && let Err(reason) = self.make(network, owner).await? {
                    problems.push(format!(
                        "Docker's network `{name}` cannot be a network of the cluster: {reason}"
                    ));
                    return Ok(());
                }
            }
            // The cluster has removed it.
            None => {}
        }
        match engine.remove_network(&network.id).await {
            Ok(()) => tracing::info!(network = %name, "a network of Docker's was removed or is replaced"),
            Err(error) if error.is_not_found() => {}
            Err(error) => problems.push(format!(
                "Docker's network `{name}` is none of the cluster's and cannot be removed: {error}"
            )),
        }
        Ok(())
    }

    /// Makes a network of the cluster of one that was made with Docker's own addresses.
    async fn make(&self, network: &EngineNetwork, owner: &Owner) -> Result<Result<(), String>, Trouble> {
        let subnets = network
            .ipam
            .config
            .iter()
            .map(|config| config.subnet.parse::<IpNet>());
        let Ok(mut subnets) = subnets.collect::<Result<Vec<_>, _>>() else {
            return Ok(Err("its subnets cannot be read".to_owned()));
        };
        subnets.retain(|net| match net {
            IpNet::V4(net) => !DOCKERS_OWN.iter().any(|own| own.contains(net)),
            IpNet::V6(_) => true,
        });
        let mtu = network.options.get("com.docker.network.driver.mtu");
        let ours = network
            .options
            .iter()
            .filter(|(name, _)| !name.starts_with("com.docker."));
        let mut options: BTreeMap<_, _> = ours.map(|(name, value)| (name.clone(), value.clone())).collect();
        options.extend(mtu.map(|mtu| ("mtu".to_owned(), mtu.clone())));
        let request = NetworkCreateRequest {
            subnets,
            ipv6: network.ipv6,
            internal: network.internal,
            options,
            labels: network.labels.clone(),
            ..NetworkCreateRequest::new(&network.name)
        };
        let made = owner.ask(|to| DockerCommand::MakeNetwork(request, to)).await;
        Ok(made.map(drop).map_err(|error| error.message))
    }
}
