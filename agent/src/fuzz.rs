//! What the decoders of this crate are given by a fuzzer, see `fuzz/`.

use serde::de::DeserializeOwned;
use weft_gossip::Key;
use weft_types::{NetworkId, NodeId};

use crate::{
    api::{Timestamp, types::*},
    control::{catalogue::Catalogue, token::Token},
    docker::protocol as docker,
    lab::file,
};

/// Records of one author, whatever they say: kind, scope, lengths of name and value, name, value; and so on.
pub fn records(mut data: &[u8]) {
    let mut catalogue = Catalogue::default();
    while let Some(([kind, scope, name, value], rest)) = data.split_first_chunk() {
        let (name, rest) = rest.split_at(usize::from(*name).min(rest.len()));
        let (value, rest) = rest.split_at(usize::from(*value).min(rest.len()));
        data = rest;
        let key = Key {
            kind: *kind,
            scope: NetworkId([*scope; 16]),
            name: name.to_vec(),
        };
        catalogue.apply(NodeId([9; 32]), &key, (!value.is_empty()).then_some(value));
    }
}

/// The body of a request of dockerd's; the first byte says which.
pub fn plugin(data: &[u8]) {
    one_of(
        data,
        &[
            reads::<docker::RequestPool>,
            reads::<docker::ReleasePool>,
            reads::<docker::RequestAddress>,
            reads::<docker::ReleaseAddress>,
            reads::<docker::CreateNetwork>,
            reads::<docker::Network>,
            reads::<docker::CreateEndpoint>,
            reads::<docker::Endpoint>,
            reads::<docker::Join>,
        ],
    );
}

/// The body of a request to the agent; the first byte says which.
pub fn api(data: &[u8]) {
    one_of(
        data,
        &[
            reads::<ClusterInitRequest>,
            reads::<ClusterJoinRequest>,
            reads::<ClusterLeaveRequest>,
            reads::<TokenCreateRequest>,
            reads::<NodeDrainRequest>,
            reads::<EndpointDrainRequest>,
            reads::<EndpointActivateRequest>,
            reads::<NetworkCreateRequest>,
            reads::<ConnectRequest>,
            reads::<DisconnectRequest>,
            reads::<ServiceCreateRequest>,
            reads::<ServiceUpdateRequest>,
            reads::<NetworkUpdateRequest>,
            reads::<HealthCheck>,
            reads::<DoctorRequest>,
            reads::<WhyRequest>,
        ],
    );
}

/// What people write: tokens, ports, checks, times.
pub fn words(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    round_trip::<Token>(text);
    round_trip::<ServicePort>(text);
    round_trip::<HealthTest>(text);
    round_trip::<PublishedPort>(text);
    let _ = text.parse::<Timestamp>();
    let _ = PublishedPort::read_range(text);
}

/// A lab file, in Compose's format.
pub fn lab_file(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        let _ = file::parse("lab.yaml", text);
    }
}

fn one_of(data: &[u8], all: &[fn(&[u8])]) {
    if let Some((which, body)) = data.split_first()
        && let Some(read) = all.get(usize::from(*which))
    {
        read(body);
    }
}

fn reads<T: DeserializeOwned>(body: &[u8]) {
    let _ = serde_json::from_slice::<T>(body);
}

/// What was read and is written is read as the same.
fn round_trip<T: std::str::FromStr + ToString + PartialEq>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        let again = read.to_string().parse::<T>();
        assert!(again.is_ok_and(|again| again == read), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..300), text in "\\PC{0,60}") {
            records(&bytes);
            plugin(&bytes);
            api(&bytes);
            words(text.as_bytes());
            lab_file(text.as_bytes());
        }
    }
}
