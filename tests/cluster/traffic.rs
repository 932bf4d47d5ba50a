//! Connections that notice everything that happens to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use netns_harness::{Inside, Sandbox};
use socket2::{Domain, SockRef, Socket, Type};
use weft_tests::slower;

/// Where replicas listen.
pub const PORT: u16 = 8000;
/// For one step of a conversation. Retransmissions after a lost packet fit into it several times.
pub static PATIENCE: LazyLock<Duration> = LazyLock::new(|| slower(Duration::from_secs(5)));
/// How often a server that waits for datagrams looks whether it is to stop.
const LOOK_UP: Duration = Duration::from_millis(100);
/// Between two messages of a stream.
const PACE: Duration = Duration::from_millis(4);

/// Connections of a server, which end with it as those of a process do.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<BTreeMap<u64, TcpStream>>>);

impl Connections {
    /// Serves a connection on a thread of its own.
    pub fn serve<F>(&self, number: u64, stream: TcpStream, serve: F)
    where
        F: FnOnce(&TcpStream) -> io::Result<()> + Send + 'static,
    {
        self.0.lock().unwrap().insert(number, stream.try_clone().unwrap());
        let all = self.clone();
        std::thread::spawn(move || {
            // Whatever goes wrong, the client notices.
            let _ = serve(&stream);
            all.0.lock().unwrap().remove(&number);
        });
    }

