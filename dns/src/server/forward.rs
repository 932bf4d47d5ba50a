//! Questions that are not ours go to the host's resolvers and come back.
//!
//! A message is passed on as it is, only under another id and from a fresh port, so that whatever the
//! client and the resolver agree on (record types, EDNS options, DNSSEC) works without our knowing it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::{limits::PerAddress, wire::Request};

/// How long a resolver that did not answer is asked last.
const PENALTY: Duration = Duration::from_secs(10);
/// How often the file with the resolvers is looked at.
const RELOAD: Duration = Duration::from_secs(2);
/// Replies to other questions are ignored, but not for ever.
const MAX_FORGED: usize = 64;

/// Where the resolvers are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// These, the preferred one first.
    List(Vec<SocketAddr>),
    /// The `nameserver` lines of a file, which is read again when it changes.
    ResolvConf(PathBuf),
}

/// How questions are passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwarderConfig {
    /// Whom to ask.
    pub upstreams: Upstreams,
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

/// What a question came and goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Asks the host's resolvers; shared by all servers of a host, and so are its limits.
///
/// Its sockets are opened in the network namespace of the runtime's threads, the host's.
#[derive(Debug, Clone)]
pub struct Forwarder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: ForwarderConfig,
    in_flight: Arc<Semaphore>,
    clients: Arc<PerAddress>,
    upstreams: Mutex<Known>,
}

/// The resolvers and what happened to them.
#[derive(Debug, Default)]
struct Known {
    list: Vec<(SocketAddr, Option<Instant>)>,
    looked: Option<Instant>,
    modified: Option<SystemTime>,
}

impl Forwarder {
    /// Nothing is opened or read before the first question.
    pub fn new(config: ForwarderConfig) -> Self {
        Self(Arc::new(Shared {
            in_flight: Arc::new(Semaphore::new(config.max_in_flight.min(Semaphore::MAX_PERMITS))),
            clients: PerAddress::new(config.max_in_flight_per_client),
            upstreams: Mutex::default(),
            config,
        }))
    }

    /// The reply, which has the id of the request.
    pub(crate) async fn forward(
        &self,
        request: &Request<'_>,
        transport: Transport,
        client: IpAddr,
    ) -> Result<Vec<u8>, ForwardError> {
        let shared = &self.0;
        let _one = shared
            .in_flight
            .try_acquire()
            .map_err(|_| ForwardError::TooMany)?;
        let _of_client = shared.clients.acquire(client).ok_or(ForwardError::TooMany)?;
        let upstreams = shared.in_order(Instant::now());
        if upstreams.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let deadline = tokio::time::Instant::now() + shared.config.total_timeout;
        let mut unhelpful: Option<(Vec<u8>, Vec<SocketAddr>)> = None;
        let asking = async {
            // Twice around: a datagram may simply be lost.
            for upstream in upstreams.iter().chain(&upstreams) {
                if unhelpful
                    .as_ref()
                    .is_some_and(|(_, from)| from.contains(upstream))
                {
                    continue;
                }
                let exchange = async {
                    match transport {
                        Transport::Udp => ask_udp(request, *upstream).await,
                        Transport::Tcp => ask_tcp(request, *upstream).await,
                    }
                };
                match timeout(shared.config.attempt_timeout, exchange).await {
                    Ok(Ok(reply)) if is_unhelpful(&reply) => {
                        // Another resolver may know more; if none does, this is the reply.
                        unhelpful
                            .get_or_insert_with(|| (reply, Vec::new()))
                            .1
                            .push(*upstream);
                    }
                    Ok(Ok(reply)) => {
                        shared.note(*upstream, None);
                        return Some(reply);
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%upstream, %error, "a resolver could not be asked");
                        shared.note(*upstream, Some(Instant::now() + PENALTY));
                    }
                    Err(_) => {
                        tracing::debug!(%upstream, "a resolver did not answer in time");
                        shared.note(*upstream, Some(Instant::now() + PENALTY));
                    }
                }
            }
            None
        };
        // Dropping `asking` in the middle of an exchange closes the socket it waits on and nothing else.
        let reply = tokio::time::timeout_at(deadline, asking).await.ok().flatten();
        reply
            .or(unhelpful.map(|(reply, _)| reply))
            .ok_or(ForwardError::TimedOut)
    }
}

impl Shared {
    /// The resolvers as listed, but those that failed lately last.
    fn in_order(&self, now: Instant) -> Vec<SocketAddr> {
        let mut known = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if known
            .looked
            .is_none_or(|looked| now.duration_since(looked) >= RELOAD)
        {
            known.looked = Some(now);
            self.reload(&mut known);
        }
        let is_bad = |until: &Option<Instant>| until.is_some_and(|until| now < until);
        let (bad, good): (Vec<_>, Vec<_>) = known.list.iter().partition(|(_, until)| is_bad(until));
        good.into_iter()
            .chain(bad)
            .map(|(upstream, _)| upstream)
            .collect()
    }

