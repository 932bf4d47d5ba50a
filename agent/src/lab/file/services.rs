//! The `services` of a lab file.

use std::{collections::BTreeMap, net::IpAddr};

use crate::api::types::{EndpointMode, HealthTest, Scheduler, Tuning};

use super::{
    super::model::{AttachmentSpec, NetworkSpec, ServiceSpec, Workload},
    FileError,
    fields::{Reader, did_you_mean},
    health::{self, Healthcheck},
    networks, ports, tables,
    tree::{Entry, Node, Pos, Value},
};

/// Letters in a name.
const MAX_NAME: usize = 63;
/// Replicas of one service.
const MAX_REPLICAS: u64 = 1000;

pub(super) fn read(
    reader: &mut Reader,
    node: &Node,
    hosts: &[String],
    networks: &mut Vec<NetworkSpec>,
) -> Result<Vec<ServiceSpec>, FileError> {
    let mut services = Vec::new();
    for Entry { key, pos, value } in reader.entries(node, "`services`")? {
        reader.name(*pos, key, "a service")?;
        let service = read_service(reader, key, *pos, value, hosts, networks)?;
        check_replica_names(reader, *pos, &service, hosts)?;
        services.push(service);
    }
    if services.is_empty() {
        return Err(reader.error(node.pos, "`services` is empty"));
    }
    Ok(services)
}

/// Replicas are called like web-1, and share that with hosts where both can be named.
fn check_replica_names(
    reader: &Reader,
    pos: Pos,
    service: &ServiceSpec,
    hosts: &[String],
) -> Result<(), FileError> {
    let ServiceSpec { name, replicas, .. } = service;
    let last = format!("{name}-{replicas}");
    if last.len() > MAX_NAME {
        let message = format!("the replica `{last}` would have more than {MAX_NAME} letters in its name");
        return Err(reader.error(pos, message));
    }
    match hosts
        .iter()
        .find(|host| (1..=*replicas).any(|number| **host == format!("{name}-{number}")))
    {
        Some(host) => Err(reader.error(
            pos,
            format!("service `{name}` has a replica `{host}`, and a host has that name"),
        )),
        None => Ok(()),
    }
}

