//! The `networks` of a lab file.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::api::types::MIN_MTU;

use super::{
    super::model::{NetworkSpec, SubnetSpec},
    FileError,
    fields::Reader,
    tables,
    tree::{Entry, Node, Value},
    whole_subnet,
};

pub(super) fn read(reader: &mut Reader, node: &Node) -> Result<Vec<NetworkSpec>, FileError> {
    let mut networks: Vec<NetworkSpec> = Vec::new();
    for Entry { key, pos, value } in reader.entries(node, "`networks`")? {
        reader.name(*pos, key, "a network")?;
        let mut network = read_network(reader, key, value)?;
        for other in &mut networks {
            if overlapping(other, &network) {
                other.overlaps = true;
                network.overlaps = true;
                let message = format!(
                    "network `{key}` has addresses of network `{}` too: that works, but neither can reach the other",
                    other.name
                );
                reader.note(*pos, message);
            }
        }
        networks.push(network);
    }
    Ok(networks)
}

/// A network about which the file says nothing, such as Compose's implicit `default`.
pub(super) fn plain(name: &str) -> NetworkSpec {
    NetworkSpec {
        name: name.to_owned(),
        internal: false,
        ipv6: false,
        subnets: Vec::new(),
        mtu: None,
        encrypted: None,
        labels: BTreeMap::new(),
        overlaps: false,
    }
}

fn read_network(reader: &mut Reader, name: &str, node: &Node) -> Result<NetworkSpec, FileError> {
    let what = format!("network `{name}`");
    let mut network = plain(name);
    for Entry { key, value, .. } in reader.fields(node, &what, tables::NETWORK)? {
        let field = format!("`{key}` of {what}");
        match &**key {
            "driver" => reader.choice(value, &field, &[("overlay", ()), ("weft", ())])?,
            "internal" => network.internal = reader.boolean(value, &field)?,
            "enable_ipv6" => network.ipv6 = reader.boolean(value, &field)?,
            "enable_ipv4" if !reader.boolean(value, &field)? => {
                return Err(reader.error(value.pos, format!("{what} without IPv4 is not built yet")));
            }
            "driver_opts" => {
                for Entry { key, value, .. } in reader.fields(value, &field, tables::DRIVER_OPTS)? {
                    let field = format!("`{key}` of {what}");
                    match &**key {
                        "encrypted" => network.encrypted = Some(read_encrypted(reader, value, &field)?),
                        _ => {
                            let mtu = reader.number(value, &field, MIN_MTU.into(), 65_535)?;
                            network.mtu = Some(mtu as u16);
                        }
                    }
                }
            }
            "labels" => network.labels = reader.pairs(value, &field)?.into_iter().collect(),
            "ipam" => network.subnets = read_ipam(reader, &what, value)?,
            _ => {}
        }
    }
    if !network.ipv6
        && network
            .subnets
            .iter()
            .any(|subnet| matches!(subnet.subnet, IpNet::V6(_)))
    {
        return Err(reader.error(
            node.pos,
            format!("{what} has an IPv6 subnet: say `enable_ipv6: true` too"),
        ));
    }
    Ok(network)
}

/// As in Swarm's files: there with nothing after it is yes.
fn read_encrypted(reader: &Reader, value: &Node, field: &str) -> Result<bool, FileError> {
    match &value.value {
        Value::Null => Ok(true),
        // Compose writes all options of drivers as text.
        Value::Scalar { text, .. } if text.is_empty() || text == "true" => Ok(true),
        Value::Scalar { text, .. } if text == "false" => Ok(false),
        _ => reader.boolean(value, field),
    }
}

fn read_ipam(reader: &mut Reader, network: &str, node: &Node) -> Result<Vec<SubnetSpec>, FileError> {
    let mut subnets: Vec<SubnetSpec> = Vec::new();
    for Entry { key, value, .. } in reader.fields(node, &format!("`ipam` of {network}"), tables::IPAM)? {
        match &**key {
            "driver" => reader.choice(value, &format!("`ipam.driver` of {network}"), &[("default", ())])?,
            "config" => {
                for item in reader.list(value, &format!("`ipam.config` of {network}"))? {
                    let subnet = read_subnet(reader, network, item)?;
                    if let Some(other) = subnets.iter().find(|other| overlap(other.subnet, subnet.subnet)) {
                        return Err(reader.error(
                            item.pos,
                            format!(
                                "{} overlaps {} of the same {network}",
                                subnet.subnet, other.subnet
                            ),
                        ));
                    }
                    subnets.push(subnet);
                }
            }
            _ => {}
        }
    }
    Ok(subnets)
}

fn read_subnet(reader: &mut Reader, network: &str, node: &Node) -> Result<SubnetSpec, FileError> {
    let what = format!("`ipam.config` of {network}");
    let entries = reader.fields(node, &what, tables::IPAM_CONFIG)?;
    let Some(entry) = entries.iter().find(|entry| entry.key == "subnet") else {
        return Err(reader.error(node.pos, format!("{what} has an entry without a `subnet`")));
    };
    let subnet: IpNet = reader.parse(&entry.value, "`subnet`", "a subnet such as 10.9.0.0/24")?;
    whole_subnet(reader, &entry.value, subnet)?;
    let mut spec = SubnetSpec {
        subnet,
        ip_range: None,
        gateway: None,
        aux_addresses: BTreeMap::new(),
    };
    for Entry { key, value, .. } in entries {
        match &**key {
            "ip_range" => {
                let range: IpNet = reader.parse(value, "`ip_range`", "a subnet such as 10.9.0.128/25")?;
                whole_subnet(reader, value, range)?;
                if !subnet.contains(&range) {
                    return Err(reader.error(value.pos, format!("`ip_range` {range} lies outside {subnet}")));
                }
                spec.ip_range = Some(range);
            }
            "gateway" => spec.gateway = Some(address_in(reader, value, "`gateway`", subnet)?),
            "aux_addresses" => {
                for Entry { key, value, .. } in reader.entries(value, "`aux_addresses`")? {
                    let address =
                        address_in(reader, value, &format!("the auxiliary address `{key}`"), subnet)?;
                    spec.aux_addresses.insert(key.clone(), address);
                }
            }
            _ => {}
        }
    }
    Ok(spec)
}

fn address_in(reader: &Reader, node: &Node, what: &str, subnet: IpNet) -> Result<IpAddr, FileError> {
    let address: IpAddr = reader.parse(node, what, "an IP address")?;
    if subnet.contains(&address) {
        Ok(address)
    } else {
        Err(reader.error(node.pos, format!("{what} {address} lies outside {subnet}")))
    }
}

fn overlapping(a: &NetworkSpec, b: &NetworkSpec) -> bool {
    a.subnets
        .iter()
        .any(|one| b.subnets.iter().any(|other| overlap(one.subnet, other.subnet)))
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}
