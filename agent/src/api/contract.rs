//! Holds the types, `testdata/api.json` (one whole value of each) and `openapi.json` to each other: a field
//! that is added, renamed or retyped in one of them only fails here.

use std::collections::BTreeSet;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{ApiError, ErrorBody, ErrorKind, OPENAPI, ROUTES, types::*};

fn samples() -> Map<String, Value> {
    serde_json::from_str(include_str!("../../testdata/api.json")).unwrap()
}

/// One whole value of a type of the API.
pub(crate) fn sample<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_value(samples()[name].clone()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn openapi() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

fn schema(document: &Value, name: &str) -> Value {
    let schema = &document["components"]["schemas"][name];
    assert!(schema.is_object(), "openapi.json does not describe {name}");
    schema.clone()
}

macro_rules! for_every_type {
    ($check:ident) => {
        for_every_type!($check:
            ClusterInitRequest ClusterInitResponse ClusterJoinRequest ClusterJoinResponse ClusterLeaveRequest
            ClusterLeaveResponse TokenCreateRequest TokenCreateResponse TokenInfo TokenRotateKeyRequest GossipKeyStatus NodeInfo NodeDetail NodeShare
            NodeRemoveQuery NodeRemoveResponse NodeDrainRequest NodeDrainResponse NodeActivateRequest
            NodeActivateResponse NodeRotateKeyRequest NodeRotateKeyResponse EndpointDrainRequest EndpointDrainResponse EndpointActivateRequest
            EndpointActivateResponse BackendName ClientConnections Ejected NetworkCreateRequest Subnet NetworkSummary NetworkDetail
            AddressShare EncryptionStatus KeyChange TunnelStatus NetworkRemoveResponse Endpoint ConnectRequest ConnectResponse EndpointDns
            DisconnectRequest DisconnectResponse HealthCheck HealthUpdate Tuning ServiceCreateRequest
            ServiceUpdateRequest NetworkUpdateRequest ServiceQuery ServiceListQuery ServiceCounts ServicePort PublishedPort ServiceSummary ServiceChanged ServiceDetail Backend
            ServiceRemoveResponse Unconfirmed StatusResponse DoctorRequest DoctorResponse DoctorCheck WhyRequest WhyResponse WhyStep ClusterStatus DatapathStatus NamesStatus ForwardedDomain VersionResponse
            Event EventObject EventsQuery ApiError ErrorBody
        )
    };
    ($check:ident: $($name:ident)*) => {[$((stringify!($name), $check::<$name>(stringify!($name)))),*]};
}

fn round_trip<T: Serialize + DeserializeOwned>(name: &str) {
    let written = serde_json::to_value(sample::<T>(name)).unwrap();
    assert_eq!(written, samples()[name], "{name} is not written as it was read");
}

/// A request has to have exactly the required fields, and may have no others than those described.
fn request_fields<T: DeserializeOwned>(name: &str) {
    let schema = schema(&openapi(), name);
    if schema["additionalProperties"] != Value::Bool(false) {
        return;
    }
    let reads = |value: Map<String, Value>| serde_json::from_value::<T>(Value::Object(value)).is_ok();
    let whole = samples()[name].as_object().unwrap().clone();
    for field in whole.keys() {
        let mut less = whole.clone();
        less.remove(field);
        let required = schema["required"]
            .as_array()
            .is_some_and(|fields| fields.contains(&field.as_str().into()));
        assert_eq!(reads(less), !required, "{name} without {field}");
    }
    let mut more = whole;
    more.insert("misspelt".to_owned(), Value::Null);
    assert!(!reads(more), "{name} takes unknown fields");
}

#[test]
fn every_type_is_written_as_its_sample() {
    let checked: BTreeSet<_> = for_every_type!(round_trip)
        .map(|(name, ())| name.to_owned())
        .into();
    assert_eq!(checked, samples().keys().cloned().collect());
}

#[test]
fn requests_need_the_fields_they_are_described_with_and_refuse_others() {
    for_every_type!(request_fields);
}

#[test]
fn every_sample_is_as_described() {
    let document = openapi();
    for (name, value) in samples() {
        conforms(&document, &schema(&document, &name), &value, &name);
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        let text = OPENAPI
            .matches(&format!("\"#/components/schemas/{name}\""))
            .count();
        assert!(text > 0, "{name} is described and not used");
    }
}

/// The part of JSON Schema that openapi.json uses, and stricter: an object has every property described.
fn conforms(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        return conforms(document, &self::schema(document, name), value, place);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let choice = if value.is_null() { &choices[1] } else { &choices[0] };
        return conforms(document, choice, value, place);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let described = &schema["type"];
    let allowed = described == kind
        || described
            .as_array()
            .is_some_and(|kinds| kinds.contains(&kind.into()));
    assert!(
        allowed || schema["allOf"].is_array(),
        "{place} is {kind} and described as {described}"
    );
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{place}: {value} is not one of {words:?}");
    }
    match value {
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(n, item)| conforms(document, &schema["items"], item, &format!("{place}[{n}]")));
        }
        Value::Object(fields) => {
            let inner = &schema["additionalProperties"];
            let properties = properties(document, schema);
            for (name, field) in fields {
                let place = format!("{place}.{name}");
                let schema = properties.get(name).unwrap_or(inner);
                assert!(schema.is_object(), "{place} is not described");
                conforms(document, schema, field, &place);
            }
            for name in properties.keys() {
                assert!(
                    fields.contains_key(name),
                    "{place}.{name} is described and does not exist"
                );
            }
        }
        _ => {}
    }
}

