//! A lab file: a Compose file with an `x-weft` section for what Compose lacks.
//!
//! Every error names file, line and column. Every field of the Compose specification is used, noted as
//! harmless, or refused with a reason (`tables`); none is ignored in silence.

mod fields;
mod health;
mod networks;
mod ports;
mod services;
mod tables;
mod tree;

use std::{fs, io, path::Path};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::{fields::Note, tree::Pos};
use self::{
    fields::Reader,
    tree::{Entry, Node, Value},
};
use super::model::{LabFile, Underlay};

/// Files larger than this are not lab files.
const MAX_BYTES: u64 = 1 << 20;
/// Hosts in one lab.
const MAX_HOSTS: usize = 1000;

/// Why a lab file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file could not be read.
    #[error("cannot read the lab file {file}")]
    Read {
        /// Which file.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// The file is too large.
    #[error("{file} is larger than {MAX_BYTES} bytes, so it is no lab file")]
    TooLarge {
        /// Which file.
        file: String,
    },
    /// The file says something that cannot be done.
    #[error("{file}:{pos}: {message}")]
    Content {
        /// Which file.
        file: String,
        /// Line and column.
        pos: Pos,
        /// What is wrong there.
        message: String,
    },
}

/// Reads and checks the lab file at `path`; the notes are for the user's eyes.
pub fn load(path: &Path) -> Result<(LabFile, Vec<Note>), FileError> {
    let file = path.display().to_string();
    let read = |source| FileError::Read {
        file: file.clone(),
        source,
    };
    if fs::metadata(path).map_err(read)?.len() > MAX_BYTES {
        return Err(FileError::TooLarge { file });
    }
    parse(&file, &fs::read_to_string(path).map_err(read)?)
}

/// Reads and checks a lab file's text; `file` is its name in errors.
pub fn parse(file: &str, text: &str) -> Result<(LabFile, Vec<Note>), FileError> {
    let root = tree::parse(text).map_err(|error| FileError::Content {
        file: file.to_owned(),
        pos: error.pos,
        message: error.message,
    })?;
    let mut reader = Reader {
        file: file.to_owned(),
        notes: Vec::new(),
    };
    let lab = read_lab(&mut reader, &root)?;
    reader.notes.sort_by_key(Note::pos);
    Ok((lab, reader.notes))
}

fn read_lab(reader: &mut Reader, root: &Node) -> Result<LabFile, FileError> {
    let entries = reader.fields(root, "the lab file", tables::TOP)?;
    let find = |name: &str| {
        entries
            .iter()
            .find(|entry| entry.key == name)
            .map(|entry| &entry.value)
    };

    let name = match find("name") {
        Some(node) => {
            let name = reader.text(node, "`name`")?;
            reader.name(node.pos, &name, "a lab")?;
            Some(name)
        }
        None => None,
    };
    // Hosts and networks first, so that each service can be checked where it stands.
    let (hosts, underlay) = read_x_weft(reader, find("x-weft"))?;
    let mut networks = match find("networks") {
        Some(node) => networks::read(reader, node)?,
        None => Vec::new(),
    };
    let Some(services) = find("services") else {
        return Err(reader.error(root.pos, "the lab file has no `services`"));
    };
    let services = services::read(reader, services, &hosts, &mut networks)?;
    Ok(LabFile {
        name,
        hosts,
        underlay,
        networks,
        services,
    })
}

