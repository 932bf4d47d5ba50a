//! What a decoder of this crate is given by a fuzzer, see `fuzz/`.

use hickory_proto::op::{Message, Query};
use hickory_server::net::xfer::Protocol;
use rand::{SeedableRng, rngs::SmallRng};
use weft_types::{EndpointId, NetworkId};

use crate::{
    Answer, Asker, Endpoint, NetworkZone, Zone, answer,
    server::request::{limit, read},
};

const NETWORK: NetworkId = NetworkId([1; 16]);

fn zone() -> Zone {
    let mut network = NetworkZone::new("app", false, vec!["10.32.0.0/24".parse().expect("a subnet")]);
    let web = Endpoint {
        names: vec!["web".to_owned()],
        addresses: vec!["10.32.0.2".parse().expect("an address")],
    };
    network.set_endpoint(EndpointId([2; 16]), web);
    let mut zone = Zone::new("weft.internal").expect("a domain");
    zone.set_network(NETWORK, network);
    zone
}

/// A message that somebody sent to the server, over UDP.
pub fn message(data: &[u8]) {
    let request = match read(data, ([127, 0, 0, 1], 1).into(), Protocol::Udp) {
        Ok(request) => request,
        Err(malformed) => {
            if let Some(reply) = malformed.reply(data) {
                assert!(Message::from_vec(&reply).is_ok(), "a reply is a message");
            }
            return;
        }
    };
    assert!(limit(&request) >= 512);
    let question = request.queries.queries().first().expect("it was read");
    let mut query = Query::query(question.original().name().clone(), question.query_type());
    query.set_query_class(question.query_class());
    let answered = answer(
        &query,
        &Asker::on(vec![NETWORK]),
        &zone(),
        &mut SmallRng::seed_from_u64(1),
    );
    if let Answer::Records(records) = answered {
        assert!(!records.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..200), flip in any::<(usize, u8)>()) {
            let mut asked = Message::query();
            asked.add_query(Query::query("web.app.".parse().unwrap(), hickory_proto::rr::RecordType::A));
            let mut asked = asked.to_vec().unwrap();
            let place = flip.0 % asked.len();
            asked[place] ^= flip.1;
            message(&asked);
            message(&bytes);
        }
    }
}
