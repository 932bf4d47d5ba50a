//! Clients that are slow, greedy or talk nonsense.

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use support::{Running, nobody, serve, sockets, start};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::Instant,
};

impl Running {
    async fn connect(&self, from: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        socket
            .connect(([127, 0, 0, 1], self.address.port()).into())
            .await
            .unwrap()
    }
}

/// The question `one. A`, with its length before it.
const QUESTION: [u8; 23] = *b"\0\x15\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03one\0\0\x01\0\x01";

async fn ask(stream: &mut TcpStream) -> Vec<u8> {
    stream.write_all(&QUESTION).await.unwrap();
    let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut reply).await.unwrap();
    reply
}

/// Bytes until the other side closes, which it does by FIN or, with unread data, by RST.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes).await {
        Ok(_) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_connection_answers_many_questions_in_order() {
    let running = start(nobody());
    let mut stream = running.connect([127, 0, 0, 1]).await;
    for _ in 0..100 {
        let reply = ask(&mut stream).await;
        assert_eq!(
            (&reply[..2], &reply[reply.len() - 4..]),
            (&[0x12, 0x34][..], &[10, 32, 0, 11][..])
        );
    }
    // Several in one segment, and one in two.
    stream
        .write_all(&[&QUESTION[..], &QUESTION[..], &QUESTION[..10]].concat())
        .await
        .unwrap();
    stream.write_all(&QUESTION[10..]).await.unwrap();
    let mut replies = vec![0; 3 * (2 + 40)];
    stream.read_exact(&mut replies).await.unwrap();
}

#[tokio::test]
async fn a_greedy_client_is_limited_and_others_are_served() {
    let running = start(nobody());
    let mut greedy = Vec::new();
    for _ in 0..8 {
        let mut stream = running.connect([127, 0, 0, 1]).await;
        ask(&mut stream).await;
        greedy.push(stream);
    }
    assert!(rest(&mut running.connect([127, 0, 0, 1]).await).await.is_empty());
    assert_eq!(ask(&mut running.connect([127, 0, 0, 3]).await).await.len(), 40);
    assert_eq!(running.dig("one +short").await, "10.32.0.11");
    assert_eq!(running.server.counts().connections_refused, 1);
    // A closed connection makes room, as soon as the server has seen it.
    drop(greedy.pop());
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let mut stream = running.connect([127, 0, 0, 1]).await;
        stream.write_all(&QUESTION).await.unwrap();
        if stream.read_u16().await.is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "a closed connection still counts");
    }
}

#[tokio::test]
async fn a_thousand_slow_clients_keep_nobody_out() {
    let running = start(nobody());
    let mut slow = Vec::new();
    for client in 0..125 {
        for _ in 0..8 {
            let mut stream = running.connect([127, 0, 1, client]).await;
            // Half a question; the connection may be gone already.
            let _ = stream.write_all(&QUESTION[..10]).await;
            slow.push(stream);
        }
    }
    for _ in 0..8 {
        assert_eq!(ask(&mut running.connect([127, 0, 0, 3]).await).await.len(), 40);
    }
    assert_eq!(running.dig("one +short").await, "10.32.0.11");
    assert_eq!(running.dig("one +short +tcp").await, "10.32.0.11");
    // The oldest made room.
    assert!(rest(&mut slow[0]).await.is_empty());
    assert!(running.server.counts().connections_refused >= 1_000 - 128);
}

