//! The `ports` of a service: what every host of the lab publishes.

use crate::api::types::{Protocol, PublishMode, PublishedPort};

use super::{
    FileError,
    fields::Reader,
    tables,
    tree::{Entry, Node, Value},
};

/// The ports on the hosts, in the short form or the long one.
pub(super) fn read(reader: &mut Reader, node: &Node, service: &str) -> Result<Vec<PublishedPort>, FileError> {
    let what = format!("`ports` of {service}");
    let mut ports = Vec::new();
    for item in reader.list(node, &what)? {
        ports.push(match &item.value {
            Value::Map(_) => read_long(reader, item, &format!("a port of {service}"))?,
            _ => read_short(reader, item, &what)?,
        });
    }
    Ok(ports)
}

/// `[IP:]HOSTPORT:PORT[/PROTOCOL]`, as on the command line.
fn read_short(reader: &Reader, node: &Node, what: &str) -> Result<PublishedPort, FileError> {
    let text = reader.text(node, what)?;
    if text.contains('-') {
        return Err(reader.error(
            node.pos,
            format!("{what}: ranges are not built yet; list the ports one by one"),
        ));
    }
    text.parse()
        .map_err(|error| reader.error(node.pos, format!("{what}: {error}")))
}

fn read_long(reader: &mut Reader, node: &Node, what: &str) -> Result<PublishedPort, FileError> {
    let mut port = PublishedPort {
        ip: None,
        host_port: 0,
        port: 0,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
    };
    for Entry { key, value, .. } in reader.fields(node, what, tables::PORT)? {
        let field = format!("`{key}` of {what}");
        match &**key {
            "target" => port.port = reader.number(value, &field, 1, 65_535)? as u16,
            "published" => port.host_port = reader.number(value, &field, 1, 65_535)? as u16,
            "protocol" => {
                let names = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
                port.protocol = reader.choice(value, &field, &names)?;
            }
            "mode" => {
                let names = PublishMode::ALL.map(|mode| (mode.to_string(), mode));
                port.mode = reader.choice(value, &field, &names)?;
            }
            "host_ip" => port.ip = Some(reader.parse(value, &field, "an IP address")?),
            _ => {}
        }
    }
    if port.host_port == 0 || port.port == 0 {
        return Err(reader.error(node.pos, format!("{what} needs both `published` and `target`")));
    }
    Ok(port)
}