    fn reload(&self, known: &mut Known) {
        let list = match &self.config.upstreams {
            Upstreams::List(list) => list.clone(),
            Upstreams::ResolvConf(path) => {
                let modified = std::fs::metadata(path)
                    .and_then(|metadata| metadata.modified())
                    .ok();
                if modified.is_some() && modified == known.modified {
                    return;
                }
                match std::fs::read_to_string(path) {
                    Ok(text) => {
                        known.modified = modified;
                        nameservers(&text)
                    }
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "the host's resolvers cannot be read");
                        return;
                    }
                }
            }
        };
        let is_ours = |upstream: &SocketAddr| self.config.exclude.contains(&upstream.ip().to_canonical());
        let old = std::mem::take(&mut known.list);
        let until = |upstream| {
            old.iter()
                .find(|(known, _)| *known == upstream)
                .and_then(|(_, until)| *until)
        };
        known.list = list
            .into_iter()
            .filter(|upstream| !is_ours(upstream))
            .map(|upstream| (upstream, until(upstream)))
            .collect();
    }

    fn note(&self, upstream: SocketAddr, bad_until: Option<Instant>) {
        let mut known = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, until)) = known.list.iter_mut().find(|(known, _)| *known == upstream) {
            *until = bad_until;
        }
    }
}

/// The servers that resolv.conf(5) lists. A scope (`fe80::1%eth0`) is a name of an interface here, which
/// no other program of ours needs, so such servers are left out.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next().filter(|keyword| *keyword == "nameserver")?;
            let address: IpAddr = words.next()?.parse().ok()?;
            Some(SocketAddr::new(address, 53))
        })
        .collect()
}

async fn ask_udp(request: &Request<'_>, upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel picks a random port, and a connected socket takes datagrams of this resolver only.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    let id = rand::random::<u16>().to_be_bytes();
    socket.send(&under_id(request.bytes(), id)).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..MAX_FORGED {
        let length = socket.recv(&mut buffer).await?;
        if is_reply(&buffer[..length], id, request) {
            return Ok(under_id(
                &buffer[..length],
                [request.bytes()[0], request.bytes()[1]],
            ));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "too many replies to other questions",
    ))
}

async fn ask_tcp(request: &Request<'_>, upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let id = rand::random::<u16>().to_be_bytes();
    // A request was read from a datagram or has passed the limit of a stream, far below 64 KiB.
    let mut message = (request.bytes().len() as u16).to_be_bytes().to_vec();
    message.extend_from_slice(&under_id(request.bytes(), id));
    stream.write_all(&message).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    if !is_reply(&reply, id, request) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a reply to another question",
        ));
    }
    reply[..2].copy_from_slice(&request.bytes()[..2]);
    Ok(reply)
}

fn under_id(message: &[u8], id: [u8; 2]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[..2].copy_from_slice(&id);
    message
}

/// Whether a message replies to this question (RFC 5452, section 9.1).
fn is_reply(message: &[u8], id: [u8; 2], request: &Request<'_>) -> bool {
    let question = request.question();
    let Some((name, class)) = question.split_last_chunk::<4>() else {
        return false;
    };
    message.len() >= 12 + question.len()
        && message[..2] == id
        && message[2] & 0x80 != 0
        && message[4..6] == [0, 1]
        && message[12..12 + name.len()].eq_ignore_ascii_case(name)
        && message[12 + name.len()..12 + question.len()] == *class
}

/// SERVFAIL, NOTIMP, REFUSED: about the resolver rather than the name.
fn is_unhelpful(reply: &[u8]) -> bool {
    matches!(reply[3] & 0x0f, 2 | 4 | 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_like_the_c_library_does() {
        let text = "# comment\nsearch example.com\nnameserver 127.0.0.53\n  nameserver\t::1 # trailing\n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 1.1.1.1\noptions edns0\n;nameserver 9.9.9.9\n";
        assert_eq!(
            nameservers(text),
            ["127.0.0.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()]
        );
    }

    #[test]
    fn our_own_addresses_are_never_asked_and_failed_resolvers_last() {
        let list: Vec<SocketAddr> = ["169.254.53.53:53", "10.0.0.1:53", "10.0.0.2:53"]
            .map(|a| a.parse().unwrap())
            .into();
        let forwarder = Forwarder::new(ForwarderConfig {
            upstreams: Upstreams::List(list.clone()),
            exclude: vec![[169, 254, 53, 53].into()],
            ..ForwarderConfig::default()
        });
        let now = Instant::now();
        assert_eq!(forwarder.0.in_order(now), [list[1], list[2]]);
        forwarder.0.note(list[1], Some(now + PENALTY));
        assert_eq!(forwarder.0.in_order(now), [list[2], list[1]]);
        assert_eq!(forwarder.0.in_order(now + PENALTY), [list[1], list[2]]);
    }

    #[test]
    fn the_list_follows_its_file() {
        let path = std::env::temp_dir().join(format!("weft-dns-resolv-{}.conf", std::process::id()));
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let forwarder = Forwarder::new(ForwarderConfig {
            upstreams: Upstreams::ResolvConf(path.clone()),
            ..Default::default()
        });
        let now = Instant::now();
        assert_eq!(forwarder.0.in_order(now), ["10.0.0.1:53".parse().unwrap()]);
        std::fs::write(&path, "nameserver 10.0.0.2\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert_eq!(
            forwarder.0.in_order(now + RELOAD),
            ["10.0.0.2:53".parse().unwrap()]
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            forwarder.0.in_order(now + 2 * RELOAD),
            ["10.0.0.2:53".parse().unwrap()]
        );
    }
}