fn read_service(
    reader: &mut Reader,
    name: &str,
    pos: Pos,
    node: &Node,
    hosts: &[String],
    networks: &mut Vec<NetworkSpec>,
) -> Result<ServiceSpec, FileError> {
    let what = format!("service `{name}`");
    let mut service = ServiceSpec {
        name: name.to_owned(),
        workload: Workload::Idle,
        environment: BTreeMap::new(),
        hostname: None,
        attachments: Vec::new(),
        replicas: 1,
        endpoint_mode: EndpointMode::default(),
        lb: Scheduler::default(),
        tuning: Tuning::default(),
        port: None,
        health: None,
        publish: Vec::new(),
        weights: vec![1],
        delays_ms: vec![0],
        allowed_hosts: hosts.to_vec(),
    };
    let (mut command, mut entrypoint) = (None, None);
    let mut networks_at = None;
    let (mut healthcheck, mut health_at) = (Healthcheck::default(), pos);
    let mut ports_at = pos;
    let mut x_weft = XWeft::default();
    for Entry { key, value, .. } in reader.fields(node, &what, tables::SERVICE)? {
        let field = format!("`{key}` of {what}");
        match &**key {
            "command" => command = Some(read_command(reader, value, &field)?),
            "entrypoint" => entrypoint = Some(read_command(reader, value, &field)?),
            "environment" => service.environment = reader.pairs(value, &field)?.into_iter().collect(),
            "hostname" => {
                let hostname = reader.text(value, &field)?;
                reader.name(value.pos, &hostname, "a host")?;
                service.hostname = Some(hostname);
            }
            "networks" => networks_at = Some(value),
            "deploy" => read_deploy(reader, value, &mut service, hosts)?,
            "ports" => {
                service.publish = ports::read(reader, value, &what)?;
                ports_at = value.pos;
            }
            "healthcheck" => {
                healthcheck = health::read(reader, value, &what)?;
                health_at = value.pos;
            }
            "x-weft" => x_weft = read_x_weft(reader, value, &mut service, hosts)?,
            _ => {}
        }
    }
    service.health = healthcheck.finish(x_weft.health);
    if let Some(check) = &service.health {
        check
            .check_times(name)
            .map_err(|error| reader.error(health_at, error.message))?;
    }
    service.workload = match (x_weft.builtin, command, entrypoint) {
        (Some(builtin), None, None) => builtin,
        (Some(_), ..) => {
            return Err(reader.error(
                pos,
                format!("{what} has both a builtin and a command: keep one of them"),
            ));
        }
        (None, None, None) => {
            return Err(reader.error(
                pos,
                format!("{what} has nothing to run: give it `command`, or `x-weft: {{ builtin: whoami }}`"),
            ));
        }
        (None, command, entrypoint) => {
            Workload::Command([entrypoint, command].into_iter().flatten().flatten().collect())
        }
    };
    // Read last, because fixed addresses depend on the number of replicas.
    service.attachments = match networks_at {
        Some(node) => read_attachments(reader, node, &what, networks, service.replicas)?,
        None => {
            if networks.iter().all(|network| network.name != "default") {
                networks.push(networks::plain("default"));
            }
            vec![attachment("default")]
        }
    };
    let is_open = |attachment: &AttachmentSpec| {
        let mut named = networks
            .iter()
            .filter(|network| network.name == attachment.network);
        named.any(|network| !network.internal)
    };
    if !service.publish.is_empty() && !service.attachments.iter().any(is_open) {
        return Err(reader.error(
            ports_at,
            format!("{what} publishes ports, and all its networks are internal: nothing leads into them from outside"),
        ));
    }
    Ok(service)
}

/// A list of words, or one line that is split as a shell would; no shell runs.
fn read_command(reader: &Reader, node: &Node, what: &str) -> Result<Vec<String>, FileError> {
    let words = match &node.value {
        Value::List(items) => items
            .iter()
            .map(|item| reader.text(item, what))
            .collect::<Result<Vec<_>, _>>()?,
        _ => shlex::split(&reader.text(node, what)?)
            .ok_or_else(|| reader.error(node.pos, format!("{what} has a quote that does not end")))?,
    };
    if words.is_empty() {
        return Err(reader.error(node.pos, format!("{what} is empty")));
    }
    Ok(words)
}

fn attachment(network: &str) -> AttachmentSpec {
    AttachmentSpec {
        network: network.to_owned(),
        aliases: Vec::new(),
        ipv4: None,
        ipv6: None,
        mac: None,
    }
}

fn read_attachments(
    reader: &mut Reader,
    node: &Node,
    service: &str,
    networks: &[NetworkSpec],
    replicas: u32,
) -> Result<Vec<AttachmentSpec>, FileError> {
    let mut attachments: Vec<AttachmentSpec> = Vec::new();
    if let Value::List(items) = &node.value {
        for item in items {
            let name = reader.text(item, &format!("a network of {service}"))?;
            known_network(reader, item.pos, &name, service, networks)?;
            if attachments.iter().any(|known| known.network == name) {
                return Err(reader.error(item.pos, format!("{service} lists network `{name}` twice")));
            }
            attachments.push(attachment(&name));
        }
    } else {
        for Entry { key, pos, value } in reader.entries(node, &format!("`networks` of {service}"))? {
            let network = known_network(reader, *pos, key, service, networks)?;
            attachments.push(read_attachment(reader, value, service, network, replicas)?);
        }
    }
    if attachments.is_empty() {
        return Err(reader.error(node.pos, format!("{service} is on no network")));
    }
    Ok(attachments)
}

