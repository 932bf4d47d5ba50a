use std::str::FromStr;

use hickory_proto::rr::{
    RecordType,
    rdata::{PTR, SOA},
};
use proptest::{collection::vec, prelude::*};

use super::*;

fn question(name: &Name, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.add_query(Query::query(name.clone(), RecordType::A));
    if let Some(size) = edns {
        message.edns = Some(Edns::new());
        message.edns.as_mut().unwrap().set_max_payload(size);
    }
    message.to_vec().unwrap()
}

fn name() -> impl Strategy<Value = Name> {
    vec("[a-zA-Z0-9_-]{1,20}", 1..8)
        .prop_map(|labels| Name::from_labels(labels.iter().map(String::as_bytes)).unwrap())
}

fn data() -> impl Strategy<Value = RData> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| RData::A(std::net::Ipv4Addr::from(octets).into())),
        any::<[u8; 16]>().prop_map(|octets| RData::AAAA(std::net::Ipv6Addr::from(octets).into())),
        name().prop_map(|name| RData::PTR(PTR(name))),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..200), flip in any::<(usize, u8)>(), name in name()) {
        let mut almost = question(&name, Some(1232));
        let place = flip.0 % almost.len();
        almost[place] ^= flip.1;
        for bytes in [bytes, almost] {
            let mut reply = Vec::new();
            match Request::parse(&bytes) {
                Ok(request) => {
                    write_answer(&mut reply, &request, &Answer::Refused, 512);
                    prop_assert!(Message::from_vec(&reply).is_ok());
                }
                Err(Malformed::Reply(code)) => {
                    write_malformed(&mut reply, &bytes, code);
                    prop_assert!(Message::from_vec(&reply).is_ok());
                }
                Err(Malformed::Silent) => {}
            }
        }
    }

    /// What we write, hickory reads, and it is what was meant, up to where it was cut.
    #[test]
    fn a_reply_says_what_was_meant(
        name in name(),
        data in vec(data(), 1..100),
        size in proptest::option::of(0..5000u16),
        above in 0..8usize,
    ) {
        let bytes = question(&name, size);
        let request = Request::parse(&bytes).unwrap();
        let limit = request.udp_limit();
        let records: Vec<_> = data.into_iter().map(|data| Record::from_rdata(name.clone(), 1, data)).collect();
        let mut reply = Vec::new();
        write_answer(&mut reply, &request, &Answer::Records(records.clone()), limit);
        prop_assert!(reply.len() <= limit);
        let message = Message::from_vec(&reply).unwrap();
        prop_assert_eq!(message.metadata.id, 0x1234);
        prop_assert_eq!(message.edns.is_some(), size.is_some());
        prop_assert_eq!(message.metadata.truncation, message.answers.len() < records.len());
        prop_assert_eq!(&message.answers[..], &records[..message.answers.len()]);
        prop_assert!(message.answers.iter().all(|record| record.name.eq_case(&name)));
        prop_assert!(message.queries[0].name().eq_case(&name));

        let zone = name.trim_to(above.min(name.num_labels().into()));
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 1);
        let soa = Record::from_rdata(if above == 0 { Name::root() } else { zone }, 1, RData::SOA(soa));
        let mut reply = Vec::new();
        write_answer(&mut reply, &request, &Answer::NxDomain { soa: Box::new(soa.clone()) }, 1232);
        let message = Message::from_vec(&reply).unwrap();
        prop_assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
        prop_assert_eq!(message.authorities, vec![soa]);
    }
}

#[test]
fn what_is_no_question_is_told_so_or_ignored() {
    let name = Name::from_str("one.").unwrap();
    let good = question(&name, Some(1232));
    let with = |place: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[place] = byte;
        Request::parse(&bytes).err()
    };
    assert_eq!(Request::parse(&good).err(), None);
    assert_eq!(Request::parse(&good[..11]).err(), Some(Malformed::Silent));
    assert_eq!(with(2, 0x80), Some(Malformed::Silent), "a response");
    assert_eq!(
        with(2, 0x20),
        Some(Malformed::Reply(ResponseCode::NotImp)),
        "NOTIFY"
    );
    for (place, byte, what) in [
        (5, 0, "no question"),
        (5, 2, "two questions"),
        (11, 2, "a record too few"),
    ] {
        assert_eq!(
            with(place, byte),
            Some(Malformed::Reply(ResponseCode::FormErr)),
            "{what}"
        );
    }
    let mut pointing = good.clone();
    pointing.splice(12..17, [0xc0, 0x0c]);
    assert_eq!(
        Request::parse(&pointing).err(),
        Some(Malformed::Reply(ResponseCode::FormErr)),
        "a name in itself"
    );
    let mut two_opt = good.clone();
    two_opt.extend_from_within(good.len() - 11..);
    two_opt[11] = 2;
    assert_eq!(
        Request::parse(&two_opt).err(),
        Some(Malformed::Reply(ResponseCode::FormErr)),
        "two OPT"
    );
}
