//! The two requests that are changed, and how. Go, and so Docker, reads the names of fields in any case.

use std::net::IpAddr;

use hyper::Method;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::{
    control::{DNS_V4, DNS_V6},
    docker::{driver::ADDRESS_SPACE, engine::EngineNetwork},
};

/// Swarm's driver, which is ours here.
const OVERLAY: &str = "overlay";
/// Modes of a container's network that are no network's name.
const MODES: [&str; 5] = ["default", "bridge", "host", "none", "nat"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Network,
    Container,
}

/// Whether a request is one of those.
pub fn kind(method: &Method, path: &str) -> Option<Kind> {
    if method != Method::POST {
        return None;
    }
    match unversioned(path)? {
        "networks/create" => Some(Kind::Network),
        "containers/create" => Some(Kind::Container),
        _ => None,
    }
}

/// A path without the version of the API at its beginning, if it has one.
pub(super) fn unversioned(path: &str) -> Option<&str> {
    let path = path.strip_prefix('/')?;
    Some(match path.split_once('/') {
        Some((version, rest)) if is_version(version) => rest,
        _ => path,
    })
}

fn is_version(part: &str) -> bool {
    let number = part.strip_prefix('v');
    number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// Makes a network of Swarm's one of ours, with addresses of the cluster from the beginning; one that is of our driver gets
/// those too. Says whether it did. Its options stay: the driver refuses what it has not.
pub fn network(body: &mut Value, driver: &str) -> bool {
    let Value::Object(body) = body else { return false };
    let wants = |value: &Value| {
        value
            .as_str()
            .is_some_and(|name| name == OVERLAY || name == driver)
    };
    if !fields(body, "Driver").any(|value| wants(value)) {
        return false;
    }
    fields(body, "Driver").for_each(|value| *value = json!(driver));
    // It is on every host of the cluster, which is what Swarm's scope means.
    fields(body, "Scope").for_each(|value| *value = json!(""));
    // Docker's own addresses are the same ones on every host.
    let addresses = object(body, "IPAM");
    let is_default = |value: &Value| matches!(value.as_str(), None | Some("" | "default"));
    if fields(addresses, "Driver").all(|value| is_default(value)) {
        fields(addresses, "Driver").for_each(|value| *value = json!(ADDRESS_SPACE));
        addresses.entry("Driver").or_insert_with(|| json!(ADDRESS_SPACE));
    }
    true
}

/// The networks that a container is to be on, by name or id.
pub fn networks_of(body: &Value) -> Vec<String> {
    let get = |value: &Value, name: &str| {
        let fields = value.as_object()?.iter();
        let mut found = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        found.next_back().map(|(_, value)| value.clone())
    };
    let mode = get(body, "HostConfig").and_then(|host| get(&host, "NetworkMode"));
    let mode = mode
        .as_ref()
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let is_network = !mode.is_empty() && !MODES.contains(&mode.as_str()) && !mode.contains(':');
    let endpoints = get(body, "NetworkingConfig").and_then(|config| get(&config, "EndpointsConfig"));
    let endpoints = endpoints.as_ref().and_then(Value::as_object);
    let named = endpoints.into_iter().flat_map(Map::keys).cloned();
    is_network.then_some(mode).into_iter().chain(named).collect()
}

/// Where names are asked for on a network of ours.
pub fn dns_of(network: &EngineNetwork) -> Option<IpAddr> {
    let nets = network
        .ipam
        .config
        .iter()
        .filter_map(|config| config.subnet.parse().ok());
    let families: Vec<bool> = nets.map(|net: IpNet| net.addr().is_ipv4()).collect();
    match families.contains(&true) {
        true => Some(DNS_V4.into()),
        false => families.first().map(|_| DNS_V6.into()),
    }
}

/// Has a container ask `server` for names, before whom it would ask else, and says whether it did not do so already.
pub fn container(body: &mut Value, server: IpAddr) -> bool {
    let Value::Object(body) = body else { return false };
    let host = object(body, "HostConfig");
    let key = fields_of(host, "Dns").unwrap_or_else(|| "Dns".to_owned());
    let servers = host.entry(key).or_insert(Value::Null);
    if servers.is_null() {
        *servers = json!([]);
    }
    // Not a list: Docker says so.
    let Value::Array(servers) = servers else {
        return false;
    };
    let server = json!(server);
    if servers.contains(&server) {
        return false;
    }
    servers.insert(0, server);
    true
}

fn fields<'a>(of: &'a mut Map<String, Value>, name: &'a str) -> impl Iterator<Item = &'a mut Value> {
    of.iter_mut()
        .filter(move |(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

fn fields_of(of: &Map<String, Value>, name: &str) -> Option<String> {
    let mut names = of.keys().filter(|field| field.eq_ignore_ascii_case(name));
    names.next().cloned()
}

/// A field that is an object, made if it is not there.
fn object<'a>(of: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let key = fields_of(of, name).unwrap_or_else(|| name.to_owned());
    let value = of.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made so")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_are_changed_in_every_version_of_the_api() {
        for (path, expected) in [
            ("/networks/create", Some(Kind::Network)),
            ("/v1.41/networks/create", Some(Kind::Network)),
            ("/v1.41/containers/create", Some(Kind::Container)),
            ("/v1.41/containers/create/json", None),
            ("/x/networks/create", None),
            ("/networks", None),
            ("//networks/create", None),
            ("*", None),
        ] {
            assert_eq!(kind(&Method::POST, path), expected, "{path}");
        }
        assert_eq!(kind(&Method::GET, "/networks/create"), None);
    }

    #[test]
    fn a_network_of_swarms_becomes_one_of_ours() {
        // As `docker network create --driver overlay --attachable --opt encrypted --scope swarm app` says it.
        let mut body = json!({
            "Name": "app", "CheckDuplicate": true, "Driver": "overlay", "Scope": "swarm", "EnableIPv6": false,
            "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": "10.7.0.0/24"}]}, "Internal": false,
            "Attachable": true, "Ingress": false, "ConfigOnly": false, "ConfigFrom": null,
            "Options": {"encrypted": ""}, "Labels": {},
        });
        assert!(network(&mut body, "weft"));
        let expected = json!({
            "Name": "app", "CheckDuplicate": true, "Driver": "weft", "Scope": "", "EnableIPv6": false,
            "IPAM": {"Driver": "weft", "Options": {}, "Config": [{"Subnet": "10.7.0.0/24"}]}, "Internal": false,
            "Attachable": true, "Ingress": false, "ConfigOnly": false, "ConfigFrom": null,
            "Options": {"encrypted": ""}, "Labels": {},
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn fields_may_be_missing_and_in_any_case() {
        let mut body = json!({"name": "app", "driver": "overlay", "options": null});
        assert!(network(&mut body, "weft"));
        let expected = json!({"name": "app", "driver": "weft", "IPAM": {"Driver": "weft"}, "options": null});
        assert_eq!(body, expected);
        // A word of the user's own about who gives addresses stays.
        let mut body = json!({"Name": "app", "Driver": "overlay", "IPAM": {"Driver": "other"}});
        assert!(network(&mut body, "weft"));
        assert_eq!(body["IPAM"]["Driver"], "other");
    }

    #[test]
    fn other_networks_stay_as_they_are() {
        let mut body = json!({"Name": "app", "Driver": "weft"});
        assert!(network(&mut body, "weft"));
        assert_eq!(body["IPAM"]["Driver"], "weft");
        for body in [
            json!({"Driver": "bridge"}),
            json!({"Driver": "Overlay"}),
            json!({}),
            json!([]),
            json!(null),
        ] {
            let mut same = body.clone();
            assert!(!network(&mut same, "weft"));
            assert_eq!(same, body);
        }
    }

    #[test]
    fn the_networks_of_a_container_are_found() {
        for (body, expected) in [
            (json!({"HostConfig": {"NetworkMode": "app"}}), vec!["app"]),
            (json!({"hostconfig": {"networkmode": "app"}}), vec!["app"]),
            (json!({"HostConfig": {"NetworkMode": "container:a"}}), vec![]),
            (json!({"HostConfig": {"NetworkMode": "host"}}), vec![]),
            (json!({"HostConfig": null}), vec![]),
            (
                json!({"HostConfig": {"NetworkMode": "default"}, "NetworkingConfig": {"EndpointsConfig": {"b": {}, "a": null}}}),
                vec!["a", "b"],
            ),
        ] {
            assert_eq!(networks_of(&body), expected, "{body}");
        }
    }

    #[test]
    fn our_server_is_asked_before_others_and_once() {
        let mut body =
            json!({"Image": "busybox", "HostConfig": {"Dns": ["10.0.0.53"], "Memory": 9007199254740993_u64}});
        assert!(container(&mut body, DNS_V4.into()));
        let expected = json!({
            "Image": "busybox",
            "HostConfig": {"Dns": ["169.254.53.53", "10.0.0.53"], "Memory": 9007199254740993_u64},
        });
        assert_eq!(body, expected);
        assert!(!container(&mut body, DNS_V4.into()));
        let mut body = json!({"Image": "busybox"});
        assert!(container(&mut body, DNS_V6.into()));
        assert_eq!(body["HostConfig"], json!({"Dns": ["fd00:53::53"]}));
    }
}
