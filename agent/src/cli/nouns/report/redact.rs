//! What is taken out of a report.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

const REMOVED: &str = "removed";

/// Takes out the same things everywhere.
#[derive(Default)]
pub(super) struct Redaction {
    /// The number that each public address has in its place.
    public: BTreeMap<IpAddr, usize>,
}

impl Redaction {
    pub(super) fn value(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(fields) => {
                for (name, field) in fields.iter_mut() {
                    match field {
                        Value::Object(labels) if name == "labels" => {
                            labels.values_mut().for_each(|label| *label = REMOVED.into());
                        }
                        Value::String(test) if name == "test" && test.starts_with("cmd=") => {
                            *test = format!("cmd={REMOVED}");
                        }
                        field => self.value(field),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// A sentence, with numbers for its public addresses.
    pub(super) fn text(&mut self, text: &str) -> String {
        let mut redacted = String::with_capacity(text.len());
        let mut rest = text;
        while !rest.is_empty() {
            // What stands between letters that no address has is none: `weft::dns`.
            let of_address = |c: char| c.is_alphanumeric() || ['.', ':', '_'].contains(&c);
            let end = rest.find(|c| !of_address(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            redacted += &self.word(word);
            let next = after.find(of_address).unwrap_or(after.len());
            redacted += &after[..next];
            rest = &after[next..];
        }
        redacted
    }

    /// Letters that could be an address, with a port or the end of a sentence behind it perhaps.
    fn word(&mut self, word: &str) -> String {
        let bare = word.trim_end_matches(['.', ':']);
        let address = bare
            .parse()
            .or_else(|_| bare.parse().map(|with_port: SocketAddr| with_port.ip()));
        let Some(address) = address.ok().filter(|address| is_public(*address)) else {
            return word.to_owned();
        };
        let next = self.public.len() + 1;
        let number = *self.public.entry(address).or_insert(next);
        word.replacen(&address_in(bare), &format!("public-{number}"), 1)
    }
}

/// The part of a word that is its address.
fn address_in(word: &str) -> String {
    let port = word.parse::<SocketAddr>().ok().map(|_| word.rfind(':'));
    word[..port.flatten().unwrap_or(word.len())].to_owned()
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            !(address.is_private()
                || is_shared
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast())
        }
        IpAddr::V6(address) => {
            !(address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_commands_and_public_addresses_go_and_the_rest_stays() {
        let mut redaction = Redaction::default();
        let mut value = json!({
            "name": "web",
            "labels": {"owner": "somebody"},
            "health": {"test": "cmd=curl -u me:password localhost"},
            "other": {"test": "http=/ready"},
            "underlay_address": "203.0.113.9",
            "addresses": ["10.0.0.1/24", "2001:db8::1", "fd00::1", "100.64.0.1"],
            "reason": "h2 at 203.0.113.9:7946 and [2001:db8::1]:7946 is silent, 10.0.0.7 is not: ask 198.51.100.1.",
        });
        redaction.value(&mut value);
        let wanted = json!({
            "name": "web",
            "labels": {"owner": "removed"},
            "health": {"test": "cmd=removed"},
            "other": {"test": "http=/ready"},
            "underlay_address": "public-2",
            "addresses": ["10.0.0.1/24", "public-1", "fd00::1", "100.64.0.1"],
            "reason": "h2 at public-2:7946 and [public-1]:7946 is silent, 10.0.0.7 is not: ask public-3.",
        });
        // Numbers come in the order of the fields' names.
        assert_eq!(value, wanted);
        // The same address has the same number from then on; what only looks like one stays.
        let text = redaction.text("198.51.100.1 at 12:30:05, id dead:beef face 1.2.3, weft::dad");
        assert_eq!(text, "public-3 at 12:30:05, id dead:beef face 1.2.3, weft::dad");
    }
}
