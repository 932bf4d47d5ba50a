//! Sockets in front of [`answer`](crate::answer()).

mod answerer;
mod counters;
mod forward;
mod limits;
mod plain;
mod rebinding;
mod reply;
pub(crate) mod request;
mod tcp;
mod udp;

use std::{io, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio::task::JoinSet;

pub use counters::Counts;
pub use forward::{Forwarder, ForwarderConfig, SplitDomain, SplitDomainError, Upstreams};

use crate::{Asker, Zone};
use answerer::Answerer;
use counters::Counters;

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
        let answerer = Arc::new(Answerer {
            zone,
            asker,
            forwarder,
            counters: Arc::clone(&counters),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(udp::serve(udp, Arc::clone(&answerer)));
        tasks.spawn(tcp::serve(tcp, answerer));
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
