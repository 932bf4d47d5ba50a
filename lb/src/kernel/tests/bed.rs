//! A client and a host of backends, each a namespace, joined by a veth pair; real sockets in both.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    num::NonZeroU16,
    os::fd::AsFd,
    process::Command,
    time::{Duration, Instant},
};

use weft_netlink::{
    netns::Netns,
    route::{Batch, NewLink, RouteSocket, VethPeer},
};
use weft_types::{EndpointId, NetworkId, ServiceId};

use crate::{Backend, BackendState, ClientTable, Scheduler, Service};

pub(in crate::kernel) const PATIENCE: Duration = Duration::from_secs(10);
pub(in crate::kernel) const VIP: &str = "10.9.0.100";
pub(in crate::kernel) const VIP6: &str = "fd09::100";
pub(in crate::kernel) const PORT: u16 = 8000;

pub(in crate::kernel) struct Bed {
    pub(in crate::kernel) client: Netns,
    pub(in crate::kernel) server: Netns,
}

/// One answer: the address of the backend, and the client's as the backend sees it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kernel) struct Answer {
    pub(in crate::kernel) backend: IpAddr,
    pub(in crate::kernel) client: SocketAddr,
}

pub(in crate::kernel) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Bed {
    /// Backends n = 1, 2, 3 listen at 10.9.0.1n and fd09::1n; the client is 10.9.0.1 and fd09::1.
    pub(in crate::kernel) fn new() -> Option<Self> {
        let client = weft_netlink::testing::netns()?;
        let server = Netns::create().unwrap();
        let mut batch = Batch::new();
        batch.add(NewLink::veth("c0", VethPeer::new("s0").netns(server.as_fd())));
        RouteSocket::open(&client).unwrap().execute(batch).unwrap();
        ip_batch(
            &client,
            "link set lo up\nlink set c0 up\naddr add 10.9.0.1/24 dev c0\naddr add fd09::1/64 dev c0 nodad\n",
        );
        let mut lines = String::from("link set lo up\nlink set s0 up\naddr add fd09::2/64 dev s0 nodad\n");
        for n in 1..=3 {
            lines += &format!("addr add 10.9.0.1{n}/24 dev s0\naddr add fd09::1{n}/64 dev s0 nodad\n");
        }
        ip_batch(&server, &lines);
        let bed = Self { client, server };
        for n in 1..=3 {
            for addr in [ip(&format!("10.9.0.1{n}")), ip(&format!("fd09::1{n}"))] {
                serve(&bed.server, addr, PORT);
            }
        }
        Some(bed)
    }

    /// Has the client itself serve too.
    pub(in crate::kernel) fn serve_at_client(&self, addr: &str) {
        serve(&self.client, ip(addr), PORT);
    }

    /// A TCP connection from the client, and who answered. It stays open with the stream.
    pub(in crate::kernel) fn open(&self, vip: &str, port: u16) -> io::Result<(TcpStream, Answer)> {
        let to = SocketAddr::new(ip(vip), port);
        let mut stream = self
            .client
            .run(|| TcpStream::connect_timeout(&to, PATIENCE))
            .unwrap()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let answer = read_answer(&mut stream)?;
        Ok((stream, answer))
    }

    /// A TCP call that is closed again.
    pub(in crate::kernel) fn call(&self, vip: &str, port: u16) -> io::Result<Answer> {
        self.open(vip, port).map(|(_, answer)| answer)
    }

    /// A UDP socket of the client that is connected to the virtual address.
    pub(in crate::kernel) fn udp(&self, vip: &str) -> UdpSocket {
        let any = SocketAddr::new(
            if vip.contains(':') {
                ip("::")
            } else {
                ip("0.0.0.0")
            },
            0,
        );
        let socket = self.client.run(|| UdpSocket::bind(any)).unwrap().unwrap();
        socket.connect((ip(vip), PORT)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// How often each backend answered `n` calls.
    pub(in crate::kernel) fn spread(&self, vip: &str, n: usize) -> BTreeMap<IpAddr, usize> {
        let mut spread = BTreeMap::new();
        for _ in 0..n {
            *spread.entry(self.call(vip, PORT).unwrap().backend).or_default() += 1;
        }
        spread
    }
}

pub(in crate::kernel) fn ask(socket: &UdpSocket) -> io::Result<Answer> {
    socket.send(b"?")?;
    let mut buffer = [0; 256];
    let len = socket.recv(&mut buffer)?;
    Ok(parse(&buffer[..len]))
}

pub(in crate::kernel) fn ip_batch(netns: &Netns, lines: &str) {
    let output = netns
        .run(|| {
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
            ip.wait_with_output().unwrap()
        })
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Answers over TCP, keeping each connection until the other side ends it, and over UDP. The threads end with the
/// test process.
pub(in crate::kernel) fn serve(netns: &Netns, addr: IpAddr, port: u16) {
    let (tcp, udp) = netns
        .run(|| {
            (
                TcpListener::bind((addr, port)).unwrap(),
                UdpSocket::bind((addr, port)).unwrap(),
            )
        })
        .unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            std::thread::spawn(move || hold(stream, addr));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{addr} {client}\n").as_bytes(), client);
        }
    });
}

fn hold(mut stream: TcpStream, addr: IpAddr) -> io::Result<()> {
    let client = stream.peer_addr()?;
    stream.write_all(format!("{addr} {client}\n").as_bytes())?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn read_answer(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.extend_from_slice(&byte);
    }
    Ok(parse(&line))
}

fn parse(line: &[u8]) -> Answer {
    let line = std::str::from_utf8(line).unwrap().trim();
    let (backend, client) = line.split_once(' ').unwrap();
    Answer {
        backend: backend.parse().unwrap(),
        client: client.parse().unwrap(),
    }
}

pub(in crate::kernel) fn endpoint(n: u8) -> EndpointId {
    EndpointId([n; 16])
}

pub(in crate::kernel) fn backend(n: u8) -> Backend {
    Backend {
        endpoint: endpoint(n),
        addrs: vec![ip(&format!("10.9.0.1{n}")), ip(&format!("fd09::1{n}"))],
        weight: NonZeroU16::MIN,
        state: BackendState::Active,
    }
}

pub(in crate::kernel) fn service(scheduler: Scheduler) -> Service {
    Service {
        id: ServiceId([7; 16]),
        vips: vec![ip(VIP), ip(VIP6)],
        ports: vec![],
        scheduler,
        backends: [1, 2, 3].map(backend).to_vec(),
        idle_timeout: None,
        is_watched: false,
    }
}

pub(in crate::kernel) fn table(services: &[Service]) -> Vec<ClientTable> {
    vec![ClientTable::new(NetworkId([0xaa; 16]), services.to_vec())]
}

/// Waits until something is so.
pub(in crate::kernel) fn eventually<T: std::fmt::Debug + PartialEq>(wanted: T, mut now: impl FnMut() -> T) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is = now();
        if is == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "still {is:?}, not {wanted:?}");
        std::thread::yield_now();
    }
}

/// A table of one service.
pub(in crate::kernel) fn only(service: &Service) -> Vec<ClientTable> {
    table(std::slice::from_ref(service))
}
