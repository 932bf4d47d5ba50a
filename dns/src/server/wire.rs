//! Messages as bytes (RFC 1035, section 4; EDNS: RFC 6891).
//!
//! Reading is hickory's. Writing is not: its encoder loses the OPT record when a message is truncated,
//! which RFC 6891, section 7, forbids, and writes names in full from the 121st record on, which is what
//! `tasks.SERVICE` of a large service runs into. All our records are of the name asked for or a parent
//! of it, so owners are pointers into the question and nothing has to be searched.

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record},
    serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder, NameEncoding},
};

use crate::Answer;

/// Larger datagrams are cut up on their way, and pieces get lost (DNS Flag Day 2020).
pub(crate) const MAX_UDP: usize = 1_232;
const MAX_UDP_WITHOUT_EDNS: usize = 512;
const HEADER: usize = 12;
const OPT: usize = 11;

/// A question as it came in.
pub(crate) struct Request<'b> {
    bytes: &'b [u8],
    pub(crate) query: Query,
    question: usize,
    edns: Option<Edns>,
}

/// Why a message is not a question that can be looked up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Not even a header, or a response: replying could start a loop.
    Silent,
    /// The sender is told what is wrong, in nothing but a header.
    Reply(ResponseCode),
}

impl<'b> Request<'b> {
    pub(crate) fn parse(bytes: &'b [u8]) -> Result<Self, Malformed> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(|_| Malformed::Silent)?;
        if header.metadata.message_type == MessageType::Response {
            return Err(Malformed::Silent);
        }
        if header.metadata.op_code != OpCode::Query {
            return Err(Malformed::Reply(ResponseCode::NotImp));
        }
        let format_error = |_| Malformed::Reply(ResponseCode::FormErr);
        if header.counts.queries != 1 {
            return Err(Malformed::Reply(ResponseCode::FormErr));
        }
        let query = Query::read(&mut decoder).map_err(format_error)?;
        let question = decoder.index() - HEADER;
        // A question has nothing before it that a name could point to.
        if question != wire_len(query.name()) + 4 {
            return Err(Malformed::Reply(ResponseCode::FormErr));
        }
        let mut edns = None;
        let counts = [
            (header.counts.answers, false),
            (header.counts.authorities, false),
            (header.counts.additionals, true),
        ];
        for (count, is_additional) in counts {
            let op = header.metadata.op_code;
            let (_, found, _) =
                Message::read_records(&mut decoder, count.into(), is_additional, op).map_err(format_error)?;
            edns = edns.or(found);
        }
        Ok(Self {
            bytes,
            query,
            question,
            edns,
        })
    }

    /// The message as it came in.
    pub(crate) fn bytes(&self) -> &'b [u8] {
        self.bytes
    }

    /// The question's bytes.
    pub(crate) fn question(&self) -> &'b [u8] {
        &self.bytes[HEADER..HEADER + self.question]
    }

    /// Whether the sender speaks a later EDNS than version 0, the only one there is.
    pub(crate) fn is_bad_version(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.version() > 0)
    }

    /// How large a datagram to the sender may be.
    pub(crate) fn udp_limit(&self) -> usize {
        match &self.edns {
            Some(edns) => usize::from(edns.max_payload()).clamp(MAX_UDP_WITHOUT_EDNS, MAX_UDP),
            None => MAX_UDP_WITHOUT_EDNS,
        }
    }
}

/// Appends the reply to a request; `limit` is in bytes. Records that do not fit are left out and the
/// message is marked as truncated.
pub(crate) fn write_answer(out: &mut Vec<u8>, request: &Request<'_>, answer: &Answer, limit: usize) {
    match answer {
        Answer::Records(records) => write(
            out,
            request,
            ResponseCode::NoError,
            Section::Answer(records),
            limit,
        ),
        Answer::NoData { soa } => write(
            out,
            request,
            ResponseCode::NoError,
            Section::Authority(soa),
            limit,
        ),
        Answer::NxDomain { soa } => write(
            out,
            request,
            ResponseCode::NXDomain,
            Section::Authority(soa),
            limit,
        ),
        Answer::Refused => write_code(out, request, ResponseCode::Refused),
        // Nobody could be asked.
        Answer::Forward => write_code(out, request, ResponseCode::ServFail),
    }
}

/// Appends a reply without records.
pub(crate) fn write_code(out: &mut Vec<u8>, request: &Request<'_>, code: ResponseCode) {
    write(out, request, code, Section::Nothing, usize::MAX);
}

