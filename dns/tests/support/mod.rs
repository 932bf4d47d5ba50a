//! A server on loopback, `dig`, and resolvers that behave as told.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Output,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{RData, Record, rdata::SOA},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};
use weft_dns::{
    Asker, Endpoint, EndpointMode, Forwarder, ForwarderConfig, NetworkZone, Port, Protocol, Server, Service,
    Upstreams, Zone,
};
use weft_types::{EndpointId, NetworkId};

pub(crate) const FRONT: NetworkId = NetworkId([1; 16]);
pub(crate) const BACK: NetworkId = NetworkId([2; 16]);

pub(crate) struct Running {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) zone: Arc<ArcSwap<Zone>>,
}

/// 127.0.0.1 is on `front`, 127.0.0.2 on `back`, which is internal, 127.0.0.3 on both, others on none.
pub(crate) fn start(forwarder: ForwarderConfig) -> Running {
    serve(sockets(), forwarder)
}

/// The same on sockets that may have been sent something already.
pub(crate) fn serve((udp, tcp): Sockets, forwarder: ForwarderConfig) -> Running {
    let address = tcp.local_addr().unwrap();
    let zone = Arc::new(ArcSwap::from_pointee(zone()));
    let asker = Arc::new(|client: IpAddr| {
        Asker::on(match client {
            IpAddr::V4(client) => match client.octets()[3] {
                1 => vec![FRONT],
                2 => vec![BACK],
                3 => vec![BACK, FRONT],
                _ => vec![],
            },
            IpAddr::V6(_) => vec![],
        })
    });
    let server = Server::spawn(udp, tcp, Arc::clone(&zone), asker, Forwarder::new(forwarder)).unwrap();
    Running {
        server,
        address,
        zone,
    }
}

type Sockets = (std::net::UdpSocket, std::net::TcpListener);

/// One port on which both protocols are free.
pub(crate) fn sockets() -> Sockets {
    (0..100)
        .find_map(|_| {
            let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let udp = std::net::UdpSocket::bind(tcp.local_addr().unwrap()).ok()?;
            Some((udp, tcp))
        })
        .expect("a port that is free for TCP and UDP")
}

fn zone() -> Zone {
    let mut front = NetworkZone::new("front", false, vec!["10.32.0.0/16".parse().unwrap()]);
    front.set_endpoint(
        EndpointId([0xa1; 16]),
        Endpoint {
            names: vec!["one".into()],
            addresses: vec![[10, 32, 0, 11].into()],
        },
    );
    let backends = (0..100).map(|n| IpAddr::from([10, 32, 1, n])).collect();
    let web = Service {
        mode: EndpointMode::Vip,
        vips: vec![[10, 32, 0, 2].into()],
        backends,
        ports: vec![Port {
            name: Some("http".into()),
            port: 80,
            target: 8080,
            protocol: Protocol::Tcp,
        }],
    };
    front.set_service("web", web);
    let mut back = NetworkZone::new("back", true, vec!["10.33.0.0/16".parse().unwrap()]);
    back.set_endpoint(
        EndpointId([0xb1; 16]),
        Endpoint {
            names: vec!["db".into()],
            addresses: vec![[10, 33, 0, 11].into()],
        },
    );
    let mut zone = Zone::new("weft.internal").unwrap();
    zone.set_network(FRONT, front);
    zone.set_network(BACK, back);
    zone
}

pub(crate) fn nobody() -> ForwarderConfig {
    upstreams(&[])
}

/// Short times, so that tests of waiting do not wait.
pub(crate) fn upstreams(list: &[SocketAddr]) -> ForwarderConfig {
    ForwarderConfig {
        upstreams: Upstreams::List(list.into()),
        attempt_timeout: Duration::from_millis(150),
        total_timeout: Duration::from_millis(500),
        ..ForwarderConfig::default()
    }
}

