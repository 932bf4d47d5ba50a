//! `testdata/dockerd-20.10.jsonl` is what a dockerd 20.10 said to a driver, and what that one answered, in 37 sessions
//! with the `docker` command: networks of all kinds, containers that start, stop, crash and fail, restarts of
//! dockerd and of the driver, Swarm. Here dockerd's half is said to Weft's driver.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::server::MAX_BODY,
    rig::{Answer, Rig},
};

const RECORDED: &str = include_str!("../testdata/dockerd-20.10.jsonl");
/// Options that the recorded driver had and Weft's has not.
const STRANGE: [&str; 2] = ["foo", "variant"];

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Session { session: String },
    Call(Call),
}

#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    pub call: String,
    pub body: Value,
    pub answer: Value,
}

pub fn recorded() -> impl Iterator<Item = Line> {
    RECORDED.lines().map(|line| serde_json::from_str(line).unwrap())
}

/// Says to Weft what was said to another driver: what that one chose is what Weft chose.
#[derive(Default)]
pub struct Translation(BTreeMap<String, String>);

impl Translation {
    pub fn body(&self, body: &Value) -> Value {
        match body {
            Value::String(text) => Value::String(self.0.get(text).unwrap_or(text).clone()),
            Value::Array(items) => items.iter().map(|item| self.body(item)).collect(),
            Value::Object(fields) => fields
                .iter()
                .filter(|(name, _)| !STRANGE.contains(&name.as_str()))
                .map(|(name, value)| (name.clone(), self.body(value)))
                .collect(),
            other => other.clone(),
        }
    }

    /// Learns what the two drivers chose for the same request.
    pub fn learn(&mut self, recorded: &Value, ours: &Value) {
        for field in [
            "PoolID",
            "Pool",
            "Address",
            "LocalDefaultAddressSpace",
            "GlobalDefaultAddressSpace",
        ] {
            let (Some(Value::String(recorded)), Some(Value::String(ours))) =
                (recorded.get(field), ours.get(field))
            else {
                continue;
            };
            // Addresses are told with their prefix and without.
            if field == "Address"
                && let (Some((recorded, _)), Some((ours, _))) =
                    (recorded.split_once('/'), ours.split_once('/'))
            {
                self.0.insert(recorded.to_owned(), ours.to_owned());
            }
            self.0.insert(recorded.clone(), ours.clone());
        }
    }
}

/// Fails unless dockerd finds in an answer what it needs.
fn is_complete(call: &str, Answer { status, body }: &Answer) {
    assert_eq!(*status, 200, "{call}: {body}");
    if body.get("Err").is_some() {
        return;
    }
    let needs: &[&str] = match call {
        "Plugin.Activate" => &["/Implements/0", "/Implements/1"],
        "NetworkDriver.GetCapabilities" => &["/Scope", "/ConnectivityScope"],
        "IpamDriver.GetDefaultAddressSpaces" => &["/LocalDefaultAddressSpace", "/GlobalDefaultAddressSpace"],
        "IpamDriver.RequestPool" => &["/PoolID", "/Pool", "/Data"],
        "IpamDriver.RequestAddress" => &["/Address", "/Data"],
        "NetworkDriver.CreateEndpoint" => &["/Interface"],
        "NetworkDriver.EndpointOperInfo" => &["/Value"],
        "NetworkDriver.Join" => &[
            "/InterfaceName/SrcName",
            "/InterfaceName/DstPrefix",
            "/StaticRoutes/0/Destination",
        ],
        _ => &[],
    };
    for field in needs {
        assert!(
            body.pointer(field).is_some_and(|value| !value.is_null()),
            "{call}: no {field} in {body}"
        );
    }
    // dockerd refuses an address in this answer, and a MAC address too where it gave one.
    if let Some(interface) = body.get("Interface").and_then(Value::as_object) {
        assert!(interface.keys().all(|field| field == "MacAddress"), "{body}");
    }
}

