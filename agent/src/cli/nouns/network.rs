mod show;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use weft_types::Mac;

use super::{
    drain::{grace, millis},
    key_value,
};
use crate::{
    api::types::{
        ConnectRequest, DETACH_GRACE, DRIVER_OVERLAY, DisconnectRequest, NetworkCreateRequest,
        NetworkSummary, NetworkUpdateRequest,
    },
    cli::{
        failure::Failure,
        format::{FormatArgs, ListArgs, join, print},
        session::Session,
    },
};

pub(in crate::cli) use show::{endpoint_table, network_table};

/// The verbs of `weft network`.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) enum NetworkCommand {
    /// Make a network on all hosts and print its id
    Create(Box<CreateArgs>),
    /// List the networks
    Ls(ListArgs),
    /// Show a network: subnets, endpoints and services on all hosts, and who owns which addresses
    Inspect(InspectArgs),
    /// Give a network more addresses while it is in use
    Update(UpdateArgs),
    /// Remove networks that have no endpoints
    Rm(RemoveArgs),
    /// Remove all networks that have neither endpoints nor services on any host
    Prune(PruneArgs),
    /// Attach a namespace of this host
    Connect(ConnectArgs),
    /// Detach a namespace of this host
    Disconnect(DisconnectArgs),
}

const EXAMPLES: &str = "\
Examples:
  weft network create app
  weft network create --subnet 10.7.0.0/16 --gateway 10.7.0.1 --opt mtu=1400 app
  weft network create --ipv6 --internal back
  weft network create --opt encrypted app                  (between hosts nobody reads it)
  weft network connect app blue --name a --service web     (a namespace from `ip netns add blue`)
  weft network connect app pid:4711 --ip 10.7.0.20
  weft network connect app host                            (processes of the host itself reach app's addresses)
  weft network disconnect app blue
  weft network update --subnet-add 10.8.0.0/16 app         (where app was made, when its addresses run out)
  weft network inspect app
  weft network rm app";

/// What `weft network create` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct CreateArgs {
    /// Its name: one label of a DNS name
    name: String,
    /// The driver
    #[arg(short, long, default_value = DRIVER_OVERLAY, value_parser = [DRIVER_OVERLAY])]
    driver: String,
    /// A subnet, once per address family [default: a free one]
    #[arg(long = "subnet", value_name = "CIDR", value_parser = subnet)]
    subnets: Vec<IpNet>,
    /// Take addresses from this part of a subnet only
    #[arg(long = "ip-range", value_name = "CIDR", value_parser = subnet)]
    ip_ranges: Vec<IpNet>,
    /// The gateway of a subnet [default: its first address]
    #[arg(long = "gateway", value_name = "IP")]
    gateways: Vec<IpAddr>,
    /// Never hand out this address: something called NAME has it
    #[arg(long = "aux-address", value_name = "NAME=IP", value_parser = aux_address)]
    aux_addresses: Vec<(String, IpAddr)>,
    /// Give endpoints an IPv6 address as well
    #[arg(long)]
    ipv6: bool,
    /// No way out through the hosts
    #[arg(long)]
    internal: bool,
    /// An option of the driver: encrypted, encrypted=false, mtu=BYTES
    #[arg(short = 'o', long = "opt", value_name = "KEY[=VALUE]", value_parser = network_option)]
    options: Vec<(String, String)>,
    /// Free text for tools
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Accept a subnet that another network has too: no namespace can then be on both
    #[arg(long)]
    allow_overlap: bool,
}

/// What `weft network inspect` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    /// Its name, id or the beginning of its id
    network: String,
    #[command(flatten)]
    format: FormatArgs,
}

/// What `weft network update` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct UpdateArgs {
    /// Its name, id or the beginning of its id
    network: String,
    /// A subnet more, for new endpoints; those that are there keep their addresses, and all reach each other. Containers that
    /// Docker attaches stay in the subnets that Docker knows
    #[arg(long = "subnet-add", value_name = "CIDR", value_parser = subnet, required = true)]
    subnets_add: Vec<IpNet>,
    /// Accept a subnet that another network has too: no namespace can then be on both
    #[arg(long)]
    allow_overlap: bool,
}

