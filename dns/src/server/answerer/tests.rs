use std::net::{IpAddr, SocketAddr};

use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{RecordType, rdata::SRV},
};
use hickory_server::net::xfer::Protocol;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::server::{reply::Reply, request::read};

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

fn request(name: &Name, edns: Option<u16>, protocol: Protocol) -> Request {
    let mut message = Message::query();
    message.add_query(Query::query(name.clone(), RecordType::A));
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    let mut bytes = message.to_vec().unwrap();
    bytes[..2].copy_from_slice(&[0x12, 0x34]);
    read(&bytes, CLIENT, protocol).unwrap()
}

fn name() -> impl Strategy<Value = Name> {
    vec("[a-zA-Z0-9_-]{1,20}", 1..8)
        .prop_map(|labels| Name::from_labels(labels.iter().map(String::as_bytes)).unwrap())
}

fn data() -> impl Strategy<Value = RData> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| RData::A(std::net::Ipv4Addr::from(octets).into())),
        any::<[u8; 16]>().prop_map(|octets| RData::AAAA(std::net::Ipv6Addr::from(octets).into())),
        name().prop_map(|name| RData::SRV(SRV::new(0, 0, 80, name))),
    ]
}

/// What is sent when these are the sections, with or without a look at what fits.
async fn sent(request: &Request, records: &[Record], addresses: &[Record], is_fitted: bool) -> Vec<u8> {
    let mut sections = Sections {
        metadata: Metadata::response_from_request(&request.metadata),
        answers: records.to_vec(),
        authorities: Vec::new(),
        additionals: addresses.to_vec(),
    };
    if is_fitted {
        sections.fit(request);
    }
    let edns = edns(request);
    let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
        sections.metadata,
        &sections.answers,
        &sections.authorities,
        [],
        &sections.additionals,
    );
    let mut reply = Reply::stream(request);
    reply.send_response(response).await.unwrap();
    reply.take()
}

proptest! {
    /// Whatever has to be left out, OPT stays, and what is there is what was meant.
    #[test]
    fn a_reply_says_what_was_meant(
        name in name(),
        data in vec(data(), 1..300),
        size in proptest::option::of(0..5000u16),
        is_udp: bool,
    ) {
        let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
        let request = request(&name, size, protocol);
        let of = |data: &RData| Record::from_rdata(name.clone(), 1, data.clone());
        let records: Vec<_> = data.iter().map(of).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for is_fitted in [true, false] {
            let reply = runtime.block_on(sent(&request, &records, &records[..1], is_fitted));
            prop_assert!(reply.len() <= usize::from(limit(&request)));
            let message = Message::from_vec(&reply).unwrap();
            prop_assert_eq!(message.metadata.id, 0x1234);
            prop_assert_eq!(message.edns.is_some(), size.is_some());
            prop_assert!(message.queries[0].name().eq_case(&name));
            prop_assert!(message.answers.iter().all(|record| record.name.eq_case(&name)));
            prop_assert_eq!(&message.answers[..], &records[..message.answers.len()]);
            let is_whole = message.answers.len() == records.len();
            prop_assert!(message.metadata.truncation != is_whole || (is_whole && !is_fitted));
            prop_assert!(is_whole || message.additionals.is_empty());
        }
    }
}

#[test]
fn names_are_spelt_like_the_question() {
    for (name, question, expected) in [
        ("WWW.eXample.com.", "www.example.COM.", "www.example.COM."),
        ("Web.eXample.com.", "www.example.COM.", "Web.example.COM."),
        ("eXample.com.", "www.example.COM.", "example.COM."),
        ("a.WWW.eXample.com.", "www.example.COM.", "a.www.example.COM."),
        ("Other.NET.", "www.example.COM.", "Other.NET."),
        (".", "www.example.COM.", "."),
    ] {
        let mut respelt = Name::from_ascii(name).unwrap();
        respell(&mut respelt, &Name::from_ascii(question).unwrap());
        assert_eq!(respelt.to_string(), expected, "{name}");
    }
}

/// Hickory's own encoder at work: the faults that [`Sections::fit`] and [`Reply`] are there for.
#[test]
fn what_the_library_does_with_a_full_message() {
    let name = Name::from_ascii("tasks.web.").unwrap();
    let address = |n: u32| RData::A(std::net::Ipv4Addr::from_bits(n).into());
    let records: Vec<_> = (0..200)
        .map(|n| Record::from_rdata(name.clone(), 1, address(n)))
        .collect();
    let request = request(&name, Some(1232), Protocol::Udp);
    let edns = edns(&request);
    let encode = |size| {
        let metadata = Metadata::response_from_request(&request.metadata);
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            &records,
            [],
            [],
            [],
        );
        let mut bytes = Vec::new();
        let mut encoder = hickory_proto::serialize::binary::BinEncoder::new(&mut bytes);
        encoder.set_max_size(size);
        response.destructive_emit(&mut encoder).unwrap();
        bytes
    };
    let loses_opt = |size| {
        let full = Message::from_vec(&encode(size)).unwrap();
        full.metadata.truncation && full.edns.is_none()
    };
    assert!((1200..1232).any(loses_opt), "OPT is kept: Reply::cut can go");
    // Header, question, OPT; 119 owners of two bytes and 81 of eleven.
    let whole = 12 + 15 + 11 + 200 * 14 + 119 * 2 + 81 * 11;
    assert_eq!(
        encode(u16::MAX).len(),
        whole,
        "names are compressed to the end: Sections::fit can be simpler"
    );
}
