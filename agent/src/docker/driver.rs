//! Each request of dockerd: read, asked of the owner of the state, answered.

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_types::EndpointId;

use super::{
    owner::Owner,
    protocol::{self as wire, IpamData, Options},
};
use crate::{
    api::ApiError,
    control::{
        Responder,
        docker::{
            CreateDockerNetwork, CreateEndpoint, DockerCommand, Join, NetworkPool, RequestAddress,
            RequestPool, first_half,
        },
    },
};

/// What the addresses of this driver are called in dockerd's records.
pub const ADDRESS_SPACE: &str = "weft";
/// The option that says which network of the cluster one of Docker's is.
pub const NETWORK_OPTION: &str = "weft.network";

/// Why a request was not carried out.
#[derive(Debug)]
pub enum Failure {
    /// It cannot be read.
    Malformed(String),
    /// dockerd has asked for something that does not exist.
    Unknown,
    Refused(ApiError),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

type Answer = Result<Value, Failure>;

/// Turns requests into commands.
#[derive(Clone)]
pub struct Driver {
    owner: Owner,
}

impl Driver {
    pub fn new(owner: Owner) -> Self {
        Self { owner }
    }

    /// Answers `POST /METHOD`.
    pub async fn handle(&self, method: &str, body: &[u8]) -> Answer {
        match method {
            "Plugin.Activate" => Ok(json!({"Implements": ["NetworkDriver", "IpamDriver"]})),
            // Networks are made on every host by the agents, not by a Swarm manager.
            "NetworkDriver.GetCapabilities" => Ok(json!({"Scope": "local", "ConnectivityScope": "global"})),
            "IpamDriver.GetCapabilities" => {
                Ok(json!({"RequiresMACAddress": false, "RequiresRequestReplay": false}))
            }
            "IpamDriver.GetDefaultAddressSpaces" => Ok(json!({
                "LocalDefaultAddressSpace": ADDRESS_SPACE,
                "GlobalDefaultAddressSpace": ADDRESS_SPACE,
            })),
            "IpamDriver.RequestPool" => self.request_pool(read(body)?).await,
            "IpamDriver.ReleasePool" => {
                let wire::ReleasePool { pool } = read(body)?;
                self.end(|to| DockerCommand::ReleasePool(pool, to)).await
            }
            "IpamDriver.RequestAddress" => self.request_address(read(body)?).await,
            "IpamDriver.ReleaseAddress" => {
                let wire::ReleaseAddress { pool, address } = read(body)?;
                self.end(|to| DockerCommand::ReleaseAddress(pool, address, to))
                    .await
            }
            "NetworkDriver.CreateNetwork" => self.create_network(read(body)?).await,
            "NetworkDriver.DeleteNetwork" => {
                let wire::Network { network } = read(body)?;
                self.end(|to| DockerCommand::DeleteNetwork(network, to)).await
            }
            "NetworkDriver.CreateEndpoint" => self.create_endpoint(read(body)?).await,
            "NetworkDriver.DeleteEndpoint" => {
                let id = endpoint_id(&read::<wire::Endpoint>(body)?.endpoint)?;
                self.end(|to| DockerCommand::DeleteEndpoint(id, to)).await
            }
            "NetworkDriver.Join" => self.join(read(body)?).await,
            "NetworkDriver.Leave" => {
                let id = endpoint_id(&read::<wire::Endpoint>(body)?.endpoint)?;
                self.end(|to| DockerCommand::Leave(id, to)).await
            }
            "NetworkDriver.EndpointOperInfo" => {
                read::<wire::Endpoint>(body)?;
                Ok(json!({"Value": {}}))
            }
            // A container with published ports has Docker's own bridge as its way out, which publishes them.
            "NetworkDriver.ProgramExternalConnectivity" | "NetworkDriver.RevokeExternalConnectivity" => {
                read::<wire::Endpoint>(body)?;
                Ok(json!({}))
            }
            // Addresses of gateways are no network's loss: every host has the same one.
            "NetworkDriver.GwAllocCheck" => Ok(json!({"SkipIPv4": false, "SkipIPv6": false})),
            // Members of a Swarm; who is in the cluster the agents know themselves.
            "NetworkDriver.DiscoverNew" | "NetworkDriver.DiscoverDelete" => Ok(json!({})),
            "NetworkDriver.AllocateNetwork" | "NetworkDriver.FreeNetwork" => Err(ApiError::invalid(
                "networks of the driver `weft` are not Swarm's: its scope is local",
            )
            .with_help("leave `--scope swarm` out: the network is made on every host of the cluster anyway")
            .into()),
            _ => Err(Failure::Unknown),
        }
    }

    async fn request_pool(&self, request: wire::RequestPool) -> Answer {
        let request = RequestPool {
            network: option(&request.options, NETWORK_OPTION),
            pool: request.pool,
            range: request.sub_pool,
            ipv6: request.ipv6,
        };
        let grant = self.ask(|to| DockerCommand::RequestPool(request, to)).await?;
        let data = grant.gateway.map(|gateway| (wire::GATEWAY, gateway.to_string()));
        let data: std::collections::BTreeMap<_, _> = data.into_iter().collect();
        Ok(json!({"PoolID": grant.id, "Pool": grant.pool, "Data": data}))
    }

