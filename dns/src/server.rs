//! Sockets in front of [`answer`](crate::answer()).

mod counters;
mod forward;
mod limits;
mod tcp;
mod udp;
mod wire;

use std::{io, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use rand::Rng;
use tokio::task::JoinSet;

pub use counters::Counts;
pub use forward::{Forwarder, ForwarderConfig, Upstreams};

use crate::{Answer, Asker, Zone, answer};
use counters::Counters;
use forward::Transport;
use wire::{Malformed, Request, write_answer, write_code, write_malformed};

/// Finds out who asks: the networks of the endpoint with this address, or none.
pub type FindAsker = Arc<dyn Fn(IpAddr) -> Asker + Send + Sync>;

/// Sockets that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("the DNS sockets cannot be served")]
pub struct SpawnError(#[from] io::Error);

/// A server on one address, UDP and TCP. It stops when dropped.
#[derive(Debug)]
pub struct Server {
    tasks: JoinSet<()>,
    counters: Arc<Counters>,
}

impl Server {
    /// Serves sockets that are bound already, wherever that is: inside a network's namespace. Has to be
    /// called in a Tokio runtime.
    pub fn spawn(
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
        zone: Arc<ArcSwap<Zone>>,
        asker: FindAsker,
        forwarder: Forwarder,
    ) -> Result<Self, SpawnError> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let counters = Arc::new(Counters::default());
        let context = Arc::new(Context {
            zone,
            asker,
            forwarder,
            counters: Arc::clone(&counters),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(udp::serve(udp, Arc::clone(&context)));
        tasks.spawn(tcp::serve(tcp, context));
        Ok(Self { tasks, counters })
    }

    /// Stops; the sockets are closed when this returns.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }
}

/// What all connections of a server share.
struct Context {
    zone: Arc<ArcSwap<Zone>>,
    asker: FindAsker,
    forwarder: Forwarder,
    counters: Arc<Counters>,
}

/// What becomes of a message.
enum Outcome {
    /// The reply was written.
    Reply,
    /// There is nothing to say, and on a connection nothing more to hear.
    Nothing,
    /// Somebody else has to be asked.
    Forward,
}

impl Context {
    fn handle(
        &self,
        message: &[u8],
        client: IpAddr,
        transport: Transport,
        rng: &mut impl Rng,
        reply: &mut Vec<u8>,
    ) -> Outcome {
        let request = match Request::parse(message) {
            Ok(request) => request,
            Err(malformed) => {
                self.counters.malformed.increment();
                let is_garbage = matches!(malformed, Malformed::Reply(ResponseCode::FormErr));
                return match malformed {
                    Malformed::Silent => Outcome::Nothing,
                    // What follows garbage in a stream is garbage too.
                    Malformed::Reply(_) if is_garbage && transport == Transport::Tcp => Outcome::Nothing,
                    Malformed::Reply(code) => {
                        write_malformed(reply, message, code);
                        Outcome::Reply
                    }
                };
            }
        };
        self.counters.questions.increment();
        if request.is_bad_version() {
            write_code(reply, &request, ResponseCode::BADVERS);
            return Outcome::Reply;
        }
        let asker = (self.asker)(client.to_canonical());
        let answer = answer(&request.query, &asker, &self.zone.load(), rng);
        match &answer {
            Answer::Records(_) => self.counters.answered.increment(),
            Answer::NoData { .. } | Answer::NxDomain { .. } => self.counters.negative.increment(),
            Answer::Refused => self.counters.refused.increment(),
            Answer::Forward => {
                self.counters.forwarded.increment();
                return Outcome::Forward;
            }
        }
        let limit = match transport {
            Transport::Udp => request.udp_limit(),
            Transport::Tcp => u16::MAX.into(),
        };
        write_answer(reply, &request, &answer, limit);
        Outcome::Reply
    }

    /// The resolvers' reply; `None` when there is none.
    async fn forward(&self, request: &Request<'_>, transport: Transport, client: IpAddr) -> Option<Vec<u8>> {
        match self.forwarder.forward(request, transport, client).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::debug!(%error, "a question was not answered");
                self.counters.forward_failed.increment();
                None
            }
        }
    }
}