/// Appends a reply that says only that the whole one is too large for a datagram.
pub(crate) fn write_truncated(out: &mut Vec<u8>, request: &Request<'_>) {
    write(out, request, ResponseCode::NoError, Section::TooLarge, usize::MAX);
}

/// Appends a reply to a message whose question could not be read.
pub(crate) fn write_malformed(out: &mut Vec<u8>, bytes: &[u8], code: ResponseCode) {
    out.extend_from_slice(&bytes[..2]);
    // QR, the operation, RD.
    out.push(0x80 | bytes[2] & 0x79);
    out.push(code.low());
    out.extend_from_slice(&[0; 8]);
}

#[derive(Clone, Copy)]
enum Section<'a> {
    Answer(&'a [Record]),
    Authority(&'a Record),
    TooLarge,
    Nothing,
}

fn write(out: &mut Vec<u8>, request: &Request<'_>, code: ResponseCode, section: Section<'_>, limit: usize) {
    let start = out.len();
    let end = start
        .saturating_add(limit)
        .saturating_sub(if request.edns.is_some() { OPT } else { 0 });
    out.extend_from_slice(&request.bytes[..HEADER]);
    out.extend_from_slice(request.question());
    let records = match section {
        Section::Answer(records) => records,
        Section::Authority(record) => std::slice::from_ref(record),
        Section::TooLarge | Section::Nothing => &[],
    };
    let written = records
        .iter()
        .take_while(|record| write_record(out, request, record, end).is_some())
        .count();
    let is_truncated = written < records.len() || matches!(section, Section::TooLarge);
    if let Some(edns) = &request.edns {
        let dnssec_ok = if edns.flags().dnssec_ok { 0x80 } else { 0 };
        let [high, low] = (MAX_UDP as u16).to_be_bytes();
        out.extend_from_slice(&[0, 0, 41, high, low, code.high(), 0, dnssec_ok, 0, 0, 0]);
    }
    let is_ours = matches!(section, Section::Answer(_) | Section::Authority(_));
    let header = &mut out[start..start + HEADER];
    // QR, AA, TC; the operation and RD stay as they are. RA and CD; AD and Z do not.
    header[2] = 0x80 | header[2] & 0x79 | u8::from(is_ours) << 2 | u8::from(is_truncated) << 1;
    header[3] = 0x80 | header[3] & 0x10 | code.low();
    let written = written as u16;
    let (answers, authorities) = match section {
        Section::Authority(_) => (0, written),
        _ => (written, 0),
    };
    for (place, count) in
        header[4..]
            .chunks_exact_mut(2)
            .zip([1, answers, authorities, u16::from(request.edns.is_some())])
    {
        place.copy_from_slice(&count.to_be_bytes());
    }
}

/// `None`, with nothing written, when the record would end after `end`.
fn write_record(out: &mut Vec<u8>, request: &Request<'_>, record: &Record, end: usize) -> Option<()> {
    let start = out.len();
    // The owner is the name asked for or a parent of it, or the root.
    let above = request
        .query
        .name()
        .num_labels()
        .checked_sub(record.name.num_labels())?;
    if record.name.is_root() {
        out.push(0);
    } else {
        let skipped: usize = request
            .query
            .name()
            .iter()
            .take(above.into())
            .map(|label| label.len() + 1)
            .sum();
        out.extend_from_slice(&(0xc000 | (HEADER + skipped) as u16).to_be_bytes());
    }
    out.extend_from_slice(&u16::from(record.record_type()).to_be_bytes());
    out.extend_from_slice(&u16::from(DNSClass::IN).to_be_bytes());
    out.extend_from_slice(&record.ttl.to_be_bytes());
    match &record.data {
        RData::A(address) => write_data(out, &address.octets()),
        RData::AAAA(address) => write_data(out, &address.octets()),
        data => {
            let mut bytes = Vec::new();
            let mut encoder = BinEncoder::new(&mut bytes);
            encoder.set_name_encoding(NameEncoding::Uncompressed);
            if data.emit(&mut encoder).is_err() {
                out.truncate(start);
                return None;
            }
            write_data(out, &bytes);
        }
    }
    if out.len() > end {
        out.truncate(start);
        return None;
    }
    Some(())
}

fn write_data(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

fn wire_len(name: &Name) -> usize {
    name.iter().map(|label| label.len() + 1).sum::<usize>() + 1
}

#[cfg(test)]
mod tests;
