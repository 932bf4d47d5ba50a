//! Messages that came in, up to hickory's [`Request`].

use std::net::SocketAddr;

use hickory_proto::{
    op::{Header, MessageType, OpCode, ResponseCode},
    rr::Name,
    serialize::binary::{BinDecodable, BinDecoder},
};
use hickory_server::{net::xfer::Protocol, server::Request};

/// No question is as long as this.
pub(crate) const MAX_REQUEST: usize = 4_096;
/// Larger datagrams are cut up on their way, and pieces get lost (DNS Flag Day 2020).
pub(crate) const MAX_UDP: u16 = 1_232;
pub(crate) const HEADER: usize = 12;

/// Why a message is not a question that can be looked up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Not even a header, or a response: replying could start a loop.
    Silent,
    /// The sender is told what is wrong, in nothing but a header.
    Reply(ResponseCode),
}

impl Malformed {
    /// The reply, if there is to be one.
    pub(crate) fn reply(&self, message: &[u8]) -> Option<Vec<u8>> {
        let Self::Reply(code) = self else { return None };
        // QR, the operation, RD.
        let mut reply = vec![message[0], message[1], 0x80 | message[2] & 0x79, code.low()];
        reply.resize(HEADER, 0);
        Some(reply)
    }
}

/// Reads a message. What is refused here would otherwise cost memory for as many questions as the
/// header claims, or have a reply repeat the pointers of a question that is not what it seems.
pub(crate) fn read(message: &[u8], client: SocketAddr, protocol: Protocol) -> Result<Request, Malformed> {
    let header = Header::read(&mut BinDecoder::new(message)).map_err(|_| Malformed::Silent)?;
    if header.metadata.message_type == MessageType::Response {
        return Err(Malformed::Silent);
    }
    if header.metadata.op_code != OpCode::Query {
        return Err(Malformed::Reply(ResponseCode::NotImp));
    }
    let format_error = || Malformed::Reply(ResponseCode::FormErr);
    if header.counts.queries != 1 {
        return Err(format_error());
    }
    let request = Request::from_bytes(message.to_vec(), client, protocol).map_err(|_| format_error())?;
    let question = request.queries.queries().first().ok_or_else(format_error)?;
    // A question has nothing before it that a name could point to.
    if request.queries.as_bytes().len() != wire_len(question.original().name()) + 4 {
        return Err(format_error());
    }
    Ok(request)
}

/// How many bytes a reply may have.
pub(crate) fn limit(request: &Request) -> u16 {
    match request.protocol() {
        // 512 without EDNS, and never less.
        Protocol::Udp => request.max_payload().min(MAX_UDP),
        _ => u16::MAX,
    }
}

/// The bytes of a name that is written in full.
pub(crate) fn wire_len(name: &Name) -> usize {
    name.iter().map(|label| label.len() + 1).sum::<usize>() + 1
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Edns, Message, Query},
        rr::RecordType,
    };
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn question() -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("one.").unwrap(), RecordType::A));
        message.edns = Some(Edns::new());
        message.to_vec().unwrap()
    }

    fn parse(message: &[u8]) -> Option<Malformed> {
        read(message, ([127, 0, 0, 1], 1).into(), Protocol::Udp).err()
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..200), flip in any::<(usize, u8)>()) {
            let mut almost = question();
            let place = flip.0 % almost.len();
            almost[place] ^= flip.1;
            for bytes in [bytes, almost] {
                if let Some(reply) = parse(&bytes).and_then(|malformed| malformed.reply(&bytes)) {
                    prop_assert!(Message::from_vec(&reply).is_ok());
                }
            }
        }
    }

    #[test]
    fn what_is_no_question_is_told_so_or_ignored() {
        let good = question();
        let with = |place: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[place] = byte;
            parse(&bytes)
        };
        let told = |code| Some(Malformed::Reply(code));
        assert_eq!(parse(&good), None);
        assert_eq!(parse(&good[..11]), Some(Malformed::Silent));
        assert_eq!(with(2, 0x80), Some(Malformed::Silent), "a response");
        assert_eq!(with(2, 0x20), told(ResponseCode::NotImp), "NOTIFY");
        for (place, byte, what) in [
            (5, 0, "no question"),
            (5, 2, "two questions"),
            (4, 255, "65,281 questions"),
            (11, 2, "a record too few"),
        ] {
            assert_eq!(with(place, byte), told(ResponseCode::FormErr), "{what}");
        }
        let mut pointing = good.clone();
        pointing.splice(12..17, [0xc0, 0x0c]);
        assert_eq!(parse(&pointing), told(ResponseCode::FormErr), "a name in itself");
        let mut two_opt = good.clone();
        two_opt.extend_from_within(good.len() - 11..);
        two_opt[11] = 2;
        assert_eq!(parse(&two_opt), told(ResponseCode::FormErr), "two OPT");
    }
}
