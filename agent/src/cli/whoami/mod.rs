//! `weft whoami`: a workload for labs and tests that says who answered, and to whom.

mod answer;
mod sockets;

use std::{net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{failure::Failure, format};
use answer::Identity;

/// What `weft whoami` takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct WhoamiArgs {
    /// Where to answer, on TCP and UDP; without an address on all of them
    #[arg(long, value_name = "[ADDR]:PORT", default_value = ":80")]
    pub listen: Vec<Listen>,
    /// The name to answer with [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Answer every HTTP request this much later
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub delay: u64,
    /// Take HTTP requests and never answer, as a backend does that hangs
    #[arg(long, conflicts_with = "delay")]
    pub hold: bool,
}

const EXAMPLES: &str = "\
Examples:
  weft whoami --listen :8080 --name web-1
  curl http://127.0.0.1:8080/                   (text)
  curl http://127.0.0.1:8080/?format=json       (or: Accept: application/json)
  curl http://127.0.0.1:8080/slow?ms=500        (answers half a second later)
  curl -X PUT -d 503 http://127.0.0.1:8080/health   (from then on /health answers 503)

On UDP, the datagram `whoami` is answered with the same JSON; any other comes back as it was.";

/// Where to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// On all IPv4 and, where the host has it, all IPv6 addresses.
    Everywhere {
        /// The port.
        port: u16,
    },
    /// On one address.
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let listen = match text.strip_prefix(':') {
            Some(port) => port.parse().ok().map(|port| Self::Everywhere { port }),
            None => text.parse().ok().map(Self::At),
        };
        listen.ok_or("expected ADDRESS:PORT or :PORT, such as 127.0.0.1:8080, [::1]:8080 or :80")
    }
}

/// Answers until the process is told to end.
pub(super) fn run(args: WhoamiArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("whoami cannot start its event loop: {error}")))?;
    runtime.block_on(async {
        // As the first process of a PID namespace it would not even notice them without handlers.
        let handler =
            |kind| signal(kind).map_err(|error| Failure::new(format!("signals cannot be handled: {error}")));
        let (mut interrupt, mut terminate) = (
            handler(SignalKind::interrupt())?,
            handler(SignalKind::terminate())?,
        );
        let server = start(&args)?;
        let places = format::join(&server.addresses);
        format::print(&format!("{} answers on {places}\n", server.identity.name))?;
        tokio::select! {
            // All three only wait; whichever is first, the process ends.
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = server.stopped() => return Err(Failure::new("whoami lost a socket and cannot go on")),
        }
        Ok(())
    })
}

/// A responder that runs until it is dropped.
struct Server {
    identity: Arc<Identity>,
    addresses: Vec<SocketAddr>,
    tasks: tokio::task::JoinSet<()>,
}

impl Server {
    async fn stopped(mut self) {
        self.tasks.join_next().await;
    }
}

fn start(args: &WhoamiArgs) -> Result<Server, Failure> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => answer::hostname(),
    };
    let patience = if args.hold {
        None
    } else {
        Some(Duration::from_millis(args.delay))
    };
    let identity = Arc::new(Identity::new(name, patience));
    let mut server = Server {
        identity: identity.clone(),
        addresses: Vec::new(),
        tasks: tokio::task::JoinSet::new(),
    };
    for listen in &args.listen {
        for (tcp, udp) in sockets::bind(*listen)? {
            server.addresses.extend(tcp.local_addr());
            let router = answer::router(identity.clone());
            server.tasks.spawn(async move {
                // It returns only when the listener is of no more use, which ends the program.
                let _ = axum::serve(tcp, router.into_make_service_with_connect_info::<answer::Ends>()).await;
            });
            server.tasks.spawn(answer::datagrams(udp, identity.clone()));
        }
    }
    Ok(server)
}

#[cfg(test)]
mod tests;