fn properties(document: &Value, schema: &Value) -> Map<String, Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        return properties(document, &self::schema(document, name));
    }
    let parts = schema["allOf"].as_array().into_iter().flatten();
    let inherited = parts.flat_map(|part| properties(document, part));
    inherited
        .chain(schema["properties"].as_object().cloned().unwrap_or_default())
        .collect()
}

#[test]
fn every_word_of_an_enum_is_described() {
    let document = openapi();
    let words = |name: &str| schema(&document, name)["enum"].clone();
    for (name, all) in [
        ("NodeState", serde_json::to_value(NodeState::ALL)),
        ("Availability", serde_json::to_value(Availability::ALL)),
        ("Scheduler", serde_json::to_value(Scheduler::ALL)),
        ("EndpointMode", serde_json::to_value(EndpointMode::ALL)),
        ("DoctorTopic", serde_json::to_value(DoctorTopic::ALL)),
        ("DoctorVerdict", serde_json::to_value(DoctorVerdict::ALL)),
        ("WhyStage", serde_json::to_value(WhyStage::ALL)),
        ("PublishMode", serde_json::to_value(PublishMode::ALL)),
        ("BackendState", serde_json::to_value(BackendState::ALL)),
        ("EventKind", serde_json::to_value(EventKind::ALL)),
        ("ErrorKind", serde_json::to_value(ErrorKind::ALL)),
        ("Protocol", serde_json::to_value([Protocol::Tcp, Protocol::Udp])),
    ] {
        assert_eq!(words(name), all.unwrap(), "{name}");
    }
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let document = openapi();
    let reference = |name: &str| match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(item) => {
            serde_json::json!({"type": "array", "items": {"$ref": format!("#/components/schemas/{item}")}})
        }
        None if name == "object" => serde_json::json!({"type": "object"}),
        None => serde_json::json!({"$ref": format!("#/components/schemas/{name}")}),
    };
    let mut described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods
                .as_object()
                .unwrap()
                .keys()
                .map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    for route in ROUTES {
        let place = format!("{} {}", route.method, route.path);
        assert!(
            described.remove(&(route.method.to_owned(), route.path.to_owned())),
            "{place} is not described"
        );
        let operation = &document["paths"][route.path][route.method.to_lowercase()];

        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(
            *body,
            route.request.map(reference).unwrap_or_default(),
            "{place}: body"
        );

        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let parameter = |place: &str| parameters.iter().find(|parameter| parameter["in"] == place);
        assert_eq!(
            parameter("path").is_some(),
            route.path.contains("{ref}"),
            "{place}: {{ref}}"
        );
        let query = parameter("query").map(|parameter| parameter["schema"].clone());
        assert_eq!(query, route.query.map(reference), "{place}: query");

        let content = operation["responses"]["200"]["content"].as_object().unwrap();
        let answer = content.values().next().unwrap();
        assert_eq!(answer["schema"], reference(route.response), "{place}: answer");
        assert_eq!(
            operation["responses"]["default"]["$ref"], "#/components/responses/Error",
            "{place}"
        );
    }
    assert!(described.is_empty(), "described and not in ROUTES: {described:?}");
}

#[test]
fn every_error_status_is_described() {
    let error = openapi()["components"]["responses"]["Error"]["description"]
        .as_str()
        .unwrap()
        .to_owned();
    for kind in ErrorKind::ALL {
        let word = serde_json::to_value(kind).unwrap();
        let entry = format!("{} {}", kind.http_status().as_u16(), word.as_str().unwrap());
        assert!(error.contains(&entry), "{entry}");
    }
}
