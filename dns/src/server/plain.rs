//! The replies that nearly all datagrams get, written without hickory's encoder: addresses of the name
//! asked for, or the SOA record of a negative answer. The encoder is half of what such a question costs
//! us, because it tries each label of each name for compression; here the question's name is all there is
//! to point to. A test compares every reply with the encoder's.

use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_server::server::Request;

use super::{
    answerer::Sections,
    request::{HEADER, MAX_UDP, limit},
};

/// Writes a reply; `None`, and whatever in `out`, when it is not one of the plain kind.
pub(crate) fn write(request: &Request, sections: &Sections, out: &mut Vec<u8>) -> Option<()> {
    let raw = request.as_slice();
    let question = request.queries.as_bytes();
    let name = request.queries.queries().first()?.original().name();
    let code = sections.metadata.response_code;
    if !sections.additionals.is_empty() || code.high() != 0 {
        return None;
    }
    out.clear();
    out.extend_from_slice(raw.get(..HEADER)?);
    out.extend_from_slice(question);
    for record in &sections.answers {
        match &record.data {
            RData::A(address) => write_record(out, HEADER, record, &address.octets()),
            RData::AAAA(address) => write_record(out, HEADER, record, &address.octets()),
            _ => return None,
        }
    }
    for record in &sections.authorities {
        let RData::SOA(soa) = &record.data else {
            return None;
        };
        let mut data = Vec::with_capacity(128);
        write_name(&mut data, &soa.mname);
        write_name(&mut data, &soa.rname);
        let times = [soa.refresh, soa.retry, soa.expire].map(|secs| secs as u32);
        for number in [soa.serial].into_iter().chain(times).chain([soa.minimum]) {
            data.extend_from_slice(&number.to_be_bytes());
        }
        // Ours are of a name above the one asked for, in its spelling.
        let above = name.num_labels().checked_sub(record.name.num_labels())?;
        let skipped: usize = name.iter().take(above.into()).map(|label| label.len() + 1).sum();
        write_record(out, HEADER + skipped, record, &data);
    }
    if let Some(edns) = &request.edns {
        let dnssec_ok = if edns.flags().dnssec_ok { 0x80 } else { 0 };
        let [high, low] = MAX_UDP.to_be_bytes();
        out.extend_from_slice(&[0, 0, 41, high, low, 0, 0, dnssec_ok, 0, 0, 0]);
    }
    let metadata = &sections.metadata;
    // QR, AA, TC and RD; RA, CD and the code.
    out[2] = 0x80 | u8::from(metadata.authoritative) << 2 | u8::from(metadata.truncation) << 1 | raw[2] & 1;
    out[3] = u8::from(metadata.recursion_available) << 7 | raw[3] & 0x10 | code.low();
    let additionals = u16::from(request.edns.is_some());
    let counts = [
        1,
        sections.answers.len() as u16,
        sections.authorities.len() as u16,
        additionals,
    ];
    for (place, count) in out[4..HEADER].chunks_exact_mut(2).zip(counts) {
        place.copy_from_slice(&count.to_be_bytes());
    }
    (out.len() <= usize::from(limit(request))).then_some(())
}

/// A record whose owner is written at `owner`, or is the root.
fn write_record(out: &mut Vec<u8>, owner: usize, record: &Record, data: &[u8]) {
    if record.name.is_root() {
        out.push(0);
    } else {
        out.extend_from_slice(&(0xc000 | owner as u16).to_be_bytes());
    }
    out.extend_from_slice(&u16::from(record.record_type()).to_be_bytes());
    out.extend_from_slice(&u16::from(DNSClass::IN).to_be_bytes());
    out.extend_from_slice(&record.ttl.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

fn write_name(out: &mut Vec<u8>, name: &Name) {
    for label in name.iter() {
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
}
