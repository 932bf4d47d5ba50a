//! Answers of others for as long as they say, in hickory-resolver's [`ResponseCache`].

use std::time::{Duration, Instant};

use hickory_proto::op::{DnsResponse, Message, MessageType};
use hickory_resolver::{
    ResponseCache, TtlConfig,
    config::ResolverOpts,
    net::{DnsError, NetError, NoRecords},
};

/// Answers of each kind that are kept.
const ENTRIES: u64 = 2_048;
/// Larger ones are not kept, so that what is has a bound in bytes too.
const MAX_BYTES: usize = 4_096;
/// Nothing is believed for longer, whatever it says.
const MAX_TTL: Duration = Duration::from_secs(3_600);
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(300);

/// One cache per kind of question: whoever asks for signatures, or for what has not been validated,
/// gets other answers.
#[derive(Debug)]
pub(crate) struct Cache([ResponseCache; 4]);

impl Cache {
    pub(crate) fn new() -> Self {
        let mut options = ResolverOpts::default();
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        let ttl = TtlConfig::from_opts(&options);
        Self([(); 4].map(|()| ResponseCache::new(ENTRIES, ttl.clone())))
    }

    /// A reply that still holds, with what is left of its time.
    pub(crate) fn get(&self, question: &Message, now: Instant) -> Option<Message> {
        match self.kind(question)?.get(question.queries.first()?, now)? {
            Ok(message) => Some(message),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Some(negative(&none, question)),
            Err(_) => None,
        }
    }

    pub(crate) fn insert(&self, question: &Message, reply: &DnsResponse, now: Instant) {
        let (Some(cache), Some(query)) = (self.kind(question), question.queries.first()) else {
            return;
        };
        if reply.truncation || reply.as_buffer().len() > MAX_BYTES {
            return;
        }
        // An alias without what was asked for is negative, but counts as an answer here: it would be kept
        // for as long as the alias holds, though what it points to may come into being (RFC 2308, 2.1).
        let has_answer = reply
            .answers
            .iter()
            .any(|record| record.record_type() == query.query_type());
        match DnsError::from_response(reply.clone()) {
            Ok(reply) if has_answer => cache.insert(query.clone(), Ok(reply.into_message()), now),
            // What is kept of a negative answer cannot say that it was validated.
            Err(none @ DnsError::NoRecordsFound(_)) if !reply.authentic_data => {
                cache.insert(query.clone(), Err(none.into()), now);
            }
            _ => {}
        }
    }

    fn kind(&self, question: &Message) -> Option<&ResponseCache> {
        // Who does not want recursion wants to know what that server has.
        if !question.recursion_desired {
            return None;
        }
        let dnssec_ok = question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        self.0
            .get(usize::from(dnssec_ok) | usize::from(question.checking_disabled) << 1)
    }
}

fn negative(none: &NoRecords, question: &Message) -> Message {
    let mut message = Message::new(question.id, MessageType::Response, question.op_code);
    message.metadata.response_code = none.response_code;
    message.authorities = none
        .authorities
        .iter()
        .flat_map(|records| records.iter())
        .cloned()
        .collect();
    message
}
