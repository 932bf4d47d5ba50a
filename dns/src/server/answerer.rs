//! Our answers behind hickory-server's [`RequestHandler`].

use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Edns, Header, HeaderCounts, Message, Metadata, ResponseCode},
    rr::{Name, RData, Record},
    serialize::binary::BinEncodable,
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};

use super::{
    FindAsker,
    counters::Counters,
    forward::Forwarder,
    rebinding::is_overlay,
    request::{HEADER, MAX_UDP, limit, wire_len},
};
use crate::{Answer, Zone, answer};

/// The bytes of an OPT record without options.
const OPT: usize = 11;
/// A record without its owner and data.
const FIXED: usize = 10;
/// Hickory's encoder compresses so many names in a message.
const MAX_COMPRESSED: usize = 120;

/// Answers the questions of one server.
pub(crate) struct Answerer {
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) asker: FindAsker,
    pub(crate) forwarder: Forwarder,
    pub(crate) counters: Arc<Counters>,
}

/// A reply before it is written.
pub(crate) struct Sections {
    pub(crate) metadata: Metadata,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

/// What becomes of a question.
pub(crate) enum Outcome {
    /// It is answered.
    Reply(Sections),
    /// Somebody else has to be asked; this is where the answer goes.
    Forward(Sections),
}

#[async_trait::async_trait]
impl RequestHandler for Answerer {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        response_handle: R,
    ) -> ResponseInfo {
        self.finish(request, self.answer(request), response_handle).await
    }
}

impl Answerer {
    /// Asks others if need be, and sends the reply.
    pub(crate) async fn finish<R: ResponseHandler>(
        &self,
        request: &Request,
        outcome: Outcome,
        mut response_handle: R,
    ) -> ResponseInfo {
        let sections = match outcome {
            Outcome::Reply(sections) => sections,
            Outcome::Forward(sections) => self.forward(request, sections).await,
        };
        let edns = edns(request);
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            sections.metadata,
            &sections.answers,
            &sections.authorities,
            [],
            &sections.additionals,
        );
        match response_handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(client = %request.src(), %error, "a reply could not be sent");
                ResponseInfo::from(Header {
                    metadata: sections.metadata,
                    counts: HeaderCounts::default(),
                })
            }
        }
    }

    /// What follows from the snapshot alone.
    pub(crate) fn answer(&self, request: &Request) -> Outcome {
        self.counters.questions.increment();
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        let mut reply = Sections {
            metadata,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        };
        let [query] = request.queries.queries() else {
            return Outcome::Reply(reply.code(ResponseCode::FormErr));
        };
        // Version 0 is the only one there is (RFC 6891, section 6.1.3).
        if request.version() > 0 {
            return Outcome::Reply(reply.code(ResponseCode::BADVERS));
        }
        let asker = (self.asker)(request.src().ip().to_canonical());
        let answer = answer(query.original(), &asker, &self.zone.load(), &mut rand::rng());
        reply.metadata.authoritative = !matches!(answer, Answer::Refused | Answer::Forward);
        match answer {
            Answer::Records(records) => {
                self.counters.answered.increment();
                reply.answers = records;
                reply.fit(request);
            }
            Answer::Located { records, addresses } => {
                self.counters.answered.increment();
                reply.answers = records;
                reply.additionals = addresses;
                reply.fit(request);
            }
            Answer::NoData { soa } => {
                self.counters.negative.increment();
                reply.authorities.push(*soa);
            }
            Answer::NxDomain { soa } => {
                self.counters.negative.increment();
                reply.authorities.push(*soa);
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            Answer::Refused => {
                self.counters.refused.increment();
                reply.metadata.response_code = ResponseCode::Refused;
            }
            Answer::Forward => {
                self.counters.forwarded.increment();
                return Outcome::Forward(reply);
            }
        }
        Outcome::Reply(reply)
    }

    async fn forward(&self, request: &Request, mut reply: Sections) -> Sections {
        let Some(question) = question(request) else {
            return reply.code(ResponseCode::FormErr);
        };
        let asked = self
            .forwarder
            .forward(&question, request.protocol(), request.src().ip());
        let mut message = match asked.await {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "a question was not answered");
                self.counters.forward_failed.increment();
                return reply.code(ResponseCode::ServFail);
            }
        };
        let wants_authentic = request.metadata.authentic_data
            || request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        reply.metadata.response_code = message.metadata.response_code;
        reply.metadata.authentic_data = message.metadata.authentic_data && wants_authentic;
        reply.metadata.truncation = message.metadata.truncation;
        if message.metadata.truncation {
            return reply;
        }
        let zone = self.zone.load();
        let name = question.queries[0].name();
        for section in [
            &mut message.answers,
            &mut message.authorities,
            &mut message.additionals,
        ] {
            let before = section.len();
            section.retain(|record| !is_overlay(&zone, record));
            if section.len() < before {
                tracing::debug!("a foreign answer pointed into an overlay network");
                self.counters.rebinding.increment();
            }
            for record in section {
                respell(&mut record.name, name);
                if let RData::CNAME(target) = &mut record.data {
                    respell(&mut target.0, name);
                }
            }
        }
        reply.answers = message.answers;
        reply.authorities = message.authorities;
        reply.additionals = message.additionals;
        reply
    }
}

