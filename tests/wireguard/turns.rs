//! The threads of the process, which hand their sources over to each other.

use std::{
    fs,
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use netns_harness::Inside;

use crate::{
    bed::{Node, PATIENCE, container, on_two},
    traffic::{CANARY, Talks},
};

const CYCLES: usize = 6;
/// Datagrams that have not arrived yet, at most: fewer than any queue on the way has room for, that of the receiving socket (208 KiB, with what
/// the kernel keeps beside each) included.
const ON_THEIR_WAY: u64 = 64;
/// With so many the threads have begun to take their own, and had much to take.
const BURST: u64 = 4_000;
/// Of so many, sent one at a time, none was taken by another thread than the first: they are together.
const DRIP: u64 = 20;

/// How often threads that receive have waited. Those that rest do not.
fn waits(node: &Node) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.process().pid())).unwrap();
    let tasks: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
    let receives = tasks.iter().filter(|task| {
        fs::read_to_string(task.join("comm"))
            .unwrap()
            .starts_with("receive-")
    });
    let waits = receives.map(|task| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    });
    waits.sum()
}

struct Flow<'a> {
    socket: UdpSocket,
    sent: u64,
    arrived: &'a AtomicU64,
    is_over: &'a AtomicBool,
}

/// Whoever waits for more need not, whether that is the end or a failure.
impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
    }
}

impl Flow<'_> {
    /// Sends datagrams with their numbers, so many of them on their way at most.
    fn send(&mut self, count: u64, on_their_way: u64) {
        for _ in 0..count {
            self.socket.send(&self.sent.to_le_bytes()).unwrap();
            self.sent += 1;
            let until = Instant::now() + *PATIENCE;
            while self.sent - self.arrived.load(SeqCst) >= on_their_way {
                assert!(
                    Instant::now() < until,
                    "of {} datagrams only {} arrived",
                    self.sent,
                    self.arrived.load(SeqCst)
                );
                thread::yield_now();
            }
        }
    }
}

#[test]
fn nothing_is_lost_or_late_when_one_thread_takes_all_and_when_each_takes_its_own_again() {
    on_two(|_, one, two| {
        one.asks(two, false).unwrap();
        let server = two.pod.run(|| UdpSocket::bind((container(2, false), 0)));
        let server = server.unwrap().unwrap();
        let socket = one.pod.run(|| UdpSocket::bind((container(1, false), 0)));
        let socket = socket.unwrap().unwrap();
        socket.connect(server.local_addr().unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (arrived, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut bytes = [0; CANARY.len()];
                while !is_over.load(SeqCst) {
                    if let Ok(length) = server.recv(&mut bytes) {
                        let next = arrived.load(SeqCst);
                        // After one that is lost or late no other counts, and the sender sees it.
                        if bytes[..length] == next.to_le_bytes() {
                            arrived.store(next + 1, SeqCst);
                        }
                    }
                }
            });
            let mut flow = Flow {
                socket,
                sent: 0,
                arrived: &arrived,
                is_over: &is_over,
            };
            for cycle in 0..CYCLES {
                let until = Instant::now() + *PATIENCE;
                loop {
                    let before = waits(two);
                    for _ in 0..DRIP {
                        flow.send(1, 1);
                        thread::park_timeout(Duration::from_millis(2));
                    }
                    if waits(two) == before {
                        break;
                    }
                    assert!(
                        Instant::now() < until,
                        "cycle {cycle}: one thread does not do for one at a time"
                    );
                }
                let before = waits(two);
                while waits(two) == before {
                    assert!(
                        Instant::now() < until,
                        "cycle {cycle}: one thread has to do for everything"
                    );
                    flow.send(BURST, ON_THEIR_WAY);
                }
            }
            flow.send(1, 1);
        });
    });
}
