//! Foreign names that point at our endpoints.

use std::net::IpAddr;

use hickory_proto::rr::{
    RData, Record,
    rdata::{SVCB, svcb::SvcParamValue},
};

use crate::Zone;

/// Whether a record of a foreign answer points into an overlay network. A web page could otherwise make
/// a browser on the network talk to an endpoint under the page's own name.
pub(crate) fn is_overlay(zone: &Zone, record: &Record) -> bool {
    let is_ours = |address: IpAddr| zone.covers(address.to_canonical());
    let hints = |svcb: &SVCB| {
        svcb.svc_params.iter().any(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(list) => list.0.iter().any(|address| is_ours(address.0.into())),
            SvcParamValue::Ipv6Hint(list) => list.0.iter().any(|address| is_ours(address.0.into())),
            _ => false,
        })
    };
    match &record.data {
        RData::A(address) => is_ours(address.0.into()),
        RData::AAAA(address) => is_ours(address.0.into()),
        RData::SVCB(svcb) => hints(svcb),
        RData::HTTPS(https) => hints(https),
        _ => false,
    }
}