fn read_x_weft(reader: &mut Reader, node: Option<&Node>) -> Result<(Vec<String>, Underlay), FileError> {
    let mut hosts = numbered_hosts(3);
    let mut underlay = Underlay {
        ipv4: Some(Ipv4Net::new_assert([198, 18, 0, 0].into(), 24)),
        ipv6: Some(Ipv6Net::new_assert(
            [0xfd00, 0x198, 0x18, 0, 0, 0, 0, 0].into(),
            64,
        )),
        mtu: 1500,
    };
    let Some(node) = node else {
        return Ok((hosts, underlay));
    };
    let mut hosts_at = node.pos;
    for Entry { key, value, .. } in reader.fields(node, "`x-weft`", tables::X_WEFT)? {
        match &**key {
            "hosts" => {
                hosts = read_hosts(reader, value)?;
                hosts_at = value.pos;
            }
            "underlay" => read_underlay(reader, value, &mut underlay)?,
            _ => {}
        }
    }
    // The switch has the first address; the last IPv4 one is broadcast.
    let fits = underlay
        .ipv4
        .is_none_or(|subnet| subnet.hosts().count() > hosts.len());
    match (underlay.ipv4, underlay.ipv6) {
        (Some(subnet), _) if !fits => Err(reader.error(
            hosts_at,
            format!("{} hosts do not fit into the underlay {subnet}: give `x-weft: {{ underlay: {{ ipv4: … }} }}` a larger subnet", hosts.len()),
        )),
        (None, None) => Err(reader.error(node.pos, "the underlay needs IPv4 or IPv6")),
        _ => Ok((hosts, underlay)),
    }
}

fn numbered_hosts(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("h{number}")).collect()
}

/// A list of names, or how many hosts `h1`, `h2`, … there are.
fn read_hosts(reader: &Reader, node: &Node) -> Result<Vec<String>, FileError> {
    let Value::List(items) = &node.value else {
        let count = reader.number(node, "`hosts` of `x-weft`", 1, MAX_HOSTS as u64)?;
        return Ok(numbered_hosts(count as usize));
    };
    if !(1..=MAX_HOSTS).contains(&items.len()) {
        return Err(reader.error(
            node.pos,
            format!("a lab has 1 to {MAX_HOSTS} hosts, not {}", items.len()),
        ));
    }
    let mut hosts: Vec<String> = Vec::new();
    for item in items {
        let name = reader.text(item, "a host's name")?;
        reader.name(item.pos, &name, "a host")?;
        // Names become part of a socket's path, which may have 107 bytes (unix(7)).
        if name.len() > 20 {
            return Err(reader.error(
                item.pos,
                format!("the host name `{name}` is longer than 20 characters"),
            ));
        }
        if hosts.contains(&name) {
            return Err(reader.error(item.pos, format!("the host `{name}` is listed twice")));
        }
        hosts.push(name);
    }
    Ok(hosts)
}

fn read_underlay(reader: &mut Reader, node: &Node, underlay: &mut Underlay) -> Result<(), FileError> {
    for Entry { key, value, .. } in reader.fields(node, "`underlay`", tables::UNDERLAY)? {
        let off = matches!(&value.value, Value::Scalar { text, plain: true } if text == "false");
        match &**key {
            "ipv4" if off => underlay.ipv4 = None,
            "ipv6" if off => underlay.ipv6 = None,
            "ipv4" => {
                let net: Ipv4Net =
                    reader.parse(value, "`ipv4`", "a subnet such as 198.18.0.0/24, or false")?;
                whole_subnet(reader, value, net.into())?;
                underlay.ipv4 = Some(net);
            }
            "ipv6" => {
                let net: Ipv6Net =
                    reader.parse(value, "`ipv6`", "a subnet such as fd00:198:18::/64, or false")?;
                whole_subnet(reader, value, net.into())?;
                if net.prefix_len() > 112 {
                    return Err(reader.error(value.pos, format!("the underlay {net} is smaller than a /112")));
                }
                underlay.ipv6 = Some(net);
            }
            // IPv6 needs 1280, and VXLAN takes up to 70 bytes of it.
            "mtu" => underlay.mtu = reader.number(value, "`mtu` of the underlay", 1350, 65_535)? as u16,
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a subnet written with host bits, which is nearly always a slip.
fn whole_subnet(reader: &Reader, node: &Node, net: IpNet) -> Result<(), FileError> {
    if net.addr() == net.network() {
        return Ok(());
    }
    Err(reader.error(
        node.pos,
        format!("{net} is an address in a subnet; the subnet is {}", net.trunc()),
    ))
}

#[cfg(test)]
mod tests;
