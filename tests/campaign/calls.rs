//! What programs do all the time: talk on connections that stay, make requests, and ask for names.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use netns_harness::{Inside, Sandbox};
use socket2::SockRef;

use crate::traffic::{PORT, call_at};

/// For an answer of a server. Some retransmissions of a lost packet fit into it.
const PATIENCE: Duration = Duration::from_secs(8);
/// After which a name is asked for again, and from when it counts as not answered: the name server is on the same host,
/// but the machine may be busy with others.
const NAME_PATIENCE: Duration = Duration::from_millis(500);
const NAMED: Duration = Duration::from_millis(1900);
const NAME_SERVER: &str = "169.254.53.53:53";
const STREAM_PACE: Duration = Duration::from_millis(10);
const REQUEST_PACE: Duration = Duration::from_millis(25);
const NAME_PACE: Duration = Duration::from_millis(25);
/// After something failed.
const AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Numbers to and fro on one connection to an endpoint.
    Stream,
    /// The same through a virtual address.
    StreamByVip,
    /// HTTP through a virtual address, each request on a connection of its own.
    Request,
    /// Names of endpoints and of a service.
    Name,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Stream, Self::StreamByVip, Self::Request, Self::Name];

    pub fn word(self) -> &'static str {
        match self {
            Self::Stream => "TCP stream",
            Self::StreamByVip => "TCP stream by VIP",
            Self::Request => "HTTP by VIP",
            Self::Name => "DNS",
        }
    }
}

/// Something that a client did not get.
#[derive(Debug, Clone)]
pub struct Failure {
    pub began: Instant,
    /// The host that it was about, if that is known.
    pub about: Option<usize>,
    pub what: String,
}

/// What one client has done so far, over crashes of its host too.
pub struct Track {
    pub kind: Kind,
    /// The host it is on.
    pub host: usize,
    done: AtomicU64,
    seen: Mutex<Seen>,
}

struct Seen {
    last: Instant,
    longest: Duration,
    failures: Vec<Failure>,
    wrong: Vec<String>,
}

impl Track {
    pub fn new(kind: Kind, host: usize) -> Arc<Self> {
        let seen = Seen {
            last: Instant::now(),
            longest: Duration::ZERO,
            failures: Vec::new(),
            wrong: Vec::new(),
        };
        Arc::new(Self {
            kind,
            host,
            done: AtomicU64::new(0),
            seen: Mutex::new(seen),
        })
    }

    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    fn note(&self) {
        let mut seen = self.seen.lock().unwrap();
        seen.longest = seen.longest.max(seen.last.elapsed());
        seen.last = Instant::now();
        self.done.fetch_add(1, Relaxed);
    }

    fn fail(&self, began: Instant, about: Option<usize>, what: String) {
        let failure = Failure { began, about, what };
        self.seen.lock().unwrap().failures.push(failure);
    }

    /// An answer that nobody may ever give.
    fn wrong(&self, what: String) {
        self.seen.lock().unwrap().wrong.push(what);
    }

    /// What has failed since this was last asked, the longest time between two successes, and what was wrong.
    pub fn take(&self) -> (Vec<Failure>, Duration, Vec<String>) {
        let mut seen = self.seen.lock().unwrap();
        let longest = std::mem::take(&mut seen.longest);
        (
            std::mem::take(&mut seen.failures),
            longest,
            std::mem::take(&mut seen.wrong),
        )
    }
}

/// A client at work. It ends soon after it is dropped.
pub struct Client {
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    fn start(track: &Arc<Track>, work: impl FnOnce(&Track, &AtomicBool) + Send + 'static) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let (stop, track) = (Arc::clone(&stopped), Arc::clone(track));
        let thread = Some(thread::spawn(move || work(&track, &stop)));
        Self { stopped, thread }
    }

    /// Numbers to and fro with the server of an endpoint, or with whichever a virtual address leads to.
    pub fn stream(track: &Arc<Track>, from: &Sandbox, to: IpAddr, peer: Option<usize>) -> Self {
        let from = from.clone();
        Self::start(track, move |track, stopped| {
            // After a crash of its host there is no place to call from.
            while !stopped.load(Relaxed) && from.namespaces().is_ok() {
                let began = Instant::now();
                let call = match call_at(&from, to, PORT) {
                    Ok(call) => call,
                    Err(error) => {
                        track.fail(began, peer, format!("cannot connect to {to}: {error}"));
                        thread::park_timeout(AGAIN);
                        continue;
                    }
                };
                let name = &call.answer.name;
                let about = host_of(name);
                if about.is_none() || peer.is_some_and(|peer| Some(peer) != about) {
                    track.wrong(format!("`{name}` answered at {to}"));
                }
                // Who was retired waits for a host that crashed.
                if let Err(error) = converse(track, &call.stream, stopped)
                    && !stopped.load(Relaxed)
                {
                    let sentence = format!("a stream to `{name}` broke: {error}");
                    track.fail(began, about, sentence);
                }
            }
        })
    }