fn known_network<'n>(
    reader: &Reader,
    pos: Pos,
    name: &str,
    service: &str,
    networks: &'n [NetworkSpec],
) -> Result<&'n NetworkSpec, FileError> {
    networks
        .iter()
        .find(|network| network.name == name)
        .ok_or_else(|| {
            let hint = did_you_mean(name, networks.iter().map(|network| &*network.name));
            let hint = if hint.is_empty() {
                ": add it to the top-level `networks`".to_owned()
            } else {
                hint
            };
            reader.error(
                pos,
                format!("{service} is on network `{name}`, which the file does not define{hint}"),
            )
        })
}

fn read_attachment(
    reader: &mut Reader,
    node: &Node,
    service: &str,
    network: &NetworkSpec,
    replicas: u32,
) -> Result<AttachmentSpec, FileError> {
    let what = format!("{service} on network `{}`", network.name);
    let mut spec = attachment(&network.name);
    for Entry { key, value, .. } in reader.fields(node, &what, tables::ATTACHMENT)? {
        let field = format!("`{key}` of {what}");
        if key != "aliases" && replicas > 1 {
            return Err(reader.error(
                value.pos,
                format!("{field} is for one replica, and there are {replicas}"),
            ));
        }
        match &**key {
            "aliases" => {
                for item in reader.list(value, &field)? {
                    let alias = reader.text(item, &field)?;
                    reader.name(item.pos, &alias, "an alias")?;
                    spec.aliases.push(alias);
                }
            }
            "ipv4_address" => {
                let address = reader.parse(value, &field, "an IPv4 address")?;
                in_a_subnet(reader, value, &field, IpAddr::V4(address), network)?;
                spec.ipv4 = Some(address);
            }
            "ipv6_address" => {
                let address = reader.parse(value, &field, "an IPv6 address")?;
                in_a_subnet(reader, value, &field, IpAddr::V6(address), network)?;
                spec.ipv6 = Some(address);
            }
            "mac_address" => {
                spec.mac = Some(reader.parse(value, &field, "a MAC address such as 02:42:ac:11:00:02")?)
            }
            _ => {}
        }
    }
    Ok(spec)
}

/// Docker's rule: an address can be chosen only in a subnet that was chosen.
fn in_a_subnet(
    reader: &Reader,
    node: &Node,
    what: &str,
    address: IpAddr,
    network: &NetworkSpec,
) -> Result<(), FileError> {
    if network
        .subnets
        .iter()
        .any(|subnet| subnet.subnet.contains(&address))
    {
        return Ok(());
    }
    let name = &network.name;
    Err(reader.error(
        node.pos,
        format!("{what} is {address}, which lies in no subnet of network `{name}`: give `{name}` an `ipam.config` with that subnet"),
    ))
}

