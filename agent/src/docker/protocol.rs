//! Requests of dockerd. Fields nobody reads are left out; unknown ones are ignored, as dockerd does.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The media type of answers.
pub const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// Options of a network that are a map of their own within the others.
pub const GENERIC: &str = "com.docker.network.generic";
pub const INTERNAL: &str = "com.docker.network.internal";
/// The container's name, in requests for addresses since dockerd 29.
pub const ENDPOINT_NAME: &str = "com.docker.network.endpoint.name";
/// In the answer to a request for a pool: its gateway.
pub const GATEWAY: &str = "com.docker.network.gateway";
/// In requests to join: the container's ports that Docker publishes, a list.
pub const PORT_MAP: &str = "com.docker.network.portmap";
pub const REQUEST_ADDRESS_TYPE: &str = "RequestAddressType";

/// Go writes an absent map, list or address in several ways: left out, `null` or `""`.
fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn maybe<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: std::fmt::Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let text: Option<String> = Option::deserialize(from)?;
    text.filter(|text| !text.is_empty())
        .map(|text| {
            text.parse()
                .map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")))
        })
        .transpose()
}

pub type Options = BTreeMap<String, Value>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestPool {
    #[serde(default, deserialize_with = "maybe")]
    pub pool: Option<IpNet>,
    #[serde(default, deserialize_with = "maybe")]
    pub sub_pool: Option<IpNet>,
    #[serde(default, deserialize_with = "lenient")]
    pub options: Options,
    #[serde(default, rename = "V6")]
    pub ipv6: bool,
}

#[derive(Debug, Deserialize)]
pub struct ReleasePool {
    #[serde(rename = "PoolID")]
    pub pool: String,
}

#[derive(Debug, Deserialize)]
pub struct RequestAddress {
    #[serde(rename = "PoolID")]
    pub pool: String,
    #[serde(default, rename = "Address", deserialize_with = "maybe")]
    pub address: Option<IpAddr>,
    #[serde(default, rename = "Options", deserialize_with = "lenient")]
    pub options: Options,
}

#[derive(Debug, Deserialize)]
pub struct ReleaseAddress {
    #[serde(rename = "PoolID")]
    pub pool: String,
    #[serde(rename = "Address")]
    pub address: IpAddr,
}

#[derive(Debug, Deserialize)]
pub struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub network: String,
    #[serde(default, rename = "Options", deserialize_with = "lenient")]
    pub options: Options,
    #[serde(default, rename = "IPv4Data", deserialize_with = "lenient")]
    pub ipv4: Vec<IpamData>,
    #[serde(default, rename = "IPv6Data", deserialize_with = "lenient")]
    pub ipv6: Vec<IpamData>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamData {
    #[serde(default)]
    pub address_space: String,
    #[serde(default, deserialize_with = "maybe")]
    pub pool: Option<IpNet>,
    #[serde(default, deserialize_with = "maybe")]
    pub gateway: Option<IpNet>,
    #[serde(default, deserialize_with = "lenient")]
    pub aux_addresses: BTreeMap<String, IpNet>,
}

#[derive(Debug, Deserialize)]
pub struct Network {
    #[serde(rename = "NetworkID")]
    pub network: String,
}

#[derive(Debug, Deserialize)]
pub struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    pub network: String,
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(default, rename = "Interface", deserialize_with = "lenient")]
    pub interface: Interface,
}

#[derive(Debug, Default, Deserialize)]
pub struct Interface {
    #[serde(default, rename = "Address", deserialize_with = "maybe")]
    pub ipv4: Option<IpNet>,
    #[serde(default, rename = "AddressIPv6", deserialize_with = "maybe")]
    pub ipv6: Option<IpNet>,
    #[serde(default, rename = "MacAddress", deserialize_with = "maybe")]
    pub mac: Option<weft_types::Mac>,
}

#[derive(Debug, Deserialize)]
pub struct Endpoint {
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
}

#[derive(Debug, Deserialize)]
pub struct Join {
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(rename = "SandboxKey")]
    pub sandbox: String,
    #[serde(default, rename = "Options", deserialize_with = "lenient")]
    pub options: Options,
}