/// What `weft network rm` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct RemoveArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// What `weft network prune` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct PruneArgs {
    /// Say which, and remove none
    #[arg(long)]
    dry_run: bool,
}

/// What `weft network connect` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct ConnectArgs {
    /// The network: name, id or beginning of the id
    network: String,
    /// A namespace of this host: a name as `ip netns` knows it, an absolute path, or pid:N; or `host`, the host itself
    target: String,
    /// The endpoint's name [default: made from the target; of the host, its node's]
    #[arg(long)]
    name: Option<String>,
    /// Another name for it on this network; several endpoints may share one
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,
    /// Its IPv4 address
    #[arg(long, value_name = "IPV4")]
    ip: Option<Ipv4Addr>,
    /// Its IPv6 address
    #[arg(long, value_name = "IPV6")]
    ip6: Option<Ipv6Addr>,
    /// Its Ethernet address [default: random]
    #[arg(long, value_parser = unicast_mac)]
    mac: Option<Mac>,
    /// Make it a backend of this service of the network
    #[arg(long)]
    service: Option<String>,
    /// Its share of the service's new connections, relative to the others [default: 1]
    #[arg(long, requires = "service", value_parser = clap::value_parser!(u16).range(1..))]
    weight: Option<u16>,
    #[command(flatten)]
    format: FormatArgs,
}

/// What `weft network disconnect` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct DisconnectArgs {
    /// The network: name, id or beginning of the id
    network: String,
    /// The namespace as it was given to connect, or the endpoint's name or id
    target: String,
    /// What connections that are open to a backend may take to end; those that are open then are reset [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = grace)]
    grace: Option<Duration>,
}

/// A subnet as Docker takes it: the address part has no bits beyond the prefix.
/// Reads `KEY=VALUE`; that a network is encrypted needs no value, as with Docker.
fn network_option(text: &str) -> Result<(String, String), String> {
    match text {
        "encrypted" => Ok((text.to_owned(), String::new())),
        _ => key_value(text),
    }
}

fn subnet(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .map_err(|_| "expected a subnet such as 10.7.0.0/16 or fd00:7::/64".to_owned())?;
    if net.trunc() != net {
        return Err(format!(
            "that is an address in the subnet {}: give the subnet",
            net.trunc()
        ));
    }
    Ok(net)
}

fn aux_address(text: &str) -> Result<(String, IpAddr), String> {
    let error = || "expected NAME=IP, such as printer=10.7.0.9".to_owned();
    let (name, address) = key_value(text).map_err(|_| error())?;
    Ok((name, address.parse().map_err(|_| error())?))
}

fn unicast_mac(text: &str) -> Result<Mac, String> {
    let mac: Mac = text
        .parse()
        .map_err(|error: weft_types::ParseMacError| error.to_string())?;
    if mac.is_unicast() {
        Ok(mac)
    } else {
        Err("an interface cannot have a group address".to_owned())
    }
}

/// Collects pairs; a key that is given twice is a mistake that should not pass in silence.
fn unique<T>(flag: &str, pairs: Vec<(String, T)>) -> Result<BTreeMap<String, T>, Failure> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value).is_some() {
            return Err(Failure::usage(format!("`{flag}` gives `{key}` twice")));
        }
    }
    Ok(map)
}

impl CreateArgs {
    fn request(self) -> Result<NetworkCreateRequest, Failure> {
        let request = NetworkCreateRequest {
            name: self.name,
            driver: self.driver,
            subnets: self.subnets,
            ip_ranges: self.ip_ranges,
            gateways: self.gateways,
            aux_addresses: unique("--aux-address", self.aux_addresses)?,
            ipv6: self.ipv6,
            internal: self.internal,
            options: unique("--opt", self.options)?,
            labels: unique("--label", self.labels)?,
            allow_overlap: self.allow_overlap,
        };
        // What the agent would refuse anyway is refused without asking it.
        request.check()?;
        Ok(request)
    }
}

