//! Questions that are not ours go to the host's resolvers and come back.
//!
//! The streams and the cache are hickory's. Its pool of name servers is not used: one that is silent takes
//! all the time there is, so that the next can only be asked at the same time, always; and it turns
//! what is not a plain answer into errors that have lost the flags and half the records.

mod cache;
mod exchange;
mod split;
mod upstreams;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::{DnsResponse, Message, ResponseCode};
use hickory_server::net::xfer::Protocol;
use tokio::{sync::Semaphore, time::timeout};

use super::limits::PerAddress;
use cache::Cache;
use exchange::ask;
use split::Splits;
pub use split::{SplitDomain, SplitDomainError};
use upstreams::Resolvers;
pub use upstreams::Upstreams;

/// How questions are passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwarderConfig {
    /// Whom to ask.
    pub upstreams: Upstreams,
    /// Whom alone to ask about names in these domains, whether they answer or not.
    pub split: Vec<SplitDomain>,
    /// Addresses that are never asked: our own, which would be a loop.
    pub exclude: Vec<IpAddr>,
    /// How long to wait for one resolver.
    pub attempt_timeout: Duration,
    /// How long to try in all. Most clients ask again after five seconds.
    pub total_timeout: Duration,
    /// How many questions may be on their way at once.
    pub max_in_flight: usize,
    /// How many of them may be of one client.
    pub max_in_flight_per_client: usize,
}

impl Default for ForwarderConfig {
    fn default() -> Self {
        Self {
            upstreams: Upstreams::ResolvConf("/etc/resolv.conf".into()),
            split: Vec::new(),
            exclude: Vec::new(),
            attempt_timeout: Duration::from_millis(1_500),
            total_timeout: Duration::from_millis(4_500),
            max_in_flight: 1_024,
            max_in_flight_per_client: 256,
        }
    }
}

/// Why a question came back without an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("too many forwarded questions are on their way")]
    TooMany,
    #[error("no resolver is known")]
    NoUpstream,
    #[error("no resolver answered in time")]
    TimedOut,
}

/// Asks the host's resolvers; shared by all servers of a host, and so are its limits and its cache.
///
/// Its sockets are opened in the network namespace of the runtime's threads, the host's.
#[derive(Debug, Clone)]
pub struct Forwarder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: ForwarderConfig,
    in_flight: Semaphore,
    clients: Arc<PerAddress>,
    resolvers: Resolvers,
    splits: Splits,
    cache: Cache,
}

impl Forwarder {
    /// Nothing is opened or read before the first question.
    pub fn new(config: ForwarderConfig) -> Self {
        Self(Arc::new(Shared {
            in_flight: Semaphore::new(config.max_in_flight.min(Semaphore::MAX_PERMITS)),
            clients: PerAddress::new(config.max_in_flight_per_client),
            resolvers: Resolvers::new(config.upstreams.clone(), config.exclude.clone()),
            splits: Splits::new(&config.split, &config.exclude),
            cache: Cache::new(),
            config,
        }))
    }

    /// The reply to a question: one that still holds, at once, or a resolver's, over the protocol that
    /// the question came on.
    pub(crate) async fn forward(
        &self,
        question: &Message,
        protocol: Protocol,
        client: IpAddr,
    ) -> Result<Message, ForwardError> {
        let shared = &self.0;
        if let Some(reply) = shared.cache.get(question, Instant::now()) {
            return Ok(reply);
        }
        let _one = shared
            .in_flight
            .try_acquire()
            .map_err(|_| ForwardError::TooMany)?;
        let _of_client = shared.clients.acquire(client).ok_or(ForwardError::TooMany)?;
        let name = question.queries.first().ok_or(ForwardError::NoUpstream)?.name();
        let resolvers = shared.splits.of(name).unwrap_or(&shared.resolvers);
        let upstreams = resolvers.in_order(Instant::now());
        if upstreams.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let mut unhelpful: Option<(DnsResponse, Vec<SocketAddr>)> = None;
        let asking = async {
            // Twice around: a resolver may have been busy.
            for upstream in upstreams.iter().chain(&upstreams) {
                if unhelpful
                    .as_ref()
                    .is_some_and(|(_, from)| from.contains(upstream))
                {
                    continue;
                }
                let wait = shared.config.attempt_timeout;
                let asked = timeout(wait, ask(question, protocol, *upstream, wait)).await;
                match asked {
                    Ok(Ok(reply)) if is_unhelpful(&reply) => {
                        // Another resolver may know more; if none does, this is the reply.
                        unhelpful
                            .get_or_insert_with(|| (reply, Vec::new()))
                            .1
                            .push(*upstream);
                    }
                    Ok(Ok(reply)) => {
                        let now = Instant::now();
                        resolvers.note(*upstream, true, now);
                        shared.cache.insert(question, &reply, now);
                        return Some(reply);
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%upstream, %error, "a resolver could not be asked");
                        resolvers.note(*upstream, false, Instant::now());
                    }
                    Err(_) => {
                        tracing::debug!(%upstream, "a resolver did not answer in time");
                        resolvers.note(*upstream, false, Instant::now());
                    }
                }
            }
            None
        };
        // Dropping `asking` in the middle of an exchange closes the socket it waits on and nothing else.
        let reply = timeout(shared.config.total_timeout, asking).await.ok().flatten();
        reply
            .or(unhelpful.map(|(reply, _)| reply))
            .map(DnsResponse::into_message)
            .ok_or(ForwardError::TimedOut)
    }
}

/// About the resolver rather than the name.
fn is_unhelpful(reply: &DnsResponse) -> bool {
    matches!(
        reply.response_code,
        ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused
    )
}