    async fn request_address(&self, request: wire::RequestAddress) -> Answer {
        let kind = option(&request.options, wire::REQUEST_ADDRESS_TYPE);
        let request = RequestAddress {
            pool: request.pool,
            address: request.address,
            for_gateway: kind.as_deref() == Some(wire::GATEWAY),
            name: option(&request.options, wire::ENDPOINT_NAME),
        };
        let address = self.ask(|to| DockerCommand::RequestAddress(request, to)).await?;
        Ok(json!({"Address": address, "Data": {}}))
    }

    async fn create_network(&self, request: wire::CreateNetwork) -> Answer {
        let generic = match request.options.get(wire::GENERIC) {
            Some(Value::Object(generic)) => generic.clone().into_iter().collect(),
            _ => Options::new(),
        };
        let mut all = request.ipv4.iter().chain(&request.ipv6);
        let foreign = all.any(|data| data.address_space != ADDRESS_SPACE);
        let pools = request.ipv4.into_iter().chain(request.ipv6).filter_map(pool_of);
        let pools: Vec<_> = pools.collect();
        if pools.iter().any(|pool| pool.net.prefix_len() == 0) {
            return Err(ApiError::invalid("a network of Weft's has addresses")
                .with_help("leave `--ipam-driver null` out")
                .into());
        }
        let request = CreateDockerNetwork {
            id: request.network,
            network: option(&generic, NETWORK_OPTION),
            pools,
            foreign,
            internal: request.options.get(wire::INTERNAL) == Some(&Value::Bool(true)),
            options: network_options(generic)?,
        };
        self.ask(|to| DockerCommand::CreateNetwork(request, to)).await?;
        Ok(json!({}))
    }

    async fn create_endpoint(&self, request: wire::CreateEndpoint) -> Answer {
        let wire::Interface { ipv4, ipv6, mac } = request.interface;
        let request = CreateEndpoint {
            network: request.network,
            id: endpoint_id(&request.endpoint)?,
            addresses: ipv4.into_iter().chain(ipv6).collect(),
            mac,
        };
        let grant = self.ask(|to| DockerCommand::CreateEndpoint(request, to)).await?;
        // Only what dockerd left empty may be filled in.
        Ok(match mac {
            Some(_) => json!({"Interface": {}}),
            None => json!({"Interface": {"MacAddress": grant.mac}}),
        })
    }

    async fn join(&self, request: wire::Join) -> Answer {
        let published = request.options.get(wire::PORT_MAP).and_then(Value::as_array);
        let request = Join {
            id: endpoint_id(&request.endpoint)?,
            sandbox: request.sandbox,
            publishes: published.is_some_and(|ports| !ports.is_empty()),
        };
        let grant = self.ask(|to| DockerCommand::Join(request, to)).await?;
        const CONNECTED: u8 = 1;
        let routes = grant
            .on_link
            .iter()
            .map(|net| json!({"Destination": net, "RouteType": CONNECTED}));
        let mut answer = json!({
            "InterfaceName": {"SrcName": grant.ifname, "DstPrefix": "eth"},
            "StaticRoutes": routes.collect::<Vec<_>>(),
        });
        for gateway in grant.gateways {
            let field = if gateway.is_ipv4() {
                "Gateway"
            } else {
                "GatewayIPv6"
            };
            answer[field] = json!(gateway);
        }
        Ok(answer)
    }

    async fn ask<T>(&self, command: impl FnOnce(Responder<T>) -> DockerCommand) -> Result<T, ApiError> {
        self.owner.ask(command).await
    }

    /// Asks for the end of something. In no cluster there is nothing that could end.
    async fn end(&self, command: impl FnOnce(Responder<()>) -> DockerCommand) -> Answer {
        self.owner.ask_if_member(command).await?.unwrap_or(Ok(()))?;
        Ok(json!({}))
    }
}

/// Reads a body. An empty one is that of a request that dockerd sends again after a lost connection: what it
/// asked for is gone.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    if body.is_empty() {
        return Err(Failure::Malformed("the request has no body".to_owned()));
    }
    serde_json::from_slice(body)
        .map_err(|error| Failure::Malformed(format!("the request cannot be read: {error}")))
}

fn option(options: &Options, name: &str) -> Option<String> {
    let value = options.get(name)?.as_str()?;
    (!value.is_empty()).then(|| value.to_owned())
}

fn endpoint_id(docker: &str) -> Result<EndpointId, Failure> {
    let half = first_half(docker).and_then(|half| half.parse().ok());
    half.ok_or_else(|| Failure::Malformed(format!("`{docker}` is not an id of an endpoint of Docker's")))
}

fn pool_of(data: IpamData) -> Option<NetworkPool> {
    let aux = data.aux_addresses.into_iter();
    Some(NetworkPool {
        net: data.pool?.trunc(),
        gateway: data.gateway.map(|gateway| gateway.addr()),
        aux: aux.map(|(name, net)| (name, IpNet::addr(&net))).collect(),
    })
}

/// The options that are ours. Docker's own, which all drivers get, are Docker's to mind, but for the MTU.
fn network_options(generic: Options) -> Result<std::collections::BTreeMap<String, String>, Failure> {
    let mut options = std::collections::BTreeMap::new();
    for (name, value) in generic {
        let name = match name.as_str() {
            NETWORK_OPTION => continue,
            "com.docker.network.driver.mtu" => "mtu".to_owned(),
            docker if docker.starts_with("com.docker.") => continue,
            _ => name,
        };
        let Value::String(value) = value else {
            return Err(Failure::Malformed(format!("the option `{name}` is not text")));
        };
        options.insert(name, value);
    }
    Ok(options)
}