impl ConnectArgs {
    fn request(self) -> ConnectRequest {
        ConnectRequest {
            target: self.target,
            name: self.name,
            aliases: self.aliases,
            ip: self.ip,
            ip6: self.ip6,
            mac: self.mac,
            service: self.service,
            weight: self.weight,
        }
    }
}

fn remove(session: &Session, networks: &[String]) -> Result<(), Failure> {
    session.each(networks, |network| {
        let doing = format!("removing network {network}");
        let answer = session.ask(&doing, async |client| client.network_remove(network).await)?;
        print(&format!(
            "removed network {} ({})\n",
            answer.name,
            answer.id.short()
        ))
    })
}

pub(in crate::cli) fn run(session: &Session, command: NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::Create(args) => {
            let request = args.request()?;
            let doing = format!("making network {}", request.name);
            let answer = session.ask(&doing, async |client| client.network_create(&request).await)?;
            print(&format!("{}\n", answer.id))
        }
        NetworkCommand::Ls(args) => {
            let networks = session.ask("listing the networks", async |client| client.networks().await)?;
            args.print(
                &networks,
                |network| network.id.to_string(),
                |networks| network_table(networks).render(""),
            )
        }
        NetworkCommand::Inspect(args) => {
            let doing = format!("looking at network {}", args.network);
            let network = session.ask(&doing, async |client| client.network(&args.network).await)?;
            args.format.print(&network, show::detail)
        }
        NetworkCommand::Update(args) => {
            let request = NetworkUpdateRequest {
                subnets_add: args.subnets_add,
                allow_overlap: args.allow_overlap,
            };
            let doing = format!("changing network {}", args.network);
            let answer = session.ask(&doing, async |client| {
                client.network_update(&args.network, &request).await
            })?;
            let subnets: Vec<_> = answer.subnets.iter().map(|subnet| subnet.subnet).collect();
            print(&format!("network {} has {}\n", answer.name, join(&subnets)))
        }
        NetworkCommand::Rm(args) => remove(session, &args.networks),
        NetworkCommand::Prune(args) => {
            let networks = session.ask("listing the networks", async |client| client.networks().await)?;
            let services = session.ask("listing the services", async |client| client.services(None).await)?;
            let is_used = |network: &NetworkSummary| {
                network.endpoint_count > 0 || services.iter().any(|service| service.network_id == network.id)
            };
            let unused: Vec<_> = networks.iter().filter(|network| !is_used(network)).collect();
            if unused.is_empty() {
                return print("every network has endpoints or services: there is none to remove\n");
            }
            if args.dry_run {
                let lines = unused.iter().map(|network| {
                    format!("would remove network {} ({})\n", network.name, network.id.short())
                });
                return print(&lines.collect::<String>());
            }
            // By id: a name may be another's meanwhile. One that is used by now is refused, as by `rm`.
            let ids: Vec<_> = unused.iter().map(|network| network.id.to_string()).collect();
            remove(session, &ids)
        }
        NetworkCommand::Connect(args) => {
            let (network, format) = (args.network.clone(), args.format);
            let request = args.request();
            let doing = format!("connecting {} to network {network}", request.target);
            let answer = session.ask(&doing, async |client| {
                client.network_connect(&network, &request).await
            })?;
            format.print(&answer, |answer| show::connected(&request.target, answer))
        }
        NetworkCommand::Disconnect(args) => {
            let request = DisconnectRequest {
                target: args.target,
                grace_ms: millis(args.grace.unwrap_or(DETACH_GRACE)),
            };
            let doing = format!("disconnecting {} from network {}", request.target, args.network);
            let answer = session.ask(&doing, async |client| {
                client.network_disconnect(&args.network, &request).await
            })?;
            let reset = match answer.left {
                0 => String::new(),
                left => format!("; {left} still open and reset"),
            };
            print(&format!(
                "disconnected {} from {}: {} free again{reset}\n",
                answer.name,
                answer.network_name,
                join(&answer.addresses)
            ))
        }
    }
}