    pub fn requests(track: &Arc<Track>, from: &Sandbox, to: IpAddr) -> Self {
        let from = from.clone();
        Self::start(track, move |track, stopped| {
            let work = || {
                while !stopped.load(Relaxed) {
                    let began = Instant::now();
                    match request(to) {
                        Ok(name) if host_of(&name).is_some() => track.note(),
                        Ok(name) => track.wrong(format!("`{name}` answered a request to {to}")),
                        Err(_) if stopped.load(Relaxed) => {}
                        Err(error) => {
                            let after = began.elapsed().as_millis();
                            let sentence = format!("a request to {to} failed after {after} ms: {error}");
                            track.fail(began, None, sentence);
                        }
                    }
                    thread::park_timeout(REQUEST_PACE);
                }
            };
            // Its host may have crashed already.
            let _ = from.run(work);
        })
    }

    /// Asks for each name in turn, each of which has one address.
    pub fn names(track: &Arc<Track>, from: &Sandbox, names: Vec<(String, IpAddr, Option<usize>)>) -> Self {
        let from = from.clone();
        Self::start(track, move |track, stopped| {
            let Ok(Ok(socket)) = from.run(|| UdpSocket::bind("0.0.0.0:0")) else {
                return;
            };
            socket.set_read_timeout(Some(NAME_PATIENCE)).unwrap();
            let mut id = 0_u16;
            while !stopped.load(Relaxed) {
                id = id.wrapping_add(1);
                let (name, address, about) = &names[usize::from(id) % names.len()];
                let began = Instant::now();
                match ask(&socket, id, name) {
                    Ok(found) if found == [*address] => track.note(),
                    Ok(found) if found.is_empty() => {
                        track.fail(began, *about, format!("`{name}` has no address"));
                    }
                    Ok(found) => track.wrong(format!("`{name}` has the addresses {found:?}, not {address}")),
                    Err(error) => track.fail(began, *about, format!("no answer for `{name}`: {error}")),
                }
                thread::park_timeout(NAME_PACE);
            }
        })
    }

    /// Tells it to end; its thread, which may wait for somebody who will never answer.
    pub fn retire(mut self) -> JoinHandle<()> {
        self.stopped.store(true, Relaxed);
        self.thread.take().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// By the names that servers have here: `f-h3`, `w-h3`.
fn host_of(name: &str) -> Option<usize> {
    let (_, number) = name.split_once("-h")?;
    number.parse::<usize>().ok()?.checked_sub(1)
}

fn converse(track: &Track, mut stream: &TcpStream, stopped: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    at_once(stream)?;
    for round in 0_u64.. {
        if stopped.load(Relaxed) {
            break;
        }
        stream.write_all(&round.to_be_bytes())?;
        let mut back = [0; 8];
        stream.read_exact(&mut back)?;
        if u64::from_be_bytes(back) != round {
            track.wrong(format!("{round} came back as {back:?}"));
        }
        track.note();
        thread::park_timeout(STREAM_PACE);
    }
    Ok(())
}

/// Nothing of it is left when it is closed: its namespace would wait for a host that crashed.
fn at_once(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// The body of the answer.
fn request(to: IpAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    at_once(&stream)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") && !body.is_empty() => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("not an answer: {answer:?}"))),
    }
}

/// The IPv4 addresses of a name.
fn ask(socket: &UdpSocket, id: u16, name: &str) -> io::Result<Vec<IpAddr>> {
    let mut question = id.to_be_bytes().to_vec();
    question.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let begin = Instant::now();
    socket.send_to(&question, NAME_SERVER)?;
    let mut bytes = [0; 512];
    let found = loop {
        let length = match socket.recv(&mut bytes) {
            // As resolvers do.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && begin.elapsed() < NAMED => {
                socket.send_to(&question, NAME_SERVER)?;
                continue;
            }
            received => received?,
        };
        match addresses(id, &bytes[..length]) {
            ControlFlow::Break(found) => break found,
            // An answer to an earlier question that nobody waits for any more.
            ControlFlow::Continue(()) => {}
        }
    };
    found.ok_or_else(|| io::Error::other("the answer cannot be read"))
}

/// What an answer says: nothing where it is to another question.
fn addresses(id: u16, bytes: &[u8]) -> ControlFlow<Option<Vec<IpAddr>>> {
    if bytes.get(..2) != Some(&id.to_be_bytes()[..]) {
        return ControlFlow::Continue(());
    }
    let read = || {
        let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (flags, count) = (word(2)?, word(6)?);
        // NXDOMAIN is an answer: there is none.
        if !matches!(flags & 0xf, 0 | 3) {
            return None;
        }
        let mut at = 12;
        while bytes.get(at)? & 0xc0 == 0 && bytes[at] != 0 {
            at += usize::from(bytes[at]) + 1;
        }
        at += 5;
        let mut found = Vec::new();
        for _ in 0..count {
            // Names of answers are pointers to the question's.
            if bytes.get(at)? & 0xc0 != 0xc0 {
                return None;
            }
            let (kind, length) = (word(at + 2)?, usize::from(word(at + 10)?));
            let data = bytes.get(at + 12..at + 12 + length)?;
            if kind == 1 {
                found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?));
            }
            at += 12 + length;
        }
        Some(found)
    };
    ControlFlow::Break(read())
}