    pub fn end(&self) {
        for stream in self.0.lock().unwrap().values() {
            // Where the other end cannot be reached any more, its namespace would wait for it for minutes.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Answers in a place until it is dropped: on TCP it says its name and who called, then returns what it is sent;
/// on UDP it says both in answer to every datagram.
pub struct Server {
    listeners: Vec<Socket>,
    connections: [Connections; 2],
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(place: &impl Inside, name: &str) -> Self {
        let mut server = Self {
            listeners: Vec::new(),
            connections: Default::default(),
            stopped: Arc::default(),
            threads: Vec::new(),
        };
        for (address, connections) in ["0.0.0.0", "::"].into_iter().zip(server.connections.clone()) {
            let address = SocketAddr::new(address.parse().unwrap(), PORT);
            let bind = || io::Result::Ok((bound(address, Type::STREAM)?, bound(address, Type::DGRAM)?));
            let (tcp, udp) = place.run(bind).unwrap().unwrap();
            tcp.listen(128).unwrap();
            server.listeners.push(tcp.try_clone().unwrap());
            let (listener, greeting) = (TcpListener::from(tcp), name.to_owned());
            server.run(move |stopped| {
                for number in 0.. {
                    let Ok((stream, _)) = listener.accept() else {
                        return;
                    };
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let greeting = greeting.clone();
                    connections.serve(number, stream, move |stream| converse(stream, &greeting));
                }
            });
            let (socket, greeting) = (UdpSocket::from(udp), name.to_owned());
            socket.set_read_timeout(Some(LOOK_UP)).unwrap();
            server.run(move |stopped| {
                let mut buffer = [0; 2048];
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(format!("{greeting} {from}").as_bytes(), from);
                    }
                }
            });
        }
        server
    }

    fn run(&mut self, work: impl FnOnce(&AtomicBool) + Send + 'static) {
        let stopped = Arc::clone(&self.stopped);
        self.threads.push(std::thread::spawn(move || work(&stopped)));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for listener in self.listeners.drain(..) {
            // It wakes whoever waits for a connection.
            let _ = listener.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.connections.iter().for_each(Connections::end);
    }
}

fn bound(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn converse(mut stream: &TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let from = stream.peer_addr()?;
    stream.write_all(format!("{name} {from}\n").as_bytes())?;
    io::copy(&mut &*stream, &mut stream)?;
    Ok(())
}

/// Who answered, and whom it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub name: String,
    pub seen: SocketAddr,
}

impl Answer {
    pub fn parse(line: &str) -> io::Result<Self> {
        let parts = line.trim_end().split_once(' ');
        let answer = parts.and_then(|(name, seen)| {
            Some(Self {
                name: name.to_owned(),
                seen: seen.parse().ok()?,
            })
        });
        answer.ok_or_else(|| io::Error::other(format!("not an answer: {line:?}")))
    }
}

/// A connection that has been greeted.
pub struct Call {
    pub stream: TcpStream,
    pub answer: Answer,
}

/// Connects from a sandbox and hears who answers.
pub fn call(from: &Sandbox, to: IpAddr) -> io::Result<Call> {
    call_at(from, to, PORT)
}

/// The same from anywhere, to another port.
pub fn call_at(from: &impl Inside, to: IpAddr, port: u16) -> io::Result<Call> {
    let to = SocketAddr::new(to, port);
    let stream = from
        .run(|| TcpStream::connect_timeout(&to, *PATIENCE))
        .expect("the place is there")?;
    stream.set_read_timeout(Some(*PATIENCE))?;
    stream.set_write_timeout(Some(*PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut line = String::new();
    // A byte at a time, so that nothing that follows is swallowed by a buffer.
    BufReader::with_capacity(1, &stream).read_line(&mut line)?;
    let answer = Answer::parse(&line)?;
    Ok(Call { stream, answer })
}

/// How often each replica answers `count` calls in a row.
pub fn spread(from: &Sandbox, to: IpAddr, count: usize) -> BTreeMap<String, usize> {
    try_spread(from, to, count).unwrap_or_else(|error| panic!("{error}"))
}

/// The same where a call may still meet a replica that has just died.
pub fn try_spread(from: &Sandbox, to: IpAddr, count: usize) -> Result<BTreeMap<String, usize>, String> {
    let mut spread = BTreeMap::new();
    for n in 0..count {
        let call = call(from, to).map_err(|error| format!("call {n} to {to}: {error}"))?;
        *spread.entry(call.answer.name).or_default() += 1;
    }
    Ok(spread)
}

/// Waits until so many replicas answer, and nobody fails to.
pub fn answering(from: &Sandbox, to: IpAddr, replicas: usize) {
    super::bed::soon(format!("{replicas} replicas behind {to}"), || {
        match try_spread(from, to, 2 * replicas)? {
            spread if spread.len() == replicas => Ok(()),
            spread => Err(format!("{spread:?}")),
        }
    });
}

/// A socket in a sandbox that talks to one address.
pub fn datagrams(from: &Sandbox, to: IpAddr) -> UdpSocket {
    datagrams_at(from, to, PORT)
}

/// The same anywhere, for another port.
pub fn datagrams_at(from: &impl Inside, to: IpAddr, port: u16) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() {
        [0_u8; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = from.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    // Connected: it takes answers from that address only.
    from.run(|| socket.connect((to, port))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

/// Asks over UDP who is there, again when a datagram is lost.
pub fn ask(socket: &UdpSocket) -> io::Result<Answer> {
    let deadline = Instant::now() + *PATIENCE;
    loop {
        socket.send(b"?")?;
        let mut buffer = [0; 256];
        match socket.recv(&mut buffer) {
            Ok(length) => return Answer::parse(&String::from_utf8_lossy(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

/// A connection on which numbers go to and fro: none may be missing, twice or late.
pub struct Stream {
    pub name: String,
    stop: Sender<()>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<Duration>>,
}

/// What came of a [`Stream`].
#[derive(Debug)]
pub struct Streamed {
    pub rounds: u64,
    /// The longest that a number took.
    pub slowest: Duration,
}

impl Stream {
    pub fn open(name: &str, from: &Sandbox, to: IpAddr) -> Self {
        Self::over(
            name,
            call(from, to).unwrap_or_else(|error| panic!("{name}: {error}")),
        )
    }

    /// On a connection that is open.
    pub fn over(name: &str, Call { mut stream, .. }: Call) -> Self {
        let (stop, stopped) = channel();
        let rounds = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&rounds);
        let thread = std::thread::spawn(move || {
            let mut slowest = Duration::ZERO;
            loop {
                let round = count.load(Ordering::Relaxed);
                let started = Instant::now();
                stream.write_all(&round.to_be_bytes())?;
                let mut back = [0; 8];
                stream.read_exact(&mut back)?;
                slowest = slowest.max(started.elapsed());
                if u64::from_be_bytes(back) != round {
                    return Err(io::Error::other(format!("{round} came back as {back:?}")));
                }
                count.store(round + 1, Ordering::Relaxed);
                match stopped.recv_timeout(PACE) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => break,
                }
            }
            // The end is orderly too: what the other end has left to say is nothing.
            stream.shutdown(Shutdown::Write)?;
            match stream.read(&mut [0])? {
                0 => Ok(slowest),
                _ => Err(io::Error::other("more came back than was sent")),
            }
        });
        Self {
            name: name.to_owned(),
            stop,
            rounds,
            thread,
        }
    }

    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    pub fn reaches(&self, until: u64) {
        super::bed::soon(format!("round {until} of {}", self.name), || {
            assert!(
                !self.thread.is_finished() || self.rounds() >= until,
                "{} broke",
                self.name
            );
            let rounds = self.rounds();
            if rounds >= until {
                Ok(())
            } else {
                Err(format!("round {rounds}"))
            }
        });
    }

    /// Waits until it breaks, and says how it did.
    pub fn broken(self) -> io::Error {
        super::bed::soon(format!("the end of the stream to {}", self.name), || {
            if self.thread.is_finished() {
                Ok(())
            } else {
                Err("it goes on")
            }
        });
        self.thread.join().unwrap().expect_err("nobody has ended it well")
    }

    pub fn close(self) -> Streamed {
        drop(self.stop);
        let ended = self.thread.join().unwrap();
        let slowest = ended.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        Streamed {
            rounds: self.rounds.load(Ordering::Relaxed),
            slowest,
        }
    }
}

/// Calls again and again from a thread of its own, each time a new connection.
pub struct Caller {
    stop: Sender<()>,
    heard: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<Vec<String>>,
}

impl Caller {
    pub fn start(from: &Sandbox, to: IpAddr) -> Self {
        let from = from.clone();
        let (stop, stopped) = channel();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let names = Arc::clone(&heard);
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while matches!(stopped.recv_timeout(PACE), Err(RecvTimeoutError::Timeout)) {
                match call(&from, to) {
                    Ok(call) => names.lock().unwrap().push(call.answer.name),
                    Err(error) => failures.push(format!("call {}: {error}", names.lock().unwrap().len())),
                }
            }
            failures
        });
        Self { stop, heard, thread }
    }

    pub fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    /// Who answered the last so many calls.
    pub fn last(&self, calls: usize) -> BTreeSet<String> {
        let heard = self.heard.lock().unwrap();
        heard.iter().rev().take(calls).cloned().collect()
    }

    fn reaches(&self, until: usize) {
        super::bed::soon(format!("call {until}"), || {
            let count = self.count();
            if count >= until {
                Ok(())
            } else {
                Err(format!("call {count}"))
            }
        });
    }

    /// The names of those who answered, in order, and what failed.
    pub fn stop(self) -> (Vec<String>, Vec<String>) {
        drop(self.stop);
        let failures = self.thread.join().unwrap();
        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        (heard, failures)
    }
}

/// Waits until this much more has happened on every one of them.
pub fn all_go_on(streams: &[Stream], callers: &[Caller], more: u64) {
    let streams: Vec<_> = streams
        .iter()
        .map(|stream| (stream, stream.rounds() + more))
        .collect();
    let callers: Vec<_> = callers
        .iter()
        .map(|caller| (caller, caller.count() + more as usize))
        .collect();
    streams
        .into_iter()
        .for_each(|(stream, until)| stream.reaches(until));
    callers
        .into_iter()
        .for_each(|(caller, until)| caller.reaches(until));
}
