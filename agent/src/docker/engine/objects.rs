//! What Docker's API shows, as far as it is read here.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EngineNetwork {
    pub name: String,
    pub id: String,
    #[serde(default)]
    pub driver: String,
    #[serde(default)]
    pub internal: bool,
    #[serde(default, rename = "EnableIPv6")]
    pub ipv6: bool,
    #[serde(default, rename = "IPAM", deserialize_with = "lenient")]
    pub ipam: Ipam,
    #[serde(default, deserialize_with = "lenient")]
    pub options: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ipam {
    #[serde(default)]
    pub driver: String,
    #[serde(default, deserialize_with = "lenient")]
    pub config: Vec<IpamConfig>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamConfig {
    #[serde(default)]
    pub subnet: String,
}

/// A container, as `docker inspect` shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    pub id: String,
    /// With a slash before it.
    pub name: String,
    pub state: ContainerState,
    pub config: ContainerConfig,
    pub network_settings: NetworkSettings,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerState {
    #[serde(default)]
    pub running: bool,
    #[serde(default)]
    pub pid: u32,
    #[serde(default)]
    pub health: Option<Health>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    #[serde(default)]
    pub status: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    #[serde(default)]
    pub hostname: String,
    #[serde(default, deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
    /// Its image's, if it has none of its own.
    #[serde(default)]
    pub healthcheck: Option<Healthcheck>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]` turns off what the image has.
    #[serde(default, deserialize_with = "lenient")]
    pub test: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkSettings {
    #[serde(default)]
    pub sandbox_key: String,
    #[serde(default, deserialize_with = "lenient")]
    pub networks: BTreeMap<String, Attached>,
}

/// A container on a network.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Attached {
    #[serde(default, rename = "NetworkID")]
    pub network: String,
    #[serde(default, rename = "EndpointID")]
    pub endpoint: String,
    #[serde(default, rename = "Aliases", deserialize_with = "lenient")]
    pub aliases: Vec<String>,
}

/// A network with the containers of this host that are on it or about to be, by their ids.
#[derive(Debug, Clone, Deserialize)]
pub struct Members {
    #[serde(flatten)]
    pub network: EngineNetwork,
    #[serde(default, rename = "Containers", deserialize_with = "lenient")]
    pub containers: BTreeMap<String, Member>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Member {
    #[serde(default, rename = "EndpointID")]
    pub endpoint: String,
}

/// Something that happened to a container or network.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EngineEvent {
    pub r#type: String,
    pub action: String,
    #[serde(default)]
    pub actor: Actor,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Actor {
    #[serde(default, rename = "ID")]
    pub id: String,
    #[serde(default, rename = "Attributes", deserialize_with = "lenient")]
    pub attributes: BTreeMap<String, String>,
}

/// What to make a network of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNetwork<'a> {
    pub name: &'a str,
    pub driver: &'a str,
    pub subnets: Vec<IpNet>,
    pub internal: bool,
    /// For the driver and for its address management alike.
    pub option: (&'a str, &'a str),
}

impl EngineNetwork {
    /// Whether Docker takes `reference` for this network: its name, or its id or the beginning of it.
    pub fn is_called(&self, reference: &str) -> bool {
        self.name == reference || (!reference.is_empty() && self.id.starts_with(reference))
    }
}

fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
