//! Numbered datagrams from every endpoint to every other, all the time. Each names whom it is for.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use netns_harness::{Inside, Sandbox};
use nix::sys::socket::{setsockopt, sockopt};

use crate::heard::{Heard, Hole};

const PORT: u16 = 9000;
/// Between two datagrams of a flow.
const PACE: Duration = Duration::from_millis(10);
/// How often a receiver that hears nothing looks whether it is to stop.
const LOOK_UP: Duration = Duration::from_millis(100);
const MAGIC: &[u8; 8] = b"campaign";
/// As long as the network takes them: every so many of a flow.
const LONG_ONE_IN: u64 = 16;
const LONG: usize = 1422;
/// The same where it is encrypted.
const LONG_ENCRYPTED: usize = 1362;
const SHORT: usize = 64;
/// Datagrams wait in it for a receiver that gets no processor.
const BUFFER: usize = 8 << 20;
/// The incarnations of the endpoint that moves are numbered from here.
pub const MOVER: u32 = 1000;

/// All flows among so many endpoints, and to one more that moves from host to host.
pub struct Ledger {
    began: Instant,
    endpoints: usize,
    flows: Vec<Flow>,
    addresses: Vec<IpAddr>,
    long: usize,
    /// Which incarnation of the one that moves is sent to; zero while there is none.
    mover: AtomicU32,
    strays: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Flow {
    sent: AtomicU64,
    /// Of those, what the sender's own host did not take.
    refused: AtomicU64,
    heard: Mutex<Heard>,
}

/// How far each flow was at one time.
pub struct Mark(Vec<u64>);

/// What was lost of a flow in some time.
#[derive(Debug)]
pub struct Lost {
    pub from: usize,
    pub to: usize,
    pub datagrams: u64,
    pub longest: Duration,
}

/// What all flows came to.
#[derive(Debug, Default)]
pub struct Totals {
    pub sent: u64,
    pub refused: u64,
    pub received: u64,
    pub twice: u64,
    pub late: u64,
}

impl Ledger {
    /// The last address is the one that moves.
    pub fn new(addresses: Vec<IpAddr>, is_encrypted: bool) -> Arc<Self> {
        let endpoints = addresses.len() - 1;
        Arc::new(Self {
            began: Instant::now(),
            endpoints,
            flows: (0..endpoints * addresses.len())
                .map(|_| Flow::default())
                .collect(),
            addresses,
            long: if is_encrypted { LONG_ENCRYPTED } else { LONG },
            mover: AtomicU32::new(0),
            strays: Mutex::default(),
        })
    }

    fn flow(&self, from: usize, to: usize) -> &Flow {
        &self.flows[from * self.addresses.len() + to]
    }

    /// All flows with their ends; the one that moves has the highest number.
    fn each(&self) -> impl Iterator<Item = (usize, usize, &Flow)> {
        let count = self.addresses.len();
        let flows = self.flows.iter().enumerate();
        flows
            .map(move |(at, flow)| (at / count, at % count, flow))
            .filter(|(from, to, _)| from != to)
    }

    pub fn mark(&self) -> Mark {
        Mark(self.flows.iter().map(|flow| flow.sent.load(Relaxed)).collect())
    }

    /// Whether every flow has gone on after a mark.
    pub fn is_past(&self, mark: &Mark) -> Result<(), String> {
        let stuck = self.each().filter(|(from, to, flow)| {
            !flow
                .heard
                .lock()
                .unwrap()
                .is_past(mark.0[from * self.addresses.len() + to])
        });
        let stuck: Vec<String> = stuck
            .map(|(from, to, _)| format!("{} to {}", self.name(from), self.name(to)))
            .collect();
        if stuck.is_empty() {
            Ok(())
        } else {
            Err(format!("no datagrams from {}", stuck.join(", ")))
        }
    }

    /// What was sent between two marks and did not arrive.
    pub fn lost_between(&self, begin: &Mark, end: &Mark) -> Vec<Lost> {
        let lost = self.each().filter_map(|(from, to, flow)| {
            let at = from * self.addresses.len() + to;
            let heard = flow.heard.lock().unwrap();
            let holes: Vec<&Hole> = heard.holes_in(begin.0[at]..end.0[at]).collect();
            let longest = holes.iter().map(|hole| hole.lasted).max()?;
            Some(Lost {
                from,
                to,
                datagrams: holes
                    .iter()
                    .map(|hole| hole.numbers.end - hole.numbers.start)
                    .sum(),
                longest,
            })
        });
        lost.collect()
    }

    /// `h3`, or `m` for the one that moves.
    pub fn name(&self, endpoint: usize) -> String {
        if endpoint == self.endpoints {
            "m".into()
        } else {
            format!("h{}", endpoint + 1)
        }
    }

    /// Nobody sends to the one that moves any more.
    pub fn pause_mover(&self) {
        self.mover.store(0, Relaxed);
    }

