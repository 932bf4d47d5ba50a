//! What the nodes say there is.

use std::collections::BTreeMap;

use serde_json::Value;

use super::bed::{Bed, Node, items, soon, text};

/// All that must be the same on every node: no field that only the endpoint's own node fills in.
pub fn everything(node: &Node) -> Value {
    let networks = node.json("network ls");
    let details = items(&networks).map(|network| {
        let mut detail = node.json(&format!("network inspect {}", text(&network["id"])));
        for endpoint in detail["endpoints"].as_array_mut().unwrap() {
            let endpoint = endpoint.as_object_mut().unwrap();
            endpoint.remove("target");
            endpoint.remove("ifname");
        }
        detail
    });
    Value::from_iter([networks.clone(), node.json("service ls"), details.collect()])
}

/// Every number in use, with who has it; panics if anything has two users.
pub fn numbers(node: &Node) -> BTreeMap<String, String> {
    let mut users = BTreeMap::new();
    let mut note = |number: String, user: &str| {
        if let Some(other) = users.insert(number.clone(), user.to_owned()) {
            panic!("{number} belongs to {other} and to {user}");
        }
    };
    for network in items(&node.json("network ls")) {
        let id = text(&network["id"]);
        note(format!("VNI {}", network["vni"]), id);
        for subnet in items(&network["subnets"]) {
            note(format!("subnet {}", subnet["subnet"]), id);
        }
        let detail = node.json(&format!("network inspect {id}"));
        for endpoint in items(&detail["endpoints"]) {
            note(format!("MAC {}", endpoint["mac"]), text(&endpoint["id"]));
            for address in items(&endpoint["addresses"]) {
                note(format!("{id} {address}"), text(&endpoint["id"]));
            }
        }
        for service in items(&detail["services"]) {
            for vip in items(&service["vips"]) {
                note(format!("{id} {vip}"), text(&service["id"]));
            }
        }
    }
    users
}

/// Waits until all nodes say the same, and returns it.
pub fn agreed(bed: &Bed) -> Value {
    soon("the same everywhere", || {
        let mut all: Vec<Value> = bed.nodes().map(everything).collect();
        all.dedup();
        if all.len() == 1 {
            Ok(all.remove(0))
        } else {
            Err(Value::from(all))
        }
    })
}
