use std::{collections::BTreeMap, fmt::Display};

use crate::{
    api::types::{ConnectResponse, Endpoint, NetworkDetail, NetworkSummary},
    cli::{
        format::{join, yes},
        nouns::{
            encryption::{add_encryption, tunnel_table},
            service::service_table,
        },
        table::{Facts, Table},
    },
};

/// The columns of every list of networks.
pub(in crate::cli) fn network_table(networks: &[NetworkSummary]) -> Table<8> {
    let mut table = Table::new([
        "ID",
        "NAME",
        "DRIVER",
        "VNI",
        "SUBNETS",
        "INTERNAL",
        "ENCRYPTED",
        "ENDPOINTS",
    ]);
    for network in networks {
        table.row([
            network.id.short(),
            network.name.clone(),
            network.driver.clone(),
            network.vni.to_string(),
            join(network.subnets.iter().map(|subnet| subnet.subnet)),
            yes(network.internal).to_owned(),
            yes(network.encrypted).to_owned(),
            network.endpoint_count.to_string(),
        ]);
    }
    table
}

/// The columns of every list of endpoints.
pub(in crate::cli) fn endpoint_table(endpoints: &[Endpoint]) -> Table<7> {
    let mut table = Table::new([
        "ID",
        "NAME",
        "NETWORK",
        "NODE",
        "ADDRESSES",
        "SERVICE",
        "INTERFACE",
    ]);
    for endpoint in endpoints {
        table.row([
            endpoint.id.short(),
            endpoint.name.clone(),
            endpoint.network_name.clone(),
            format!("{} ({})", endpoint.node_name, endpoint.node_state),
            join(&endpoint.addresses),
            endpoint.service.clone().unwrap_or_default(),
            match (&endpoint.ifname, &endpoint.target) {
                (Some(ifname), Some(target)) => format!("{ifname} in {target}"),
                _ => String::new(),
            },
        ]);
    }
    table
}

/// `weft network inspect` for people.
pub(super) fn detail(network: &NetworkDetail) -> String {
    let mut facts = Facts::default();
    facts
        .add("id", network.summary.id)
        .add("name", &network.summary.name)
        .add("driver", &network.summary.driver)
        .add("vni", network.summary.vni)
        .add("mtu", network.summary.mtu)
        .add("internal", yes(network.summary.internal))
        .add("ipv6", yes(network.summary.ipv6))
        .add("encrypted", yes(network.summary.encrypted))
        .add("options", pairs(&network.options))
        .add("labels", pairs(&network.labels))
        .add(
            "made",
            format!("{} on node {}", network.created, network.created_by.short()),
        );
    add_encryption(&mut facts, network.encryption.as_ref());
    let mut subnets = Table::new(["SUBNET", "GATEWAY", "IP RANGE", "AUX ADDRESSES"]);
    for subnet in &network.summary.subnets {
        subnets.row([
            subnet.subnet.to_string(),
            subnet.gateway.to_string(),
            subnet.ip_range.map(|range| range.to_string()).unwrap_or_default(),
            pairs(&subnet.aux_addresses),
        ]);
    }
    let mut shares = Table::new(["NODE", "SUBNET", "OWNED", "USED"]);
    for share in &network.shares {
        shares.row([
            share.node_name.clone(),
            share.subnet.to_string(),
            share.owned.to_string(),
            share.used.to_string(),
        ]);
    }
    let mut text = [
        facts.render(),
        format!("subnets\n{}", subnets.render("  ")),
        format!("endpoints\n{}", endpoint_table(&network.endpoints).render("  ")),
        format!("services\n{}", service_table(&network.services).render("  ")),
        format!("addresses\n{}", shares.render("  ")),
    ]
    .join("\n");
    if let Some(encryption) = &network.encryption {
        let tunnels = tunnel_table(&encryption.tunnels).render("  ");
        text.push_str(&format!("\ntunnels\n{tunnels}"));
    }
    text
}

/// `weft network connect` for people.
pub(super) fn connected(target: &str, answer: &ConnectResponse) -> String {
    let gateways = if answer.gateways.is_empty() {
        String::new()
    } else {
        format!(", gateway {}", join(&answer.gateways))
    };
    let names = match &answer.dns.resolv_conf {
        Some(path) => format!("written to {}", path.display()),
        None => "not written anywhere: its programs have to be told".to_owned(),
    };
    format!(
        "connected {target} to {} as {}: {} with {}{gateways}\nnames are answered at {}: {names}\n",
        answer.network_name,
        answer.name,
        answer.ifname,
        join(&answer.addresses),
        join(&answer.dns.servers),
    )
}

fn pairs(map: &BTreeMap<String, impl Display>) -> String {
    join(map.iter().map(|(key, value)| format!("{key}={value}")))
}