#[tokio::test]
async fn silent_and_dripping_connections_are_closed_after_five_seconds() {
    let running = start(nobody());
    let close = async |sent: &[u8]| {
        let mut stream = running.connect([127, 0, 0, 1]).await;
        let before = Instant::now();
        stream.write_all(sent).await.unwrap();
        assert!(rest(&mut stream).await.is_empty());
        before.elapsed().as_secs()
    };
    let drip = async || {
        let (mut read, mut write) = running.connect([127, 0, 0, 1]).await.into_split();
        let before = Instant::now();
        let dripping = tokio::spawn(async move {
            let mut timer = tokio::time::interval(Duration::from_millis(900));
            for byte in QUESTION {
                timer.tick().await;
                if write.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        });
        // The last byte may meet a closed connection, and is answered with a reset then.
        let _ = read.read_to_end(&mut Vec::new()).await;
        dripping.abort();
        before.elapsed().as_secs()
    };
    let times = tokio::join!(
        close(&[]),
        close(&QUESTION[..1]),
        close(&QUESTION[..2]),
        close(&QUESTION[..22]),
        drip()
    );
    let times: [u64; 5] = times.into();
    assert!(times.iter().all(|secs| (4..=7).contains(secs)), "{times:?}");
}

#[tokio::test]
async fn garbage_closes_a_connection() {
    let running = start(nobody());
    let mut response = QUESTION;
    response[4] |= 0x80;
    let mut no_question = QUESTION;
    no_question[7] = 0;
    for garbage in [
        b"\0\0".as_slice(),
        b"\0\x05hello",
        b"GET / HTTP/1.1\r\nHost: one\r\n\r\n",
        &response,
        &no_question,
    ] {
        let mut stream = running.connect([127, 0, 0, 1]).await;
        stream.write_all(garbage).await.unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(3), rest(&mut stream)).await;
        assert_eq!(closed.as_deref(), Ok(&[][..]), "{garbage:?}");
    }
}

#[tokio::test]
async fn garbage_datagrams_do_not_disturb() {
    let running = start(nobody());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket
        .connect(("127.0.0.1", running.address.port()))
        .await
        .unwrap();
    let mut runner = TestRunner::deterministic();
    let noise = vec(any::<u8>(), 0..600);
    for _ in 0..300 {
        socket
            .send(&noise.new_tree(&mut runner).unwrap().current())
            .await
            .unwrap();
        // Almost a question.
        let mut bytes = QUESTION[2..].to_vec();
        let place = (0..bytes.len(), any::<u8>())
            .new_tree(&mut runner)
            .unwrap()
            .current();
        bytes[place.0] = place.1;
        socket.send(&bytes).await.unwrap();
    }
    assert_eq!(running.dig("one +short").await, "10.32.0.11");
    assert!(running.server.counts().malformed > 100);
}

#[tokio::test]
async fn a_flood_of_one_client_costs_another_none_of_its_answers() {
    let sockets = sockets();
    let server = sockets.0.local_addr().unwrap();
    let client = |last| {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).unwrap();
        socket.connect(server).unwrap();
        socket
    };
    let (flood, quiet) = (client(1), client(3));
    // All of it is in the queue before the server sees the first. The quiet client comes last.
    for _ in 0..200 {
        flood.send(&QUESTION[2..]).unwrap();
    }
    for _ in 0..5 {
        quiet.send(&QUESTION[2..]).unwrap();
    }
    let running = serve(sockets, nobody());
    let answers = async |socket: std::net::UdpSocket, count: usize| {
        socket.set_nonblocking(true).unwrap();
        let socket = UdpSocket::from_std(socket).unwrap();
        let mut buffer = [0; 512];
        for _ in 0..count {
            let reply = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer));
            reply.await.expect("an answer").unwrap();
        }
        socket
    };
    let _quiet = answers(quiet, 5).await;
    // Replies are sent in the order of the questions, so the flood has had all of its own.
    let flood = answers(flood, 128).await;
    assert!(flood.try_recv(&mut [0; 512]).is_err());
    assert_eq!(running.server.counts().dropped, 72);
    // It is not punished afterwards.
    flood.send(&QUESTION[2..]).await.unwrap();
    answers(flood.into_std().unwrap(), 1).await;
}

#[tokio::test]
async fn a_stopped_server_closes_its_sockets() {
    let running = start(nobody());
    let mut stream = running.connect([127, 0, 0, 1]).await;
    ask(&mut stream).await;
    running.server.shutdown().await;
    assert!(rest(&mut stream).await.is_empty());
    std::net::UdpSocket::bind(running.address).unwrap();
    let refused = TcpStream::connect(("127.0.0.1", running.address.port())).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}