impl Sections {
    fn code(mut self, code: ResponseCode) -> Self {
        self.metadata.response_code = code;
        self
    }

    /// Leaves out what would not fit, because hickory's encoder drops OPT once a message is full. Over
    /// TCP there is nothing to fall back to: as many records as fit are a choice, and not marked.
    fn fit(&mut self, request: &Request) {
        let limit = usize::from(limit(request));
        let question = request.queries.as_bytes().len();
        let mut length = HEADER + question + if request.edns.is_some() { OPT } else { 0 };
        // The encoder does not know the question's name, so it writes the first owner in full; it writes
        // the others in full, too, before it replaces them.
        let owner = |place: usize| match place {
            1..MAX_COMPRESSED => 2,
            _ => question - 4,
        };
        let fitting = self.answers.iter().enumerate().take_while(|(place, record)| {
            let in_full = length + question - 4;
            length += owner(*place) + FIXED + data_len(&record.data);
            length.max(in_full) <= limit
        });
        let fitting = fitting.count();
        if fitting < self.answers.len() {
            self.answers.truncate(fitting);
            self.additionals.clear();
            self.metadata.truncation = limit < usize::from(u16::MAX);
            return;
        }
        let fitting = self.additionals.iter().take_while(|record| {
            length += wire_len(&record.name) + FIXED + data_len(&record.data);
            length <= limit
        });
        let fitting = fitting.count();
        self.additionals.truncate(fitting);
    }
}

/// Spells what a name has in common with the question as the question does: it was spelt at random
/// upstream, replies repeat that, and the cache serves every spelling.
fn respell(name: &mut Name, question: &Name) {
    let pairs = name.iter().rev().zip(question.iter().rev());
    let common = pairs
        .take_while(|(one, other)| one.eq_ignore_ascii_case(other))
        .count();
    let (Some(own), Some(skipped)) = (
        usize::from(name.num_labels()).checked_sub(common),
        usize::from(question.num_labels()).checked_sub(common),
    ) else {
        return;
    };
    if let Ok(respelt) = Name::from_labels(name.iter().take(own).chain(question.iter().skip(skipped))) {
        *name = respelt;
    }
}

/// At most as many bytes as are written.
fn data_len(data: &RData) -> usize {
    match data {
        RData::A(_) => 4,
        RData::AAAA(_) => 16,
        other => other
            .to_bytes()
            .map_or(usize::from(u16::MAX), |bytes| bytes.len()),
    }
}

/// What is said about EDNS to a client that speaks it, and upstream in its place: options are between
/// neighbours and are not passed on (RFC 6891, section 6.1.1).
fn edns(request: &Request) -> Option<Edns> {
    let theirs = request.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    edns.set_dnssec_ok(theirs.flags().dnssec_ok);
    Some(edns)
}

/// The question as it is passed on.
fn question(request: &Request) -> Option<Message> {
    let mut message = Message::query();
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.checking_disabled = request.metadata.checking_disabled;
    // Asks to be told whether the answer was validated (RFC 6840, section 5.7).
    message.metadata.authentic_data = true;
    message
        .queries
        .push(request.queries.queries().first()?.original().clone());
    message.edns = edns(request);
    Some(message)
}

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;