    /// They do again, to another incarnation.
    pub fn resume_mover(&self, incarnation: u32) {
        let now = self.began.elapsed();
        for (_, _, flow) in self.each().filter(|(_, to, _)| *to == self.endpoints) {
            flow.heard.lock().unwrap().resume(now);
        }
        self.mover.store(incarnation, Relaxed);
    }

    /// Datagrams that came to somebody they were not for.
    pub fn strays(&self) -> Vec<String> {
        std::mem::take(&mut *self.strays.lock().unwrap())
    }

    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (_, _, flow) in self.each() {
            let heard = flow.heard.lock().unwrap();
            totals.sent += flow.sent.load(Relaxed);
            totals.refused += flow.refused.load(Relaxed);
            totals.received += heard.received;
            totals.twice += heard.twice;
            totals.late += heard.late;
        }
        totals
    }

    fn send_all(&self, from: usize, sockets: &[UdpSocket]) {
        for (to, address) in self.addresses.iter().enumerate().filter(|(to, _)| *to != from) {
            let incarnation = match to == self.endpoints {
                true => self.mover.load(Relaxed),
                false => to as u32,
            };
            if to == self.endpoints && incarnation == 0 {
                continue;
            }
            let flow = self.flow(from, to);
            let number = flow.sent.fetch_add(1, Relaxed);
            let datagram = write(from as u32, incarnation, number, self.began.elapsed());
            let length = if number.is_multiple_of(LONG_ONE_IN) {
                self.long
            } else {
                SHORT
            };
            if sockets[to]
                .send_to(&datagram[..length], SocketAddr::new(*address, PORT))
                .is_err()
            {
                flow.refused.fetch_add(1, Relaxed);
            }
        }
    }

    fn hear(&self, me: u32, bytes: &[u8]) {
        let Some((from, to, number, sent_at)) = read(bytes) else {
            self.stray(format!(
                "{} bytes that nobody here sends came to {me}",
                bytes.len()
            ));
            return;
        };
        if to != me {
            self.stray(format!("datagram {number} from {from} to {to} came to {me}"));
            return;
        }
        let to = if to >= MOVER { self.endpoints } else { to as usize };
        self.flow(from as usize, to)
            .heard
            .lock()
            .unwrap()
            .note(number, sent_at);
    }

    fn stray(&self, what: String) {
        self.strays.lock().unwrap().push(what);
    }
}

fn write(from: u32, to: u32, number: u64, sent_at: Duration) -> [u8; LONG] {
    let mut bytes = [0; LONG];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&from.to_be_bytes());
    bytes[12..16].copy_from_slice(&to.to_be_bytes());
    bytes[16..24].copy_from_slice(&number.to_be_bytes());
    bytes[24..32].copy_from_slice(&(sent_at.as_nanos() as u64).to_be_bytes());
    bytes
}

fn read(bytes: &[u8]) -> Option<(u32, u32, u64, Duration)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let word = |at: usize| Some(u32::from_be_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_be_bytes(rest.get(at..at + 8)?.try_into().ok()?));
    Some((word(0)?, word(4)?, long(8)?, Duration::from_nanos(long(16)?)))
}

/// One end of all flows of an endpoint. Its threads end soon after it is dropped.
pub struct Speaker {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Speaker {
    /// Sends to everybody and hears from everybody, or as an incarnation of the one that moves only hears.
    pub fn start(place: &Sandbox, me: u32, ledger: &Arc<Ledger>) -> Self {
        let socket = place.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
        // Who is not root has to do with less.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER).unwrap();
        }
        socket.set_read_timeout(Some(LOOK_UP)).unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let mut speaker = Self {
            stopped,
            threads: Vec::new(),
        };
        let all = Arc::clone(ledger);
        speaker.run(move |stopped| {
            let mut bytes = [0; 2048];
            while !stopped.load(Relaxed) {
                match socket.recv(&mut bytes) {
                    Ok(length) => all.hear(me, &bytes[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // What was sent was refused, which the receiver's side counts.
                    Err(_) => {}
                }
            }
        });
        if me < MOVER {
            // One for each, without waiting: what is kept for a host that does not answer would hold up the rest.
            let mouth = |_| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            let mouths = place.run(|| ledger.addresses.iter().map(mouth).collect::<io::Result<Vec<_>>>());
            let (all, mouths) = (Arc::clone(ledger), mouths.unwrap().unwrap());
            speaker.run(move |stopped| {
                while !stopped.load(Relaxed) {
                    all.send_all(me as usize, &mouths);
                    thread::park_timeout(PACE);
                }
            });
        }
        speaker
    }

    fn run(&mut self, work: impl FnOnce(&AtomicBool) + Send + 'static) {
        let stopped = Arc::clone(&self.stopped);
        self.threads.push(thread::spawn(move || work(&stopped)));
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}
