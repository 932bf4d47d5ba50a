use std::net::{IpAddr, SocketAddr};

use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{RecordType, rdata::SRV},
};
use hickory_server::net::xfer::Protocol;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::server::{plain, reply::Reply, request::read};

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
    let mut reply = Reply::new(request);
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

proptest! {
    /// What is written without the encoder is what the encoder writes.
    #[test]
    fn plain_replies_are_the_encoders(
        name in name(),
        addresses in vec(any::<[u8; 16]>(), 0..80),
        is_v6: bool,
        size in proptest::option::of((0..5000u16, any::<bool>())),
        flags in any::<[bool; 4]>(),
        above in 0..8u8,
    ) {
        let [rd, cd, exists, is_refused] = flags;
        let mut message = Message::query();
        message.add_query(Query::query(name.clone(), RecordType::A));
        message.metadata.recursion_desired = rd;
        message.metadata.checking_disabled = cd;
        message.edns = size.map(|(size, dnssec_ok)| {
            let mut edns = Edns::new();
            edns.set_max_payload(size).set_dnssec_ok(dnssec_ok);
            edns
        });
        let request = read(&message.to_vec().unwrap(), CLIENT, Protocol::Udp).unwrap();
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        metadata.authoritative = !is_refused;
        let mut sections = Sections { metadata, answers: vec![], authorities: vec![], additionals: vec![] };
        if is_refused {
            sections.metadata.response_code = ResponseCode::Refused;
        } else if addresses.is_empty() || !exists {
            if !exists {
                sections.metadata.response_code = ResponseCode::NXDomain;
            }
            let zone = if above == 0 { Name::root() } else { name.trim_to(above.min(name.num_labels()).into()) };
            let soa = hickory_proto::rr::rdata::SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, 5);
            sections.authorities.push(Record::from_rdata(zone, 1, RData::SOA(soa)));
        } else {
            sections.answers = addresses
                .iter()
                .map(|octets| {
                    let data = if is_v6 {
                        RData::AAAA(std::net::Ipv6Addr::from(*octets).into())
                    } else {
                        RData::A(std::net::Ipv4Addr::from(*octets.first_chunk().unwrap()).into())
                    };
                    Record::from_rdata(name.clone(), 1, data)
                })
                .collect();
            sections.fit(&request);
        }
        let mut plain = Vec::new();
        if plain::write(&request, &sections, &mut plain).is_none() {
            // Only a large SOA record without EDNS.
            prop_assert!(!sections.authorities.is_empty());
            return Ok(());
        }
        prop_assert!(plain.len() <= usize::from(limit(&request)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reply = Reply::new(&request);
        let edns = edns(&request);
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            sections.metadata,
            &sections.answers,
            &sections.authorities,
            [],
            &sections.additionals,
        );
        let mut to = reply.clone();
        runtime.block_on(to.send_response(response)).unwrap();
        let [plain, theirs] = [plain, reply.take()].map(|bytes| Message::from_vec(&bytes).unwrap());
        if theirs.metadata.truncation && !plain.metadata.truncation {
            // The encoder's is longer, and had to be cut where ours is whole.
            prop_assert!(!plain.authorities.is_empty());
            return Ok(());
        }
        let is_spelt_alike = |record: &Record| {
            record.name.is_root() || record.name.eq_case(&name.trim_to(record.name.num_labels().into()))
        };
        prop_assert!(plain.answers.iter().chain(&plain.authorities).all(is_spelt_alike));
        prop_assert_eq!(plain, theirs);
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
