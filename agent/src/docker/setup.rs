//! What Docker's `daemon.json` has to say so that containers ask Weft for names.

use std::{fmt, net::IpAddr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Value, json};

use crate::control::DNS_V4;

/// dockerd asks no more servers than so many.
const MAX_SERVERS: usize = 3;

/// What the file is to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    pub text: String,
    /// Whether it is so already.
    pub is_done: bool,
    /// Whether containers go on running while dockerd is restarted.
    pub live_restore: bool,
}

/// A file that nothing can be added to.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("it is not a JSON object")]
    Json(#[from] serde_json::Error),
    #[error("`dns` in it is not a list of addresses")]
    Dns,
}

/// Puts Weft's server first among those that the file names. If it names none, the host's own follow, for containers
/// that are on no network of Weft's. Everything else stays, in its order.
pub fn plan(file: &str, resolvers: &[IpAddr]) -> Result<Plan, Unreadable> {
    let mut settings: Settings = match file.trim() {
        "" => Settings(Vec::new()),
        text => serde_json::from_str(text)?,
    };
    let live_restore = settings.get("live-restore") == Some(&Value::Bool(true));
    let named = match settings.get("dns") {
        None => Vec::new(),
        Some(value) => Vec::<IpAddr>::deserialize(value).map_err(|_| Unreadable::Dns)?,
    };
    let ours = IpAddr::from(DNS_V4);
    let others = if named.is_empty() { resolvers } else { &named };
    let others = others
        .iter()
        .filter(|server| **server != ours)
        .take(MAX_SERVERS - 1);
    let servers: Vec<_> = [ours].iter().chain(others).copied().collect();
    let is_done = named.first() == Some(&ours);
    if !is_done {
        settings.set("dns", json!(servers));
    }
    let mut text = serde_json::to_string_pretty(&settings)?;
    text.push('\n');
    Ok(Plan {
        text,
        is_done,
        live_restore,
    })
}

/// The servers of a `resolv.conf` that a container can reach.
pub fn resolvers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    let servers = lines.filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok());
    servers.filter(|server| !server.is_loopback()).collect()
}

/// A JSON object whose fields keep their order.
struct Settings(Vec<(String, Value)>);

impl Settings {
    fn get(&self, name: &str) -> Option<&Value> {
        let mut found = self.0.iter().rev().filter(|(field, _)| field == name);
        found.next().map(|(_, value)| value)
    }

    fn set(&mut self, name: &str, value: Value) {
        self.0.retain(|(field, _)| field != name);
        self.0.push((name.to_owned(), value));
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Settings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Settings, A::Error> {
                let mut fields: Vec<(String, Value)> = Vec::new();
                while let Some(field) = map.next_entry::<String, Value>()? {
                    if fields.iter().any(|(name, _)| *name == field.0) {
                        return Err(A::Error::custom(format!("`{}` is there twice", field.0)));
                    }
                    fields.push(field);
                }
                Ok(Settings(fields))
            }
        }
        from.deserialize_map(Fields)
    }
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(file: &str) -> Plan {
        plan(
            file,
            &["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
        )
        .unwrap()
    }

    #[test]
    fn a_file_that_is_not_there_gets_our_server_and_the_hosts_own() {
        let plan = planned("");
        assert!(!plan.is_done && !plan.live_restore);
        let expected =
            "{\n  \"dns\": [\n    \"169.254.53.53\",\n    \"192.0.2.53\",\n    \"2001:db8::53\"\n  ]\n}\n";
        assert_eq!(plan.text, expected);
        assert!(planned(&plan.text).is_done);
    }

    #[test]
    fn what_else_is_in_it_stays_in_its_order() {
        let plan = planned(
            r#"{"log-driver": "local", "live-restore": true, "dns": ["10.0.0.53"], "bip": "10.1.0.1/24"}"#,
        );
        assert!(plan.live_restore);
        let fields: Vec<_> = plan
            .text
            .lines()
            .filter(|line| line.starts_with("  \""))
            .collect();
        let expected = [
            "  \"log-driver\": \"local\",",
            "  \"live-restore\": true,",
            "  \"bip\": \"10.1.0.1/24\",",
            "  \"dns\": [",
        ];
        assert_eq!(fields, expected);
        assert!(
            plan.text.contains("\"169.254.53.53\",\n    \"10.0.0.53\"\n"),
            "{}",
            plan.text
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_left_alone() {
        for file in [
            "[]",
            "{",
            r#"{"dns": "10.0.0.1"}"#,
            r#"{"dns": ["no address"]}"#,
            r#"{"a": 1, "a": 2}"#,
        ] {
            assert!(plan(file, &[]).is_err(), "{file}");
        }
    }

    #[test]
    fn containers_cannot_ask_the_hosts_loopback() {
        let text =
            "# by hand\nnameserver 127.0.0.53\n nameserver 192.0.2.1\nnameserver ::1\nsearch example.com\n";
        assert_eq!(resolvers(text), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }
}