/// MAC addresses are random.
fn without_luck(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(mac) = body.pointer_mut("/Interface/MacAddress") {
        *mac = "random".into();
    }
    body
}

/// Says everything that was recorded. `between` is called with each request before it is sent.
fn replay(rig: &mut Rig, mut between: impl FnMut(&mut Rig, &str, &Value)) -> String {
    let mut said = String::new();
    let mut translation = Translation::default();
    for line in recorded() {
        let Call { call, body, answer } = match line {
            Line::Call(call) => call,
            Line::Session { session } => {
                writeln!(said, "\n## {session}\n").unwrap();
                continue;
            }
        };
        let body = translation.body(&body);
        between(rig, &call, &body);
        let ours = rig.ask_json(&call, &body);
        is_complete(&call, &ours);
        translation.learn(&answer, &ours.body);
        match ours.error() {
            Some(error) => writeln!(said, "{call} refused: {error}").unwrap(),
            None => writeln!(said, "{call} {}", without_luck(&ours.body)).unwrap(),
        }
    }
    said
}

#[test]
fn what_a_dockerd_was_recorded_to_say_is_answered_so() {
    let mut rig = Rig::new();
    insta::assert_snapshot!("dockerd-20.10", replay(&mut rig, |_, _, _| {}));
    // A dockerd that was killed forgot an endpoint without a word; the watcher finds those. Its network outlives it.
    rig.node.forget();
    assert_eq!(rig.node.held(), [1, 1, 0, 0]);
}

/// dockerd says again what it got no answer to, and empties the body if it had been sent.
#[test]
fn a_request_that_is_sent_again_does_no_harm() {
    let mut rig = Rig::new();
    let once = replay(&mut rig, |_, _, _| {});
    let held = rig.node.held();
    let mut rig = Rig::new();
    let twice = replay(&mut rig, |rig, call, body| {
        let chooses = call == "IpamDriver.RequestAddress" && body["Address"] == ""
            || call == "IpamDriver.RequestPool" && body["Pool"] == "";
        if !chooses {
            rig.ask_json(call, body);
        }
        rig.ask(call, "");
    });
    assert_eq!(once, twice);
    assert_eq!(held, rig.node.held());
}

/// Every request that names something needs its body.
#[test]
fn an_empty_body_is_refused() {
    let mut rig = Rig::new();
    let mut refused = 0;
    let mut seen = std::collections::BTreeSet::new();
    for line in recorded() {
        let Line::Call(Call { call, body, .. }) = line else {
            continue;
        };
        if body.is_null() || !seen.insert(call.clone()) {
            continue;
        }
        let answer = rig.ask(&call, "");
        let swarms = ["DiscoverNew", "AllocateNetwork", "FreeNetwork"]
            .iter()
            .any(|name| call.ends_with(name));
        assert_eq!(
            answer.status,
            if swarms { 200 } else { 400 },
            "{call}: {answer:?}"
        );
        refused += usize::from(answer.status == 400);
    }
    assert_eq!(refused, 13);
    assert_eq!(rig.node.held(), [0; 4]);
}

/// dockerd may say as much as there is room for, one byte less than too much.
#[test]
fn a_body_is_read_up_to_its_bound() {
    let mut rig = Rig::new();
    let mut pool = |length: usize| {
        let body =
            json!({"AddressSpace": "weft", "Pool": "10.9.0.0/24", "SubPool": "", "Options": {}, "V6": false});
        let body = body.to_string();
        let padding = " ".repeat(length - body.len());
        rig.ask("IpamDriver.RequestPool", body + &padding)
    };
    for (length, status) in [(MAX_BODY + 1, 413), (10 * MAX_BODY, 413), (MAX_BODY, 200)] {
        let answer = pool(length);
        assert_eq!(answer.status, status, "{length} bytes: {answer:?}");
    }
}