impl Running {
    /// What `dig` prints, without what differs from run to run.
    pub(crate) async fn dig(&self, args: &str) -> String {
        let output = self.run_dig(args).await;
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(|line| line.split(", id: ").next().unwrap_or(line).to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    }

    pub(crate) async fn run_dig(&self, args: &str) -> Output {
        tokio::process::Command::new("dig")
            .args(["@127.0.0.1", "-p", &self.address.port().to_string()])
            .args(["+tries=1", "+time=3", "+nocmd", "+nostats", "+nocookie"])
            .args(args.split_whitespace())
            .env("LC_ALL", "C")
            .output()
            .await
            .expect("`dig` runs (package bind9-dnsutils)")
    }
}

/// What a resolver does with a question.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Behaviour {
    Answer(Ipv4Addr),
    Many(u8),
    Code(ResponseCode),
    /// Replies with a wrong id and a wrong name first.
    ForgedFirst(Ipv4Addr),
    /// Replies in lower case, whatever the spelling of the question.
    Lower(Ipv4Addr),
    /// NXDOMAIN, with an SOA record if that may be remembered.
    Unknown {
        is_kept: bool,
    },
    Silent,
}

pub(crate) struct Resolver {
    pub(crate) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    /// Where questions came from and how their names were spelt.
    seen: Arc<Mutex<Vec<(SocketAddr, String)>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Resolver {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let (udp, tcp) = sockets();
        let port = tcp.local_addr().unwrap().port();
        udp.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (udp, tcp) = (
            UdpSocket::from_std(udp).unwrap(),
            TcpListener::from_std(tcp).unwrap(),
        );
        let asked = Arc::new(AtomicUsize::new(0));
        let seen = Arc::default();
        let tasks = [
            tokio::spawn(resolve_udp(udp, behaviour, Arc::clone(&asked), Arc::clone(&seen))),
            tokio::spawn(resolve_tcp(tcp, behaviour, Arc::clone(&asked))),
        ];
        Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            asked,
            seen,
            tasks,
        }
    }

    pub(crate) fn seen(&self) -> Vec<(SocketAddr, String)> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn resolve_udp(
    socket: UdpSocket,
    behaviour: Behaviour,
    asked: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<(SocketAddr, String)>>>,
) {
    let mut buffer = [0; 2048];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        asked.fetch_add(1, Ordering::Relaxed);
        let name = Message::from_vec(&buffer[..length]).unwrap().queries[0]
            .name()
            .to_string();
        seen.lock().unwrap().push((client, name));
        for reply in replies(&buffer[..length], behaviour) {
            socket.send_to(&reply, client).await.unwrap();
        }
    }
}

async fn resolve_tcp(listener: TcpListener, behaviour: Behaviour, asked: Arc<AtomicUsize>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut message = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut message).await.unwrap();
        asked.fetch_add(1, Ordering::Relaxed);
        for reply in replies(&message, behaviour) {
            stream.write_u16(reply.len() as u16).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    }
}

fn replies(message: &[u8], behaviour: Behaviour) -> Vec<Vec<u8>> {
    let mut message = Message::from_vec(message).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.authentic_data = false;
    let name = message.queries[0].name().clone();
    let address = |address: Ipv4Addr| Record::from_rdata(name.clone(), 300, RData::A(address.into()));
    match behaviour {
        Behaviour::Silent => return vec![],
        Behaviour::Code(code) => message.metadata.response_code = code,
        Behaviour::Answer(answer) | Behaviour::ForgedFirst(answer) => message.answers.push(address(answer)),
        Behaviour::Lower(answer) => {
            message.answers.push(address(answer));
            let query = Query::query(name.to_lowercase(), message.queries[0].query_type());
            message.queries = vec![query];
        }
        Behaviour::Unknown { is_kept } => {
            message.metadata.response_code = ResponseCode::NXDomain;
            if is_kept {
                let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, 60);
                let soa = Record::from_rdata(name.base_name(), 300, RData::SOA(soa));
                message.authorities.push(soa);
            }
        }
        Behaviour::Many(count) => {
            message
                .answers
                .extend((0..count).map(|n| address(Ipv4Addr::new(192, 0, 2, n))));
        }
    }
    let real = message.to_vec().unwrap();
    if let Behaviour::ForgedFirst(_) = behaviour {
        let mut wrong_id = real.clone();
        wrong_id[1] ^= 1;
        let mut wrong_name = real.clone();
        wrong_name[13] ^= 1;
        return vec![wrong_id, wrong_name, real];
    }
    vec![real]
}
