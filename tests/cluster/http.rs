//! HTTP as far as it takes to notice a lost request.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use netns_harness::{Inside, Sandbox};
use socket2::{Domain, Socket, Type};

use super::traffic::{Connections, PATIENCE, PORT};

/// Answers every request with its name, until it is dropped: then, like a process that ends, it is gone at once with
/// all its connections.
pub struct HttpServer {
    listener: Socket,
    stopped: Arc<AtomicBool>,
    connections: Connections,
    accepting: Option<JoinHandle<()>>,
}

impl HttpServer {
    pub fn start(place: &Sandbox, name: &str) -> Self {
        let bind = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into())?;
            socket.listen(1024)?;
            io::Result::Ok(socket)
        };
        let listener = place.run(bind).unwrap().unwrap();
        let accept = TcpListener::from(listener.try_clone().unwrap());
        let (stopped, connections) = (Arc::new(AtomicBool::new(false)), Connections::default());
        let (stop, open, body) = (Arc::clone(&stopped), connections.clone(), name.to_owned());
        let accepting = std::thread::spawn(move || {
            for number in 0.. {
                let Ok((stream, _)) = accept.accept() else { return };
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let body = body.clone();
                open.serve(number, stream, move |stream| serve(stream, &body));
            }
        });
        Self {
            listener,
            stopped,
            connections,
            accepting: Some(accepting),
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = self.listener.shutdown(Shutdown::Both);
        let _ = self.accepting.take().map(JoinHandle::join);
        self.connections.end();
    }
}

fn serve(stream: &TcpStream, body: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let head = read_head(&mut reader)?;
        if head.is_empty() {
            return Ok(());
        }
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        (&mut &*stream).write_all(answer.as_bytes())?;
        if head.contains("Connection: close") {
            // Whoever ends a connection keeps its port for a minute: clients would run out of them.
            return Ok(());
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return if head.is_empty() {
                Ok(head)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
    }
    Ok(head)
}

/// Requests one after the other from one place, each as soon as the last one is answered.
pub struct Requests {
    stopped: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Requests {
    /// So many `per_connection`.
    pub fn start(from: &Sandbox, to: IpAddr, per_connection: u32) -> Self {
        let (stopped, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, count, from) = (Arc::clone(&stopped), Arc::clone(&answered), from.clone());
        let to = SocketAddr::new(to, PORT);
        let work = move || {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) && failures.len() < 20 {
                if let Err(error) = converse(to, per_connection, &count) {
                    failures.push(format!(
                        "after {} requests: {error}",
                        count.load(Ordering::Relaxed)
                    ));
                }
            }
            failures
        };
        let thread = std::thread::spawn(move || from.run(work).unwrap());
        Self {
            stopped,
            answered,
            thread,
        }
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// How many were answered, and why others were not.
    pub fn stop(self) -> (u64, Vec<String>) {
        self.stopped.store(true, Ordering::Relaxed);
        let failures = self.thread.join().unwrap();
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

fn converse(to: SocketAddr, requests: u32, answered: &AtomicU64) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&to, *PATIENCE)?;
    stream.set_read_timeout(Some(*PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(&stream);
    for left in (0..requests).rev() {
        let close = if left == 0 { "Connection: close\r\n" } else { "" };
        (&mut &stream).write_all(format!("GET / HTTP/1.1\r\nHost: web\r\n{close}\r\n").as_bytes())?;
        let head = read_head(&mut reader)?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        let length = length.ok_or_else(|| io::Error::other(format!("no answer: {head:?}")))?;
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        answered.fetch_add(1, Ordering::Relaxed);
    }
    reader.read_to_end(&mut Vec::new())?;
    Ok(())
}
