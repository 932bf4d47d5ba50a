//! From what a lab file says to what is built: addresses of hosts, names and places of replicas.
//!
//! The same file always gives the same topology. Replicas are spread: each goes to the allowed host with the
//! fewest replicas of its service, then with the fewest of all, then to the first in the file.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use super::model::{AttachmentSpec, LabFile, NetworkSpec, ServiceSpec, Underlay, Workload};
use crate::api::types::{EndpointMode, HealthCheck, HealthTest, PublishedPort, Scheduler, Tuning};

/// The port that services answer on when the file does not say.
pub const DEFAULT_PORT: u16 = 80;

/// Everything a lab consists of; also what is shown, drawn and kept in `lab.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// The lab's name.
    pub name: String,
    /// The network between the hosts.
    pub underlay: Underlay,
    /// The hosts; the first makes the cluster and the rest join it.
    pub hosts: Vec<HostPlan>,
    /// The overlay networks.
    pub networks: Vec<NetworkSpec>,
    /// The services, one entry for each network a service is on.
    pub services: Vec<ServicePlan>,
    /// The replicas of all services.
    pub replicas: Vec<ReplicaPlan>,
}

/// A host of the lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostPlan {
    /// Its name, which is the node's name too.
    pub name: String,
    /// Its underlay address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 underlay address.
    pub ipv6: Option<Ipv6Addr>,
}

impl HostPlan {
    /// The address its agent tells the others.
    pub fn advertise(&self) -> IpAddr {
        match (self.ipv4, self.ipv6) {
            (Some(address), _) => address.into(),
            (None, Some(address)) => address.into(),
            // The parser refuses an underlay without any family.
            (None, None) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }
}

/// A service on one of its networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// Its name.
    pub name: String,
    /// The network.
    pub network: String,
    /// How its name is answered.
    pub endpoint_mode: EndpointMode,
    /// How its backends are chosen.
    pub lb: Scheduler,
    /// How connections to it are treated.
    pub tuning: Tuning,
    /// How its replicas are checked.
    pub health: Option<HealthCheck>,
    /// Ports of the hosts that lead to it by this network.
    pub publish: Vec<PublishedPort>,
    /// Names of its replicas.
    pub replicas: Vec<String>,
}

/// One replica: a sandbox on a host with something running in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaPlan {
    /// `web-1`: the service's name and a number from 1.
    pub name: String,
    /// Its service.
    pub service: String,
    /// The host it is on.
    pub host: String,
    /// What it runs.
    pub workload: Workload,
    /// Environment of the process.
    pub environment: BTreeMap<String, String>,
    /// The port a builtin listens on.
    pub port: u16,
    /// Its share of the service's new connections.
    pub weight: u16,
    /// How long a builtin waits before it answers.
    pub delay_ms: u64,
    /// Its networks, in the order of its interfaces.
    pub attachments: Vec<AttachmentSpec>,
}

impl Topology {
    /// The replica of this name.
    pub fn replica(&self, name: &str) -> Option<&ReplicaPlan> {
        self.replicas.iter().find(|replica| replica.name == name)
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Option<&HostPlan> {
        self.hosts.iter().find(|host| host.name == name)
    }
}

/// Decides everything the file leaves open. `name` is the lab's.
pub fn resolve(lab: &LabFile, name: &str) -> Topology {
    let hosts = (1_u32..)
        .zip(&lab.hosts)
        .map(|(number, host)| HostPlan {
            name: host.clone(),
            ipv4: lab
                .underlay
                .ipv4
                .map(|net| Ipv4Addr::from_bits(net.network().to_bits() + number)),
            ipv6: lab
                .underlay
                .ipv6
                .map(|net| Ipv6Addr::from_bits(net.network().to_bits() + u128::from(number))),
        })
        .collect();
    let replicas = place(lab);
    let services = lab
        .services
        .iter()
        .flat_map(|service| {
            service
                .attachments
                .iter()
                .map(move |attachment| (service, attachment))
        })
        .map(|(service, attachment)| ServicePlan {
            name: service.name.clone(),
            network: attachment.network.clone(),
            endpoint_mode: service.endpoint_mode,
            lb: service.lb,
            tuning: service.tuning,
            health: service.health.clone().map(|check| with_port(check, service.port)),
            publish: if entered_by(lab, service) == Some(&attachment.network) {
                service.publish.clone()
            } else {
                Vec::new()
            },
            replicas: replicas
                .iter()
                .filter(|one| one.service == service.name)
                .map(|one| one.name.clone())
                .collect(),
        })
        .collect();
    Topology {
        name: name.to_owned(),
        underlay: lab.underlay.clone(),
        hosts,
        networks: lab.networks.clone(),
        services,
        replicas,
    }
}

/// The network that published ports of a service lead into: the first that is entered from outside at all.
fn entered_by<'l>(lab: &'l LabFile, service: &ServiceSpec) -> Option<&'l String> {
    let networks = service.attachments.iter().filter_map(|attachment| {
        let named = |network: &&NetworkSpec| network.name == attachment.network;
        lab.networks.iter().find(named)
    });
    let mut open = networks.filter(|network| !network.internal);
    open.next().map(|network| &network.name)
}

fn place(lab: &LabFile) -> Vec<ReplicaPlan> {
    let mut on_host: HashMap<&str, u32> = HashMap::new();
    let mut replicas = Vec::new();
    for service in &lab.services {
        let mut of_service: HashMap<&str, u32> = HashMap::new();
        for index in 0..service.replicas as usize {
            let load = |host: &str| {
                (
                    of_service.get(host).copied().unwrap_or(0),
                    on_host.get(host).copied().unwrap_or(0),
                )
            };
            // The first of several minima: the order of the file decides. The parser leaves every service a host.
            let Some(host) = service.allowed_hosts.iter().min_by_key(|host| load(host)) else {
                break;
            };
            *of_service.entry(host).or_default() += 1;
            *on_host.entry(host).or_default() += 1;
            replicas.push(replica(service, index, host));
        }
    }
    replicas
}

fn replica(service: &ServiceSpec, index: usize, host: &str) -> ReplicaPlan {
    let mut attachments = service.attachments.clone();
    if let Some(hostname) = &service.hostname {
        // As with Docker, a container's host name is one of its names on every network.
        for attachment in &mut attachments {
            if !attachment.aliases.contains(hostname) {
                attachment.aliases.push(hostname.clone());
            }
        }
    }
    ReplicaPlan {
        name: format!("{}-{}", service.name, index + 1),
        service: service.name.clone(),
        host: host.to_owned(),
        workload: service.workload.clone(),
        environment: service.environment.clone(),
        port: service.port.unwrap_or(DEFAULT_PORT),
        weight: nth(&service.weights, index).unwrap_or(1),
        delay_ms: nth(&service.delays_ms, index).unwrap_or(0),
        attachments,
    }
}

/// A service of a lab has no ports of its own, so its check names the one that replicas listen on.
fn with_port(mut check: HealthCheck, of_service: Option<u16>) -> HealthCheck {
    if let HealthTest::Tcp { port } | HealthTest::Http { port, .. } = &mut check.test {
        port.get_or_insert(of_service.unwrap_or(DEFAULT_PORT));
    }
    check
}

/// The value for one replica: its own, or the last one given.
fn nth<T: Copy>(values: &[T], index: usize) -> Option<T> {
    values.get(index).or(values.last()).copied()
}
