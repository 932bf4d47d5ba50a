//! Threads that hand each other sources over, with streams of numbers for packets.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use super::*;

/// Four threads of either kind.
const PROCESSORS: usize = 8;
const CYCLES: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);
const NOBODY: usize = usize::MAX;

/// Where numbers come from, and what was seen of them.
struct Stream {
    source: Source,
    from: UnixStream,
    to: UnixStream,
    /// The number that is next.
    next: AtomicU32,
    is_read: AtomicBool,
    /// Who took the last.
    reader: AtomicUsize,
}

impl Stream {
    fn new(source: Source) -> Self {
        let (from, to) = UnixStream::pair().unwrap();
        from.set_write_timeout(Some(PATIENCE)).unwrap();
        to.set_nonblocking(true).unwrap();
        Self {
            source,
            from,
            to,
            next: AtomicU32::new(0),
            is_read: AtomicBool::new(false),
            reader: AtomicUsize::new(NOBODY),
        }
    }

    /// As from a device: some, in order, by one at a time.
    fn take(&self, reader: usize, wrong: &AtomicBool) -> Taken {
        let is_alone = !self.is_read.swap(true, SeqCst);
        let mut bytes = [0; 4 * 32];
        let length = (&self.to).read(&mut bytes).unwrap_or(0);
        let numbers = bytes[..length].chunks(4);
        let taken = Taken {
            packets: numbers.len(),
            bytes: length,
        };
        for number in numbers {
            // Others have a chance to come in between.
            thread::yield_now();
            let is_next = number == self.next.load(SeqCst).to_le_bytes();
            if !is_next || !is_alone {
                wrong.store(true, SeqCst);
            }
            self.next.fetch_add(1, SeqCst);
        }
        if length > 0 {
            self.reader.store(reader, SeqCst);
        }
        self.is_read.store(false, SeqCst);
        taken
    }
}

fn index(worker: Worker) -> usize {
    match worker {
        Worker::Sends(index) => index,
        Worker::Receives(index) => PROCESSORS / 2 + index,
    }
}

/// Sends numbers to all, a few at a time, until each was last read by whoever should.
fn send_until(streams: &[Stream], sent: &mut u32, at_a_time: u32, readers: impl Fn(&Stream) -> usize) {
    let until = Instant::now() + PATIENCE;
    while streams
        .iter()
        .any(|stream| stream.reader.load(SeqCst) != readers(stream))
    {
        let who: Vec<_> = streams.iter().map(|stream| stream.reader.load(SeqCst)).collect();
        assert!(Instant::now() < until, "{who:?} read last");
        for number in *sent..*sent + at_a_time {
            for stream in streams {
                (&stream.from).write_all(&number.to_le_bytes()).unwrap();
            }
        }
        *sent += at_a_time;
        if at_a_time == 1 {
            thread::park_timeout(Duration::from_millis(2));
        }
    }
}

#[test]
fn each_takes_its_own_while_there_is_much_and_the_first_all_while_there_is_little_and_never_two_at_once() {
    let workers = Arc::new(Workers::new(PROCESSORS).unwrap());
    let devices = (4096..4100).map(|vni| Source::Device(Vni::try_from(vni).unwrap()));
    let sockets = (0..4).map(|pair| Source::Socket {
        pair,
        v6: pair % 2 == 1,
    });
    let streams: Arc<[Stream]> = devices.chain(sockets).map(Stream::new).collect();
    for stream in &*streams {
        workers.watch(stream.source, &stream.to).unwrap();
    }
    let wrong = Arc::new(AtomicBool::new(false));
    let clock = Clock::default();
    for worker in workers.all() {
        let (workers, streams, wrong) = (Arc::clone(&workers), Arc::clone(&streams), Arc::clone(&wrong));
        // It ends with the tests.
        thread::spawn(move || {
            workers.run(worker, clock, |source, _| {
                let is_it = |stream: &&Stream| stream.source.data() == source.data();
                let stream = streams.iter().find(is_it).unwrap();
                stream.take(index(worker), &wrong)
            });
        });
    }
    let mut sent = 0;
    for _ in 0..CYCLES {
        send_until(&streams, &mut sent, 1, |_| index(Worker::FIRST));
        send_until(&streams, &mut sent, 100, |stream| {
            index(workers.owner(stream.source))
        });
    }
    send_until(&streams, &mut sent, 1, |_| index(Worker::FIRST));
    let until = Instant::now() + PATIENCE;
    while streams.iter().any(|stream| stream.next.load(SeqCst) < sent) {
        assert!(Instant::now() < until, "not all of {sent} numbers arrived");
        thread::park_timeout(Duration::from_millis(2));
    }
    assert!(!wrong.load(SeqCst), "two at one source, or numbers out of order");
}