fn read_deploy(
    reader: &mut Reader,
    node: &Node,
    service: &mut ServiceSpec,
    hosts: &[String],
) -> Result<(), FileError> {
    let what = format!("`deploy` of service `{}`", service.name);
    for Entry { key, value, .. } in reader.fields(node, &what, tables::DEPLOY)? {
        let field = format!("`{key}` in {what}");
        match &**key {
            "replicas" => service.replicas = reader.number(value, &field, 0, MAX_REPLICAS)? as u32,
            "endpoint_mode" => {
                let modes = EndpointMode::ALL.map(|mode| (mode.to_string(), mode));
                service.endpoint_mode = reader.choice(value, &field, &modes)?;
            }
            "mode" => {
                let global = reader.choice(value, &field, &[("replicated", false), ("global", true)])?;
                if global {
                    return Err(reader.error(
                        value.pos,
                        format!("{field}: `global` is not built yet; give `replicas`"),
                    ));
                }
            }
            "placement" => {
                for Entry { value, .. } in reader.fields(value, &field, tables::PLACEMENT)? {
                    for item in reader.list(value, "`constraints`")? {
                        let constraint = reader.text(item, "a placement constraint")?;
                        apply_constraint(reader, item, &constraint, service, hosts)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn apply_constraint(
    reader: &Reader,
    node: &Node,
    constraint: &str,
    service: &mut ServiceSpec,
    hosts: &[String],
) -> Result<(), FileError> {
    // `!=` holds a `=` too, so it is looked for first.
    let parts = constraint.split_once("!=").map(|parts| (parts, false));
    let parts = parts.or_else(|| constraint.split_once("==").map(|parts| (parts, true)));
    let Some(((key, host), wanted)) = parts else {
        return Err(reader.error(
            node.pos,
            format!("the placement constraint `{constraint}` is not understood: write `node.hostname == HOST` or `node.hostname != HOST`"),
        ));
    };
    if key.trim() != "node.hostname" {
        return Err(reader.error(
            node.pos,
            format!(
                "the placement constraint on `{}` is not built yet: only `node.hostname` is",
                key.trim()
            ),
        ));
    }
    known_host(reader, node.pos, host.trim(), hosts)?;
    service
        .allowed_hosts
        .retain(|name| (name == host.trim()) == wanted);
    hosts_left(reader, node.pos, service)
}

fn known_host(reader: &Reader, pos: Pos, host: &str, hosts: &[String]) -> Result<(), FileError> {
    if hosts.iter().any(|name| name == host) {
        return Ok(());
    }
    let hint = did_you_mean(host, hosts.iter().map(|name| &**name));
    Err(reader.error(pos, format!("the lab has no host `{host}`{hint}")))
}

fn hosts_left(reader: &Reader, pos: Pos, service: &ServiceSpec) -> Result<(), FileError> {
    if service.allowed_hosts.is_empty() {
        return Err(reader.error(
            pos,
            format!("this leaves service `{}` no host to run on", service.name),
        ));
    }
    Ok(())
}

/// What `x-weft` says that something else in the service decides about too.
#[derive(Default)]
struct XWeft {
    builtin: Option<Workload>,
    health: Option<HealthTest>,
}

fn read_x_weft(
    reader: &mut Reader,
    node: &Node,
    service: &mut ServiceSpec,
    hosts: &[String],
) -> Result<XWeft, FileError> {
    let what = format!("`x-weft` of service `{}`", service.name);
    let mut found = XWeft::default();
    for Entry { key, value, .. } in reader.fields(node, &what, tables::SERVICE_X_WEFT)? {
        let field = format!("`{key}` in {what}");
        match &**key {
            "builtin" => {
                let names = [("whoami", 0), ("idle", 1)];
                found.builtin = Some(match reader.choice(value, &field, &names)? {
                    0 => Workload::Whoami,
                    _ => Workload::Idle,
                });
            }
            "lb" => {
                let names = Scheduler::ALL.map(|scheduler| (scheduler.to_string(), scheduler));
                service.lb = reader.choice(value, &field, &names)?;
            }
            "eject" => {
                let text = reader.text(value, &field)?;
                service.tuning = Tuning::read_eject(&text).map_err(|error| reader.error(value.pos, error))?;
            }
            "health" => found.health = Some(health::read_test(reader, value, &field)?),
            "port" => service.port = Some(reader.number(value, &field, 1, 65_535)? as u16),
            "weight" => {
                let weights = reader.numbers(value, &field, 0, 1000)?;
                service.weights = weights.into_iter().map(|weight| weight as u16).collect();
            }
            "delay_ms" => service.delays_ms = reader.numbers(value, &field, 0, 60_000)?,
            "hosts" => {
                let mut chosen = Vec::new();
                for item in reader.list(value, &field)? {
                    let host = reader.text(item, &field)?;
                    known_host(reader, item.pos, &host, hosts)?;
                    chosen.push(host);
                }
                service.allowed_hosts.retain(|host| chosen.contains(host));
                hosts_left(reader, value.pos, service)?;
            }
            _ => {}
        }
    }
    Ok(found)
}
