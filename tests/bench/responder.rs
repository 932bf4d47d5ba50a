//! Servers that do next to nothing, so that what is measured is the way to them. They run as processes of their own.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use netns_harness::{Inside, Output, Process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::dns;

/// The first argument of a process that is to be one.
const ROLE: &str = "responder";
const READY: &str = "ready";

/// What is served.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A short answer to each HTTP request; after one with `Connection: close` the connection is closed.
    Http,
    /// Every datagram comes back, marked as an answer in the way of DNS.
    Udp,
    /// Our DNS server with so many names.
    Names(u32),
}

/// What this process is asked to serve, if that is what it is for.
pub fn asked_for() -> Option<Result<(Kind, SocketAddr)>> {
    let mut args = std::env::args().skip(1);
    if args.next()? != ROLE {
        return None;
    }
    let parse = || {
        let kind = match args.next().as_deref() {
            Some("http") => Kind::Http,
            Some("udp") => Kind::Udp,
            Some(names) if names.starts_with("names=") => Kind::Names(names["names=".len()..].parse()?),
            other => bail!("no responder for {other:?}"),
        };
        Ok((kind, args.next().context("no address")?.parse()?))
    };
    Some({ parse }())
}

/// Starts one inside and waits until it can be asked.
pub fn start(place: &impl Inside, kind: Kind, at: SocketAddr) -> Result<Process> {
    start_by(place, Command::new(std::env::current_exe()?), kind, at)
}

/// The same, by a command that executes what it is given, ourselves being given already.
pub fn start_by(place: &impl Inside, mut command: Command, kind: Kind, at: SocketAddr) -> Result<Process> {
    let word = match kind {
        Kind::Http => "http".to_owned(),
        Kind::Udp => "udp".to_owned(),
        Kind::Names(count) => format!("names={count}"),
    };
    command.args([ROLE, &word, &at.to_string()]);
    let process = place.spawn(&mut command, Output::Keep)?;
    process.wait_for_line(Duration::from_secs(5), |line| line == READY)?;
    Ok(process)
}

/// Serves until killed.
pub fn run((kind, at): (Kind, SocketAddr)) -> Result<()> {
    match kind {
        Kind::Udp => udp(at),
        Kind::Http => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?;
            runtime.block_on(http(at))
        }
        Kind::Names(count) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(dns::serve_many(at, count, || println!("{READY}")))
        }
    }
}

fn udp(at: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(at)?;
    println!("{READY}");
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        // QR, the first bit of the third byte (RFC 1035, section 4.1.1).
        buffer[2] |= 0x80;
        // A full queue loses datagrams, as networks do.
        let _ = socket.send_to(&buffer[..length], from);
    }
}

async fn http(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at).await?;
    println!("{READY}");
    loop {
        let (stream, _) = listener.accept().await?;
        // A client that goes away in the midst of it is its own affair.
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
    const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nok\n";
    stream.set_nodelay(true)?;
    let mut request = Vec::with_capacity(1024);
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            if request.len() > 8192 || stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        if request.windows(5).any(|word| word == b"close") {
            stream.write_all(LAST_ANSWER).await?;
            return Ok(stream.shutdown().await?);
        }
        stream.write_all(ANSWER).await?;
    }
}
